"""How a row's distributions are stored: as they are, or in the compact profile, at every position k ids or fewer.

The columns of one row are flat lists, token after token. Where positions may have fewer than k ids, `topk_counts` tells
how many each has.

The compact profile takes about 50 bytes a position instead of 65. Ids become numbers into a table of the row's own ids,
frequent ones first, so that most high bytes are 0. Probabilities from the second on lie on one grid, even in the root
of the probability (even steps there cost equally in KL) and even in the logarithm below `exp(KNEE)`; only steps from
grid place to grid place are stored. The first logprob is fixed point and takes up what the grid adds to or removes from
the row's mass, so that the KL is of second order in the steps.

One row with k = 3 and the ids and logprobs of two tokens, exact and compact:

    topk_ids         7 9 4 | 7 4 8            topk_id_table    4 3 | 1 1     added up: 4 7 | 8 9, twice | once
    topk_logprobs    a b c | d e f            topk_id_places   1 3 0 | 1 0 2  4 stands at 0, 7 at 1, 8 at 2, 9 at 3
                                              topk_first       A | D          fixed point, one a token
                                              topk_steps       b c-b | e f-e  grid places, k - 1 a token

The bars are not stored: with k ids at every token, or with `topk_counts`, a reader knows where they are. A token
without any id has no entry in places, first and steps. Steps are modulo 2^16, so adding them up in uint16 gives the
grid places again, which are absolute: an error in one does not add to the next.
docs/dataset-format.md has the decoder as 20 lines of NumPy; docs/decisions/0011-compact-logprobs.md has the figures.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from factory.signals import Array, Logprobs

ROOTS: Final = 1024  # grid places between probability 1 and 0, were the grid even in the root all the way
STEP: Final = 1 / 16  # nats between places below the knee
KNEE: Final = 2 * float(np.log(2 / (ROOTS * STEP)))  # where both grids have the same step: -6.9 nats, p = 0.001
KNEE_PLACE: Final = ROOTS * (1 - float(np.exp(KNEE / 2)))
NOWHERE: Final = 0xFFFF  # the grid place of probability 0
FIRST_UNIT: Final = 2.0**-17  # nats
FIRST_NOWHERE: Final = 0x7FFF_FFFF  # stands for -inf: where fixed point ends, at -16384 nats
CORRECTION: Final = 1 / 32  # nats that the first logprob may be moved to take up the grid's mass
COUNTS: Final = "topk_counts"
SCALARS: Final = ("sampled_logprobs", "tail_logprobs", "entropy")
COLUMNS: Final = ("topk_id_table", "topk_id_places", "topk_first", "topk_steps")
# every column that a distribution may have, in one profile or the other: readers take those that are there
STORED: Final = (*SCALARS, "topk_ids", "topk_logprobs", "topk_draws", COUNTS, *COLUMNS)
# of ids that the data named: how many each token has, and the ids and their logprobs, in either profile
CANDIDATE_COUNTS: Final = "candidate_counts"
CANDIDATES: Final = (
    *("candidate_ids", "candidate_id_table", "candidate_id_places", "candidate_logprobs"),
    CANDIDATE_COUNTS,
)
BOUNDS: Final = {
    "sampled_logprobs": "float16",
    "tail_logprobs": "float16",
    "entropy": "float16",
    "topk_ids": "exact",
    "topk_logprobs": "within 0.032 nats, from the second on within 0.001 / sqrt(p) if less; -inf below -4000",
    "kl": "at most 1e-5 nats a position in the mean, over the top k and the tail",
}
Flat = Mapping[str, tuple[Array, Array]]  # of a list column of B rows: all values, and offsets [B + 1]


@dataclass(frozen=True, slots=True)
class Packed:
    """One row's top-k distribution, flat; D distinct ids, T positions that hold any."""

    # int32: the distinct ids, each minus the one before it. Classes of about equal frequency, frequent ones first, and
    # ascending inside a class, so most differences are small.
    table_D: Array
    # int32, as many as there are ids: where in the table each stands, token after token.
    places: Array
    # int32: minus the first logprob, in units of 2^-17 nats.
    first_T: Array
    # uint16, of all ids but each token's first: grid place minus the one before it, modulo 2^16, beginning from 0.
    steps: Array


def pack(logprobs: Logprobs) -> Packed:
    """Encode a row's `topk_ids_TK` (exactly) and `topk_TK` (within BOUNDS); T may be 0, k is at least 1."""
    # entries without an id come last, so the first tells whether a position has any
    held_T = logprobs.kept_TK[:, 0]
    held = logprobs if held_T.all() else logprobs.part(held_T)
    kept_TK = held.kept_TK
    table_D, places = pack_ids(held.topk_ids_TK[kept_TK])
    # J = k - 1: the first is not on the grid
    places_TJ = to_grid(held.topk_TK[:, 1:])
    first_T = _pack_first(held, places_TJ)
    steps_TJ = np.diff(places_TJ, axis=1, prepend=np.uint16(0)) if places_TJ.size else places_TJ
    return Packed(table_D, places, first_T, steps_TJ[kept_TK[:, 1:]])


def pack_ids(ids: Array) -> tuple[Array, Array]:
    """The table and the places. Classes (counts by powers of two) keep frequent ids first, and differences small."""
    # sorted by count alone, ids would jump to and fro; sorted by id alone, places would have large high bytes
    ids_D, places, counts_D = np.unique(ids, return_inverse=True, return_counts=True)
    order_D = np.lexsort((ids_D, -np.frexp(counts_D)[1]))
    rank_D = np.empty(len(ids_D), np.int32)
    rank_D[order_D] = np.arange(len(ids_D), dtype=np.int32)
    table_D = np.diff(ids_D[order_D].astype(np.int64), prepend=0).astype(np.int32)
    return table_D, rank_D[places]


def to_grid(logprobs: Array) -> Array:
    """The nearest grid places as uint16; NOWHERE below about -4000."""
    # rounding may have put a sure thing a little above 0
    values = np.minimum(logprobs.astype(np.float32), 0)
    # the floor that stands for the log of 0 may overflow on its way: NOWHERE caps it
    with np.errstate(over="ignore"):
        places = np.where(values >= KNEE, ROOTS * (1 - np.exp(values / 2)), KNEE_PLACE + (KNEE - values) / STEP)
    nearest: Array = np.rint(np.minimum(places, NOWHERE)).astype(np.uint16)
    return nearest


def _make_grid() -> Array:
    """The logprob of every grid place, float32 [65536]."""
    places = np.arange(NOWHERE + 1)
    roots = np.log(1 - np.minimum(places, int(KNEE_PLACE)) / ROOTS) * 2
    grid = np.where(places <= KNEE_PLACE, roots, KNEE - (places - KNEE_PLACE) * STEP)
    grid[NOWHERE] = -np.inf
    return grid.astype(np.float32)


GRID: Final = _make_grid()


def _pack_first(logprobs: Logprobs, places_TJ: Array) -> Array:
    """The first logprob, moved so that all probabilities together are what they were, and no other comes before it."""
    topk_TK, tail_T = logprobs.topk_TK.astype(np.float64), logprobs.tail_T.astype(np.float64)
    # what decoding will give back, not what was put in: the first entry makes up for exactly that difference
    with np.errstate(divide="ignore", over="ignore"):
        kept_TJ = GRID[places_TJ].astype(np.float64)
        rounded_T = tail_T.astype(np.float16).astype(np.float64)
        mass_T = np.exp(topk_TK).sum(axis=1) + np.exp(tail_T) - np.exp(kept_TJ).sum(axis=1) - np.exp(rounded_T)
        moved_T = np.log(np.maximum(mass_T, 0))
    given_T, second_T = topk_TK[:, 0], kept_TJ.max(axis=1, initial=-np.inf)
    # a mass that rounding made 0 or less would move it anywhere: so never by more than CORRECTION. Then it is raised to
    # the second, where rounding put that above it (by half a step at most), for the likeliest id stands first
    first_T = np.clip(moved_T, given_T - CORRECTION, given_T + CORRECTION)
    first_T = np.maximum(first_T, np.minimum(second_T, given_T + STEP / 2))
    units_T = np.maximum(-first_T, 0) / FIRST_UNIT
    nearest_T: Array = np.rint(np.minimum(units_T, FIRST_NOWHERE)).astype(np.int32)
    return nearest_T


def find_damage(flat: Flat, tokens_B: Array, k: int) -> Iterator[tuple[int, str]]:
    """Rows of a batch whose columns do not belong to their tokens or cannot be decoded: number of the row, and why."""
    # without counts every token has k ids, and so all have a first
    counts, ends = flat.get(COUNTS, (None, None))
    entries_B, held_B = tokens_B * k, tokens_B
    if counts is not None and ends is not None:
        entries_B, held_B = _add_up(counts, ends), _add_up(counts > 0, ends)
        yield from ((row, f"{COUNTS} has more than k = {k}") for row in _rows_of(counts > k, ends))
    expected = dict.fromkeys((*SCALARS, COUNTS), tokens_B)
    expected |= dict.fromkeys(("topk_ids", "topk_logprobs", "topk_draws", "topk_id_places"), entries_B)
    expected |= {"topk_first": held_B, "topk_steps": entries_B - held_B}
    for name in (name for name in expected if name in flat):
        lengths_B, wanted_B = np.diff(flat[name][1]), expected[name]
        for row in np.flatnonzero(lengths_B != wanted_B).tolist():
            told = f"({tokens_B[row]} tokens, k = {k})"
            yield row, f"{name} has {lengths_B[row]} values, expected {wanted_B[row]} {told}"
    if COLUMNS[0] in flat:
        yield from _find_damage_of_packed(flat)


def find_candidate_damage(flat: Flat, tokens_B: Array) -> Iterator[tuple[int, str]]:
    """The same of the columns of candidates, which are there."""
    counts, ends = flat[CANDIDATE_COUNTS]
    for row in np.flatnonzero(np.diff(ends) != tokens_B).tolist():
        yield row, f"{CANDIDATE_COUNTS} has {ends[row + 1] - ends[row]} values, expected {tokens_B[row]}"
    entries_B = _add_up(counts, ends)
    names = ("candidate_ids", "candidate_id_places", "candidate_logprobs")
    for name in (name for name in names if name in flat):
        lengths_B = np.diff(flat[name][1])
        for row in np.flatnonzero(lengths_B != entries_B).tolist():
            yield row, f"{name} has {lengths_B[row]} values, expected {entries_B[row]} by {CANDIDATE_COUNTS}"
    if "candidate_id_table" in flat:
        yield from _find_damage_of_ids(flat, "candidate_id_table", "candidate_id_places")


def _find_damage_of_packed(flat: Flat) -> Iterator[tuple[int, str]]:
    yield from _find_damage_of_ids(flat, "topk_id_table", "topk_id_places")
    first_T, offsets = flat["topk_first"]
    yield from ((row, "topk_first is below 0") for row in _rows_of(first_T < 0, offsets))


def _find_damage_of_ids(flat: Flat, table: str, name: str) -> Iterator[tuple[int, str]]:
    # decoding indexes with these numbers: a damaged place must not read another row's table, nor wrap around from below
    table_D, ends = flat[table]
    ids_D = _read_table(table_D, ends)
    no_ids = (ids_D < 0) | (ids_D > 2**31 - 1)
    yield from ((row, f"{table} holds what is no id") for row in _rows_of(no_ids, ends))
    places, offsets = flat[name]
    outside = (places < 0) | (places >= np.repeat(np.diff(ends), np.diff(offsets)))
    yield from ((row, f"{name} points outside its table") for row in _rows_of(outside, offsets))


def _add_up(values: Array, offsets: Array) -> Array:
    """The sum of each row's values."""
    sums = np.concatenate([np.zeros(1, np.int64), np.cumsum(values, dtype=np.int64)])
    added: Array = np.diff(sums[offsets])
    return added


def _rows_of(bad: Array, offsets: Array) -> list[int]:
    """The rows that hold a bad value."""
    rows: list[int] = np.unique(np.searchsorted(offsets, np.flatnonzero(bad), side="right") - 1).tolist()
    return rows


def _read_table(table_D: Array, ends: Array) -> Array:
    """The ids of the tables of B rows, int64, each row's differences added up from its own beginning."""
    # one sum over the whole batch, less what it came to before each row: no loop over rows
    sums = np.cumsum(table_D, dtype=np.int64)
    begun_B = np.concatenate([np.zeros(1, np.int64), sums])[ends[:-1]]
    ids: Array = sums - np.repeat(begun_B, np.diff(ends))
    return ids


def read_topk(flat: Flat, k: int) -> dict[str, Array]:
    """`topk_ids` int32, `topk_logprobs` float32 and, where ids were drawn, `topk_draws`: [sum of T, k] each, of a batch
    in which `find_damage` finds nothing. An entry without an id is -1, with logprob -inf and no draws."""
    counts = flat[COUNTS][0] if COUNTS in flat else None
    if COLUMNS[0] in flat:
        topk_ids, topk_logprobs = _unpack(flat, k, counts)
    else:
        topk_ids, topk_logprobs = flat["topk_ids"][0], flat["topk_logprobs"][0].astype(np.float32, copy=False)
        topk_ids, topk_logprobs = _widen(topk_ids, counts, k, -1), _widen(topk_logprobs, counts, k, -np.inf)
    draws = {"topk_draws": _widen(flat["topk_draws"][0], counts, k, 0)} if "topk_draws" in flat else {}
    return {"topk_ids": topk_ids, "topk_logprobs": topk_logprobs} | draws


def read_candidates(flat: Flat) -> tuple[Array, Array]:
    """`candidate_ids` int32 and `candidate_logprobs` float32, flat, of a batch in which `find_candidate_damage` finds
    nothing; the two have the same offsets, those of the logprobs."""
    logprobs = flat["candidate_logprobs"][0].astype(np.float32, copy=False)
    if "candidate_id_table" not in flat:
        return flat["candidate_ids"][0], logprobs
    return _look_up(flat, "candidate_id_table", "candidate_id_places"), logprobs


def widen_row(values: Array, counts_T: Array, blank: float) -> Array:
    """One row's flat values as [T, C], C the most that a token of it has."""
    return _widen(values, counts_T, max(1, int(counts_T.max(initial=0))), blank)


def _look_up(flat: Flat, table: str, name: str) -> Array:
    """The ids that places point at in the rows' own tables."""
    table_D, ends = flat[table]
    places, offsets = flat[name]
    ids: Array = _read_table(table_D, ends).astype(np.int32)[places + np.repeat(ends[:-1], np.diff(offsets))]
    return ids


def _widen(values: Array, counts: Array | None, k: int, blank: float) -> Array:
    """Flat values as [positions, k], of which each position has as many as it counts; a view where all have k."""
    if counts is None:
        return values.reshape(-1, k)
    wide = np.full((len(counts), k), blank, values.dtype)
    wide[np.arange(k) < counts[:, None]] = values
    return wide


def _unpack(flat: Flat, k: int, counts: Array | None) -> tuple[Array, Array]:
    """`topk_ids` int32 and `topk_logprobs` float32 [positions, k] of compact columns."""
    ids = _look_up(flat, "topk_id_table", "topk_id_places")
    # tokens without any id have no first and no steps: decoded without them, they are put in by the last `_widen`
    held = counts[counts > 0] if counts is not None else None
    first, steps = flat["topk_first"][0], flat["topk_steps"][0]
    steps = steps.reshape(len(first), k - 1) if held is None else _widen(steps, held - 1, k - 1, 0)
    logprobs = np.empty((len(first), k), np.float32)
    logprobs[:, 0] = np.where(first == FIRST_NOWHERE, -np.inf, -first * FIRST_UNIT)
    # uint16 wraps around as the differences did
    logprobs[:, 1:] = GRID[np.cumsum(steps, axis=1, dtype=np.uint16)]
    if counts is None or held is None:
        return ids.reshape(-1, k), logprobs
    return _widen(ids, counts, k, -1), _widen(logprobs[np.arange(k) < held[:, None]], counts, k, -np.inf)
