"""Parcels: which files a pushed copy has, each made of which files of the dataset, and named by their content.

    data/train-00000-8f3a61c09d27.parquet          texts and scalars of shards 0 to 41
    signals/train-00000-8f3a61c09d27.parquet       their arrays, the same ids in the same order
    hidden_states/train-00000-8f3a61c09d27.parquet as they are

A name is a digest of what the file is made of. So a file that is there already is the right one, whoever sent it, and a
dataset that has grown sends its new rows and no others.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from factory.dataset.aligned import DONE, aligned_configs
from factory.dataset.layouts import layouts
from factory.dataset.ledger import Ledger
from factory.dataset.manifest import MANIFEST, read_sealed
from factory.dataset.merging import SIGNALS, Part, merge_files
from factory.dataset.shards import ShardFile, find_file_damage
from factory.dataset.sound import tell_next
from factory.dataset.stages import AGAIN, FOLDER, SUMMARY, current_summary
from factory.errors import DatasetError
from factory.hashing import content_hash
from factory.signals import SignalSpec

BESIDE: Final = ("hidden_states", "experts", "attention")  # rows of the default config, in its order
TEXT_BYTES: Final = 512 * 1024 * 1024  # of the default config's shards, or of another by itself
MOST_BYTES: Final = 2 * 1024 * 1024 * 1024  # of any config in a group of shards
VERSION: Final = 1  # another way to write a file is another name
NOT_PUSHED: Final = (
    "ledger.jsonl names shards that the copy has not; job.toml may name places on your disk; runs.jsonl, usage*.jsonl "
    "and batches.jsonl are times and costs"
)


@dataclass(frozen=True, slots=True)
class Parcel:
    """One file of the pushed copy."""

    path: str
    config: str
    sources: tuple[ShardFile, ...]
    part: Part = "whole"
    copied: bool = False  # sent as it lies in the dataset

    def stage(self, root: Path, work: Path, generators: Mapping[str, str]) -> Path:
        """The file to send, once what it is made of has proved whole. Raises DatasetError."""
        for source in self.sources:
            if told := find_file_damage(root, source, "committed"):
                raise DatasetError(f"{root}: {told}; {tell_next(root)}")
        if self.copied:
            return root / self.sources[0].path
        target, named = work / self.path, generators if self.part == "texts" else None
        rows = merge_files([root / source.path for source in self.sources], target, self.config, self.part, named)
        if rows != (wanted := sum(source.rows for source in self.sources)):
            raise DatasetError(f"{root}: {self.path} has {rows} rows, the ledger {wanted}; run `factory verify`")
        return target


def plan_parcels(
    ledger: Ledger,
    signals: SignalSpec,
    curriculum: dict[str, Any] | None,
    generators: Mapping[str, str],
    without: Collection[str],
) -> list[Parcel]:
    """Every Parquet file of a pushed copy, in the order in which they are sent; `without` names configs left out."""
    shards = [_by_config(ledger, shard, signals) for shard in sorted(ledger.entries)]
    parcels: list[Parcel] = []
    kept = [name for name in layouts(signals) if name not in without]
    aligned = ["default", *(name for name in BESIDE if name in kept)]
    for number, group in enumerate(_groups(shards, aligned)):
        digests = [file.digest for files in group for name in aligned for file in [files[name]]]
        name = f"train-{number:05d}-{content_hash([VERSION, digests, dict(generators)], 12)}.parquet"
        for config in aligned:
            files = tuple(part[config] for part in group)
            if config != "default":
                parcels.append(Parcel(f"{config}/{name}", config, files))
                continue
            parcels.append(Parcel(f"data/{name}", config, files, "texts"))
            parcels.append(Parcel(f"{SIGNALS}/{name}", SIGNALS, files, "arrays"))
    for config in (name for name in kept if name not in aligned):
        for number, group in enumerate(_groups(shards, [config])):
            files = tuple(part[config] for part in group)
            name = f"train-{number:05d}-{content_hash([VERSION, [file.digest for file in files]], 12)}.parquet"
            parcels.append(Parcel(f"{config}/{name}", config, files))
    return [*parcels, *_as_they_are(ledger, curriculum, without)]


def _as_they_are(ledger: Ledger, curriculum: dict[str, Any] | None, without: Collection[str]) -> Iterator[Parcel]:
    """Stages and aligned configs point at rows by number, and those keep theirs."""
    for file in [ShardFile(**told) for told in (curriculum or {"files": []})["files"]]:
        if file.rows and file.path.split("/")[1] not in without:
            yield Parcel(named_by_content(file), FOLDER, (file,), copied=True)
    for config, _ in aligned_configs(ledger):
        for told in read_sealed(ledger.out / config / DONE)["files"] if config not in without else ():
            file = ShardFile(**(told | {"path": f"{config}/{told['path']}"}))
            if file.path.endswith(".parquet"):
                yield Parcel(named_by_content(file), config, (file,), copied=True)


def tell_stale(ledger: Ledger, without: Collection[str]) -> Iterator[str]:
    """A line for the curriculum and each aligned config that lies there and is no part of the copy."""
    if (ledger.out / FOLDER).is_dir() and current_summary(ledger) is None:
        yield f"  left out  {FOLDER}: not of the rows as they are, or damaged; {AGAIN}"
    current = {name for name, _ in aligned_configs(ledger)}
    for path in sorted(ledger.out.glob("aligned-*/")):
        if path.name not in current and path.name not in without:
            told = "unfinished, damaged, or not of the rows as they are"
            yield f"  left out  {path.name}: {told}; remove the folder, and `factory align` makes it anew"


def named_by_content(file: ShardFile) -> str:
    """curriculum/stage-1/train-00000-8f3a61c09d27.parquet"""
    return f"{file.path.removesuffix('.parquet')}-{file.digest[:12]}.parquet"


def plain_files(root: Path, curriculum: dict[str, Any] | None, templates: bool) -> list[str]:
    """The other files of the copy, which are sent last, with the card: small, and always by the same names."""
    found = [MANIFEST, *([f"{FOLDER}/{SUMMARY}"] if curriculum else [])]
    if templates:
        found += sorted(path.relative_to(root).as_posix() for path in (root / "templates").rglob("*") if path.is_file())
    return found


def _by_config(ledger: Ledger, shard: int, signals: SignalSpec) -> dict[str, ShardFile]:
    by_folder = {file.path.rpartition("/")[0]: file for file in ledger.entries[shard].files}
    return {name: by_folder[layout.folder] for name, layout in layouts(signals).items() if layout.folder in by_folder}


def _groups(shards: list[dict[str, ShardFile]], configs: list[str]) -> Iterator[list[dict[str, ShardFile]]]:
    """Shards that become one file in each of the configs; those without a row are in none."""
    group: list[dict[str, ShardFile]] = []
    sizes = dict.fromkeys(configs, 0)
    for files in shards:
        if not files.get(configs[0]) or not files[configs[0]].rows:
            continue
        grown = {name: sizes[name] + files[name].bytes for name in configs}
        if group and (grown[configs[0]] > TEXT_BYTES or max(grown.values()) > MOST_BYTES):
            yield group
            group, grown = [], {name: files[name].bytes for name in configs}
        group.append(files)
        sizes = grown
    if group:
        yield group
