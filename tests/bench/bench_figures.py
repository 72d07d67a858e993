"""Figures of the benchmark: paired ratios, their median and spread, bars, and the table's text. Arithmetic alone."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

HEAD = "| on | what | median | spread | bar | met | |\n|---|---|---|---|---|---|---|"


@dataclass(frozen=True, slots=True)
class Run:
    """One measured run of one contestant."""

    seconds: float
    tokens: int
    cpu_s: float = 0.0

    @property
    def speed(self) -> float:
        """Tokens a second."""
        return self.tokens / self.seconds


@dataclass(frozen=True, slots=True)
class Figure:
    """One row of the table: what was measured on what, one value a round, and the bar that it must reach, if any.

    `at_most` says that less is better. `remark` stands in the last column.
    """

    on: str
    what: str
    values: tuple[float, ...]
    bar: float | None = None
    at_most: bool = False
    unit: str = ""
    remark: str = ""

    @property
    def median(self) -> float:
        return median(self.values)

    @property
    def met(self) -> bool | None:
        """Whether the median reaches the bar; None without one."""
        if self.bar is None:
            return None
        return self.median <= self.bar if self.at_most else self.median >= self.bar

    def text(self) -> str:
        """The row as it stands in the table."""
        spread = f"{tell(min(self.values))} to {tell(max(self.values))}" if len(self.values) > 1 else ""
        sign = "at most" if self.at_most else "at least"
        bar = "" if self.bar is None else f"{sign} {self.bar:g}{self._unit}"
        met = {None: "", True: "yes", False: "**no**"}[self.met]
        return (
            f"| {self.on} | {self.what} | {tell(self.median)}{self._unit} | {spread} | {bar} | {met} | {self.remark} |"
        )

    @property
    def _unit(self) -> str:
        return f" {self.unit}" if self.unit else ""


def tell(value: float) -> str:
    """A number with as many digits as it deserves."""
    if abs(value) >= 1e4:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"


def ratios_of_speed(pairs: Iterable[tuple[Run, Run]]) -> tuple[float, ...]:
    """Tokens a second of the second of each pair over that of the first."""
    return tuple(variant.speed / base.speed for base, variant in pairs)


def ratios_of_cpu(pairs: Iterable[tuple[Run, Run]]) -> tuple[float, ...]:
    """The same by processor time, which a busy machine disturbs less than the clock."""
    return tuple((variant.tokens / variant.cpu_s) / (base.tokens / base.cpu_s) for base, variant in pairs)


def between(before: Run, after: Run) -> Run:
    """What two runs of the base around a variant's say of it at that moment: their mean."""
    if before.tokens != after.tokens:
        raise ValueError(f"{before.tokens} and {after.tokens} tokens: not runs of the same requests")
    return Run((before.seconds + after.seconds) / 2, before.tokens, (before.cpu_s + after.cpu_s) / 2)


def verdict(figures: Sequence[Figure]) -> str:
    """One line on how many bars are met, naming those that are not."""
    barred = [figure for figure in figures if figure.bar is not None]
    missed = [f"{figure.what} ({figure.on})" for figure in barred if not figure.met]
    told = f"{len(barred) - len(missed)} of {len(barred)} bars are met."
    return f"{told} Not met: {'; '.join(missed)}." if missed else told


def table(figures: Sequence[Figure]) -> str:
    """The whole table."""
    return "\n".join([HEAD, *(figure.text() for figure in figures)])
