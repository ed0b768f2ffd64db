"""Overload: how many requests and connections there may be, and what the next one gets."""

from __future__ import annotations

import contextlib
import logging
import socket
import struct
import threading
import time
from pathlib import Path
from typing import Any

import anyio
import pytest
from conftest import (
    MIB,
    PATIENCE,
    Client,
    Running,
    Serve,
    frame,
    handshake,
    read_body,
    request,
    respond,
)
from process import eventually


class Busy:
    """An application whose requests for `/work` last until they are let go, in order."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.may_end = threading.Semaphore(0)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
            await receive()
            return
        if scope["path"] == "/work":
            self.begun.append(scope["query_string"].decode())
            while not self.may_end.acquire(blocking=False):
                await anyio.sleep(0.005)
        await respond(send, scope["path"].encode())

    def let_go(self, count: int = 1) -> None:
        self.may_end.release(count)

    def wait_for(self, count: int) -> None:
        eventually(lambda: len(self.begun) == count)


def start(server: Running, number: int) -> Client:
    client = server.connect()
    client.sendall(request("GET", f"/work?{number}"))
    return client


def test_requests_above_the_limit_are_turned_away(serve: Serve) -> None:
    app = Busy()
    server = serve(app, lifespan="off", limit_concurrency=2)
    with start(server, 1) as first, start(server, 2) as second, server.connect() as third:
        app.wait_for(2)
        third.sendall(request("GET", "/"))
        answer = third.read_response()
        assert answer.status == 503
        assert answer.field(b"retry-after") == b"5"
        assert answer.field(b"connection") == b"close"
        assert third.is_closed_by_peer()
        app.let_go(2)
        assert first.read_response().status == second.read_response().status == 200
        # The places are free again, and idle connections have none.
        for client in (first, second):
            assert client.get("/").status == 200
        with server.connect() as fourth:
            assert fourth.get("/").status == 200
    assert server.errors == []


def handled(server: Running) -> None:
    """Returns when everything that was sent before has been looked at."""
    with server.connect() as client:
        for _ in range(2):  # the first answer may come from the very batch in question
            assert client.get("/probe").status == 200


LINE = {"lifespan": "off", "queue_timeout": PATIENCE, "probe_path": "/probe"}


def test_the_line_is_served_in_order(serve: Serve) -> None:
    app = Busy()
    server = serve(app, limit_concurrency=1, queue_size=3, **LINE)
    clients = []
    for number in range(4):
        clients.append(start(server, number))
        handled(server)
    with server.connect() as one_too_many:
        assert one_too_many.get("/").status == 503
    for number, client in enumerate(clients):
        app.wait_for(number + 1)
        app.let_go()
        assert client.read_response().status == 200
        client.close()
    assert app.begun == ["0", "1", "2", "3"]
    assert server.errors == []


def test_who_waits_too_long_is_turned_away(serve: Serve) -> None:
    app = Busy()
    server = serve(app, lifespan="off", limit_concurrency=1, queue_size=5, queue_timeout=0.2)
    with start(server, 1) as first:
        app.wait_for(1)
        with start(server, 2) as second, start(server, 3) as third:
            for client in (second, third):
                answer = client.read_response()
                assert (answer.status, answer.field(b"retry-after")) == (503, b"1")
        app.let_go()
        assert first.read_response().status == 200
        assert first.get("/").status == 200
    assert app.begun == ["1"]
    assert server.errors == []


def test_who_leaves_the_line_gives_up_the_place(serve: Serve) -> None:
    app = Busy()
    server = serve(app, limit_concurrency=1, queue_size=1, **LINE)
    with start(server, 1) as first:
        app.wait_for(1)
        with start(server, 2) as second, server.connect() as refused:
            handled(server)
            assert refused.get("/").status == 503
            # By a reset: after a FIN alone it may still wait for its answer.
            second.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        handled(server)
        with start(server, 3) as third:
            handled(server)
            app.let_go(2)
            assert first.read_response().status == third.read_response().status == 200
    assert app.begun == ["1", "3"]
    assert server.errors == []


def test_probes_are_answered_all_the_same(serve: Serve) -> None:
    app = Busy()
    server = serve(app, lifespan="off", limit_concurrency=1, probe_path=["/live", "/ready"])
    with start(server, 1) as first, server.connect() as probe:
        app.wait_for(1)
        assert probe.get("/live").body == b"/live"
        assert probe.get("/ready?now").body == b"/ready"
        assert probe.get("/live/").status == 503
        app.let_go()
        assert first.read_response().status == 200


def test_a_place_that_comes_late_is_still_a_place(serve: Serve) -> None:
    """It was given before anybody looked at how long it had been waited for."""
    late = threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/work":
            begun.release()
            while not late.is_set():
                await anyio.sleep(0.005)
            time.sleep(1.5)  # is what is tested: the time of the other one is over
        await respond(send)

    begun = threading.Semaphore(0)
    server = serve(app, limit_concurrency=1, queue_size=1, **{**LINE, "queue_timeout": 1})
    with start(server, 1) as first, server.connect() as second:
        assert begun.acquire(timeout=PATIENCE)
        second.sendall(request("GET", "/"))
        handled(server)
        late.set()
        assert first.read_response().status == second.read_response().status == 200
    assert server.errors == []


def test_a_log_that_raises_keeps_no_place(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    """The log's filters are the program's own."""

    def refuse(record: logging.LogRecord) -> bool:
        if record.exc_info:
            raise LookupError("out of the filter")
        return True

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.accept"})
        elif scope["path"] == "/":
            await respond(send)
        raise OverflowError("out of the application")

    server = serve(app, lifespan="off", limit_concurrency=1)
    logger = logging.getLogger("fastserve")
    logger.addFilter(refuse)
    try:
        with server.connect() as client, server.websocket() as websocket:
            assert client.get("/fails").status == 500
            assert client.is_closed_by_peer()
            assert websocket.read_close()[0] == 1011
        with server.connect() as client:
            assert client.get("/").status == 200
        server.stop()
    finally:
        logger.removeFilter(refuse)
    assert server.errors == []  # nothing was still under way
    said = capsys.readouterr().err
    assert "LookupError: out of the filter" in said
    assert "OverflowError: out of the application" in said


def test_a_request_with_a_body_waits_as_well(serve: Serve) -> None:
    app = Busy()
    server = serve(app, limit_concurrency=1, queue_size=1, **LINE)
    with start(server, 1) as first, server.connect() as second:
        app.wait_for(1)
        second.sendall(request("POST", "/work?2", "Content-Length: 10") + b"01234")
        app.let_go()
        assert first.read_response().status == 200
        app.wait_for(2)
        second.sendall(b"56789")
        app.let_go()
        assert second.read_response().status == 200
        assert second.get("/").status == 200


def test_open_websockets_have_no_place(serve: Serve) -> None:
    app = Busy()
    server = serve(app, lifespan="off", limit_concurrency=1)
    with server.websocket(), server.websocket(), server.connect() as client:
        assert client.get("/").status == 200


def test_a_thousand_requests_through_a_narrow_gate(serve: Serve) -> None:
    """None is lost and none runs twice, however they end up in the line."""
    calls = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal calls
        calls += 1
        await anyio.sleep(0)
        await respond(send, b"x")

    server = serve(app, lifespan="off", limit_concurrency=3, queue_size=100, queue_timeout=PATIENCE)
    clients = [server.connect() for _ in range(50)]
    for client in clients:
        client.sendall(request("GET", "/") * 20)
    for client in clients:
        for _ in range(20):
            assert client.read_response().status == 200
        client.close()
    assert calls == 1000
    assert server.errors == []


@pytest.mark.parametrize("limit", [1, 3])
def test_connections_above_the_limit_wait_to_be_accepted(serve: Serve, limit: int) -> None:
    app = Busy()
    server = serve(app, lifespan="off", max_connections=limit)
    clients = [server.connect() for _ in range(limit)]
    for client in clients:
        assert client.get("/").status == 200
    with server.connect() as next_one:  # by the kernel, which holds it
        next_one.sendall(request("GET", "/later"))
        for client in clients:
            assert client.get("/").status == 200
        next_one.settimeout(0.1)
        with pytest.raises(TimeoutError):
            next_one.recv(1)
        next_one.settimeout(PATIENCE)
        clients.pop().close()
        assert next_one.read_response().body == b"/later"
    for client in clients:
        client.close()
    with server.connect() as last:
        assert last.get("/").status == 200
    assert server.errors == []


def test_connections_of_one_address(serve: Serve) -> None:
    app = Busy()
    server = serve(app, lifespan="off", max_connections_per_address=2)
    with server.connect() as first, server.connect() as second:
        assert first.get("/").status == second.get("/").status == 200
        assert not answers(server)
        other = from_address("127.0.0.2", server.address)
        with other:
            assert other.get("/").status == 200
        first.close()
        eventually(lambda: answers(server))
    assert server.errors == []


def test_what_a_proxy_says_is_not_what_is_counted(serve: Serve) -> None:
    """A PROXY header gives the connection another client; the place it has is the proxy's."""
    server = serve(Busy(), lifespan="off", max_connections_per_address=2, proxy_protocol=True)
    for number in range(6):
        with server.connect() as client:
            header = f"PROXY TCP4 192.0.2.{number} 192.0.2.99 1000 80\r\n".encode()
            client.sendall(header + request("GET", "/", "Connection: close"))
            assert client.read_response().status == 200
            assert client.is_closed_by_peer()
    assert server.errors == []


def from_address(host: str, address: Any) -> Client:
    """A connection whose own address is `host`."""
    client = Client.__new__(Client)
    super(Client, client).__init__()
    client.settimeout(PATIENCE)
    client.bind((host, 0))
    client.connect(address)
    client.received = b""
    return client


def answers(server: Running) -> bool:
    try:
        with server.connect() as client:
            return client.get("/").status == 200
    except (AssertionError, ConnectionResetError, BrokenPipeError):
        return False


# A limit for the time that an answer takes.

LATE = 0.3


class Slow:
    """An application that waits where its path says. `ends` is what its calls ended with."""

    def __init__(self) -> None:
        self.ends: list[str] = []
        self.go_on = threading.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await getattr(self, scope["path"].strip("/") or "fast")(scope, receive, send)
        except BaseException as error:
            self.ends.append(type(error).__name__)
            raise
        self.ends.append("")

    async def fast(self, scope: Any, receive: Any, send: Any) -> None:
        await respond(send, b"in time")

    async def silent(self, scope: Any, receive: Any, send: Any) -> None:
        await self.wait_for_ever()

    async def wait_for_ever(self) -> None:
        await anyio.sleep_forever()

    async def grouped(self, scope: Any, receive: Any, send: Any) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(self.wait_for_ever)

    async def begun(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await self.wait_for_ever()

    async def stream(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
            await anyio.sleep(LATE / 4)

    async def stubborn(self, scope: Any, receive: Any, send: Any) -> None:
        with contextlib.suppress(BaseException):
            await self.wait_for_ever()
        await respond(send, b"too late")

    async def failing(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await self.wait_for_ever()
        finally:
            raise ValueError("on the way out")

    async def listening(self, scope: Any, receive: Any, send: Any) -> None:
        await read_body(receive)

    async def block(self, scope: Any, receive: Any, send: Any) -> None:
        assert self.go_on.wait(PATIENCE)
        await respond(send)

    async def background(self, scope: Any, receive: Any, send: Any) -> None:
        await respond(send, b"in time")
        while not self.go_on.is_set():
            await anyio.sleep(0.005)

    async def file(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.pathsend", "path": scope["query_string"].decode()})

    async def chat(self, scope: Any, receive: Any, send: Any) -> None:
        await receive()
        if scope["query_string"]:
            await self.wait_for_ever()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": message["text"]})


def in_time(serve: Serve, app: Any, **options: Any) -> Running:
    return serve(app, lifespan="off", request_timeout=LATE, **options)


def time_passes(server: Running) -> None:
    """As much as any request has that was begun before."""
    with server.connect() as client:
        assert client.get("/silent").status == 504


def cancelled(app: Slow, count: int = 1) -> None:
    eventually(
        lambda: [end in ("CancelledError", "Cancelled") for end in app.ends] == [True] * count
    )


@pytest.mark.parametrize("path", ["silent", "begun", "grouped"])
def test_an_answer_that_takes_too_long(serve: Serve, path: str) -> None:
    app = Slow()
    server = in_time(serve, app)
    with server.connect() as client:
        answer = client.get(f"/{path}?a=%0A")
        assert (answer.status, answer.reason) == (504, b"Gateway Timeout")
        assert answer.body == b"The application did not answer in time.\n"
        assert answer.field(b"connection") == b"close"
        assert client.is_closed_by_peer()
    cancelled(app)
    (record,) = server.errors
    line, *stack = record.getMessage().splitlines()
    assert line.startswith(f"GET /{path}?a=%0A: no whole answer within {LATE} s;")
    assert any(line.endswith(" in wait_for_ever") for line in stack)
    with server.connect() as client:
        assert client.get("/fast").body == b"in time"


def test_a_stream_that_takes_too_long_is_cut(serve: Serve) -> None:
    app = Slow()
    server = in_time(serve, app)
    with server.connect() as client:
        client.sendall(request("GET", "/stream"))
        received = client.read_to_end()
        assert received.startswith(b"HTTP/1.1 200 OK\r\n")
        assert received.count(b"1\r\nx\r\n") > 1
        assert not received.endswith(b"0\r\n\r\n")
    with server.connect() as client, pytest.raises(ConnectionResetError):
        client.sendall(b"GET /stream HTTP/1.0\r\n\r\n")
        client.read_to_end()  # whose end would be the end of the body
    cancelled(app, 2)
    assert len(server.errors) == 2


@pytest.mark.parametrize("path", ["stubborn", "failing"])
def test_whatever_the_application_makes_of_it(serve: Serve, path: str) -> None:
    """What it still says is for nobody; and its place is free for the next one."""
    app = Slow()
    server = in_time(serve, app, limit_concurrency=1, queue_size=5, queue_timeout=PATIENCE)
    for count in (1, 2):
        with server.connect() as client:
            assert client.get(f"/{path}").status == 504
            assert client.is_closed_by_peer()
        with server.connect() as client:
            assert client.get("/fast").body == b"in time"
        assert len(app.ends) == 2 * count
    assert len(server.exceptions()) == (2 if path == "failing" else 0)


def test_a_request_that_does_not_arrive_is_no_excuse(serve: Serve) -> None:
    app = Slow()
    server = in_time(serve, app, body_timeout=PATIENCE)
    with server.connect() as client:
        client.sendall(request("POST", "/listening", "Content-Length: 5") + b"ab")
        assert client.read_response().status == 504
        assert client.is_closed_by_peer()
    cancelled(app)
    (record,) = server.errors
    assert " in read_body" in record.getMessage()


def test_the_line_has_a_limit_of_its_own(serve: Serve) -> None:
    app = Slow()
    server = in_time(serve, app, limit_concurrency=1, queue_size=1, queue_timeout=PATIENCE)
    with server.connect() as first, server.connect() as second:
        first.sendall(request("GET", "/silent"))
        second.sendall(request("GET", "/fast"))
        assert first.read_response().status == 504
        assert second.read_response().body == b"in time"


def test_what_is_not_limited(serve: Serve) -> None:
    """Work after the answer, idle connections, and WebSockets that were accepted."""
    app = Slow()
    server = in_time(serve, app)
    with server.connect() as client, server.connect() as idle, server.websocket("/chat") as chat:
        assert client.get("/background").body == b"in time"
        assert idle.get("/fast").status == 200
        time_passes(server)
        time_passes(server)
        app.go_on.set()
        assert client.get("/fast").status == idle.get("/fast").status == 200
        chat.sendall(frame(0x81, b"still there"))
        assert chat.read_frame().payload == b"still there"
        chat.close_with()
    eventually(lambda: sorted(app.ends)[:5] == [""] * 5)
    assert len(server.errors) == 2


def test_a_websocket_that_is_not_accepted(serve: Serve) -> None:
    app = Slow()
    server = in_time(serve, app)
    with server.connect() as client:
        client.sendall(handshake("/chat?hesitates"))
        assert client.read_response().status == 504
    cancelled(app)


def test_a_client_that_takes_its_time_with_a_file(serve: Serve, tmp_path: Path) -> None:
    """The application has done its part."""
    file = tmp_path / "file"
    file.write_bytes(bytes(8 * MIB))
    server = in_time(serve, Slow())
    with server.connect() as client:
        client.sendall(request("GET", f"/file?{file}"))
        client.read_until(b"\r\n\r\n")
        time_passes(server)
        time_passes(server)
        assert len(client.read_exactly(8 * MIB)) == 8 * MIB
        assert client.get("/fast").status == 200


def test_many_that_take_too_long(serve: Serve) -> None:
    """To look where each of them stands would make the loop hang itself."""
    app = Slow()
    server = in_time(serve, app)
    clients = [server.connect() for _ in range(200)]
    for client in clients:
        assert client.get("/fast").status == 200
    with server.connect() as client:
        client.sendall(request("GET", "/block"))
        for each in clients:  # which begin together
            each.sendall(request("GET", "/silent"))
        app.go_on.set()
        client.read_response()
    for client in clients:
        assert client.read_response().status == 504
        client.close()
    eventually(lambda: len(app.ends) == 401)
    late = [record.getMessage() for record in server.errors]
    explained = [text for text in late if "it stood at" in text]
    assert len(late) >= 200
    assert 20 <= len(explained) < 200


def test_a_thread_that_takes_too_long(serve: Serve) -> None:
    go_on = threading.Event()

    def app(environ: Any, start_response: Any) -> list[bytes]:
        if environ["PATH_INFO"] == "/slow":
            go_on.wait(PATIENCE)
        start_response("200 OK", [])
        return [b"in time"]

    server = in_time(serve, app, interface="wsgi")
    with server.connect() as client:
        assert client.get("/slow").status == 504
    assert "go_on.wait(PATIENCE)" in server.errors[-1].getMessage()
    go_on.set()
    with server.connect() as client:
        assert client.get("/fast").body == b"in time"
