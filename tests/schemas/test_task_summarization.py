"""The summarization task: its references are right, its check compares by meaning, its prompts carry every fact."""

import json
import random
from datetime import date, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from jinja2 import FileSystemLoader, StrictUndefined
from jinja2.sandbox import SandboxedEnvironment
from pydantic import ValidationError

from factory.tasks.modules import load_module

ROOT = Path(__file__).resolve().parent.parent.parent
PROMPTS = ROOT / "prompts" / "summarization"
LEVELS = ("easy", "medium", "hard")
PHRASINGS = ("user.j2", "user_chat.j2", "user_terse.j2")
LETTER = (
    "From: Priya Patel\nHi all, the board met on Tuesday, 4 March 2025 at 14:30 in Room 12B. We agreed to "
    "pay $1,250.00 to O'Brien & Sons for the boiler; the two old quotes (about 1.2 million yen and €980) "
    "are off the table. Dr. José Núñez will chair the next session on March 18th, which begins at 9 and "
    "ends at 11 am. There are twenty-four members, and a third of them voted by post. You can call "
    "555-0199 or write to the Department of Housing. Please answer by 10/03/2025. The Acme-X9 pump, model"
    " KD-4821, has a 5% discount and was made in Germany in 1998."
)


@pytest.fixture(scope="module")
def task() -> ModuleType:
    return load_module(ROOT / "schemas" / "summarization.py").module


@pytest.fixture(scope="module")
def samples(task: ModuleType) -> dict[str, list[Any]]:
    return {level: [task.sample(random.Random(seed), level) for seed in range(300)] for level in LEVELS}


def render(name: str, scenario: Any, level: str = "easy") -> str:
    env = SandboxedEnvironment(
        loader=FileSystemLoader(PROMPTS), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return env.get_template(name).render(scenario=scenario, level=level, answer_schema={})


def codes(findings: list[str]) -> list[str]:
    return [finding.partition(":")[0] for finding in findings]


def judge(task: ModuleType, document: str, *points: str, **changes: Any) -> list[str]:
    """The codes for a summary of a document that came with nothing else."""
    key_facts = {"date": None, "amount": None, "people": [], "urgency": "low"} | changes
    answer = task.Answer(title="Summary", points=list(points), key_facts=key_facts)
    return codes(task.check(task.Scenario(document=document, style="bullets"), answer))


def test_every_reference_answer_passes_its_check(task: ModuleType, samples: dict[str, list[Any]]) -> None:
    for level in LEVELS:
        for scenario in samples[level]:
            reasoning, answer = task.solve(scenario)
            assert task.check(scenario, answer) == []
            assert 40 <= len(reasoning.split()) <= 200
            assert task.Answer.model_validate_json(answer.model_dump_json()) == answer


def test_sampling_is_deterministic_and_varied(task: ModuleType, samples: dict[str, list[Any]]) -> None:
    for level in LEVELS:
        assert [task.sample(random.Random(seed), level) for seed in range(20)] == samples[level][:20]
        assert len({scenario.document for scenario in samples[level]}) == 300
        assert len({scenario.kind for scenario in samples[level]}) >= 6


def test_levels_grow_in_length_facts_and_replaced_values(samples: dict[str, list[Any]]) -> None:
    bounds = {"easy": (60, 90), "medium": (120, 180), "hard": (220, 320)}
    measured = []
    for level in LEVELS:
        sizes = [len(scenario.document.split()) for scenario in samples[level]]
        assert bounds[level][0] <= min(sizes) <= max(sizes) <= bounds[level][1]
        facts = [len(scenario.facts) for scenario in samples[level]]
        replaced = [sum(bool(fact.replaced) for fact in scenario.facts) for scenario in samples[level]]
        measured.append((sum(sizes), sum(facts), sum(replaced)))
    assert all(a < b < c for a, b, c in zip(*measured, strict=True))


def test_a_scenario_survives_json(task: ModuleType, samples: dict[str, list[Any]]) -> None:
    for level in LEVELS:
        for scenario in samples[level][:50]:
            assert task.Scenario.model_validate_json(scenario.model_dump_json()) == scenario


def with_point(answer: Any, text: str, at: int = 0) -> dict[str, Any]:
    points = list(answer.points)
    points[at] = text
    return {"points": points}


def mutate(code: str, scenario: Any, answer: Any) -> dict[str, Any] | None:
    """Changed fields that make the answer wrong in one way, or None where the scenario has no room for it."""
    facts, first = answer.key_facts, answer.points[0]
    old = next((fact.replaced[0] for fact in scenario.facts if fact.replaced), None)
    if code == "superseded_value":
        return {"title": f"Not {old} any more"} if old else None
    if code == "people_missing":
        return {"key_facts": facts.model_copy(update={"people": []})} if facts.people else None
    if code == "people_extra":
        extra = next((person for person in scenario.people if person not in facts.people), None)
        return {"key_facts": facts.model_copy(update={"people": [*facts.people, extra]})} if extra else None
    if code == "copied_run":
        start = scenario.document.split().index("Please") if "Please" in scenario.document else 40
        words = scenario.document.split()[start - scenario.max_copied - 1 : start]
        return with_point(answer, f"{first.rstrip('.')} {' '.join(words)} ends.")
    changes: dict[str, dict[str, Any]] = {
        "point_count": {"points": [*answer.points, "One more point is here."]},
        "too_many_words": with_point(answer, first.rstrip(".") + " and so on" * 30 + "."),
        "title_too_long": {"title": "so " * 11},
        "missing_fact": {"title": "News"} | with_point(answer, "Nothing of note is known."),
        "invented_number": {"title": "For 777 people"},
        "invented_name": {"title": "A matter for Zebedee"},
        "wrong_date": {"key_facts": facts.model_copy(update={"date": (facts.date or date(2025, 1, 1)) + timedelta(1)})},
        "wrong_amount": {"key_facts": facts.model_copy(update={"amount": None if facts.amount else "2025"})},
        "wrong_urgency": {
            "key_facts": facts.model_copy(update={"urgency": "low" if facts.urgency == "high" else "high"})
        },
    }
    return changes[code]


ALONE = {"superseded_value", "people_missing", "people_extra", "point_count", "title_too_long", "invented_name",
         "invented_number", "wrong_date", "wrong_amount", "wrong_urgency"}  # fmt: skip

SIDE = {"point_count": {"too_many_words"}, "superseded_value": {"people_missing"}}


@pytest.mark.parametrize("code", [*sorted(ALONE), "too_many_words", "missing_fact", "copied_run"])
def test_a_wrong_answer_gets_its_code(task: ModuleType, samples: dict[str, list[Any]], code: str) -> None:
    tried = 0
    for scenario in [scenario for level in LEVELS for scenario in samples[level][:60]]:
        answer = task.solve(scenario)[1]
        changes = mutate(code, scenario, answer)
        if changes is None:
            continue
        tried += 1
        found = codes(task.check(scenario, answer.model_copy(update=changes)))
        assert code in found
        if code in ALONE:
            assert set(found) <= {code, *SIDE.get(code, ())}
    assert tried >= 50


def test_another_honest_wording_is_accepted(task: ModuleType, samples: dict[str, list[Any]]) -> None:
    tried = 0
    for scenario in samples["easy"][:100] + samples["medium"][:100]:
        answer = task.solve(scenario)[1]
        day = answer.key_facts.date
        plain = f"{day.day} {day:%B} {day.year}"
        points = [point.replace(plain, f"{day:%B} {day.day}th").replace("€", "EUR ") for point in answer.points]
        other = {"points": points, "title": f"{scenario.event.title()}: The Latest"}
        findings = task.check(scenario, answer.model_copy(update=other))
        assert findings == []
        tried += points != answer.points
    assert tried >= 150


HONEST = [
    "The board agreed to pay $1,250 to O'Brien & Sons for the boiler on 4 March.",
    "Priya Patel says the next session is on 18 March 2025 from 9 am to 11 am.",
    "Jose Nunez chairs the session starting at 9:00 on March 18.",
    "On 4 Mar. at 2:30 pm the board met in Room 12B.",
    "At 2.30 p.m. the board, which has 24 members, met.",
    "One member asked about both quotes, and nobody minded the second.",
    "Two quotes, worth 1,200,000 yen and €980.00, were dropped.",
    "Answers are due on 2025-03-10, that is March 10, 2025.",
    "The German pump Acme-X9 (KD-4821) is five percent cheaper.",
    "Dr. Núñez's session runs for members only, and Mr. O'Brien's firm gets the $1250.",
    "I'm told that the Board's decision stands; it'll pay on Friday, so answer ASAP.",
    "Twenty four members voted, a third of them by post.",
    'All settled: the quotes are off. "The boiler" comes next.',
    "The board met on 4 and 18 March.",
    "Session March 18, 9-11 am; call 555-0199 or the Housing Department.",
]


@pytest.mark.parametrize("summary", HONEST)
def test_an_honest_paraphrase_has_no_finding(task: ModuleType, summary: str) -> None:
    assert judge(task, LETTER, summary) == []


@pytest.mark.parametrize(
    ("summary", "code"),
    [
        ("Ask Bob Miller to pay.", "invented_name"),
        ("Jennifer chairs the session.", "invented_name"),
        ("Write to the Ministry.", "invented_name"),
        ("They met with Dr. Smith.", "invented_name"),
        ("The board will pay $1,520.", "invented_number"),
        ("The board has thirty members.", "invented_number"),
        ("They met at 3:30 pm.", "invented_number"),
        ("The session is on 19 March.", "invented_number"),
        ("The boiler costs £1,250.", "invented_number"),
    ],
)
def test_an_invented_detail_is_found(task: ModuleType, summary: str, code: str) -> None:
    assert set(judge(task, LETTER, summary)) == {code}


FOREIGN = [
    (
        "Sehr geehrte Damen und Herren, das Wasser wird am 12. März 2025 von 8.30 bis 16 Uhr abgestellt. Die "
        "Kosten von dreihundertzwanzig Euro trägt Frau Müller. Insgesamt 1,5 Millionen Liter, 1.250,00 € "
        "Kaution. Herr Schmidt hat die Nummer 030 1234567.",
        "Am 12.03.2025 ist das Wasser von 08:30 bis 16:00 Uhr weg, Kosten 320 Euro, Kaution 1250 €, 1.500.000 Liter, "
        "Telefon 0301234567 bei Schmidts Büro.",
    ),
    (
        "Chers locataires, le loyer passe à 1 250,50 euros à partir du premier avril 2025. La réunion aura lieu le "
        "quatorze mai chez Mme Lefèvre. Trois cents personnes sont attendues.",
        "Loyer de 1250,50 € dès le 1er avril 2025 ; réunion le 14 mai chez Madame Lefèvre, 300 personnes.",
    ),
    (
        "Drodzy mieszkańcy, we wtorek nie będzie wody. Koszt to 250 zł. Kontakt: pani Nowak.",
        "Brak wody, kontakt z panią Nowakową.",
    ),
    (
        "各位住户,因水管维修,定于二〇二五年三月十二日停水。费用三百二十元,联系人王伟,电话13800138000。",
        "2025年3月12日停水,费用320元,电话13800138000。",
    ),
    ("سيتم تسليم الأريكة يوم ١٢ مارس ٢٠٢٥. المبلغ المستحق ٤٥٦٧ ريال.", "التسليم يوم 12 مارس 2025 والمبلغ 4567 ريال."),
]


@pytest.mark.parametrize(("document", "summary"), FOREIGN)
def test_documents_in_other_languages_are_not_misjudged(task: ModuleType, document: str, summary: str) -> None:
    assert judge(task, document, summary, people=["Max Mustermann"]) == []
    assert judge(task, document * 100, summary) == []
    assert judge(task, document, "987654321") == ["invented_number"]


def test_a_user_scenario_with_only_a_document_renders_and_is_checked(task: ModuleType) -> None:
    scenario = task.Scenario(document=LETTER)
    for name in ("system.j2", *PHRASINGS):
        text = render(name, scenario)
        assert ("O'Brien & Sons" in text) == (name != "system.j2")
        assert "None" not in text
    key_facts = {"date": "2025-03-18", "amount": "$1,250", "people": ["Priya Patel"], "urgency": "normal"}
    points = ["Priya Patel reports that the boiler is paid for."]
    good = {"title": "Board News", "points": points, "key_facts": key_facts}
    assert task.check(scenario, task.Answer(**good)) == []
    assert codes(task.check(scenario, task.Answer(**good | {"points": ["Priya Patel wrote. All good"]}))) == [
        "not_one_sentence"
    ]
    strange = good | {"key_facts": key_facts | {"people": ["Bob Ross"]}}
    assert codes(task.check(scenario, task.Answer(**strange))) == ["invented_name"]


def test_the_check_survives_any_text(task: ModuleType, samples: dict[str, list[Any]]) -> None:
    rng = random.Random(1)
    alphabet = "aZ 0919:./-,'²½٣三\u0301😀\n$€March two hundred k am"
    for scenario in [*samples["hard"][:20], *(task.Scenario(document=text) for text in (" ", "²", "٣", "9" * 5000))]:
        for _ in range(10):
            texts = ["".join(rng.choices(alphabet, k=rng.randint(1, 24))) for _ in range(4)]
            facts = {"date": None, "amount": texts[2], "people": [texts[3]], "urgency": "low"}
            answer = task.Answer(title=texts[0], points=texts[1:], key_facts=facts)
            assert isinstance(task.check(scenario, answer), list)


@pytest.mark.parametrize("name", PHRASINGS)
def test_every_phrasing_carries_every_fact(samples: dict[str, list[Any]], name: str) -> None:
    for level, most in zip(LEVELS, (420, 560, 700), strict=True):
        for scenario in samples[level][:20]:
            text = render(name, scenario, level)
            for shown in (scenario.document, scenario.event, scenario.amount_role, scenario.length):
                assert shown in text
            assert all(fact.ask in text for fact in scenario.facts)
            assert str(scenario.max_words) in text
            assert str(scenario.max_point_words) in text
            system = render("system.j2", scenario, level)
            assert f"at most {scenario.max_copied} words in a row" in system
            assert len(f"{system} {text}".split()) <= most


def test_the_answer_schema_is_closed_and_bounded(task: ModuleType) -> None:
    def walk(node: Any) -> None:
        if isinstance(node, dict):
            if node.get("type") == "object":
                assert node["additionalProperties"] is False
            if node.get("type") == "array":
                assert "maxItems" in node
            if node.get("type") == "string":
                assert {"maxLength", "enum", "format"} & set(node)
            for child in node.values():
                walk(child)
        elif isinstance(node, list):
            for child in node:
                walk(child)

    walk(task.Answer.model_json_schema())


def outcome(task: ModuleType, line: dict[str, Any]) -> tuple[str, str, str]:
    _, closed, text = line["text"].partition("</think>")
    if not closed:
        return ("rejected", "parse", "reasoning_not_closed")
    try:
        answer = task.Answer.model_validate_json(text.strip())
    except ValidationError as error:
        kind = error.errors()[0]["type"]
        return ("rejected", "parse", "invalid_json") if kind == "json_invalid" else ("rejected", "schema", kind)
    found = codes(task.check(task.sample(random.Random(line["seed"]), line["level"]), answer))
    return ("rejected", "check", found[0]) if found else ("accepted", "", "")


def test_golden_lines_come_out_as_stated(task: ModuleType) -> None:
    lines = [json.loads(line) for line in (PROMPTS / "golden.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(lines) >= 6
    for line in lines:
        assert outcome(task, line) == (line["outcome"], line.get("stage", ""), line.get("reason", "")), line["case"]
