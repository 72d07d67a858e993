"""Pictures with known faults, drawn by code; edits that change them, and numbers that say what changed.

A picture is a sea or a field under a sky, with a house and a sun, made from a few parameters. Its faults are applied to
the clean picture last, in one order: leaning, cast, light, contrast, noise. So what mends a fault is known exactly, and
what an edit does is measured on pixels, whoever chose it.
"""

import io
import math
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter
from pydantic import BaseModel, ConfigDict, Field

Pixels = NDArray[np.float64]  # [height, width, 3], 0 to 255
Measure = Literal["warmth", "brightness", "contrast", "lean", "noise", "edge"]
Op = Literal["temperature", "exposure", "contrast", "straighten", "denoise", "crop_left", "crop_right"]
# How far a measure may be from what was asked, or move unasked.
TOLERANCE: dict[Measure, float] = {"warmth": 8, "brightness": 8, "contrast": 5, "lean": 1.0, "noise": 2.0, "edge": 0.02}
WIDTH, HEIGHT, DRAWN = 160, 112, 2  # drawn at twice the size, so that edges are smooth


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Picture(Frozen):
    """A clean picture by its colours, and the faults put into it; a fault of 0 is none.

    `lean` in degrees, positive where the horizon's right end is too low; `cast` in steps of red over blue, `light` and
    `noise` in steps of 0 to 255, `flat` in percent of the contrast taken away, `intruder` the share of the width that
    something at an edge covers.
    """

    ground: Literal["sea", "field", "sand", "snow"]
    sky: tuple[int, int, int]
    sun: tuple[float, float]
    house: float
    seed: int = Field(ge=0)
    lean: float = Field(default=0, ge=-10, le=10)
    cast: float = Field(default=0, ge=-60, le=60)
    light: float = Field(default=0, ge=-80, le=80)
    flat: float = Field(default=0, ge=0, le=60)
    noise: float = Field(default=0, ge=0, le=40)
    intruder: float = Field(default=0, ge=0, le=0.2)
    side: Literal["left", "right"] = "left"

    def clean(self) -> "Picture":
        """The same picture without a fault."""
        return self.model_copy(update={"lean": 0, "cast": 0, "light": 0, "flat": 0, "noise": 0, "intruder": 0})

    def pixels(self) -> Pixels:
        """The picture as it is shown."""
        return _spoil(self, _draw(self))

    def png(self) -> bytes:
        """The picture as a PNG file; the same bytes for the same picture."""
        return encode(self.pixels())


class Edit(Frozen):
    op: Op
    value: int = Field(ge=-100, le=100)


def encode(pixels: Pixels) -> bytes:
    """Pixels as a PNG file."""
    out = io.BytesIO()
    Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8)).save(out, "PNG")
    return out.getvalue()


GROUNDS = {"sea": (58, 104, 132), "field": (96, 132, 70), "sand": (142, 110, 74), "snow": (214, 218, 224)}


def _draw(picture: Picture) -> Pixels:
    width, height = WIDTH * DRAWN, HEIGHT * DRAWN
    # larger than the frame, so that nothing outside of the scene turns into view where it leans
    frame = Image.new("RGB", (2 * width, 2 * height), picture.sky)
    draw = ImageDraw.Draw(frame)
    horizon = height + height // 10
    draw.rectangle((0, horizon, 2 * width, 2 * height), fill=GROUNDS[picture.ground])
    x, y = width / 2 + picture.sun[0] * width, height / 2 + picture.sun[1] * height
    draw.ellipse((x - 14, y - 14, x + 14, y + 14), fill=(250, 236, 190))
    left = width / 2 + picture.house * width
    draw.rectangle((left, horizon - 34, left + 48, horizon + 6), fill=(150, 72, 58))
    draw.polygon(((left - 6, horizon - 34), (left + 24, horizon - 60), (left + 54, horizon - 34)), fill=(86, 58, 54))
    draw.rectangle((left + 18, horizon - 20, left + 30, horizon + 6), fill=(44, 40, 44))
    # counter-clockwise in Pillow: a positive lean turns the right end down
    if picture.lean:
        frame = frame.rotate(-picture.lean, Image.Resampling.BILINEAR, center=(width, horizon))
    cut = frame.crop((width // 2, height // 2, width // 2 + width, height // 2 + height))
    return np.asarray(cut.resize((WIDTH, HEIGHT), Image.Resampling.BOX), dtype=np.float64)


def _spoil(picture: Picture, pixels: Pixels) -> Pixels:
    if picture.intruder:
        covered = round(picture.intruder * WIDTH)
        part = slice(0, covered) if picture.side == "left" else slice(WIDTH - covered, WIDTH)
        pixels = pixels.copy()
        pixels[HEIGHT // 5 :, part] = (226, 64, 158)
    pixels = _shift(pixels, picture.cast, picture.light)
    pixels = _stretch(pixels, 1 - picture.flat / 100)
    if picture.noise:
        rng = np.random.Generator(np.random.PCG64(picture.seed))
        pixels = pixels + rng.normal(0, picture.noise, pixels.shape[:2])[..., None]
    # what a camera stores
    return np.clip(np.rint(pixels), 0, 255)


def _shift(pixels: Pixels, warmth: float, light: float) -> Pixels:
    shifted: Pixels = pixels + np.array([warmth / 2 + light, light, -warmth / 2 + light])
    return shifted


def _stretch(pixels: Pixels, factor: float) -> Pixels:
    # of the light alone: colours stay as warm as they are
    grey = pixels.mean(axis=2, keepdims=True)
    stretched: Pixels = pixels + (grey - grey.mean()) * (factor - 1)
    return stretched


def apply(pixels: Pixels, edits: list[Edit]) -> Pixels:
    """The pixels after these edits, one after the other."""
    for edit in edits:
        pixels = np.clip(_apply(pixels, edit), 0, 255)
    return pixels


def _apply(pixels: Pixels, edit: Edit) -> Pixels:
    if edit.op == "temperature":
        return _shift(pixels, edit.value, 0)
    if edit.op == "exposure":
        return _shift(pixels, 0, edit.value)
    if edit.op == "contrast":
        return _stretch(pixels, 1 + edit.value / 100)
    if edit.op == "straighten":
        image = Image.fromarray(pixels.astype(np.uint8))
        # what turns into view at the corners is what is next to it, not black
        pad = 24
        padded = Image.fromarray(np.pad(np.asarray(image), ((pad, pad), (pad, pad), (0, 0)), mode="edge"))
        turned = padded.rotate(-edit.value, Image.Resampling.BICUBIC)
        return np.asarray(turned, dtype=np.float64)[pad:-pad, pad:-pad]
    if edit.op == "denoise":
        size = 1 + 2 * min(3, max(0, round(edit.value / 25)))
        image = Image.fromarray(pixels.astype(np.uint8)).filter(ImageFilter.MedianFilter(size))
        return np.asarray(image, dtype=np.float64)
    cut = round(max(0.0, min(40.0, edit.value)) / 100 * pixels.shape[1])
    return pixels[:, cut:] if edit.op == "crop_left" else pixels[:, : pixels.shape[1] - cut]


class Measures(NamedTuple):
    """What a picture is like, in numbers that do not depend on each other where nothing is clipped."""

    warmth: float
    brightness: float
    contrast: float
    lean: float
    noise: float
    edge: float


def measure(pixels: Pixels) -> Measures:
    """The measures of a picture. Leaning is that of the line under which most columns turn from sky to ground."""
    grey = pixels.mean(axis=2)
    smooth = np.asarray(
        Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8)).filter(ImageFilter.MedianFilter(5)), dtype=np.float64
    )
    return Measures(
        warmth=float((pixels[..., 0] - pixels[..., 2]).mean()),
        brightness=float(grey.mean()),
        contrast=float(smooth.std()),
        lean=_lean(smooth),
        noise=float(np.median(np.abs(grey - smooth)) * 1.4826),
        edge=_edge(pixels),
    )


def _lean(grey: Pixels) -> float:
    height, width = grey.shape
    # without the edges, where something may stand in the way
    inner = grey[height // 4 : -height // 8, width // 5 : -width // 5]
    steps = np.abs(inner[4:] - inner[:-4])
    at = steps.argmax(axis=0).astype(np.float64)
    x = np.arange(len(at), dtype=np.float64)
    # a house hides the horizon here and there: the line that most columns agree on is not moved by it
    agreed = max((_agreeing(at, x, slope) for slope in np.tan(np.radians(np.arange(-15, 15.1, 0.5)))), key=np.sum)
    slope = np.polyfit(x[agreed], at[agreed], 1)[0]
    return math.degrees(math.atan(float(slope)))


def _agreeing(at: NDArray[np.float64], x: NDArray[np.float64], slope: float) -> NDArray[np.bool_]:
    """The columns whose step is within a row of the commonest line with this slope."""
    rest = at - slope * x
    middle = np.round(rest)
    values, counts = np.unique(middle, return_counts=True)
    return np.asarray(np.abs(rest - values[counts.argmax()]) <= 1)


def _edge(pixels: Pixels) -> float:
    """The share of columns in which the strange colour of an intruder stands."""
    pink = (pixels[..., 0] - pixels[..., 1] > 60) & (pixels[..., 2] - pixels[..., 1] > 30)
    return float((pink.mean(axis=0) > 0.4).mean())
