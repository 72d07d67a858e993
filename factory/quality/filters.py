"""Row filters: small functions that look at one accepted row and name what is wrong with it.

Each takes a Record and returns findings, `code: detail`; none means that the row passes. docs/filters.md names all.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from typing import Any

import numpy as np

from factory.errors import JobError, redact
from factory.job.data import PersonalKind
from factory.job.gates import FiltersConfig, LengthConfig, StyleConfig
from factory.quality.contamination import Index
from factory.quality.validate import MAX_FINDING, finding_code
from factory.records import Prompt, Record, Rejection
from factory.signals import Array
from factory.texts.personal import find_personal, resolve_kinds
from factory.texts.refusals import find_refusal
from factory.texts.style import find_style
from factory.texts.texts import every_text

RowFilter = Callable[[Record], list[str]]
RowFilters = tuple[RowFilter, ...]

LEAST_LETTERS = 30  # of lower-case words; in a shorter text no language can be told with certainty
PIECE_LETTERS = 200  # a text is judged in pieces, so that a sentence in another language shows in a long one
MOST_DOUBT = 0.005  # a piece is foreign where all allowed languages together are less probable than this
UNSPACED_WEIGHT = 3  # letters of an alphabet that one letter of a script without case is worth
LONGEST_PERIOD, LEAST_REPEATS, LEAST_REPEATED = 64, 4, 64  # tokens of a loop; how often; tokens in all
RUN, LEAST_TOKENS, MOST_SHARE = 12, 256, 0.6  # copied runs of so many tokens may not make up more of a text
REPLY_FIELDS = ["content", "tool_calls.*.arguments"]  # of a reply what a style speaks of
EDGE = 300  # characters at each end of the reasoning in which a refusal counts


def open_filters(config: FiltersConfig, style: StyleConfig | None, index: Index | None) -> RowFilters:
    """The filters that a job asks for, in the order in which they object, for one task with its style.

    `index` is the job's, from `contamination.open_index`. Raises JobError for a language that cannot be told.
    """
    kinds = resolve_kinds(config.pii)
    filters: list[RowFilter | None] = [
        partial(find_length, config.length) if config.length else None,
        find_repetition if config.repetition else None,
        partial(find_language, _require_known(config.language)) if config.language else None,
        find_declining if config.refusals else None,
        partial(find_pii, kinds) if kinds else None,
        partial(find_off_style, style) if config.style and style else None,
        partial(find_contamination, index) if index else None,
    ]
    return tuple(one for one in filters if one is not None)


def apply(filters: RowFilters, record: Record) -> Record | Rejection:
    """The record, or its rejection with the findings of all filters that object; the first gives the reason."""
    findings: list[str] = []
    try:
        for one in filters:
            findings += one(record)
    except Exception as error:  # of this row alone: the run goes on
        told = redact(f"filter_raised: {type(error).__name__}: {' '.join(str(error).split())}")
        return record.reject("filter", "filter_raised", (*record.findings, *findings, told[:MAX_FINDING]), "error")
    if not findings:
        return record
    return record.reject("filter", finding_code(findings[0]), (*record.findings, *findings))


def find_length(bounds: LengthConfig, record: Record) -> list[str]:
    """`too_short`, `too_long`: tokens of the completion, reasoning included."""
    tokens = len(record.generation.completion_token_ids)
    if tokens < bounds.min_tokens:
        return [f"too_short: {tokens} tokens, at least {bounds.min_tokens}"]
    if bounds.max_tokens is not None and tokens > bounds.max_tokens:
        return [f"too_long: {tokens} tokens, at most {bounds.max_tokens}"]
    return []


def find_repetition(record: Record) -> list[str]:
    """`repetition`: the same tokens again and again, next to each other or making up most of the completion."""
    ids_T = record.generation.completion_token_ids
    loop = find_loop(ids_T)
    if loop:
        period, repeats, start = loop
        return [f"repetition: {period} tokens stand {repeats} times in a row from token {start}"]
    share = repeated_share(ids_T)
    told = f"repetition: runs of {RUN} tokens that stand there again and again make up {share:.0%}"
    return [told] if share > MOST_SHARE else []


def find_loop(ids_T: Array) -> tuple[int, int, int] | None:
    """Period, repeats and start of the first consecutive repetition that is long enough, the shortest period first."""
    for period in range(1, min(LONGEST_PERIOD, len(ids_T) // LEAST_REPEATS) + 1):
        least = max(LEAST_REPEATED, LEAST_REPEATS * period) - period
        same_T = ids_T[period:] == ids_T[:-period]
        # most periods end here: the run lengths, which cost more, are counted for the few that may have one
        if np.count_nonzero(same_T) < least:
            continue
        breaks = np.concatenate([[-1], np.flatnonzero(~same_T), [len(same_T)]])
        lengths = np.diff(breaks) - 1
        longest = int(lengths.argmax())
        if lengths[longest] >= least:
            return period, int(lengths[longest] + period) // period, int(breaks[longest]) + 1
    return None


def repeated_share(ids_T: Array) -> float:
    """Share of the tokens that stand in runs of RUN tokens with many copies: LEAST_REPEATS, in a long text more."""
    if len(ids_T) < LEAST_TOKENS:
        return 0.0
    # ids are small and close together; mixed first, two runs of them hardly ever meet in one 64-bit number
    mixed_T = (ids_T.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    mixed_T ^= mixed_T >> np.uint64(29)
    hashes = np.zeros(len(ids_T) - RUN + 1, np.uint64)
    for offset in range(RUN):
        hashes = hashes * np.uint64(0xBF58476D1CE4E5B9) + mixed_T[offset : offset + len(hashes)]
    _, which, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    # runs overlap: +1 where one begins and -1 where it ends, so that each token is counted once
    begins_T = np.zeros(len(ids_T) + 1, np.int64)
    places = np.flatnonzero(counts[which] >= max(LEAST_REPEATS, len(ids_T) // LEAST_TOKENS))
    np.add.at(begins_T, places, 1)
    np.add.at(begins_T, places + RUN, -1)
    return float(np.count_nonzero(np.cumsum(begins_T)[:-1])) / len(ids_T)


def find_language(allowed: tuple[str, ...], record: Record) -> list[str]:
    """`wrong_language`: a piece of the answer or of the reasoning is surely in none of the allowed languages."""
    for name, texts in (("answer", answer_texts(record)), ("reasoning", [record.generation.reasoning or ""])):
        for piece in _pieces(texts):
            ranked = _identifier().rank(piece)
            if sum(float(p) for language, p in ranked if language in allowed) < MOST_DOUBT:
                return [f'wrong_language: the {name} has {ranked[0][0]}: "{piece[:60]}"']
    return []


def _pieces(texts: Iterable[str]) -> Iterator[str]:
    """Words that tell a language, PIECE_LETTERS at a time; names (capitals), codes, numbers and addresses tell none."""
    words: list[str] = []
    letters = 0
    for word in (word for text in texts if _is_prose(text) for word in _plain_words(text)):
        words.append(word)
        letters += len(word) * (UNSPACED_WEIGHT if word[0].lower() == word[0].upper() else 1)
        if letters >= PIECE_LETTERS:
            yield " ".join(words)
            words, letters = [], 0
    if letters >= LEAST_LETTERS:
        yield " ".join(words)


def _is_prose(text: str) -> bool:
    return len(text.split(maxsplit=2)) > 2 or not text.isascii()


def _plain_words(text: str) -> Iterator[str]:
    for token in re.split(r"[\s,;:!?()\"\u3000-\u303f\uff01-\uff1f]+", text):
        word = token.strip(".'*\u2018\u2019\u201c\u201d\u00ab\u00bb-\u2013\u2014")
        if word and not word[0].isupper() and word.replace("'", "").replace("\u2019", "").replace("-", "").isalpha():
            yield word


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def _require_known(languages: list[str]) -> tuple[str, ...]:
    known = sorted({language for language, _ in _identifier().rank("") if len(language) == 2})
    unknown = [language for language in languages if language not in known]
    if unknown:
        raise JobError(f"filters.language: {', '.join(unknown)} cannot be told (known: {', '.join(known)})")
    return tuple(languages)


def find_declining(record: Record) -> list[str]:
    """`refusal`: the teacher declines, in a text of the answer or where its reasoning begins or ends."""
    reasoning = record.generation.reasoning or ""
    edges = [reasoning] if len(reasoning) <= 2 * EDGE else [reasoning[:EDGE], reasoning[-EDGE:]]
    for name, texts in (("answer", answer_texts(record)), ("reasoning", edges)):
        for said in filter(None, map(find_refusal, texts)):
            return [f'refusal: the {name} says "{said}"']
    return []


def find_pii(kinds: tuple[PersonalKind, ...], record: Record) -> list[str]:
    """`pii`: personal data in the answer or the reasoning; told by kind, never quoted."""
    told = []
    for name, text in (("answer", "\n".join(answer_texts(record))), ("reasoning", record.generation.reasoning or "")):
        counts = Counter(kind for kind, _, _ in find_personal(text, kinds))
        told += [f"{count} {kind} in the {name}" for kind, count in counts.items()]
    return [f"pii: {', '.join(told)}"] if told else []


def find_off_style(style: StyleConfig, record: Record) -> list[str]:
    """`style_...`: see factory/texts/style.py."""
    value = record.prompt.value(record.answer)
    if record.prompt.form == "calls" and isinstance(value, dict):
        # of a reply that only calls nothing is read aloud, and names of tools are no words of the teacher's
        value = value if value["content"] else {"tool_calls": value["tool_calls"]}
        style = style if style.fields else style.model_copy(update={"fields": REPLY_FIELDS})
    return find_style(style, value)


def find_contamination(index: Index, record: Record) -> list[str]:
    """`contaminated`: the answer or the reasoning share words with an evaluation set."""
    parts = (("answer", list(answer_texts(record))), ("reasoning", [record.generation.reasoning or ""]))
    return [told for name, texts in parts for told in _shared(index, name, texts)][:1]


def find_contaminated_prompt(index: Index, prompt: Prompt) -> list[str]:
    """`contaminated`: the scenario's values share words with an evaluation set. No answer is needed to see that."""
    return _shared(index, "scenario", [text for _, text in every_text(json.loads(prompt.scenario))])


def _shared(index: Index, name: str, texts: list[str]) -> list[str]:
    found = index.find(texts)
    return [f"contaminated: the {name} shares with {found}"] if found else []


def answer_texts(record: Record) -> Iterator[str]:
    """All strings of the answer; a free text is one."""
    return (text for _, text in every_text(record.prompt.value(record.answer)))
