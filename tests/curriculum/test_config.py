"""The curriculum file: a bad one is one line, and every key and example of the documentation is right."""

from pathlib import Path

import pytest

from factory.curriculum.config import TabledConfig, load_config
from factory.curriculum.mixture import plan_cuts
from factory.errors import JobError

BAD = {
    "stagess = 3": r"stagess: unknown key \(known here: .*by, formula, hand_off",
    "stages = 0": r"stages: Input should be greater than or equal to 1, got 0",
    'stages = "three"': r"stages: Input should be a valid integer",
    'by = "hardness"': r"by: Input should be 'difficulty', 'level'.*got 'hardness'",
    'order = "random"': r"order: Input should be 'easy_to_hard', 'interleaved' or 'shuffled', got 'random'",
    "thresholds = [0.5, 0.5]": r"thresholds must increase, got \[0\.5, 0\.5\]",
    "thresholds = []": r"thresholds: List should have at least 1 item",
    "thresholds = [nan]": r"thresholds\.0: Input should be a finite number, got nan",
    "thresholds = [0.5]\nstages = 2": r"thresholds cut at values and stages at shares",
    "thresholds = [0.5]\nper_task = true": r"thresholds cut at values and per_task at shares",
    'formula = "effort"\nby = "level"': r"formula gives the difficulty, but by is 'level'; leave out one",
    "[splits]\ntrain = 0.9\nvalidation = 0.2": r"splits: train \+ validation \+ test must be 1, got 0\.9 \+ 0\.2",
    "[splits]\nvalidation = 0.6\ntest = 0.6": r"splits: train \+ validation \+ test must be 1, got 0\.6 \+ 0\.6",
    "[splits]\ntest = -1": r"splits\.test: Input should be greater than or equal to 0, got -1",
    "[student]\nmax_tokens = 0": r"student\.max_tokens: .*got 0",
    "[hand_off]\nmin_pass_rate = 2": r"hand_off\.min_pass_rate: Input should be less than or equal to 1, got 2",
    "stages = []": r"stages: List should have at least 1 item",
    "[[stages]]": r"stages\.0\.name: missing; add it",
    '[[stages]]\nname = "A"': r"stages\.0\.name: String should match pattern .*got 'A'",
    '[[stages]]\nname = "../x"': r"stages\.0\.name: String should match pattern",
    '[[stages]]\nname = "rejected"': r"stages: rejected is the name of another config",
    '[[stages]]\nname = "a"\n[[stages]]\nname = "a"': r"stages: two are named a",
    '[[stages]]\nname = "a"\ntaks = []': r"stages\.0\.taks: unknown key \(known here: .*tasks",
    '[[stages]]\nname = "a"\nto = 0.5\nmin = 1': r"stages\.0: from/to and min/max are two ways",
    '[[stages]]\nname = "a"\nfrom = 0.5\nto = 0.5': r"stages\.0: from 0\.5 must be below to 0\.5",
    '[[stages]]\nname = "a"\nmin = 2\nmax = 1': r"stages\.0: min 2 must be below max 1",
    '[[stages]]\nname = "a"\nrows = 2\ntokens = 1': r"stages\.0: tokens and rows both bound the stage",
    '[[stages]]\nname = "a"\nmixture = { x = 0 }': r"stages\.0: mixture: every weight is 0",
    '[[stages]]\nname = "a"\nmixture = { x = -1 }': r"stages\.0\.mixture\.x: .*got -1",
    '[[stages]]\nname = "a"\ntasks = ["y"]\nmixture = { x = 1 }': r"mixture names x, which is not in tasks \(y\)",
    "by = ": r"not valid TOML",
    "a = " + "[" * 100_000: r"not valid TOML",
}


@pytest.mark.parametrize("text", BAD, ids=lambda text: text[:40].replace("\n", " "))
def test_a_bad_curriculum_file_is_one_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text(text)
    with pytest.raises(JobError, match=BAD[text]) as told:
        load_config(path)
    assert str(told.value).startswith(f"{path}: ")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("name", ["missing.toml", ".", "bytes.toml"])
def test_a_curriculum_file_that_cannot_be_read_is_one_line(name: str, tmp_path: Path) -> None:
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(JobError, match=r"no such curriculum file|cannot be read"):
        load_config(tmp_path / name)


def test_the_example_is_a_curriculum() -> None:
    path = Path(__file__).parent.parent.parent / "docs/examples/curricula/stages.toml"
    config = load_config(path)
    assert isinstance(config, TabledConfig)
    assert len(plan_cuts(config)) > 1


def test_every_curriculum_in_the_documentation_is_one(tmp_path: Path) -> None:
    text = (Path(__file__).parent.parent.parent / "docs/curriculum.md").read_text(encoding="utf-8")
    samples = [part.split("```")[0] for part in text.split("```toml\n")[1:]]
    assert samples
    for sample in samples:
        (tmp_path / "c.toml").write_text(sample)
        load_config(tmp_path / "c.toml")


def test_every_key_of_the_file_is_documented() -> None:
    text = (Path(__file__).parent.parent.parent / "docs/curriculum.md").read_text(encoding="utf-8")
    schema = TabledConfig.model_json_schema(by_alias=True)
    models = [schema, *schema["$defs"].values()]
    names = {name for model in models for name in model["properties"]}
    assert {name for name in names if f"`{name}`" not in text} == set()
