"""Loops that hang: what the log says of them, and who replaces them."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import PATIENCE, SANITIZED, WORKERS, Serve, request, respond
from process import DRAINING, Process, ends, eventually, slowly, workers_of

from fastserve import stacks
from fastserve._shared import Table
from fastserve.config import LOOP_TIMEOUT, Config
from fastserve.watchdog import Pulse

needs_proc = pytest.mark.skipif(
    not os.path.isdir("/proc/self"), reason="a stopped process is told by /proc"
)


def lines_with(caplog: pytest.LogCaptureFixture, text: str) -> list[str]:
    return [message for message in caplog.messages if text in message]


# A warning, in the process itself.


class Blocking:
    """An application whose requests for `/block` keep the loop until they are let go."""

    def __init__(self) -> None:
        self.may_end = threading.Semaphore(0)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/block":
            self.block()
        await respond(send)

    def block(self) -> None:
        assert self.may_end.acquire(timeout=3 * PATIENCE)


def test_a_stall_is_told_of_once(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    app = Blocking()
    server = serve(app, lifespan="off", loop_lag_warn=0.2)
    for number in (1, 2):
        with server.connect() as client:
            client.sendall(request("GET", "/block"))
            stalls = eventually(
                lambda number=number: (
                    len(found := lines_with(caplog, "had no turn")) == number and found
                )
            )
            assert "in block\n    assert self.may_end" in stalls[-1]
            app.may_end.release()
            assert client.read_response().status == 200
        eventually(lambda number=number: len(lines_with(caplog, "turns again")) == number)
    assert len(lines_with(caplog, "had no turn")) == 2


def test_a_stall_that_lasts_is_told_of_once(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    """The looks go on; what they found is told when it is over."""
    app = Blocking()
    server = serve(app, lifespan="off", loop_lag_warn=0.2)
    with server.connect() as client:
        client.sendall(request("GET", "/block"))
        eventually(lambda: lines_with(caplog, "had no turn"))
        lasts = time.monotonic() + 0.5
        eventually(lambda: time.monotonic() > lasts)
        app.may_end.release()
        assert client.read_response().status == 200
    (line,) = eventually(lambda: lines_with(caplog, "turns again"))
    assert float(line.split()[-2]) >= 0.5
    assert len(lines_with(caplog, "had no turn")) == 1


def test_an_idle_loop_turns(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    """However seldom it has something to do; a request's deadline tells the time."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await receive()

    server = serve(app, lifespan="off", loop_lag_warn=1, request_timeout=1.5)
    with server.connect() as client:
        assert client.get("/").status == 504
    assert lines_with(caplog, "no turn") == []


def test_the_watch_ends_with_the_server(serve: Serve) -> None:
    server = serve(Blocking(), lifespan="off", loop_lag_warn=1)
    names = [thread.name for thread in threading.enumerate()]
    assert names.count("fastserve-watchdog") == 1
    server.stop()
    assert "fastserve-watchdog" not in [thread.name for thread in threading.enumerate()]


def test_nobody_watches_unless_asked(serve: Serve) -> None:
    serve(Blocking(), lifespan="off", loop_lag_warn=0)
    assert "fastserve-watchdog" not in [thread.name for thread in threading.enumerate()]


# What a supervisor does.


Start = Callable[..., Process]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start tests/apps/stuck.py in two processes; they end with the test."""
    with contextlib.ExitStack() as stack:

        def start(*options: str, app: str = "stuck:app", **more: Any) -> Process:
            arguments = ("-w", "2", "-b", "127.0.0.1:0", *options, app)
            server = Process(*arguments, **more)
            stack.callback(server.end)
            return server

        yield start


def hang(server: Process, path: str) -> int:
    """Have a worker hang; which one it is."""
    with server.connect() as client:
        victim = int(client.get("/pid").body)
        client.sendall(request("GET", path))
        server.logs(rf"worker {victim}: its loop has not turned for \d+\.\d s", 3 * PATIENCE)
        assert client.is_closed_by_peer()
    return victim


@pytest.mark.parametrize("kind", WORKERS)
@pytest.mark.parametrize("path", ["/busy", "/asleep"])
def test_a_loop_that_hangs_is_explained_and_replaced(start: Start, kind: str, path: str) -> None:
    server = start("-k", kind, "-t", "1")
    victim = hang(server, path)
    server.logs(rf"\[{victim}\] ERROR the threads stand at")
    server.logs(f"stuck.py.* in {path.removeprefix('/')}$")
    server.logs(rf"\[{victim}\] ERROR the tasks stand at")
    server.logs("stuck.py.* in live$")  # the lifespan, which waits for the end
    slowly(lambda: len(workers_of(server)) == 3)
    with server.connect() as client:
        assert int(client.get("/pid").body) != victim
    server.logs(rf"worker {victim}, which was to end, has exited with status 1")
    assert len(workers_of(server)) == 3
    ends(server)


def test_code_that_keeps_the_interpreters_lock(start: Start) -> None:
    """Nothing in the process can run but a signal's handler in C."""
    server = start("-t", "1")
    victim = hang(server, "/locked")
    server.logs(rf"worker {victim} cannot say where it hangs: sending SIGABRT")
    server.logs(r"stuck.py\", line \d+ in locked$")
    server.logs(rf"worker {victim}, which was to end, was ended by SIGABRT")
    slowly(lambda: len(workers_of(server)) == 3)


@pytest.mark.skipif(SANITIZED, reason="the sanitizer explains a crash itself, and ends with 1")
def test_a_crash_is_explained(start: Start) -> None:
    server = start()
    with server.connect() as client:
        client.sendall(request("GET", "/crash"))
        server.logs("Fatal Python error: Segmentation fault")
        server.logs(r"stuck.py\", line \d+ in crash$")
        server.logs("was ended by SIGSEGV; another one takes its place")
    slowly(lambda: len(workers_of(server)) == 3)
    with server.connect() as client:
        assert client.get("/pid").status == 200


@needs_proc
def test_a_worker_that_was_stopped_is_left_alone(start: Start) -> None:
    """As by a debugger; and it has all its time when it goes on."""
    server = start("-t", "0.5")
    assert server.address
    stopped, other = workers_of(server)
    os.kill(stopped, signal.SIGSTOP)
    server.logs(rf"worker {stopped} was stopped, by SIGSTOP or a debugger")
    os.kill(stopped, signal.SIGCONT)
    assert hang(server, "/busy") in (stopped, other)
    slowly(lambda: len(workers_of(server)) == 3)
    assert sum("has not turned" in line for line in server.err.lines) == 1


def test_a_machine_that_was_stopped(start: Start) -> None:
    """Nobody is blamed for the time in which nobody ran."""
    server = start("-t", "0.5")
    assert server.address
    everybody = [*workers_of(server), server.popen.pid]
    for pid in everybody:
        os.kill(pid, signal.SIGSTOP)
    over = time.monotonic() + 2
    eventually(lambda: time.monotonic() > over)
    for pid in reversed(everybody):
        os.kill(pid, signal.SIGCONT)
    hang(server, "/busy")
    slowly(lambda: len(workers_of(server)) == 3)
    assert sum("has not turned" in line for line in server.err.lines) == 1


def test_a_loop_need_not_turn_for_us_at_the_end(start: Start, tmp_path: Path) -> None:
    """A worker that was told to end by somebody else has its time for lifespan shutdown."""
    gate = tmp_path / "gate"
    server = start("-t", "0.5", env={"GATE": str(gate)})
    assert server.address
    leaving = workers_of(server)[0]
    os.kill(leaving, signal.SIGTERM)
    over = time.monotonic() + 2
    eventually(lambda: time.monotonic() > over)
    gate.touch()
    server.logs(rf"worker {leaving} has exited with status 0")
    assert not any("has not turned" in line for line in server.err.lines)


# The same command, with little time for this.
IMPATIENT = "from fastserve import cli, supervisor; supervisor.%s = 1.0; cli.main()"


@pytest.mark.parametrize("kind", WORKERS)
def test_a_worker_that_does_not_end_says_why(start: Start, kind: str) -> None:
    server = start("-k", kind, "-t", "0", python=("-c", IMPATIENT % "HURRY"))
    with server.connect() as client:
        victim = int(client.get("/pid").body)
        client.sendall(request("GET", "/asleep"))
        server.send_signal(signal.SIGTERM)
        server.logs(DRAINING)
        server.send_signal(signal.SIGTERM)  # and now in a hurry
        server.logs(rf"worker {victim} did not end in time: it has to say why")
        server.logs(rf"\[{victim}\] ERROR the threads stand at")
        server.logs(r"stuck.py.* in asleep$")
        server.logs(rf"worker {victim}, which was to end, has exited with status 1")
    assert server.wait() == 0


def test_an_import_that_does_not_end_says_why(start: Start, tmp_path: Path) -> None:
    """Nothing in the process listens yet: the interpreter says it."""
    (tmp_path / "slow.py").write_text("import time\ntime.sleep(600)\n")
    arguments = ("--startup-timeout", "0.1", "--app-dir", str(tmp_path))
    server = start(*arguments, app="slow:app", python=("-c", IMPATIENT % "IMPORT"))
    victim = server.logs(r"worker (\d+) did not start in time: it has to say why", 3 * PATIENCE)[1]
    server.logs(rf"worker {victim} cannot say where it hangs: sending SIGABRT")
    server.logs(r"slow.py\", line 2 in <module>$")
    line = f"fastserve: error: worker {victim} was ended by SIGABRT before it was ready"
    assert server.wait() == 1
    assert line in server.err.all()


def test_who_has_how_much_time() -> None:
    assert Config(workers=2).loop_timeout == LOOP_TIMEOUT
    assert Config(workers=2, timeout=0).loop_timeout == 0
    assert Config(reload=True).loop_timeout == 0
    assert Config(reload=True, timeout=5).loop_timeout == 5
    assert Config(timeout=5).needs_supervisor
    assert not Config(timeout=0).needs_supervisor
    assert not Config().needs_supervisor


# The parts.


def test_a_pulse_that_nobody_has_felt() -> None:
    """A row without a beat is of a loop that does not turn yet, or no more."""
    table = Table.create(1)
    table.close()
    pulse = Pulse(table.row(0), 1)
    eventually(lambda: time.monotonic() >= pulse.next_look)
    pulse.look()
    assert pulse.still == 0


def waits() -> Generator[str, None, None]:
    yield "something"


class Awaited:
    def __await__(self) -> Generator[str, None, None]:
        yield from waits()


async def generates() -> AsyncIterator[int]:
    await Awaited()
    yield 1


async def iterates() -> None:
    async for _ in generates():
        pass


async def recurs(depth: int) -> None:
    if depth:
        await recurs(depth - 1)
    await iterates()


def test_where_a_coroutine_stands() -> None:
    """Through generators of either kind, asynchronous ones, and what has no frame."""
    coroutine = recurs(1)
    coroutine.send(None)
    stack = stacks.of_coroutine(coroutine)
    functions = [line.rpartition(" in ")[2] for line in stack.splitlines() if "File" in line]
    assert functions == ["recurs", "recurs", "iterates", "generates", "__await__", "waits"]
    coroutine.close()
    assert stacks.of_coroutine(coroutine) == stacks.NOWHERE


def test_a_deep_stack_is_cut() -> None:
    coroutine = recurs(300)
    coroutine.send(None)
    stack = stacks.of_coroutine(coroutine)
    assert stack.count("File ") <= stacks.MOST_FRAMES
    assert stack.splitlines()[-1].strip().startswith("yield")
    coroutine.close()


def test_tasks_at_one_place_are_told_of_together() -> None:
    coroutines = [iterates() for _ in range(5)]
    for coroutine in coroutines:
        coroutine.send(None)
    text = stacks.of_tasks((f"Task-{n}", each) for n, each in enumerate(coroutines))
    assert text.count("Task ") == 1
    assert text.startswith("Task Task-0 and 4 more:\n")
    for coroutine in coroutines:
        coroutine.close()


def test_where_other_threads_stand() -> None:
    over = threading.Event()
    thread = threading.Thread(target=over.wait, name="waiting", daemon=True)
    thread.start()
    eventually(lambda: "Thread waiting:\n" in stacks.of_threads())
    assert "test_where_other_threads_stand" not in stacks.of_threads()
    over.set()
    thread.join()
    assert thread.ident is not None
    assert stacks.of_thread(thread.ident) == stacks.NOWHERE
