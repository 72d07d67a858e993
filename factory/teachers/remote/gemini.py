"""Gemini's generateContent, in plain REST: on the developer API and, by its address, on Vertex.

What comes of a thought is a summary, and log-probabilities are of the answer's tokens alone: a row's completion ids are
the answer's, and its reasoning has none. Ids come with the tokens (`tokenId`), or are found by the tokens' text where a
tokenizer is named. Gemini's is public: a Gemma student has the same ids.
"""

from dataclasses import replace
from typing import Any, Final

import numpy as np

from factory.records import Generation, Prompt
from factory.teachers.chosen import keep_chosen
from factory.teachers.data_urls import as_gemini_parts
from factory.teachers.remote.read import (
    BadAnswer,
    NoIds,
    Token,
    ended_otherwise,
    make_logprobs,
    no_logprobs,
    split_text,
    whole_number,
)
from factory.teachers.remote.spelling import Unspelt
from factory.teachers.remote.wire import Body, Said
from factory.usage import Usage

ROLES: Final = {"assistant": "model", "user": "user"}
FINISH: Final = {"STOP": "stop", "MAX_TOKENS": "length"}
SEED_BITS: Final = 0x7FFFFFFF  # an int32


class GeminiWire:
    """`thinks`: thoughts are asked for; a model without any refuses to be."""

    def __init__(self, said: Said, thinks: bool) -> None:
        self.said, self.thinks = said, thinks

    def path(self) -> str:
        return f"models/{self.said.model}:generateContent"

    def body(self, prompt: Prompt) -> Body:
        system = "\n\n".join(m["content"] for m in prompt.messages if m["role"] == "system")
        pictures = iter(prompt.images)
        turns = [message for message in prompt.messages if message["role"] != "system"]
        body: Body = {
            "contents": [
                {"role": ROLES[turn["role"]], "parts": as_gemini_parts(turn["content"], pictures)} for turn in turns
            ],
            "generationConfig": self._config(prompt),
        }
        body |= {"systemInstruction": {"parts": [{"text": system}]}} if system else {}
        for name, value in self.said.body.items():
            both = isinstance(value, dict) and isinstance(body.get(name), dict)
            body[name] = body[name] | value if both else value
        return body

    def _config(self, prompt: Prompt) -> Body:
        sampling = prompt.sampling
        config: Body = {
            "temperature": sampling.temperature,
            "topP": sampling.top_p,
            "maxOutputTokens": sampling.max_tokens,
        }
        config |= {"topK": sampling.top_k} if sampling.top_k else {}
        config |= {"seed": prompt.seed & SEED_BITS} if sampling.temperature > 0 else {}
        schema = self.said.schemas.get(prompt.task)
        if schema is not None:
            config |= {"responseMimeType": "application/json", "responseJsonSchema": schema}
        if self.said.signals.top_k and prompt.keeps:
            config |= {"responseLogprobs": True, "logprobs": self.said.signals.top_k}
        if self.thinks:
            budget = {} if sampling.thinking_tokens is None else {"thinkingBudget": sampling.thinking_tokens}
            config |= {"thinkingConfig": {"includeThoughts": True, **budget}}
        return config

    def usage(self, reply: Body) -> Usage | None:
        found = reply.get("usageMetadata")
        if not isinstance(found, dict) or not isinstance(found.get("promptTokenCount"), int):
            return None
        thoughts = whole_number(found, "thoughtsTokenCount")
        return Usage(
            whole_number(found, "promptTokenCount"),
            whole_number(found, "cachedContentTokenCount"),
            whole_number(found, "candidatesTokenCount") + thoughts,
            thoughts,
        )

    def model_of(self, reply: Body) -> str:
        return str(reply.get("modelVersion") or "")

    def read(self, prompt: Prompt, reply: Body) -> Generation:
        candidates = reply.get("candidates")
        if not isinstance(candidates, list) or not candidates or not isinstance(candidates[0], dict):
            blocked = (reply.get("promptFeedback") or {}).get("blockReason")
            if blocked:
                raise BadAnswer("refused_by_endpoint", f"the prompt was blocked: {blocked}")
            raise BadAnswer("no_choices", "the endpoint answered without an answer in it")
        candidate: Body = candidates[0]
        finish = FINISH.get(str(candidate.get("finishReason")))
        if finish is None:
            raise ended_otherwise(candidate.get("finishReason"))
        made = self._texts(prompt, candidate, finish)
        try:
            return self._with_ids(prompt, made, candidate)
        except (NoIds, Unspelt) as missing:
            keeps = no_logprobs(self.said.signals) if prompt.keeps else None
            return replace(made, without_ids=str(missing), logprobs=keeps)

    def _texts(self, prompt: Prompt, candidate: Body, finish: str) -> Generation:
        parts = (candidate.get("content") or {}).get("parts") or []
        thoughts = "".join(part.get("text") or "" for part in parts if part.get("thought"))
        content = "".join(part.get("text") or "" for part in parts if not part.get("thought"))
        split = split_text(thoughts or None, content, self.said.markers)
        end = self.said.markers[0][1] if self.said.markers else "</think>"
        text = split.answer if split.reasoning is None else f"{split.reasoning}{end}{split.answer}"
        none = np.zeros(0, np.int32)
        return Generation(
            prompt.id, prompt.attempt, text, split.reasoning, split.answer, none, none, 0, finish_reason=finish
        )

    def _with_ids(self, prompt: Prompt, made: Generation, candidate: Body) -> Generation:
        """The same with the ids of the answer. Raises NoIds or Unspelt."""
        if not prompt.keeps or not self.said.signals.top_k:
            raise NoIds("ids come with log-probabilities, and the job keeps none (signals.top_k = 0)")
        found = candidate.get("logprobsResult") or {}
        chosen, likeliest = found.get("chosenCandidates") or [], found.get("topCandidates") or []
        if not chosen or len(chosen) != len(likeliest):
            raise NoIds(f"the endpoint sent {len(chosen)} tokens and the likeliest at {len(likeliest)} places")
        if "".join(str(one.get("token")) for one in chosen) != made.answer_text:
            raise NoIds("the tokens that came do not spell the answer")
        tokens = [
            Token(self._id(one), _number(one), tuple((self._id(each), _number(each)) for each in place["candidates"]))
            for one, place in zip(chosen, likeliest, strict=True)
        ]
        ids_T = np.array([token.id for token in tokens], np.int32)
        logprobs = make_logprobs(tokens, self.said.signals)
        return keep_chosen(replace(made, completion_token_ids=ids_T, logprobs=logprobs), self.said.signals)

    def _id(self, candidate: Body) -> int:
        """A token's id; the named tokenizer must agree where it knows the token's text."""
        told, text = candidate.get("tokenId"), str(candidate.get("token"))
        if self.said.spelling is None:
            if not isinstance(told, int) or told < 0:
                raise NoIds("the endpoint sent a token without its id; name teacher.tokenizer")
            return told
        if not isinstance(told, int):
            return self.said.spelling.find(text, None)
        known = self.said.spelling.by_bytes.get(text.encode())
        if known is not None and known != told:
            raise Unspelt(f"{text!r} is {told} there and {known} in teacher.tokenizer")
        return told


def _number(candidate: Body) -> float:
    value: Any = candidate.get("logProbability", 0.0)  # a zero is left out where messages are written
    if not isinstance(value, int | float) or value != value:
        raise NoIds("a log-probability is no number")
    return float(value)
