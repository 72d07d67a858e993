"""The digest of a local model: what it depends on, and what is remembered of it between runs.

No clock is asked whether the memory is used: a file's content is changed behind its back, with size and time restored,
and the old digest is what comes out.
"""

import hashlib
import json
import os
from pathlib import Path

import pytest

from factory.teachers.digest import digest_model, memory_path

LONG_AGO_NS = 1_600_000_000_000_000_000
BROKEN = [
    b"",
    b"{",
    b"\xff\xfe",
    b"[]",
    b"null",
    b'{"a": 1}',
    b'{"a": [1, 2, 3]}',
    b'{"a": [1, 2, 3, "no hash"]}',
    b'{"a": {"size": 1}}',
]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    write(folder / "config.json", "{}")
    write(folder / "model-1.safetensors", "first")
    write(folder / "model-2.safetensors", "other")
    return folder


def write(path: Path, text: str, mtime_ns: int = LONG_AGO_NS) -> None:
    """The same file with another content."""
    with path.open("w") as file:
        file.write(text)
    os.utime(path, ns=(mtime_ns, mtime_ns))


def plain_digest(model: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(model.iterdir()):
        digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def test_a_model_on_the_hub_has_no_digest() -> None:
    assert digest_model("Qwen/Qwen3-8B") is None


def test_the_digest_is_of_names_and_contents_and_the_same_when_it_is_remembered(model: Path) -> None:
    assert [digest_model(str(model)) for _ in range(3)] == [plain_digest(model)] * 3


def test_the_tokenizer_and_other_files_are_no_part_of_it(model: Path) -> None:
    before = digest_model(str(model))
    write(model / "tokenizer.json", "{}")
    (model / "pictures.bin.d").mkdir()
    assert digest_model(str(model)) == before


def test_a_file_that_looks_untouched_is_not_read_again(model: Path) -> None:
    before = digest_model(str(model))
    write(model / "model-1.safetensors", "FIRST")  # same size, same time, same inode
    assert digest_model(str(model)) == before != plain_digest(model)


def test_a_change_is_found_by_its_time(model: Path) -> None:
    before = digest_model(str(model))
    write(model / "model-1.safetensors", "FIRST", LONG_AGO_NS + 1)
    assert digest_model(str(model)) == plain_digest(model) != before


def test_a_change_is_found_by_its_size(model: Path) -> None:
    digest_model(str(model))
    write(model / "model-1.safetensors", "first and more")
    assert digest_model(str(model)) == plain_digest(model)


def test_a_file_put_in_anothers_place_is_found(model: Path) -> None:
    digest_model(str(model))
    write(model / "new", "FIRST")
    (model / "new").replace(model / "model-1.safetensors")
    assert digest_model(str(model)) == plain_digest(model)


def test_two_files_that_change_places_are_another_model(model: Path) -> None:
    before = digest_model(str(model))
    first, second, aside = (model / name for name in ("model-1.safetensors", "model-2.safetensors", "aside"))
    first.replace(aside)
    second.replace(first)
    aside.replace(second)
    assert digest_model(str(model)) == plain_digest(model) != before


def test_only_what_changed_is_read_again(model: Path) -> None:
    digest_model(str(model))
    write(model / "model-1.safetensors", "FIRST")  # hidden: only a reading would find it
    write(model / "model-2.safetensors", "OTHER", LONG_AGO_NS + 1)
    found = digest_model(str(model))
    write(model / "model-1.safetensors", "first")
    assert found == plain_digest(model)


def test_a_file_that_was_just_written_is_not_remembered(model: Path, cache: Path) -> None:
    (model / "model-1.safetensors").write_text("fresh")
    digest_model(str(model))
    known = json.loads(memory_path().read_bytes())
    assert sorted(Path(path).name for path in known) == ["config.json", "model-2.safetensors"]


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_memory_is_ignored_and_written_anew(model: Path, broken: bytes) -> None:
    memory_path().parent.mkdir(parents=True)
    memory_path().write_bytes(broken)
    assert digest_model(str(model)) == plain_digest(model)
    assert len(json.loads(memory_path().read_bytes())) == 3


def test_a_cache_that_cannot_be_written_is_no_error(model: Path, cache: Path) -> None:
    cache.write_text("a file where a folder should be")
    assert digest_model(str(model)) == plain_digest(model)
    assert cache.read_text() == "a file where a folder should be"


def test_a_memory_that_cannot_be_replaced_is_no_error_and_leaves_nothing_behind(model: Path) -> None:
    memory_path().mkdir(parents=True)  # no file can take a folder's place
    assert digest_model(str(model)) == plain_digest(model)
    assert [path.name for path in memory_path().parent.iterdir()] == [memory_path().name]


def test_files_that_are_gone_are_forgotten(model: Path) -> None:
    digest_model(str(model))
    (model / "model-2.safetensors").unlink()
    write(model / "model-1.safetensors", "FIRST", LONG_AGO_NS + 1)
    digest_model(str(model))
    assert sorted(Path(path).name for path in json.loads(memory_path().read_bytes())) == [
        "config.json",
        "model-1.safetensors",
    ]


@pytest.mark.parametrize("told", ["", "relative/cache"])
def test_without_an_absolute_cache_home_it_is_in_the_homes_cache(
    told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", told)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert memory_path() == tmp_path / ".cache" / "distillation-factory" / "model-digests.json"


def test_a_user_without_a_home_has_no_memory_and_no_error(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 7)  # nobody's number, as containers run under
    assert digest_model(str(model)) == plain_digest(model)
