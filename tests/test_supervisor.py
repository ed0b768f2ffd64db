"""Several processes: who starts, ends and replaces them, and what a client notices of it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import PATIENCE, WORKERS, Client, handshake, request
from process import (
    DRAINING,
    Load,
    Process,
    children_of,
    ends,
    eventually,
    refuses,
    slowly,
    workers_of,
)

from fastserve.config import FAREWELL, Config, ConfigError
from fastserve.launch import run
from fastserve.supervisor import FIRST_DELAY, LONGEST_DELAY, Restarts

Start = Callable[..., Process]

HALF = b"POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: 4\r\n\r\nab"
SAYS = """
async def app(scope, receive, send):
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"%s"})
"""


@pytest.fixture
def process() -> Iterator[Start]:
    """Start processes with `process(*arguments)`; they end with the test."""
    started: list[Process] = []

    def start(*arguments: str, **options: Any) -> Process:
        started.append(Process(*arguments, **options))
        return started[-1]

    yield start
    for one in started:
        one.end()


@pytest.fixture
def served(process: Start) -> Start:
    """tests/apps/served.py on a free port, in two processes."""

    def start(*options: str, **more: Any) -> Process:
        arguments = ("-w", "2", "-b", "127.0.0.1:0", *options, "served:app")
        return process(*arguments, **{"env": {}, **more})

    return start


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return False


# Start and end.


@pytest.mark.parametrize("kind", WORKERS)
def test_workers_share_an_address(served: Start, kind: str) -> None:
    server = served("-k", kind)
    address = server.address
    first, second = workers_of(server)
    for stopped, other in ((first, second), (second, first)):
        os.kill(stopped, signal.SIGSTOP)
        with Client(address) as client:
            assert int(client.get("/pid").body) == other
            assert client.get("/loop").body == kind.encode()
        os.kill(stopped, signal.SIGCONT)
    ends(server)
    assert sorted(server.out.all()) == ["shutdown"] * 2 + ["startup"] * 2


@pytest.mark.parametrize(
    ("kind", "number"),
    [("asyncio", signal.SIGINT), ("uvloop", signal.SIGTERM), ("trio", signal.SIGINT)],
)
def test_a_signal_lets_requests_finish(served: Start, kind: str, number: int) -> None:
    """From a terminal it reaches the whole group."""
    server = served("-k", kind)
    with server.connect() as busy:
        busy.sendall(HALF)
        server.says("begun")
        os.killpg(server.popen.pid, number)
        server.logs(f"{signal.Signals(number).name}: {DRAINING}")
        eventually(lambda: refuses(server.address))
        os.killpg(server.popen.pid, signal.SIGHUP)
        busy.sendall(b"cd")
        assert busy.read_response().body == b"abcd"
    assert server.wait() == 0
    assert sorted(server.out.all()) == ["begun", "ended", *["shutdown"] * 2, *["startup"] * 2]
    assert not any("Traceback" in line for line in server.err.all())


def test_an_interrupt_waits_for_what_is_under_way_alone(served: Start) -> None:
    """The workers ignore it; the supervisor tells them who waits."""
    server = served("--drain-delay", "600", "--drain-idle-timeout", "600")
    with server.connect() as kept:
        assert kept.get().status == 200
        os.killpg(server.popen.pid, signal.SIGINT)
        assert kept.read_to_end() == b""
    assert server.wait() == 0


@pytest.mark.parametrize("kind", WORKERS)
def test_nobody_in_the_queue_is_reset(process: Start, tmp_path: Path, kind: str) -> None:
    """Each worker's whole loop waits for the gate when the end comes."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    wait = f"print('waits', flush=True), open({str(gate)!r}).close()"
    condition = "scope['path'] == '/wait'"
    (tmp_path / "web.py").write_text(f"{SAYS % 'served'}    if {condition}: {wait}\n")
    arguments = ("-w", "2", "-k", kind, "--app-dir", str(tmp_path), "--lifespan", "off")
    server = process(*arguments, "-b", "127.0.0.1:0", "web:app")
    with contextlib.ExitStack() as stack:
        for number in (1, 2):
            blocking = stack.enter_context(server.connect())
            blocking.sendall(request("GET", "/wait"))
            eventually(lambda expected=number: server.out.lines.count("waits") == expected)
        waiting = [stack.enter_context(server.connect()) for _ in range(300)]
        server.send_signal(signal.SIGTERM)
        server.logs(DRAINING)
        gate.write_text("")
        for client in waiting:
            assert client.get().body == b"served"
    assert server.wait() == 0


def test_the_delay_is_for_the_end_alone(changing: Callable[..., Changing]) -> None:
    """Workers that are replaced drain without it: no balancer need learn of that."""
    web = changing("--drain-delay", "600")
    web.says("new")
    web.reload()
    web.server.send_signal(signal.SIGTERM)
    web.server.logs(DRAINING)

    def is_last() -> bool:
        with Client(web.address) as client:
            response = client.get()
        assert response.body == b"new"
        return response.field(b"connection") == b"close"

    eventually(is_last)
    ends(web.server)


def test_nobody_is_killed_within_the_stages_of_the_end() -> None:
    times = {"drain_delay": 100.0, "graceful_timeout": 20.0, "shutdown_timeout": 3.0}
    assert Config(**times).stop_timeout > sum(times.values()) + FAREWELL


def test_a_second_signal_cancels(served: Start) -> None:
    server = served("--graceful-timeout", "600")
    with server.connect() as client:
        client.sendall(request("GET", "/forever"))
        server.says("begun")
        server.send_signal(signal.SIGTERM)
        server.logs(DRAINING)
        server.send_signal(signal.SIGINT)
        assert client.read_response().status == 503
    assert server.wait() == 0
    assert server.out.all().count("shutdown") == 2


def test_quit_waits_for_nobody(served: Start) -> None:
    server = served("--graceful-timeout", "600")
    with server.connect() as client:
        client.sendall(request("GET", "/forever"))
        server.says("begun")
        server.send_signal(signal.SIGTERM)
        server.logs(DRAINING)
        server.send_signal(signal.SIGQUIT)
        assert client.is_closed_by_peer()
    assert server.wait() == 0
    server.logs("SIGQUIT: ending at once")
    assert all(is_gone(pid) for pid in workers_of(server))


def test_readiness_waits_for_every_lifespan(process: Start, tmp_path: Path) -> None:
    """The second worker's takes until the file is there."""
    gate = tmp_path / "gate"
    (tmp_path / "slow.py").write_text(
        "import anyio, os, pathlib\n"
        "async def app(scope, receive, send):\n"
        "    await receive()\n"
        f"    gate = pathlib.Path({str(gate)!r})\n"
        "    try: os.mkdir(f'{gate}.first')\n"
        "    except FileExistsError:\n"
        "        while not gate.exists(): await anyio.sleep(0.01)\n"
        "    await send({'type': 'lifespan.startup.complete'})\n"
        "    await receive()\n"
        "    await send({'type': 'lifespan.shutdown.complete'})\n"
    )
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)
        manager.setblocking(False)
        arguments = ("-w", "2", "-b", "127.0.0.1:0", "--app-dir", str(tmp_path), "slow:app")
        server = process(*arguments, env={"NOTIFY_SOCKET": path})
        server.logs("worker .* is ready", 3 * PATIENCE)
        with pytest.raises(BlockingIOError):
            manager.recv(100)
        gate.touch()
        server.logs("Running on")
        manager.settimeout(3 * PATIENCE)
        assert manager.recv(100) == b"READY=1"
        ends(server)
        assert manager.recv(100) == b"STOPPING=1"


def test_what_belongs_to_the_supervisor_alone(served: Start, tmp_path: Path) -> None:
    variables = {
        "NOTIFY_SOCKET": str(tmp_path / "nobody"),
        "LISTEN_FDS": "1",
        "LISTEN_PID": "1",
        "LISTEN_FDNAMES": "x",
        "HANDED": "down",
    }
    pid_file = tmp_path / "pid"
    server = served("-p", str(pid_file), env=variables)
    with server.connect() as client:
        seen = client.get("/environment").body.decode().split()
        assert pid_file.read_text() == f"{server.popen.pid}\n"
    assert set(seen) & set(variables) == {"HANDED"}
    ends(server)
    assert not pid_file.exists()


def test_several_addresses(process: Start, tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    server = process("-w", "2", "-b", "127.0.0.1:0", "-b", f"unix:{path}", "served:app")
    server.logs(f"Running on unix:{re.escape(path)} ")
    for address in (server.address, path):
        with Client(address) as client:
            assert client.get("/").body == b"hello"
    os.kill(workers_of(server)[0], signal.SIGTERM)
    slowly(lambda: len(workers_of(server)) == 3)
    assert os.path.exists(path)
    ends(server)
    assert not os.path.exists(path)


def test_a_worker_for_each_core() -> None:
    from fastserve.supervisor import _number

    assert _number(Config(workers="auto")) == len(os.sched_getaffinity(0))


def test_an_unguarded_program(process: Start) -> None:
    """It is not run again in the workers."""
    script = (
        "import fastserve, sys\n"
        "print('once', flush=True)\n"
        "fastserve.run('served:app', bind='127.0.0.1:0', workers=2)\n"
    )
    server = process(python=("-c", script))
    with server.connect() as client:
        assert client.get("/").body == b"hello"
    ends(server)
    assert server.out.all().count("once") == 1


# What cannot be started.


def the_line(server: Process, status: int) -> str:
    assert server.wait() == status
    (line,) = [line for line in server.err.all() if line.startswith("fastserve: error: ")]
    return line.removeprefix("fastserve: error: ")


def test_an_application_that_has_no_name() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None: ...

    with pytest.raises(ConfigError, match="several processes need its name, as MODULE:ATTR"):
        run(app, workers=2)


def test_a_crash_at_import_is_told_once(process: Start, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("1 / 0\n")
    server = process("-w", "4", "--app-dir", str(tmp_path), "-b", "127.0.0.1:0", "broken:app")
    line = "module 'broken' cannot be imported: ZeroDivisionError: division by zero"
    assert the_line(server, 1) == line
    assert sum("Traceback" in line for line in server.err.all()) == 1


def test_a_missing_module_is_one_line(process: Start) -> None:
    server = process("-w", "2", "missing:app", "-b", "127.0.0.1:0")
    assert the_line(server, 1) == "there is no module 'missing'"
    assert len(server.err.all()) == 1


def test_a_crash_in_lifespan(process: Start, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("async def app(scope, receive, send): 1 / 0\n")
    arguments = ("--app-dir", str(tmp_path), "--lifespan", "on", "broken:app")
    server = process("-w", "2", "-b", "127.0.0.1:0", *arguments)
    assert the_line(server, 3) == "the application raised on lifespan"


def test_a_process_that_ends_at_import(process: Start, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import os\nos._exit(9)\n")
    server = process("-w", "2", "-b", "127.0.0.1:0", "--app-dir", str(tmp_path), "broken:app")
    line = the_line(server, 1)
    assert re.fullmatch(r"worker \d+ has exited with status 9 before it was ready", line)


def test_a_process_that_ends_as_soon_as_it_serves(process: Start, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(
        "import os, threading\n"
        "async def app(scope, receive, send):\n"
        "    await receive()\n"
        "    await send({'type': 'lifespan.startup.complete'})\n"
        "    threading.Timer(0.02, os._exit, [9]).start()\n"
        "    await receive()\n"
    )
    server = process("-w", "2", "-b", "127.0.0.1:0", "--app-dir", str(tmp_path), "broken:app")
    line = the_line(server, 1)
    assert re.fullmatch(r"worker \d+ has exited with status 9 before all were ready", line)


def test_a_start_that_never_ends(process: Start) -> None:
    server = process("-w", "2", "-b", "127.0.0.1:0", "--startup-timeout", "0.2", "hanging:app")
    assert the_line(server, 3) == "the application did not start up within 0.2 s"


def test_signals_during_startup(process: Start) -> None:
    server = process("-w", "2", "-b", "127.0.0.1:0", "hanging:app")
    server.says("startup")
    server.send_signal(signal.SIGINT)
    server.logs(DRAINING)
    server.send_signal(signal.SIGINT)
    assert server.wait() == 0
    assert server.out.all() == ["startup", "cancelled"]


# What dies.


def test_a_crash_hits_its_own_requests_only(served: Start) -> None:
    server = served()
    with Load(server.address) as load:
        victim = int(load.waits_for(1).pop())
        os.kill(victim, signal.SIGKILL)
        server.logs(rf"worker {victim} was ended by SIGKILL \(.*; another one takes its place")
        slowly(lambda: len(workers_of(server)) == 3)
        load.waits_for(2)
    # At most what the victim held; on a connection that was kept it was asked once more.
    assert len(load.failures) <= len(load.threads)
    ends(server)


def test_a_crash_in_a_request(served: Start) -> None:
    server = served()
    with server.connect() as client:
        victim = int(client.get("/pid").body)
        client.sendall(request("GET", "/crash"))
        assert client.is_closed_by_peer()
    server.logs(rf"worker {victim} has exited with status 7; another one takes its place")
    with server.connect() as client:
        assert int(client.get("/pid").body) != victim
    slowly(lambda: len(workers_of(server)) == 3)
    ends(server)


def test_workers_that_cannot_be_replaced(process: Start, tmp_path: Path) -> None:
    """Nobody serves, and nobody would: it ends, and says why."""
    file = tmp_path / "web.py"
    file.write_text(SAYS % "old")
    server = process("-w", "2", "-b", "127.0.0.1:0", "--app-dir", str(tmp_path), "web:app")
    assert server.address
    file.write_text("raise OSError('no database')\n")
    first, second = workers_of(server)
    os.kill(first, signal.SIGKILL)
    line = "a worker cannot be started: module 'web' cannot be imported: OSError: no database"
    server.logs(line, 3 * PATIENCE)
    with server.connect() as client:
        assert client.get().body == b"old"
    os.kill(second, signal.SIGKILL)
    assert the_line(server, 1) == "module 'web' cannot be imported: OSError: no database"


def test_the_waiting_grows_to_a_limit() -> None:
    restarts = Restarts()
    waits = []
    for _ in range(12):
        before = restarts.at
        restarts.failed()
        assert restarts.at >= before
        waits.append(restarts.delay)
    assert waits[0] == FIRST_DELAY
    assert waits == sorted(waits)
    assert waits[-1] == LONGEST_DELAY
    restarts.succeeded()
    assert restarts.at == 0


@pytest.mark.parametrize("kind", WORKERS)
def test_workers_do_not_outlive_the_supervisor(served: Start, kind: str) -> None:
    server = served("-k", kind)
    with server.connect() as client:
        client.sendall(HALF)
        server.says("begun")
        server.send_signal(signal.SIGKILL)
        server.logs("the supervisor is gone: finishing what is under way")
        client.sendall(b"cd")
        assert client.read_response().body == b"abcd"
    slowly(lambda: all(is_gone(pid) for pid in workers_of(server)))
    assert server.out.all().count("shutdown") == 2


# Reload.


class Changing:
    """An application whose answer is changed by changing its source."""

    def __init__(self, process: Start, folder: Path, *options: str) -> None:
        self.file = folder / "web.py"
        self.says("old")
        arguments = ("-w", "2", "-b", "127.0.0.1:0", "--app-dir", str(folder), *options)
        # The names of compiled files say nothing of changes within a second.
        self.server = process(*arguments, "web:app", env={"PYTHONDONTWRITEBYTECODE": "1"})
        self.address = self.server.address

    def says(self, word: str) -> None:
        self.file.write_text(SAYS % word)

    def reload(self, times: int = 1) -> None:
        old = workers_of(self.server)
        self.server.send_signal(signal.SIGHUP)
        self.logs("reloaded: 2 new workers serve", times)
        # Until then one of them may still take a connection.
        slowly(lambda: all(is_gone(pid) for pid in old))

    def logs(self, text: str, times: int = 1) -> None:
        slowly(lambda: sum(text in line for line in self.server.err.lines) >= times)


@pytest.fixture
def changing(process: Start, tmp_path: Path) -> Callable[..., Changing]:
    return lambda *options: Changing(process, tmp_path, *options)


@pytest.mark.parametrize("kind", WORKERS)
def test_a_reload_fails_no_request(changing: Callable[..., Changing], kind: str) -> None:
    web = changing("-k", kind)
    old = workers_of(web.server)
    with Load(web.address) as load:
        load.waits_for(1)
        web.says("new")
        web.reload()
        eventually(lambda: load.answers[b"new"] > 10)
        slowly(lambda: all(is_gone(pid) for pid in old))
    assert load.failures == []
    assert set(load.answers) == {b"old", b"new"}
    ends(web.server)


@pytest.mark.parametrize(
    "source", ["1 / 0", "async def app(s, r, send): exit(5)", "import os; os._exit(6)"]
)
def test_a_broken_application_leaves_the_old_one(
    changing: Callable[..., Changing], source: str
) -> None:
    web = changing()
    web.file.write_text(source)
    web.server.send_signal(signal.SIGHUP)
    web.logs("nothing is reloaded, the old workers go on: ")
    with Client(web.address) as client:
        assert client.get().body == b"old"
    web.says("mended")
    web.reload()
    with Client(web.address) as client:
        assert client.get().body == b"mended"
    web.server.send_signal(signal.SIGTERM)
    assert web.server.wait() == 0


def test_reloads_during_a_reload_become_one(changing: Callable[..., Changing]) -> None:
    web = changing()
    web.server.send_signal(signal.SIGHUP)
    web.server.logs("SIGHUP: starting new workers")
    for _ in range(5):
        web.server.send_signal(signal.SIGHUP)
    web.logs("reloaded: ", 2)
    ends(web.server)
    assert sum("SIGHUP: starting" in line for line in web.server.err.all()) == 2


def test_the_configuration_is_read_again(changing: Callable[..., Changing], tmp_path: Path) -> None:
    file = tmp_path / "conf.toml"
    file.write_text("include_server_header = true\n")
    web = changing("-c", str(file))
    file.write_text("include_server_header = false\nbacklog = 5\n")
    web.reload()
    web.server.logs("--backlog: the new value is for the next start")
    with Client(web.address) as client:
        assert client.get().field(b"server") is None
    file.write_text("include_server_header = maybe\n")
    web.server.send_signal(signal.SIGHUP)
    web.server.logs(f"nothing is reloaded, the old workers go on: {re.escape(str(file))}: not TOML")
    with Client(web.address) as client:
        assert client.get().field(b"server") is None
    ends(web.server)


def test_a_reload_is_told_to_systemd(served: Start, tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)
        manager.settimeout(3 * PATIENCE)
        server = served(env={"NOTIFY_SOCKET": path})
        assert manager.recv(100) == b"READY=1"
        server.send_signal(signal.SIGHUP)
        assert re.fullmatch(rb"RELOADING=1\nMONOTONIC_USEC=\d+", manager.recv(100))
        assert manager.recv(100) == b"READY=1"
        ends(server)


def test_the_end_during_a_reload(changing: Callable[..., Changing]) -> None:
    web = changing()
    old = workers_of(web.server)
    web.server.send_signal(signal.SIGHUP)
    web.server.logs("SIGHUP: starting new workers")
    new = eventually(lambda: children_of(web.server.popen.pid) - set(old))
    ends(web.server)
    assert all(is_gone(pid) for pid in {*old, *new})


# When files change.


def says(server: Process, body: bytes) -> bool:
    with server.connect() as client:
        return client.get().body == body


@pytest.mark.parametrize("number", ["1", "2"])
def test_a_file_that_changes(changing: Callable[..., Changing], number: str) -> None:
    web = changing("--reload", "-w", number)
    old = workers_of(web.server)
    web.says("new")
    web.server.logs(r"web\.py changed: starting new workers")
    web.logs(f"reloaded: {number} new workers serve")
    slowly(lambda: all(is_gone(pid) for pid in old))
    assert says(web.server, b"new")
    web.file.write_text("1 / 0")
    web.logs("nothing is reloaded, the old workers go on: ")
    assert says(web.server, b"new")
    web.says("mended")
    slowly(lambda: says(web.server, b"mended"))
    web.server.send_signal(signal.SIGTERM)
    assert web.server.wait() == 0


def test_an_open_stream_delays_no_reload(changing: Callable[..., Changing]) -> None:
    web = changing("--reload")
    with Client(web.address) as waiting:
        waiting.sendall(b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 4\r\n\r\n")
        web.says("new")
        slowly(lambda: says(web.server, b"new"))
        waiting.sendall(b"body")
        assert waiting.read_response().body == b"old"
    ends(web.server)


def test_an_application_that_is_broken_waits_for_a_change(process: Start, tmp_path: Path) -> None:
    file = tmp_path / "web.py"
    file.write_text("def")
    arguments = ("--reload", "-b", "127.0.0.1:0", "--app-dir", str(tmp_path), "web:app")
    server = process(*arguments)
    server.logs("nothing is served until a file has changed: module 'web' cannot be imported: Syn")
    file.write_text("1 / 0")
    server.logs("nothing is served until a file has changed: .*ZeroDivisionError")
    file.write_text(SAYS % "mended")
    assert says(server, b"mended")
    server.send_signal(signal.SIGTERM)
    assert server.wait() == 0


def test_the_end_while_nothing_is_served(process: Start, tmp_path: Path) -> None:
    (tmp_path / "web.py").write_text("1 / 0")
    server = process("--reload", "-b", "127.0.0.1:0", "--app-dir", str(tmp_path), "web:app")
    server.logs("nothing is served until a file has changed")
    server.send_signal(signal.SIGINT)
    assert server.wait() == 0


def test_which_files_matter(changing: Callable[..., Changing], tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("one", "two", "__pycache__")]
    for folder in folders:
        folder.mkdir()
    web = changing(
        *("--reload-dir", str(tmp_path / "one"), "--reload-dir", str(tmp_path / "two")),
        *("--reload-include", "*.html", "--reload-include", "*.py"),
        *("--reload", "--reload-exclude", "test_*"),
    )
    for name in ("one/notes.txt", "two/test_web.py", "web.py", "one/.hidden.py.swp"):
        (tmp_path / name).touch()
    (tmp_path / "two" / "page.html").touch()
    web.server.logs(r"two/page\.html changed: starting new workers")
    web.logs("reloaded: ")
    (tmp_path / "one" / "more.py").touch()
    web.server.logs(r"one/more\.py changed: starting new workers")
    web.logs("reloaded: ", 2)
    ends(web.server)
    assert sum("starting new workers" in line for line in web.server.err.all()) == 2


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("--reload-dir", "nowhere"), "--reload-dir: 'nowhere' is no folder"),
        (("--preload",), "--reload: not with --preload, by which the application is imported once"),
    ],
)
def test_what_cannot_be_watched(served: Start, options: tuple[str, ...], line: str) -> None:
    assert the_line(served("--reload", *options), 1) == line


def test_reload_without_its_library(process: Start) -> None:
    program = "import sys; sys.modules['watchfiles'] = None; from fastserve.cli import main; main()"
    server = process("--reload", "-b", "127.0.0.1:0", "served:app", python=("-c", program))
    expected = "--reload needs watchfiles: pip install 'fastserve-asgi[reload]'"
    assert the_line(server, 1) == expected


# More and fewer workers, and other signals.


def test_more_and_fewer_workers(served: Start) -> None:
    server = served()
    address = server.address
    with Load(address) as load:
        server.send_signal(signal.SIGTTIN)
        server.logs("SIGTTIN: 3 workers from now on")
        slowly(lambda: len(workers_of(server)) == 3)
        server.send_signal(signal.SIGTTOU)
        server.logs("SIGTTOU: 2 workers from now on")
        slowly(lambda: sum(is_gone(pid) for pid in workers_of(server)) == 1)
    assert load.failures == []
    for _ in range(2):
        server.send_signal(signal.SIGTTOU)
        server.logs("SIGTTOU: 1 workers from now on")  # but never none
    ends(server)
    assert len(workers_of(server)) == 3


@pytest.mark.parametrize("number", ["1", "2"])
def test_logs_are_reopened(served: Start, tmp_path: Path, number: str) -> None:
    access, errors = tmp_path / "access", tmp_path / "errors"
    server = served(
        "-w", number, "--access-logfile", str(access), "--error-logfile", str(errors)
    )  # fmt: skip
    running = r"Running on http://([\d.]+):(\d+)"
    found = slowly(lambda: errors.exists() and re.search(running, errors.read_text()))
    address = (found[1], int(found[2]))
    for file in (access, errors):
        file.rename(f"{file}.1")
    server.send_signal(signal.SIGUSR1)
    eventually(lambda: access.exists() and errors.exists())

    def is_logged() -> bool:
        with Client(address) as client:
            assert client.get("/").status == 200
        return "GET / HTTP/1.1" in access.read_text()

    eventually(is_logged)
    server.send_signal(signal.SIGTERM)
    assert server.wait() == 0
    assert DRAINING in errors.read_text()


def test_workers_log_as_the_supervisor_does(served: Start) -> None:
    server = served("--log-format", "json")
    assert server.address
    server.send_signal(signal.SIGKILL)
    gone = "the supervisor is gone: finishing what is under way"
    messages = [json.loads(line)["message"] for line in server.err.all()]
    assert messages.count(gone) == 2


def test_quit_in_one_process(process: Start, tmp_path: Path) -> None:
    """Its files are removed all the same."""
    path, pid_file = tmp_path / "socket", tmp_path / "pid"
    binds = ("-b", f"unix:{path}", "-b", "127.0.0.1:0", "-p", str(pid_file))
    server = process(*binds, "served:app")
    with server.connect() as client:
        client.sendall(request("GET", "/forever"))
        server.says("begun")
        server.send_signal(signal.SIGQUIT)
        assert client.is_closed_by_peer()
    assert server.wait() == 0
    assert server.out.all() == ["startup", "begun"]
    assert not path.exists() and not pid_file.exists()


@pytest.mark.parametrize("number", [signal.SIGTTIN, signal.SIGTTOU, signal.SIGUSR2])
def test_what_one_process_cannot_do(process: Start, number: int) -> None:
    server = process("-b", "127.0.0.1:0", "served:app")
    assert server.address
    server.send_signal(number)
    server.logs(f"{signal.Signals(number).name} is for a supervisor, as with --workers 2")
    ends(server)


# One import for all.

PRELOADED = """
import gc, os
print("imported", flush=True)
async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    body = f"{os.getppid()} {gc.get_freeze_count() > 0} {sorted(os.environ)}"
    await send({"type": "http.response.body", "body": body.encode()})
"""


@pytest.mark.parametrize("kind", WORKERS)
def test_a_preloaded_application(process: Start, tmp_path: Path, kind: str) -> None:
    (tmp_path / "web.py").write_text(PRELOADED)
    arguments = ("-w", "2", "-b", "127.0.0.1:0", "-k", kind, "--app-dir", str(tmp_path), "web:app")
    server = process("--preload", *arguments, env={"NOTIFY_SOCKET": "/nowhere"})
    with server.connect() as client:
        parent, frozen, environment = client.get().body.decode().split(" ", 2)
    assert (int(parent), frozen) == (server.popen.pid, "True")
    assert "NOTIFY_SOCKET" not in environment
    first = workers_of(server)
    os.kill(first[0], signal.SIGKILL)
    slowly(lambda: len(workers_of(server)) == 3)
    server.send_signal(signal.SIGHUP)
    server.logs("SIGHUP: starting new workers; the application stays as it was imported")
    server.logs("reloaded: 2 new workers serve", 3 * PATIENCE)
    slowly(lambda: all(is_gone(pid) for pid in first))
    with server.connect() as client:
        assert client.get().status == 200
    ends(server)
    assert server.out.all() == ["imported"]


def test_forked_workers_do_not_outlive_the_supervisor(served: Start) -> None:
    server = served("--preload")
    assert server.address
    server.send_signal(signal.SIGKILL)
    slowly(lambda: all(is_gone(pid) for pid in workers_of(server)))
    assert server.out.all().count("shutdown") == 2


def test_an_object_is_preloaded(process: Start) -> None:
    script = (
        "import fastserve, served\n"
        "fastserve.run(served.app, bind='127.0.0.1:0', workers=2, preload=True)\n"
        "print('over', flush=True)\n"
    )
    server = process(python=("-c", script))
    with server.connect() as client:
        assert client.get("/").body == b"hello"
    ends(server)
    assert server.out.all().count("over") == 1


def test_one_preloaded_worker_is_supervised(process: Start) -> None:
    server = process("-w", "1", "--preload", "-b", "127.0.0.1:0", "served:app")
    with server.connect() as client:
        assert [int(client.get("/pid").body)] == workers_of(server)
    ends(server)


def test_no_fork_beside_a_thread(process: Start, tmp_path: Path) -> None:
    source = "import threading, time\nthreading.Thread(target=time.sleep, args=(600,), name='busy',"
    (tmp_path / "web.py").write_text(f"{source} daemon=True).start()\n{SAYS % 'x'}")
    server = process("--preload", "-b", "127.0.0.1:0", "--app-dir", str(tmp_path), "web:app")
    assert the_line(server, 1) == (
        "--preload: the application has started a thread (busy),"
        " and a process with threads cannot be forked"
    )


# A new program on the same sockets.


def pid_in(file: Path) -> int:
    """0 while it is being written."""
    text = file.read_text() if file.exists() else ""
    return int(text) if text.endswith("\n") else 0


@pytest.mark.parametrize("options", [*(("-k", kind) for kind in WORKERS), ("--reuse-port",)])
def test_a_new_program_fails_no_request(
    changing: Callable[..., Changing], tmp_path: Path, options: tuple[str, ...]
) -> None:
    path, pid_file = tmp_path / "socket", tmp_path / "pid"
    web = changing(*options, "-b", f"unix:{path}", "-p", str(pid_file))
    old = web.server.popen.pid
    with Load(web.address) as load:
        load.waits_for(1)
        web.says("new")
        web.server.send_signal(signal.SIGUSR2)
        assert web.server.popen.wait(6 * PATIENCE) == 0
        eventually(lambda: load.answers[b"new"] > 10)
    assert load.failures == []
    assert set(load.answers) == {b"old", b"new"}
    new = pid_in(pid_file)
    assert new not in (0, old)
    with Client(str(path)) as client:
        assert client.get().body == b"new"
    os.kill(new, signal.SIGTERM)
    slowly(lambda: not path.exists() and not pid_file.exists())
    assert "Traceback" not in "\n".join(web.server.err.all())


def test_a_new_program_that_does_not_start(
    changing: Callable[..., Changing], tmp_path: Path
) -> None:
    path, pid_file = tmp_path / "socket", tmp_path / "pid"
    web = changing("-b", f"unix:{path}", "-p", str(pid_file))
    web.file.write_text("1 / 0")
    web.server.send_signal(signal.SIGUSR2)
    web.logs("the new program has not started, this one goes on")
    web.server.logs("^fastserve: error: module 'web' cannot be imported: ZeroDivisionError")
    assert pid_in(pid_file) == web.server.popen.pid
    for address in (web.address, str(path)):
        with Client(address) as client:
            assert client.get().body == b"old"
    web.server.send_signal(signal.SIGTERM)
    assert web.server.wait() == 0
    assert not path.exists() and not pid_file.exists()


def test_the_service_manager_learns_of_the_new_program(served: Start, tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)
        manager.settimeout(6 * PATIENCE)
        server = served(env={"NOTIFY_SOCKET": path})
        assert manager.recv(100) == b"READY=1"
        server.send_signal(signal.SIGUSR2)
        lines = manager.recv(100).decode().split("\n")
        assert lines[0] == "READY=1" and lines[1].startswith("MAINPID=")
        assert server.popen.wait(3 * PATIENCE) == 0
        os.kill(int(lines[1].removeprefix("MAINPID=")), signal.SIGTERM)
        assert manager.recv(100) == b"STOPPING=1"


def test_the_end_during_an_upgrade(changing: Callable[..., Changing]) -> None:
    """The new program does not outlive the old one that has not handed over."""
    web = changing()
    web.server.send_signal(signal.SIGUSR2)
    new = int(web.server.logs(r"starting the new program as (\d+)")[1])
    web.server.send_signal(signal.SIGTERM)
    assert web.server.wait() == 0
    slowly(lambda: is_gone(new))
    assert refuses(web.address)


# Replaced from time to time.


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--max-requests", "20", "--max-requests-jitter", "10"), r"\d+ requests"),
        (("--max-lifetime", "1"), "1 s"),
        (("--max-rss", "1M"), r"\d+ MiB of memory"),
    ],
)
def test_a_worker_is_replaced(process: Start, options: tuple[str, ...], reason: str) -> None:
    """Also one alone, of which there are two then for a while."""
    server = process("-b", "127.0.0.1:0", *options, "served:app")
    with Load(server.address) as load:
        server.logs(rf"worker \d+ is replaced after {reason}", 3 * PATIENCE)
        load.waits_for(2)
    assert load.failures == []
    first, second = workers_of(server)[:2]
    slowly(lambda: is_gone(first))
    assert {str(first).encode(), str(second).encode()} <= set(load.answers)
    ends(server)


@pytest.mark.parametrize("kind", WORKERS)
def test_a_websocket_counts_as_a_request(process: Start, kind: str) -> None:
    server = process("-k", kind, "-b", "127.0.0.1:0", "--max-requests", "2", "served:app")
    for _ in range(2):
        with server.connect() as client:
            client.sendall(handshake())
            client.read_until(b"\r\n\r\n")
    server.logs(r"worker \d+ is replaced after 2 requests")
    server.send_signal(signal.SIGTERM)
    assert server.wait() == 0


def test_a_worker_without_a_successor_goes_on(
    changing: Callable[..., Changing], tmp_path: Path
) -> None:
    web = changing("--max-lifetime", "1")
    web.file.write_text("1 / 0")
    web.logs("a worker cannot be started: ", 2)
    with Client(web.address) as client:
        assert client.get().body == b"old"
    web.says("new")
    old = workers_of(web.server)
    slowly(lambda: all(is_gone(pid) for pid in old))
    with Client(web.address) as client:
        assert client.get().body == b"new"
    web.server.send_signal(signal.SIGTERM)
    assert web.server.wait() == 0


# In the long run.


@pytest.mark.long
@pytest.mark.timeout(1800)
class TestLong:
    @pytest.mark.parametrize("kind", WORKERS)
    def test_a_hundred_reloads(self, changing: Callable[..., Changing], kind: str) -> None:
        web = changing("-k", kind)
        with Load(web.address) as load:
            for number in range(1, 101):
                web.says(str(number))
                web.reload(number)
        assert load.failures == []
        assert len(load.answers) > 90
        ends(web.server)

    @pytest.mark.parametrize("kind", WORKERS)
    def test_a_hundred_kills(self, served: Start, kind: str) -> None:
        server = served("-k", kind)
        with Load(server.address) as load:
            for number in range(100):
                slowly(lambda expected=number + 2: len(workers_of(server)) == expected)
                os.kill(workers_of(server)[-2], signal.SIGKILL)
            slowly(lambda: len(workers_of(server)) == 102)
        assert load.failures == []
        ends(server)

    @pytest.mark.parametrize("kind", WORKERS)
    def test_twenty_new_programs(
        self, changing: Callable[..., Changing], tmp_path: Path, kind: str
    ) -> None:
        pid_file = tmp_path / "pid"
        web = changing("-k", kind, "-p", str(pid_file))
        old = web.server.popen.pid
        with Load(web.address) as load:
            for number in range(20):
                web.says(str(number))
                os.kill(old, signal.SIGUSR2)
                new = slowly(lambda before=old: (pid_in(pid_file) or before) - before) + old
                slowly(lambda before=old: is_gone(before))
                old = new
        assert load.failures == []
        assert len(load.answers) > 18
        os.kill(old, signal.SIGTERM)
        slowly(lambda: not pid_file.exists())
