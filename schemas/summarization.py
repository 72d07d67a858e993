"""Summarization: an assistant condenses a letter, notice, thread, report or notes under stated limits. The task trains
finding what was asked, dropping values the document replaced later, and inventing nothing. Levels harden by longer
documents, more asked facts, more replaced values and more figures that belong elsewhere. `check` decides: length,
asked facts (dates, times, sums and number words compared by meaning), no replaced value, no number or name the document
lacks, no long verbatim run, right key facts. A user's scenario may hold only a document. Where that is not English,
names, number words and sentence ends are not checked, and figures only as far as `_strange_numbers` says."""

import datetime as dt
import re
import unicodedata
from collections.abc import Iterator
from functools import cache, lru_cache
from itertools import pairwise
from random import Random
from typing import Annotated, Literal, NamedTuple

from faker import Faker
from faker.providers.person.en_US import Provider as EnglishNames
from pydantic import BaseModel, ConfigDict, Field


class _Knobs(NamedTuple):
    words: tuple[int, int]  # length of the document
    facts: tuple[int, int]  # asked for
    replaced: tuple[int, int]  # of these, corrected by a later sentence
    others: tuple[int, int]  # figures and names that belong to something else
    points: tuple[int, int]
    spare_words: int  # room over the reference summary
    max_copied: int


_LEVELS = {
    "easy": _Knobs((60, 90), (2, 2), (0, 1), (1, 1), (1, 2), 18, 12),
    "medium": _Knobs((120, 180), (3, 4), (1, 2), (2, 2), (2, 3), 16, 11),
    "hard": _Knobs((220, 320), (5, 6), (2, 3), (3, 4), (3, 4), 14, 10),
}
Urgency = Literal["low", "normal", "high"]
Style = Literal["sentences", "bullets"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Fact(_Frozen):
    """`ask` is shown; any of `forms` in the summary satisfies it; `replaced` are forms that no longer hold."""

    ask: str = Field(min_length=1, max_length=200)
    forms: tuple[str, ...] = Field(min_length=1, max_length=20)
    replaced: tuple[str, ...] = Field(default=(), max_length=20)


class Expected(_Frozen):
    date: dt.date | None = None
    amount: str | None = Field(default=None, max_length=24)
    urgency: Urgency


class Scenario(_Frozen):
    document: str = Field(min_length=1, max_length=200_000)
    kind: str = Field(default="document", min_length=1, max_length=80)
    event: str = Field(default="", max_length=120)
    amount_role: str = Field(default="", max_length=120)
    audience: str = Field(default="", max_length=200)
    style: Style = "sentences"
    min_points: int = Field(default=1, ge=1, le=8)
    max_points: int = Field(default=5, ge=1, le=8)
    max_words: int = Field(default=100, ge=5, le=400)
    max_point_words: int = Field(default=40, ge=4, le=60)
    max_copied: int = Field(default=15, ge=5, le=60)
    facts: tuple[Fact, ...] = Field(default=(), max_length=20)
    people: tuple[str, ...] = Field(default=(), max_length=100)
    expected: Expected | None = None

    @property
    def length(self) -> str:
        low, high = self.min_points, max(self.min_points, self.max_points)
        count = f"exactly {low}" if low == high else f"{low} to {high}"
        return f"{count} {self.style[:-1] if high == 1 else self.style}"


class KeyFacts(BaseModel):
    model_config = ConfigDict(extra="forbid")
    date: dt.date | None
    amount: Annotated[str, Field(min_length=1, max_length=24)] | None
    people: list[Annotated[str, Field(min_length=1, max_length=60)]] = Field(max_length=6)
    urgency: Urgency


class Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    title: str = Field(min_length=1, max_length=90)
    points: list[Annotated[str, Field(min_length=1, max_length=320)]] = Field(min_length=1, max_length=8)
    key_facts: KeyFacts


def _bank(text: str) -> dict[str, list[list[str]]]:
    """Entries "key: text | text || text | text"; a line that starts with a space goes on."""
    entries = (" ".join(entry.split()).partition(": ") for entry in re.split(r"\n(?! )", text.strip()))
    return {key: [field.split(" | ") for field in rest.split(" || ")] for key, _, rest in entries}


_TEXTS = _bank("""
date: The {event} is set for {v}. | We have booked {v} for the {event}. | {v} is the day of the {event}. | On {v} the
 {event} will go ahead. | The {event} has a place in the calendar: {v}.
time: The {event} begins at {v}. | The start time is {v}. | At {v} the {event} gets going. | The plan is to begin at
 {v}.
place: The {role} is {v}. | For the {role} the list says {v}. | {v} is given as the {role}.
owner: {v} is the {role}. | As {role} we have named {v}. | Questions about the {event} go to {v}, the {role}.
amount: The {role} comes to {v}. | We have fixed the {role} at {v}. | {v} is the {role}, taxes included.
code: The reference number is {v}. | All papers carry the reference number {v}. | Our file has the reference number
 {v}.
count: The list shows {v} {noun}. | We count on {v} {noun}. | There will be {v} {noun} in all. | {v} {noun} are on
 file.
change: Correction: the {role} is now {v}. | Update: the {role} has changed to {v}. | The {role} given earlier is
 wrong; {v} is right. | We made a mistake about the {role}: it should read {v}. | Since the first plan fell through,
 the {role} is {v}. | News from the office: {v} is the new {role}, and the old one is void. | A later call settled the
 {role}: {v} replaces what was said before.
other date: The {other} stays on {v} and is a separate matter. | Nothing changes for the {other} on {v}.
other time: The {other} starts at {v} in another building. | At {v} the same hall is taken by the {other}.
other owner: {v} looks after the {other} only. | The {other} is in the hands of {v}, who has no part in this.
other amount: For the {other} {v} was paid long ago. | {v} belongs to the {other} and has nothing to do with this.
other place: The {other} has its own address, {v}. | {v} is only for the {other}.
other code: The number {v} is that of the {other}. | Papers marked {v} belong to the {other}.
other count: The {other} has {v} people on its own list. | {v} people signed up for the {other}, a separate matter.
high: Please reply today. | We need your answer within the next few hours. | Please call us before the end of today. |
 Please send us your decision right away, this very day.
normal: Please confirm by the end of next week. | Let us know your answer in the course of the month. | Please return
 the form within a fortnight. | Please send your answer some time next week.
low: No reply is needed. | This is for your information only. | There is nothing for you to do. | You need not answer.
audience: someone who has a minute to spare | a colleague who was away | a relative | a busy reader | a newcomer
filler: Thank you for your patience. | The weather should not matter. | Some details were open for a while, as many
 know. | The office had a busy month and is glad of the quiet. | Everybody involved has seen a draft of this text. | A
 few people had doubts, but they were heard. | The old system caused trouble, so we changed the way we work. | It took
 a while to find a solution that suits most of us. | The usual rules apply, as they did in the past. | The phone line
 was down in the morning, which led to some confusion. | All of this was agreed without a vote. | We are happy with how
 far things have come. | There was a long talk about it and no quarrel. | Several neighbours have shown an interest.
months: January February March April May June July August September October November December
weekdays: Monday Tuesday Wednesday Thursday Friday Saturday Sunday
units: one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
 eighteen nineteen
tens: twenty thirty forty fifty sixty seventy eighty ninety
common: the and of that this are will you from is it not for with has have be
names: amber angel april autumn baker banks black booker branch bridges bright brown chambers chance chase cherry
 christian church cross crystal decker destiny diamond downs english faith farmer fields flowers frank freeman french
 frost glass golden grace grant graves green gross holder house hunter jordan knight little marsh meadows melody miles
 misty noble parks penny porter price prince raven rivers robin sharp shields short small sparks stone strong summer
 summers walker walls waters weeks wells white winters woods young
""")
_SAY = {key: fields[0] for key, fields in _TEXTS.items()}
_KINDS = _bank("""
delivery notice: notice || sofa delivery | kitchen delivery | paper delivery | bicycle delivery || furniture return |
 showroom sale | parcel pick-up || drop-off point | contact person | amount due | boxes || Bay {n} | {street} depot |
 {street} loading yard || The goods left the factory in good order. | The van is a small one and fits into narrow
 streets. | Our driver carries the goods up to the first landing. | The packaging can be given back. | A strike at the
 port slowed us down.
meeting notes: notes || budget review | hiring panel | product demo | safety audit | press briefing || staff picnic |
 archive project | canteen survey || room | action owner | approved budget | seats || Room {n} | {street} annex |
 {street} studio || The slides were clear and short. | The group talked about coffee for a while. | The projector
 needed a new cable. | The minutes of the last meeting were accepted. | The question of parking was left open.
message thread: thread || choir trip | farewell dinner | street fair | film night | rowing weekend || book club |
 garden party | car wash || meeting point | organizer | total to pay | guests || {street} station | {street} bakery |
 Platform {n} || That sounds lovely. | I was on the train and had no signal. | My sister says hello to everyone. | The
 last one was great fun, I still have the photos. | I can bring the good speaker.
incident report: report || repair visit | follow-up inspection | pump replacement | network restart | roof repair ||
 fire drill | fence painting | lamp exchange || affected area | lead investigator | repair cost | affected users ||
 Hall {n} | {street} pumping station | {street} server room || A loud noise was heard during the night shift. | Nobody
 was hurt. | The alarm worked as it should. | A worn seal is thought to be the cause. | Similar trouble was seen some
 years ago.
appointment letter: letter || eye examination | dental check | visa interview | hearing test | allergy test || blood
 donation | open house | parking permit || consulting room | assigned specialist | fee | documents || Suite {n} |
 {street} clinic | {street} health centre || The lift is at the end of the corridor. | Drops may blur your sight for a
 short while. | Results usually come by post. | The waiting area was painted lately. | Most visits are over sooner than
 people fear.
tenants' notice: notice || water shut-off | lift overhaul | heating test | window repair | meter reading || courtyard
 cleaning | bicycle cellar | summer barbecue || plant room | site manager | extra service charge | flats || Cellar {n}
 | {street} boiler house | {street} side entrance || The pipes are older than most of us. | The workers use the back
 stairs. | Pets stay calm as a rule. | Pressure may be low for a short while. | A firm from the region won the
 contract.
""")
_MONTHS, _WEEKDAYS, _UNITS, _TENS = (_SAY[key][0].split() for key in ("months", "weekdays", "units", "tens"))
_CALENDAR = {form.lower() for name in _MONTHS + _WEEKDAYS for form in (name, name[:3])} | {"mr", "mrs", "ms"}
_COMMON = frozenset(_SAY["common"][0].split())
_WORD_NAMES = frozenset(_SAY["names"][0].split())  # "the long weeks" must not look like Ms Weeks
_FIRST_NAMES = {name.lower() for name in EnglishNames.first_names if len(name) > 4} - _WORD_NAMES


class _Value(NamedTuple):
    shown: str  # as the document writes it
    forms: tuple[str, ...]  # as a summary may write it, the reference's form first
    day: dt.date | None = None


@cache
def _faker() -> Faker:
    return Faker("en_US")


class _Drawer:
    """Draws values; no two of one scenario share a number or a name."""

    def __init__(self, rng: Random, places: list[str]) -> None:
        self.rng, self.places, self.currency, self.used = rng, places, rng.choice("$£€"), set[str]()
        _faker().seed_instance(rng.getrandbits(32))

    def number(self, low: int, high: int) -> int:
        number = next(n for n in iter(lambda: self.rng.randrange(low, high), None) if str(n) not in self.used)
        self.used.add(str(number))
        return number

    def name(self, part: str) -> str:
        name = str(getattr(_faker(), part)())
        while name in self.used or len(name) < 5 or name.lower() in _WORD_NAMES:
            name = str(getattr(_faker(), part)())
        self.used.add(name)
        return name

    def draw(self, slot: str) -> _Value:
        rng = self.rng
        if slot == "date":
            day = dt.date(2025, 1, 1) + dt.timedelta(self.number(1000, 1360) - 1000)
            month = _MONTHS[day.month - 1]
            plain = f"{day.day} {month} {day.year}"
            long = f"{_WEEKDAYS[day.weekday()]} {plain}"
            looks = (plain, long, f"{month} {day.day}, {day.year}", day.isoformat())
            return _Value(rng.choice(looks), (plain, f"{day.day} {month}"), day)
        if slot == "time":
            hour, minute = self.number(8, 20), rng.choice((0, 10, 15, 20, 30, 40, 45, 50))
            plain, tail = f"{hour:02}:{minute:02}", f":{minute:02}" if minute else ""
            return _Value(rng.choice((plain, f"{(hour - 1) % 12 + 1}{tail} {'ap'[hour > 11]}m")), (plain,))
        if slot == "place":
            street = f"{self.name('last_name')} {rng.choice(('Street', 'Lane', 'Road', 'Square'))}"
            text = rng.choice(self.places).format(street=street, n=self.number(101, 400))
            return _Value(text, (text, street) if street in text else (text,))
        if slot == "owner":
            first, last = self.name("first_name"), self.name("last_name")
            return _Value(f"{first} {last}", (f"{first} {last}", last, first))
        if slot == "amount":
            plain = f"{self.currency}{self.number(81, 1980) * 5:,}"
            return _Value(rng.choice((plain, f"{plain}.00")), (plain,))
        if slot == "code":
            letters, digits = "".join(rng.choices("BCDFGKLPRSTVX", k=2)), str(self.number(10_001, 99_999))
            return _Value(f"{letters}-{digits}", (f"{letters}-{digits}", digits))
        tens, units = divmod(self.number(21, 69), 10)
        words = _TENS[tens - 2] + (f"-{_UNITS[units - 1]}" if units else "")
        return _Value(rng.choice((f"{tens}{units}", f"{tens}{units}", words)), (f"{tens}{units}",))


def _lay_out(layout: str, lines: list[str], event: str, first: str, second: str, cuts: list[int]) -> str:
    blocks = [" ".join(lines[start:end]) for start, end in pairwise([0, *sorted(cuts), len(lines)])]
    if layout == "thread":
        blocks = [f"{(first, second)[turn % 2]}: {block}" for turn, block in enumerate(blocks)]
    elif layout == "notes":
        blocks = [f"{event.capitalize()}, notes taken by {first}", *(f"- {line}" for line in lines)]
    elif layout == "letter":
        blocks = [f"Dear {first},", *blocks, f"Kind regards, {second}"]
    else:
        blocks = [f"{layout.capitalize()} about the {event}, issued by {first}", *blocks]
    return "\n".join(blocks)


def _write(rng: Random, knobs: _Knobs) -> Scenario:
    kind = rng.choice(list(_KINDS))
    (layout,), events, others, (place, owner, amount, noun), places, fillers = _KINDS[kind]
    event, drawer = rng.choice(events), _Drawer(rng, places)
    roles = {"date": f"date of the {event}", "time": "start time", "place": place, "owner": owner}
    roles |= {"amount": amount, "code": "reference number", "count": f"number of {noun}"}

    def say(key: str, slot: str, value: _Value) -> str:
        words = {"event": event, "role": roles[slot], "noun": noun, "other": rng.choice(others), "v": value.shown}
        text = rng.choice(_SAY[key]).format(**words)
        return text[0].upper() + text[1:]

    slots = rng.sample(list(roles)[1:], rng.randint(*knobs.facts) - 1)
    slots.insert(rng.randint(0, len(slots)), "date")
    now = {slot: drawer.draw(slot) for slot in slots}
    old = {slot: drawer.draw(slot) for slot in rng.sample(slots, rng.randint(*knobs.replaced))}
    extra = {slot: drawer.draw(slot) for slot in rng.sample(list(roles), rng.randint(*knobs.others))}
    said = {slot: rng.random() * 0.7 * (slot != "date") for slot in slots}
    lines = [(said[slot], say(slot, slot, old.get(slot, now[slot]))) for slot in slots]
    lines += [(rng.uniform(said[slot], 1), say("change", slot, now[slot])) for slot in old]
    lines += [(rng.random(), say(f"other {slot}", slot, value)) for slot, value in extra.items()]
    room = rng.randint(knobs.words[0], knobs.words[1] - 20) - sum(len(line.split()) for _, line in lines)
    for filler in rng.sample(_SAY["filler"] + fillers, len(_SAY["filler"] + fillers)):
        if room > 0:
            lines.append((rng.random(), filler))
            room -= len(filler.split())
    urgency: Urgency = rng.choice(("low", "normal", "high"))
    texts = [*(line for _, line in sorted(lines)), rng.choice(_SAY[urgency])]
    people = [value.shown for value in (drawer.draw("owner"), drawer.draw("owner"))]
    document = _lay_out(layout, texts, event, people[0], people[1], rng.sample(range(1, len(texts)), len(texts) // 3))
    people += [values["owner"].shown for values in (now, old, extra) if "owner" in values]
    past = {slot: value.forms for slot, value in old.items()}
    facts = [Fact(ask=f"the {roles[slot]}", forms=now[slot].forms, replaced=past.get(slot, ())) for slot in slots]
    style: Style = rng.choice(("sentences", "bullets"))
    points = rng.randint(*knobs.points)
    sizes = [len(point.split()) for point in _compose(facts, points, style)]
    sum_now = now["amount"].forms[0] if "amount" in now else None
    return Scenario(
        document=document,
        kind=kind,
        event=event,
        amount_role=amount,
        audience=rng.choice(_SAY["audience"]),
        style=style,
        min_points=points,
        max_points=points,
        max_words=(sum(sizes) + knobs.spare_words) // 5 * 5,
        max_point_words=max(sizes) + knobs.spare_words // 2,
        max_copied=knobs.max_copied,
        facts=tuple(facts),
        people=tuple(person for person in people if person in document),
        expected=Expected(date=now["date"].day, amount=sum_now, urgency=urgency),
    )


def sample(rng: Random, level: str) -> Scenario:
    low, high = _LEVELS[level].words
    for _ in range(50):
        scenario = _write(rng, _LEVELS[level])
        if low <= len(scenario.document.split()) <= high:
            return scenario
    raise AssertionError(f"no {level} document of {low} to {high} words in 50 tries")


# Comparing by meaning: _canon writes dates as dayxMMDD, times as clockxHHMM and numbers as plain digits.
_MONTH = (  # "may" is a verb as well
    r"(?:(?i:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?"
    r"|nov(?:ember)?|dec(?:ember)?)|May|MAY)\b\.?"
)
_DAY = r"\d\d?(?:st|nd|rd|th)?"
_RANGE = re.compile(rf"\b({_DAY})\s*(?:-|to|until)\s*(?={_DAY}(?: of)?\s+({_MONTH}))")
_DATE = re.compile(
    r"\b(?P<y0>\d{4})-(?P<m0>\d\d)-(?P<d0>\d\d)(?!\d)T?"
    rf"|\b(?P<d1>{_DAY})(?: of)?[\s-]+(?P<m1>{_MONTH})(?:,?\s+(?P<y1>\d{{4}}))?"
    rf"|\b(?P<m2>{_MONTH})\s+(?:the )?(?P<d2>{_DAY})\b(?!:)(?:,?\s+(?P<y2>\d{{4}}))?"
)
_NUMERIC_DATE = re.compile(r"\b(\d\d?)([./-])(\d\d?)\2(\d{4})\b")
_TIME = re.compile(r"\b(\d\d?)(?:[:.](\d\d))?\s*([ap])\.?\s?m\b\.?|\b(\d\d?):(\d\d)\b", re.I)
_UNIT = rf"(?:(?:{'|'.join(_TENS)})(?:[- ](?:{'|'.join(_UNITS[:9])})\b)?|(?:{'|'.join(reversed(_UNITS))}))"
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
    number = int(month) if month.isdigit() else [name[:3] for name in _MONTHS].index(month[:3].title()) + 1
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
            part += _UNITS.index(word) + 1 if word in _UNITS else 10 * _TENS.index(word) + 20
    return "one" if match[0] == "one" else str(total + part)


def _plain(match: re.Match[str]) -> str:
    whole, _, cents = match[1].replace(",", "").partition(".")
    if match[2]:
        return str(round(float(f"{whole}.{cents or 0}") * _SCALE[match[2]]))
    return (whole.lstrip("0") or "0") + (f".{cents}".rstrip("0").rstrip(".") if cents else "")


@lru_cache(maxsize=64)
def _canon(text: str) -> str:
    text = _DATE.sub(_date_token, _RANGE.sub(r"\1 \2, ", _fold(text)))
    text = _NUMERIC_DATE.sub(r" \3/\1 \1/\3 \4 ", text)
    text = re.sub(r"(?<= )(\d\d?)/(\d\d?)(?= )", lambda m: f"dayx{int(m[1]):02}{int(m[2]):02}", text)
    text = _TIME.sub(_time_token, re.sub(r"\b(?:12 )?(?:noon|midday)\b", "12:00", text)).casefold()
    text = _NUMBER.sub(_plain, _WORDS.sub(_spelled, text)).replace("'s ", " ")
    return " ".join(["", *re.sub(r"[^\w.]|[.](?!\d)|(?<!\d)[.]", " ", text).split(), ""])


def _holds(text: str, form: str) -> bool:
    """Whole words, or any place in the text for scripts that write words without spaces."""
    spaceless = any(char.isalpha() and char > "\u0900" for char in form)
    return _canon(form) in _canon(text) or (spaceless and form in text)


@lru_cache(maxsize=64)
def _is_english(text: str) -> bool:
    words = re.findall(r"[^\W\d_]+", text.casefold())
    return "the" in words and sum(word in _COMMON for word in words) * 12 >= len(words)


@lru_cache(maxsize=64)
def _known_figures(document: str) -> tuple[set[str], set[str]]:
    """Comparable tokens and plain figures of a document, in every reading of its separators."""
    known = set(_canon(document).split())
    figures = set(re.findall(r"\d+(?:\.\d+)?", _canon(document)))
    for run in re.findall(r"(?<![:\d])\d[\d.,' ]*", _fold(document)):  # 1.250,00 and 12 500, not the minutes of a time
        cents_off = re.sub(r"[.,]\d?0$", lambda match: match[0].rstrip("0"), run.rstrip(" .,'"))
        figures |= {re.sub(r"\D", "", run), re.sub(r"\D", "", cents_off), *re.findall(r"\d+", run)}
    known |= {token[:6] + f"{int(token[6:8]) % 12:02}" + token[8:] for token in known if token.startswith("clockx")}
    return known, figures


def _strange_numbers(text: str, document: str) -> list[str]:
    """Figures that the document lacks. In other languages only runs of four digits or more: number words, units and
    calendars are unknown there, so short and round figures and years may well come from those."""
    raw = _fold(document)
    if not _is_english(document):
        glued = re.sub(r"(?<=\d)[.,:'/ \s-]+(?=\d)", "", raw)
        runs = [run for run in re.findall(r"\d{4,}", _fold(text)) if not run.endswith("00")]
        return [run for run in runs if run not in glued and not 1900 <= int(run) <= 2100]
    known, figures = _known_figures(document)

    def explained(token: str) -> bool:
        if token.startswith("dayx"):
            month, day = int(token[4:6]), int(token[6:])
            loose = rf"\b(?:{day}(?:st|nd|rd|th)|0?{day}[./-]0?{month}|0?{month}[./-]0?{day})\b"
            return token in known or bool(re.search(loose, raw))
        if token.startswith("clockx"):
            hour = int(token[6:8]) % 12
            on_the_hour = token.endswith("00") and bool({str(hour or 12), str(hour + 12)} & figures)
            return on_the_hour or f"clockx{hour:02}{token[8:]}" in known
        runs = re.findall(r"\d+(?:\.\d+)?", token)
        return all({run, run.replace(".", "")} & figures for run in runs)

    return [token for token in re.findall(r"\S*\d\S*", _canon(text)) if not explained(token)]


@lru_cache(maxsize=64)
def _known_words(document: str) -> set[str]:
    return _CALENDAR | set(re.findall(r"[^\W\d_]+", _fold(document).casefold()))


def _strange_names(text: str, document: str) -> list[str]:
    """Capitalised words that the document lacks; where a sentence starts, only first names differ from plain words."""
    text, known = _fold(text), _known_words(document)
    found = []
    for match in re.finditer(r"[^\W\d_]+", text):
        base = match[0].casefold()
        before = text[: match.start()].rstrip(' "([-*\u2022')
        starts = not before or (before[-1] in ".!?:\n" and not re.search(r"\b(?:Mr|Mrs|Ms|Dr|St)\.$", before))
        name = match[0][0].isupper() and not match[0].isupper() and (not starts or base in _FIRST_NAMES)
        kin = {base, f"{base}s", base.removesuffix("s"), f"{base}y", base.removesuffix("n")}  # Germany, German
        if name and not kin & known:
            found.append(match[0])
    return found


@lru_cache(maxsize=64)
def _runs(text: str, length: int) -> frozenset[tuple[str, ...]]:
    words = [word.strip("\"'.,;:!?()*-").casefold() for word in text.split()]
    return frozenset(tuple(words[start : start + length]) for start in range(len(words) - length + 1))


def _count_words(text: str) -> int:
    """Two Chinese or Japanese characters count as a word."""
    return len(text.split()) + len(re.findall(r"[\u3040-\u30ff\u4e00-\u9fff]", text)) // 2


def _is_one_sentence(point: str) -> bool:
    inner = re.sub(r"\b(?:Mr|Mrs|Ms|Dr|St|No|vs|Inc|Ltd|Co|[A-Za-z])\.", "", point)
    return bool(re.search(r"[.!?][\"')\]]*\s*$", point)) and not re.search(r"[.!?]\s+[A-Z]", inner)


def _check_length(scenario: Scenario, answer: Answer) -> Iterator[str]:
    sizes = [_count_words(point) for point in answer.points]
    if not scenario.min_points <= len(sizes) <= max(scenario.min_points, scenario.max_points):
        yield f"point_count: got {len(sizes)}, expected {scenario.length}"
    if sum(sizes) > scenario.max_words:
        yield f"too_many_words: points have {sum(sizes)} words, allowed {scenario.max_words}"
    if max(sizes) > scenario.max_point_words:
        yield f"point_too_long: a point has {max(sizes)} words, allowed {scenario.max_point_words}"
    if len(answer.title.split()) > 10:
        yield f"title_too_long: got {len(answer.title.split())} words, allowed 10"
    if len({_canon(point) for point in answer.points}) < len(sizes) or not all(sizes):
        yield "empty_point: a point is blank or says what another says"


def _check_source(scenario: Scenario, answer: Answer, summary: str) -> Iterator[str]:
    document, english = scenario.document, _is_english(scenario.document)
    figures = f"{summary}\n{answer.key_facts.amount or ''}"
    for number in _strange_numbers(figures, document):
        yield f"invented_number: {number!r} is not in the document"
    signs, used = (sorted(set("$£€¥") & set(text)) for text in (document, figures))
    if signs and not set(used) <= set(signs):
        yield f"invented_number: got the currency {' '.join(used)}, the document has {' '.join(signs)}"
    # A title in Title Case hides which of its words are names.
    plain_title = any(word[0].islower() for word in answer.title.split() if len(word) > 4)
    for name in _strange_names(summary if plain_title else "\n".join(answer.points), document) if english else ():
        yield f"invented_name: {name!r} is not in the document"
    for point in answer.points:
        if _runs(point, scenario.max_copied + 1) & _runs(document, scenario.max_copied + 1):
            yield f"copied_run: more than {scenario.max_copied} words in a row are the document's own: {point[:60]!r}"
        if english and scenario.style == "sentences" and not _is_one_sentence(point):
            yield f"not_one_sentence: a point must be one sentence with its end mark, got {point[:60]!r}"


def _check_people(scenario: Scenario, listed: list[str], summary: str) -> Iterator[str]:
    for person in scenario.people:
        named = _holds(summary, person) or _holds(summary, person.split()[-1])
        if named and not any(_holds(entry, person) for entry in listed):
            yield f"people_missing: the summary names {person!r}, key_facts.people lacks it"
    for entry in (re.sub(r"^(?:Mr|Mrs|Ms|Dr)\b\.?\s+", "", entry) for entry in listed):
        if _is_english(scenario.document) and not _holds(scenario.document, entry):
            yield f"invented_name: {entry!r} in key_facts.people is not in the document"
        elif _is_english(scenario.document) and not any(_holds(summary, part) for part in entry.split()):
            yield f"people_extra: {entry!r} is not named in title or points"


def _check_key_facts(expected: Expected, got: KeyFacts) -> Iterator[str]:
    if got.date != expected.date:
        yield f"wrong_date: got {got.date}, expected {expected.date}"
    sums = [amount and set(re.findall(r"\d+(?:\.\d+)?", _canon(amount))) for amount in (got.amount, expected.amount)]
    if sums[0] != sums[1]:
        yield f"wrong_amount: got {got.amount}, expected {expected.amount}"
    if got.urgency != expected.urgency:
        yield f"wrong_urgency: got {got.urgency}, expected {expected.urgency}"


def check(scenario: Scenario, answer: Answer) -> list[str]:
    summary = "\n".join([answer.title, *answer.points])
    findings = list(_check_length(scenario, answer))
    for fact in scenario.facts:
        if not any(_holds(summary, form) for form in fact.forms):
            findings.append(f"missing_fact: {fact.ask} not found, expected {fact.forms[0]!r}")
        old = next((form for form in fact.replaced if _holds(summary, form)), None)
        if old:
            findings.append(f"superseded_value: {fact.ask} is no longer {old!r}; leave it out")
    findings += _check_source(scenario, answer, summary)
    findings += _check_people(scenario, answer.key_facts.people, summary)
    return findings + list(_check_key_facts(scenario.expected, answer.key_facts) if scenario.expected else ())


def _compose(facts: list[Fact], points: int, style: Style) -> list[str]:
    """The facts in order, spread evenly over the points."""
    texts = []
    for start, end in pairwise(len(facts) * cut // points for cut in range(points + 1)):
        if style == "bullets":
            text = "; ".join(f"{fact.ask.removeprefix('the ')}: {fact.forms[0]}" for fact in facts[start:end])
        else:
            text = " and ".join(f"{fact.ask} is {fact.forms[0]}" for fact in facts[start:end]) + "."
        texts.append(text[0].upper() + text[1:])
    return texts


def solve(scenario: Scenario) -> tuple[str, Answer]:
    """Composes the asked facts; a user's scenario without facts needs a teacher instead."""
    if len(scenario.facts) < scenario.min_points:
        raise ValueError(f"summarization: {len(scenario.facts)} facts cannot fill {scenario.length}; add facts")
    points = _compose(list(scenario.facts), scenario.min_points, scenario.style)
    expected = scenario.expected or Expected(urgency="low")
    day, amount, topic = expected.date, expected.amount, scenario.event or scenario.kind
    plain_day = f"{day.day} {_MONTHS[day.month - 1]} {day.year}" if day else ""
    people = [person for person in scenario.people if _holds("\n".join(points), person)]
    asked = next((line for line in _SAY[expected.urgency] if line in scenario.document), "nothing about a reply")
    steps = [f"This is about the {topic}. Facts to keep: {len(scenario.facts)}."]
    for fact in scenario.facts:
        change = f"first {fact.replaced[0]}, replaced later, so now " if fact.replaced else ""
        steps.append(f"{fact.ask[0].upper()}{fact.ask[1:]}: {change}{fact.forms[0]}.")
    steps += [
        f"I write {scenario.length} from these facts in this order.",
        f"The {topic} is on {plain_day}, so date is {day}." if day else "There is no main date, so date is null.",
        f"The {scenario.amount_role} is {amount}." if amount else "The main matter has no sum, so amount is null.",
        f"The points name {' and '.join(people)}." if people else "The points name nobody, so people is empty.",
        f"The document says: {asked.rstrip('.')}. So urgency is {expected.urgency}.",
    ]
    title = (topic[0].upper() + topic[1:] + (f" on {plain_day}" if day else ""))[:90]
    key_facts = KeyFacts(date=day, amount=amount, people=people, urgency=expected.urgency)
    return "\n".join(steps), Answer(title=title, points=points, key_facts=key_facts)
