"""One shown row as a text of bounded size: JSON, deflated, in base64. What does not fit is cut, and said to be."""

import base64
import json
import zlib
from collections.abc import Callable, Iterator
from typing import Any, Final

from factory.publish.report.sample import Place
from factory.publish.report.strip import Limits, make_strip
from factory.teachers.spelling import spells

MOST: Final = 30_000  # characters of a row in the page
# from all to little: first the least likely ids go, then the ends of texts and of the strip
LADDER: Final = (
    Limits(),
    Limits(least=1e-4),
    Limits(least=1e-3),
    Limits(least=1e-2, tokens=6_000),
    Limits(least=1e-2, tokens=3_000, characters=12_000),
    Limits(least=5e-2, tokens=1_500, characters=6_000),
    Limits(least=0.1, tokens=600, characters=2_000),
    Limits(least=1.0, tokens=200, characters=400),
    Limits(least=1.0, tokens=0, characters=60),
)
MEASURES: Final = ("confidence", "surprise", "entropy_mean", "difficulty", "pass_rate", "agreement", "judge_score")
MOST_TEXTS: Final = 24  # messages, findings, attempts of a row
Decode = Callable[[list[int]], str]


def describe_row(place: Place, row: dict[str, Any]) -> dict[str, Any]:
    """What the list of rows and its filter need to know of a row."""
    accepted = place.table == "accepted"
    return {
        "id": row["id"],
        "task": row["task"],
        "level": row["level"],
        "why": place.why,
        "outcome": "accepted" if accepted else row["kind"],
        "reason": None if accepted else f"{row['stage']}/{row['reason']}",
        "difficulty": row.get("difficulty"),
        "confidence": row.get("confidence"),
        "tokens": len(row["completion_token_ids"]),
        "about": _cut(_request(row), 110)[0],
    }


def _request(row: dict[str, Any]) -> str:
    users = [message["content"] or "" for message in row["prompt"] if message["role"] == "user"]
    # a repaired prompt ends with what was wrong with an earlier answer, behind the request itself
    asked = users[:-1] if row.get("repaired") and len(users) > 1 else users
    return " ".join((asked or [""])[-1][:400].split())


def pack_row(row: dict[str, Any], top_k: int, decode: Decode | None) -> str:
    """A row's texts and its strip in at most MOST characters."""
    # a tokenizer that spells this row otherwise is not the teacher's: ids are shown
    trusted = decode if decode is not None and spells(decode, row) else None
    step, packed = 0, _pack(_describe(row, top_k, trusted, LADDER[0]))
    while len(packed) > MOST and step < len(LADDER) - 1:
        # far too much: one step alone will not do
        step = min(step + (2 if len(packed) > 3 * MOST and step < 2 else 1), len(LADDER) - 1)
        packed = _pack(_describe(row, top_k, trusted, LADDER[step]))
    return packed


def _pack(value: dict[str, Any]) -> str:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
    return base64.b64encode(zlib.compress(text, 6)).decode("ascii")


def _describe(row: dict[str, Any], top_k: int, decode: Decode | None, limits: Limits) -> dict[str, Any]:
    most = limits.characters
    strip = make_strip(row, top_k, decode, limits) if top_k and limits.tokens and "answer_start" in row else None
    shown: dict[str, Any] = {
        "prompt": [[message["role"], *_cut(_said(message), most)] for message in row["prompt"][:MOST_TEXTS]],
        "tools": _cut_or_none(row.get("tools"), most),
        "reasoning": _cut_or_none(row.get("reasoning"), most),
        "answer": _cut_or_none(row.get("answer"), most),
        "text": None if "reasoning" in row else _cut(row["text"] or "", most),
        "scenario": _cut(row["scenario"] or "", most),
        "findings": [_cut(finding, min(most, 600)) for finding in row["findings"][:MOST_TEXTS]],
        "history": [*_describe_history(row, most)],
        "judge": _cut_or_none(row.get("judge_reasoning"), most),
        "measures": {name: row[name] for name in MEASURES if row.get(name) is not None},
        "strip": None if strip is None else strip.as_json(),
        "least": limits.least,
    }
    facts = ("finish_reason", "seed", "attempt", "repaired", "source_row", "sample", "score", "reasoning_tokens")
    shown["facts"] = {name: row[name] for name in facts if row.get(name) is not None}
    if "source_row" in shown["facts"]:
        shown["facts"]["source_row"] = row["source_row"][:100]
    return shown | {"prompt_tokens": len(row["prompt_token_ids"]), "top_k": top_k}


def _said(message: dict[str, Any]) -> str:
    """A turn's text, and the calls of tools that it makes, as JSON."""
    calls = message.get("tool_calls")
    said = [message["content"] or "", json.dumps(calls, ensure_ascii=False) if calls else ""]
    return "\n".join(filter(None, said))


def _describe_history(row: dict[str, Any], most: int) -> Iterator[dict[str, Any]]:
    for line in (row.get("history") or [])[:MOST_TEXTS]:
        attempt = json.loads(line)
        yield {
            "reason": f"{attempt['stage']}/{attempt['reason']}",
            "findings": [_cut(finding, min(most, 600)) for finding in attempt["findings"][:MOST_TEXTS]],
            "text": _cut(attempt["text"], most // 2),
        }


def _cut_or_none(text: str | None, most: int) -> list[Any] | None:
    return None if text is None else _cut(text, most)


def _cut(text: str, most: int) -> list[Any]:
    """A text's beginning and end, and how many characters were left out between them, which begin at which place."""
    if len(text) <= most:
        return [text, 0, 0]
    head, tail = most * 2 // 3, most // 3
    return [text[:head] + text[len(text) - tail :], len(text) - head - tail, head]
