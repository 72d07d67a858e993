"""What a card says to strangers: as the hub reads it, from the job, and of a finished dataset too."""

from pathlib import Path
from typing import Any

import pytest
from dataset_support import SIGNALS
from export_support import MakeJob, make_dataset
from huggingface_hub import DatasetCard, DatasetCardData
from publish.test_card import make_totals

from factory.dataset.manifest import read_manifest
from factory.errors import JobError
from factory.job.job import load_job
from factory.publish.about import size_category
from factory.publish.card import write_card
from factory.runs.run import run

TERMS = {"license": "cc-by-4.0", "output_terms": "Apache-2.0, as the model's own weights"}
TOLD: dict[str, Any] = {"title": "Sums", "language": ["en"], "tags": ["arithmetic"], "limits": ["Small numbers only."]}


def test_the_hub_s_own_reader_takes_its_metadata() -> None:
    manifest: dict[str, Any] = {
        "publish": TERMS | TOLD,
        "teacher": {"model": "org/Big-8B"},
        "job": {"teacher": {"revision": "0a1b"}, "filters": {"contamination": {"files": ["sets/gsm.jsonl"], "n": 9}}},
        "tasks": {"adding": {"version": "2", "gate": "check", "sampling": {"temperature": 0.7, "max_tokens": 120}}},
    }
    totals = make_totals()
    totals.reasons["filter/contaminated"] = 3
    card = DatasetCard(write_card(totals, manifest, SIGNALS, state="5" * 24))
    assert isinstance(card.data, DatasetCardData)
    assert card.data.license == "cc-by-4.0"
    assert card.data.language == ["en"]
    assert card.data.annotations_creators == ["machine-generated"]
    assert card.data.size_categories == ["1K<n<10K"]
    assert card.data.pretty_name == "Sums"
    assert card.data.to_dict()["tags"] == ["synthetic", "distillation", "logprobs", "hidden-states", "arithmetic"]
    for told in (
        "Generator: `org/Big-8B@0a1b`.",
        "Terms of the teacher's outputs: Apache-2.0, as the model's own weights",
        "| adding | 2 | check | 0.7 |",
        "share 9 words in a row with `gsm.jsonl`: 3 removed",
        "Rows that a filter removed: contaminated 3.",
        "- Small numbers only.",
        "> Sums: answers of org/Big-8B@0a1b",
    ):
        assert told in card.text
    assert "was done; look for" not in card.text  # decontamination


@pytest.mark.parametrize(
    ("rows", "name"), [(0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (10**6, "1M<n<10M"), (10**12, "n>1T")]
)
def test_sizes_are_called_as_the_hub_calls_them(rows: int, name: str) -> None:
    assert size_category(rows) == name


def test_a_card_without_a_licence_says_so() -> None:
    card = write_card(make_totals(), {}, SIGNALS)
    assert "None is given, so nobody may assume any" in card
    assert "license:" not in card


def test_terms_may_come_and_change_once_the_rows_are_there(workspace: Path, make_job: MakeJob) -> None:
    out = make_dataset(workspace, make_job)
    before = {path: path.read_bytes() for path in out.rglob("*.parquet")}
    digest = read_manifest(out)["digest"]
    sections: dict[str, Any] = {"tasks": [{"name": "adding", "count": 12}], "shard_rows": 5}
    for terms in (TERMS, TERMS | {"license": "mit"}):
        run(make_job(**sections, publish=terms), workspace, out)
        assert read_manifest(out)["publish"] == terms
        assert DatasetCard.load(out / "README.md").data.license == terms["license"]
    run(make_job(**sections), workspace, out)  # says nothing, changes nothing
    assert read_manifest(out)["publish"]["license"] == "mit"
    assert read_manifest(out)["digest"] == digest
    assert {path: path.read_bytes() for path in out.rglob("*.parquet")} == before


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ('license = "mit"', "publish.output_terms: missing"),
        ('license = "MIT License"\noutput_terms = "x"', "publish.license: String should match pattern"),
        ('license = "other"\noutput_terms = "x"', "needs license_name and license_link"),
    ],
)
def test_half_of_it_is_refused(tmp_path: Path, lines: str, told: str) -> None:
    path = tmp_path / "job.toml"
    path.write_text(f'out = "o"\n[publish]\n{lines}\n[[tasks]]\nname = "adding"\ncount = 1\n')
    with pytest.raises(JobError, match=told):
        load_job(path)
