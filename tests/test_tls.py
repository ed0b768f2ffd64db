"""TLS over real sockets, on every loop and poller.

`TlsClient` is an ordinary client. `Records` is one whose ciphertext passes through the test,
which can split, repeat, spoil or withhold it. The certificates are made by
tests/certificates/make.sh.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import hashlib
import importlib.util
import os
import select
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from conftest import (
    MIB,
    PATIENCE,
    Client,
    Instances,
    Response,
    Running,
    Serve,
    TlsClient,
    hello,
    measures_memory,
    pem,
    push,
    read_body,
    request,
    reset,
    respond,
    trusting,
)
from process import Process, eventually, needs, others_environment, refuses, settled

import fastserve
from fastserve import _http1, _reactor, _tls, _transport, _websocket
from fastserve.config import ConfigError
from fastserve.tls import Certificates

BOUND = 32 * MIB  # more than the buffers of two sockets and the server together
V12, V13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
ANY_POLLER = pytest.mark.parametrize("poller", ["loop"], indirect=True)


SERVER = {"certfile": pem("server.pem"), "keyfile": pem("server.key")}
MUTUAL = {**SERVER, "ca_certs": pem("ca.pem"), "verify_mode": "required"}


def connect(
    server: Running | Process,
    context: ssl.SSLContext | None = None,
    name: str | None = "localhost",
    **options: Any,
) -> TlsClient:
    context = context or trusting()
    if name is None:
        context.check_hostname = False
    wrapped = context.wrap_socket(Client(server.address), server_hostname=name, **options)
    assert isinstance(wrapped, TlsClient)
    return wrapped


class Records:
    """A client's session whose ciphertext is the test's to send."""

    def __init__(
        self, server: Running, context: ssl.SSLContext | None = None, name: str = "localhost"
    ) -> None:
        self.socket = server.connect()
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.session = (context or trusting()).wrap_bio(
            self.incoming, self.outgoing, server_hostname=name
        )
        self.received = b""

    def __enter__(self) -> Records:
        return self

    def __exit__(self, *error: object) -> None:
        self.socket.close()

    def hello(self) -> bytes:
        with contextlib.suppress(ssl.SSLWantReadError):
            self.session.do_handshake()
        return self.outgoing.read()

    def feed(self) -> bool:
        """Take what the server has sent; whether it was anything."""
        data = self.socket.recv(65536)
        self.incoming.write(data)
        return bool(data)

    def shake_hands(self, send: Callable[[bytes], object] | None = None) -> bytes:
        """All of the handshake, but for the client's last flight: that is returned."""
        send = send or self.socket.sendall
        while True:
            try:
                self.session.do_handshake()
            except ssl.SSLWantReadError:
                if data := self.outgoing.read():
                    send(data)
                assert self.feed(), "closed in the midst of the handshake"
            else:
                return self.outgoing.read()

    def opened(self) -> Records:
        """With the handshake done on both sides."""
        self.socket.sendall(self.shake_hands())
        return self

    def encrypt(self, *texts: bytes) -> bytes:
        """Each text as a record of its own."""
        for text in texts:
            self.session.write(text)
        return self.outgoing.read()

    def send(self, *texts: bytes) -> None:
        self.socket.sendall(self.encrypt(*texts))

    def close_notify(self) -> bytes:
        with contextlib.suppress(ssl.SSLError):
            self.session.unwrap()
        return self.outgoing.read()

    def read(self) -> bytes | None:
        """Some plaintext; b"" at the close_notify, None at an end without one."""
        while True:
            try:
                return self.session.read(65536)
            except ssl.SSLWantReadError:
                if not self.feed():
                    return None
            except ssl.SSLZeroReturnError:
                return b""

    def read_response(self) -> Response:
        while b"\r\n\r\n" not in self.received:
            self.read_more()
        head, _, self.received = self.received.partition(b"\r\n\r\n")
        response = Response(head + b"\r\n\r\n")
        length = int(response.field(b"content-length") or b"0")
        while len(self.received) < length:
            self.read_more()
        response.body, self.received = self.received[:length], self.received[length:]
        return response

    def read_more(self) -> None:
        piece = self.read()
        assert piece, (piece, self.received)
        self.received += piece

    def ends_cleanly(self) -> bool:
        """Whether close_notify and then FIN are what comes next."""
        assert not self.received
        return self.read() == b"" and not self.incoming.pending and self.socket.recv(1) == b""


def update_keys(client: Records) -> bytes:
    """Records that each ask for another one (RFC 8446 section 4.6.3), which Python has no name for."""
    with open("/proc/self/maps") as maps:
        [library, *_] = {line.split()[-1] for line in maps if "/libssl" in line} or [None]
    if library is None:
        pytest.skip("OpenSSL is not a library of its own")
    openssl = ctypes.CDLL(library)
    # Behind the head of the object and the pointer to its SSLObject.
    at = id(client.session._sslobj) + object.__basicsize__ + ctypes.sizeof(ctypes.c_void_p)
    session = ctypes.c_void_p.from_address(at)
    for _ in range(100):
        assert openssl.SSL_key_update(session, 1) == openssl.SSL_do_handshake(session) == 1
    return client.outgoing.read()


def send_rest(client: socket.socket, data: bytes, pushed: int) -> None:
    # What was refused is to be repeated as it was.
    client.sendall(data[pushed:][:16384])
    client.sendall(data[pushed + 16384 :])


def assert_alive(server: Running) -> None:
    with connect(server) as client:
        assert client.get("/").body == b"Hello, world!"


async def echo(scope: Any, receive: Any, send: Any) -> None:
    await respond(send, await read_body(receive))


def messages(pipeline: int) -> bytes:
    return b"".join(request("POST", f"/?{n}", body=b"body %d" % n) for n in range(pipeline))


async def numbered(scope: Any, receive: Any, send: Any) -> None:
    await respond(send, scope["query_string"] + b" " + await read_body(receive))


def assert_numbered(read_response: Callable[[], Response], count: int) -> None:
    for number in range(count):
        assert read_response().body == b"%d body %d" % (number, number)


class Gate:
    """Where an application waits until the test lets it go on."""

    def __init__(self) -> None:
        self.is_open = False
        self.waiting = threading.Event()

    async def __call__(self) -> None:
        self.waiting.set()
        while not self.is_open:
            await anyio.sleep(0.005)

    def open(self) -> None:
        self.is_open = True


# ---------------------------------------------------------------- requests and responses


@pytest.mark.parametrize("version", [V12, V13])
def test_requests(serve: Serve, version: ssl.TLSVersion) -> None:
    scopes: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scopes.append(scope)
        await respond(send, await read_body(receive))

    server = serve(app, lifespan="off", **SERVER)
    with connect(server, trusting(version=version)) as client:
        assert client.version() == {V12: "TLSv1.2", V13: "TLSv1.3"}[version]
        for number in range(5):
            client.sendall(request("POST", "/", body=b"%d" % number))
            assert client.read_response().body == b"%d" % number
        client.sendall(
            b"POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"3\r\nabc\r\n5\r\ndefgh\r\n0\r\n\r\n"
        )
        assert client.read_response().body == b"abcdefgh"
    assert {scope["scheme"] for scope in scopes} == {"https"}
    assert server.errors == []


@pytest.mark.parametrize("version", [V12, V13])
def test_big_both_ways(serve: Serve, version: ssl.TLSVersion) -> None:
    body = os.urandom(MIB) * 20
    server = serve(echo, **SERVER)
    with connect(server, trusting(version=version)) as client:
        client.sendall(request("POST", "/", body=body))
        assert hashlib.sha256(client.read_response().body).digest() == hashlib.sha256(body).digest()
        client.sendall(request("POST", "/", body=b"and on it goes"))
        assert client.read_response().body == b"and on it goes"
    assert server.errors == []


def test_every_length(serve: Serve) -> None:
    """Around what a record, a block and a buffer hold."""
    server = serve(echo, **SERVER)
    with connect(server) as client:
        for size in (1, 4096, 16384, 65536, 131072):
            for length in range(size - 1, size + 2):
                client.sendall(request("POST", "/", body=bytes(length)))
                assert len(client.read_response().body) == length


def test_streams(serve: Serve) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})
        for number in range(200):
            piece = b"%d " % number * (1 if number % 50 else 20_000)
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            if number % 7 == 0:
                await anyio.sleep(0)
        await send({"type": "http.response.body"})

    expected = b"".join(b"%d " % n * (1 if n % 50 else 20_000) for n in range(200))
    server = serve(app, **SERVER)
    with connect(server) as client:
        for _ in range(3):
            assert client.get().body == expected
    assert server.errors == []


def test_pipeline(serve: Serve) -> None:
    server = serve(numbered, **SERVER)
    everything = messages(300)
    for step in (len(everything), 1000, 61):
        with connect(server) as client:
            for at in range(0, len(everything), step):
                client.sendall(everything[at : at + step])
            assert_numbered(client.read_response, 300)
    assert server.errors == []


# --------------------------------------------------------------- records and packets


@pytest.mark.parametrize("version", [V12, V13])
def test_split_at_every_byte(serve: Serve, version: ssl.TLSVersion) -> None:
    """The whole session arrives byte by byte."""
    server = serve(numbered, **SERVER)

    def send(data: bytes) -> None:
        for at in range(len(data)):
            client.socket.sendall(data[at : at + 1])

    with Records(server, trusting(version=version)) as client:
        send(client.shake_hands(send))
        send(client.encrypt(messages(3)))
        assert_numbered(client.read_response, 3)
        send(client.close_notify())
        assert client.ends_cleanly()
    assert server.errors == []


def test_many_records_in_one_packet(serve: Serve) -> None:
    server = serve(numbered, **SERVER)
    everything = messages(20)
    for size in (1, 2, 7, 100):
        with Records(server).opened() as client:
            client.send(*(everything[at : at + size] for at in range(0, len(everything), size)))
            assert_numbered(client.read_response, 20)
    assert server.errors == []


def test_one_request_in_many_records(serve: Serve) -> None:
    server = serve(echo, **SERVER)
    body = os.urandom(200_000)
    message = request("POST", "/", body=body)
    with Records(server).opened() as client:
        for at in range(0, len(message), 777):
            client.send(message[at : at + 777])
        assert client.read_response().body == body
    assert server.errors == []


@pytest.mark.parametrize("version", [V12, V13])
def test_request_behind_the_handshake(serve: Serve, version: ssl.TLSVersion) -> None:
    """The client's last flight, requests, close_notify and FIN in one packet."""
    server = serve(numbered, **SERVER)
    for ending in range(3):
        with Records(server, trusting(version=version)) as client:
            last = client.shake_hands() + client.encrypt(messages(30))
            if ending:
                last += client.close_notify()
            client.socket.sendall(last)
            if ending != 1:
                client.socket.shutdown(socket.SHUT_WR)
            assert_numbered(client.read_response, 30)
            assert client.ends_cleanly()
    assert server.errors == []


# --------------------------------------------------------------------- back-pressure


def test_a_client_that_does_not_read(serve: Serve) -> None:
    sent = 0
    piece = os.urandom(65536)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal sent
        await send({"type": "http.response.start", "status": 200})
        for _ in range(400):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            sent += len(piece)
        await send({"type": "http.response.body"})

    server = serve(app, lifespan="off", **SERVER)
    with connect(server) as client:
        client.sendall(request("GET", "/"))
        assert settled(lambda: sent) < 400 * len(piece)
        with connect(server) as other:  # nobody else is stalled
            other.sendall(request("GET", "/"))
            other.read_until(b"\r\n\r\n")
        client.read_until(b"\r\n\r\n")
        for _ in range(400):
            assert client.read_exactly(7) == b"10000\r\n"
            assert client.read_exactly(len(piece)) == piece
            assert client.read_exactly(2) == b"\r\n"
        assert client.read_exactly(5) == b"0\r\n\r\n"
        client.sendall(request("GET", "/"))
        client.read_until(b"\r\n\r\n")


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="finds OpenSSL by /proc")
def test_a_client_that_does_not_read_what_tls_answers(serve: Serve) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await respond(send, bytes(BOUND if scope["path"] == "/big" else 1))

    server = serve(app, lifespan="off", **SERVER)
    with Records(server).opened() as client:
        for _ in range(50):  # which are taken, however many
            client.socket.sendall(update_keys(client))
            client.send(request("GET", "/"))
            assert client.read_response().status == 200
        client.send(request("GET", "/big"))
        asked = 0
        with pytest.raises(ConnectionError):
            while asked < MIB:
                asked += client.socket.send(update_keys(client))
    assert server.errors == []


def test_an_application_that_does_not_read(serve: Serve) -> None:
    gate = Gate()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await gate()
        digest = hashlib.sha256()
        more = True
        while more:
            message = await receive()
            digest.update(message["body"])
            more = message["more_body"]
        await respond(send, digest.digest())

    server = serve(app, lifespan="off", body_min_rate=0, **SERVER)
    block = os.urandom(MIB)
    with connect(server) as client:
        client.sendall(request("POST", "/", f"Content-Length: {BOUND}"))
        pushed = push(client, block, BOUND)
        assert 0 < pushed < BOUND
        gate.open()
        everything = block * (BOUND // MIB)
        send_rest(client, everything, pushed)
        assert client.read_response().body == hashlib.sha256(everything).digest()
    assert server.errors == []


@pytest.mark.parametrize("ending", ["", "close_notify", "fin", "both"])
def test_what_waits_while_reading_is_paused(serve: Serve, ending: str) -> None:
    """Decrypted or not, it never makes the socket readable; and an end does not overtake it."""
    gate = Gate()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await gate()
        await respond(send, await read_body(receive))

    server = serve(app, lifespan="off", **SERVER)
    for length in (*range(60_000, 150_000, 15_000), 65536, 131072, 400_000):
        gate.is_open = False
        gate.waiting.clear()
        body = os.urandom(length)
        with Records(server).opened() as client:
            client.send(request("POST", "/", body=body))
            if ending in ("close_notify", "both"):
                client.socket.sendall(client.close_notify())
            if ending in ("fin", "both"):
                client.socket.shutdown(socket.SHUT_WR)
            assert gate.waiting.wait(PATIENCE)
            time.sleep(0.01)  # have it all arrive; it is right in either case
            gate.open()
            assert client.read_response().body == body
            if ending:
                assert client.ends_cleanly()
    assert server.errors == []


def test_a_pipeline_waits_for_its_turn(serve: Serve) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await respond(send, scope["query_string"] + bytes(8000))

    server = serve(app, **SERVER)
    filler = "x" * 4000
    everything = b"".join(
        request("GET", f"/?{number:06}", f"Filler: {filler}") for number in range(4000)
    )
    with connect(server) as client:
        pushed = push(client, everything, len(everything))
        assert 0 < pushed < len(everything)
        whole = pushed * 4000 // len(everything) - 1
        for number in range(whole):
            assert client.read_response().body.startswith(b"%06d" % number)
        send_rest(client, everything[: pushed + 16384], pushed)
        assert client.read_response().body.startswith(b"%06d" % whole)
    assert server.errors == []


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_the_end_of_a_body_is_not_overtaken(serve: Serve) -> None:
    """All in one packet, and the application has not begun when it has been received."""
    server = serve(echo, **SERVER)
    for length in (60_000, 65_536, 65_537, 70_000, 80_000, 82_000, 98_304, 115_000):
        body = os.urandom(length)
        message = request("POST", "/", body=body)
        for size in (1000, 4096, 16_384):
            with Records(server).opened() as client:
                pieces = (message[at : at + size] for at in range(0, len(message), size))
                client.socket.sendall(client.encrypt(*pieces) + client.close_notify())
                client.socket.shutdown(socket.SHUT_WR)
                assert client.read_response().body == body, (length, size)
                assert client.ends_cleanly()
    assert server.errors == []


@measures_memory
def test_nothing_is_kept_behind_a_close_notify(serve: Serve) -> None:
    """Who has said that nothing follows, and sends all the same, is not collected."""
    gate = Gate()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await gate()
        await respond(send, b"answered")

    server = serve(app, lifespan="off", **SERVER)
    with Records(server).opened() as client:
        client.send(request("GET", "/"))
        record = b"\x17\x03\x03\x40\x11" + bytes(16401)
        client.socket.sendall(client.close_notify())
        assert gate.waiting.wait(PATIENCE)
        before = resident()
        pushed = push(client.socket, record, 128 * MIB)
        assert resident() - before < 64 * MIB, pushed
        gate.open()
        assert client.read_response().body == b"answered"
    assert server.errors == []


# ------------------------------------------------------------------- how it ends


def test_close_notify_of_the_client(serve: Serve) -> None:
    """It is a half-close: what was asked is answered, and the server's own follows."""
    server = serve(numbered, **SERVER)
    for fin in (False, True):
        for version in (V12, V13):
            with Records(server, trusting(version=version)).opened() as client:
                client.socket.sendall(client.encrypt(messages(5)) + client.close_notify())
                if fin:
                    client.socket.shutdown(socket.SHUT_WR)
                assert_numbered(client.read_response, 5)
                assert client.ends_cleanly()
        with Records(server).opened() as client:  # nothing was asked
            client.socket.sendall(client.close_notify())
            if fin:
                client.socket.shutdown(socket.SHUT_WR)
            assert client.ends_cleanly()
        with Records(server).opened() as client:  # nor is half a head a question
            client.socket.sendall(client.encrypt(b"GET / HT") + client.close_notify())
            assert client.ends_cleanly()
    assert server.errors == []


def test_fin_without_close_notify(serve: Serve) -> None:
    server = serve(numbered, **SERVER)
    for asked in (messages(5), b"", b"GET / HT"):
        with Records(server).opened() as client:
            client.send(asked) if asked else None
            client.socket.shutdown(socket.SHUT_WR)
            if len(asked) > 10:
                assert_numbered(client.read_response, 5)
            assert client.ends_cleanly()
    with Records(server).opened() as client:  # a record that is cut
        client.socket.sendall(client.encrypt(messages(1))[:-1])
        client.socket.shutdown(socket.SHUT_WR)
        assert client.ends_cleanly()
    assert server.errors == []


def test_the_server_ends_it(serve: Serve) -> None:
    """close_notify, then FIN, whatever the reason."""
    server = serve(hello, keep_alive_timeout=0.2, header_timeout=0.3, **SERVER)
    with Records(server).opened() as client:
        client.send(request("GET", "/", "Connection: close"))
        assert client.read_response().field(b"connection") == b"close"
        assert client.ends_cleanly()
    with Records(server).opened() as client:
        client.send(request("GET", "/"))
        assert client.read_response().status == 200
        assert client.ends_cleanly()  # idle for too long
    with Records(server).opened() as client:
        assert client.ends_cleanly()  # nothing was asked
    with Records(server).opened() as client:
        client.send(b"GET / HTTP/1.1\r\n")
        assert client.read_response().status == 408
        assert client.ends_cleanly()
    assert server.errors == []


def test_resets(serve: Serve) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})
        async with anyio.create_task_group() as group:

            async def pour() -> None:
                body = bytes(65536)
                while True:
                    await send({"type": "http.response.body", "body": body, "more_body": True})

            group.start_soon(pour)
            while (await receive())["type"] != "http.disconnect":
                pass
            group.cancel_scope.cancel()

    server = serve(app, lifespan="off", **SERVER)
    for leave in (reset, socket.socket.close):
        client = Records(server)
        client.socket.sendall(client.hello())
        leave(client.socket)
        client = Records(server).opened()
        leave(client.socket)
        client = Records(server).opened()
        client.send(request("POST", "/", "Content-Length: 1000000") + bytes(100_000))
        leave(client.socket)
        client = Records(server).opened()
        client.send(request("GET", "/"))
        client.read()
        leave(client.socket)
    server.stop()
    assert server.errors == []


def test_refusals_reach_the_client(serve: Serve) -> None:
    """Although more is on its way to the server than it wants to know."""
    server = serve(echo, limit_request_body=1000, **SERVER)
    refused = [
        (request("POST", "/", f"Content-Length: {4 * MIB}") + bytes(4 * MIB), 413),
        (b"nonsense\r\n\r\n" + bytes(MIB), 400),
        (request("GET", "/", "X: " + 100_000 * "y"), 431),
        (b"GET /" + 100_000 * b"x", 414),
    ]
    for message, status in refused:
        with connect(server) as client:
            client.sendall(message)
            assert client.read_response().status == status
            assert client.is_closed_by_peer()
        with Records(server).opened() as client:
            client.send(message)
            assert client.read_response().status == status
            assert client.ends_cleanly()
    assert server.errors == []


def test_failing_applications(serve: Serve) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/late":
            await send({"type": "http.response.start", "status": 200})
            await send({"type": "http.response.body", "body": b"begun", "more_body": True})
        raise ValueError("on purpose")

    server = serve(app, lifespan="off", **SERVER)
    with Records(server).opened() as client:
        client.send(request("GET", "/"))
        assert client.read_response().status == 500
        assert client.ends_cleanly()
    with connect(server) as client:  # cut, so that the chunks have no end
        client.sendall(request("GET", "/late"))
        assert client.read_to_end().endswith(b"5\r\nbegun\r\n")
    with Records(server).opened() as client:  # an end would be the end of the body
        client.send(b"GET /late HTTP/1.0\r\n\r\n")
        with pytest.raises(ConnectionResetError):
            while client.read():
                pass
    assert [repr(error) for error in server.exceptions()] == 3 * ["ValueError('on purpose')"]
    assert len(server.errors) == 3


@pytest.mark.parametrize("version", [V12, V13])
def test_a_spoiled_record(serve: Serve, version: ssl.TLSVersion) -> None:
    """Answered by an alert, also while the application is sending to a client that does
    not read."""
    begun, lost = threading.Event(), threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        begun.set()
        async with anyio.create_task_group() as group:

            async def pour() -> None:
                await send({"type": "http.response.start", "status": 200})
                while scope["path"] == "/pour":
                    body = bytes(30_000)
                    await send({"type": "http.response.body", "body": body, "more_body": True})

            group.start_soon(pour)
            while (await receive())["type"] != "http.disconnect":
                pass
            group.cancel_scope.cancel()
        lost.set()

    server = serve(app, lifespan="off", **SERVER)
    for path in ("/", "/pour"):
        begun.clear()
        lost.clear()
        with Records(server, trusting(version=version)).opened() as client:
            client.send(request("GET", path))
            assert begun.wait(PATIENCE)
            if path == "/pour":
                assert client.read()
            spoiled = bytearray(client.encrypt(b"more"))
            spoiled[-1] ^= 1
            client.socket.sendall(spoiled)
            if path == "/":
                with pytest.raises(ssl.SSLError, match="BAD_RECORD_MAC"):
                    client.read()
            assert lost.wait(PATIENCE)
    server.stop()
    assert not [record for record in server.errors if "SSL" in record.getMessage()]
    assert not [error for error in server.exceptions() if isinstance(error, ssl.SSLError)]


# --------------------------------------------------------------------- deadlines


def test_a_handshake_has_its_time(serve: Serve) -> None:
    server = serve(hello, ssl_handshake_timeout=0.3, **SERVER)
    for version in (V12, V13):
        hello_of = Records(server, trusting(version=version))
        greeting = hello_of.hello()
        hello_of.socket.close()
        for said in (b"", greeting[:1], greeting[:100], greeting):
            with server.connect() as client:
                client.sendall(said)
                with contextlib.suppress(ConnectionResetError):
                    client.read_to_end()
    with connect(server) as client:
        time.sleep(0.6)  # is what is tested: the deadline is over with the handshake
        assert client.get().status == 200
    assert server.errors == []


def test_a_client_that_takes_nothing_is_given_up(serve: Serve) -> None:
    over = threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await respond(send, bytes(BOUND))
        while (await receive())["type"] != "http.disconnect":
            pass
        over.set()

    server = serve(app, lifespan="off", write_timeout=0.5, **SERVER)
    with connect(server) as client:
        client.sendall(request("GET", "/"))
        client.read_until(b"\r\n\r\n")
        # Nothing is read until the server has given up.
        with pytest.raises((ConnectionError, ssl.SSLEOFError)):
            deadline = time.monotonic() + PATIENCE
            while time.monotonic() < deadline:
                client.send(b"x")
                time.sleep(0.05)
    assert over.wait(PATIENCE)


# ------------------------------------------------------------------------ shutdown


def test_a_graceful_end(serve: Serve) -> None:
    """Idle connections and unfinished handshakes end at once, requests are finished."""
    gate = Gate()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/wait":
            await gate()
        await respond(send, b"done")

    server = serve(app, lifespan="off", graceful_timeout=60, **SERVER)
    with contextlib.ExitStack() as stack:
        idle = stack.enter_context(Records(server).opened())
        idle.send(request("GET", "/"))
        assert idle.read_response().body == b"done"
        fresh = stack.enter_context(Records(server).opened())
        shaking = [stack.enter_context(Records(server)) for _ in range(3)]
        shaking[1].socket.sendall(shaking[1].hello()[:50])
        shaking[2].socket.sendall(shaking[2].hello())
        assert shaking[2].feed()
        busy = stack.enter_context(Records(server).opened())
        busy.send(request("GET", "/wait"))
        assert gate.waiting.wait(PATIENCE)
        server.ask_to_stop()
        assert idle.ends_cleanly()
        assert fresh.ends_cleanly()
        for client in shaking:
            client.socket.received = b""
            assert client.socket.is_closed_by_peer() or client.socket.read_to_end() is not None
        gate.open()
        response = busy.read_response()
        assert (response.body, response.field(b"connection")) == (b"done", b"close")
        assert busy.ends_cleanly()
        server.stop()
    assert server.errors == []


def test_one_more_answer_before_the_end(serve: Serve) -> None:
    """Kept and fresh connections, and those that still shake hands; each ends cleanly."""
    server = serve(hello, lifespan="off", drain_idle_timeout=60, graceful_timeout=60, **SERVER)
    with contextlib.ExitStack() as stack:
        kept = stack.enter_context(Records(server).opened())
        kept.send(request("GET", "/"))
        assert kept.read_response().field(b"connection") is None
        fresh = stack.enter_context(Records(server).opened())
        shaking = stack.enter_context(Records(server))
        server.ask_to_stop()
        eventually(lambda: refuses(server.address))
        shaking.opened()
        for client in (kept, fresh, shaking):
            client.send(request("GET", "/"))
            assert client.read_response().field(b"connection") == b"close"
            assert client.ends_cleanly()
            client.socket.close()
        server.stop()
    assert server.errors == []


def test_the_end_of_idle_connections(serve: Serve) -> None:
    """By a close_notify and a FIN when they have waited long enough."""
    server = serve(hello, lifespan="off", drain_idle_timeout=0.2, **SERVER)
    with Records(server).opened() as client, Records(server) as shaking:
        server.ask_to_stop()
        assert client.ends_cleanly()
        assert shaking.socket.read_to_end() == b""
    server.stop()
    assert server.errors == []


def test_the_end_does_not_wait_for_ever(serve: Serve) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await respond(send, bytes(BOUND))

    server = serve(app, lifespan="off", graceful_timeout=0.3, **SERVER)
    with connect(server) as client:
        client.sendall(request("GET", "/"))
        client.read_until(b"\r\n\r\n")
        server.stop()
    assert server.errors == []


# ---------------------------------------------------------------- failing handshakes


def client_hello(version: bytes = b"\x03\x03", name: bytes = b"localhost") -> bytes:
    """A ClientHello for TLS 1.2, as no library of ours would make it."""
    sni = struct.pack("!HBH", len(name) + 3, 0, len(name)) + name
    extensions = b""
    for kind, data in ((0, sni), (10, b"\0\2\0\x17"), (11, b"\1\0"), (13, b"\0\2\4\3")):
        extensions += struct.pack("!HH", kind, len(data)) + data
    body = version + bytes(32) + b"\0" + b"\0\2\xc0\x2b" + b"\1\0"
    body += struct.pack("!H", len(extensions)) + extensions
    handshake = b"\1" + struct.pack("!I", len(body))[1:] + body
    return b"\x16\x03\x01" + struct.pack("!H", len(handshake)) + handshake


GARBAGE = [
    b"\0",
    b"\0" * 20_000,
    b"\xff" * 100,
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc" + b"\xaa" * 508,  # a record that holds nonsense
    b"\x16\x03\x01\xff\xff" + bytes(200),  # longer than a record may be
    b"\x16\x03\x01\x00\x00" * 100,  # empty
    b"\x16\x09\x09\x00\x05hello",
    b"\x15\x03\x01\x00\x02\x02\x28",  # an alert first
    b"\x17\x03\x03\x00\x20" + bytes(32),  # data first
    b"\x14\x03\x03\x00\x01\x01",
    b"\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10" + bytes(40),  # SSL 2
    client_hello(b"\x03\x00"),
    client_hello(b"\x03\x01"),
    client_hello(b"\x03\x02"),
    client_hello(name=b"a" * 300),
    client_hello()[:-1],
]


def test_failing_handshakes(serve: Serve) -> None:
    """Of every kind: nothing is logged, nothing stays, and nobody else notices."""
    server = serve(hello, **SERVER)
    with connect(server) as established:
        assert established.get().status == 200
        files = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
        for garbage in GARBAGE:
            with server.connect() as client:
                client.sendall(garbage)
                client.shutdown(socket.SHUT_WR)
                with contextlib.suppress(ConnectionResetError):
                    client.read_to_end()
        with Records(server) as taken:
            greeting = taken.hello()
        for at in range(0, len(greeting), 16):
            with server.connect() as client:
                client.sendall(greeting[:at])
        untrusting = ssl.create_default_context()
        for version in (V12, V13):
            untrusting.minimum_version = untrusting.maximum_version = version
            with pytest.raises(ssl.SSLCertVerificationError):
                connect(server, untrusting)
        assert established.get().body == b"Hello, world!"
        if files:
            eventually(lambda: len(os.listdir("/proc/self/fd")) == files)
    assert server.errors == []


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "CONNECT", "OPTIONS", "X"])
def test_plain_http(serve: Serve, method: str) -> None:
    """The one mistake that can be explained to whoever made it."""
    server = serve(hello, **SERVER)
    message = request(method, "/", body=bytes(100_000))
    for first in (1, 3, 10, len(message)):
        with server.connect() as client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client.sendall(message[:first])
            client.sendall(message[first:])
            response = client.read_response()
            assert response.status == 400
            assert b"https" in response.body
            assert client.is_closed_by_peer()
    assert server.errors == []


def test_a_flood_of_handshakes(serve: Serve) -> None:
    """Some in each turn of the loop: whoever has a connection is not kept waiting."""
    count = 200
    hold, holding = threading.Event(), threading.Event()
    seen: list[int] = []
    clients: list[Records] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/hold":
            holding.set()
            hold.wait(PATIENCE)  # the whole loop: meanwhile everything below arrives
        elif scope["path"] == "/count":
            poll = select.poll()
            for client in clients:
                poll.register(client.socket, select.POLLIN)
            seen.append(len(poll.poll(0)))
        await respond(send, b"done")

    server = serve(app, lifespan="off", **SERVER)
    with contextlib.ExitStack() as stack:
        holder = stack.enter_context(connect(server))
        established = stack.enter_context(connect(server))
        assert established.get("/").status == 200
        context = trusting()
        clients += [stack.enter_context(Records(server, context)) for _ in range(count)]
        greetings = [client.hello() for client in clients]
        assert holder.get("/").status == 200
        holder.sendall(request("GET", "/hold"))
        assert holding.wait(PATIENCE)
        for client, greeting in zip(clients, greetings, strict=True):
            client.socket.sendall(greeting)
        established.sendall(request("GET", "/count"))
        hold.set()
        assert established.read_response().body == b"done"
        assert seen[0] <= 32
        for client in clients:  # but everybody's turn comes
            client.opened().send(request("GET", "/"))
            assert client.read_response().body == b"done"
    assert server.errors == []


# ----------------------------------------------------------------------- WebSockets


def frame(first: int, payload: bytes) -> bytes:
    length = len(payload)
    if length < 126:
        head = bytes([first, 0x80 | length])
    elif length < 65536:
        head = bytes([first, 0xFE]) + struct.pack("!H", length)
    else:
        head = bytes([first, 0xFF]) + struct.pack("!Q", length)
    return head + bytes(4) + payload  # a mask of zeros changes nothing


def read_frame(client: TlsClient) -> tuple[int, bytes]:
    first, length = client.read_exactly(2)
    if length > 125:
        length = int.from_bytes(client.read_exactly(2 if length == 126 else 8), "big")
    return first, client.read_exactly(length)


def test_websockets(serve: Serve) -> None:
    scopes: list[Any] = []
    endings: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scopes.append(scope)
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            await send({**message, "type": "websocket.send"})
        endings.append((message["code"], message["reason"]))

    server = serve(app, lifespan="off", **SERVER)
    with connect(server).open() as client:
        for length in (0, 1, 125, 126, 16384, 65535, 65536, 3 * MIB):
            payload = os.urandom(length)
            client.sendall(frame(0x82, payload))
            assert read_frame(client) == (0x82, payload)
        client.sendall(b"".join(frame(0x81, b"%d" % number) for number in range(500)))
        for number in range(500):
            assert read_frame(client) == (0x81, b"%d" % number)
        client.sendall(frame(0x89, b"ping"))
        assert read_frame(client) == (0x8A, b"ping")
        client.sendall(frame(0x88, b"\x03\xe8bye"))
        assert read_frame(client) == (0x88, b"\x03\xe8bye")
        assert client.is_closed_by_peer()
    scope = scopes[0]
    assert scope["scheme"] == "wss"
    assert set(scope["extensions"]) == {"tls", "websocket.http.response", "fastserve.shutdown"}
    assert eventually(lambda: endings) == [(1000, "bye")]
    assert server.errors == []


def test_the_extension_is_each_request_s_own(serve: Serve) -> None:
    """What nobody has kept or changed may be used again; anything else is not."""
    kept: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        tls = scope["extensions"]["tls"]
        assert len(tls) == 6
        assert tls["tls_version"] == 0x0304
        assert not any(tls is other for other in kept)
        what = scope["path"][1:]
        if what == "keep":
            kept.append(tls)
        elif what == "keep-all":
            kept.append(scope["extensions"])
            kept.append(tls)
        elif what == "change":
            tls["tls_version"] = None
        elif what == "add":
            tls["mine"] = 1
        elif what == "remove":
            del tls["client_cert_name"]
        elif what == "drop":
            del scope["extensions"]["tls"]
        await respond(send)

    server = serve(app, lifespan="off", **SERVER)
    with connect(server) as client:
        for what in 2 * ["", "keep", "keep-all", "change", "add", "remove", "drop"]:
            for _ in range(3):
                assert client.get("/" + what).status == 200
    assert server.errors == []


def test_a_websocket_at_the_end(serve: Serve) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})
        while (await receive())["type"] != "websocket.disconnect":
            pass

    server = serve(app, lifespan="off", graceful_timeout=0.5, **SERVER)
    with connect(server).open() as client:
        server.ask_to_stop()
        assert read_frame(client) == (0x88, b"\x03\xf4")
        client.sendall(frame(0x88, b"\x03\xf4"))
        assert client.is_closed_by_peer()
        server.stop()
    assert server.errors == []


# -------------------------------------------------------------------------- options


def refusal(**options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        Certificates(fastserve.Config(**options))
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    """One clear line, that names the option and the file."""
    garbage = str(tmp_path / "garbage.pem")
    Path(garbage).write_text("garbage\n")
    broken = str(tmp_path / "broken.pem")
    lines = Path(pem("server.pem")).read_text().splitlines(keepends=True)
    Path(broken).write_text("".join([*lines[:3], lines[3][::-1], *lines[4:]]))
    missing = str(tmp_path / "missing.pem")
    server, key, encrypted = pem("server.pem"), pem("server.key"), pem("encrypted.key")
    no_such_file = "no such file or directory"
    for options, expected in [
        ({"certfile": missing}, f"--certfile: {missing!r}: {no_such_file}"),
        ({"certfile": str(tmp_path)}, f"--certfile: {str(tmp_path)!r}: is a directory"),
        ({"certfile": garbage}, f"--certfile: {garbage!r} holds no certificate in PEM"),
        ({"certfile": key}, f"--certfile: {key!r} holds no certificate in PEM"),
        ({"certfile": server}, f"--keyfile: needed, since {server!r} holds no private key"),
        ({"certfile": server, "keyfile": missing}, f"--keyfile: {missing!r}: {no_such_file}"),
        (
            {"certfile": server, "keyfile": garbage},
            f"--keyfile: {garbage!r} holds no private key in PEM",
        ),
        (
            {"certfile": server, "keyfile": pem("new.key")},
            f"--keyfile: {pem('new.key')!r} is not the key of {server!r}",
        ),
        (
            {"certfile": server, "keyfile": pem("rsa.key")},
            f"--keyfile: {pem('rsa.key')!r} is not the key of {server!r}",
        ),
        (
            {"certfile": server, "keyfile": encrypted},
            f"--keyfile-password: needed, since {encrypted!r} is encrypted",
        ),
        (
            {"certfile": server, "keyfile": encrypted, "keyfile_password": "wrong"},
            f"--keyfile-password: does not decrypt {encrypted!r}",
        ),
        (
            {"certfile": server, "keyfile": encrypted, "keyfile_password": 2000 * "x"},
            f"--keyfile-password: does not decrypt {encrypted!r}",
        ),
        ({**SERVER, "ciphers": "NONSENSE"}, "--ciphers: 'NONSENSE' selects none"),
        (
            {**MUTUAL, "ca_certs": garbage},
            f"--ca-certs: {garbage!r}: no certificate or crl found",
        ),
        ({**MUTUAL, "ca_certs": missing}, f"--ca-certs: {missing!r}: {no_such_file}"),
    ]:
        assert refusal(**options) == expected
    assert refusal(certfile=broken, keyfile=key).startswith(f"--certfile: {broken!r} ")
    Certificates(fastserve.Config(**{**SERVER, "keyfile": encrypted}, keyfile_password="secret"))


def test_options_that_do_not_fit() -> None:
    for options, expected in [
        ({"certfile": ["a", "b"], "keyfile": "c"}, "--keyfile: one for each --certfile"),
        ({**SERVER, "verify_mode": "required"}, "--verify-mode: --ca-certs has to say"),
    ]:
        assert refusal(**options).startswith(expected)


def test_a_bad_certificate_ends_the_command() -> None:
    process = Process("-b", "127.0.0.1:0", "--certfile", "missing.pem", "served:app")
    try:
        assert process.wait() == 1
        assert process.err.all() == [
            "fastserve: error: --certfile: 'missing.pem': no such file or directory"
        ]
    finally:
        process.end()


def certificate_of(client: TlsClient) -> str:
    """The common name of the certificate that the server has shown."""
    found = client.getpeercert()
    assert found is not None
    return str(dict(part[0] for part in found["subject"])["commonName"])


def der(name: str) -> bytes:
    return ssl.PEM_cert_to_DER_cert(Path(pem(name)).read_text())


def test_certificates_by_name(serve: Serve) -> None:
    """The first one is for those who ask for no name, or for an unknown one."""
    shown: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        shown.append(scope["extensions"]["tls"]["server_cert"])
        await respond(send)

    names = ["server", "rsa", "wildcard"]
    server = serve(
        app,
        lifespan="off",
        certfile=[pem(f"{name}.pem") for name in names],
        keyfile=[pem(f"{name}.key") for name in names],
    )
    context = trusting()
    context.check_hostname = False
    for asked, expected in [
        ("localhost", "server"),
        ("server.example", "server"),
        ("rsa.example", "rsa"),
        ("RSA.Example", "rsa"),
        ("a.wild.example", "wildcard"),
        ("b.wild.example", "wildcard"),
        ("a.b.wild.example", "server"),
        ("wild.example", "server"),
        ("unknown.example", "server"),
        (None, "server"),
    ]:
        for version in (V12, V13):
            context.minimum_version = context.maximum_version = version
            with connect(server, context, asked) as client:
                assert client.getpeercert(True) == der(f"{expected}.pem"), asked
                assert client.get().status == 200
                assert shown.pop() == Path(pem(f"{expected}.pem")).read_text(), asked
    for odd in (b"a..b", b".", b"*", b"x" * 250, b"a\0b", b""):  # names that are none
        with server.connect() as raw:
            raw.sendall(client_hello(name=odd))
            raw.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionResetError):
                raw.read_to_end()
    assert server.errors == []


@ANY_POLLER
def test_key_and_certificate_in_one_file(serve: Serve) -> None:
    server = serve(hello, certfile=pem("both.pem"))
    assert_alive(server)
    server = serve(
        hello,
        certfile=pem("server.pem"),
        keyfile=pem("encrypted.key"),
        keyfile_password="secret",
    )
    assert_alive(server)


def test_with_and_without_tls(serve: Serve) -> None:
    scopes: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scopes.append(scope)
        await respond(send)

    server = serve(app, lifespan="off", insecure_bind="127.0.0.1:0", **SERVER)
    insecure = server.addresses.get(timeout=PATIENCE)
    assert insecure is not None
    with connect(server) as secure, Client(insecure) as plain:
        assert secure.get().status == plain.get().status == 200
    assert [scope["scheme"] for scope in scopes] == ["https", "http"]
    assert "tls" in scopes[0]["extensions"]
    assert "tls" not in scopes[1].get("extensions", {})
    assert scopes[0]["server"] == server.address
    assert scopes[1]["server"] == insecure


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="needs Unix sockets")
@ANY_POLLER
def test_on_a_unix_socket(serve: Serve, tmp_path: Path) -> None:
    server = serve(hello, bind=f"unix:{tmp_path}/s", **SERVER)
    assert_alive(server)


@ANY_POLLER
@pytest.mark.filterwarnings("ignore:ssl.*deprecated:DeprecationWarning")
def test_versions(serve: Serve) -> None:
    for least, versions in (("1.2", {V12, V13}), ("1.3", {V13})):
        server = serve(hello, tls_min_version=least, **SERVER)
        for version in (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1, V12, V13):
            context = trusting(set_ciphers="ALL:@SECLEVEL=0")
            context.minimum_version = context.maximum_version = version
            if version in versions:
                with connect(server, context) as client:
                    assert client.get().status == 200
            else:
                with pytest.raises((ssl.SSLError, ConnectionError)):
                    connect(server, context)
        assert server.errors == []


@ANY_POLLER
def test_ciphers(serve: Serve) -> None:
    chosen = "ECDHE-ECDSA-AES128-GCM-SHA256"
    server = serve(hello, ciphers=chosen, **SERVER)
    with connect(server, trusting(version=V12)) as client:
        cipher = client.cipher()
        assert cipher is not None and cipher[0] == chosen
    with pytest.raises(ssl.SSLError):
        connect(server, trusting(version=V12, set_ciphers="ECDHE-ECDSA-AES256-GCM-SHA384"))
    with connect(server, trusting(version=V13)) as client:
        assert client.get().status == 200
    # By default nothing that is broken, or without forward secrecy.
    server = serve(hello, certfile=pem("rsa.pem"), keyfile=pem("rsa.key"))
    context = trusting(version=V12)
    context.check_hostname = False
    for weak in ("AES128-SHA", "AES256-GCM-SHA384", "NULL", "aNULL", "ADH", "RC4", "3DES", "MD5"):
        try:
            context.set_ciphers(f"{weak}:@SECLEVEL=0")
        except ssl.SSLError:
            continue  # OpenSSL itself has it no more
        with pytest.raises(ssl.SSLError):
            connect(server, context)
    assert server.errors == []


@ANY_POLLER
def test_alpn(serve: Serve) -> None:
    server = serve(hello, **SERVER)
    for offered, chosen in [
        (["http/1.1"], "http/1.1"),
        (["h2", "http/1.1"], "http/1.1"),
        ([], None),
        (["h2"], None),  # what is not agreed is not used: HTTP/1.1 is spoken all the same
    ]:
        context = trusting()
        if offered:
            context.set_alpn_protocols(offered)
        with connect(server, context) as client:
            assert client.selected_alpn_protocol() == chosen
            assert client.get().status == 200


@pytest.mark.parametrize("options", [SERVER, MUTUAL], ids=["server", "mutual"])
@pytest.mark.parametrize("version", [V12, V13])
def test_resumption(serve: Serve, version: ssl.TLSVersion, options: dict[str, Any]) -> None:
    """A session goes on in another connection, with whoever it began with."""
    shown: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        shown.append(scope["extensions"]["tls"])
        await respond(send)

    server = serve(app, lifespan="off", **options)
    context = trusting(version=version, cert="client.pem")
    session = None
    for number in range(4):
        with connect(server, context, session=session) as client:
            assert client.get().status == 200  # in TLS 1.3 the ticket comes with it
            assert client.session_reused is (number > 0)
            session = client.session
            client.sendall(request("GET", "/", "Connection: close"))
            client.read_response()
            assert client.is_closed_by_peer()
    assert shown[0] == shown[-1]
    assert len(shown[0]["client_cert_chain"]) == (2 if options is MUTUAL else 0)
    assert server.errors == []


# ------------------------------------------------------------------ mutual TLS


@pytest.mark.parametrize("version", [V12, V13])
def test_client_certificates(serve: Serve, version: ssl.TLSVersion) -> None:
    for mode in ("required", "optional"):
        server = serve(hello, **{**MUTUAL, "verify_mode": mode})
        for cert, good in [
            ("client.pem", True),  # with its intermediate
            ("direct.pem", True),
            ("expired.pem", False),
            ("stranger.pem", False),
            ("", mode == "optional"),
        ]:
            context = trusting(version=version, cert=cert)
            if good:
                with connect(server, context) as client:
                    assert client.get().status == 200
            else:
                # In TLS 1.3 the client learns of it when it reads.
                with (
                    pytest.raises((ssl.SSLError, ConnectionError)),
                    connect(server, context) as client,
                ):
                    client.get()
        assert server.errors == []


# ------------------------------------------------------------------ the tls extension


def chain_of(name: str) -> tuple[str, ...]:
    if not name:
        return ()
    end = "-----END CERTIFICATE-----\n"
    parts = Path(pem(name)).read_text().split(end)
    return tuple(part + end for part in parts[:-1])


def test_the_extension(serve: Serve) -> None:
    """ASGI's TLS extension 0.2, for HTTP and WebSocket, and a fresh one each time."""
    found: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        tls = scope["extensions"]["tls"]
        found.append(tls.copy())
        tls["server_cert"] = "spoiled"
        scope["extensions"].clear()
        if scope["type"] == "http":
            await respond(send)
        else:
            await send({"type": "websocket.accept"})

    expected_names = {
        "client.pem": 'CN=\\ Zoë\\ ,emailAddress=a@b.example,OU=one+CN=\\#one \\\\\\"\\<\\;\\>\\+='
        ",O=Tests\\, Inc.,C=DE",
        "direct.pem": "CN=direct",
        "": None,
    }
    server = serve(app, lifespan="off", **{**MUTUAL, "verify_mode": "optional"})
    for version, number, suite, suite_number in [
        (V12, 0x0303, "ECDHE-ECDSA-AES128-GCM-SHA256", 0xC02B),
        (V12, 0x0303, "ECDHE-ECDSA-CHACHA20-POLY1305", 0xCCA9),
        (V13, 0x0304, None, None),
    ]:
        for cert, name in expected_names.items():
            context = trusting(version=version, cert=cert)
            if suite:
                context.set_ciphers(suite)
            with connect(server, context) as client:
                for _ in range(3):
                    client.get()
                cipher = client.cipher()
                assert cipher is not None
            with connect(server, context).open():
                pass
            assert len(found) == 4
            for tls in found:
                suite_found = tls.pop("cipher_suite")
                if suite_number:
                    assert suite_found == suite_number
                else:
                    assert (
                        suite_found
                        == {
                            "TLS_AES_128_GCM_SHA256": 0x1301,
                            "TLS_AES_256_GCM_SHA384": 0x1302,
                            "TLS_CHACHA20_POLY1305_SHA256": 0x1303,
                        }[cipher[0]]
                    )
                chain = tls.pop("client_cert_chain")
                # What signs its own certificate the client finds among whom it trusts.
                assert chain == chain_of(cert) + chain_of("ca.pem" * (cert == "direct.pem"))
                assert tls == {
                    "server_cert": Path(pem("server.pem")).read_text(),
                    "client_cert_name": name,
                    "client_cert_error": None,
                    "tls_version": number,
                }
            found.clear()
    assert server.errors == []


# ------------------------------------------------------------------------- reloading


INTERVAL = 0.05  # between two looks at the files


def install(folder: Path, name: str, key: str = "") -> None:
    """Replaces a certificate as ACME clients do, each file at once."""
    replace(folder / "cert.pem", f"{name}.pem")
    replace(folder / "key.pem", f"{key or name}.key")


def replace(file: Path, name: str) -> None:
    shutil.copy(pem(name), file.with_suffix(".next"))
    file.with_suffix(".next").replace(file)


def install_in_one(folder: Path, name: str, key: str = "") -> None:
    """The same with a file that has both, so that no look falls between the two."""
    both = Path(pem(f"{name}.pem")).read_text() + Path(pem(f"{key or name}.key")).read_text()
    (folder / "next").write_text(both)
    (folder / "next").replace(folder / "both.pem")


def shown_by(server: Running | Process) -> str:
    with connect(server, name="localhost") as client:
        return certificate_of(client)


def test_replaced_files_are_noticed(serve: Serve, tmp_path: Path) -> None:
    scopes: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scopes.append(scope)
        await respond(send, await read_body(receive))

    install_in_one(tmp_path, "server")
    file = str(tmp_path / "both.pem")
    server = serve(app, lifespan="off", certfile=file, ssl_reload_interval=INTERVAL)
    with connect(server) as before, Records(server) as shaking:
        assert certificate_of(before) == "server"
        shaking.socket.sendall(shaking.hello())
        assert shaking.feed()
        before.sendall(request("POST", "/", "Content-Length: 4") + b"ab")
        install_in_one(tmp_path, "new")
        eventually(lambda: shown_by(server) == "new")
        before.sendall(b"cd")  # connections that exist go on, and so do handshakes
        assert before.read_response().body == b"abcd"
        assert before.get().status == 200
        shaking.opened().send(request("GET", "/"))
        assert shaking.read_response().status == 200
        for scope in scopes[-3:]:
            tls = scope["extensions"]["tls"]
            assert tls["server_cert"] == Path(pem("server.pem")).read_text()
            assert tls["cipher_suite"] in (0x1301, 0x1302, 0x1303)
        with connect(server) as after:
            after.get()
        assert scopes[-1]["extensions"]["tls"]["server_cert"] == Path(pem("new.pem")).read_text()
    assert server.errors == []
    # What cannot be used is complained of once, and what is in use stays.
    install_in_one(tmp_path, "server", key="new")
    eventually(lambda: server.errors)
    assert shown_by(server) == "new"
    time.sleep(5 * INTERVAL)  # for more looks at the files, which nobody sees
    assert [record.getMessage() for record in server.errors] == [
        f"the certificates in use stay: --keyfile: {file!r} is not the key of {file!r}"
    ]
    install_in_one(tmp_path, "server")
    eventually(lambda: shown_by(server) == "server")


def test_a_replaced_key_is_noticed_alone(serve: Serve, tmp_path: Path) -> None:
    """It is the second of the two that are replaced, perhaps."""
    install(tmp_path, "server")
    certfile, keyfile = tmp_path / "cert.pem", tmp_path / "key.pem"
    server = serve(
        hello, certfile=str(certfile), keyfile=str(keyfile), ssl_reload_interval=INTERVAL
    )
    assert shown_by(server) == "server"
    replace(certfile, "new.pem")
    eventually(lambda: len(server.errors) == 1)
    assert shown_by(server) == "server"
    replace(keyfile, "new.key")
    eventually(lambda: shown_by(server) == "new")
    assert "is not the key of" in server.errors[0].getMessage()


def hang_up(process: Process, pid_file: Path) -> None:
    process.send_signal(signal.SIGHUP)


def command(process: Process, pid_file: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fastserve", "reload-certs", "--pid", str(pid_file)],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(("reload", "workers"), [(hang_up, 1), (command, 1), (command, 2)])
def test_reloading(
    worker: str, reload: Callable[[Process, Path], None], workers: int, tmp_path: Path
) -> None:
    install(tmp_path, "server")
    pid_file = tmp_path / "pid"
    process = Process(
        *("-k", worker, "-b", "127.0.0.1:0", "--certfile", str(tmp_path / "cert.pem")),
        *("--keyfile", str(tmp_path / "key.pem"), "--pid", str(pid_file)),
        *("--ssl-reload-interval", "0", "-w", str(workers), "served:app"),
    )

    def is_logged_by_each(text: str) -> bool:
        return sum(text in line for line in process.err.lines) == workers

    try:
        with connect(process) as before:
            assert before.get().body == b"hello"
            install(tmp_path, "new")
            reload(process, pid_file)
            eventually(lambda: is_logged_by_each("certificates loaded again"))
            assert shown_by(process) == "new"
            (tmp_path / "cert.pem").write_text("garbage")
            reload(process, pid_file)
            process.logs("ERROR.*the certificates in use stay: --certfile: .* holds no certificate")
            eventually(lambda: is_logged_by_each("the certificates in use stay"))
            assert shown_by(process) == "new"
            assert before.get().body == b"hello"
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0
        assert is_logged_by_each("the certificates in use stay")
        assert "Traceback" not in "\n".join(process.err.all())
    finally:
        process.end()


# -------------------------------------------------------------------------- programs


def run(*command: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        command, capture_output=True, timeout=3 * PATIENCE, env=others_environment(), **options
    )


@ANY_POLLER
def test_curl(serve: Serve, tmp_path: Path) -> None:
    curl = needs("curl")
    server = serve(echo, **MUTUAL)
    body = os.urandom(3 * MIB)
    (tmp_path / "body").write_bytes(body)
    url = f"https://localhost:{server.address[1]}/"
    certified = ("--cert", pem("client.pem"), "--key", pem("client.key"))
    trusted = (
        curl,
        "-sS",
        "--cacert",
        pem("ca.pem"),
        "--resolve",
        f"*:{server.address[1]}:127.0.0.1",
    )
    done = run(*trusted, *certified, "--data-binary", f"@{tmp_path}/body", url, url)
    assert done.returncode == 0, done.stderr
    assert done.stdout == 2 * body
    done = run(*trusted, url)
    assert done.returncode in (35, 52, 55, 56), done.returncode
    assert server.errors == []


@ANY_POLLER
def test_openssl(serve: Serve) -> None:
    openssl = needs("openssl")
    server = serve(hello, **SERVER)
    where = f"127.0.0.1:{server.address[1]}"
    for option in ("-tls1_2", "-tls1_3"):
        done = run(
            *(openssl, "s_client", "-connect", where, option, "-CAfile", pem("ca.pem")),
            *("-verify_return_error", "-servername", "localhost", "-alpn", "h2,http/1.1"),
            "-quiet",
            input=request("GET", "/", "Connection: close"),
        )
        assert done.stdout.endswith(b"Hello, world!"), done
    assert server.errors == []


@ANY_POLLER
def test_renegotiation_is_refused(serve: Serve) -> None:
    """It would let a client have the server work for nothing (RFC 5746; CVE-2011-1473)."""
    openssl = needs("openssl")
    server = serve(hello, **SERVER)
    process = subprocess.Popen(
        [openssl, "s_client", "-connect", f"127.0.0.1:{server.address[1]}", "-tls1_2"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=others_environment(),
    )
    try:
        output, _ = process.communicate(b"R\n", timeout=PATIENCE)
    finally:
        process.kill()
        process.wait()
    assert b"RENEGOTIATING" in output
    assert b"no renegotiation" in output or b":error:" in output, output[-500:]
    assert server.errors == []
    assert_alive(server)


@ANY_POLLER
@pytest.mark.skipif(importlib.util.find_spec("httpx") is None, reason="httpx is not installed")
def test_httpx(serve: Serve) -> None:
    import httpx

    server = serve(echo, **MUTUAL)
    context = trusting(cert="client.pem")
    with httpx.Client(verify=context, base_url=f"https://localhost:{server.address[1]}") as client:
        for length in (0, 10, 100_000):
            assert client.post("/", content=bytes(length)).content == bytes(length)
    assert server.errors == []


# ---------------------------------------------------------------------------- leaks

TYPES = {
    kind
    for module in (_http1, _reactor, _tls, _transport, _websocket)
    for kind in vars(module).values()
    if isinstance(kind, type) and kind.__module__ == module.__name__
} | {ssl.SSLObject, ssl.MemoryBIO}
PER_CONNECTION = {"TlsProtocol", "TlsTransport", "SocketTransport", "Http1Connection", "SSLObject"}


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
@pytest.mark.parametrize(
    ("worker", "poller"),
    [("asyncio", "epoll"), ("asyncio", "loop"), ("uvloop", "epoll"), ("trio", "epoll")],
    indirect=True,
)
def test_nothing_stays(serve: Serve) -> None:
    """Thousands of handshakes and requests: no objects, no descriptors, level memory."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return  # to raise would be logged, and what is logged is kept
            body += message["body"]
            more = message["more_body"]
        await respond(send, body)

    server = serve(app, lifespan="off", **MUTUAL)
    instances = Instances(TYPES)
    good = trusting(cert="client.pem")
    bad = trusting(cert="stranger.pem", version=V12)
    message = request("POST", "/", body=b"x" * 100)
    big = request("POST", "/", body=bytes(300_000))

    def rounds(times: int) -> None:
        for number in range(times):
            with connect(server, good) as client:
                for _ in range(3):
                    client.sendall(message)
                    client.read_response()
                if number % 10 == 0:
                    client.sendall(big)
                    client.read_response()
                if number % 3 == 0:
                    client.sendall(message)
                    reset(client)
            if number % 5 == 0:
                with pytest.raises((ssl.SSLError, ConnectionError)):
                    connect(server, bad)
                with server.connect() as raw:
                    raw.sendall(GARBAGE[number // 5 % len(GARBAGE)])
                with Records(server) as shaking:
                    shaking.socket.sendall(shaking.hello())

    def settle() -> None:
        def is_quiet() -> bool:
            gc.collect()
            return not set(instances.alive()) & (PER_CONNECTION - {"SSLObject"})

        eventually(is_quiet)

    rounds(100)
    settle()
    objects, files = instances.alive(), len(os.listdir("/proc/self/fd"))
    memory, blocks = [], []
    for _ in range(3):
        before, blocks_before = resident(), sys.getallocatedblocks()
        rounds(350)
        settle()
        assert instances.alive() == objects
        assert len(os.listdir("/proc/self/fd")) == files
        memory.append(resident() - before)
        blocks.append((sys.getallocatedblocks() - blocks_before) / 350)
    # A session object alone, left behind by each connection, would be megabytes.
    if "asan" not in os.environ.get("LD_PRELOAD", ""):
        assert min(memory) < 2 * MIB, memory
        assert min(blocks) < 0.5, blocks


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
def test_no_collector_is_needed(serve: Serve) -> None:
    server = serve(hello, **SERVER)
    context = trusting()
    instances = Instances(TYPES)
    gc.disable()
    try:
        for _ in range(20):
            with connect(server, context) as client:
                client.get()
            with server.connect() as raw:
                raw.sendall(GARBAGE[3])
        eventually(lambda: not set(instances.alive()) & (PER_CONNECTION | {"MemoryBIO"}))
    finally:
        gc.enable()
