"""The ASGI conversation: scopes, events, waiting, disconnects and what goes wrong in an app.

The applications run under each loop; what they find wrong they raise, and the server
logs it, so that most tests end by asking that nothing was logged.
"""

from __future__ import annotations

import asyncio
import contextvars
import copy
import gc
import queue
import re
import socket
import sys
import threading
import time
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import anyio
import pytest
import sniffio
from conftest import PATIENCE, Client, Running, Serve, hello, read_body, request, reset, respond

import fastserve

START = {"type": "http.response.start", "status": 200, "headers": []}
Message = dict[str, Any]


def body_of(data: Any, more_body: bool = False) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": more_body}


def routes(**applications: Any) -> Any:
    """The application named like the path."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await applications[scope["path"][1:]](scope, receive, send)

    return app


def upload(length: int, body: bytes = b"") -> bytes:
    return f"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: {length}\r\n\r\n".encode() + body


def assert_alive(server: Running) -> None:
    """A new connection is served as if nothing had been."""
    with server.connect() as client:
        assert client.get("/hello").body == b"Hello, world!"


async def until(event: threading.Event) -> None:
    """Waits, in an application, for what a test does in its own thread."""
    with anyio.fail_after(PATIENCE):
        while not event.is_set():
            await anyio.sleep(0.002)


async def until_disconnect(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


# ------------------------------------------------------------------------- scopes


def test_scope(serve: Serve) -> None:
    scopes: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scopes.append(scope)
        await respond(send)

    server = serve(app, lifespan="off")
    with server.connect() as client:
        client.sendall(
            b"GET /caf%C3%A9?a=%20 HTTP/1.1\r\nHOST: test\r\nX-One: 1\r\nCookie: a\r\n"
            b"X-Two:\t two words \t\r\nx-one: 2\r\nCookie: b\r\nx-none:\r\nX-Latin: \xe9\r\n\r\n"
        )
        assert client.read_response().status == 200
        address = client.getsockname()
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert client.read_response().status == 200
    scope, old = scopes
    assert type(scope) is dict
    assert scope == {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": "/café",
        "raw_path": b"/caf%C3%A9",
        "query_string": b"a=%20",
        "root_path": "",
        "headers": [
            (b"host", b"test"),
            (b"x-one", b"1"),
            (b"cookie", b"a"),
            (b"x-two", b"two words"),
            (b"x-one", b"2"),
            (b"cookie", b"b"),
            (b"x-none", b""),
            (b"x-latin", b"\xe9"),
        ],
        "client": address,
        "server": server.address,
        "extensions": {
            "http.response.early_hint": {},
            "http.response.trailers": {},
            "http.response.pathsend": {},
            "http.response.zerocopysend": {},
            "fastserve.shutdown": {"wait": ANY, "is_set": ANY},
        },
    }
    assert old["http_version"] == "1.0"
    assert old["headers"] == []
    assert old["query_string"] == b""


def test_scope_on_a_unix_socket(serve: Serve, tmp_path: Path) -> None:
    scopes: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scopes.append(scope)
        await respond(send, b"unix")

    path = str(tmp_path / "socket")
    server = serve(app, bind=f"unix:{path}", lifespan="off")
    with server.connect() as client:
        assert client.get("/").body == b"unix"
    assert tuple(scopes[0]["server"]) == (path, None)
    assert scopes[0]["client"] is None


def test_unix_client_that_left(serve: Serve, tmp_path: Path) -> None:
    """Where a close and a half-close can be told apart, both are."""
    left = threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await read_body(receive)
        assert (await receive())["type"] == "http.disconnect"
        await respond(send, b"bye")
        left.set()

    server = serve(app, bind=f"unix:{tmp_path / 'socket'}", lifespan="off")
    with server.connect() as client:
        client.sendall(request("GET", "/"))
    assert left.wait(PATIENCE)
    with server.connect() as client:
        client.sendall(request("GET", "/"))
        client.shutdown(socket.SHUT_WR)
        assert client.read_response().body == b"bye"
    assert server.errors == []


def test_scopes_are_not_shared(serve: Serve) -> None:
    """An application may write into its scope, and nobody else sees it."""
    shared = object()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            assert (await receive())["type"] == "lifespan.startup"
            scope["state"]["shared"] = shared
            await send({"type": "lifespan.startup.complete"})
            assert (await receive())["type"] == "lifespan.shutdown"
            assert set(scope["state"]) == {"shared"}
            await send({"type": "lifespan.shutdown.complete"})
            return
        assert scope["state"] == {"shared": shared}
        assert set(scope["asgi"]) == {"version", "spec_version"}
        assert "mine" not in scope
        assert len(scope["headers"]) == 1
        assert "mine" not in scope["extensions"]
        assert not any("mine" in known for known in scope["extensions"].values())
        for known in scope["extensions"].values():
            known["mine"] = 1
        scope["extensions"]["mine"] = {}
        scope["mine"] = scope["asgi"]["mine"] = scope["state"]["mine"] = 1
        scope["headers"].append((b"mine", b"1"))
        await respond(send, b"fine")

    server = serve(app)
    for _ in range(2):
        with server.connect() as client:
            client.sendall(3 * request("GET", "/"))
            for _ in range(3):
                assert client.read_response().body == b"fine"
    server.stop()
    assert server.errors == []


def test_root_path(serve: Serve) -> None:
    """ASGI: `path` contains `root_path`, whether or not a proxy has taken it away."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await respond(send, repr((scope["root_path"], scope["path"], scope["raw_path"])).encode())

    server = serve(app, root_path="/api/")
    with server.connect() as client:
        for target, path in [
            ("/users", "/api/users"),
            ("/", "/api/"),
            ("/api", "/api"),
            ("/api/users", "/api/users"),
            ("/apiary", "/api/apiary"),
        ]:
            assert client.get(target).body == repr(("/api", path, target.encode())).encode()
        client.sendall(request("OPTIONS", "*"))
        assert client.read_response().body == repr(("/api", "*", b"*")).encode()


def test_spec_version_and_option(serve: Serve) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await respond(send, scope["asgi"]["spec_version"].encode())

    for option, version in [(False, b"2.3"), (True, b"2.5")]:
        with serve(app, raise_on_disconnect=option).connect() as client:
            assert client.get("/").body == version


class Asgi2:
    """An application of the two-step kind."""

    def __init__(self, scope: Any) -> None:
        self.scope = scope

    async def __call__(self, receive: Any, send: Any) -> None:
        await respond(send, b"two steps: " + await read_body(receive))


def test_kinds_of_application(serve: Serve) -> None:
    class Single:
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await respond(send, b"object: " + await read_body(receive))

    class Final:
        """ASGI 3, but no coroutine function: its result is awaitable."""

        def __init__(self, scope: Any, receive: Any, send: Any) -> None:
            self.receive, self.send = receive, send

        def __await__(self) -> Any:
            return respond(self.send, b"awaited: x").__await__()

    for application, factory, expected in [
        (Asgi2, False, b"two steps: x"),
        (lambda: Asgi2, True, b"two steps: x"),
        (Single(), False, b"object: x"),
        (Single, True, b"object: x"),
        (Final, False, b"awaited: x"),
    ]:
        server = serve(application, factory=factory, lifespan="off")
        with server.connect() as client:
            for _ in range(2):
                client.sendall(request("POST", "/", body=b"x"))
                assert client.read_response().body == expected
        assert server.errors == []


def test_calls_that_fail(serve: Serve) -> None:
    """What is raised before there is a coroutine, and what is none."""

    def raising(scope: Any, receive: Any, send: Any) -> Any:
        raise LookupError("no coroutine")

    def returning(scope: Any, receive: Any, send: Any) -> Any:
        return None

    for application, error in [(raising, LookupError), (returning, TypeError)]:
        server = serve(application, lifespan="off")
        for _ in range(2):
            with server.connect() as client:
                assert client.get("/").status == 500
                assert client.is_closed_by_peer()
        assert [type(logged) for logged in server.exceptions()] == [error, error]


# ------------------------------------------------------------------------ messages


BAD_MESSAGES: list[tuple[list[Message], Any, type[Exception], str]] = [
    # what was sent before; the message; the exception, and what its text must name
    ([], None, TypeError, "dict"),
    ([], [("type", "http.response.start")], TypeError, "dict"),
    ([], {}, ValueError, "type None"),
    ([], {"type": None}, ValueError, "type None"),
    ([], {"type": "http.response.nonsense"}, ValueError, "http.response.nonsense"),
    ([], {"type": b"http.response.start", "status": 200}, ValueError, "http.response.start"),
    ([], {"type": "websocket.accept"}, ValueError, "websocket.accept"),
    ([], {"type": "http.response.push", "headers": []}, ValueError, "push"),
    ([START], {"type": "http.response.nonsense"}, ValueError, "nonsense"),
    ([], body_of(b"early"), RuntimeError, "^http.response.body.*http.response.start"),
    ([START], START, RuntimeError, "http.response.start"),
    ([START, body_of(b"", True)], START, RuntimeError, "http.response.start"),
    ([], {"type": "http.response.start"}, TypeError, "http.response.start.*status"),
    *(
        ([], {"type": "http.response.start", "status": status}, kind, "response.start.*status")
        for status, kind in [
            (None, TypeError),
            ("200", TypeError),
            (200.0, TypeError),
            (b"200", TypeError),
            (0, ValueError),
            (-200, ValueError),
            (99, ValueError),
            (101, ValueError),
            (199, ValueError),
            (1000, ValueError),
            (2**70, ValueError),
        ]
    ),
    *(
        (
            [],
            {"type": "http.response.start", "status": 200, "headers": headers},
            TypeError,
            "http.response.start.*headers",
        )
        for headers in [
            None,
            1,
            "ab",
            b"ab",
            {b"a": b"b"},
            [None],
            [b"ab"],
            ["ab"],
            [(b"a",)],
            [(b"a", b"b", b"c")],
            [("a", b"b")],
            [(b"a", "b")],
            [(b"a", None)],
            [(b"a", 1)],
            [(bytearray(b"a"), b"b")],
        ]
    ),
    *(
        (
            [],
            {"type": "http.response.start", "status": 200, "headers": [header]},
            ValueError,
            f"http.response.start.*{word}",
        )
        for header, word in [
            ((b"", b"b"), "header"),
            ((b"a b", b"c"), "header"),
            ((b":status", b"200"), "header"),
            ((b"a:", b"c"), "header"),
            ((b"a\r\nb", b"c"), "header"),
            ((b"a\0", b"c"), "header"),
            ((b"caf\xe9", b"c"), "header"),
            ((b"a", b"b\r\nset-cookie: c"), "header"),
            ((b"a", b"b\r\n\r\nHTTP/1.1 200 OK"), "header"),
            ((b"a", b"b\rc"), "header"),
            ((b"a", b"b\nc"), "header"),
            ((b"a", b"b\0c"), "header"),
            ((b"a", b"b\x7fc"), "header"),
            ((b"Transfer-Encoding", b"b\r\nc: d"), "header"),
            ((b"Connection", b"close\r\nc: d"), "header"),
            ((b"content-length", b"x"), "content-length"),
            ((b"content-length", b""), "content-length"),
            ((b"content-length", b"-1"), "content-length"),
            ((b"content-length", b"+1"), "content-length"),
            ((b"content-length", b"1, 1"), "content-length"),
            ((b"content-length", b"9" * 30), "content-length"),
        ]
    ),
    (
        [],
        {
            "type": "http.response.start",
            "status": 200,
            "headers": [(b"content-length", b"1"), (b"Content-Length", b"2")],
        },
        ValueError,
        "content-length",
    ),
    *(
        ([START], body_of(data), TypeError, "http.response.body.*body")
        for data in ["text", None, 1, [b"a"], 1.5, {}]
    ),
    ([START, body_of(b"", True)], body_of("text"), TypeError, "http.response.body.*body"),
]


def test_bad_messages(serve: Serve) -> None:
    """Each is an error out of send(), and what was refused is not on the wire."""
    caught: queue.Queue[Exception | None] = queue.Queue()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        before, wrong, _, _ = BAD_MESSAGES[int(scope["query_string"])]
        for message in before:
            await send(message)
        try:
            await send(wrong)
        except Exception as error:
            caught.put(error)
        else:
            caught.put(None)
        if START not in before:
            await send(START)
        await send(body_of(b"right"))

    server = serve(app, lifespan="off")
    with server.connect() as client:
        for number, (before, wrong, kind, words) in enumerate(BAD_MESSAGES):
            client.sendall(request("GET", f"/?{number}"))
            response = client.read_response()
            error = caught.get(timeout=PATIENCE)
            assert type(error) is kind, (before, wrong, error)
            assert re.search(words, str(error), re.DOTALL), (before, wrong, error)
            assert (response.status, response.body) == (200, b"right"), (before, wrong)
            assert response.field(b"set-cookie") is None, (before, wrong)
    assert server.errors == []


def test_good_messages(serve: Serve) -> None:
    """Whatever ASGI allows, and the types that stand for bytes."""

    class Bytes(bytes):
        pass

    class Number(int):
        pass

    many: list[tuple[list[Message], int, bytes]] = [
        ([{"type": "http.response.start", "status": 201}, body_of(b"a")], 201, b"a"),
        ([START, {"type": "http.response.body"}], 200, b""),
        ([START, {"type": "http.response.body", "more_body": True}, body_of(b"b")], 200, b"b"),
        ([{**START, "more": 1, "trailers": False}, {**body_of(b"c"), "x": 2}], 200, b"c"),
        ([{**START, "status": Number(202)}, body_of(b"d")], 202, b"d"),
        ([START, body_of(bytearray(b"e"))], 200, b"e"),
        ([START, body_of(memoryview(b"xfx")[1:2])], 200, b"f"),
        ([START, body_of(memoryview(b"g.h.")[::2])], 200, b"gh"),
        ([START, body_of(bytearray(b"i"), True), body_of(memoryview(b"j"))], 200, b"ij"),
        ([START, body_of(Bytes(b"k"))], 200, b"k"),
        ([{**START, "headers": ((b"x-y", b"z"),)}, body_of(b"l")], 200, b"l"),
        ([{**START, "headers": [[b"x-y", b"z"]]}, body_of(b"m")], 200, b"m"),
        ([{**START, "headers": iter([(b"x-y", b"z")])}, body_of(b"n")], 200, b"n"),
        ([{**START, "headers": [(Bytes(b"x-y"), Bytes(b"z"))]}, body_of(b"o")], 200, b"o"),
    ]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        messages, _, _ = many[int(scope["query_string"])]
        for message in messages:
            assert await send(message) is None

    server = serve(app, lifespan="off")
    with server.connect() as client:
        for number, (messages, status, body) in enumerate(many):
            response = client.get(f"/?{number}")
            assert (response.status, response.body) == (status, body), messages
            if "headers" in messages[0] and messages[0]["headers"] != []:
                assert response.field(b"x-y") == b"z", messages
    assert server.errors == []


def test_what_is_changed_after_send_is_not_seen(serve: Serve) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        start = copy.deepcopy(START)
        start["headers"].append([b"x-y", b"before"])
        await send(start)
        start["headers"][0][1] = b"after\r\nx-z: injected"
        start["status"] = 500
        piece = bytearray(b"x" * 100_000)
        await send(body_of(piece, True))
        piece[:] = b"y" * 100_000
        await send(body_of(b""))

    server = serve(app)
    with server.connect() as client:
        response = client.get("/")
        assert (response.status, response.field(b"x-y")) == (200, b"before")
        assert response.body == b"x" * 100_000


def test_messages_after_the_end_are_ignored(serve: Serve) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await respond(send, b"whole")
        for message in (body_of(b"more"), body_of("text"), START, {"type": "nonsense"}, {}):
            await send(message)

    server = serve(app)
    with server.connect() as client:
        for _ in range(3):
            assert client.get("/").body == b"whole"
    assert server.errors == []


def test_start_alone_is_not_on_the_wire(serve: Serve) -> None:
    """ASGI: a failure before the first body may still be answered by 500."""
    go_on = threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        await until(go_on)
        raise LookupError("on purpose")

    server = serve(app, lifespan="off")
    with server.connect() as client:
        client.sendall(request("GET", "/"))
        client.settimeout(0.1)
        with pytest.raises(TimeoutError):
            client.recv(1)
        client.settimeout(PATIENCE)
        go_on.set()
        assert client.read_response().status == 500
    [record] = server.errors
    text = "".join(traceback.format_exception(record.exc_info[1]))
    assert "on purpose" in text
    assert "test_asgi.py" in text


def test_each_piece_is_sent_at_once(serve: Serve) -> None:
    """ASGI: a body is on its way when send() returns, whatever the application does then."""
    go_on = threading.Semaphore(0)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        for number in range(5):
            await send(body_of(b"piece %d" % number, True))
            with anyio.fail_after(PATIENCE):
                while not go_on.acquire(blocking=False):
                    await anyio.sleep(0.002)
        await send(body_of(b""))

    server = serve(app)
    with server.connect() as client:
        client.sendall(request("GET", "/") + request("GET", "/"))
        for _ in range(2):
            for number in range(5):
                client.read_until(b"piece %d\r\n" % number)
                go_on.release()
        client.read_until(b"0\r\n\r\n")
    assert server.errors == []


# ----------------------------------------------------------------- the end, and after


def test_disconnect_after_the_end(serve: Serve) -> None:
    """It is told at once, every time, and the connection goes on."""
    done = threading.Semaphore(0)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/read":
            await read_body(receive)
        await respond(send, b"answer")
        with anyio.fail_after(PATIENCE):
            for _ in range(200):
                assert await receive() == {"type": "http.disconnect"}
        done.release()

    server = serve(app, lifespan="off")
    with server.connect() as client:
        for path in ("/read", "/unread", "/read", "/unread"):
            client.sendall(request("POST", path, body=b"some body"))
            assert client.read_response().body == b"answer"
            assert done.acquire(timeout=PATIENCE)
    assert server.errors == []


def test_disconnect_wakes_who_waits_for_the_end(serve: Serve) -> None:
    """As Starlette's responses do: one task streams, another one listens."""
    done = threading.Semaphore(0)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await read_body(receive)
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(until_disconnect, receive)
            await anyio.sleep(0.01)
            await send(START)
            await send(body_of(b"x" * 300_000, True))
            await send(body_of(b"y"))
        done.release()

    server = serve(app, lifespan="off")
    with server.connect() as client:
        for _ in range(2):
            assert len(client.get("/").body) == 300_001
            assert done.acquire(timeout=PATIENCE)
    assert server.errors == []


def leave_by_close(client: Client) -> None:
    client.close()


def leave_by_half_close(client: Client) -> None:
    client.shutdown(socket.SHUT_WR)


LEAVING: list[Callable[[Client], None]] = [leave_by_close, leave_by_half_close, reset]


def test_disconnect_when_the_client_leaves(serve: Serve) -> None:
    """The application is told, any number of times, and is not cancelled."""
    ends: queue.Queue[str] = queue.Queue()
    started = threading.Semaphore(0)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        length = len(await read_body(receive)) if scope["path"] == "/read" else 0
        started.release()
        try:
            with anyio.fail_after(PATIENCE):
                await until_disconnect(receive)
                for _ in range(100):
                    assert await receive() == {"type": "http.disconnect"}
            await anyio.sleep(0.02)
            for message in (START, body_of(b"a", True), body_of(b"b", True), body_of(b"c")):
                await send(message)
                await anyio.sleep(0.005)
            await anyio.sleep(0.02)
        except BaseException as error:
            ends.put(repr(error))
            raise
        ends.put(f"done {length}")

    server = serve(routes(hello=hello, read=app, unread=app), lifespan="off")
    for leave in LEAVING:
        for path, sent, length in [
            ("/read", b"four", 4),
            ("/unread", b"four", 0),
            ("/unread", b"tw", 0),
        ]:
            client = server.connect()
            with client:
                client.sendall(upload(4, sent).replace(b"/", path.encode(), 1))
                assert started.acquire(timeout=PATIENCE)
                leave(client)
                assert ends.get(timeout=PATIENCE) == f"done {length}", (leave, path)
    assert_alive(server)
    assert server.errors == []


def test_send_raises_where_it_is_asked_to(serve: Serve) -> None:
    """raise_on_disconnect: an endless stream ends by itself, and nothing is logged."""
    caught: queue.Queue[BaseException] = queue.Queue()

    async def pour(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        try:
            while True:
                await send(body_of(b"x" * 100, True))
        except BaseException as error:
            caught.put(error)
            raise

    async def swallowing(scope: Any, receive: Any, send: Any) -> None:
        with pytest.raises(fastserve.ClientDisconnected):
            await pour(scope, receive, send)
        for _ in range(3):
            with pytest.raises(fastserve.ClientDisconnected):
                await send(body_of(b"more"))
        with pytest.raises(fastserve.ClientDisconnected):
            await send(body_of(b"more", True))
        assert await receive() == {"type": "http.disconnect"}

    async def in_a_group(scope: Any, receive: Any, send: Any) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(pour, scope, receive, send)

    server = serve(
        routes(hello=hello, pour=pour, swallowing=swallowing, in_a_group=in_a_group),
        raise_on_disconnect=True,
        lifespan="off",
    )
    for path in ("/pour", "/swallowing", "/in_a_group"):
        for leave in (leave_by_close, reset):
            with server.connect() as client:
                client.sendall(request("GET", path))
                client.read_until(b"\r\n\r\n")
                leave(client)
                error = caught.get(timeout=PATIENCE)
                assert isinstance(error, fastserve.ClientDisconnected), (path, leave)
                assert isinstance(error, OSError)
    assert_alive(server)
    server.stop()
    assert server.errors == []


def test_send_raises_when_the_server_has_cut_the_answer(serve: Serve) -> None:
    """To a stream it is the same who ended the connection."""
    caught: queue.Queue[BaseException] = queue.Queue()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        try:
            while True:
                await send(body_of(b"x", True))
                await anyio.sleep(0.002)
        except BaseException as error:
            caught.put(error)
            raise

    server = serve(
        app, raise_on_disconnect=True, body_timeout=0.1, graceful_timeout=0.5, lifespan="off"
    )
    with server.connect() as client:
        client.sendall(upload(10, b"half"))
        client.read_until(b"\r\n\r\n")
        assert not client.read_to_end().endswith(b"0\r\n\r\n")
        error = caught.get(timeout=PATIENCE)
        assert isinstance(error, fastserve.ClientDisconnected)


def test_other_errors_are_logged_with_it(serve: Serve) -> None:
    """ClientDisconnected is no news; what came with it is."""
    started = threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        started.set()
        await until_disconnect(receive)
        try:
            await send(START)
            while True:
                await send(body_of(b"x", True))
        except fastserve.ClientDisconnected as error:
            raise ExceptionGroup("two", [error, LookupError("another")]) from None

    server = serve(app, raise_on_disconnect=True, lifespan="off")
    with server.connect() as client:
        client.sendall(request("GET", "/"))
        assert started.wait(PATIENCE)
        reset(client)
    server.stop()
    [error] = server.exceptions()
    assert "another" in "".join(traceback.format_exception(error))


def test_stream_ends_when_its_reader_leaves(serve: Serve) -> None:
    """By default it is receive() that tells an endless stream to stop."""
    ended = threading.Semaphore(0)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async with anyio.create_task_group() as group:

            async def listen() -> None:
                await until_disconnect(receive)
                group.cancel_scope.cancel()

            group.start_soon(listen)
            await send(START)
            while True:
                await send(body_of(b"tick", True))
                if scope["path"] == "/slow":
                    await anyio.sleep(0.002)
        ended.release()

    server = serve(routes(hello=hello, slow=app, fast=app), lifespan="off")
    for path in ("/slow", "/fast"):
        for leave in LEAVING:
            with server.connect() as client:
                client.sendall(request("GET", path))
                client.read_until(b"tick")
                leave(client)
                if leave is leave_by_half_close:
                    assert not client.read_to_end().endswith(b"0\r\n\r\n")
                assert ended.acquire(timeout=PATIENCE), (path, leave)
    assert_alive(server)
    # It did as it was told: to leave a response incomplete is no error then.
    assert server.errors == []


def test_one_connection_does_not_harm_another(serve: Serve) -> None:
    """Failures of all kinds next to a response that goes on slowly."""
    go_on = threading.Event()

    async def patient(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        await send(body_of(b"begin ", True))
        await until(go_on)
        await send(body_of(b"end"))

    async def failing(scope: Any, receive: Any, send: Any) -> None:
        if scope["query_string"] == b"later":
            await send(START)
            await send(body_of(b"part", True))
            await anyio.sleep(0.002)
        raise [LookupError("on purpose"), SystemExit(1), BaseException("worse")][
            len(scope["headers"]) % 3
        ]

    server = serve(routes(hello=hello, patient=patient, failing=failing), lifespan="off")
    with server.connect() as bystander:
        bystander.sendall(request("GET", "/patient"))
        bystander.read_until(b"begin ")
        for query in ("", "?later"):
            for count in range(3):
                with server.connect() as client:
                    client.sendall(request("GET", f"/failing{query}", *["x: y"] * count))
                    client.read_to_end()
        for garbage in (b"\0\0\0\0\r\n", b"GET", request("GET", "/patient")):
            client = server.connect()
            client.sendall(garbage)
            reset(client)
        assert_alive(server)
        go_on.set()
        assert bystander.read_until(b"0\r\n\r\n").endswith(b"end\r\n0\r\n\r\n")
    kinds = [type(error) for error in server.exceptions()]
    assert len(kinds) == 6
    assert set(kinds) == {LookupError, SystemExit, BaseException}


# ---------------------------------------------------------------------- contexts

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="fresh")


def test_context_is_fresh(serve: Serve) -> None:
    """In a pipeline, on a connection that is kept, and on others."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        found = variable.get()
        variable.set(scope["path"])
        if scope["query_string"]:
            await anyio.sleep(0.001)
        await read_body(receive)
        await respond(send, found.encode())
        assert variable.get() == scope["path"]

    server = serve(app)
    with server.connect() as first, server.connect() as second:
        for client in (first, second, first):
            client.sendall(
                request("POST", "/1", body=b"a") + request("GET", "/2?wait") + request("GET", "/3")
            )
            for _ in range(3):
                assert client.read_response().body == b"fresh"
    assert server.errors == []


def test_context_is_fresh_after_reading_was_paused(serve: Serve) -> None:
    """The event loop is told of sockets in the middle of an application's call, too."""
    second = threading.Event()
    ended = threading.Semaphore(0)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        found = variable.get()
        variable.set(scope["path"])
        if scope["path"] == "/unread":
            await until(full)
            await respond(send, found.encode())
            await until(second)  # it goes on, so that another task serves the next request
        elif scope["path"] == "/stalled":
            await respond(send, found.encode() + bytes(16 * 1024 * 1024))
            await until(second)
        else:
            second.set()
            await respond(send, found.encode())
        ended.release()

    server = serve(app, lifespan="off")
    full = threading.Event()
    body = bytes(200_000)
    for path in ("/unread", "/stalled"):
        second.clear()
        full.clear()
        with server.connect() as client:
            if path == "/unread":
                client.sendall(request("POST", path, body=body))
                full.set()
            else:
                client.sendall(request("GET", path) + request("GET", "/next"))
            assert client.read_response().body.startswith(b"fresh")
            if path == "/unread":
                client.sendall(request("GET", "/next"))
            assert client.read_response().body == b"fresh", path
            for _ in range(2):
                assert ended.acquire(timeout=PATIENCE)
    assert server.errors == []


def test_loop_is_known(serve: Serve, worker: str) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        library = sniffio.current_async_library()
        if library == "trio":
            import trio

            task: Any = trio.lowlevel.current_task()
            assert task is not None
            assert task.parent_nursery is not None
            loop = "trio"
        else:
            task = asyncio.current_task()
            assert task is not None
            assert task in asyncio.all_tasks()
            module = type(asyncio.get_running_loop()).__module__
            loop = "uvloop" if module.startswith("uvloop") else "asyncio"
        await anyio.sleep(0)
        await respond(send, f"{library} {loop}".encode())

    server = serve(app)
    library = "trio" if worker == "trio" else "asyncio"
    with server.connect() as client:
        for _ in range(2):
            assert client.get("/").body == f"{library} {worker}".encode()
    assert server.errors == []


# ----------------------------------------------------------------------- waiting


async def collect(receive: Callable[[], Awaitable[Message]]) -> bytes:
    """The body, through a `receive` that may give up now and then by TimeoutError."""
    body = b""
    while True:
        try:
            message = await receive()
        except TimeoutError:
            continue
        assert message["type"] == "http.request", message
        body += message["body"]
        if not message["more_body"]:
            return body


def waits_of_asyncio(receive: Any, seconds: float) -> dict[str, Any]:
    async def wait_for() -> Message:
        return await asyncio.wait_for(receive(), seconds)

    async def timeout() -> Message:
        async with asyncio.timeout(seconds):
            return await receive()

    async def task() -> Message:
        waiting = asyncio.create_task(receive())
        done, _ = await asyncio.wait([waiting], timeout=seconds)
        if not done and not waiting.done():
            waiting.cancel()
            try:
                return await waiting
            except asyncio.CancelledError:
                raise TimeoutError from None
        return waiting.result()

    async def group() -> Message:
        async with asyncio.timeout(seconds), asyncio.TaskGroup() as group:
            waiting = group.create_task(receive())
        return waiting.result()

    async def gather() -> Message:
        async with asyncio.timeout(seconds):
            [message] = await asyncio.gather(receive())
        return message

    return {
        "wait_for": wait_for,
        "timeout": timeout,
        "task": task,
        "group": group,
        "gather": gather,
    }


def waits_of_trio(receive: Any, seconds: float) -> dict[str, Any]:
    import trio

    async def fail_after() -> Message:
        try:
            with trio.fail_after(seconds):
                return await receive()
        except trio.TooSlowError:
            raise TimeoutError from None

    async def nursery() -> Message:
        messages: list[Message] = []

        async def take() -> None:
            messages.append(await receive())

        with trio.move_on_after(seconds):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(take)
        if not messages:
            raise TimeoutError
        return messages[0]

    return {"fail_after": fail_after, "nursery": nursery}


def waits_of_anyio(receive: Any, seconds: float) -> dict[str, Any]:
    async def fail_after() -> Message:
        with anyio.fail_after(seconds):
            return await receive()

    async def group() -> Message:
        messages: list[Message] = []

        async def take() -> None:
            messages.append(await receive())

        with anyio.move_on_after(seconds):
            async with anyio.create_task_group() as group:
                group.start_soon(take)
        if not messages:
            raise TimeoutError
        return messages[0]

    return {"anyio fail_after": fail_after, "anyio group": group}


def test_receive_may_be_given_up(serve: Serve, worker: str) -> None:
    """Whatever the loop offers to wait with: a wait that ends early loses nothing."""
    own = waits_of_trio if worker == "trio" else waits_of_asyncio
    names = [*own(None, 0), *waits_of_anyio(None, 0)]
    given_up = threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        wait = {**own(receive, 0.02), **waits_of_anyio(receive, 0.02)}[
            names[int(scope["query_string"])]
        ]
        for _ in range(3):
            with pytest.raises(TimeoutError):
                await wait()
        given_up.set()
        with anyio.fail_after(PATIENCE):
            body = await collect(wait)
        with pytest.raises(TimeoutError):
            await wait()  # there is nothing more, and it is not told twice
        await respond(send, body)

    server = serve(app, lifespan="off")
    with server.connect() as client:
        for number, name in enumerate(names):
            given_up.clear()
            client.sendall(upload(10).replace(b"/ ", b"/?%d " % number, 1))
            assert given_up.wait(PATIENCE), name
            client.sendall(b"01234")
            client.sendall(b"56789")
            assert client.read_response().body == b"0123456789", name
    assert server.errors == []


def test_receive_given_up_as_data_arrives(serve: Serve, worker: str) -> None:
    """The time is over again and again, just before, just after and just as it comes."""
    own = waits_of_trio if worker == "trio" else waits_of_asyncio
    names = [*own(None, 0), *waits_of_anyio(None, 0)]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        name = names[int(scope["query_string"])]
        wait = {**own(receive, 0.001), **waits_of_anyio(receive, 0.001)}[name]
        with anyio.fail_after(PATIENCE):
            await respond(send, await collect(wait))

    server = serve(app, lifespan="off")
    with server.connect() as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for number, name in enumerate(names):
            if name in ("group", "gather", "nursery", "anyio group"):
                continue  # there the task may have taken what its parent no longer wants
            client.sendall(upload(60).replace(b"/ ", b"/?%d " % number, 1))
            for at in range(60):
                client.sendall(b"%c" % (32 + at))
                time.sleep(0.0005 + at % 3 * 0.0005)
            assert client.read_response().body == bytes(range(32, 92)), name
    assert server.errors == []


def test_several_tasks_in_receive(serve: Serve) -> None:
    """Each event goes to one of them; the end goes to all."""
    waiting = threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        bodies: list[bytes] = []

        async def take() -> None:
            while (message := await receive())["type"] == "http.request":
                bodies.append(message["body"])
                if not message["more_body"]:
                    await respond(send, b"|".join(bodies))

        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as group:
                for _ in range(5):
                    group.start_soon(take)
                await anyio.sleep(0.005)
                waiting.set()

    server = serve(app, lifespan="off")
    with server.connect() as client:
        for _ in range(2):
            waiting.clear()
            client.sendall(upload(6))
            assert waiting.wait(PATIENCE)
            for piece in (b"ab", b"cd", b"ef"):
                client.sendall(piece)
            assert client.read_response().body.replace(b"|", b"") == b"abcdef"
    server.stop()
    assert server.errors == []


def test_receive_while_another_task_sends(serve: Serve) -> None:
    """What is there is taken at once, however much was just sent."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        bodies: list[bytes] = []

        async def take() -> None:
            bodies.append(await read_body(receive))

        await send(START)
        with anyio.fail_after(2):
            async with anyio.create_task_group() as group:
                # No body is written for HEAD, so nothing but the amount can hold it up.
                group.start_soon(send, body_of(bytes(300_000), True))
                group.start_soon(take)
        assert bodies == [b"body"]
        await send(body_of(b""))

    server = serve(app)
    with server.connect() as client:
        for _ in range(3):
            client.sendall(request("HEAD", "/", body=b"body"))
            assert client.read_response(head_only=True).status == 200
    server.stop()
    assert server.errors == []


def test_several_tasks_in_send(serve: Serve) -> None:
    """Against a reader that stalls: all are held up, and all come through."""
    sending = threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        async with anyio.create_task_group() as group:
            for number in range(50):
                group.start_soon(send, body_of(b"%02d" % number * 100_000, True))
            await anyio.sleep(0.01)
            sending.set()
        await send(body_of(b""))

    server = serve(app, lifespan="off")
    with server.connect() as client:
        client.sendall(request("GET", "/"))
        assert sending.wait(PATIENCE)
        body = client.read_response().body
        pieces = [body[at : at + 200_000] for at in range(0, len(body), 200_000)]
        assert sorted(pieces) == [b"%02d" % number * 100_000 for number in range(50)]
    assert server.errors == []


def test_send_may_be_given_up(serve: Serve) -> None:
    """A send() that is held up and cancelled has taken its piece all the same."""
    held_up = threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        count = 0
        with anyio.move_on_after(PATIENCE):
            while not held_up.is_set():
                count += 1
                with anyio.move_on_after(0.05) as scope_of_time:
                    await send(body_of(bytes(100_000), True))
                if scope_of_time.cancelled_caught:
                    held_up.set()
        await send(body_of(b"%d" % count))

    server = serve(app, lifespan="off")
    with server.connect() as client:
        client.sendall(request("GET", "/"))
        assert held_up.wait(PATIENCE)
        body = client.read_response().body
        count = int(body.strip(b"\0"))
        assert len(body) == 100_000 * count + len(str(count))
    assert server.errors == []


def test_awaitables_are_coroutines(serve: Serve) -> None:
    """They can be driven by hand, thrown into and closed, as a coroutine can."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        is_trio = sniffio.current_async_library() == "trio"
        for awaitable in (receive(), send(START)):
            with pytest.raises(LookupError, match="thrown"):
                awaitable.throw(LookupError("thrown"))
            awaitable.close()
        with pytest.raises(StopIteration) as stop:
            receive().send(None)
        assert stop.value.value == {"type": "http.request", "body": b"", "more_body": False}
        if not is_trio:  # whose traps are not to be driven by hand
            pending = receive()
            assert asyncio.isfuture(pending.send(None))
            pending.close()
        await send(body_of(b"driven"))

    server = serve(app)
    with server.connect() as client:
        assert client.get("/").body == b"driven"
    assert server.errors == []


def test_tasks_that_outlive_the_application(serve: Serve, worker: str) -> None:
    """What they send is ignored, what they receive is the end."""
    if worker == "trio":
        pytest.skip("trio has no tasks that outlive whoever started them")
    outcome: queue.Queue[Any] = queue.Queue()
    tasks: set[Any] = set()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async def late() -> None:
            try:
                await until_disconnect(receive)
                await send(body_of(b"late"))
                await send(START)
                outcome.put("done")
            except BaseException as error:
                outcome.put(error)

        tasks.add(asyncio.create_task(late()))
        if scope["path"] == "/whole":
            await respond(send, b"whole")

    server = serve(app, lifespan="off")
    for path, status in [("/whole", 200), ("/nothing", 500)]:
        with server.connect() as client:
            assert client.get(path).status == status
            assert outcome.get(timeout=PATIENCE) == "done"
    assert len(server.errors) == 1


# ---------------------------------------------------------------------- fairness


async def spray(scope: Any, receive: Any, send: Any) -> None:
    """Many small pieces, without ever waiting for anything else."""
    await send(START)
    while True:
        await send(body_of(b"drop", True))


class Drinker(threading.Thread):
    """Reads whatever comes, as fast as it can."""

    def __init__(self, server: Running, path: str) -> None:
        super().__init__(daemon=True)
        self.client = server.connect()
        self.client.sendall(request("GET", path))
        self.client.read_until(b"\r\n\r\n")
        self.start()

    def run(self) -> None:
        try:
            while self.client.recv(1 << 20):
                pass
        except OSError:
            return


def test_endless_stream_delays_nobody(serve: Serve) -> None:
    server = serve(routes(hello=hello, spray=spray), graceful_timeout=0.2, lifespan="off")
    drinkers = [Drinker(server, "/spray") for _ in range(2)]
    for _ in range(5):
        assert_alive(server)
    with server.connect() as client:
        for _ in range(5):
            assert client.get("/hello").status == 200
    server.stop(PATIENCE)
    for drinker in drinkers:
        drinker.join(PATIENCE)
        assert not drinker.is_alive()
        drinker.client.close()
    assert not server.exceptions()


def test_endless_receive_and_silent_send_delay_nobody(serve: Serve) -> None:
    """Calls that end at once, because there is nobody any more, give way all the same."""
    over = threading.Event()

    async def receiving(scope: Any, receive: Any, send: Any) -> None:
        await respond(send)
        while not over.is_set():
            assert (await receive())["type"] == "http.disconnect"

    async def sending(scope: Any, receive: Any, send: Any) -> None:
        await until_disconnect(receive)
        await send(START)
        while not over.is_set():
            await send(body_of(b"", True))

    server = serve(routes(hello=hello, receiving=receiving, sending=sending), lifespan="off")
    with server.connect() as first, server.connect() as second:
        first.sendall(request("GET", "/receiving"))
        second.sendall(request("GET", "/sending"))
        reset(second)
        assert first.read_response().status == 200
        for _ in range(5):
            assert_alive(server)
    over.set()


def test_pipeline_delays_nobody(serve: Serve) -> None:
    """Endless requests, all answered at once, on one connection."""
    server = serve(hello, lifespan="off")
    over = threading.Event()
    greedy = server.connect()

    def ask() -> None:
        try:
            while not over.is_set():
                greedy.sendall(500 * request("GET", "/"))
        except OSError:
            return

    def drink() -> None:
        try:
            while greedy.recv(1 << 20):
                pass
        except OSError:
            return

    threads = [threading.Thread(target=ask), threading.Thread(target=drink)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(20):
            assert_alive(server)
    finally:
        over.set()
        greedy.shutdown(socket.SHUT_RDWR)  # wakes both
        for thread in threads:
            thread.join(PATIENCE)
        greedy.close()
    assert not any(thread.is_alive() for thread in threads)
    assert server.errors == []


# -------------------------------------------------------------------------- memory


@pytest.mark.skipif(
    not hasattr(sys, "getrefcount") or sys.implementation.name != "cpython",
    reason="counts references",
)
def test_exchanges_are_freed_at_once(serve: Serve) -> None:
    """No cycles: what a request holds goes without the collector's help."""
    freed = threading.Semaphore(0)

    class Held:
        def __del__(self) -> None:
            freed.release()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["held"] = Held()
        await read_body(receive)
        await respond(send, bytes(100))

    server = serve(app, lifespan="off")
    gc.collect()
    gc.disable()
    try:
        with server.connect() as client:
            for _ in range(10):
                client.sendall(request("POST", "/", body=b"x"))
                assert client.read_response().status == 200
                assert freed.acquire(timeout=PATIENCE)
    finally:
        gc.enable()
