"""Transcripts: completions that exist already, one row of the user's data each, scored as they stand.

A row is, in this order of preference: `prompt_token_ids` and `completion_token_ids`, taken as they are; `token_ids` of
a whole conversation with a `token_mask`; the `nodes` of a trace (verifiers' traces.jsonl), a row for each of its
branches; `prompt` and `completion` as texts, or as messages of which the completion is one assistant turn; `messages`
that end with one. Where `turns` is "masked", several spans of a row may be scored.

The form is the table's, decided once by its columns: a row that does not hold to it is rejected, never read in another.
Each row becomes a `Prompt` with its transcript, so that plan, shards and ledger are those of any run; its id is a hash
of its number and content, so two equal rows are two.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from factory.errors import JobError, one_line
from factory.hashing import canonical_json, content_hash
from factory.job.data import TranscriptsConfig
from factory.job.job import Job
from factory.messages import Message
from factory.records import PlannedRow, Prompt, Rejection, Sampling, Transcript
from factory.tasks.candidates import read_candidates
from factory.tasks.conversations import MASK, is_empty, kept_calls, plain, read_several, read_tools, read_turns
from factory.tasks.tables import BadRow
from factory.tasks.traces import leaves_of, path_to, read_nodes
from factory.tasks.user_rows import Rows, column_of, load_rows, pick, require_sound
from factory.texts.texts import lone_surrogate

# what stands in these columns of a scored row
TASK, LEVEL = "transcripts", "given"
EXACT_IDS = ("prompt_token_ids", "completion_token_ids")
MASKED_IDS = ("token_ids", "token_mask")
NODES_OF = ("nodes",)
PAIR = ("prompt", "completion")
FORMS = (EXACT_IDS, MASKED_IDS, NODES_OF, PAIR, ("messages",))
CANDIDATES = ("candidate_ids", "candidate_counts")
BESIDE = ("completion_mask", "tools", "turn_mask", *CANDIDATES)  # columns that a form may have and needs not


# as they are: true and "5" are no ids, and ids are stored as int32
IDS = TypeAdapter(list[Annotated[int, Field(strict=True, ge=0, lt=2**31)]])


class Transcripts:
    """The rows of a `[transcripts]` section, each as a prompt that nobody has to answer."""

    def __init__(self, config: TranscriptsConfig, rows: Rows) -> None:
        self.config = config
        self.rows = rows
        named = {name: name for form in (*FORMS, BESIDE) for name in form}
        self.columns: dict[str, str] = named | {name: column for name, column in config.columns.items()}
        self.form = next((form for form in FORMS if all(self._has(name) for name in form)), ())
        if not self.form:
            forms = "; ".join(" and ".join(form) for form in FORMS)
            raise JobError(
                f"transcripts: {config.path} has none of {forms} (has: {', '.join(rows.column_names)}); "
                f"say which columns they are with transcripts.columns"
            )
        self.names_candidates = self._has(CANDIDATES[0])
        self._require_candidates()
        # a trace's branches share what stands before them, and each is a row
        each = (place for row in range(len(rows)) for place in self._leaves(row))
        self.branches = list(each) if self.form == NODES_OF else None

    def _require_candidates(self) -> None:
        """Raise JobError where candidates are named of rows that have no ids yet, or counts of none."""
        ids, counts = (self.columns[name] for name in CANDIDATES)
        if CANDIDATES[1] in self.config.columns and not self.names_candidates:
            raise JobError(f"transcripts.columns: candidate_counts {counts!r} belong to candidate_ids; name both")
        if self.names_candidates and self.form not in (EXACT_IDS, MASKED_IDS):
            told = " and ".join(self.columns[name] for name in self.form)
            raise JobError(
                f"transcripts: column {ids!r} of {self.config.path} names ids for each id of a completion, and rows of "
                f"{told} have none of their own (allowed: {' and '.join(EXACT_IDS)}, or {' and '.join(MASKED_IDS)}); "
                f"give the ids too, or rename the column"
            )

    def _leaves(self, row: int) -> list[tuple[int, int]]:
        try:
            nodes = read_nodes(pick(self.rows[row], self.columns["nodes"]))
        except (BadRow, ValueError, TypeError):
            return [(row, -1)]  # for its reading to say
        return [(row, leaf) for leaf in leaves_of(nodes)] or [(row, -1)]

    def traces(self) -> Path:
        """The file that these are the traces of. Raises JobError where they are none, or of several files."""
        path = Path(self.config.path)
        if self.branches is None or path.suffix != ".jsonl" or not path.is_file():
            raise JobError(f"transcripts: {path} is no file of traces (.jsonl with `nodes`); leave --traces out")
        return path

    def places(self, rows: Iterable[PlannedRow]) -> dict[str, tuple[int, int]]:
        """Trace and leaf, counted from 0, of each planned row that is a prompt, by its id."""
        prompts = ((self.prompt(row), self._place(row.number)) for row in rows)
        return {prompt.id: place for prompt, place in prompts if isinstance(prompt, Prompt)}

    def _place(self, number: int) -> tuple[int, int]:
        """The row of the data, and the branch of it, that a planned row is of."""
        return (number, -1) if self.branches is None else self.branches[number]

    def _has(self, name: str) -> bool:
        return column_of(self.columns[name], self.rows.column_names) is not None

    def __len__(self) -> int:
        rows = len(self.rows) if self.branches is None else len(self.branches)
        return min(rows, self.config.count or rows)

    def digest(self) -> str:
        """A hash of the data, as it was when it was opened."""
        return self.rows.digest

    def prompt(self, row: PlannedRow) -> Prompt | Rejection:
        """The prompt of a planned row; a rejection where the data is no transcript."""
        place, leaf = self._place(row.number)
        try:
            fields = self.rows[place]
        except BadRow as error:
            return self._reject(row, {}, str(error))
        kept = {name: pick(fields, name) for name in self.config.keep} | ({} if leaf < 0 else {"branch": leaf})
        try:
            messages, transcript = self._read(fields, leaf)
            kept |= kept_calls(messages, transcript)
        except (ValueError, TypeError) as error:
            return self._reject(row, kept, _describe(error))
        return self._make(row, kept, messages, transcript)

    def _reject(self, row: PlannedRow, kept: dict[str, Any], why: str) -> Rejection:
        prompt = self._make(row, kept, (), None)
        where = self.rows.where(self._place(row.number)[0])
        return Rejection(prompt, None, "prompt", "bad_transcript", (f"{where}: {why}",))

    def bad_rows(self) -> Iterator[str]:
        """Each row that holds no transcript, and why."""
        for number in range(len(self)):
            place, leaf = self._place(number)
            try:
                self._read(self.rows[place], leaf)
            except (ValueError, TypeError) as error:
                yield f"{self.rows.where(place)}: {_describe(error)}"

    def _beside(self, fields: Mapping[str, Any], name: str) -> Any:
        return pick(fields, self.columns[name]) if self._has(name) else None

    def _masked(self, ids: list[int], mask: list[Any]) -> Transcript:
        """A conversation's ids cut at the first and the last scored one: what follows that is nobody's."""
        scored = [place for place, one in enumerate(mask) if one]
        if len(mask) != len(ids):
            raise ValueError(f"a mask of {len(mask)} entries for {len(ids)} ids")
        if not scored or not scored[0]:
            raise ValueError("no id is scored" if not scored else "the first id is scored, and nothing predicts it")
        first, last = scored[0], scored[-1] + 1
        inside = tuple(int(bool(one)) for one in mask[first:last])
        if not all(inside) and self.config.turns == "last":
            raise ValueError('it has several spans that are scored; say transcripts.turns = "masked"')
        return Transcript(tuple(ids[:first]), tuple(ids[first:last]), () if all(inside) else inside)

    def _with_candidates(
        self, fields: Mapping[str, Any], transcript: Transcript, before: int, tokens: int
    ) -> Transcript:
        """The same with the ids that the row names beside its own: an entry for each of `tokens` ids, of which the
        first stands at `before` in the conversation. What it names of an id that is not scored is left out."""
        if not self.names_candidates:
            return transcript
        value, counts = (self._beside(fields, name) for name in CANDIDATES)
        if value is None:
            raise ValueError(f"has no {self.columns[CANDIDATES[0]]}; every row of this data names some")
        first = len(transcript.prompt_ids) - before
        scored = range(first, first + len(transcript.completion_ids))
        try:
            ids, of_each = read_candidates(value, counts, tokens, scored, transcript.mask)
        except ValidationError as error:
            raise ValueError(f"{self.columns[CANDIDATES[0]]}: {_describe(error)}") from None
        return replace(transcript, candidate_ids=ids, candidate_counts=of_each)

    def _read(self, fields: Mapping[str, Any], leaf: int = -1) -> tuple[tuple[Message, ...], Transcript]:
        values = [pick(fields, self.columns[name]) for name in self.form]
        lacking = [self.columns[name] for name, value in zip(self.form, values, strict=True) if value is None]
        if lacking:
            form = " and ".join(self.columns[name] for name in self.form)
            raise ValueError(
                f"has no {' and no '.join(lacking)}; rows of this data have {form}, keep other forms apart"
            )
        if self.form == NODES_OF:
            path = path_to(read_nodes(values[0]), leaf)
            ids, mask = ([value for node in path for value in getattr(node, name)] for name in ("token_ids", "mask"))
            return (), self._masked(ids, mask)
        if self.form == MASKED_IDS:
            ids = IDS.validate_python(values[0])
            return (), self._with_candidates(fields, self._masked(ids, MASK.validate_python(values[1])), 0, len(ids))
        if self.form == EXACT_IDS:
            before, scored = (IDS.validate_python(value) for value in values)
            messages, transcript = self._read_ids(fields, before, scored)
            return messages, self._with_candidates(fields, transcript, len(before), len(scored))
        if told := lone_surrogate(dict(zip(self.form, values, strict=True))):
            raise ValueError(told)
        if self.form == PAIR and all(isinstance(value, str) for value in values):
            if not values[1]:
                raise ValueError("the completion is empty")
            return ({"role": "user", "content": values[0]},), Transcript(prompt=values[0], completion=values[1])
        turns = read_turns([message for value in values for message in _as_list(value)])
        tools = read_tools(self._beside(fields, "tools"))
        if self.config.turns == "masked":
            return read_several(turns, self._beside(fields, "turn_mask"), tools)
        # a completion column has that one turn and no other; messages have the prompt's before it
        last = len(values[-1])
        if not turns or turns[-1]["role"] != "assistant" or (len(values) == 2 and last != 1):
            raise ValueError("the completion must be one assistant turn, the last of the messages")
        if len(turns) == 1 or is_empty(turns[-1]):
            raise ValueError("nothing stands before the assistant's turn" if len(turns) == 1 else "the turn is empty")
        return tuple(turns[:-1]), Transcript(turn=turns[-1], tools=tools)

    def _read_ids(
        self, fields: Mapping[str, Any], prompt_ids: list[int], completion_ids: list[int]
    ) -> tuple[tuple[Message, ...], Transcript]:
        if not prompt_ids or not completion_ids:
            raise ValueError(f"{len(prompt_ids)} prompt ids and {len(completion_ids)} completion ids; need both")
        # for people: what the ids stand for, where the data says it in messages beside them
        asked = pick(fields, self.columns["prompt"])
        messages = tuple(read_turns(asked)) if isinstance(asked, list) else ()
        mask = self._beside(fields, "completion_mask")
        if mask is None:
            return messages, Transcript(tuple(prompt_ids), tuple(completion_ids))
        return messages, self._masked(
            [*prompt_ids, *completion_ids], [0] * len(prompt_ids) + MASK.validate_python(mask)
        )

    def _make(
        self, row: PlannedRow, kept: dict[str, Any], messages: tuple[Message, ...], transcript: Transcript | None
    ) -> Prompt:
        mark = self.rows.mark(self._place(row.number)[0])
        scenario = canonical_json(plain({"row": mark} | kept))
        name = content_hash([row.number, messages, scenario, None if transcript is None else _parts(transcript)])
        return Prompt(
            id=name,
            shard=row.shard,
            position=row.position,
            task=TASK,
            level=LEVEL,
            messages=messages,
            scenario=scenario,
            seed=row.seed,
            # nothing is sampled; a record has the field all the same
            sampling=Sampling(),
            group=name,
            transcript=transcript,
            source_row=mark,
        )


def open_transcripts(job: Job) -> Transcripts | None:
    """The transcripts of a job that scores some. Raises JobError."""
    if job.transcripts is None:
        return None
    config = job.transcripts
    own = [*config.columns.values(), *config.keep, *([config.id] if config.id is not None else [])]
    forms = [name for form in (*FORMS, BESIDE) for name in form]
    transcripts = Transcripts(config, load_rows(config, "transcripts", None, own, forms))
    if not len(transcripts):
        raise JobError(f"transcripts: {config.path} has no rows")
    require_sound(config, "transcripts", transcripts.bad_rows(), len(transcripts))
    return transcripts


def _as_list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError("Input should be a valid list")
    return value


def _parts(transcript: Transcript) -> list[Any]:
    # what came later counts only where it is there, so that a row has the id that it always had
    names = ("prompt_ids", "completion_ids", "prompt", "completion", "turn")
    later = {name: value for name in ("mask", "scored", "tools", *CANDIDATES) if (value := getattr(transcript, name))}
    return [*(getattr(transcript, name) for name in names), *([later] if later else [])]


def _describe(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}".removeprefix(": ")
    return one_line(error)
