"""What is known of a server at one moment, and how Prometheus reads it (docs/operations.md)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastserve._shared import BUCKETS_END_AT, Row

if TYPE_CHECKING:
    from prometheus_client import Metric

__all__ = ["Exposition", "Snapshot", "WorkerStatus"]


@dataclass(frozen=True)
class WorkerStatus:
    """A worker process. Seconds, bytes; None is what nobody knows."""

    worker: int  # its place; another one has it after its end
    pid: int
    state: str
    generation: int
    age: float
    connections: int
    websockets: int
    in_flight: int
    requests: int
    memory: int | None
    heartbeat_age: float | None


@dataclass(frozen=True)
class Snapshot:
    """A server with its workers. `totals`: what all of them have counted, and those before
    them. `restarts`: how many workers were replaced, by the reason."""

    state: str
    generation: int
    restarts: Mapping[str, int]
    totals: Row
    workers: list[WorkerStatus]


COUNTERS = (
    ("requests_refused", "Requests for which there was no room (--limit-concurrency).", "refused"),
    ("received_bytes", "Bytes received from clients.", "received"),
    ("sent_bytes", "Bytes sent to clients.", "sent"),
    ("connections_accepted", "Connections accepted.", "accepted"),
)
HISTOGRAMS = (
    ("request_duration", "From a request's head to the end of its response.", "duration"),
    ("request_queue", "How long those requests that had to wait waited for their turn.", "queue"),
    ("loop_lag", "How late the event loop came to a tick of the clock.", "lag"),
)
GAUGES = (
    ("requests_in_flight", "Requests that have begun and not ended.", "in_flight"),
    ("connections", "Open connections, WebSockets among them.", "connections"),
    ("websockets", "Open WebSockets.", "websockets"),
)
OF_WORKERS = (
    ("worker_memory_bytes", "Resident memory.", "memory"),
    ("worker_connections", "Open connections.", "connections"),
    ("worker_requests_in_flight", "Requests that have begun and not ended.", "in_flight"),
    ("worker_heartbeat_age_seconds", "Since the event loop's last turn.", "heartbeat_age"),
)


class Exposition:
    """`snapshot()` in Prometheus's text format. Raises ImportError without its library."""

    def __init__(self, snapshot: Callable[[], Snapshot]) -> None:
        import prometheus_client

        self._library = prometheus_client
        self._families = prometheus_client.metrics_core
        self._snapshot = snapshot
        # Of its own: the application's metrics are another matter.
        self._registry = prometheus_client.CollectorRegistry()
        self._registry.register(self)

    @property
    def media_type(self) -> str:
        return self._library.CONTENT_TYPE_LATEST

    def render(self) -> bytes:
        return self._library.generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """For the library, which calls this for each text."""
        shot = self._snapshot()
        yield self._counter(
            "requests", "Requests that have ended.", "status", shot.totals.responses
        )
        yield self._counter("worker_restarts", "Workers replaced.", "reason", shot.restarts)
        for name, text, attribute in COUNTERS:
            value = getattr(shot.totals, attribute)
            yield self._families.CounterMetricFamily(f"fastserve_{name}", text, value)
        for name, text, attribute in HISTOGRAMS:
            yield self._histogram(
                f"fastserve_{name}_seconds", text, *getattr(shot.totals, attribute)
            )
        for name, text, attribute in GAUGES:
            value = sum(getattr(each, attribute) for each in shot.workers)
            yield self._families.GaugeMetricFamily(f"fastserve_{name}", text, value)
        for name, text, attribute in OF_WORKERS:
            values = {str(each.worker): getattr(each, attribute) for each in shot.workers}
            yield self._gauge(name, text, "worker", values)
        yield self._gauge("workers", "Worker processes.", "state", _states(shot))
        yield self._families.GaugeMetricFamily(
            "fastserve_generation",
            "Of the workers that serve: a reload begins another one.",
            shot.generation,
        )

    def _counter(self, name: str, text: str, label: str, values: Mapping[str, int]) -> Metric:
        family = self._families.CounterMetricFamily(f"fastserve_{name}", text, labels=[label])
        for value, count in values.items():
            family.add_metric([value], count)
        return family

    def _gauge(
        self, name: str, text: str, label: str, values: Mapping[str, float | None]
    ) -> Metric:
        family = self._families.GaugeMetricFamily(f"fastserve_{name}", text, labels=[label])
        for value, measured in values.items():
            if measured is not None:
                family.add_metric([value], measured)
        return family

    def _histogram(self, name: str, text: str, counts: list[int], total: float) -> Metric:
        ends = [*(str(end) for end in BUCKETS_END_AT), "+Inf"]
        buckets = list(zip(ends, itertools.accumulate(counts), strict=True))
        return self._families.HistogramMetricFamily(name, text, buckets=buckets, sum_value=total)


def _states(shot: Snapshot) -> dict[str, float]:
    states: dict[str, float] = {"starting": 0, "serving": 0, "retiring": 0}
    states |= {"draining": 0, "hanging": 0}
    for each in shot.workers:
        states[each.state] += 1
    return states
