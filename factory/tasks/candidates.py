"""Candidates: ids that a row of the user's names for each of its own, such as a student's likeliest there.

Lists of any lengths, one for each id; or all in one flat list, as columns of ours hold them, with a column that counts
how many each has, or without one, where each has equally many. So the `topk_ids` of a student's own dataset can be
given as they stand.
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

MOST = 1024  # of one id: as many as `top_k` may be
Flat = tuple[tuple[int, ...], tuple[int, ...]]

# as they are: true and "5" are no ids, and ids are stored as int32
IDS = TypeAdapter(list[Annotated[int, Field(strict=True, ge=0, lt=2**31)]])
LISTS = TypeAdapter(list[list[Annotated[int, Field(strict=True, ge=0, lt=2**31)]]])
COUNTS = TypeAdapter(list[Annotated[int, Field(strict=True, ge=0, le=MOST)]])


def read_candidates(value: Any, counts: Any, tokens: int, scored: range, mask: Sequence[int]) -> Flat:
    """The ids that are named of the `scored` ones, flat, and how many each of these has.

    `tokens`: how many ids the row has candidates for; `mask` as long as `scored`, with a 1 where one is scored, or
    empty where all are. Raises ValueError where the lengths do not fit, an id is named twice, or none is named.
    """
    lists = list(_read_lists(value, counts, tokens))
    kept = [lists[place] if not mask or mask[at] else [] for at, place in enumerate(scored)]
    for at, ids in enumerate(kept):
        if len(ids) > MOST:
            raise ValueError(
                f"candidate_ids: entry {scored[at] + 1} names {len(ids):,} ids (allowed: {MOST:,} at most)"
            )
        if len(set(ids)) < len(ids):
            twice = next(one for place, one in enumerate(ids) if one in ids[:place])
            raise ValueError(
                f"candidate_ids: entry {scored[at] + 1} names id {twice} twice; a sum would count it twice"
            )
    if not any(kept):
        raise ValueError("candidate_ids: no id is named of any id that is scored")
    return tuple(one for ids in kept for one in ids), tuple(map(len, kept))


def _read_lists(value: Any, counts: Any, tokens: int) -> Iterator[list[int]]:
    """A list for each id of the row."""
    # the first entry says which of the two it is; an empty list is either, and too short
    if not isinstance(value, list) or not value or isinstance(value[0], list):
        lists = LISTS.validate_python(value)
        if len(lists) != tokens:
            raise ValueError(f"candidate_ids: {len(lists)} lists for {tokens} ids; need one for each")
        if counts is not None and COUNTS.validate_python(counts) != [len(ids) for ids in lists]:
            raise ValueError("candidate_counts are not the lengths of the lists in candidate_ids")
        yield from lists
        return
    flat = IDS.validate_python(value)
    if counts is None and len(flat) % tokens:
        raise ValueError(
            f"candidate_ids: {len(flat)} ids in one list for {tokens} ids, so not equally many for each; "
            f"say how many in candidate_counts, or give lists"
        )
    lengths = [len(flat) // tokens] * tokens if counts is None else COUNTS.validate_python(counts)
    if len(lengths) != tokens or sum(lengths) != len(flat):
        raise ValueError(
            f"candidate_counts: {len(lengths)} counts of {sum(lengths)} ids for {tokens} ids and {len(flat)} candidates"
        )
    yield from (flat[first:last] for first, last in pairwise(accumulate(lengths, initial=0)))
