"""A contestant's process: one vLLM engine, ours or a bare one, that runs the same requests again whenever it is told.

Started by `bench_race` as `python bench_engine.py`. Input is JSON lines: the specification, then orders. The answers
are JSON lines on what was standard output; what vLLM prints goes to the log.
"""

import cProfile
import json
import os
import pstats
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Work = Callable[[list[dict[str, Any]], Path], int]  # requests, folder for what is written -> completion tokens
OURS = ("thinking_tokens", "stop_repetition")  # of a Sampling, not of vLLM


class Ours:
    """The factory's own engine: add, step, and every finished generation onto the spool."""

    def __init__(self, spec: dict[str, Any]) -> None:
        from factory.teachers.engine.engine import Engine

        self.engine = Engine(spec["setup"])
        self.end_ids = self.engine.encoder.end_ids

    def prepare(self, requests: list[dict[str, Any]]) -> None:
        """A length that is fixed in advance knows no end: the engine's own stops would heed `ignore_eos` no more."""
        fixed = any(request["sampling"].get("ignore_eos") for request in requests)
        self.engine.encoder.end_ids = frozenset() if fixed else self.end_ids

    def spool(self, requests: list[dict[str, Any]], folder: Path) -> int:
        from factory.teachers.spool import SpoolWriter

        writer, tokens = SpoolWriter(folder), 0
        refused = [self.engine.add(request) for request in requests]
        if any(refused):
            raise SystemExit(f"bench: {next(filter(None, refused)).failure_detail}")
        while self.engine.requests:
            for generation in self.engine.step():
                writer.append(generation)
                tokens += len(generation.completion_token_ids)
        return tokens


class Bare:
    """`LLM.generate` as anybody calls it. `llm` are the engine's settings; with `seeds` each request has its own."""

    def __init__(self, spec: dict[str, Any]) -> None:
        from vllm import LLM

        self.llm = LLM(**spec["llm"])
        self.seeds = spec["seeds"]
        self.texts: list[str] = []

    def prepare(self, requests: list[dict[str, Any]]) -> None:
        """Render the prompts' texts; an earlier round's prefixes are forgotten."""
        tokenizer = self.llm.get_tokenizer()
        options = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False}
        self.texts = [tokenizer.apply_chat_template(request["messages"], **options) for request in requests]
        self.ids = [tokenizer.encode(text, add_special_tokens=False) for text in self.texts]
        self.llm.reset_prefix_cache()

    def text(self, requests: list[dict[str, Any]], folder: Path) -> int:
        """Texts in, texts out."""
        return count(self.llm.generate(self.texts, self._params(requests), use_tqdm=False))

    def ids_alone(self, requests: list[dict[str, Any]], folder: Path) -> int:
        """Ids in, ids out: no tokenizer at all."""
        prompts = [{"prompt_token_ids": ids} for ids in self.ids]
        return count(self.llm.generate(prompts, self._params(requests, detokenize=False), use_tqdm=False))

    def logprobs(self, requests: list[dict[str, Any]], folder: Path) -> int:
        """vLLM's own logprobs, as they come by default, written in distilabel's shape."""
        from bench_others import write_distilabel

        outputs = self.llm.generate(self.texts, self._params(requests, logprobs=20), use_tqdm=False)
        rows = [[position.values() for position in output.outputs[0].logprobs] for output in outputs]
        named = [[[(entry.decoded_token, entry.logprob) for entry in entries] for entries in row] for row in rows]
        write_distilabel(folder / "distilabel.parquet", [output.outputs[0].text for output in outputs], named)
        return count(outputs)

    def _params(self, requests: list[dict[str, Any]], **more: Any) -> list[Any]:
        from vllm import SamplingParams

        made = []
        for request in requests:
            sampling = {name: value for name, value in request["sampling"].items() if name not in OURS}
            made.append(SamplingParams(**sampling, seed=request["seed"] if self.seeds else None, **more))
        return made


def count(outputs: list[Any]) -> int:
    return sum(len(output.outputs[0].token_ids) for output in outputs)


def run(contestant: Any, order: dict[str, Any]) -> dict[str, Any]:
    """Do the order once; only the work itself is on the clock."""
    folder = Path(order["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    work: Work = getattr(contestant, order["how"])
    contestant.prepare(order["requests"])
    profile = cProfile.Profile(time.process_time) if order["profile"] else None
    started, cpu = time.perf_counter(), time.process_time()
    tokens = profile.runcall(work, order["requests"], folder) if profile else work(order["requests"], folder)
    seconds, cpu_s = time.perf_counter() - started, time.process_time() - cpu
    if profile:
        with (folder / "profile.txt").open("w") as stream:
            pstats.Stats(profile, stream=stream).sort_stats("tottime").print_stats(45)
            pstats.Stats(profile, stream=stream).sort_stats("cumtime").print_stats(60)
    return {"seconds": seconds, "cpu_s": cpu_s, "tokens": tokens}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    spec = json.loads(sys.stdin.readline())
    contestant = Ours(spec) if spec["kind"] == "ours" else Bare(spec)
    answers.write('{"ready": true}\n')
    for line in sys.stdin:
        answers.write(json.dumps(run(contestant, json.loads(line))) + "\n")


if __name__ == "__main__":
    main()
