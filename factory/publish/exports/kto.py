"""KTO (TRL and others): single answers with a label, right or wrong; no pairing is needed.

An accepted row whose check found nothing is desirable. Not desirable are answers that were read to their end and found
wrong, badly formed, refused or too poor: what was turned down for another reason (a duplicate, too long for a student,
another sample was better) says nothing against the answer, and is left out.
"""

from collections.abc import Sequence
from typing import Any, Final

from factory.dataset.tables import Field
from factory.publish.exports import chat
from factory.publish.exports.asked import Asked
from factory.publish.exports.format import Format, Left, Values, Written
from factory.publish.exports.refusals import refuse_chat, refuse_untold_tools
from factory.publish.exports.source import Given, Source

DEFAULT = "apart"
# stages whose rejections say that the answer is bad; of filters, these reasons alone
AGAINST: Final = ("parse", "schema", "check", "judge")
FILTERED: Final = ("refusal", "repetition")
SCRIPT = """import torch
from datasets import load_dataset
from trl import KTOConfig, KTOTrainer

rows = load_dataset("parquet", data_files="data/*.parquet", split="train")
# weights that let both kinds count alike: {desirable} desirable rows, {undesirable} undesirable ones
weights = {{"desirable_weight": {weights[0]:.3g}, "undesirable_weight": {weights[1]:.3g}}}
cpu = not torch.accelerator.is_available()
args = KTOConfig(output_dir="student", use_cpu=cpu, max_length=None, **weights)
trainer = KTOTrainer(model="STUDENT", args=args, train_dataset=rows)
trainer.train()
"""


def is_against(stage: str, reason: str) -> bool:
    """Whether a rejection says that its answer is a bad one."""
    return (stage in AGAINST and reason not in ("no_verdict", "reasoning_not_closed")) or (
        stage == "filter" and reason in FILTERED
    )


def _refuse(source: Source, asked: Asked) -> str | None:
    if source.stage:
        return "a stage holds right answers alone, and it needs wrong ones; leave --stage out"
    if source.scored:
        return "its rows are transcripts, of which none was found right or wrong"
    against = [reason for reason in source.ledger.totals.reasons if is_against(*reason.split("/", 1))]
    if not against:
        return "there is no bad answer to learn from: no row was rejected by parse, schema, check or judge"
    return refuse_untold_tools(source) or refuse_chat(source, asked)


def _fields(source: Source, asked: Asked) -> Sequence[Field]:
    turns = chat.turn_kind(source, asked, DEFAULT)
    prompt = Field("prompt", chat.prompt_kind(source, asked, DEFAULT))
    more = (*chat.tool_fields(source), *chat.picture_fields(source))
    return prompt, Field("completion", turns), Field("label", "bool"), *more


def _convert(given: Given, source: Source, asked: Asked) -> Values | Left:
    row = given.row
    if given.config == "default" and not source.signals.tools:
        completion = chat.completion_of(row, "completion", source, asked, DEFAULT)
        return _values(given, source, asked, completion)
    if given.config == "rejected" and (row["kind"] == "error" or not is_against(row["stage"], row["reason"])):
        return Left(f"rejected, and not for a bad answer ({row['stage']})")
    if (row.completion_token_ids < 0).any():
        return Left("its text was hidden for personal data")
    cut = cut_text(row["text"], source)
    if cut is None:
        return Left("its reasoning does not end, or it ends in a token whose spelling is not known here")
    reasoning, answer = cut
    # with tools both kinds are the teacher's own text, calls and all: a wrong answer's calls may be none that parse
    return _values(given, source, asked, [chat.turn(answer, reasoning, source, asked, DEFAULT)])


def _values(given: Given, source: Source, asked: Asked, completion: list[dict[str, Any]]) -> Values:
    row = given.row
    label = given.config == "default" and row["score"] == 1 and not row["findings"]
    kind = "desirable" if label else "undesirable"
    return {
        "prompt": chat.prompt_of(row, source, asked, DEFAULT),
        "completion": completion,
        "label": label,
        **chat.tools_of(row, source),
        **chat.pictures_of(row, source),
        "_positions": 1,
        "_counts": {kind: 1},
    }


def cut_text(text: str, source: Source) -> tuple[str | None, str] | None:
    """Reasoning and answer of a raw completion, without the token that ends it; None where they cannot be told."""
    reasoning = None
    if source.markers is not None:
        start, end = source.markers
        thought, closed, text = text.partition(end)
        if not closed:
            return None
        reasoning = thought.strip().removeprefix(start).strip()
    if source.endings is None:
        return None
    for ending in source.endings:
        text = text.removesuffix(ending)
    return reasoning, text.strip()


def _script(written: Written) -> str:
    counts = {name: written.counts.get(name, 0) for name in ("desirable", "undesirable")}
    fewest = max(1, min(counts.values()))
    return SCRIPT.format(**counts, weights=[fewest / max(1, count) for count in counts.values()])


FORMAT = Format(
    name="kto",
    trainer="TRL KTOTrainer, and others of the same columns",
    kept="accepted and rejected answers, with a label",
    refuse=_refuse,
    fields=_fields,
    convert=_convert,
    configs=("default", "rejected"),
    columns=("prompt", "completion", "score", "findings", "text", "kind", "stage", "reason", "tools", "images"),
    options=("reasoning", "student"),
    writes_ids=False,
    beside=lambda written: {"train.py": _script(written)},
    usage=lambda written: "python train.py            # after `pip install trl`, with your student in place of STUDENT",
)
