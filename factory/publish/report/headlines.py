"""The answer to each block's question in a sentence, made of its numbers: what a reader needs who reads no more."""

from collections import Counter
from typing import Any, Final

Facts = dict[str, Any]
NAMED: Final = 3  # cells of a sentence; of more than so many the rest is counted


def write_headlines(facts: Facts) -> dict[str, str]:
    """A sentence or two for each block; why there is nothing to see where a block is empty."""
    return {
        "flow": _tell_flow(facts),
        "teaches": _tell_teaching(facts),
        "calibration": _tell_calibration(facts),
        "sure": _tell_sureness(facts),
        "lengths": _tell_lengths(facts),
        "coverage": _tell_coverage(facts),
        "time": _tell_time(facts),
        "stages": _tell_stages(facts),
    }


def _tell_flow(facts: Facts) -> str:
    head, flow = facts["head"], facts["flow"]
    kept, rows = _rows_kept(facts)
    one = head["accepted"] == 1
    done = f"{'has' if one else 'have'} a kept answer" if is_chosen(head) else f"{'is' if one else 'are'} kept"
    told = f"{kept} of {rows} {done}"
    worst = max(flow["steps"], key=lambda step: step["lost"])
    if worst["lost"]:
        reasons: Counter[str] = Counter()
        for reason in flow["reasons"]:
            reasons[reason["reason"]] += reason["rows"] if reason["stage"] == worst["stage"] else 0
        name, rows_lost = reasons.most_common(1)[0]
        told += (
            f". Most are lost at the stage {worst['stage']} ({worst['lost']:,}), most often as {name} ({rows_lost:,})"
        )
    if flow["retried"]:
        told += f". {flow['retried']:,} rows were asked again, which saved {flow['saved_by_retry']:,}"
    return f"{told}."


def is_chosen(head: Facts) -> bool:
    """Whether one sample of a prompt is kept at most: then shares are of prompts, not of rows."""
    return bool(head["samples"] > 1 and head["keep"] != "all")


def _rows_kept(facts: Facts) -> tuple[str, str]:
    head = facts["head"]
    prompts, done = sum(cell["prompts"] for cell in facts["cells"]), head["planned"] - head["left"]
    return f"{head['accepted']:,}", f"{prompts:,} prompts" if is_chosen(head) else f"{done:,} rows"


def _tell_teaching(facts: Facts) -> str:
    of = "prompts" if is_chosen(facts["head"]) else "rows"
    cells = [(cell["accepted"] / cell[of], cell["task"], cell["level"]) for cell in facts["cells"]]
    if not facts["head"]["accepted"]:
        return "No row was accepted, so there is nothing to learn from yet."
    if len(cells) < 2:
        return f"{count(facts['head']['accepted'], 'row')} of one task and level."
    best, worst = max(cells)[0], min(cells)[0]
    if best == worst:
        return f"As much is kept of every task and level: {percent(best)}% of their {of}."
    most, least = (_name_cells([cell[1:] for cell in cells if cell[0] == share]) for share in (best, worst))
    return f"The most is kept of {most} ({percent(best)}%); the least of {least} ({percent(worst)}%)."


def _name_cells(cells: list[tuple[str, str]]) -> str:
    """All cells that share a place: one of several named alone would say that the others have another."""
    names = [f"{task}, {level}" for task, level in sorted(cells)]
    if len(names) > NAMED:
        names = [*names[: NAMED - 1], f"{len(names) - NAMED + 1} more"]
    return " and of ".join([", of ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _tell_calibration(facts: Facts) -> str:
    found = facts["calibration"]
    if not found["rows"]:
        return "No row has both a confidence and a verdict: a dataset without logprobs has no confidence."
    if found["ranks"] is None:
        which = "right" if found["right"] else "wrong"
        return f"All {found['rows']:,} answers with a confidence are {which}, so nothing can be said of it."
    told = (
        f"Of a right and a wrong answer the right one is the more confident in {percent(found['ranks'])}% of the cases"
    )
    gap = f"mean distance of confidence from the share of right answers: {found['gap']:.2f}"
    low, high = (percent(found["parts"][at]["share"]) for at in (0, -1))
    return f"{told}; {low}% of the least confident tenth are right, {high}% of the most confident ({gap})."


def _tell_sureness(facts: Facts) -> str:
    found = facts["tokens"]
    if found is None:
        return "This dataset keeps no distributions, or has no accepted row: nothing tells how sure the teacher was."
    shares = ", ".join(f"{percent(part['sure'])}% of the {part['part']}" for part in found["parts"])
    told = f"The teacher is sure (below {found['sure_below']} nats) of {shares}"
    whole = found["savings"][0]["bytes"]
    for choice in found["savings"][1:] if whole else ():
        if choice["choice"] == f"min_entropy = {found['sure_below']}":
            told += f"; to keep distributions only where it is not would save {percent(choice['saved'] / whole)}%"
    return f"{told}."


def _tell_lengths(facts: Facts) -> str:
    found = facts["lengths"]
    if not found["rows"]:
        return "No accepted row, so no lengths."
    cut = sum(task["cut"] for task in found["truncated"])
    told = f"The longest row has {found['longest']:,} tokens; {count(cut, 'answer')} {_were(cut)} cut off at a limit"
    if found["over_student"] is not None:
        over, most = found["over_student"], facts["head"]["student_tokens"]
        told += f"; {over:,} of {found['rows']:,} are over the student's {most:,}"
    return f"{told}."


def _tell_coverage(facts: Facts) -> str:
    found = facts["coverage"]
    if not found["rows"]:
        return "No accepted row, so nothing to say of what they are about."
    twice = found["same"]["rows"] - found["same"]["distinct"]
    have = "has" if twice == 1 else "have"
    told = f"{count(twice, 'row')} of {found['rows']:,} {have} the request and answer of another"
    return f"{told}; {found['alike']['found']:,} of {found['alike']['rows']:,} have a row much like them."


def _tell_time(facts: Facts) -> str:
    ended = facts["runs"]["ended"]
    if not ended:
        return "No run has told of its end yet."
    seconds, tokens = (sum(run[name] for run in ended) for name in ("seconds", "completion_tokens"))
    told = f"{count(len(ended), 'run')}, {clock(seconds)} with a teacher ready"
    told += f", {tokens / seconds:,.0f} completion tokens a second" if seconds else ""
    begun = facts["runs"]["open"]
    return f"{told}." + (f" {count(begun, 'run')} told of no end: killed, or at work." if begun else "")


def _tell_stages(facts: Facts) -> str:
    found = facts["stages"]
    if found is None:
        return "There is no curriculum of these rows: factory curriculum makes one."
    told = f"{count(len(found['stages']), 'stage')} by {found['by']}"
    return f"{told}; {found['hand_off']:,} of {found['prompts']:,} prompts should be passed on to a larger model."


def percent(share: float) -> str:
    """A share in hundredths, as tables and sentences tell it: what is not all never reads 100, nor what is some 0."""
    if 0.99 < share < 1:
        return f"{100 * share:.1f}" if share < 0.9995 else ">99.9"
    if 0 < share < 0.01:
        return f"{100 * share:.1f}" if share >= 0.0005 else "<0.1"
    return f"{100 * share:.0f}"


def count(number: int, noun: str) -> str:
    """`1 row`, `2,000 rows`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def clock(seconds: float) -> str:
    """A duration as people read it."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _were(number: int) -> str:
    return "was" if number == 1 else "were"
