"""A small blocking HTTP/1.1 client: enough to see that a server answers, and answers rightly."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import NamedTuple

HOST = "127.0.0.1"


class Answer(NamedTuple):
    status: int
    body: bytes


class AnswerError(Exception):
    """The server closed early, or sent something this client does not understand."""


def connect(port: int, patience: float, alive: Callable[[], None]) -> socket.socket:
    """Connect as soon as somebody listens; `alive` raises when waiting has become pointless."""
    deadline = time.monotonic() + patience
    while True:
        try:
            return socket.create_connection((HOST, port), timeout=patience)
        except ConnectionRefusedError:
            alive()
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


class Client:
    """One keep-alive connection. Close it, or use it in a `with` block."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._received = bytearray()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._connection.close()

    def ask(self, request: bytes, answers: int = 1) -> list[Answer]:
        """Send `request`, which may be several pipelined ones, and read that many answers."""
        self._connection.sendall(request)
        return [self._read_answer() for _ in range(answers)]

    def _read_answer(self) -> Answer:
        while b"\r\n\r\n" not in self._received:
            self._receive()
        head = bytes(self._received[: self._received.index(b"\r\n\r\n")])
        del self._received[: len(head) + 4]
        status_line, *lines = head.split(b"\r\n")
        headers = dict(_split_header(line) for line in lines)
        try:
            status = int(status_line.split(b" ", 2)[1])
            if headers.get(b"transfer-encoding") == b"chunked":
                return Answer(status, self._read_chunks())
            return Answer(status, self._read(int(headers[b"content-length"])))
        except (IndexError, KeyError, ValueError):
            raise AnswerError(f"cannot read this: {head!r}") from None

    def _read_chunks(self) -> bytes:
        """A body in chunks, without extensions and trailers."""
        body = bytearray()
        while True:
            while b"\r\n" not in self._received:
                self._receive()
            line = self._read(self._received.index(b"\r\n") + 2)
            size = int(line, 16)
            body += self._read(size + 2)[:size]
            if not size:
                return bytes(body)

    def _read(self, size: int) -> bytes:
        while len(self._received) < size:
            self._receive()
        data = bytes(self._received[:size])
        del self._received[:size]
        return data

    def _receive(self) -> None:
        data = self._connection.recv(65536)
        if not data:
            raise AnswerError("the server closed the connection")
        self._received += data


def _split_header(line: bytes) -> tuple[bytes, bytes]:
    name, _, value = line.partition(b":")
    return name.strip().lower(), value.strip()
