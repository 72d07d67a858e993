"""What a job will take, before anything is spent: rows by task and level, tokens, bytes a token, disk; and whether
the disk can hold it."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from factory.dataset.ledger import SPOOL, read_ledger, require_resumable
from factory.errors import DatasetError, JobError, TeacherError
from factory.forecast.forecast import Forecast, make_forecast, note_bases, shape_of_teacher
from factory.forecast.samples import CHARACTERS_A_TOKEN, candidate_bytes, image_bytes, prompt_tokens
from factory.forecast.scale import Fleet, tell_scale
from factory.job.job import Job
from factory.job.paths import real_path
from factory.job.teacher import TeacherConfig
from factory.records import Prompt
from factory.runs.prepare import Prepared, prepare
from factory.runs.probes import judge_probes, teacher_probes
from factory.runs.progress import tell_clock
from factory.runs.provenance import describe_job
from factory.runs.room import FILE_BYTES
from factory.runs.rounds import resume
from factory.teachers import require_one_prompt_of_pictures
from factory.teachers.devices import count_replicas
from factory.teachers.given_up import list_given_up
from factory.teachers.models import has_cpu_engine, locate_model, require_sight, require_window, resolve_signals
from factory.teachers.remote.purse import account_of, cost_of, dearest, read_account, usage_path
from factory.teachers.remote_signals import tell_remote_signals
from factory.teachers.spool import SEGMENT_BYTES
from factory.teachers.student import open_student_encoder
from factory.teachers.tokens import open_exact
from factory.usage import Usage

SHORT_SHARDS = 32  # one at the end of each round: a goal is come to in fewer
SELDOM = ("images", "experts", "attention")  # told where a job keeps them


def estimate(
    job: Job, workspace: Path, out: Path, pilot: int | None = None, fleet: Fleet | None = None, address: str = ""
) -> list[str]:
    """Readable lines about a job; `pilot` runs so many rows of each task with the real teacher first.

    `address`: of the object store that keeps the shards; `out` is where they are made.
    Raises a FactoryError for what `run` would refuse before it starts an engine.
    """
    prepared = prepare(job, workspace)
    for name in job.teacher_names:
        state_bytes(job.of_teacher(name))  # refuses what the model cannot do, before any work
        if prepared.has_student:
            open_student_encoder(job.of_teacher(name).teacher)
    if pilot is not None and len(job.teachers) > 1:
        raise JobError("--pilot: the job has several teachers; try each in a job of its own, or leave --pilot out")
    refusal: list[str] = []
    try:
        prepared = resume(prepared, out)
    except DatasetError as error:
        refusal = [f"  a run would be refused: {error}"]
    for part in parts_of(prepared):
        require_templates(part)
    plan, manifest = prepared.plan, describe_job(prepared)
    size = plan.shard_prompts * plan.samples
    lines = [f"job {manifest['digest']}: {plan.planned:,} rows in {plan.shards:,} shards of {size:,}"]
    lines += [*(refusal or _refusal_lines(out, manifest)), *_goal_lines(prepared)]
    for task, levels in plan.counts().items():
        gate = "check" if prepared.gates[task].check else "schema"
        told = ", ".join(f"{level} {count:,}" for level, count in levels.items())
        if prepared.transcripts is not None:
            lines.append(f"  {told} transcripts, scored as they stand")
            lines.append(f"    of {prepared.transcripts.rows.describe()}{_tell_bad(prepared.transcripts.bad_rows())}")
            continue
        most = prepared.sampling[task].max_tokens
        lines.append(f"  {task}: {told}; gate {gate}; at most {most:,} completion tokens a row")
        lines += [f"    {task} is yours, which replaces the built-in one"] if task in prepared.replacing else []
        source = prepared.sources.get(task)
        lines += [] if source is None else [f"    of {source.rows.describe()}{_tell_bad(prepared.bad_rows(task))}"]
    lines += _rejected_pii_lines(job)
    parts = parts_of(prepared)
    forecasts = [make_forecast(part, out, pilot) for part in parts]
    lines += _turn_lines(parts)
    for part, forecast in zip(parts, forecasts, strict=True):
        lines += [f"  teacher {part.turn}:"] if part.turn else []
        lines += [*engine_lines(part.job, has_cpu_engine()), *_forecast_lines(forecast)]
        lines += [*_remote_lines(part, forecast, out), *_byte_lines(part)]
    return [*lines, *_disk_lines(parts, forecasts, out, address), *tell_scale(fleet, prepared.plan, forecasts)]


def parts_of(prepared: Prepared) -> list[Prepared]:
    """A job by its teachers, as far as they have rows."""
    names = dict.fromkeys(one.teacher for one in prepared.plan.rounds)
    return [prepared.of_teacher(name) if name else prepared for name in names]


def _turn_lines(parts: list[Prepared]) -> list[str]:
    """Who answers how many rows, and that they do so one after another."""
    if len(parts) < 2:
        return []
    told = ", then ".join(f"{part.plan.planned:,} of {part.turn} ({part.job.teacher.model})" for part in parts)
    return [f"  teachers take turns, one engine at a time: {told}"]


def _goal_lines(prepared: Prepared) -> list[str]:
    """What is planned behind the rows that are: of tasks that want so many accepted rows, and of those that grow."""
    lines: list[str] = []
    most, planned = prepared.most_rows(), prepared.plan.counts()
    for config in prepared.job.tasks:
        rows = sum(planned.get(config.name, {}).values())
        if config.accepted is not None:
            lines.append(
                f"  {config.name}: asked until {config.accepted:,} rows are accepted or {most[config.name]:,} are "
                f"spent, so far {rows:,} planned"
            )
        elif most[config.name] > rows:
            lines.append(f"  {config.name}: grows from {rows:,} rows to {most[config.name]:,}, in shards of their own")
    return lines


def require_templates(prepared: Prepared) -> None:
    """Raise TeacherError where a model's chat template does not take what the job will ask; the model of the teacher
    and that of a judge of its own, where their tokenizers are on this machine."""
    job = prepared.job
    if job.transcripts is not None:  # one that the template does not take is a row of its own
        return
    require_one_prompt_of_pictures(job, prepared.tasks.values())
    _require_template(job.teacher, teacher_probes(prepared))
    if job.judge is not None and job.judge.teacher is not None:
        try:
            _require_template(job.judge.teacher, judge_probes(prepared))
        except TeacherError as error:
            raise TeacherError(f"judge.{error}") from None


def _require_template(teacher: TeacherConfig, probes: list[Prompt]) -> None:
    local = teacher.backend != "scripted" and not teacher.remote
    if local and any(probe.images for probe in probes):
        require_sight(locate_model(teacher), teacher)
    counter = open_exact(teacher) if local else None
    if counter is None:
        return
    for probe in probes:
        counter.encode_prompt(probe.messages, probe.tools)


def _tell_bad(bad: Iterator[str]) -> str:
    """What a job that does not stop at bad rows says of them before it starts."""
    first = next(bad, None)
    if first is None:
        return ""
    return f"; {1 + sum(1 for _ in bad):,} of them cannot be used and will be rejected, the first {first}"


def _rejected_pii_lines(job: Job) -> list[str]:
    """What becomes of what the filter for personal data finds: rejected is not gone."""
    told = {
        "kept": "kept as it came, in `rejected` and `preferences`; redacted or dropped are the other choices",
        "redacted": "replaced by placeholders, its token ids by -1",
        "dropped": "left out with the texts that hold it",
    }
    chosen = job.filters.rejected_pii
    return [f"  personal data in rejected answers (filters.rejected_pii): {told[chosen]}"] if job.filters.pii else []


def engine_lines(job: Job, on_cpu: bool) -> list[str]:
    """Which of vLLM's own defaults the job runs without, why, and what of it asks for that."""
    if job.teacher.backend != "vllm":
        return []
    given_up = list_given_up(job, on_cpu)
    if not given_up:
        return ["  engine: with all of vLLM's own defaults"]
    return ["  engine: without these defaults of vLLM", *(f"    {one}" for one in given_up)]


def _refusal_lines(out: Path, manifest: dict[str, Any]) -> list[str]:
    """Why a run would not go on in `out`: told and no error, since a plan may help to choose another one."""
    try:
        require_resumable(out, manifest)
    except DatasetError as error:
        first, *rest = str(error).splitlines()
        return [f"  a run would be refused: {first}", *(f"  {line}" for line in rest)]
    return []


def _forecast_lines(forecast: Forecast) -> list[str]:
    basis = note_bases(forecast.bases)
    accepted = f"{forecast.accepted:.0%} of the rows accepted"
    if "reference solutions" in forecast.bases.values():
        accepted = "every row taken as accepted (--pilot N measures how many are)"
    tokens = forecast.prompt_tokens + forecast.completion_tokens
    rows, held = max(forecast.rows, 1), max(tokens, 1)
    lines = [
        f"  predicted from: {'; '.join((basis, *forecast.notes))}; {accepted}",
        f"  tokens: {forecast.prompt_tokens / rows:,.0f} prompt + {forecast.completion_tokens / rows:,.0f} completion"
        f" a row; {tokens:,.0f} in all",
    ]
    lines += _time_lines(forecast)
    for group, size in forecast.groups.items():
        if not size and group in SELDOM:
            continue
        lines.append(f"    {group:<14}{size / held:>10.2f} bytes a token {format_bytes(size):>10}")
    told = f"{'predicted disk':<14}{forecast.bytes / held:>10.2f} bytes a token {format_bytes(forecast.bytes):>10}"
    left = f", {format_bytes(forecast.left)} of it still to be written" if forecast.committed else ""
    return [*lines, f"    {told}{left}"]


def _remote_lines(prepared: Prepared, forecast: Forecast, out: Path) -> list[str]:
    """What a teacher behind an endpoint costs, and what its signals are."""
    job, price = prepared.job, prepared.job.teacher.price
    if not job.teacher.remote:
        return []
    lines = [f"  signals: {tell_remote_signals(job)}"] if job.signals.top_k else []
    # its rows are thrown away, and no account of the dataset has them
    spent_by_pilot = [f"  the pilot spent, beside that:{line.removeprefix(' ')}" for line in forecast.spent]
    if price is None:
        return [*lines, "  cost: not known without [teacher.price]", *spent_by_pilot]
    likely = Usage(round(forecast.prompt_tokens), 0, round(forecast.completion_tokens), 0)
    completion = sum(count * prepared.sampling[task].max_tokens for task, _, _, count in prepared.plan.blocks)
    attempts = prepared.plan.samples * (1 + job.validation.retries)
    most = dearest(likely.prompt * (1 + job.validation.retries), completion * attempts, price)
    spent = read_account(usage_path(out), account_of(job))[0].cost(price)
    told = f"  cost: about {cost_of(likely, price):,.4f} {price.currency} for all rows, asked once"
    told += f"; at most {cost_of(most, price):,.4f}, if all retries and max_tokens are used"
    told += f"; {spent:,.4f} of it spent" if spent else ""
    told += f"; the run stops before {job.teacher.max_cost:g}" if job.teacher.max_cost is not None else ""
    return [*lines, told, *spent_by_pilot]


def _time_lines(forecast: Forecast) -> list[str]:
    """How long it takes by what a pilot measured: its few rows may not fill a batch."""
    rate = forecast.rows_per_second
    if rate is None:
        return []
    told = f"{tell_clock(forecast.rows / rate)} for {forecast.rows:,} rows at the pilot's {rate:,.3g} rows/s"
    return [
        f"  time: {told}, and {tell_clock(forecast.startup_seconds)} before the first; so few rows may fill no batch"
    ]


def _byte_lines(prepared: Prepared) -> list[str]:
    job = prepared.job
    return [
        f"  bytes a completion token, before compression: {_logprob_bytes(job)} ids and logprobs"
        f" (k={job.signals.top_k}) + {state_bytes(job)} hidden states"
    ]


def _disk_lines(parts: list[Prepared], forecasts: list[Forecast], out: Path, address: str) -> list[str]:
    free, most = shutil.disk_usage(_existing(out)).free, sum(map(upper_bound, parts))
    lines = [
        f"  disk: at most {format_bytes(most)}, if every answer ran to max_tokens and compressed to nothing less; "
        f"free: {format_bytes(free)}",
    ]
    work = _most_work(parts, forecasts, out)
    told = f"  kept in {address}; here, in {out}, shards are until they are uploaded: about {format_bytes(work)}"
    lines += [told] if address else []
    need = work + (0.0 if address else _left(parts, forecasts, out))
    if need > free:
        lines.append(
            f"  warning: the disk may not hold it: {format_bytes(need)} are needed with the room to work in; "
            f"fewer hidden layers or a smaller top_k save the most"
        )
    return lines


def upper_bound(prepared: Prepared) -> float:
    """Bytes that no run of a job exceeds: every answer at max_tokens, nothing compressed."""
    plan, job = prepared.plan, prepared.job
    states = state_bytes(job)
    prompt, shown = prompt_tokens(prepared), image_bytes(prepared)
    most = prepared.most_rows()
    rows = sum(most.values())
    completion = sum(count * prepared.sampling[task].max_tokens for task, count in most.items()) / max(rows, 1)
    row = prompt * (_prompt_bytes(job) + states) + completion * (_logprob_bytes(job) + states) + _attention_bytes(job)
    row += candidate_bytes(prepared)
    return (row + 6 * CHARACTERS_A_TOKEN * (prompt + completion) + shown) * rows + (
        rows / plan.shard_size(0) + SHORT_SHARDS
    ) * FILE_BYTES


def working_bytes(prepared: Prepared, forecast: Forecast, out: Path) -> float:
    """Room that a run needs beside its dataset: answers on the spool, and one shard's temporary file."""
    plan, job = prepared.plan, prepared.job
    prompt, completion = forecast.prompt_tokens / forecast.rows, forecast.completion_tokens / forecast.rows
    states = state_bytes(job)
    row = (
        2000
        + prompt * (_prompt_bytes(job) + states)
        + completion * (_logprob_bytes(job) + 4 * CHARACTERS_A_TOKEN + states)
    )
    row += image_bytes(prepared) + candidate_bytes(prepared)
    shard = row * plan.shard_size(0) + FILE_BYTES
    # it has no process of its own and so no spool
    if job.teacher.backend == "scripted":
        return shard
    # what is asked and not committed yet: one shard that waits for its last row, and all that is in flight
    engines = count_replicas(job.teacher, has_cpu_engine())
    rows = min(forecast.rows, plan.shard_size(0) + job.teacher.feed_depth * engines)
    # a segment goes when all of it is committed, and each engine has its own
    spool = row * rows + min(row * forecast.rows, 2.0 * SEGMENT_BYTES * engines)
    return shard + max(0.0, spool - sum(path.stat().st_size for path in (out / SPOOL).glob("*.gen")))


def require_room(prepared: Prepared, out: Path, address: str = "") -> str | None:
    """Raise DatasetError where the disk cannot hold what is left of a job; a warning where only its bound does not fit.

    Of what an object store keeps (`address`) it has to hold what is at work alone.
    A job whose upper bound fits is not looked at any closer.
    """
    free = shutil.disk_usage(_existing(out)).free
    # twice, for what a bound leaves out (frames, the spool); to look closer means to write and weigh a sample
    prepared = resume(prepared, out)
    parts = parts_of(prepared)
    if 2 * prepared.share * sum(map(upper_bound, parts)) + 4 * SEGMENT_BYTES <= free:
        return None
    forecasts = [make_forecast(part, out) for part in parts]
    left, work = _left(parts, forecasts, out), _most_work(parts, forecasts, out)
    if not left:
        return None
    left = 0.0 if address else left
    if left + work <= free:
        return None
    basis = "; ".join(dict.fromkeys(note_bases(forecast.bases) for forecast in forecasts))
    told = (
        f"{out}: the disk cannot hold what is left of this job: {format_bytes(left)} to be written "
        f"({basis}) and {format_bytes(work)} to work in, {format_bytes(free)} free"
    )
    # a bound is no prediction: a job that only might not fit is begun, and stops in order if it does not
    if any(forecast.is_bound for forecast in forecasts):
        return f"warning: {told}; the run stops in order if it is so; `factory plan --pilot N` predicts"
    raise DatasetError(
        f"{told}; nothing was started: free some, choose another `out`, keep fewer hidden layers or a smaller top_k, "
        f"or start all the same with --no-disk-check"
    )


def _left(parts: list[Prepared], forecasts: list[Forecast], out: Path) -> float:
    """Bytes that are still to be written."""
    if len(parts) == 1 and parts[0].share == 1:
        return forecasts[0].left
    try:
        there = read_ledger(out).totals.bytes
    except DatasetError:
        there = 0
    return max(0.0, parts[0].share * sum(forecast.bytes for forecast in forecasts) - there)


def _most_work(parts: list[Prepared], forecasts: list[Forecast], out: Path) -> float:
    # one at a time is at work
    return max(working_bytes(part, forecast, out) for part, forecast in zip(parts, forecasts, strict=True))


def _logprob_bytes(job: Job) -> int:
    """Bytes of a token's id and distribution, before compression."""
    signals = resolve_signals(job, shape_of_teacher(job))
    if not signals.top_k:
        return 4
    entry = 6 + (2 if signals.keep == "sampled" else 0)
    return 4 + entry * signals.top_k + 12 + (2 if signals.ragged else 0)


def _prompt_bytes(job: Job) -> int:
    return _logprob_bytes(job) if job.signals.positions == "all" else 4


def _attention_bytes(job: Job) -> float:
    """Bytes of attention maps a row, in the mean and at most."""
    shape = shape_of_teacher(job)
    signals = resolve_signals(job, shape)
    return 2.0 * len(signals.attention) * shape.heads * signals.attention_tokens**2 * signals.attention_share


def state_bytes(job: Job) -> int:
    """Bytes of hidden states and experts a token. Raises TeacherError where the model's shape cannot be had."""
    shape = shape_of_teacher(job)
    require_window(job, shape)
    signals = resolve_signals(job, shape)
    experts = 4 * shape.layers * shape.experts_per_token if signals.experts else 0
    return 2 * shape.hidden_size * len(signals.layers) + experts


def _existing(path: Path) -> Path:
    return path if path.exists() else _existing(real_path(path).parent)


def format_bytes(size: float) -> str:
    """A size for people: 1.5 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.4g} TB"
