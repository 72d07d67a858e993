"""Digests: comments and what goes with them change nothing, everything that may decide a row does."""

from pathlib import Path

import pytest
from conftest import SCHEMA
from jinja2.sandbox import ImmutableSandboxedEnvironment

from factory.tasks.digests import digest_bytes, digest_meaning, reduce_python, reduce_template, reduce_toml

PYTHON = '''
"""A module."""
X = "# no comment"  # one
TEXT = """
# no comment either

"""


def f(a: int) -> int:
    # another
    return (
        a
        # inside brackets

        + 1
    )
'''
SAME_PYTHON = '''"""A module."""
X = "# no comment"
# moved


TEXT = """
# no comment either

"""
def f(a: int) -> int:
    return (
        a
        + 1
    )
'''


def digest(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.write_bytes(text.encode())
    return digest_meaning(path)


def test_comments_and_blank_lines_of_python_decide_nothing(tmp_path: Path) -> None:
    assert reduce_python(PYTHON.encode()) == reduce_python(SAME_PYTHON.encode())
    assert digest(tmp_path, "a.py", PYTHON) == digest(tmp_path, "a.py", SAME_PYTHON)
    assert digest(tmp_path, "a.py", PYTHON.replace("\n", "\r\n")) == digest(tmp_path, "a.py", PYTHON)


def test_what_is_left_of_a_schema_without_its_comments_runs_as_before() -> None:
    before, after = {"__name__": "before"}, {"__name__": "before"}
    commented = SCHEMA.replace("class Answer", "# told\n\n\nclass Answer")
    exec(compile(commented, "a", "exec", dont_inherit=True), before)
    exec(compile(reduce_python(commented.encode()), "a", "exec", dont_inherit=True), after)
    assert before["Answer"].model_json_schema() == after["Answer"].model_json_schema()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"""A module."""', '"""Another module."""'),  # pydantic puts docstrings into prompts
        ('"# no comment"', '"# a comment"'),
        ("# no comment either\n\n", "# no comment either\n"),
        ("+ 1", "+ 2"),
        ("    return (\n        a", "    return (\n        a,"),
    ],
)
def test_all_else_of_python_counts(old: str, new: str, tmp_path: Path) -> None:
    assert old in PYTHON
    assert digest(tmp_path, "a.py", PYTHON) != digest(tmp_path, "a.py", PYTHON.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Add {{ a }}.", "Add {#- one -#} {{a}}."),
        ("{% if a %}x{% endif %}", "{# why #}{%if a%}x{% endif %}"),
        ("a\n{# why #}\nb", "a\nb"),
        ("ab", "a{# between #}b"),
    ],
)
def test_templates_that_render_to_the_same_text_have_one_digest(old: str, new: str, tmp_path: Path) -> None:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    same = environment.from_string(old).render(a="1") == environment.from_string(new).render(a="1")
    assert (digest(tmp_path, "a.j2", old) == digest(tmp_path, "a.j2", new)) == same


@pytest.mark.parametrize(("old", "new"), [("a", "b"), ("{{ a }}", "{{ b }}"), ("{{ 'a' }}", "a"), ("a", "a ")])
def test_all_else_of_a_template_counts(old: str, new: str) -> None:
    assert reduce_template(old.encode()) != reduce_template(new.encode())


def test_a_word_bank_is_its_values_in_their_order() -> None:
    assert reduce_toml(b'# why\na = ["x",\n "y"]\nb = 1\n') == reduce_toml(b'a = ["x", "y"] # so\nb = 1')
    for other in (b'a = ["y", "x"]\nb = 1', b'b = 1\na = ["x", "y"]', b'a = ["x", "y"]\nb = 1.0'):
        assert reduce_toml(other) != reduce_toml(b'a = ["x", "y"]\nb = 1')


@pytest.mark.parametrize("name", ["a.py", "a.j2", "a.toml", "a.txt"])
def test_a_file_that_is_not_what_its_name_says_counts_byte_for_byte(name: str, tmp_path: Path) -> None:
    broken = "{{ 'x ( [ \x00"
    assert digest(tmp_path, name, broken) == digest_bytes(tmp_path / name)
