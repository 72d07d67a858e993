"""Minimal chat templates of the same behaviour as those of well-known models, and a tokenizer of bytes under each.

Written by us: what counts is what a template does with roles, reasoning, white space and end tokens.
"""
# ruff: noqa: E501

import re
from dataclasses import dataclass, field
from typing import Any

THINK = ("<think>", "</think>")
CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
ASSISTANT = "{% if add_generation_prompt %}<|im_start|>assistant\n"
HEADER = ASSISTANT + "{% endif %}"
ALTERNATION = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% endfor %}"
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
FOLDED = (
    "{% if messages[0].role == 'system' %}{% set first = messages[0].content + '\n\n' %}{% set turns = messages[1:] %}"
    "{% else %}{% set first = '' %}{% set turns = messages %}{% endif %}"
)
QWEN3 = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and (loop.last or m.reasoning_content) "
    "%}<think>\n{{ m.reasoning_content or '' }}\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
)
HIDDEN = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}{% elif m.role == 'user' %}<|User|>{{ m.content }}"
    "{% else %}<|Assistant|>{{ m.content.split('</think>')[-1] }}<|end_of_sentence|>{% endif %}{% endfor %}"
)
LLAMA3 = (
    "<|begin_of_text|>{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{% if loop.first and date_string is defined %}Today Date: {{ date_string }}\n\n{% endif %}"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
DATED = "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"


@dataclass(frozen=True)
class Case:
    """A template; `tail` is what must stand after the user's text, or `refused` a piece of the refusal.

    `ending` is what a scored turn ends in after its text, `end` its last token; `reasons`: it ends inside a reasoning.
    """

    template: str
    tail: str = ""
    end: str = "<|im_end|>"
    ending: str = ""
    before: str = ""
    reasons: bool = False
    reasoning: Any = "auto"
    kwargs: dict[str, Any] = field(default_factory=dict)
    refused: str = ""
    system: bool = True
    bos: str | None = None
    eos: str = "<|im_end|>"
    also_end: tuple[str, ...] = ()
    plain: tuple[str, ...] = THINK  # added tokens that are not marked special

    def tokenizer(self) -> Any:
        return make_tokenizer(self.template, self.bos, self.eos, self.plain)


def make_tokenizer(template: str | None, bos: str | None, eos: str | None, plain: tuple[str, ...] = ()) -> Any:
    """A tokenizer of bytes to which every tag of the template is one token, special or `plain`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(letters)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    tags = re.findall(r"<\|?\w+\|?>|\[/?\w+\]", template or "")
    special = dict.fromkeys([*tags, *filter(None, (bos, eos))])
    raw.add_special_tokens([tag for tag in special if tag not in plain])
    raw.add_tokens(list(plain))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token=bos, eos_token=eos)
    tokenizer.chat_template = template
    return tokenizer


CASES = {
    "Qwen2.5": Case(CHATML + HEADER, "<|im_end|>\n<|im_start|>assistant\n", plain=()),
    "Qwen3, hybrid": Case(
        QWEN3 + ASSISTANT + "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}",
        "<|im_end|>\n<|im_start|>assistant\n<think>\n",
        before="\n</think>\n\n",
        reasons=True,
    ),
    "Qwen3, hybrid, off": Case(
        QWEN3 + ASSISTANT + "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}",
        "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
        reasoning="off",
    ),
    "Qwen3, hybrid, switched off by the job": Case(
        QWEN3 + ASSISTANT + "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}",
        "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
        kwargs={"enable_thinking": False},
    ),
    "Qwen3, hybrid, off and on": Case(
        QWEN3 + HEADER, reasoning="off", kwargs={"enable_thinking": True}, refused="enable_thinking is true"
    ),
    "Qwen3-Thinking": Case(
        QWEN3 + ASSISTANT + "<think>\n{% endif %}",
        "<|im_end|>\n<|im_start|>assistant\n<think>\n",
        before="\n</think>\n\n",
        reasons=True,
    ),
    "Qwen3-Thinking, off": Case(
        QWEN3 + ASSISTANT + "<think>\n{% endif %}", reasoning="off", refused="it opens a reasoning (<think>)"
    ),
    "Qwen3-Instruct": Case(CHATML + HEADER, "<|im_end|>\n<|im_start|>assistant\n"),
    "Qwen3-Instruct, asked to reason": Case(
        CHATML + HEADER,
        "<|im_end|>\n<|im_start|>assistant\n<think>\n",
        before="\n</think>\n\n",
        reasons=True,
        reasoning="prompted",
    ),
    "QwQ": Case(
        CHATML + ASSISTANT + "<think>\n{% endif %}",
        "<|im_end|>\n<|im_start|>assistant\n<think>\n",
        before="\n</think>\n\n",
        reasons=True,
    ),
    "DeepSeek-R1": Case(
        HIDDEN + "{% if add_generation_prompt %}<|Assistant|><think>\n{% endif %}",
        "<|Assistant|><think>\n",
        end="<|end_of_sentence|>",
        before="\n</think>\n\n",
        reasons=True,
        eos="<|end_of_sentence|>",
    ),
    "DeepSeek-R1, first release": Case(
        HIDDEN + "{% if add_generation_prompt %}<|Assistant|>{% endif %}",
        "<|Assistant|><think>\n",
        end="<|end_of_sentence|>",
        before="\n</think>\n\n",
        reasons=True,
        eos="<|end_of_sentence|>",
    ),
    "DeepSeek-V3.1": Case(
        HIDDEN.replace("<|Assistant|>", "<|Assistant|></think>")
        + "{% if add_generation_prompt %}<|Assistant|>{% if thinking %}<think>{% else %}</think>{% endif %}{% endif %}",
        "<|Assistant|><think>",
        end="<|end_of_sentence|>",
        before="\n</think>\n\n",
        reasons=True,
        eos="<|end_of_sentence|>",
    ),
    "DeepSeek-V3.1, off": Case(
        HIDDEN.replace("<|Assistant|>", "<|Assistant|></think>")
        + "{% if add_generation_prompt %}<|Assistant|>{% if thinking %}<think>{% else %}</think>{% endif %}{% endif %}",
        "<|Assistant|></think>",
        end="<|end_of_sentence|>",
        reasoning="off",
        eos="<|end_of_sentence|>",
    ),
    "Llama 2": Case(
        "{% if messages[0].role == 'system' %}{% set first = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' %}"
        "{% set turns = messages[1:] %}{% else %}{% set first = '' %}{% set turns = messages %}{% endif %}"
        "{% for m in turns %}{% if m.role == 'user' %}{{ bos_token }}[INST] {{ first if loop.first else '' }}"
        "{{ m.content | trim }} [/INST]{% else %} {{ m.content | trim }} {{ eos_token }}{% endif %}{% endfor %}",
        " [/INST]",
        end="</s>",
        ending=" ",
        before=" ",
        bos="<s>",
        eos="</s>",
        plain=("[INST]", "[/INST]"),
    ),
    "Llama 3": Case(
        LLAMA3,
        "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        end="<|eot_id|>",
        eos="<|end_of_text|>",
        also_end=("<|eot_id|>",),
        plain=(),
    ),
    "Llama 3.1, with a date": Case(
        DATED + LLAMA3,
        "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        end="<|eot_id|>",
        eos="<|eom_id|>",
        plain=(),
    ),
    "Mistral v1": Case(
        "{{ bos_token }}"
        + ALTERNATION
        + "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
        "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}",
        " [/INST]",
        end="</s>",
        before=" ",
        system=False,
        bos="<s>",
        eos="</s>",
        plain=(),
    ),
    "Mistral v1, system": Case(
        "{{ bos_token }}"
        + ALTERNATION
        + "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
        "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}",
        refused="roles must alternate",
        bos="<s>",
        eos="</s>",
    ),
    "Mistral v3": Case(
        "{{ bos_token }}"
        + FOLDED
        + "{% for m in turns %}{% if m.role == 'user' %}[INST] {{ first if loop.first else '' }}"
        "{{ m.content }}[/INST]{% else %} {{ m.content | trim }}{{ eos_token }}{% endif %}{% endfor %}",
        "[/INST]",
        end="</s>",
        before=" ",
        bos="<s>",
        eos="</s>",
        plain=(),
    ),
    "Mistral Tekken": Case(
        "{{ bos_token }}"
        + FOLDED
        + "{% for m in turns %}{% if m.role == 'user' %}[INST]{{ first if loop.first else '' }}"
        "{{ m.content }}[/INST]{% else %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}",
        "[/INST]",
        end="</s>",
        bos="<s>",
        eos="</s>",
        plain=(),
    ),
    "Mixtral": Case(
        "{{ bos_token }}"
        + FOLDED
        + "{% for m in turns %}{% if m.role == 'user' %} [INST] {{ first if loop.first else '' }}"
        "{{ m.content }} [/INST]{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}",
        " [/INST]",
        end="</s>",
        before=" ",
        bos="<s>",
        eos="</s>",
        plain=(),
    ),
    "Gemma 1 and 2": Case(
        "{{ bos_token }}"
        + NO_SYSTEM
        + "{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else "
        "m.role }}\n{{ m.content | trim }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n"
        "{% endif %}",
        "<end_of_turn>\n<start_of_turn>model\n",
        end="<end_of_turn>",
        system=False,
        bos="<bos>",
        eos="<eos>",
        plain=("\n\n", "<table>"),
    ),
    "Gemma 2, system": Case(NO_SYSTEM + CHATML, refused="System role not supported"),
    "Gemma 3": Case(
        "{{ bos_token }}"
        + FOLDED
        + "{% for m in turns %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
        "{{ first if loop.first else '' }}{% if m.content is string %}{{ m.content | trim }}{% else %}{% for p in m.content "
        "%}{{ p.text | trim }}{% endfor %}{% endif %}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}"
        "<start_of_turn>model\n{% endif %}",
        "<end_of_turn>\n<start_of_turn>model\n",
        end="<end_of_turn>",
        bos="<bos>",
        eos="<eos>",
        plain=("\n\n", "<table>"),
    ),
    "Phi-3": Case(
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}",
        "<|end|>\n<|assistant|>\n",
        end="<|end|>",
        eos="<|endoftext|>",
        also_end=("<|end|>", "<|assistant|>"),
        plain=("<|user|>", "<|system|>"),
    ),
    "Phi-4": Case(
        "{% for m in messages %}<|im_start|>{{ m.role }}<|im_sep|>{{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant<|im_sep|>{% endif %}",
        "<|im_end|><|im_start|>assistant<|im_sep|>",
        plain=(),
    ),
    "Phi-4-mini": Case(
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% else %}{{ eos_token }}{% endif %}",
        "<|end|><|assistant|>",
        end="<|end|>",
        eos="<|endoftext|>",
        plain=("<|end|>", "<|user|>", "<|system|>"),
    ),
    "GLM-4": Case(
        "[gMASK]<sop>{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}",
        "<|assistant|>",
        end="<|user|>",
        before="\n",
        eos="<|endoftext|>",
        also_end=("<|user|>", "<|observation|>"),
        plain=("<|user|>", "<|system|>", "<|observation|>"),
    ),
    "GLM-4.5": Case(
        "[gMASK]<sop>{% for m in messages %}<|{{ m.role }}|>\n{% if m.role == 'assistant' %}<think>"
        "{{ m.reasoning_content or '' }}</think>\n{% endif %}{{ m.content }}{% if m.role == 'user' and enable_thinking is "
        "false %}/nothink{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>"
        "{% if enable_thinking is false %}\n<think></think>{% endif %}{% endif %}",
        "<|assistant|>\n<think>",
        end="<|user|>",
        before="</think>\n",
        reasons=True,
        eos="<|endoftext|>",
        also_end=("<|user|>", "<|observation|>"),
        plain=("<|user|>", "<|system|>", "<|observation|>", *THINK),
    ),
    "Command-R": Case(
        "{{ bos_token }}{% for m in messages %}<|START_OF_TURN_TOKEN|>{% if m.role == 'user' %}<|USER_TOKEN|>"
        "{% elif m.role == 'system' %}<|SYSTEM_TOKEN|>{% else %}<|CHATBOT_TOKEN|>{% endif %}{{ m.content | trim }}"
        "<|END_OF_TURN_TOKEN|>{% endfor %}{% if add_generation_prompt %}<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{% endif %}",
        "<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
        end="<|END_OF_TURN_TOKEN|>",
        bos="<BOS_TOKEN>",
        eos="<|END_OF_TURN_TOKEN|>",
        plain=(),
    ),
    "OLMo 2": Case(
        "{{ bos_token }}{% for m in messages %}{{ '<' ~ '|' ~ m.role ~ '|>\n' }}{{ m.content }}"
        "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% if not loop.last or m.role != 'assistant' %}\n"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<' ~ '|assistant|>\n' }}{% endif %}",
        "<|assistant|>\n",
        end="<|endoftext|>",
        bos="<|endoftext|>",
        eos="<|endoftext|>",
        plain=(),
    ),
    "Granite 3": Case(
        "{% if thinking %}<|start_of_role|>system<|end_of_role|>Think first.<|end_of_text|>\n{% endif %}"
        "{% for m in messages %}<|start_of_role|>{{ m.role }}<|end_of_role|>{{ m.content }}<|end_of_text|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|start_of_role|>assistant<|end_of_role|>{% endif %}",
        "<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>",
        end="<|end_of_text|>",
        eos="<|end_of_text|>",
        plain=(),
    ),
    "SmolLM3": Case(
        "{% set on = enable_thinking | default(true) and not '/no_think' in messages[0].content %}"
        "<|im_start|>system\nToday Date: {{ strftime_now('%d %B %Y') }}<|im_end|>\n"
        + CHATML
        + "{% if add_generation_prompt %}<|im_start|>assistant\n{% if not on %}<think>\n\n</think>\n{% endif %}{% endif %}",
        "<|im_end|>\n<|im_start|>assistant\n<think>\n",
        before="\n</think>\n\n",
        reasons=True,
    ),
    "gpt-oss": Case(
        "{% for m in messages %}<|start|>{{ m.role }}{% if m.role == 'assistant' %}<|channel|>final{% endif %}<|message|>"
        "{{ m.content }}{% if loop.last and m.role == 'assistant' %}<|return|>{% else %}<|end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant{% endif %}",
        refused="it speaks in channels (<|channel|>)",
        eos="<|return|>",
    ),
    "gpt-oss, told its channels": Case(
        "{% for m in messages %}<|start|>{{ m.role }}{% if m.role == 'assistant' %}<|channel|>final{% endif %}<|message|>"
        "{{ m.content }}{% if loop.last and m.role == 'assistant' %}<|return|>{% else %}<|end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant{% endif %}",
        "<|end|><|start|>assistant<|channel|>analysis<|message|>",
        end="<|return|>",
        before="<|end|><|start|>assistant<|channel|>final<|message|>",
        reasons=True,
        reasoning={
            "start": "<|channel|>analysis<|message|>",
            "end": "<|end|><|start|>assistant<|channel|>final<|message|>",
        },
        eos="<|return|>",
        plain=(),
    ),
    "Falcon 3": Case(
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}"
        "{{ '\n' }}{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
        "\n<|assistant|>\n",
        end="<|endoftext|>",
        eos="<|endoftext|>",
        plain=("<|user|>", "<|system|>"),
    ),
    "Zephyr": Case(
        "{% for m in messages %}{{ '<' ~ '|' ~ m.role ~ '|>\n' }}{{ m.content }}{{ eos_token }}\n{% endfor %}"
        "{% if add_generation_prompt %}{{ '<' ~ '|assistant|>\n' }}{% endif %}",
        "</s>\n<|assistant|>\n",
        end="</s>",
        eos="</s>",
        plain=(),
    ),
    "StableLM 2": Case(
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|endoftext|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
        "<|endoftext|>\n<|assistant|>\n",
        end="<|endoftext|>",
        eos="<|endoftext|>",
        plain=("<|user|>", "<|system|>"),
    ),
    "MiniCPM": Case(
        "{% for m in messages %}{% if m.role == 'user' %}<User>{{ m.content | trim }}<AI>{% else %}{{ m.content | trim }}"
        "{% endif %}{% endfor %}",
        "<AI>",
        end="</s>",
        eos="</s>",
        plain=(),
    ),
    "Granite, asked to reason where the vocabulary has no markers": Case(
        CHATML + HEADER,
        "<|im_end|>\n<|im_start|>assistant\n<reason>",
        before="</reason>",
        reasons=True,
        reasoning={"start": "<reason>", "end": "</reason>"},
        plain=(),
    ),
    "a marker spelt with its newline": Case(
        CHATML + "<|im_start|>assistant\n<think>\n",
        "<|im_end|>\n<|im_start|>assistant\n<think>\n",
        before="\n</think>",
        reasons=True,
        reasoning={"start": "<think>\n", "end": "\n</think>"},
    ),
    "drops the system turn": Case(
        "{% for m in messages %}{% if m.role != 'system' %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}"
        "{% endfor %}" + HEADER,
        refused="it drops the system turn",
    ),
    "wants parts": Case(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}"
        "{% endif %}{% endfor %}<|im_end|>\n{% endfor %}" + HEADER,
        "<|im_end|>\n<|im_start|>assistant\n",
    ),
    "keeps nothing": Case("<|im_start|>" + HEADER, refused="it drops the system turn"),
    "draws lots": Case(CHATML + "{{ range(99999) | random }}" + HEADER, refused="renders one conversation in two ways"),
    "opens twice": Case(
        CHATML + ASSISTANT + "<think>\n\n</think>\n\n<think>\n{% endif %}", refused="opens the reasoning more than once"
    ),
    "no generation prompt": Case(CHATML, refused="it ignores add_generation_prompt: '<|im_start|>assistant'"),
}
