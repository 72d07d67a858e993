"""Exporting: a dataset's rows in the form that one trainer reads, with the trainer's config and a README beside them.

    OUT/data/train-00000.parquet      one file a part (or data-00000.arrow, as `datasets` saves to disk)
    OUT/.export.jsonl                 what is asked, then a line a finished part; while the export is at work
    OUT/<config>, README.md           once all parts are there
    OUT/export.json                   last of all: what is asked, files and checksums; then the export is whole

A file is whole or not there, and a part's line is written after its files. So the same command goes on where it was cut
off, and leaves the same bytes as an undisturbed one.
"""

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Any, Final

from factory.dataset.aligned import DONE
from factory.dataset.manifest import read_manifest, read_sealed, run_command, sealed_text, teachers_of, write_atomically
from factory.dataset.shards import ShardFile, find_file_damage
from factory.dataset.stages import SPLITS, current_summary
from factory.dataset.tables import open_table, saved_dataset_files
from factory.errors import DatasetError, FactoryError, JobError, nearest
from factory.hashing import canonical_json, content_hash
from factory.publish.exports.asked import OPTIONS, Asked
from factory.publish.exports.format import Format, Left, Values, Written
from factory.publish.exports.formats import FORMATS
from factory.publish.exports.source import Part, Source, open_source
from factory.publish.exports.student import require_student
from factory.publish.targets import making, require_folder

JOURNAL: Final = ".export.jsonl"
OWN: Final = (JOURNAL, "data-*.arrow", "data", "hidden_states", ".tmp-*")  # what lies in a folder before it is whole


@dataclass(slots=True)
class Tally:
    """What became of a part's rows; sums over parts."""

    read: int = 0
    rows: int = 0  # written: sequences, where rows are packed
    positions: int = 0
    numbered: int = 0  # rows with files of their own
    left: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    longest: int = 0

    def figures(self) -> dict[str, Any]:
        """All of it as JSON has it."""
        # not asdict, which makes counters of pairs anew and so counts the pairs
        values = {one.name: getattr(self, one.name) for one in dataclass_fields(self)}
        return values | {"left": dict(self.left), "counts": dict(self.counts)}

    def add(self, other: "Tally") -> None:
        self.read, self.rows = self.read + other.read, self.rows + other.rows
        self.positions, self.numbered = self.positions + other.positions, self.numbered + other.numbered
        self.left.update(other.left)
        self.counts.update(other.counts)
        self.longest = max(self.longest, other.longest)


def export(root: Path, out: Path, asked: Asked) -> list[str]:
    """Write an export, or go on with one; the lines that tell people of it. Raises JobError and DatasetError."""
    return write_export(root, out, asked, _find_format(asked))


def write_export(root: Path, out: Path, asked: Asked, form: Format) -> list[str]:
    """The same in a form that need not be one of FORMATS."""
    # a draft model goes beside the teacher, on the teacher's own states and prompts
    require_folder(out, "an export")
    as_students = form.arrays != "states" and asked.prompt != "teacher"
    source = open_source(root, asked.stage, asked.split, as_students, asked.teacher)
    _require_right(source, asked, form)
    plan = {"asked": asdict(replace(asked, split=source.split)), "state": source.state}
    if _is_done(out, plan):
        return [f"{out}: complete already, of these rows and options", *_tell_apart(source), *_tell_rest(source)]
    files, total = _write_parts(source, asked, form, out, plan)
    tables = [file for file in files if file is not None]
    left, counts = (dict(sorted(counter.items())) for counter in (total.left, total.counts))
    written = Written(out, source, asked, tables, total.rows, total.positions, left, total.longest, counts)
    return _finish(written, form, plan)


def _write_parts(
    source: Source, asked: Asked, form: Format, out: Path, plan: dict[str, Any]
) -> tuple[list[ShardFile | None], Tally]:
    """Every part's file, those that are there already too. Raises DatasetError, and leaves nothing of its own then
    unless a row is finished: what is damaged may be mended, and the same command goes on."""
    made = [path for path in (out, *out.parents) if not path.exists()]
    files, total = _begin(out, plan)
    try:
        for part in source.parts()[len(files) :]:
            file, tally = _write_part(source, asked, form, part, out, total.numbered)
            total.add(tally)
            files.append(file)
            _note(out, {"file": None if file is None else file.told(), "tally": tally.figures()})
        if not total.rows:
            reasons = "; ".join(f"{count:,} {reason}" for reason, count in sorted(total.left.items()))
            told = f"no row is left for {asked.to} ({reasons or 'none was read'})"
            raise DatasetError(f"{source.root}: {told}; nothing to train on")
    except FactoryError:
        if not total.rows:
            _leave_nothing(out, made)
        raise
    return files, total


def _leave_nothing(out: Path, made: list[Path]) -> None:
    """Remove what a refused export has written, and the folders `made` for it; whatever else is there stays."""
    # an export begins in an empty folder alone: what bears its names there is its own
    for path in [path for pattern in OWN for path in out.glob(pattern)]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    for folder in made:
        if not any(folder.iterdir()):
            folder.rmdir()


def _find_format(asked: Asked) -> Format:
    if asked.to not in FORMATS:
        raise JobError(f"--to {asked.to}: no such format (has: {', '.join(FORMATS)}){nearest(asked.to, FORMATS)}")
    form = FORMATS[asked.to]
    known = {OPTIONS[name] for name in form.options}
    if strange := [option for option in asked.given() if option not in known]:
        has = ", ".join(sorted(known)) or "none of its own"
        raise JobError(f"--to {asked.to}: {strange[0]} means nothing for it (its options: {has}); leave it out")
    if asked.filler is not None and asked.filler < 0:
        raise JobError(f"--filler {asked.filler}: a token id is 0 or more")
    return form


def _require_right(source: Source, asked: Asked, form: Format) -> None:
    """Refuse, before anything is written, what would train wrongly."""
    if source.signals.masked:
        # a trainer would learn what users and tools say between two turns
        raise JobError(
            f"--to {asked.to}: rows of {source.root} have several scored turns (completion_mask), which no export "
            "keeps apart yet; read them with factory.load, whose collate heeds the mask"
        )
    several = "teacher" in source.column_names
    if asked.teacher is not None and not several:
        raise JobError(f"--teacher {asked.teacher}: {source.root} has no column `teacher`: one teacher made all rows")
    names = [name for name in teachers_of(read_manifest(source.root)) if name]  # `source` may know one alone
    has = f" (has: {', '.join(names)})" if names else ""
    if names and asked.teacher is not None and asked.teacher not in names:
        like = nearest(asked.teacher, names)
        raise JobError(f"--teacher {asked.teacher}: no teacher of {source.root}'s rows is called so{has}{like}")
    if several and asked.teacher is None and form.holds_ids(asked):
        raise JobError(
            f"--to {asked.to}: rows of several teachers, whose ids and distributions may be of several tokenizers; "
            f"choose one with --teacher{has}"
        )
    if asked.prompt and not source.signals.students:
        raise JobError(f"--prompt {asked.prompt}: no task of {source.root} has a student.j2: all are asked alike")
    if asked.prompt == "student" and form.arrays == "states":
        raise JobError(
            f"--to {asked.to} --prompt student: hidden states are those of the teacher's prompts; leave --prompt out"
        )
    if source.signals.images and form.blind:  # a student would learn to speak of pictures that it never saw
        raise JobError(f"--to {asked.to}: some rows show pictures, and {form.blind}; {_tell_carriers()}")
    if told := form.refuse(source, asked):
        raise JobError(f"--to {asked.to}: {told}")
    require_student(source, asked, form)


def _tell_carriers() -> str:
    """Which formats pictures go with, as they are asked for."""
    carry = [form for form in FORMATS.values() if not form.blind]
    return f"they go with {', '.join(f'{f.name} --rows messages' if 'rows' in f.options else f.name for f in carry)}"


def _is_done(out: Path, plan: dict[str, Any]) -> bool:
    """Whether a whole export of this plan is there. Raises JobError where the folder holds something else."""
    if not out.exists() or not any(out.iterdir()):
        return False
    try:
        done = read_sealed(out / DONE)
    except FileNotFoundError:
        if (out / JOURNAL).is_file():
            return False
        raise JobError(f"{out}: not empty, and no export; choose another folder") from None
    if done["plan"] != json.loads(canonical_json(plan)):
        told = "holds another export (other rows or options)"
        raise JobError(f"{out}: {told}; choose another folder, or remove it first")
    for file in done["files"]:
        if damage := find_file_damage(out, ShardFile(**file), "exported"):
            raise DatasetError(f"{out}: {damage}; remove the folder and export again")
    return True


def _begin(out: Path, plan: dict[str, Any]) -> tuple[list[ShardFile | None], Tally]:
    """What an export that was cut off has finished; nothing where there is none."""
    journal = out / JOURNAL
    if not journal.is_file():
        with making(out, "name another folder"):
            out.mkdir(parents=True, exist_ok=True)
            _note(out, plan)
        return [], Tally()
    lines = journal.read_text(encoding="utf-8").split("\n")
    # a kill can tear the last line: without its newline it counts as absent
    whole = [json.loads(line) for line in lines[:-1]]
    if not whole or whole[0] != json.loads(canonical_json(plan)):
        raise JobError(f"{out}: holds the begin of another export; choose another folder, or remove it first")
    files: list[ShardFile | None] = []
    total = Tally()
    for line in whole[1:]:
        file = None if line["file"] is None else ShardFile(**line["file"])
        if file is not None and find_file_damage(out, file, "exported"):
            break  # from there on again: what follows may be numbered by it
        files.append(file)
        tally = line["tally"]
        total.add(Tally(**tally | {name: Counter(tally[name]) for name in ("left", "counts")}))
    kept = "\n".join(canonical_json(line) for line in whole[: 1 + len(files)]) + "\n"
    write_atomically(journal, kept.encode())
    return files, total


def _note(out: Path, line: dict[str, Any]) -> None:
    with (out / JOURNAL).open("ab") as handle:
        handle.write((canonical_json(line) + "\n").encode())
        handle.flush()
        os.fsync(handle.fileno())


def _write_part(
    source: Source, asked: Asked, form: Format, part: Part, out: Path, first: int
) -> tuple[ShardFile | None, Tally]:
    """One part's file, and files of its rows, numbered from `first`."""
    tally, fields = Tally(), form.fields(source, asked)
    rows = _converted(source, asked, form, part, tally)
    if form.gather is not None:
        rows = form.gather(rows, asked)
    if not fields:
        for values in rows:
            _write_row(form, values, out, first, tally)
        os.sync()
        return None, tally
    name = f"data-{part.number:05d}.arrow" if form.form == "arrow" else f"data/train-{part.number:05d}.parquet"
    with open_table(out, name, fields, form.form) as (table, done):
        for values in rows:
            table.write(values)
            _write_row(form, values, out, first, tally)
    if form.row_files is not None:
        os.sync()  # one for all: thousands of small files, each synced alone, would take minutes
    file: ShardFile = done[0]
    return file, tally


def _converted(source: Source, asked: Asked, form: Format, part: Part, tally: Tally) -> Iterator[Values]:
    columns = form.columns if asked.teacher is None else (*form.columns, "teacher")
    for given in source.read(part, form.configs, columns, form.arrays):
        if asked.teacher is not None and given.row.columns.get("teacher") != asked.teacher:
            continue
        tally.read += 1
        values = form.convert(given, source, asked)
        if isinstance(values, Left):
            tally.left[values.reason] += 1
            continue
        tally.positions += values.get("_positions", 0)
        tally.longest = max(tally.longest, values.get("_longest", 0))
        tally.counts.update(values.get("_counts", {}))
        yield values


def _write_row(form: Format, values: Values, out: Path, first: int, tally: Tally) -> None:
    tally.rows += 1
    if form.row_files is None:
        return
    for name, content in form.row_files(first + tally.numbered, values):
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".tmp-{path.name}")
        temporary.write_bytes(content)
        temporary.replace(path)
    tally.numbered += 1


def _finish(written: Written, form: Format, plan: dict[str, Any]) -> list[str]:
    out = written.out
    # a file of an earlier try, from which other parts were cut
    for path in [*out.glob("data-*.arrow"), *out.glob("data/train-*.parquet")]:
        if path.relative_to(out).as_posix() not in {file.path for file in written.files}:
            path.unlink()
    beside = dict(form.beside(written))
    if form.form == "arrow" and written.files:
        beside |= saved_dataset_files(out, written.files, form.formatted)
    for name, content in beside.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out / name, content if isinstance(content, bytes) else content.encode())
    write_atomically(out / "README.md", _readme(written, form, content_hash(plan)).encode())
    done = {"plan": json.loads(canonical_json(plan)), "files": [file.told() for file in written.files]}
    done |= {"rows": written.rows, "positions": written.positions, "left": dict(written.left)}
    write_atomically(out / DONE, sealed_text(done).encode())
    (out / JOURNAL).unlink()
    return _told(written, form)


def _told(written: Written, form: Format) -> list[str]:
    kinds = ", ".join(f"{count:,} {name}" for name, count in written.counts.items())
    lines = [f"{written.out}: {written.rows:,} rows for {form.trainer}" + (f" ({kinds})" if kinds else "")]
    if form.tell is not None:
        lines = [form.tell(written)]
    elif form.holds_ids(written.asked) and written.positions:
        lines[0] += f", {written.positions:,} positions"
    lines += [f"  left out  {count:>7,}  {reason}" for reason, count in written.left.items()]
    lines += [*_tell_apart(written.source), *_tell_rest(written.source)]
    if form.tell is not None:
        return lines
    return [*lines, *(f"  next: {line}" for line in form.usage(written).splitlines())]


def _tell_apart(source: Source) -> list[str]:
    """That rows are here which the curriculum keeps from training."""
    summary, apart = None if source.stage else current_summary(source.ledger), Counter[str]()
    for stage in summary["stages"] if summary else ():
        apart.update(stage["rows"])
    told = ", ".join(f"{apart[name]:,} of {name}" for name in SPLITS[1:] if apart[name])
    return [f"  with the rows that the curriculum keeps apart ({told}); stages leave them out"] if told else []


def _tell_rest(source: Source) -> list[str]:
    """That a dataset is unfinished, and this is not all there will be."""
    totals = source.ledger.totals
    if totals.complete:
        return []
    there = f"{totals.done:,} of {totals.planned:,} planned rows are there" if totals.left else totals.describe_rest()
    return [f"  {there}; `{run_command(source.manifest)}` goes on"]


def _readme(written: Written, form: Format, named: str) -> str:
    """What is here, how it was made and the line that runs it; its `configs:` let `datasets` load Parquet."""
    source, asked = written.source, written.asked
    head = []
    if form.form == "parquet" and written.files:
        # in the description, so that `datasets` names its cached copy by the rows and never serves those of before
        head = ["---", "configs:", "- config_name: default", f'  description: "rows {named[:16]}"', "  data_files:"]
        head += ["  - split: train", "    path: data/train-*.parquet", "---", ""]
    command = "export DIR " + " ".join(_spelt(asked)) + " OUT"
    if form.name not in FORMATS:
        command = f"align DIR --student {asked.student}"
    lines = [*head, f"# Rows for {form.trainer}", "", f"{written.rows:,} rows: {form.keeps(source, asked)}."]
    lines += [f"Answers of `{source.model}`, made with `factory {command}`.", ""]
    if form.holds_ids(asked):
        checked = f"checked against `{asked.student}`" if asked.student else "not checked against a student"
        lines += [f"Token ids are those of the teacher's tokenizer ({checked}): the student must have the same.", ""]
    if form.arrays == "logprobs" and (told := source.details.get("distribution")):
        lines += [f"The distributions are {told}.", ""]
    if source.signals.images:
        lines += [f"Pictures are PNG files in the column `images`, in the order of their places. {form.pictures}", ""]
    if source.ledger.totals.left:
        lines += [f"The dataset was unfinished: {source.ledger.totals.left:,} planned rows were still to come.", ""]
    lines += [f"- left out: {count:,} rows, {reason}" for reason, count in written.left.items()]
    return "\n".join([*lines, "", "```console",
                      *(f"$ {line}" for line in form.usage(written).splitlines()), "```", ""])  # fmt: skip


def _spelt(asked: Asked) -> Iterator[str]:
    yield f"--to {asked.to}"
    for name, value in asdict(asked).items():
        if name != "to" and value not in (None, False, "train"):
            yield f"--{name}" if value is True else f"--{name} {value}"
