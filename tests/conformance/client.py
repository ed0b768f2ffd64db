"""The clients' side: bytes over a socket, and what they are in HTTP/1.1 and in WebSocket frames."""

from __future__ import annotations

import base64
import os
import socket
import ssl
import struct
import time
from dataclasses import dataclass, field

KEY = base64.b64encode(bytes(range(16))).decode()
CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10


class Failed(Exception):
    """A server did not do as it should; says what was seen."""


class NotApplicable(Exception):
    """There is nothing to be judged; says why."""


@dataclass
class Response:
    """A response, or as much of it as came. `framing` is how its end was told: "length",
    "chunked", "close", or "none" for one without a body."""

    version: bytes
    status: int
    fields: list[tuple[bytes, bytes]]
    interim: list[Response] = field(default_factory=list)
    body: bytes = b""
    framing: str = "none"
    complete: bool = True
    trailers: list[tuple[bytes, bytes]] = field(default_factory=list)

    def values(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.fields if key == name]

    def has_token(self, name: bytes, token: bytes) -> bool:
        tokens = b",".join(self.values(name)).lower().split(b",")
        return token in [each.strip() for each in tokens]


@dataclass
class Frame:
    final: bool
    opcode: int
    payload: bytes


def fields_of(lines: list[bytes]) -> list[tuple[bytes, bytes]]:
    pairs = (line.partition(b":") for line in lines if line)
    return [(name.lower(), value.strip()) for name, _, value in pairs]


class Connection:
    """A raw connection. `fate` is how it ended for the last one who read in vain."""

    def __init__(
        self,
        address: tuple[str, int] | str,
        patience: float,
        context: ssl.SSLContext | None = None,
    ) -> None:
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        self.socket = socket.socket(family)
        self.patience = patience
        self.buffer = b""
        self.fate = ""
        self.socket.settimeout(patience)
        try:
            self.socket.connect(address)
            if context is not None:
                self.socket = context.wrap_socket(self.socket, server_hostname="localhost")
        except OSError:
            self.socket.close()
            raise

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def push(self, piece: bytes, most: int, stalled: float) -> int:
        """Sends `piece` again and again until the peer has taken nothing for `stalled` seconds,
        or is gone; how many bytes that were, at most `most`."""
        self.socket.settimeout(stalled)
        taken = 0
        try:
            while taken < most:
                taken += self.socket.send(piece)
        except OSError:
            pass
        self.socket.settimeout(self.patience)
        return taken

    def half_close(self) -> None:
        self.socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def close(self) -> None:
        self.socket.close()

    def _fill(self) -> bool:
        """Receives once. False if nothing came; `fate` says why."""
        try:
            data = self.socket.recv(65536)
        except TimeoutError:
            self.fate = f"nothing more within {self.socket.gettimeout():g} s"
            return False
        except OSError:
            self.fate = "reset"
            return False
        self.buffer += data
        self.fate = "" if data else "closed"
        return bool(data)

    def within(self, seconds: float) -> bytes:
        """What comes in that time, or is there already; left where it is."""
        self.socket.settimeout(seconds)
        if not self.buffer:
            self._fill()
        self.socket.settimeout(self.patience)
        return self.buffer

    def to_end(self, seconds: float | None = None) -> bytes:
        """Everything until the end, or until nothing comes for that long; see `fate`."""
        self.socket.settimeout(seconds or self.patience)
        deadline = time.monotonic() + 4 * (seconds or self.patience)
        while self._fill() and time.monotonic() < deadline:
            pass
        self.socket.settimeout(self.patience)
        data, self.buffer = self.buffer, b""
        return data

    def ends(self, seconds: float | None = None) -> bool:
        """Whether the peer ends the connection, whatever it sends before."""
        self.to_end(seconds)
        return self.fate in ("closed", "reset")

    def until(self, end: bytes) -> bytes | None:
        """Everything up to and including `end`; None if that does not come."""
        while end not in self.buffer:
            if not self._fill():
                return None
        head, _, self.buffer = self.buffer.partition(end)
        return head + end

    def exactly(self, length: int) -> bytes | None:
        while len(self.buffer) < length:
            if not self._fill():
                return None
        data, self.buffer = self.buffer[:length], self.buffer[length:]
        return data

    def head(self) -> Response:
        """The next head, be it of an interim response."""
        head = self.until(b"\r\n\r\n")
        if head is None:
            raise Failed(
                f"no response: {self.fate}"
                + (f" after {self.buffer[:80]!r}" if self.buffer else "")
            )
        line, *lines = head[:-4].split(b"\r\n")
        version, _, rest = line.partition(b" ")
        if not version.startswith(b"HTTP/1.") or not rest[:3].isdigit():
            raise Failed(f"no status line: {line[:60]!r}")
        return Response(version, int(rest[:3]), fields_of(lines))

    def response(self, method: str = "GET") -> Response:
        """The next response, framed as its head says."""
        interim = []
        response = self.head()
        while response.status < 200 and response.status != 101:
            interim.append(response)
            response = self.head()
        response.interim = interim
        if method != "HEAD" and response.status not in (101, 204, 304):
            self._read_body(response)
        return response

    def _read_body(self, response: Response) -> None:
        if response.has_token(b"transfer-encoding", b"chunked"):
            response.framing = "chunked"
            self._read_chunks(response)
        elif lengths := response.values(b"content-length"):
            response.framing = "length"
            body = self.exactly(int(lengths[0]))
            response.complete = body is not None
            response.body = self.buffer if body is None else body
        else:
            response.framing = "close"
            response.body = self.to_end()
            response.complete = self.fate == "closed"

    def _read_chunks(self, response: Response) -> None:
        while True:
            line = self.until(b"\r\n")
            size = -1 if line is None else int(line.partition(b";")[0], 16)
            data = self.exactly(size + 2) if size > 0 else b""
            if size < 0 or data is None:
                response.complete = False
                return
            if size == 0:
                break
            response.body += data[:-2]
        lines = []
        while (line := self.until(b"\r\n")) not in (b"\r\n", None):
            lines.append(line)
        response.trailers = fields_of(lines)
        response.complete = line is not None

    # WebSocket

    def send_frame(
        self,
        opcode: int,
        payload: bytes = b"",
        *,
        final: bool = True,
        mask: bool = True,
        rsv: int = 0,
    ) -> None:
        self.send(frame_bytes(opcode, payload, final=final, mask=mask, rsv=rsv))

    def send_close(self, code: int | None = None, reason: str = "") -> None:
        payload = b"" if code is None else struct.pack("!H", code) + reason.encode()
        self.send_frame(CLOSE, payload)

    def frame(self) -> Frame | None:
        """The next frame; None if there is none, see `fate`."""
        head = self.exactly(2)
        if head is None:
            return None
        length: int | None = head[1] & 127
        if length in (126, 127):
            size = self.exactly(2 if length == 126 else 8)
            length = None if size is None else int.from_bytes(size)
        payload = None if length is None else self.exactly(length)
        return None if payload is None else Frame(head[0] >= 128, head[0] & 15, payload)

    def message(self) -> Frame:
        """The next frame that is no ping."""
        while (found := self.frame()) is not None:
            if found.opcode != PING:
                return found
            self.send_frame(PONG, found.payload)
        raise Failed(f"no frame: {self.fate}")

    def close_frame(self) -> tuple[int | None, str]:
        """Code and reason of the peer's Close, whatever comes before it."""
        while (found := self.message()).opcode != CLOSE:
            pass
        if not found.payload:
            return None, ""
        return int.from_bytes(found.payload[:2]), found.payload[2:].decode(errors="replace")


def frame_bytes(
    opcode: int, payload: bytes = b"", *, final: bool = True, mask: bool = True, rsv: int = 0
) -> bytes:
    head = bytes([final << 7 | rsv << 4 | opcode])
    if len(payload) < 126:
        length = bytes([mask << 7 | len(payload)])
    elif len(payload) < 65536:
        length = bytes([mask << 7 | 126]) + struct.pack("!H", len(payload))
    else:
        length = bytes([mask << 7 | 127]) + struct.pack("!Q", len(payload))
    if not mask:
        return head + length + payload
    key = os.urandom(4)
    keys = key * (len(payload) // 4 + 1)
    masked = int.from_bytes(payload) ^ int.from_bytes(keys[: len(payload)])
    return head + length + key + masked.to_bytes(len(payload))


def request(
    method: str,
    target: str,
    *fields: str,
    version: str = "1.1",
    body: bytes = b"",
    host: str | None = "test",
) -> bytes:
    lines = [f"{method} {target} HTTP/{version}"]
    if host is not None:
        lines.append(f"Host: {host}")
    lines += fields
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def handshake_fields(version: str = "13", key: str = KEY) -> list[str]:
    return [
        "Connection: Upgrade",
        "Upgrade: websocket",
        f"Sec-WebSocket-Version: {version}",
        *([f"Sec-WebSocket-Key: {key}"] if key else []),
    ]
