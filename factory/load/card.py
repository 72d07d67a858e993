"""Which files a local dataset's card gives to each config and split, and one name for their present state.

The card is read here and not by `datasets`, which takes `[ ]`, `*`, `?` and `{ }` in a directory's own name for
wildcards: it would load a sibling's rows.
"""

from collections.abc import Sequence
from glob import escape
from pathlib import Path
from typing import Any

from yaml import YAMLError

from factory.errors import DatasetError, nearest
from factory.hashing import content_hash

Splits = dict[str, list[Path]]


def read_card(root: Path) -> dict[str, Splits]:
    """The files of every split of every config. Raises DatasetError where there is no card or no `configs:` in it."""
    from huggingface_hub import DatasetCard

    if not (root / "README.md").is_file():
        raise DatasetError(f"{root}: no README.md, whose `configs:` say what is here; give the directory of a dataset")
    try:
        configs = DatasetCard.load(root / "README.md").data.to_dict().get("configs", [])
        return {config["config_name"]: _find_files(root, config["data_files"]) for config in configs}
    except (ValueError, LookupError, TypeError, AttributeError, NotImplementedError, YAMLError) as error:
        told = " ".join(str(error).split())
        raise DatasetError(f"{root / 'README.md'}: its `configs:` cannot be read: {told}") from error


def find_split(root: Path, card: dict[str, Splits], config: str, split: str, empty: Sequence[str]) -> list[Path]:
    """The files of one split; none where it is one of those that are there without a row. Raises DatasetError."""
    splits = card.get(config, {})
    if splits.get(split):
        return splits[split]
    if split in empty:
        return []  # `datasets` cannot load a split without rows, so the card does not name it
    what, asked, has = ("split", split, splits) if config in card else ("config", config, card)
    told = f"no such {what} in its card (has: {', '.join(map(repr, sorted(has))) or 'none'}){nearest(asked, has)}"
    raise DatasetError(f"{root}: config {config!r}, split {split!r} cannot be loaded: {told}")


def state_of(files: list[Path]) -> str:
    """One name for files as they are now: it changes when any of them is written anew."""
    stats = [(path, path.stat()) for path in files]
    return content_hash([[str(p.resolve()), s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino] for p, s in stats])


def escaped(files: list[Path]) -> list[str]:
    """Paths that `datasets` takes as they are."""
    return [escape(str(path.resolve())) for path in files]


def _find_files(root: Path, patterns: Any) -> Splits:
    """`data_files` of a card: a list of splits, each with a pattern or several; the pattern alone is a wildcard."""
    found: Splits = {}
    for part in patterns:
        paths = [part["path"]] if isinstance(part["path"], str) else part["path"]
        found[part["split"]] = sorted(path for pattern in paths for path in root.glob(pattern))
    return found
