"""A dataset in an object store, where a run has made it: its ledger says which files there are; they are read there."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from factory.dataset.bucket import read_url
from factory.dataset.ledger import Ledger, read_ledger
from factory.dataset.manifest import read_manifest, top_k_of
from factory.dataset.object_store import view
from factory.dataset.stages import dataset_state
from factory.errors import DatasetError, nearest
from factory.load.present import APART, folder_of


@dataclass(frozen=True)
class Stored:
    """An address. What is asked of it is of the moment when it was first looked at."""

    source: str
    cache_dir: str | None

    @cached_property
    def seen(self) -> tuple[Ledger, dict[str, Any]]:
        with view(read_url(self.source)) as folder:
            return read_ledger(folder), read_manifest(folder)

    def configs(self) -> list[str]:
        return [config for config in APART if self._find(config)]

    def files(self, config: str, split: str) -> list[str]:
        if split != "train" or not (files := self._find(config)):
            has = ", ".join(self.configs()) or "none"
            told = f"config {config!r}, split {split!r} is not there (has: {has}, each with split 'train')"
            raise DatasetError(f"{self.source}: {told}{nearest(config, self.configs())}")
        return [f"{self.source}/{path}" for path in files]

    def _find(self, config: str) -> list[str]:
        """The files of a config, of those that some file has a row of."""
        begin, entries = f"{folder_of(config)}/", self.seen[0].entries
        files = [file for shard in sorted(entries) for file in entries[shard].files if file.path.startswith(begin)]
        return [file.path for file in files] if any(file.rows for file in files) else []

    def columns(self, config: str, split: str) -> list[str]:
        import datasets

        part = {"train": self.files(config, split)[:1]}
        return list(datasets.load_dataset("parquet", data_files=part, split="train", streaming=True).column_names or ())

    def table(self, config: str, split: str) -> Any:
        import datasets

        # the cache of `datasets` tells copies apart by this name: see decision 0018
        name = f"{config}-{dataset_state(self.seen[0])}"
        files = {split: self.files(config, split)}
        return datasets.load_dataset("parquet", name, data_files=files, split=split, cache_dir=self.cache_dir)

    def manifest(self) -> dict[str, Any]:
        return self.seen[1]

    def curriculum(self, config: str) -> dict[str, Any] | None:
        return None  # no run makes one, and none is made there

    def top_k(self) -> int | None:
        return top_k_of(self.manifest())


def open_stored(source: str | Path, revision: str | None, cache: str | None) -> Stored:
    """The dataset at an address. Raises DatasetError."""
    if revision is not None:
        raise DatasetError(f"{source}: an object store has no revision {revision!r}; leave out `revision`")
    return Stored(str(read_url(str(source))), cache)
