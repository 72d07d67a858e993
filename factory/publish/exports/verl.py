"""Reinforcement learning with verl: each prompt once, with its scenario as the ground truth that a reward reads.

Prompts of rejected rows are among them: what a teacher fails at is what reinforcement learning is for.
"""

from collections.abc import Mapping, Sequence

from factory.dataset.tables import Field
from factory.publish.exports import chat
from factory.publish.exports.asked import Asked
from factory.publish.exports.format import Format, Left, Values, Written
from factory.publish.exports.source import Given, Source

REWARD = '''"""A reward for verl: 1 where the task's own check finds nothing, in an answer read as the factory reads it.

Needs `pip install distillation-factory` where verl runs. `tasks/` holds the tasks that made the rows.
"""

from pathlib import Path

from factory.quality.reward import score

TASKS = Path(__file__).parent / "tasks"
END = {end!r}  # before it stands the reasoning
ENDINGS = {endings!r}  # of a turn, where it is decoded with its special tokens


def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    return score(TASKS, data_source, solution_str, ground_truth, END, ENDINGS)
'''
YAML = """# the part of a verl configuration that reads these files
data:
  train_files: data/*.parquet
  prompt_key: prompt
  image_key: images  # where rows show pictures
  reward_fn_key: data_source
custom_reward_function:
  path: reward.py
  name: compute_score
"""


def _refuse(source: Source, asked: Asked) -> str | None:
    if source.scored:
        return "its rows are transcripts: no task's check says what a right answer is, so there is no ground truth"
    if source.signals.tools:
        return "verl renders prompts without our tools, so a student would be asked to call what it was never shown"
    if source.stage:
        return "it takes the prompts of rejected rows too, and a stage has none; leave --stage out"
    return None


def _fields(source: Source, asked: Asked) -> Sequence[Field]:
    return (
        Field("data_source", "text"),
        Field("prompt", [chat.MESSAGE]),
        Field("ability", "text"),
        Field("reward_model", {"style": "text", "ground_truth": "text"}),
        Field("extra_info", {"split": "text", "index": "text", "level": "text"}),
        *chat.picture_fields(source),
    )


def _convert(given: Given, source: Source, asked: Asked) -> Values | Left:
    row = given.row
    if given.config == "rejected" and (row["kind"] == "error" or row["stage"] == "prompt"):
        return Left("no prompt was made, or the factory failed")
    if row["sample"]:
        return Left("another sample of a prompt that is there")
    prompt = chat.prompt_of(row, source, asked, "content")
    # a repaired prompt ends with an answer that was not accepted: the request itself is what is trained on
    prompt = prompt[:-2] if row["repaired"] else prompt
    if chat.is_taken(prompt, source):
        return Left(chat.SPELT)
    return {
        "data_source": row["task"],
        "prompt": chat.placed(prompt) if source.signals.images else prompt,
        "ability": row["task"],
        "reward_model": {"style": "rule", "ground_truth": row["scenario"]},
        "extra_info": {"split": "train", "index": row["prompt_id"], "level": row["level"]},
        **chat.pictures_of(row, source),
        "_positions": 1,
    }


def _beside(written: Written) -> Mapping[str, str | bytes]:
    end, endings = (written.source.markers or ("", ""))[1], written.source.endings or ()
    files: dict[str, str | bytes] = {"reward.py": REWARD.format(end=end, endings=tuple(endings)), "data.yaml": YAML}
    for path in sorted((written.source.root / "templates").glob("*/*")):
        is_code = path.suffix == ".py" or path.name.endswith(".words.toml")
        folder = "schemas" if is_code else f"prompts/{path.parent.name}"
        files[f"tasks/{folder}/{path.name}"] = path.read_bytes()
    return files


FORMAT = Format(
    name="verl-rl",
    trainer="verl (PPO, GRPO and others)",
    kept="each prompt once, its scenario as ground truth",
    refuse=_refuse,
    fields=_fields,
    convert=_convert,
    configs=("default", "rejected"),
    columns=("prompt", "prompt_id", "sample", "task", "level", "scenario", "repaired", "kind", "stage", "images"),
    arrays="none",
    writes_ids=False,
    pictures="`<image>` stands in the prompts where verl puts one.",
    beside=_beside,
    usage=lambda written: (
        "python -m verl.trainer.main_ppo data.train_files=$PWD/data/*.parquet "
        "custom_reward_function.path=reward.py    # and your own model and trainer settings"
    ),
)
