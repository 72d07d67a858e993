"""Leaks: in whatever column, inside JSON too, told with a place."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from factory.publish.leaks import scan


def test_what_stands_in_any_text_is_counted_by_row(tmp_path: Path) -> None:
    messages = [
        [{"role": "user", "content": "write to jo@example.org, jo@example.org"}],
        [{"role": "user", "content": "x"}],
    ]
    table = pa.table(
        {
            "id": ["a", "jo@example.org"],  # an id is the factory's own
            "prompt": messages,
            "answer": ['{"to": "x"}', '{"to": "jo\\u0040example.org"}'],
            "history": pa.array([[], ["key hf_" + "a1" * 17]], pa.list_(pa.string())),
            "score": [1.0, 0.0],
        }
    )
    (tmp_path / "data").mkdir()
    pq.write_table(table, tmp_path / "data/t.parquet")
    (tmp_path / "manifest.json").write_text('{"path": "AKIA' + 'IOSFODNN7EXAMPLE"}')
    leaks = scan(tmp_path, [("default", "data/t.parquet")], ["manifest.json"])
    assert leaks.personal == {"email": 2}
    assert leaks.told(leaks.personal) == "email 2 (first: default, row a)"
    assert leaks.secrets == {"huggingface_token": 1, "aws_key": 1}
    assert "aws_key 1 (first: manifest.json)" in leaks.told(leaks.secrets)
