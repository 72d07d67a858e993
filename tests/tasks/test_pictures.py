"""Pictures: any format that Pillow reads becomes plain pixels, and what is broken, huge or elsewhere is refused."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from factory.messages import text_of
from factory.tasks.faults import TaskFault
from factory.tasks.pictures import PictureError, picture_digest, read_picture
from factory.tasks.render import fill_turns, open_environment


def drawing(size: tuple[int, int] = (6, 4), mode: str = "RGB") -> Image.Image:
    image = Image.new("RGB", size, "white")
    image.putpixel((0, 0), (255, 0, 0))
    return image.convert(mode)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    told = io.BytesIO()
    image.save(told, kind, **options)
    return told.getvalue()


def opened(png: bytes) -> Image.Image:
    return Image.open(io.BytesIO(png))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "JPEG"])
def test_any_format_becomes_plain_pixels(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    image = opened(read_picture(saved(drawing(), kind, **options)))
    assert (image.format, image.mode, image.size) == ("PNG", "RGB", (6, 4))
    if kind != "JPEG":
        assert image.tobytes() == drawing().tobytes()


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "I;16", "F", "RGBA", "LA"])
def test_any_mode_becomes_rgb(mode: str) -> None:
    image = opened(read_picture(Image.new(mode, (3, 2))))
    assert (image.mode, image.size) == ("RGB", (3, 2))


def test_what_is_transparent_stands_on_white() -> None:
    assert opened(read_picture(Image.new("RGBA", (1, 1), (0, 0, 0, 0)))).getpixel((0, 0)) == (255, 255, 255)


def test_a_picture_is_turned_as_it_says_and_all_it_knows_is_left_behind() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    exif[0x010F] = "SecretCamera"
    exif[0xA431] = "Serial-12345"
    exif.get_ifd(0x8825)[1] = "N"
    told = saved(drawing(), "PNG", exif=exif, pnginfo=None)
    assert b"SecretCamera" in told
    png = read_picture(told)
    image = opened(png)
    assert image.size == (4, 6)
    assert image.getpixel((3, 0)) == (255, 0, 0)
    assert not image.getexif()
    assert image.info == {}
    assert b"Secret" not in png
    assert b"Serial" not in png


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims to be so large."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    body = b"".join(struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (b"no picture", "not a picture that Pillow reads: cannot identify image file"),
        (saved(drawing((400, 400)), "PNG")[:100], "not a picture that Pillow reads: "),
        (bomb(7_000, 7_000), "7000 x 7000 pixels (at most 40,000,000, and 20,000 on a side)"),
        (bomb(100_000, 1), "100000 x 1 pixels"),
        (bomb(60_000, 60_000), "pixels"),
        (5, "a picture is a path, bytes or an image of Pillow's, got int"),
        (None, "got NoneType"),
        ("missing.png", "missing.png: no such file"),
        ("/etc/hostname", "/etc/hostname: is outside of "),
        ({"bytes": None, "path": "missing.png"}, "missing.png: no such file"),
    ],
)
def test_what_is_no_picture_is_told(value: Any, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PictureError) as error:
        read_picture(value)
    assert says in str(error.value)


def test_a_link_out_of_the_folder_is_no_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret.png").write_bytes(saved(drawing(), "PNG"))
    inside = tmp_path / "here"
    inside.mkdir()
    (inside / "link.png").symlink_to(tmp_path / "secret.png")
    (inside / "own.png").write_bytes(saved(drawing(), "PNG"))
    monkeypatch.chdir(inside)
    assert read_picture("own.png") == read_picture({"bytes": None, "path": "own.png"}) == read_picture(drawing())
    with pytest.raises(PictureError, match="is outside of"):
        read_picture("link.png")


def test_a_picture_is_called_by_its_pixels() -> None:
    packed = saved(drawing(), "PNG", compress_level=0)
    assert packed != read_picture(drawing())
    assert picture_digest(packed) == picture_digest(read_picture(drawing()))
    assert picture_digest(read_picture(drawing((4, 6)))) != picture_digest(packed)


def show(template: str, **variables: Any) -> tuple[list[Any], list[bytes]]:
    turns, pictures = fill_turns(open_environment({"user.j2": template}), "user.j2", variables)
    return [turn["content"] for turn in turns], pictures


def test_a_template_places_pictures_among_its_text() -> None:
    one, two = drawing((1, 1)), drawing((2, 2))
    contents, pictures = show(
        "{% turn 'user' %}{% image one %}{% endturn %}{% turn 'assistant' %}Nice.{% endturn %}"
        "Before\n{% image two %}\nafter {% image one %}",
        one=one,
        two=two,
    )
    shown, text = {"type": "image"}, {"type": "text"}
    assert contents == [[shown], "Nice.", [text | {"text": "Before"}, shown, text | {"text": "after"}, shown]]
    assert [opened(png).size for png in pictures] == [(1, 1), (2, 2), (1, 1)]
    assert text_of(contents[2]) == "Before\n[image]\nafter\n[image]"


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{% image nothing %}", "image: a picture is a path"),
        ("{% turn 'user' %}a{% endturn %}{% turn 'assistant' %}{% image one %}{% endturn %}b", "user's alone"),
        ("{% set x %}{% image one %}{% endset %}b", "a picture does not stand once and whole"),
        ("{% set x %}{% image one %}{% endset %}{{ x }}{{ x }}b", "a picture does not stand once and whole"),
        ("{% filter upper %}{% image one %}{% endfilter %}b", "a picture does not stand once and whole"),
        ("x{% image one %}{% turn 'user' %}a{% endturn %}b", "text stands before a turn"),
    ],
)
def test_a_picture_that_cannot_be_shown_is_told(template: str, says: str) -> None:
    with pytest.raises(TaskFault, match=says):
        show(template, one=drawing(), nothing=7)
