"""`python -m fastserve` as a process of its own, and what it says while it runs."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import pytest
from conftest import PATIENCE, Client, request

import fastserve

APPS = Path(__file__).parent / "apps"
SOURCES = Path(fastserve.__file__).parent.parent

RUNNING = r"Running on https?://(\S+):(\d+) "
DRAINING = "finishing what is under way"


def others_environment() -> dict[str, str]:
    """For a program that is not ours: the sanitizers' runtime, loaded into it first, may
    keep it from ever ending."""
    return {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}


def needs(program: str) -> str:
    """Where it is; the test is skipped if it is nowhere."""
    # Where those are that only root is thought to need.
    found = shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin")
    if found is None:
        pytest.skip(f"{program} is not installed")
    return found


class Lines:
    """What a process writes to one of its pipes, line by line, while it does."""

    def __init__(self, pipe: IO[str]) -> None:
        self.lines: list[str] = []
        self.ended = False
        self.changed = threading.Condition()
        self.pipe = pipe
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self) -> None:
        with self.pipe:
            for line in self.pipe:
                with self.changed:
                    self.lines.append(line.rstrip("\n"))
                    self.changed.notify_all()
        with self.changed:
            self.ended = True
            self.changed.notify_all()

    def wait_for(self, pattern: str, patience: float) -> re.Match[str]:
        """The first line that has `pattern` in it; fails if none will come."""
        found: re.Match[str] | None = None

        def arrived() -> bool:
            nonlocal found
            matches = (re.search(pattern, line) for line in self.lines)
            found = next((match for match in matches if match), None)
            return found is not None or self.ended

        with self.changed:
            self.changed.wait_for(arrived, patience)
            assert found is not None, f"no line with {pattern!r} in:\n" + "\n".join(self.lines)
        return found

    def all(self) -> list[str]:
        """Every line, once the process has closed the pipe."""
        self.thread.join(PATIENCE)
        assert self.ended, "the pipe is still open"
        return self.lines


class Program:
    """A program in a process group of its own. `out` and `err` are its lines."""

    def __init__(
        self,
        *command: str,
        cwd: Path | None = None,
        env: dict[str, str] | None = None,
        pass_fds: tuple[int, ...] = (),
        stdout: int = subprocess.PIPE,
    ) -> None:
        self.popen = subprocess.Popen(
            command,
            cwd=cwd,
            env=others_environment() if env is None else env,
            stdin=subprocess.DEVNULL,
            pass_fds=pass_fds,
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self.popen.stderr is not None
        self.out = Lines(self.popen.stdout or io.StringIO())
        self.err = Lines(self.popen.stderr)

    def send_signal(self, number: int) -> None:
        self.popen.send_signal(number)

    def wait(self) -> int:
        """The exit status."""
        return self.popen.wait(2 * PATIENCE)

    def end(self) -> None:
        """End it and what it has started, whatever state it is in."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait(PATIENCE)
        for lines in (self.out, self.err):
            lines.thread.join(PATIENCE)


class Process(Program):
    """A server of ours."""

    def __init__(
        self,
        *arguments: str,
        cwd: Path = APPS,
        env: dict[str, str] | None = None,
        python: tuple[str, ...] = ("-m", "fastserve"),
        pass_fds: tuple[int, ...] = (),
        stdout: int = subprocess.PIPE,
    ) -> None:
        super().__init__(
            *(sys.executable, *python, *arguments),
            cwd=cwd,
            env={**os.environ, "PYTHONPATH": str(SOURCES), "PYTHONUNBUFFERED": "1", **(env or {})},
            pass_fds=pass_fds,
            stdout=stdout,
        )

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens, once it does. Importing a framework may take a while."""
        match = self.err.wait_for(RUNNING, 3 * PATIENCE)
        return match[1], int(match[2])

    @property
    def url(self) -> str:
        host, port = self.address
        return f"http://{host}:{port}"

    def connect(self) -> Client:
        return Client(self.address)

    def says(self, line: str) -> None:
        """Waits until the application has printed `line`."""
        self.out.wait_for(f"^{re.escape(line)}$", PATIENCE)

    def logs(self, pattern: str, patience: float = PATIENCE) -> re.Match[str]:
        """Waits until the server has logged it."""
        return self.err.wait_for(pattern, patience)


def workers_of(server: Process) -> list[int]:
    """The ids of the workers that have become ready, in this order."""
    lines = "\n".join(server.err.lines)
    return [int(pid) for pid in re.findall(r"worker (\d+) is ready", lines)]


def children_of(pid: int) -> set[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return set(map(int, text.split()))


def ends(server: Process, number: int = signal.SIGTERM) -> None:
    server.send_signal(number)
    assert server.wait() == 0
    assert "Traceback" not in "\n".join(server.err.all())


ACTIVATED = """
import os, sys
for place, fd in enumerate(map(int, os.environ.pop("HANDED").split(",")), 3):
    os.dup2(fd, place)
os.environ["LISTEN_PID"] = str(os.getpid())
from fastserve.cli import main
main()
"""


def activated(*arguments: str, sockets: Sequence[socket.socket], **env: str) -> Process:
    """A server that is handed its listening sockets, as by systemd."""
    # Out of the way of those from 3 on, where they are to be.
    fds = tuple(fcntl.fcntl(each.fileno(), fcntl.F_DUPFD, 50) for each in sockets)
    try:
        return Process(
            *arguments,
            env={"HANDED": ",".join(map(str, fds)), "LISTEN_FDS": str(len(fds)), **env},
            python=("-c", ACTIVATED),
            pass_fds=fds,
        )
    finally:
        for fd in fds:
            os.close(fd)


class Load:
    """Clients that ask again and again, each on a connection that it keeps, until the `with`
    block is left. A request is made once more if a connection that was kept is closed before a
    byte of its answer. `answers` counts the bodies; `failures` says what went wrong."""

    def __init__(self, address: tuple[str, int], target: str = "/pid", clients: int = 2) -> None:
        self.address = address
        self.target = target
        self.answers: Counter[bytes] = Counter()
        self.failures: list[str] = []
        self.stopped = threading.Event()
        self.threads = [threading.Thread(target=self._ask_on, daemon=True) for _ in range(clients)]

    def __enter__(self) -> Load:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stopped.set()
        for thread in self.threads:
            thread.join(2 * PATIENCE)

    def waits_for(self, bodies: int) -> set[bytes]:
        """Until so many different bodies were answered."""
        eventually(lambda: len(self.answers) >= bodies, 3 * PATIENCE)
        return set(self.answers)

    def _ask_on(self) -> None:
        with contextlib.ExitStack() as stack:
            client: Client | None = None
            # So many requests that something is always under way, and some time for the server.
            while not self.stopped.wait(0.005):
                try:
                    if client is None or not self._is_answered(client):
                        stack.close()
                        client = stack.enter_context(Client(self.address))
                        assert self._is_answered(client), "a fresh connection was closed"
                    response = client.read_response()
                except (OSError, AssertionError) as error:
                    self.failures.append(repr(error))
                    client = None
                else:
                    self.answers[response.body if response.status == 200 else response.reason] += 1
                    if response.field(b"connection") == b"close":
                        client = None

    def _is_answered(self, client: Client) -> bool:
        """Asks; whether a byte of the answer comes before the connection's end."""
        try:
            client.sendall(request("GET", self.target))
            return client.recv(1, socket.MSG_PEEK) != b""
        except ConnectionError:
            return False


def eventually(condition: Callable[[], Any], patience: float = PATIENCE) -> Any:
    """What `condition` returns as soon as that is true; fails if it never is."""
    deadline = time.monotonic() + patience
    while not (outcome := condition()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)
    return outcome


def slowly(condition: Callable[[], Any]) -> Any:
    """For what needs new processes."""
    return eventually(condition, 3 * PATIENCE)


def settled(value: Callable[[], int]) -> int:
    """What `value()` returns once it has begun to grow and no longer does."""
    before = -1
    while (now := value()) != before or not now:
        before = now
        time.sleep(0.1)
    return now


def resident_bytes(pid: int) -> int:
    """Resident memory of a process. /proc/PID/statm may lag behind by some hundred KiB."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    match = re.search(r"^Rss:\s+(\d+) kB$", text, re.MULTILINE)
    assert match is not None
    return 1024 * int(match[1])


def refuses(address: tuple[str, int]) -> bool:
    """Whether nobody listens there any more."""
    try:
        socket.create_connection(address, PATIENCE).close()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:
        pass  # It was in the queue of a socket that was closed: that is for the next call to find.
    return False


def ends_cleanly(client: Client) -> bool:
    """By a FIN, behind which a late request meets no reset either."""
    if client.read_to_end() != b"":
        return False
    client.sendall(request("GET", "/late"))
    # As soon as it is acknowledged or refused, nothing of it is unsent any more.
    eventually(
        lambda: not int.from_bytes(fcntl.ioctl(client, termios.TIOCOUTQ, bytes(4)), "little")
    )
    return client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
