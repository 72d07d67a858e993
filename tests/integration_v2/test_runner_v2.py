"""Capture on vLLM's second model runner, under Triton's interpreter: every kept number against a plain forward.

`make integration-v2` runs them, in an environment of its own. A few dozen tokens each, as the interpreter is slow.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.runner_v2
pytest.importorskip("triton")

from engines import Plain, answer, prompts, start  # noqa: E402
from random_teacher import random_teacher  # noqa: E402

from factory.records import Generation, Sampling  # noqa: E402

BRIEF = Sampling(temperature=1.0, max_tokens=30, thinking_tokens=10)
CHUNKED = {"enable_chunked_prefill": True, "max_num_batched_tokens": 64}
ALL = {"top_k": 5, "hidden_layers": [0, 2, -1]}


@pytest.fixture(scope="module")
def plain() -> Plain:
    return Plain(random_teacher())


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Generation]]:
    """Prompts of 20 to 200 tokens, three samples each, in chunks of 64; a grammar and a thinking budget."""
    with start(tmp_path_factory.mktemp("v2"), ALL, CHUNKED) as engine:
        assert engine.info()["settings"]["model_runner"] == "v2"
        yield answer(engine, prompts(6, BRIEF, samples=2))


def test_a_mixed_batch_under_a_grammar_in_chunks_is_right(mixed: dict[str, Generation], plain: Plain) -> None:
    forced = sum(plain.check(made, layers=(0, 2, 4)) for made in mixed.values())
    assert forced > 10  # the grammar was on, and the numbers are the teacher's own all the same
    assert max(len(made.prompt_token_ids) for made in mixed.values()) > 64  # several chunks
