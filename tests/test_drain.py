"""How a server ends: in stages, each of which leaves every connection with a clean end.

What is told to stop by a program follows the same stages as a process that gets a SIGTERM;
SIGINT has a person wait for it. The end of the lifespan is in test_server.py, TLS's in
test_tls.py, a WSGI application's in test_wsgi.py.
"""

from __future__ import annotations

import contextlib
import queue
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import pytest
from conftest import (
    PATIENCE,
    Response,
    Running,
    Serve,
    WebSocketClient,
    frame,
    handshake,
    hello,
    read_body,
    request,
    respond,
)
from process import Process, ends_cleanly, eventually, refuses

LONG = 600.0  # for what must not be waited for
START = {"type": "http.response.start", "status": 200, "headers": []}
HALF = b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 4\r\n\r\nab"

Start = Callable[..., Process]


def piece(body: bytes, *, more_body: bool = True) -> dict[str, Any]:
    return {"type": "http.response.body", "body": body, "more_body": more_body}


def stop_accepting(server: Running) -> None:
    """Ask it to stop, and wait until nobody listens any more."""
    server.ask_to_stop()
    eventually(lambda: refuses(server.address))


def is_last(response: Response) -> bool:
    return response.field(b"connection") == b"close"


class Lived:
    """An application with a lifespan; what happens is in `events`."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self.events: queue.Queue[str] = queue.Queue()
        self.call = call

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            self.events.put("shutdown")
            await send({"type": "lifespan.shutdown.complete"})
            return
        try:
            await self.call(scope, receive, send, self.events.put)
        except anyio.get_cancelled_exc_class():
            self.events.put("cancelled")
            raise

    def next(self) -> str:
        return self.events.get(timeout=PATIENCE)


@pytest.fixture
def served(worker: str) -> Iterator[Start]:
    """tests/apps/served.py as a process, with a long time for everything."""
    with contextlib.ExitStack() as stack:

        def start(*options: str) -> Process:
            common = ("--graceful-timeout", "600", "--drain-idle-timeout", "600")
            process = Process("-k", worker, "-b", "127.0.0.1:0", *common, *options, "served:app")
            stack.callback(process.end)
            return process

        yield start


# Idle connections.


def test_a_kept_connection_has_one_more_answer(serve: Serve) -> None:
    server = serve(hello, drain_idle_timeout=LONG, graceful_timeout=LONG)
    with server.connect() as kept, server.connect() as fresh:
        assert not is_last(kept.get())
        stop_accepting(server)
        for client in (kept, fresh):
            assert is_last(client.get())
            assert ends_cleanly(client)
    server.stop()
    assert server.errors == []


def test_idle_connections_wait_for_a_while(serve: Serve) -> None:
    server = serve(hello, drain_idle_timeout=0.2, graceful_timeout=LONG)
    with server.connect() as kept, server.connect() as fresh:
        assert kept.get().status == 200
        server.ask_to_stop()
        assert ends_cleanly(kept)
        assert ends_cleanly(fresh)
    server.stop()


def test_idle_connections_wait_no_longer_than_the_graceful_time(serve: Serve) -> None:
    server = serve(hello, drain_idle_timeout=LONG, graceful_timeout=0.2)
    with server.connect() as kept:
        assert kept.get().status == 200
        server.ask_to_stop()
        assert ends_cleanly(kept)
    server.stop()


def test_a_request_that_begins_late(serve: Serve) -> None:
    """Part of a head keeps the connection as a whole request does."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await respond(send, await read_body(receive))

    server = serve(app, drain_idle_timeout=0.2, graceful_timeout=LONG, lifespan="off")
    with server.connect() as client, server.connect() as idle:
        assert client.get().status == 200
        client.sendall(HALF[:20])
        server.ask_to_stop()
        assert ends_cleanly(idle)
        client.sendall(HALF[20:] + b"cd")
        response = client.read_response()
        assert (response.body, is_last(response)) == (b"abcd", True)
        assert ends_cleanly(client)
    server.stop()


def test_a_response_that_announced_no_end(serve: Serve) -> None:
    """It had begun before: the next one says that it is the last."""
    go_on = threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        await send(piece(b"begun"))
        while not go_on.is_set():
            await anyio.sleep(0.01)
        await send(piece(b"", more_body=False))

    server = serve(app, drain_idle_timeout=LONG, graceful_timeout=LONG, lifespan="off")
    with server.connect() as client:
        client.sendall(request("GET", "/"))
        assert b"connection" not in client.read_until(b"\r\n\r\n")
        stop_accepting(server)
        go_on.set()
        assert client.read_until(b"0\r\n\r\n").endswith(b"begun\r\n0\r\n\r\n")
        assert is_last(client.get())
        assert ends_cleanly(client)
    server.stop()


def test_a_pipeline(serve: Serve) -> None:
    """The answer under way is the last; no reset destroys it, whatever comes behind it."""
    begun, go_on = threading.Event(), threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        begun.set()
        while not go_on.is_set():
            await anyio.sleep(0.01)
        await respond(send, scope["query_string"])

    server = serve(app, graceful_timeout=LONG, lifespan="off")
    with server.connect() as client:
        client.sendall(b"".join(request("GET", f"/?{number}") for number in range(3)))
        assert begun.wait(PATIENCE)
        stop_accepting(server)
        go_on.set()
        response = client.read_response()
        assert (response.body, is_last(response)) == (b"0", True)
        assert ends_cleanly(client)
    server.stop()


def test_clients_that_go_on(serve: Serve) -> None:
    """Every request that is sent on an open connection has its answer, and the last of a
    connection says so."""
    server = serve(hello, drain_idle_timeout=LONG, graceful_timeout=LONG)
    answered: queue.Queue[int | BaseException] = queue.Queue()

    def ask_until_the_last() -> None:
        try:
            with server.connect() as client:
                count = 1
                while not is_last(client.get()):
                    count += 1
                assert ends_cleanly(client)
                answered.put(count)
        except BaseException as error:
            answered.put(error)

    clients = [threading.Thread(target=ask_until_the_last) for _ in range(8)]
    for client in clients:
        client.start()
    with server.connect() as another:
        for _ in range(100):
            assert not is_last(another.get())
        server.ask_to_stop()
        outcomes = [answered.get(timeout=2 * PATIENCE) for _ in clients]
        assert all(isinstance(outcome, int) for outcome in outcomes), outcomes
        assert is_last(another.get())
    server.stop()
    assert server.errors == []


# Those who have connected, and were not accepted yet.


class Blocking:
    """Keeps the whole loop busy during its first request."""

    def __init__(self) -> None:
        self.begun, self.go_on = threading.Event(), threading.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.begun.set()
        self.go_on.wait(PATIENCE)
        await respond(send, b"served")


def test_nobody_in_the_queue_is_reset(serve: Serve) -> None:
    app = Blocking()
    server = serve(app, graceful_timeout=LONG, lifespan="off")
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(server.connect())
        first.sendall(request("GET", "/"))
        assert app.begun.wait(PATIENCE)
        waiting = [stack.enter_context(server.connect()) for _ in range(300)]
        for client in waiting:
            client.sendall(request("GET", "/"))
        server.ask_to_stop()
        app.go_on.set()
        for client in (first, *waiting):
            assert client.read_response().body == b"served"
    server.stop()
    assert server.errors == []


def test_the_queue_of_a_shared_socket_is_left_to_the_others(serve: Serve) -> None:
    app = Blocking()
    with (
        socket.create_server(("127.0.0.1", 0), backlog=400) as shared,
        contextlib.ExitStack() as stack,
    ):
        server = serve(app, bind=f"fd://{shared.fileno()}", graceful_timeout=LONG, lifespan="off")
        first = stack.enter_context(server.connect())
        first.sendall(request("GET", "/"))
        assert app.begun.wait(PATIENCE)
        clients = [stack.enter_context(server.connect()) for _ in range(300)]
        for client in clients:
            client.sendall(request("GET", "/"))
        server.ask_to_stop()
        app.go_on.set()
        server.stop()
        ours: set[Any] = set()
        shared.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                accepted, address = shared.accept()
                stack.enter_context(accepted)
                ours.add(address)
        assert ours
        for client in clients:
            if client.getsockname() not in ours:
                assert client.read_response().body == b"served"


# The delay.


def test_the_delay(served: Start) -> None:
    """Clients are still welcome, each for one answer."""
    server = served("--drain-delay", "600")
    with server.connect() as kept:
        assert not is_last(kept.get())
        server.send_signal(signal.SIGTERM)
        eventually(lambda: is_last(kept.get()))
        for _ in range(3):
            with server.connect() as client:
                assert is_last(client.get())
                assert client.is_closed_by_peer()
    server.send_signal(signal.SIGTERM)
    assert server.wait() == 0
    assert server.out.all() == ["startup", "shutdown"]


def test_the_delay_ends(serve: Serve) -> None:
    server = serve(hello, drain_delay=0.2, graceful_timeout=LONG)
    stop_accepting(server)
    server.stop()
    assert server.errors == []


def test_nobody_is_told_during_the_delay(serve: Serve) -> None:
    """Whoever comes back would come to the same server."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        shutdown = scope["extensions"]["fastserve.shutdown"]
        await respond(send, str(shutdown["is_set"]()).encode())

    server = serve(
        app, drain_delay=1, drain_idle_timeout=LONG, graceful_timeout=LONG, lifespan="off"
    )
    with server.connect() as kept:
        server.ask_to_stop()

        def last_answer() -> Response | None:
            with server.connect() as client:
                response = client.get()
            return response if is_last(response) else None

        assert eventually(last_answer).body == b"False"
        eventually(lambda: refuses(server.address))
        assert kept.get().body == b"True"
    server.stop()


# A person at a keyboard.


def test_an_interrupt_waits_for_what_is_under_way_alone(served: Start) -> None:
    server = served("--drain-delay", "600")
    with server.connect() as kept, server.connect() as fresh, server.connect() as busy:
        assert kept.get().status == 200
        busy.sendall(request("POST", "/echo", "Content-Length: 4") + b"ab")
        server.says("begun")
        server.send_signal(signal.SIGINT)
        assert kept.read_to_end() == b""
        assert fresh.read_to_end() == b""
        busy.sendall(b"cd")
        assert busy.read_response().body == b"abcd"
    assert server.wait() == 0
    assert server.out.all() == ["startup", "begun", "ended", "shutdown"]


def test_an_interrupt_closes_websockets(served: Start) -> None:
    server = served()
    with WebSocketClient(server.address) as client:
        client.sendall(handshake("/socket"))
        assert client.read_response().status == 101
        server.send_signal(signal.SIGINT)
        assert client.read_close()[0] == 1012
        client.sendall(frame(0x88, (1012).to_bytes(2)))
        assert client.is_closed_by_peer()
    assert server.wait() == 0
    assert server.out.all() == ["startup", "begun", "ended", "shutdown"]


def test_a_second_signal_closes_idle_connections_cleanly(served: Start) -> None:
    server = served()
    with server.connect() as kept, server.connect() as fresh:
        assert kept.get().status == 200
        server.send_signal(signal.SIGTERM)
        eventually(lambda: refuses(server.address))
        server.send_signal(signal.SIGTERM)
        assert kept.read_to_end() == b""
        assert fresh.read_to_end() == b""
    assert server.wait() == 0
    assert server.out.all() == ["startup", "shutdown"]


# What applications are told.


async def stream_until_told(scope: Any, receive: Any, send: Any, say: Any) -> None:
    """Server-sent events, and a last one for the clients to come back elsewhere."""
    shutdown = scope["extensions"]["fastserve.shutdown"]
    assert not shutdown["is_set"]()
    await send(START)
    await send(piece(b"data: 1\n\n"))
    await shutdown["wait"]()
    assert shutdown["is_set"]()
    await shutdown["wait"]()
    say("told")
    await send(piece(b"data: retry\n\n", more_body=False))


def test_streams_are_told(serve: Serve) -> None:
    app = Lived(stream_until_told)
    server = serve(app, graceful_timeout=LONG, drain_idle_timeout=LONG)
    clients = [server.connect() for _ in range(3)]
    for client in clients:
        client.sendall(request("GET", "/"))
        client.read_until(b"data: 1\n\n\r\n")
    server.ask_to_stop()
    for client in clients:
        assert client.read_until(b"0\r\n\r\n").endswith(b"data: retry\n\n\r\n0\r\n\r\n")
        client.close()
    server.stop()
    assert [app.next() for _ in range(4)] == ["told", "told", "told", "shutdown"]
    assert server.errors == []


def test_websockets_are_told(serve: Serve) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        shutdown = scope["extensions"]["fastserve.shutdown"]
        await send({"type": "websocket.accept"})
        await shutdown["wait"]()
        await send({"type": "websocket.send", "text": "bye"})
        await send({"type": "websocket.close", "code": 4000})

    server = serve(app, graceful_timeout=LONG, lifespan="off")
    with server.websocket() as client:
        server.ask_to_stop()
        assert client.read_frame() == (0x81, b"bye")
        assert client.read_close()[0] == 4000
        client.sendall(frame(0x88, (4000).to_bytes(2)))
        assert client.is_closed_by_peer()
    server.stop()
    assert server.errors == []


def test_a_task_that_no_longer_waits(serve: Serve) -> None:
    """Cancelled in `wait`, it is not woken."""

    async def call(scope: Any, receive: Any, send: Any, say: Any) -> None:
        shutdown = scope["extensions"]["fastserve.shutdown"]
        with anyio.move_on_after(0.01):
            await shutdown["wait"]()
        say("over" if not shutdown["is_set"]() else "told")
        await respond(send)

    app = Lived(call)
    server = serve(app)
    with server.connect() as client:
        assert client.get().status == 200
        assert app.next() == "over"
    server.stop()
    assert server.errors == []


@pytest.mark.parametrize("kept", ["scope", "extensions", "shutdown", "nothing"])
def test_each_request_has_an_extension_of_its_own(serve: Serve, kept: str) -> None:
    """Whatever an application keeps of it, changes in it, or both."""
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        extensions = scope["extensions"]
        shutdown = extensions["fastserve.shutdown"]
        assert "mine" not in extensions
        assert set(shutdown) == {"wait", "is_set"}
        assert shutdown["is_set"]() is False
        for other in seen:
            assert other is not scope and other is not extensions and other is not shutdown
        if kept != "nothing":
            seen.append({"scope": scope, "extensions": extensions, "shutdown": shutdown}[kept])
        change = scope["path"]
        if change == "/add":
            extensions["mine"] = {}
        elif change == "/replace":
            extensions["fastserve.shutdown"] = {"wait": 1, "is_set": 2}
        elif change == "/remove":
            extensions.clear()
        elif change == "/below":
            shutdown["is_set"] = None
        elif change == "/more":
            shutdown["mine"] = 1
        elif change == "/rename":
            shutdown["was_set"] = shutdown.pop("is_set")
        await respond(send)

    server = serve(app, lifespan="off")
    with server.connect() as client:
        for _ in range(3):
            for path in ("/", "/add", "/replace", "/remove", "/below", "/more", "/rename", "/"):
                assert client.get(path).status == 200
    assert server.errors == []


# When the graceful time is over.


def test_the_end_of_the_graceful_time_is_told(serve: Serve) -> None:
    """As the client's leaving would be; what is still sent arrives, and nobody is cancelled."""

    async def call(scope: Any, receive: Any, send: Any, say: Any) -> None:
        await send(START)
        await send(piece(b"begun"))
        await receive()
        say((await receive())["type"])
        assert (await receive())["type"] == "http.disconnect"
        await send(piece(b"ended", more_body=False))

    app = Lived(call)
    server = serve(app, graceful_timeout=1)
    with server.connect() as client:
        client.sendall(request("GET", "/"))
        client.read_until(b"begun\r\n")
        server.ask_to_stop()
        assert client.read_to_end() == b"5\r\nended\r\n0\r\n\r\n"
    server.stop()
    assert [app.next(), app.next()] == ["http.disconnect", "shutdown"]
    assert server.errors == []


def test_an_upload_that_takes_too_long(serve: Serve) -> None:
    """What came of it comes first; nothing comes behind the disconnect."""
    told = threading.Event()

    async def call(scope: Any, receive: Any, send: Any, say: Any) -> None:
        while (message := await receive())["type"] == "http.request":
            say(message["body"].decode())
        told.set()
        for _ in range(10):
            await anyio.sleep(0.01)
            assert (await receive())["type"] == "http.disconnect"
        await respond(send, b"incomplete", 400)

    app = Lived(call)
    server = serve(app, graceful_timeout=1)
    with server.connect() as client:
        client.sendall(HALF)
        assert app.next() == "ab"
        server.ask_to_stop()
        assert told.wait(PATIENCE)
        client.sendall(b"cd")
        response = client.read_response()
        assert (response.status, is_last(response)) == (400, True)
        assert ends_cleanly(client)
    server.stop()
    assert app.next() == "shutdown"
    assert server.errors == []


def test_an_application_that_leaves_when_told(serve: Serve) -> None:
    """Its client learns why it has no answer."""

    async def call(scope: Any, receive: Any, send: Any, say: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    app = Lived(call)
    server = serve(app, graceful_timeout=0.2)
    with server.connect() as client:
        client.sendall(request("GET", "/"))
        server.ask_to_stop()
        assert client.read_response().status == 503
        assert ends_cleanly(client)
    server.stop()
    assert app.next() == "shutdown"
    assert server.errors == []


def test_a_stream_that_goes_on(serve: Serve) -> None:
    """It is told, then cancelled, and its client sees that something is missing."""

    async def call(scope: Any, receive: Any, send: Any, say: Any) -> None:
        async def listen() -> None:
            while (message := await receive())["type"] != "http.disconnect":
                pass
            say(message["type"])

        async with anyio.create_task_group() as group:
            group.start_soon(listen)
            await send(START)
            while True:
                await send(piece(b"x"))
                await anyio.sleep(0.01)

    app = Lived(call)
    server = serve(app, graceful_timeout=0.2)
    with server.connect() as client:
        client.sendall(request("GET", "/"))
        client.read_until(b"x\r\n")
        server.ask_to_stop()
        assert not client.read_to_end().endswith(b"0\r\n\r\n")
    server.stop()
    assert [app.next() for _ in range(3)] == ["http.disconnect", "cancelled", "shutdown"]
    assert [record.getMessage() for record in server.errors] == [
        "cancelling 1 requests that are still under way"
    ]


def test_whoever_waits_in_line_is_refused(serve: Serve) -> None:
    begun = threading.Event()

    async def call(scope: Any, receive: Any, send: Any, say: Any) -> None:
        say(scope["path"])
        begun.set()
        while (await receive())["type"] != "http.disconnect":
            pass
        await respond(send)

    app = Lived(call)
    server = serve(app, graceful_timeout=0.5, limit_concurrency=1, queue_size=5, queue_timeout=LONG)
    with server.connect() as first, server.connect() as second:
        first.sendall(request("GET", "/first"))
        assert begun.wait(PATIENCE)
        second.sendall(request("GET", "/second"))
        server.ask_to_stop()
        assert first.read_response().status == 200
        assert second.read_response().status == 503
        assert ends_cleanly(second)
    server.stop()
    assert [app.next(), app.next()] == ["/first", "shutdown"]
    assert server.errors == []
