"""Load: a dataset's rows as arrays and tensors, aligned, for a student's trainer.

    load_rows -> Rows (an index, a length) or RowStream (streaming=True) -> collate

`datasets` keeps and shares out the files' rows; this package does what it cannot: flat signal columns become [T, k]
arrays, hidden states are joined by id and become bfloat16 tensors, and rows become padded batches. No row is given out
before its lengths agree, and never one that the files no longer hold. Compact logprobs are decoded.
docs/dataset-format.md tells how to read the same files without this package.
"""

from factory.dataset.rows import PromptSignals, Row
from factory.load.batches import LOGPROB_FLOOR, collate
from factory.load.opening import load_rows
from factory.load.rows import Rows
from factory.load.stream import RowStream

__all__ = ["LOGPROB_FLOOR", "PromptSignals", "Row", "RowStream", "Rows", "collate", "load_rows"]
