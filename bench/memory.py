"""What does an idle keep-alive connection cost a server's memory?

Each of 10,000 connections has asked for plaintext once and then waits. Some others were there
before, so that what all share does not count. Resident memory is what processes have: what the
kernel keeps for a socket is not in it, and is the same for everybody.

Servers are pinned and take turns, as in http.py; this script itself is the load.
"""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import time
from collections.abc import Iterator

import harness
import servers
from client import AnswerError, Client, connect
from harness import START_SECONDS, Bench, MemorySample, Results, settle

# The first connections pay for what all share. They stay open too.
FIRST_CONNECTIONS, IDLE_CONNECTIONS = 500, 10_000
AT_ONCE = 50
# And as many more for listeners, pipes and files.
DESCRIPTORS = FIRST_CONNECTIONS + IDLE_CONNECTIONS + 500


class Scenario(harness.Scenario):
    def suits(self, server: str) -> bool:
        return servers.knows(server, "patient")

    def expected(self, seconds: int) -> float:
        return 8.0


SCENARIOS = {
    "idle": Scenario("resident KiB for each idle connection that has had one plaintext answer")
}
REQUEST = b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n"
ANSWER = (200, b"Hello, world!")


class Connections:
    """Open until the block is left."""

    def __init__(self, server: servers.Server) -> None:
        self._server = server
        self._stack = contextlib.ExitStack()
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> Connections:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    def open(self, count: int) -> None:
        """So many more; some at a time, so that nobody waits for the other with each of them."""
        while count > 0:
            clients = [self._connect() for _ in range(min(AT_ONCE, count))]
            for connection in self._sockets[-len(clients) :]:
                connection.sendall(REQUEST)
            # What they ask has been sent.
            if any(client.ask(b"") != [ANSWER] for client in clients):
                raise AnswerError("wrong answer")
            count -= len(clients)

    def _connect(self) -> Client:
        self._sockets.append(connect(self._server.port, START_SECONDS, self._server.alive))
        return self._stack.enter_context(Client(self._sockets[-1]))

    def check(self) -> None:
        """Raise if one was closed: what is gone costs nothing."""
        for connection in self._sockets:
            connection.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                raise AnswerError(f"not idle: {connection.recv(100)!r}")


def measure(server: servers.Server, name: str, key: str, number: int) -> MemorySample:
    try:
        with Connections(server) as connections:
            connections.open(FIRST_CONNECTIONS)
            settle(server)
            memory, cpu = server.resident_bytes(), server.cpu_seconds()
            started = time.perf_counter()
            connections.open(IDLE_CONNECTIONS)
            seconds = time.perf_counter() - started
            settle(server)
            spent = server.cpu_seconds() - cpu
            grown = server.resident_bytes() - memory
            connections.check()
            server.alive()
    except (AnswerError, OSError, servers.ServerError) as error:
        return MemorySample(name, key, number, error=harness.failure(error, server))
    return MemorySample(name, key, number, IDLE_CONNECTIONS, seconds, spent, grown)


def visit(bench: Bench, name: str, number: int) -> Iterator[MemorySample]:
    for key in bench.asked(name):
        port = servers.free_port()
        command = bench.installation.command(name, "plaintext", port, "hello", mode="patient")
        with servers.running(command, port, bench.installation.work, bench.server_core) as server:
            yield measure(server, name, key, number)


def main() -> int:
    arguments = harness.parse_arguments(
        __doc__ or "", servers.COMMANDS, SCENARIOS, "memory.json", rounds=2
    )
    # The servers inherit it.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY and most < DESCRIPTORS:
        raise SystemExit(f"this needs {DESCRIPTORS} descriptors: ulimit -Hn")
    resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, most))
    with harness.prepared(arguments) as bench:
        os.sched_setaffinity(0, {bench.load_core})
        samples = harness.run(bench, lambda name, number: visit(bench, name, number))
    results = Results(samples)
    harness.print_heading(bench)
    for key in bench.keys:
        harness.print_memory(results, bench.names, key, SCENARIOS[key].title)
    return harness.finish(arguments.json, bench, results, harness.memory_row)


if __name__ == "__main__":
    harness.leave(main)
