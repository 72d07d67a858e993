"""Stories: a short story to a brief, in plain sentences: who, where, what turns, how long, for what reading age.

Trains keeping many small promises at once while writing. Code checks what code can: length, names, place and things,
that the turn comes in the middle, words to avoid, tense, person, sentences short enough for the reading age, nobody
with a name whom the brief does not know. Whether it is a story worth telling is the rubric's to judge.
"""

import re
from collections.abc import Iterator
from itertools import pairwise
from random import Random
from typing import Annotated

from pydantic import Field

from ._stories_telling import BANK, LEVELS, Element, Scenario, draw_brief, tell

__all__ = ["Answer", "Scenario", "check", "sample", "solve"]

Answer = Annotated[str, Field(min_length=1, max_length=16_000)]

_PAST = frozenset([*BANK.more_past, *(forms[0] for forms in BANK.verbs.values())])
_PRESENT = frozenset([*BANK.more_present, *(forms[1] for forms in BANK.verbs.values())])
# a lock, a call, a look: only behind these words they are verbs
_OWN = frozenset(forms[2] for forms in BANK.verbs.values())
# what typesetting changes means nothing here
_PLAIN = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u201e": '"', "\u2026": "."})


def _sentence_bound(age: int) -> int:
    """Words that a sentence may have for readers of this age, on average."""
    return age + 4


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]+(?:'[a-z]+)?", text)


def _sentences(text: str) -> list[str]:
    return [part for part in re.split(r"[.!?]+[\")]*\s+|\n+", text.strip()) if part.strip()]


def _holds(text: str, word: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(word)}", text, re.IGNORECASE) is not None


def check(scenario: Scenario, answer: str) -> list[str]:
    text = answer.translate(_PLAIN)
    return [
        *_content_findings(scenario, text),
        *_form_findings(scenario, text),
        *_voice_findings(scenario, re.sub(r'"[^"]*"', " ", text)),
        *_stranger_findings(scenario, text),
    ]


def _content_findings(s: Scenario, text: str) -> Iterator[str]:
    for name in s.characters:
        if not _holds(text, name):
            yield f"character_missing: {name} is not in the story"
    for kind, element in (("place", s.place), *(("thing", thing) for thing in s.things)):
        if not any(_holds(text, word) for word in element.words):
            yield f"{kind}_missing: {element.ask} is not in the story"
    yield from _turn_findings(s.turn, text)
    for word in s.avoid:
        if _holds(text, word):
            yield f"avoided_word: {word!r} is in the story"


def _turn_findings(turn: Element, text: str) -> Iterator[str]:
    places = [m.start() for word in turn.words for m in re.finditer(rf"(?<!\w){re.escape(word)}", text, re.IGNORECASE)]
    if not places:
        yield f"turn_missing: nothing of {turn.ask!r} is in the story"
        return
    total = max(1, len(text.split()))
    shares = [len(text[:place].split()) / total for place in places]
    if not any(0.2 <= share <= 0.85 for share in shares):
        yield f"turn_place: {turn.ask!r} comes after {min(shares):.0%} of the words, expected 20 to 85%"


def _form_findings(s: Scenario, text: str) -> Iterator[str]:
    count = len(text.split())
    if not s.min_words <= count <= s.max_words:
        yield f"length: got {count} words, allowed {s.min_words} to {s.max_words}"
    sentences = _sentences(text)
    mean = sum(len(sentence.split()) for sentence in sentences) / max(1, len(sentences))
    if mean > _sentence_bound(s.reading_age):
        yield f"long_sentences: {mean:.1f} words on average, allowed {_sentence_bound(s.reading_age)}"
    repeated = [one for one, two in pairwise(sentences) if one == two]
    if repeated:
        yield f"repetition: {repeated[0][:60]!r} is said twice in a row"
    if not text.strip().endswith((".", "!", "?", '."', '!"', '?"')):
        yield "no_end: the story breaks off in a sentence"


def _voice_findings(s: Scenario, narrated: str) -> Iterator[str]:
    words = [word.casefold() for word in _words(narrated)]
    past = sum(word in _PAST for word in words)
    present = sum(word in _PRESENT for word in words)
    present += sum(word in _OWN and before in ("i", "we", "they", "and") for before, word in pairwise(words))
    told, other = (past, present) if s.tense == "past" else (present, past)
    # one slip in six may be a saying, or what was before
    if told < 3 or other * 5 > told:
        yield f"wrong_tense: {told} verbs in the {s.tense} tense and {other} in the other"
    own = sum(word == "i" or word.startswith("i'") for word in words)
    if s.person == "first" and own < 3:
        yield f"wrong_person: told by I, which comes {own} times outside of speech"
    if s.person == "third" and own:
        yield f"wrong_person: told of {s.characters[0]}, and I comes {own} times outside of speech"


def _stranger_findings(s: Scenario, text: str) -> Iterator[str]:
    """Names of people whom the brief does not know: capitalised words inside sentences, at least twice."""
    known = {word.casefold() for name in (*s.characters, s.place.ask, s.turn.ask) for word in _words(name)}
    known |= {word.casefold() for thing in s.things for word in _words(thing.ask)}
    known |= {word.casefold() for word in BANK.no_names}
    inside = re.findall(r"(?<=[a-z,;] )([A-Z][a-z]{2,})\b", text)
    strangers = sorted({word for word in inside if word.casefold() not in known and inside.count(word) > 1})
    if strangers:
        yield f"stranger: {strangers[0]} is not in the brief"


def sample(rng: Random, level: str) -> Scenario:
    return draw_brief(rng, LEVELS[level])


def solve(scenario: Scenario) -> tuple[str, str]:
    s, text = scenario, " ".join(tell(scenario))
    plan = [f"{s.tense.capitalize()} tense, {'told by I' if s.person == 'first' else f'told of {s.characters[0]}'}."]
    plan.append(f"{s.min_words} to {s.max_words} words, sentences of at most {_sentence_bound(s.reading_age)}.")
    plan.append(f"Begin at {s.place.ask} with {' and '.join(s.characters)}.")
    plan += [f"Bring in {' and '.join(thing.ask for thing in s.things)}."] if s.things else []
    plan.append(f"In the middle: {s.turn.ask}. Then an idea, then it is mended, then home.")
    plan += [f"Not: {', '.join(s.avoid)}."] if s.avoid else []
    return " ".join(plan), text
