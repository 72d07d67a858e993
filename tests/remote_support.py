"""Jobs against the endpoint of our own, and their rows."""

from pathlib import Path
from typing import Any

from scripted_endpoint import MODEL, ScriptedEndpoint

from factory.dataset.shards import read_batches
from factory.job.job import Job
from factory.teachers.demo import demo_teacher
from factory.teachers.tokens import LocalTokenizer

PRICE = {"prompt": 1.0, "completion": 4.0}


def remote_job(
    endpoint: ScriptedEndpoint, rows: int = 20, teacher: dict[str, Any] | None = None, **sections: Any
) -> Job:
    """A job over `adding`; `teacher` adds to the section, the rest replaces whole sections."""
    config = {"model": MODEL, "backend": "openai", "base_url": endpoint.url, "api_key_env": "", "price": PRICE}
    config |= {"endpoint": {"retries": 8, "timeout_s": 20}} | (teacher or {})
    job: dict[str, Any] = {
        "out": "out",
        "shard_rows": 8,
        "teacher": config,
        "signals": {"top_k": 4},
        "tasks": [{"name": "adding", "count": rows}],
    }
    return Job.model_validate(job | sections)


def rows_of(out: Path, folder: str = "data") -> list[dict[str, Any]]:
    """The rows of a dataset, as plain values."""
    batches = (batch for path in sorted(out.glob(f"{folder}/*.parquet")) for batch in read_batches(path))
    return [row for batch in batches for row in batch.to_pylist()]


def demo_tokenizer() -> Any:
    """The demo teacher's tokenizer, of `tokenizers`."""
    return LocalTokenizer(Path(demo_teacher())).backend
