"""The second teacher of `make worth`: a real language model over free text, by `factory score`.

The text is the language reference that Python carries (`pydoc_data.topics`): English prose with examples, the same for
everyone with one version of Python. Each piece is PROMPT ids and then COMPLETION ids that are scored.
"""

from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
from transformers import AutoTokenizer
from worth_data import run_job, scaled_job, write_lines

PROMPT, COMPLETION = 16, 64
HELD_OUT = 60


def cut_pieces(tokenizer: Any) -> list[list[dict[str, Any]]]:
    """The pieces of each topic, in an order of the topics that is drawn once: what comes last is held out."""
    names = sorted(topics)
    order = np.random.default_rng(0).permutation(len(names))
    whole = PROMPT + COMPLETION
    found = []
    for name in (names[place] for place in order):
        ids = tokenizer.encode(topics[name], add_special_tokens=False)
        parts = [ids[at : at + whole] for at in range(0, len(ids) - whole + 1, whole)]
        found.append([_piece(f"{name}/{number}", part) for number, part in enumerate(parts)])
    return found


def _piece(name: str, ids: list[int]) -> dict[str, Any]:
    return {"id": name, "prompt_token_ids": ids[:PROMPT], "completion_token_ids": ids[PROMPT:]}


def split_pieces(of_topics: list[list[dict[str, Any]]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Pieces to learn from, and HELD_OUT ones of topics that none of the former is of."""
    held: list[dict[str, Any]] = []
    taught = list(of_topics)
    while len(held) < HELD_OUT:
        held += taught.pop()
    return [piece for pieces in taught for piece in pieces], held[:HELD_OUT]


def make_scored(work: Path, source: Path) -> None:
    """Distributions of the same pieces in both forms, and the held-out ones; what is there is gone on with."""
    if not (work / "teacher").exists():
        (work / "teacher").symlink_to(source)
    (work / "workspace").mkdir(exist_ok=True)
    taught, held_out = split_pieces(cut_pieces(AutoTokenizer.from_pretrained(source)))
    for name, lines in (("transcripts", taught), ("held_out", held_out)):
        path = work / f"{name}.jsonl"
        if not path.is_file():
            write_lines(lines, path)
    draws = scaled_job("draws", work)
    run_job("score", draws, work)
    run_job("score", draws | {"out": str(work / "data"), "signals": {"top_k": 20}}, work)
    held = draws | {"out": str(work / "held_out"), "signals": {"top_k": 20}}
    held["transcripts"] = draws["transcripts"] | {"path": str(work / "held_out.jsonl")}
    run_job("score", held, work)
