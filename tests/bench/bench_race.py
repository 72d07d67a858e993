"""The race: every contestant's engine in a process of its own, one at work at a time, each beside the base it is
compared with.

All processes of a model live at once and rest while another works. In a round every variant runs once, and the base
before and after each: a variant is compared with the mean of the two, so a machine that becomes slower or faster does
not move the ratio. Every other round goes through the variants backwards.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench_figures import Figure, Run, between, ratios_of_cpu, ratios_of_speed, tell
from bench_models import ROOT, WINDOW, WORK, Model, as_request, engine_setup, short_prompts

from factory.records import Prompt
from factory.teachers.vllm import ENGINE_ENVIRONMENT

ENVIRONMENT = ENGINE_ENVIRONMENT | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is measured: requests of a run, tokens of the longest answer, requests in the engine, rounds."""

    requests: int
    longest: int
    max_num_seqs: int
    rounds: int


@dataclass(frozen=True, slots=True)
class Variant:
    """A row of the race: its text in the table, the process that runs it, the way it is run, its bar."""

    what: str
    process: str
    how: str = "spool"
    bar: float | None = None


VARIANTS = (
    Variant("text only", "k0", bar=0.98),
    Variant("k = 20", "k20", bar=0.92),
    Variant("k = 64", "k64", bar=0.87),
    Variant("k = 20 and 2 hidden layers", "states"),
    Variant("2 hidden layers alone", "hidden"),
    Variant("k = 20 by a prefill afterwards (`capture = prefill`)", "prefill"),
    Variant("vLLM's own logprobs = 20, written in distilabel's shape", "bare", "logprobs"),
    Variant("bare generate, ids in and out, no tokenizer", "bare", "ids_alone"),
    Variant("bare generate, vLLM's defaults (prefix cache, chunked prefill, no seeds)", "defaults", "text"),
)

# with what is compiled compiled, on both sides; what a hook inside the model sees is not kept there
COMPILED = (
    Variant("text only, compiled", "k0"),
    Variant("k = 20, compiled", "k20"),
    Variant("k = 64, compiled", "k64"),
)


class Contestant:
    """One engine's process."""

    def __init__(self, name: str, spec: dict[str, Any], log: Path) -> None:
        environment = {name: value for name, value in os.environ.items() if name != "VLLM_CPU_KVCACHE_SPACE"}
        environment |= ENVIRONMENT
        if spec.get("compiled"):
            del environment["TORCHDYNAMO_DISABLE"]
        self.name = name
        with log.open("wb") as stream:
            self.process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("bench_engine.py"))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                text=True,
                env=environment,
            )
        self.log = log
        self._send(spec)

    def _send(self, message: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"bench: the process of {self.name} ended with {self.process.wait()}; see {self.log}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def run(self, prompts: list[Prompt], how: str, folder: Path, fixed: bool = True, profile: bool = False) -> Run:
        """One measured run over these prompts."""
        requests = [as_request(prompt, fixed) for prompt in prompts]
        self._send({"requests": requests, "how": how, "folder": str(folder), "profile": profile})
        return Run(**self.answer())

    def stop(self) -> None:
        """End the process, which ends with its input."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def specs(
    model: Model, folder: Path, scale: Scale, variants: Sequence[Variant] = VARIANTS
) -> dict[str, dict[str, Any]]:
    """What each process is to set up. All engines have the same settings, but for the one with vLLM's defaults."""
    compiled = variants is COMPILED
    common = {
        "model": model.folder,
        "max_num_seqs": scale.max_num_seqs,
        "max_model_len": WINDOW,
        "kv_cache_memory_bytes": 2**29,
        "enforce_eager": not compiled,
    }
    same = common | {"enable_prefix_caching": False, "enable_chunked_prefill": False, "async_scheduling": False}
    ours: dict[str, dict[str, Any]] = {
        "k0": {},
        "k20": {"top_k": 20},
        "k64": {"top_k": 64},
        "states": {"top_k": 20, "layers": list(model.layers)},
        "hidden": {"layers": list(model.layers)},
        "prefill": {"top_k": 20, "capture": "prefill"},
    }
    wanted = {"bare"} | {variant.process for variant in variants}
    spool = folder / "start"
    spool.mkdir(parents=True, exist_ok=True)
    made: dict[str, dict[str, Any]] = {}
    for name, changed in ours.items():
        (spool / name).mkdir()
        setup = engine_setup(model, spool / name, scale.max_num_seqs, compiled=compiled, **changed)
        made[name] = {"kind": "ours", "setup": setup}
    made["bare"] = {"kind": "bare", "llm": same, "seeds": True}
    made["defaults"] = {"kind": "bare", "llm": common, "seeds": False}
    return {name: spec | {"compiled": compiled} for name, spec in made.items() if name in wanted}


@contextmanager
def started(wanted: dict[str, dict[str, Any]]) -> Iterator[dict[str, Contestant]]:
    """These processes, all ready."""
    logs = WORK / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        contestants = {}
        for name, spec in wanted.items():
            contestants[name] = Contestant(name, spec, logs / f"{name}.log")
            stack.callback(contestants[name].stop)
        for contestant in contestants.values():
            contestant.answer()
        yield contestants


def race(
    model: Model, folder: Path, scale: Scale, profile: str = "", variants: Sequence[Variant] = VARIANTS
) -> tuple[list[Figure], list[Any]]:
    """The figures of one model, and every run. Spools stay in `folder`, by process and round."""
    prompts = short_prompts(scale.requests, scale.longest)
    pairs: dict[Variant, list[tuple[Run, Run]]] = {variant: [] for variant in variants}
    with started(specs(model, folder, scale, variants)) as contestants:
        for name, how in sorted({("bare", "text"), *((v.process, v.how) for v in variants)}):
            contestants[name].run(prompts[: scale.max_num_seqs], how, folder / "warm" / name / how)
        for number in range(scale.rounds):
            place = folder / f"round{number}"
            before = contestants["bare"].run(prompts, "text", place / "bare")
            for variant in variants[:: -1 if number % 2 else 1]:
                run = contestants[variant.process].run(prompts, variant.how, place / variant.process)
                after = contestants["bare"].run(prompts, "text", place / "bare")
                if run.tokens != before.tokens:
                    raise SystemExit(f"bench: {variant.what}: {run.tokens} tokens, the base {before.tokens}")
                pairs[variant].append((between(before, after), run))
                tell_run(model, variant, *pairs[variant][-1])
                before = after
        if profile:
            contestants[profile].run(prompts, "spool", folder / "profile", profile=True)
            print(f"profile of {profile}: {folder / 'profile' / 'profile.txt'}", file=sys.stderr)
    raw = [
        {"model": model.name, "variant": v.what, "base": _plain(base), "run": _plain(run)}
        for v in variants
        for base, run in pairs[v]
    ]
    return [_figure(model, variant, pairs[variant]) for variant in variants], raw


def _figure(model: Model, variant: Variant, pairs: list[tuple[Run, Run]]) -> Figure:
    by_cpu = sorted(ratios_of_cpu(pairs))
    speed = sorted(run.speed for _, run in pairs)
    remark = f"{tell(speed[len(speed) // 2])} tokens/s; by processor time {tell(by_cpu[len(by_cpu) // 2])}"
    return Figure(model.name, f"tokens/s over bare: {variant.what}", ratios_of_speed(pairs), variant.bar, remark=remark)


def _plain(run: Run) -> dict[str, float]:
    return {"seconds": run.seconds, "tokens": run.tokens, "cpu_s": run.cpu_s}


def tell_run(model: Model, variant: Variant, base: Run, run: Run) -> None:
    told = f"{model.name}, {variant.what}: {run.speed:.0f} tokens/s, base {base.speed:.0f}"
    print(f"{told}, ratio {run.speed / base.speed:.3f}", file=sys.stderr, flush=True)
