"""Places: where a dataset lies, in a local directory or on the hub, and what it tells of itself there."""

import json
import os
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from factory.curriculum.regroup import STAGE_LABELS
from factory.dataset.bucket import is_url
from factory.dataset.ledger import Ledger
from factory.dataset.manifest import MANIFEST, top_k_of
from factory.dataset.merging import SIGNALS
from factory.dataset.shards import count_groups, read_batches, read_schema
from factory.dataset.stages import FOLDER, SUMMARY
from factory.errors import DatasetError
from factory.load.card import Splits, escaped, find_split, read_card, state_of
from factory.load.present import APART, find_curriculum, find_ledger, folder_of, require_present, stage_rows
from factory.load.stored import open_stored


class Place(Protocol):
    """Where a dataset lies."""

    @property
    def source(self) -> str: ...

    def configs(self) -> list[str]: ...

    def files(self, config: str, split: str) -> list[str]: ...

    def columns(self, config: str, split: str) -> list[str]: ...

    def table(self, config: str, split: str) -> Any: ...

    def manifest(self) -> dict[str, Any]: ...

    def curriculum(self, config: str) -> dict[str, Any] | None: ...

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

    @cached_property
    def ledger(self) -> Ledger | None:
        return find_ledger(self.root)

    def configs(self) -> list[str]:
        return list(self.card)

    def files(self, config: str, split: str) -> list[str]:
        return [str(path) for path in self._find(config, split)]

    def columns(self, config: str, split: str) -> list[str]:
        """The columns of a split; of one without a file those of the config's other splits."""
        others = [path for paths in self.card.get(config, {}).values() for path in paths]
        if paths := self._find(config, split) or others:
            return list(read_schema(paths[0]))
        # a stage without any row
        return list(dict.fromkeys([*read_schema(self._find("default", "train")[0]), *STAGE_LABELS]))

    def table(self, config: str, split: str) -> Any:
        """A split's rows as `datasets` keeps them, which itself refuses one without a row."""
        import datasets

        paths = self._find(config, split)
        # `datasets` raises for a split without a row; ours is an empty one with the right names
        if not any(map(count_groups, paths)):
            return datasets.Dataset.from_dict({name: [] for name in self.columns(config, split)})
        self._require_loadable()
        # the cache of `datasets` tells copies apart by this name, not by the files: see decision 0018
        name = f"{config}-{state_of(paths)}"
        data_files = {split: escaped(paths)}
        return datasets.load_dataset("parquet", name, data_files=data_files, split=split, cache_dir=self.cache_dir)

    def manifest(self) -> dict[str, Any]:
        return _read_json(self.root / MANIFEST)

    def curriculum(self, config: str) -> dict[str, Any] | None:
        return find_curriculum(self.root, config)

    def top_k(self) -> int | None:
        """k as the schema metadata of the first file with rows has it: a damaged row cannot mislead it."""
        files = self.card.get("default", {}).get("train", [])
        metadata = (batch.schema.metadata or {} for path in files for batch in read_batches(path, ["id"]))
        top_k = json.loads(next(metadata, {}).get(b"factory", b"{}")).get("top_k")
        return int(top_k) if top_k else None

    def _find(self, config: str, split: str) -> list[Path]:
        card, curriculum = self.card, self.curriculum(config)
        if self.ledger is not None:
            require_present(self.ledger, curriculum, config, split)
        rowless = [] if curriculum or split != "train" or config in card else self._rowless(config)
        if rowless:
            return rowless
        rows = stage_rows(curriculum)[config] if curriculum else {}
        paths = find_split(self.root, card, config, split, [name for name, count in rows.items() if not count])
        if strangers := [path.name for path in paths if path.suffix != ".parquet"]:
            told = f"config {config!r} has {strangers[0]}, no Parquet"
            raise DatasetError(f"{self.source}: {told}; it was not made by the factory")
        return paths

    def _rowless(self, config: str) -> list[Path]:
        """The files of a config without a row, which the card leaves out: every shard has one of each."""
        if config not in APART:
            return []
        paths = sorted((self.root / folder_of(config)).glob("train-*.parquet"))
        return [] if any(map(count_groups, paths)) else paths

    def _require_loadable(self) -> None:
        """Raise DatasetError for a path that `datasets` takes for another; wildcards are escaped."""
        path = str(self.root.resolve())
        if os.path.expandvars(path) == path and "::" not in path:
            return
        sign, kind = ("::", "a chain of URLs") if "::" in path else ("$", "the name of a variable")
        told = f"its path {path} has a {sign!r}, which `datasets` takes for {kind}"
        raise DatasetError(f"{self.source}: {told}; give streaming=True, or move it")


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

    def curriculum(self, config: str) -> dict[str, Any] | None:
        from huggingface_hub import hf_hub_download

        if config in APART:
            return None
        name = f"{FOLDER}/{SUMMARY}"
        try:
            told = _read_json(Path(hf_hub_download(self.source, name, repo_type="dataset", revision=self.revision)))
            return told if config in stage_rows(told) else None
        except (OSError, ValueError, LookupError, TypeError):  # the hub's own errors are of the first two kinds
            return None

    def top_k(self) -> int | None:
        return top_k_of(self.manifest())

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

    def curriculum(self, config: str) -> dict[str, Any] | None:
        return self.place.curriculum(config)

    def top_k(self) -> int | None:
        return self.place.top_k()


def find_place(source: str | Path, revision: str | None, cache_dir: str | Path | None) -> Place:
    root, cache = Path(source), str(cache_dir) if cache_dir else None
    if is_url(str(source)):
        return open_stored(source, revision, cache)
    if root.is_dir():
        if revision is not None:
            raise DatasetError(f"{root}: a directory has no revision {revision!r}; leave out `revision`")
        return Folder(root, str(source), cache)
    # a mistyped path is not looked for on the hub
    if isinstance(source, Path) or not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", source):
        raise DatasetError(f"{root}: no such directory; give the directory of a dataset, or a Hub id (owner/name)")
    return Hub(source, revision, cache)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
