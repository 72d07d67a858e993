"""Personal data in a text: e-mail addresses, phone numbers, cards, IBANs, national ids, IP addresses; names never.

A pattern says where something may stand, then a maintained library (python-stdnum, phonenumbers, ipaddress) says
whether it is one: by check digits, by national numbering plans. Every pattern is bounded, so time grows with the text.
"""

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple, get_args

from factory.job.data import PersonalKind

KINDS: tuple[PersonalKind, ...] = get_args(PersonalKind)
Found = tuple[PersonalKind, int, int]  # kind, start, end
Span = tuple[int, int]
Known = dict[tuple[str, str], str]  # placeholder of each kind and value, of one row

LOOKALIKES = str.maketrans(
    dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2212\uff0d", "-")
    | dict.fromkeys("\u00a0\u2007\u2009\u202f\u3000", " ")
    | {"\uff20": "@", "\uff0b": "+", "\uff0e": "."}
    | {chr(0xFF10 + digit): str(digit) for digit in range(10)}
)
# what an HTML5 e-mail input accepts, with a top-level domain of letters
EMAIL = re.compile(
    r"(?<![\w.!#$%&'*+/=?^`{|}~@-])[\w.!#$%&'*+/=?^`{|}~-]{1,64}@(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.){1,8}[^\W\d_]{2,24}(?![\w@])"
)
DATE = re.compile(
    r"(?<![\d./-])(?:\d{4}([./-])(?:0?[1-9]|1[0-2])\1(?:0?[1-9]|[12]\d|3[01])"
    r"|(?:0?[1-9]|[12]\d|3[01])([./-])(?:0?[1-9]|[12]\d|3[01])\2(?:19|20)?\d{2})(?!\d|[./-]\d)"
)
IBAN = re.compile(
    r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?:[A-Z0-9]{11,30}|(?:[ -][A-Z0-9]{4}){2,7}(?:[ -][A-Z0-9]{1,4})?)(?!\w)"
)
CARD = re.compile(r"(?<![\w.,+-])\d(?:[ -]?\d){12,18}(?!\w|[.,-]\d)")
ISSUERS = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})|(?:5[1-5]\d\d|222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720)\d{12}|3[47]\d{13}"
    r"|3(?:0[0-5]|[68]\d)\d{11}|(?:6011|64[4-9]\d|65\d\d|35(?:2[89]|[3-8]\d))\d{12}|(?:50|5[6-9]|6[0-9])\d{10,17}"
)
IP_V4 = re.compile(r"(?<![\w.:-])\d{1,3}(?:\.\d{1,3}){3}(?![\w-]|\.\d)")
IP_V6 = re.compile(r"(?<![\w:.])(?=[0-9A-Fa-f]{0,3}\d)[0-9A-Fa-f]{3,4}(?::[0-9A-Fa-f]{0,4}){2,7}(?![\w:])")
VERSION = re.compile(r"\b(?:version|ver\.?|release|build|firmware|section|chapter|§)\s{0,3}$", re.IGNORECASE)
PHONE = re.compile(
    r"(?<![\w.,:/#$€£¥+-])(?:\+ ?|\(\+?)?\d(?:(?: - |[ .\-/]|\)[ .-]?| ?\()?\d){5,16}(?![\w%°€£¥]|[.,:/-]\d)"
)
DECIMAL = re.compile(r"0\.\d+")
NORTH_AMERICA = re.compile(r"(?:\+?1[ .-]?)?(?:\([2-9]\d\d\) ?|[2-9]\d\d[.-])\d{3}[ .-]\d{4}|\+1 [2-9]\d\d \d{3} \d{4}")
PHONE_CUE = re.compile(
    r"\b(?:phone|telephone|tel|mobile|cell|fax|whatsapp|call|dial|handy|mobil|telefon|telefono|teléfono|telefone|"
    r"téléphone|portable|móvil|cellulare|celular)(?: (?:me|us|him|her|them))?(?: (?:number|no|nr))?"
    r"(?: (?:is|at|on))?[.:]{0,2}\s{0,3}$",
    re.IGNORECASE,
)
REGIONS = ("GB", "DE", "FR", "IT", "NL", "AT", "CH", "BE", "IE", "SE", "FI", "AU", "NZ", "JP", "IN", "BR", "ZA", "TR")


class NationalId(NamedTuple):
    """A country's number: its module in python-stdnum, how it is written, and the word that must stand close before it
    where digits alone say too little."""

    module: str
    pattern: re.Pattern[str]
    cue: re.Pattern[str] | None


def _national(module: str, pattern: str, cue: str = "") -> NationalId:
    whole = re.compile(rf"(?<![\w.,+/-])(?:{pattern})(?!\w|[.,/-]\d)")
    return NationalId(module, whole, re.compile(rf"\b(?:{cue})\b", re.IGNORECASE) if cue else None)


NATIONAL_IDS = (
    _national("us.ssn", r"\d{3}-\d{2}-\d{4}"),
    _national("us.ssn", r"\d{3}[ -]?\d{2}[ -]?\d{4}", "ssn|social security"),
    _national("es.dni", r"\d{8}-?[A-Z]"),
    _national("es.nie", r"[XYZ]-?\d{7}-?[A-Z]"),
    _national("it.codicefiscale", r"[A-Z]{6}\d[\dL-V][A-EHLMPR-T][\dL-V]{2}[A-Z][\dL-V]{3}[A-Z]"),
    _national("fr.nir", r"[12] ?\d\d ?\d\d ?\d[\dAB] ?\d{3} ?\d{3} ?\d\d"),
    _national("br.cpf", r"\d{3}\.\d{3}\.\d{3}-\d{2}"),
    _national("be.nn", r"\d\d\.\d\d\.\d\d-\d{3}\.\d\d"),
    _national("ch.ssn", r"756\.\d{4}\.\d{4}\.\d\d"),
    _national("se.personnummer", r"(?:19|20)?\d{6}[-+]\d{4}"),
    _national("fi.hetu", r"\d{6}[-+A]\d{3}[0-9A-Y]"),
    _national("kr.rrn", r"\d{6}-\d{7}"),
    _national("cn.ric", r"\d{17}[\dX]"),
    _national("de.idnr", r"\d\d ?\d{3} ?\d{3} ?\d{3}", "steuer-?id|steueridentifikationsnummer|idnr|tax id"),
    _national("nl.bsn", r"\d{9}", "bsn|burgerservicenummer"),
    _national("pl.pesel", r"\d{11}", "pesel"),
    _national("pt.nif", r"\d{3} ?\d{3} ?\d{3}", "nif|contribuinte"),
    _national("ca.sin", r"\d{3}[ -]?\d{3}[ -]?\d{3}", "sin|social insurance"),
    _national("au.tfn", r"\d{3} ?\d{3} ?\d{3}", "tfn|tax file"),
    _national("in_.aadhaar", r"\d{4} ?\d{4} ?\d{4}", "aadhaar|uidai"),
)
NINO = re.compile(r"(?<!\w)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?\d\d ?\d\d ?\d\d ?[A-D](?!\w)")  # no check digit


def resolve_kinds(setting: bool | list[PersonalKind]) -> tuple[PersonalKind, ...]:
    """The kinds that a job's setting names: all for true, none for false."""
    return (KINDS if setting else ()) if isinstance(setting, bool) else tuple(setting)


def find_personal(text: str, kinds: tuple[PersonalKind, ...] = KINDS) -> list[Found]:
    """Kind, start and end of everything personal in a text, by start; no two overlap.

    All kinds are looked for in turn, whatever is asked, so that a card is never taken for a phone number.
    """
    plain = text if text.isascii() else text.translate(LOOKALIKES)
    found: list[Found] = []
    for kind, finder in FINDERS:
        # what is found is blanked out for the finders after it, at its length, so that spans stay those of the text
        for start, end in finder(plain):
            if "\0" not in plain[start:end]:  # two patterns may know the same number
                found.append((kind, start, end))
            plain = plain[:start] + "\0" * (end - start) + plain[end:]
    return sorted((f for f in found if f[0] in kinds), key=lambda f: f[1])


def scrub(text: str, kinds: tuple[PersonalKind, ...] = KINDS, known: Known | None = None) -> tuple[str, Counter[str]]:
    """The text with typed placeholders (`[EMAIL_1]`) for what is personal, and how often each kind was replaced.

    The same value gets the same placeholder; `known` carries them from text to text of one row.
    """
    known = {} if known is None else known
    parts, counts, last = [], Counter[str](), 0
    for kind, start, end in find_personal(text, kinds):
        # one number written with and without spaces is one person's
        value = "".join(c for c in text[start:end].translate(LOOKALIKES).casefold() if c not in " -()./")
        number = 1 + sum(other == kind for other, _ in known)
        parts += [text[last:start], known.setdefault((kind, value), f"[{kind.upper()}_{number}]")]
        counts[kind] += 1
        last = end
    return "".join([*parts, text[last:]]), counts


def scrub_row(
    row: Mapping[str, Any], kinds: tuple[PersonalKind, ...] = KINDS, known: Known | None = None
) -> tuple[dict[str, Any], Counter[str]]:
    """A row with every string in its values scrubbed, nested ones and their keys too, under one set of placeholders.

    Values that are no strings stay as they are, a card number that is an integer too.
    """
    placeholders: Known = {} if known is None else known
    counts: Counter[str] = Counter()

    def clean(part: Any) -> Any:
        if isinstance(part, str):
            text, replaced = scrub(part, kinds, placeholders)
            counts.update(replaced)
            return text
        if isinstance(part, Mapping):
            return {clean(key): clean(item) for key, item in part.items()}
        if isinstance(part, list | tuple):
            return [clean(item) for item in part]
        return part

    return {name: clean(value) for name, value in row.items()}, counts


def _emails(text: str) -> Iterator[Span]:
    if "@" in text:
        yield from (match.span() for match in EMAIL.finditer(text))


def _ibans(text: str) -> Iterator[Span]:
    """Groups that follow an IBAN may look like a part of it: they are dropped one by one."""
    valid = _validator("iban")
    for match in IBAN.finditer(text):
        end = match.end()
        while end > match.start() + 14:
            if valid(text[match.start() : end]):
                yield match.start(), end
                break
            end = max(text.rfind(" ", match.start(), end), text.rfind("-", match.start(), end))


def _cards(text: str) -> Iterator[Span]:
    luhn = _validator("luhn")
    for match in CARD.finditer(text):
        digits = re.sub(r"\D", "", match.group())
        if ISSUERS.fullmatch(digits) and luhn(digits):
            yield match.span()


def _national_ids(text: str) -> Iterator[Span]:
    yield from (match.span() for match in NINO.finditer(text))
    for module, pattern, cue in NATIONAL_IDS:
        # the whole text first: most texts have none of the words, and nine digits stand everywhere
        if cue is None or cue.search(text):
            for match in pattern.finditer(text):
                called = cue is None or cue.search(text, max(0, match.start() - 40), match.start())
                if called and _validator(module)(match.group().replace(" ", "")):
                    yield match.span()


def _ips(text: str) -> Iterator[Span]:
    for match in IP_V4.finditer(text):
        if _is_host(match.group()) and not VERSION.search(text, max(0, match.start() - 14), match.start()):
            yield match.span()
    yield from (match.span() for match in IP_V6.finditer(text) if _is_host(match.group()))


def _is_host(text: str) -> bool:
    """Whether a text is an address that some machine may have: no mask, no loopback, no version such as 0.1.2.3."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return not address.is_loopback and not text.startswith(("0.", "255."))


def _phones(text: str) -> Iterator[Span]:
    # 2025.03.04 and 04-03-2025 have the digits of a phone number in some plan
    text = DATE.sub(lambda date: "\0" * len(date.group()), text)
    for match in PHONE.finditer(text):
        start = match.start() + (match.group().startswith("(") and ")" not in match.group())
        called = PHONE_CUE.search(text, max(0, start - 40), start)
        if _is_phone(text[start : match.end()], called is not None):
            yield start, match.end()


def _is_phone(text: str, called: bool) -> bool:
    """Written with a country's code, as in North America, with a leading 0 and groups, or called one."""
    digits = re.sub(r"\D", "", text)
    if not 7 <= len(digits) <= 15:
        return False
    if NORTH_AMERICA.fullmatch(text) or called:
        return True
    if "+" in text:
        return _is_numbered(text, None)
    if digits.startswith("00"):
        return _is_numbered(f"+{digits[2:]}", None)
    grouped = 9 <= len(digits) < len(text) and not DECIMAL.fullmatch(text)
    return digits.startswith("0") and grouped and any(_is_numbered(text, region) for region in REGIONS)


def _is_numbered(text: str, region: str | None) -> bool:
    """Whether a numbering plan has such a number; `region` for one without its country's code."""
    import phonenumbers

    try:
        return bool(phonenumbers.is_valid_number(phonenumbers.parse(text, region)))
    except phonenumbers.NumberParseException:
        return False


@cache
def _validator(name: str) -> Callable[[str], bool]:
    """`is_valid` of a module of python-stdnum."""
    valid: Callable[[str], bool] = import_module(f"stdnum.{name}").is_valid
    return valid


FINDERS: tuple[tuple[PersonalKind, Callable[[str], Iterator[Span]]], ...] = (
    ("email", _emails),
    ("iban", _ibans),
    ("card", _cards),
    ("national_id", _national_ids),
    ("ip", _ips),
    ("phone", _phones),
)
