"""As much of HTTP/2, without TLS and by prior knowledge, as tells streams and fields apart."""

from __future__ import annotations

from collections.abc import Sequence

from conformance.client import Connection, Failed, NotApplicable
from conformance.events import Step
from conformance.server import Play, Server

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY = 0, 1, 3, 4, 6, 7
END_STREAM, END_HEADERS, ACK = 1, 4, 1


class StreamPlay(Play):
    """A call that was asked for on one stream of a connection."""

    def __init__(self, server: Server, number: str, connection: Connection, stream: int) -> None:
        super().__init__(server, number, connection)
        self.stream = stream


class Client:
    """One connection. Raises NotApplicable where HTTP/2 is not spoken."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.bodies: dict[int, bytes] = {}
        self.ended: set[int] = set()
        self.answered: set[int] = set()
        self._next = 1
        connection.send(PREFACE + _frame(SETTINGS))
        if self._read() != SETTINGS:
            raise NotApplicable("it speaks no HTTP/2 without TLS")

    def ask(
        self,
        server: Server,
        *steps: Step,
        authority: str = "test",
        fields: Sequence[tuple[str, str]] = (),
    ) -> StreamPlay:
        stream, self._next = self._next, self._next + 2
        play = StreamPlay(server, str(next(server.numbers)), self.connection, stream)
        server.plays.append(play)
        block = [
            (":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", authority),
            ("x-first", "1"), *fields, ("probe", f"{play.number} {list(steps)!a}"),
        ]  # fmt: skip
        payload = b"".join(b"\0" + _string(name) + _string(value) for name, value in block)
        self.connection.send(_frame(HEADERS, payload, END_HEADERS | END_STREAM, stream))
        return play

    def refuses(self, stream: int) -> bool:
        """Whether that stream, or the whole connection, ends without a response."""
        while stream not in self.answered:
            if stream in self.ended or self._read() is None:
                return True
        return False

    def body(self, stream: int) -> bytes:
        """The whole body of that stream's response."""
        while stream not in self.ended:
            if self._read() is None:
                raise Failed(f"stream {stream} never ends: {self.connection.fate}")
        return self.bodies.get(stream, b"")

    def _read(self) -> int | None:
        """Takes one frame; its type."""
        head = self.connection.exactly(9)
        if head is None or int.from_bytes(head[:3]) > 16384:
            return None
        payload = self.connection.exactly(int.from_bytes(head[:3]))
        kind, flags, stream = head[3], head[4], int.from_bytes(head[5:])
        if payload is None or kind == GOAWAY:
            return None
        if kind in (SETTINGS, PING) and not flags & ACK:
            self.connection.send(_frame(kind, payload if kind == PING else b"", ACK))
        if kind == DATA:
            self.bodies[stream] = self.bodies.get(stream, b"") + payload
        if kind == HEADERS:
            self.answered.add(stream)
        if kind == RST_STREAM or (kind in (DATA, HEADERS) and flags & END_STREAM):
            self.ended.add(stream)
        return kind


def _frame(kind: int, payload: bytes = b"", flags: int = 0, stream: int = 0) -> bytes:
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload


def _string(text: str) -> bytes:
    """A string literal of HPACK, without Huffman's code (RFC 7541 section 5.2)."""
    data = text.encode()
    if len(data) < 127:
        return bytes([len(data)]) + data
    rest, prefix = len(data) - 127, bytearray([127])
    while rest >= 128:
        prefix.append(rest % 128 + 128)
        rest //= 128
    return bytes(prefix) + bytes([rest]) + data
