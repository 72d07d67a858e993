"""Tool calls as text: what is written comes back, and what is no call is told as one that cannot be read."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.messages import ToolCall, as_turn
from factory.texts.calls import compose_reply, read_calls, spell_answer, unreadable

CALL = '<tool_call>\n{"name": "set_timer", "arguments": {"minutes": 5}}\n</tool_call>'
TIMER = ToolCall("set_timer", '{"minutes": 5}')
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=3), max_leaves=5
)
arguments = st.dictionaries(st.text(max_size=8), values, max_size=3)
plain = st.text(max_size=30).filter(lambda text: "<tool_call>" not in text)


@given(plain, st.lists(st.tuples(st.text(min_size=1, max_size=8), arguments), max_size=3))
def test_what_is_written_is_read_again(content: str, calls: list[tuple[str, dict[str, object]]]) -> None:
    answer = compose_reply(content.strip(), calls)
    said, found = read_calls(spell_answer("calls", answer))
    if any("</tool_call>" in json.dumps(call, ensure_ascii=False) for call in calls):
        return  # a call that spells the end of one is not read
    assert said == content.strip()
    assert [(call.name, json.loads(call.arguments)) for call in found] == calls


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        ("", "", ()),
        (" For how long? ", "For how long?", ()),
        (CALL, "", (TIMER,)),
        (f"Right away.\n{CALL}\n{CALL}\n", "Right away.", (TIMER, TIMER)),
        (f"{CALL}\nDone.", "", (TIMER, unreadable("Done."))),
        (f"{CALL}{CALL[:-12]}", "", (TIMER, unreadable(CALL[:-12].strip()))),
        ("<tool_call>{}</tool_call>", "", (unreadable("{}"),)),
        ('<tool_call>{"name": "a"}</tool_call>', "", (unreadable('{"name": "a"}'),)),
        ('<tool_call>["a"]</tool_call>', "", (unreadable('["a"]'),)),
        ('<tool_call>{"name": 1, "arguments": {}}</tool_call>', "", (unreadable('{"name": 1, "arguments": {}}'),)),
        (
            '<tool_call>{"name": "a", "arguments": {}, "id": 1}</tool_call>',
            "",
            (unreadable('{"name": "a", "arguments": {}, "id": 1}'),),
        ),
        ("Hm. <tool_call>", "Hm.", (unreadable("<tool_call>"),)),
    ],
)
def test_only_whole_calls_at_the_end_are_calls(text: str, content: str, calls: tuple[ToolCall, ...]) -> None:
    assert read_calls(text) == (content, calls)


def test_a_turn_with_calls_is_as_chat_templates_take_it() -> None:
    told = {"type": "function", "function": {"name": "set_timer", "arguments": {"minutes": 5}}}
    assert as_turn("Yes.", (TIMER,)) == {"role": "assistant", "content": "Yes.", "tool_calls": [told]}
    assert as_turn("Yes.", ()) == {"role": "assistant", "content": "Yes."}
    for call in (unreadable("x"), ToolCall("a", "[]"), ToolCall("a", "{")):
        with pytest.raises(ValueError, match=r".+"):
            as_turn("", (call,))
