"""Opening a dataset: what is asked of it, held against what is there, as rows by number or as a stream.

A local copy in the cache of `datasets` is named by the present state of the files, so it is never that of others.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from factory.dataset.columns import STUDENT_COLUMNS, TOKEN_IDS
from factory.dataset.manifest import of_teacher, teachers_of
from factory.dataset.merging import SIGNALS
from factory.dataset.rows import AGAIN, Row, given_names
from factory.dataset.shards import count_groups
from factory.errors import DatasetError, nearest
from factory.load.messages import Markers, Voices
from factory.load.places import Apart, Folder, Place, find_place
from factory.load.rows import Rows
from factory.load.stream import LABEL_COLUMNS, POINTERS, Reader, RowStream, Unit
from factory.load.values import PROMPTS, REASONINGS, require_known, require_switches

NEEDED: Final = {
    "hidden_states": {"id", "states"},
    "experts": {"id", "expert_ids"},
    "attention": {"id", "maps"},
    "preferences": {"id", "prompt", "chosen", "rejected"},  # texts alone, as the next
    "hand-off": {"id", "prompt", "hand_off"},
}

TEXTS: Final = ("rejected", "preferences", "hand-off", SIGNALS)  # configs that no array belongs to


def load_rows(
    source: str | Path,
    config: str = "default",
    *,
    split: str = "train",
    streaming: bool = False,
    revision: str | None = None,
    join_hidden_states: bool = False,
    join_experts: bool = False,
    join_attention: bool = False,
    reasoning: Literal["apart", "content"] = "apart",
    prompt: Literal["teacher", "student"] | None = None,
    teacher: str | None = None,
    cache_dir: str | Path | None = None,
) -> Rows | RowStream:
    """Open a dataset: a local directory, `owner/name` on the Hugging Face Hub at `revision`, or `s3://BUCKET/PREFIX`
    where a run has made it.

    `join_hidden_states` gives each accepted row its hidden states, and so does `config="hidden_states"`: they mean
    nothing without their tokens. The same with `join_experts` (routing) and `join_attention` (maps). A stage of a
    curriculum (`config="stage-1"`) gives the rows of the default config that it points at, in its order, with its own
    columns beside theirs; a split of it that has no row is empty. "preferences" and "hand-off" give texts alone.

    `reasoning="content"` puts the reasoning inside the answers' content, between the teacher's markers, for a chat
    template that does not render `reasoning_content`. `teacher` takes the rows of one of several alone.
    `prompt="student"` gives each row the prompt that the student is shown, where a task has a student.j2
    (`Row.as_student`). Left out, rows have the teacher's, and those of a stage what its curriculum was made with.

    Streaming reads the files as they are; otherwise `datasets` first copies them, uncompressed, into its cache
    (`cache_dir`). Raises DatasetError where source, config or split is not there, a file of it is gone, a curriculum is
    of other rows, or a keyword has an unknown value; reading the rows raises it at one whose arrays do not agree.
    """
    require_known("reasoning", reasoning, REASONINGS)
    require_known("prompt", prompt, PROMPTS)
    wanted = {"hidden_states": join_hidden_states, "experts": join_experts, "attention": join_attention}
    require_switches(streaming=streaming, **{f"join_{name}": asked for name, asked in wanted.items()})
    place = _with_arrays(find_place(source, revision, cache_dir), config)
    joined = [name for name, asked in wanted.items() if asked or config == name]
    # what is asked of a config beside the rows is asked with them: without its tokens a state means nothing
    config = "default" if config in wanted else config
    columns = _require_columns(place, config, split, joined)
    # told by its columns, as a stage may have any name
    staged = {"stage", *POINTERS} <= set(columns)
    students = _takes_students(place, config, staged, prompt, joined)
    voices = replace(_find_voices(place, inline=reasoning == "content"), students=students)
    if teacher is not None:
        _require_teacher(place, columns, teacher)
    top_k = place.top_k() if set(TOKEN_IDS) <= set(columns) else None
    if streaming:
        units = _stage_units(place, config, split, joined) if staged else _shard_units(place, config, split, joined)
        if staged:
            columns = [*place.columns("default", "train"), *LABEL_COLUMNS]
        stream = RowStream(Reader(place.source, top_k, voices), units, list(dict.fromkeys(given_names(columns))))
        return stream if teacher is None else stream.filter(partial(_is_of, teacher))
    opened = _open_stage(place, config, split, joined) if staged else _open_tables(place, config, split, joined)
    rows = Rows(place.source, *opened, top_k, voices)
    return rows if teacher is None else rows.select(np.flatnonzero(np.array(rows["teacher"]) == teacher))


def _with_arrays(place: Place, config: str) -> Place:
    """The place as it is, or with a copy's arrays in their rows."""
    from datasets.exceptions import DatasetsError

    try:
        if config in TEXTS or SIGNALS not in place.configs() or {*TOKEN_IDS} & {*place.columns("default", "train")}:
            return place
    except (ValueError, OSError, DatasetsError):  # told by whoever opens what is asked for
        return place
    return Apart(place)


def _takes_students(place: Place, config: str, staged: bool, prompt: str | None, joined: list[str]) -> bool:
    """Whether rows get the student's prompt in place of the teacher's: a stage's as its curriculum says, unless told.

    Raises DatasetError where nothing says it, or rows cannot have the prompt that is asked for.
    """
    texts = config == "hand-off"
    if not (staged or texts):
        return prompt == "student"
    # in a dataset without a student's prompt, or without tokens, there is nothing to choose
    if STUDENT_COLUMNS["prompt"] not in _ask(place, "default", "train", place.columns):
        return False
    curriculum = place.curriculum(config)
    if curriculum is None and (texts or prompt is None):
        if texts and prompt is None:
            return False
        hint = "leave out `prompt`" if texts else 'give prompt="student" or "teacher"'
        raise DatasetError(f"{place.source}: no curriculum.json says whose prompt {config!r} has; {hint}")
    made = "teacher" if curriculum and curriculum["config"].get("prompt") == "teacher" else "student"
    if texts and prompt not in (None, made):
        told = f"the prompts of config {config!r} are the {made}'s, as its curriculum was made"
        raise DatasetError(f'{place.source}: {told}; `factory curriculum` with prompt = "{prompt}" makes the other')
    if prompt is None and made == "student" and (lost := [name for name in joined if name != "hidden_states"]):
        told = f"{lost[0]} belong to the teacher's prompt, and rows of {config!r} have the student's"
        raise DatasetError(f'{place.source}: {told}; give prompt="teacher", or leave out join_{lost[0]}')
    return staged and (prompt or made) == "student"


def _find_voices(place: Place, inline: bool) -> Voices:
    """What the manifest says of the teachers. Raises DatasetError where it does not tell markers that are wanted."""
    manifest = place.manifest()
    names = teachers_of(manifest)
    teachers = {name: of_teacher(manifest, name).get("teacher", {}) for name in names}
    tokenizers = {name: _name_tokenizer(told) for name, told in teachers.items()}
    markers = {name: _read_markers(place, told) for name, told in teachers.items()} if inline else None
    return Voices(tokenizers, markers)


def _name_tokenizer(teacher: dict[str, Any]) -> str:
    """One name for a teacher's vocabulary: by what it says, not by what it is called."""
    told = teacher.get("details", {}).get("tokenizer_sha256")
    if told or not teacher:
        return str(told or "")
    # the scripted one has one vocabulary, whatever it is called; others that say nothing are held apart by model
    return "scripted" if teacher.get("backend") == "scripted" else f"{teacher.get('backend')}:{teacher.get('model')}"


def _read_markers(place: Place, teacher: dict[str, Any]) -> Markers:
    """The texts around a teacher's reasoning. Raises DatasetError where the manifest does not tell them."""
    match teacher.get("details", {}).get("reasoning_markers"):
        case [str(start), str(end)]:
            return start, end
    told = "manifest.json names no markers of the teacher's reasoning"
    raise DatasetError(f"{place.source}: {told}, so it cannot go into the content; leave out `reasoning`")


def _require_teacher(place: Place, columns: list[str], teacher: str) -> None:
    """Raise DatasetError where no row can be this teacher's."""
    names = teachers_of(place.manifest())
    if "teacher" not in columns:
        raise DatasetError(f"{place.source}: its rows name no teacher, there is one only; leave out `teacher`")
    if teacher not in names and names != [""]:
        raise DatasetError(f"{place.source}: no teacher {teacher!r} (has: {', '.join(names)}){nearest(teacher, names)}")


def _is_of(teacher: str, row: Row) -> bool:
    return bool(row["teacher"] == teacher)


def _require_columns(place: Place, config: str, split: str, joined: list[str]) -> list[str]:
    """The columns of a config, once it and those beside it have what is needed. Raises DatasetError."""
    if joined and config in NEEDED:
        raise DatasetError(f"{place.source}: config {config!r} has no tokens that {joined[0]} could belong to")
    found = {}
    for name, part in [(config, split), *((name, "train") for name in joined)]:
        found[name] = _ask(place, name, part, place.columns)
        if missing := ", ".join(sorted(NEEDED.get(name, {"id", *TOKEN_IDS}) - set(found[name]))):
            raise DatasetError(
                f"{place.source}: config {name!r} has no column {missing}; it was not made by the factory"
            )
    columns: list[str] = found[config]
    return columns


def _ask(place: Place, config: str, split: str, ask: Any) -> Any:
    """What a place answers; an error of `datasets` becomes ours."""
    from datasets.exceptions import DatasetsError

    try:
        return ask(config, split)
    except (ValueError, OSError, DatasetsError) as error:
        where, cause = f"config {config!r}, split {split!r}", error.__cause__ or error
        raise DatasetError(f"{place.source}: {where} cannot be loaded: {' '.join(str(cause).split())}") from error


def _open(place: Place, config: str, split: str) -> Any:
    # the numpy and torch formats strip trailing NUL bytes off binary values
    return _ask(place, config, split, place.table).with_format("arrow")


def _open_tables(place: Place, config: str, split: str, joined: list[str]) -> tuple[Any, dict[str, Any]]:
    return _open(place, config, split), {name: _open(place, name, split) for name in joined}


def _open_stage(place: Place, config: str, split: str, joined: list[str]) -> tuple[Any, dict[str, Any]]:
    """The default config's rows in a stage's order, and what the stage says of them."""
    stage = _open(place, config, split)
    index = np.asarray(stage.data.column("index").to_numpy(), np.int64)  # of a stage without a row, no type is known
    dataset, beside = _open_tables(place, "default", "train", joined)  # where the rows of every split are
    if len(index) and index.max() >= len(dataset):
        raise DatasetError(f"{place.source}: a stage points at row {index.max()} of {len(dataset)}; {AGAIN}")
    chosen = {name: part.select(index, keep_in_memory=True) for name, part in beside.items()}
    labels = {"labels": stage.select_columns(list(LABEL_COLUMNS))}
    return dataset.select(index, keep_in_memory=True), labels | chosen


def _shard_units(place: Place, config: str, split: str, joined: list[str]) -> list[Unit]:
    """A unit for each file, with the files of the same rows beside it."""
    files = {"default": _ask(place, config, split, place.files)}
    beside = [SIGNALS, *joined] if isinstance(place, Apart) and config == "default" else joined
    files |= {name: _ask(place, name, split, place.files) for name in beside}
    shards = {name: [Path(path).name for path in paths] for name, paths in files.items()}
    for name in beside:
        if shards[name] != shards["default"]:
            told = f"{len(shards[name])} files of {name} beside {len(shards['default'])} of {config}"
            raise DatasetError(f"{place.source}: {told}, or other names; both need the same shards")
    return [Unit(dict(zip(files, paths, strict=True))) for paths in zip(*files.values(), strict=True)]


def _stage_units(place: Place, config: str, split: str, joined: list[str]) -> list[Unit]:
    """A unit for each row group of a stage's files."""
    if isinstance(place, Apart):
        told = "a stage of a pushed copy does not stream, as its files are merged; leave out `streaming`"
        raise DatasetError(f"{place.source}: {told}")
    if not isinstance(place, Folder):
        raise DatasetError(f"{place.source}: a stage streams from a local directory only; leave out `streaming`")
    folders = {"default": place.root / "data"} | {name: place.root / name for name in joined}
    paths = place.files(config, split)
    return [Unit({"labels": path}, folders, group) for path in paths for group in range(count_groups(Path(path)))]
