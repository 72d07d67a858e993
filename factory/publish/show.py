"""Showing people what is in a dataset: its counts, and one accepted row with its signals, token by token."""

import json
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from factory.dataset.codec import STORED, read_topk
from factory.dataset.entries import Totals
from factory.dataset.history import count_runs, read_state
from factory.dataset.ledger import read_ledger
from factory.dataset.manifest import MANIFEST, of_teacher, read_manifest, run_command
from factory.dataset.shards import ShardFile, find_file_damage, read_batches, shard_path
from factory.dataset.sound import find_missing, sum_up, tell_next
from factory.dataset.store import MARK
from factory.errors import JobError, nearest
from factory.hashing import canonical_json
from factory.messages import Message, text_of
from factory.records import Prompt, Rejection
from factory.signals import Array
from factory.teachers.prompt_ids import EncodedPrompt
from factory.teachers.remote.purse import describe_spending
from factory.teachers.spelling import open_speller
from factory.terminal import printable

WIDTH = 110
IDS = dict.fromkeys(("topk_ids", "topk_id_table", "topk_id_places", "topk_first"), np.int32)
TYPES = IDS | dict.fromkeys(("topk_counts", "topk_draws", "topk_steps"), np.uint16)


def describe_totals(out: Path, totals: Totals, address: str = "", damage: Sequence[str] = ()) -> list[str]:
    """Counts of a dataset: planned, accepted, rejected by reason, errors, left; and by task and level.

    `address` says where it is, where that is not `out`; `damage` is what `find_damage` has found.
    """
    samples, keep = read_samples(out)
    # of a prompt's samples one is kept at most: a share of rows would call that a loss
    chosen = samples > 1 and keep != "all"
    share = f" ({totals.accepted / totals.done:.0%})" if totals.done and not chosen else ""
    left = f"{totals.left:,} rows left" if totals.left else "rows are wanting"
    state = "complete" if totals.complete else f"{left}; the same `{_command(out)}` goes on"
    if totals.part and not totals.left:
        state = "complete; `factory merge` joins the parts"
    state = f"part {totals.part}: {state}" if totals.part else state
    if damage:
        state = f"damaged: {sum_up(damage)}; {tell_next(out)}; by the ledger {state}"
    lines = [
        f"{address or out}: {state}",
        f"  planned {totals.planned:,} = accepted {totals.accepted:,}{share} + rejected {totals.rejected:,}"
        f" + errors {totals.errors:,} + left {totals.left:,}",
        f"  shards {totals.committed_shards:,} of {totals.shards:,}, {totals.completion_tokens:,} completion tokens, "
        f"{totals.bytes / 1e6:,.1f} MB",
    ]
    if samples > 1:
        decided = f"{totals.done // samples:,} of {totals.planned // samples:,} prompts decided"
        kept = f", {totals.accepted:,} with a kept answer" if chosen else ""
        pairs = f", {totals.pairs:,} preference pairs" if keep == "pair" else ""
        lines.append(f"  {samples} samples a prompt, keep {keep}: {decided}{kept}{pairs}")
    for task, rows, wanted in totals.short():
        spent = " and its budget is spent; a larger at_most goes on" if totals.complete else " so far"
        lines.append(f"  {task}: {rows:,} of {wanted:,} wanted rows are accepted{spent}")
    runs = count_runs(out)
    if runs.begun > runs.ended:
        told = "has told of no end: killed, or at work" if runs.begun == runs.ended + 1 else "have told of no end"
        lines.append(f"  runs {runs.begun:,}, of which {runs.begun - runs.ended:,} {told}")
    lines += _describe_cluster(out)
    lines += describe_spending(out)
    width = max((len(cell) for cell in (*totals.cells, *totals.teachers)), default=0)
    for cell, (accepted, rejected, errors) in (*sorted(totals.teachers.items()), *sorted(totals.cells.items())):
        lines.append(f"  {cell:<{width}}  {accepted:>7,} accepted of {accepted + rejected + errors:,}")
    for reason, count in totals.ranked_reasons():
        lines.append(f"  rejected  {count:>7,}  {reason}")
    return lines


def find_damage(out: Path) -> list[str]:
    """Committed files that are gone or of another size, a line each; none is read."""
    # in the working folder of a dataset in an object store no shard is expected
    return [] if (out / MARK).exists() else list(find_missing(read_ledger(out)))


def _describe_cluster(out: Path) -> list[str]:
    state = read_state(out)
    if state is None:
        return []
    told = "{workers} workers, {restarts} restarts, {rows_per_second:g} rows/s, {tokens_per_second:,.0f} tok/s"
    left = f", about {state['seconds_left'] // 60:,} min left" if state.get("seconds_left") is not None else ""
    return [f"  cluster at {state['told']}: {told.format(**state)}{left}"]


def read_samples(out: Path) -> tuple[int, str]:
    """How many samples each prompt has, and which of them are kept."""
    if not (out / MANIFEST).exists():
        return 1, "all"
    samples = read_manifest(out).get("job") or {}
    samples = samples.get("samples") or {} if isinstance(samples, dict) else {}
    return int(samples.get("n", 1)), str(samples.get("keep", "all"))


def _command(out: Path) -> str:
    return run_command(read_manifest(out) if (out / MANIFEST).exists() else {})


def describe_nothing(out: Path, totals: Totals, rows: bool = True) -> str:
    """Why a dataset has no accepted row: the one reason there is, in the words of the first row that has it.

    `rows`: they are there to be read.
    """
    if len(totals.reasons) != 1:
        return "the reasons are above"
    (reason,) = totals.reasons
    row = next(chosen_rows(out, Choice(reason=reason)), None) if rows else None
    why = f": {row['findings'][0]}" if row is not None and row["findings"] else ""
    return f"all for one reason, {reason}{why}"


def read_totals(out: Path) -> Totals:
    """Totals of a dataset, from its ledger alone."""
    return read_ledger(out).totals


def accepted_rows(out: Path, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
    """Accepted rows of a dataset in order, as plain values."""
    for shard in sorted(read_ledger(out).entries):
        for batch in read_batches(out / shard_path("data", shard), columns):
            yield from batch.to_pylist()


@dataclass(frozen=True, slots=True)
class Choice:
    """Which rows to show; None takes all. `reason` is a stage, a reason or `stage/reason`, `id` how an id begins."""

    rejected: bool = False
    reason: str | None = None
    task: str | None = None
    level: str | None = None
    id: str | None = None

    def folders(self) -> tuple[str, ...]:
        if self.rejected or self.reason is not None:
            return ("rejected",)
        return ("data",) if self.id is None else ("data", "rejected")

    def takes(self, label: dict[str, Any]) -> bool:
        wanted = ((self.task, label["task"]), (self.level, label["level"]))
        if any(asked is not None and asked != found for asked, found in wanted):
            return False
        if self.id is not None and not any(label[name].startswith(self.id) for name in ("id", "prompt_id")):
            return False
        reason = label.get("reason"), label.get("stage"), f"{label.get('stage')}/{label.get('reason')}"
        return self.reason is None or self.reason in reason


def chosen_rows(out: Path, choice: Choice, read: list[ShardFile] | None = None) -> Iterator[dict[str, Any]]:
    """The rows of a choice, shard after shard; only the files that hold one are read whole, and put on `read`."""
    for shard, entry in sorted(read_ledger(out).entries.items()):
        for folder in choice.folders():
            path = out / shard_path(folder, shard)
            names = ["id", "prompt_id", "task", "level", *(("stage", "reason") if folder == "rejected" else ())]
            labels = (label for batch in read_batches(path, names) for label in batch.to_pylist())
            wanted = {number for number, label in enumerate(labels) if choice.takes(label)}
            if wanted and read is not None:
                read += [file for file in entry.files if file.path == shard_path(folder, shard)]
            first = 0
            for batch in read_batches(path) if wanted else ():
                for number in sorted(wanted & set(range(first, first + batch.num_rows))):
                    yield from batch.slice(number - first, 1).to_pylist()
                first += batch.num_rows


def describe_rows(out: Path, count: int, choice: Choice | None = None) -> list[str]:
    """The first rows of a choice (accepted ones), readable; a line that says so where there are none.

    Before them a warning for each file they are read from that is not what was committed. Raises JobError for a task, a
    level, a reason or an id that no row has.
    """
    manifest, choice = read_manifest(out), choice or Choice()
    _require_known(out, choice, manifest)
    read: list[ShardFile] = []
    rows = list(islice(chosen_rows(out, choice, read), count))
    if not rows and choice == Choice():
        return [f"{out}: no accepted row yet; `factory status {out}` tells why rows were rejected"]
    if not rows and choice.id is not None:
        raise JobError(f"--id {choice.id}: no row that is asked for has an id that begins so, nor its prompt, in {out}")
    if not rows:
        return [f"{out}: no such row; `factory status {out}` lists tasks, levels and reasons"]
    # who looks at damage must be able to see it, and be told that it is no row of the teacher's
    damage = [told for file in read if (told := find_file_damage(out, file, "committed"))]
    lines = [f"warning: {out}: {told}; {tell_next(out)}" for told in damage]
    return [*lines, *(line for row in rows for line in _describe_row(row, manifest))]


def _require_known(out: Path, choice: Choice, manifest: dict[str, Any]) -> None:
    """Raise JobError for a task, a level or a reason that no row has and the job does not name."""
    totals, planned = read_totals(out), manifest.get("tasks") or {}
    cells = [cell.partition("/")[::2] for cell in totals.cells]
    tasks = [*planned, *(task for task, _ in cells)]
    levels = [level for task, level in cells if choice.task in (None, task)]
    levels += [level for task in planned if choice.task in (None, task) for level in planned[task].get("levels", ())]
    # a reason may be given by its stage, by itself, or with both
    reasons = [name for whole in totals.reasons for name in (whole, *whole.split("/", 1))]
    for option, asked, known in (
        ("--task", choice.task, tasks),
        ("--level", choice.level, levels),
        ("--reason", choice.reason, reasons),
    ):
        if asked is not None and asked not in known:
            has = ", ".join(sorted(dict.fromkeys(known))) or "none"
            what = option.removeprefix("--")
            raise JobError(f"{option} {asked}: {out} has no such {what} (has: {has}){nearest(asked, known)}")


def _describe_row(row: dict[str, Any], manifest: dict[str, Any]) -> list[str]:
    source = f" · source {row['source_row']}" if row.get("source_row") is not None else ""
    teacher = f" · {row['teacher']}" if row.get("teacher") else ""
    lines = [f"── {row['task']} · {row['level']}{teacher} · row {row['id']}{source} ".ljust(WIDTH, "─")]
    for message in row["prompt"]:
        lines += _block(message["role"], text_of(message["content"]), most=14 if message["role"] == "user" else 5)
    if row.get("student_prompt") not in (None, row["prompt"]):
        lines += _block("student", text_of(row["student_prompt"][-1]["content"]), most=8)
    if "stage" in row:
        return [*lines, *_describe_end(row)]
    if row["reasoning"] is not None:
        lines += _block("reasoning", row["reasoning"])
    lines += _block("answer", _lay_out(row["answer"]))
    if row["findings"]:
        lines += _block("findings", "\n".join(row["findings"]), most=4)
    return [*lines, *_describe_signals(row, manifest)]


def _lay_out(answer: str) -> str:
    """JSON over lines of its own; the answer of a transcript that was scored may be any text."""
    try:
        return json.dumps(json.loads(answer), ensure_ascii=False, indent=1)
    except (ValueError, RecursionError):
        return answer


def _describe_end(row: dict[str, Any]) -> list[str]:
    """What a row that was not accepted says in the end, and why it was not."""
    lines = _block("text", row["text"])
    lines += _block(row["kind"], f"{row['stage']}/{row['reason']}, attempt {row['attempt'] + 1}")
    return [*lines, *_block("findings", "\n".join(row["findings"]), most=8)]


def _block(name: str, text: str, most: int = 14) -> list[str]:
    lines = printable(text).removesuffix("\n").split("\n")  # escaped before it is wrapped, which drops some controls
    wrapped = [piece for line in lines for piece in textwrap.wrap(line, WIDTH - 12) or [""]]
    if len(wrapped) > most:
        wrapped = [*wrapped[: most - 1], f"… {len(wrapped) - most + 1} lines more"]
    return [f"{name if index == 0 else '':<11} {line}".rstrip() for index, line in enumerate(wrapped)]


def _describe_signals(row: dict[str, Any], manifest: dict[str, Any]) -> list[str]:
    manifest = of_teacher(manifest, row.get("teacher") or "")
    signals, tokens = manifest["signals"], len(row["completion_token_ids"])
    told = (
        f"{len(row['prompt_token_ids'])} prompt + {tokens} completion tokens, answer from token {row['answer_start']}"
    )
    if row.get("without_ids"):
        return _block("signals", f"none: {row['without_ids']}")
    if row.get("entropy"):
        told += f"; mean entropy {np.mean(row['entropy']):.2f} nats"
    if signals["layers"]:
        told += f"; hidden states of layers {signals['layers']} beside it"
    lines = _block("signals", told)
    k, first = signals["top_k"], row["answer_start"]
    if not k:
        return lines
    spell = open_speller(manifest, row)
    if spell is None:
        lines += _block("", "tokens by their ids: the teacher's tokenizer is not on this machine, or is another one")
    topk_ids_TK, topk_TK = _read_topk(row, k)
    counts = (topk_ids_TK >= 0).sum(1).tolist()
    for t in range(first, min(first + 4, tokens)):
        ids, values = (array[t, :3].tolist() for array in (topk_ids_TK, topk_TK))
        best = [f"{_name(i, spell)}:{value:.2f}" for i, value in zip(ids, values, strict=True) if i >= 0]
        head = f"token {t}: {_name(row['completion_token_ids'][t], spell)}"
        lines.append(f"{'':<11} {head:<24} logprob {row['sampled_logprobs'][t]:7.2f}   {_name_kept(best, counts[t])}")
        while len(best) > 1 and len(lines[-1]) > WIDTH:
            lines[-1] = lines[-1].replace(f"  {best.pop()} …", " …")
    return lines


def _name(token_id: int, spell: Callable[[int], str] | None) -> str:
    """A token's id, with its text as JSON writes it."""
    return (
        str(token_id) if spell is None else f"{token_id} {printable(json.dumps(spell(token_id), ensure_ascii=False))}"
    )


def _name_kept(best: list[str], count: int) -> str:
    return f"top {'  '.join(best)} … of {count}" if count else "not kept"


def _read_topk(row: dict[str, Any], k: int) -> tuple[Array, Array]:
    """Ids and logprobs of a row, [T, k] each, in whichever profile it is stored."""
    flat = {name: np.array(row[name], TYPES.get(name, np.float32)) for name in STORED if name in row}
    topk = read_topk({name: (values, np.array([0, len(values)])) for name, values in flat.items()}, k)
    return topk["topk_ids"], topk["topk_logprobs"]


def describe_prompt(
    made: Prompt | Rejection, as_json: bool, encode: Callable[[Sequence[Message], str], EncodedPrompt] | None = None
) -> str:
    """A rendered prompt for people, or as one JSON line; `encode` gives what a model would be given of it.

    A row whose prompt cannot be made is told with the reason.
    """
    prompt = made.prompt if isinstance(made, Rejection) else made
    encoded = encode(prompt.messages, prompt.tools) if encode is not None and prompt is made else None
    wrong = {"reason": made.reason, "findings": made.findings} if isinstance(made, Rejection) else {}
    if as_json:
        fields = ["id", "task", "level", "messages", "scenario"]
        fields += ["student_messages"] if prompt.student_messages else []
        given = {} if encoded is None else {"prompt_text": encoded.text, "prompt_tokens": len(encoded.ids)}
        given |= {"tools": json.loads(prompt.tools)} if prompt.tools else {}
        given |= {} if prompt.source_row is None else {"source_row": prompt.source_row}
        return canonical_json({name: getattr(prompt, name) for name in fields} | given | wrong)
    source = "" if prompt.source_row is None else f"source {prompt.source_row} · "
    head = f"── {prompt.task} · {prompt.level} · {source}{prompt.id} ".ljust(WIDTH, "─")
    if isinstance(made, Rejection):
        return "\n".join([head, f"no prompt: {made.stage}/{made.reason}: {'; '.join(made.findings)}", ""])
    if encoded is not None:
        ends = "its reasoning follows" if encoded.reasons else "its answer follows"
        told = f"── what the model is given: {len(encoded.ids):,} ids, {ends} ".ljust(WIDTH, "─")
        return "\n".join([head, encoded.text, told, *_describe_student(prompt, encode)])
    tools = [f"[tools]\n{_name_tools(prompt.tools)}\n"] if prompt.tools else []
    return "\n".join([head, *tools, *_describe_turns(prompt.messages), *_describe_student(prompt, None)])


def _describe_turns(messages: Sequence[Message]) -> list[str]:
    return [f"[{message['role']}]\n{text_of(message['content'])}\n" for message in messages]


def _describe_student(prompt: Prompt, encode: Callable[..., EncodedPrompt] | None) -> list[str]:
    """What the student is shown, where that is not the same."""
    if not prompt.student_messages:
        return []
    if encode is None:
        return ["── what the student is shown ".ljust(WIDTH, "─"), *_describe_turns(prompt.student_messages)]
    encoded = encode(prompt.student_messages, prompt.tools)
    return [f"── what the student is shown: {len(encoded.ids):,} ids ".ljust(WIDTH, "─"), encoded.text]


def _name_tools(tools: str) -> str:
    """Each tool as it would be called."""
    functions = [tool["function"] for tool in json.loads(tools)]
    return "\n".join(f"{each['name']}({', '.join(each['parameters']['properties'])})" for each in functions)
