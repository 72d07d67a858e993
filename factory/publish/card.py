"""The dataset card: a README whose `configs:` is what `datasets.load_dataset` reads, and which says what is inside.

It is a function of ledger, manifest, curriculum.json and, once all rows are there, their texts; written anew after each
commit: no time, no path. So equal datasets have equal cards, and a card that is lost comes back with the run.
"""

from collections.abc import Collection, Sequence
from typing import Any, Final

from factory.checks.fidelity import SECTION, describe
from factory.dataset.aligned import aligned_configs
from factory.dataset.codec import BOUNDS, COLUMNS
from factory.dataset.entries import Totals
from factory.dataset.layouts import layouts
from factory.dataset.ledger import Ledger
from factory.dataset.manifest import (
    PUBLISH,
    of_teacher,
    read_manifest,
    read_signals,
    section,
    teachers_of,
    write_atomically,
)
from factory.dataset.merging import SIGNALS as ARRAYS
from factory.dataset.stages import FOLDER, SPLITS, card_configs, dataset_state, describe_range
from factory.hashing import content_hash
from factory.job.endpoint import REMOTE
from factory.publish.about import (
    Copy,
    hub_fields,
    model_of,
    tell_citation,
    tell_cleaning,
    tell_copy,
    tell_limits,
    tell_origin,
    tell_terms,
)
from factory.publish.covered import tell_coverage
from factory.signals import SignalSpec

OWN: Final = "the teacher's own distribution, before temperature and any grammar mask; the entropy is exact"
# in the card itself: whoever finds the dataset in ten years has no need of this package
DECODER: Final = """
import numpy as np


def decode_topk(row):  # ids int32 and logprobs float32, [T, k], of one row with compact logprobs; no id: -1 and -inf
    T, places = len(row["entropy"]), np.array(row["topk_id_places"], np.int64)
    counts = np.array(row.get("topk_counts") or [len(places) // max(T, 1)] * T, np.int64)
    kept = np.arange(counts.max(initial=0)) < counts[:, None]
    ids, logprobs = np.full(kept.shape, -1, np.int32), np.full(kept.shape, -np.inf, np.float32)
    ids[kept] = np.cumsum(np.array(row["topk_id_table"], np.int64))[places]
    steps = np.zeros(kept.shape, np.uint16)
    steps[:, 1:][kept[:, 1:]] = row["topk_steps"]
    place = np.cumsum(steps, axis=1, dtype=np.uint16).astype(np.float64)
    roots = 2 * np.log(1 - np.minimum(place, 992) / 1024)  # places 0 to 992: even in the root of the probability
    low = 2 * np.log(1 / 32) - (place - 992) / 16  # from there on: 1/16 nat each
    logprobs[kept] = np.where(place == 65535, -np.inf, np.where(place <= 992, roots, low))[kept]
    first = -np.array(row["topk_first"], np.float64) / 2**17
    logprobs[counts > 0, :1] = np.where(first < -16383, -np.inf, first)[:, None]
    return ids, logprobs
"""

REJECTED_PII = {
    "kept": "Personal data in answers that were not accepted stands in `rejected` and `preferences` as it came: leave "
    "these configs out of what you publish.",
    "redacted": "Personal data in answers that were not accepted is replaced by placeholders, their token ids by -1. "
    "Names are not recognised.",
    "dropped": "Answers that were not accepted and hold personal data are left out of `rejected` and `preferences`; "
    "their rows stay, token ids are -1. Names are not recognised.",
}


def save_card(ledger: Ledger, curriculum: dict[str, Any] | None) -> None:
    """Write the card of a dataset as its ledger and manifest now are; `curriculum` is the summary of its curriculum."""
    manifest = read_manifest(ledger.out)
    aligned = dict(aligned_configs(ledger))
    named = [dataset_state(ledger), curriculum and curriculum["files"], *([aligned] if aligned else [])]
    signals = read_signals(manifest) or SignalSpec()
    state, coverage = content_hash(named), tell_coverage(ledger)
    card = write_card(ledger.totals, manifest, signals, curriculum, state, list(aligned), coverage=coverage)
    write_atomically(ledger.out / "README.md", card.encode())


def write_pushed_card(
    ledger: Ledger, curriculum: dict[str, Any] | None, state: str, without: Collection[str], repo: str
) -> str:
    """The card of a copy on the hub, whose arrays stand in a config of their own; `without` names what it has not."""
    manifest = read_manifest(ledger.out)
    signals, aligned = read_signals(manifest) or SignalSpec(), [name for name, _ in aligned_configs(ledger)]
    copy, coverage = Copy(repo, tuple(without)), tell_coverage(ledger)
    return write_card(ledger.totals, manifest, signals, curriculum, state, aligned, copy, coverage)


def card_configs_of(ledger: Ledger, signals: SignalSpec, curriculum: dict[str, Any] | None) -> list[str]:
    """Every config that a dataset's card may name."""
    stages = [name for name, _ in card_configs(curriculum)] if curriculum else []
    return [*layouts(signals), *stages, *(name for name, _ in aligned_configs(ledger))]


def write_card(
    totals: Totals,
    manifest: dict[str, Any],
    signals: SignalSpec,
    curriculum: dict[str, Any] | None = None,
    state: str = "",
    aligned: Sequence[str] = (),
    copy: Copy | None = None,
    coverage: Sequence[str] = (),
) -> str:
    """The text of out/README.md, with the configs of a curriculum (what curriculum.json says) where there is one.

    `state` names the rows as they are, by their content; `copy` is said of one on the hub, `coverage` of the
    rows' texts. The card holds no time and no path, so equal datasets have equal cards.
    """
    names = teachers_of(manifest)
    parts = [of_teacher(manifest, name) for name in names]
    models = ", ".join(f"`{model_of(part)}`" for part in parts)
    title = (manifest.get(PUBLISH) or {}).get("title", "Distillation dataset")
    matter = _configs(totals, signals, curriculum, state, aligned, copy)
    lines = ["---", *matter, *_metadata(totals, manifest, signals), "---", "", f"# {title}", ""]
    done = "complete" if totals.complete else totals.describe_rest()
    lines += [
        f"Answers of {models} with reasoning and the teacher's own signals, aligned to exact token ids ({done}).",
        "",
    ]
    lines += ["| | rows |", "|---|---:|"]
    counts = {"accepted": totals.accepted, "rejected": totals.rejected, "errors": totals.errors}
    lines += [f"| {name} | {count:,} |" for name, count in counts.items()]
    lines += [
        f"| planned | {totals.planned:,} |",
        "",
        *_task_table(totals),
        *_reasons(totals),
        *tell_terms(manifest),
        *tell_origin(totals, manifest),
        *_quality(totals, manifest, signals),
        *tell_cleaning(totals, manifest),
        *tell_limits(totals, manifest, coverage),
        *_teacher_table(names, parts, totals),
    ]
    for name, part in zip(names, parts, strict=True):
        lines += _meaning(part.get("teacher", {}), read_signals(part) or signals, name)
        lines += _fidelity(part, name)
    lines += ["## Load", "", "```python", "from datasets import load_dataset", ""]
    place = copy.repo if copy else "path/to/this/directory"
    lines += [f'rows = load_dataset("{place}", split="train")', "```", "", *(tell_copy(copy) if copy else ())]
    lines += _stage_table(curriculum) if curriculum else []
    lines += tell_citation(manifest, state)
    lines += ["Made by distillation-factory; `manifest.json` holds everything that decides what these rows are.", ""]
    return "\n".join(lines)


def _metadata(totals: Totals, manifest: dict[str, Any], signals: SignalSpec) -> list[str]:
    import yaml

    told: str = yaml.safe_dump(hub_fields(totals, manifest, signals), sort_keys=False, allow_unicode=True, width=1000)
    return told.splitlines()


def _configs(
    totals: Totals,
    signals: SignalSpec,
    curriculum: dict[str, Any] | None,
    state: str,
    aligned: Sequence[str],
    copy: Copy | None,
) -> list[str]:
    """A config without any row is left out: `datasets` cannot load it, and says so less clearly than by its absence.

    `datasets` names its cached copy of a local directory by what the card says of a config and not by the files, so the
    card says in each which rows they are: else a directory made again or grown would give the rows of before.
    """
    lines, about = ["configs:"], [f'  description: "rows {state[:16]}"'] if state else []
    without = copy.without if copy else ()
    for name, layout in layouts(signals).items():
        if name in without:
            continue
        rows = {"rejected": totals.rejected + totals.errors, "preferences": totals.pairs}.get(name, totals.accepted)
        if rows or name == "default":
            lines += [f"- config_name: {name}", *(["  default: true"] if name == "default" else []), *about]
            lines += ["  data_files:", "  - split: train", f"    path: {layout.folder}/train-*.parquet"]
        if name == "default" and copy:
            lines += [f"- config_name: {ARRAYS}", *about]
            lines += ["  data_files:", "  - split: train", f"    path: {ARRAYS}/train-*.parquet"]
    for name, splits in card_configs(curriculum) if curriculum else ():
        if name in without:
            continue
        lines += [f'- config_name: "{name}"', *about, "  data_files:"]  # quoted: YAML takes a bare `on` for no text
        for split in splits:
            lines += [f"  - split: {split}", f"    path: {FOLDER}/{name}/{split}-*.parquet"]
    for name in (one for one in aligned if one not in without):
        lines += [f'- config_name: "{name}"', *about, "  data_files:"]
        lines += ["  - split: train", f"    path: {name}/data/train-*.parquet"]
    return lines


def _stage_table(curriculum: dict[str, Any]) -> list[str]:
    """The stages, easy to hard, and how to load one."""
    by, lines = curriculum["by"], ["## Curriculum", ""]
    lines += [
        f"| stage | {by} | train | validation | test | train tokens | tasks |",
        "|---|---|---:|---:|---:|---:|---|",
    ]
    for stage in curriculum["stages"]:
        counts = " | ".join(f"{stage['rows'][split]:,}" for split in SPLITS)
        tasks = ", ".join(f"{task} {sum(part['rows'].values()):,}" for task, part in sorted(stage["tasks"].items()))
        lines.append(
            f"| {stage['name']} | {describe_range(stage)} | {counts} | {stage['tokens']['train']:,} | {tasks} |"
        )
    first = next(card_configs(curriculum))[0]
    lines += ["", f'Each stage is a config, in training order: `load_dataset(..., "{first}", split="train")`. Its rows']
    lines += [
        "point at their signals: row `index` of the default config. `hand-off` tells for every prompt whether a small"
    ]
    lines += [
        "model should pass it on to a larger one. A split with 0 rows is none: `datasets` cannot load an empty one,"
    ]
    return [*lines, "so ask `datasets.get_dataset_split_names` which a stage has.", ""]


def _teacher_table(names: list[str], parts: list[dict[str, Any]], totals: Totals) -> list[str]:
    """Who answered how many rows, where there are several; token ids are those of each one's own tokenizer."""
    if names == [""]:
        return []
    lines = ["## Teachers", "", "| `teacher` | model | accepted | of |", "|---|---|---:|---:|"]
    for name, part in zip(names, parts, strict=True):
        counts = totals.teachers.get(name, [0, 0, 0])
        lines.append(f"| {name} | `{model_of(part)}` | {counts[0]:,} | {sum(counts):,} |")
    return [*lines, "", "Token ids, logprobs and hidden states are those of a row's own teacher.", ""]


def _task_table(totals: Totals) -> list[str]:
    lines = ["| task | level | accepted | of | share |", "|---|---|---:|---:|---:|"]
    for cell, (accepted, rejected, errors) in sorted(totals.cells.items()):
        task, level = cell.split("/")
        total = accepted + rejected + errors
        lines.append(f"| {task} | {level} | {accepted:,} | {total:,} | {accepted / total:.0%} |")
    return [*lines, ""]


def _reasons(totals: Totals) -> list[str]:
    if not totals.reasons:
        return []
    lines = ["| rejected because | rows |", "|---|---:|"]
    return [*lines, *(f"| `{reason}` | {count:,} |" for reason, count in totals.ranked_reasons()), ""]


def _quality(totals: Totals, manifest: dict[str, Any], signals: SignalSpec) -> list[str]:
    """How rows were chosen and measured, where the job says more than the gate."""
    job = manifest.get("job", {})
    lines = []
    samples, filters = job.get("samples", {}), job.get("filters", {})
    if samples.get("n", 1) > 1:
        lines.append(f"- {samples['n']} samples of each prompt, `keep = {samples['keep']}`.")
    if signals.pairs:
        lines.append(f"- Config `preferences`: {totals.pairs:,} pairs of a right and a wrong answer (TRL's format).")
    if on := [name for name, value in sorted(filters.items()) if value and name != "rejected_pii"]:
        lines.append(f"- Filters: {', '.join(on)}.")
    if filters.get("pii"):
        lines.append(f"- {REJECTED_PII[filters.get('rejected_pii', 'kept')]}")
    judge = next((manifest[name] for name in sorted(manifest) if name.split(".")[0] == "judge"), None)
    if judge is not None:
        lines.append(f"- Judged by `{judge['model']}`, threshold {job['judge']['threshold']:g}.")
    if "difficulty" in job:
        lines.append(f"- `difficulty` is `{job['difficulty']['formula']}`.")
    if totals.scrubbed:
        told = ", ".join(f"{kind} {count:,}" for kind, count in sorted(totals.scrubbed.items()))
        lines.append(f"- Personal data replaced in the inputs, by kind: {told}. Names are not recognised.")
    return ["## How rows were chosen", "", *lines, ""] if lines else []


def _fidelity(manifest: dict[str, Any], name: str = "") -> list[str]:
    """What became of the self-test, where the job asked for one."""
    if not manifest.get(SECTION):
        return []
    lines = [f"## Self-test{_of(name)}", "", f"- {describe(manifest[SECTION])}"]
    kept = section(SECTION, name)
    told = f"- Figures, bounds and row ids are in `manifest.json`, section `{kept}`; in nats, worst row."
    return [
        *lines,
        told,
        "",
    ]


def _tell_choice(signals: SignalSpec) -> list[str]:
    """Which ids are kept where, in the order in which one would ask."""
    k = signals.top_k
    lines = [
        {
            "top_k": f"- Kept of each distribution: the {k} likeliest ids, likeliest first.",
            "top_p": f"- Kept of each distribution: the likeliest ids that together reach {signals.top_p:g} of the "
            f"probability, {k} at most, likeliest first.",
            "sampled": f"- Kept of each distribution: the distinct ids of {k} random draws from it, likeliest first. "
            f"`topk_draws` says how often each came: divided by {k}, an unbiased estimate of its probability.",
        }[signals.keep]
    ]
    if signals.positions == "answer":
        lines.append("- Distributions are kept of the answer alone: from token `answer_start` on.")
    if signals.min_entropy:
        lines.append(f"- Distributions are kept where their entropy is {signals.min_entropy:g} nats or more.")
    if signals.ragged:
        lines.append(
            "- `topk_counts` says how many ids each token has; the flat lists hold them token after token. Where it is "
            "0, `tail_logprobs` is 0: all mass is outside."
        )
    if signals.candidates:
        named = "`candidate_id_table` and `candidate_id_places` (as those of the top k)"
        lines.append(
            f"- {named if signals.compact else '`candidate_ids`'} and `candidate_logprobs` hold the teacher's "
            "log-probabilities of ids that the scored data named, flat; `candidate_counts` says how many a token has."
        )
    if signals.of_prompt:
        lines.append(
            "- `prompt_topk_ids` and the other columns that begin so are the same of the prompt's tokens but the first."
        )
    return lines


def _tell_topk(signals: SignalSpec) -> list[str]:
    if not signals.compact:
        k, told = signals.top_k, "- `topk_ids` and `topk_logprobs` are flat lists"
        shape = f" of length T * {k} (reshape to [T, {k}]), T the length of `completion_token_ids`"
        return [f"{told}{'' if signals.ragged else shape}."]
    told = ", ".join(f"`{name}`" for name in COLUMNS)
    return [
        f"- Logprobs are stored compactly: {told} hold the ids (exactly) and their "
        f"log-probabilities ({BOUNDS['topk_logprobs']}).",
        "- `factory.load` decodes them, and so do these lines of NumPy:",
        "",
        "```python",
        *DECODER.strip().splitlines(),
        "```",
        "",
    ]


def _tell_endpoint(signals: SignalSpec) -> list[str]:
    """What rows from somebody else's endpoint lack, and what to do about it."""
    lines = [
        "- The teacher answered behind an endpoint. A row has as many token ids as came with its answer (`ids` below); "
        "`without_ids` says why a row has none, and then it has no signals either.",
    ]
    if signals.top_k:
        lines.append(
            "- `entropy` is a lower bound: of the likeliest ids and all others as one; it is below the true one by at "
            "most the tail's mass times the log of the vocabulary's size. A `tail_logprobs` of log 1e-6 is an upper "
            "bound. `factory score` with an open model takes the whole distributions of these rows."
        )
    return [*lines, "- Whether you may train a model on these answers is for the provider's terms to say; read them."]


def _of(name: str) -> str:
    return f" of {name}" if name else ""


def _meaning(teacher: dict[str, Any], signals: SignalSpec, name: str = "") -> list[str]:
    lines = [f"## What the numbers{_of(name)} mean", ""]
    if signals.top_k:
        lines += [
            *_tell_choice(signals),
            *_tell_topk(signals),
            f"- Log-probabilities are natural logarithms, of {teacher.get('details', {}).get('distribution', OWN)}.",
            "- `tail_logprobs` is the log of the mass outside the kept ids, `entropy` is in nats.",
        ]
    # of several teachers some may answer here
    if signals.source == "endpoint" and teacher.get("backend") in REMOTE:
        lines += _tell_endpoint(signals)
    if signals.layers:
        norm = "after" if signals.final_norm else "before"
        lines += [
            f"- `hidden_states` holds layers {list(signals.layers)} (0 is the embeddings, i the output of block i, the "
            f"last one {norm} the final norm) as bfloat16 [N, L, H]; row i belongs to token i of prompt + completion, "
            "N is one less than their lengths: the last token was never an input.",
        ]
        if signals.hidden_positions != "all":
            which = {"completion": "completion token", "kept": "token whose distribution is kept"}
            lines.append(
                f"- Only the states that predict a {which[signals.hidden_positions]} are there; `positions` says which "
                "token each was taken at."
            )
    if signals.experts:
        lines.append(
            "- `experts` holds where each input token went: `expert_ids` and `expert_weights` are flat lists of "
            "`shape` [N, L, E], for N input tokens (prompt + completion but the last), the L decoder blocks `layers` "
            "and the E experts chosen there; weights are those the experts' outputs are multiplied with."
        )
    if signals.attention:
        lines.append(
            f"- `attention` holds whole attention maps of decoder blocks {list(signals.attention)} (1 is the first) "
            f"for {signals.attention_share:.3g} of the rows, those of at most {signals.attention_tokens} input tokens: "
            "float16 [L, H, N, N], row i of a map how much token i looks at each; null for all other rows."
        )
    for key in sorted(teacher.get("details", {})):
        lines.append(f"- {key}: `{teacher['details'][key]}`")
    return [*lines, ""]
