"""Assistant actions: an utterance becomes tool calls in order, a question back, or the word that it cannot be done.

Trains choosing tools and arguments, resolving what a user refers to (the second one on the screen, the last message,
the same time tomorrow, a first name), asking for what is missing rather than guessing it, and calling nothing where no
tool serves. `check` compares calls with what the utterance was made from, in its order.
"""

import re
from collections.abc import Iterator
from random import Random

from factory.tasks.replies import Reply, tool_name

from ._assistant_actions_speech import LEVELS, draw_utterance
from ._assistant_actions_tools import TOOLS, AddReminder, Expected, Scenario, SendMessage, Tool

__all__ = ["TOOLS", "Answer", "Scenario", "check", "sample", "solve"]

Answer = Reply
_MAX_WORDS = 30
_DENIAL = re.compile(r"\b(not|no|cannot|can't|don't|unable)\b", re.IGNORECASE)


def _plain(value: object) -> object:
    """A text as it counts: case, quotes and the mark at its end mean nothing."""
    if not isinstance(value, str):
        return value
    return re.sub(r"\s+", " ", value.replace("\u2019", "'").strip(" \"'.!\u201c\u201d")).casefold()


def check(scenario: Scenario, answer: Reply) -> list[str]:
    findings = []
    if len(answer.text.split()) > _MAX_WORDS:
        findings.append(f"too_long: got {len(answer.text.split())} words, allowed {_MAX_WORDS}")
    if not answer.text.strip() and not answer.calls:
        findings.append("empty: neither a call nor a word")
    if scenario.expected is None:
        return [*findings, *_situation_findings(scenario, answer)]
    return [*_expected_findings(scenario.expected, answer), *findings]


def _expected_findings(expected: Expected, answer: Reply) -> Iterator[str]:
    if expected.ask or expected.unserved:
        if answer.calls:
            code = "guessed" if expected.ask else "call_of_nothing"
            yield f"{code}: called {tool_name(type(answer.calls[0]))}, expected {expected.ask or 'to hear it cannot'}"
        elif expected.ask and not _asks(expected, answer.text):
            yield f"not_asked: the reply must ask {expected.ask}"
        elif expected.unserved and not _DENIAL.search(answer.text.replace("\u2019", "'")):
            yield f"unserved_unsaid: no tool does that, and the reply must say so: {expected.unserved}"
        return
    wanted = [call.build() for call in expected.calls]
    names, got = [type(call) for call in wanted], [type(call) for call in answer.calls]
    for tool in names:
        if tool not in got:
            yield f"call_missing: {tool_name(tool)}"
    for called in got:
        if called not in names:
            yield f"call_needless: {tool_name(called)}"
    if sorted(map(tool_name, got)) != sorted(map(tool_name, names)):
        if len(got) > len(names) and set(got) == set(names):
            yield f"call_needless: {len(got)} calls, expected {len(names)}"
        return
    if got != names:
        yield f"wrong_order: {', '.join(map(tool_name, got))}, expected {', '.join(map(tool_name, names))}"
    for call, right in zip(answer.calls, sorted(wanted, key=lambda call: got.index(type(call))), strict=True):
        yield from _argument_findings(call, right)


def _asks(expected: Expected, text: str) -> bool:
    return "?" in text and any(re.search(rf"\b{re.escape(w)}", text, re.IGNORECASE) for w in expected.ask_words)


def _argument_findings(call: object, right: Tool) -> Iterator[str]:
    for name in type(right).model_fields:
        got, wanted = getattr(call, name), getattr(right, name)
        if _plain(got) != _plain(wanted):
            yield f"wrong_argument: {tool_name(type(right))}.{name} is {got!r}, expected {wanted!r}"


def _situation_findings(s: Scenario, answer: Reply) -> Iterator[str]:
    """What can be said of the calls for an utterance whose right ones nobody has told."""
    for call in answer.calls:
        if isinstance(call, SendMessage) and s.contacts and call.to not in s.contacts:
            yield f"unknown_contact: {call.to!r} is not among the contacts"
        if isinstance(call, AddReminder) and call.at <= f"{s.now:%Y-%m-%dT%H:%M}":
            yield f"past_reminder: {call.at} is not after {s.now:%Y-%m-%dT%H:%M}"


def sample(rng: Random, level: str) -> Scenario:
    # levels share much of what is drawn: without its name one seed would give them the same scenario
    return draw_utterance(Random(f"{level} {rng.getrandbits(64)}"), LEVELS[level])


def solve(scenario: Scenario) -> tuple[str, Reply]:
    expected = scenario.expected
    if expected is None:
        raise ValueError("expected: an utterance of one's own has no reference answer")
    told = " ".join(expected.steps)
    if expected.ask:
        return f"{told} Ask, call nothing.", Reply(text=f"Can you tell me {expected.ask}?")
    if expected.unserved:
        return f"{told} Say so, call nothing.", Reply(text="I can't do that here.")
    calls = [call.build() for call in expected.calls]
    return f"{told} Call {', '.join(tool_name(type(call)) for call in calls)}.", Reply(calls=calls)
