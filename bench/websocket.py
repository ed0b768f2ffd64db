"""What does a WebSocket message cost a server's processor, and an idle socket its memory?

Each server is pinned to one core and the load to another, and they take turns, as in http.py.
The echoes' load is picows, a compiled client, on uvloop. It does not know permessage-deflate, so
nobody compresses there, nor in the broadcast; the idle sockets' load offers it as browsers do,
and fails where it is not used. Nothing is measured before the load has had right answers, and a
run with a wrong or missing one does not count and makes the script fail.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import harness
import servers
from client import HOST, connect
from harness import START_SECONDS, Bench, Results, settle

BENCH = Path(__file__).resolve().parent
LOAD = "websocket_load.py"
PATIENCE_SECONDS = 60.0
# The broadcast's load only counts bytes: all must be over before servers ping, after 20 seconds.
LONGEST_SECONDS = 10
DESCRIPTORS = 4096
# The first sockets pay for what all share. They stay open too.
FIRST_SOCKETS, IDLE_SOCKETS = 200, 1000

PAIRS = (
    ("fastserve-uvloop", "floor"),
    ("fastserve-asyncio", "fastserve-uvloop"),
    ("fastserve-trio", "fastserve-uvloop"),
    ("uvicorn-websockets", "fastserve-uvloop"),
    ("uvicorn-sansio", "fastserve-uvloop"),
    ("uvicorn-wsproto", "fastserve-uvloop"),
    ("granian", "fastserve-uvloop"),
    ("hypercorn-uvloop", "fastserve-uvloop"),
    ("hypercorn-trio", "fastserve-trio"),
)


@dataclass(frozen=True)
class Scenario(harness.Scenario):
    app: str
    load: str

    @property
    def idle(self) -> bool:
        return self.load == "idle"

    def expected(self, seconds: int) -> float:
        return (2.0 if self.idle else seconds) + 1.5


SCENARIOS = {
    "small": Scenario(
        "echo of 100 B, 32 connections", "websocket_echo", "echo 100", without=("floor",)
    ),
    "large": Scenario(
        "echo of 8 KiB, 32 connections", "websocket_echo", "echo 8192", without=("floor",)
    ),
    "broadcast": Scenario("100 B to 1,000 sockets, for each of them", "broadcast", "broadcast"),
    "idle": Scenario(
        "resident KiB for each idle socket that has echoed 1 KiB, compressed",
        "websocket_echo",
        "idle",
        without=("floor", "granian"),  # which does not compress
    ),
}


class Sample(harness.MemorySample):
    """One run. Memory counts in an idle scenario alone."""

    @property
    def _plain(self) -> type[harness.Sample]:
        return harness.MemorySample if SCENARIOS[self.scenario].idle else harness.Sample

    def figures(self) -> dict[str, float]:
        return self._plain.figures(self)

    def brief(self) -> str:
        return self._plain.brief(self)


# --- one run ----------------------------------------------------------------------------------


class LoadError(Exception):
    """The load has ended, or says nothing."""


class Load:
    """A running process of the load; what it takes and says is written there."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self._process = process
        self._log = log

    def read(self) -> str:
        assert self._process.stdout is not None
        # Each line answers one, so none can lie in the file's own buffer.
        if not select.select([self._process.stdout], [], [], PATIENCE_SECONDS)[0]:
            raise LoadError("the load is late")
        line = self._process.stdout.readline()
        if not line:
            why = self._log.read_text(errors="replace").splitlines()
            raise LoadError(f"the load has ended: {why[-1] if why else 'no reason given'}")
        return line

    def ask(self, amount: int) -> tuple[int, float]:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{amount}\n")
        self._process.stdin.flush()
        count, seconds = json.loads(self.read())
        return count, seconds


@contextlib.contextmanager
def loading(bench: Bench, scenario: Scenario, port: int) -> Iterator[Load]:
    """Start the load, wait until it is ready, and end it with the block."""
    work = bench.installation.work
    log = work / "load.log"
    # Of this folder only the copy is used: see servers.Installation.
    shutil.copy(BENCH / LOAD, work)
    kind, *size = scenario.load.split()
    command = [bench.installation.peers, LOAD, kind, HOST, str(port), *size]
    with log.open("w") as errors:
        process = subprocess.Popen(
            command,
            cwd=work,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            preexec_fn=lambda: os.sched_setaffinity(0, {bench.load_core}),
        )
    with process:
        try:
            load = Load(process, log)
            load.read()
            yield load
        finally:
            process.kill()


def measure(bench: Bench, server: servers.Server, name: str, key: str, number: int) -> Sample:
    scenario = SCENARIOS[key]
    try:
        connect(server.port, START_SECONDS, server.alive).close()
        with loading(bench, scenario, server.port) as load:
            if scenario.idle:
                load.ask(FIRST_SOCKETS)
            settle(server)
            memory, cpu = server.resident_bytes(), server.cpu_seconds()
            count, seconds = load.ask(IDLE_SOCKETS if scenario.idle else bench.seconds)
            spent = server.cpu_seconds() - cpu
            settle(server)
            grown = server.resident_bytes() - memory
            server.alive()
    except (LoadError, OSError, servers.ServerError) as error:
        return Sample(name, key, number, error=harness.failure(error, server))
    return Sample(name, key, number, count, seconds, spent, grown)


def visit(bench: Bench, name: str, number: int) -> Iterator[Sample]:
    """Each scenario has the server afresh: what one leaves in memory would be there for another."""
    for key in bench.asked(name):
        port = servers.free_port()
        command = bench.installation.command(name, SCENARIOS[key].app, port, "broadcast")
        with servers.running(command, port, bench.installation.work, bench.server_core) as server:
            yield measure(bench, server, name, key, number)


# --- figures ----------------------------------------------------------------------------------


def row(results: Results[Sample], name: str, key: str) -> dict[str, float | None]:
    of = harness.memory_row if SCENARIOS[key].idle else harness.timed_row
    return of(results, name, key)


def main() -> int:
    arguments = harness.parse_arguments(
        __doc__ or "", servers.WEBSOCKET_COMMANDS, SCENARIOS, "websocket.json", rounds=2
    )
    if arguments.seconds > LONGEST_SECONDS:
        raise SystemExit(f"runs of at most {LONGEST_SECONDS} seconds")
    # Servers and load inherit it; the usual 1024 are too few for either.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, most))
    with harness.prepared(arguments, load_is_peer=True) as bench:
        samples = harness.run(bench, lambda name, number: visit(bench, name, number))
    results = Results(samples)
    harness.print_heading(bench)
    for key in bench.keys:
        if SCENARIOS[key].idle:
            harness.print_memory(results, bench.names, key, SCENARIOS[key].title)
        else:
            harness.print_table(results, bench.names, key, SCENARIOS[key].title, "msg")
    timed = [key for key in bench.keys if not SCENARIOS[key].idle]
    harness.print_pairs(results, PAIRS, bench.names, timed)
    return harness.finish(arguments.json, bench, results, row)


if __name__ == "__main__":
    harness.leave(main)
