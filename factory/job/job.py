"""The job file: what to make, with which teacher, how much. TOML, checked by pydantic, nothing unknown allowed.

Here a file is checked against itself alone. What needs a model (layers, window, experts) is checked in `teachers`, what
needs the tasks in `runs`: a `Job` that loads may still ask for something that cannot be had.

A default is what a user gets who says nothing. None means that somebody else decides: the model, vLLM, task.toml or
another key. Values that decide what comes out are part of the job's digest, defaults too: another default makes another
job of an old file.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from factory.errors import JobError
from factory.job.cluster import ClusterConfig
from factory.job.config import Config, Count, Weight, describe_problems, read_toml
from factory.job.data import SourceConfig, TranscriptsConfig
from factory.job.gates import (
    DifficultyConfig,
    FiltersConfig,
    JudgeConfig,
    SamplesConfig,
    StudentConfig,
    ValidationConfig,
)
from factory.job.paths import named_files
from factory.job.publish import PublishConfig
from factory.job.signals import SignalsConfig, StorageConfig
from factory.job.store import StoreConfig
from factory.job.teacher import SamplingConfig, TeacherConfig


def _read_shares(value: Any) -> Any:
    return {value: 1.0} if isinstance(value, str) else value


# of several teachers: one name, or names with their weights; all samples of a prompt are of one teacher
Shares = Annotated[dict[str, Annotated[float, Field(gt=0, le=1e9)]] | None, BeforeValidator(_read_shares)]
TeacherName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,31}$")]


class TaskConfig(Config):
    """`[[tasks]]`: one task's share of the job.

    `count` prompts; or prompts until `accepted` rows are in or `at_most` prompts are asked, whichever comes first.
    """

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    count: Count = None
    accepted: Annotated[int, Field(ge=1, le=100_000_000)] | None = None
    at_most: Count = None
    levels: dict[str, Weight] = Field(default_factory=dict)
    gate: Literal["schema", "check"] | None = None
    sampling: SamplingConfig = SamplingConfig()
    source: SourceConfig | None = None
    teacher: Shares = None
    # by level, where it is not `teacher`
    level_teachers: dict[str, Shares] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _some_level_weighs(self) -> "TaskConfig":
        if self.levels and not sum(self.levels.values()) > 0:
            raise ValueError("levels: every weight is 0; give at least one level a positive weight")
        return self

    @model_validator(mode="after")
    def _says_how_many(self) -> "TaskConfig":
        if (self.accepted is None) != (self.at_most is None):
            raise ValueError("accepted (rows) and at_most (prompts to spend on them) belong together; give both")
        if (self.count is None) == (self.accepted is None):
            told = "both are given" if self.count is not None else "neither is given"
            raise ValueError(f"count (prompts), or accepted and at_most, say how much to make; {told}")
        return self

    @model_validator(mode="after")
    def _rows_of_a_source(self) -> "TaskConfig":
        for name in ("count", "at_most"):
            if getattr(self, name) == "all" and self.source is None:
                raise ValueError(f'{name} = "all" takes all rows of a source, and there is none; give a number')
        if self.levels and self.source is not None and self.source.level is not None:
            raise ValueError("levels: source.level names the column that says each row's; leave one of them out")
        return self


class Job(Config):
    """A whole job file: it has `tasks` to run, or `transcripts` to score."""

    out: Annotated[str, Field(min_length=1)]
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    shard_rows: Annotated[int, Field(ge=1, le=1_000_000)] = 256
    teacher: TeacherConfig = TeacherConfig()
    # several, in place of one: tasks say whose they are
    teachers: dict[TeacherName, TeacherConfig] = Field(default_factory=dict)
    sampling: SamplingConfig = SamplingConfig()
    signals: SignalsConfig = SignalsConfig()
    storage: StorageConfig = StorageConfig()
    validation: ValidationConfig = ValidationConfig()
    samples: SamplesConfig = SamplesConfig()
    judge: JudgeConfig | None = None
    filters: FiltersConfig = FiltersConfig()
    student: StudentConfig | None = None
    difficulty: DifficultyConfig = DifficultyConfig()
    publish: PublishConfig | None = None
    cluster: ClusterConfig = ClusterConfig()
    store: StoreConfig = StoreConfig()
    tasks: list[TaskConfig] = Field(default_factory=list)
    transcripts: TranscriptsConfig | None = None

    @model_validator(mode="before")
    @classmethod
    def _judge_by_name(cls, data: Any) -> Any:
        judge = data.get("judge") if isinstance(data, dict) else None
        if isinstance(judge, dict) and isinstance(judge.get("teacher"), str):
            teachers = data.get("teachers")
            if not isinstance(teachers, dict) or judge["teacher"] not in teachers:
                raise ValueError(f"judge.teacher: {judge['teacher']!r} names none of [teachers]: {_tell(teachers)}")
            return data | {"judge": judge | {"teacher": teachers[judge["teacher"]]}}
        return data

    @model_validator(mode="after")
    def _each_row_has_a_teacher(self) -> "Job":
        if self.teachers and "teacher" in self.model_fields_set:
            raise ValueError("teacher and teachers are both given; give [teacher], or a [teachers.NAME] for each")
        if self.teachers and self.transcripts is not None:
            raise ValueError("teachers: transcripts are scored by one; give [teacher]")
        if len(self.teachers) > 1 and self.judge is not None and self.judge.teacher is None:
            raise ValueError(f"judge.teacher: say which of the teachers judges: {_tell(self.teachers)}")
        for task in self.tasks:
            if self.teachers and task.teacher is None and not task.level_teachers:
                raise ValueError(
                    f"tasks: {task.name}: say whose rows they are, teacher = one of {_tell(self.teachers)}"
                )
            for shares in (task.teacher, *task.level_teachers.values()):
                for name in shares or {}:
                    if name not in self.teachers:
                        raise ValueError(
                            f"tasks: {task.name}: teacher {name!r} is none of [teachers]: {_tell(self.teachers)}"
                        )
        return self

    @property
    def teacher_names(self) -> list[str]:
        """The names of its teachers; the only one has none."""
        return list(self.teachers) or [""]

    def of_teacher(self, name: str) -> "Job":
        """The job as one of its teachers has it: that one's table is `teacher`."""
        return self.model_copy(update={"teacher": self.teachers[name]}) if name else self

    @property
    def turn(self) -> str:
        """Whose part of a job this is, see `of_teacher`; "" where there is one teacher only, and of a judge."""
        return next((name for name, one in self.teachers.items() if one is self.teacher), "")

    @model_validator(mode="after")
    def _tasks_or_transcripts(self) -> "Job":
        if self.transcripts is None and not self.tasks:
            raise ValueError("no [[tasks]] table; add one, or [transcripts] for factory score")
        # named at all is enough: a section at its defaults was written by somebody who expects it to do something
        asks = {"tasks", "sampling", "validation", "samples", "judge"} & self.model_fields_set
        if self.transcripts is not None and asks:
            told = ", ".join(sorted(asks))
            raise ValueError(f"{told}: nothing is asked where transcripts are scored; leave it out")
        return self

    @model_validator(mode="after")
    def _a_choice_needs_samples(self) -> "Job":
        if self.samples.keep != "all" and self.samples.n < 2:
            raise ValueError(f"samples.keep = {self.samples.keep!r} chooses among answers; set samples.n to 2 or more")
        return self

    @model_validator(mode="after")
    def _goals_can_be_reached(self) -> "Job":
        per_prompt = self.samples.n if self.samples.keep == "all" else 1
        for task in self.tasks:
            if task.accepted is not None and task.at_most != "all" and task.accepted > (task.at_most or 0) * per_prompt:
                told = f"tasks: {task.name}: accepted = {task.accepted} from at_most = {task.at_most} prompts"
                raise ValueError(f"{told}, which give at most {per_prompt} rows each; raise at_most")
        return self

    @model_validator(mode="after")
    def _each_task_once(self) -> "Job":
        names = [task.name for task in self.tasks]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"task named twice: {', '.join(twice)}; give each task one [[tasks]] table")
        return self


def _tell(names: Iterable[str] | None) -> str:
    return ", ".join(names or ()) or "none are given"


def load_job(path: Path) -> Job:
    """Read and check a job file; every problem in it is named in one JobError."""
    if path.is_dir():
        raise JobError(f"{path}: is a directory; give a job file such as {path / 'job.toml'}")
    data = read_toml(path, "no such job file; see docs/examples/ for one to copy")
    try:
        return Job.model_validate(data)
    except ValidationError as error:
        raise JobError(f"{path}: {describe_problems(error, Job)}") from None


def source_paths(job: Job) -> list[tuple[str, Path]]:
    """The local files and folders that a job reads, each with the key that names it."""
    paths = {f"tasks.{n}.source.path": Path(t.source.path) for n, t in enumerate(job.tasks) if t.source is not None}
    paths |= {} if job.transcripts is None else {"transcripts.path": Path(job.transcripts.path)}
    sets = job.filters.contamination.files if job.filters.contamination is not None else []
    paths |= {f"filters.contamination.files.{number}": Path(name) for number, name in enumerate(sets)}
    # files of a folder too: a link among them may lead anywhere
    files = [(key, file) for key, path in paths.items() for file in (path, *named_files(str(path)).values())]
    # what is not here may be the name of a dataset on the hub
    return [(key, path) for key, path in files if path.exists()]
