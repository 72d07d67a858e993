"""The card: its `configs:` is a loader, and it tells what is inside."""

from collections import Counter
from typing import Any

import pytest
import yaml
from dataset_support import SIGNALS

from factory.dataset.entries import Totals
from factory.publish.card import write_card
from factory.signals import SignalSpec

MANIFEST: dict[str, Any] = {"teacher": {"model": "org/Big-8B", "details": {"dtype": "bfloat16", "vocab_size": 260}}}


def make_totals(accepted: int = 1200, rejected: int = 30, errors: int = 4, left: int = 0) -> Totals:
    return Totals(
        planned=accepted + rejected + errors + left,
        shards=5,
        committed_shards=5,
        accepted=accepted,
        rejected=rejected,
        errors=errors,
        reasons=Counter({"check/wrong_total": 4, "parse/invalid_json": rejected}),
        cells={"adding/hard": [accepted, rejected, errors]},
    )


def read_front_matter(card: str) -> dict[str, Any]:
    _, matter, _ = card.split("---\n", 2)
    value = yaml.safe_load(matter)
    assert isinstance(value, dict)
    return value


def test_the_front_matter_names_a_folder_for_each_config() -> None:
    configs = read_front_matter(write_card(make_totals(), MANIFEST, SIGNALS))["configs"]
    assert {c["config_name"]: c["data_files"] for c in configs} == {
        name: [{"split": "train", "path": f"{folder}/train-*.parquet"}]
        for name, folder in {"default": "data", "rejected": "rejected", "hidden_states": "hidden_states"}.items()
    }
    assert [c["config_name"] for c in configs if c.get("default")] == ["default"]


@pytest.mark.parametrize(
    ("totals", "signals", "configs"),
    [
        (make_totals(rejected=0, errors=0), SIGNALS, ["default", "hidden_states"]),
        (make_totals(accepted=0), SIGNALS, ["default", "rejected"]),
        (make_totals(errors=0), SignalSpec(), ["default", "rejected"]),
        (make_totals(rejected=0, errors=2), SignalSpec(), ["default", "rejected"]),
    ],
)
def test_a_config_without_rows_is_left_out(totals: Totals, signals: SignalSpec, configs: list[str]) -> None:
    matter = read_front_matter(write_card(totals, MANIFEST, signals))
    assert sorted(config["config_name"] for config in matter["configs"]) == configs


def test_the_counts_are_in_the_card() -> None:
    card = write_card(make_totals(), MANIFEST, SIGNALS)
    for line in ("| accepted | 1,200 |", "| rejected | 30 |", "| errors | 4 |", "| planned | 1,234 |"):
        assert line in card
    assert "| adding | hard | 1,200 | 1,234 | 97% |" in card
    assert card.index("`parse/invalid_json` | 30") < card.index("`check/wrong_total` | 4")


def test_it_says_whether_it_is_complete() -> None:
    assert "(complete)" in write_card(make_totals(), MANIFEST, SIGNALS)
    unfinished = write_card(make_totals(left=1000), MANIFEST, SIGNALS)
    assert "(unfinished: 1,000 of 2,234 rows are still to come)" in unfinished


def test_it_gives_the_numbers_their_meaning() -> None:
    card = write_card(make_totals(), MANIFEST, SIGNALS)
    assert "`org/Big-8B`" in card
    assert "reshape to [T, 3]" in card
    assert "layers [1, 4]" in card
    assert "after the final norm" in card
    assert "before the final norm" in write_card(make_totals(), MANIFEST, SignalSpec(3, (1,), final_norm=False))
    assert "- dtype: `bfloat16`\n- vocab_size: `260`" in card


def test_signals_that_were_not_kept_are_not_spoken_of() -> None:
    card = write_card(make_totals(), MANIFEST, SignalSpec())
    assert "topk_ids" not in card
    assert "hidden_states" not in card


def test_a_dataset_without_a_row_yet_has_a_card() -> None:
    card = write_card(Totals(planned=5, shards=1), {}, SIGNALS)
    assert [c["config_name"] for c in read_front_matter(card)["configs"]] == ["default"]
    assert "rejected because" not in card


def make_curriculum_summary(**changed: Any) -> dict[str, Any]:
    """What curriculum.json says of two stages, one of them without rows in validation."""
    stage = {
        "name": "on",
        "rows": {"train": 1000, "validation": 0, "test": 50},
        "tokens": {"train": 123456, "validation": 0, "test": 7},
        "easiest": [0.125, "a"],
        "hardest": [0.5, "b"],
        "tasks": {"adding": {"rows": {"train": 1000, "validation": 0, "test": 50}}},
    }
    empty = stage | {"name": "none", "rows": dict.fromkeys(stage["rows"], 0), "easiest": None, "tasks": {}}
    return {"by": "difficulty", "stages": [stage, empty], "hand_off": {"rows": {"train": 3}}} | changed


def test_a_curriculum_is_configs_and_a_table() -> None:
    card = write_card(make_totals(), MANIFEST, SIGNALS, make_curriculum_summary())
    configs = {config["config_name"]: config["data_files"] for config in read_front_matter(card)["configs"]}
    assert configs["on"] == [  # a text, though YAML takes a bare `on` for true
        {"split": "train", "path": "curriculum/on/train-*.parquet"},
        {"split": "test", "path": "curriculum/on/test-*.parquet"},
    ]
    assert configs["hand-off"] == [{"split": "train", "path": "curriculum/hand-off/train-*.parquet"}]
    assert "none" not in configs
    assert "| on | 0.125 to 0.5 | 1,000 | 0 | 50 | 123,456 | adding 1,050 |" in card
    assert 'load_dataset(..., "on", split="train")' in card


def test_a_card_without_a_curriculum_does_not_speak_of_one() -> None:
    assert "urriculum" not in write_card(make_totals(), MANIFEST, SIGNALS)
