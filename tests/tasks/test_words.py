"""Word banks: read from beside a Python file, checked, and every fault told on one line with its path."""

from pathlib import Path

import pytest

from factory.errors import TaskError
from factory.tasks.words import WordBank, Words, read_words, words_path


class Bank(WordBank):
    products: Words
    prices: dict[str, int]


WHOLE = 'products = ["tent", "stove"]\n[prices]\ntent = 99\n'


def test_a_word_bank_has_the_name_of_its_python_file_and_keeps_its_order(tmp_path: Path) -> None:
    assert words_path(tmp_path / "gifts.py") == tmp_path / "gifts.words.toml"
    (tmp_path / "gifts.words.toml").write_text(WHOLE + "stove = 60\nash = 1\n")
    bank = read_words(str(tmp_path / "gifts.py"), Bank)
    assert bank.products == ("tent", "stove")
    assert list(bank.prices.items()) == [("tent", 99), ("stove", 60), ("ash", 1)]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('products = ["tent"', "not valid TOML: "),
        ('products = ["tent"]\nproducts = ["stove"]', "not valid TOML: "),
        ("a = " + "[" * 5000 + "]" * 5000, "not valid TOML: nested too deeply"),
        ("products = []\nprices = {}", "products: Tuple should have at least 1 item"),
        ('products = [""]\nprices = {}', "products.0: String should have at least 1 character"),
        ('products = ["tent"]', "prices: missing; add it"),
        (f"brands = 1\n{WHOLE}", "brands: unknown key (known here: prices, products)"),
        (WHOLE.replace("99", '"dear"'), "prices.tent: Input should be a valid integer"),
    ],
)
def test_a_broken_word_bank_is_named_on_one_line(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "gifts.words.toml"
    path.write_text(text)
    with pytest.raises(TaskError) as told:
        read_words(str(tmp_path / "gifts.py"), Bank)
    assert str(told.value).startswith(f"{path}: {says}")
    assert "\n" not in str(told.value)


def test_a_word_bank_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "gifts.words.toml"
    with pytest.raises(TaskError, match=r"missing; gifts\.py draws from it") as told:
        read_words(str(tmp_path / "gifts.py"), Bank)
    assert str(told.value).startswith(f"{path}: ")
    path.write_bytes(b'products = ["\xff"]')
    with pytest.raises(TaskError, match="cannot be read: 'utf-8'"):
        read_words(str(tmp_path / "gifts.py"), Bank)
    path.unlink()
    path.mkdir()
    with pytest.raises(TaskError, match=r"cannot be read: .*Is a directory"):
        read_words(str(tmp_path / "gifts.py"), Bank)
