"""The task photo_edits: its reference answers, wrong answers of every kind, phrasings, schema and golden file."""

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean
from types import ModuleType
from typing import Any

import pytest
from jinja2 import FileSystemLoader, StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import ValidationError

from factory.tasks.modules import load_module

ROOT = Path(__file__).parent.parent.parent
PROMPTS = ROOT / "prompts" / "photo_edits"
LEVELS = ("easy", "medium", "hard")
PHRASINGS = ("user.j2", "user_chat.j2", "user_note.j2")
Edits = list[dict[str, Any]]


def _load() -> ModuleType:
    return load_module(ROOT / "schemas" / "photo_edits.py").module


@pytest.fixture(scope="module")
def task() -> ModuleType:
    return _load()


@pytest.fixture(scope="module")
def templates() -> ImmutableSandboxedEnvironment:
    return ImmutableSandboxedEnvironment(
        loader=FileSystemLoader(PROMPTS), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


def _draw(task: ModuleType, level: str, count: int) -> list[Any]:
    return [task.sample(random.Random(seed), level) for seed in range(count)]


def _codes(task: ModuleType, scenario: Any, edits: Edits) -> list[str]:
    answer = task.Answer.model_validate_json(json.dumps({"edits": edits}))
    return [finding.split(":")[0] for finding in task.check(scenario, answer)]


def _reference(task: ModuleType, scenario: Any) -> Edits:
    return [edit.model_dump() for edit in task.solve(scenario)[1].edits]


@pytest.mark.parametrize("level", LEVELS)
def test_every_reference_answer_passes_its_check(task: ModuleType, level: str) -> None:
    for scenario in _draw(task, level, 400):
        reasoning, answer = task.solve(scenario)
        assert task.check(scenario, answer) == []
        assert task.check(scenario, task.Answer.model_validate_json(answer.model_dump_json())) == []
        assert len(reasoning.split()) <= 250
        assert "<" not in reasoning


@pytest.mark.parametrize("level", LEVELS)
def test_every_edit_of_the_answer_stands_in_the_last_line_of_the_reasoning(task: ModuleType, level: str) -> None:
    for scenario in _draw(task, level, 100):
        reasoning, answer = task.solve(scenario)
        last = reasoning.splitlines()[-1]
        assert last == f"So the edits are: {', '.join(f'{edit.op} {edit.value}' for edit in answer.edits)}."


def _drop_an_edit(edits: Edits, scenario: Any) -> Edits | None:
    return edits[1:]


def _change_a_value(edits: Edits, scenario: Any) -> Edits | None:
    other = {"rotate": {90: 180, 180: 270, 270: 90}, "crop": {}, "filter": {}, "export": {}}
    for i, edit in enumerate(edits):
        if edit["op"] == "rotate":
            return [*edits[:i], {**edit, "value": other["rotate"][edit["value"]]}, *edits[i + 1 :]]
        if edit["op"] not in (*other, "remove_object", "straighten"):
            step = 6 if edit["value"] < 64 else -6 if edit["value"] <= 100 else 50
            return [*edits[:i], {**edit, "value": edit["value"] + step}, *edits[i + 1 :]]
    return None


def _repeat_an_edit(edits: Edits, scenario: Any) -> Edits | None:
    return [edits[0], *edits]


def _remove_a_stranger(edits: Edits, scenario: Any) -> Edits | None:
    return [{"op": "remove_object", "value": "moon"}, *edits]


def _add_an_unasked_edit(edits: Edits, scenario: Any) -> Edits | None:
    spoken = {wish.intent.op for wish in scenario.wishes} | {"exposure", "contrast", "saturation", "temperature"}
    free = [{"op": "rotate", "value": 90}, {"op": "sharpen", "value": 33}, {"op": "resize", "value": 999}]
    kept = any(wish.intent.do == "leave" for wish in scenario.wishes)
    return next(([*edits[:-1], e, *edits[-1:]] for e in free if e["op"] not in spoken and not kept), None)


def _do_what_was_left(edits: Edits, scenario: Any) -> Edits | None:
    parts = {"light": ("contrast", 31), "colours": ("temperature", 31), "framing": ("rotate", 90)}
    for wish in scenario.wishes:
        if wish.intent.do == "leave" and not wish.intent.op:
            op, value = parts[wish.intent.value]
            return [*edits[:-1], {"op": op, "value": value}, *edits[-1:]]
    return None


def _keep_what_was_taken_back(edits: Edits, scenario: Any) -> Edits | None:
    back = [wish.intent.op for wish in scenario.wishes if wish.intent.do == "leave" and wish.intent.op]
    first = [wish.intent for wish in scenario.wishes if wish.intent.op in back and wish.intent.do == "set"]
    kept = [{"op": intent.op, "value": intent.value} for intent in first[:1]]
    return ([*edits, *kept] if first[0].op == "export" else [*kept, *edits]) if first else None


def _export_first(edits: Edits, scenario: Any) -> Edits | None:
    return [edits[-1], *edits[:-1]] if edits[-1]["op"] == "export" and len(edits) > 1 else None


def _turn_the_order_round(edits: Edits, scenario: Any) -> Edits | None:
    asked = any(wish.intent.place or wish.intent.after for wish in scenario.wishes)
    exports = [edit for edit in edits if edit["op"] == "export"]
    return [edit for edit in reversed(edits) if edit["op"] != "export"] + exports if asked else None


def _keep_the_corrected_value(edits: Edits, scenario: Any) -> Edits | None:
    seen: dict[str, Any] = {}
    for wish in scenario.wishes:
        intent = wish.intent
        if intent.op in seen and intent.op != "remove_object" and intent.do == "set" and not intent.tolerance:
            return [{**edit, "value": seen[intent.op]} if edit["op"] == intent.op else edit for edit in edits]
        if intent.do == "set":
            seen[intent.op] = intent.value
    return None


MUTATIONS: list[tuple[Callable[[Edits, Any], Edits | None], str, tuple[str, ...]]] = [
    (_drop_an_edit, "missing_edit", LEVELS),
    (_change_a_value, "wrong_value", LEVELS),
    (_repeat_an_edit, "duplicate_edit", LEVELS),
    (_remove_a_stranger, "unknown_target", LEVELS),
    (_add_an_unasked_edit, "unasked_edit", LEVELS),
    (_do_what_was_left, "left_alone", ("hard",)),
    (_keep_what_was_taken_back, "left_alone", ("hard",)),
    (_export_first, "export_not_last", ("medium", "hard")),
    (_turn_the_order_round, "wrong_order", ("medium", "hard")),
    (_keep_the_corrected_value, "wrong_value", ("hard",)),
]


@pytest.mark.parametrize(("mutate", "code", "levels"), MUTATIONS, ids=[m.__name__ for m, _, _ in MUTATIONS])
def test_each_kind_of_wrong_answer_gets_its_code(
    task: ModuleType, mutate: Callable[[Edits, Any], Edits | None], code: str, levels: tuple[str, ...]
) -> None:
    for level in levels:
        tried = 0
        for scenario in _draw(task, level, 500):
            wrong = mutate(_reference(task, scenario), scenario)
            if wrong is None:
                continue
            tried += 1
            assert _codes(task, scenario, wrong)[:1] == [code], (scenario, wrong)
            if tried == 60:
                break
        assert tried >= 50


@pytest.mark.parametrize("level", LEVELS)
def test_any_order_that_keeps_what_was_asked_is_right(task: ModuleType, level: str) -> None:
    """Every shuffle is judged by a second, naive reading of the constraints."""
    rng, right, wrong = random.Random(1), 0, 0
    for scenario in _draw(task, level, 400):
        reference = _reference(task, scenario)
        edits = rng.sample(reference, len(reference))
        expected = _keeps_order([edit["op"] for edit in edits], scenario)
        assert (_codes(task, scenario, edits) == []) == expected
        right, wrong = right + (expected and edits != reference), wrong + (not expected)
    assert right >= 10
    assert wrong >= 10


def _keeps_order(ops: list[str], scenario: Any) -> bool:
    intents = [wish.intent for wish in scenario.wishes if wish.intent.op in ops]
    after = all(ops.index(i.op) > ops.index(i.after) for i in intents if i.after)
    first = all(ops[0] == i.op for i in intents if i.place == "first")
    last = all(ops[-1] == i.op for i in intents if i.place == "last")
    return after and first and last and ("export" not in ops or ops[-1] == "export")


def test_about_allows_five_either_way_and_no_more(task: ModuleType) -> None:
    tried = 0
    for scenario in _draw(task, "medium", 200):
        near = [wish.intent for wish in scenario.wishes if wish.intent.tolerance]
        for intent, shift in [(intent, shift) for intent in near for shift in (-6, -5, 5, 6)]:
            edits = _reference(task, scenario)
            moved = [{**e, "value": e["value"] + shift} if e["op"] == intent.op else e for e in edits]
            assert _codes(task, scenario, moved) == ([] if abs(shift) == 5 else ["wrong_value"])
            tried += 1
    assert tried >= 50


def test_a_change_counts_from_now_stops_at_the_limit_and_the_last_word_counts(task: ModuleType) -> None:
    wishes = [
        {"words": "last of all, make it a lot warmer", "intent": _shift("temperature", 40, place="last")},
        {"words": "make it a lot brighter", "intent": _shift("exposure", 40)},
        {"words": "remove the seagull", "intent": {"do": "set", "op": "remove_object", "value": "seagull"}},
        {"words": "actually a touch darker instead", "intent": _shift("exposure", -5)},
        {"words": "crop it square", "intent": {"do": "set", "op": "crop", "value": "1:1"}},
        {"words": "leave the framing alone", "intent": {"do": "leave", "value": "framing"}},
        {"words": "save a png", "intent": {"do": "set", "op": "export", "value": "png"}},
    ]
    scenario = task.Scenario.model_validate({"settings": {"temperature": 80, "exposure": -50}, "wishes": wishes})
    exposure, temperature = {"op": "exposure", "value": -55}, {"op": "temperature", "value": 100}
    export = {"op": "export", "value": "png"}
    assert _reference(task, scenario) == [exposure, temperature, export]
    assert _codes(task, scenario, [temperature, exposure, export]) == ["wrong_order"]
    assert _codes(task, scenario, [{**exposure, "value": -15}, temperature, export]) == ["wrong_value"]
    assert _codes(task, scenario, [{"op": "crop", "value": "1:1"}, exposure, temperature, export]) == ["left_alone"]


def _shift(op: str, by: int, **more: str) -> dict[str, Any]:
    return {"do": "shift", "op": op, "value": by, **more}


def test_check_never_raises_for_a_schema_valid_answer(task: ModuleType) -> None:
    rng = random.Random(5)
    scenarios = [*_draw(task, "hard", 100), task.Scenario.model_validate({"wishes": [{"words": "nicer, please"}]})]
    answers = [edit for scenario in scenarios[:100] for edit in _reference(task, scenario)]
    for scenario in scenarios:
        for count in (0, 1, 5, 16):
            assert isinstance(_codes(task, scenario, rng.sample(answers, count)), list)


@pytest.mark.parametrize("level", LEVELS)
def test_the_same_seed_gives_the_same_scenario_and_seeds_differ(task: ModuleType, level: str) -> None:
    first = [scenario.model_dump_json() for scenario in _draw(task, level, 300)]
    assert first == [scenario.model_dump_json() for scenario in _draw(_load(), level, 300)]
    assert len(set(first)) >= 299


def test_each_level_is_harder_than_the_one_before(task: ModuleType) -> None:
    drawn = {level: _draw(task, level, 200) for level in LEVELS}
    measures: list[Callable[[Any], float]] = [
        lambda scenario: len(task.solve(scenario)[1].edits),
        lambda scenario: len(scenario.wishes),
        lambda scenario: len(scenario.subjects),
        lambda scenario: sum(bool(wish.intent.said) for wish in scenario.wishes),
        lambda scenario: sum(bool(wish.intent.place or wish.intent.after) for wish in scenario.wishes),
        lambda scenario: sum(setting != 0 for setting in scenario.settings.values()),
    ]
    for measure in measures:
        easy, medium, hard = (mean(map(measure, drawn[level])) for level in LEVELS)
        assert easy < medium < hard


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("phrasing", PHRASINGS)
def test_every_phrasing_carries_every_fact_and_no_intent(
    task: ModuleType, templates: ImmutableSandboxedEnvironment, level: str, phrasing: str
) -> None:
    system = templates.get_template("system.j2").render(level=level, answer_schema={})
    for scenario in _draw(task, level, 60):
        text = templates.get_template(phrasing).render(scenario=scenario, level=level, answer_schema={})
        facts = [wish.words[1:] for wish in scenario.wishes] + [scenario.name, scenario.caption, scenario.orientation]
        facts += [f"{name} ({where})" for name, where in scenario.subjects.items()]
        facts += [f"{op} {scenario.now(op)}" for op in task.SLIDERS] + [f"{scenario.width} x {scenario.height}"]
        assert [fact for fact in facts if fact not in text] == []
        assert "intent" not in text
        assert "shift" not in text
        assert len(f"{system} {text}".split()) <= {"easy": 360, "medium": 400, "hard": 480}[level]


def test_the_system_turn_states_every_word_that_stands_for_a_value(
    task: ModuleType, templates: ImmutableSandboxedEnvironment
) -> None:
    system = templates.get_template("system.j2").render(level="hard", answer_schema={})
    stated = [f"{words} {size}" for words, size in task.BANK.scale.items()]
    stated += [f"{look} ({words})" for words, look in task.BANK.rows["filter"]["worded"].values.items()]
    stated += [f"{aspect} ({words})" for words, aspect in task.BANK.rows["crop"]["worded"].values.items()]
    stated += [f"{words} {size}" for words, size in task.BANK.rows["resize"]["worded"].values.items()]
    assert [text for text in stated + list(task.OPS) + list(task.PARTS) if text.lower() not in system.lower()] == []


def test_a_request_without_intents_is_checked_for_what_can_be_known(
    task: ModuleType, templates: ImmutableSandboxedEnvironment
) -> None:
    bare = task.Scenario.model_validate({"wishes": [{"words": "make it look nicer!"}]})
    for phrasing in PHRASINGS:
        text = templates.get_template(phrasing).render(scenario=bare, level="easy", answer_schema={})
        assert "ake it look nicer!" in text
        assert "None" not in text
    crop, export = {"op": "crop", "value": "1:1"}, {"op": "export", "value": "png"}
    assert _codes(task, bare, [crop, export]) == []
    assert _codes(task, bare, []) == ["no_edits"]
    assert _codes(task, bare, [export, crop]) == ["export_not_last"]
    assert _codes(task, bare, [crop, {**crop, "value": "4:3"}]) == ["duplicate_edit"]
    assert _codes(task, bare, [{"op": "remove_object", "value": "bench"}]) == ["unknown_target"]
    with pytest.raises(ValueError, match="intent on every wish"):
        task.solve(bare)


@pytest.mark.parametrize(
    "intent",
    [
        {"do": "set", "op": "crop", "value": "7:3"},
        {"do": "set", "op": "exposure", "value": 101},
        {"do": "set"},
        {"do": "shift", "op": "crop", "value": 5},
        {"do": "shift", "op": "exposure"},
        {"do": "leave", "value": "sound"},
        {"do": "leave", "op": "remove_object"},
    ],
)
def test_an_intent_that_makes_no_sense_is_refused(task: ModuleType, intent: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        task.Intent.model_validate(intent)


@pytest.mark.parametrize("level", LEVELS)
def test_a_scenario_survives_json(task: ModuleType, level: str) -> None:
    for scenario in _draw(task, level, 50):
        assert task.Scenario.model_validate_json(scenario.model_dump_json()) == scenario


def _parts(schema: Any) -> Iterator[dict[str, Any]]:
    if isinstance(schema, dict):
        yield schema
    for value in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        yield from _parts(value)


def test_the_answer_schema_is_closed_bounded_and_plain(task: ModuleType) -> None:
    schema = task.Answer.model_json_schema()
    for part in _parts(schema):
        kind = part.get("type")
        assert kind != "object" or part["additionalProperties"] is False
        assert kind != "array" or "maxItems" in part
        assert kind != "string" or {"maxLength", "enum", "const"} & set(part)
        assert kind != "integer" or "enum" in part or {"minimum", "maximum"} <= set(part)
        assert not {"oneOf", "discriminator"} & set(part)
    assert len(schema["properties"]["edits"]["items"]["anyOf"]) == 9


@pytest.mark.parametrize(
    ("edit", "kind"),
    [
        ({"op": "blur", "value": 5}, "union_tag_invalid"),
        ({"value": 5}, "union_tag_not_found"),
        ({"op": "exposure", "value": 101}, "less_than_equal"),
        ({"op": "sharpen", "value": -1}, "greater_than_equal"),
        ({"op": "exposure", "value": "10"}, "int_type"),
        ({"op": "crop", "value": "square"}, "literal_error"),
        ({"op": "crop", "value": "1:1", "target": "dog"}, "extra_forbidden"),
        ({"op": "export"}, "missing"),
        ({"op": "remove_object", "value": "x" * 41}, "string_too_long"),
    ],
)
def test_the_first_schema_error_names_the_fault(task: ModuleType, edit: dict[str, Any], kind: str) -> None:
    with pytest.raises(ValidationError) as caught:
        task.Answer.model_validate_json(json.dumps({"edits": [edit]}))
    assert caught.value.errors()[0]["type"] == kind


def _judge(task: ModuleType, line: dict[str, Any]) -> tuple[str, ...]:
    _, closed, answer_text = line["text"].partition("</think>")
    if not closed:
        return "rejected", "parse", "reasoning_not_closed"
    try:
        json.loads(answer_text)
    except ValueError:
        return "rejected", "parse", "invalid_json"
    try:
        answer = task.Answer.model_validate_json(answer_text.strip())
    except ValidationError as error:
        return "rejected", "schema", error.errors()[0]["type"]
    findings = task.check(task.sample(random.Random(line["seed"]), line["level"]), answer)
    return ("rejected", "check", findings[0].split(":")[0]) if findings else ("accepted",)


def test_the_golden_texts_come_out_as_stated(task: ModuleType) -> None:
    lines = [json.loads(line) for line in (PROMPTS / "golden.jsonl").read_text(encoding="utf-8").splitlines()]
    for line in lines:
        expected = tuple(line[key] for key in ("outcome", "stage", "reason") if key in line)
        assert _judge(task, line) == expected, line["case"]
    assert len({line["level"] for line in lines if line["outcome"] == "accepted"}) >= 2
    assert len({line["reason"] for line in lines if line.get("stage") == "check"}) >= 2
