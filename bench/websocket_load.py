"""The load of websocket.py, in a process that can have a core, and an interpreter, of its own.

    websocket_load.py echo|broadcast|idle HOST PORT [SIZE]      SIZE of the echo, in bytes

It connects, warms the server up, says so, and then does as it is told until its input ends: a
line with an amount (of seconds; of sockets for idle) is answered with one of JSON, with what was
done (messages; sockets) and the seconds that it took.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import select
import signal
import socket
import sys
import time
import zlib
from collections.abc import Iterator

import picows
import uvloop

# Whatever happens, it ends.
LIFETIME_SECONDS = 120
PATIENCE_SECONDS = 20.0
WARM_UP_SECONDS = 0.5

ECHO_CONNECTIONS = 32
LISTENERS = 1000
NEWS_SIZE = 100
WARM_UP_ROUNDS = 3
IDLE_SIZE = 1024

# RFC 6455, section 1.3. The floor knows no other key.
KEY = "dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
# What browsers offer. The websockets library would ask for smaller windows.
OFFER = "permessage-deflate; client_max_window_bits"

FIN, COMPRESSED, TEXT, MASKED = 0x80, 0x40, 0x1, 0x80


class LoadError(Exception):
    """The server did something that it should not, and there is no figure."""


def orders() -> Iterator[float]:
    """Say that all is ready, and then what to do."""
    print("ready", flush=True)
    for line in sys.stdin:
        yield float(line)


def report(count: int, started: float) -> None:
    print(json.dumps([count, time.perf_counter() - started]), flush=True)


# --- echo: each connection sends its message again as soon as it has come back ---------------


class Echoes:
    """A number of connections, and how many messages have come back on them."""

    def __init__(self, message: bytes) -> None:
        self.message = message
        self.transports: list[picows.WSTransport] = []
        self._going = False
        self._under_way = 0
        self._count = 0
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self, seconds: float) -> int:
        """Messages that came back, with those that were under way at the end."""
        loop = asyncio.get_running_loop()
        self._done = loop.create_future()
        self._count = 0
        self._going = True
        self._under_way = len(self.transports)
        loop.call_later(seconds, self._stop)
        for transport in self.transports:
            self.send(transport)
        async with asyncio.timeout(seconds + PATIENCE_SECONDS):
            await self._done
        return self._count

    def _stop(self) -> None:
        self._going = False

    def send(self, transport: picows.WSTransport) -> None:
        transport.send(picows.WSMsgType.TEXT, self.message)

    def came_back(self, transport: picows.WSTransport, payload: bytes) -> None:
        if payload != self.message:
            self.fail(f"wrong echo: {payload[:80]!r}")
            return
        self._count += 1
        if self._going:
            self.send(transport)
            return
        self._under_way -= 1
        if not self._under_way and not self._done.done():
            self._done.set_result(None)

    def fail(self, why: str) -> None:
        # The library would log what its callbacks raise, and go on.
        if not self._done.done():
            self._done.set_exception(LoadError(why))


async def echo(host: str, port: int, size: int) -> None:
    echoes = Echoes(b"x" * size)

    class Listener(picows.WSListener):
        def on_ws_frame(self, transport: picows.WSTransport, frame: picows.WSFrame) -> None:
            if frame.msg_type == picows.WSMsgType.TEXT:
                echoes.came_back(transport, frame.get_payload_as_bytes())
            elif frame.msg_type != picows.WSMsgType.PING:  # which the library answers
                echoes.fail(f"not a whole text message: {frame}")

        def on_ws_disconnected(self, transport: picows.WSTransport) -> None:
            echoes.fail("the server closed a connection")

    for _ in range(ECHO_CONNECTIONS):
        transport, _ = await picows.ws_connect(Listener, f"ws://{host}:{port}/")
        echoes.transports.append(transport)
    await echoes.run(WARM_UP_SECONDS)
    # Reading an order holds the loop up, which has nothing to do meanwhile.
    for seconds in orders():
        started = time.perf_counter()
        report(await echoes.run(seconds), started)


# --- connections without a library -----------------------------------------------------------


def open_socket(host: str, port: int, path: str, offer: str = "") -> socket.socket:
    """A blocking socket after the handshake; with an `offer`, which must be taken up."""
    connection = socket.create_connection((host, port), timeout=PATIENCE_SECONDS)
    # A text that ends in a message is one write, and not to be held back.
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    lines = [
        f"GET {path} HTTP/1.1",
        f"Host: {host}:{port}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {KEY}",
        "Sec-WebSocket-Version: 13",
    ]
    if offer:
        lines.append(f"Sec-WebSocket-Extensions: {offer}")
    connection.sendall("".join(f"{line}\r\n" for line in lines).encode() + b"\r\n")
    head = b""
    while not head.endswith(b"\r\n\r\n"):  # nobody speaks before this side does
        head += receive(connection, 4096)
    if not head.startswith(b"HTTP/1.1 101 ") or ACCEPT not in head:
        raise LoadError(f"no WebSocket: {head!r}")
    if (b"permessage-deflate" in head) != bool(offer):
        raise LoadError(f"permessage-deflate: offered {offer!r}, answered {head!r}")
    return connection


def receive(connection: socket.socket, size: int) -> bytes:
    data = connection.recv(size)
    if not data:
        raise LoadError("the server closed a connection")
    return data


def receive_exactly(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += receive(connection, size - len(data))
    return data


def frame(payload: bytes, flags: int = 0, masked: bool = False) -> bytes:
    """A text message in one frame. The mask is of zeros, and so nothing is to be done for it."""
    length, extended = len(payload), b""
    if length > 125:
        length, extended = 126, length.to_bytes(2)
    head = bytes([FIN | TEXT | flags, length | (MASKED if masked else 0)]) + extended
    return head + (bytes(4) if masked else b"") + payload


# --- broadcast: many sockets hear what one says ----------------------------------------------


def broadcast(host: str, port: int) -> None:
    listeners = [open_socket(host, port, "/listen") for _ in range(LISTENERS)]
    speaker = open_socket(host, port, "/speak")
    everyone = [*listeners, speaker]  # in the end the speaker hears it too
    news = b"x" * NEWS_SIZE
    ask = frame(news, masked=True)
    heard = frame(news)
    for _ in range(WARM_UP_ROUNDS):
        speaker.sendall(ask)
        if any(receive_exactly(one, len(heard)) != heard for one in everyone):
            raise LoadError("something else was broadcast")
    receivers = Receivers(everyone)
    for seconds in orders():
        started = time.perf_counter()
        rounds = 0
        while time.perf_counter() < started + seconds:
            # One round at a time: several to a socket could be put into one write.
            speaker.sendall(ask)
            receivers.receive(len(heard) * len(everyone))
            rounds += 1
        report(rounds * len(everyone), started)


class Receivers:
    """Sockets whose input is counted and thrown away.

    They are asked without ever sleeping: to wake a sleeper up is dear, counts as the server's,
    and would happen the more often the slower the server is (granian: 60 us a message, or 93).
    """

    def __init__(self, sockets: list[socket.socket]) -> None:
        self._sockets = {one.fileno(): one for one in sockets}
        self._poller = select.epoll(len(sockets))
        self._buffer = bytearray(4096)
        for one in sockets:
            one.setblocking(False)
            self._poller.register(one, select.EPOLLIN)

    def receive(self, size: int) -> None:
        """Receive `size` bytes from all of them together."""
        deadline = time.perf_counter() + PATIENCE_SECONDS
        while size > 0:
            for descriptor, _ in self._poller.poll(0):
                received = self._sockets[descriptor].recv_into(self._buffer)
                if not received:
                    raise LoadError("the server closed a connection")
                size -= received
            if time.perf_counter() > deadline:
                raise LoadError(f"{size} bytes of a broadcast have not come")
        if size < 0:
            raise LoadError(f"{-size} bytes more than were broadcast")


# --- idle: sockets that have echoed one compressed message each ------------------------------


def idle(host: str, port: int) -> None:
    message = b" ".join(b"%d" % (number * number) for number in range(IDLE_SIZE))[:IDLE_SIZE]
    # Within the smallest window that zlib knows, so within whichever a server asks for.
    compressor = zlib.compressobj(wbits=-9)
    compressed = compressor.compress(message) + compressor.flush(zlib.Z_SYNC_FLUSH)
    ask = frame(compressed.removesuffix(b"\0\0\xff\xff"), COMPRESSED, masked=True)
    sockets = [open_idle(host, port, ask, message)]
    for amount in orders():
        started = time.perf_counter()
        sockets += [open_idle(host, port, ask, message) for _ in range(int(amount))]
        report(int(amount), started)


def open_idle(host: str, port: int, ask: bytes, message: bytes) -> socket.socket:
    connection = open_socket(host, port, "/", OFFER)
    connection.sendall(ask)
    flags, length = receive_exactly(connection, 2)
    if flags != FIN | COMPRESSED | TEXT:
        raise LoadError(f"not a compressed text message in one frame: {flags:#x}")
    if length == 126:
        length = int.from_bytes(receive_exactly(connection, 2))
    payload = receive_exactly(connection, length)
    if zlib.decompressobj(-15).decompress(payload + b"\0\0\xff\xff") != message:
        raise LoadError("wrong echo")
    return connection


def main() -> None:
    signal.alarm(LIFETIME_SECONDS)
    kind, host, port, *size = sys.argv[1:]
    if kind == "echo":
        uvloop.run(echo(host, int(port), int(size[0])))
    elif kind == "broadcast":
        broadcast(host, int(port))
    else:
        idle(host, int(port))


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
