"""Stages: what `curriculum/curriculum.json` says of a dataset's curriculum, and whether its files are still that.

A curriculum points into a dataset's shards, so it is good for the very bytes it was made from and no others: it names
them (`dataset.state`), and is left out of the card as soon as they are not what is there. It can always be made anew.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from factory.dataset.ledger import Ledger
from factory.dataset.manifest import read_sealed, sealed_text
from factory.dataset.shards import ShardFile, find_file_damage, read_batches
from factory.errors import DatasetError
from factory.hashing import content_hash

SPLITS: Final = ("train", "validation", "test")
FOLDER, SUMMARY = "curriculum", "curriculum.json"
AGAIN: Final = "`factory curriculum` makes it anew"


def dataset_state(ledger: Ledger) -> str:
    """One name for the rows of a dataset as they are: it changes with any byte of any shard."""
    # in shard order: the ledger's own is that of the commits, until the job is finished
    entries = [ledger.entries[shard] for shard in sorted(ledger.entries)]
    return content_hash([ledger.plan, [[file.path, file.digest] for entry in entries for file in entry.files]])


def summary_text(summary: dict[str, Any]) -> str:
    """The text of curriculum.json, which holds no number that JSON has not."""
    return sealed_text(summary, allow_nan=False)


def read_summary(out: Path) -> dict[str, Any] | None:
    """What curriculum.json says, None where there is no curriculum. Raises DatasetError where it is damaged."""
    if not (out / FOLDER).is_dir():
        return None
    try:
        return read_sealed(out / FOLDER / SUMMARY)
    except FileNotFoundError:
        return None
    except DatasetError as error:
        raise DatasetError(f"{error}; {AGAIN}") from None


def current_summary(ledger: Ledger) -> dict[str, Any] | None:
    """What the card may tell: the curriculum of these very rows, None where it is older, damaged or not there."""
    try:
        summary = read_summary(ledger.out)
    except DatasetError:
        return None
    return summary if summary and summary["dataset"]["state"] == dataset_state(ledger) else None


def require_current(ledger: Ledger, summary: dict[str, Any]) -> None:
    """Raise DatasetError where a curriculum was made from other rows than there are now."""
    if summary["dataset"]["state"] != dataset_state(ledger):
        raise DatasetError(f"{ledger.out}: its curriculum was made from an older state of the dataset; {AGAIN}")


def card_configs(summary: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Every config of a curriculum with its splits, those without a row left out."""
    for stage in [*summary["stages"], summary["hand_off"] | {"name": "hand-off"}]:
        splits = [split for split, rows in stage["rows"].items() if rows]
        # `datasets` cannot load a config whose files hold no row
        if splits:
            yield stage["name"], splits


def check_curriculum(out: Path, ledger: Ledger) -> Iterator[str]:
    """Everything that is wrong with a dataset's curriculum, as lines that name the file."""
    try:
        summary = read_summary(out)
    except DatasetError as error:
        yield str(error)
        return
    if summary is None:
        if (out / FOLDER).exists():
            yield f"{FOLDER}: has no {SUMMARY}; {AGAIN}"
        return
    if summary["dataset"]["state"] != dataset_state(ledger):
        yield f"{FOLDER}/{SUMMARY}: made from an older state of the dataset; {AGAIN}"
    files = [ShardFile(**file) for file in summary["files"]]
    yield from (f"{told}; {AGAIN}" for file in files if (told := _find_damage(out, file)))
    known = {file.path for file in files}
    for path in sorted((out / FOLDER).rglob("*.parquet")):
        if (name := path.relative_to(out).as_posix()) not in known:
            yield f"{name}: not in {SUMMARY}; {AGAIN}"
    for config, splits in card_configs(summary):
        for split in splits:
            stage = next(s for s in [*summary["stages"], summary["hand_off"]] if s.get("name", "hand-off") == config)
            begin = f"{FOLDER}/{config}/{split}-"
            rows = sum(file.rows for file in files if file.path.startswith(begin))
            if rows != stage["rows"][split]:
                yield f"{FOLDER}/{SUMMARY}: {config} has {stage['rows'][split]} {split} rows, its files {rows}; {AGAIN}"


def _find_damage(out: Path, file: ShardFile) -> str | None:
    """What is wrong with one file of a curriculum, by size, checksum and number of rows."""
    if told := find_file_damage(out, file, "written"):
        return told
    # the checksum says that the file is as it was written, not that it was written with these rows
    rows = sum(batch.num_rows for batch in read_batches(out / file.path, ["id"]))
    return f"{file.path}: {rows} rows, expected {file.rows}" if rows != file.rows else None


def describe_range(stage: dict[str, Any]) -> str:
    """The values of a stage's rows, from easy to hard."""
    if stage["easiest"] is None:
        return "no value"
    ends = (stage["easiest"][0], stage["hardest"][0])
    return " to ".join(f"{end:.3g}" if abs(end) < 1000 else f"{end:,.0f}" for end in ends)


def describe_curriculum(out: Path, summary: dict[str, Any]) -> list[str]:
    """A curriculum as a table for people, and how to load its first stage."""
    by, names = summary["by"], sorted({task for stage in summary["stages"] for task in stage["tasks"]})
    head = ["stage", by, *SPLITS, "train tokens", "hand off", *names]
    rows = [_describe_stage(stage, names) for stage in summary["stages"]]
    hand_off = summary["hand_off"]
    lines = [f"{out}: {len(rows)} stages by {by} of {summary['dataset']['rows']:,} accepted rows"]
    lines += _align([head, *rows], left=2)
    total, over = sum(hand_off["rows"].values()), sum(hand_off["reasons"].values())
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(hand_off["reasons"].items()))
    lines.append(f"  hand-off: {over:,} of {total:,} prompts" + (f" ({reasons})" if reasons else ""))
    told = {
        "too_long": "rows over student.max_tokens",
        "in_no_stage": "rows in no stage",
        "unanswered": "prompts never answered",
    }
    dropped = [f"{count:,} {told[name]}" for name, count in summary["dropped"].items() if count]
    lines += [f"  left out: {', '.join(dropped)}"] if dropped else []
    if summary["without_value"]:
        lines.append(f"  no value: {summary['without_value']:,} rows, sorted as hardest")
    lines += [f"  note: {warning}" for warning in summary["warnings"]]
    first = next((name for name, splits in card_configs(summary) if "train" in splits), "hand-off")
    return [*lines, f'  load_dataset("{out}", "{first}")']


def _describe_stage(stage: dict[str, Any], tasks: list[str]) -> list[str]:
    rows = stage["rows"]
    total = sum(rows.values())
    share = f"{stage['hand_off'] / total:.0%}" if total else "-"
    counts = [sum(stage["tasks"].get(task, {"rows": {}})["rows"].values()) for task in tasks]
    numbers = [f"{n:,}" for n in (rows["train"], rows["validation"], rows["test"], stage["tokens"]["train"])]
    return [stage["name"], describe_range(stage), *numbers, share, *(f"{count:,}" for count in counts)]


def _align(rows: list[list[str]], left: int) -> list[str]:
    """Rows as columns of even width, the first `left` of them aligned to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  "
        + "  ".join(
            f"{cell:<{w}}" if i < left else f"{cell:>{w}}" for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
