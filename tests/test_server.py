"""The server as a whole: its start, its addresses, and above all its end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import stat
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from conftest import PATIENCE, Running, Serve, hello, read_body, request, respond
from process import DRAINING, Process, eventually, refuses

import fastserve
from fastserve.config import ConfigError
from fastserve.server import Server, ServerError, opened_sockets
from fastserve.worker import find
from fastserve.worker_asyncio import AsyncioWorker

Start = Callable[..., Process]

HALF = b"POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: 4\r\n\r\nab"
OTHER_HALF = b"cd"
SIGNALS = [signal.SIGINT, signal.SIGTERM]


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
def served(process: Start, worker: str) -> Start:
    """tests/apps/served.py on a free port, on each worker."""

    def start(*options: str, **more: Any) -> Process:
        # Nobody sends anything more on what a test has left open.
        common = ("-k", worker, "-b", "127.0.0.1:0", "--drain-idle-timeout", "0")
        return process(*common, *options, "served:app", **more)

    return start


def one_line(process: Process) -> str:
    """What the command complains about: one line on stderr, and no traceback."""
    assert process.wait() != 0
    lines = process.err.all()
    assert len(lines) == 1, lines
    assert lines[0].startswith("fastserve: error: ")
    return lines[0].removeprefix("fastserve: error: ")


# The end of a process.


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_lets_requests_finish(served: Start, number: int) -> None:
    server = served()
    with server.connect() as busy, server.connect() as idle:
        assert idle.get("/").body == b"hello"
        busy.sendall(HALF)
        server.says("begun")
        server.send_signal(number)
        server.logs(f"{signal.Signals(number).name}: {DRAINING}")
        assert idle.is_closed_by_peer()
        eventually(lambda: refuses(server.address))
        assert server.popen.poll() is None
        busy.sendall(OTHER_HALF)
        response = busy.read_response()
        assert (response.status, response.body) == (200, b"abcd")
        assert response.field(b"connection") == b"close"
        assert busy.is_closed_by_peer()
    assert server.wait() == 0
    assert server.out.all() == ["startup", "begun", "ended", "shutdown"]
    assert not any("Traceback" in line for line in server.err.all())


@pytest.mark.parametrize("number", SIGNALS)
def test_idle_connections_do_not_delay_the_end(served: Start, number: int) -> None:
    server = served("--graceful-timeout", "600")
    with server.connect() as used, server.connect() as fresh:
        assert used.get("/").status == 200
        server.send_signal(number)
        assert used.is_closed_by_peer()
        assert fresh.is_closed_by_peer()
        assert server.wait() == 0
    assert server.out.all() == ["startup", "shutdown"]


def test_a_second_signal_cancels(served: Start, worker: str) -> None:
    server = served("--graceful-timeout", "600")
    with server.connect() as client:
        client.sendall(request("GET", "/forever"))
        server.says("begun")
        server.send_signal(signal.SIGTERM)
        server.logs(DRAINING)
        server.send_signal(signal.SIGINT)
        assert client.read_response().status == 503
        assert client.is_closed_by_peer()
    assert server.wait() == 0
    cancelled = "trio.Cancelled" if worker == "trio" else "asyncio.CancelledError"
    assert server.out.all() == ["startup", "begun", cancelled, "shutdown"]
    assert not any("Traceback" in line for line in server.err.all())


def test_signals_during_startup(process: Start, worker: str) -> None:
    """Nobody has to wait for a start-up that hangs."""
    server = process("-k", worker, "-b", "127.0.0.1:0", "hanging:app")
    server.says("startup")
    server.send_signal(signal.SIGINT)
    server.logs(DRAINING)
    server.send_signal(signal.SIGINT)
    assert server.wait() == 3
    assert server.out.all() == ["startup", "cancelled"]
    assert server.err.all()[1:] == [
        "fastserve: error: the application failed to start up: it was interrupted"
    ]


def test_a_second_signal_during_lifespan_shutdown(process: Start, worker: str) -> None:
    """From then on the application has little time left."""
    script = "import fastserve.server\nfastserve.server.HURRY = 0.05\nfastserve.cli.main()"
    arguments = ("-k", worker, "-b", "127.0.0.1:0", "--shutdown-timeout", "600", "hanging:ending")
    server = process(*arguments, python=("-c", f"import fastserve.cli\n{script}"))
    assert server.address
    server.send_signal(signal.SIGTERM)
    server.says("shutdown")
    server.send_signal(signal.SIGTERM)
    assert server.wait() == 0
    assert server.out.all() == ["shutdown", "cancelled"]
    server.logs("the application did not shut down within 0.05 s")


def test_keyboard_interrupt_in_the_application(served: Start) -> None:
    """The interpreter raises it where Ctrl-C finds it: it is the signal all the same."""
    server = served()
    with server.connect() as client:
        client.sendall(request("GET", "/interrupt"))
        assert client.read_response().status == 500
    assert server.wait() == 0
    assert server.out.all() == ["startup", "shutdown"]
    server.logs(DRAINING)


# The end of a server in a program.


def test_a_response_begun_before_the_end_delays_it_no_longer_than_it_lasts(serve: Serve) -> None:
    """Its head could not announce that the connection would be closed."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"begun", "more_body": True})
        await send({"type": "http.response.body", "body": await read_body(receive)})

    server = serve(app, lifespan="off", graceful_timeout=600)
    with server.connect() as busy, server.connect() as idle:
        busy.sendall(HALF)
        assert b"connection: close" not in busy.read_until(b"begun\r\n")
        server.ask_to_stop()
        assert idle.is_closed_by_peer()
        busy.sendall(OTHER_HALF)
        assert busy.read_to_end() == b"4\r\nabcd\r\n0\r\n\r\n"
        server.stop()


@pytest.mark.parametrize("number", [1, 3])
def test_the_graceful_timeout_cancels(serve: Serve, number: int) -> None:
    events: list[str] = []
    begun = threading.Semaphore(0)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await live(receive, send, events)
            return
        begun.release()
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            events.append("cancelled")
            raise

    server = serve(app, graceful_timeout=0.05)
    clients = [server.connect() for _ in range(number)]
    for client in clients:
        client.sendall(request("GET", "/"))
        assert begun.acquire(timeout=PATIENCE)
    server.ask_to_stop()
    for client in clients:
        assert client.read_response().status == 503
        assert client.is_closed_by_peer()
        client.close()
    server.stop()
    assert server.failure is None
    assert events == ["startup", *["cancelled"] * number, "shutdown"]
    assert [record.getMessage() for record in server.errors] == [
        f"cancelling {number} requests that are still under way"
    ]


def test_a_request_that_suppresses_its_cancellation(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has little time, and is cut off then."""
    monkeypatch.setattr("fastserve.server.HURRY", 0.05)
    begun, over = threading.Event(), threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        begun.set()
        with anyio.CancelScope(shield=True):
            while not over.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await anyio.sleep(0.01)

    server = serve(app, graceful_timeout=0.05, lifespan="off")
    with server.connect() as client:
        client.sendall(request("GET", "/"))
        assert begun.wait(PATIENCE)
        server.ask_to_stop()
        assert client.is_closed_by_peer()
        over.set()
    server.stop()
    assert server.failure is None


def test_what_follows_a_response_is_awaited(serve: Serve) -> None:
    events: list[str] = []
    gate = threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await live(receive, send, events)
            return
        await respond(send, b"done")
        while not gate.is_set():
            await anyio.sleep(0.01)
        events.append("background")

    server = serve(app)
    with server.connect() as client:
        assert client.get().body == b"done"
        server.ask_to_stop()
        assert client.is_closed_by_peer()
        gate.set()
        server.stop()
    assert events == ["startup", "background", "shutdown"]


async def live(receive: Any, send: Any, events: list[str]) -> None:
    await receive()
    events.append("startup")
    await send({"type": "lifespan.startup.complete"})
    await receive()
    events.append("shutdown")
    await send({"type": "lifespan.shutdown.complete"})


class Guest(Running):
    """A server that ends because the program around it cancels `serve()`, or by a
    shutdown trigger of the test's own."""

    trigger: Callable[[], Awaitable[object]] | None = None
    cancelled = False

    def _run_asyncio(self) -> None:
        async def main() -> None:
            loop = asyncio.get_running_loop()
            task = asyncio.ensure_future(
                fastserve.serve(self.app, self.config, shutdown_trigger=self.trigger)
            )
            self.stop_now = lambda: loop.call_soon_threadsafe(task.cancel)
            try:
                await task
            except asyncio.CancelledError:
                self.cancelled = True

        factory = None
        if self.worker == "uvloop":
            import uvloop

            factory = uvloop.new_event_loop
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(main())

    def _run_trio(self) -> None:
        import trio

        async def main() -> None:
            token = trio.lowlevel.current_trio_token()
            with trio.CancelScope() as scope:
                self.stop_now = lambda: token.run_sync_soon(scope.cancel)
                await fastserve.serve(self.app, self.config, shutdown_trigger=self.trigger)
            self.cancelled = scope.cancelled_caught

        trio.run(main)


@pytest.fixture
def invite(worker: str, poller: str) -> Iterator[Callable[..., Guest]]:
    """Start a Guest with `invite(app, trigger, **options)`."""
    started: list[Guest] = []

    def start(app: Any, trigger: Any = None, **options: Any) -> Guest:
        config = fastserve.Config(
            bind="127.0.0.1:0",
            worker_class=worker,
            poller=poller,
            graceful_timeout=600,
            drain_idle_timeout=0,
            **options,
        )
        guest = Guest(app, worker, config)
        guest.trigger = trigger
        started.append(guest)
        guest.start()
        return guest

    yield start
    for guest in started:
        guest.stop()


class Waiting:
    """Requests to it never end by themselves."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.begun = threading.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await live(receive, send, self.events)
            return
        self.begun.set()
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            self.events.append("cancelled")
            raise


def test_cancelling_serve(invite: Callable[..., Guest]) -> None:
    """As the second signal: nothing is waited for, the lifespan ends all the same."""
    app = Waiting()
    guest = invite(app)
    with guest.connect() as client:
        client.sendall(request("GET", "/"))
        assert app.begun.wait(PATIENCE)
        guest.ask_to_stop()
        assert client.read_response().status == 503
        assert client.is_closed_by_peer()
    guest.stop()
    assert guest.failure is None
    assert guest.cancelled
    assert app.events == ["startup", "cancelled", "shutdown"]


def test_cancelling_serve_while_it_drains(invite: Callable[..., Guest]) -> None:
    app = Waiting()
    asked = threading.Event()

    async def trigger() -> None:
        while not asked.is_set():
            await anyio.sleep(0.01)

    guest = invite(app, trigger)
    with guest.connect() as client, guest.connect() as idle:
        client.sendall(request("GET", "/"))
        assert app.begun.wait(PATIENCE)
        asked.set()
        assert idle.is_closed_by_peer()
        guest.ask_to_stop()
        assert client.read_response().status == 503
    guest.stop()
    assert guest.failure is None
    assert guest.cancelled
    assert app.events == ["startup", "cancelled", "shutdown"]


def test_a_cancel_scope_around_serve(worker: str, poller: str) -> None:
    """On asyncio anyio's cancels again and again; the lifespan ends in order all the same."""
    events: list[str] = []
    scopes: list[anyio.CancelScope] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        events.append("startup")
        await anyio.sleep(0)
        scopes[0].cancel()
        await receive()
        await anyio.sleep(0.01)
        events.append("shutdown")
        await send({"type": "lifespan.shutdown.complete"})

    async def main() -> None:
        with anyio.CancelScope() as scope:
            scopes.append(scope)
            await fastserve.serve(app, bind="127.0.0.1:0", poller=poller)
        assert scope.cancelled_caught

    run_on(worker, main)
    assert events == ["startup", "shutdown"]


def test_cancelling_serve_during_startup(worker: str, poller: str) -> None:
    events: list[str] = []

    async def main() -> None:
        with anyio.CancelScope() as scope:

            async def app(scope_: Any, receive: Any, send: Any) -> None:
                events.append("startup")
                scope.cancel()
                try:
                    await anyio.sleep_forever()
                finally:
                    events.append("cancelled")

            await fastserve.serve(app, bind="127.0.0.1:0", poller=poller)
        assert scope.cancelled_caught

    run_on(worker, main)
    assert events == ["startup", "cancelled"]


def run_on(worker: str, main: Callable[[], Awaitable[None]]) -> None:
    """Run `main` through anyio in the worker's kind of loop."""
    if worker == "trio":
        anyio.run(main, backend="trio")
    else:
        anyio.run(main, backend_options={"use_uvloop": worker == "uvloop"})


def test_whether_new_clients_are_welcome(worker: str, poller: str) -> None:
    """From the end of the start-up until the server is told to stop."""
    seen: list[bool] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        seen.append(server.is_ready)
        await send({"type": "lifespan.startup.complete"})
        await receive()
        seen.append(server.is_ready)
        await send({"type": "lifespan.shutdown.complete"})

    async def trigger() -> None:
        while not server.is_ready:
            await anyio.sleep(0.01)
        seen.append(True)

    async def main() -> None:
        async with find(worker.replace("uvloop", "asyncio"))() as running:
            await server.serve(running, sockets, trigger)

    config = fastserve.Config(bind="127.0.0.1:0", poller=poller)
    server = Server(app, config)
    assert not server.is_ready
    with server.opened(), opened_sockets(config) as sockets:
        run_on(worker, main)
    assert seen == [False, True, False]


def test_lifespan_shutdown_has_little_time_in_a_hurry(
    invite: Callable[..., Guest], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastserve.server.HURRY", 0.05)
    ended = threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        try:
            await anyio.sleep_forever()
        finally:
            ended.set()

    guest = invite(app, shutdown_timeout=600)
    guest.stop()
    assert guest.cancelled
    assert ended.is_set()
    assert [record.getMessage() for record in guest.errors] == [
        "the application did not shut down within 0.05 s"
    ]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="needs asyncio's eager tasks")
def test_a_shutdown_trigger_that_is_done_at_once() -> None:
    """In a program that has its tasks begin at once."""
    events: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for kind in ("startup", "shutdown"):
            events.append((await receive())["type"])
            await send({"type": f"lifespan.{kind}.complete"})

    async def trigger() -> None:
        return

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        async with asyncio.timeout(PATIENCE):
            await fastserve.serve(app, bind="127.0.0.1:0", shutdown_trigger=trigger)

    asyncio.run(main())
    assert events == ["lifespan.startup", "lifespan.shutdown"]


def test_a_shutdown_trigger_that_raises(invite: Callable[..., Guest]) -> None:
    """The server ends in order, and the program learns why."""
    app = Waiting()
    asked = threading.Event()

    async def trigger() -> None:
        while not asked.is_set():
            await anyio.sleep(0.01)
        raise LookupError("no file to watch")

    guest = invite(app, trigger)
    with guest.connect() as idle:
        asked.set()
        assert idle.is_closed_by_peer()
    guest.thread.join(PATIENCE)
    assert isinstance(guest.failure, LookupError)
    assert app.events == ["startup", "shutdown"]


def test_run_in_a_script(process: Start, worker: str) -> None:
    script = (
        "import fastserve, served\n"
        f"fastserve.run(served.app, bind='127.0.0.1:0', worker_class={worker!r})\n"
        "print('over')\n"
    )
    server = process(python=("-c", script))
    with server.connect() as client:
        assert client.get("/loop").body.decode() == worker
    server.send_signal(signal.SIGTERM)
    assert server.wait() == 0
    assert server.out.all() == ["startup", "shutdown", "over"]


# What cannot be started: one line that says why.


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-b", "no-such-host.invalid:0", "served:app"], "cannot listen on no-such-host.invalid:0"),
        (["missing:app"], "there is no module 'missing'"),
        (["served:ap"], "served has no attribute 'ap' (did you mean 'app'?)"),
        (["served"], "'served' is not of the form module:attr (did you mean served:app?)"),
        (["served:PATHS"], "served:PATHS is no application: its type is dict"),
        (["--app-dir", "nowhere", "served:app"], "--app-dir: 'nowhere' is not a directory"),
        (["--graceful-timeout", "soon", "served:app"], "--graceful-timeout: seconds from"),
        (["--lifespan", "maybe", "served:app"], "--lifespan: one of auto, on, off expected"),
        (["-b", "host:port", "served:app"], "--bind: the port is a number"),
        (["--gracefull", "1", "served:app"], "--gracefull"),
        (["--access-logfile", "no/where", "served:app"], "--access-logfile: 'no/where': No such"),
        (["--access-logfile", "/", "served:app"], "--access-logfile: '/': Is a directory"),
        (["-b", "unix:no/where", "served:app"], "cannot listen on unix:no/where: no such file"),
        (["-b", "unix:served.py", "served:app"], "the path exists and is no socket"),
        ([], "Missing argument"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_wrong_is_said_in_one_line(
    process: Start, arguments: list[str], words: str
) -> None:
    assert words in one_line(process(*arguments))


def test_the_port_is_in_use(process: Start, worker: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        line = one_line(process("-k", worker, "-b", address, "served:app"))
    assert line == f"cannot listen on {address}: address already in use"


def test_a_second_address_is_in_use(process: Start, worker: str, tmp_path: Path) -> None:
    """What was opened before it is given up again."""
    path = tmp_path / "socket"
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        one_line(process("-k", worker, "-b", f"unix:{path}", "-b", address, "served:app"))
    assert not path.exists()


# As if a library were not installed: the path's finder does not find it.
WITHOUT = """
import sys
from importlib.machinery import PathFinder

class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        found = name.partition(".")[0] == {library!r}
        return None if found else super().find_spec(name, path, target)

sys.meta_path[:] = [Finder if finder is PathFinder else finder for finder in sys.meta_path]
from fastserve.cli import main
main()
"""


@pytest.mark.parametrize(
    ("library", "package"), [("trio", "fastserve-asgi[trio]"), ("uvloop", "uvloop")]
)
def test_a_worker_whose_library_is_missing(process: Start, library: str, package: str) -> None:
    script = WITHOUT.format(library=library)
    server = process("-k", library, "served:app", python=("-c", script))
    line = f"worker class {library!r} needs {library}: pip install {package!r}"
    assert one_line(server) == line


def test_auto_does_without_uvloop(process: Start) -> None:
    script = WITHOUT.format(library="uvloop")
    server = process("-b", "127.0.0.1:0", "served:app", python=("-c", script))
    with server.connect() as client:
        assert client.get("/loop").body == b"asyncio"


@pytest.mark.parametrize("options", [{"binds": ()}, {"bind": "a:b"}, {"lifespan": "maybe"}])
def test_options_of_run_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        fastserve.run(hello, **options)


# Addresses.


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


def test_several_addresses(process: Start, worker: str, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    binds = ["127.0.0.1:0", f"unix:{path}", "127.0.0.1:0"]
    server = process("-k", worker, *(word for bind in binds for word in ("-b", bind)), "served:app")
    server.logs(f"Running on unix:{path} ")
    eventually(lambda: sum("Running on" in line for line in server.err.lines) == len(binds))
    ports = re.findall(r"Running on http://127\.0\.0\.1:(\d+)", "\n".join(server.err.lines))
    assert len(set(ports)) == 2 and "0" not in ports
    for port in ports:
        with contextlib.closing(socket.create_connection(("127.0.0.1", int(port)), PATIENCE)) as c:
            c.sendall(request("GET", "/", "Connection: close"))
            assert c.makefile("rb").read().endswith(b"hello")
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(PATIENCE)
        client.connect(str(path))
        client.sendall(request("GET", "/", "Connection: close"))
        assert client.makefile("rb").read().endswith(b"hello")
    server.send_signal(signal.SIGTERM)
    assert server.wait() == 0
    assert not path.exists()


@pytest.fixture
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Short enough for a socket's address."""
    return str(tmp_path_factory.mktemp("s") / "s")


def test_a_unix_socket(serve: Serve, path: str) -> None:
    server = serve(hello, bind=f"unix:{path}")
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    with server.connect() as client:
        assert client.get().body == b"Hello, world!"
    server.stop()
    assert not os.path.exists(path)


def test_a_unix_socket_left_behind(serve: Serve, path: str) -> None:
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(path)
    server = serve(hello, bind=f"unix:{path}")
    with server.connect() as client:
        assert client.get().status == 200


def test_a_unix_socket_in_use(serve: Serve, path: str) -> None:
    server = serve(hello, bind=f"unix:{path}")
    with pytest.raises(ServerError, match=f"cannot listen on unix:{path}: address already in use"):
        serve(hello, bind=f"unix:{path}")
    with server.connect() as client:
        assert client.get().status == 200


def test_a_file_in_the_way_is_kept(serve: Serve, path: str) -> None:
    Path(path).write_text("precious")
    with pytest.raises(ServerError, match="the path exists and is no socket"):
        serve(hello, bind=f"unix:{path}")
    assert Path(path).read_text() == "precious"


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6 on this machine")
def test_ipv6(process: Start, worker: str) -> None:
    server = process("-k", worker, "-b", "[::1]:0", "served:app")
    match = server.logs(r"Running on http://\[::1\]:(\d+) ")
    with socket.create_connection(("::1", int(match[1])), PATIENCE) as client:
        client.sendall(request("GET", "/", "Connection: close"))
        assert client.makefile("rb").read().endswith(b"hello")


def test_a_host_name(process: Start, worker: str) -> None:
    """It listens on every address of the name, on one port."""
    server = process("-k", worker, "-b", "localhost:0", "served:app")
    port = server.logs(r"Running on http://\S+:(\d+) ")[1]
    addresses = {info[4][0] for info in socket.getaddrinfo("localhost", 0, type=socket.SOCK_STREAM)}
    for host in addresses:
        with socket.create_connection((host, int(port)), PATIENCE) as client:
            client.sendall(request("GET", "/", "Connection: close"))
            assert client.makefile("rb").read().endswith(b"hello")


def test_the_port_can_be_taken_again_at_once(serve: Serve) -> None:
    server = serve(hello)
    with server.connect() as client:
        client.get()
        server.stop()
    again = serve(hello, bind="{}:{}".format(*server.address))
    with again.connect() as client:
        assert client.get().status == 200


# The access log.

LINE = r'127\.0\.0\.1 - - \[\d\d/\w{3}/\d{4}(:\d\d){3} \+0000\] "%s" %d %d \d+us'


def test_the_access_log(serve: Serve, tmp_path: Path) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await respond(send, b"abc", 404 if scope["path"] == "/missing" else 200)

    file = tmp_path / "access"
    server = serve(app, access_logfile=str(file), lifespan="off")
    with server.connect() as client:
        client.get("/a?b=%20")
        client.get("/missing")
        client.sendall(request("POST", "/", body=b"body"))
        client.read_response()
        client.sendall(request("HEAD", "/"))
        client.read_response(head_only=True)
    server.stop()
    lines = file.read_text().splitlines()
    expected = [
        (r"GET /a\?b=%20 HTTP/1\.1", 200, 3),
        (r"GET /missing HTTP/1\.1", 404, 3),
        (r"POST / HTTP/1\.1", 200, 3),
        (r"HEAD / HTTP/1\.1", 200, 0),
    ]
    assert len(lines) == len(expected)
    for line, facts in zip(lines, expected, strict=True):
        assert re.fullmatch(LINE % facts, line), line


def test_the_access_log_on_stdout(served: Start) -> None:
    server = served("--access-logfile", "-")
    with server.connect() as client:
        client.get("/")
    server.send_signal(signal.SIGTERM)
    assert server.wait() == 0
    [line] = [line for line in server.out.all() if "GET" in line]
    assert re.fullmatch(LINE % (r"GET / HTTP/1\.1", 200, 5), line), line


def test_fields_in_the_access_log(serve: Serve, tmp_path: Path) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.accept", "headers": iter([(b"x-out", b"101")])})
            return
        if scope["path"] == "/bad":
            await send({"type": "http.response.start", "status": 200, "headers": [(1, 2)]})
        scope["headers"].clear()
        fields = iter([(b"X-Out", b"a"), (b"x-out", b"b")])
        await send({"type": "http.response.start", "status": 200, "headers": fields})
        if scope["path"] == "/fails":
            raise RuntimeError
        await send({"type": "http.response.body", "body": b""})

    file = tmp_path / "access"
    format = "%(U)s %(s)s %({x-in}i)s %({x-out}o)s %({content-type}o)s"
    server = serve(app, access_logfile=str(file), access_logformat=format, lifespan="off")
    handshake = request(
        "GET", "/socket", "Upgrade: websocket", "Connection: Upgrade", "X-In: 3",
        "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    )  # fmt: skip
    for text in (
        request("GET", "/", "X-In: 1", "x-in: 2"),
        request("GET", "/plain"),
        request("GET", "/fails", "X-In: 1"),
        request("GET", "/bad"),
        handshake,
    ):
        with server.connect() as client:
            client.sendall(text)
            client.read_until(b"\r\n\r\n")
    server.stop()
    assert file.read_text().splitlines() == [
        "/ 200 1, 2 a, b -",
        "/plain 200 - a, b -",
        "/fails 500 1 - text/plain; charset=utf-8",
        "/bad 500 - - text/plain; charset=utf-8",
        "/socket 101 3 101 -",
    ]


# Its files and its loop.


def test_the_process_id_is_in_a_file(served: Start, tmp_path: Path) -> None:
    file = tmp_path / "pid"
    server = served("-p", str(file))
    with server.connect() as client:
        client.get("/")
        assert file.read_text() == f"{server.popen.pid}\n"
    server.send_signal(signal.SIGTERM)
    assert server.wait() == 0
    assert not file.exists()


def test_a_server_that_cannot_start_leaves_the_others_file(process: Start, tmp_path: Path) -> None:
    file = tmp_path / "pid"
    file.write_text("1\n")
    one_line(process("-p", str(file), "-b", "unix:served.py", "served:app"))
    assert file.read_text() == "1\n"


def test_messages_in_a_file(process: Start, worker: str, tmp_path: Path) -> None:
    file = tmp_path / "errors"
    server = process("-k", worker, "-b", "127.0.0.1:0", "--log-file", str(file), "served:app")
    eventually(lambda: file.exists() and "Running on http://127.0.0.1:" in file.read_text())
    server.send_signal(signal.SIGTERM)
    assert server.wait() == 0
    assert server.err.all() == []


def test_debug(served: Start, worker: str) -> None:
    server = served("--debug")
    with server.connect() as client:
        assert client.get("/debug").body == (b"False" if worker == "trio" else b"True")
    ignored = [line for line in server.err.lines if "--debug is ignored: trio" in line]
    assert len(ignored) == (worker == "trio")


def test_the_application_is_in_the_config(process: Start) -> None:
    script = (
        "import fastserve\n"
        "config = fastserve.Config(application='served:app', bind='127.0.0.1:0')\n"
        "fastserve.run(config=config)\n"
    )
    with process(python=("-c", script)).connect() as client:
        assert client.get("/").body == b"hello"


def test_no_application_at_all() -> None:
    with pytest.raises(ConfigError, match="^application: none is given$"):
        fastserve.run()


def test_a_configuration_is_checked(process: Start) -> None:
    server = process("--check-config", "served:app")
    assert server.wait() == 0
    assert server.out.all() == ["served:app can be served"]
    assert "no attribute 'ap'" in one_line(process("--check-config", "served:ap"))


def test_a_moved_command_line(process: Start) -> None:
    """As it was for uvicorn."""
    server = process(
        "served:app", "--host", "127.0.0.1", "--port", "0", "--loop", "asyncio",
        "--http", "httptools", "--timeout-keep-alive", "5", "--no-access-log",
    )  # fmt: skip
    with server.connect() as client:
        assert client.get("/loop").body == b"asyncio"
    server.logs("^fastserve: warning: --http: ignored, since there is one parser$")


# What goes wrong while it serves.


@pytest.mark.parametrize("code", [0, 1, "the application wants to leave", None])
def test_an_application_that_wants_to_exit(serve: Serve, code: object) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/exit":
            raise SystemExit(code)
        await respond(send, b"still here")

    server = serve(app, lifespan="off")
    with server.connect() as other, server.connect() as client:
        assert client.get("/exit").status == 500
        assert client.is_closed_by_peer()
        assert other.get().body == b"still here"
    assert [type(error) for error in server.exceptions()] == [SystemExit]


def test_an_application_that_wants_to_exit_from_a_process(served: Start) -> None:
    server = served()
    with server.connect() as client:
        assert client.get("/leave").status == 500
    server.logs("SystemExit: the application wants to leave")
    with server.connect() as client:
        assert client.get("/").body == b"hello"
    server.send_signal(signal.SIGTERM)
    assert server.wait() == 0


def test_a_child_of_the_application_holds_nothing_open(served: Start) -> None:
    server = served("--keep-alive", "0.2")
    with server.connect() as client:
        response = client.get("/child")
        # The idle connection's end is a plain close(), which a child's copy would undo.
        assert client.is_closed_by_peer()
    child = int(response.body)
    server.send_signal(signal.SIGTERM)
    eventually(lambda: refuses(server.address))
    assert server.wait() == 0
    os.kill(child, signal.SIGKILL)  # it was there all the time


LIMITED = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
from fastserve.cli import main
main()
"""


def test_too_many_open_files(served: Start) -> None:
    server = served(python=("-c", LIMITED))
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(server.connect()) for _ in range(40)]
        server.logs("accepting pauses: too many open files")
        # Those who are in are served, and those who wait come in as others leave.
        assert clients[0].get("/").body == b"hello"
        for client in clients:
            assert client.get("/").body == b"hello"
            client.close()
    server.send_signal(signal.SIGTERM)
    assert server.wait() == 0
    assert sum("accepting pauses" in line for line in server.err.all()) == 1
    assert not any("Traceback" in line for line in server.err.all())


def test_the_end_while_accepting_pauses(served: Start) -> None:
    server = served(python=("-c", LIMITED))
    with contextlib.ExitStack() as stack:
        for _ in range(40):
            stack.enter_context(server.connect())
        server.logs("accepting pauses: too many open files")
        server.send_signal(signal.SIGTERM)
        assert server.wait() == 0
    assert server.out.all() == ["startup", "shutdown"]


def test_an_exception_in_the_server_hits_one_connection(
    serve: Serve, worker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if worker == "trio":
        from fastserve.worker_trio import TrioWorker as worker_class
    else:
        worker_class = AsyncioWorker
    spawn = vars(worker_class)["spawn"]
    fail = threading.Event()

    def sometimes(self: Any, exchange: Any) -> None:
        if fail.is_set():
            fail.clear()
            raise ArithmeticError("a bug of ours")
        spawn.__get__(self)(exchange)  # a method's, or a property's

    monkeypatch.setattr(worker_class, "spawn", sometimes)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await respond(send, await read_body(receive))

    server = serve(app, lifespan="off")
    with server.connect() as busy, server.connect() as unlucky:
        busy.sendall(HALF)
        with server.connect() as before:
            assert before.get().status == 200
        fail.set()
        assert unlucky.get().status == 500
        assert unlucky.is_closed_by_peer()
        busy.sendall(OTHER_HALF)
        assert busy.read_response().body == b"abcd"
        assert busy.get().status == 200
    assert [str(error) for error in server.exceptions()] == ["a bug of ours"]


def test_serving_twice_in_one_loop(worker: str, poller: str) -> None:
    """The first server leaves nothing in the loop that the second could stumble over."""
    answers: list[bytes] = []

    async def once() -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            address = free.getsockname()

        def visit() -> None:
            with eventually(lambda: connection_to(address)) as client:
                client.sendall(request("GET", "/", "Connection: close"))
                answers.append(client.makefile("rb").read())

        async def trigger() -> None:
            await anyio.to_thread.run_sync(visit)

        bind = "{}:{}".format(*address)
        await fastserve.serve(
            hello, bind=bind, poller=poller, lifespan="off", shutdown_trigger=trigger
        )

    async def main() -> None:
        await once()
        await once()

    run_on(worker, main)
    assert [answer[-13:] for answer in answers] == [b"Hello, world!"] * 2


def connection_to(address: tuple[str, int]) -> socket.socket | None:
    """A connection, if anybody listens there yet."""
    try:
        return socket.create_connection(address, PATIENCE)
    except ConnectionRefusedError:
        return None
