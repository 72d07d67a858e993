"""The benchmark's arithmetic: ratios of pairs, medians, bars, the table's text, and the packings it compares with."""

import argparse

import numpy as np
import pytest
from bench_figures import Figure, Run, between, ratios_of_cpu, ratios_of_speed, table, tell, verdict
from bench_others import PACKINGS, as_bfloat16, pack, pack_bits
from bench_real import with_section

BASE, HALF = Run(seconds=2.0, tokens=100, cpu_s=1.0), Run(seconds=4.0, tokens=100, cpu_s=4.0)
MET = Figure("model", "tokens/s over bare: k = 20", (0.91, 0.95, 0.93), 0.92, remark="fast")
MISSED = Figure("model", "bytes", (71.0,), 70, at_most=True, unit="B")


def test_a_ratio_is_of_the_two_runs_of_one_pair() -> None:
    assert ratios_of_speed([(BASE, HALF), (BASE, BASE)]) == (0.5, 1.0)
    assert ratios_of_cpu([(BASE, HALF)]) == (0.25,)


def test_the_base_of_a_variant_is_the_mean_of_those_around_it() -> None:
    slow = Run(seconds=6.0, tokens=100, cpu_s=3.0)
    assert between(BASE, slow) == Run(seconds=4.0, tokens=100, cpu_s=2.0)
    with pytest.raises(ValueError, match="not runs of the same requests"):
        between(BASE, Run(seconds=2.0, tokens=99))


def test_a_figure_is_the_median_of_its_rounds_and_knows_its_bar() -> None:
    assert MET.median == 0.93
    assert MET.met is True
    assert MISSED.met is False
    assert Figure("model", "without a bar", (1.0,)).met is None


@pytest.mark.parametrize(("value", "met"), [(0.92, True), (0.9199, False)])
def test_a_bar_is_met_where_it_is_reached(value: float, met: bool) -> None:
    assert Figure("model", "k = 20", (value,), 0.92).met is met


def test_a_row_has_median_spread_bar_and_verdict() -> None:
    expected = "| model | tokens/s over bare: k = 20 | 0.930 | 0.910 to 0.950 | at least 0.92 | yes | fast |"
    assert MET.text() == expected
    assert MISSED.text() == "| model | bytes | 71.0 B |  | at most 70 B | **no** |  |"


def test_the_table_has_a_head_and_as_many_columns_in_every_row() -> None:
    lines = table([MET, MISSED]).splitlines()
    assert len(lines) == 4
    assert {line.count("|") for line in lines} == {8}


def test_the_verdict_names_what_is_not_met() -> None:
    assert verdict([MET]) == "1 of 1 bars are met."
    assert verdict([MET, MISSED]) == "1 of 2 bars are met. Not met: bytes (model)."


@pytest.mark.parametrize(("value", "text"), [(0.98765, "0.988"), (69.96, "70.0"), (12345.6, "12,346")])
def test_a_number_has_as_many_digits_as_it_deserves(value: float, text: str) -> None:
    assert tell(value) == text


def test_bits_are_packed_without_gaps() -> None:
    packed = pack_bits(np.array([[1, 2, 3], [4095, 0, 4095]], np.int32), 12)
    assert packed.shape == (2, 5)  # 36 bits
    assert np.unpackbits(packed[1]).sum() == 24


def test_bfloat16_rounds_to_the_nearest() -> None:
    values = np.array([[1.0, -0.00390625, 3.0]], np.float32)
    assert ((as_bfloat16(values).astype(np.uint32) << 16).view(np.float32) == values).all()


def test_packed_sizes_are_those_of_the_description() -> None:
    values_TK = -0.5 * np.arange(20, dtype=np.float32)[None].repeat(3, 0)
    ids_TK = np.arange(60, dtype=np.int32).reshape(3, 20)
    sizes = []
    for packing in PACKINGS:
        logprob_bytes, id_bytes, error = pack(values_TK, ids_TK, 32768, packing)
        assert error < 1e-4
        sizes.append((logprob_bytes.shape, id_bytes.shape))
    assert sizes == [((3, 40), (3, 38)), ((3, 14), (3, 38))]


def test_a_section_takes_its_own_place_and_no_other() -> None:
    options = argparse.Namespace(rows=6, speed=False)
    page = "# Benchmarks\n\ntable\n\n## On a GPU\n\nnone\n\n## Exports\n\nmeasured\n"
    once = with_section(page, "| first |", options)
    assert [line for line in once.splitlines() if line.startswith("## ")] == [
        "## On a GPU",
        "## A real language model",
        "## Exports",
    ]
    again = with_section(once, "| second |", options)
    assert "| first |" not in again
    assert again.replace("| second |", "| first |") == once
    assert again.endswith("\n## Exports\n\nmeasured\n")
