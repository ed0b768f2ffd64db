"""What every test shares: a real server around an application, on every loop and poller.

`serve(app, **options)` runs the server in a thread of its own, in a loop of the kind
under test, through the public `fastserve.serve`; the test talks to it over real sockets.
Applications under test sleep and wait through anyio, so that the same one runs on all.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib.util
import logging
import os
import queue
import select
import socket
import ssl
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Self

import hypothesis
import pytest

import fastserve

# No test depends on how fast the machine is.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")

POLLERS = ["epoll", "loop"] if hasattr(select, "epoll") else ["loop"]
CERTIFICATES = Path(__file__).resolve().parent / "certificates"
WORKERS = ["asyncio", "uvloop", "trio"]
SANITIZED = "asan" in os.environ.get("LD_PRELOAD", "")
# For a test that looks at resident memory: the sanitizer keeps for a while what was freed.
measures_memory = pytest.mark.skipif(
    not os.path.exists("/proc/self/statm") or SANITIZED,
    reason="needs /proc, and memory that is given back",
)
MIB = 2**20
# Seconds for what happens at once; a test that waits for it in vain fails. A traced build has more.
PATIENCE = float(os.environ.get("TEST_PATIENCE", "10"))


class Client(socket.socket):
    """A raw connection: bytes in, bytes out."""

    def __init__(self, address: tuple[str, int] | str) -> None:
        super().__init__(
            socket.AF_UNIX if isinstance(address, str) else socket.AF_INET, socket.SOCK_STREAM
        )
        self.settimeout(PATIENCE)
        try:
            self.connect(address)
        except OSError:
            self.close()
            raise
        self.received = b""

    def read_until(self, end: bytes) -> bytes:
        """Everything up to and including `end`; fails if the peer closes before."""
        while end not in self.received:
            data = self.recv(65536)
            assert data, f"closed after {self.received!r}"
            self.received += data
        head, _, self.received = self.received.partition(end)
        return head + end

    def read_exactly(self, length: int) -> bytes:
        while len(self.received) < length:
            data = self.recv(65536)
            assert data, f"closed after {self.received!r}"
            self.received += data
        data, self.received = self.received[:length], self.received[length:]
        return data

    def read_to_end(self) -> bytes:
        """Everything until the peer's FIN; a reset raises ConnectionResetError."""
        while data := self.recv(65536):
            self.received += data
        data, self.received = self.received, b""
        return data

    def read_response(self, *, head_only: bool = False) -> Response:
        """One response, framed as its head says; interim responses are left out."""
        head = self.read_until(b"\r\n\r\n")
        response = Response(head)
        if response.status < 200 and response.status != 101:
            return self.read_response(head_only=head_only)
        if head_only or response.status in (101, 204, 304):
            return response
        if response.field(b"transfer-encoding") == b"chunked":
            while size := int(self.read_until(b"\r\n"), 16):
                response.body += self.read_exactly(size)
                assert self.read_exactly(2) == b"\r\n"
            assert self.read_exactly(2) == b"\r\n"
        elif (length := response.field(b"content-length")) is not None:
            response.body = self.read_exactly(int(length))
        else:
            response.body = self.read_to_end()
        return response

    def get(self, target: str = "/", *fields: str) -> Response:
        self.sendall(request("GET", target, *fields))
        return self.read_response()

    def is_closed_by_peer(self) -> bool:
        """Waits for the peer's FIN or reset; False if it sends anything instead."""
        try:
            return not self.received and self.recv(1) == b""
        except ConnectionResetError:
            return True


class Response:
    """The head of a response, taken apart, and its body."""

    def __init__(self, head: bytes) -> None:
        line, *lines = head[:-4].split(b"\r\n")
        version, status, self.reason = line.split(b" ", 2)
        assert version == b"HTTP/1.1"
        self.status = int(status)
        pairs = (line.split(b": ", 1) for line in lines)
        self.fields = [(name.lower(), value) for name, value in pairs]
        self.body = b""

    def field(self, name: bytes) -> bytes | None:
        """The value of a field that is there at most once."""
        values = [value for key, value in self.fields if key == name]
        assert len(values) <= 1, f"{name!r} is there {len(values)} times"
        return values[0] if values else None


def request(method: str, target: str, *fields: str, body: bytes = b"") -> bytes:
    lines = [f"{method} {target} HTTP/1.1", "Host: test", *fields]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def reset(client: socket.socket) -> None:
    """Close with a reset in place of a FIN."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def push(client: socket.socket, data: bytes, most: int | None = None) -> int:
    """Sends until nothing is taken any more; how many bytes were. `most`: `data` over and over,
    so many bytes."""
    view, pushed = memoryview(data), 0
    client.settimeout(0.5)
    with contextlib.suppress(TimeoutError):
        while pushed < (len(data) if most is None else most):
            # A TLS record at a time: what was refused is to be repeated as it was.
            pushed += client.send(view[pushed % len(data) :][:16384])
    client.settimeout(PATIENCE)
    return pushed


class Frame(NamedTuple):
    """A server's frame; a client's is made by `frame`."""

    first: int  # FIN, the reserved bits and the opcode
    payload: bytes


class WebSocketClient(Client):
    """A WebSocket by hand: nothing is answered, and nothing checked but the framing."""

    response: Response

    def __init__(self, address: tuple[str, int] | str) -> None:
        super().__init__(address)
        if self.family == socket.AF_INET:
            # Else a second small write would wait for the peer's delayed acknowledgement.
            self.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def open(self, target: str = "/", *fields: str) -> Self:
        """The opening handshake, which has to succeed."""
        self.sendall(handshake(target, *fields))
        self.response = self.read_response()
        assert self.response.status == 101, self.response.status
        return self

    def read_frame(self) -> Frame:
        first, length = self.read_exactly(2)
        assert length < 128, "a server masks nothing"
        if length > 125:
            size, least = (2, 126) if length == 126 else (8, 65536)
            length = int.from_bytes(self.read_exactly(size))
            assert length >= least, "the length is not in its shortest form"
        return Frame(first, self.read_exactly(length))

    def read_close(self) -> tuple[int, str]:
        """What a Close frame says, which has to be next; 1005 if it says nothing."""
        first, payload = self.read_frame()
        assert first == 0x88, (first, payload)
        return int.from_bytes(payload[:2]) if payload else 1005, payload[2:].decode()

    def close_with(self, code: int = 1000) -> None:
        """The whole closing handshake, begun by the client."""
        self.sendall(frame(0x88, code.to_bytes(2)))
        assert self.read_close()[0] == code
        assert self.is_closed_by_peer()
        self.close()


def handshake(target: str = "/", *fields: str) -> bytes:
    """An opening handshake, with the key of RFC 6455 section 1.3."""
    return request(
        "GET",
        target,
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        *fields,
    )


def frame(first: int, payload: bytes = b"", mask: bytes = b"\x37\xfa\x21\x3d") -> bytes:
    """A client's frame. `first`: FIN, the reserved bits and the opcode."""
    length = len(payload)
    if length < 126:
        head = bytes([first, 0x80 | length])
    elif length < 65536:
        head = bytes([first, 0x80 | 126]) + length.to_bytes(2)
    else:
        head = bytes([first, 0x80 | 127]) + length.to_bytes(8)
    key = (mask * (length // 4 + 1))[:length]
    return head + mask + (int.from_bytes(payload) ^ int.from_bytes(key)).to_bytes(length)


def pem(name: str) -> str:
    """One of the tests' certificates or keys."""
    return str(CERTIFICATES / name)


class TlsClient(ssl.SSLSocket):
    """A connection with TLS: bytes in, bytes out."""

    received = b""
    read_until = Client.read_until
    read_exactly = Client.read_exactly
    read_to_end = Client.read_to_end
    read_response = Client.read_response
    get = Client.get
    is_closed_by_peer = Client.is_closed_by_peer
    open = WebSocketClient.open
    read_frame = WebSocketClient.read_frame
    read_close = WebSocketClient.read_close
    close_with = WebSocketClient.close_with


def trusting(
    *, version: ssl.TLSVersion | None = None, cert: str = "", **options: Any
) -> ssl.SSLContext:
    """A client that trusts the tests' authority. `cert`: the client's own."""
    context = ssl.create_default_context(cafile=pem("ca.pem"))
    context.sslsocket_class = TlsClient
    if version is not None:
        context.minimum_version = context.maximum_version = version
    if cert:
        context.load_cert_chain(pem(cert), pem("client.key"))
    for name, value in options.items():
        getattr(context, name)(value)
    return context


class Running(logging.Handler):
    """A server in a thread. `errors` are the exceptions and messages that it logged."""

    def __init__(self, app: Any, worker: str, config: fastserve.Config) -> None:
        super().__init__(logging.INFO)
        self.worker = worker
        self.config = config
        self.app = app
        self.errors: list[logging.LogRecord] = []
        self.failure: BaseException | None = None
        self.addresses: queue.Queue[tuple[str, int] | str | None] = queue.Queue()
        self.asked_to_stop = threading.Event()
        self.stop_now: Callable[[], object] | None = None
        self.thread = threading.Thread(target=self._run, name="server", daemon=True)

    def start(self) -> Running:
        logger = logging.getLogger("fastserve")
        logger.setLevel(logging.INFO)
        logger.addHandler(self)
        self.thread.start()
        address = self.addresses.get(timeout=PATIENCE)
        if address is None:
            self.stop()
            raise self.failure or RuntimeError("the server ended at once")
        self.address = address
        return self

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread != self.thread.ident:
            return
        if record.levelno >= logging.WARNING:
            self.errors.append(record)
        text = record.getMessage()
        if text.startswith(("Running on http://", "Running on https://")):
            host, _, port = text.split()[2].partition("://")[2].rpartition(":")
            self.addresses.put((host, int(port)))
        elif text.startswith("Running on unix:"):
            self.addresses.put(text.split()[2].removeprefix("unix:"))

    def connect(self) -> Client:
        return Client(self.address)

    def websocket(self, target: str = "/", *fields: str) -> WebSocketClient:
        """A WebSocket that was accepted."""
        return WebSocketClient(self.address).open(target, *fields)

    def exceptions(self) -> list[BaseException]:
        """What applications raised, as logged."""
        return [record.exc_info[1] for record in self.errors if record.exc_info]

    def ask_to_stop(self) -> None:
        """As the shutdown trigger does; returns at once."""
        if self.stop_now is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self.stop_now()

    def stop(self, timeout: float = 2 * PATIENCE) -> None:
        self.ask_to_stop()
        self.thread.join(timeout)
        logging.getLogger("fastserve").removeHandler(self)
        assert not self.thread.is_alive(), "the server did not stop"

    def _run(self) -> None:
        try:
            if self.worker == "trio":
                self._run_trio()
            else:
                self._run_asyncio()
        except BaseException as error:
            self.failure = error
        finally:
            self.addresses.put(None)

    def _run_asyncio(self) -> None:
        async def main() -> None:
            event = asyncio.Event()
            loop = asyncio.get_running_loop()
            self.stop_now = lambda: loop.call_soon_threadsafe(event.set)
            await fastserve.serve(self.app, self.config, shutdown_trigger=event.wait)

        factory = None
        if self.worker == "uvloop":
            import uvloop

            factory = uvloop.new_event_loop
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(main())

    def _run_trio(self) -> None:
        import trio

        async def main() -> None:
            event = trio.Event()
            token = trio.lowlevel.current_trio_token()
            self.stop_now = lambda: token.run_sync_soon(event.set)
            await fastserve.serve(self.app, self.config, shutdown_trigger=event.wait)

        trio.run(main)


Serve = Callable[..., Running]


class Instances:
    """How many instances of some types there are, by name, without those that were there before:
    who keeps a record of an exception, of another test's, keeps all that its frames hold."""

    def __init__(self, types: set[type]) -> None:
        self.types = types
        gc.collect()
        # Held, so that an address stays theirs.
        self.others = {id(found): found for found in self._all()}

    def alive(self) -> Counter[str]:
        return Counter(
            type(found).__name__ for found in self._all() if id(found) not in self.others
        )

    def _all(self) -> list[object]:
        return [found for found in gc.get_objects() if type(found) in self.types]


def skip_without(library: str) -> None:
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")


@pytest.fixture(params=WORKERS)
def worker(request: pytest.FixtureRequest) -> str:
    """Each worker whose loop is installed here."""
    name: str = request.param
    skip_without(name)
    return name


@pytest.fixture(params=POLLERS)
def poller(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def serve(worker: str, poller: str) -> Iterator[Serve]:
    """Start servers with `serve(app, **options)`; they end with the test."""
    started: list[Running] = []

    def start(app: Any, **options: Any) -> Running:
        defaults = {
            "bind": "127.0.0.1:0",
            "poller": poller,
            "worker_class": worker,
            # Nobody sends anything more on what a test has left open.
            "drain_idle_timeout": 0,
        }
        config = fastserve.Config(**{**defaults, **options})
        running = Running(app, worker, config)
        started.append(running)
        return running.start()

    yield start
    for running in started:
        running.stop()


async def hello(scope: Any, receive: Any, send: Any) -> None:
    """The least application."""
    if scope["type"] != "http":
        raise RuntimeError("only HTTP")
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"Hello, world!"})


async def read_body(receive: Any) -> bytes:
    body = b""
    while True:
        message = await receive()
        assert message["type"] == "http.request", message
        body += message["body"]
        if not message["more_body"]:
            return body


async def respond(
    send: Any, body: bytes = b"", status: int = 200, headers: tuple[tuple[bytes, bytes], ...] = ()
) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
