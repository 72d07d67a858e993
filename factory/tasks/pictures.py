"""Pictures: whatever a template shows becomes a PNG of plain pixels, or the row's fault.

A picture is a path in the user's data, bytes of a file, or an image that the scenario draws with Pillow. Formats are
those that Pillow reads. It is turned as its EXIF says, and everything but the pixels is left behind: place, camera,
serial numbers, thumbnails. Its size is looked at before it is decoded, so a small file cannot fill the memory.
"""

import io
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

from factory.errors import pip_install
from factory.tasks.sandbox import OutOfBounds

MAX_PIXELS: Final = 40_000_000  # of one picture
MAX_SIDE: Final = 20_000
MAX_BYTES: Final = 64 * 2**20  # of a file


class PictureError(Exception):
    """No picture can be made of a value; the text says why."""


def tell_missing() -> str:
    """What to install where Pillow is not."""
    return f"pictures need Pillow: {pip_install('images')}"


def read_picture(value: Any) -> bytes:
    """The PNG of a path, of a file's bytes, of an image of Pillow's or of a cell of `datasets`. Raises PictureError."""
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise PictureError(tell_missing()) from None
    if isinstance(value, Mapping):  # as `datasets` holds one
        value = value.get("bytes") or value.get("path")
    opened = value if isinstance(value, Image.Image) else None
    try:
        if opened is None:
            opened = Image.open(io.BytesIO(_read_bytes(value)))
        _require_small(opened.size)
        return _as_png(ImageOps.exif_transpose(opened))
    except (PictureError, OutOfBounds, MemoryError):
        raise
    except (Exception, Image.DecompressionBombError) as error:  # decoders raise many types at what is broken
        told = " ".join(str(error).split())[:200] or type(error).__name__
        raise PictureError(f"not a picture that Pillow reads: {told}") from None


def _read_bytes(value: Any) -> bytes:
    if isinstance(value, bytes | bytearray | memoryview):
        data = bytes(value)
    elif isinstance(value, str | Path):
        data = _read_file(Path(value))
    else:
        raise PictureError(f"a picture is a path, bytes or an image of Pillow's, got {type(value).__name__}")
    if len(data) > MAX_BYTES:
        raise PictureError(f"{len(data):,} bytes (at most {MAX_BYTES:,})")
    return data


def _read_file(path: Path) -> bytes:
    # a row of somebody's data must not bring a private file of this machine into a dataset
    here = Path.cwd().resolve()
    if not path.resolve().is_relative_to(here):
        raise PictureError(f"{path}: is outside of {here}; start the factory where the pictures are")
    if not path.is_file():
        raise PictureError(f"{path}: no such file")
    with path.open("rb") as handle:
        return handle.read(MAX_BYTES + 1)


def _require_small(size: tuple[int, int]) -> None:
    width, height = size
    if not 0 < width * height <= MAX_PIXELS or max(size) > MAX_SIDE:
        raise PictureError(f"{width} x {height} pixels (at most {MAX_PIXELS:,}, and {MAX_SIDE:,} on a side)")


def _as_png(image: Any) -> bytes:
    """Pixels alone, in RGB; what is transparent stands on white."""
    from PIL import Image

    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(ground, image)
    plain = Image.new("RGB", image.size)
    plain.paste(image.convert("RGB"))
    told = io.BytesIO()
    plain.save(told, "PNG")
    return told.getvalue()


def picture_digest(png: bytes) -> str:
    """A name for a picture's pixels: another version of Pillow may pack the same ones into other bytes."""
    from PIL import Image

    with Image.open(io.BytesIO(png)) as image:
        return blake2b(f"{image.size}".encode() + image.tobytes(), digest_size=12).hexdigest()
