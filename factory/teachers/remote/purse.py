"""What an endpoint was asked for and what that costs: usage.jsonl, one line when a request goes out, one at its end.

    {"asked": 7, "model": "m", "id": "33f6...", "attempt": 0, "prompt": 700, "completion": 1024}    at most that many
    {"used": 7, "prompt": 607, "cached": 0, "completion": 458, "reasoning": 375}    the endpoint's own count
    {"void": 7}                                                                    not answered, so not charged
    {"price": {"prompt": 1.0, ...}, "model": "m"}                                  at a run's start, for who reads

Lines are appended before anything else is done with an answer, so a run that is killed has counted all it has seen. A
request without an end (killed, timed out, cut off) may have been charged: it counts with the most it can cost, and is
told apart. Lines hold tokens and no money, so a price that was mistyped may be corrected between two runs. Teachers of
one dataset that take turns write into one file, each under the name of its account (`model`).
"""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from factory.job.endpoint import PriceConfig
from factory.job.job import Job
from factory.usage import Usage

USAGE: Final = "usage.jsonl"
MILLION: Final = 1_000_000
NOTHING: Final = Usage()


def usage_path(folder: Path) -> Path:
    """Where a teacher that works in `folder` keeps its account: beside the rows, also where its folder is hidden.

    A hidden folder (`.judge`) goes when the dataset is complete; what was spent is to stay.
    """
    return folder.parent / f"usage{folder.name}.jsonl" if folder.name.startswith(".") else folder / USAGE


def account_of(job: Job) -> str:
    """What the account of a job's teacher is called: as its model, and by its own name too where another teacher of the
    job has a model of that name, behind whichever endpoint."""
    model, turn = job.teacher.model, job.turn
    same = [one for one in job.teachers.values() if one.remote and one.model == model]
    return f"{model} ({turn})" if turn and len(same) > 1 else model


@dataclass(slots=True)
class Account:
    """Sums of an account: requests and tokens that the endpoint has counted, and those that it may have charged."""

    requests: int = 0
    unanswered: int = 0
    used: Usage = NOTHING
    doubtful: Usage = NOTHING

    def cost(self, price: PriceConfig | None) -> float:
        """Money that was surely spent."""
        return cost_of(self.used, price)

    def most(self, price: PriceConfig | None) -> float:
        """Money that may have been spent, at most."""
        return cost_of(self.used, price) + cost_of(self.doubtful, price)

    def figures(self, price: PriceConfig | None) -> dict[str, Any]:
        """For machines; money only where there is a price."""
        told: dict[str, Any] = {"requests": self.requests, "unanswered": self.unanswered, **asdict(self.used)}
        if price is not None:
            told |= {"cost": round(self.cost(price), 6), "cost_at_most": round(self.most(price), 6)}
            told |= {"currency": price.currency}
        return told


def cost_of(usage: Usage, price: PriceConfig | None) -> float:
    """Money for these tokens. Cached tokens are among the prompt's, reasoning ones among the completion's."""
    if price is None:
        return 0.0
    cached = price.prompt if price.cached is None else price.cached
    reasoning = price.completion if price.reasoning is None else price.reasoning
    prompt = (usage.prompt - usage.cached) * price.prompt + usage.cached * cached
    completion = (usage.completion - usage.reasoning) * price.completion + usage.reasoning * reasoning
    return (prompt + completion) / MILLION


def dearest(prompt: int, completion: int, price: PriceConfig | None) -> Usage:
    """The use of so many tokens at most that costs the most: none cached, all reasoning where that is dearer."""
    thinks = price is not None and price.reasoning is not None and price.reasoning > price.completion
    dear = price is not None and price.cached is not None and price.cached > price.prompt
    return Usage(prompt, prompt if dear else 0, completion, completion if thinks else 0)


@dataclass(slots=True)
class Purse:
    """The account of one teacher, written as it goes; `max_cost` bounds what may be spent over all runs."""

    path: Path
    model: str = ""
    price: PriceConfig | None = None
    max_cost: float | None = None
    account: Account = field(default_factory=Account)
    _open: dict[int, Usage] = field(default_factory=dict)
    _held: Usage = NOTHING  # the sum of what is open
    _lost: dict[int, Usage] = field(default_factory=dict)
    _next: int = 0
    _handle: Any = None

    def __post_init__(self) -> None:
        self.account, self._next, self._lost, before = _read(self.path, self.price, self.model)
        _mend_end(self.path)
        self._handle = self.path.open("ab", buffering=0)
        if self.price != before:
            self._write({"price": None if self.price is None else self.price.model_dump(), "model": self.model})

    def affords(self, prompt: int, completion: int) -> bool:
        """Whether a request of at most so many tokens cannot pass the bound, whatever is under way."""
        if self.max_cost is None:
            return True
        asked = cost_of(dearest(prompt, completion, self.price), self.price)
        return self.account.most(self.price) + cost_of(self._held, self.price) + asked <= self.max_cost + 1e-12

    def ask(self, row: str, attempt: int, prompt: int, completion: int) -> int:
        """A request goes out; the number to end it with."""
        number, self._next = self._next, self._next + 1
        self._hold(number, dearest(prompt, completion, self.price))
        head = {"asked": number, "model": self.model, "id": row, "attempt": attempt}
        self._write(head | {"prompt": prompt, "completion": completion})
        return number

    def settle(self, number: int, usage: Usage) -> None:
        """It was answered, and the endpoint has counted."""
        self._let_go(number)
        self._write({"used": number, **asdict(usage)})
        self.account.requests += 1
        self.account.used += usage

    def void(self, number: int) -> None:
        """It was refused or never arrived: nobody charges for it."""
        self._let_go(number)
        self._write({"void": number})

    def doubt(self, number: int) -> None:
        """Nobody knows: it counts with the most it can cost. No line: a request without an end says so itself."""
        usage = self._let_go(number)
        self.account.unanswered += 1
        self.account.doubtful += usage

    def reopen(self, numbers: Iterable[int]) -> None:
        """Requests of an earlier run that are under way still: a batch outlives the run that sent it."""
        for number in set(numbers) & self._lost.keys():
            usage = self._lost.pop(number)
            self._hold(number, usage)
            self.account.unanswered -= 1
            self.account.doubtful = self.account.doubtful.without(usage)

    def close(self) -> None:
        """Requests that are under way stay without an end."""
        for number in list(self._open):
            self.doubt(number)
        self._handle.close()

    def _hold(self, number: int, usage: Usage) -> None:
        self._open[number] = usage
        self._held += usage

    def _let_go(self, number: int) -> Usage:
        usage = self._open.pop(number)
        self._held = self._held.without(usage)
        return usage

    def _write(self, line: dict[str, Any]) -> None:
        self._handle.write(json.dumps(line).encode() + b"\n")


def read_account(path: Path, model: str | None = None) -> tuple[Account, PriceConfig | None]:
    """What the account of a model comes to (the file's first where none is named), and the price its last run had."""
    if model is None:
        model = next(iter(_models(path)), "")
    last = [line["price"] for line in _lines(path) if "price" in line and line["model"] == model]
    price = PriceConfig.model_validate(last[-1]) if last and last[-1] else None
    return _read(path, price, model)[0], price


def describe_spending(out: Path) -> list[str]:
    """One line for each remote teacher of a dataset: what it was asked and what that cost, over all runs."""
    lines = []
    for who, (account, price) in _accounts(out).items():
        used = account.used
        told = f"  {who}: {account.requests:,} requests answered, {used.prompt:,} prompt ({used.cached:,} cached) + "
        told += f"{used.completion:,} completion ({used.reasoning:,} reasoning) tokens"
        told += f", {account.unanswered:,} cut off" if account.unanswered else ""
        lines.append(told + tell_cost(account, price))
    return lines


def read_spending(out: Path) -> dict[str, Any]:
    """The same for machines, by teacher."""
    return {who: account.figures(price) for who, (account, price) in _accounts(out).items()}


def _accounts(out: Path) -> dict[str, tuple[Account, PriceConfig | None]]:
    """Every account of a dataset, by what it is for and its model: `teacher gpt-4.1-mini`."""
    found: dict[str, tuple[Account, PriceConfig | None]] = {}
    for path in sorted(out.glob("usage*.jsonl")):
        role = path.stem.removeprefix("usage").strip(".") or "teacher"
        found |= {f"{role} {model}".strip(): read_account(path, model) for model in _models(path)}
    return found


def _models(path: Path) -> list[str]:
    return list(dict.fromkeys(line["model"] for line in _lines(path) if "model" in line))


def tell_cost(account: Account, price: PriceConfig | None) -> str:
    """`; 1.2345 USD`, and the most it may be where some requests were cut off; empty without a price."""
    if price is None:
        return ""
    cost, most = account.cost(price), account.most(price)
    bound = f" ({most:.4f} at most, with what was cut off)" if most > cost else ""
    return f"; {cost:.4f} {price.currency}{bound}"


def _read(
    path: Path, price: PriceConfig | None, model: str
) -> tuple[Account, int, dict[int, Usage], PriceConfig | None]:
    """Of one model: the sums, the number after the last of all, requests without an end, and the price it had."""
    account, open_, following, before = Account(), dict[int, Usage](), 0, None
    others: set[int] = set()
    for line in _lines(path):
        if "price" in line:
            if line["model"] == model:
                before = None if line["price"] is None else PriceConfig.model_validate(line["price"])
        elif "asked" in line:
            following = max(following, line["asked"] + 1)
            if line["model"] == model:
                open_[line["asked"]] = dearest(line["prompt"], line["completion"], price)
            else:
                others.add(line["asked"])
        elif "used" in line:
            number = line.pop("used")
            if number not in others:
                open_.pop(number, None)
                account.requests += 1
                account.used += Usage(**line)
        else:
            open_.pop(line["void"], None)
    account.unanswered, account.doubtful = len(open_), sum(open_.values(), NOTHING)
    return account, following, open_, before


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        return
    for text in path.read_bytes().splitlines():
        try:
            line = json.loads(text)
        except ValueError:  # torn by a kill
            continue
        yield line


def _mend_end(path: Path) -> None:
    """End a line that a kill has torn, so that the next begins on its own."""
    if not path.is_file() or not path.stat().st_size:
        return
    with path.open("r+b") as handle:
        handle.seek(-1, os.SEEK_END)
        if handle.read(1) != b"\n":
            handle.write(b"\n")
