"""The spool: what is appended is read again, what is torn ends its segment, and what is released goes away."""

import shutil
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from dataset_support import SIGNALS, flip_byte, make_generation

from factory.records import Generation
from factory.signals import SignalSpec
from factory.teachers import spool as module
from factory.teachers.spool import FRAME, Place, Spool, SpoolWriter, pack, scan, unpack


def assert_same(one: Generation, two: Generation) -> None:
    """Equal in every field, arrays by dtype, shape and bytes."""
    for field in fields(Generation):
        a, b = getattr(one, field.name), getattr(two, field.name)
        if isinstance(a, np.ndarray):
            assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes()), field.name
        elif field.name not in ("logprobs", "hidden_states"):
            assert a == b, field.name
    assert (one.logprobs is None) == (two.logprobs is None)
    if one.logprobs is not None and two.logprobs is not None:
        for name in one.logprobs.__slots__:
            assert np.array_equal(getattr(one.logprobs, name), getattr(two.logprobs, name)), name
    if one.hidden_states is not None and two.hidden_states is not None:
        assert one.hidden_states.layers == two.hidden_states.layers
        assert np.array_equal(one.hidden_states.bits_NLH, two.hidden_states.bits_NLH)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Spool(tmp_path / "spool")
    return tmp_path / "spool"


CASES = {
    "all signals": make_generation(3),
    "no signals": make_generation(3, SignalSpec()),
    "logprobs only": make_generation(2, SignalSpec(top_k=5)),
    "states only": make_generation(2, SignalSpec(layers=(0, 7))),
    "failed": Generation.failed("id1", 2, "engine_crash", "died twice"),
    "odd text": make_generation(1, text="\ud800 🛫\n\x00", reasoning=None, answer_text='"\\'),
    "strided": make_generation(1, prompt_token_ids=np.arange(20, dtype=np.int32)[::3]),
}


@pytest.mark.parametrize("case", CASES)
def test_a_generation_survives_packing(case: str) -> None:
    head, buffers = pack(CASES[case])
    payload = np.frombuffer(head + b"".join(buffers), np.uint8)
    assert_same(unpack(payload), CASES[case])


def test_arrays_begin_on_eight_bytes() -> None:
    for number in range(12):
        head, _ = pack(make_generation(1, text="x" * number))
        assert len(head) % 8 == 0


def test_what_is_appended_is_read_at_its_place_while_more_is_written(folder: Path) -> None:
    writer, spool = SpoolWriter(folder), Spool(folder)
    generations = [make_generation(number) for number in range(40)]
    for generation in generations:
        assert_same(spool.read(writer.append(generation)), generation)
    places = spool.recover()
    for generation in reversed(generations):
        assert_same(spool.read(places[generation.prompt_id, 0]), generation)


def test_a_read_generation_outlives_its_segment(folder: Path) -> None:
    spool = Spool(folder)
    place = SpoolWriter(folder).append(make_generation(3))
    generation = spool.read(place)
    shutil.rmtree(folder)
    assert_same(generation, make_generation(3))


def test_what_an_earlier_run_left_is_found_by_prompt_and_attempt(folder: Path) -> None:
    writer = SpoolWriter(folder)
    for attempt in (0, 1):
        writer.append(make_generation(3, attempt=attempt, text=f"attempt {attempt}"))
    second = SpoolWriter(folder)
    second.append(make_generation(4))
    spool = Spool(folder)
    found = spool.recover()
    assert sorted(found) == [("id3", 0), ("id3", 1), ("id4", 0)]
    assert spool.read(found["id3", 1]).text == "attempt 1"
    assert {place.segment for place in found.values()} == {"000000-0.gen", "000001-0.gen"}


@pytest.mark.parametrize("cut", [1, 5, FRAME.size, 100])
def test_a_torn_frame_ends_its_segment_and_those_before_it_stay(folder: Path, cut: int) -> None:
    writer = SpoolWriter(folder)
    places = [writer.append(make_generation(number)) for number in range(3)]
    path = folder / "000000-0.gen"
    path.write_bytes(path.read_bytes()[: places[2].offset + cut])
    assert [head["prompt_id"] for _, head in scan(path)] == ["id0", "id1"]


@pytest.mark.parametrize("offset", [0, 4, 12, 200])
def test_a_damaged_frame_is_not_read(folder: Path, offset: int) -> None:
    writer = SpoolWriter(folder)
    places = [writer.append(make_generation(number)) for number in range(2)]
    flip_byte(folder / "000000-0.gen", places[1].offset + offset)
    assert sorted(Spool(folder).recover()) == [("id0", 0)]


def test_an_empty_segment_holds_nothing(folder: Path) -> None:
    SpoolWriter(folder)
    assert Spool(folder).recover() == {}


def test_a_full_segment_is_followed_by_another_and_deleted_once_all_in_it_is_released(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SEGMENT_BYTES", 2000)
    writer, spool = SpoolWriter(folder), Spool(folder)
    places = [writer.append(make_generation(number)) for number in range(12)]
    for place in places:
        spool.read(place)
    segments = sorted({place.segment for place in places})
    assert len(segments) >= 3
    first = [f"id{n}" for n, place in enumerate(places) if place.segment == segments[0]]
    for name in first[:-1]:
        spool.release(name, 0)
    assert (folder / segments[0]).exists()
    spool.release(first[-1], 0)
    assert not (folder / segments[0]).exists()
    for number in range(12):
        spool.release(f"id{number}", 0)
    assert [path.name for path in folder.iterdir()] == [segments[-1]], "the last one may still be written to"


def test_releasing_a_prompt_releases_every_attempt_at_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SEGMENT_BYTES", 0)
    writer, spool = SpoolWriter(folder), Spool(folder)
    for attempt in range(3):
        spool.read(writer.append(make_generation(1, attempt=attempt)))
    spool.read(writer.append(make_generation(2)))
    assert len(list(folder.iterdir())) == 4
    spool.release("id1", 2)
    assert [path.name for path in folder.iterdir()] == ["000003-0.gen"]
    spool.release("id1", 2)
    spool.release("unknown", 0)


def test_what_was_recovered_and_not_read_yet_keeps_its_segment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SEGMENT_BYTES", 2000)
    writer = SpoolWriter(folder)
    for number in range(12):
        writer.append(make_generation(number))
    spool = Spool(folder)
    found = spool.recover()
    for number in reversed(range(12)):
        assert_same(spool.read(found[f"id{number}", 0]), make_generation(number))
        spool.release(f"id{number}", 0)


def test_arrays_are_views_of_the_file_and_not_copies(folder: Path) -> None:
    spool = Spool(folder)
    generation = spool.read(SpoolWriter(folder).append(make_generation(3, SIGNALS)))
    assert generation.hidden_states is not None
    assert not generation.hidden_states.bits_NLH.flags.owndata


def test_a_place_is_where_the_frame_begins(folder: Path) -> None:
    writer = SpoolWriter(folder)
    places = [writer.append(make_generation(number)) for number in range(3)]
    assert places == [Place("000000-0.gen", offset) for offset, _ in scan(folder / "000000-0.gen")]


def test_writers_side_by_side_have_segments_of_their_own_and_none_holds_up_anothers(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SEGMENT_BYTES", 0)
    first, second = SpoolWriter(folder, 0), SpoolWriter(folder, 1)
    spool = Spool(folder)
    places = [writer.append(make_generation(2 * n + w)) for n in range(3) for w, writer in enumerate((first, second))]
    assert len({place.segment for place in places}) == 6
    for number, place in enumerate(places):
        assert_same(spool.read(place), make_generation(number))
        spool.release(f"id{number}", 0)
    left = {path.name for path in folder.iterdir()}
    assert left == {places[-2].segment, places[-1].segment}, "each writer's last one may still be written to"


def test_a_slow_writers_older_segment_is_kept_until_it_has_told_of_all_in_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, quick = SpoolWriter(folder, 0), SpoolWriter(folder, 1)
    spool = Spool(folder)
    untold = [slow.append(make_generation(number)) for number in range(2)]
    spool.read(untold[0])
    monkeypatch.setattr(module, "SEGMENT_BYTES", 0)
    for number in range(2, 6):
        spool.read(quick.append(make_generation(number)))
        spool.release(f"id{number}", 0)
    spool.release("id0", 0)
    assert_same(spool.read(untold[1]), make_generation(1))


def test_a_segment_of_an_earlier_run_goes_when_all_in_it_is_released_whoever_wrote_it(folder: Path) -> None:
    SpoolWriter(folder, 5).append(make_generation(1))
    (folder / "000000-5.gen").rename(folder / "000001.gen")  # as releases before replicas named them
    SpoolWriter(folder, 5).append(make_generation(2))
    spool = Spool(folder)
    places = spool.recover()
    assert {place.segment for place in places.values()} == {"000001.gen", "000002-5.gen"}
    for number in (1, 2):
        assert_same(spool.read(places[f"id{number}", 0]), make_generation(number))
        spool.release(f"id{number}", 0)
    assert list(folder.iterdir()) == []
