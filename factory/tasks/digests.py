"""Digests of a task's files: one over what decides rows, which two runs of a job must share, and one over every byte,
which tells whether a copy beside the rows is still what it was.

What decides nothing is left out: comments, and the blank lines and spaces that go with them. Where a file cannot be
read as what its name says, every byte counts: too strict is a refusal, too lax would be rows of two kinds in silence.
"""

import importlib.util
import io
import tokenize
import tomllib
from hashlib import blake2b
from pathlib import Path

from jinja2 import TemplateSyntaxError
from jinja2.sandbox import ImmutableSandboxedEnvironment

DIGEST_BYTES = 16
# as in `render.open_environment`: these decide which white space around a comment or a block is text
LEXER = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).lexer


def digest_bytes(path: Path) -> str:
    """One name for the bytes of a file."""
    return blake2b(path.read_bytes(), digest_size=DIGEST_BYTES).hexdigest()


def digest_meaning(path: Path) -> str:
    """One name for all of a source file that decides rows."""
    reduce = {".py": reduce_python, ".j2": reduce_template, ".toml": reduce_toml}.get(path.suffix)
    data = path.read_bytes()
    try:
        text = None if reduce is None else reduce(data)
    except (ValueError, RecursionError, SyntaxError, tokenize.TokenError, TemplateSyntaxError):
        text = None
    return blake2b(data if text is None else text.encode(), digest_size=DIGEST_BYTES).hexdigest()


def reduce_python(data: bytes) -> str:
    """Python source without comments and blank lines.

    Docstrings stay: pydantic puts those of Scenario and Answer into the JSON schema that prompts print. The text is
    cut rather than its syntax tree dumped, because another release of Python prints another tree.
    """
    lines = importlib.util.decode_source(data).split("\n")
    blank = set()
    for token in tokenize.generate_tokens(io.StringIO("\n".join(lines)).readline):
        row, column = token.start
        if token.type == tokenize.COMMENT:
            lines[row - 1] = lines[row - 1][:column].rstrip()
        # a line end that ends no statement: of a blank line, of a comment, or inside brackets
        if token.type == tokenize.NL and not lines[row - 1].strip():
            blank.add(row - 1)
    return "\n".join(line for number, line in enumerate(lines) if number not in blank).rstrip("\n")


def reduce_template(data: bytes) -> str:
    """What Jinja's parser is given of a template: its tokens, without comments and the white space inside its tags."""
    parts: list[tuple[str, str]] = []
    for token in LEXER.tokenize(data.decode("utf-8")):
        if token.type == "data" and parts and parts[-1][0] == "data":
            parts[-1] = "data", parts[-1][1] + token.value  # a comment stood between them
        else:
            parts.append((token.type, repr(token.value) if token.type != "data" else token.value))
    return repr(parts)


def reduce_toml(data: bytes) -> str:
    """The values of a TOML file in their order, which decides what a seed draws from a list of words."""
    return repr(tomllib.loads(data.decode("utf-8")))
