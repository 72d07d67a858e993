"""The connection to a cluster: addresses that lead nowhere, and an installation without Ray."""

import signal
import sys
from pathlib import Path

import pytest

from factory.dataset.manifest import require_plain_path
from factory.errors import DatasetError, JobError
from factory.runs.nodes import connect


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(JobError, match=r'pip install .*\[ray\]"'), connect("local"):
        pass


def test_a_clients_address_is_refused() -> None:
    with pytest.raises(JobError, match=r"a Ray client's address; .* with --ray auto"), connect("ray://here:10001"):
        pass


@pytest.mark.parametrize("address", ["nowhere", "127.0.0.1"])
def test_an_address_that_is_none_is_one_line_and_leaves_our_signals_alone(address: str) -> None:
    pytest.importorskip("ray")
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(JobError, match=f"--ray {address}: no cluster answers there") as caught, connect(address):
        pass
    assert "\n" not in str(caught.value)
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("out", ["s3://bucket/rows", "gs://bucket", "hf://datasets/me/rows", "file:///tmp/x"])
def test_the_address_of_a_store_is_no_directory(out: str) -> None:
    with pytest.raises(DatasetError, match=r"is an address .* is written to a directory; mount the store"):
        require_plain_path(Path(out))
