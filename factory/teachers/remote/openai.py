"""OpenAI's chat completions, as OpenAI and as a vLLM server speak them.

A vLLM server is asked for ids (`return_token_ids`, `return_tokens_as_token_ids`) and for one more of the likeliest than
is kept: it lists the sampled token among them, in the place of the last where that is not one of them.
"""

from dataclasses import asdict, replace
from typing import Any, Final

import numpy as np

from factory.records import Generation, Prompt
from factory.signals import Array
from factory.teachers.chosen import keep_chosen
from factory.teachers.data_urls import with_data_urls
from factory.teachers.reasoning import Markers, split_completion
from factory.teachers.remote.read import (
    BadAnswer,
    NoIds,
    Token,
    as_ids,
    ended_otherwise,
    find_end,
    make_logprobs,
    no_logprobs,
    split_text,
    whole_number,
)
from factory.teachers.remote.spelling import Unspelt
from factory.teachers.remote.wire import Body, Said
from factory.teachers.tokens import LocalTokenizer
from factory.usage import Usage

REASONING: Final = ("reasoning", "reasoning_content")  # the newer name first; some servers send both
ID: Final = "token_id:"
MOST_OF_OPENAI: Final = 20  # of top_logprobs


class OpenAIWire:
    """`vllm`: the server is vLLM's. `tokenizer` decodes its ids; without one its texts are taken as they come."""

    def __init__(
        self,
        said: Said,
        vllm: bool,
        tokenizer: LocalTokenizer | None = None,
        markers: Markers | None = None,
        length: str = "max_tokens",
    ) -> None:
        self.said, self.vllm, self.tokenizer = said, vllm, tokenizer
        self.own_markers, self.length = markers, length

    def path(self) -> str:
        return "chat/completions"

    def body(self, prompt: Prompt) -> Body:
        sampling = prompt.sampling
        body: Body = {
            "model": self.said.model,
            "messages": with_data_urls(prompt),
            "temperature": sampling.temperature,
            self.length: sampling.max_tokens,
        }
        # some models refuse to be told what they do anyway
        body |= {"top_p": sampling.top_p} if sampling.top_p < 1 else {}
        # a greedy answer draws nothing
        body |= {"seed": prompt.seed} if sampling.temperature > 0 else {}
        schema = self.said.schemas.get(prompt.task)
        body |= {} if schema is None else self._grammar(schema)
        body |= self._logprobs() if prompt.keeps else {}
        body |= self._vllm_body(prompt) if self.vllm else {}
        return body | self.said.body

    def _grammar(self, schema: Body) -> Body:
        if self.vllm:
            return {"structured_outputs": {"json": schema}}
        named = {"name": "answer", "strict": True, "schema": schema}
        return {"response_format": {"type": "json_schema", "json_schema": named}}

    def _logprobs(self) -> Body:
        k = self.said.signals.top_k
        if self.vllm:
            # without a tokenizer the tokens' bytes tell where the reasoning ends
            bare = {} if self.tokenizer is not None else {"logprobs": True}
            return {"logprobs": True, "top_logprobs": k + 1} if k else bare
        # the sampled tokens' bytes tell their ids, also where nothing else is kept
        return {"logprobs": True, "top_logprobs": k} if self.said.spelling is not None else {}

    def _vllm_body(self, prompt: Prompt) -> Body:
        sampling = prompt.sampling
        body: Body = {"return_token_ids": True, "return_tokens_as_token_ids": True}
        body |= {"top_k": sampling.top_k} if sampling.top_k else {}
        body |= {"min_p": sampling.min_p} if sampling.min_p else {}
        body |= {"repetition_penalty": sampling.repetition_penalty} if sampling.repetition_penalty != 1 else {}
        thinks = sampling.thinking_tokens is not None and bool(self.said.markers)
        body |= {"thinking_token_budget": sampling.thinking_tokens} if thinks else {}
        loops = sampling.stop_repetition
        body |= {} if loops is None else {"repetition_detection": asdict(loops)}
        kwargs = self.said.chat_template_kwargs
        return body | ({"chat_template_kwargs": kwargs} if kwargs else {})

    def usage(self, reply: Body) -> Usage | None:
        found = reply.get("usage")
        if not isinstance(found, dict) or not isinstance(found.get("prompt_tokens"), int):
            return None
        return Usage(
            whole_number(found, "prompt_tokens"),
            whole_number(found, "prompt_tokens_details", "cached_tokens"),
            whole_number(found, "completion_tokens"),
            whole_number(found, "completion_tokens_details", "reasoning_tokens"),
        )

    def model_of(self, reply: Body) -> str:
        return str(reply.get("model") or "")

    def read(self, prompt: Prompt, reply: Body) -> Generation:
        choices = reply.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            raise BadAnswer("no_choices", "the endpoint answered without an answer in it")
        choice: Body = choices[0]
        message = choice.get("message") if isinstance(choice.get("message"), dict) else {}
        assert isinstance(message, dict)
        finish = choice.get("finish_reason")
        if message.get("refusal"):
            raise BadAnswer("refused_by_teacher", str(message["refusal"]))
        if finish not in ("stop", "length", "repetition"):
            raise ended_otherwise(finish)
        made = self._texts(prompt, message, finish)
        try:
            return self._with_ids(prompt, made, reply, choice)
        except (NoIds, Unspelt) as missing:
            keeps = no_logprobs(self.said.signals) if prompt.keeps else None
            return replace(made, without_ids=str(missing), logprobs=keeps)

    def _texts(self, prompt: Prompt, message: Body, finish: str) -> Generation:
        """The generation as the texts alone tell it."""
        told = next((message[name] for name in REASONING if isinstance(message.get(name), str)), None)
        content = message.get("content")
        parts = split_text(told, content if isinstance(content, str) else "", self.said.markers)
        end = self.said.markers[0][1] if self.said.markers else "</think>"
        text = parts.answer if parts.reasoning is None else f"{parts.reasoning}{end}{parts.answer}"
        none = np.zeros(0, np.int32)
        return Generation(
            prompt.id, prompt.attempt, text, parts.reasoning, parts.answer, none, none, 0, finish_reason=finish
        )

    def _with_ids(self, prompt: Prompt, made: Generation, reply: Body, choice: Body) -> Generation:
        """The same with ids and what is kept of the distributions. Raises NoIds or Unspelt."""
        if not self.vllm:
            return self._spelt(prompt, made, choice)
        prompt_ids, ids_T = as_ids(reply.get("prompt_token_ids"), "prompt ids"), as_ids(choice.get("token_ids"), "ids")
        made = replace(made, prompt_token_ids=prompt_ids, completion_token_ids=ids_T)
        content = _content(choice, len(ids_T)) if self._logprobs() and prompt.keeps else []
        made = self._begin_answer(made, ids_T, content)
        if not content or not self.said.signals.top_k:
            return made
        tokens = [Token(_id_of(entry), _number(entry), _likeliest(entry)) for entry in content]
        if [token.id for token in tokens] != ids_T.tolist():
            raise NoIds("the endpoint's log-probabilities are of other tokens than it sent")
        return keep_chosen(replace(made, logprobs=make_logprobs(tokens, self.said.signals)), self.said.signals)

    def _begin_answer(self, made: Generation, ids_T: Array, content: list[Body]) -> Generation:
        """Where the answer begins among the ids; texts as these decode, where there is a tokenizer."""
        if self.tokenizer is not None:
            markers = self.own_markers
            closed = markers is not None and (markers.end_id in ids_T or made.reasoning is not None)
            split = split_completion(self.tokenizer, ids_T, markers if closed else None)
            made = replace(made, text=split.text, reasoning=split.reasoning, answer_text=split.answer)
            return replace(made, answer_start=split.answer_start)
        if made.reasoning is None:
            return made
        pieces = [bytes(entry.get("bytes") or b"") for entry in content]
        start = find_end(pieces, self.said.markers)
        if start is None and not made.answer_text:
            return replace(made, answer_start=len(ids_T))
        if start is None:
            raise NoIds("where the reasoning ends is not seen in the ids; name teacher.tokenizer")
        return replace(made, answer_start=min(start, len(ids_T)))

    def _spelt(self, prompt: Prompt, made: Generation, choice: Body) -> Generation:
        """Ids of the answer alone, by the bytes of its tokens: a reasoning's are not sent."""
        spelling = self.said.spelling
        if spelling is None:
            raise NoIds("the endpoint sends no token ids; name teacher.tokenizer to find them by their bytes")
        content = _content(choice, None)
        tokens = []
        for entry in content:
            likeliest = entry.get("top_logprobs")
            found = [(spelling.find(*_spelt_as(one)), _number(one)) for one in likeliest or [] if isinstance(one, dict)]
            tokens.append(Token(spelling.find(*_spelt_as(entry)), _number(entry), tuple(found)))
        whole = b"".join(_bytes_of(entry) for entry in content)
        if not whole.endswith(made.answer_text.encode("utf-8", "replace")) or not content:
            raise NoIds("the tokens' bytes are not the answer's text")
        start = find_end([_bytes_of(entry) for entry in content], self.said.markers) if made.reasoning else None
        ids_T = np.array([token.id for token in tokens], np.int32)
        made = replace(made, completion_token_ids=ids_T, answer_start=start or 0)
        keeps = self.said.signals.top_k and prompt.keeps
        made = replace(made, logprobs=make_logprobs(tokens, self.said.signals) if keeps else None)
        return keep_chosen(made, self.said.signals)


def _content(choice: Body, length: int | None) -> list[Body]:
    """The entries of an answer's log-probabilities, one for each token. Raises NoIds."""
    found = choice.get("logprobs")
    content = found.get("content") if isinstance(found, dict) else None
    if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
        raise NoIds("the endpoint sent no log-probabilities")
    if length is not None and len(content) != length:
        raise NoIds(f"the endpoint sent log-probabilities of {len(content)} tokens for {length} ids")
    return content


def _number(entry: Body) -> float:
    value = entry.get("logprob")
    if not isinstance(value, int | float) or value != value:
        raise NoIds("a log-probability is no number")
    return float(value)


def _id_of(entry: Body) -> int:
    text = str(entry.get("token"))
    if not text.startswith(ID) or not text[len(ID) :].isdecimal():
        raise NoIds("the endpoint names tokens by their text, not by their ids")
    return int(text[len(ID) :])


def _likeliest(entry: Body) -> tuple[tuple[int, float], ...]:
    return tuple((_id_of(one), _number(one)) for one in entry.get("top_logprobs") or [])


def _spelt_as(entry: Body) -> tuple[str, bytes | None]:
    return str(entry.get("token")), _bytes_of(entry) if entry.get("bytes") is not None else None


def _bytes_of(entry: Body) -> bytes:
    data: Any = entry.get("bytes")
    try:
        return str(entry.get("token")).encode() if data is None else bytes(data)
    except (TypeError, ValueError):
        raise NoIds("a token's bytes are none") from None
