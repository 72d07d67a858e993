"""The model card: `python -m factory.demo_teacher.card DIR` writes DIR/README.md from what lies in DIR.

It reads the weights' header, config.json, training.jsonl and pass_rates.json. Nothing in the card is typed in by hand
but DURATIONS.
"""

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from factory.demo_teacher.recipe import TASKS, Recipe
from factory.errors import FactoryError, TeacherError
from factory.terminal import report

WEIGHTS, CONFIG, LOG, PASS_RATES, CARD = (
    "model.safetensors",
    "config.json",
    "training.jsonl",
    "pass_rates.json",
    "README.md",
)
DURATIONS: dict[str, str] = {}
"""How long `make demo-teacher` took, by machine: {"2 CPU cores": "about 95 minutes"}. The card tells what is here."""
BEGAN = (
    "It began with the weights of earlier versions (`--start`): 3,860 steps and 56 million tokens of four tasks, then "
    "1,500 and 2,400 steps of these ten, 20 and 30 million tokens."
)
CURVE_ROWS = 8
LEVELS = ("easy", "medium", "hard")


def write_card(folder: Path) -> None:
    """Write the model card. Raises TeacherError where a file it needs is not there or not whole."""
    try:
        text = make_card(folder)
    except (OSError, ValueError, KeyError) as error:
        raise TeacherError(f"{folder}: no model card can be written: {type(error).__name__}: {error}") from None
    (folder / CARD).write_text(text, encoding="utf-8")


def make_card(folder: Path) -> str:
    """The text of the model card."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    log = [json.loads(line) for line in (folder / LOG).read_text(encoding="utf-8").splitlines()]
    rates = json.loads((folder / PASS_RATES).read_text(encoding="utf-8"))
    return environment.get_template("card.md.j2").render(
        config=json.loads((folder / CONFIG).read_text(encoding="utf-8")),
        parameters=count_parameters(folder / WEIGHTS),
        megabytes=sum(path.stat().st_size for path in folder.iterdir() if path.name != CARD) / 1e6,
        settings=rates["settings"],
        table=describe_cells(rates["cells"]),
        curve=describe_curve(log),
        last=log[-1],
        recipe=Recipe(),
        tasks=len(TASKS),
        began=BEGAN,
        durations=DURATIONS,
    )


def count_parameters(weights: Path) -> int:
    """Numbers in a safetensors file, from its header: 8 bytes of its length, then JSON. Raises ValueError."""
    with weights.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")


def describe_cells(cells: Sequence[dict[str, Any]]) -> list[str]:
    """The cells of pass_rates.json as a Markdown table."""
    lines = [
        "| task | level | rows | schema-valid % (95 %) | check passes % (95 %) | nats a token, if right | tokens |",
        "|---|---|---|---|---|---|---|",
    ]
    for cell in cells:
        shares = " | ".join(
            f"{cell[f'{name}_percent']:g} ({cell[f'{name}_interval'][0]:g} to {cell[f'{name}_interval'][1]:g})"
            for name in ("schema_valid", "check_passes")
        )
        entropy = "" if cell["mean_entropy_of_right"] is None else f"{cell['mean_entropy_of_right']:.3f}"
        tokens = f"{cell['mean_completion_tokens']:.0f}"
        lines.append(f"| {cell['task']} | {cell['level']} | {cell['rows']} | {shares} | {entropy} | {tokens} |")
    return lines


def describe_curve(log: Sequence[dict[str, Any]]) -> list[str]:
    """A few rows of the training log as a Markdown table: validated steps, evenly spaced, the last one among them."""
    validated = [line for line in log if "validation" in line]
    count = min(CURVE_ROWS, len(validated))
    # the ends of `count` equal parts, so the last one is the finished model
    rows = [validated[len(validated) * (place + 1) // count - 1] for place in range(count)]
    lines = [
        "| step | million tokens | loss a token | " + " | ".join(f"{level}: exact %" for level in LEVELS) + " |",
        "|---|---|---|" + "---|" * len(LEVELS),
    ]
    for row in rows:
        cells = row["validation"]
        loss = _mean([loss for loss, _ in cells.values()])
        # a cell is named task/level, and holds its mean loss and its share of exact completions
        exact = [_mean([right for name, (_, right) in cells.items() if name.endswith(f"/{lv}")]) for lv in LEVELS]
        shares = " | ".join(f"{100 * share:.0f}" for share in exact)
        lines.append(f"| {row['step']} | {row['tokens'] / 1e6:.1f} | {loss:.4f} | {shares} |")
    return lines


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def main(arguments: list[str]) -> int:
    """Command line: exit code 0, or 2 and one line."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: python -m factory.demo_teacher.card DIR", file=sys.stderr)
        return 2
    try:
        write_card(Path(arguments[0]))
    except FactoryError as error:
        return report(error)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
