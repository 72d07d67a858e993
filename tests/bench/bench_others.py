"""How others store a teacher's top-k, for comparison: distilabel's rows, and DistillKit's packed layout.

distilabel (1.5, `LLMLogprobs`): per row a list over positions of a list of {token: string, logprob: float}; what vLLM
gives is taken as it comes, and pyarrow's default Parquet settings are used.

DistillKit (arcee-ai/DistillKit, `distillkit/compression`, `sample_common.compressed_logit_schema`): per position two
byte strings, `compressed_logprobs` and `bytepacked_indices`, as list<list<uint8>> with pyarrow's default Parquet
settings. The first holds the `exact_k` best log-probabilities in `exact_dtype`, then, of a least-squares fit of the
others over their rank t = 0, 1, ... with the terms t^0, t^1, ..., sqrt(t), the coefficients in float32. The second
holds the k ids with ceil(log2(vocabulary)) bits each, padded to a whole byte. Written anew here from that description;
the order of bits inside a byte may differ, sizes do not depend on it. Residual bins, delta encoding and error diffusion
are left out, as in both of DistillKit's recommended configurations.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from factory.records import Generation
from factory.signals import Array

ENTRY = pa.struct([("token", pa.string()), ("logprob", pa.float64())])
NamedRow = Sequence[Sequence[Sequence[tuple[str | None, float]]]]


def write_distilabel(path: Path, texts: Sequence[str], rows: NamedRow) -> None:
    """Rows of positions of (token, logprob) as distilabel would have them in Parquet."""
    shaped = [
        [[{"token": token, "logprob": value} for token, value in entries] for entries in positions]
        for positions in rows
    ]
    columns = {"generation": pa.array(texts), "logprobs": pa.array(shaped, pa.list_(pa.list_(ENTRY)))}
    pq.write_table(pa.table(columns), path)


def name_tokens(tokenizer_file: Path, generations: Sequence[Generation]) -> NamedRow:
    """Kept logprobs as vLLM would have named them: each id decoded alone."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    names = {}
    for identity in range(tokenizer.get_vocab_size()):
        names[identity] = tokenizer.decode([identity], skip_special_tokens=False)
    rows = []
    for generation in generations:
        kept = generation.logprobs
        assert kept is not None
        ids, values = kept.topk_ids_TK.tolist(), kept.topk_TK.astype(np.float64).tolist()
        rows.append(
            [[(names.get(i, ""), v) for i, v in zip(*both, strict=True)] for both in zip(ids, values, strict=True)]
        )
    return rows


@dataclass(frozen=True, slots=True)
class Packing:
    """A DistillKit configuration for k kept ids; `terms` are powers of t, 0.5 stands for its "sqrt"."""

    name: str
    k: int
    exact_k: int
    terms: tuple[float, ...] = ()


PACKINGS = (
    Packing("k = 20, all 20 exact in bfloat16", 20, 20),
    Packing("k = 20, its budget pick (1 exact, terms 0, 1, sqrt)", 20, 1, (0, 1, 0.5)),
)


def pack(values_TK: Array, ids_TK: Array, vocab: int, packing: Packing) -> tuple[Array, Array, float]:
    """Bytes of the log-probabilities [T, A] and of the ids [T, B], and the mean absolute error of the former."""
    values_TK = np.maximum(values_TK.astype(np.float32), -1e4)
    exact = as_bfloat16(values_TK[:, : packing.exact_k])
    parts, restored = [exact.view(np.uint8)], [(exact.astype(np.uint32) << 16).view(np.float32)]
    if packing.terms:
        ranks = np.arange(packing.k - packing.exact_k, dtype=np.float64)
        terms = np.stack([ranks**power for power in packing.terms], 1)
        fitted = np.linalg.lstsq(terms, values_TK[:, packing.exact_k :].T.astype(np.float64), rcond=None)[0].T
        coefficients = np.ascontiguousarray(fitted.astype(np.float32))
        parts.append(coefficients.view(np.uint8))
        restored.append(coefficients @ terms.T.astype(np.float32))
    error = float(np.abs(np.concatenate(restored, 1) - values_TK).mean())
    return np.concatenate(parts, 1), pack_bits(ids_TK, int(np.ceil(np.log2(vocab)))), error


def as_bfloat16(values: Array) -> Array:
    """bfloat16 bits, rounded to the nearest."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return np.ascontiguousarray(((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16))


def pack_bits(values_TK: Array, bits: int) -> Array:
    """Each row of integers as `bits` bits a value, padded to whole bytes."""
    spread = (values_TK[:, :, None] >> np.arange(bits)) & 1
    return np.packbits(spread.reshape(len(values_TK), -1).astype(np.uint8), axis=1)


def write_packed(path: Path, lengths: Sequence[int], columns: dict[str, Array]) -> None:
    """Byte columns [T of all rows, bytes] as list<list<uint8>>, one row for each length."""
    arrays: dict[str, Any] = {}
    for name, bytes_TB in columns.items():
        inner = np.arange(len(bytes_TB) + 1, dtype=np.int32) * bytes_TB.shape[1]
        outer = np.cumsum([0, *lengths]).astype(np.int32)
        positions = pa.ListArray.from_arrays(pa.array(inner), pa.array(bytes_TB.reshape(-1)))
        arrays[name] = pa.ListArray.from_arrays(pa.array(outer), positions)
    pq.write_table(pa.table(arrays), path)
