"""A job on a cluster: workers make shards, this process plans, leases and commits them.

    driver     plan, leases, ledger: the only writer of the dataset's own files
      | step(shards) ->            <- one line for each shard that is whole
    workers    one teacher each, on nodes that share the dataset's directory

Ray places workers, sees them die and carries lines (`nodes`). Everything else is what one machine does: the same plan,
the same code from prompt to shard, the same ledger, whose line makes a shard count. A worker or node that is gone loses
its leases; what it delivers later is not taken. This process may be killed too: the same command goes on.
"""

import json
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from factory.dataset.entries import Totals
from factory.dataset.history import note_worker, write_state
from factory.dataset.ledger import WORKERS, Ledger
from factory.dataset.manifest import list_changes, reconcile_manifest, section, write_atomically
from factory.dataset.stages import current_summary
from factory.dataset.store import DISK, Store
from factory.errors import FactoryError, JobError, TeacherError, one_line
from factory.hashing import canonical_json
from factory.publish.card import save_card
from factory.runs.delivery import Delivery
from factory.runs.hands import Hand, come_further, find_needs, require_job
from factory.runs.leases import Leases
from factory.runs.metrics import serve_metrics
from factory.runs.nodes import Nodes, WorkerLost, connect
from factory.runs.prepare import Prepared
from factory.runs.progress import Progress, Reporter
from factory.runs.rounds import count_accepted, next_turn, pending_of, plan_on
from factory.runs.run import open_progress, run_prepared, told_in_history
from factory.runs.worker import Setup, Told, adopt, list_orphans, list_versions, require_same_versions

TICK_S = 0.5  # the longest wait for the next event
LOOK_S = 2.0  # between two looks at which nodes there are
TELL_S = 10.0  # between two writings of what `status` shows, and of the card where that takes no time
CARD_SHARE = 50  # the card takes at most one part in so many
TOKEN: Final = f"{WORKERS}/token"


def run_on_cluster(
    prepared: Prepared,
    out: Path,
    address: str,
    mend: bool = False,
    log_json: bool = False,
    port: int | None = None,
    store: Store = DISK,
) -> Totals:
    """Make the job's dataset in `out`, as `run_prepared` does, by the workers of a cluster.

    `address` is Ray's, or "local". Raises JobError where the job or the cluster cannot do it.
    """
    require_job(prepared)
    with connect(address) as nodes:

        def make(prepared: Prepared, manifest: dict[str, Any], ledger: Ledger, reporter: Reporter) -> None:
            Driver(prepared, manifest, ledger, reporter, nodes).run(port)

        return run_prepared(prepared, out, mend, log_json, make, store)


class Driver:
    """Makes what is left of one dataset."""

    def __init__(
        self,
        prepared: Prepared,
        manifest: dict[str, Any],
        ledger: Ledger,
        reporter: Reporter,
        nodes: Nodes,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.clock = clock
        self.prepared, self.manifest, self.ledger, self.reporter = prepared, manifest, ledger, reporter
        self.nodes = nodes
        self.out = ledger.out.absolute()
        self.config = prepared.job.cluster
        self.needs = find_needs(prepared.job, nodes.totals())
        self.hands: dict[str, Hand] = {}
        self.orphans: list[str] = []
        self.bad_nodes: set[str] = set()
        self.leases = Leases(())
        self.turn, self.turn_began = "", time.monotonic()
        self.described: dict[str, Any] = {}
        self.versions: dict[str, str] = {}
        self.restarts = self.deaths = 0
        self.looked = self.wrote = self.next_card = self.nobody_since = 0.0
        self.token = secrets.token_hex(16)
        self.progress: Progress = open_progress(prepared, ledger, reporter, self.crew)

    def run(self, port: int | None = None) -> None:
        """Make all that is left, between two lines of runs.jsonl."""
        self._require_room()
        (self.out / WORKERS).mkdir(exist_ok=True)
        write_atomically(self.out / TOKEN, self.token.encode())
        # what an earlier driver's workers have answered is on their spools
        self.orphans = list_orphans(self.out)
        with told_in_history(self.ledger) as figures, serve_metrics(port, self.figures), self.progress:
            try:
                prepared = self.prepared
                while (turn := next_turn(prepared, self.ledger)) is not None:
                    prepared = self._make_turn(prepared, turn)
            finally:
                figures |= self.progress.summary() | {"restarts": self.restarts}
                self._write_state()
                for hand in list(self.hands.values()):
                    self._dismiss(hand, "parked")

    def crew(self) -> dict[str, Any]:
        """Who is at work, for progress, status and metrics."""
        rate = round(self.progress.rows_per_second(), 2)
        return {"workers": len(self.hands), "restarts": self.restarts, "rows_per_second": rate}

    def figures(self) -> dict[str, Any]:
        return self.progress.figures()

    def _require_room(self) -> None:
        """Raise JobError where the cluster has no room for what is asked for."""
        rooms, totals = self.nodes.rooms(self.needs), self.nodes.totals()
        room, asked = sum(rooms.values()), 1 if self.config.workers == "auto" else self.config.workers
        if room < asked:
            has = f"{totals['GPU']:g} GPUs and {totals['CPU']:g} CPUs on {len(rooms)} nodes"
            raise JobError(
                f"cluster.workers: {asked} workers of {self.needs} each are asked for, and there is room for {room}: "
                f"the cluster has {has}; ask for fewer, or start nodes"
            )

    def _make_turn(self, prepared: Prepared, turn: str) -> Prepared:
        """Make all rows of one of several teachers, round after round; the job with what is planned then."""
        self.turn, self.described, self.turn_began = turn, {}, time.monotonic()
        self.prepared = prepared
        for hand in self.hands.values():
            # of those that answer to something else, see `_hear`
            if hand.call is None:
                self._ask(hand, "open")
        while True:
            self.prepared = prepared
            self._make_round()
            before, prepared = prepared, plan_on(prepared, self.ledger)
            if prepared is not before:
                self.prepared = prepared
                self.progress.plan(self.ledger.totals.planned)
                totals = self.ledger.totals
                self.reporter.tell("round", planned=totals.planned, accepted=totals.accepted)
            if not self.ledger.totals.left or next_turn(prepared, self.ledger) != turn:
                return prepared

    def _make_round(self) -> None:
        """Commit every shard that is planned for this teacher now."""
        pending = list(pending_of(self.prepared, self.ledger, self.turn))
        self.leases = Leases(pending)
        delivery = Delivery(self.prepared, self.ledger, self.nodes, pending, self._committed)
        # a manifest that was lost names no teacher: one is opened to name itself
        while self.leases.left or delivery.waiting or section("teacher", self.turn) not in self.described:
            self._staff()
            self._feed()
            calls = {hand.call: hand for hand in self.hands.values() if hand.call is not None}
            waited = [*calls, *delivery.calls()]
            for call in self.nodes.wait(waited, TICK_S) if waited else ():
                if call in calls:
                    self._hear(calls[call], delivery)
            if not waited:  # no node has room, or none is there
                time.sleep(TICK_S)
            self._look_after()
            delivery.commit_ready()
            self.progress.tick()
            if time.monotonic() - self.wrote > TELL_S:
                self._write_state()

    def _look_after(self) -> None:
        """Give up workers that live and come no further."""
        for hand in list(self.hands.values()):
            if come_further(hand, self.out / WORKERS / hand.name, self.clock()) > self.config.hang_s:
                self._lose(hand, f"it has come no further for {self.config.hang_s:g} s (cluster.hang_s)")

    def _staff(self) -> None:
        """Start workers where there is room for them, as many as have something to do."""
        now = time.monotonic()
        if now - self.looked < LOOK_S and self.hands:
            return
        self.looked = now
        most = self.leases.left if self.config.workers == "auto" else min(self.config.workers, self.leases.left)
        rooms = {node: room for node, room in self.nodes.rooms(self.needs).items() if node not in self.bad_nodes}
        free = dict(rooms)
        for hand in self.hands.values():
            free[hand.node] = free.get(hand.node, 0) - 1
        places = [node for node, room in free.items() for _ in range(room)][: max(0, max(1, most) - len(self.hands))]
        for number, node in enumerate(places):
            # all that workers before have answered is read by those that begin now
            self._start(node, -(-len(self.orphans) // (len(places) - number)))
        if self.hands:
            self.nobody_since = now
        elif now - (self.nobody_since or now) > self.config.wait_s:
            waited = f"no node has had room for a worker of {self.needs} for {self.config.wait_s:g} s (cluster.wait_s)"
            raise JobError(f"{waited}; committed shards are whole, start nodes and the same command goes on from them")

    def _start(self, node: str, orphans: int) -> None:
        name = secrets.token_hex(4)
        setup = Setup(
            self.prepared.job, self.prepared.workspace.absolute(), Path.cwd(), self.out, name, (TOKEN, self.token)
        )
        if orphans:
            self.leases.inherit(name, adopt(self.out, self.orphans[:orphans], name))
            del self.orphans[:orphans]
        hand = self.hands[name] = Hand(name, node, self.nodes.start(setup, node, self.needs))
        self._ask(hand, "greet")

    def _ask(self, hand: Hand, stage: str) -> None:
        plan = self.prepared.plan.records() if self.prepared.transcripts is None else []
        given: dict[str, tuple[Any, ...]] = {
            "greet": (),
            "open": (self.turn, self.prepared.begun, plan, self._trusted(), self.ledger.totals.done),
            "plan": (self.prepared.begun, plan),
        }
        hand.stage, hand.call = stage, self.nodes.call(hand.actor, stage, *given[stage])
        hand.turn, hand.rounds = self.turn, len(self.prepared.plan.rounds)

    def _trusted(self) -> list[str]:
        known = count_accepted(self.prepared.plan, self.ledger, self.turn)
        return sorted({task for (task, _), rows in known.items() if rows})

    def _feed(self) -> None:
        """Lease shards to whoever waits for some."""
        plan, depth = self.prepared.plan, self.prepared.job.of_teacher(self.turn).teacher.feed_depth
        # enough that the engine is fed across a shard's end, and a fair share of the last ones
        lead = 1 + -(-depth // max(1, plan.shard_prompts * plan.samples))
        for hand in self.hands.values():
            if hand.stage != "idle":
                continue
            if hand.rounds < len(plan.rounds):
                self._ask(hand, "plan")
                continue
            fair = max(1, len(self.leases.waiting) // (2 * len(self.hands)))
            taken = self.leases.take(hand.name, min(lead, fair))
            if taken or self.leases.held.get(hand.name):
                hand.stage = "step"
                hand.call = self.nodes.call(hand.actor, "step", taken, hand.committed)
                hand.committed = []

    def _hear(self, hand: Hand, delivery: Delivery) -> None:
        """Take what a worker answers."""
        call, hand.call = hand.call, None
        try:
            answer = self.nodes.get(call)
        except WorkerLost as lost:
            self._lose(hand, str(lost))
            return
        except TeacherError as error:
            # the job's own fault where no teacher has started yet, a worker's where others have
            if not self.described:
                raise
            self._lose(hand, str(error))
            return
        except FactoryError as error:
            # what this machine has read well a node may not find
            if hand.stage != "greet":
                raise
            self._refuse(hand, JobError(f"node of worker {hand.name}: {one_line(error)}"))
            return
        if hand.stage == "greet":
            self._welcome(hand, answer)
        elif hand.turn != self.turn:
            self._ask(hand, "open")  # the turn that it was opened for has passed
        elif hand.stage == "open":
            self._describe(hand, answer)
        else:
            for told in answer or ():
                self._take(hand, told, delivery)
            if hand.stage == "step" and not answer and self.leases.held.get(hand.name):
                self._lose(hand, "it has left shards undone")
            hand.stage = "idle"

    def _welcome(self, hand: Hand, told: dict[str, Any]) -> None:
        """Look at what a node says of itself. Raises JobError at the first one, and does without a later one."""
        hand.host, hand.process = told["node"], told["process"]
        try:
            if not told["shared"]:
                raise JobError(
                    f"node {hand.host}: does not see {self.out} as this machine does; put `out` on a file system that "
                    f"all nodes share, under the same path"
                )
            if "fault" in told:
                raise JobError(f"node {hand.host}: {told['fault']}; run from a folder that all nodes share")
            ours = {name: version for name, version in list_versions().items() if name in ("python", "factory")}
            require_same_versions(told["versions"], ours | self.versions, hand.host)
            if told["digest"] != self.manifest["digest"]:
                both = f"(digest {told['digest']}, here {self.manifest['digest']})"
                raise JobError(
                    f"node {hand.host}: finds another job there {both}: its tasks or sources differ; put the workspace "
                    f"on a file system that all nodes share"
                )
        except JobError as error:
            self._refuse(hand, error)
            return
        self.versions |= told["versions"]
        self._ask(hand, "open")

    def _describe(self, hand: Hand, described: dict[str, Any]) -> None:
        """Hold what a teacher says of itself against the manifest."""
        try:
            if not self.described:
                reconcile_manifest(self.ledger.out, self.manifest | described)
                described = json.loads(canonical_json(described))  # as it is read back: tuples are lists
                # rows are counted from when the first teacher is ready, and not while the next one starts
                self.progress.wait(time.monotonic() - self.turn_began)
            elif changes := list_changes(self.described, described):
                raise JobError(f"node {hand.host}: its teacher is another than elsewhere: {changes[0]}")
        except JobError as error:
            self._refuse(hand, error)
            return
        self.described = self.described or described
        hand.stage = "idle"
        self.reporter.tell("worker", worker=hand.name, node=hand.host, process=hand.process)

    def _refuse(self, hand: Hand, error: JobError) -> None:
        """A node that is not fit: the end of a run that has made nothing yet, else that node's."""
        if not self.versions:
            raise error
        self.bad_nodes.add(hand.node)
        self.reporter.tell("node_refused", f"{error}; its workers are not used", node=hand.host)
        self._dismiss(hand, "refused")

    def _take(self, hand: Hand, told: Told, delivery: Delivery) -> None:
        if not self.leases.deliver(hand.name, told.entry.shard):
            return
        hand.shards += 1
        hand.rows += told.entry.planned
        hand.tokens += told.tokens
        self.deaths = 0
        self.progress.answer(told.tokens)
        delivery.take(self.out / WORKERS / hand.name, told.entry, hand.name)

    def _committed(self, shard: int, maker: str) -> None:
        entry = self.ledger.entries[shard]
        if maker in self.hands:
            self.hands[maker].committed.append(shard)
        self.progress.add_shard(entry.planned, entry.accepted)
        self.reporter.tell("shard", **entry.counts())

    def _lose(self, hand: Hand, why: str) -> None:
        """A worker is gone: its shards go to others, what it had answered to the next one."""
        self.restarts += 1
        self.deaths += 1
        lost = self._dismiss(hand, "lost")
        self.orphans.append(hand.name)
        self.looked = 0.0
        told = f"worker {hand.name} on {hand.host or 'a new node'} is lost ({why}); {lost} shards go to others"
        self.reporter.tell("worker_lost", told, worker=hand.name, node=hand.host, shards=lost, why=why)
        if self.deaths > self.config.max_restarts:
            raise TeacherError(
                f"{self.deaths} workers were lost without a shard between them (cluster.max_restarts), the last: {why}"
            )

    def _dismiss(self, hand: Hand, outcome: str) -> int:
        """Do without a worker from now on; how many shards it had leased."""
        del self.hands[hand.name]
        self.nodes.kill(hand.actor)
        seconds = round(time.monotonic() - hand.started, 1)
        figures = {"worker": hand.name, "node": hand.host, "outcome": outcome, "seconds": seconds}
        figures |= {"shards": hand.shards, "rows": hand.rows, "completion_tokens": hand.tokens}
        note_worker(self.ledger.out, figures)
        return len(self.leases.lose(hand.name))

    def _write_state(self) -> None:
        self.wrote = time.monotonic()
        write_state(self.ledger.out, self.figures())
        # not at every shard: the card names all of them, and there may be millions
        if self.described and self.wrote >= self.next_card:
            save_card(self.ledger, current_summary(self.ledger))
            self.ledger.store.save()
            took = time.monotonic() - self.wrote
            self.next_card = time.monotonic() + CARD_SHARE * took
