"""Pushing: a dataset to the hub, where nobody ever sees half of one.

    1  what must not be published is looked for, here, before anything is sent
    2  a pull request, found by the name of the very rows and of what main is at, or opened
    3  files that are not there yet, some a commit, each made and removed again
    4  the card, the manifest and what is no longer part of it, in the last commit
    5  the pull request is merged: readers of main see all of it at once

Each step may be done twice, so the same command goes on after a cut, on another machine too.
"""

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, cast

from factory.dataset.ledger import hold_dataset, read_ledger
from factory.dataset.manifest import PUBLISH, read_manifest, read_signals, run_command
from factory.dataset.merging import SIGNALS
from factory.dataset.stages import current_summary, dataset_state
from factory.errors import DatasetError, JobError, nearest
from factory.hashing import content_hash
from factory.publish.about import generators
from factory.publish.card import card_configs_of, write_pushed_card
from factory.publish.hub import MAIN, Remote, Repo
from factory.publish.leaks import scan
from factory.publish.parcels import Parcel, plain_files, plan_parcels, tell_stale
from factory.publish.report.page import read_state
from factory.publish.targets import making, require_folder
from factory.signals import SignalSpec

WORK: Final = ".push"  # files that are made to be sent, one commit's at a time
COMMIT_BYTES: Final = 5 * 1024 * 1024 * 1024
COMMIT_FILES: Final = 40
REPORT: Final = "report.html"
CARD: Final = "README.md"


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked of a push."""

    without: tuple[str, ...] = ()
    private: bool = False
    report: bool = False
    templates: bool = True
    allow_personal: bool = False
    allow_secrets: bool = False


@dataclass(frozen=True, slots=True)
class Contents:
    """What a copy consists of: tables that are yet to be made, other files, and who wrote the rows."""

    parcels: list[Parcel]
    plain: dict[str, Path | bytes]
    generators: dict[str, str]
    rows: int
    state: str
    told: list[str]  # of what is left out for being stale

    @property
    def card(self) -> str:
        return cast(bytes, self.plain[CARD]).decode()


def push(root: Path, repo: str, wish: Wish) -> list[str]:
    """Send a dataset, or go on with it; the lines that tell people of it. Raises JobError and DatasetError."""
    with hold_dataset(root):
        try:
            return _push(root, Repo(repo), wish)
        finally:
            shutil.rmtree(root / WORK, ignore_errors=True)


def write_copy(root: Path, out: Path, wish: Wish) -> list[str]:
    """Write into a new folder what `push` would send; lines that tell of it. Raises JobError and DatasetError."""
    if out.exists():
        raise JobError(f"{out}: is there already; name a new folder for the copy")
    require_folder(out, "a copy")
    with hold_dataset(root):
        copy = _plan(root, str(out), wish)
        work = out.with_name(f".{out.name}{WORK}")
        shutil.rmtree(work, ignore_errors=True)
        with making(out, "name another folder"):
            work.mkdir(parents=True)
        try:
            for parcel in copy.parcels:
                target = work / parcel.path
                target.parent.mkdir(parents=True, exist_ok=True)
                made = parcel.stage(root, work, copy.generators)
                if made != target:
                    shutil.copyfile(made, target)
            for name, value in copy.plain.items():
                (work / name).parent.mkdir(parents=True, exist_ok=True)
                (work / name).write_bytes(value if isinstance(value, bytes) else value.read_bytes())
            work.rename(out)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return [
        f"{out}: {copy.rows:,} rows in {len(copy.parcels):,} files, as they would be sent",
        *copy.told,
        f'  load_dataset("{out}", split="train")',
    ]


def _plan(root: Path, name: str, wish: Wish) -> Contents:
    """The copy of a finished dataset that may be published, called `name` in its card."""
    manifest, ledger = read_manifest(root), read_ledger(root)
    if not manifest.get(PUBLISH):
        raise JobError(
            f"{root}: has no licence, so it is not pushed; add [publish] with license and output_terms to the job file "
            f"and give `{run_command(manifest)}` again, which asks no teacher"
        )
    if not ledger.totals.complete:
        told = f"{ledger.totals.describe_rest()}, so it is not pushed"
        raise DatasetError(f"{root}: {told}; `{run_command(manifest)}` goes on")
    signals, curriculum = read_signals(manifest) or SignalSpec(), current_summary(ledger)
    names = card_configs_of(ledger, signals, curriculum)
    _require_configs(names, wish)
    if SIGNALS in names:
        raise JobError(
            f"{root}: a stage is called {SIGNALS!r}, as the arrays of a pushed copy are; give it another name"
        )
    parcels = plan_parcels(ledger, signals, curriculum, generators(manifest), wish.without)
    if not any(parcel.config == "default" for parcel in parcels):
        raise DatasetError(f"{root}: no row was accepted, so there is nothing to push")
    plain: dict[str, Path | bytes] = {name: root / name for name in plain_files(root, curriculum, wish.templates)}
    _require_harmless(root, parcels, sorted(plain), wish)
    if wish.report:
        plain[REPORT] = _require_report(root, dataset_state(ledger))
    state = content_hash([dataset_state(ledger), sorted(parcel.path for parcel in parcels)])
    plain[CARD] = write_pushed_card(ledger, curriculum, state, wish.without, name).encode()
    stale = list(tell_stale(ledger, wish.without))
    return Contents(parcels, plain, generators(manifest), ledger.totals.accepted, state, stale)


def _push(root: Path, repo: Repo, wish: Wish) -> list[str]:
    copy = _plan(root, repo.name, wish)
    parcels, plain = copy.parcels, copy.plain
    repo.accept(copy.card)
    repo.create(wish.private)
    # read before the files are: if main moves between the two, it is not merged
    head = repo.head()
    if _is_there(repo.files(MAIN), parcels, plain):
        return [f"{repo.name}: complete already, these very rows and this card", *copy.told]
    revision = repo.request(copy.state, head)
    sent = _send_parcels(root, repo, revision, parcels, copy.generators)
    gone = _stale(repo.files(revision), parcels, plain)
    repo.send(revision, plain, gone, "Card and manifest")
    _require_whole(repo, revision, parcels)
    repo.merge(revision, head)
    repo.close_others()
    return [
        f"{repo.name}: {copy.rows:,} rows in {len(parcels):,} files, {sent:,} of them sent now ({revision}, merged)",
        *copy.told,
        f'  load_dataset("{repo.name}", split="train")',
    ]


def _require_configs(names: list[str], wish: Wish) -> None:
    for name in wish.without:
        if name not in names or name == "default":
            has = ", ".join(one for one in names if one != "default")
            raise JobError(f"--without {name}: no such config to leave out (has: {has}){nearest(name, names)}")


def _require_harmless(root: Path, parcels: list[Parcel], plain: list[str], wish: Wish) -> None:
    """Raise DatasetError where a text holds what is not for everybody, unless that is wished."""
    # arrays hold no text, and `default` has been looked through by then
    tables = [(p.config, file.path) for p in parcels if p.part != "arrays" for file in p.sources if file.rows]
    leaks = scan(root, tables, plain)
    if leaks.secrets and not wish.allow_secrets:
        told = leaks.told(leaks.secrets)
        raise DatasetError(
            f"{root}: secrets in {told}: nothing was sent; make them void, leave the config out (--without), or push "
            "them as they are with --allow-secrets"
        )
    if leaks.personal and not wish.allow_personal:
        told = leaks.told(leaks.personal)
        raise DatasetError(
            f"{root}: rows with personal data: {told}: nothing was sent; [filters] pii and rejected_pii remove it, "
            "--without CONFIG leaves a config out, --allow-personal pushes what is invented or agreed to"
        )


def _require_report(root: Path, state: str) -> Path:
    path = root / REPORT
    if not path.is_file():
        raise JobError(f"--report: {root} has no {REPORT}; `factory report {root}` writes it")
    if read_state(path) != state:
        told = "is of other rows than the dataset now has, or of an earlier release"
        raise JobError(f"--report: {path} {told}; `factory report {root}` writes it anew")
    return path


def _is_there(there: dict[str, Remote], parcels: list[Parcel], plain: dict[str, Path | bytes]) -> bool:
    from huggingface_hub.utils.sha import git_hash

    for name, value in plain.items():
        data = value if isinstance(value, bytes) else value.read_bytes()
        if name not in there or there[name].name not in (git_hash(data), sha256(data).hexdigest()):
            return False
    return all(parcel.path in there for parcel in parcels) and not _stale(there, parcels, plain)


def _send_parcels(root: Path, repo: Repo, revision: str, parcels: list[Parcel], named: dict[str, str]) -> int:
    """Send what is not there yet, by name; how many files."""
    there = repo.files(revision)
    waiting: dict[str, Path | bytes] = {}
    size = sent = 0
    for parcel in (one for one in parcels if one.path not in there):
        path = parcel.stage(root, root / WORK, named)
        waiting[parcel.path] = path
        size += path.stat().st_size
        sent += 1
        if size >= COMMIT_BYTES or len(waiting) >= COMMIT_FILES:
            _send(root, repo, revision, waiting)
            waiting, size = {}, 0
    if waiting:
        _send(root, repo, revision, waiting)
    return sent


def _send(root: Path, repo: Repo, revision: str, files: dict[str, Path | bytes]) -> None:
    repo.send(revision, files, (), f"{len(files)} files of rows")
    shutil.rmtree(root / WORK, ignore_errors=True)


def _stale(there: Iterable[str], parcels: list[Parcel], plain: dict[str, Any]) -> list[str]:
    """Files of rows as they were; whatever else lies in the repository is its owner's."""
    wanted = {*plain, *(parcel.path for parcel in parcels)}
    folders = ("data", "signals", "rejected", "preferences", "hidden_states", "experts", "attention")
    ours = (*folders, "curriculum", "templates")
    return sorted(p for p in there if p not in wanted and (p.split("/")[0] in ours or p.startswith("aligned-")))


def _require_whole(repo: Repo, revision: str, parcels: list[Parcel]) -> None:
    there = repo.files(revision)
    if lost := [parcel.path for parcel in parcels if parcel.path not in there]:
        raise DatasetError(f"{repo.name}: {revision} lacks {lost[0]} and is not merged; the same command goes on")
