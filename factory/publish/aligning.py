"""Aligning: a dataset's answers in the token ids of a student with another tokenizer, as a config beside the dataset.

The answer's bytes are the same on both sides, so a position of each corresponds where both spell the same bytes there:

    bytes      T w o _ a n d _ t w o . <end>
    teacher   [Two][ and][ t][wo][.][<end>]         offsets  0 3 7 9 11 12 12
    student   [T][wo][ and][ two][.][</s>]          offsets  0 1 3 7 11 12 12
                      ^^^^        ^  ^^^^           aligned: teacher 1 4 5, student 2 3 4 ... one to one

There the teacher's distribution is a distribution of the student's next token too: an id is mapped to the student's id
of the same bytes, and the mass of an id that has none goes to the tail. Ends of a turn correspond whatever they spell;
other control tokens where both spell them alike. Nothing is aligned across a control token.
"""

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np

from factory.dataset.ledger import hold_dataset, read_ledger
from factory.dataset.stages import current_summary
from factory.dataset.tables import Field
from factory.errors import JobError
from factory.messages import Message
from factory.publish.card import save_card
from factory.publish.exporting import write_export
from factory.publish.exports.asked import Asked
from factory.publish.exports.chat import calls_of
from factory.publish.exports.format import Format, Left, Values, Written
from factory.publish.exports.source import Given, Source
from factory.publish.vocabulary import Vocabulary, student_vocabulary, teacher_vocabulary
from factory.signals import Array
from factory.teachers.prompt_ids import PromptEncoder, TemplateRefusal
from factory.teachers.reasoning import find_markers

ANCHOR: Final = "\n"  # stands before a text, so that no tokenizer puts a space there
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def align(root: Path, student: str, name: str | None) -> list[str]:
    """Write the config `aligned-NAME` of a dataset, or go on with it. Raises JobError and DatasetError."""
    name = name or re.sub(r"[^A-Za-z0-9._-]+", "-", Path(student).name or student).strip("-.")
    if not NAME.fullmatch(name):
        raise JobError(f"--name {name}: letters, digits, '.', '_' and '-' alone, at most 64, the first no sign")
    with hold_dataset(root):
        lines = write_export(root, root / f"aligned-{name}", Asked(to=f"aligned-{name}", student=student), ALIGNED)
        ledger = read_ledger(root)
        save_card(ledger, current_summary(ledger))
    return [*lines, f'  load_dataset("{root}", "aligned-{name}")']


class Aligner:
    """Two vocabularies, and what each id of the teacher is to the student."""

    def __init__(self, teacher: Vocabulary, student: Vocabulary, end_ids: Sequence[int]) -> None:
        self.teacher, self.student, self.ends = teacher, student, frozenset(end_ids)
        assert student.tokenizer is not None
        # a copy, for which text that spells a special token is text; prompts need the tokenizer as it is
        self.backend = type(student.tokenizer.backend).from_str(student.tokenizer.backend.to_str())
        self.backend.encode_special_tokens = True
        self.map_V = np.array([self._student_id(number) for number in range(len(teacher.pieces))], np.int32)
        self.encoder = PromptEncoder(student.tokenizer, find_markers(student.tokenizer, "auto"), {}, student.end_ids)
        self.sizes_V = np.array([0 if i in self.ends else len(p) for i, p in enumerate(teacher.pieces)], np.int64)
        self.student_sizes_V = np.array([len(piece) for piece in student.pieces], np.int64)

    def _student_id(self, number: int) -> int:
        """The student's id of the same outcome, -1 where it has none."""
        if number in self.ends:
            return self.student.end_ids[0] if self.student.end_ids else -1
        piece = self.teacher.pieces[number]
        known = self.student.control_by_text if number in self.teacher.control else self.student.by_bytes
        return known.get(piece, -1) if piece else -1

    def encode(self, text: str) -> list[int]:
        """The student's ids of a text in the middle of others."""
        anchor, both = (self.backend.encode(part, add_special_tokens=False).ids for part in (ANCHOR, ANCHOR + text))
        if both[: len(anchor)] == anchor:
            return list(both[len(anchor) :])
        return list(self.backend.encode(text, add_special_tokens=False).ids)

    def segments(self, ids: Sequence[int]) -> Iterator[tuple[list[int], bool]]:
        """Runs of text ids, and control tokens by themselves."""
        run: list[int] = []
        for number in ids:
            if number in self.teacher.control or number in self.ends:
                if run:
                    yield run, False
                yield [number], True
                run = []
            else:
                run.append(number)
        if run:
            yield run, False

    def align_completion(self, ids: Sequence[int]) -> tuple[list[int], Array, Array, Array]:
        """The student's ids; byte offsets [T + 1] and [U + 1]; and pairs of positions [A, 2] that correspond."""
        student: list[int] = []
        sizes: list[int] = []
        pairs: list[tuple[int, int]] = []
        at = 0
        for run, control in self.segments(ids):
            made, lengths, found = self._align_control(run[0]) if control else self._align_text(run)
            pairs += [(at + t, len(student) + u) for t, u in found]
            at += len(run)
            student += made
            sizes += lengths
        teacher_sizes = self.sizes_V[np.asarray(ids, np.int64)]
        offsets = (np.concatenate([[0], np.cumsum(part, dtype=np.int64)]) for part in (teacher_sizes, sizes))
        first, second = offsets
        return student, first, second, np.array(pairs, np.int32).reshape(-1, 2)

    def _align_control(self, number: int) -> tuple[list[int], list[int], list[tuple[int, int]]]:
        its, size = int(self.map_V[number]), int(self.sizes_V[number])
        if its >= 0:
            return [its], [size], [(0, 0)]
        if number in self.ends:  # a student without an end of its own
            return [], [], []
        made = self.encode(self.teacher.text(number))
        # as text it is several tokens, or one of another meaning: nothing corresponds
        return made, _shared(size, len(made)), []

    def _align_text(self, run: list[int]) -> tuple[list[int], list[int], list[tuple[int, int]]]:
        spelt = b"".join(self.teacher.pieces[number] for number in run)
        made = self.encode(spelt.decode("utf-8", "replace"))
        if b"".join(self.student.pieces[number] for number in made) != spelt:
            # a normaliser has changed the text, or it is not of whole letters: nothing can be said of its bytes
            return made, _shared(len(spelt), len(made)), []
        sizes = [int(size) for size in self.student_sizes_V[np.array(made, np.int64)]]
        teacher_ends, student_ends = np.cumsum(self.sizes_V[np.array(run)]), np.cumsum(sizes)
        places = {(end - size, end): u for u, (end, size) in enumerate(zip(student_ends.tolist(), sizes, strict=True))}
        spans = zip(teacher_ends.tolist(), self.sizes_V[np.array(run)].tolist(), strict=True)
        found = [(t, places.get((end - size, end), -1)) for t, (end, size) in enumerate(spans) if size]
        return made, sizes, [(t, u) for t, u in found if u >= 0]

    def map_topk(self, ids_AK: Array, logprobs_AK: Array, tail_A: Array) -> tuple[list[Array], list[Array], Array]:
        """Of A positions: the student's ids and their logprobs, likeliest first, and the log of all other mass."""
        held_AK = ids_AK >= 0
        mapped_AK = np.where(held_AK, self.map_V[np.where(held_AK, ids_AK, 0)], -1)
        with np.errstate(divide="ignore"):
            mass_AK = np.where(held_AK, np.exp(logprobs_AK.astype(np.float64)), 0)
            lost_A = np.where(mapped_AK < 0, mass_AK, 0).sum(1) + np.exp(tail_A.astype(np.float64))
            all_ids, all_logprobs = [], []
            for mapped_K, mass_K in zip(mapped_AK, mass_AK, strict=True):
                # several of the teacher's ids may be one of the student's: their mass adds up
                ids, first, where = np.unique(mapped_K[mapped_K >= 0], return_index=True, return_inverse=True)
                mass = np.bincount(where, mass_K[mapped_K >= 0], len(ids))
                # equally likely ids stay in the teacher's order
                order = np.lexsort((first, -mass))
                all_ids.append(ids[order])
                all_logprobs.append(np.log(mass[order]))
            tail = np.log(np.minimum(lost_A, 1))
        return all_ids, all_logprobs, tail

    def prompt_ids(self, given: Given, source: Source) -> list[int]:
        """The student's ids of a prompt, to where the teacher's completion begins. Raises TemplateRefusal."""
        row = given.row
        start = source.markers[0] if source.markers and row["reasoning"] is not None else ""
        if row["prompt"] and self.encoder.has_template:
            encoded = self.encoder.encode_prompt(_messages(row), row["tools"] or "" if source.signals.tools else "")
            # the teacher's prompt has opened a reasoning: where the student's has not, the marker goes behind it
            return encoded.ids if encoded.reasons or not start else [*encoded.ids, *self.encode(start + "\n")]
        spelt = b"".join(self.teacher.pieces[number] for number in row.prompt_token_ids.tolist())
        return list(self.backend.encode(spelt.decode("utf-8", "replace")).ids)


def _messages(row: Any) -> list[Message]:
    """A row's prompt as chat templates take it: calls as objects, and nothing that is not there."""
    return [
        {"role": said["role"], "content": said["content"]}
        | ({"tool_calls": calls} if (calls := calls_of(said)) else {})
        for said in row["prompt"]
    ]


def _shared(size: int, tokens: int) -> list[int]:
    """Bytes of tokens that cannot be told apart: all with the first."""
    return [size] + [0] * (tokens - 1) if tokens else []


@lru_cache(maxsize=2)
def _open_aligner(root: Path, student: str) -> Aligner:
    from factory.dataset.manifest import read_manifest

    manifest = read_manifest(root)
    teacher = teacher_vocabulary(manifest)
    if teacher is None:
        raise JobError(f"align: the tokenizer of {root}'s teacher is not on this machine; download the model first")
    ends = manifest.get("teacher", {}).get("details", {}).get("end_token_ids", teacher.end_ids)
    return Aligner(teacher, student_vocabulary(student), ends)


def _refuse(source: Source, asked: Asked) -> str | None:
    if source.signals.keep == "sampled":
        return 'keep = "sampled" has random draws, which are of the teacher\'s ids; keep "top_k" or "top_p" for this'
    _open_aligner(source.root, str(asked.student))
    return None


def _fields(source: Source, asked: Asked) -> Sequence[Field]:
    kinds = {
        "id": "text",
        "student_prompt_token_ids": "int32[]",
        "student_completion_token_ids": "int32[]",
        "teacher_byte_offsets": "int32[]",
        "student_byte_offsets": "int32[]",
        "aligned_teacher": "int32[]",
        "aligned_student": "int32[]",
    }
    if source.signals.top_k:
        kinds |= {"topk_counts": "int32[]", "topk_ids": "int32[]", "topk_logprobs": "float32[]"}
        kinds |= {"tail_logprobs": "float32[]"}
    return [Field(name, kind) for name, kind in kinds.items()]


def _convert(given: Given, source: Source, asked: Asked) -> Values | Left:
    row, aligner = given.row, _open_aligner(source.root, str(asked.student))
    if (row.completion_token_ids < 0).any() or not len(row.completion_token_ids):
        return Left("no completion token")
    try:
        prompt = aligner.prompt_ids(given, source)
    except TemplateRefusal as error:
        return Left(f"the student's chat template refuses it: {error}")
    student, teacher_ends, student_ends, pairs_A2 = aligner.align_completion(row.completion_token_ids.tolist())
    values: dict[str, Any] = {
        "id": row["id"],
        "student_prompt_token_ids": np.array(prompt, np.int32),
        "student_completion_token_ids": np.array(student, np.int32),
        "teacher_byte_offsets": teacher_ends,
        "student_byte_offsets": student_ends,
        "aligned_teacher": pairs_A2[:, 0],
        "aligned_student": pairs_A2[:, 1],
        "_positions": len(student),
        "_counts": {"aligned": len(pairs_A2), "teacher": len(row.completion_token_ids)},
    }
    if row.topk_ids is None or row.topk_logprobs is None or row.tail_logprobs is None:
        return values
    at = pairs_A2[:, 0]
    ids, logprobs, tail = aligner.map_topk(row.topk_ids[at], row.topk_logprobs[at], row.tail_logprobs[at])
    empty = [np.zeros(0)]
    values["topk_counts"] = np.array([len(part) for part in ids], np.int32)
    values["topk_ids"] = np.concatenate([*empty, *ids]).astype(np.int32)
    values["topk_logprobs"] = np.concatenate([*empty, *logprobs]).astype(np.float32)
    values["tail_logprobs"] = tail.astype(np.float32)
    return values


def _tell(written: Written) -> str:
    aligned, teacher = (written.counts.get(name, 0) for name in ("aligned", "teacher"))
    shares = [aligned / max(1, count) for count in (written.positions, teacher)]
    return (
        f"{written.out}: {written.rows:,} rows; {aligned:,} positions correspond one to one: {shares[0]:.1%} of the "
        f"student's {written.positions:,}, {shares[1]:.1%} of the teacher's {teacher:,}"
    )


ALIGNED: Final = Format(
    name="aligned",
    trainer="a student with another tokenizer (GOLD and similar losses)",
    kept="the student's ids, byte offsets of both sides, positions that correspond, top-k in the student's ids",
    refuse=_refuse,
    fields=_fields,
    convert=_convert,
    tell=_tell,
    columns=("prompt", "reasoning", "tools"),
    arrays="logprobs",
    writes_ids=False,
    checks_student=False,
    blind="a picture takes other ids in a student's own prompt",
    options=("student",),
    beside=lambda written: {},
    usage=lambda written: f"python -c 'import datasets; print(datasets.load_dataset(\"{written.out.name}\"))'",
)
