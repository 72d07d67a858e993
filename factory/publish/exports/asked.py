"""What is asked of an export: the options of `factory export`, checked against what a format knows."""

from dataclasses import dataclass
from typing import Final, Literal

Mass = Literal["renormalised", "tail"]


@dataclass(frozen=True, slots=True)
class Asked:
    """The options of one export; None where the format's own default stands."""

    to: str
    stage: str | None = None
    split: str | None = None  # of the stage: train
    teacher: str | None = None
    prompt: Literal["student", "teacher"] | None = None  # whose, where a task shows them different ones
    student: str | None = None  # a tokenizer's folder or hub id
    k: int | None = None
    mass: Mass | None = None
    filler: int | None = None  # the token id that pads rows
    length: int | None = None  # tokens of a row at most
    pack: bool = False
    rows: Literal["ids", "messages"] | None = None
    reasoning: Literal["content", "apart"] | None = None

    def given(self) -> list[str]:
        """The options that only some formats know and that are given here, as they are typed."""
        return [option for name, option in OPTIONS.items() if getattr(self, name) not in (None, False)]


# beside these, every format knows --stage, --split, --teacher and --prompt
OPTIONS: Final = {
    "student": "--student",
    "k": "--k",
    "mass": "--mass",
    "filler": "--filler",
    "length": "--length",
    "pack": "--pack",
    "rows": "--rows",
    "reasoning": "--reasoning",
}
