"""What a card tells a stranger who must decide whether to trust a dataset: terms, origin, decisions, limits, citation.

All of it is taken from manifest and ledger; what neither can know stands in the job's `[publish]`, and is asked for
where it is missing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from factory.dataset.entries import Totals
from factory.dataset.manifest import PUBLISH, of_teacher, teachers_of
from factory.dataset.merging import SIGNALS
from factory.signals import SignalSpec

SIZES: Final = (
    *((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M")),
    *((10**8, "10M<n<100M"), (10**9, "100M<n<1B"), (10**10, "1B<n<10B"), (10**11, "10B<n<100B")),
)
FEW: Final = 0.1  # a share of a task's accepted rows under which one of its levels is told to be thin


@dataclass(frozen=True, slots=True)
class Copy:
    """A copy of a dataset on the hub: where, and which configs it has not."""

    repo: str
    without: tuple[str, ...] = ()


def hub_fields(totals: Totals, manifest: dict[str, Any], signals: SignalSpec) -> dict[str, Any]:
    """The card's metadata as the hub names it, but for `configs`."""
    said = manifest.get(PUBLISH) or {}
    names = ("license", "license_name", "license_link", "language")
    told: dict[str, Any] = {name: said[name] for name in names if said.get(name)}
    if said.get("title"):
        told["pretty_name"] = said["title"]
    told |= {"annotations_creators": ["machine-generated"], "language_creators": ["machine-generated"]}
    told |= {"task_categories": ["text-generation"], "size_categories": [size_category(totals.accepted)]}
    if not any(manifest.get("sources") or {}):
        told["source_datasets"] = ["original"]
    parts = {"logprobs": signals.top_k, "hidden-states": signals.layers, "preference-pairs": signals.pairs}
    tags = ["synthetic", "distillation", *(name for name, there in parts.items() if there), *said.get("tags", [])]
    return told | {"tags": list(dict.fromkeys(tags))}


def size_category(rows: int) -> str:
    """The hub's name for so many rows."""
    return next((name for most, name in SIZES if rows < most), "n>1T")


def model_of(part: dict[str, Any]) -> str:
    """What answered, by one teacher's part of a manifest: a model, or no model at all."""
    teacher, asked = part.get("teacher") or {}, (part.get("job") or {}).get("teacher") or {}
    model = str(teacher.get("model") or asked.get("model") or "?")
    # no model answers there, whatever the job calls it; `demo` is what a job that names none has
    if (teacher.get("backend") or asked.get("backend")) == "scripted":
        return "scripted" if model in ("demo", "scripted") else f"{model} (scripted)"
    return model


def generator(part: dict[str, Any]) -> str:
    """model@revision of one teacher, as far as its manifest tells."""
    teacher = part.get("teacher", {})
    asked = (part.get("job") or {}).get("teacher") or {}
    revision = teacher.get("details", {}).get("revision") or teacher.get("revision") or asked.get("revision")
    return f"{model_of(part)}@{revision}" if revision else model_of(part)


def generators(manifest: dict[str, Any]) -> dict[str, str]:
    """`generator` of each teacher, by its name; "" is the only one."""
    return {name: generator(of_teacher(manifest, name)) for name in teachers_of(manifest)}


def tell_terms(manifest: dict[str, Any]) -> list[str]:
    """Licence of the dataset and terms of what the teacher wrote."""
    said = manifest.get(PUBLISH) or {}
    lines = ["## Licence and terms", ""]
    if not said:
        return [*lines, "- None is given, so nobody may assume any: `[publish]` in the job says them.", ""]
    name = said.get("license_name", said["license"])
    link = f" ({said['license_link']})" if said.get("license_link") else ""
    return [
        *lines,
        f"- Licence of this dataset: {name}{link}.",
        f"- Terms of the teacher's outputs: {said['output_terms']}",
        "",
    ]


def tell_origin(totals: Totals, manifest: dict[str, Any]) -> list[str]:
    """Who wrote the rows, and how each task was decoded."""
    lines = ["## Origin", "", "- Every answer and every label was made by a machine; no person has read all rows."]
    for name, told in generators(manifest).items():
        lines.append(f"- Generator{f' `{name}`' if name else ''}: `{told}`.")
    sources = manifest.get("sources") or {}
    where = f"rows of the maker's own data, for {', '.join(sorted(sources))}" if sources else "sampled scenarios"
    lines += [f"- Prompts: templates filled with {where}; their digests are in `manifest.json`.", ""]
    tasks = manifest.get("tasks") or {}
    if tasks:
        lines += ["| task | version | gate | temperature | top_p | max_tokens |", "|---|---|---|---:|---:|---:|"]
    for task, part in sorted(tasks.items()):
        how = part.get("sampling", {})
        cells = (part.get("version", ""), part.get("gate", ""), *(how.get(n, "") for n in ("temperature", "top_p")))
        lines.append(f"| {task} | {' | '.join(map(str, cells))} | {how.get('max_tokens', '')} |")
    return [*lines, *([""] if tasks else [])]


def tell_cleaning(totals: Totals, manifest: dict[str, Any]) -> list[str]:
    """What filters have removed, which evaluation sets were looked for, and what is known of personal data."""
    job = manifest.get("job") or {}
    filters = job.get("filters") or {}
    removed = {r.partition("/")[2]: n for r, n in totals.ranked_reasons() if r.startswith("filter/")}
    told = ", ".join(f"{name} {count:,}" for name, count in removed.items()) or "none"
    lines = ["## What was removed", "", f"- Rows that a filter removed: {told}."]
    sets = (filters.get("contamination") or {}).get("files") or []
    if sets:
        names = ", ".join(f"`{name.rpartition('/')[2]}`" for name in sets)
        count = removed.get("contaminated", 0)
        run = filters["contamination"].get("n", "?")
        lines.append(f"- Decontamination: rows that share {run} words in a row with {names}: {count:,} removed.")
    else:
        lines.append("- Decontamination: none was done; look for your evaluation sets yourself before you train.")
    if filters.get("pii"):
        lines.append("- Personal data: accepted answers were searched by patterns and check digits; names were not.")
    else:
        lines.append("- Personal data: accepted answers were not searched for it when they were made.")
    return [*lines, ""]


def tell_limits(totals: Totals, manifest: dict[str, Any], coverage: Sequence[str] = ()) -> list[str]:
    """Coverage, biases that the counts show, and what nobody has looked at; `coverage` is told of the rows' texts."""
    lines = ["## Coverage, biases and limits", ""]
    tasks: dict[str, dict[str, int]] = {}
    lost: list[tuple[float, str]] = []
    for cell, counts in sorted(totals.cells.items()):
        task, level = cell.split("/")
        tasks.setdefault(task, {})[level] = counts[0]
        if sum(counts) and counts[0] / sum(counts) < 0.5:
            lost.append((counts[0] / sum(counts), f"{task}/{level} {counts[0] / sum(counts):.0%}"))
    everything = max(1, totals.accepted)
    shares = {task: sum(levels.values()) / everything for task, levels in tasks.items()}
    lines.append(f"- Share of accepted rows: {', '.join(f'{task} {share:.0%}' for task, share in shares.items())}.")
    thin = [
        f"{task}/{level}"
        for task, levels in tasks.items()
        for level, count in levels.items()
        if 0 < count < FEW * sum(levels.values())
    ]
    if never := [f"{task}/{level}" for task, levels in tasks.items() for level, count in levels.items() if not count]:
        lines.append(f"- Asked for and without an accepted row: {', '.join(never)}.")
    if thin:
        lines.append(f"- Thin, under {FEW:.0%} of its task: {', '.join(thin)}.")
    if lost:
        told = ", ".join(name for _, name in sorted(lost))
        lines.append(
            f"- Only rows that passed are in the default config, so what the teacher fails at is rare: {told}."
        )
    lines += coverage
    lines.append("- The rows have the teacher's mistakes wherever the checks do not reach, its style and its biases.")
    lines += [f"- {line}" for line in (manifest.get(PUBLISH) or {}).get("limits", [])]
    return [*lines, ""]


def tell_citation(manifest: dict[str, Any], state: str) -> list[str]:
    """How to cite the rows as they are."""
    said = manifest.get(PUBLISH) or {}
    if said.get("citation"):
        return ["## How to cite", "", "```", *said["citation"].strip().splitlines(), "```", ""]
    models = ", ".join(generators(manifest).values())
    title = said.get("title", "Distillation dataset")
    told = f"{title}: answers of {models}, made with distillation-factory{f', rows {state[:16]}' if state else ''}."
    return ["## How to cite", "", f"> {told}", ""]


def tell_copy(copy: Copy) -> list[str]:
    """How the arrays come back to their texts."""
    lines = [
        f"Texts and scalars are in `default`, token ids and signals in `{SIGNALS}`: the same ids in the same order. "
        "`hidden_states` and other large configs hold rows that the viewer cannot show.",
        "",
        "```python",
        "from datasets import concatenate_datasets",
        "",
        f'arrays = load_dataset("{copy.repo}", "{SIGNALS}", split="train")',
        'assert arrays["id"][:] == rows["id"][:]',
        'whole = concatenate_datasets([rows, arrays.remove_columns("id")], axis=1)',
        "```",
        "",
    ]
    if copy.without:
        lines += [f"Left out of this copy: {', '.join(copy.without)}.", ""]
    return lines
