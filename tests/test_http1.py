"""HTTP/1.0 and 1.1 over real sockets: framing, persistence, refusals, limits and time.

What a request head may look like in detail is the parser's and has its own tests; here
it matters what the server makes of it: the answer, the connection, the application's view.
"""

from __future__ import annotations

import http.client
import itertools
import queue
import re
import socket
import threading
import time
from typing import Any

import anyio
import pytest
from conftest import (
    MIB,
    PATIENCE,
    Client,
    Response,
    Running,
    Serve,
    handshake,
    hello,
    push,
    read_body,
    request,
    reset,
    respond,
)
from process import ends_cleanly, settled

BOUND = 32 * MIB  # more than the buffers of two sockets and the server together
DRAINED = 256 * 1024  # so much of an unread body is read to keep the connection


def lines(*parts: str, body: bytes = b"") -> bytes:
    """A message of these lines, for what `request` does not say."""
    return "\r\n".join([*parts, "", ""]).encode("latin-1") + body


def routes(**applications: Any) -> Any:
    """The application named like the path."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await applications[scope["path"][1:]](scope, receive, send)

    return app


def chunked(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in (*pieces, b""))


def assert_alive(server: Running) -> None:
    """A new connection is served as if nothing had been."""
    with server.connect() as client:
        client.sendall(request("GET", "/hello"))
        assert client.read_response().body == b"Hello, world!"


async def echo(scope: Any, receive: Any, send: Any) -> None:
    await respond(send, await read_body(receive))


async def ignore_body(scope: Any, receive: Any, send: Any) -> None:
    await respond(send, b"ignored")


async def stream(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200})
    for piece in (b"", b"one", b"", b"two"):
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body"})


async def firehose(scope: Any, receive: Any, send: Any) -> None:
    """Streams until the client leaves."""
    await send({"type": "http.response.start", "status": 200})
    async with anyio.create_task_group() as group:

        async def pour() -> None:
            while True:
                await send({"type": "http.response.body", "body": bytes(65536), "more_body": True})

        group.start_soon(pour)
        while (await receive())["type"] != "http.disconnect":
            pass
        group.cancel_scope.cancel()


# ------------------------------------------------------------------- persistence

PERSISTENCE = [
    # version, Connection; the answer's Connection, whether another request is answered
    ("1.1", None, None, True),
    ("1.1", "keep-alive", None, True),
    ("1.1", "something", None, True),
    ("1.1", "close", b"close", False),
    ("1.1", "Close", b"close", False),
    ("1.1", "keep-alive, close", b"close", False),
    ("1.1", "something ,close", b"close", False),
    ("1.0", None, b"close", False),
    ("1.0", "close", b"close", False),
    ("1.0", "keep-alive", b"keep-alive", True),
    ("1.0", "Keep-Alive", b"keep-alive", True),
    ("1.0", "keep-alive, close", b"close", False),
    ("1.9", None, None, True),
]


def test_persistence(serve: Serve) -> None:
    """RFC 9112 section 9.3."""
    server = serve(hello)
    for version, option, answered, stays in PERSISTENCE:
        fields = [] if option is None else [f"Connection: {option}"]
        message = lines(f"GET /hello HTTP/{version}", "Host: test", *fields)
        with server.connect() as client:
            client.sendall(message)
            response = client.read_response()
            assert (response.status, response.body) == (200, b"Hello, world!"), message
            assert response.field(b"connection") == answered, message
            if stays:
                client.sendall(message)
                assert client.read_response().body == b"Hello, world!", message
            else:
                assert client.is_closed_by_peer(), message
    assert server.errors == []


def test_a_connection_has_so_many_requests(serve: Serve) -> None:
    server = serve(hello, keep_alive_max_requests=3)
    with server.connect() as client:
        assert [client.get().field(b"connection") for _ in range(3)] == [None, None, b"close"]
        assert client.is_closed_by_peer()
    with server.connect() as client:
        client.sendall(request("GET", "/") * 4)
        assert client.read_to_end().count(b"200 OK") == 3
    assert server.errors == []


SERVED = ["a.example", "A.EXAMPLE", "a.example:8000", "[::1]", "[::1]:80", "127.0.0.1:1"]
NOT_SERVED = [
    "example",
    "b.a.example",
    "a.example.b",
    "a.example.",
    "[::2]",
    "::1",
    "127.0.0.2",
    "",
]


def test_other_hosts_are_not_served(serve: Serve) -> None:
    server = serve(
        hello,
        server_name=["A.example", "[::1]", "127.0.0.1"],
        proxy_headers="for,proto,host",
        forwarded_allow_ips="127.0.0.1",
    )

    def status(*head: str) -> int:
        with server.connect() as client:
            client.sendall(lines(*head))
            return client.read_response().status

    for host in SERVED:
        assert status("GET / HTTP/1.1", f"Host: {host}") == 200, host
    for host in NOT_SERVED:
        expected = 400 if host == "::1" else 421
        assert status("GET / HTTP/1.1", f"Host: {host}") == expected, host
    assert status("GET / HTTP/1.0") == 421
    # The target's own authority is what counts (RFC 9112 section 3.2.2).
    assert status("GET http://a.example/ HTTP/1.1", "Host: b.example") == 200
    assert status("GET http://b.example/ HTTP/1.1", "Host: a.example") == 421
    # And what a trusted proxy was asked for.
    assert status("GET / HTTP/1.1", "Host: x", "X-Forwarded-Host: a.example") == 200
    assert status("GET / HTTP/1.1", "Host: a.example", "X-Forwarded-Host: x") == 421
    with server.connect() as client:
        client.sendall(handshake())
        assert client.read_response().status == 421
        assert client.is_closed_by_peer()
    assert server.errors == []


def test_requests_after_the_last_one_are_not_read(serve: Serve) -> None:
    called: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        called.append(scope["path"])
        await respond(send)

    server = serve(app, lifespan="off")
    with server.connect() as client:
        client.sendall(request("GET", "/first", "Connection: close") + request("GET", "/second"))
        assert client.read_response().status == 200
        assert client.is_closed_by_peer()
    assert called == ["/first"]


def test_application_closes(serve: Serve) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        option = scope["query_string"]
        await respond(send, b"bye", headers=((b"Connection", option),))

    server = serve(app)
    for option in ("close", "Close", "x,close"):
        with server.connect() as client:
            response = client.get(f"/?{option}")
            assert response.body == b"bye"
            assert response.field(b"connection") == b"close"
            assert client.is_closed_by_peer()
    with server.connect() as client:
        for _ in range(2):
            response = client.get("/?keep-alive")
            assert response.body == b"bye"
            assert response.field(b"connection") is None


def test_half_close_is_answered(serve: Serve) -> None:
    """RFC 9112 section 9.6: the client may shut down its side and still read."""
    server = serve(routes(hello=hello, stream=stream, echo=echo))
    for version, path, body, expected in [
        ("1.1", "/hello", b"", b"Hello, world!"),
        ("1.0", "/hello", b"", b"Hello, world!"),
        ("1.1", "/stream", b"", b"onetwo"),
        ("1.0", "/stream", b"", b"onetwo"),
        ("1.1", "/echo", b"x" * 200_000, b"x" * 200_000),
    ]:
        with server.connect() as client:
            fields = [f"Content-Length: {len(body)}"]
            client.sendall(lines(f"POST {path} HTTP/{version}", "Host: test", *fields, body=body))
            client.shutdown(socket.SHUT_WR)
            assert client.read_response().body == expected, (version, path)
            assert client.is_closed_by_peer()
    with server.connect() as client:  # nothing is asked: the FIN is answered by one
        client.shutdown(socket.SHUT_WR)
        assert client.is_closed_by_peer()
    with server.connect() as client:  # nor is half a head a question
        client.sendall(b"GET /hello HTT")
        client.shutdown(socket.SHUT_WR)
        assert client.is_closed_by_peer()
    assert server.errors == []


def test_half_close_behind_a_pipeline(serve: Serve) -> None:
    """Every request of it is answered, and each application learns of the FIN."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message["body"]
        await respond(send, scope["query_string"] + b":" + body)

    server = serve(app, graceful_timeout=0.5)
    with server.connect() as client:
        client.sendall(
            request("POST", "/?1", body=b"a")
            + request("POST", "/?2", body=b"b" * 20)
            + request("GET", "/?3")
            + lines("POST /?4 HTTP/1.1", "Host: test", "Content-Length: 9", body=b"trunc")
        )
        client.shutdown(socket.SHUT_WR)
        for expected in (b"1:a", b"2:" + b"b" * 20, b"3:", b"4:trunc"):
            assert client.read_response().body == expected
        assert client.is_closed_by_peer()
    assert server.errors == []


# ---------------------------------------------------------------------- pipelines


def test_pipeline_is_answered_in_order(serve: Serve) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        number = int(scope["query_string"])
        if number % 3 == 0:
            await anyio.sleep(0.001)
        body = await read_body(receive) if number % 2 else b""
        await respond(send, b"%d %b" % (number, body))

    server = serve(app)
    everything = b"".join(
        request("POST", f"/?{number}", body=b"body %d" % number) for number in range(300)
    )
    for step in (len(everything), 1000, 61):
        with server.connect() as client:
            for at in range(0, len(everything), step):
                client.sendall(everything[at : at + step])
            for number in range(300):
                expected = b"%d body %d" % (number, number) if number % 2 else b"%d " % number
                assert client.read_response().body == expected
    assert server.errors == []


def test_pipeline_starts_one_application_at_a_time(serve: Serve) -> None:
    running = 0
    most = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await anyio.sleep(0.001)
        running -= 1
        await respond(send)

    server = serve(app, lifespan="off")
    with server.connect() as client:
        client.sendall(20 * request("GET", "/"))
        for _ in range(20):
            assert client.read_response().status == 200
    assert most == 1


def test_pipeline_is_bounded(serve: Serve) -> None:
    """Who asks and asks and never reads is no longer read."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await respond(send, scope["query_string"] + bytes(8000))

    server = serve(app)
    filler = "x" * 4000
    messages = [request("GET", f"/?{n:06}", f"Filler: {filler}") for n in range(20_000)]
    size = len(messages[0])
    with server.connect() as client:
        pushed = push(client, b"".join(messages), BOUND)
        assert 0 < pushed < BOUND
        whole, rest = divmod(pushed, size)
        for number in range(whole):
            assert client.read_response().body.startswith(b"%06d" % number)
        client.sendall(messages[whole][rest:])
        assert client.read_response().body.startswith(b"%06d" % whole)
    assert server.errors == []


def test_slow_reader_of_a_pipeline_is_not_idle(serve: Serve) -> None:
    """As long as answers are due, the time limit of an idle connection does not count."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await respond(send, bytes(4 * MIB))

    server = serve(app, keep_alive_timeout=0.2)
    with server.connect() as client:
        client.sendall(8 * request("GET", "/"))
        time.sleep(0.5)  # is the slow reading itself: longer than the limit
        for _ in range(8):
            assert len(client.read_response().body) == 4 * MIB


# ------------------------------------------------------------------------ framing


async def in_one(scope: Any, receive: Any, send: Any) -> None:
    await respond(send, b"in one")


async def sized(scope: Any, receive: Any, send: Any) -> None:
    headers = [(b"content-length", b"6")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for piece in (b"", b"one", b"two"):
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def empty(scope: Any, receive: Any, send: Any) -> None:
    await respond(send)


async def with_coding_only(scope: Any, receive: Any, send: Any) -> None:
    await respond(send, b"raw", headers=((b"transfer-encoding", b"gzip, chunked"),))


FRAMING = [
    # path; version; Transfer-Encoding, Content-Length, Connection; body
    ("in_one", "1.1", None, b"6", None, b"in one"),
    ("in_one", "1.0", None, b"6", b"keep-alive", b"in one"),
    ("sized", "1.1", None, b"6", None, b"onetwo"),
    ("sized", "1.0", None, b"6", b"keep-alive", b"onetwo"),
    ("empty", "1.1", None, b"0", None, b""),
    ("empty", "1.0", None, b"0", b"keep-alive", b""),
    ("stream", "1.1", b"chunked", None, None, b"onetwo"),
    ("stream", "1.0", None, None, b"close", b"onetwo"),
    ("with_coding_only", "1.1", None, b"3", None, b"raw"),
    ("with_coding_only", "1.0", None, b"3", b"keep-alive", b"raw"),
]


def test_response_framing(serve: Serve) -> None:
    """RFC 9112 section 6. Whatever is not closed takes another request."""
    server = serve(
        routes(
            in_one=in_one,
            sized=sized,
            empty=empty,
            stream=stream,
            with_coding_only=with_coding_only,
        )
    )
    for path, version, coding, length, connection, body in FRAMING:
        case = path, version
        fields = ["Connection: keep-alive"] if version == "1.0" else []
        with server.connect() as client:
            for _ in range(1 if connection == b"close" else 2):
                client.sendall(lines(f"GET /{path} HTTP/{version}", "Host: test", *fields))
                response = client.read_response()
                assert response.body == body, case
                assert response.field(b"transfer-encoding") == coding, case
                assert response.field(b"content-length") == length, case
                assert response.field(b"connection") == connection, case
            if connection == b"close":
                assert client.is_closed_by_peer()
    assert server.errors == []


NO_BODY = [
    # method, status, the application's Content-Length, its body; the answer's Content-Length
    ("HEAD", 200, None, b"twelve bytes", b"12"),
    ("HEAD", 200, b"12", b"", b"12"),
    ("HEAD", 200, b"12", b"twelve bytes", b"12"),
    ("HEAD", 200, b"12", b"more than was stated", b"12"),
    ("HEAD", 200, None, b"", None),
    ("HEAD", 404, None, b"no", b"2"),
    ("GET", 204, None, b"", None),
    ("GET", 204, b"0", b"", None),
    ("GET", 204, None, b"not sent", None),
    ("POST", 204, None, b"", None),
    ("GET", 304, None, b"", None),
    ("GET", 304, b"12", b"", b"12"),
    ("GET", 304, None, b"not sent", None),
    ("HEAD", 304, b"12", b"", b"12"),
    ("HEAD", 204, b"12", b"", None),
]


def test_no_body(serve: Serve) -> None:
    """RFC 9110 sections 6.4.1 and 8.6, also where the body comes in pieces."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        number, pieces = map(int, scope["query_string"].split(b","))
        _, status, length, body, _ = NO_BODY[number]
        headers = [] if length is None else [(b"content-length", length)]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        if pieces:
            await send({"type": "http.response.body", "body": body, "more_body": True})
            body = b""
        await send({"type": "http.response.body", "body": body})

    server = serve(app)
    for version, pieces in itertools.product(("1.1", "1.0"), (0, 1)):
        with server.connect() as client:
            for number, (method, status, stated, _, length) in enumerate(NO_BODY):
                client.sendall(
                    lines(
                        f"{method} /?{number},{pieces} HTTP/{version}",
                        "Host: test",
                        "Connection: keep-alive",
                    )
                )
                # Had it a body, the next head would not be found where it is.
                response = client.read_response(head_only=True)
                case = version, pieces, NO_BODY[number]
                assert response.status == status, case
                assert response.field(b"transfer-encoding") is None, case
                if pieces and stated is None:
                    length = None  # nobody knows it yet
                assert response.field(b"content-length") == length, case
            client.sendall(request("GET", "/nothing?0,0", "Connection: close"))
            assert client.read_response().body == b"twelve bytes"
            assert client.is_closed_by_peer()
    assert server.errors == []


def test_date_and_server(serve: Serve) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        own = ((b"Date", b"today"), (b"SERVER", b"mine"))
        await respond(send, headers=own if scope["path"] == "/own" else ())

    date = re.compile(rb"(Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT")
    for on in (True, False):
        server = serve(app, include_date_header=on, include_server_header=on)
        with server.connect() as client:
            response = client.get("/own")
            assert (response.field(b"date"), response.field(b"server")) == (b"today", b"mine")
            response = client.get("/")
            if on:
                assert date.fullmatch(response.field(b"date") or b"")
                assert response.field(b"server") == b"fastserve"
            else:
                assert response.field(b"date") is response.field(b"server") is None
            client.sendall(b"nonsense\r\n\r\n")
            assert (client.read_response().field(b"date") is not None) is on


def test_fields_of_every_response(serve: Serve) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/fails":
            raise RuntimeError
        await respond(send, headers=((b"x-one", b"app"),))

    fields = ("X-One: 1", "X-Two: 2", "x-two: 3", "Server: mine")
    server = serve(app, header=fields, include_date_header=False)
    own = [(b"server", b"mine"), (b"x-one", b"1"), (b"x-two", b"2"), (b"x-two", b"3")]
    for sent, status in (
        (request("GET", "/"), 200),
        (request("GET", "/fails"), 500),
        (b"nonsense\r\n\r\n", 400),
    ):
        with server.connect() as client:
            client.sendall(sent)
            response = client.read_response()
        assert response.status == status
        assert [pair for pair in response.fields if pair in own] == own
        assert ((b"x-one", b"app") in response.fields) == (status == 200)
    with serve(app, header="Server: mine", include_server_header=False).connect() as client:
        assert client.get("/").field(b"server") == b"mine"


def test_fields_of_the_application(serve: Serve) -> None:
    """Order and repetitions stay; what concerns one connection alone is the server's."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await respond(
            send,
            b"four",
            headers=(
                (b"Set-Cookie", b"a=1"),
                (b"x-one", b"1"),
                (b"Keep-Alive", b"timeout=5"),
                (b"set-cookie", b"b=2"),
                (b"Upgrade", b"h2c"),
                (b"Proxy-Connection", b"close"),
                (b"TE", b"trailers"),
                (b"Transfer-Encoding", b"gzip"),
                (b"Connection", b"keep-alive, X-Hop, content-type"),
                (b"x-hop", b"gone"),
                (b"content-type", b"text/plain"),
                (b"content-length", b"4"),
                (b"Content-Length", b"4"),
                (b"x-empty", b""),
                (b"x-latin", b"caf\xe9\t!"),
            ),
        )

    server = serve(app, include_date_header=False, include_server_header=False)
    with server.connect() as client:
        response = client.get("/")
        assert response.body == b"four"
        assert response.fields == [
            (b"set-cookie", b"a=1"),
            (b"x-one", b"1"),
            (b"set-cookie", b"b=2"),
            (b"content-type", b"text/plain"),
            (b"content-length", b"4"),
            (b"x-empty", b""),
            (b"x-latin", b"caf\xe9\t!"),
        ]
        assert client.get("/").body == b"four"


def test_status_without_a_reason(serve: Serve) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await respond(send, status=int(scope["query_string"]))

    server = serve(app)
    with server.connect() as client:
        for status, reason in [(200, b"OK"), (404, b"Not Found"), (299, b""), (999, b"")]:
            response = client.get(f"/?{status}")
            assert (response.status, response.reason) == (status, reason)


# ----------------------------------------------- what the application promised

BROKEN_PROMISES = [
    # Content-Length, the pieces of the body, the one that raises, whether 500 is answered
    (b"3", [b"four"], "longer", True),
    (b"3", [b"ab"], "shorter", True),
    (b"3", [b""], "shorter", True),
    (b"0", [b"x"], "longer", True),
    (b"3", [b"ab", b"cd"], "longer", False),
    (b"3", [b"ab", b""], "shorter", False),
    (b"3", [b"abc", b"d"], "longer", False),
    (b"3", [b"abcd", b""], "longer", True),
]


def test_content_length_is_kept(serve: Serve) -> None:
    """RFC 9110 section 8.6: a body of another length is an error out of send()."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        length, pieces, _, _ = BROKEN_PROMISES[int(scope["query_string"])]
        headers = [(b"content-length", length)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for number, piece in enumerate(pieces, 1):
            more_body = number < len(pieces)
            await send({"type": "http.response.body", "body": piece, "more_body": more_body})
        raise AssertionError("nothing was raised")

    server = serve(app, lifespan="off")
    for number, (length, _, word, clean) in enumerate(BROKEN_PROMISES):
        server.errors.clear()
        with server.connect() as client:
            client.sendall(request("GET", f"/?{number}"))
            answer = client.read_to_end()
        head, _, body = answer.partition(b"\r\n\r\n")
        if clean:
            assert Response(head + b"\r\n\r\n").status == 500, number
        else:
            assert Response(head + b"\r\n\r\n").status == 200, number
            assert len(body) <= int(length)
        [error] = server.exceptions()
        assert re.search(f"http.response.body: .*{word}.*content-length", str(error)), number


def test_content_length_may_be_mended(serve: Serve) -> None:
    """The piece that was refused is not on the wire, so another may follow."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-length", b"4")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for piece, more_body in [(b"12345", True), (b"12", False)]:
            with pytest.raises(RuntimeError, match="content-length"):
                await send({"type": "http.response.body", "body": piece, "more_body": more_body})
        await send({"type": "http.response.body", "body": b"1234"})

    server = serve(app)
    with server.connect() as client:
        for _ in range(2):
            assert client.get("/").body == b"1234"
    assert server.errors == []


async def fail_at_once(scope: Any, receive: Any, send: Any) -> None:
    raise ValueError("on purpose")


async def fail_after_start(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200})
    raise ValueError("on purpose")


async def fail_in_body(scope: Any, receive: Any, send: Any) -> None:
    headers = [(b"content-length", b"10")] if scope["query_string"] else []
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"part", "more_body": True})
    raise ValueError("on purpose")


async def fail_later(scope: Any, receive: Any, send: Any) -> None:
    await anyio.sleep(0)
    await fail_in_body(scope, receive, send)


async def stop_in_body(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200})
    await send({"type": "http.response.body", "body": b"part", "more_body": True})


async def return_at_once(scope: Any, receive: Any, send: Any) -> None:
    """Sends nothing at all."""


async def fail_after_the_end(scope: Any, receive: Any, send: Any) -> None:
    await respond(send, b"whole")
    raise ValueError("on purpose")


async def exit_from_application(scope: Any, receive: Any, send: Any) -> None:
    raise SystemExit(3)


def test_application_fails(serve: Serve) -> None:
    """One report each; 500 or an answer that nobody can take for whole."""
    server = serve(
        routes(
            hello=hello,
            at_once=fail_at_once,
            after_start=fail_after_start,
            in_body=fail_in_body,
            later=fail_later,
            stop=stop_in_body,
            nothing=return_at_once,
            exit=exit_from_application,
        ),
        lifespan="off",
    )
    failed = ValueError
    incomplete = RuntimeError
    for path, error, clean in [
        ("/at_once", failed, True),
        ("/after_start", failed, True),
        ("/nothing", incomplete, True),
        ("/exit", SystemExit, True),
        ("/in_body", failed, False),
        ("/in_body?10", failed, False),
        ("/later", failed, False),
        ("/later?10", failed, False),
        ("/stop", incomplete, False),
    ]:
        server.errors.clear()
        with server.connect() as client:
            client.sendall(request("GET", path) + request("GET", "/hello"))
            if clean:
                response = client.read_response()
                assert response.status == 500, path
                assert response.field(b"connection") == b"close", path
                assert client.is_closed_by_peer(), path
            else:
                head = client.read_until(b"\r\n\r\n")
                rest = client.read_to_end()
                assert b"part" in rest, path
                assert b"HTTP" not in rest, path
                if b"chunked" in head:
                    assert not rest.endswith(b"0\r\n\r\n"), path
        assert [type(logged) for logged in server.exceptions()] == [error], path
        assert len(server.errors) == 1, path
        assert_alive(server)


def test_failed_stream_to_http10_is_reset(serve: Serve) -> None:
    """The end of such a body is the end of the connection, so a FIN would be a lie."""
    server = serve(routes(hello=hello, in_body=fail_in_body, stop=stop_in_body), lifespan="off")
    for path in ("/in_body", "/stop"):
        with server.connect() as client:
            client.sendall(lines(f"GET {path} HTTP/1.0"))
            with pytest.raises(ConnectionResetError):
                client.read_to_end()
    assert_alive(server)


def test_failed_stream_to_http10_is_reset_behind_what_was_sent(serve: Serve) -> None:
    server = serve(routes(later=fail_later), lifespan="off")
    with server.connect() as client:
        client.sendall(lines("GET /later HTTP/1.0"))
        client.read_until(b"part")
        with pytest.raises(ConnectionResetError):
            client.read_to_end()


def test_failure_after_the_end_harms_nobody(serve: Serve) -> None:
    server = serve(routes(hello=hello, fail=fail_after_the_end), lifespan="off")
    with server.connect() as client:
        assert client.get("/fail").body == b"whole"
        assert client.get("/hello").body == b"Hello, world!"
    assert [str(error) for error in server.exceptions()] == ["on purpose"]


# ----------------------------------------------------------------- request bodies

BODIES = [
    # the fields, what is sent, what the application gets
    (["Content-Length: 5"], b"hello", b"hello"),
    (["Content-Length: 0"], b"", b""),
    ([], b"", b""),
    (["Transfer-Encoding: chunked"], chunked(b"hello", b" there"), b"hello there"),
    (["Transfer-Encoding: Chunked"], b"0\r\n\r\n", b""),
    (["Transfer-Encoding: chunked"], b"5;a=b\r\nhello\r\n0;c\r\n\r\n", b"hello"),
    (["Transfer-Encoding: chunked"], b'5 ; a = "x;y"\r\nhello\r\n0\r\n\r\n', b"hello"),
    (["Transfer-Encoding: chunked"], b"00a\r\n0123456789\r\n000\r\n\r\n", b"0123456789"),
    (["Transfer-Encoding: chunked"], b"A\r\n0123456789\r\n0\r\n\r\n", b"0123456789"),
    (
        ["Transfer-Encoding: chunked", "Trailer: x-sum"],
        b"2\r\nhi\r\n0\r\nX-Sum: 1\r\nHost: evil\r\nContent-Length: 7\r\n\r\n",
        b"hi",
    ),
]


def test_request_bodies(serve: Serve) -> None:
    """RFC 9112 sections 6 and 7: in one piece, byte by byte, and one behind the other."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        body = await read_body(receive)
        assert b"x-sum" not in dict(scope["headers"])
        await respond(send, body)

    server = serve(app)
    messages = [lines("POST / HTTP/1.1", "Host: test", *f, body=sent) for f, sent, _ in BODIES]
    for step in (1, 7, 1_000_000):
        with server.connect() as client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for message, (_, _, expected) in zip(messages, BODIES, strict=True):
                for at in range(0, len(message), step):
                    client.sendall(message[at : at + step])
                response = client.read_response()
                assert (response.status, response.body) == (200, expected), message
    with server.connect() as client:
        client.sendall(b"".join(messages))
        for _, _, expected in BODIES:
            assert client.read_response().body == expected
    assert server.errors == []


def test_large_bodies(serve: Serve) -> None:
    server = serve(echo)
    body = bytes(range(256)) * 16 * 1024
    starts = range(0, len(body), 999)
    with server.connect() as client:
        for fields, sent in [
            ([f"Content-Length: {len(body)}"], body),
            (["Transfer-Encoding: chunked"], chunked(body[:1000], body[1000:])),
            (["Transfer-Encoding: chunked"], chunked(*(body[n : n + 999] for n in starts))),
        ]:
            message = lines("PUT / HTTP/1.1", "Host: test", *fields, body=sent)
            client.sendall(message + request("PUT", "/", body=b"after"))
            assert client.read_response().body == body
            assert client.read_response().body == b"after"


def test_large_body_that_is_cut(serve: Serve) -> None:
    """What has come is told before the end is."""
    seen: queue.Queue[bytes] = queue.Queue()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        pieces = []
        while (message := await receive())["type"] == "http.request":
            pieces.append(message["body"])
        seen.put(b"".join(pieces))

    server = serve(app, lifespan="off")
    body = bytes(range(256)) * 4 * 1024
    for fields, sent in [
        ([f"Content-Length: {4 * MIB}"], body),
        (["Transfer-Encoding: chunked"], b"400000\r\n" + body),
    ]:
        with server.connect() as client:
            client.sendall(lines("PUT / HTTP/1.1", HOST, *fields, body=sent))
            client.shutdown(socket.SHUT_WR)
            assert seen.get(timeout=PATIENCE) == body


def test_large_chunk_is_limited(serve: Serve) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["type"] == "http.request":
            pass

    server = serve(app, lifespan="off", limit_request_body=MIB)
    with server.connect() as client:
        client.sendall(lines("PUT / HTTP/1.1", HOST, CODED, body=b"400000\r\n"))
        push(client, bytes(2 * MIB))
        assert client.read_response().status == 413
        assert client.is_closed_by_peer()
    assert server.errors == []


def test_more_body_is_told_truly(serve: Serve) -> None:
    """Each event before the last says so; the last one does too."""
    seen: queue.Queue[tuple[bytes, bool]] = queue.Queue()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while True:
            message = await receive()
            assert set(message) == {"type", "body", "more_body"}
            assert type(message["body"]) is bytes
            seen.put((message["body"], message["more_body"]))
            if not message["more_body"]:
                break
        await respond(send)

    server = serve(app)
    with server.connect() as client:
        client.sendall(lines("POST / HTTP/1.1", "Host: test", "Content-Length: 4", body=b"ab"))
        assert seen.get(timeout=PATIENCE) == (b"ab", True)
        client.sendall(b"cd")
        assert seen.get(timeout=PATIENCE) == (b"cd", False)
        assert client.read_response().status == 200
        client.sendall(request("GET", "/"))
        assert seen.get(timeout=PATIENCE) == (b"", False)
        assert client.read_response().status == 200


def test_unread_body_is_never_the_next_request(serve: Serve) -> None:
    """RFC 9112 section 9.3: read to its end, within a bound, or the connection ends."""
    called: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        called.append(scope["path"])
        await respond(send, b"ignored")

    server = serve(app, lifespan="off")
    hidden = request("GET", "/hidden")
    short = hidden * (DRAINED // 2 // len(hidden))
    long = hidden * (2 * DRAINED // len(hidden))
    for body in (short, long):
        for fields, sent in [
            ([f"Content-Length: {len(body)}"], body),
            (["Transfer-Encoding: chunked"], chunked(body[:100], body[100:])),
        ]:
            for together in (True, False):
                case = len(body), fields, together
                called.clear()
                head = lines("POST /first HTTP/1.1", "Host: test", *fields)
                with server.connect() as client:
                    client.sendall(head + sent if together else head)
                    response = client.read_response()
                    assert response.body == b"ignored", case
                    if not together and body is long and response.field(b"connection"):
                        assert response.field(b"connection") == b"close", case
                    elif not together:
                        client.sendall(sent)
                    if body is short:
                        assert response.field(b"connection") is None, case
                        client.sendall(request("GET", "/second"))
                        assert client.read_response().body == b"ignored", case
                        assert called == ["/first", "/second"], case
                    else:
                        assert client.is_closed_by_peer(), case
                        assert called == ["/first"], case
    assert server.errors == []


def test_whole_body_that_is_not_read_leaves_nothing_to_wait_for(serve: Serve) -> None:
    """Reading had paused behind its last byte, before its end was told."""
    body = bytes(70_000)  # more than one block, and more than is kept

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await anyio.sleep(0.1)
        await respond(send, b"done")

    server = serve(app, lifespan="off", body_timeout=BRIEF)
    with server.connect() as client:
        client.sendall(request("POST", "/", body=body))
        assert client.read_response().body == b"done"
        time.sleep(3 * BRIEF)  # is what is tested: the body's deadline is over with it
        assert client.get().body == b"done"
    server = serve(app, lifespan="off", graceful_timeout=600)
    with server.connect() as client:
        client.sendall(request("POST", "/", body=body))
        assert client.read_response().body == b"done"
        server.ask_to_stop()
        assert client.is_closed_by_peer()
        server.stop()
    assert server.errors == []


def test_unread_body_of_a_known_length_closes_at_once(serve: Serve) -> None:
    server = serve(ignore_body)
    with server.connect() as client:
        client.sendall(lines("POST / HTTP/1.1", "Host: test", f"Content-Length: {10 * DRAINED}"))
        response = client.read_response()
        assert response.body == b"ignored"
        assert response.field(b"connection") == b"close"
        assert client.is_closed_by_peer()


def test_broken_rest_of_an_unread_body(serve: Serve) -> None:
    """It was answered already: nothing more is said, and the connection ends."""
    server = serve(ignore_body)
    with server.connect() as client:
        client.sendall(lines("POST / HTTP/1.1", "Host: test", "Transfer-Encoding: chunked"))
        assert client.read_response().body == b"ignored"
        client.sendall(b"nonsense\r\n")
        assert client.is_closed_by_peer()
    assert server.errors == []


# ------------------------------------------------------------------ expectations

EXPECTING = lines("POST / HTTP/1.1", "Host: test", "Expect: 100-Continue", "Content-Length: 4")
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def test_continue_when_the_application_asks(serve: Serve) -> None:
    """RFC 9110 section 10.1.1."""
    server = serve(echo)
    with server.connect() as client:
        for _ in range(2):
            client.sendall(EXPECTING)
            assert client.read_exactly(len(CONTINUE)) == CONTINUE
            client.sendall(b"bo")
            client.sendall(b"dy")
            assert client.read_until(b"\r\n").startswith(b"HTTP/1.1 200 ")
            client.read_until(b"\r\n\r\nbody")
        # Behind another one, in the same segment.
        client.sendall(request("POST", "/", body=b"first") + EXPECTING)
        assert client.read_response().body == b"first"
        assert client.read_exactly(len(CONTINUE)) == CONTINUE
        client.sendall(b"body")
        assert client.read_response().body == b"body"
    assert server.errors == []


def test_no_continue_when_it_is_not_wanted(serve: Serve) -> None:
    def started(send: Any, more_body: bool) -> Any:
        return send({"type": "http.response.body", "body": b"a", "more_body": more_body})

    async def late(scope: Any, receive: Any, send: Any) -> None:
        """Reads the body after the answer has begun."""
        await send({"type": "http.response.start", "status": 200})
        await started(send, True)
        await send({"type": "http.response.body", "body": await read_body(receive)})

    server = serve(routes(echo=echo, late=late))
    with_body = lines(
        "POST /echo HTTP/1.1",
        "Host: test",
        "Expect: 100-continue",
        "Content-Length: 4",
        body=b"body",
    )
    empty_body = lines(
        "POST /echo HTTP/1.1", "Host: test", "Expect: 100-continue", "Content-Length: 0"
    )
    old = lines("POST /echo HTTP/1.0", "Expect: 100-continue", "Content-Length: 4")
    for message, rest, expected in [
        (with_body, b"", b"body"),  # the client did not wait
        (empty_body, b"", b""),
        (old, b"body", b"body"),  # HTTP/1.0 knows no interim responses
    ]:
        with server.connect() as client:
            client.sendall(message + rest)
            head = client.read_until(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 "), message
            assert client.read_exactly(len(expected)) == expected
    with server.connect() as client:
        client.sendall(EXPECTING.replace(b"/ ", b"/late ", 1))
        head = client.read_until(b"1\r\na\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        assert b" 100 " not in head
        client.sendall(b"body")
        assert client.read_until(b"0\r\n\r\n") == b"4\r\nbody\r\n0\r\n\r\n"
    assert server.errors == []


def test_no_continue_after_the_whole_request(serve: Serve) -> None:
    """An application may ask once more, to learn when the client leaves."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert await read_body(receive) == b""
        with anyio.move_on_after(0.05):
            await receive()
        await respond(send, b"done")

    server = serve(app, lifespan="off")
    sized = ("Expect: 100-continue", "Content-Length: 0")
    in_chunks = ("Expect: 100-continue", "Transfer-Encoding: chunked")
    with server.connect() as client:
        for message in (request("POST", "/", *sized), request("POST", "/", *in_chunks) + chunked()):
            client.sendall(message)
            assert client.read_until(b"\r\n") == b"HTTP/1.1 200 OK\r\n", message
            client.read_until(b"\r\n\r\ndone")
    assert server.errors == []


def test_no_continue_after_a_final_status(serve: Serve) -> None:
    """Nobody knows whether the body still comes, so the connection ends."""
    received: queue.Queue[str] = queue.Queue()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await respond(send, b"no", status=401)
        received.put((await receive())["type"])

    server = serve(app, lifespan="off")
    with server.connect() as client:
        client.sendall(EXPECTING)
        response = Response(client.read_until(b"\r\n\r\n"))
        assert response.status == 401
        assert response.field(b"connection") == b"close"
        assert client.read_to_end() == b"no"
    assert received.get(timeout=PATIENCE) == "http.disconnect"
    assert server.errors == []


def test_other_expectations_are_refused(serve: Serve) -> None:
    server = serve(hello)
    for expectation in ("200-ok", "100-continue, more", "100-continue;q=1"):
        with server.connect() as client:
            response = client.get("/", f"Expect: {expectation}")
            assert response.status == 417, expectation
            assert client.is_closed_by_peer()


# ------------------------------------------------------------------------ targets

TARGETS = [
    # method, target; path, raw_path, query_string, Host
    ("GET", "/a%20b/?x=%20%31&y", "/a b/", b"/a%20b/", b"x=%20%31&y", b"test"),
    ("GET", "/%C3%A9%2F%e2%82%AC", "/é/€", b"/%C3%A9%2F%e2%82%AC", b"", b"test"),
    ("GET", "/%ff%C3", "/\ufffd\ufffd", b"/%ff%C3", b"", b"test"),
    ("GET", "/%", "/%", b"/%", b"", b"test"),
    ("GET", "/%zz?%zz", "/%zz", b"/%zz", b"%zz", b"test"),
    ("GET", "/%00", "/\0", b"/%00", b"", b"test"),
    ("GET", "//twice//", "//twice//", b"//twice//", b"", b"test"),
    ("GET", "/a/../b/./c", "/a/../b/./c", b"/a/../b/./c", b"", b"test"),
    ("GET", "/?", "/", b"/", b"", b"test"),
    ("GET", "/a??b", "/a", b"/a", b"?b", b"test"),
    ("GET", "http://other:81/p%20q?r", "/p q", b"/p%20q", b"r", b"other:81"),
    ("GET", "HTTPS://[::1]/", "/", b"/", b"", b"[::1]"),
    ("GET", "http://other", "/", b"/", b"", b"other"),
    ("GET", "http://other?q", "/", b"/", b"q", b"other"),
    ("OPTIONS", "*", "*", b"*", b"", b"test"),
    ("OPTIONS", "/a", "/a", b"/a", b"", b"test"),
]


def test_targets(serve: Serve) -> None:
    """RFC 9112 section 3.2: an authority in the target replaces that of Host."""
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        seen.append(
            (scope["method"], scope["path"], scope["raw_path"], scope["query_string"], hosts)
        )
        await respond(send)

    server = serve(app, lifespan="off")
    with server.connect() as client:
        for method, target, *facts, host in TARGETS:
            seen.clear()
            client.sendall(request(method, target))
            assert client.read_response().status == 200, target
            assert seen == [(method, *facts, [host])], target
        seen.clear()
        client.sendall(lines("GET http://old/ HTTP/1.0", "Connection: keep-alive"))
        assert client.read_response().status == 200
        assert seen[0][4] == [b"old"]  # though it had no Host
        client.sendall(lines("GET / HTTP/1.0"))
        assert client.read_response().status == 200
        assert seen[1][4] == []


def test_methods(serve: Serve) -> None:
    """RFC 9110 section 9.1: a method is case-sensitive, and there may be any."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await respond(send, scope["method"].encode())

    server = serve(app)
    with server.connect() as client:
        for method in ["GET", "get", "Post", "PROPFIND", "QUERY", "M-SEARCH", "x!#$%&'*+-.^_`|~1"]:
            client.sendall(request(method, "/"))
            assert client.read_response().body == method.encode()


def test_upgrades_are_ignored(serve: Serve) -> None:
    """RFC 9110 section 7.8: a server may."""
    server = serve(hello)
    with server.connect() as client:
        for token in ("h2c", "TLS/1.0", "nonsense, more/2"):
            response = client.get("/", "Connection: Upgrade", f"Upgrade: {token}")
            assert (response.status, response.field(b"upgrade")) == (200, None)


# ----------------------------------------------------------------------- refusals

HOST = "Host: test"
CODED = "Transfer-Encoding: chunked"
REFUSED = [
    # the lines of the head, and the status
    (400, ["GET / HTTP/1.1"]),
    (400, ["GET / HTTP/1.1", HOST, HOST]),
    (400, ["GET / HTTP/1.1", HOST, "Host: other"]),
    (400, ["GET / HTTP/1.1", "Host: a b"]),
    (400, ["GET / HTTP/1.1", "Host: a,b"]),
    (400, ["GET / HTTP/1.1", "Host: a/b"]),
    (400, ["GET / HTTP/1.1", "Host: user@a"]),
    (400, ["GET / HTTP/1.0", HOST, HOST]),
    (400, ["POST / HTTP/1.1", HOST, "Content-Length: 3", CODED]),
    (400, ["POST / HTTP/1.1", HOST, CODED, "Content-Length: 3"]),
    (400, ["POST / HTTP/1.1", HOST, "Content-Length: 3", "Content-Length: 4"]),
    (400, ["POST / HTTP/1.1", HOST, "Content-Length: 3, 4"]),
    (400, ["POST / HTTP/1.1", HOST, "Content-Length: +3"]),
    (400, ["POST / HTTP/1.1", HOST, "Content-Length: -3"]),
    (400, ["POST / HTTP/1.1", HOST, "Content-Length: 0x3"]),
    (400, ["POST / HTTP/1.1", HOST, "Content-Length: 1 2"]),
    (400, ["POST / HTTP/1.1", HOST, "Content-Length:"]),
    (400, ["POST / HTTP/1.1", HOST, "Content-Length: 99999999999999999999"]),
    (400, ["POST / HTTP/1.1", HOST, "Transfer-Encoding: gzip"]),
    (400, ["POST / HTTP/1.1", HOST, "Transfer-Encoding: identity"]),
    (400, ["POST / HTTP/1.1", HOST, "Transfer-Encoding: chunked, gzip"]),
    (400, ["POST / HTTP/1.1", HOST, "Transfer-Encoding: chunked, chunked"]),
    (400, ["POST / HTTP/1.1", HOST, CODED, CODED]),
    (400, ["POST / HTTP/1.1", HOST, "Transfer-Encoding:"]),
    (400, ["POST / HTTP/1.1", HOST, "Transfer-Encoding: ,chunked"]),
    (400, ["POST / HTTP/1.0", HOST, CODED]),
    (501, ["POST / HTTP/1.1", HOST, "Transfer-Encoding: gzip, chunked"]),
    (501, ["POST / HTTP/1.1", HOST, "Transfer-Encoding: gzip", CODED]),
    (400, ["GET / HTTP/1.1", HOST, "a: b", " folded"]),
    (400, ["GET / HTTP/1.1", HOST, "a: b", "\tfolded"]),
    (400, ["GET / HTTP/1.1", " Host: test"]),
    (400, ["GET / HTTP/1.1", HOST, "a : b"]),
    (400, ["GET / HTTP/1.1", HOST, "a\t: b"]),
    (400, ["GET / HTTP/1.1", HOST, ": b"]),
    (400, ["GET / HTTP/1.1", HOST, "no colon"]),
    (400, ["GET / HTTP/1.1", HOST, "a\0: b"]),
    (400, ["GET / HTTP/1.1", HOST, "a: b\0c"]),
    (400, ["GET / HTTP/1.1", HOST, "a: b\rc: d"]),
    (400, ["GET / HTTP/1.1", HOST, "a: b\nc: d"]),
    (400, ["GET / HTTP/1.1", HOST, "a\r: b"]),
    (400, ["GET / HTTP/1.1", HOST, "a\n: b"]),
    (400, ["GET / HTTP/1.1", HOST, "a\xe9: b"]),
    (400, ["GET / HTTP/1.1\n" + HOST]),
    (400, ["GET  / HTTP/1.1", HOST]),
    (400, ["GET /  HTTP/1.1", HOST]),
    (400, ["GET / HTTP/1.1 ", HOST]),
    (400, ["GET /a b HTTP/1.1", HOST]),
    (400, ["GET /\xe9 HTTP/1.1", HOST]),
    (400, ["GET /#f HTTP/1.1", HOST]),
    (400, ["GET path HTTP/1.1", HOST]),
    (400, ["GET * HTTP/1.1", HOST]),
    (400, ["GET ftp://test/ HTTP/1.1", HOST]),
    (400, ["GET http:///path HTTP/1.1", HOST]),
    (400, ["GET http://user@test/ HTTP/1.1", HOST]),
    (400, ["GET /"]),
    (400, ["G(T / HTTP/1.1", HOST]),
    (400, ["GET / http/1.1", HOST]),
    (400, ["GET / HTTP/1.10", HOST]),
    (505, ["GET / HTTP/2.0", HOST]),
    (505, ["GET / HTTP/0.9", HOST]),
    (505, ["PRI * HTTP/2.0"]),
    (501, ["CONNECT test:80 HTTP/1.1", HOST]),
    (417, ["GET / HTTP/1.1", HOST, "Expect: something"]),
    (400, ["\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"]),
]

REFUSED_BODIES = [
    b"\r\n",
    b"x\r\n",
    b"-1\r\n",
    b"0x5\r\nhello\r\n",
    b" 5\r\nhello\r\n",
    b"5 \r\nhello\r\n",
    b"5\nhello\r\n",
    b"5\r\nhello!\r\n",
    b"5\r\nhello\n0\r\n\r\n",
    b"5;a\nb\r\nhello\r\n",
    b"5;a\0\r\nhello\r\n",
    b"5;" + b"x" * 10_000 + b"\r\nhello\r\n",
    b"1;" + b"x" * 3000 + b"\r\na\r\n" + 10 * (b"1;" + b"x" * 3000 + b"\r\na\r\n"),
    b"fffffffffffffffff\r\n",
    b"ffffffffffffffff\r\n",
    b"0\r\nno colon\r\n\r\n",
    b"0\r\n folded: x\r\n\r\n",
]


def test_refusals(serve: Serve) -> None:
    """What two implementations may read differently is not read at all."""
    called: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        called.append(scope["path"])
        await respond(send)

    server = serve(app, lifespan="off")
    for status, parts in REFUSED:
        for before in (b"", request("GET", "/before")):
            called.clear()
            with server.connect() as client:
                client.sendall(before + lines(*parts) + request("GET", "/after"))
                if before:
                    assert client.read_response().status == 200
                response = client.read_response()
                assert response.status == status, parts
                assert response.field(b"connection") == b"close", parts
                assert client.is_closed_by_peer(), parts
            assert called == (["/before"] if before else []), parts
    assert server.errors == []


def test_refused_bodies(serve: Serve) -> None:
    """The application learns that there will be no more, and the answer is the server's."""
    seen: queue.Queue[str] = queue.Queue()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.put("called")
        while True:
            message = await receive()
            if message["type"] == "http.disconnect" or not message["more_body"]:
                break
        seen.put(message["type"])
        await respond(send, b"ignored")

    server = serve(app, lifespan="off")
    cases = [(400, body) for body in REFUSED_BODIES]
    for status, body in [*cases, (431, b"0\r\n" + 5000 * b"a: b\r\n")]:
        with server.connect() as client:
            client.sendall(lines("POST / HTTP/1.1", HOST, CODED))
            assert seen.get(timeout=PATIENCE) == "called"
            client.sendall(body)
            assert client.read_response().status == status, body
            assert client.is_closed_by_peer(), body
        assert seen.get(timeout=PATIENCE) == "http.disconnect", body
        with server.connect() as client:  # all at once: whether it is called is left open
            client.sendall(lines("POST / HTTP/1.1", HOST, CODED, body=body))
            assert client.read_response().status == status, body
            assert client.is_closed_by_peer(), body
        if not seen.empty():
            assert seen.get(timeout=PATIENCE) == "called"
            assert seen.get(timeout=PATIENCE) == "http.disconnect", body
    assert server.errors == []


def test_broken_body_cuts_an_answer_that_has_begun(serve: Serve) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"part", "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass
        await send({"type": "http.response.body", "body": b"late"})

    server = serve(app)
    with server.connect() as client:
        client.sendall(lines("POST / HTTP/1.1", HOST, CODED))
        client.read_until(b"part\r\n")
        client.sendall(b"nonsense\r\n")
        assert client.read_to_end() == b""
    assert server.errors == []


LIMITED = [
    # what is sent, and the status
    (request("GET", "/" + "x" * 200), 414),
    (b"GET /" + b"x" * 200, 414),  # without waiting for the end of the line
    (request("GET", "/", *["a: b"] * 5), 431),
    (request("GET", "/", "a: " + "x" * 300), 431),
    (lines("GET / HTTP/1.1", HOST)[:-2] + b"a: " + b"x" * 300, 431),
    (request("POST", "/", body=b"x" * 1001), 413),
    (lines("POST / HTTP/1.1", HOST, "Content-Length: 1001"), 413),
    (lines("POST / HTTP/1.1", HOST, CODED, body=chunked(b"x" * 500, b"x" * 501)), 413),
    (lines("POST / HTTP/1.1", HOST, CODED, body=b"3e9\r\n" + b"x" * 1001), 413),
]


def test_limits(serve: Serve) -> None:
    server = serve(
        echo,
        limit_request_line=100,
        limit_request_fields=5,
        limit_request_field_bytes=256,
        limit_request_body=1000,
    )
    for message, status in LIMITED:
        with server.connect() as client:
            client.sendall(message)
            assert client.read_response().status == status, message
            assert client.is_closed_by_peer(), message
    with server.connect() as client:  # just within them
        client.sendall(request("GET", "/" + "x" * 86))
        assert client.read_response().status == 200
        client.sendall(request("GET", "/", *["a: b"] * 4))
        assert client.read_response().status == 200
        for fields, body in [
            (["Content-Length: 1000"], b"x" * 1000),
            ([CODED], chunked(b"x" * 500, b"x" * 500)),
        ]:
            client.sendall(lines("POST / HTTP/1.1", HOST, *fields, body=body))
            assert len(client.read_response().body) == 1000
    assert server.errors == []


def test_refusal_reaches_a_client_that_still_sends(serve: Serve) -> None:
    """RFC 9112 section 9.6: a reset would destroy the answer before it was read."""
    server = serve(routes(hello=hello, ignore=ignore_body), limit_request_body=8 * MIB)
    body = bytes(9 * MIB)
    for path, size, status in [("/hello", 9 * MIB, 413), ("/ignore", 4 * MIB, 200)]:
        for _ in range(10):
            connection = http.client.HTTPConnection(*server.address, timeout=PATIENCE)
            connection.request("POST", path, body=memoryview(body)[:size])
            response = connection.getresponse()
            assert response.status == status
            response.read()
            connection.close()
    for _ in range(20):
        connection = http.client.HTTPConnection(*server.address, timeout=PATIENCE)
        connection.request("POST", "/hello", body=body)
        assert connection.getresponse().status == 413
        connection.close()
    assert server.errors == []


# ------------------------------------------------------------------- time limits

BRIEF = 0.2  # seconds: a limit that is met soon


def test_heads_in_time(serve: Serve) -> None:
    """408 for half a head; nothing for no head, since nothing was asked."""
    server = serve(hello, header_timeout=BRIEF, keep_alive_timeout=BRIEF)
    silent = server.connect()
    half = server.connect()
    half.sendall(b"GET / HTTP/1.1\r\nHost: te")
    idle = server.connect()
    assert idle.get().status == 200
    half_again = server.connect()
    assert half_again.get().status == 200
    half_again.sendall(b"GET / HT")
    with silent, half, idle, half_again:
        assert silent.is_closed_by_peer()
        assert ends_cleanly(idle)  # whose next request may have been on its way
        for client in (half, half_again):
            assert client.read_response().status == 408
            assert client.is_closed_by_peer()
    assert server.errors == []


def test_trickling_head_is_not_in_time(serve: Serve) -> None:
    """The time is that of the whole head, not of the next byte."""
    server = serve(hello, header_timeout=BRIEF)
    with server.connect() as client:
        trickle(client, b"GET / HTTP/1.1\r\n", b"a")
        assert client.read_response().status == 408


def trickle(client: Client, head: bytes, byte: bytes) -> None:
    """Sends a byte now and then until there is an answer."""
    client.sendall(head)
    client.settimeout(0.02)
    end = time.monotonic() + PATIENCE
    while not client.received:
        assert time.monotonic() < end, "there was no answer"
        client.sendall(byte)
        try:
            client.received = client.recv(65536)
        except TimeoutError:
            continue
        assert client.received, "closed without an answer"
    client.settimeout(PATIENCE)


def test_bodies_in_time(serve: Serve) -> None:
    ends: queue.Queue[str] = queue.Queue()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while True:
            message = await receive()
            if message["type"] == "http.disconnect" or not message["more_body"]:
                break
        ends.put(message["type"])
        await respond(send)

    server = serve(app, body_timeout=BRIEF, body_min_rate=1000, lifespan="off")
    with server.connect() as client:
        client.sendall(lines("POST / HTTP/1.1", HOST, "Content-Length: 10", body=b"half"))
        assert client.read_response().status == 408
        assert client.is_closed_by_peer()
    assert ends.get(timeout=PATIENCE) == "http.disconnect"
    with server.connect() as client:  # always in time, but too slow on the whole
        trickle(client, lines("POST / HTTP/1.1", HOST, "Content-Length: 9999"), b"x")
        assert client.read_response().status == 408
    assert ends.get(timeout=PATIENCE) == "http.disconnect"
    assert server.errors == []


def test_time_limits_are_the_clients(serve: Serve) -> None:
    """Not the application's: neither how long it takes nor how long it does not read."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await anyio.sleep(2 * limit)
        length = len(await read_body(receive))
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"%d " % length, "more_body": True})
        await anyio.sleep(2 * limit)
        await send({"type": "http.response.body", "body": b"done"})

    limit = 5 * BRIEF  # which the thread that uploads has to keep
    limits = ("header_timeout", "body_timeout", "keep_alive_timeout", "write_timeout")
    server = serve(app, **dict.fromkeys(limits, limit))
    with server.connect() as client, server.connect() as uploading:
        client.sendall(request("GET", "/"))
        sender = threading.Thread(
            target=uploading.sendall, args=[request("POST", "/", body=bytes(4 * MIB))]
        )
        sender.start()
        assert client.read_response().body == b"0 done"
        assert uploading.read_response().body == b"%d done" % (4 * MIB)
        sender.join()
    assert server.errors == []


def test_what_came_while_the_loop_was_busy_is_in_time(serve: Serve) -> None:
    busy, go_on = threading.Event(), threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/busy":
            busy.set()
            assert go_on.wait(PATIENCE)
        await respond(send, await read_body(receive))

    server = serve(
        app, header_timeout=1, keep_alive_timeout=1, body_timeout=1, body_min_rate=0, lifespan="off"
    )
    with (
        server.connect() as idle,
        server.connect() as half,
        server.connect() as sending,
        server.connect() as other,
    ):
        assert idle.get().status == 200
        half.sendall(b"GET / HTTP/1.1\r\n")
        sending.sendall(lines("POST / HTTP/1.1", HOST, "Content-Length: 4", body=b"bo"))
        other.sendall(request("GET", "/busy"))
        assert busy.wait(PATIENCE)
        idle.sendall(request("GET", "/"))
        half.sendall(lines(HOST))
        sending.sendall(b"dy")
        time.sleep(1.5)  # is what is tested: by the clock, all of them are too late
        go_on.set()
        for client, body in ((idle, b""), (half, b""), (sending, b"body"), (other, b"")):
            response = client.read_response()
            assert (response.status, response.body) == (200, body)
    assert server.errors == []


def test_time_counts_from_the_answer(serve: Serve) -> None:
    """Not from when the loop began to be busy with it."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/busy":
            time.sleep(1.5)
        await respond(send)

    server = serve(app, keep_alive_timeout=1, lifespan="off")
    with server.connect() as client, server.connect() as other:
        client.sendall(request("GET", "/busy"))
        assert client.read_response().status == 200
        for _ in range(5):  # turns of the loop, in which deadlines may be checked
            assert other.get("/").status == 200
            time.sleep(0.05)
        assert client.get("/").status == 200


def test_waiting_for_an_expected_body_is_not_limited(serve: Serve) -> None:
    """Before the application asks for it, the client may not send it."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await anyio.sleep(2 * BRIEF)
        await respond(send, await read_body(receive))

    server = serve(app, body_timeout=BRIEF, header_timeout=BRIEF)
    with server.connect() as client:
        client.sendall(EXPECTING)
        assert client.read_exactly(len(CONTINUE)) == CONTINUE
        client.sendall(b"body")
        assert client.read_response().body == b"body"
        client.sendall(EXPECTING)
        assert client.read_exactly(len(CONTINUE)) == CONTINUE
        assert client.read_response().status == 408  # but then it is


def test_stalled_reader_is_cut(serve: Serve) -> None:
    """Also one whose answer was complete already."""
    ended = threading.Semaphore(0)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/whole":
            await respond(send, bytes(64 * MIB))
        else:
            await firehose(scope, receive, send)
        ended.release()

    server = serve(app, write_timeout=BRIEF, lifespan="off")
    for path in ("/firehose", "/whole"):
        with server.connect() as client:
            client.sendall(request("GET", path))
            client.read_until(b"\r\n\r\n")
            assert ended.acquire(timeout=PATIENCE)
            if path == "/whole":
                # The server alone knows when it has given up; the client only finds out.
                time.sleep(3 * BRIEF)
            with pytest.raises(ConnectionResetError):
                client.read_to_end()
    assert server.errors == []


class Dripping(Client):
    """Reads a little at a time."""

    def read_some(self) -> int:
        time.sleep(0.01)
        return len(self.recv(128 * 1024))


def test_reader_that_is_too_slow_is_cut(serve: Serve) -> None:
    """Whatever it takes is in time: the average alone is not."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await respond(send, bytes(256 * MIB))

    server = serve(app, write_timeout=BRIEF, body_min_rate="1G", lifespan="off")
    with Dripping(server.address) as client:
        client.sendall(request("GET", "/"))
        end = time.monotonic() + PATIENCE
        with pytest.raises(ConnectionResetError):
            while client.read_some():
                assert time.monotonic() < end, "it is still read"
    assert server.errors == []


def test_slow_reader_is_served(serve: Serve) -> None:
    size = 20 * MIB

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await respond(send, bytes(size))

    server = serve(app, write_timeout=1, lifespan="off")
    with Dripping(server.address) as client:
        client.sendall(request("GET", "/", "Connection: close"))
        read = 0
        while count := client.read_some():
            read += count
        assert read > size
    assert server.errors == []


# ------------------------------------------------------------------ back-pressure


def test_reader_that_stalls_holds_up_the_application(serve: Serve) -> None:
    sent = 0
    ended = threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal sent
        await send({"type": "http.response.start", "status": 200})
        for _ in range(256 * MIB // 65536):
            await send({"type": "http.response.body", "body": bytes(65536), "more_body": True})
            sent += 65536
            if ended.is_set():
                break
        await send({"type": "http.response.body"})

    server = serve(app, lifespan="off")
    with server.connect() as client:
        client.sendall(request("GET", "/"))
        client.read_until(b"\r\n\r\n")
        stalled = settled(lambda: sent)
        assert stalled < BOUND
        taken = 0
        while taken < stalled + 8 * MIB:
            taken += len(client.recv(MIB))
        assert sent > stalled
        ended.set()
        while not client.recv(MIB).endswith(b"0\r\n\r\n"):
            pass
    assert server.errors == []


def test_nothing_waits_while_the_application_does(serve: Serve) -> None:
    """What it sends in one go may leave together, but not later than it waits for anything."""
    arrived = threading.Event()

    async def wait() -> None:
        while not arrived.is_set():
            await anyio.sleep(0.01)

    async def stream(wait: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})
        for piece in (b"one", bytes(20_000), b"three"):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await wait()
        await send({"type": "http.response.body", "body": b"four", "more_body": True})
        await send({"type": "http.response.body", "body": b"five"})

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] != "/at_once":
            await anyio.sleep(0)
        if scope["path"] == "/task":
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(stream, wait, send)
        elif scope["path"] == "/receive":
            await receive()
            await stream(receive, send)
        else:
            await stream(wait, send)

    server = serve(app, lifespan="off")
    before = chunked(b"one", bytes(20_000), b"three").removesuffix(b"0\r\n\r\n")
    for path in ("/at_once", "/later", "/task", "/receive"):
        arrived.clear()
        with server.connect() as client:
            client.sendall(request("GET", path))
            client.read_until(b"\r\n\r\n")
            assert client.read_exactly(len(before)) == before, path
            arrived.set()
            if path == "/receive":
                client.shutdown(socket.SHUT_WR)
            assert client.read_until(b"0\r\n\r\n") == chunked(b"four", b"five"), path
    assert server.errors == []


def test_client_leaves_while_a_stream_is_collected(serve: Serve) -> None:
    inside, go_on = threading.Event(), threading.Event()
    seen: queue.Queue[str] = queue.Queue()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/after":
            await respond(send, b"after")
            return
        await receive()
        await anyio.sleep(0)
        inside.set()
        assert go_on.wait(PATIENCE)
        await send({"type": "http.response.start", "status": 200})
        for _ in range(int(scope["path"][1:])):
            await send({"type": "http.response.body", "body": bytes(16384), "more_body": True})
        seen.put((await receive())["type"])

    server = serve(app, lifespan="off")
    for pieces in (1, 40):
        inside.clear()
        go_on.clear()
        with server.connect() as client:
            client.sendall(request("GET", f"/{pieces}"))
            assert inside.wait(PATIENCE)
            reset(client)
        go_on.set()
        assert seen.get(timeout=PATIENCE) == "http.disconnect"
        with server.connect() as client:
            assert client.get("/after").body == b"after"
    assert server.errors == []


def test_application_that_stalls_holds_up_the_sender(serve: Serve) -> None:
    go_on = threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while not go_on.is_set():
            await anyio.sleep(0.01)
        length = 0
        more_body = True
        while more_body:
            message = await receive()
            length += len(message["body"])
            more_body = message["more_body"]
        await respond(send, b"%d" % length)

    server = serve(app, lifespan="off")
    piece = bytes(65536)
    for size, fields in [(64 * MIB, [f"Content-Length: {64 * MIB}"]), (MIB, [CODED])]:
        go_on.clear()
        with server.connect() as client:
            client.sendall(lines("POST / HTTP/1.1", HOST, *fields))
            data = piece if size > MIB else chunked(piece)[:-5]
            pushed = push(client, data, 64 * MIB)
            assert 0 < pushed < BOUND
            go_on.set()
            if size > MIB:
                left = size - pushed
                while left:
                    left -= client.send(piece[: min(left, len(piece))])
                assert client.read_response().body == b"%d" % size
            else:
                whole, rest = divmod(pushed, len(data))
                client.sendall((data[rest:] if rest else b"") + b"0\r\n\r\n")
                expected = (whole + bool(rest)) * len(piece)
                assert client.read_response().body == b"%d" % expected
    assert server.errors == []
