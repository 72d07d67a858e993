"""Transcripts: completions that exist already, one row of the user's data each, scored as they stand.

A row is, in this order of preference: `prompt_token_ids` and `completion_token_ids`, taken as they are; `prompt` and
`completion` as texts, or as messages of which the completion is one assistant turn; `messages` that end with one.

The form is the table's, decided once by its columns: a row that does not hold to it is rejected, never read in another.
Each row becomes a `Prompt` with its transcript, so that plan, shards and ledger are those of any run; its id is a hash
of its number and content, so two equal rows are two.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from factory.errors import JobError, one_line
from factory.hashing import canonical_json, content_hash
from factory.job.data import TranscriptsConfig
from factory.job.job import Job
from factory.records import Message, PlannedRow, Prompt, Rejection, Sampling, Transcript
from factory.tasks.tables import BadRow
from factory.tasks.user_rows import Rows, column_of, load_rows, pick, require_sound

# what stands in these columns of a scored row
TASK, LEVEL = "transcripts", "given"
FORMS = (("prompt_token_ids", "completion_token_ids"), ("prompt", "completion"), ("messages",))


class Turn(BaseModel):
    """One message; whatever else it carries is not for the teacher, but for calls of tools, which nobody renders."""

    model_config = ConfigDict(extra="ignore")
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str
    reasoning_content: str | None = None
    tool_calls: Literal[None] | Annotated[list[Any], Field(max_length=0)] = Field(default=None, exclude=True)


# as they are: true and "5" are no ids, and ids are stored as int32
IDS = TypeAdapter(list[Annotated[int, Field(strict=True, ge=0, lt=2**31)]])
TURNS = TypeAdapter(list[Turn])


class Transcripts:
    """The rows of a `[transcripts]` section, each as a prompt that nobody has to answer."""

    def __init__(self, config: TranscriptsConfig, rows: Rows) -> None:
        self.config = config
        self.rows = rows
        self.columns: dict[str, str] = {name: name for form in FORMS for name in form} | dict(config.columns)
        self.form = next((form for form in FORMS if all(self._has(name) for name in form)), ())
        if not self.form:
            forms = "; ".join(" and ".join(form) for form in FORMS)
            raise JobError(
                f"transcripts: {config.path} has none of {forms} (has: {', '.join(rows.column_names)}); "
                f"say which columns they are with transcripts.columns"
            )

    def _has(self, name: str) -> bool:
        return column_of(self.columns[name], self.rows.column_names) is not None

    def __len__(self) -> int:
        return min(len(self.rows), self.config.count or len(self.rows))

    def digest(self) -> str:
        """A hash of the data, as it was when it was opened."""
        return self.rows.digest

    def prompt(self, row: PlannedRow) -> Prompt | Rejection:
        """The prompt of a planned row; a rejection where the data is no transcript."""
        try:
            fields = self.rows[row.number]
        except BadRow as error:
            return self._reject(row, {}, str(error))
        kept = {name: pick(fields, name) for name in self.config.keep}
        try:
            messages, transcript = self._read(fields)
        except (ValueError, TypeError) as error:
            return self._reject(row, kept, _describe(error))
        return self._make(row, kept, messages, transcript)

    def _reject(self, row: PlannedRow, kept: dict[str, Any], why: str) -> Rejection:
        prompt = self._make(row, kept, (), None)
        return Rejection(prompt, None, "prompt", "bad_transcript", (f"{self.rows.where(row.number)}: {why}",))

    def bad_rows(self) -> Iterator[str]:
        """Each row that holds no transcript, and why."""
        for place in range(len(self)):
            try:
                self._read(self.rows[place])
            except (ValueError, TypeError) as error:
                yield f"{self.rows.where(place)}: {_describe(error)}"

    def _read(self, fields: Mapping[str, Any]) -> tuple[tuple[Message, ...], Transcript]:
        values = [pick(fields, self.columns[name]) for name in self.form]
        lacking = [self.columns[name] for name, value in zip(self.form, values, strict=True) if value is None]
        if lacking:
            form = " and ".join(self.columns[name] for name in self.form)
            raise ValueError(
                f"has no {' and no '.join(lacking)}; rows of this data have {form}, keep other forms apart"
            )
        if self.form == FORMS[0]:
            prompt_ids, completion_ids = (tuple(IDS.validate_python(value)) for value in values)
            if not prompt_ids or not completion_ids:
                raise ValueError(f"{len(prompt_ids)} prompt ids and {len(completion_ids)} completion ids; need both")
            # for people: what the ids stand for, where the data says it in messages beside them
            asked = pick(fields, self.columns["prompt"])
            messages = _turns(asked) if isinstance(asked, list) else []
            return tuple(messages), Transcript(prompt_ids, completion_ids)
        if self.form == FORMS[1] and all(isinstance(value, str) for value in values):
            if not values[1]:
                raise ValueError("the completion is empty")
            return ({"role": "user", "content": values[0]},), Transcript(prompt=values[0], completion=values[1])
        turns = [turn for value in values for turn in _turns(value)]
        # a completion column has that one turn and no other; messages have the prompt's before it
        last = len(values[-1])
        if not turns or turns[-1]["role"] != "assistant" or (len(values) == 2 and last != 1):
            raise ValueError("the completion must be one assistant turn, the last of the messages")
        if len(turns) == 1 or not turns[-1]["content"].strip():
            raise ValueError("nothing stands before the assistant's turn" if len(turns) == 1 else "the turn is empty")
        return tuple(turns[:-1]), Transcript(turn=turns[-1])

    def _make(
        self, row: PlannedRow, kept: dict[str, Any], messages: tuple[Message, ...], transcript: Transcript | None
    ) -> Prompt:
        mark = self.rows.mark(row.number)
        scenario = canonical_json(_plain({"row": mark} | kept))
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
    forms = [name for form in FORMS for name in form]
    transcripts = Transcripts(config, load_rows(config, "transcripts", None, own, forms))
    if not len(transcripts):
        raise JobError(f"transcripts: {config.path} has no rows")
    require_sound(config, "transcripts", transcripts.bad_rows(), len(transcripts))
    return transcripts


def _turns(value: Any) -> list[Message]:
    return [turn.model_dump(exclude_none=True) for turn in TURNS.validate_python(value)]


def _parts(transcript: Transcript) -> list[Any]:
    return [getattr(transcript, name) for name in Transcript.__slots__]


def _plain(value: Any) -> Any:
    """Values of a table as JSON has them; what JSON has no form for as text."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _describe(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}".removeprefix(": ")
    return one_line(error)
