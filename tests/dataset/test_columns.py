"""Columns: what goes into a table comes out again, whatever the bytes."""

import json
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dataset_support import SIGNALS, make_generation, make_prompt, make_record, make_rejection, some_outcomes

from factory.dataset.columns import flat_list
from factory.dataset.layouts import FORMAT_VERSION, layouts, row_bytes
from factory.dataset.signal_columns import decode_states, encode_states
from factory.records import Attempt, Generation, Record, Rejection
from factory.signals import HiddenStates, SignalSpec

DEFAULT = layouts(SIGNALS)["default"]
REJECTED = layouts(SIGNALS)["rejected"]
HIDDEN = layouts(SIGNALS)["hidden_states"]


def encode_one(bits_NLH: np.ndarray) -> bytes:
    value: bytes = encode_states([bits_NLH])[0].as_py()
    return value


def test_the_default_config_has_every_documented_column() -> None:
    documented = (
        "id task level prompt completion reasoning answer scenario prompt_token_ids completion_token_ids answer_start "
        "sampled_logprobs topk_ids topk_logprobs tail_logprobs entropy finish_reason score findings seed attempt text "
        "prompt_id sample repaired pass_rate agreement judge_score judge_reasoning entropy_mean entropy_max surprise "
        "confidence reasoning_tokens difficulty"
    )
    assert sorted(DEFAULT.schema.names) == sorted(documented.split())


def test_without_signals_their_columns_and_config_are_absent() -> None:
    bare = layouts(SignalSpec())
    assert sorted(bare) == ["default", "rejected"]
    assert not {"topk_ids", "topk_logprobs", "entropy"} & set(bare["default"].schema.names)


def test_the_schema_says_what_the_arrays_mean() -> None:
    meaning = json.loads(HIDDEN.schema.metadata[b"factory"])
    expected = {"format_version": FORMAT_VERSION, "config": "hidden_states", "top_k": 3, "layers": [1, 4]}
    assert meaning == expected | {"final_norm": True}


@pytest.mark.parametrize("config", ["default", "rejected", "hidden_states"])
def test_a_table_of_no_outcomes_has_the_schema_and_no_rows(config: str) -> None:
    table = layouts(SIGNALS)[config].table([])
    assert table.num_rows == 0
    assert table.schema.equals(layouts(SIGNALS)[config].schema, check_metadata=True)


def test_logprobs_come_back_as_flat_lists_of_length_t_times_k() -> None:
    records = [make_record(number) for number in range(5)]
    rows = DEFAULT.table(records).to_pylist()
    for record, row in zip(records, rows, strict=True):
        kept, tokens = record.generation.logprobs, len(record.generation.completion_token_ids)
        assert kept is not None
        assert len(row["topk_ids"]) == len(row["topk_logprobs"]) == tokens * 3
        assert np.array_equal(np.reshape(row["topk_ids"], (tokens, 3)), kept.topk_ids_TK)
        assert np.array_equal(np.reshape(row["topk_logprobs"], (tokens, 3)).astype(np.float16), kept.topk_TK)
        assert np.array_equal(np.float32(row["sampled_logprobs"]), kept.sampled_T)
        assert np.array_equal(np.float32(row["tail_logprobs"]), kept.tail_T)
        assert np.array_equal(np.float32(row["entropy"]), kept.entropy_T)
        assert row["completion_token_ids"] == record.generation.completion_token_ids.tolist()


def test_no_kept_number_is_widened_or_narrowed() -> None:
    types = {field.name: field.type for field in DEFAULT.schema}
    assert types["topk_ids"] == types["completion_token_ids"] == pa.list_(pa.int32())
    assert types["topk_logprobs"] == pa.list_(pa.float16())
    assert types["tail_logprobs"] == types["entropy"] == pa.list_(pa.float32())


def test_a_list_column_keeps_empty_rows_in_their_places() -> None:
    arrays = [np.zeros(0, np.int64), np.array([[1, 2], [3, 4]]), np.zeros((0, 2), np.int64), np.array([5])]
    assert flat_list(arrays, np.int32).to_pylist() == [[], [1, 2, 3, 4], [], [5]]
    assert flat_list([], np.float16).to_pylist() == []


def test_the_completion_is_one_assistant_message_with_its_reasoning() -> None:
    row = DEFAULT.table([make_record(1)]).to_pylist()[0]
    assert row["completion"] == [{"role": "assistant", "content": "{}", "reasoning_content": "why"}]
    assert row["prompt"] == [{"role": "user", "content": "question 1"}]
    silent = DEFAULT.table([make_record(1, reasoning=None)]).to_pylist()[0]
    assert silent["reasoning"] is None
    assert silent["completion"][0]["reasoning_content"] is None


def test_lone_surrogates_become_text_that_utf8_can_hold() -> None:
    prompt = make_prompt(1, messages=({"role": "user", "content": "a\ud800b"},))
    generation = make_generation(1, text="\udfff!", answer_text="x\ud83d", reasoning="\ud800")
    row = DEFAULT.table([Record(prompt, generation, "{}", 1.0, ("odd: \udc80",))]).to_pylist()[0]
    assert row["prompt"][0]["content"] == "a?b"
    assert row["text"] == "?!"
    assert row["completion"][0] == {"role": "assistant", "content": "x?", "reasoning_content": "?"}
    assert row["findings"] == ["odd: ?"]


def test_text_beyond_the_basic_plane_is_kept_as_it_is() -> None:
    text = "né 日本 🛫 \u0000 \u202e"
    assert DEFAULT.table([make_record(1, text=text)]).column("text").to_pylist() == [text]


def test_a_rejection_keeps_its_reason_its_text_and_every_earlier_attempt() -> None:
    attempt = Attempt(5, "parse", "invalid_json", ("line 1", "line 2"), "{\ud800")
    prompt = make_prompt(1, attempt=1, history=(attempt,))
    outcome = Rejection(prompt, make_generation(1), "check", "wrong_total", ("wrong_total: 3",))
    row = REJECTED.table([outcome]).to_pylist()[0]
    assert (row["kind"], row["stage"], row["reason"]) == ("rejected", "check", "wrong_total")
    assert (row["attempt"], row["text"], row["findings"]) == (1, "why</think>{}", ["wrong_total: 3"])
    assert json.loads(row["history"][0]) == {
        "seed": 5,
        "stage": "parse",
        "reason": "invalid_json",
        "findings": ["line 1", "line 2"],
        "text": "{\ud800",
    }


def test_a_rejection_without_a_generation_has_empty_arrays() -> None:
    outcome = Rejection(make_prompt(1), None, "prompt", "scenario_invalid", kind="error")
    row = REJECTED.table([outcome, make_rejection(2)]).to_pylist()[0]
    assert row["prompt_token_ids"] == row["completion_token_ids"] == []
    assert row["text"] == ""
    assert row["finish_reason"] is None


@pytest.mark.parametrize("ending", [b"\x00\x00", b"\x00\x01", b"\x01\x00", b"\xff\xff"])
def test_states_come_back_whatever_byte_they_end_in(ending: bytes) -> None:
    bits_NLH = np.frombuffer(bytes(range(1, 23)) + ending, "<u2").reshape(3, 2, 2)
    data = encode_one(bits_NLH)
    assert not data.endswith(b"\x00")
    assert np.array_equal(decode_states(data, bits_NLH.shape), bits_NLH)


def test_states_of_a_strided_or_big_endian_array_are_the_same_bytes() -> None:
    bits_NLH = np.arange(24, dtype=np.uint16).reshape(3, 2, 4)
    assert encode_one(bits_NLH.astype(">u2")) == encode_one(bits_NLH)
    assert encode_one(np.repeat(bits_NLH, 2, axis=0)[::2]) == encode_one(bits_NLH)
    both = encode_states([bits_NLH, bits_NLH[:1]])
    assert [value.as_py() for value in both] == [encode_one(bits_NLH), encode_one(bits_NLH[:1])]


def test_states_that_end_in_nul_survive_readers_that_strip_it(tmp_path: Path) -> None:
    bits_NLH = np.zeros((2, 2, 4), np.uint16)
    bits_NLH[0, 0, 0] = 3
    record = make_record(0, hidden_states=HiddenStates((1, 4), bits_NLH))
    pq.write_table(HIDDEN.table([record]), tmp_path / "states.parquet", **HIDDEN.writer_options())
    rows = datasets.Dataset.from_parquet(str(tmp_path / "states.parquet"), cache_dir=str(tmp_path)).with_format("numpy")
    row = rows[0]
    assert np.array_equal(decode_states(bytes(row["states"]), row["shape"]), bits_NLH)
    assert (row["layers"].tolist(), row["shape"].tolist(), row["dtype"]) == ([1, 4], [2, 2, 4], "bfloat16")


@pytest.mark.parametrize("config", ["default", "rejected", "hidden_states"])
def test_each_config_survives_its_own_file(config: str, tmp_path: Path) -> None:
    layout = layouts(SIGNALS)[config]
    outcomes = [o for o in some_outcomes() if isinstance(o, Record) != (config == "rejected")]
    table = layout.table(outcomes)
    pq.write_table(table, tmp_path / "file.parquet", **layout.writer_options())
    assert pq.read_table(tmp_path / "file.parquet").equals(table)


def test_the_size_of_a_row_is_about_what_it_weighs() -> None:
    states = HiddenStates((1,), np.zeros((100, 1, 5000), np.uint16))
    assert 1_000_000 <= row_bytes(make_record(0, hidden_states=states)) <= 1_010_000
    assert row_bytes(Rejection(make_prompt(0), None, "prompt", "render_failed")) > 0


def test_a_failed_generation_can_be_a_row() -> None:
    failed = Generation.failed("id1", 0, "engine_crash", "died twice")
    row = REJECTED.table([Rejection(make_prompt(1), failed, "teacher", "engine_crash", ("died twice",))]).to_pylist()[0]
    assert (row["finish_reason"], row["text"], row["completion_token_ids"]) == ("error", "", [])
