"""What can be wished for of a photo: operations and their values, edits, intents, the photo itself."""

from typing import Annotated, Generic, Literal, TypeVar, cast, get_args

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, model_validator

Tone = Literal["exposure", "contrast", "saturation", "temperature"]
Strength = Literal["sharpen", "blur_background"]
Slider = Literal[Tone, Strength]
Op = Literal[Slider, "crop", "rotate", "straighten", "remove_object", "filter", "resize", "export"]
Aspect = Literal["1:1", "16:9", "9:16", "4:5", "5:4", "4:3", "3:4", "3:2", "2:3"]
Format = Literal["jpeg", "png", "heic", "webp"]
Look = Literal["mono", "sepia", "fade", "glow", "pop"]
Short = Annotated[str, StringConstraints(min_length=1, max_length=40)]
Pixels = Annotated[int, Field(ge=1, le=100_000)]
ToneValue = Annotated[int, Field(strict=True, ge=-100, le=100)]
StrengthValue = Annotated[int, Field(strict=True, ge=0, le=100)]
STRENGTHS: tuple[Op, ...] = get_args(Strength)
SLIDERS: tuple[Slider, ...] = get_args(Slider)
OPS: tuple[Op, ...] = get_args(Op)
PARTS: dict[str, tuple[Op, ...]] = {
    "light": ("exposure", "contrast"),
    "colours": ("saturation", "temperature", "filter"),
    "framing": ("crop", "rotate", "straighten"),
}
OpT = TypeVar("OpT")
ValueT = TypeVar("ValueT")


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class EditOf(Frozen, Generic[OpT, ValueT]):
    op: OpT
    value: ValueT


# One shape {op, value} for a small model to learn; the op, written first, picks the values a grammar allows next.
Edit = Annotated[
    EditOf[Tone, ToneValue]
    | EditOf[Strength, StrengthValue]
    | EditOf[Literal["crop"], Aspect]
    | EditOf[Literal["rotate"], Literal[90, 180, 270]]
    | EditOf[Literal["straighten"], Annotated[int, Field(strict=True, ge=-15, le=15)]]
    | EditOf[Literal["remove_object"], Short]
    | EditOf[Literal["filter"], Look]
    | EditOf[Literal["resize"], Annotated[int, Field(strict=True, ge=64, le=8192)]]
    | EditOf[Literal["export"], Format],
    Field(discriminator="op"),
]
EDIT: TypeAdapter[Edit] = TypeAdapter(Edit)


class Intent(Frozen):
    """What a wish asks for; `shift` starts from the setting that there is now, `leave` takes earlier wishes back."""

    do: Literal["set", "shift", "leave"]
    op: Op | None = None  # none only where a whole part is to be left alone
    value: int | Short | None = None  # set: the edit's; shift: the change; leave: what not to remove, or a part
    tolerance: Annotated[int, Field(ge=0, le=100)] = 0
    said: Annotated[str, StringConstraints(max_length=200)] = ""  # the words that stand for the value
    place: Literal["first", "last"] | None = None
    after: Op | None = None

    @model_validator(mode="after")
    def _fits(self) -> "Intent":
        # by the Answer's own types: a wish that no edit can meet is a fault of the scenario
        if self.do == "set":
            EDIT.validate_python({"op": self.op, "value": self.value})
        elif self.do == "shift" and not (self.op in SLIDERS and isinstance(self.value, int)):
            raise ValueError(f"shift {self.op} {self.value!r}: needs a slider and a whole number")
        elif self.do == "leave" and not self.op and self.value not in PARTS:
            raise ValueError(f"leave {self.value!r}: needs an op, or a part out of {', '.join(PARTS)}")
        elif self.do == "leave" and self.op == "remove_object" and not self.value:
            raise ValueError("leave remove_object: needs the name of the thing as its value")
        return self


class Wish(Frozen):
    words: Annotated[str, StringConstraints(min_length=1, max_length=2000)]
    intent: Intent | None = None


class Photo(Frozen):
    name: Annotated[str, StringConstraints(min_length=1, max_length=100)] = "my photo"
    caption: Annotated[str, StringConstraints(max_length=200)] = ""
    width: Pixels | None = None
    height: Pixels | None = None
    subjects: Annotated[dict[Short, Annotated[str, StringConstraints(max_length=60)]], Field(max_length=40)] = {}
    settings: dict[Slider, ToneValue] = {}

    @property
    def size(self) -> str:
        if not self.width or not self.height:
            return "of unknown size"
        return f"{self.width} x {self.height} pixels, {self.orientation}"

    @property
    def sliders(self) -> str:
        return ", ".join(f"{op} {self.now(op)}" for op in SLIDERS)

    @property
    def things(self) -> str:
        return (
            ", ".join(f"{name} ({where})" if where else name for name, where in self.subjects.items())
            or "nothing listed"
        )

    @property
    def orientation(self) -> str:
        return "landscape" if (self.width or 0) >= (self.height or 0) else "portrait"

    def now(self, op: Op | None) -> int:
        """A slider's setting, or for `resize` the long side."""
        return max(self.width or 0, self.height or 0) if op == "resize" else self.settings.get(cast(Slider, op), 0)


class Scenario(Photo):
    wishes: Annotated[tuple[Wish, ...], Field(min_length=1, max_length=40)]


def value_of(photo: Photo, intent: Intent) -> int | str | None:
    """The value that an edit must have; a shift stops at the end of its slider."""
    if intent.do == "set":
        return intent.value
    # strengths start at 0, tones lie on both sides of it
    return max(0 if intent.op in STRENGTHS else -100, min(100, photo.now(intent.op) + cast(int, intent.value)))
