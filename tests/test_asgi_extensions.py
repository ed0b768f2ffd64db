"""The extensions of ASGI: early hints, trailers, and files that the server sends itself."""

from __future__ import annotations

import functools
import io
import os
import queue
import random
import socket
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from conftest import (
    PATIENCE,
    Client,
    Running,
    Serve,
    hello,
    measures_memory,
    request,
    reset,
)
from process import SOURCES, eventually, others_environment
from test_memory import Gibibyte
from test_tls import SERVER, connect

START = {"type": "http.response.start", "status": 200, "headers": []}
Message = dict[str, Any]

MIB = 1024 * 1024
SMALL = 16 * 1024 - 1  # the longest that is read and not sent by sendfile(2)
CHOKED = 256 * 1024  # more than a sender may leave unsent, and may collect
HUGE = 100 * MIB  # more than the buffers of all sockets
CONTENT = random.Random(20261122).randbytes(2 * MIB)


def start(*headers: tuple[bytes, bytes], status: int = 200, **more: Any) -> Message:
    return {"type": "http.response.start", "status": status, "headers": headers, **more}


def length(count: int) -> tuple[bytes, bytes]:
    return (b"content-length", b"%d" % count)


def body_of(data: bytes, more_body: bool = False) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": more_body}


def pathsend(path: object) -> Message:
    return {"type": "http.response.pathsend", "path": str(path)}


def zerocopysend(file: Any, **more: Any) -> Message:
    return {"type": "http.response.zerocopysend", "file": file, **more}


def early_hint(*links: bytes) -> Message:
    return {"type": "http.response.early_hint", "links": links}


def trailers(*headers: tuple[bytes, bytes], more_trailers: bool = False) -> Message:
    kind = "http.response.trailers"
    return {"type": kind, "headers": headers, "more_trailers": more_trailers}


def sends(*messages: Message) -> Any:
    """An application that says just this, and `hello` to whoever asks for /hello."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/hello":
            return await hello(scope, receive, send)
        for message in messages:
            await send(message)

    return app


def chunked(data: bytes) -> tuple[list[bytes], bytes]:
    """The chunks in `data`, and what follows the last one's line."""
    chunks = []
    while True:
        line, _, data = data.partition(b"\r\n")
        size = int(line, 16)
        if size == 0:
            return chunks, data
        chunks.append(data[:size])
        assert data[size : size + 2] == b"\r\n"
        data = data[size + 2 :]


def ask_all(server: Running, *fields: str, method: str = "GET") -> tuple[bytes, bytes]:
    """Head and rest of all that comes on a connection that ends with it."""
    with server.connect() as client:
        client.sendall(request(method, "/", "Connection: close", *fields))
        head, _, rest = client.read_to_end().partition(b"\r\n\r\n")
        return head, rest


def assert_alive(server: Running) -> None:
    with server.connect() as client:
        assert client.get("/hello").body == b"Hello, world!"


def take(client: Client, length: int) -> None:
    """Reads so many bytes, and keeps none."""
    block = memoryview(bytearray(MIB))
    length -= len(client.received)
    client.received = b""
    while length > 0:
        count = client.recv_into(block[:length])
        assert count, f"closed with {length} bytes to come"
        length -= count


def links_to(path: Path, folder: str) -> list[str]:
    """Which descriptors in /proc/PID/fd are of that file."""
    found = []
    for name in os.listdir(folder):
        try:
            if os.readlink(f"{folder}/{name}") == str(path):
                found.append(name)
        except FileNotFoundError:  # just closed
            continue
    return found


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Files that no test changes, named by their size."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for size in (0, 1, SMALL, SMALL + 1, 100_000, CHOKED, len(CONTENT)):
            (folder / str(size)).write_bytes(CONTENT[:size])
        with (folder / "huge").open("wb") as file:
            file.truncate(HUGE)  # it has no blocks, and is read as zeros
        yield folder


# --- early hints ------------------------------------------------------------------------------


class TestEarlyHints:
    def test_any_number_before_the_response(self, serve: Serve) -> None:
        """They leave when the application waits, not only with the response."""
        read = threading.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await send(early_hint(b"</style.css>; rel=preload; as=style", b"</a.js>; rel=preload"))
            await send(early_hint(b"</b.js>; rel=preload"))
            with anyio.fail_after(PATIENCE):
                while not read.is_set():
                    await anyio.sleep(0.002)
            await send(start())
            await send(early_hint(b"</late.css>"))
            await send(body_of(b"done"))

        server = serve(app, lifespan="off")
        with server.connect() as client:
            client.sendall(request("GET", "/"))
            assert client.read_until(b"\r\n\r\n") == (
                b"HTTP/1.1 103 Early Hints\r\n"
                b"link: </style.css>; rel=preload; as=style\r\n"
                b"link: </a.js>; rel=preload\r\n\r\n"
            )
            hint = b"HTTP/1.1 103 Early Hints\r\nlink: </b.js>; rel=preload\r\n\r\n"
            assert client.read_until(b"\r\n\r\n") == hint
            read.set()
            hint = b"HTTP/1.1 103 Early Hints\r\nlink: </late.css>\r\n\r\n"
            assert client.read_until(b"\r\n\r\n") == hint
            assert client.read_response().body == b"done"
        assert server.errors == []

    def test_not_to_http_10(self, serve: Serve) -> None:
        server = serve(sends(early_hint(b"</a>"), start(), body_of(b"ok")), lifespan="off")
        with server.connect() as client:
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert client.read_until(b"\r\n").startswith(b"HTTP/1.1 200")
        assert server.errors == []

    def test_none_is_no_hint(self, serve: Serve) -> None:
        server = serve(sends(early_hint(), start(), body_of(b"ok")), lifespan="off")
        with server.connect() as client:
            client.sendall(request("GET", "/"))
            assert client.read_until(b"\r\n").startswith(b"HTTP/1.1 200")
        assert server.errors == []

    def test_links_may_be_long_and_of_any_iterable(self, serve: Serve) -> None:
        link = b"</" + b"x" * 3000 + b">"
        messages = {"type": "http.response.early_hint", "links": iter([link] * 5)}
        server = serve(sends(messages, start(), body_of(b"ok")), lifespan="off")
        with server.connect() as client:
            client.sendall(request("GET", "/"))
            head = client.read_until(b"\r\n\r\n")
            assert head.split(b"\r\n")[1:6] == [b"link: " + link] * 5
            assert client.read_response().body == b"ok"

    def test_an_error_may_follow(self, serve: Serve) -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            await send(early_hint(b"</a>"))
            raise KeyError("on purpose")

        server = serve(app, lifespan="off")
        with server.connect() as client:
            client.sendall(request("GET", "/"))
            assert client.read_until(b"\r\n").startswith(b"HTTP/1.1 103")
            client.read_until(b"\r\n\r\n")
            assert client.read_response().status == 500

    def test_a_client_that_does_not_read_is_waited_for(self, serve: Serve) -> None:
        """An endless hinter is held back like an endless streamer."""
        sent = [0]

        async def app(scope: Any, receive: Any, send: Any) -> None:
            while True:
                await send(early_hint(b"</" + b"x" * 10_000 + b">"))
                sent[0] += 1

        server = serve(app, lifespan="off", graceful_timeout=0.01)
        with server.connect() as client:
            client.sendall(request("GET", "/"))
            seen = [0, 0]

            def has_stalled() -> bool:
                seen.append(sent[0])
                return 0 < seen[-3] == seen[-2] == seen[-1]

            eventually(has_stalled)
            assert sent[0] * 10_000 < 32 * MIB


# --- trailers ---------------------------------------------------------------------------------

CHECKSUM = (b"x-checksum", b"abc")
WITH_TRAILERS = start(trailers=True)


class TestTrailers:
    def test_after_the_last_chunk(self, serve: Serve) -> None:
        messages = (WITH_TRAILERS, body_of(b"one", True), body_of(b"two"))
        more = (trailers(CHECKSUM, more_trailers=True), trailers((b"X-Time", b"1 s")))
        server = serve(sends(*messages, *more), lifespan="off")
        head, rest = ask_all(server, "TE: trailers")
        assert b"transfer-encoding: chunked" in head
        assert rest == (b"3\r\none\r\n3\r\ntwo\r\n0\r\nx-checksum: abc\r\nX-Time: 1 s\r\n\r\n")
        assert server.errors == []

    def test_after_a_body_of_one_piece(self, serve: Serve) -> None:
        server = serve(sends(WITH_TRAILERS, body_of(b"body"), trailers(CHECKSUM)), lifespan="off")
        with server.connect() as client:
            for _ in range(2):  # the connection is kept
                client.sendall(request("GET", "/", "TE: trailers"))
                client.read_until(b"transfer-encoding: chunked\r\n\r\n")
                assert client.read_until(b"\r\n\r\n") == (
                    b"4\r\nbody\r\n0\r\nx-checksum: abc\r\n\r\n"
                )
        assert server.errors == []

    def test_none_after_all(self, serve: Serve) -> None:
        server = serve(sends(WITH_TRAILERS, body_of(b"body"), trailers()), lifespan="off")
        assert ask_all(server, "TE: trailers")[1] == b"4\r\nbody\r\n0\r\n\r\n"
        assert server.errors == []

    @pytest.mark.parametrize(
        "fields, headers, method",
        [
            ((), (), "GET"),
            (("TE: gzip",), (), "GET"),
            (("TE: trailers",), (length(4),), "GET"),
            (("TE: trailers",), (), "HEAD"),
        ],
    )
    @pytest.mark.parametrize("pieces", [1, 2])
    def test_dropped(
        self, serve: Serve, fields: Any, headers: Any, method: str, pieces: int
    ) -> None:
        """Where nobody asked for them, or there is no place for them."""
        body = [body_of(b"bo", True), body_of(b"dy")] if pieces == 2 else [body_of(b"body")]
        messages = (start(*headers, trailers=True), *body, trailers(CHECKSUM))
        server = serve(sends(*messages), lifespan="off")
        with server.connect() as client:
            for _ in range(2):
                client.sendall(request(method, "/", *fields))
                response = client.read_response(head_only=method == "HEAD")
                assert response.body == (b"" if method == "HEAD" else b"body")
        assert server.errors == []

    def test_not_to_http_10(self, serve: Serve) -> None:
        messages = (WITH_TRAILERS, body_of(b"bo", True), body_of(b"dy"), trailers(CHECKSUM))
        server = serve(sends(*messages), lifespan="off")
        with server.connect() as client:
            client.sendall(b"GET / HTTP/1.0\r\nTE: trailers\r\n\r\n")
            assert client.read_to_end().partition(b"\r\n\r\n")[2] == b"body"
        assert server.errors == []

    def test_left_out_by_the_application(self, serve: Serve) -> None:
        """What it has promised is missing: the client must not take the message for whole."""
        server = serve(sends(WITH_TRAILERS, body_of(b"body")), lifespan="off")
        assert ask_all(server, "TE: trailers")[1] == b"4\r\nbody\r\n0\r\n"
        (error,) = server.exceptions()
        assert "without a complete response" in str(error)

    def test_behind_a_file(self, serve: Serve, folder: Path) -> None:
        messages = (WITH_TRAILERS, pathsend(folder / str(CHOKED)), trailers(CHECKSUM))
        server = serve(sends(*messages), lifespan="off")
        chunks, rest = chunked(ask_all(server, "TE: trailers")[1])
        assert chunks == [CONTENT[:CHOKED]]
        assert rest == b"x-checksum: abc\r\n\r\n"
        assert server.errors == []


# --- files ------------------------------------------------------------------------------------

SIZES = [0, 1, SMALL, SMALL + 1, 100_000, CHOKED, len(CONTENT)]


def read_to_reset(client: socket.socket) -> None:
    """Below TLS: in the ssl module of CPython 3.11 a reset looks like an end."""
    with pytest.raises(ConnectionResetError):
        while socket.socket.recv(client, MIB):
            pass


class OverBoth:
    """What these tests prove holds in the clear and over TLS."""

    @pytest.fixture(params=["http", "https"])
    def serve(self, serve: Serve, request: pytest.FixtureRequest) -> Serve:
        if request.param == "http":
            return serve

        def start(app: Any, **options: Any) -> Running:
            server = serve(app, **options, **SERVER)
            server.connect = functools.partial(connect, server)  # type: ignore[method-assign]
            return server

        return start


class TestPathsend(OverBoth):
    @pytest.mark.parametrize("size", SIZES)
    def test_the_server_states_the_length(self, serve: Serve, folder: Path, size: int) -> None:
        messages = (start((b"content-type", b"a/b")), pathsend(folder / str(size)))
        server = serve(sends(*messages), lifespan="off")
        with server.connect() as client:
            for _ in range(2):
                response = client.get("/")
                assert response.field(b"content-length") == b"%d" % size
                assert response.field(b"content-type") == b"a/b"
                assert response.body == CONTENT[:size]
        assert server.errors == []

    @pytest.mark.parametrize("size", [1, CHOKED])
    def test_the_application_states_the_length(self, serve: Serve, folder: Path, size: int) -> None:
        server = serve(sends(start(length(size)), pathsend(folder / str(size))), lifespan="off")
        with server.connect() as client:
            response = client.get("/")
            assert response.field(b"content-length") == b"%d" % size
            assert response.body == CONTENT[:size]

    @pytest.mark.parametrize("stated, wrong", [(CHOKED - 1, "longer"), (CHOKED + 1, "shorter")])
    def test_a_length_that_is_wrong(
        self, serve: Serve, folder: Path, stated: int, wrong: str
    ) -> None:
        server = serve(sends(start(length(stated)), pathsend(folder / str(CHOKED))), lifespan="off")
        with server.connect() as client:
            assert client.get("/").status == 500
        (error,) = server.exceptions()
        assert str(error) == (
            f"http.response.pathsend: the file at path is {wrong} than content-length says"
        )

    @pytest.mark.parametrize("size", [1, CHOKED])
    def test_nothing_follows_a_head_without_body(
        self, serve: Serve, folder: Path, size: int
    ) -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            await send(start(status=int(scope["path"][1:])))
            await send(pathsend(folder / str(size)))

        server = serve(app, lifespan="off")
        with server.connect() as client:
            client.sendall(request("HEAD", "/200"))
            response = client.read_response(head_only=True)
            assert response.field(b"content-length") == b"%d" % size
            for status in (304, 204):
                assert client.get(f"/{status}").status == status
            assert client.get("/200").body == CONTENT[:size]
        assert server.errors == []

    @pytest.mark.parametrize("keep", [True, False])
    def test_http_10(self, serve: Serve, folder: Path, keep: bool) -> None:
        server = serve(sends(START, pathsend(folder / str(CHOKED))), lifespan="off")
        with server.connect() as client:
            for _ in range(2 if keep else 1):
                extra = b"Connection: keep-alive\r\n" if keep else b""
                client.sendall(b"GET / HTTP/1.0\r\n" + extra + b"\r\n")
                assert client.read_response().body == CONTENT[:CHOKED]
            if not keep:
                assert client.is_closed_by_peer()
        assert server.errors == []

    def test_what_cannot_be_sent(self, serve: Serve, folder: Path, tmp_path: Path) -> None:
        """OSError, with nothing sent yet: the application still has the choice."""
        os.mkfifo(tmp_path / "fifo")
        (tmp_path / "secret").write_text("x")
        (tmp_path / "secret").chmod(0)
        raised: queue.Queue[tuple[type, str]] = queue.Queue()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await send(start())
            try:
                await send(pathsend(scope["path"]))
            except OSError as error:
                raised.put((type(error), error.filename))
                await send(body_of(b"instead"))

        server = serve(app, lifespan="off")
        cases = [
            (str(tmp_path / "missing"), FileNotFoundError),
            (str(folder / "1" / "below"), NotADirectoryError),
            (str(tmp_path), IsADirectoryError),
            (str(tmp_path / "fifo"), OSError),
            ("/dev/null", OSError),
            ("/" + "x" * 300, OSError),
        ]
        if os.geteuid() != 0:
            cases.append((str(tmp_path / "secret"), PermissionError))
        with server.connect() as client:
            for path, kind in cases:
                assert client.get(path).body == b"instead"
                assert raised.get(timeout=PATIENCE) == (kind, path)
        assert server.errors == []

    def test_a_404_is_still_possible(self, serve: Serve, tmp_path: Path) -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            assert not (tmp_path / "missing").exists()
            await send(start())
            await send(pathsend(tmp_path / "missing"))

        server = serve(app, lifespan="off")
        with server.connect() as client:
            assert client.get("/").status == 500
        assert isinstance(server.exceptions()[0], FileNotFoundError)

    def test_relative_to_the_working_directory(self, serve: Serve, folder: Path) -> None:
        """Not what the specification wants, but what frameworks send."""
        relative = os.path.relpath(folder / str(CHOKED))
        server = serve(sends(START, pathsend(relative)), lifespan="off")
        with server.connect() as client:
            assert client.get("/").body == CONTENT[:CHOKED]

    def test_names_that_are_no_ascii(self, serve: Serve, tmp_path: Path) -> None:
        for name in ("caf\u00e9 \u2603", os.fsdecode(b"latin-\xe9")):
            (tmp_path / name).write_bytes(b"named")
            server = serve(sends(START, pathsend(tmp_path / name)), lifespan="off")
            with server.connect() as client:
                assert client.get("/").body == b"named"

    def test_messages_after_it_are_ignored(self, serve: Serve, folder: Path) -> None:
        messages = (START, pathsend(folder / str(CHOKED)), body_of(b"more"), pathsend("/nowhere"))
        server = serve(sends(*messages), lifespan="off")
        with server.connect() as client:
            for _ in range(2):
                assert client.get("/").body == CONTENT[:CHOKED]
        assert server.errors == []


class TestZerocopysend(OverBoth):
    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize("as_object", [True, False])
    def test_a_whole_file(self, serve: Serve, folder: Path, size: int, as_object: bool) -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            with (folder / str(size)).open("rb") as file:
                await send(start())
                await send(zerocopysend(file if as_object else file.fileno()))
                assert not file.closed
                os.fstat(file.fileno())

        server = serve(app, lifespan="off")
        with server.connect() as client:
            for _ in range(2):
                response = client.get("/")
                assert response.field(b"content-length") == b"%d" % size
                assert response.body == CONTENT[:size]
        assert server.errors == []

    @pytest.mark.parametrize(
        "offset, count",
        [(0, 1), (5, 100), (1, SMALL), (7, SMALL + 1), (1000, CHOKED), (len(CONTENT) - 9, 9),
         (len(CONTENT), 0), (3, 0), (100, None), (0, None)],
    )  # fmt: skip
    def test_a_range(self, serve: Serve, folder: Path, offset: int, count: int | None) -> None:
        end = len(CONTENT) if count is None else offset + count

        async def app(scope: Any, receive: Any, send: Any) -> None:
            with (folder / str(len(CONTENT))).open("rb") as file:
                content_range = b"bytes %d-%d/%d" % (offset, end - 1, len(CONTENT))
                await send(start((b"content-range", content_range), status=206))
                more = {} if count is None else {"count": count}
                await send(zerocopysend(file, offset=offset, **more))
                assert file.tell() == 0

        server = serve(app, lifespan="off")
        with server.connect() as client:
            response = client.get("/")
            assert response.status == 206
            assert response.body == CONTENT[offset:end]
        assert server.errors == []

    @pytest.mark.parametrize("as_object", [True, False])
    def test_from_where_the_file_is(self, serve: Serve, folder: Path, as_object: bool) -> None:
        """Without offset: from its position, which moves as if it had been read."""

        async def app(scope: Any, receive: Any, send: Any) -> None:
            with (folder / str(len(CONTENT))).open("rb", buffering=-1 if as_object else 0) as file:
                assert file.read(10) == CONTENT[:10]  # a buffered one has read on
                sent = file if as_object else file.fileno()
                await send(start())
                await send(zerocopysend(sent, count=20, more_body=True))
                await send(zerocopysend(sent, count=CHOKED, more_body=True))
                assert file.tell() == CHOKED + 30
                await send(zerocopysend(sent))
                assert file.tell() == len(CONTENT)

        server = serve(app, lifespan="off")
        with server.connect() as client:
            assert client.get("/").body == CONTENT[10:]
        assert server.errors == []

    @pytest.mark.parametrize("framing", ["chunked", "length", "close"])
    @pytest.mark.parametrize("size", [100, CHOKED])
    def test_between_bodies(self, serve: Serve, folder: Path, framing: str, size: int) -> None:
        expected = b"<" + CONTENT[:size] + b"|" + CONTENT[1 : size - 1] + b">"

        async def app(scope: Any, receive: Any, send: Any) -> None:
            with (folder / str(len(CONTENT))).open("rb") as file:
                await send(start(length(len(expected))) if framing == "length" else START)
                await send(body_of(b"<", True))
                await send(zerocopysend(file, offset=0, count=size, more_body=True))
                await send(zerocopysend(file, offset=9, count=0, more_body=True))
                await send(body_of(b"|", True))
                await send(zerocopysend(file, offset=1, count=size - 2, more_body=True))
                await send(body_of(b">"))

        server = serve(app, lifespan="off")
        with server.connect() as client:
            if framing == "close":
                client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            else:
                client.sendall(request("GET", "/"))
            response = client.read_response()
            assert response.body == expected
            assert (response.field(b"transfer-encoding") == b"chunked") == (framing == "chunked")
        assert server.errors == []

    def test_head(self, serve: Serve, folder: Path) -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            with (folder / str(CHOKED)).open("rb") as file:
                await send(start(length(2 * CHOKED)))
                await send(zerocopysend(file, offset=0, more_body=True))
                await send(zerocopysend(file, offset=0))

        server = serve(app, lifespan="off")
        with server.connect() as client:
            client.sendall(request("HEAD", "/") + request("GET", "/"))
            response = client.read_response(head_only=True)
            assert response.field(b"content-length") == b"%d" % (2 * CHOKED)
            assert client.read_response().body == 2 * CONTENT[:CHOKED]
        assert server.errors == []

    def test_the_content_length_is_kept(self, serve: Serve, folder: Path) -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            with (folder / str(CHOKED)).open("rb") as file:
                await send(start(length(CHOKED + 10)))
                await send(body_of(b"0123456789", True))
                with pytest.raises(RuntimeError, match="count is shorter than content-length"):
                    await send(zerocopysend(file, offset=1))
                with pytest.raises(RuntimeError, match="body is longer than content-length"):
                    await send(body_of(CONTENT[: CHOKED + 1]))
                await send(zerocopysend(file))

        server = serve(app, lifespan="off")
        with server.connect() as client:
            assert client.get("/").body == b"0123456789" + CONTENT[:CHOKED]
        assert server.errors == []

    def test_the_application_may_close_its_file_at_once(self, serve: Serve, folder: Path) -> None:
        """What is on its way is ours, and the number of the descriptor may be another's."""

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await send(start(length(HUGE)))
            file = os.open(folder / "huge", os.O_RDONLY)
            async with anyio.create_task_group() as group:
                group.start_soon(send, zerocopysend(file))
                await anyio.sleep(0.01)
                os.close(file)

        server = serve(app, lifespan="off")
        with server.connect() as client:
            client.sendall(request("GET", "/"))
            client.read_until(b"\r\n\r\n")
            take(client, HUGE)
        assert server.errors == []


# --- misuse -----------------------------------------------------------------------------------

HINT = "http.response.early_hint"
TRAILERS = "http.response.trailers"
PATH = "http.response.pathsend"
COPY = "http.response.zerocopysend"
SHUTDOWN = "fastserve.shutdown"


@pytest.mark.parametrize(
    "before, message, expected",
    [
        ([], {"type": HINT}, TypeError(f"{HINT}: links must be bytes objects, not NoneType")),
        ([], {"type": HINT, "links": b"</a>"}, TypeError(f"{HINT}: links must be bytes objects")),
        ([], {"type": HINT, "links": "</a>"}, TypeError(f"{HINT}: links must be bytes objects")),
        ([], {"type": HINT, "links": [b"</a>", "</b>"]}, TypeError(f"{HINT}: links must be bytes, not str")),
        ([], early_hint(b"</a>\r\nset-cookie: a=b"), ValueError(f"{HINT}: one of links has a control character")),
        ([], early_hint(b"</a>\0"), ValueError(f"{HINT}: one of links has a control character")),
        ([START, body_of(b"a", True)], early_hint(b"</a>"), RuntimeError(f"{HINT} was sent after the response had begun")),
        ([], trailers(), RuntimeError(f"{TRAILERS} was sent, but http.response.start had no trailers")),
        ([START, body_of(b"a", True)], trailers(), RuntimeError(f"{TRAILERS} was sent, but http.response.start had no trailers")),
        ([WITH_TRAILERS], trailers(), RuntimeError(f"{TRAILERS} was sent before the end of the body")),
        ([WITH_TRAILERS, body_of(b"a", True)], trailers(), RuntimeError(f"{TRAILERS} was sent before the end of the body")),
        ([WITH_TRAILERS, body_of(b"a")], body_of(b"b"), RuntimeError("http.response.body was sent after the body had ended")),
        ([WITH_TRAILERS, body_of(b"a")], pathsend("/"), RuntimeError(f"{PATH} was sent after the body had ended")),
        ([WITH_TRAILERS, body_of(b"a")], trailers((b"x", b"a\nb")), ValueError(f"{TRAILERS}: the value of header b'x' has a control character")),
        ([WITH_TRAILERS, body_of(b"a")], trailers((b"x y", b"a")), ValueError(f"{TRAILERS}: header name b'x y' is not a token")),
        ([WITH_TRAILERS, body_of(b"a")], {"type": TRAILERS, "headers": [("x", "y")]}, TypeError(f"{TRAILERS}: headers must be pairs of bytes")),
        ([WITH_TRAILERS, body_of(b"a")], {"type": TRAILERS, "headers": {b"x": b"y"}}, TypeError(f"{TRAILERS}: headers must be pairs, not dict")),
        ([WITH_TRAILERS, body_of(b"a")], {"type": TRAILERS, "headers": [()]}, TypeError(f"{TRAILERS}: headers must be pairs of bytes")),
        *(
            ([WITH_TRAILERS, body_of(b"a")], trailers((name, b"1")), ValueError(f"{TRAILERS}: headers may not have {name!r}"))
            for name in (b"Content-Length", b"transfer-encoding", b"Host", b"Trailer", b"content-type", b"Set-Cookie", b"Connection", b"If-Match")
        ),
        # The same to a client that has not asked for them: see the field below.
        ([WITH_TRAILERS, body_of(b"a")], trailers((b"Age", b"1")), ValueError(f"{TRAILERS}: headers may not have b'Age'")),
        ([], pathsend("/"), RuntimeError(f"{PATH} was sent before http.response.start")),
        ([START, body_of(b"a", True)], pathsend("/"), RuntimeError(f"{PATH} was sent after the body had begun")),
        ([START], {"type": PATH}, TypeError(f"{PATH}: path must be a str, not NoneType")),
        ([START], {"type": PATH, "path": b"/x"}, TypeError(f"{PATH}: path must be a str, not bytes")),
        ([START], pathsend("/a\0b"), ValueError(f"{PATH}: path: embedded null byte")),
        ([START], pathsend("/\udc01"), ValueError(f"{PATH}: path: ")),
        ([], zerocopysend(0), RuntimeError(f"{COPY} was sent before http.response.start")),
        ([START], {"type": COPY}, TypeError(f"{COPY}: file must be a descriptor or have fileno(), not NoneType")),
        ([START], zerocopysend("/etc/passwd"), TypeError(f"{COPY}: file must be a descriptor or have fileno(), not str")),
        ([START], zerocopysend(-1), ValueError(f"{COPY}: file has no descriptor")),
        ([START], zerocopysend(io.BytesIO(b"x")), ValueError(f"{COPY}: file has no descriptor: fileno")),
        ([START], zerocopysend(1_000_000), OSError("[Errno 9] ")),
        *(
            ([START], zerocopysend("FILE", **{key: value}), expected)
            for key in ("offset", "count")
            for value, expected in (
                ("1", TypeError(f"{COPY}: {key} must be an int, not str")),
                (1.0, TypeError(f"{COPY}: {key} must be an int, not float")),
                (-1, ValueError(f"{COPY}: {key} is -1, which is no number of bytes")),
                (2**63, ValueError(f"{COPY}: {key} is {2**63}, which is no number of bytes")),
                (2**200, ValueError(f"{COPY}: {key} is ")),
            )
        ),
        ([START], zerocopysend("FILE", offset=101), ValueError(f"{COPY}: offset 101 is behind the end of the file, 100")),
        ([START], zerocopysend("FILE", offset=2**63 - 1), ValueError(f"{COPY}: offset {2**63 - 1} is behind the end")),
        ([START], zerocopysend("FILE", offset=90, count=11), ValueError(f"{COPY}: count is 11, the file has 10 bytes from 90 on")),
        ([START], zerocopysend("FILE", offset=90, count=2**63 - 1), ValueError(f"{COPY}: count is {2**63 - 1}, the")),
        ([], {"type": "http.response.push", "path": "/", "headers": []}, ValueError("send(): type 'http.response.push' is not a message of an HTTP response")),
        ([], {"type": "http.response.debug", "info": {}}, ValueError("send(): type 'http.response.debug' is not a message of an HTTP response")),
    ],
)  # fmt: skip
@pytest.mark.parametrize("worker, poller", [("asyncio", "loop")], indirect=True)
def test_misuse(
    serve: Serve, tmp_path: Path, before: list[Message], message: Message, expected: Exception
) -> None:
    """The error names the message and the key, and nothing of it reaches the client."""
    (tmp_path / "file").write_bytes(b"x" * 100)
    raised: queue.Queue[Exception] = queue.Queue()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for earlier in before:
            await send(earlier)
        with (tmp_path / "file").open("rb") as file:
            wrong = message | {"file": file} if message.get("file") == "FILE" else message
            try:
                await send(wrong)
            except Exception as error:
                raised.put(error)
        if not before:
            await send(START)
        if not before or before[-1] != body_of(b"a"):
            await send(body_of(b"end"))
        if WITH_TRAILERS in before:
            await send(trailers())

    server = serve(app, lifespan="off")
    for field in ("TE: trailers", "X: y"):
        with server.connect() as client:
            client.sendall(request("GET", "/", field, "Connection: close"))
            answer = client.read_to_end()
            assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
            assert answer.count(b"HTTP/1.1") == 1
        if field == "X: y" and body_of(b"a") in before and message["type"] != TRAILERS:
            assert raised.empty()  # without trailers the response was complete already
            continue
        error = raised.get(timeout=PATIENCE)
        assert type(error) is type(expected)
        assert str(error).startswith(str(expected))
    assert server.errors == []


# --- on the way -------------------------------------------------------------------------------


class Downloads:
    """An application that sends the file asked for, and says when `send` has returned."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sent: queue.Queue[str] = queue.Queue()
        self.begun = threading.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/hello":
            return await hello(scope, receive, send)
        _, kind, name = scope["path"].split("/")
        await send(start())
        self.begun.set()
        if kind == "path":
            await send(pathsend(self.folder / name))
        else:
            with (self.folder / name).open("rb") as file:
                await send(zerocopysend(file, more_body=kind == "piece"))
                if kind == "piece":
                    await send(body_of(b"end"))
        self.sent.put(scope["path"])


class TestOnTheWay(OverBoth):
    def test_pipelined(self, serve: Serve, folder: Path) -> None:
        """Files, large and small, between other responses: all in order, none mixed."""
        app = Downloads(folder)
        server = serve(app, lifespan="off")
        names = [
            name
            for size in SIZES
            for name in ("hello", f"path/{size}", f"copy/{size}", f"piece/{size}")
        ]
        with server.connect() as client:
            client.sendall(b"".join(request("GET", f"/{name}") for name in names))
            for name in names:
                body = client.read_response().body
                if name == "hello":
                    assert body == b"Hello, world!"
                else:
                    kind, _, size = name.partition("/")
                    assert body == CONTENT[: int(size)] + (b"end" if kind == "piece" else b"")
        assert server.errors == []

    @pytest.mark.parametrize("kind", ["path", "copy", "piece"])
    def test_send_waits_for_a_slow_reader(self, serve: Serve, folder: Path, kind: str) -> None:
        """... until the last of the file is the kernel's, and others are served meanwhile."""
        app = Downloads(folder)
        server = serve(app, lifespan="off")
        with server.connect() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            client.sendall(request("GET", f"/{kind}/huge") + request("GET", "/hello"))
            client.read_until(b"\r\n\r\n")
            for _ in range(10):
                assert_alive(server)
            assert app.sent.empty()
            total = HUGE
            if kind == "piece":  # with the lines of the chunks
                total += len(b"%x\r\n" % HUGE) + len(b"\r\n3\r\nend\r\n0\r\n\r\n")
            take(client, total)
            assert app.sent.get(timeout=PATIENCE) == f"/{kind}/huge"
            assert client.read_response().body == b"Hello, world!"
        assert server.errors == []

    @pytest.mark.parametrize("kind", ["path", "copy", "piece"])
    @pytest.mark.parametrize("leave", [reset, Client.close])
    @pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
    def test_client_that_leaves(
        self, serve: Serve, folder: Path, kind: str, leave: Callable[[Client], None]
    ) -> None:
        """`send` returns, and the descriptor is closed."""
        app = Downloads(folder)
        server = serve(app, lifespan="off")
        for _ in range(3):
            client = server.connect()
            client.sendall(request("GET", f"/{kind}/huge"))
            client.read_until(b"\r\n\r\n")
            assert links_to(folder / "huge", "/proc/self/fd")
            leave(client)
            assert app.sent.get(timeout=PATIENCE) == f"/{kind}/huge"
            eventually(lambda: not links_to(folder / "huge", "/proc/self/fd"))
        assert_alive(server)
        assert server.errors == []

    @pytest.mark.parametrize("kind", ["path", "piece"])
    def test_a_client_that_only_ends_its_requests_gets_it_all(
        self, serve: Serve, folder: Path, kind: str
    ) -> None:
        app = Downloads(folder)
        server = serve(app, lifespan="off")
        with server.connect() as client:
            client.sendall(request("GET", f"/{kind}/{len(CONTENT)}"))
            socket.socket.shutdown(client, socket.SHUT_WR)  # no close_notify
            end = b"end" if kind == "piece" else b""
            assert client.read_response().body == CONTENT + end
            assert client.is_closed_by_peer()
        assert server.errors == []

    def test_a_write_that_stalls(self, serve: Serve, folder: Path) -> None:
        app = Downloads(folder)
        server = serve(app, lifespan="off", write_timeout=0.3)
        with server.connect() as client:
            client.sendall(request("GET", "/path/huge"))
            assert app.sent.get(timeout=PATIENCE) == "/path/huge"
            read_to_reset(client)
        assert_alive(server)

    @pytest.mark.parametrize("kind", ["path", "copy", "piece"])
    @pytest.mark.parametrize("http10", [False, True])
    def test_a_file_that_shrinks(
        self, serve: Serve, tmp_path: Path, kind: str, http10: bool
    ) -> None:
        """The connection is reset: a truncated body must not pass for a whole one."""
        path = tmp_path / "shrinking"
        with path.open("wb") as file:
            file.truncate(HUGE)
        app = Downloads(tmp_path)
        server = serve(app, lifespan="off")
        with server.connect() as client:
            if http10:
                client.sendall(f"GET /{kind}/shrinking HTTP/1.0\r\n\r\n".encode())
            else:
                client.sendall(request("GET", f"/{kind}/shrinking"))
            client.read_until(b"\r\n\r\n")
            os.truncate(path, 1000)
            read_to_reset(client)
        assert app.sent.get(timeout=PATIENCE)
        (record,) = eventually(lambda: server.errors)
        assert "shorter" in record.getMessage()
        assert_alive(server)

    def test_cancelled_while_it_is_sent(self, serve: Serve, folder: Path) -> None:
        """The application has sent everything, so the client gets everything."""
        cancelled = threading.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await send(start())
            with anyio.move_on_after(0.01):
                await send(pathsend(folder / "huge"))
            cancelled.set()

        server = serve(app, lifespan="off")
        with server.connect() as client:
            client.sendall(request("GET", "/"))
            assert cancelled.wait(PATIENCE)
            client.read_until(b"\r\n\r\n")
            take(client, HUGE)
            client.sendall(request("GET", "/"))
            assert client.read_until(b"\r\n").startswith(b"HTTP/1.1 200")
        assert server.errors == []

    def test_an_application_that_fails_behind_it(self, serve: Serve, folder: Path) -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            await send(start())
            with anyio.move_on_after(0.01):
                await send(pathsend(folder / "huge"))
            raise KeyError("on purpose")

        server = serve(app, lifespan="off")
        with server.connect() as client:
            client.sendall(request("GET", "/"))
            eventually(lambda: server.errors)
            client.read_until(b"\r\n\r\n")
            take(client, HUGE)
        assert [type(error) for error in server.exceptions()] == [KeyError]

    def test_a_request_body_that_nobody_reads(self, serve: Serve, folder: Path) -> None:
        """Behind the file the connection goes on, as behind any response."""
        app = Downloads(folder)
        server = serve(app, lifespan="off")
        with server.connect() as client:
            body = b"b" * 100_000
            client.sendall(request("POST", f"/path/{len(CONTENT)}", body=body))
            assert client.read_response().body == CONTENT
            assert client.get("/hello").body == b"Hello, world!"
        assert server.errors == []

    def test_disconnect_is_told_when_it_has_left(self, serve: Serve, folder: Path) -> None:
        events: queue.Queue[str] = queue.Queue()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await receive()
            async with anyio.create_task_group() as group:

                async def listen() -> None:
                    events.put((await receive())["type"])

                group.start_soon(listen)
                await send(start())
                await send(pathsend(folder / "huge"))
                events.put("sent")

        server = serve(app, lifespan="off")
        with server.connect() as client:
            client.sendall(request("GET", "/"))
            client.read_until(b"\r\n\r\n")
            assert events.empty()
            take(client, HUGE)
            both = {events.get(timeout=PATIENCE), events.get(timeout=PATIENCE)}
            assert both == {"sent", "http.disconnect"}

    def test_the_access_line_has_the_length(
        self, serve: Serve, folder: Path, tmp_path: Path
    ) -> None:
        log = tmp_path / "access"
        server = serve(Downloads(folder), lifespan="off", access_logfile=str(log))
        with server.connect() as client:
            assert client.get(f"/path/{len(CONTENT)}").body == CONTENT
            assert client.get("/copy/1").body == CONTENT[:1]
        server.stop()
        assert str(len(CONTENT)) in log.read_text()


class Sparse(Gibibyte):
    """Sends as many zeros as it is asked for, from a file, perhaps over TLS."""

    def __init__(self, scheme: str, worker: str, poller: str) -> None:
        options = [f"--{name}={path}" for name, path in SERVER.items()] * (scheme == "https")
        address = ("--bind", "127.0.0.1:0", "--lifespan", "off")
        super().__init__("-k", worker, "--poller", poller, *address, *options, "sparse:app")
        self.encrypted = scheme == "https"

    def connect(self) -> Client:
        return connect(self) if self.encrypted else super().connect()  # type: ignore[return-value]

    def ask(self, size: int) -> Client:
        """A client that has had the head of the answer."""
        client = self.connect()
        client.sendall(request("GET", f"/{size}"))
        client.read_until(b"\r\n\r\n")
        return client


@pytest.fixture(params=["http", "https"])
def sparse(request: pytest.FixtureRequest, worker: str, poller: str) -> Iterator[Sparse]:
    server = Sparse(request.param, worker, poller)
    try:
        yield server
    finally:
        server.end()


@measures_memory
def test_a_file_takes_no_memory(sparse: Sparse) -> None:
    """To clients that stall as to one that reads."""
    with sparse.connect() as client:
        assert client.get(f"/{CHOKED}").body == bytes(CHOKED)
    before = sparse.memory("VmRSS")
    stalled = [sparse.ask(HUGE) for _ in range(10)]
    with sparse.ask(HUGE) as client:
        take(client, HUGE)
    for client in stalled:
        client.close()
    assert sparse.memory("VmHWM") - before < 16 * MIB


def test_a_fast_download_delays_nobody(sparse: Sparse) -> None:
    """One that would take days, to clients that are faster: they do not even decrypt."""
    over = threading.Event()

    def drink(client: Client) -> None:
        with client:
            while not over.is_set() and socket.socket.recv(client, MIB):
                pass

    drinkers = [threading.Thread(target=drink, args=[sparse.ask(10**12)]) for _ in range(2)]
    for drinker in drinkers:
        drinker.start()
    try:
        for _ in range(10):
            with sparse.connect() as client:
                assert client.get("/100").body == bytes(100)
    finally:
        over.set()
        for drinker in drinkers:
            drinker.join()


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
def test_no_descriptor_is_left(serve: Serve, folder: Path) -> None:
    app = Downloads(folder)
    server = serve(app, lifespan="off")

    def once(client: Client) -> None:
        for kind in ("path", "copy", "piece"):
            for size in (1, SMALL + 1, CHOKED):
                client.get(f"/{kind}/{size}")

    with server.connect() as client:
        for _ in range(20):
            once(client)
        eventually(lambda: not any(links_to(path, "/proc/self/fd") for path in folder.iterdir()))
    assert server.errors == []


@pytest.mark.parametrize("worker, poller", [("asyncio", "loop")], indirect=True)
def test_extensions_of_a_scope_are_its_own(serve: Serve) -> None:
    """What nobody has kept or changed may be used again, also on another connection; anything
    else is not."""
    names = [HINT, TRAILERS, PATH, COPY, SHUTDOWN]
    kept: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        extensions = scope["extensions"]
        assert list(extensions) == names
        assert all(type(known) is dict for known in extensions.values())
        assert not any(extensions[name] for name in names[:-1])
        assert not any(extensions is other for other in kept)
        assert not any(a is b for a in extensions.values() for b in kept)
        what = scope["path"][1:]
        if what == "keep":
            kept.append(extensions)
        elif what == "keep-one":
            kept.append(extensions[PATH])
        elif what == "add":
            extensions["mine"] = {}
        elif what == "fill":
            extensions[COPY]["mine"] = 1
        elif what == "rename":
            del extensions[COPY]
            extensions["mine"] = {}
        elif what == "reorder":
            extensions[HINT] = extensions.pop(HINT)
        elif what == "replace":
            extensions[HINT] = None
        elif what == "clear":
            extensions.clear()
        elif what == "scope":
            kept.append(scope)
        await send(START)
        await send(body_of(b"fine"))
        if what == "late":
            extensions["mine"] = {}
        elif what == "fill late":
            extensions[COPY]["mine"] = 1

    server = serve(app, lifespan="off")
    ways = ["", "keep", "keep-one", "add", "fill", "rename", "reorder", "replace", "clear", "scope"]
    ways += ["late", "fill%20late"]
    with server.connect() as one, server.connect() as other:
        for way in 2 * ways:
            for client in (one, one, other, one):
                assert client.get("/" + way).body == b"fine"
    assert server.errors == []


class Put:
    """An object of the application's."""


@pytest.mark.parametrize("late", [False, True], ids=["before", "after the response"])
def test_what_an_application_puts_into_extensions_is_freed_with_its_scope(
    serve: Serve, late: bool
) -> None:
    put: list[weakref.ref[Put]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        if late:
            await send(body_of(b"fine"))
        extensions = scope["extensions"]
        for place, key in ((extensions, "mine"), (extensions, COPY), (extensions[PATH], "mine")):
            place[key] = value = Put()
            put.append(weakref.ref(value))
        if not late:
            await send(body_of(b"fine"))

    server = serve(app, lifespan="off")
    with server.connect() as one, server.connect() as other:
        for client in (one, other, one):
            assert client.get().body == b"fine"
        eventually(lambda: all(reference() is None for reference in put))
    assert len(put) == 9
    assert server.errors == []


SIGPIPE_APP = """
import asyncio, os, signal
signal.signal(signal.SIGPIPE, signal.SIG_DFL)

async def app(scope, receive, send):
    if scope["path"] == "/hello":
        await send({"type": "http.response.start", "status": 200})
        return await send({"type": "http.response.body", "body": b"still here"})
    with open(os.environ["HUGE"], "rb") as file:
        length = (b"content-length", b"%d" % os.fstat(file.fileno()).st_size)
        await send({"type": "http.response.start", "status": 200, "headers": [length]})
        await send({"type": "http.response.body", "body": b"", "more_body": True})
        await asyncio.sleep(0)      # the head leaves
        input()     # nothing runs until the client has left
        await send({"type": "http.response.zerocopysend", "file": file})
"""


def test_a_client_that_left_kills_nobody(folder: Path, tmp_path: Path) -> None:
    """sendfile(2) has no MSG_NOSIGNAL."""
    (tmp_path / "sigpipe.py").write_text(SIGPIPE_APP)
    address = str(tmp_path / "socket")
    reading, writing = os.pipe()
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "fastserve",
            "-k",
            "asyncio",
            "-b",
            f"unix:{address}",
            "sigpipe:app",
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(SOURCES), "HUGE": str(folder / "huge")},
        stdin=reading,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(reading)
    try:
        assert process.stderr is not None
        assert any("Running on" in line for line in process.stderr)
        client = Client(address)
        client.sendall(request("GET", "/"))
        client.read_until(b"\r\n\r\n")
        client.close()
        os.write(writing, b"\n")
        with Client(address) as client:
            assert client.get("/hello").body == b"still here"
        process.terminate()
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.communicate(timeout=PATIENCE)
        os.close(writing)


def test_no_child_inherits_a_file(serve: Serve, folder: Path) -> None:
    app = Downloads(folder)
    server = serve(app, lifespan="off")
    with server.connect() as client:
        client.sendall(request("GET", "/path/huge"))
        client.read_until(b"\r\n\r\n")
        listing = subprocess.run(
            ["ls", "-l", "/proc/self/fd"], capture_output=True, text=True, timeout=PATIENCE,
            env=others_environment(), close_fds=False, check=True,
        )  # fmt: skip
        assert "huge" not in listing.stdout
