"""WebSockets over real sockets, byte by byte: the handshake, the messages, and every end.

The client is made of bytes alone, so that it can do what no library would. What the
applications find wrong they raise, and the server logs it: most tests end by asking that
nothing was logged. Frames without a socket are in test_websocket_frames.py, applications
and clients from elsewhere in test_websocket_frameworks.py.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import queue
import random
import re
import resource
import socket
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import anyio
import pytest
from conftest import (
    MIB,
    PATIENCE,
    Client,
    Frame,
    Running,
    Serve,
    WebSocketClient,
    frame,
    handshake,
    hello,
    measures_memory,
    push,
    request,
    reset,
    respond,
)
from process import eventually, settled

import fastserve

Message = dict[str, Any]

BOUND = 16 * MIB  # more than the buffers of two sockets and the server together

# The first byte of a frame.
FIN = 0x80
RSV1 = 0x40  # the message is compressed
CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = FIN | 0, FIN | 1, FIN | 2, 0x88, 0x89, 0x8A

ACCEPT = {"type": "websocket.accept"}
LOST = {"type": "websocket.disconnect", "code": 1006, "reason": ""}


def received(content: str | bytes) -> Message:
    """How an application is told of a message."""
    message: Message = {"type": "websocket.receive", "text": None, "bytes": None}
    message["text" if isinstance(content, str) else "bytes"] = content
    return message


def to_send(content: str | bytes) -> Message:
    return {
        "type": "websocket.send",
        "text" if isinstance(content, str) else "bytes": content,
    }


def ended(code: int, reason: str = "") -> Message:
    return {"type": "websocket.disconnect", "code": code, "reason": reason}


def closing(code: int | None = None, reason: bytes = b"") -> bytes:
    """A client's Close frame."""
    return frame(CLOSE, b"" if code is None else code.to_bytes(2) + reason)


def list_to_the_end(told: queue.Queue[Message]) -> list[Message]:
    """What one socket's application was told, up to its end."""
    messages = [told.get(timeout=PATIENCE)]
    while messages[-1]["type"] != "websocket.disconnect":
        messages.append(told.get(timeout=PATIENCE))
    return messages


class Application:
    """Accepts, echoes, and keeps what it was told for the test."""

    def __init__(self) -> None:
        self.told: queue.Queue[Message] = queue.Queue()
        self.scopes: list[Any] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            return await hello(scope, receive, send)
        self.scopes.append(scope)
        assert await receive() == {"type": "websocket.connect"}
        await send(ACCEPT)
        while (message := await receive())["type"] == "websocket.receive":
            self.told.put(message)
            # The connection may have ended since; what is still to be told is told.
            with contextlib.suppress(fastserve.ClientDisconnected):
                await send({**message, "type": "websocket.send"})
        self.told.put(message)

    def next(self) -> Message:
        return self.told.get(timeout=PATIENCE)

    def next_to_the_end(self) -> list[Message]:
        return list_to_the_end(self.told)


class Gate:
    """An application that receives only while it is let; what it was told is kept."""

    def __init__(self) -> None:
        self.accepted = threading.Event()
        self.opened = threading.Event()
        self.told: queue.Queue[Message] = queue.Queue()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            return await hello(scope, receive, send)
        await receive()
        await send(ACCEPT)
        self.accepted.set()
        await until(self.opened)
        while True:
            message = await receive()
            self.told.put(message)
            if message["type"] == "websocket.disconnect":
                break

    def next_to_the_end(self) -> list[Message]:
        return list_to_the_end(self.told)


def routes(**applications: Any) -> Any:
    """The application named like the path; `hello` is there."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await {"hello": hello, **applications}[scope["path"][1:]](scope, receive, send)

    return app


async def until(event: threading.Event) -> None:
    """Waits, in an application, for what a test does in its own thread."""
    with anyio.fail_after(PATIENCE):
        while not event.is_set():
            await anyio.sleep(0.002)


def behind_pings(client: WebSocketClient, *, answer: bool = False) -> Frame:
    """The next frame that is no ping; `answer`: each of those is answered."""
    while (found := client.read_frame()).first == PING:
        if answer:
            client.sendall(frame(PONG, found.payload))
    return found


async def until_disconnect(receive: Any) -> Message:
    while (message := await receive())["type"] != "websocket.disconnect":
        pass
    found: Message = message
    return found


def assert_alive(server: Running) -> None:
    """Another connection is served as if nothing had been; what was sent before is read."""
    with server.connect() as client:
        assert client.get("/hello").body == b"Hello, world!"


def close_after_echoes(client: WebSocketClient) -> tuple[int, str]:
    """What the Close says, and the application may or may not have had its turn before."""
    while (found := client.read_frame()).first & 0x0F < 8:
        pass
    assert found.first == CLOSE, found
    return int.from_bytes(found.payload[:2]) if found.payload else 1005, found.payload[2:].decode()


def errors_of(server: Running) -> list[str]:
    """What was logged, once all is over."""
    server.stop()
    return [
        record.getMessage() if not record.exc_info else repr(record.exc_info[1])
        for record in server.errors
    ]


# -------------------------------------------------------------- opening handshake


def test_handshake(serve: Serve) -> None:
    """RFC 6455 section 1.3 has the key and its answer."""
    server = serve(Application(), lifespan="off")
    with server.websocket() as client:
        head = client.response
        assert head.reason == b"Switching Protocols"
        assert head.field(b"upgrade") == b"websocket"
        assert head.field(b"connection") == b"Upgrade"
        assert head.field(b"sec-websocket-accept") == b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        assert head.field(b"server") == b"fastserve"
        assert {name for name, _ in head.fields} == {
            *(b"date", b"server", b"upgrade", b"connection", b"sec-websocket-accept"),
        }
        client.sendall(frame(TEXT, b"first"))
        assert client.read_frame() == (TEXT, b"first")
        client.close_with()
    assert errors_of(server) == []


VERSION, KEY = "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
OTHER_KEY = "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="

REFUSED: list[tuple[list[str], bytes, int]] = [
    # fields behind Upgrade and Connection; body; status
    ([KEY], b"", 426),
    ([KEY, "Sec-WebSocket-Version: 8"], b"", 426),
    ([KEY, "Sec-WebSocket-Version: 014"], b"", 426),
    ([KEY, "Sec-WebSocket-Version: 13, 8"], b"", 426),
    ([KEY, "Sec-WebSocket-Version:"], b"", 426),
    ([KEY, VERSION, "Sec-WebSocket-Version: 8"], b"", 426),
    (["Sec-WebSocket-Version: 8"], b"", 426),
    ([VERSION], b"", 400),
    ([VERSION, "Sec-WebSocket-Key:"], b"", 400),
    ([VERSION, KEY, KEY], b"", 400),
    ([VERSION, KEY, OTHER_KEY], b"", 400),
    ([VERSION, "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAA"], b"", 400),  # 15 bytes
    ([VERSION, "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAAA="], b"", 400),  # 17 bytes
    ([VERSION, "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=!"], b"", 400),
    ([VERSION, "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA"], b"", 400),
    ([VERSION, "Sec-WebSocket-Key: ========================"], b"", 400),
    ([VERSION, "Sec-WebSocket-Key: AAAA-AAAAAAAAAAAAAAAAA=="], b"", 400),  # base64url
    ([VERSION, "Sec-WebSocket-Key: AAAA AAAAAAAAAAAAAAAAA=="], b"", 400),
    ([VERSION, KEY], b"body", 400),
    ([VERSION, KEY, "Transfer-Encoding: chunked"], b"", 400),
]


def test_refused_handshakes(serve: Serve) -> None:
    """The application is not asked, and the connection ends."""
    app = Application()
    server = serve(app, lifespan="off")
    for fields, body, status in REFUSED:
        with server.connect() as client:
            client.sendall(
                request("GET", "/", "Upgrade: websocket", "Connection: Upgrade", *fields, body=body)
            )
            response = client.read_response()
            assert response.status == status, fields
            assert (b"connection", b"close") in response.fields, fields
            if status == 426:  # RFC 9110 section 15.5.22: it says what would do
                assert response.field(b"upgrade") == b"websocket"
                assert (b"connection", b"upgrade") in response.fields
                assert response.field(b"sec-websocket-version") == b"13"
            assert client.is_closed_by_peer(), fields
    assert app.scopes == []
    assert errors_of(server) == []


def test_what_is_no_handshake(serve: Serve) -> None:
    """RFC 9110 section 7.8: an Upgrade that is not understood is ignored."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await respond(send, f"{scope['type']} {scope['method']}".encode())

    server = serve(app, lifespan="off")
    good = handshake().decode()
    with server.connect() as client:
        for method, message in [
            ("POST", good.replace("GET", "POST")),
            ("get", good.replace("GET", "get")),
            ("OPTIONS", good.replace("GET", "OPTIONS")),
            ("GET", good.replace(": websocket", ": h2c")),
            ("GET", good.replace(": websocket", ": websockets")),
            ("GET", good.replace(": websocket", ": web socket")),
            ("GET", good.replace(": websocket", ":")),
            ("GET", good.replace("Connection: Upgrade", "Connection: keep-alive")),
            ("GET", good.replace("Connection: Upgrade", "X-Connection: Upgrade")),
            ("GET", good.replace("Upgrade: websocket", "X-Upgrade: websocket")),
            ("GET", good.replace("HTTP/1.1", "HTTP/1.0")),
        ]:
            client.sendall(message.encode())
            response = client.read_response()
            assert response.status == 200, message
            assert response.body == f"http {method}".encode(), message
        assert client.is_closed_by_peer()  # which HTTP/1.0 wants
    assert errors_of(server) == []


def test_ways_to_ask_for_it(serve: Serve) -> None:
    app = Application()
    server = serve(app, lifespan="off")
    good = handshake().decode()
    for old, new in [
        (": websocket", ": WebSocket"),
        (": websocket", ": h2c, WEBSOCKET"),
        (": websocket", ":websocket\t, h2c"),
        ("Upgrade: websocket", "upgrade: h2c\r\nUPGRADE: websocket"),
        ("Connection: Upgrade", "Connection: keep-alive, upgrade"),
        ("Connection: Upgrade", "connection: keep-alive\r\nconnection: UPGRADE"),
        ("Sec-WebSocket-Key: ", "sec-websocket-key:\t "),
        ("Connection: Upgrade", "Connection: Upgrade\r\nContent-Length: 0"),
    ]:
        message = good.replace(old, new, 1)
        assert message != good
        with WebSocketClient(server.address) as client:
            client.sendall(message.encode())
            response = client.read_response()
            assert response.status == 101, message
            assert response.field(b"sec-websocket-accept") == b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
            client.close_with()
    assert errors_of(server) == []


def test_after_other_requests(serve: Serve) -> None:
    """The handshake may be the last of a pipeline, with its first frames behind it."""
    app = Application()
    server = serve(app, lifespan="off")
    with WebSocketClient(server.address) as client:
        client.sendall(
            3 * request("GET", "/") + handshake() + frame(TEXT, b"one") + frame(TEXT, b"two")
        )
        for _ in range(3):
            assert client.read_response().body == b"Hello, world!"
        assert client.read_response().status == 101
        assert client.read_frame() == (TEXT, b"one")
        assert client.read_frame() == (TEXT, b"two")
        client.close_with()
    assert errors_of(server) == []


def test_fields_of_every_response(serve: Serve) -> None:
    server = serve(Application(), lifespan="off", header="X-One: 1")
    with server.websocket() as client:
        assert client.response.field(b"x-one") == b"1"
        client.close_with()


def test_scope(serve: Serve) -> None:
    app = Application()
    server = serve(app, lifespan="off", root_path="/api")
    with server.websocket("/caf%C3%A9?a=%20", "X-One: 1", "Cookie: a", "x-one: 2") as client:
        address = client.getsockname()
        client.close_with()
    assert app.scopes == [
        {
            "type": "websocket",
            "asgi": {"version": "3.0", "spec_version": "2.5"},
            "http_version": "1.1",
            "scheme": "ws",
            "path": "/api/café",
            "raw_path": b"/caf%C3%A9",
            "query_string": b"a=%20",
            "root_path": "/api",
            "headers": [
                (b"host", b"test"),
                (b"upgrade", b"websocket"),
                (b"connection", b"Upgrade"),
                (b"sec-websocket-version", b"13"),
                (b"sec-websocket-key", b"dGhlIHNhbXBsZSBub25jZQ=="),
                (b"x-one", b"1"),
                (b"cookie", b"a"),
                (b"x-one", b"2"),
            ],
            "client": address,
            "server": server.address,
            "subprotocols": [],
            "extensions": {
                "websocket.http.response": {},
                "fastserve.shutdown": {"wait": ANY, "is_set": ANY},
            },
        }
    ]
    assert errors_of(server) == []


def test_scopes_are_not_shared(serve: Serve) -> None:
    """Not even with HTTP's; the lifespan's state is a copy for each."""
    shared = object()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await receive()
            scope["state"]["shared"] = shared
            await send({"type": "lifespan.startup.complete"})
            await receive()
            assert set(scope["state"]) == {"shared"}
            return await send({"type": "lifespan.shutdown.complete"})
        assert scope["state"] == {"shared": shared}
        assert set(scope["asgi"]) == {"version", "spec_version"}
        assert "mine" not in scope
        scope["mine"] = scope["asgi"]["mine"] = scope["state"]["mine"] = 1
        if scope["type"] == "http":
            assert scope["asgi"]["spec_version"] == "2.3"
            return await respond(send, b"fine")
        assert set(scope["extensions"]) == {"websocket.http.response", "fastserve.shutdown"}
        assert scope["subprotocols"] == ["a"]
        scope["extensions"]["mine"] = 1
        scope["subprotocols"].append("b")
        with pytest.raises(ValueError, match="subprotocol"):
            await send({**ACCEPT, "subprotocol": "b"})
        await send(ACCEPT)
        await until_disconnect(receive)

    server = serve(app)
    for _ in range(3):
        with server.connect() as client:
            assert client.get("/").body == b"fine"
        with server.websocket("/", "Sec-WebSocket-Protocol: a") as client:
            client.close_with()
    assert errors_of(server) == []


def test_on_a_unix_socket(serve: Serve, tmp_path: Path) -> None:
    app = Application()
    path = str(tmp_path / "socket")
    server = serve(app, bind=f"unix:{path}", lifespan="off")
    with server.websocket() as client:
        client.sendall(frame(TEXT, b"unix"))
        assert client.read_frame() == (TEXT, b"unix")
        client.close_with()
    assert tuple(app.scopes[0]["server"]) == (path, None)
    assert app.scopes[0]["client"] is None
    # One that leaves without a word.
    server.websocket().close()
    assert [app.next() for _ in range(3)] == [received("unix"), ended(1000), LOST]
    assert errors_of(server) == []


def test_subprotocols(serve: Serve) -> None:
    offered: list[list[str]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        offered.append(scope["subprotocols"])
        chosen = scope["query_string"].decode() or None
        await send({**ACCEPT, "subprotocol": chosen})
        await until_disconnect(receive)

    server = serve(app, lifespan="off")
    for fields, chosen, expected in [
        ([], "", []),
        (["chat"], "chat", ["chat"]),
        (["chat"], "", ["chat"]),
        (["b, a ,, c"], "c", ["b", "a", "c"]),
        (["b,a", "", "c\t,d"], "b", ["b", "a", "c", "d"]),
        (["v1.Chat!"], "v1.Chat!", ["v1.Chat!"]),
    ]:
        lines = [f"Sec-WebSocket-Protocol: {value}" for value in fields]
        with server.websocket(f"/?{chosen}", *lines) as client:
            assert client.response.field(b"sec-websocket-protocol") == (chosen.encode() or None)
            client.close_with()
        assert offered.pop() == expected
    assert errors_of(server) == []


def test_fields_of_the_application(serve: Serve) -> None:
    """In its order, each as often as it says; Date and Server are then its own."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        fields: Any = [
            (b"X-First", b"1"),
            (b"set-cookie", b"a=b"),
            (b"x-second", b"2"),
            (b"set-cookie", b"c=d"),
            (b"server", b"mine"),
            (b"date", b"today"),
        ]
        if scope["path"] == "/iterator":
            fields = (list(field) for field in fields)
        await send({**ACCEPT, "headers": fields, "subprotocol": None})
        await until_disconnect(receive)

    server = serve(app, lifespan="off")
    for target in ("/list", "/iterator"):
        with server.websocket(target) as client:
            assert client.response.fields[:6] == [
                (b"x-first", b"1"),
                (b"set-cookie", b"a=b"),
                (b"x-second", b"2"),
                (b"set-cookie", b"c=d"),
                (b"server", b"mine"),
                (b"date", b"today"),
            ]
            assert len(client.response.fields) == 9
            client.close_with()
    assert errors_of(server) == []


def test_frames_that_come_early(serve: Serve) -> None:
    """With the handshake or before the accept: delivered after it, all of them, in order."""
    connected = threading.Event()
    go_on = threading.Event()
    told: queue.Queue[Message] = queue.Queue()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            return await hello(scope, receive, send)
        assert await receive() == {"type": "websocket.connect"}
        connected.set()
        await until(go_on)
        with anyio.move_on_after(0.02) as waiting:
            await receive()
        assert waiting.cancelled_caught, "there is nothing to be told before the accept"
        await send(ACCEPT)
        while True:
            told.put(message := await receive())
            if message["type"] == "websocket.disconnect":
                break

    server = serve(app, lifespan="off")
    early = frame(TEXT, b"one") + frame(BINARY, b"two" * 100) + frame(TEXT & ~FIN, b"thr")
    late = frame(CONTINUATION, b"ee") + closing(3000)
    every = handshake() + early

    def pieces(data: bytes) -> list[bytes]:
        return [data[at : at + 1] for at in range(len(data))]

    for before, between in [
        ([every], []),
        ([every[:-3]], [every[-3:]]),
        ([handshake()], [early]),
        (pieces(every), []),
        ([handshake()], pieces(early)),
    ]:
        connected.clear()
        go_on.clear()
        with WebSocketClient(server.address) as client:
            for piece in before:
                client.sendall(piece)
            assert connected.wait(PATIENCE)
            for piece in between:
                client.sendall(piece)
            assert_alive(server)  # so that all of that was read
            go_on.set()
            assert client.read_response().status == 101
            client.sendall(late)
            assert client.read_close() == (3000, "")
        assert [told.get(timeout=PATIENCE) for _ in range(4)] == [
            received("one"),
            received(b"two" * 100),
            received("three"),
            ended(3000),
        ]
    assert errors_of(server) == []


def test_much_that_comes_early(serve: Serve) -> None:
    """What is sent before the accept is not kept without bound, and not lost."""
    go_on = threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await until(go_on)
        await send(ACCEPT)
        number = 0
        while (message := await receive())["type"] == "websocket.receive":
            assert int(message["bytes"][:8]) == number
            number += 1
        assert (message, number) == (ended(1000), count)

    payload = bytes(60_000)
    count = BOUND // len(payload)
    data = b"".join(frame(BINARY, b"%08d" % n + payload, bytes(4)) for n in range(count))
    server = serve(app, lifespan="off")
    with WebSocketClient(server.address) as client:
        client.sendall(handshake())
        pushed = push(client, data)
        assert pushed < len(data)
        go_on.set()
        assert client.read_response().status == 101
        client.sendall(memoryview(data)[pushed:])
        client.close_with()
    assert errors_of(server) == []


def test_connect_is_told_first(serve: Serve) -> None:
    """Also to whoever accepts unasked, and for a client that has left already."""
    told: queue.Queue[Message] = queue.Queue()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/unasked":
            await send(ACCEPT)
        while True:
            told.put(message := await receive())
            if message["type"] == "websocket.disconnect":
                break
        await send(ACCEPT)  # which lets it end: there is nobody to accept

    server = serve(app, lifespan="off")
    with server.websocket("/unasked") as client:
        client.sendall(frame(TEXT, b"text") + closing(1000))
        assert client.read_close() == (1000, "")
    assert list_to_the_end(told) == [{"type": "websocket.connect"}, received("text"), ended(1000)]
    for _ in range(5):
        with server.connect() as gone:
            gone.sendall(handshake() + frame(TEXT, b"text"))
        assert list_to_the_end(told) == [{"type": "websocket.connect"}, LOST]
    assert errors_of(server) == []


# ---------------------------------------------------------------------- refusals


def test_close_before_accept(serve: Serve) -> None:
    """A 403, which has neither a code nor a reason."""
    told: queue.Queue[Message] = queue.Queue()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.close", **closes[int(scope["query_string"])]})
        for _ in range(2):
            told.put(await receive())
        with pytest.raises(fastserve.ClientDisconnected):
            await send(to_send("text"))
        with pytest.raises(fastserve.ClientDisconnected):
            await send(ACCEPT)

    closes: list[Message] = [{}, {"code": 4000, "reason": "no"}, {"code": 1006}, {"reason": None}]
    server = serve(app, lifespan="off")
    for number in range(len(closes)):
        with server.connect() as client:
            client.sendall(handshake(f"/?{number}") + frame(TEXT, b"text"))
            response = client.read_response()
            assert (response.status, response.body) == (403, b"")
            assert response.field(b"upgrade") is None
            assert response.field(b"connection") == b"close"
            assert client.is_closed_by_peer()
        types = [told.get(timeout=PATIENCE)["type"] for _ in range(2)]
        assert types == 2 * ["websocket.disconnect"]
    assert errors_of(server) == []


def test_denial_response(serve: Serve) -> None:
    """ASGI: any status, and as many pieces as it takes."""
    bodies = [[b""], [b"no"], [b"n", b"o"], [b"", b"n", b"", b"o", b""], [bytes(300_000)] * 4]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        status, number = map(int, scope["query_string"].split(b"-"))
        headers = [(b"x-why", b"because"), (b"sec-websocket-version", b"13")]
        await receive()
        start = {"type": "websocket.http.response.start", "status": status, "headers": headers}
        await send(start)
        *pieces, last = bodies[number]
        for piece in pieces:
            body = {"type": "websocket.http.response.body", "body": piece, "more_body": True}
            await send(body)
        await send({"type": "websocket.http.response.body", "body": last})
        assert (await receive())["type"] == "websocket.disconnect"

    server = serve(app, lifespan="off")
    for status, number in itertools.product((200, 401, 503, 599), range(len(bodies))):
        with server.connect() as client:
            client.sendall(handshake(f"/?{status}-{number}"))
            response = client.read_response()
            assert response.status == status
            assert response.body == b"".join(bodies[number])
            assert response.field(b"x-why") == b"because"
            assert response.field(b"sec-websocket-version") == b"13"
            assert response.field(b"connection") == b"close"
            assert client.is_closed_by_peer()
    assert errors_of(server) == []


async def fails_before(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    raise LookupError("on purpose")


async def fails_before_the_body(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "websocket.http.response.start", "status": 401})
    raise LookupError("on purpose")


async def decides_nothing(scope: Any, receive: Any, send: Any) -> None:
    await receive()


async def begins_a_denial(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "websocket.http.response.start", "status": 401})


def test_applications_that_end_before_they_accept(serve: Serve) -> None:
    for app, logged in [
        (fails_before, "LookupError.*on purpose"),
        (fails_before_the_body, "LookupError.*on purpose"),
        (decides_nothing, "RuntimeError.*without"),
        (begins_a_denial, "RuntimeError.*without"),
    ]:
        server = serve(app, lifespan="off")
        with server.connect() as client:
            client.sendall(handshake() + frame(TEXT, b"text"))
            assert client.read_response().status == 500
            assert client.is_closed_by_peer()
        (error,) = errors_of(server)
        assert re.search(logged, error)


def test_denial_that_is_cut(serve: Serve) -> None:
    """Nobody takes half of one for the whole."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.http.response.start", "status": 401})
        body = {"type": "websocket.http.response.body", "body": b"begun", "more_body": True}
        await send(body)
        raise LookupError("on purpose")

    server = serve(app, lifespan="off")
    with server.connect() as client:
        client.sendall(handshake())
        client.read_until(b"begun\r\n")
        assert client.is_closed_by_peer()  # without the last chunk
    assert errors_of(server) == ["LookupError('on purpose')"]


# ---------------------------------------------------------------------- messages

SIZES = (0, 1, 125, 126, 127, 65535, 65536, MIB)


def test_sizes(serve: Serve) -> None:
    app = Application()
    server = serve(app, lifespan="off")
    alphabet = bytes(range(32, 127))
    with server.websocket() as client:
        for size in SIZES:
            content = (alphabet * (size // len(alphabet) + 1))[:size]
            client.sendall(frame(TEXT, content))
            assert client.read_frame() == (TEXT, content)
            assert app.next() == received(content.decode())
            client.sendall(frame(BINARY, content))
            assert client.read_frame() == (BINARY, content)
            assert app.next() == received(content)
        client.close_with()
    assert errors_of(server) == []


def test_order(serve: Serve) -> None:
    app = Application()
    server = serve(app, lifespan="off")
    contents = [b"%d" % n * (n % 50) for n in range(1000)]
    with server.websocket() as client:
        client.sendall(
            b"".join(frame(TEXT if n % 3 else BINARY, c) for n, c in enumerate(contents))
        )
        for number, content in enumerate(contents):
            assert client.read_frame() == (TEXT if number % 3 else BINARY, content)
        client.close_with()
    assert errors_of(server) == []


def test_masks(serve: Serve) -> None:
    """Whatever the key, and wherever the payload is cut."""
    server = serve(Application(), lifespan="off")
    payload = bytes(range(256)) * 5
    with server.websocket() as client:
        for mask in (bytes(4), b"\xff\xff\xff\xff", b"\x01\x02\x03\x04", b"\x00\xff\x00\x80"):
            data = frame(BINARY, payload, mask)
            for cut in (5, 8, 9, 10, 11, 12, 13, 37, 1000):
                client.sendall(data[:cut])
                assert_alive(server)
                client.sendall(data[cut:])
                assert client.read_frame() == (BINARY, payload), (mask, cut)
            for length in range(70):
                client.sendall(frame(BINARY, payload[:length], mask))
                assert client.read_frame() == (BINARY, payload[:length]), (mask, length)
        client.close_with()
    assert errors_of(server) == []


def test_byte_by_byte(serve: Serve) -> None:
    app = Application()
    server = serve(app, lifespan="off")
    script = b"".join(
        [
            frame(TEXT, "é €".encode()),
            frame(BINARY & ~FIN, b"a"),
            frame(PING, b"ping"),
            frame(CONTINUATION & ~FIN),
            frame(PONG, b"unasked"),
            frame(CONTINUATION, b"bc"),
            frame(TEXT),
            frame(BINARY, bytes(130)),
        ]
    )
    *begun, end = (bytes([byte]) for byte in script + closing(3001, "fin é".encode()))
    with server.websocket() as client:
        for byte in begun:
            client.sendall(byte)
        frames = [client.read_frame() for _ in range(5)]
        # A pong does not wait for the application.
        assert frames[0] == (PONG, b"ping") or frames[1] == (PONG, b"ping")
        frames.remove(Frame(PONG, b"ping"))
        assert frames == [
            (TEXT, "é €".encode()),
            (BINARY, b"abc"),
            (TEXT, b""),
            (BINARY, bytes(130)),
        ]
        client.sendall(end)
        assert client.read_close() == (3001, "fin é")
    assert [app.next() for _ in range(5)] == [
        received("é €"),
        received(b"abc"),
        received(""),
        received(bytes(130)),
        ended(3001, "fin é"),
    ]
    assert errors_of(server) == []


def test_fragments(serve: Serve) -> None:
    """One message, whatever its pieces; control frames between them have their turn at once."""
    app = Application()
    server = serve(app, lifespan="off")
    with server.websocket() as client:
        for first in (TEXT, BINARY):
            for pieces in (
                [b"", b""],
                [b"", b"", b"end"],
                [b"start", b""],
                ["€".encode()[:1], "€".encode()[1:]],
                [bytes([byte]) for byte in "añ€😀".encode()],
                [b"x" * size for size in (1, 125, 126, 65536, 300_000)],
            ):
                opcodes = [first & ~FIN] + (len(pieces) - 1) * [0]
                for number, (opcode, piece) in enumerate(zip(opcodes, pieces, strict=True)):
                    last = number + 1 == len(pieces)
                    client.sendall(frame(opcode | FIN if last else opcode, piece))
                    if not last:
                        client.sendall(frame(PONG) + frame(PING, b"%d" % number))
                        assert client.read_frame() == (PONG, b"%d" % number)
                whole = b"".join(pieces)
                assert client.read_frame() == (first, whole)
                assert app.next() == received(whole.decode() if first == TEXT else whole)
        client.close_with()
    assert errors_of(server) == []


def test_kinds_of_content(serve: Serve) -> None:
    """What `bytes` and `text` may be, and that a None counts as not there."""
    messages = [
        ({"bytes": bytearray(b"array")}, BINARY, b"array"),
        ({"bytes": memoryview(b"-view-")[1:5]}, BINARY, b"view"),
        ({"bytes": memoryview(b"s.t.e.p.")[::2]}, BINARY, b"step"),
        ({"bytes": b"", "text": None}, BINARY, b""),
        ({"bytes": None, "text": ""}, TEXT, b""),
        ({"text": "añ€😀\0"}, TEXT, "añ€😀\0".encode()),
        ({"text": "é" * 100_000}, TEXT, "é".encode() * 100_000),
        ({"bytes": bytearray(100_000)}, BINARY, bytes(100_000)),
    ]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(ACCEPT)
        for message, _, _ in messages:
            await send({"type": "websocket.send", **message})

    server = serve(app, lifespan="off")
    with server.websocket() as client:
        for _, first, payload in messages:
            assert client.read_frame() == (first, payload)
        assert client.read_close() == (1000, "")
    assert errors_of(server) == []


# --------------------------------------------------------------- protocol errors

TOO_BIG = 100_000


def unmasked(first: int, payload: bytes = b"") -> bytes:
    return bytes([first, len(payload)]) + payload


INVALID: dict[str, tuple[bytes, int]] = {
    # what comes, and the code that it is closed with
    "unmasked": (unmasked(TEXT, b"text"), 1002),
    "unmasked, its head": (unmasked(TEXT)[:2], 1002),
    "unmasked ping": (unmasked(PING), 1002),
    "unmasked close": (unmasked(CLOSE, b"\x03\xe8"), 1002),
    **{f"RSV {bits:02x}": (frame(TEXT | bits, b"text"), 1002) for bits in (0x10, 0x20, 0x30)},
    "RSV1, not agreed": (frame(TEXT | RSV1, b"text"), 1002),
    "RSV1 in a ping": (frame(PING | RSV1), 1002),
    "RSV1 in a close": (frame(CLOSE | RSV1), 1002),
    **{
        f"opcode {opcode:x}": (frame(FIN | opcode, b"text"), 1002)
        for opcode in (*range(3, 8), *range(0xB, 0x10))
    },
    "opcode 3, not final": (frame(3, b"text"), 1002),
    "fragmented ping": (frame(PING & ~FIN, b"ping"), 1002),
    "fragmented pong": (frame(PONG & ~FIN), 1002),
    "fragmented close": (frame(CLOSE & ~FIN, b"\x03\xe8"), 1002),
    "long ping": (frame(PING, bytes(126)), 1002),
    "long pong": (frame(PONG, bytes(65536)), 1002),
    "long close": (closing(1000, bytes(124)), 1002),
    "long ping, two bytes of it": (frame(PING, bytes(126))[:2], 1002),
    "continuation of nothing": (frame(CONTINUATION, b"text"), 1002),
    "continuation of nothing, not final": (frame(0, b"text"), 1002),
    "continuation after the end": (
        frame(TEXT & ~FIN) + frame(CONTINUATION) + frame(CONTINUATION),
        1002,
    ),
    "text in a message": (frame(TEXT & ~FIN, b"te") + frame(TEXT, b"xt"), 1002),
    "binary in a message": (frame(TEXT & ~FIN, b"te") + frame(BINARY & ~FIN), 1002),
    "length 125 in two bytes": (b"\x81\xfe\x00\x7d1234", 1002),
    "length 0 in two bytes": (b"\x82\xfe\x00\x001234", 1002),
    "length 65535 in eight bytes": (b"\x82\xff" + (65535).to_bytes(8) + b"1234", 1002),
    "length 5 in eight bytes": (b"\x82\xff" + (5).to_bytes(8) + b"1234", 1002),
    "length with the top bit": (b"\x82\xff" + (2**63).to_bytes(8) + b"1234", 1002),
    "length of ones": (b"\x82\xff" + (2**64 - 1).to_bytes(8) + b"1234", 1002),
    **{
        f"text {text!r}": (frame(TEXT, text), 1007)
        for text in (
            *(b"\xff", b"good\x80", b"\xc0\xaf", b"\xe0\x80\xaf", b"\xf0\x80\x80\xaf"),
            *(b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xf8\x88\x80\x80\x80", b"\xc3", b"\xe2\x82"),
            b"x" * 1000 + b"\xfe" + b"y" * 1000,
        )
    },
    "text cut in its last fragment": (frame(1, b"\xe2") + frame(CONTINUATION, b"\x82"), 1007),
    "text broken across fragments": (frame(1, b"\xe2\x82") + frame(CONTINUATION, b"a"), 1007),
    # As early as the bad byte arrives.
    "text, in the middle of a frame": (frame(TEXT, b"\xff" + bytes(100))[:10], 1007),
    "text, in a fragment": (frame(1, b"good\xff"), 1007),
    "text, a surrogate in fragments": (frame(1, b"\xed") + frame(0, b"\xa0"), 1007),
    # By what is announced, before any of it came.
    "too big": (frame(BINARY, bytes(TOO_BIG + 1))[:14], 1009),
    "too big text": (frame(TEXT, bytes(TOO_BIG + 1))[:14], 1009),
    "much too big": (b"\x82\xff" + (2**63 - 1).to_bytes(8) + b"1234", 1009),
    "too big in fragments": (frame(1, bytes(TOO_BIG)) + frame(CONTINUATION, b"x")[:6], 1009),
    "too big, and more": (frame(BINARY, bytes(4 * MIB)), 1009),
    "close of one byte": (frame(CLOSE, b"\x03"), 1002),
    **{
        f"close {code}": (closing(code), 1002)
        for code in (
            *(0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 9999, 65535),
        )
    },
    "close reason": (closing(1000, b"\xff"), 1007),
    "close reason, cut": (closing(1000, b"\xe2\x82"), 1007),
}


def test_invalid_frames(serve: Serve) -> None:
    """The Close frame says which rule it was; what came before counts, what follows does not."""
    app = Application()
    server = serve(app, lifespan="off", ws_max_size=TOO_BIG)
    for name, (data, code) in INVALID.items():
        for following in (b"", frame(TEXT, b"following") + closing(1000)):
            if following and len(data) < 16:
                continue  # it would become a part of a frame that is not complete
            with server.websocket() as client:
                client.sendall(frame(TEXT, b"before") + data + following)
                assert close_after_echoes(client)[0] == code, name
                assert client.is_closed_by_peer(), name
            told = app.next_to_the_end()
            assert told[0] == received("before"), name
            assert received("following") not in told, name
            assert told[-1]["code"] == code, name
            assert isinstance(told[-1]["reason"], str)
    assert errors_of(server) == []


def test_close_frame_arrives_whatever_follows(serve: Serve) -> None:
    """A reset would destroy it before the client has read it."""
    server = serve(Application(), lifespan="off")
    with server.websocket() as client:
        client.sendall(unmasked(TEXT, b"text"))
        client.sendall(bytes(8 * MIB))
        assert client.read_close()[0] == 1002
        assert client.is_closed_by_peer()
    assert errors_of(server) == []


def test_largest_message(serve: Serve) -> None:
    app = Application()
    server = serve(app, lifespan="off", ws_max_size=1000)
    with server.websocket() as client:
        for first in (TEXT, BINARY):
            client.sendall(frame(first, b"x" * 1000))
            assert client.read_frame() == (first, b"x" * 1000)
            client.sendall(frame(first & ~FIN, b"x" * 400) + frame(PING, b"x" * 100))
            client.sendall(frame(0, b"x" * 600) + frame(CONTINUATION))
            assert client.read_frame() == (PONG, b"x" * 100)
            assert client.read_frame() == (first, b"x" * 1000)
        client.close_with()
    assert errors_of(server) == []


# ----------------------------------------------------------- permessage-deflate

OFFER = "Sec-WebSocket-Extensions: permessage-deflate"
TAIL = b"\x00\x00\xff\xff"
ALONE = "client_no_context_takeover; server_no_context_takeover"


def deflated(data: bytes, compressor: Any = None) -> bytes:
    """A message's payload (RFC 7692 section 7.2.1)."""
    compressor = compressor or zlib.compressobj(wbits=-15)
    packed: bytes = compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH)
    assert packed.endswith(TAIL)
    return packed[:-4]


def inflated(data: bytes, decompressor: Any = None) -> bytes:
    decompressor = decompressor or zlib.decompressobj(-15)
    content: bytes = decompressor.decompress(data + TAIL)
    assert not decompressor.unconsumed_tail
    return content


def parameters(client: WebSocketClient) -> str | None:
    """What the server has answered to an offer."""
    answer = client.response.field(b"sec-websocket-extensions")
    if answer is None:
        return None
    name, _, rest = answer.decode().partition(";")
    assert name == "permessage-deflate"
    return rest.strip()


NEGOTIATIONS: list[tuple[list[str], str | None]] = [
    # offers; the parameters of the answer without context takeover; None: declined
    (["permessage-deflate"], ALONE),
    (["permessage-deflate; client_max_window_bits"], f"{ALONE}; client_max_window_bits=15"),
    (["permessage-deflate;client_max_window_bits=10"], f"{ALONE}; client_max_window_bits=10"),
    (["permessage-deflate; server_max_window_bits=10"], f"{ALONE}; server_max_window_bits=10"),
    (['permessage-deflate; server_max_window_bits="9"'], f"{ALONE}; server_max_window_bits=9"),
    (["permessage-deflate; server_no_context_takeover"], ALONE),
    (["permessage-deflate; client_no_context_takeover; server_no_context_takeover"], ALONE),
    # One that is declined, and a second one.
    (
        ["permessage-deflate; unknown, permessage-deflate; server_max_window_bits=11"],
        f"{ALONE}; server_max_window_bits=11",
    ),
    (["x-webkit-deflate-frame", "permessage-deflate"], ALONE),
    (["permessage-deflate, permessage-deflate; server_max_window_bits=9"], ALONE),
    # RFC 7692 section 7.1: to be declined.
    (["x-webkit-deflate-frame"], None),
    (["permessage-deflates"], None),
    ([""], None),
    (["permessage-deflate; unknown"], None),
    (["permessage-deflate; unknown=1"], None),
    (["permessage-deflate; client_max_window_bits; client_max_window_bits"], None),
    (["permessage-deflate; server_no_context_takeover; server_no_context_takeover"], None),
    (["permessage-deflate; server_max_window_bits=9; server_max_window_bits=10"], None),
    (["permessage-deflate; server_no_context_takeover=1"], None),
    (["permessage-deflate; client_no_context_takeover=true"], None),
    (["permessage-deflate; server_max_window_bits"], None),
    *(
        ([f"permessage-deflate; {side}_max_window_bits={bits}"], None)
        for side in ("server", "client")
        for bits in ("0", "7", "16", "010", "x", "-10", "1 0", "", '"16"')
    ),
]


def test_negotiation(serve: Serve) -> None:
    server = serve(Application(), lifespan="off")
    for offers, expected in NEGOTIATIONS:
        lines = [f"Sec-WebSocket-Extensions: {offer}" for offer in offers]
        with server.websocket("/", *lines) as client:
            answer = parameters(client)
            found = None if answer is None else sorted(answer.split("; "))
            assert found == (None if expected is None else sorted(expected.split("; "))), offers
            # Either way it works, as it was agreed.
            client.sendall(frame(TEXT, b"x" * 1000))
            first, payload = client.read_frame()
            if expected is None:
                assert (first, payload) == (TEXT, b"x" * 1000)
            else:
                assert first == TEXT | RSV1
                assert inflated(payload) == b"x" * 1000
            client.close_with()
    assert errors_of(server) == []


def test_deflate_is_an_option(serve: Serve) -> None:
    app = Application()
    server = serve(app, lifespan="off", ws_per_message_deflate=False)
    with server.websocket("/", OFFER) as client:
        assert parameters(client) is None
        client.sendall(frame(TEXT, b"x" * 1000))
        assert client.read_frame() == (TEXT, b"x" * 1000)
        client.sendall(frame(TEXT | RSV1, deflated(b"x")))
        assert client.read_close()[0] == 1002
    assert errors_of(server) == []


def test_compressed_messages(serve: Serve) -> None:
    """Both ways, each alone; small ones and those that do not shrink are sent as they are."""
    app = Application()
    server = serve(app, lifespan="off")
    noise = random.Random(1).randbytes(5000)
    with server.websocket("/", OFFER) as client:
        for content, compresses in [
            (b"", False),
            (b"x" * 511, False),
            (b"x" * 512, True),
            (b"x" * 100_000, True),
            ("é€😀".encode() * 1000, True),
            (bytes(range(128)) * 8000, True),
        ]:
            for first in (TEXT, BINARY):
                for data in (frame(first, content), frame(first | RSV1, deflated(content))):
                    client.sendall(data)
                    found, payload = client.read_frame()
                    assert found == (first | RSV1 if compresses else first), len(content)
                    assert (inflated(payload) if compresses else payload) == content
                    assert app.next() == received(content.decode() if first == TEXT else content)
        client.sendall(frame(BINARY | RSV1, deflated(noise)))
        assert client.read_frame() == (BINARY, noise)
        assert app.next() == received(noise)
        client.close_with()
    assert errors_of(server) == []


def test_one_message_to_many(serve: Serve) -> None:
    """A broadcast is compressed once, for each number of window bits."""
    sockets: list[Any] = []
    content = "x" * 1000 + "".join(map(str, range(200))) + "x" * 1000

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(ACCEPT)
        sockets.append(send)
        if scope["path"] == "/last":
            for _ in range(2):
                for one in sockets:
                    await one(to_send(content))
                    await one(to_send(content.encode()))
        await until_disconnect(receive)

    server = serve(app, lifespan="off")
    bits = f"{OFFER}; server_max_window_bits=9"
    clients = [
        server.websocket(*arguments)
        for arguments in [("/", OFFER), ("/", bits), ("/",), ("/", OFFER), ("/last", bits)]
    ]
    for client in clients:
        for first in 2 * [TEXT, BINARY]:
            found, payload = client.read_frame()
            if client is clients[2]:
                assert (found, payload) == (first, content.encode())
            else:
                window = -9 if client in (clients[1], clients[4]) else -15
                assert found == first | RSV1
                assert inflated(payload, zlib.decompressobj(window)) == content.encode()
        client.close_with()
    assert errors_of(server) == []


def test_window_of_the_server(serve: Serve) -> None:
    """What it compresses refers no further back than was agreed."""
    server = serve(Application(), lifespan="off")
    generator = random.Random(2)
    block = bytes(generator.choices(range(32, 127), k=600))
    content = b"".join(block + bytes([65 + n % 20]) * 300 for n in range(40))
    for bits in range(9, 16):
        with server.websocket("/", f"{OFFER}; server_max_window_bits={bits}") as client:
            client.sendall(frame(BINARY, content))
            first, payload = client.read_frame()
            assert first == BINARY | RSV1
            assert inflated(payload, zlib.decompressobj(-bits)) == content, bits
            client.close_with()
    assert errors_of(server) == []


def test_context_takeover(serve: Serve) -> None:
    """Where the option allows it and the client wants it, messages refer to those before."""
    app = Application()
    server = serve(app, lifespan="off", ws_context_takeover=True)
    content = bytes(random.Random(3).choices(range(32, 127), k=2000))
    for extra, server_takes, client_takes in [
        ("", True, True),
        ("; server_no_context_takeover", False, True),
        ("; client_no_context_takeover", True, False),
        ("; server_no_context_takeover; client_no_context_takeover", False, False),
        ("; server_max_window_bits=12", True, True),
    ]:
        with server.websocket("/", OFFER + extra) as client:
            answer = parameters(client)
            assert answer is not None
            assert ("server_no_context_takeover" in answer) == (not server_takes)
            assert ("client_no_context_takeover" in answer) == (not client_takes)
            compressor = zlib.compressobj(wbits=-15) if client_takes else None
            decompressor = zlib.decompressobj(-15) if server_takes else None
            sizes = []
            for number in range(4):
                client.sendall(frame(TEXT | RSV1, deflated(content, compressor)))
                first, payload = client.read_frame()
                assert first == TEXT | RSV1
                assert inflated(payload, decompressor) == content
                assert app.next() == received(content.decode())
                sizes.append(len(payload))
                # One that is not compressed is no part of what is referred to.
                client.sendall(frame(TEXT, b"small"))
                assert client.read_frame() == (TEXT, b"small"), number
                assert app.next() == received("small")
            assert (sizes[1] < 100) == server_takes, extra
            client.close_with()
        assert app.next() == ended(1000)
    assert errors_of(server) == []


def test_nothing_is_taken_over_unless_agreed(serve: Serve) -> None:
    """A message that refers to one before is not understood."""
    app = Application()
    server = serve(app, lifespan="off")
    with server.websocket("/", OFFER) as client:
        # RFC 7692 section 7.2.3.2
        client.sendall(frame(TEXT | RSV1, bytes.fromhex("f2 48 cd c9 c9 07 00")))
        assert client.read_frame() == (TEXT, b"Hello")
        client.sendall(frame(TEXT | RSV1, bytes.fromhex("f2 00 11 00 00")))
        assert client.read_close()[0] == 1007
    assert errors_of(server) == []


DEFLATED = {
    # RFC 7692 section 7.2.3: the payloads of its examples, which all say Hello
    "compressed": "f2 48 cd c9 c9 07 00",
    "stored": "00 05 00 fa ff 48 65 6c 6c 6f 00",
    "final block": "f3 48 cd c9 c9 07 00 00",
    "two blocks": "f2 48 05 00 00 00 ff ff ca c9 c9 07 00",
}


def test_kinds_of_compressed_data(serve: Serve) -> None:
    for takeover in (False, True):
        server = serve(Application(), lifespan="off", ws_context_takeover=takeover)
        with server.websocket("/", OFFER) as client:
            for name, digits in DEFLATED.items():
                data = bytes.fromhex(digits)
                for _ in range(2):
                    client.sendall(frame(TEXT | RSV1, data))
                    assert client.read_frame() == (TEXT, b"Hello"), name
                    # In fragments, of which the first alone says that it is compressed.
                    for at in range(len(data) + 1):
                        client.sendall(frame((TEXT | RSV1) & ~FIN, data[:at]))
                        client.sendall(frame(PING, b"between") + frame(0))
                        client.sendall(frame(CONTINUATION, data[at:]))
                        assert client.read_frame() == (PONG, b"between")
                        assert client.read_frame() == (TEXT, b"Hello"), (name, at)
            client.close_with()
        assert errors_of(server) == []


BOMB_MOST = MIB


def block_of_zeros() -> bytes:
    """A MiB in 1 KB, which may come again and again: it refers to nothing before."""
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(bytes(MIB)) + compressor.flush(zlib.Z_FULL_FLUSH)


INVALID_DEFLATED: dict[str, tuple[bytes, int]] = {
    "RSV1 on a continuation": (frame(1) + frame(CONTINUATION | RSV1, deflated(b"x")), 1002),
    "RSV1 on a continuation of a compressed one": (
        frame((TEXT | RSV1) & ~FIN, deflated(b"x")) + frame(CONTINUATION | RSV1),
        1002,
    ),
    "RSV1 on a ping": (frame(PING | RSV1), 1002),
    "RSV1 on a close": (frame(CLOSE | RSV1), 1002),
    "RSV2": (frame(TEXT | RSV1 | 0x20, deflated(b"x")), 1002),
    "not deflated": (frame(TEXT | RSV1, b"\xff\xff\xff"), 1007),
    "not deflated, not the end": (frame((TEXT | RSV1) & ~FIN, b"\xff\xff\xff"), 1007),
    "stored length": (frame(BINARY | RSV1, b"\x00\x05\x00\xfa\xfe"), 1007),
    "refers to nothing": (frame(BINARY | RSV1, bytes.fromhex("f2 00 11 00 00")), 1007),
    "not UTF-8": (frame(TEXT | RSV1, deflated(b"\xff" * 1000)), 1007),
    "not UTF-8, in a fragment": (
        frame((TEXT | RSV1) & ~FIN, deflated(b"\xff" * 100) + TAIL),
        1007,
    ),
    "UTF-8 that is cut": (frame(TEXT | RSV1, deflated("é".encode()[:1])), 1007),
    "too big": (frame(BINARY | RSV1, deflated(bytes(BOMB_MOST + 1))), 1009),
    "too big in fragments": (
        frame((BINARY | RSV1) & ~FIN, deflated(bytes(BOMB_MOST)) + TAIL)
        + frame(0, deflated(b"x") + TAIL),
        1009,
    ),
    "too big as it is": (frame(BINARY, bytes(BOMB_MOST + 1))[:14], 1009),
}


def test_invalid_compressed_frames(serve: Serve) -> None:
    app = Application()
    server = serve(app, lifespan="off", ws_max_size=BOMB_MOST)
    for name, (data, code) in INVALID_DEFLATED.items():
        with server.websocket("/", OFFER) as client:
            client.sendall(frame(BINARY | RSV1, deflated(b"before")) + data)
            assert close_after_echoes(client)[0] == code, name
            assert client.is_closed_by_peer(), name
        assert app.next() == received(b"before")
        assert app.next()["code"] == code, name
    with server.websocket("/", OFFER) as client:
        client.sendall(frame(BINARY | RSV1, deflated(bytes(BOMB_MOST))))
        assert inflated(client.read_frame().payload) == bytes(BOMB_MOST)
        client.close_with()
    assert errors_of(server) == []


def peak_memory() -> int:
    """Bytes of this process that were resident at most."""
    status = Path("/proc/self/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found
    return 1024 * int(found[1])


def resident_memory() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@measures_memory
def test_bomb(serve: Serve) -> None:
    """What a message becomes is bounded while it becomes it."""
    server = serve(Application(), lifespan="off", ws_max_size=BOMB_MOST)
    block = block_of_zeros()
    whole = frame(BINARY | RSV1, block * 256)
    fragments = frame((BINARY | RSV1) & ~FIN, block) + 256 * frame(0, block)
    for attack in (whole, fragments):
        with server.websocket("/", OFFER) as client:
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
            before = peak_memory()
            client.sendall(attack)
            assert client.read_close()[0] == 1009
            assert peak_memory() - before < 16 * MIB
    assert errors_of(server) == []


# ---------------------------------------------------------------------- liveness


def test_pings(serve: Serve) -> None:
    """One for each interval, answered by the client: it goes on for ever."""
    app = Application()
    server = serve(app, lifespan="off", ws_ping_interval=0.1, ws_ping_timeout=PATIENCE)
    with server.websocket() as client:
        payloads = set()
        for _ in range(4):
            first, payload = client.read_frame()
            assert first == PING
            payloads.add(payload)
            client.sendall(frame(PONG, payload))
        assert len(payloads) == 4
        client.sendall(frame(TEXT, b"text"))
        assert behind_pings(client, answer=True) == (TEXT, b"text")
        client.sendall(closing(1000))
        assert behind_pings(client) == (CLOSE, b"\x03\xe8")
    assert errors_of(server) == []


def test_no_pong(serve: Serve) -> None:
    """Neither silence nor a pong to something else keeps it open."""
    app = Application()
    server = serve(app, lifespan="off", ws_ping_interval=0.1, ws_ping_timeout=0.1)
    for answer in (b"", frame(PONG, b"not this"), frame(PONG), frame(TEXT, b"text")):
        with server.websocket() as client:
            assert client.read_frame().first == PING
            client.sendall(answer)
            if answer[:1] == b"\x81":
                assert client.read_frame() == (TEXT, b"text")
                assert app.next() == received("text")
            assert client.read_close()[0] == 1011
            assert client.is_closed_by_peer()
        assert app.next() == LOST
    assert errors_of(server) == []


def test_pings_are_options(serve: Serve) -> None:
    server = serve(Application(), lifespan="off", ws_ping_interval=0, ws_ping_timeout=0.05)
    with server.websocket() as client:
        client.settimeout(0.3)
        with pytest.raises(TimeoutError):
            client.read_frame()
        client.settimeout(PATIENCE)
        client.sendall(frame(TEXT, b"text"))
        assert client.read_frame() == (TEXT, b"text")
        client.close_with()
    assert errors_of(server) == []
    server = serve(Application(), lifespan="off", ws_ping_interval=0.05, ws_ping_timeout=0)
    with server.websocket() as client:
        for _ in range(4):
            assert client.read_frame().first == PING
        client.sendall(closing(1000))
        assert behind_pings(client) == (CLOSE, b"\x03\xe8")
    assert errors_of(server) == []


def test_pong_behind_a_slow_frame(serve: Serve) -> None:
    """A client cannot put its pong into the middle of a frame, but has to go on with it."""
    app = Application()
    server = serve(app, lifespan="off", ws_ping_interval=0.1, ws_ping_timeout=0.2)
    with server.websocket() as client:
        data = frame(BINARY, bytes(40))
        client.sendall(data[:-10])
        first, payload = client.read_frame()
        assert first == PING
        begun = time.monotonic()
        for at in range(10, 0, -1):
            client.sendall(data[-at:][:1])
            time.sleep(0.05)
        assert time.monotonic() - begun > 0.4  # twice the timeout
        client.sendall(frame(PONG, payload))
        assert behind_pings(client, answer=True) == (BINARY, bytes(40))
        # And one that does not is closed.
        client.sendall(data[:-10])
        found = behind_pings(client)
        assert found.first == CLOSE
        assert found.payload[:2] == (1011).to_bytes(2)
    assert [app.next() for _ in range(2)] == [received(bytes(40)), LOST]
    assert errors_of(server) == []


def test_no_pong_is_awaited_while_nothing_is_read(serve: Serve) -> None:
    """It may be there, behind the messages that the application does not take."""
    app = Gate()
    server = serve(app, lifespan="off", ws_ping_interval=0.1, ws_ping_timeout=0.1, ws_max_queue=1)
    with server.websocket() as client:
        assert app.accepted.wait(PATIENCE)
        client.sendall(5 * frame(TEXT, b"text"))
        client.settimeout(0.5)
        with pytest.raises(TimeoutError):
            client.read_frame()
        client.settimeout(PATIENCE)
        app.opened.set()
        first, payload = client.read_frame()
        assert first == PING
        client.sendall(frame(PONG, payload) + closing(1000))
        assert behind_pings(client) == (CLOSE, b"\x03\xe8")
    assert app.next_to_the_end() == [*(5 * [received("text")]), ended(1000)]
    assert errors_of(server) == []


def test_pings_of_the_client(serve: Serve) -> None:
    server = serve(Application(), lifespan="off")
    with server.websocket() as client:
        payloads = [b"", b"p", b"\xff\0", bytes(range(125)), *(b"%d" % n for n in range(100))]
        client.sendall(b"".join(frame(PING, payload) for payload in payloads))
        for payload in payloads:
            assert client.read_frame() == (PONG, payload)
        client.sendall(frame(PONG, b"unasked") + frame(PONG))
        client.close_with()
    assert errors_of(server) == []


def test_pings_of_a_client_that_does_not_read(serve: Serve) -> None:
    """RFC 6455 section 5.5.3: the answer to the last one may be the only one."""
    server = serve(Application(), lifespan="off")
    with server.websocket() as client:
        many = frame(PING, bytes(125)) * (BOUND // 131)
        last = frame(PING, b"the last one")
        client.sendall(many)
        client.sendall(last)
        assert_alive(server)
        pongs = b""
        answer = unmasked(PONG, b"the last one")
        while not pongs.endswith(answer):
            data = client.recv(MIB)
            assert data
            pongs += data
        assert len(pongs) < len(many) * 127 // 131
        assert pongs == unmasked(PONG, bytes(125)) * (len(pongs) // 127) + answer
        client.sendall(frame(TEXT, b"text"))
        assert client.read_frame() == (TEXT, b"text")
        client.close_with()
    assert errors_of(server) == []


def test_closing_handshake_has_an_end(serve: Serve) -> None:
    """The client may answer with nothing, with something else, or begin a frame."""
    go_on = threading.Event()
    ways: queue.Queue[Message] = queue.Queue()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            return await hello(scope, receive, send)
        await receive()
        await send(ACCEPT)
        if scope["path"] == "/full":
            await until(go_on)
        else:
            await receive()
        await send({"type": "websocket.close", "code": 4001, "reason": "enough"})
        ways.put(await receive())

    server = serve(
        app,
        lifespan="off",
        ws_close_timeout=0.1,
        ws_ping_interval=0.1,
        ws_ping_timeout=2 * PATIENCE,
        ws_max_queue=1,
    )
    for answer in (b"", frame(TEXT, b"text"), frame(PONG), frame(TEXT, b"text")[:3]):
        with server.websocket() as client:
            assert client.read_frame().first == PING  # a pong is awaited from now on
            client.sendall(frame(TEXT, b"text"))
            assert behind_pings(client) == (CLOSE, (4001).to_bytes(2) + b"enough")
            client.sendall(answer)
            assert client.is_closed_by_peer()
        assert ways.get(timeout=PATIENCE) == ended(4001, "enough")
    server.stop()
    # While reading was paused; without pings, whose deadline would be one as well.
    server = serve(app, lifespan="off", ws_close_timeout=0.1, ws_ping_interval=0, ws_max_queue=1)
    with server.websocket("/full") as client:
        client.sendall(100 * frame(TEXT, b"text"))
        assert_alive(server)
        go_on.set()
        assert client.read_close() == (4001, "enough")
        assert client.is_closed_by_peer()
    assert ways.get(timeout=PATIENCE) == ended(4001, "enough")
    assert errors_of(server) == []


# ----------------------------------------------------------------- back-pressure


def test_receiving_is_bounded(serve: Serve) -> None:
    """By number or by bytes: the client is held up, and then goes on, and nothing is lost."""
    for size, options in [
        (3000, {"ws_max_queue": 4}),
        (60_000, {"ws_max_queue": 10_000}),
        (MIB, {"ws_max_queue": 10_000}),
    ]:
        app = Gate()
        server = serve(app, lifespan="off", **options)
        count = BOUND // size
        data = b"".join(
            frame(BINARY, b"%08d" % n + bytes(size - 8), bytes(4)) for n in range(count)
        )
        with server.websocket() as client:
            pushed = push(client, data)
            assert pushed < len(data), size
            assert_alive(server)
            app.opened.set()
            client.sendall(memoryview(data)[pushed:])
            client.close_with()
        *messages, end = app.next_to_the_end()
        assert [int(message["bytes"][:8]) for message in messages] == list(range(count))
        assert {len(message["bytes"]) for message in messages} == {size}
        assert end == ended(1000)
        assert errors_of(server) == []


@measures_memory
def test_what_is_received_early_is_bounded(serve: Serve) -> None:
    """The server itself holds little for each of those that it keeps waiting."""
    app = Gate()
    server = serve(app, lifespan="off")
    data = frame(BINARY, bytes(60_000), bytes(4)) * 200
    clients = [server.websocket() for _ in range(20)]
    before = resident_memory()
    for client in clients:
        client.setblocking(False)
        sent = 0
        with contextlib.suppress(BlockingIOError):
            while sent < len(data):
                sent += client.send(memoryview(data)[sent:])
        assert sent < len(data)
    assert_alive(server)
    assert resident_memory() - before < 20 * MIB
    app.opened.set()
    for client in clients:
        client.close()
    for _ in clients:
        assert app.next_to_the_end()[-1] == LOST
    assert errors_of(server) == []


def test_sending_is_held_up(serve: Serve) -> None:
    """While the client does not read, send() waits; then all comes, in order."""
    sent = 0
    count = BOUND // 32_768

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal sent
        if scope["type"] == "http":
            return await hello(scope, receive, send)
        await send(ACCEPT)
        for number in range(count):
            await send(to_send(b"%08d" % number * 4096))
            sent += 1

    server = serve(app, lifespan="off")
    with server.websocket() as client:
        assert settled(lambda: sent) < count
        assert_alive(server)
        for number in range(count):
            assert client.read_frame() == (BINARY, b"%08d" % number * 4096)
        assert client.read_close() == (1000, "")
    assert errors_of(server) == []


def test_send_ends_with_the_connection(serve: Serve) -> None:
    """A send() that is held up returns or raises, and the next one raises."""
    sent = 0
    over: queue.Queue[Message] = queue.Queue()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal sent
        sent = 0
        await receive()
        await send(ACCEPT)
        with pytest.raises(fastserve.ClientDisconnected):
            while True:
                await send(to_send(bytes(65536)))
                sent += 1
        over.put(await receive())

    server = serve(app, lifespan="off")
    for leave in (reset, Client.close):
        client = server.websocket()
        settled(lambda: sent)
        leave(client)
        assert over.get(timeout=PATIENCE) == LOST
    assert errors_of(server) == []


def test_close_while_sending_is_held_up(serve: Serve) -> None:
    """The Close comes last, behind all that was sent: nothing may follow it."""
    go_on, closed = threading.Event(), threading.Event()
    sent = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal sent
        if scope["type"] == "http":
            return await hello(scope, receive, send)
        await receive()
        await send(ACCEPT)

        async def pour() -> None:
            nonlocal sent
            while True:
                await send(to_send(bytes(65536)))
                sent += 1

        async with anyio.create_task_group() as group:
            group.start_soon(pour)
            await until(go_on)
            await send({"type": "websocket.close", "code": 4002})
            closed.set()
            # What is held up ends by itself: there is nothing more to wait for.

    server = serve(app, lifespan="off")
    with server.websocket() as client:
        settled(lambda: sent)
        client.sendall(frame(PING, b"ping"))
        assert_alive(server)
        go_on.set()
        assert closed.wait(PATIENCE)
        while (found := client.read_frame()).first == BINARY:
            pass
        assert found == (CLOSE, (4002).to_bytes(2))
        client.sendall(closing(4002))
        assert client.is_closed_by_peer()
    assert errors_of(server) == []


# ----------------------------------------------------------------------- endings


def test_client_closes(serve: Serve) -> None:
    """Its Close is echoed, then the server closes the connection, and the app knows why."""
    app = Application()
    server = serve(app, lifespan="off")
    for code, reason in [
        (None, b""),
        *((code, b"") for code in (1000, 1001, 1002, 1003, *range(1007, 1015))),
        (3000, b"bye"),
        (3999, "à bientôt".encode()),
        (4000, b"x" * 123),
        (4999, b"\0"),
    ]:
        with server.websocket() as client:
            client.sendall(frame(TEXT, b"last") + closing(code, reason) + b"nonsense")
            assert close_after_echoes(client) == (1005 if code is None else code, reason.decode())
            assert client.is_closed_by_peer()
        assert app.next() == received("last")
        assert app.next() == ended(1005 if code is None else code, reason.decode())
    assert errors_of(server) == []


def lose_by_fin(client: WebSocketClient) -> None:
    client.shutdown(socket.SHUT_WR)
    assert client.read_to_end() == b""
    client.close()


LOSSES: list[tuple[bytes, Callable[[WebSocketClient], object]]] = [
    (data, leave)
    for data in (
        b"",
        frame(TEXT, b"text")[:1],
        frame(BINARY, bytes(1000))[:500],
        frame(TEXT & ~FIN, b"text"),
        closing(1000)[:-1],
    )
    for leave in (Client.close, lose_by_fin, reset)
]


def test_client_is_lost(serve: Serve) -> None:
    app = Application()
    server = serve(app, lifespan="off")
    for data, leave in LOSSES:
        client = server.websocket()
        client.sendall(frame(TEXT, b"before"))
        assert client.read_frame() == (TEXT, b"before")
        client.sendall(data)
        leave(client)
        assert app.next() == received("before")
        assert app.next() == LOST
    assert errors_of(server) == []


def test_application_closes(serve: Serve) -> None:
    """The app's own code is what it is told, whatever the client answers."""
    told: queue.Queue[Message] = queue.Queue()
    messages: list[Message] = [
        {},
        {"code": None, "reason": None},
        {"code": 1001},
        {"code": 3000, "reason": ""},
        {"code": 4999, "reason": "à bientôt"},
        {"reason": "bye"},
    ]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(ACCEPT)
        await receive()
        await send({"type": "websocket.close", **messages[int(scope["query_string"])]})
        for _ in range(3):
            told.put(await receive())
        for message in (to_send("text"), {"type": "websocket.close"}):
            with pytest.raises(fastserve.ClientDisconnected):
                await send(message)

    server = serve(app, lifespan="off")
    for number, message in enumerate(messages):
        code, reason = message.get("code") or 1000, message.get("reason") or ""
        for answer in (
            closing(code),
            closing(1000, b"other"),
            closing(),
            frame(TEXT, b"late") + frame(PING, b"late") + closing(code),
            unmasked(TEXT),
            b"",
        ):
            with server.websocket(f"/?{number}") as client:
                client.sendall(2 * frame(TEXT, b"text"))
                assert client.read_close() == (code, reason)
                client.sendall(answer)
                if not answer:
                    client.shutdown(socket.SHUT_WR)
                assert client.read_to_end() == b"", answer  # neither a pong nor another Close
            assert [told.get(timeout=PATIENCE) for _ in range(3)] == 3 * [ended(code, reason)]
    assert errors_of(server) == []


def test_messages_before_the_end(serve: Serve) -> None:
    """They are delivered, and then the end, again and again."""
    for leave, end in [
        (closing(4000, b"bye"), ended(4000, "bye")),
        (closing(), ended(1005)),
        (b"", LOST),
        (unmasked(TEXT), None),
    ]:
        for count, options in [(20, {}), (500, {"ws_max_queue": 1})]:
            app = Gate()
            server = serve(app, lifespan="off", **options)
            with server.websocket() as client:
                messages = [frame(BINARY, b"%d" % n + bytes(100)) for n in range(count)]
                client.sendall(b"".join(messages) + leave)
                client.shutdown(socket.SHUT_WR)
                assert_alive(server)
                app.opened.set()
                told = app.next_to_the_end()
                assert told[:-1] == [received(b"%d" % n + bytes(100)) for n in range(count)]
                if end is None:
                    assert told[-1]["code"] == 1002
                else:
                    assert told[-1] == end
            assert errors_of(server) == []


def test_several_tasks_in_receive(serve: Serve) -> None:
    """Each message goes to one of them, the end to all."""
    told: queue.Queue[Message] = queue.Queue()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async def take() -> None:
            while True:
                told.put(message := await receive())
                if message["type"] == "websocket.disconnect":
                    break

        await receive()
        await send(ACCEPT)
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(take)

    server = serve(app, lifespan="off")
    with server.websocket() as client:
        for number in range(20):
            client.sendall(frame(TEXT, b"%d" % number))
        client.sendall(closing(1001))
        assert client.read_close() == (1001, "")
    messages = [told.get(timeout=PATIENCE) for _ in range(23)]
    texts = [int(message["text"]) for message in messages if "text" in message]
    assert sorted(texts) == list(range(20))
    assert [message for message in messages if "text" not in message] == 3 * [ended(1001)]
    assert errors_of(server) == []


def test_application_fails(serve: Serve) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(ACCEPT)
        await receive()
        raise LookupError("on purpose")

    server = serve(app, lifespan="off")
    with server.websocket() as client:
        client.sendall(3 * frame(TEXT, b"text"))
        assert client.read_close()[0] == 1011
        client.sendall(closing(1011))
        assert client.is_closed_by_peer()
    assert errors_of(server) == ["LookupError('on purpose')"]


def test_application_returns(serve: Serve) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(ACCEPT)
        await send(to_send("last"))

    server = serve(app, lifespan="off")
    with server.websocket() as client:
        assert client.read_frame() == (TEXT, b"last")
        assert client.read_close() == (1000, "")
        client.sendall(closing(1000))
        assert client.is_closed_by_peer()
    assert errors_of(server) == []


def test_long_reasons(serve: Serve) -> None:
    """A Close frame carries 123 bytes; what is cut is cut between two characters."""
    reasons = ["x" * 123, "x" * 124, "é" * 100, "x" + "é" * 100, "€" * 100, "😀" * 100, "a\ud800"]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(ACCEPT)
        reason = reasons[int(scope["query_string"])]
        await send({"type": "websocket.close", "reason": reason})

    server = serve(app, lifespan="off")
    for number, cut in enumerate(
        ["x" * 123, "x" * 123, "é" * 61, "x" + "é" * 61, "€" * 41, "😀" * 30, "a?"]
    ):
        with server.websocket(f"/?{number}") as client:
            assert client.read_close() == (1000, cut)
    assert errors_of(server) == []


def test_send_after_the_end(serve: Serve) -> None:
    """An OSError, which is no error of the application that lets it pass."""
    assert issubclass(fastserve.ClientDisconnected, OSError)
    seen: queue.Queue[BaseException] = queue.Queue()

    async def passing(scope: Any, receive: Any, send: Any) -> None:
        await send(ACCEPT)
        await until_disconnect(receive)
        try:
            await send(to_send(b"late"))
        except OSError as error:
            seen.put(error)
            raise

    async def grouped(scope: Any, receive: Any, send: Any) -> None:
        await send(ACCEPT)
        await until_disconnect(receive)
        try:
            async with anyio.create_task_group() as outer, anyio.create_task_group() as inner:
                for group in (outer, inner):
                    group.start_soon(send, to_send("late"))
        except BaseException as error:
            seen.put(error)
            raise

    async def mixed(scope: Any, receive: Any, send: Any) -> None:
        await send(ACCEPT)
        await until_disconnect(receive)
        error = ExceptionGroup("both", [LookupError("mine"), fastserve.ClientDisconnected("x")])
        seen.put(error)
        raise error

    server = serve(routes(passing=passing, grouped=grouped, mixed=mixed), lifespan="off")
    for leave in (WebSocketClient.close_with, reset, Client.close):
        leave(server.websocket("/passing"))
        assert type(seen.get(timeout=PATIENCE)) is fastserve.ClientDisconnected
        leave(server.websocket("/grouped"))
        group = seen.get(timeout=PATIENCE)
        assert isinstance(group, BaseExceptionGroup)
        assert group.subgroup(fastserve.ClientDisconnected)
    assert not server.errors
    server.websocket("/mixed").close()
    assert isinstance(seen.get(timeout=PATIENCE), ExceptionGroup)
    (error,) = errors_of(server)
    assert "LookupError" in error


CLOSED_BADLY: list[tuple[Message, type[Exception], str]] = [
    *(
        ({"code": code}, ValueError, "websocket.close.*code")
        for code in (
            *(1005, 1006, 1015, 999, 5000, 1004, 1016, 2999, 0, -1, 65536, 2**70),
            *("1000", 1000.0, True, b"1000"),
        )
    ),
    ({"reason": b"bytes"}, TypeError, "websocket.close.*reason"),
    ({"reason": 1}, TypeError, "websocket.close.*reason"),
]
DENIAL = {"type": "websocket.http.response.start", "status": 401, "headers": []}
DENIAL_BODY = {"type": "websocket.http.response.body", "body": b"", "more_body": True}

MISUSES: list[tuple[list[Message], Any, type[Exception], str]] = [
    # what was sent before; the message; the exception, and what its text must name
    *(
        row
        for before in ([], [ACCEPT])
        for row in (
            (before, None, TypeError, "dict"),
            (before, [("type", "websocket.send")], TypeError, "dict"),
            (before, {}, ValueError, "type None"),
            (before, {"type": "websocket.nonsense"}, ValueError, "websocket.nonsense"),
            (before, {"type": "websocket.receive"}, ValueError, "websocket.receive"),
            (before, {"type": b"websocket.accept"}, ValueError, "websocket.accept"),
            (before, {"type": "lifespan.startup.complete"}, ValueError, "lifespan"),
            (
                before,
                {"type": "http.response.start", "status": 200},
                ValueError,
                "http.response.start",
            ),
            (before, {"type": "http.response.body", "body": b""}, ValueError, "http.response.body"),
        )
    ),
    ([], to_send("early"), RuntimeError, "websocket.send.*websocket.accept"),
    ([], {**ACCEPT, "subprotocol": "c"}, ValueError, "websocket.accept.*subprotocol"),
    ([], {**ACCEPT, "subprotocol": ""}, ValueError, "websocket.accept.*subprotocol"),
    ([], {**ACCEPT, "subprotocol": "A"}, ValueError, "websocket.accept.*subprotocol"),
    ([], {**ACCEPT, "subprotocol": "a, b"}, ValueError, "websocket.accept.*subprotocol"),
    ([], {**ACCEPT, "subprotocol": b"a"}, ValueError, "websocket.accept.*subprotocol"),
    *(
        ([], {**ACCEPT, "headers": [header]}, ValueError, "websocket.accept.*headers")
        for header in [
            (b"sec-websocket-protocol", b"a"),
            (b"Sec-WebSocket-Extensions", b"permessage-deflate"),
            (b"SEC-WEBSOCKET-ACCEPT", b"x"),
            (b"sec-websocket-anything", b"x"),
        ]
    ),
    *(
        ([], {**ACCEPT, "headers": [header]}, ValueError, "websocket.accept.*header")
        for header in [(b"a b", b"c"), (b"", b"c"), (b"a", b"b\r\nc: d"), (b"a", b"\0")]
    ),
    *(
        ([], {**ACCEPT, "headers": headers}, TypeError, "websocket.accept.*headers")
        for headers in [1, "ab", b"ab", {b"a": b"b"}, [None], [(b"a",)], [("a", b"b")]]
    ),
    (
        [],
        DENIAL_BODY,
        RuntimeError,
        "^websocket.http.response.body.* websocket.http.response.start",
    ),
    ([], {"type": DENIAL["type"]}, TypeError, "^websocket.http.response.start.*status"),
    ([], {**DENIAL, "status": 101}, ValueError, "^websocket.http.response.start.*status"),
    (
        [],
        {**DENIAL, "headers": [(b"a", b"\r\n")]},
        ValueError,
        "^websocket.http.response.start.*header",
    ),
    *(
        row
        for before in ([DENIAL], [DENIAL, DENIAL_BODY])
        for row in (
            (before, ACCEPT, RuntimeError, "websocket.accept.*http.response.start"),
            (before, {"type": "websocket.close"}, RuntimeError, "close.*http.response.start"),
            (before, DENIAL, RuntimeError, "^websocket.http.response.start"),
            (before, to_send("text"), RuntimeError, "websocket.send.*websocket.accept"),
            (
                before,
                {**DENIAL_BODY, "body": "text"},
                TypeError,
                "^websocket.http.response.body.*body",
            ),
        )
    ),
    *(
        ([ACCEPT], {"type": "websocket.close", **message}, kind, text)
        for message, kind, text in CLOSED_BADLY
    ),
    ([ACCEPT], ACCEPT, RuntimeError, "websocket.accept"),
    ([ACCEPT], DENIAL, RuntimeError, "websocket.http.response.start.*websocket.accept"),
    ([ACCEPT], DENIAL_BODY, RuntimeError, "websocket.http.response.body.*websocket.accept"),
    *(
        ([ACCEPT], {"type": "websocket.send", **message}, kind, f"websocket.send.*{key}")
        for message, kind, key in [
            ({}, ValueError, "text.*bytes"),
            ({"text": None}, ValueError, "text.*bytes"),
            ({"text": None, "bytes": None}, ValueError, "text.*bytes"),
            ({"text": "a", "bytes": b"a"}, ValueError, "text.*bytes"),
            ({"text": "", "bytes": b""}, ValueError, "text.*bytes"),
            ({"text": b"bytes"}, TypeError, "text"),
            ({"text": 1}, TypeError, "text"),
            ({"text": False}, TypeError, "text"),
            ({"bytes": "text"}, TypeError, "bytes"),
            ({"bytes": 5}, TypeError, "bytes"),
            ({"bytes": [1, 2]}, TypeError, "bytes"),
            ({"text": "a\ud800"}, ValueError, "text"),
        ]
    ),
]


def test_misuse(serve: Serve) -> None:
    """Each is an error out of send(), and what was refused is not on the wire."""
    caught: queue.Queue[Exception | None] = queue.Queue()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        before, wrong, _, _ = MISUSES[int(scope["query_string"])]
        await receive()
        for message in before:
            await send(message)
        try:
            await send(wrong)
        except Exception as error:
            caught.put(error)
        else:
            caught.put(None)
        if ACCEPT in before:
            await send(to_send("still here"))
        elif DENIAL in before:
            await send({**DENIAL_BODY, "body": b"denied", "more_body": False})
        else:
            await send({"type": "websocket.close"})

    server = serve(app, lifespan="off")
    for number, (before, wrong, kind, text) in enumerate(MISUSES):
        with WebSocketClient(server.address) as client:
            client.sendall(handshake(f"/?{number}", "Sec-WebSocket-Protocol: a, b"))
            error = caught.get(timeout=PATIENCE)
            assert type(error) is kind or (
                kind is ValueError and isinstance(error, UnicodeEncodeError)
            ), (wrong, error)
            assert re.search(text, str(error)), (wrong, error)
            response = client.read_response()
            if ACCEPT in before:
                assert response.status == 101
                assert client.read_frame() == (TEXT, b"still here")
                assert client.read_close() == (1000, "")
            elif DENIAL in before:
                assert (response.status, response.body) == (401, b"denied")
            else:
                assert response.status == 403
                assert response.field(b"a") is None
    assert errors_of(server) == []


# ---------------------------------------------------------------------- shutdown


def test_shutdown(serve: Serve) -> None:
    """Whoever is open has the graceful time, and is told then."""
    app = Application()
    server = serve(app, lifespan="off", graceful_timeout=0.5, ws_close_timeout=PATIENCE)
    clients = [server.websocket() for _ in range(5)]
    server.ask_to_stop()
    for client in clients:
        assert client.read_close()[0] == 1012
        client.sendall(closing(1012))
        assert client.is_closed_by_peer()
        client.close()
    assert [app.next()["code"] for _ in clients] == 5 * [1012]
    assert errors_of(server) == []


def test_shutdown_with_clients_that_do_not_answer(serve: Serve) -> None:
    """Each for a reason of its own: it is silent, it does not read, its app does not receive."""
    app = Application()
    gate = Gate()
    sent = 0

    async def pour(scope: Any, receive: Any, send: Any) -> None:
        nonlocal sent
        await send(ACCEPT)
        with pytest.raises(fastserve.ClientDisconnected):
            while True:
                await send(to_send(bytes(65536)))
                sent += 1
        app.told.put(await until_disconnect(receive))

    server = serve(
        routes(echo=app, pour=pour, gate=gate),
        lifespan="off",
        graceful_timeout=0.3,
        ws_close_timeout=0.1,
        ws_max_queue=1,
    )
    silent, poured, full = (server.websocket(path) for path in ("/echo", "/pour", "/gate"))
    settled(lambda: sent)
    full.sendall(100 * frame(TEXT, b"text"))
    assert_alive(server)
    server.ask_to_stop()
    assert silent.read_close()[0] == 1012
    assert full.read_close()[0] == 1012
    gate.opened.set()
    assert {app.next()["code"], app.next()["code"]} == {1012}
    assert gate.next_to_the_end()[-1]["code"] == 1012
    assert errors_of(server) == []
    for client in (silent, poured, full):
        client.close()


def test_accept_while_draining(serve: Serve) -> None:
    """It has what is left of the graceful time."""
    connected, go_on = threading.Event(), threading.Event()
    told: queue.Queue[Message] = queue.Queue()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        connected.set()
        await until(go_on)
        await send(ACCEPT)
        told.put(await until_disconnect(receive))

    server = serve(app, lifespan="off", graceful_timeout=2)
    with WebSocketClient(server.address) as client, server.connect() as idle:
        client.sendall(handshake())
        assert connected.wait(PATIENCE)
        server.ask_to_stop()
        assert idle.is_closed_by_peer()  # so it drains
        go_on.set()
        assert client.read_response().status == 101
        assert client.read_close()[0] == 1012
        client.sendall(closing(1012))
        assert client.is_closed_by_peer()
    assert told.get(timeout=PATIENCE)["code"] == 1012
    assert errors_of(server) == []


def test_application_that_never_ends(serve: Serve) -> None:
    """It is cancelled when the graceful time is over, accepted or not."""
    waiting = threading.Semaphore(0)
    ends: queue.Queue[str] = queue.Queue()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        if scope["path"] == "/accepts":
            await send(ACCEPT)
        waiting.release()
        try:
            await anyio.sleep_forever()
        finally:
            ends.put(scope["path"])

    server = serve(app, lifespan="off", graceful_timeout=0.2)
    with server.websocket("/accepts") as one, server.connect() as two:
        two.sendall(handshake("/does-not"))
        for _ in range(2):
            assert waiting.acquire(timeout=PATIENCE)
        server.ask_to_stop()
        assert one.read_close()[0] == 1012
        assert two.read_response().status == 503
        assert {ends.get(timeout=PATIENCE) for _ in range(2)} == {"/accepts", "/does-not"}
        (error,) = errors_of(server)
        assert "cancelling 2" in error


# ----------------------------------------------------------------- cancellation


def test_cancelled_receive(serve: Serve) -> None:
    """The time is over again and again, just before, just after and just as it comes."""
    count = 100

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert await receive() == {"type": "websocket.connect"}
        await send(ACCEPT)
        told = []
        with anyio.fail_after(PATIENCE):
            while not told or told[-1]["type"] == "websocket.receive":
                with anyio.move_on_after(0.001):
                    told.append(await receive())
        assert told == [*(received(str(n)) for n in range(count)), ended(1000)]

    server = serve(app, lifespan="off")
    with server.websocket() as client:
        for number in range(count):
            client.sendall(frame(TEXT, b"%d" % number))
            time.sleep(0.0005 + number % 3 * 0.0005)
        client.close_with()
    assert errors_of(server) == []


def test_cancelled_send(serve: Serve) -> None:
    """A send() that is held up and cancelled has taken its message all the same."""
    held_up = threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(ACCEPT)
        count = 0
        while not held_up.is_set():
            with anyio.move_on_after(0.05) as waiting:
                await send(to_send(b"%08d" % count * 8192))
            count += 1
            if waiting.cancelled_caught:
                held_up.set()
        await send(to_send(str(count)))

    server = serve(app, lifespan="off")
    with server.websocket() as client:
        assert held_up.wait(PATIENCE)
        for number in itertools.count():
            first, payload = client.read_frame()
            if first == TEXT:
                assert int(payload) == number
                break
            assert payload == b"%08d" % number * 8192
        client.close_with()
    assert errors_of(server) == []


# -------------------------------------------------------------------- access log


def test_access_log(serve: Serve, tmp_path: Path) -> None:
    """A line for the handshake, whatever came of it, and none for what follows."""
    path = tmp_path / "access.log"

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/no":
            return await send({"type": "websocket.close"})
        await send(ACCEPT)
        await until_disconnect(receive)

    server = serve(app, lifespan="off", access_logfile=str(path))
    with server.websocket("/chat?room=1") as client:
        client.sendall(10 * frame(TEXT, b"text"))
        client.close_with()
    with server.connect() as refused:
        refused.sendall(handshake("/no"))
        assert refused.read_response().status == 403
    with server.connect() as old:
        old.sendall(handshake("/old").replace(b"Version: 13", b"Version: 8"))
        assert old.read_response().status == 426
    server.stop()
    lines = path.read_text().splitlines()
    assert len(lines) == 3
    for line, text in zip(
        lines,
        ['/chat?room=1 HTTP/1.1" 101 0', '/no HTTP/1.1" 403 0', '/old HTTP/1.1" 426 '],
        strict=True,
    ):
        assert line.startswith("127.0.0.1 - - [")
        assert f'"GET {text}' in line
        assert re.search(r" \d+us$", line)


# -------------------------------------------------------------------------- many


@pytest.fixture
def many_descriptors() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 6000
    if soft < needed:
        if hard != resource.RLIM_INFINITY and hard < needed:
            pytest.skip("too few descriptors are allowed")
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def connect_many(server: Running, count: int, target: str = "/") -> list[WebSocketClient]:
    clients = []
    for _ in range(count):
        clients.append(client := WebSocketClient(server.address))
        client.sendall(handshake(target))
    for client in clients:
        assert client.read_response().status == 101
    return clients


@measures_memory
def test_many_with_a_slow_reader(serve: Serve, many_descriptors: None) -> None:
    """Two thousand are served as if one of them were not held up; each of them costs little."""
    count = 2000
    sent = 0
    app = Application()

    async def pour(scope: Any, receive: Any, send: Any) -> None:
        nonlocal sent
        await send(ACCEPT)
        with pytest.raises(fastserve.ClientDisconnected):
            while True:
                await send(to_send(bytes(65536)))
                sent += 1

    server = serve(routes(pour=pour, echo=app), lifespan="off", backlog=count)
    slow = server.websocket("/pour")
    held_up = settled(lambda: sent)
    before = resident_memory()
    clients = connect_many(server, count, "/echo")
    for number in range(3):
        for client in clients:
            client.sendall(frame(TEXT, b"message %d" % number))
        for client in clients:
            assert client.read_frame() == (TEXT, b"message %d" % number)
    # The clients in this process are a part of it.
    assert (resident_memory() - before) / count < 40_000
    assert sent == held_up
    reset(slow)
    for client in clients:
        client.sendall(closing(1000))
    for client in clients:
        assert client.read_close() == (1000, "")
        client.close()
    eventually(lambda: app.told.qsize() == 4 * count)
    assert errors_of(server) == []


def test_resets_in_the_middle_of_a_frame(serve: Serve, many_descriptors: None) -> None:
    app = Application()
    server = serve(routes(echo=app), lifespan="off", backlog=300)
    clients = connect_many(server, 300, "/echo")
    for number, client in enumerate(clients):
        client.sendall(frame(BINARY, bytes(1000))[: 1 + number])
    assert_alive(server)
    for client in clients:
        reset(client)
    for _ in clients:
        assert app.next() == LOST
    assert_alive(server)
    assert errors_of(server) == []


@measures_memory
def test_soak(serve: Serve) -> None:
    """A thousand come and go, each in its way, and all is as it was."""
    app = Application()
    server = serve(app, lifespan="off")
    ends: list[Callable[[WebSocketClient], object]] = [
        WebSocketClient.close_with,
        Client.close,
        reset,
        lambda client: (client.sendall(unmasked(TEXT)), client.read_close(), client.close()),
        lambda client: (client.sendall(frame(BINARY, bytes(100))[:50]), reset(client)),
    ]
    content = b"x" * 2000

    def come_and_go(times: int) -> None:
        for number in range(times):
            client = server.websocket("/", *([OFFER] if number % 2 else []))
            client.sendall(frame(TEXT, content))
            found, payload = client.read_frame()
            assert (inflated(payload) if found & RSV1 else payload) == content
            ends[number % len(ends)](client)
            assert app.next()["text"] == content.decode()
            assert app.next()["type"] == "websocket.disconnect"
        app.scopes.clear()
        assert_alive(server)

    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    come_and_go(200)
    files, memory = descriptors(), resident_memory()
    come_and_go(1000)
    eventually(lambda: descriptors() <= files)
    assert resident_memory() - memory < 2 * MIB
    assert errors_of(server) == []
