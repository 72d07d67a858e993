"""Personal data: what is found, what looks like it and is not, and placeholders that stay the same in a row."""

import json
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.tasks.calls import call_solve
from factory.tasks.tasks import discover
from factory.texts.personal import KINDS, find_personal, resolve_kinds, scrub, scrub_row

FOUND = {
    "email": [
        "jane.doe+lists@mail.example.co.uk",
        "j_d@example.com",
        "müller@bücher.example",
        "jane\uff20example.com",
    ],
    "phone": [
        "+49 30 1234567",
        "+44 20 7946 0958",
        "+33 1 23 45 67 89",
        "+1 (212) 555-0188",
        "0049 30 1234567",
        "(415) 555-2671",
        "415-555-2671",
        "555-123-4567",
        "415.555.2671",
        "020 7946 0958",
        "030 1234567",
        "01 23 45 67 89",
        "555\u2011123\u20114567",
        "+49\u00a030\u00a01234567",
    ],
    "card": ["4111 1111 1111 1111", "4111-1111-1111-1111", "4111111111111111", "378282246310005", "5555555555554444"],
    "iban": ["DE89 3704 0044 0532 0130 00", "GB82WEST12345698765432", "FR14 2004 1010 0505 0001 3M02 606"],
    "national_id": [
        "536-22-1234",
        "12345678Z",
        "RSSMRA85T10A562S",
        "1 85 05 78 006 084 91",
        "390.533.447-05",
        "756.9217.0769.85",
        "AB 12 34 56 C",
        "131052-308T",
    ],
    "ip": ["203.0.113.9", "192.168.0.12", "2001:db8::1", "fe80::1ff:fe23:4567:890a"],
}
CALLED = [
    ("Tel. 030 1234567", "phone", "030 1234567"),
    ("call me at 555-0132", "phone", "555-0132"),
    ("WhatsApp: 4155552671", "phone", "4155552671"),
    ("SSN 536 22 1234", "national_id", "536 22 1234"),
    ("her BSN is 111222333", "national_id", "111222333"),
    ("PESEL 44051401359", "national_id", "44051401359"),
]
NOTHING = [
    "on 2025-07-26 at 10:00-11:30, 2025-02-25T15:40:00, 26.07.2025, 07/26/2025 and 1/2/25",
    "08:00-17:00, 12:30 pm, 2025-07-26 08:30 - 09:30",
    "€1,290.00 + 330 = 1,620; $8,480; 199.99 EUR; 80 x 4 = 320; 251 + 336 = 587",
    "ref BV-98477, XS-79158, order 4155552671, parcel 123456789012",
    "IMG_20250726_101112.jpg is 4032 x 3024 pixels, 3840x2160",
    "F1, T12, H4, Room 378, Bay 12, Platform 9",
    "from 1999 to 2025, in 2,000 rows, 10 000 000 people, 0.123456789",
    "saturation -80, exposure +45, 7 degrees, 98 %",
    "version 1.2.3.4, python 3.11.15, section 2.1.3.4, 127.0.0.1, 255.255.255.0",
    "4111 1111 1111 1112 and 1234 5678 9012 3456",
    "DE00 3704 0044 0532 0130 00",
    "000-00-0000 and 666-12-3456 and 12345678A",
    "std::map, a::b, 10:15:30, 12::30",
    "me@localhost, @handle, a@b, x @ y.com",
    "prices 250 330 1290 and 415 555 2671",
    "call before 2025-07-26, text 42 people, phone line 3",
    "scores 12-10-11, 3-2-1, 2-0",
    "",
]


@pytest.mark.parametrize(("kind", "value"), [(kind, value) for kind, values in FOUND.items() for value in values])
def test_each_kind_is_found_where_it_stands(kind: str, value: str) -> None:
    for before, after in (("", ""), ("Mine is ", "."), ("(", ")"), ("über\n", ", and more"), ('"', '"')):
        text = before + value + after
        found = [(k, text[start:end]) for k, start, end in find_personal(text)]
        assert len(found) == 1
        assert found[0][0] == kind
        assert found[0][1].strip("()") == value.strip("()")


@pytest.mark.parametrize(("text", "kind", "value"), CALLED)
def test_digits_alone_count_only_where_a_word_says_what_they_are(text: str, kind: str, value: str) -> None:
    assert [(k, text[start:end]) for k, start, end in find_personal(text)] == [(kind, value)]
    bare = value.replace(" ", "").replace("-", "")
    assert find_personal(f"number {bare}") == []


@pytest.mark.parametrize("text", NOTHING)
def test_what_only_looks_personal_is_none(text: str) -> None:
    assert [(kind, text[start:end]) for kind, start, end in find_personal(text)] == []


def test_nothing_personal_is_seen_in_the_built_in_tasks() -> None:
    tasks = discover(Path(__file__).parent.parent.parent).tasks
    cells = [(task, level) for task in tasks.values() for level in task.levels]
    seen: list[str] = []
    rows = 0
    for task, level in cells:
        assert task.sample is not None
        assert task.solve is not None
        for seed in range(-(-620 // len(cells))):
            scenario = task.sample(random.Random(10_000 + seed), level)
            for text in (scenario.model_dump_json(), *call_solve(task, scenario)):
                found = [(kind, text[start:end]) for kind, start, end in find_personal(text)]
                # a helpline's number is one that everybody may see
                seen += [told for kind, told in found if (task.name, kind) != ("emotional_support", "phone")]
            rows += 1
    assert seen == []
    assert rows >= 600


def test_only_the_kinds_asked_for_are_told_and_a_card_is_never_a_phone() -> None:
    text = "jane@example.com, tel 4111 1111 1111 1111, 203.0.113.9"
    assert [kind for kind, _, _ in find_personal(text)] == ["email", "card", "ip"]
    assert [kind for kind, _, _ in find_personal(text, ("phone", "ip"))] == ["ip"]
    assert find_personal(text, ()) == []


def test_a_setting_names_all_kinds_none_or_some() -> None:
    assert resolve_kinds(True) == KINDS
    assert resolve_kinds(False) == ()
    assert resolve_kinds(["ip", "email"]) == ("ip", "email")


def test_the_same_value_gets_the_same_placeholder() -> None:
    text = "jane@example.com wrote to bob@example.com; Jane@Example.com and (415) 555-2671, again 415-555-2671"
    scrubbed, counts = scrub(text)
    assert scrubbed == "[EMAIL_1] wrote to [EMAIL_2]; [EMAIL_1] and [PHONE_1], again [PHONE_1]"
    assert counts == {"email": 3, "phone": 2}


def test_a_row_is_scrubbed_at_any_depth_under_one_set_of_placeholders() -> None:
    row = {
        "jane@example.com": "a column's name stays",
        "from": "jane@example.com",
        "thread": [{"to": "bob@example.com", "jane@example.com": ["x", ("jane@example.com",)]}],
        "n": 4155552671,
        "none": None,
        "flag": True,
    }
    before = json.dumps(row)
    scrubbed, counts = scrub_row(row)
    assert scrubbed == {
        "jane@example.com": "a column's name stays",
        "from": "[EMAIL_1]",
        "thread": [{"to": "[EMAIL_2]", "[EMAIL_1]": ["x", ["[EMAIL_1]"]]}],
        "n": 4155552671,
        "none": None,
        "flag": True,
    }
    assert counts == {"email": 4}
    assert json.dumps(row) == before


VALUES = st.sampled_from([(kind, value) for kind, values in FOUND.items() for value in values])
WORDS = st.sampled_from(["hello", "am Montag", "2025-07-26", "BV-98477", "📷", "\n", "12", "会議"])


@given(st.lists(VALUES, max_size=8), st.lists(WORDS, min_size=9, max_size=9))
def test_all_planted_values_are_gone_and_nothing_else(planted: list[tuple[str, str]], words: list[str]) -> None:
    text = words[0] + "".join(f" | {value} | {word}" for (_, value), word in zip(planted, words[1:], strict=False))
    scrubbed, counts = scrub(text)
    assert counts == Counter(kind for kind, _ in planted)
    assert [part for part in scrubbed.split(" | ") if not part.startswith("[")] == words[: len(planted) + 1]
    assert scrub(scrubbed) == (scrubbed, Counter())


@given(st.text(max_size=400))
def test_found_spans_are_inside_the_text_in_order_and_apart(text: str) -> None:
    end = 0
    for kind, start, stop in find_personal(text):
        assert kind in KINDS
        assert end <= start < stop <= len(text)
        end = stop


UNITS = [
    "1",
    "1 ",
    "a@",
    "a.",
    "a@a.",
    "DE89 ",
    "1.",
    "12:",
    "012 345 6789 ",
    "+49 ",
    "(0",
    "ssn 123 ",
    "call ",
    "a@a-",
]
UNITS += ["!", "abcd:", "j@x.com ", "::", "\uff11", "X1234567", "1-", "12345678901234567"]


@pytest.mark.parametrize("unit", UNITS)
def test_hostile_texts_end_soon(unit: str) -> None:
    started = time.process_time()
    find_personal(unit * (100_000 // len(unit)))
    assert time.process_time() - started < 20  # a pattern that backtracks takes hours


def test_values_that_are_no_text_pass_through() -> None:
    row: dict[str, Any] = {"a": 1.5, "b": b"jane@example.com", "c": []}
    assert scrub_row(row) == (row, Counter())
