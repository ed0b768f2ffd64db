"""What a supervisor tells those who watch it: probes, metrics, StatsD."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import (
    MIB,
    PATIENCE,
    POLLERS,
    WORKERS,
    Client,
    Response,
    WebSocketClient,
    handshake,
    push,
    request,
)
from process import SOURCES, Load, Process, eventually, refuses
from prometheus_client.parser import text_string_to_metric_families

from fastserve._shared import BUCKETS_END_AT
from fastserve.admin import MOST_CLIENTS
from fastserve.statsd import SAMPLES

HALF = b"POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: 4\r\n\r\nab"
STATES = "fastserve_workers{state=%s}"
STATUS = "fastserve_requests_total{status=%s}"


class Watched(Process):
    """A server with an admin listener."""

    @property
    def admin(self) -> tuple[str, int] | str:
        where = self.logs(r"admin listener on (?:http://(\S+):(\d+)|unix:(\S+))")
        return where[3] or (where[1], int(where[2]))

    def page(self, path: str) -> Response:
        with Client(self.admin) as client:
            response = client.get(path)
            assert response.field(b"connection") == b"close"
            assert client.is_closed_by_peer()
        return response

    def status(self, path: str) -> int:
        return self.page(path).status

    def workers(self) -> list[dict[str, Any]]:
        shown: list[dict[str, Any]] = json.loads(self.page("/workers").body)
        return shown

    def metrics(self) -> dict[str, float]:
        """Each sample by its name and its labels."""
        text = self.page("/metrics").body.decode()
        return {
            sample.name
            + "".join(f"{{{name}={value}}}" for name, value in sample.labels.items()): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def has(self, **expected: float) -> bool:
        """Whether these metrics, without fastserve_, have these values."""
        found = self.metrics()
        return all(found[f"fastserve_{name}"] == value for name, value in expected.items())

    def is_ready(self) -> Watched:
        eventually(lambda: self.status("/ready") == 200, 6 * PATIENCE)
        return self


Start = Callable[..., Watched]


@pytest.fixture
def watched() -> Iterator[Start]:
    """tests/apps/served.py, or what else is named, with an admin listener."""
    with contextlib.ExitStack() as stack:

        def start(
            *options: str, app: str = "served:app", admin: str = "127.0.0.1:0", **more: Any
        ) -> Watched:
            first = ("-b", "127.0.0.1:0", "--admin-bind", admin)
            server = Watched(*first, *options, app, **more)
            stack.callback(server.end)
            return server

        yield start


def ends(server: Watched) -> None:
    server.send_signal(signal.SIGTERM)
    assert server.wait() == 0


# What is counted.


@pytest.mark.parametrize("poller", POLLERS)
@pytest.mark.parametrize("kind", WORKERS)
def test_what_is_counted(watched: Start, kind: str, poller: str) -> None:
    server = watched("-k", kind, "--poller", poller).is_ready()
    sent = received = 0

    def exchange(client: Client, data: bytes) -> int:
        nonlocal sent, received
        client.sendall(data)
        sent += len(data)
        return client.read_response().status

    with server.connect() as client:
        for _ in range(3):
            assert exchange(client, request("GET", "/")) == 200
        eventually(lambda: server.has(connections=1, connections_accepted_total=1))
        assert exchange(client, request("GET", "/nowhere")) == 500
    with server.connect() as client:
        assert exchange(client, b"GET / HTTP/1.1\r\nbad\r\n\r\n") == 400
    found = eventually(lambda: server.has(connections=0) and server.metrics())
    assert found[STATUS % "200"] == 3
    assert found[STATUS % "500"] == found[STATUS % "400"] == 1
    # What was no request has no duration.
    assert found["fastserve_request_duration_seconds_count"] == 4
    assert found["fastserve_received_bytes_total"] == sent
    assert found["fastserve_connections_accepted_total"] == 2
    assert found["fastserve_request_queue_seconds_count"] == 0
    ends(server)


@pytest.mark.parametrize("kind", WORKERS)
def test_what_is_under_way(watched: Start, kind: str) -> None:
    server = watched("-k", kind).is_ready()
    with server.connect() as busy, WebSocketClient(server.address) as web:
        busy.sendall(HALF)
        web.sendall(handshake("/socket"))
        assert web.read_response().status == 101
        eventually(lambda: server.has(requests_in_flight=1, websockets=1, connections=2))
        (worker,) = server.workers()
        assert (worker["in_flight"], worker["websockets"], worker["requests"]) == (1, 1, 1)
        busy.sendall(b"cd")
        assert busy.read_response().body == b"abcd"
        web.close_with()
    eventually(lambda: server.has(requests_in_flight=0, websockets=0, connections=0))
    with server.connect() as leaves:
        leaves.sendall(request("GET", "/forever"))
        eventually(lambda: server.has(requests_in_flight=1))
        leaves.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    found = eventually(lambda: server.has(requests_in_flight=0) and server.metrics())
    assert found[STATUS % "101"] == found[STATUS % "none"] == 1


def test_bytes_are_those_on_the_wire(watched: Start) -> None:
    server = watched().is_ready()
    with server.connect() as client:
        client.sendall(request("GET", "/", "Connection: close"))
        answer = client.read_to_end()
    eventually(lambda: server.has(connections=0))
    assert server.has(sent_bytes_total=len(answer))


@pytest.mark.parametrize("kind", WORKERS)
def test_the_line_is_counted(watched: Start, kind: str) -> None:
    server = watched("-k", kind, "--limit-concurrency", "1", "--queue-size", "1").is_ready()
    with server.connect() as first, server.connect() as second, server.connect() as third:
        first.sendall(HALF)
        server.says("begun")
        second.sendall(request("GET", "/"))
        eventually(lambda: server.has(requests_in_flight=2))
        assert third.get("/").status == 503
        assert server.has(requests_refused_total=1, request_queue_seconds_count=0)
        first.sendall(b"cd")
        assert first.read_response().status == second.read_response().status == 200
    found = server.metrics()
    assert found["fastserve_request_queue_seconds_count"] == 1
    assert found["fastserve_request_queue_seconds_sum"] > 0
    assert found["fastserve_requests_refused_total"] == 1
    assert found[STATUS % "503"] == 1


def test_the_log_has_the_same_durations(watched: Start, tmp_path: Path) -> None:
    log = tmp_path / "log"
    server = watched("--access-logfile", str(log), "--access-logformat", "%(D)s").is_ready()
    with server.connect() as client:
        for _ in range(20):
            assert client.get("/").status == 200
    found = server.metrics()
    lines = eventually(lambda: len(written := log.read_text().split()) == 20 and written)
    durations = [int(line) for line in lines]
    total = found["fastserve_request_duration_seconds_sum"]
    assert round(total * 1e6) == sum(durations)
    for end in BUCKETS_END_AT:
        below = found[f"fastserve_request_duration_seconds_bucket{{le={end}}}"]
        assert below == sum(duration <= end * 1e6 for duration in durations)
    assert found["fastserve_request_duration_seconds_bucket{le=+Inf}"] == 20


@pytest.mark.parametrize("poller", POLLERS)
@pytest.mark.parametrize("kind", WORKERS)
def test_a_stalled_loop_shows(watched: Start, kind: str, poller: str) -> None:
    server = watched("-k", kind, "--poller", poller).is_ready()
    (worker,) = server.workers()
    os.kill(worker["pid"], signal.SIGSTOP)
    assert eventually(lambda: server.workers()[0]["heartbeat_age"] > 1.5)
    os.kill(worker["pid"], signal.SIGCONT)
    # The tick that was due came late.
    assert eventually(lambda: server.metrics()["fastserve_loop_lag_seconds_sum"] > 0.5)
    assert eventually(lambda: server.workers()[0]["heartbeat_age"] < 1.5)


# No counter ever falls.


def growing(found: dict[str, float]) -> dict[str, float]:
    ends = re.compile(r"_(total|count|sum|bucket)(\{|$)")
    return {name: value for name, value in found.items() if ends.search(name)}


@pytest.mark.parametrize("kind", WORKERS)
def test_no_counter_falls(watched: Start, kind: str) -> None:
    server = watched("-w", "2", "-k", kind).is_ready()
    before: dict[str, float] = {}

    def still_grows(**expected: float) -> bool:
        nonlocal before
        found = server.metrics()
        fallen = {name for name, value in before.items() if growing(found).get(name, 0) < value}
        assert fallen == set()
        before = growing(found)
        return all(found[f"fastserve_{name}"] == value for name, value in expected.items())

    def ask(times: int) -> None:
        for _ in range(times):
            with server.connect() as client:
                assert client.get("/").status == 200

    ask(40)
    first, second = sorted(worker["pid"] for worker in server.workers())
    assert sum(worker["requests"] for worker in server.workers()) == 40
    os.kill(first, signal.SIGKILL)
    ask(10)
    restarts = "worker_restarts_total{reason=died}"
    eventually(lambda: still_grows(**{restarts: 1, "workers{state=serving}": 2}), 6 * PATIENCE)
    ask(10)
    server.send_signal(signal.SIGHUP)
    states = {"workers{state=serving}": 2, "workers{state=draining}": 0}
    eventually(lambda: still_grows(generation=2, **states), 6 * PATIENCE)
    ask(10)
    assert before[STATUS % "200"] == 60
    assert still_grows(connections_accepted_total=70)
    assert second not in {worker["pid"] for worker in server.workers()}
    assert {worker["generation"] for worker in server.workers()} == {2}
    assert server.metrics()[STATUS % "200"] == 70


def test_a_new_program_counts_from_the_beginning(watched: Start) -> None:
    """On the same admin listener; StatsD, which is told of differences, misses none."""
    with Receiver() as receiver:
        server = watched("-w", "2", "--statsd-host", receiver.text).is_ready()

        def ask(times: int) -> None:
            for _ in range(times):
                with server.connect() as client:
                    assert client.get("/").status == 200

        def has_counted(times: int) -> bool:
            found = server.metrics()
            accepted = found["fastserve_connections_accepted_total"]
            return found[STATUS % "200"] == accepted == times

        ask(10)
        eventually(lambda: has_counted(10))
        old = {worker["pid"] for worker in server.workers()}
        server.send_signal(signal.SIGUSR2)
        assert server.popen.wait(6 * PATIENCE) == 0
        assert server.is_ready().has(generation=1, connections_accepted_total=0)
        assert not old & {worker["pid"] for worker in server.workers()}
        ask(5)
        eventually(lambda: has_counted(5))
        receiver.waits_for("fastserve.requests", 15)


def test_a_worker_that_was_recycled(watched: Start) -> None:
    server = watched("--max-requests", "5").is_ready()
    with Load(server.address) as load:
        load.waits_for(2)
    assert load.failures == []
    found = server.metrics()
    assert found["fastserve_worker_restarts_total{reason=recycled}"] >= 1
    assert found["fastserve_worker_restarts_total{reason=died}"] == 0


# The pages.


def test_pages_while_no_worker_moves(watched: Start) -> None:
    server = watched("-w", "2").is_ready()
    pids = [worker["pid"] for worker in server.workers()]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    assert [server.status(path) for path in ("/live", "/ready", "/metrics")] == [200] * 3
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    ends(server)


def test_the_workers(watched: Start) -> None:
    server = watched("-w", "2").is_ready()
    shown = server.workers()
    assert server.page("/workers").field(b"content-type") == b"application/json"
    with server.connect() as client:
        assert int(client.get("/pid").body) in {worker["pid"] for worker in shown}
    assert sorted(worker["worker"] for worker in shown) == [0, 1]
    for worker in shown:
        assert (worker["state"], worker["generation"]) == ("serving", 1)
        assert worker["memory"] > MIB
        assert worker["age"] > 0
        assert worker["heartbeat_age"] >= 0


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (request("GET", "/elsewhere"), 404),
        (request("POST", "/live", body=b"x"), 405),
        (b"nonsense\r\n\r\n", 400),
        (b"GET /%s HTTP/1.1\r\n\r\n" % (b"x" * 10_000), 414),
        (b"GET /live HTTP/2.0\r\nHost: x\r\n\r\n", 505),
        (b"\x16\x03\x01" + bytes(300), 400),
    ],
)
def test_what_is_no_page(watched: Start, data: bytes, status: int) -> None:
    server = watched()
    with Client(server.admin) as client:
        client.sendall(data)
        response = client.read_response()
        assert response.status == status
        assert response.field(b"allow") == (b"GET, HEAD" if status == 405 else None)
        assert client.is_closed_by_peer()
    assert server.status("/live") == 200


def test_a_head_has_no_body(watched: Start) -> None:
    server = watched()
    with Client(server.admin) as client:
        client.sendall(request("HEAD", "/live"))
        response = client.read_response(head_only=True)
        assert response.field(b"content-length") == b"5"
        assert client.is_closed_by_peer()


def test_a_request_byte_by_byte(watched: Start) -> None:
    server = watched()
    with Client(server.admin) as client:
        for byte in request("GET", "/live"):
            client.sendall(bytes([byte]))
        assert client.read_response().body == b"live\n"


def test_silent_clients_keep_nobody_out(watched: Start) -> None:
    server = watched()
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(Client(server.admin)) for _ in range(MOST_CLIENTS + 5)]
        assert server.status("/live") == 200
        assert silent[0].is_closed_by_peer()
        silent[-1].sendall(request("GET", "/live"))
        assert silent[-1].read_response().status == 200


def test_what_follows_a_request_is_bounded(watched: Start) -> None:
    server = watched()
    with Client(server.admin) as client:
        client.sendall(request("GET", "/live", "Content-Length: 100000000"))
        with contextlib.suppress(ConnectionError):
            assert push(client, bytes(MIB), 64 * MIB) < 64 * MIB
    assert server.status("/live") == 200


def test_a_slow_client_is_given_up(watched: Start) -> None:
    """Also where a worker was forked while it was there, which is a copy of its connection."""
    server = watched("--preload").is_ready()
    with Client(server.admin) as client:
        client.sendall(b"GET /live")
        server.send_signal(signal.SIGTTIN)
        eventually(lambda: server.has(**{"workers{state=serving}": 2}), 3 * PATIENCE)
        assert client.is_closed_by_peer()
    with server.connect():
        server.send_signal(signal.SIGKILL)
        eventually(lambda: refuses(server.admin))


# Readiness.


def test_ready_once_the_lifespan_has_started(watched: Start, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    (tmp_path / "slow.py").write_text(
        "import anyio, pathlib\n"
        "async def app(scope, receive, send):\n"
        "    await receive()\n"
        f"    while not pathlib.Path({str(gate)!r}).exists(): await anyio.sleep(0.01)\n"
        "    await send({'type': 'lifespan.startup.complete'})\n"
        "    await receive()\n"
        "    await send({'type': 'lifespan.shutdown.complete'})\n"
    )
    server = watched("--app-dir", str(tmp_path), app="slow:app")
    ready = server.page("/ready")
    assert (ready.status, ready.body) == (503, b"starting\n")
    assert server.status("/live") == 200
    assert server.workers()[0]["heartbeat_age"] is None
    gate.touch()
    server.is_ready()
    assert server.page("/ready").body == b"ready\n"
    ends(server)


def test_not_ready_from_the_signal_on(watched: Start) -> None:
    server = watched("--drain-delay", "600").is_ready()
    with server.connect() as waits:
        server.send_signal(signal.SIGTERM)
        eventually(lambda: server.status("/ready") == 503)
        assert server.page("/ready").body == b"draining\n"
        assert server.status("/live") == 200
        answer = waits.get("/")
        assert (answer.status, answer.field(b"connection")) == (200, b"close")
        assert server.has(**{"workers{state=draining}": 1, "workers{state=serving}": 0})
    server.send_signal(signal.SIGTERM)
    assert server.wait() == 0
    assert refuses(server.admin)


def test_not_ready_while_nobody_serves(watched: Start) -> None:
    """Which the supervisor is alive to see, and to change."""
    server = watched().is_ready()
    with server.connect() as client:
        client.sendall(request("GET", "/crash"))
        eventually(lambda: server.status("/ready") == 503)
    assert server.status("/live") == 200
    server.is_ready()
    assert server.has(**{"worker_restarts_total{reason=died}": 1})


# Its address.


def test_a_unix_socket(watched: Start, tmp_path: Path) -> None:
    path = tmp_path / "admin"
    server = watched("--umask", "117", admin=f"unix:{path}").is_ready()
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert server.admin == str(path)
    ends(server)
    assert not path.exists()


def test_an_address_that_is_taken(watched: Start) -> None:
    first = watched()
    host, port = first.admin
    second = watched(admin=f"{host}:{port}")
    assert second.wait() == 1
    line = f"fastserve: error: cannot listen on {host}:{port}: address already in use"
    assert second.err.all() == [line]


def test_a_new_program_takes_it_over(watched: Start, tmp_path: Path) -> None:
    """The old one answers until the new one serves, and is not asked afterwards."""
    path, pid_file = tmp_path / "admin", tmp_path / "pid"
    options = ("-p", str(pid_file), "--graceful-timeout", "600")
    server = watched(*options, admin=f"unix:{path}").is_ready()
    (old,) = server.workers()
    with server.connect() as busy:
        busy.sendall(HALF)
        server.says("begun")
        server.send_signal(signal.SIGUSR2)

        def seen() -> bool:
            assert server.status("/live") == 200
            assert server.status("/ready") == 200
            return server.workers()[0]["pid"] != old["pid"]

        eventually(seen, 6 * PATIENCE)
        busy.sendall(b"cd")
        assert busy.read_response().body == b"abcd"
    assert server.popen.wait(3 * PATIENCE) == 0
    assert server.status("/ready") == 200
    os.kill(int(pid_file.read_text()), signal.SIGTERM)
    eventually(lambda: not path.exists(), 3 * PATIENCE)


def test_without_the_library(watched: Start, tmp_path: Path) -> None:
    (tmp_path / "prometheus_client.py").write_text("raise ImportError\n")
    server = watched(env={"PYTHONPATH": f"{tmp_path}{os.pathsep}{SOURCES}"})
    line = server.logs("there is no /metrics")[0]
    assert line
    server.logs(re.escape("pip install 'fastserve-asgi[metrics]'"))
    assert [server.status(path) for path in ("/live", "/metrics")] == [200, 404]


# StatsD.


class Receiver(socket.socket):
    """A StatsD server, which only listens."""

    def __init__(self, path: str = "") -> None:
        super().__init__(socket.AF_UNIX if path else socket.AF_INET, socket.SOCK_DGRAM)
        self.bind(path or ("127.0.0.1", 0))
        self.settimeout(3 * PATIENCE)
        self.lines: list[str] = []

    @property
    def text(self) -> str:
        name = self.getsockname()
        return f"unix:{name}" if isinstance(name, str) else f"{name[0]}:{name[1]}"

    def sum_of(self, name: str) -> int:
        """Of this counter, so far."""
        values = (re.fullmatch(rf"{re.escape(name)}:(\d+)\|c", line) for line in self.lines)
        return sum(int(value[1]) for value in values if value)

    def waits_for(self, name: str, value: int) -> None:
        while self.sum_of(name) < value:
            datagram = self.recv(65536)
            assert len(datagram) <= 1400
            self.lines += datagram.decode("ascii").split("\n")
        assert self.sum_of(name) == value


@pytest.mark.parametrize("kind", WORKERS)
def test_statsd(watched: Start, kind: str) -> None:
    with Receiver() as receiver:
        server = watched("-k", kind, "-w", "2", "--statsd-host", receiver.text).is_ready()
        with server.connect() as client:
            for _ in range(7):
                assert client.get("/").status == 200
            assert client.get("/nowhere").status == 500
        receiver.waits_for("fastserve.requests", 8)
        assert receiver.sum_of("fastserve.request.status.200") == 7
        assert receiver.sum_of("fastserve.request.status.500") == 1
        durations = [line for line in receiver.lines if "duration" in line]
        assert len(durations) == 8
        for line in durations:
            assert re.fullmatch(r"fastserve\.request\.duration:\d+\.\d{3}\|ms", line)
        ends(server)


def test_statsd_is_told_the_rest_at_the_end(watched: Start, tmp_path: Path) -> None:
    with Receiver(str(tmp_path / "statsd")) as receiver:
        names = ("--statsd-prefix", "web.", "--dogstatsd-tags", "a:b,c:d")
        server = watched("--statsd-host", receiver.text, *names).is_ready()
        with server.connect() as client:
            for _ in range(10 * SAMPLES):
                assert client.get("/").status == 200
        ends(server)
        receiver.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                receiver.lines += receiver.recv(65536).decode().split("\n")
        assert {line.rpartition("|#")[2] for line in receiver.lines} == {"a:b,c:d"}
        receiver.lines = [line.removesuffix("|#a:b,c:d") for line in receiver.lines]
        assert receiver.sum_of("web.fastserve.requests") == 10 * SAMPLES
        timing = re.compile(r"web\.fastserve\.request\.duration:[\d.]+\|ms(?:\|@([\d.]+))?")
        shares = [match[1] or "1" for line in receiver.lines if (match := timing.fullmatch(line))]
        # Each stands for so many requests.
        assert round(sum(1 / float(share) for share in shares)) == 10 * SAMPLES


def test_a_statsd_that_nobody_is(watched: Start, tmp_path: Path) -> None:
    server = watched("--statsd-host", f"unix:{tmp_path}/nobody").is_ready()
    with server.connect() as client:
        assert client.get("/").status == 200
    ends(server)


def test_a_statsd_with_no_address(watched: Start) -> None:
    server = watched("--statsd-host", "nowhere.invalid").is_ready()
    server.logs("no metrics are sent to nowhere.invalid:8125: ")
    ends(server)
