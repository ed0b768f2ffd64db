"""Whatever happens on a connection, nothing of it stays: no object, no descriptor.

Each test does something a few times, so that caches and pools are filled, counts what is
alive, does it many times more, and counts again.
"""

from __future__ import annotations

import gc
import importlib
import logging
import os
import socket
import sys
import time
import weakref
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from conftest import (
    PATIENCE,
    Client,
    Instances,
    Running,
    Serve,
    frame,
    handshake,
    read_body,
    request,
    reset,
    respond,
)

import fastserve
from fastserve._access import AccessLines
from fastserve.access import parts_of

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
combinations = pytest.mark.parametrize(
    "worker, poller",
    [("asyncio", "epoll"), ("asyncio", "loop"), ("uvloop", "epoll"), ("trio", "epoll")],
    indirect=True,
)

# Every type of the compiled modules whose instances the collector knows, by its own name.
TYPES = {
    kind
    for stub in Path(fastserve.__file__).parent.glob("_*.pyi")
    for module in (importlib.import_module(f"fastserve.{stub.stem}"),)
    for kind in vars(module).values()
    if isinstance(kind, type) and kind.__module__ == module.__name__
}
NEEDED = {
    "HttpExchange",
    "Awaitable",
    "ApplicationCall",
    "Http1Connection",
    "SocketTransport",
    "WebSocketExchange",
    "WebSocketConnection",
    "FrameDecoder",
}
# How often growth may come again until it counts: tables and free lists grow now and then,
# a leak grows in each round.
ROUNDS = 3
MOST_ROUNDS = 9


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


class Marker:
    """Has what an application is given, and dies with it."""

    def __init__(self, *given: object) -> None:
        self.given = given


class Application:
    """One route for each way in which an exchange can go."""

    def __init__(self) -> None:
        self.markers: weakref.WeakSet[Marker] = weakref.WeakSet()
        self.calls = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            raise RuntimeError("none")
        self.calls += 1
        marker = Marker(scope, receive, send)
        self.markers.add(marker)
        await getattr(self, scope["path"][1:])(receive, send)

    async def hello(self, receive: Any, send: Any) -> None:
        await respond(send, b"Hello, world!", headers=((b"x-head", b"v" * 20),))

    async def echo(self, receive: Any, send: Any) -> None:
        await respond(send, await read_body(receive))

    async def stream(self, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for number in range(5):
            body = b"s" * (20_000 if number == 3 else 10)
            await send({"type": "http.response.body", "body": body, "more_body": True})
            await anyio.sleep(0)
        await send({"type": "http.response.body", "body": b""})

    async def big_head(self, receive: Any, send: Any) -> None:
        await respond(send, b"", headers=tuple((b"x-%d" % n, b"v" * 100) for n in range(30)))

    async def fail(self, receive: Any, send: Any) -> None:
        raise ValueError("on purpose")

    async def fail_late(self, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"begun", "more_body": True})
        raise ValueError("on purpose")

    async def bad_head(self, receive: Any, send: Any) -> None:
        await respond(send, b"", headers=((b"x", b"v" * 2000), (b"x", b"a\r\nb")))

    async def bad_message(self, receive: Any, send: Any) -> None:
        try:
            await send({"type": "http.response.body", "body": b"too early"})
        finally:
            await send({"type": "http.response.start", "status": 20})

    async def silent(self, receive: Any, send: Any) -> None:
        pass

    async def unread(self, receive: Any, send: Any) -> None:
        await respond(send, b"no, thank you")

    async def wait(self, receive: Any, send: Any) -> None:
        """Begins to answer, and waits for the client to leave."""
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"begun", "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass

    async def flood(self, receive: Any, send: Any) -> None:
        """Sends more than anybody takes, and a task waits for the client to leave."""

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            group.cancel_scope.cancel()

        await send({"type": "http.response.start", "status": 200, "headers": []})
        async with anyio.create_task_group() as group:
            group.start_soon(watch)
            while True:
                body = b"f" * 65536
                await send({"type": "http.response.body", "body": body, "more_body": True})

    async def socket(self, receive: Any, send: Any) -> None:
        """Accepts and echoes."""
        await receive()
        await send({"type": "websocket.accept", "subprotocol": None, "headers": [(b"a", b"b")]})
        while (message := await receive())["type"] == "websocket.receive":
            await send({**message, "type": "websocket.send"})

    async def socket_closes(self, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await receive()
        await send({"type": "websocket.close", "code": 4000, "reason": "enough"})

    async def socket_fails(self, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})
        await receive()
        raise ValueError("on purpose")

    async def socket_denies(self, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.http.response.start", "status": 401})
        for more in (True, False):
            body = {"type": "websocket.http.response.body", "body": b"no", "more_body": more}
            await send(body)

    async def socket_refuses(self, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.close"})

    async def socket_floods(self, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})
        while True:
            await send({"type": "websocket.send", "bytes": bytes(65536)})

    async def socket_ignores(self, receive: Any, send: Any) -> None:
        """Takes one message of many, and is gone."""
        await send({"type": "websocket.accept"})
        await receive()
        await receive()


class Watched:
    """A server, and what lives in this process because of it."""

    def __init__(self, running: Running, app: Application) -> None:
        self.running = running
        self.app = app
        self.instances = Instances(TYPES)
        self.client: Client | None = None

    def kept(self) -> Client:
        """The connection that is used for all that leaves it open."""
        if self.client is None:
            self.client = self.running.connect()
            # Else a second small write would wait for the peer's delayed acknowledgement.
            self.client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self.client

    def lose(self) -> None:
        if self.client is not None:
            self.client.close()
            self.client = None

    def settle(self, *, collect: bool) -> None:
        """Waits until the server has nothing under way."""
        self.lose()
        end = time.monotonic() + PATIENCE
        while True:
            if collect:
                gc.collect()
            alive = self.instances.alive()
            if not (set(alive) & NEEDED) and not len(self.app.markers):
                return
            assert time.monotonic() < end, f"still alive: {alive}, {len(self.app.markers)} calls"
            time.sleep(0.01)

    def repeat(self, action: Callable[[Watched], None], times: int) -> None:
        for _ in range(times):
            action(self)

    def stays_level(self, action: Callable[[Watched], None], times: int) -> None:
        self.repeat(action, max(20, times // 10))
        self.settle(collect=True)
        objects, files = self.instances.alive(), descriptors()
        growth = []
        # What stays for each exchange stays in every round; other growth comes and goes.
        while not growth or (min(growth) >= 0.5 and len(growth) < MOST_ROUNDS):
            blocks, calls = sys.getallocatedblocks(), self.app.calls
            self.repeat(action, times // ROUNDS)
            self.settle(collect=True)
            assert self.instances.alive() == objects
            assert descriptors() == files
            done = max(self.app.calls - calls, times // ROUNDS)
            growth.append((sys.getallocatedblocks() - blocks) / done)
        # One object that stays for each exchange would be 1.
        assert min(growth) < 0.5, f"blocks for each exchange: {growth}"


@pytest.fixture
def no_records() -> Iterator[None]:
    """Who keeps a record of an exception, as pytest does, keeps all that its frames hold."""

    def is_harmless(record: logging.LogRecord) -> bool:
        return record.levelno < logging.WARNING

    logger = logging.getLogger("fastserve")
    logger.addFilter(is_harmless)
    yield
    logger.removeFilter(is_harmless)


@pytest.fixture
def watched(no_records: None, serve: Serve) -> Iterator[Watched]:
    app = Application()
    watched = Watched(serve(app), app)
    yield watched
    watched.lose()


def get(path: str, *, closes: bool = False) -> Callable[[Watched], None]:
    message = request("GET", path)

    def action(watched: Watched) -> None:
        client = watched.kept()
        client.sendall(message)
        client.read_response()
        if closes:
            assert client.is_closed_by_peer()
            watched.lose()

    return action


def pipelined(watched: Watched) -> None:
    client = watched.kept()
    client.sendall(20 * request("GET", "/hello"))
    for _ in range(20):
        assert client.read_response().body == b"Hello, world!"


def post(watched: Watched) -> None:
    client = watched.kept()
    for length in (1, 30_000):
        client.sendall(request("POST", "/echo", body=b"b" * length))
        assert client.read_response().body == b"b" * length


def post_in_chunks(watched: Watched) -> None:
    client = watched.kept()
    client.sendall(request("POST", "/echo", "Transfer-Encoding: chunked", "X-A: b"))
    client.sendall(b"5\r\nabcde\r\n")
    client.sendall(b"3;x=y\r\nfgh\r\n0\r\nX-Trailer: t\r\n\r\n")
    assert client.read_response().body == b"abcdefgh"


def post_unread(watched: Watched) -> None:
    client = watched.kept()
    client.sendall(request("POST", "/unread", body=b"b" * 10_000))
    assert client.read_response().body == b"no, thank you"


def expect_continue(watched: Watched) -> None:
    client = watched.kept()
    client.sendall(request("POST", "/echo", "Expect: 100-continue", "Content-Length: 3"))
    assert client.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 100")
    client.sendall(b"abc")
    assert client.read_response().body == b"abc"


def cut_response(watched: Watched) -> None:
    with watched.running.connect() as client:
        client.sendall(request("GET", "/fail_late"))
        client.read_until(b"begun")
        client.is_closed_by_peer()


def leave_while_waiting(watched: Watched) -> None:
    for leave in (Client.close, reset):
        client = watched.running.connect()
        client.sendall(request("GET", "/wait"))
        client.read_until(b"begun")
        leave(client)


def leave_a_flood(watched: Watched) -> None:
    for leave in (Client.close, reset):
        client = watched.running.connect()
        client.sendall(request("GET", "/flood"))
        client.read_until(b"f")
        leave(client)


def leave_a_body(watched: Watched) -> None:
    for leave in (Client.close, reset):
        client = watched.running.connect()
        client.sendall(request("POST", "/echo", "Content-Length: 100000") + b"b" * 1000)
        leave(client)


def leave_a_head(watched: Watched) -> None:
    for leave in (Client.close, reset):
        client = watched.running.connect()
        client.sendall(b"GET /hello HTTP/1.1\r\nHost: te")
        leave(client)


def leave_at_once(watched: Watched) -> None:
    for leave in (Client.close, reset):
        leave(watched.running.connect())


def refused(*messages: bytes) -> Callable[[Watched], None]:
    def action(watched: Watched) -> None:
        for message in messages:
            with watched.running.connect() as client:
                client.sendall(message)
                assert 400 <= client.read_response().status < 600
                assert client.is_closed_by_peer()

    return action


DEFLATE = "Sec-WebSocket-Extensions: permessage-deflate"
BREAKS = b"\x81\x04text"  # is not masked


def socket_session(*fields: str, end: bytes = b"\x03\xe8") -> Callable[[Watched], None]:
    """Messages of all sizes, plain, in fragments and compressed; then the client closes."""
    compressor = zlib.compressobj(wbits=-15)
    packed = compressor.compress(b"z" * 5000) + compressor.flush(zlib.Z_SYNC_FLUSH)

    def action(watched: Watched) -> None:
        with watched.running.websocket("/socket", *fields) as client:
            client.sendall(frame(0x81, b"text") + frame(0x01, b"te") + frame(0x80, b"xt"))
            client.sendall(frame(0x89, b"ping") + frame(0x82, bytes(100_000)))
            answers = 4
            if fields:
                client.sendall(frame(0xC2, packed[:-4]) + frame(0x42, packed[:9]))
                client.sendall(frame(0x80, packed[9:-4]))
                answers += 2
            for _ in range(answers):
                client.read_frame()
            client.sendall(frame(0x88, end))
            client.read_close()
            assert client.is_closed_by_peer()

    return action


def socket_breaks(watched: Watched) -> None:
    for data in (BREAKS, frame(0x81, b"\xff"), frame(0x01, bytes(1000)) + BREAKS):
        with watched.running.websocket("/socket", DEFLATE) as client:
            client.sendall(data)
            client.read_close()
            assert client.is_closed_by_peer()


def socket_ends(path: str) -> Callable[[Watched], None]:
    """The application ends it, and the client answers, says something else or leaves."""

    def action(watched: Watched) -> None:
        for answer in (frame(0x88, b"\x03\xe8"), frame(0x81, b"late") + BREAKS, b""):
            with watched.running.websocket(path) as client:
                client.sendall(40 * frame(0x81, b"text"))
                client.read_close()
                client.sendall(answer)

    return action


def leave_a_socket(watched: Watched) -> None:
    parts = (b"", frame(0x82, bytes(1000))[:500], frame(0x01, bytes(1000)), frame(0x41, b"\xf2"))
    for part in parts:
        for leave in (Client.close, reset):
            client = watched.running.websocket("/socket", DEFLATE)
            client.sendall(part)
            leave(client)


def leave_a_socket_flood(watched: Watched) -> None:
    for leave in (Client.close, reset):
        client = watched.running.websocket("/socket_floods")
        client.read_frame()
        leave(client)


def leave_a_full_socket(watched: Watched) -> None:
    for leave in (Client.close, reset):
        client = watched.running.websocket("/socket_ignores")
        client.sendall(200 * frame(0x81, b"text"))
        client.read_close()
        leave(client)


def leave_a_handshake(watched: Watched) -> None:
    for leave in (Client.close, reset):
        client = watched.running.connect()
        client.sendall(handshake("/socket") + frame(0x81, b"text"))
        leave(client)


refuse_socket = refused(
    handshake("/socket_denies"),
    handshake("/socket_refuses"),
    handshake("/fail"),
    handshake("/silent"),
    handshake("/socket").replace(b"13", b"12"),
    handshake("/socket").replace(b"==", b""),
)

refuse = refused(
    b"GET / HTTP/1.1\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01",
    b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\nHost: t\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: t\r\n" + b"X: y\r\n" * 200 + b"\r\n",
    b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n",
    b"GET / HTTP/9.9\r\nHost: t\r\n\r\n",
)
refuse_chunk = refused(request("POST", "/echo", "Transfer-Encoding: chunked") + b"nonsense\r\n")

# What happens, and how often.
ACTIONS: dict[str, tuple[Callable[[Watched], None], int]] = {
    "get": (get("/hello"), 1500),
    "pipelined": (pipelined, 150),
    "big head": (get("/big_head"), 300),
    "stream": (get("/stream"), 500),
    "post": (post, 300),
    "post in chunks": (post_in_chunks, 300),
    "post unread": (post_unread, 300),
    "100-continue": (expect_continue, 300),
    "raises": (get("/fail", closes=True), 200),
    "raises late": (cut_response, 200),
    "bad head": (get("/bad_head", closes=True), 200),
    "bad message": (get("/bad_message", closes=True), 200),
    "no response": (get("/silent", closes=True), 200),
    "leaves while waiting": (leave_while_waiting, 150),
    "leaves a flood": (leave_a_flood, 450),
    "leaves a body": (leave_a_body, 1200),
    "leaves a head": (leave_a_head, 150),
    "leaves at once": (leave_at_once, 150),
    "refused": (refuse, 60),
    "refused chunk": (refuse_chunk, 200),
    "socket": (socket_session(), 450),
    "compressed socket": (socket_session(DEFLATE, end=b""), 150),
    "socket breaks": (socket_breaks, 60),
    "socket closes": (socket_ends("/socket_closes"), 60),
    "socket fails": (socket_ends("/socket_fails"), 60),
    "refused socket": (refuse_socket, 60),
    "leaves a socket": (leave_a_socket, 60),
    "leaves a flooding socket": (leave_a_socket_flood, 150),
    "leaves a full socket": (leave_a_full_socket, 300),
    "leaves a handshake": (leave_a_handshake, 150),
}


def test_the_types_are_known() -> None:
    assert {kind.__name__ for kind in TYPES} >= {*NEEDED, "ResponseHead", "RequestParser"}


@combinations
@pytest.mark.parametrize("name", ACTIONS)
def test_nothing_stays(watched: Watched, name: str) -> None:
    watched.stays_level(*ACTIONS[name])


@combinations
@pytest.mark.parametrize("name", ACTIONS)
def test_no_collector_is_needed(watched: Watched, name: str) -> None:
    """What belongs to an exchange is no part of a cycle: counting references frees it."""
    action, times = ACTIONS[name]
    watched.repeat(action, 20)
    watched.settle(collect=True)
    gc.disable()
    try:
        watched.repeat(action, times // 10)
        watched.settle(collect=False)
    finally:
        gc.enable()


@pytest.mark.parametrize("worker, poller", [("uvloop", "epoll")], indirect=True)
@pytest.mark.parametrize("name", ACTIONS)
def test_nothing_stays_of_an_access_line(no_records: None, serve: Serve, name: str) -> None:
    app = Application()
    format = "%(h)s %(u)s %(r)s %({x-a}i)s %({x-head}o)s %(id)s %(ttfb)s"
    watched = Watched(serve(app, access_logfile=os.devnull, access_logformat=format), app)
    watched.stays_level(*ACTIONS[name])
    watched.lose()


def test_nothing_stays_of_a_line_that_was_written() -> None:
    lines = AccessLines(parts_of("json"), wake=lambda _: None, full=lambda: None)

    def write(times: int) -> int:
        for number in range(times):
            fields = [(b"user-agent", b"a" * 50), (b"x-request-id", b"%d" % number)]
            lines.write(raw_path=b"/%d" % number, headers=fields, client=("é", 1), trusted=True)
            if number % 1000 == 0:
                lines.take()
        lines.take()
        return sys.getallocatedblocks()

    before = write(10_000)
    assert write(10_000) - before < 1000


@combinations
def test_after_the_server(no_records: None, serve: Serve) -> None:
    """A server that has ended leaves nothing either, with connections open until then."""

    def once() -> None:
        app = Application()
        running = serve(app, graceful_timeout=0.1)
        clients = [running.connect() for _ in range(4)]
        clients[0].get("/hello")
        clients[1].sendall(request("GET", "/wait"))
        clients[1].read_until(b"begun")
        clients[2].sendall(b"GET /hello HT")
        running.stop()
        for client in clients:
            client.close()

    for _ in range(3):
        once()
    instances, files = Instances(TYPES), descriptors()
    for _ in range(10):
        once()
    gc.collect()
    assert not set(instances.alive()) & NEEDED
    assert descriptors() == files
