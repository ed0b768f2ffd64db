"""Overload: how many requests and connections there may be, and what the next one gets."""

from __future__ import annotations

import logging
import socket
import struct
import threading
import time
from typing import Any

import anyio
import pytest
from conftest import PATIENCE, Client, Running, Serve, request, respond
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
    finally:
        logger.removeFilter(refuse)
    server.stop()
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
