"""What became of the planned rows, what it took, and which stages a curriculum made of them."""

from typing import Any, Final

from factory.checks.fidelity import SECTION, describe
from factory.dataset.history import count_runs, read_history
from factory.dataset.ledger import Ledger
from factory.dataset.manifest import PUBLISH, of_teacher, teachers_of
from factory.dataset.stages import SPLITS, current_summary, describe_range
from factory.publish.about import model_of
from factory.publish.report.store import Store

# the order in which a row meets them; `signals` is looked at where the gate is
STAGES: Final = ("prompt", "teacher", "parse", "schema", "check", "signals", "filter", "judge", "samples")
ASKED: Final = {
    "prompt": "a prompt can be made",
    "teacher": "the teacher gives a whole answer",
    "parse": "it reads as an answer",
    "schema": "it fits the task's schema",
    "check": "the task's check finds nothing",
    "signals": "its arrays belong to its tokens",
    "filter": "no filter objects",
    "judge": "the judge scores it high enough",
    "samples": "it is the sample that is kept",
}


def describe_head(ledger: Ledger, manifest: dict[str, Any]) -> dict[str, Any]:
    """Who answered, how many rows there are, what they took, and whether their signals were checked."""
    totals, job = ledger.totals, manifest.get("job") or {}
    samples, terms = job.get("samples") or {}, manifest.get(PUBLISH) or {}
    parts = {name: of_teacher(manifest, name) for name in teachers_of(manifest)}
    asked = {name: (part.get("job") or {}).get("teacher") or {} for name, part in parts.items()}
    teachers = {name: part.get("teacher") or {} for name, part in parts.items()}
    first = next(iter(parts))
    told = asked[first]
    runs = describe_runs(ledger)
    return {
        "name": ledger.out.resolve().name,
        "model": _join({name: model_of(part) for name, part in parts.items()}),
        "revision": told.get("revision") if len(parts) == 1 else None,  # `model` of several names each with its own
        "backend": _join({name: teachers[name].get("backend") or asked[name].get("backend") or "" for name in parts}),
        "details": {
            f"{name} {key}".strip(): value
            for name, teacher in teachers.items()
            for key, value in sorted((teacher.get("details") or {}).items())
        },
        "judge": (manifest.get("judge") or {}).get("model"),
        "tasks": {name: said.get("version") for name, said in sorted((manifest.get("tasks") or {}).items())},
        "planned": totals.planned,
        "accepted": totals.accepted,
        "rejected": totals.rejected,
        "errors": totals.errors,
        "left": totals.left,
        "pairs": totals.pairs,
        "samples": samples.get("n", 1),
        "keep": samples.get("keep", "all"),
        "prompt_tokens": totals.prompt_tokens,
        "completion_tokens": totals.completion_tokens,
        "bytes": totals.bytes,
        "fidelity": _judge_fidelity({name: part[SECTION] for name, part in parts.items() if part.get(SECTION)}),
        "license": terms.get("license_name") or terms.get("license"),
        "signals": parts[first].get("signals") or {"top_k": 0, "layers": []},  # all keep the same
        "hours": sum(run["seconds"] for run in runs["ended"]) / 3600 * max(1, told.get("tensor_parallel_size") or 1),
        "open_runs": runs["open"],
        "thinking_tokens": {
            name: (said.get("sampling") or {}).get("thinking_tokens")
            for name, said in sorted((manifest.get("tasks") or {}).items())
        },
        "student_tokens": (job.get("student") or {}).get("max_tokens"),
    }


def _join(told: dict[str, str]) -> str:
    """What each of several teachers is, by its name; of one, that alone."""
    return ", ".join(f"{name}: {value}" if name else value for name, value in told.items())


def _judge_fidelity(checked: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
    """One verdict over all teachers that were checked: the worst."""
    if not checked:
        return None
    verdicts = [str(part.get("verdict")) for part in checked.values()]
    worst = min(verdicts, key=lambda verdict: (verdict != "failed", verdict == "passed"))
    return {"verdict": worst, "told": _join({name: describe(part) for name, part in checked.items()})}


def describe_flow(store: Store) -> dict[str, Any]:
    """Where rows ended: how many are left after each stage, and the reasons by task."""
    reasons = store.rows(
        "SELECT task, kind, stage, reason, count(*) AS rows FROM rejected"
        " GROUP BY ALL ORDER BY rows DESC, task, stage, reason"
    )
    left = store.ledger.totals.done
    steps = []
    for stage in STAGES:
        lost = sum(reason["rows"] for reason in reasons if reason["stage"] == stage)
        left -= lost
        steps.append({"stage": stage, "asks": ASKED[stage], "lost": lost, "left": left})
    retries = store.one(
        "SELECT count(*) FILTER (attempt > 0) AS rows, coalesce(max(attempt), 0) AS most FROM"
        " (SELECT attempt FROM accepted UNION ALL SELECT attempt FROM rejected)"
    )
    saved = store.one("SELECT count(*) AS rows FROM accepted WHERE attempt > 0")
    return {"steps": steps, "reasons": reasons, "retried": retries["rows"], "saved_by_retry": saved["rows"]}


def describe_runs(ledger: Ledger) -> dict[str, Any]:
    """Every run of the dataset that told of its end; `open` counts those that did not: killed, or at work."""
    runs, ended = count_runs(ledger.out), []
    for line in read_history(ledger.out):
        if line.get("event", "ended") == "ended":
            ended.append({name: line.get(name) for name in ("started", "ended", "outcome")} | _figures(line))
    return {"ended": ended, "open": runs.begun - runs.ended}


def _figures(line: dict[str, Any]) -> dict[str, float]:
    names = ("seconds", "startup_seconds", "rows", "completion_tokens", "tokens_per_second")
    # runs.jsonl is open to all hands: what is no number counts as none
    return {name: value if isinstance(value := line.get(name), int | float) else 0.0 for name in names}


def describe_stages(ledger: Ledger) -> dict[str, Any] | None:
    """The curriculum of these very rows; None where there is none, or one of older rows."""
    summary = current_summary(ledger)
    if summary is None:
        return None
    stages = [
        {
            "stage": stage["name"],
            "range": describe_range(stage),
            **{split: stage["rows"][split] for split in SPLITS},
            "train_tokens": stage["tokens"]["train"],
            "hand_off": stage["hand_off"],
            "tasks": {task: sum(part["rows"].values()) for task, part in sorted(stage["tasks"].items())},
        }
        for stage in summary["stages"]
    ]
    hand_off = summary["hand_off"]
    return {
        "by": summary["by"],
        "stages": stages,
        "hand_off": sum(hand_off["reasons"].values()),
        "prompts": sum(hand_off["rows"].values()),
        "warnings": summary["warnings"],
    }
