"""Pictures before the engine: what a processor may do to a prompt's ids, and chat templates without a place for one."""

import pytest
from chat_templates import CHATML, HEADER, make_tokenizer

from factory.teachers.chat_template import ChatTemplate, TemplateRefusal
from factory.teachers.engine.pictures import is_expansion
from factory.teachers.prompt_ids import PromptEncoder

SEES = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}{{ '<image>' if part.type == 'image' else part.text }}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}" + HEADER
)
PARTS = [{"type": "text", "text": "Is <image> this?"}, {"type": "image"}, {"type": "text", "text": "Say."}]


@pytest.mark.parametrize(
    ("expanded", "ranges", "right"),
    [
        ([1, 7, 8, 8, 7, 2, 9, 9, 3], [(1, 4), (6, 2)], True),
        ([7, 8, 8, 7, 2, 9, 9, 3], [(0, 4), (5, 2)], False),  # an id before the first is gone
        ([1, 7, 8, 8, 7, 5, 9, 9, 3], [(1, 4), (6, 2)], False),  # another between the two
        ([1, 7, 8, 8, 7, 2, 9, 9], [(1, 4), (6, 2)], False),  # the last is gone
        ([1, 7, 8, 8, 7, 2, 5, 3], [(1, 4)], False),  # one picture is no range, and another token stands there
        ([1, 9, 9, 2, 7, 7, 3], [(4, 2), (1, 2)], False),  # not in their order
    ],
)
def test_only_the_pictures_own_tokens_may_grow(expanded: list[int], ranges: list[tuple[int, int]], right: bool) -> None:
    assert is_expansion([1, 0, 2, 0, 3], expanded, ranges) is right


def test_a_picture_has_one_token_of_the_templates_and_no_text_can_forge_it() -> None:
    tokenizer = make_tokenizer(SEES, None, "<|im_end|>", ("<image>",))
    ids = PromptEncoder(tokenizer, None, {}).encode([{"role": "user", "content": PARTS}])
    assert ids.count(tokenizer.convert_tokens_to_ids("<image>")) == 1
    assert "Is <image> this?<image>Say." in tokenizer.decode(ids)


def test_a_template_without_a_place_for_pictures_is_refused() -> None:
    tokenizer = make_tokenizer(CHATML + HEADER, None, "<|im_end|>", ("<image>",))
    with pytest.raises(TemplateRefusal, match="it has no place for pictures; use a model that sees"):
        PromptEncoder(tokenizer, None, {}).encode([{"role": "user", "content": PARTS}])
    ChatTemplate(make_tokenizer(SEES, None, "<|im_end|>", ("<image>",)), None, {}).require_pictures(("system", "user"))
