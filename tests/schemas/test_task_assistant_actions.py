"""The assistant_actions task: calls are compared one by one, and asking or refusing is as exact as calling."""

import random
from collections import Counter
from typing import Any

import pytest
from shipped_task import LEVELS, ShippedTask

from factory.tasks.replies import Reply

SHIPPED = ShippedTask("assistant_actions")
task, codes = SHIPPED.module, SHIPPED.codes
scenario_of, scenarios = SHIPPED.scenario_of, SHIPPED.scenarios
TOOLS = {tool.__name__: tool for tool in task.TOOLS}


@pytest.mark.parametrize("level", LEVELS)
def test_every_reference_passes_its_check(level: str) -> None:
    for scenario in scenarios(level, 1500):
        reasoning, answer = task.solve(scenario)
        assert task.check(scenario, answer) == []
        assert len(reasoning.split()) <= 45
        assert bool(answer.calls) is not bool(answer.text)


@pytest.mark.parametrize("level", LEVELS)
def test_what_a_call_takes_is_said_or_stands_in_the_situation(level: str) -> None:
    for scenario in scenarios(level, 600):
        seen = [scenario.utterance, *scenario.shown, *scenario.contacts]
        for call in task.solve(scenario)[1].calls:
            for value in call.model_dump().values():
                if isinstance(value, str) and value not in ("car", "walk", "bike", "transit"):
                    time = value[11:] if value[:2] == "20" else value
                    words = time.replace("_", " ").replace("wifi", "wi-fi").casefold()
                    at = scenario.last_reminder.at.strftime("%H:%M")
                    assert any(words in text.casefold() for text in [*seen, at]), (value, scenario.utterance)


def test_levels_grow_in_calls_and_references_and_all_three_ends_come() -> None:
    def ends(level: str) -> Counter[str]:
        found: Counter[str] = Counter()
        for s in scenarios(level, 1000):
            found["ask" if s.expected.ask else "unserved" if s.expected.unserved else "calls"] += 1
        return found

    for level in LEVELS:
        assert min(ends(level)[end] for end in ("ask", "unserved", "calls")) >= 100
    longest = [max(len(s.expected.calls) for s in scenarios(level, 1000)) for level in LEVELS]
    assert longest == [1, 2, 3]
    words = ("one", "same time", "write back", "answer with", "reply")
    refers = [sum(any(w in s.utterance for w in words) for s in scenarios(level, 1000)) for level in LEVELS]
    assert refers[0] < refers[1] < refers[2]


@pytest.mark.parametrize("level", LEVELS)
def test_a_reference_with_one_mistake_is_refused_with_the_right_code(level: str) -> None:
    seen: Counter[str] = Counter()
    timer, light = TOOLS["SetTimer"](minutes=1), TOOLS["ChangeSetting"](setting="flashlight", on=True)
    for scenario in scenarios(level, 500):
        answer = task.solve(scenario)[1]
        tries = {"too_long": Reply(text="word " * 31, calls=answer.calls)}
        if scenario.expected.ask:
            tries |= {"guessed": Reply(calls=[timer]), "not_asked": Reply(text="All right.")}
        elif scenario.expected.unserved:
            tries |= {"call_of_nothing": Reply(calls=[timer]), "unserved_unsaid": Reply(text="Of course, with olives.")}
        else:
            calls = list(answer.calls)
            other = light if not any(isinstance(call, TOOLS["ChangeSetting"]) for call in calls) else timer
            if not any(type(call) is type(other) for call in calls):
                tries["call_needless"] = Reply(calls=[*calls, other])
            tries["call_missing"] = Reply(text="Done.", calls=calls[1:])
            tries["empty"] = Reply()
            if len(calls) > 1:
                tries["wrong_order"] = Reply(calls=calls[::-1])
            tries["wrong_argument"] = Reply(calls=[changed(calls[0]), *calls[1:]])
        for code, wrong in tries.items():
            assert code in codes(scenario, wrong), (code, scenario.utterance)
            seen[code] += 1
    assert len(seen) == (9 if level == "easy" else 10)


def changed(call: Any) -> Any:
    """The call with another first argument that its tool takes."""
    name, value = next(iter(call.model_dump().items()))
    other = {"minutes": 1439, "setting": "wifi" if value != "wifi" else "bluetooth"}.get(name, "something else")
    return call.model_copy(update={name: other})


def test_the_same_call_twice_is_needless() -> None:
    scenario = next(s for s in scenarios("easy", 100) if s.expected.calls)
    call = scenario.expected.calls[0].build()
    assert codes(scenario, Reply(calls=[call, call])) == ["call_needless"]


def test_texts_may_differ_in_case_quotes_and_end_marks() -> None:
    scenario = next(s for s in scenarios("easy", 500) if s.expected.calls and s.expected.calls[0].tool == "SendMessage")
    call = scenario.expected.calls[0].build()
    for text in (call.text.upper(), f'"{call.text}"', f"{call.text}.", f"{call.text}!"):
        assert codes(scenario, Reply(calls=[call.model_copy(update={"text": text})])) == []
    assert codes(scenario, Reply(calls=[call.model_copy(update={"text": f"{call.text} please"})])) == ["wrong_argument"]


def test_an_utterance_of_ones_own_is_checked_by_the_situation() -> None:
    raw = {"now": "2025-03-01T10:00", "contacts": ["Ida Holm"], "utterance": "Tell Ida I am late."}
    scenario = task.Scenario.model_validate(raw)
    message, remind = TOOLS["SendMessage"], TOOLS["AddReminder"]
    assert codes(scenario, Reply(calls=[message(to="Ida Holm", text="I am late")])) == []
    assert codes(scenario, Reply(calls=[message(to="Ida", text="I am late")])) == ["unknown_contact"]
    assert codes(scenario, Reply(calls=[remind(text="x", at="2025-03-01T09:00")])) == ["past_reminder"]
    with pytest.raises(ValueError, match="no reference"):
        task.solve(scenario)


def test_the_same_seed_gives_the_same_scenario_and_it_survives_json() -> None:
    for level in LEVELS:
        texts = [scenario.model_dump_json() for scenario in scenarios(level, 200)]
        assert [task.sample(random.Random(seed), level).model_dump_json() for seed in range(60)] == texts[:60]
        for text, scenario in zip(texts, scenarios(level, 200), strict=True):
            again = task.Scenario.model_validate_json(text)
            assert again == scenario
            assert task.solve(again) == task.solve(scenario)


@pytest.mark.parametrize("name", SHIPPED.phrasings)
def test_every_phrasing_tells_the_whole_situation(name: str) -> None:
    assert len(SHIPPED.phrasings) >= 2
    for level in LEVELS:
        for s in scenarios(level, 60):
            text = SHIPPED.render(name, s, level)
            facts = [s.utterance, *s.contacts, *s.shown, s.last_message_from, f"{s.now:%Y-%m-%d}", f"{s.now:%H:%M}"]
            facts += [s.last_reminder.text, f"{s.last_reminder.at:%Y-%m-%d %H:%M}"]
            assert all(fact in text for fact in facts)
            rest = text.replace(s.utterance, "")
            places = [rest.index(item) for item in s.shown]
            assert places == sorted(places)
