"""Metrics: where a run stands, as Prometheus scrapes it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from factory.errors import JobError, pip_install

# of a run's figures: name, what it is, whether it only grows
METRICS = {
    "rows": ("rows_decided", "Rows decided so far.", True),
    "committed": ("rows_committed", "Rows of committed shards.", True),
    "accepted": ("rows_accepted", "Accepted rows.", True),
    "planned": ("rows_planned", "Rows planned so far.", False),
    "tokens_per_second": (
        "tokens_per_second",
        "Completion tokens a second since this run's teachers were ready.",
        False,
    ),
    "rows_per_second": ("rows_per_second", "Rows a second since this run's teachers were ready.", False),
    "workers": ("workers", "Workers alive.", False),
    "restarts": ("worker_restarts", "Workers lost so far.", True),
    "seconds_left": ("seconds_left", "Time left at this speed.", False),
}


class Collector:
    """Reads the figures when it is asked for them."""

    def __init__(self, figures: Callable[[], dict[str, Any]]) -> None:
        self.figures = figures

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        figures = self.figures()
        for key, (name, told, grows) in METRICS.items():
            if figures.get(key) is not None:
                family = CounterMetricFamily if grows else GaugeMetricFamily
                yield family(f"factory_{name}", told, value=float(figures[key]))


@contextmanager
def serve_metrics(port: int | None, figures: Callable[[], dict[str, Any]]) -> Iterator[None]:
    """Answer scrapes on a port for as long as the context lasts; nothing where there is none. Raises JobError."""
    if port is None:
        yield
        return
    try:
        from prometheus_client import CollectorRegistry, start_http_server
    except ModuleNotFoundError:
        raise JobError(f"--metrics: {pip_install('ray')} brings prometheus-client") from None
    registry = CollectorRegistry()
    registry.register(Collector(figures))
    try:
        server, thread = start_http_server(port, registry=registry)
    except OSError as error:
        raise JobError(f"--metrics {port}: {error.strerror}; choose a port that is free") from None
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
