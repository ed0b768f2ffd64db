"""The servers: how each is started, on which core, and how it is ended.

A server runs in a session of its own, so its process group is exactly its processes: their CPU
time is summed from /proc, and they alone are ended. Linux only.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import environment
from client import HOST

BENCH = Path(__file__).resolve().parent
STOP_SECONDS = 5.0
CLOCK_TICK = os.sysconf("SC_CLK_TCK")

# The words of a command are formatted one by one; `{python}` is the interpreter that has the
# server. Access logs are off and there is one worker everywhere; all else is left at its default.
OURS = "{python} -m fastserve -k WORKER --workers 1 --app-dir {app_dir} -b {host}:{port} {app}"
UVICORN = (
    "{python} -m uvicorn --loop uvloop --http PARSER --workers 1 --no-access-log"
    " --log-level warning --app-dir {app_dir} --host {host} --port {port} {app}"
)
GRANIAN = (
    "{python} -m granian --interface asgi --loop uvloop --http 1 --workers 1 --no-access-log"
    " --log-level warning --host {host} --port {port} {app}"
)
HYPERCORN = "{python} -m hypercorn -k WORKER --workers 1 -b {host}:{port} {app}"
GUNICORN = (
    "{python} -m gunicorn -k asgi --asgi-loop uvloop --http-parser PARSER --workers 1"
    " --no-control-socket --log-level warning -b {host}:{port} {app}"
)

COMMANDS = {
    "floor": "{floor} {port} {floor_answer}",
    "fastserve-uvloop": OURS.replace("WORKER", "uvloop"),
    "fastserve-asyncio": OURS.replace("WORKER", "asyncio"),
    "fastserve-trio": OURS.replace("WORKER", "trio"),
    "uvicorn": UVICORN.replace("PARSER", "httptools"),
    "uvicorn-zttp": UVICORN.replace("PARSER", "zttp"),
    "granian": GRANIAN,
    "gunicorn": GUNICORN.replace("PARSER", "python"),
    "gunicorn-h1c": GUNICORN.replace("PARSER", "fast"),
    "hypercorn-uvloop": HYPERCORN.replace("WORKER", "uvloop"),
    "hypercorn-asyncio": HYPERCORN.replace("WORKER", "asyncio"),
    "hypercorn-trio": HYPERCORN.replace("WORKER", "trio"),
}

# Who is asked to speak WebSocket: uvicorn with each of its implementations.
WEBSOCKET_COMMANDS = {
    "floor": COMMANDS["floor"],
    "fastserve-uvloop": COMMANDS["fastserve-uvloop"],
    "fastserve-asyncio": COMMANDS["fastserve-asyncio"],
    "fastserve-trio": COMMANDS["fastserve-trio"],
    "uvicorn-websockets": COMMANDS["uvicorn"] + " --ws websockets",
    "uvicorn-sansio": COMMANDS["uvicorn"] + " --ws websockets-sansio",
    "uvicorn-wsproto": COMMANDS["uvicorn"] + " --ws wsproto",
    "granian": COMMANDS["granian"],
    "hypercorn-uvloop": COMMANDS["hypercorn-uvloop"],
    "hypercorn-trio": COMMANDS["hypercorn-trio"],
}

# Who is asked with several workers: one of each.
WORKERS_COMMANDS = {
    "fastserve-uvloop": COMMANDS["fastserve-uvloop"],
    "fastserve-asyncio": COMMANDS["fastserve-asyncio"],
    "fastserve-trio": COMMANDS["fastserve-trio"],
    # With an option that needs a supervisor, also where there is one worker.
    "fastserve-supervised": COMMANDS["fastserve-uvloop"] + " --max-lifetime 86400",
    "fastserve-reuse-port": COMMANDS["fastserve-uvloop"] + " --reuse-port",
    "uvicorn": COMMANDS["uvicorn"],
    "granian": COMMANDS["granian"],
    "gunicorn": COMMANDS["gunicorn"],
    "hypercorn-uvloop": COMMANDS["hypercorn-uvloop"],
}


# The applications of frameworks.py; all others are of apps.py.
FRAMEWORKS = ("starlette", "fastapi")

# The certificate is one of the tests', with an EC key.
CERTIFICATES = BENCH.parent / "tests" / "certificates"

# Ways to run a server besides its default: what its command no longer has, and what is added.
# A server that is not named knows no such way.
MODES = {
    "tls": {
        "fastserve": ("", " --certfile {certfile} --keyfile {keyfile}"),
        "uvicorn": ("", " --ssl-certfile {certfile} --ssl-keyfile {keyfile}"),
        "granian": ("", " --ssl-certificate {certfile} --ssl-keyfile {keyfile}"),
        "gunicorn": ("", " --certfile {certfile} --keyfile {keyfile}"),
        "hypercorn": ("", " --certfile {certfile} --keyfile {keyfile}"),
    },
    # An access log in a file. Where no file is named it goes to stdout, and that is one as well.
    "logged": {
        "fastserve": ("", " --access-logfile {access_log}"),
        "uvicorn": (" --no-access-log --log-level warning", ""),
        "granian": (" --no-access-log --log-level warning", " --access-log"),
        "gunicorn": ("", " --access-logfile {access_log}"),
        "hypercorn": ("", " --access-logfile {access_log}"),
    },
    # One worker under a supervisor that counts, and answers for it.
    "supervised": {"fastserve": ("", " --admin-bind 127.0.0.1:0")},
    # An idle connection, and any number of them, may stay.
    "patient": {
        "fastserve": ("", " --keep-alive 600"),
        "uvicorn": ("", " --timeout-keep-alive 600"),
        "granian": ("", " --backlog 16384 --http1-header-read-timeout 60000"),
        "gunicorn": ("", " --keep-alive 600 --worker-connections 20000"),
        "hypercorn": ("", " --keep-alive 600"),
    },
    # No proxy is believed; by default one on this machine is.
    "distrustful": {
        "fastserve": ("", " --no-proxy-headers"),
        "uvicorn": ("", " --no-proxy-headers"),
    },
}


def knows(name: str, mode: str) -> bool:
    return not mode or name.partition("-")[0] in MODES[mode]


def is_ours(name: str) -> bool:
    return name.startswith("fastserve-")


def is_peer(name: str) -> bool:
    return name != "floor" and not is_ours(name)


class ServerError(Exception):
    """A server did not start, or ended while it was needed."""


@dataclass(frozen=True)
class Installation:
    """Where the programs are. `work` is a scratch folder that holds a copy of the applications;
    `frameworks` is where those of frameworks.py find what they need.

    The copy is no luxury: the servers run with the applications' folder on their path, and
    http.py, lying in this one, would hide the module of the same name that they all import.
    """

    work: Path
    ours: str
    peers: str
    floor: str
    frameworks: str = ""

    @property
    def access_log(self) -> Path:
        return self.work / "access.log"

    def logged_bytes(self) -> int:
        """Of all that the present server has written to a file."""
        files = (self.access_log, self.work / "server.log")
        return sum(file.stat().st_size for file in files if file.exists())

    def environment(self, app: str) -> dict[str, str]:
        """What is to be added for an application: the same frameworks for every server."""
        if app not in FRAMEWORKS:
            return {}
        return environment.path_first(self.frameworks)

    def command(
        self,
        name: str,
        app: str,
        port: int,
        floor_answer: str,
        mode: str = "",
        workers: int = 1,
    ) -> list[str]:
        """`floor_answer` is for the floor, which has no application: see floor.c."""
        values = {
            "python": self.ours if is_ours(name) else self.peers,
            "floor": self.floor,
            "app_dir": str(self.work),
            "app": f"{'frameworks' if app in FRAMEWORKS else 'apps'}:{app}",
            "host": HOST,
            "port": str(port),
            "floor_answer": floor_answer,
            "certfile": str(CERTIFICATES / "server.pem"),
            "keyfile": str(CERTIFICATES / "server.key"),
            "access_log": str(self.access_log),
        }
        command = (COMMANDS | WEBSOCKET_COMMANDS | WORKERS_COMMANDS)[name]
        command = command.replace("--workers 1", f"--workers {workers}")
        if mode:
            without, more = MODES[mode][name.partition("-")[0]]
            command = command.replace(without, "") + more
        return [word.format_map(values) for word in command.split()]


def prepare(
    work: Path, ours: str, peers: str, with_floor: bool, frameworks: str = ""
) -> Installation:
    for applications in ("apps.py", "frameworks.py"):
        shutil.copy(BENCH / applications, work)
    floor = work / "floor"
    if with_floor:
        build = [os.environ.get("CC", "cc"), "-O2", str(BENCH / "floor.c"), "-o", str(floor)]
        subprocess.run(build, check=True, timeout=60)
    return Installation(work, ours, peers, str(floor), frameworks)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


class Server:
    """A running server and all its processes."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.port = port
        self._process = process
        self._log = log

    def alive(self) -> None:
        """Raise, with the end of its log, when the server has ended."""
        if self._process.poll() is not None:
            raise ServerError(f"it ended with status {self._process.returncode}")

    def log_tail(self) -> str:
        return self._log.read_text(errors="replace")[-2000:].strip()

    def cpu_seconds(self) -> float:
        """User and system time of all processes, and of children they have waited for."""
        ticks = 0
        for stat in _group(self._process.pid).values():
            ticks += sum(int(value) for value in stat[11:15])
        return ticks / CLOCK_TICK

    def resident_bytes(self) -> int:
        """Resident memory of all processes; what they share counts for each."""
        kibibytes = 0
        for folder in _group(self._process.pid):
            # The figure in "stat" may lag behind by a few hundred KiB.
            for line in Path(folder, "smaps_rollup").read_text().splitlines():
                if line.startswith("Rss:"):
                    kibibytes += int(line.split()[1])
        return kibibytes * 1024

    def stop(self, patience: float = STOP_SECONDS) -> None:
        """Ask the main process to end; after `patience`, end what is left of the group."""
        if self._process.poll() is None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(patience)
        deadline = time.monotonic() + STOP_SECONDS
        while _group(self._process.pid) and time.monotonic() < deadline:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.poll()
            time.sleep(0.02)


def _group(leader: int) -> dict[str, list[str]]:
    """The fields of /proc/PID/stat after the name, by /proc/PID of the group's processes."""
    found = {}
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            text = Path(entry.path, "stat").read_text()
        except OSError:  # it has just ended
            continue
        fields = text.rpartition(")")[2].split()
        if int(fields[2]) == leader:
            found[entry.path] = fields
    return found


@contextlib.contextmanager
def running(
    command: list[str],
    port: int,
    work: Path,
    core: int | None = None,
    variables: dict[str, str] | None = None,
    stop_patience: float = STOP_SECONDS,
) -> Iterator[Server]:
    """Start `command` in `work`, pinned to `core`, and end it with the block."""
    log = work / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=work,
            env={**os.environ, **(variables or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=None if core is None else lambda: os.sched_setaffinity(0, {core}),
        )
    server = Server(process, port, log)
    try:
        yield server
    finally:
        server.stop(stop_patience)


def pick_cores() -> tuple[int, int]:
    """A core for the server and one for the load, not two threads of the same core if possible."""
    allowed = sorted(os.sched_getaffinity(0))
    server = allowed[0]
    others = [core for core in allowed if core not in _siblings(server)]
    return server, (others or allowed)[0]


def _siblings(core: int) -> set[int]:
    path = Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list")
    try:
        text = path.read_text()
    except OSError:
        return {core}
    siblings = {core}
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        siblings.update(range(int(first), int(last or first) + 1))
    return siblings
