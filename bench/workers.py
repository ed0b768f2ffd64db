"""What do several workers bring, and how evenly are they used?

Two of them against one; the share of 400 connections that each of four has; the time until an
answer while one of four is blocked; the start, and the memory of an idle server. The servers take
turns, as in http.py. They are not pinned to a core, only the load is: where there are few cores
they share them with it, so compare CPU per request rather than requests per second.
"""

from __future__ import annotations

import collections
import contextlib
import selectors
import socket
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import environment
import harness
import servers
import wrk
from client import HOST, Answer, AnswerError, Client, connect
from harness import START_SECONDS, Bench, Results, settle, times

CONNECTIONS = 400
# Of requests that each have a connection of their own, while one worker is blocked or none is.
INTERVAL_SECONDS = 0.005
# For the last answers: a server that gives a blocked worker connections answers them late.
LATE_SECONDS = 5.0
# A server that has used no CPU time for so long has started.
QUIET_SECONDS = 0.5


@dataclass(frozen=True)
class Scenario(harness.Scenario):
    workers: int
    kind: str  # of measurement: one of MEASUREMENTS

    def expected(self, seconds: int) -> float:
        return 2.0 + {"share": 0, "start": 0, "blocked": seconds + 2}.get(self.kind, seconds)


@dataclass(frozen=True)
class Sample(harness.Sample):
    """One run. Latencies are in microseconds; shares in per cent, of the workers with fewest and
    most connections."""

    p50_us: float = 0.0
    p99_us: float = 0.0
    least_share: float = 0.0
    most_share: float = 0.0
    resident_bytes: int = 0

    def figures(self) -> dict[str, float]:
        return {
            name: figure(self) for name, figure in FIGURES[SCENARIOS[self.scenario].kind].items()
        }


SCENARIOS = {
    "one": Scenario("plaintext GET, 64 connections, one worker", 1, "load"),
    "two": Scenario("plaintext GET, 64 connections, two workers", 2, "load"),
    "share": Scenario(f"the share of {CONNECTIONS} connections, four workers", 4, "share"),
    "calm": Scenario("a new connection each 5 ms, four workers", 4, "calm"),
    "blocked": Scenario("the same, one of them blocked all the time", 4, "blocked"),
    "start-1": Scenario("start to first answer, and resident memory, one worker", 1, "start"),
    "start-4": Scenario("start to first answer, and resident memory, four workers", 4, "start"),
}


def get(path: str, port: int) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: {HOST}:{port}\r\n\r\n".encode()


def right(answer: Answer) -> bytes:
    if answer.status != 200 or not answer.body:
        raise AnswerError(f"wrong answer: {answer.status} {answer.body[:80]!r}")
    return answer.body


# --- measurements: each takes a server that has answered already --------------------------------


def under_load(bench: Bench, server: servers.Server, workers: int) -> dict[str, float]:
    settle(server)
    before = server.cpu_seconds()
    count, seconds, p50, p99 = wrk.run(
        get("/", server.port),
        server.port,
        bench.installation.work,
        connections=64,
        seconds=bench.seconds,
        core=bench.load_core,
    )
    spent = server.cpu_seconds() - before
    return {
        "count": count,
        "seconds": seconds,
        "cpu_seconds": spent,
        "p50_us": p50,
        "p99_us": p99,
    }


def shares(bench: Bench, server: servers.Server, workers: int) -> dict[str, float]:
    settle(server)
    started, before = time.monotonic(), server.cpu_seconds()
    with contextlib.ExitStack() as stack:
        # All of them before the first request, as when a server meets its clients after a restart.
        clients = [
            stack.enter_context(Client(connect(server.port, START_SECONDS, server.alive)))
            for _ in range(CONNECTIONS)
        ]
        request = get("/", server.port)
        counts = collections.Counter(right(client.ask(request)[0]) for client in clients)
        seconds = time.monotonic() - started
    least = min(counts.values()) if len(counts) == workers else 0
    return {
        "count": CONNECTIONS,
        "seconds": seconds,
        "cpu_seconds": server.cpu_seconds() - before,
        "least_share": 100 * least / CONNECTIONS,
        "most_share": 100 * max(counts.values()) / CONNECTIONS,
    }


def calm(bench: Bench, server: servers.Server, workers: int) -> dict[str, float]:
    settle(server, QUIET_SECONDS)  # and by then a server may have seen that a worker is blocked
    before = server.cpu_seconds()
    latencies = sorted(arrivals(server.port, bench.seconds))
    return {
        "count": len(latencies),
        "seconds": bench.seconds,
        "cpu_seconds": server.cpu_seconds() - before,
        "p50_us": 1e6 * statistics.median(latencies),
        "p99_us": 1e6 * latencies[int(0.99 * len(latencies))],
    }


def blocked(bench: Bench, server: servers.Server, workers: int) -> dict[str, float]:
    path = f"/block/{bench.seconds + 2}"
    with connect(server.port, START_SECONDS, server.alive) as blocking:
        blocking.sendall(get(path, server.port))
        figures = calm(bench, server, workers)
        blocking.recv(1)
    return figures


MEASUREMENTS: dict[str, Callable[[Bench, servers.Server, int], dict[str, float]]] = {
    "load": under_load,
    "share": shares,
    "calm": calm,
    "blocked": blocked,
}


def arrivals(port: int, seconds: float) -> list[float]:
    """A request on a new connection each INTERVAL_SECONDS, whatever has become of those before:
    the seconds from connecting to the answer's first byte."""
    latencies = []
    begun = time.monotonic()
    upcoming, last = begun, begun + seconds
    request = get("/", port)
    with selectors.DefaultSelector() as selector:
        while upcoming < last or selector.get_map():
            now = time.monotonic()
            if now > last + LATE_SECONDS:
                raise AnswerError(f"{len(selector.get_map())} requests were never answered")
            if upcoming < last and now >= upcoming:
                client = socket.create_connection((HOST, port), START_SECONDS)
                client.sendall(request)
                selector.register(client, selectors.EVENT_READ, now)
                upcoming += INTERVAL_SECONDS
            due = upcoming if upcoming < last else last + LATE_SECONDS
            for key, _ in selector.select(max(0.0, due - time.monotonic())):
                assert isinstance(key.fileobj, socket.socket)
                latencies.append(time.monotonic() - key.data)
                if not key.fileobj.recv(65536).startswith(b"HTTP/1.1 200 "):
                    raise AnswerError("wrong answer")
                selector.unregister(key.fileobj)
                key.fileobj.close()
    return latencies


# --- one run ----------------------------------------------------------------------------------


def measure(
    bench: Bench, server: servers.Server, name: str, key: str, number: int, started: float
) -> Sample:
    scenario = SCENARIOS[key]
    try:
        with Client(connect(server.port, START_SECONDS, server.alive)) as client:
            right(client.ask(get("/", server.port))[0])
        seconds = time.monotonic() - started
        # The other workers may still be starting.
        settle(server, QUIET_SECONDS, START_SECONDS)
        if scenario.kind == "start":
            memory = server.resident_bytes()
            return Sample(
                name, key, number, 1, seconds, server.cpu_seconds(), resident_bytes=memory
            )
        figures = MEASUREMENTS[scenario.kind](bench, server, scenario.workers)
        server.alive()
    except (AnswerError, OSError, servers.ServerError, subprocess.TimeoutExpired) as error:
        return Sample(name, key, number, error=harness.failure(error, server))
    return Sample(name, key, number, **figures)  # type: ignore[arg-type]


def visit(bench: Bench, name: str, number: int) -> Iterator[Sample]:
    """Each scenario has the server afresh."""
    for key in bench.asked(name):
        port = servers.free_port()
        command = bench.installation.command(
            name, "worker", port, "", workers=SCENARIOS[key].workers
        )
        started = time.monotonic()
        with servers.running(command, port, bench.installation.work) as server:
            yield measure(bench, server, name, key, number, started)


# --- figures ----------------------------------------------------------------------------------

# By what a measurement gives. The names are those of the JSON file.
FIGURES: dict[str, dict[str, Callable[[Sample], float]]] = {
    "load": {
        "per_second": lambda sample: sample.rate,
        "cpu_us": lambda sample: sample.cost,
        "p99_us": lambda sample: sample.p99_us,
    },
    "share": {
        "least_percent": lambda sample: sample.least_share,
        "most_percent": lambda sample: sample.most_share,
        "ms": lambda sample: 1000 * sample.seconds,
    },
    "calm": {
        "p50_us": lambda sample: sample.p50_us,
        "p99_us": lambda sample: sample.p99_us,
    },
    "blocked": {
        "p50_us": lambda sample: sample.p50_us,
        "p99_us": lambda sample: sample.p99_us,
    },
    "start": {
        "ms": lambda sample: 1000 * sample.seconds,
        "cpu_ms": lambda sample: 1000 * sample.cpu_seconds,
        "mib": lambda sample: sample.resident_bytes / 2**20,
    },
}
# One scenario's figure as a multiple of another's, for the same server.
COMPARED = (
    ("two", "one", "per_second"),
    ("two", "one", "cpu_us"),
    ("blocked", "calm", "p99_us"),
)


def row(results: Results[Sample], name: str, key: str) -> dict[str, float | None]:
    figures = FIGURES[SCENARIOS[key].kind]
    return {label: results.median(name, key, figure) for label, figure in figures.items()}


def print_table(results: Results[Sample], names: list[str], key: str) -> None:
    print(f"\n{key}: {SCENARIOS[key].title}")
    labels = FIGURES[SCENARIOS[key].kind]
    print(f"{'server':<22}" + "".join(f"{label:>14}" for label in labels))
    for name in names:
        if not results.of(name, key):
            print(f"{name:<22}{'failed':>14}")
            continue
        figures = row(results, name, key).values()
        print(f"{name:<22}" + "".join(f"{figure:>14.1f}" for figure in figures))


def print_compared(results: Results[Sample], names: list[str], keys: list[str]) -> None:
    for key, other, label in COMPARED:
        if key not in keys or other not in keys:
            continue
        print(f"\n{label}: {key} / {other}")
        figure = FIGURES[SCENARIOS[key].kind][label]
        for name in names:
            if results.of(name, key) and results.of(name, other):
                ratio = results.median(name, key, figure) / results.median(name, other, figure)
                print(f"{name:<22}{times(ratio):>12}")


def main() -> int:
    arguments = harness.parse_arguments(
        __doc__ or "", servers.WORKERS_COMMANDS, SCENARIOS, "workers.json", rounds=2
    )
    environment.require("wrk")
    with harness.prepared(arguments) as bench:
        samples = harness.run(bench, lambda name, number: visit(bench, name, number))
    results = Results(samples)
    harness.print_heading(bench)
    for key in bench.keys:
        print_table(results, bench.names, key)
    print_compared(results, bench.names, bench.keys)
    return harness.finish(arguments.json, bench, results, row)


if __name__ == "__main__":
    harness.leave(main)
