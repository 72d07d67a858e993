"""Style: whether the texts of an answer sound as a task asks: their length, no Markdown, no emoji, a phone's voice."""

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

from factory.job.gates import StyleConfig
from factory.texts.texts import texts_at

MOST_PARSED = 20_000  # characters of one text that are looked at for Markdown; its parser is not linear
MARKED = re.compile(r"[*_#`\[|~<]|^[ \t]{0,9}(?:[-+=]|\d{1,9}[.)]\s)", re.MULTILINE)  # no Markdown without one of these
MARKDOWN = {
    "heading_open": "a heading",
    "strong_open": "bold",
    "em_open": "emphasis",
    "s_open": "strikethrough",
    "bullet_list_open": "a bullet list",
    "ordered_list_open": "a numbered list",
    "code_inline": "code",
    "fence": "a code block",
    "link_open": "a link",
    "image": "an image",
    "table_open": "a table",
    "hr": "a ruler",
}
IM = "(?:I am|I['\u2019]m)"
MODELS = "ChatGPT|GPT-?\\d\\w*|Gemini|Bard|Copilot|Llama|Qwen|DeepSeek|Grok|Gemma|Siri|Bixby"
MAKERS = "OpenAI|Anthropic|Google|DeepMind|Meta|Microsoft|Alibaba|DeepSeek|Mistral|xAI|Apple|Amazon|Samsung"
PERSONA = re.compile(
    r"\b(?:as an? (?:AI|artificial intelligence|(?:large )?language model)\b(?! (?:project|company|expert|engineer))"
    rf"|(?:{IM}|my name is) (?:{MODELS})\b"
    rf"|(?:{IM}|my name is) (?:Claude|Alexa|Cortana|Mistral),? (?:an? (?:AI|large language)|your (?:AI|virtual))\b"
    rf"|(?:{IM}|I was|I am a model|model|assistant) (?:trained|created|developed|built|made) by (?:{MAKERS})\b"
    rf"|{IM} (?:just |only )?an? (?:AI|(?:large )?language model|virtual assistant|chatbot)\b"
    r"|my (?:training data|knowledge cut-?off)\b)",
    re.IGNORECASE,
)
SIGN = re.compile(r"[0-9#*]\ufe0f\u20e3|[\U0001f1e6-\U0001f1ff]{2}|[^\x00-\x7f]\ufe0f?")
DESKTOP = re.compile(
    r"\b(?:(?:right|left|double|middle)[- ]click\w*|click(?:ing)? (?:here|on|the)\b"
    r"|mouse (?:button|wheel|cursor|pointer)|(?:move|use) (?:the|your) mouse|hover(?:ing)? over"
    r"|(?:press|hit|type) (?:ctrl|alt|cmd|command|f\d{1,2})\b|(?:ctrl|cmd|alt|command) ?\+ ?\w"
    r"|(?:see|in|from|as shown in) the (?:table|figure|chart|diagram|screenshot)s? (?:above|below))",
    re.IGNORECASE,
)


def find_style(style: StyleConfig, answer: object) -> list[str]:
    """Findings, `code: detail` each, about the texts of an answer; empty where all sound as they should.

    `answer` is a JSON value or a text, which is "answer" in what is told.
    """
    texts = texts_at(answer, style.fields)
    return [finding for place, text in texts for finding in _findings(style, place or "answer", text)]


def _findings(style: StyleConfig, place: str, text: str) -> Iterator[str]:
    words = len(text.split())
    if words < style.min_words:
        yield f"style_too_few_words: {place} has {words}, at least {style.min_words}"
    if style.max_words is not None and words > style.max_words:
        yield f"style_too_many_words: {place} has {words}, at most {style.max_words}"
    if not style.markdown and (marks := find_markdown(text)):
        yield f"style_markdown: {place} has {', '.join(marks)}"
    if not style.emoji and (emoji := find_emoji(text)):
        yield f"style_emoji: {place} has {' '.join(emoji[:8])}"
    if style.phone and (said := PERSONA.search(text)):
        yield f'style_persona: {place} says "{said.group()}"'
    if style.phone and (said := DESKTOP.search(text)):
        yield f'style_desktop: {place} says "{said.group()}", which no phone has'


def find_markdown(text: str) -> list[str]:
    """The kinds of Markdown in a text, in words. A single `1.` or `*` between figures is none."""
    # a parser for every short text would cost more than all other filters together
    if not MARKED.search(text):
        return []
    kinds: dict[str, None] = {}
    for token in _parse_markdown(text):
        if token.type in MARKDOWN:
            kinds[MARKDOWN[token.type]] = None
    return list(kinds)


def _parse_markdown(text: str) -> Iterator[Any]:
    tokens = _markdown().parse(text[:MOST_PARSED])
    for number, token in enumerate(tokens):
        if token.type == "ordered_list_open" and _items(tokens, number) < 2:
            continue  # "2. Mai" begins no list
        yield token
        children = token.children or []
        for at, child in enumerate(children):
            figures = child.type == "em_open" and not any(c.isalpha() for c in children[at + 1].content)
            if not figures:  # "3*4*5"
                yield child


def _items(tokens: list[Any], start: int) -> int:
    level = tokens[start].level
    count = 0
    for token in tokens[start + 1 :]:
        if token.level == level:
            return count
        count += token.type == "list_item_open" and token.level == level + 1
    return count


@cache
def _markdown() -> Any:
    from markdown_it import MarkdownIt

    return MarkdownIt("commonmark").enable(["table", "strikethrough"]).disable(["html_block", "html_inline", "entity"])


def find_emoji(text: str) -> list[str]:
    """The emoji in a text, each once; signs that are text unless styled otherwise (the copyright sign) are none."""
    if text.isascii():
        return []
    from emoji import EMOJI_DATA, STATUS

    found = dict.fromkeys(SIGN.findall(text))
    return [sign for sign in found if EMOJI_DATA.get(sign, {"status": 9})["status"] <= STATUS["fully_qualified"]]
