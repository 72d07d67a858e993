"""Leaks: what must not be given to everybody, looked for in every text of the files that a push would send."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from factory.dataset.shards import read_batches, read_schema
from factory.texts.personal import find_personal
from factory.texts.secrets import find_secrets
from factory.texts.texts import every_text

# names and hashes that the factory made; a picture's text is not read
OWN: Final = (
    *("id", "prompt_id", "chosen_id", "rejected_id", "task", "level", "kind", "stage", "finish_reason"),
    *("dtype", "images"),
)
JSON_STARTS: Final = ("{", "[", '"')


@dataclass(slots=True)
class Leaks:
    """How many rows hold what, and where the first of each stands."""

    secrets: Counter[str] = field(default_factory=Counter)
    personal: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def saw(self, where: str, texts: Iterable[str]) -> None:
        """Count what stands in the texts of one row or file."""
        secrets: set[str] = set()
        personal: set[str] = set()
        for text in set(texts):
            secrets.update(find_secrets(text))
            # every kind has a digit or an @
            if "@" in text or "\uff20" in text or any(map(str.isdigit, text)):
                personal.update(kind for kind, _, _ in find_personal(text))
        for found, counter in ((secrets, self.secrets), (personal, self.personal)):
            counter.update(found)
            for kind in found:
                self.first.setdefault(kind, where)

    def told(self, counter: Counter[str]) -> str:
        """`email 3 (first: rejected, row 3f2a)`, each kind."""
        return ", ".join(f"{kind} {count:,} (first: {self.first[kind]})" for kind, count in sorted(counter.items()))


def scan(root: Path, tables: Sequence[tuple[str, str]], files: Sequence[str]) -> Leaks:
    """Look through Parquet files, each with its config, and plain ones. Raises DatasetError at broken Parquet."""
    leaks = Leaks()
    for config, path in tables:
        names = [name for name, kind in read_schema(root / path).items() if _has_text(kind) and name not in OWN]
        for batch in read_batches(root / path, ["id", *names]) if names else ():
            ids = batch.column("id").to_pylist()
            columns = [batch.column(name).to_pylist() for name in names]
            for number, row in enumerate(zip(*columns, strict=True)):
                leaks.saw(f"{config}, row {ids[number]}", _texts(row))
    for path in files:
        leaks.saw(path, [(root / path).read_bytes().decode("utf-8", "replace")])
    return leaks


def _has_text(kind: str) -> bool:
    return "string" in kind or "json" in kind


def _texts(row: Any) -> Iterator[str]:
    """Every text of a row; of one that is JSON the texts inside, whose letters may be escaped in it."""
    for _, text in every_text(list(row)):
        value: Any = text
        if text.startswith(JSON_STARTS):
            with suppress(ValueError, RecursionError):
                value = json.loads(text)
        if value is text:
            yield text
        else:
            yield from (inner for _, inner in every_text(value))
