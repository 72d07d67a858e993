"""Opening a dataset: a local directory by its own card, or one of the hub by `datasets`.

A local copy in the cache of `datasets` is named by the present state of the files, so it is never that of others.
"""

import json
import re
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Final, Literal, Protocol

import numpy as np

from factory.dataset.columns import TOKEN_IDS
from factory.dataset.manifest import MANIFEST, of_teacher, teachers_of
from factory.dataset.merging import SIGNALS
from factory.dataset.rows import AGAIN, Row, given_names
from factory.dataset.shards import count_groups, read_batches, read_schema
from factory.errors import DatasetError, nearest
from factory.load.card import Splits, escaped, find_split, read_card, state_of
from factory.load.messages import Markers, Voices
from factory.load.rows import Rows
from factory.load.stream import LABEL_COLUMNS, POINTERS, Reader, RowStream, Unit

NEEDED: Final = {
    "hidden_states": {"id", "states"},
    "experts": {"id", "expert_ids"},
    "attention": {"id", "maps"},
    "preferences": {"id", "prompt", "chosen", "rejected"},  # texts alone, as the next
    "hand-off": {"id", "prompt", "hand_off"},
}

TEXTS: Final = ("rejected", "preferences", "hand-off", SIGNALS)  # configs that no array belongs to


class Place(Protocol):
    """Where a dataset lies."""

    @property
    def source(self) -> str: ...

    def configs(self) -> list[str]: ...

    def files(self, config: str, split: str) -> list[str]: ...

    def columns(self, config: str, split: str) -> list[str]: ...

    def table(self, config: str, split: str) -> Any: ...

    def manifest(self) -> dict[str, Any]: ...

    def top_k(self) -> int | None: ...


@dataclass(frozen=True)
class Folder:
    """A local directory."""

    root: Path
    source: str
    cache_dir: str | None

    @cached_property
    def card(self) -> dict[str, Splits]:
        return read_card(self.root)

    def configs(self) -> list[str]:
        return list(self.card)

    def files(self, config: str, split: str) -> list[str]:
        return [str(path) for path in self._find(config, split)]

    def columns(self, config: str, split: str) -> list[str]:
        return list(read_schema((self._find(config, split) or self._find("default", "train"))[0]))

    def table(self, config: str, split: str) -> Any:
        """A split's rows as `datasets` keeps them, which itself refuses one without a row."""
        import datasets

        paths = self._find(config, split)
        # `datasets` raises for a split without a row; ours is an empty one with the right names
        if not any(map(count_groups, paths)):
            return datasets.Dataset.from_dict({name: [] for name in self.columns(config, split)})
        # the cache of `datasets` tells copies apart by this name, not by the files: see decision 0018
        name = f"{config}-{state_of(paths)}"
        data_files = {split: escaped(paths)}
        return datasets.load_dataset("parquet", name, data_files=data_files, split=split, cache_dir=self.cache_dir)

    def manifest(self) -> dict[str, Any]:
        return _read_json(self.root / MANIFEST)

    def top_k(self) -> int | None:
        """k as the schema metadata of the first file with rows has it: a damaged row cannot mislead it."""
        files = self.card.get("default", {}).get("train", [])
        metadata = (batch.schema.metadata or {} for path in files for batch in read_batches(path, ["id"]))
        top_k = json.loads(next(metadata, {}).get(b"factory", b"{}")).get("top_k")
        return int(top_k) if top_k else None

    def _find(self, config: str, split: str) -> list[Path]:
        paths = find_split(self.root, self.card, config, split)
        if strangers := [path.name for path in paths if path.suffix != ".parquet"]:
            told = f"config {config!r} has {strangers[0]}, no Parquet"
            raise DatasetError(f"{self.source}: {told}; it was not made by the factory")
        return paths


@dataclass(frozen=True)
class Hub:
    """A dataset of the Hugging Face Hub, at a revision."""

    source: str
    revision: str | None
    cache_dir: str | None

    def configs(self) -> list[str]:
        import datasets

        return list(datasets.get_dataset_config_names(self.source, revision=self.revision))

    def files(self, config: str, split: str) -> list[str]:
        import datasets

        builder = datasets.load_dataset_builder(self.source, config, **self._options)
        return [str(file) for file in (builder.config.data_files or {}).get(split, [])]

    def columns(self, config: str, split: str) -> list[str]:
        import datasets

        stream = datasets.load_dataset(self.source, config, split=split, streaming=True, **self._options)
        return list(stream.column_names or ())

    def table(self, config: str, split: str) -> Any:
        import datasets

        return datasets.load_dataset(self.source, config, split=split, **self._options)

    def manifest(self) -> dict[str, Any]:
        from huggingface_hub import hf_hub_download

        try:
            return _read_json(Path(hf_hub_download(self.source, MANIFEST, repo_type="dataset", revision=self.revision)))
        except (OSError, ValueError):  # the hub's own errors are of these kinds
            return {}

    def top_k(self) -> int | None:
        signals = self.manifest().get("signals")
        return signals.get("top_k") or None if isinstance(signals, dict) else None

    @property
    def _options(self) -> dict[str, Any]:
        return {"revision": self.revision, "cache_dir": self.cache_dir}


@dataclass(frozen=True)
class Apart:
    """A copy whose arrays stand in a config of their own, as `factory push` leaves it: here they are columns again."""

    place: Place

    @property
    def source(self) -> str:
        return self.place.source

    def configs(self) -> list[str]:
        return self.place.configs()

    def files(self, config: str, split: str) -> list[str]:
        return self.place.files(config, split)

    def columns(self, config: str, split: str) -> list[str]:
        beside = self.place.columns(SIGNALS, split) if config == "default" else []
        return list(dict.fromkeys([*self.place.columns(config, split), *beside]))

    def table(self, config: str, split: str) -> Any:
        import datasets

        rows = self.place.table(config, split)
        if config != "default":
            return rows
        arrays = self.place.table(SIGNALS, split)
        if not rows.data.column("id").equals(arrays.data.column("id")):
            raise DatasetError(f"{self.source}: config {SIGNALS!r} has other ids than the rows; get both anew")
        return datasets.concatenate_datasets([rows, arrays.remove_columns("id")], axis=1)

    def manifest(self) -> dict[str, Any]:
        return self.place.manifest()

    def top_k(self) -> int | None:
        return self.place.top_k()


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
    prompt: Literal["teacher", "student"] = "teacher",
    teacher: str | None = None,
    cache_dir: str | Path | None = None,
) -> Rows | RowStream:
    """Open a dataset: a local directory, or `owner/name` on the Hugging Face Hub at `revision`.

    `join_hidden_states` gives each accepted row its hidden states, and so does `config="hidden_states"`: they mean
    nothing without their tokens. The same with `join_experts` (routing) and `join_attention` (maps). A stage of a
    curriculum (`config="stage-1"`) gives the rows of the default config that it points at, in its order, with its own
    columns beside theirs; a split of it that has no row is empty. "preferences" and "hand-off" give texts alone.

    `reasoning="content"` puts the reasoning inside the answers' content, between the teacher's markers, for a chat
    template that does not render `reasoning_content`. `teacher` takes the rows of one of several alone.
    `prompt="student"` gives each row the prompt that the student is shown, where a task has a student.j2
    (`Row.as_student`).

    Streaming reads the files as they are; otherwise `datasets` first copies them, uncompressed, into its cache
    (`cache_dir`). Raises DatasetError where source, config or split is not there; reading the rows raises it at one
    whose arrays do not agree.
    """
    place = _with_arrays(_find_place(source, revision, cache_dir), config)
    wanted = {"hidden_states": join_hidden_states, "experts": join_experts, "attention": join_attention}
    joined = [name for name, asked in wanted.items() if asked or config == name]
    # what is asked of a config beside the rows is asked with them: without its tokens a state means nothing
    config = "default" if config in wanted else config
    columns = _require_columns(place, config, split, joined)
    voices = replace(_find_voices(place, inline=reasoning == "content"), students=prompt == "student")
    if teacher is not None:
        _require_teacher(place, columns, teacher)
    top_k = place.top_k() if set(TOKEN_IDS) <= set(columns) else None
    # told by its columns, as a stage may have any name
    staged = {"stage", *POINTERS} <= set(columns)
    if streaming:
        units = _stage_units(place, config, split, joined) if staged else _shard_units(place, config, split, joined)
        if staged:
            columns = [*place.columns("default", "train"), *LABEL_COLUMNS]
        stream = RowStream(Reader(place.source, top_k, voices), units, list(dict.fromkeys(given_names(columns))))
        return stream if teacher is None else stream.filter(partial(_is_of, teacher))
    opened = _open_stage(place, config, split, joined) if staged else _open_tables(place, config, split, joined)
    rows = Rows(place.source, *opened, top_k, voices)
    return rows if teacher is None else rows.select(np.flatnonzero(np.array(rows["teacher"]) == teacher))


def _find_place(source: str | Path, revision: str | None, cache_dir: str | Path | None) -> Place:
    root, cache = Path(source), str(cache_dir) if cache_dir else None
    if root.is_dir():
        return Folder(root, str(source), cache)
    # a mistyped path is not looked for on the hub
    if isinstance(source, Path) or not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", source):
        raise DatasetError(f"{root}: no such directory; give the directory of a dataset, or a Hub id (owner/name)")
    return Hub(source, revision, cache)


def _with_arrays(place: Place, config: str) -> Place:
    """The place as it is, or with a copy's arrays in their rows."""
    from datasets.exceptions import DatasetsError

    try:
        if config in TEXTS or SIGNALS not in place.configs() or {*TOKEN_IDS} & {*place.columns("default", "train")}:
            return place
    except (ValueError, OSError, DatasetsError):  # told by whoever opens what is asked for
        return place
    return Apart(place)


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
    index = stage.data.column("index").to_numpy()
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


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
