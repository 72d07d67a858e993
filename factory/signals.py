"""Signals: the arrays that are kept beside a row's texts, and what a job asks to keep of them.

All are immutable. Arrays carry their shape in their name: P prompt tokens, T completion tokens, k kept ids,
N = P + T - 1 input tokens, L layers, H hidden size. How they line up, for P = 3 prompt and T = 2 completion tokens:

    position                  0     1     2     3     4
    token                     p0    p1    p2    c0    c1     prompt_token_ids, then completion_token_ids
    logprobs                                    [0]   [1]    entry t: the distribution that c_t was drawn from
    prompt_logprobs                 [0]   [1]                entry i: that of p_(i+1); nothing predicts p0
    hidden, experts, maps     [0]   [1]   [2]   [3]          entry n: taken at token n, an input
    which predicts            p1    p2    c0    c1

So the state that predicts c_t is entry P - 1 + t, and c1, the last token, was never an input: it has no state.
Concatenated, `prompt_logprobs` and `logprobs` are N long, and entry n of both is predicted by entry n of the states.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy.typing as npt

from factory.hashing import is_drawn

Array = npt.NDArray[Any]
Keep = Literal["top_k", "top_p", "sampled"]
Positions = Literal["all", "completion", "answer"]
Source = Literal["engine", "endpoint"]
HiddenPositions = Literal["all", "completion", "kept"]


@dataclass(frozen=True, slots=True)
class Logprobs:
    """The teacher's own distribution at each of T tokens: natural logarithms, before temperature and grammar mask.

    A rectangle: where a position keeps fewer than k ids, the entries that hold none come last. The mass of the kept ids
    and that of the tail add up to 1 at every position. Only Parquet holds distributions ragged. Where
    an engine cannot be listened to, they are its own logprobs, and the manifest says what these are.
    """

    # float32: the token that stands there. Far below the k where a grammar forced it; -1e30 stands for the log of 0.
    sampled_T: Array
    # int32: likeliest first; -1 where there is none.
    topk_ids_TK: Array
    # The log-probability of each id, stored as float16; -inf where there is none.
    topk_TK: Array
    # float32: log of the mass outside the kept ids, -inf where nothing is. 0 where no id is kept: all is outside.
    tail_T: Array
    # float32, nats: of the whole vocabulary, kept or not.
    entropy_T: Array
    # Integers: how often each id was drawn, k times at a position that keeps any. None unless `keep` is "sampled".
    draws_TK: Array | None = None

    @property
    def kept_TK(self) -> Array:
        """Which entries hold an id, bool [T, k]."""
        kept: Array = self.topk_ids_TK >= 0
        return kept

    def part(self, rows: slice | Array) -> "Logprobs":
        """The same of some of the tokens."""
        return Logprobs(**{name: array[rows] for name, array in self.arrays().items()})

    def arrays(self) -> dict[str, Array]:
        """Every array that is there, by name."""
        named = {name: getattr(self, name) for name in LOGPROB_ARRAYS}
        return {name: array for name, array in named.items() if array is not None}


# The names of its arrays, from the class itself, so that no second list can lag behind it.
LOGPROB_ARRAYS = Logprobs.__slots__


@dataclass(frozen=True, slots=True)
class Candidates:
    """What the teacher gives ids that somebody else named, such as a student's own likeliest, at T tokens.

    Flat, token after token: token t has the next `counts_T[t]` of the M. Its own distribution, as in `Logprobs`.
    """

    # Integers: how many ids each token has, 0 where none were named.
    counts_T: Array
    # int32, in the order they were named in; at one token none twice.
    ids_M: Array
    # The log-probability of each, stored as float16; -1e30 stands for the log of 0.
    logprobs_M: Array


CANDIDATE_ARRAYS = Candidates.__slots__


@dataclass(frozen=True, slots=True)
class HiddenStates:
    """Hidden states of one row, at every input token or at some."""

    # In the order of the L axis; 0 is the embeddings, i the output of decoder block i.
    layers: tuple[int, ...]
    # uint16: bits of bfloat16, a type that NumPy has not. Little-endian, as the file will hold them.
    bits_NLH: Array
    # int32, ascending: the input token each was taken at. None where all are kept; otherwise N is how many are.
    positions_N: Array | None = None


@dataclass(frozen=True, slots=True)
class Experts:
    """Which E experts each of N input tokens went to in each of the L decoder blocks that have experts."""

    # In the order of the L axis, counted from 1 as hidden layers are.
    blocks: tuple[int, ...]
    # int16: heaviest first.
    ids_NLE: Array
    # float16: what the experts' outputs are multiplied with, after whatever scaling the model has.
    weights_NLE: Array


@dataclass(frozen=True, slots=True)
class Attention:
    """How much each of N input tokens looks at those up to itself, in L blocks with H query heads (not hidden size)."""

    # In the order of the L axis, counted from 1.
    blocks: tuple[int, ...]
    # float16: row i is token i's weights over tokens 0 to i; the rest of a row is 0.
    maps_LHNN: Array


@dataclass(frozen=True, slots=True)
class SignalSpec:
    """What a dataset keeps beside its texts: the section `signals` of its manifest.

    A new field needs a default that means what datasets without it have: older manifests are read with it.
    """

    # k, or how many draws; 0 keeps no distribution, and then `keep` to `min_entropy` mean nothing.
    top_k: int = 0
    # As asked for, but resolved against the model: no negative index.
    layers: tuple[int, ...] = ()
    # Whether the last layer's states are after the model's final norm.
    final_norm: bool = True
    # Whether there is a config of preference pairs; no signal, but it too decides which files a shard has.
    pairs: bool = False
    # Whether rows say which row of the user's data they were made from; no signal either.
    sourced: bool = False
    # Whether rows say which of several teachers answered; neither.
    teachers: bool = False
    # Whether rows have a prompt of the student's beside the teacher's; neither.
    students: bool = False
    # Whether some rows may call tools, or show images; no signals either.
    tools: bool = False
    images: bool = False
    # Whether logprobs are stored in fewer bytes, within the bounds of `factory.dataset.codec`.
    compact: bool = False
    # Which ids of a distribution, at which tokens: told in docs/signals.md. `min_entropy` is in nats.
    keep: Keep = "top_k"
    top_p: float = 1.0
    positions: Positions = "completion"
    min_entropy: float = 0.0
    hidden_positions: HiddenPositions = "all"
    experts: bool = False
    # Blocks whose maps are kept; of that share of the rows, drawn by id; of rows with at most so many input tokens.
    attention: tuple[int, ...] = ()
    attention_share: float = 0.0
    attention_tokens: int = 0
    # "endpoint": by somebody else's account, of all rows or, of several teachers, of some. Tail and entropy are bounds
    # there, and a row may have no ids at all: its column `without_ids` says why.
    source: Source = "engine"
    # Whether rows that were not accepted say how sure the teacher was of them; no signal, but columns of `rejected`.
    rejected_measures: bool = False
    # Whether a completion may hold tokens that are not the teacher's to predict: a row has a mask, see `Generation`.
    masked: bool = False
    # Whether rows have log-probabilities of ids that the user's data named: see `Candidates`.
    candidates: bool = False

    def as_manifest(self) -> dict[str, Any]:
        """The section `signals` of a manifest; what came later than it is told where it is not as it ever was."""
        return {
            name: value
            for name, value in asdict(self).items()
            if (value or name not in ("tools", "images", "masked", "candidates"))
            and (name, value) != ("source", "engine")
        }

    @property
    def any(self) -> bool:
        """Whether anything is kept beside the texts."""
        return bool(self.top_k or self.layers or self.experts or self.attention)

    @property
    def ragged(self) -> bool:
        """Whether positions may have fewer than k ids, and so need counts."""
        return self.keep != "top_k" or self.positions == "answer" or self.min_entropy > 0 or self.masked

    def keeps_attention(self, row_id: str, inputs: int) -> bool:
        """Whether a row of so many input tokens has attention maps."""
        return bool(self.attention) and inputs <= self.attention_tokens and is_drawn(row_id, self.attention_share)

    @property
    def of_prompt(self) -> bool:
        """Whether there are distributions at the prompt's tokens too."""
        return self.top_k > 0 and self.positions == "all"
