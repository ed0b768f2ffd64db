"""Several workers: each takes its share of the connections, and nobody waits for a stuck one."""

from __future__ import annotations

import contextlib
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import PATIENCE, Client, request
from process import Process, eventually, workers_of

from fastserve._shared import Row, Table

Start = Callable[..., Process]

# Of a hundred.
TOLERANCE = 5
BLOCKS = """
import os
async def app(scope, receive, send):
    if scope["path"] == "/block":
        print("blocks", flush=True)
        open("{gate}").close()
    await send({{"type": "http.response.start", "status": 200, "headers": []}})
    await send({{"type": "http.response.body", "body": str(os.getpid()).encode()}})
"""


class Crowd(contextlib.ExitStack):
    """Connections that stay open. `workers` counts those of each process."""

    def __init__(self, address: tuple[str, int]) -> None:
        super().__init__()
        self.address = address
        self.workers: Counter[int] = Counter()

    def connect(self, number: int) -> set[int]:
        """All of them first, then a request on each. Which workers have answered."""
        clients = [self.enter_context(Client(self.address)) for _ in range(number)]
        for client in clients:
            client.sendall(request("GET", "/pid"))
        answered = [int(client.read_response().body) for client in clients]
        self.workers.update(answered)
        return set(answered)

    def becomes_shared_by(self, number: int) -> None:
        """As more and more are opened: a worker that the system has kept waiting lags behind."""

        def is_shared() -> bool:
            self.connect(20)
            return self.is_shared_by(number)

        eventually(is_shared)

    def is_shared_by(self, number: int) -> bool:
        shares = [100 * count / self.workers.total() for count in self.workers.values()]
        return len(shares) == number and all(
            abs(share - 100 / number) <= TOLERANCE for share in shares
        )


@pytest.fixture
def serving() -> Iterator[Start]:
    """Start four workers with `serving(*arguments)`; they end with the test."""
    with contextlib.ExitStack() as stack:

        def start(*arguments: str) -> Process:
            address = () if "-b" in arguments else ("-b", "127.0.0.1:0")
            server = Process("-w", "4", "--lifespan", "off", *address, *arguments)
            stack.callback(server.end)
            return server

        yield start


@pytest.fixture
def kind(worker: str, poller: str) -> tuple[str, ...]:
    return ("-k", worker, "--poller", poller)


def rows_of(server: Process) -> list[Row]:
    """What the workers show each other."""
    folder = Path(f"/proc/{server.popen.pid}/fd")
    paths = (each for each in folder.iterdir() if "fastserve-workers" in os.readlink(each))
    table = Table(os.open(next(paths), os.O_RDWR))
    table.close()
    return [table.row(index) for index in range(table.used)]


def test_each_has_its_share(serving: Start, kind: tuple[str, ...]) -> None:
    server = serving(*kind, "served:app")
    with Crowd(server.address) as crowd:
        crowd.connect(400)
        crowd.becomes_shared_by(4)
        assert crowd.workers.total() <= 600, crowd.workers
        shown = {row.pid: row.connections for row in rows_of(server)}
        assert shown == crowd.workers


def test_a_few_are_shared_exactly(serving: Start) -> None:
    """Such as those that a proxy keeps."""
    server = serving("served:app")
    with Crowd(server.address) as crowd:

        def is_level() -> bool:
            crowd.connect(1)
            counts = crowd.workers.values()
            return len(counts) == 4 and max(counts) - min(counts) <= 1

        assert eventually(is_level)


def test_nobody_waits_for_a_stuck_worker(
    serving: Start, kind: tuple[str, ...], tmp_path: Path
) -> None:
    """Its whole loop does, for the gate."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    (tmp_path / "web.py").write_text(BLOCKS.format(gate=gate))
    server = serving(*kind, "--app-dir", str(tmp_path), "web:app")
    with Crowd(server.address) as crowd, server.connect() as blocking:
        blocking.sendall(request("GET", "/block"))
        server.says("blocks")
        # It seems to be well at first, then it does not.
        crowd.connect(100)
        crowd.becomes_shared_by(3)
        gate.write_text("")
        recovered = int(blocking.read_response().body)
        assert recovered not in crowd.workers
        # It has fewest, and is given the next ones until it has as many as the others.
        crowd.becomes_shared_by(4)


def test_a_stopped_process_drops_out(serving: Start) -> None:
    server = serving("served:app")
    address = server.address
    victim = workers_of(server)[0]
    os.kill(victim, signal.SIGSTOP)
    with Crowd(address) as crowd:
        crowd.connect(100)
        crowd.becomes_shared_by(3)
        os.kill(victim, signal.SIGCONT)
        assert eventually(lambda: victim in crowd.connect(1))


def test_what_the_workers_show(serving: Start, kind: tuple[str, ...]) -> None:
    """That an idle one lives; and who takes no connections: one that has as many as it may have,
    and one that drains."""
    server = serving(*kind, "--max-connections", "1", "served:app")
    assert server.address
    rows = {row.pid: row for row in rows_of(server)}
    assert sorted(rows) == sorted(workers_of(server))
    for row in rows.values():
        before = row.beat
        eventually(lambda row=row, before=before: row.beat > before)
        assert row.listening == 1
    with server.connect() as client:
        row = rows[int(client.get("/pid").body)]
        eventually(lambda: (row.connections, row.listening) == (1, 0))
    eventually(lambda: (row.connections, row.listening) == (0, 1))
    with server.connect() as client:
        row = rows[int(client.get("/pid").body)]
        client.sendall(request("GET", "/forever"))
        server.says("begun")
        os.kill(row.pid, signal.SIGTERM)
        eventually(lambda: (row.connections, row.listening) == (1, 0))


# Each worker with a socket of its own.


def test_a_socket_for_each_worker(serving: Start, worker: str) -> None:
    server = serving("-k", worker, "--reuse-port", "served:app")
    with Crowd(server.address) as crowd:
        # The system spreads them as it likes.
        eventually(lambda: crowd.connect(20) and len(crowd.workers) == 4)
        assert {row.listening for row in rows_of(server)} == {0}
        server.send_signal(signal.SIGHUP)
        server.logs("reloaded: 4 new workers serve", 3 * PATIENCE)
        old = set(crowd.workers)
        eventually(lambda: not crowd.connect(5) & old)


def test_another_server_on_the_same_port(serving: Start, worker: str) -> None:
    """Of one process or of several."""
    server = serving("-k", worker, "--reuse-port", "served:app")
    bind = ("-k", worker, "-b", f"127.0.0.1:{server.address[1]}", "served:app")
    other = serving(*bind, "-w", "1", "--reuse-port")
    assert other.address[1] == server.address[1]
    with Crowd(server.address) as crowd:
        eventually(lambda: crowd.connect(20) and len(crowd.workers) == 5)
    server.send_signal(signal.SIGTERM)
    assert server.wait() == 0
    with Crowd(server.address) as crowd:
        assert crowd.connect(5) == {other.popen.pid}
        assert serving(*bind).wait() == 1
