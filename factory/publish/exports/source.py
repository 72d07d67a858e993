"""The source of an export: a dataset's rows, part by part, as arrays; each file is checked before it is read.

    default      part 0 = shards 0 1 2   part 1 = shards 3 4   ...      about PART_BYTES of files each
    a stage      part 0 = its first file                       ...      its rows point into the shards

Parts follow from ledger and curriculum alone, so an export that is cut off goes on with the next part.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from factory.dataset.aligned import rows_state
from factory.dataset.codec import CANDIDATES
from factory.dataset.columns import STUDENT_COLUMNS
from factory.dataset.ledger import Ledger, read_ledger
from factory.dataset.manifest import of_teacher, read_manifest, read_signals, run_command, teachers_of
from factory.dataset.picking import take_table
from factory.dataset.rows import ARRAYS, STUDENT_IDS, Row, StateBits, join_bits, read_rows
from factory.dataset.shards import ShardFile, find_file_damage, read_batches, read_schema, shard_path
from factory.dataset.signal_columns import PROMPT
from factory.dataset.stages import AGAIN, FOLDER, SPLITS, SUMMARY, read_summary, require_current
from factory.errors import DatasetError, JobError, nearest
from factory.publish.vocabulary import teacher_vocabulary
from factory.signals import SignalSpec

STUDENT_PROMPT: Final = STUDENT_COLUMNS["prompt"]
PART_BYTES: Final = 256 * 1024 * 1024
BATCH_ROWS: Final = 64  # states and distributions of a whole row group at once would fill memory
STAGE_ROWS: Final = 1024  # a stage's next row is anywhere: the more at once, the fewer row groups are read again
FOLDERS: Final = {"default": "data", "rejected": "rejected", "preferences": "preferences"}


@dataclass(frozen=True, slots=True)
class Given:
    """A row as a format is given it: which config it stands in, and its hidden states where the format reads them."""

    row: Row
    config: str = "default"
    states: StateBits | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """What becomes one file: some shards, or one file of a stage."""

    number: int
    shards: tuple[int, ...] = ()
    stage_file: str | None = None


@dataclass(frozen=True)
class Source:
    """A dataset that is exported; `stage` names a stage of its curriculum, None all accepted rows."""

    root: Path
    ledger: Ledger
    manifest: dict[str, Any]
    signals: SignalSpec
    stage: str | None
    split: str
    # rows come with the student's prompt, and its ids, where they have another one for it
    as_students: bool = False

    @property
    def details(self) -> dict[str, Any]:
        """What the manifest says of the teacher beyond its name."""
        details: dict[str, Any] = self.manifest.get("teacher", {}).get("details", {})
        return details

    @property
    def model(self) -> str:
        return str(self.manifest.get("teacher", {}).get("model", "?"))

    @property
    def scored(self) -> bool:
        """Whether its rows are transcripts, which no task has asked for."""
        return bool((self.manifest.get("job") or {}).get("transcripts"))

    @cached_property
    def state(self) -> str:
        """One name for the rows that are exported."""
        files = [file.digest for file in self._stage_files] if self.stage else None
        return rows_state(self.ledger, files)

    @cached_property
    def column_names(self) -> list[str]:
        """The columns of the default config, as they are stored."""
        first = self.ledger.entries[min(self.ledger.entries)]
        return list(read_schema(self.root / shard_path("data", first.shard)))

    @cached_property
    def markers(self) -> tuple[str, str] | None:
        """The texts around the teacher's reasoning."""
        match self.details.get("reasoning_markers"):
            case [str(start), str(end)]:
                return start, end
        return None

    @cached_property
    def spelling(self) -> tuple[str, str, str]:
        """The white space around the teacher's reasoning between its markers, and behind them: as its first row has it.

        A student that is taught another would write what the teacher never does.
        """
        if self.markers is None:
            return "", "", ""
        start, end = self.markers
        for shard in sorted(self.ledger.entries):
            for batch in read_batches(self.root / shard_path("data", shard), ["text"]):
                for text in batch.column("text").to_pylist():
                    thought, closed, answer = text.partition(end)
                    if not closed:
                        continue
                    trail = thought[len(thought.rstrip()) :]
                    begun = thought.removeprefix(start)
                    # where the prompt has opened the reasoning, templates that end it on a line begin it on one
                    lead = begun[: len(begun) - len(begun.lstrip())] if begun != thought else "\n" * ("\n" in trail)
                    return lead, trail, answer[: len(answer) - len(answer.lstrip())]
        return "\n", "\n", "\n\n"

    @cached_property
    def endings(self) -> tuple[str, ...] | None:
        """The texts of the tokens that end an answer; None where the teacher's tokenizer is not on this machine."""
        vocabulary = teacher_vocabulary(self.manifest)
        if vocabulary is None:
            return None
        ids = self.details.get("end_token_ids", vocabulary.end_ids)
        return tuple(vocabulary.text(number) for number in ids)

    @cached_property
    def _stage_files(self) -> list[ShardFile]:
        return _find_stage(self.root, self.ledger, str(self.stage), self.split)

    def parts(self) -> list[Part]:
        """What becomes one file each, in order."""
        if self.stage:
            return [Part(number, stage_file=file.path) for number, file in enumerate(self._stage_files)]
        groups: list[list[int]] = []
        size = PART_BYTES
        for shard in sorted(self.ledger.entries):
            if size >= PART_BYTES:
                groups.append([])
                size = 0
            groups[-1].append(shard)
            size += sum(file.bytes for file in self.ledger.entries[shard].files)
        return [Part(number, tuple(shards)) for number, shards in enumerate(groups)]

    def read(self, part: Part, configs: tuple[str, ...], columns: tuple[str, ...], arrays: str) -> Iterator[Given]:
        """The rows of a part, those of each shard config by config.

        `columns` are read beside the arrays, where they are there; `arrays` is "none", "ids", "logprobs" or "states".
        """
        if part.stage_file:
            yield from self._read_stage(part.stage_file, columns, arrays)
            return
        for shard in part.shards:
            for config in configs:
                path = self._sound(shard, FOLDERS[config])
                batches = _cut(read_batches(path, self._present(path, columns, arrays)))
                if arrays == "states":
                    states = _cut(read_batches(self._sound(shard, "hidden_states")))
                    joined = join_bits(str(self.root), self._rows(batches, columns), states)
                    yield from (Given(row, config, bits) for row, bits in joined)
                else:
                    yield from (Given(row, config) for row in self._rows(batches, columns))

    def _rows(self, batches: Iterator[Any], columns: tuple[str, ...]) -> Iterator[Row]:
        top_k = self.signals.top_k or None
        rows = (row for batch in batches for row in read_rows(str(self.root), batch, top_k))
        return map(_as_student, rows) if self.as_students else rows

    def _present(self, path: Path, columns: tuple[str, ...], arrays: str) -> list[str]:
        """The columns of a file that a format reads."""
        wanted = {"id", *columns}
        if arrays != "none":
            wanted |= {"prompt_token_ids", "completion_token_ids"}
        if self.as_students:
            wanted |= {STUDENT_PROMPT, *([STUDENT_IDS] if arrays != "none" else [])}
        if arrays == "logprobs":
            # the prompt's distributions and candidates are no format's target: they would be read for nothing
            wanted |= {name for name in ARRAYS if not name.startswith(PROMPT) and name not in CANDIDATES}
        return [name for name in read_schema(path) if name in wanted]

    def _sound(self, shard: int, folder: str) -> Path:
        """The path of a shard's file, its bytes as the ledger has them. Raises DatasetError."""
        name = shard_path(folder, shard)
        file = next((file for file in self.ledger.entries[shard].files if file.path == name), None)
        told = f"{name}: not in the ledger" if file is None else find_file_damage(self.root, file, "committed")
        if told:
            raise DatasetError(
                f"{self.root}: {told}; run `factory verify`, then `{run_command(self.manifest)} --repair`"
            )
        return self.root / name

    def _read_stage(self, name: str, columns: tuple[str, ...], arrays: str) -> Iterator[Given]:
        """Rows of the shards in a stage's order."""
        checked: set[int] = set()
        folders = ["data", "hidden_states"] if arrays == "states" else ["data"]
        pointers = (batch.slice(at, STAGE_ROWS) for batch in read_batches(self.root / name, ["shard", "row"])
                    for at in range(0, batch.num_rows, STAGE_ROWS))  # fmt: skip
        for pointed in pointers:
            shards, rows = (pointed.column(column).to_numpy() for column in ("shard", "row"))
            for shard in sorted(set(shards.tolist()) - checked):
                for folder in folders:
                    self._sound(shard, folder)
                checked.add(shard)
            step = BATCH_ROWS if arrays == "states" else STAGE_ROWS
            for at in range(0, len(rows), step):
                yield from self._take(shards[at : at + step], rows[at : at + step], columns, arrays)

    def _take(self, shards: Any, rows: Any, columns: tuple[str, ...], arrays: str) -> Iterator[Given]:
        def taken(folder: str, wanted: list[str] | None) -> Iterator[Any]:
            paths = [self.root / shard_path(folder, shard) for shard in shards.tolist()]
            return _cut(iter(take_table(paths, rows, wanted).to_batches()))

        present = self._present(self.root / shard_path("data", int(shards[0])), columns, arrays)
        found = self._rows(taken("data", present), columns)
        if arrays == "states":
            joined = join_bits(str(self.root), found, taken("hidden_states", None))
            yield from (Given(row, "default", bits) for row, bits in joined)
        else:
            yield from (Given(row) for row in found)


def open_source(
    root: Path, stage: str | None, split: str | None, as_students: bool = False, teacher: str | None = None
) -> Source:
    """A dataset with at least one accepted row; `as_students` where it has other prompts for them.

    `teacher` is one of several. Raises DatasetError or JobError.
    """
    manifest, ledger = _one_teachers(root, read_manifest(root), teacher), read_ledger(root)
    if not ledger.totals.accepted:
        raise DatasetError(f"{root}: no accepted row, so nothing to export; `factory status` says why")
    if stage is None and split is not None:
        _require_whole(root, split)
    signals = read_signals(manifest) or SignalSpec()
    source = Source(root, ledger, manifest, signals, stage, split or SPLITS[0], as_students and signals.students)
    if stage:
        source.parts()  # raises where there is no such stage, before anything is written
    return source


def _require_whole(root: Path, split: str) -> None:
    """Raise JobError for a split of no stage, unless it is train of a dataset that nothing is kept apart of."""
    if split != SPLITS[0]:
        raise JobError(f"--split {split}: only stages have splits, the dataset itself has train; name one with --stage")
    if (root / FOLDER / SUMMARY).exists():
        # all rows go out without a stage, and whoever asks for those of train does not want the others
        raise JobError(
            f"--split {split}: only stages have splits, and {root} has a curriculum; name a stage with --stage, or "
            "leave --split out for all rows, those that the curriculum keeps apart too"
        )


def _one_teachers(root: Path, manifest: dict[str, Any], teacher: str | None) -> dict[str, Any]:
    """The manifest as of one teacher: the one that is named, or of several the first where all mark their texts alike.

    Raises JobError where they do not.
    """
    names = teachers_of(manifest)
    if len(names) == 1 or (teacher is not None and teacher not in names):
        return manifest
    parts = {name: of_teacher(manifest, name) for name in ([teacher] if teacher else names)}
    details = {name: (part.get("teacher") or {}).get("details") or {} for name, part in parts.items()}
    marks = {name: [told.get("reasoning_markers"), told.get("end_token_ids")] for name, told in details.items()}
    if any(mark != marks[next(iter(marks))] for mark in marks.values()):
        told = ", ".join(f"{name} {' '.join(mark[0] or ('none',))}" for name, mark in marks.items())
        raise JobError(f"{root}: its teachers mark reasoning and ends of turns differently ({told}); give --teacher")
    part = next(iter(parts.values()))
    return part | {"job": {name: value for name, value in part["job"].items() if name != "teachers"}}


def _as_student(row: Row) -> Row:
    """A row as its student is asked: texts and ids."""
    asked, teachers = row.columns[STUDENT_PROMPT], row.columns.get("prompt")
    # of an answer that was not accepted there are no such ids, and no format writes any
    row = row if row.student_prompt_token_ids is None else row.as_student()
    if asked is None or asked == teachers:
        return row
    # ids that are the same, or not read, leave the texts to us; what a repair adds is the teacher's alone
    return replace(row, columns=row.columns | {"prompt": asked, "repaired": False})


def _cut(batches: Iterator[Any]) -> Iterator[Any]:
    return (batch.slice(at, BATCH_ROWS) for batch in batches for at in range(0, batch.num_rows, BATCH_ROWS))


def _find_stage(root: Path, ledger: Ledger, stage: str, split: str) -> list[ShardFile]:
    """The files of a stage's split. Raises DatasetError or JobError."""
    summary = read_summary(root)
    if summary is None:
        raise JobError(f"--stage {stage}: {root} has no curriculum; `factory curriculum {root}` makes one")
    require_current(ledger, summary)
    stages = {entry["name"]: entry["rows"] for entry in summary["stages"]}
    if stage not in stages:
        raise JobError(f"--stage {stage}: no such stage (has: {', '.join(stages)}){nearest(stage, stages)}")
    if not stages[stage].get(split):
        has = ", ".join(f"{name} {rows:,}" for name, rows in stages[stage].items() if rows)
        raise JobError(f"--split {split}: no row of {stage} is in it (has: {has})")
    begin = f"curriculum/{stage}/{split}-"
    files = [ShardFile(**file) for file in summary["files"] if file["path"].startswith(begin)]
    for file in files:
        if told := find_file_damage(root, file, "written"):
            raise DatasetError(f"{root}: {told}; {AGAIN}")
    return files
