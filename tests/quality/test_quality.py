"""What the quality stages promise, on 2,000 rows with planted faults: each is found, hardly a clean row is touched."""

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_support import read_table, read_tree
from faker import Faker

from factory.curriculum.build import make_curriculum
from factory.curriculum.config import CurriculumConfig
from factory.dataset.ledger import read_ledger
from factory.job.job import Job
from factory.runs.run import run
from factory.tasks.catalog import builtin_root
from factory.tasks.tasks import Task, discover

ROWS, DOCUMENTS, PLANTED = 2000, 500, 25
FAULTS = {"wrong": 0.03, "refusal": 0.02, "loop": 0.02, "pii": 0.02}
REASONS = {
    "wrong": {"check", "schema"},
    "refusal": {"filter/refusal"},
    "loop": {"filter/repetition"},
    "pii": {"filter/pii"},
    "contaminated": {"filter/contaminated"},
    "duplicate": {"filter/near_duplicate", "filter/duplicate"},
    "near_duplicate": {"filter/near_duplicate"},
}


def write_documents(task: Task, folder: Path) -> dict[str, str]:
    """Scenarios for summarization with planted faults, an evaluation set; what was planted, by document."""
    assert task.sample is not None
    scenarios = [
        task.sample(random.Random(f"document {number}"), task.levels[number % 3]).model_dump(mode="json")
        for number in range(DOCUMENTS - 2 * PLANTED)
    ]
    fake = Faker("en_US")
    fake.seed_instance(1)
    passages = [" ".join(fake.words(20)) for _ in range(PLANTED)]
    for scenario, passage in zip(scenarios, passages, strict=False):
        scenario["document"] += f" It says: {passage}."
    planted = {scenario["document"]: "contaminated" for scenario in scenarios[:PLANTED]}
    for scenario in scenarios[PLANTED : 2 * PLANTED]:  # the very same, once more
        scenarios.append(dict(scenario))
        planted[scenario["document"]] = "duplicate"
    for scenario in scenarios[2 * PLANTED : 3 * PLANTED]:  # and with one sentence more
        changed = scenario | {"document": scenario["document"] + " That is all."}
        scenarios.append(changed)
        planted[scenario["document"]] = planted[changed["document"]] = "near_duplicate"
    write_lines(folder / "documents.jsonl", scenarios)
    write_lines(folder / "exam.jsonl", [{"question": "What is it?", "context": passage} for passage in passages])
    return planted


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def fault_of(row: dict[str, Any]) -> str:
    """What the scripted teacher did wrong in an answer: its first draw, from the seed."""
    point = float(np.random.default_rng([row["seed"], row["attempt"]]).random())
    for name in ("wrong", "refusal", "loop", "pii"):  # the order of the job file's fields
        if point < FAULTS[name]:
            return name
        point -= FAULTS[name]
    return ""


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A dataset of 2,000 rows with all filters on, and what was planted in its documents."""
    folder = tmp_path_factory.mktemp("quality")
    documents = write_documents(discover(builtin_root()).tasks["summarization"], folder)
    count = (ROWS - DOCUMENTS) // 3
    job = Job.model_validate(
        {
            "out": "out",
            "seed": 3,
            "teacher": {"backend": "scripted", "scripted": FAULTS},
            "sampling": {"max_tokens": 6000},
            "signals": {"top_k": 4},
            "filters": {
                "duplicates": True,
                "near_duplicates": 0.8,
                "language": ["en"],
                "length": {"max_tokens": 6000},
                "repetition": True,
                "refusals": True,
                "pii": True,
                "style": True,
                "contamination": {"files": [str(folder / "exam.jsonl")]},
            },
            "tasks": [
                *({"name": name, "count": count} for name in ("scheduling", "photo_edits", "travel_booking")),
                {"name": "summarization", "count": DOCUMENTS, "source": {"path": str(folder / "documents.jsonl")}},
            ],
        }
    )
    run(job, folder, folder / "out")
    return folder / "out", documents


@pytest.mark.sweep
def test_every_planted_fault_is_found_and_named_and_hardly_a_clean_row_is_touched(
    planted: tuple[Path, dict[str, str]],
) -> None:
    out, documents = planted
    rejected = {row["id"]: row for row in read_table(out, "rejected")}
    rows = [*read_table(out, "data"), *rejected.values()]
    assert len(rows) == ROWS == read_ledger(out).totals.planned
    missed: list[str] = []
    clean = touched = 0
    found: Counter[str] = Counter()
    twins: Counter[str] = Counter()
    for row in rows:
        document = json.loads(row["scenario"]).get("document", "")
        fault, ends = fault_of(row), end_of(rejected.get(row["id"]))
        # a contaminated scenario is never asked, so its teacher does nothing wrong
        kind = fault if fault and documents.get(document) != "contaminated" else documents.get(document, "")
        if kind.endswith("duplicate"):
            # the two of a pair look like each other, and the first to be accepted is kept
            twins[document.removesuffix(" That is all.")] += bool(ends & REASONS[kind])
            continue
        if kind:
            found[kind] += 1
            missed += [] if ends & REASONS[kind] else [f"{kind}: {row['id']} ended as {ends}"]
        else:
            clean += 1
            touched += bool(ends)
    assert not missed
    assert touched <= 0.01 * clean, f"{touched} of {clean}"
    assert found["contaminated"] > 0.8 * PLANTED
    removed = Counter(f"{row['stage']}/{row['reason']}" for row in rejected.values())["filter/contaminated"]
    assert f"with `exam.jsonl`: {removed:,} removed" in (out / "README.md").read_text(encoding="utf-8")
    assert min(found[name] for name in FAULTS) > 20
    paired = [
        document
        for document, kind in documents.items()
        if kind.endswith("duplicate") and not document.endswith("That is all.")
    ]
    faulty = {json.loads(r["scenario"]).get("document", "").removesuffix(" That is all.") for r in rows if fault_of(r)}
    assert all(twins[document] == 1 for document in paired if document not in faulty)


def end_of(row: dict[str, Any] | None) -> set[str]:
    """Stage, and stage with reason, of a rejected row; nothing for an accepted one."""
    return {row["stage"], f"{row['stage']}/{row['reason']}"} if row else set()


def test_stages_rise_with_the_planted_difficulty(planted: tuple[Path, dict[str, str]]) -> None:
    from datasets import load_dataset

    out, _ = planted
    before = read_tree(out / "data")
    make_curriculum(out, CurriculumConfig())
    assert read_tree(out / "data") == before
    stages = [load_dataset(str(out), f"stage-{number}", split="train") for number in (1, 2, 3)]
    assert sum(len(stage) for stage in stages) > 0.85 * 0.9 * ROWS
    assert all(stages[n]["difficulty"][-1] <= stages[n + 1]["difficulty"][0] for n in (0, 1))
    shares = [Counter(stage["level"]) for stage in stages]
    assert shares[0]["easy"] > shares[1]["easy"] >= shares[2]["easy"]
    assert shares[0]["hard"] <= shares[1]["hard"] < shares[2]["hard"]
    assert all(list(stage["difficulty"]) == sorted(stage["difficulty"]) for stage in stages)
