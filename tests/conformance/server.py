"""A server as a process of its own, with the probe as its application, and calls of that."""

from __future__ import annotations

import ast
import contextlib
import os
import shlex
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from conformance.client import (
    Connection,
    Failed,
    NotApplicable,
    Response,
    handshake_fields,
    request,
)

HERE = Path(__file__).resolve().parent
CERTIFICATES = HERE.parent / "certificates"
HOST = "127.0.0.1"
PATIENCE = 5.0  # seconds for what should happen at once

Note = dict[str, Any]
Step = tuple[Any, ...]

STARTUP_COMPLETE = ("send", {"type": "lifespan.startup.complete"})
SHUTDOWN_COMPLETE = ("send", {"type": "lifespan.shutdown.complete"})
LIFESPAN: list[Step] = [
    ("receive",),
    ("state", {"given": "at startup", "shared": []}),
    STARTUP_COMPLETE,
    ("receive",),
    SHUTDOWN_COMPLETE,
]


# What an application whose last note this is waits for.
STUCK = {
    "nothing": "the application is not called",
    "asks": "receive() does not return",
    "sends": "send() does not return",
    "sending": "send() does not return",
    "called": "nothing happens",
}


@dataclass
class Commands:
    """How a server is started: `plain`, and in other ways where its command is known, by the
    names in VARIANTS. Placeholders: {app}, {port}, {socket}, {certfile}, {keyfile}."""

    plain: str
    variants: dict[str, str] = field(default_factory=dict)


VARIANTS = {
    "unix": "on a unix socket, {socket}",
    "tls": "with TLS, by {certfile} and {keyfile}",
    "root": "with the root path /base",
    "processes": "with two worker processes",
}


class Journal:
    """What the probe has written so far."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.notes: list[Note] = []
        self._read = 0

    def refresh(self) -> list[Note]:
        if self.path.exists():
            with self.path.open("rb") as file:
                file.seek(self._read)
                lines = file.read()
            whole = lines[: lines.rfind(b"\n") + 1]
            self._read += len(whole)
            self.notes += [ast.literal_eval(line.decode()) for line in whole.splitlines()]
        return self.notes

    def of(self, call: str, *kinds: str) -> list[Note]:
        notes = [note for note in self.refresh() if note["call"] == call]
        return [note for note in notes if not kinds or note["what"] in kinds]


def eventually(condition: Callable[[], Any], patience: float) -> Any:
    """What `condition` returns once that is true; its last, false value if it never is."""
    deadline = time.monotonic() + patience
    while not (outcome := condition()) and time.monotonic() < deadline:
        time.sleep(0.005)
    return outcome


class Call:
    """One call of the probe, as its journal has it."""

    def __init__(self, server: Server, number: str) -> None:
        self.server = server
        self.number = number

    def notes(self, *kinds: str) -> list[Note]:
        """Those of these kinds, or all."""
        return self.server.journal.of(self.number, *kinds)

    def wait(self, *kinds: str, times: int = 1, patience: float | None = None) -> Note:
        """The so-manieth note of these kinds."""
        patience = patience or self.server.patience
        notes: list[Note] = eventually(lambda: self.notes(*kinds)[times - 1 :], patience)
        if not notes:
            last = (["nothing"] + [note["what"] for note in self.notes()])[-1]
            problem = STUCK.get(last, f"the application gets no further than {last!r}")
            raise Failed(f"{problem} within {patience:g} s")
        return notes[0]

    def ended(self) -> Note:
        """How the call of the application ended."""
        return self.wait("returned", "raised")

    @property
    def scope(self) -> dict[str, Any]:
        scope: dict[str, Any] = self.wait("called")["scope"]
        return scope

    def event(self, times: int = 1) -> dict[str, Any]:
        """What the so-manieth receive() returned."""
        note = self.wait("received", times=times)
        if "event" not in note:
            raise Failed(f"receive() raised {note['error']}")
        event: dict[str, Any] = note["event"]
        return event

    def open_gate(self) -> None:
        (self.server.folder / f"gate-{self.number}").touch()


class Play(Call):
    """One that was asked for, and the connection that it was asked for on."""

    def __init__(self, server: Server, number: str, connection: Connection) -> None:
        super().__init__(server, number)
        self.connection = connection

    def response(self, method: str = "GET") -> Response:
        return self.connection.response(method)


class Server:
    """A running server. `address` is where it listens, `log` what it has said."""

    numbers = count(1)

    def __init__(
        self,
        command: str,
        *,
        app: str = "probe:app",
        lifespan: Sequence[Step] = LIFESPAN,
        patience: float = PATIENCE,
        unix: bool = False,
        tls: bool = False,
        ready: bool = True,
    ) -> None:
        program, *arguments = shlex.split(command)
        program = program_at(program)
        self.patience = patience
        self.process_patience = 3 * patience  # for a start or a stop
        # A unix socket's path must be short.
        self.folder = Path(tempfile.mkdtemp(prefix="probe"))
        self.journal = Journal(self.folder / "journal")
        self.connections: list[Connection] = []
        self.plays: list[Play] = []
        shutil.copy(HERE / "probe.py", self.folder)
        port = free_port()
        self.address = str(self.folder / "socket") if unix else (HOST, port)
        self.context = self._client_context() if tls else None
        words = {
            "app": app,
            "port": port,
            "socket": self.folder / "socket",
            "certfile": CERTIFICATES / "server.pem",
            "keyfile": CERTIFICATES / "server.key",
        }
        arguments = [word.format_map(words) for word in arguments]
        self.process = self._start([program, *arguments], self._environment(lifespan))
        if ready:
            self.wait_until_it_answers()

    def _start(self, command: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
        with (self.folder / "log").open("wb") as log:
            return subprocess.Popen(
                command,
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _environment(self, lifespan: Sequence[Step]) -> dict[str, str]:
        # The server has another working folder, where a relative path leads nowhere.
        given = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
        return {
            **os.environ,
            "PROBE_FOLDER": str(self.folder),
            "PROBE_LIFESPAN": ascii(list(lifespan)),
            "PYTHONPATH": os.pathsep.join([str(self.folder), *map(os.path.abspath, given)]),
            "PYTHONUNBUFFERED": "1",
        }

    @staticmethod
    def _client_context() -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context

    def wait_until_it_answers(self) -> None:
        """Raises Failed, and ends it, if it does not, or with anything but 200."""

        def answer() -> int:
            if not self.alive:
                return -1
            try:
                connection = self.connect()
                connection.send(request("GET", "/", "Connection: close"))
                status: int = connection.response().status
                return status
            except (OSError, Failed):
                return 0

        status = eventually(answer, 2 * self.process_patience)
        if status != 200:
            last = (self.log().strip().splitlines() or [""])[-1]
            self.end()
            how = f"answers with {status}" if status > 0 else "does not start"
            raise Failed(f"the server {how}" + (f": {last.strip()[:120]}" if last else ""))

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def lasting(self) -> Connection:
        """One that `tidy` leaves alone."""
        return Connection(self.address, self.patience, self.context)

    def connect(self) -> Connection:
        connection = self.lasting()
        self.connections.append(connection)
        return connection

    def play(
        self,
        *steps: Step,
        method: str = "GET",
        target: str = "/",
        fields: Sequence[str] = (),
        body: bytes = b"",
        version: str = "1.1",
        on: Connection | None = None,
        then: bytes = b"",
    ) -> Play:
        """Sends a request, on a connection of its own unless one is given, whose call is to take
        these steps. `then` are bytes right behind it."""
        number = str(next(self.numbers))
        play = Play(self, number, on or self.connect())
        self.plays.append(play)
        probe = f"Probe: {number} {list(steps)!a}"
        play.connection.send(
            request(method, target, probe, *fields, version=version, body=body) + then
        )
        return play

    def websocket(
        self,
        *steps: Step,
        target: str = "/",
        fields: Sequence[str] = (),
        then: bytes = b"",
    ) -> Play:
        """As `play`, a handshake; its answer is not read."""
        return self.play(*steps, target=target, fields=[*handshake_fields(), *fields], then=then)

    def accepted(self, *steps: Step, **request: Any) -> Play:
        """A WebSocket that the application has accepted; then it takes the steps."""
        accept = [("receive",), ("send", {"type": "websocket.accept"})]
        play = self.websocket(*accept, *steps, **request)
        response = play.response()
        if response.status != 101:
            raise Failed(f"the handshake was answered with {response.status}")
        return play

    def tidy(self) -> None:
        """Let every call and connection so far come to an end."""
        for play in self.plays:
            play.open_gate()
        for connection in self.connections:
            connection.close()
        self.plays.clear()
        self.connections.clear()

    def terminate(self) -> None:
        self.process.terminate()

    def wait(self, seconds: float | None = None) -> int | None:
        """The exit status; None if it has not ended by then."""
        try:
            return self.process.wait(seconds or self.process_patience)
        except subprocess.TimeoutExpired:
            return None

    def end(self) -> None:
        """End whatever is left of it."""
        self.tidy()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


class Target:
    """The server that is judged: it runs as often and in such ways as the checks want it."""

    def __init__(self, commands: Commands, patience: float = PATIENCE) -> None:
        self.commands = commands
        self.patience = patience
        self._running: dict[str, Server] = {}
        self._failed: dict[str, Failed] = {}

    def command(self, variant: str) -> str:
        if variant == "plain":
            return self.commands.plain
        if variant not in self.commands.variants:
            raise NotApplicable(f"no command is known that starts it {VARIANTS[variant]}")
        return self.commands.variants[variant]

    def _start(self, variant: str, **options: Any) -> Server:
        command = self.command(variant)
        return Server(
            command,
            patience=self.patience,
            unix="{socket}" in command,
            tls="{certfile}" in command,
            **options,
        )

    def running(self, variant: str) -> Server:
        """One that all checks share, and that is started again if it has ended. What cannot be
        started is not tried again."""
        if variant in self._failed:
            raise self._failed[variant]
        server = self._running.get(variant)
        if server is None or not server.alive:
            if server is not None:
                server.end()
            try:
                server = self._running[variant] = self._start(variant)
            except Failed as failure:
                self._failed[variant] = failure
                raise
        return server

    @property
    def server(self) -> Server:
        return self.running("plain")

    @contextlib.contextmanager
    def fresh(self, variant: str = "plain", **options: Any) -> Iterator[Server]:
        """One for this check alone."""
        server = self._start(variant, **options)
        try:
            yield server
        finally:
            server.end()

    def tidy(self) -> None:
        for server in self._running.values():
            server.tidy()

    def end(self) -> None:
        for server in self._running.values():
            server.end()


def program_at(name: str) -> str:
    """Its absolute path, since the servers have another working folder."""
    found = shutil.which(name)
    if found is None:
        raise Failed(f"there is no program {name}")
    return os.path.abspath(found)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port
