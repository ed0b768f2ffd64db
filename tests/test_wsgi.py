"""WSGI applications (PEP 3333) on every worker, over real sockets."""

from __future__ import annotations

import gc
import io
import logging
import queue
import socket
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any
from wsgiref.validate import validator

import pytest
from conftest import (
    MIB,
    PATIENCE,
    WORKERS,
    Client,
    Serve,
    measures_memory,
    request,
    reset,
    skip_without,
)
from process import Process, eventually
from test_frameworks import CONTENT, NUMBERS, Site, check_stream, check_upload, curl, sites

from fastserve.wsgi import WSGI, make_environ

TEXT = [("Content-Type", "text/plain")]


def hello(environ: Any, start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", TEXT)
    return [b"Hello, world!"]


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("fastserve-")]


def no_threads() -> bool:
    return not threads()


def ask(serve: Serve, app: Any, message: bytes, **options: Any) -> Any:
    """The answer to one request."""
    with serve(app, **options).connect() as client:
        client.sendall(message)
        return client.read_response(head_only=message.startswith(b"HEAD"))


class Seen:
    """What the application was called with, for the test to look at."""

    def __init__(self, pieces: Iterable[bytes] = (b"seen",)) -> None:
        self.environ: dict[str, Any] = {}
        self.pieces = pieces

    def __call__(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        self.environ = environ
        start_response("200 OK", TEXT)
        return self.pieces


class TestEnviron:
    def test_all_of_it(self, serve: Serve) -> None:
        app = Seen()
        running = serve(app)
        with running.connect() as client:
            port = client.getsockname()[1]
            client.sendall(
                request(
                    "PUT", "/p%C3%A4th/a%2Fb?x=1&y=%20", "Content-Type: text/x", "X-One: 1",
                    "X-Two: a", "X-Two: b", "Cookie: a=1", "Cookie: b=2", "X_One: spoofed",
                    "Proxy: http://evil", "X-Latin: \u00e4", body=b"abc",
                )
            )  # fmt: skip
            assert client.read_response().body == b"seen"
        own = {key: value for key, value in app.environ.items() if not key.startswith("wsgi.")}
        assert own == {
            "REQUEST_METHOD": "PUT",
            "SCRIPT_NAME": "",
            "PATH_INFO": "/p\xc3\xa4th/a/b",
            "QUERY_STRING": "x=1&y=%20",
            "CONTENT_TYPE": "text/x",
            "CONTENT_LENGTH": "3",
            "SERVER_NAME": "127.0.0.1",
            "SERVER_PORT": str(running.address[1]),
            "SERVER_PROTOCOL": "HTTP/1.1",
            "REMOTE_ADDR": "127.0.0.1",
            "REMOTE_PORT": str(port),
            "HTTP_HOST": "test",
            "HTTP_X_ONE": "1",
            "HTTP_X_TWO": "a,b",
            "HTTP_X_LATIN": "\xc3\xa4",
            "HTTP_COOKIE": "a=1; b=2",
        }
        theirs = {key: app.environ[key] for key in app.environ if key.startswith("wsgi.")}
        assert hasattr(theirs.pop("wsgi.input"), "read")
        assert hasattr(theirs.pop("wsgi.errors"), "write")
        assert callable(theirs.pop("wsgi.file_wrapper"))
        assert theirs == {
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.multithread": True,
            "wsgi.multiprocess": True,
            "wsgi.run_once": False,
            "wsgi.input_terminated": True,
        }

    @pytest.mark.parametrize(
        "root_path, target, script_name, path_info",
        [
            ("", "/", "", "/"),
            ("/app", "/x", "/app", "/x"),
            ("/app", "/app/x", "/app", "/x"),
            ("/app", "/app", "/app", ""),
            ("/app", "/apple", "/app", "/apple"),
            ("/\u00e4", "/b", "/\xc3\xa4", "/b"),
            ("", "/a%FF/%C3%A4/%2Fz", "", "/a\xff/\xc3\xa4//z"),
            ("/app", "/app/%FF", "/app", "/\xff"),
        ],
    )
    def test_paths(
        self, serve: Serve, root_path: str, target: str, script_name: str, path_info: str
    ) -> None:
        app = Seen()
        ask(serve, app, request("GET", target), root_path=root_path, wsgi_threads=1)
        assert (app.environ["SCRIPT_NAME"], app.environ["PATH_INFO"]) == (script_name, path_info)
        assert app.environ["wsgi.multithread"] is False

    def test_a_unix_socket(self, serve: Serve, tmp_path: Path) -> None:
        app = Seen()
        fields = "GET / HTTP/1.1\r\nHost: example.org:8080\r\n\r\n"
        ask(serve, app, fields.encode(), bind=f"unix:{tmp_path / 'socket'}")
        assert app.environ["SERVER_NAME"] == "example.org"
        assert app.environ["SERVER_PORT"] == "8080"
        assert app.environ["REMOTE_ADDR"] == ""

    @pytest.mark.parametrize(
        "host, scheme, name, port",
        [
            (b"example.org", "http", "example.org", "80"),
            (b"example.org", "https", "example.org", "443"),
            (b"[::1]:81", "http", "[::1]", "81"),
            (b"[::1]", "http", "[::1]", "80"),
            (b"", "http", "localhost", "80"),
        ],
    )
    def test_no_server_is_known(self, host: bytes, scheme: str, name: str, port: str) -> None:
        environ = make_environ(
            {
                "method": "GET", "path": "/", "query_string": b"", "http_version": "2",
                "scheme": scheme, "headers": [(b"host", host)],
            }
        )  # fmt: skip
        assert (environ["SERVER_NAME"], environ["SERVER_PORT"]) == (name, port)
        assert environ["SERVER_PROTOCOL"] == "HTTP/2"


class TestInput:
    def test_reads(self, serve: Serve) -> None:
        got: list[Any] = []

        def app(environ: Any, start_response: Any) -> Iterable[bytes]:
            body = environ["wsgi.input"]
            got.extend([body.read(3), body.readline(), body.readline(2), body.readlines(1)])
            got.extend([next(body), list(body), body.read(), body.read(1), body.readline()])
            return hello(environ, start_response)

        content = b"123four\nfive\nsix\nseven\neight\nnine"
        ask(serve, app, request("POST", "/", body=content))
        assert got == [
            b"123", b"four\n", b"fi", [b"ve\n"], b"six\n", [b"seven\n", b"eight\n", b"nine"],
            b"", b"", b"",
        ]  # fmt: skip

    def test_a_chunked_body(self, serve: Serve) -> None:
        def app(environ: Any, start_response: Any) -> Iterable[bytes]:
            assert "CONTENT_LENGTH" not in environ and environ["wsgi.input_terminated"]
            start_response("200 OK", TEXT)
            return [environ["wsgi.input"].read()]

        message = request("POST", "/", "Transfer-Encoding: chunked") + b"3\r\nabc\r\n2\r\nde\r\n"
        assert ask(serve, app, message + b"0\r\n\r\n").body == b"abcde"

    def test_no_body(self, serve: Serve) -> None:
        def app(environ: Any, start_response: Any) -> Iterable[bytes]:
            start_response("200 OK", TEXT)
            return [environ["wsgi.input"].read() + environ["wsgi.input"].readline() + b"."]

        running = serve(app)
        with running.connect() as client:
            assert client.get().body == b"."
            assert client.get("/", "Content-Length: 0").body == b"."

    def test_it_is_streamed_both_ways(self, serve: Serve) -> None:
        """Each line is answered before the next one is sent."""

        def app(environ: Any, start_response: Any) -> Iterator[bytes]:
            start_response("200 OK", TEXT)
            for line in iter(environ["wsgi.input"].readline, b""):
                yield line.upper()

        with serve(app).connect() as client:
            client.sendall(request("POST", "/", "Content-Length: 8"))
            client.sendall(b"one\n")
            assert client.read_until(b"ONE\n\r\n").startswith(b"HTTP/1.1 200")
            client.sendall(b"two\n")
            assert client.read_until(b"0\r\n\r\n") == b"4\r\nTWO\n\r\n0\r\n\r\n"

    def test_the_client_is_asked_to_go_on(self, serve: Serve) -> None:
        def app(environ: Any, start_response: Any) -> Iterable[bytes]:
            start_response("200 OK", TEXT)
            return [environ["wsgi.input"].read(5)]

        with serve(app).connect() as client:
            client.sendall(request("POST", "/", "Content-Length: 5", "Expect: 100-continue"))
            assert client.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 100 ")
            client.sendall(b"asked")
            assert client.read_response().body == b"asked"

    def test_a_client_that_leaves(self, serve: Serve) -> None:
        raised: queue.SimpleQueue[Exception] = queue.SimpleQueue()

        def app(environ: Any, start_response: Any) -> Iterable[bytes]:
            try:
                environ["wsgi.input"].read()
            except Exception as error:
                raised.put(error)
                raise
            return hello(environ, start_response)

        running = serve(app)
        with running.connect() as client:
            client.sendall(request("POST", "/", "Content-Length: 5") + b"a")
        assert isinstance(raised.get(timeout=PATIENCE), OSError)
        with running.connect() as client:
            assert client.get("/", "Content-Length: 0").status == 200
        assert not running.errors

    def test_after_the_request(self, serve: Serve) -> None:
        app = Seen()
        ask(serve, app, request("POST", "/", body=b"abc"))

        def is_closed_off() -> bool:
            try:
                app.environ["wsgi.input"].read()
            except OSError:
                return True
            return False

        eventually(is_closed_off)
        with pytest.raises(OSError, match="nobody attends any more"):
            app.environ["wsgi.input"].read()


class TestResponse:
    @pytest.mark.parametrize("pieces", [[b"one"], (b"one",)])
    def test_the_length_of_a_single_piece_is_stated(self, serve: Serve, pieces: Any) -> None:
        response = ask(serve, Seen(pieces), request("GET", "/"))
        assert response.field(b"content-length") == b"3"
        assert response.body == b"one"

    @pytest.mark.parametrize("pieces", [[], [b""], [b"", b""], ()])
    def test_nothing(self, serve: Serve, pieces: Any) -> None:
        response = ask(serve, Seen(pieces), request("GET", "/"))
        assert (response.status, response.body) == (200, b"")

    def test_pieces_are_sent_at_once(self, serve: Serve) -> None:
        go_on = threading.Semaphore(0)

        def app(environ: Any, start_response: Any) -> Iterator[bytes]:
            start_response("200 OK", TEXT)
            for piece in (b"one", b"", b"two"):
                yield piece
                assert go_on.acquire(timeout=PATIENCE)

        with serve(app).connect() as client:
            client.sendall(request("GET", "/"))
            assert b"chunked" in client.read_until(b"\r\n3\r\none\r\n")
            go_on.release(2)
            client.read_until(b"3\r\ntwo\r\n")
            go_on.release()
            assert client.read_exactly(5) == b"0\r\n\r\n"

    def test_write(self, serve: Serve) -> None:
        def app(environ: Any, start_response: Any) -> Iterable[bytes]:
            write = start_response("200 OK", TEXT)
            write(b"one ")
            write(b"")
            write(b"two ")
            return [b"three"]

        assert ask(serve, app, request("GET", "/")).body == b"one two three"

    @pytest.mark.parametrize("lazily", [False, True])
    def test_head(self, serve: Serve, lazily: bool) -> None:
        made = []

        def app(environ: Any, start_response: Any) -> Iterable[bytes]:
            start_response("200 OK", TEXT)
            return pieces() if lazily else [b"abc"]

        def pieces() -> Iterator[bytes]:
            while True:
                made.append(1)
                yield b"abc"

        with serve(app).connect() as client:
            client.sendall(request("HEAD", "/"))
            response = client.read_response(head_only=True)
            assert response.field(b"content-length") == (None if lazily else b"3")
            client.sendall(request("HEAD", "/"))
            assert client.read_response(head_only=True).status == 200
        assert len(made) == (2 if lazily else 0)

    def test_the_code_behind_the_last_piece_is_run(self, serve: Serve) -> None:
        ran = threading.Event()

        def app(environ: Any, start_response: Any) -> Iterator[bytes]:
            start_response("200 OK", [("Content-Length", "3")])
            yield b"abc"
            ran.set()

        running = serve(app)
        with running.connect() as client:
            assert client.get().body == b"abc"
            assert ran.wait(PATIENCE)
            assert client.get().body == b"abc"

    def test_start_response_in_the_iterator(self, serve: Serve) -> None:
        def app(environ: Any, start_response: Any) -> Iterator[bytes]:
            yield b""
            start_response("404 Gone fishing", TEXT)
            yield b"late"

        response = ask(serve, app, request("GET", "/"))
        assert (response.status, response.body) == (404, b"late")

    def test_fields_of_the_connection_are_left_out(self, serve: Serve) -> None:
        def app(environ: Any, start_response: Any) -> Iterable[bytes]:
            start_response(
                "200 OK",
                [("Connection", "keep-alive"), ("Transfer-Encoding", "chunked"), ("X-A", "\xe4")],
            )
            return [b"ok"]

        response = ask(serve, app, request("GET", "/"))
        assert {name for name, _ in response.fields} == {
            b"x-a", b"content-length", b"date", b"server",
        }  # fmt: skip
        assert response.field(b"x-a") == b"\xe4"

    def test_a_file(self, serve: Serve, tmp_path: Path) -> None:
        path = tmp_path / "file"
        path.write_bytes(CONTENT)
        opened: list[io.BufferedReader] = []

        def app(environ: Any, start_response: Any) -> Iterable[bytes]:
            start_response("200 OK", TEXT)
            opened.append(path.open("rb"))
            wrapped: Iterable[bytes] = environ["wsgi.file_wrapper"](opened[0], 512)
            return wrapped

        assert ask(serve, app, request("GET", "/")).body == CONTENT
        eventually(lambda: opened[0].closed)

    @pytest.mark.parametrize("pieces", [[b"ok"], [b"o", b"k"]])
    def test_the_validator_has_no_objection(self, serve: Serve, pieces: Any) -> None:
        def app(environ: Any, start_response: Any) -> Iterable[bytes]:
            environ["wsgi.errors"].flush()
            assert environ["wsgi.input"].read(3) == b"abc"
            start_response("200 OK", TEXT)
            return pieces

        message = request("POST", "/a?b", "Content-Type: text/plain", body=b"abc")
        running = serve(validator(app), interface="wsgi")
        with running.connect() as client:
            client.sendall(message)
            assert client.read_response().body == b"ok"
        running.stop()
        assert not running.errors


def wrong(*arguments: Any) -> Any:
    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        start_response(*arguments)
        return [b"ok"]

    return app


def twice(environ: Any, start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", TEXT)
    return hello(environ, start_response)


def never(environ: Any, start_response: Any) -> Iterable[bytes]:
    return [b"no head"]


def text(environ: Any, start_response: Any) -> Any:
    start_response("200 OK", TEXT)
    return "a str"


def raises(environ: Any, start_response: Any) -> Any:
    raise ArithmeticError("on purpose")


def exits(environ: Any, start_response: Any) -> Any:
    start_response("200 OK", TEXT)
    sys.exit("on purpose")


def raises_in_the_iterator(environ: Any, start_response: Any) -> Iterator[bytes]:
    start_response("200 OK", TEXT)
    if environ:
        raise ArithmeticError("on purpose")
    yield b""


def nothing(environ: Any, start_response: Any) -> Any:
    start_response("200 OK", TEXT)


class TestErrors:
    @pytest.mark.parametrize(
        "app, kind",
        [
            (raises, ArithmeticError),
            (raises_in_the_iterator, ArithmeticError),
            (exits, SystemExit),
            (nothing, TypeError),
            (twice, RuntimeError),
            (never, RuntimeError),
            (text, TypeError),
            (wrong(200, TEXT), TypeError),
            (wrong("OK", TEXT), ValueError),
            (wrong("99 Low", TEXT), ValueError),
            (wrong("101 Switching Protocols", TEXT), ValueError),
            (wrong("200 OK\r\nX: y", TEXT), ValueError),
            (wrong("200 OK", tuple(TEXT)), TypeError),
            (wrong("200 OK", [["a", "b"]]), TypeError),
            (wrong("200 OK", [("a", b"b")]), TypeError),
            (wrong("200 OK", [("a b", "c")]), ValueError),
            (wrong("200 OK", [("a", "b\r\nc: d")]), ValueError),
            (wrong("200 OK", [("a", "\u20ac")]), ValueError),
        ],
    )
    def test_before_anything_was_sent(self, serve: Serve, app: Any, kind: Any) -> None:
        running = serve(app)
        with running.connect() as client:
            assert client.get().status == 500
            assert client.is_closed_by_peer()
        running.stop()
        [error] = running.exceptions()
        assert type(error) is kind
        assert eventually(no_threads)

    def test_its_traceback_is_the_applications(self, serve: Serve) -> None:
        running = serve(raises)
        with running.connect() as client:
            assert client.get().status == 500
        running.stop()
        [error] = running.exceptions()
        traceback, names = error.__traceback__, []
        while traceback is not None:
            names.append(traceback.tb_frame.f_code.co_name)
            traceback = traceback.tb_next
        assert names[-1] == "raises"

    def test_after_something_was_sent(self, serve: Serve) -> None:
        closed = threading.Event()

        def app(environ: Any, start_response: Any) -> Iterator[bytes]:
            start_response("200 OK", TEXT)
            try:
                yield b"begun"
                raise ArithmeticError("on purpose")
            finally:
                closed.set()

        running = serve(app)
        with running.connect() as client:
            client.sendall(request("GET", "/"))
            client.read_until(b"begun\r\n")
            assert client.is_closed_by_peer()  # without the last chunk
        assert closed.is_set()
        running.stop()
        assert [type(error) for error in running.exceptions()] == [ArithmeticError]

    def test_an_error_page_in_time(self, serve: Serve) -> None:
        def app(environ: Any, start_response: Any) -> Iterable[bytes]:
            start_response("200 OK", TEXT)
            try:
                raise ArithmeticError
            except ArithmeticError:
                start_response("503 Later", [("X-Error", "yes")], sys.exc_info())
            return [b"an error page"]

        response = ask(serve, app, request("GET", "/"))
        assert (response.status, response.body) == (503, b"an error page")
        assert response.field(b"x-error") == b"yes"
        assert response.field(b"content-type") is None

    def test_an_error_page_too_late(self, serve: Serve) -> None:
        def app(environ: Any, start_response: Any) -> Iterator[bytes]:
            start_response("200 OK", TEXT)
            yield b"begun"
            try:
                raise ArithmeticError("on purpose")
            except ArithmeticError:
                start_response("500 Oh", TEXT, sys.exc_info())
            yield b"never"

        running = serve(app)
        with running.connect() as client:
            client.sendall(request("GET", "/"))
            client.read_until(b"begun\r\n")
            assert client.is_closed_by_peer()
        running.stop()
        assert [type(error) for error in running.exceptions()] == [ArithmeticError]

    @pytest.mark.parametrize(
        "pieces", [[b"toolong"], [b"too", b"long"], [b"1", b"2345", b"6"], [b"1"], [b"1", b"2"]]
    )
    def test_a_length_that_is_not_kept(self, serve: Serve, pieces: Any) -> None:
        def app(environ: Any, start_response: Any) -> Iterable[bytes]:
            start_response("200 OK", [("Content-Length", "5")])
            return iter(pieces)

        running = serve(app)
        with running.connect() as client:
            client.sendall(request("GET", "/", "Connection: close"))
            assert len(client.read_to_end().partition(b"\r\n\r\n")[2]) <= 30
        running.stop()
        [error] = running.exceptions()
        assert "content-length" in str(error).lower()

    def test_close_is_called(self, serve: Serve) -> None:
        closed: list[str] = []

        class Closing:
            def __init__(self, name: str, pieces: Iterable[bytes]) -> None:
                self.name = name
                self.pieces = pieces

            def __iter__(self) -> Iterator[bytes]:
                if self.name == "/raises":
                    raise ArithmeticError
                return iter(self.pieces)

            def close(self) -> None:
                closed.append(self.name)

        def app(environ: Any, start_response: Any) -> Iterable[bytes]:
            name = environ["PATH_INFO"]
            if name != "/never-started":
                start_response("200 OK", [("Content-Length", "1")] if name == "/long" else TEXT)
            return Closing(name, [b"a", b"b"])

        running = serve(app)
        names = ["/", "/raises", "/never-started", "/long"]
        for name in names:
            with running.connect() as client:
                client.sendall(request("GET", name, "Connection: close"))
                client.read_to_end()
                assert eventually(lambda n=name: n in closed)
        assert closed == names

    def test_wsgi_errors_go_to_the_log(self, serve: Serve) -> None:
        lines: queue.SimpleQueue[str] = queue.SimpleQueue()

        def app(environ: Any, start_response: Any) -> Iterable[bytes]:
            errors = environ["wsgi.errors"]
            errors.write("one ")
            errors.writelines(["two\nthree 100%s\n", "fo"])
            print("ur", file=errors, end="")
            return hello(environ, start_response)

        class Keep(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                if record.levelno == logging.ERROR:
                    lines.put(record.getMessage())

        logger, handler = logging.getLogger("fastserve"), Keep()
        logger.addHandler(handler)
        try:
            ask(serve, app, request("GET", "/"))
            assert lines.get(timeout=PATIENCE) == "one two\nthree 100%s"
            assert lines.get(timeout=PATIENCE) == "four"
        finally:
            logger.removeHandler(handler)

    def test_a_websocket_is_refused(self, serve: Serve) -> None:
        response = ask(
            serve,
            hello,
            request(
                "GET", "/", "Connection: Upgrade", "Upgrade: websocket",
                "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
            ),
        )  # fmt: skip
        assert response.status == 403

    def test_it_has_no_lifespan(self, serve: Serve) -> None:
        running = serve(hello, lifespan="auto")
        with running.connect() as client:
            assert client.get().status == 200
        assert not running.errors


def mounted(app: Any) -> Any:
    """Inside an ASGI application, where nobody has send() raise."""

    async def outer(scope: Any, receive: Any, send: Any) -> None:
        await inner(scope, receive, send)

    inner = WSGI(app)
    return outer


class TestThreads:
    @pytest.mark.parametrize("wrap", [lambda app: app, mounted], ids=["alone", "mounted"])
    @pytest.mark.parametrize("leave", [Client.close, reset])
    @pytest.mark.parametrize("method", ["GET", "POST"])
    def test_a_client_that_leaves(
        self, serve: Serve, wrap: Any, leave: Callable[[Client], None], method: str
    ) -> None:
        closed = threading.Event()

        def app(environ: Any, start_response: Any) -> Iterator[bytes]:
            environ["wsgi.input"].read()
            start_response("200 OK", TEXT)
            try:
                while True:
                    yield b"x" * 1000
                    time.sleep(0.001)  # not to fill the buffers before the client is gone
            finally:
                closed.set()

        running = serve(wrap(app), wsgi_threads=1)
        client = running.connect()
        client.sendall(request(method, "/", body=b"" if method == "GET" else b"abc"))
        client.read_exactly(5000)
        leave(client)
        assert closed.wait(PATIENCE)
        with running.connect() as client:  # the only thread is free again
            client.sendall(request("GET", "/"))
            client.read_exactly(1000)
        running.stop()
        assert not running.errors

    def test_a_client_that_waits_for_nothing_blocks_no_other(self, serve: Serve) -> None:
        def app(environ: Any, start_response: Any) -> Iterable[bytes]:
            start_response("200 OK", TEXT)
            return iter([b"x" * 65536] * 200) if environ["PATH_INFO"] == "/big" else [b"small"]

        running = serve(app, wsgi_threads=2)
        with running.connect() as slow, running.connect() as quick:
            slow.sendall(request("GET", "/big"))
            slow.read_until(b"\r\n\r\n")
            for _ in range(10):
                assert quick.get().body == b"small"

    def test_one_that_cannot_be_started(self, serve: Serve) -> None:
        """Its request has failed by the time that there is a thread for it."""
        called: list[str] = []

        def app(environ: Any, start_response: Any) -> Iterable[bytes]:
            called.append(environ["PATH_INFO"])
            environ["wsgi.input"].read()
            return hello(environ, start_response)

        running = serve(app, wsgi_threads=1)
        before = threading.stack_size(2**60)  # no machine has so much
        try:
            with running.connect() as client:
                client.sendall(request("POST", "/first", body=b"abc"))
                assert client.read_response().status == 500
        finally:
            threading.stack_size(before)
        with running.connect() as client:
            client.sendall(request("POST", "/second", body=b"abc"))
            assert client.read_response().status == 200
        assert called == ["/second"]
        assert [str(error) for error in running.exceptions()] == ["can't start new thread"]

    def test_they_are_few_and_each_in_its_turn(self, serve: Serve) -> None:
        """A thousand at once on four threads: all are answered, first come, first served."""
        names: set[str] = set()
        order: list[int] = []
        go_on = threading.Event()

        def app(environ: Any, start_response: Any) -> Iterable[bytes]:
            order.append(int(environ["QUERY_STRING"]))
            names.add(threading.current_thread().name)
            assert go_on.wait(PATIENCE)
            start_response("200 OK", TEXT)
            return [environ["QUERY_STRING"].encode()]

        count = 1000
        running = serve(app, wsgi_threads=4, backlog=count)
        clients = [running.connect() for _ in range(count)]
        try:
            for number, client in enumerate(clients):
                client.sendall(request("GET", f"/?{number}"))
                if number < 4:
                    eventually(lambda n=number: len(order) > n)
            go_on.set()
            for number, client in enumerate(clients):
                assert client.read_response().body == b"%d" % number
        finally:
            for client in clients:
                client.close()
        assert names <= {f"fastserve-{number}" for number in range(1, 5)}
        assert sorted(order) == list(range(count))
        # The last of them were not begun before the first.
        assert max(order[: count // 4]) < count - count // 4
        running.stop()
        assert not running.errors

    def test_requests_share_no_context(self, serve: Serve) -> None:
        variable: ContextVar[str] = ContextVar("variable", default="unset")

        def app(environ: Any, start_response: Any) -> Iterator[bytes]:
            before = variable.get()
            variable.set("set")
            start_response("200 OK", TEXT)
            yield before.encode()
            yield variable.get().encode()

        with serve(app, wsgi_threads=1).connect() as client:
            for _ in range(3):
                assert client.get().body == b"unsetset"

    def test_they_end_with_the_server(self, serve: Serve) -> None:
        running = serve(hello, wsgi_threads=3)
        with running.connect() as client:
            client.get()
        assert threads()
        running.stop()
        assert eventually(no_threads)

    def test_a_request_under_way_is_finished(self, serve: Serve) -> None:
        begun, go_on = threading.Event(), threading.Event()

        def app(environ: Any, start_response: Any) -> Iterable[bytes]:
            begun.set()
            assert go_on.wait(PATIENCE)
            return hello(environ, start_response)

        running = serve(app)
        with running.connect() as client:
            client.sendall(request("GET", "/"))
            assert begun.wait(PATIENCE)
            running.ask_to_stop()
            go_on.set()
            assert client.read_response().body == b"Hello, world!"
        running.stop()
        assert eventually(no_threads)

    def test_after_the_graceful_time(self, serve: Serve) -> None:
        """Who writes is told that it is over; who has not begun never does."""
        calls: list[str] = []
        closed = threading.Event()

        def app(environ: Any, start_response: Any) -> Iterator[bytes]:
            calls.append(environ["PATH_INFO"])
            start_response("200 OK", TEXT)
            try:
                while True:
                    yield b"x"
                    time.sleep(0.001)
            finally:
                closed.set()

        running = serve(app, wsgi_threads=1, graceful_timeout=0.1)
        with running.connect() as client, running.connect() as waiting:
            client.sendall(request("GET", "/first"))
            client.read_until(b"x")
            waiting.sendall(request("GET", "/second"))
            running.stop()
            assert closed.is_set()
            assert waiting.read_response().status == 503
        assert calls == ["/first"]
        assert eventually(no_threads)

    def test_what_hangs_does_not_keep_the_server(
        self, serve: Serve, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("fastserve.blocking.PATIENCE", 0.1)
        begun, go_on = threading.Event(), threading.Event()

        def app(environ: Any, start_response: Any) -> Iterable[bytes]:
            begun.set()
            go_on.wait()
            return hello(environ, start_response)

        running = serve(app, graceful_timeout=0.1)
        with running.connect() as client:
            client.sendall(request("GET", "/"))
            assert begun.wait(PATIENCE)
            running.stop()
            assert client.read_response().status == 503
        assert len(threads()) == 1
        go_on.set()
        assert eventually(no_threads)

    def test_nothing_stays(self, serve: Serve) -> None:
        """What belongs to a request dies with it, without the collector."""

        class Marker:
            pass

        markers: weakref.WeakSet[Marker] = weakref.WeakSet()

        def app(environ: Any, start_response: Any) -> Iterable[bytes]:
            marker = environ["marker"] = Marker()
            markers.add(marker)
            body = environ["wsgi.input"].read()
            start_response("200 OK", TEXT)
            return [body] if body else iter([b"one", b"two"])

        running = serve(app, wsgi_threads=2)
        with running.connect() as client:
            client.get()
            eventually(lambda: not markers)
            gc.disable()
            try:
                for _ in range(50):
                    assert client.get().body == b"onetwo"
                    client.sendall(request("POST", "/", body=b"abc"))
                    assert client.read_response().body == b"abc"
                with running.connect() as other:
                    other.sendall(request("POST", "/", "Content-Length: 5"))
                eventually(lambda: not markers)
            finally:
                gc.enable()


def test_it_needs_our_worker() -> None:
    scope = {"type": "http", "method": "GET", "http_version": "1.1", "headers": [], "asgi": {}}
    coroutine = WSGI(hello)(scope, None, None)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="fastserve only"):
        coroutine.send(None)


class Streaming(Process):
    """A stream of 100 MiB from a process, whose memory can be looked at."""

    def memory(self) -> int:
        status = Path(f"/proc/{self.popen.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        return 1024 * int(line.split()[1])


@pytest.fixture(params=WORKERS)
def loop(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    skip_without(name)
    return name


@measures_memory
class TestMemory:
    @pytest.fixture
    def streaming(self, loop: str) -> Iterator[Streaming]:
        server = Streaming("-k", loop, "-b", "127.0.0.1:0", "wsgi:streaming_wsgi:app")
        try:
            yield server
        finally:
            server.end()

    def test_a_slow_client(self, streaming: Streaming) -> None:
        with streaming.connect() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            client.get("/sum", "Content-Length: 0")
            before = streaming.memory()
            client.sendall(request("GET", "/stream", "Connection: close"))
            client.read_until(b"\r\n\r\n")
            with streaming.connect() as other:
                made = [-1]

                def has_stalled() -> bool:
                    made.append(int(other.get("/made").body))
                    return 0 < made[-2] == made[-1]

                eventually(has_stalled)
            assert made[-1] < 16 * MIB
            received, block = len(client.received), bytearray(MIB)
            while count := client.recv_into(block):
                received += count
        assert received > 100 * MIB
        assert streaming.memory() - before < 16 * MIB

    def test_a_big_body(self, streaming: Streaming) -> None:
        with streaming.connect() as client:
            client.get("/sum", "Content-Length: 0")
            before = streaming.memory()
            client.sendall(request("POST", "/sum", f"Content-Length: {100 * MIB}"))
            for _ in range(100):
                client.sendall(bytes(MIB))
            assert client.read_response().body == b"%d" % (100 * MIB)
        assert streaming.memory() - before < 16 * MIB


@pytest.fixture(scope="module", params=WORKERS)
def flask(request: pytest.FixtureRequest) -> Iterator[Site]:
    yield from sites("flask", request.param)


@pytest.fixture(scope="module", params=WORKERS)
def django(request: pytest.FixtureRequest) -> Iterator[Site]:
    yield from sites("django", request.param, "wsgi")


class TestFlask:
    def test_pages(self, flask: Site) -> None:
        assert flask.http.get("/").text == "hello from flask"
        assert flask.http.get("/url", params={"a": "\u00e4"}).text == f"{flask.url}/url?a=\u00e4"
        assert flask.http.get("/missing").status_code == 404
        head = flask.http.head("/")
        assert (head.headers["content-length"], head.content) == ("16", b"")

    def test_echo(self, flask: Site) -> None:
        assert flask.http.post("/echo", content="h\u00e9llo".encode()).text == "h\u00e9llo"
        assert flask.http.post("/echo", content=iter([b"one ", b"two"])).text == "one two"
        options = ["--header", "Expect: 100-continue", "--data-binary", "@-"]
        big = "x" * 2_000_000
        assert curl(*options, f"{flask.url}/echo", text=big) == big

    def test_stream(self, flask: Site) -> None:
        check_stream(flask)

    def test_upload(self, flask: Site, tmp_path: Path) -> None:
        check_upload(flask, tmp_path, note="with a word")

    def test_a_file(self, flask: Site) -> None:
        assert (
            flask.http.get("/file").content == (Path(__file__).parent / "process.py").read_bytes()
        )

    def test_an_error(self, flask: Site) -> None:
        assert flask.http.get("/fail").status_code == 500
        flask.logs("ArithmeticError: miscounted")


class TestDjango:
    def test_views(self, django: Site) -> None:
        assert django.http.get("/plain", params={"word": "\u00df"}).text == "sync \u00df"
        assert django.http.get("/missing").status_code == 404

    def test_echo(self, django: Site) -> None:
        assert django.http.post("/echo", content=b"abc").json() == {"method": "POST", "body": "abc"}

    def test_stream(self, django: Site) -> None:
        assert curl(f"{django.url}/sync-stream") == NUMBERS

    def test_upload(self, django: Site, tmp_path: Path) -> None:
        check_upload(django, tmp_path)
