"""Comparing by meaning: what a text says, whichever way it is written, and what it says that its document does not.

`canon` writes dates as dayxMMDD, times as clockxHHMM and numbers as plain digits, in summaries, forms and documents
alike. So two ways to write one value are one token, and equality of tokens decides.
"""

import re
import unicodedata
from functools import lru_cache

from faker.providers.person.en_US import Provider as EnglishNames

from factory.tasks.words import WordBank, Words, read_words


class Bank(WordBank):
    months: Words
    weekdays: Words
    units: Words
    tens: Words
    common: Words
    names: Words


BANK = read_words(__file__, Bank)
MONTHS, UNITS, TENS = BANK.months, BANK.units, BANK.tens
_CALENDAR = {form.lower() for name in MONTHS + BANK.weekdays for form in (name, name[:3])} | {"mr", "mrs", "ms"}
_COMMON = frozenset(BANK.common)
WORD_NAMES = frozenset(BANK.names)
# short first names are too often other words, as Art or Bill, to be told where a sentence starts
_FIRST_NAMES = {name.lower() for name in EnglishNames.first_names if len(name) > 4} - WORD_NAMES

# "may" is a verb as well, so that month alone must begin with a capital
_MONTH = (
    r"(?:(?i:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?"
    r"|nov(?:ember)?|dec(?:ember)?)|May|MAY)\b\.?"
)
_DAY = r"\d\d?(?:st|nd|rd|th)?"
# "1 to 3 May" is two dates: the first one takes its month from the second
_RANGE = re.compile(rf"\b({_DAY})\s*(?:-|to|until)\s*(?={_DAY}(?: of)?\s+({_MONTH}))")
_DATE = re.compile(
    r"\b(?P<y0>\d{4})-(?P<m0>\d\d)-(?P<d0>\d\d)(?!\d)T?"
    rf"|\b(?P<d1>{_DAY})(?: of)?[\s-]+(?P<m1>{_MONTH})(?:,?\s+(?P<y1>\d{{4}}))?"
    rf"|\b(?P<m2>{_MONTH})\s+(?:the )?(?P<d2>{_DAY})\b(?!:)(?:,?\s+(?P<y2>\d{{4}}))?"
)
_NUMERIC_DATE = re.compile(r"\b(\d\d?)([./-])(\d\d?)\2(\d{4})\b")
_TIME = re.compile(r"\b(\d\d?)(?:[:.](\d\d))?\s*([ap])\.?\s?m\b\.?|\b(\d\d?):(\d\d)\b", re.I)
_UNIT = rf"(?:(?:{'|'.join(TENS)})(?:[- ](?:{'|'.join(UNITS[:9])})\b)?|(?:{'|'.join(reversed(UNITS))}))"
_WORDS = re.compile(rf"\b{_UNIT}(?: (?:hundred|thousand|million)(?: (?:and )?{_UNIT}\b)?)*\b")
_NUMBER = re.compile(r"(?<![\w.])(\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?)(?: ?(k|thousand|million)\b)?")
_SCALE = {"hundred": 100, "k": 1000, "thousand": 1000, "million": 10**6}
_FORMS = str.maketrans("\u2018\u2019\u02bc\u201c\u201d\u2013\u2014\u2212\u2010\u2011\u00a0", "'''\"\"----- ")


@lru_cache(maxsize=64)
def _fold(text: str) -> str:
    """Accents off, digits of every script as ASCII, one kind of quote and dash."""

    def plain(match: re.Match[str]) -> str:
        return "" if unicodedata.combining(match[0]) else str(unicodedata.decimal(match[0], match[0]))

    return re.sub(r"[^\x00-\x7f]", plain, unicodedata.normalize("NFKD", text)).translate(_FORMS)


def _date_token(match: re.Match[str]) -> str:
    form = next(n for n in "012" if match[f"m{n}"])
    month, day = match[f"m{form}"], int(re.sub(r"\D", "", match[f"d{form}"]))
    number = int(month) if month.isdigit() else [name[:3] for name in MONTHS].index(month[:3].title()) + 1
    return f" dayx{number:02}{day:02} {match[f'y{form}'] or ''} " if number <= 12 and day <= 31 else match[0]


def _time_token(match: re.Match[str]) -> str:
    hour, minute = int(match[1] or match[4]), int(match[2] or match[5] or 0)
    if match[3]:
        hour = hour % 12 + 12 * (match[3] in "pP")
    return f" clockx{hour:02}{minute:02} " if hour < 24 and minute < 60 else match[0]


def _spelled(match: re.Match[str]) -> str:
    """'forty-two' or 'two hundred and six' as digits; a lone 'one' is mostly a pronoun."""
    total = part = 0
    for word in re.split(r"[- ]", match[0]):
        if word == "hundred":
            part *= 100
        elif word in _SCALE:
            total, part = total + part * _SCALE[word], 0
        elif word != "and":
            part += UNITS.index(word) + 1 if word in UNITS else 10 * TENS.index(word) + 20
    return "one" if match[0] == "one" else str(total + part)


def _plain(match: re.Match[str]) -> str:
    whole, _, cents = match[1].replace(",", "").partition(".")
    if match[2]:
        return str(round(float(f"{whole}.{cents or 0}") * _SCALE[match[2]]))
    return (whole.lstrip("0") or "0") + (f".{cents}".rstrip("0").rstrip(".") if cents else "")


@lru_cache(maxsize=64)
def canon(text: str) -> str:
    """A text as tokens that can be compared, with a space before and after each."""
    # dates, then times, then numbers: each would else be taken apart by the one after it
    text = _DATE.sub(_date_token, _RANGE.sub(r"\1 \2, ", _fold(text)))
    # 3/4/2025 may be in March or in April: both readings stand in the text, and a form may match either
    text = _NUMERIC_DATE.sub(r" \3/\1 \1/\3 \4 ", text)
    text = re.sub(r"(?<= )(\d\d?)/(\d\d?)(?= )", lambda m: f"dayx{int(m[1]):02}{int(m[2]):02}", text)
    text = _TIME.sub(_time_token, re.sub(r"\b(?:12 )?(?:noon|midday)\b", "12:00", text)).casefold()
    text = _NUMBER.sub(_plain, _WORDS.sub(_spelled, text)).replace("'s ", " ")
    return " ".join(["", *re.sub(r"[^\w.]|[.](?!\d)|(?<!\d)[.]", " ", text).split(), ""])


def holds(text: str, form: str) -> bool:
    """Whole words, or any place in the text for scripts that write words without spaces."""
    spaceless = any(char.isalpha() and char > "\u0900" for char in form)
    return canon(form) in canon(text) or (spaceless and form in text)


@lru_cache(maxsize=64)
def is_english(text: str) -> bool:
    words = re.findall(r"[^\W\d_]+", text.casefold())
    # a text in another language may quote some English, but not in every twelfth word
    return "the" in words and sum(word in _COMMON for word in words) * 12 >= len(words)


@lru_cache(maxsize=64)
def _known_figures(document: str) -> tuple[set[str], set[str]]:
    """Comparable tokens and plain figures of a document, in every reading of its separators."""
    known = set(canon(document).split())
    figures = set(re.findall(r"\d+(?:\.\d+)?", canon(document)))
    # 1.250,00 and 12 500, not the minutes of a time
    for run in re.findall(r"(?<![:\d])\d[\d.,' ]*", _fold(document)):
        cents_off = re.sub(r"[.,]\d?0$", lambda match: match[0].rstrip("0"), run.rstrip(" .,'"))
        figures |= {re.sub(r"\D", "", run), re.sub(r"\D", "", cents_off), *re.findall(r"\d+", run)}
    # times by the twelve-hour clock too: "at 3:30" leaves open which half of the day it is in
    known |= {token[:6] + f"{int(token[6:8]) % 12:02}" + token[8:] for token in known if token.startswith("clockx")}
    return known, figures


def strange_numbers(text: str, document: str) -> list[str]:
    """Figures that the document lacks. In other languages only runs of four digits or more: number words, units and
    calendars are unknown there, so short and round figures and years may well come from those."""
    raw = _fold(document)
    if not is_english(document):
        glued = re.sub(r"(?<=\d)[.,:'/ \s-]+(?=\d)", "", raw)
        runs = [run for run in re.findall(r"\d{4,}", _fold(text)) if not run.endswith("00")]
        return [run for run in runs if run not in glued and not 1900 <= int(run) <= 2100]
    known, figures = _known_figures(document)

    def explained(token: str) -> bool:
        if token.startswith("dayx"):
            month, day = int(token[4:6]), int(token[6:])
            # "the 5th" and "5.3." name a day without its month's name or year
            loose = rf"\b(?:{day}(?:st|nd|rd|th)|0?{day}[./-]0?{month}|0?{month}[./-]0?{day})\b"
            return token in known or bool(re.search(loose, raw))
        if token.startswith("clockx"):
            hour = int(token[6:8]) % 12
            on_the_hour = token.endswith("00") and bool({str(hour or 12), str(hour + 12)} & figures)
            return on_the_hour or f"clockx{hour:02}{token[8:]}" in known
        runs = re.findall(r"\d+(?:\.\d+)?", token)
        return all({run, run.replace(".", "")} & figures for run in runs)

    return [token for token in re.findall(r"\S*\d\S*", canon(text)) if not explained(token)]


@lru_cache(maxsize=64)
def _known_words(document: str) -> set[str]:
    return _CALENDAR | set(re.findall(r"[^\W\d_]+", _fold(document).casefold()))


def strange_names(text: str, document: str) -> list[str]:
    """Capitalised words that the document lacks; where a sentence starts, only first names differ from plain words."""
    text, known = _fold(text), _known_words(document)
    found = []
    for match in re.finditer(r"[^\W\d_]+", text):
        base = match[0].casefold()
        before = text[: match.start()].rstrip(' "([-*\u2022')
        starts = not before or (before[-1] in ".!?:\n" and not re.search(r"\b(?:Mr|Mrs|Ms|Dr|St)\.$", before))
        name = match[0][0].isupper() and not match[0].isupper() and (not starts or base in _FIRST_NAMES)
        # plurals, and pairs such as Germany and German: a summary may turn one into the other
        kin = {base, f"{base}s", base.removesuffix("s"), f"{base}y", base.removesuffix("n")}
        if name and not kin & known:
            found.append(match[0])
    return found
