"""The admin listener: pages about the server, on an address of their own.

Its owner waits for nobody, and has a selector for everything that happens. So each client has a
socket that does not block, one request, a bound on what it sends, and a deadline for it all.
"""

from __future__ import annotations

import math
import selectors
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from fastserve._headers import ResponseHead
from fastserve._parser import RequestParser
from fastserve.log import logger

__all__ = ["AdminListener", "Page"]

# At once; the next one has the place of the one that has been there longest.
MOST_CLIENTS = 32
# Seconds, from its arrival to the end.
CLIENT_TIME = 5.0
# Bytes, of the request and of what comes behind it.
MOST_RECEIVED = 64 * 1024
# Seconds without accepting, if the system lets us have no connection.
PAUSE = 1.0


class Page(NamedTuple):
    """An answer. The body ends with a line break."""

    body: str | bytes
    status: int = 200
    media_type: str = "text/plain; charset=utf-8"


class AdminListener:
    """Answers GET and HEAD for `pages`, by their paths, one request on each connection.

    `selector`: the owner's, who calls what is registered there when the descriptor is ready,
    and `turn()` from time to time, when it is `due` at the latest.

    Resource handling: `close()` ends the connections; the listening sockets are their owner's.
    Error handling: what a client does is nobody's trouble; a page that raises is a 500.
    """

    def __init__(
        self, selector: selectors.BaseSelector, pages: Mapping[str, Callable[[], Page]]
    ) -> None:
        self._selector = selector
        self._pages = pages
        self._listening: list[socket.socket] = []
        self._paused_until = 0.0  # 0: accepting
        self._clients: list[_Client] = []  # the first one has been there longest

    def listen(self, listening: Iterable[socket.socket]) -> None:
        self._listening = list(listening)
        self._watch()

    def stop_listening(self) -> None:
        if not self._paused_until:
            for each in self._listening:
                self._selector.unregister(each)
        self._listening = []

    def close(self) -> None:
        self.stop_listening()
        for client in list(self._clients):
            self._end(client)

    @property
    def due(self) -> float:
        """On time.monotonic()'s clock."""
        ends = self._clients[0].deadline if self._clients else math.inf
        return min(ends, self._paused_until or math.inf)

    def turn(self) -> None:
        now = time.monotonic()
        while self._clients and self._clients[0].deadline <= now:
            self._end(self._clients[0])
        if self._paused_until and self._paused_until <= now:
            self._paused_until = 0.0
            self._watch()

    def _watch(self) -> None:
        for each in self._listening:
            self._selector.register(
                each, selectors.EVENT_READ, lambda listening=each: self._accept(listening)
            )

    def _accept(self, listening: socket.socket) -> None:
        try:
            accepted, _ = listening.accept()
        except (BlockingIOError, ConnectionError):
            return
        except OSError as error:
            # It stays in the queue, and the listener readable.
            logger.error("admin: no connection can be accepted: %s", error.strerror)
            for each in self._listening:
                self._selector.unregister(each)
            self._paused_until = time.monotonic() + PAUSE
            return
        accepted.setblocking(False)
        if len(self._clients) == MOST_CLIENTS:
            self._end(self._clients[0])
        client = _Client(accepted, self._respond)
        self._clients.append(client)
        self._selector.register(accepted, selectors.EVENT_READ, lambda: self._ready(client))

    def _ready(self, client: _Client) -> None:
        if client not in self._clients:
            return  # ended by what came before it in the same turn
        try:
            goes_on = client.ready()
        except BlockingIOError:
            goes_on = True
        except OSError:
            goes_on = False
        if not goes_on:
            self._end(client)
        else:
            events = selectors.EVENT_WRITE if client.unsent else selectors.EVENT_READ
            self._selector.modify(client.socket, events, lambda: self._ready(client))

    def _end(self, client: _Client) -> None:
        self._clients.remove(client)
        self._selector.unregister(client.socket)
        client.socket.close()

    def _respond(self, method: str, path: str) -> Page:
        if path not in self._pages:
            return Page(f"There are {', '.join(self._pages)}.\n", 404)
        if method not in ("GET", "HEAD"):
            return Page("Only GET and HEAD.\n", 405)
        try:
            return self._pages[path]()
        except Exception:
            logger.exception("admin: %s", path)
            return Page("Internal Server Error\n", 500)


class _Client:
    """One connection, its request and its answer."""

    def __init__(self, accepted: socket.socket, respond: Callable[[str, str], Page]) -> None:
        self.socket = accepted
        self.deadline = time.monotonic() + CLIENT_TIME
        self.unsent = b""
        self._respond = respond
        self._parser = RequestParser()
        self._answered = False
        self._received = 0

    def ready(self) -> bool:
        """Go on; whether there is more to do. Raises OSError."""
        return self._send() if self.unsent else self._receive()

    def _receive(self) -> bool:
        data = self.socket.recv(4096)
        self._received += len(data)
        if not data or self._received > MOST_RECEIVED:
            return False
        if self._answered:
            return True  # until the client has closed as well: else a reset could be first
        for event in self._parser.feed(data):
            if event[0] == "head":
                method, path = event[1]["method"], event[1]["path"]
                return self._answer(self._respond(method, path), has_body=method != "HEAD")
            if event[0] == "invalid":
                return self._answer(Page(f"{event[2]}\n", event[1]), has_body=True)
        return True

    def _answer(self, page: Page, *, has_body: bool) -> bool:
        self._answered = True
        body = page.body if isinstance(page.body, bytes) else page.body.encode()
        head = ResponseHead()
        fields = [
            (b"content-type", page.media_type.encode()),
            (b"content-length", b"%d" % len(body)),
            (b"cache-control", b"no-store"),
        ]
        if page.status == 405:
            fields.append((b"allow", b"GET, HEAD"))
        head.begin(page.status, fields)
        self.unsent = head.render() + b"connection: close\r\n\r\n" + (body if has_body else b"")
        return self._send()

    def _send(self) -> bool:
        sent = self.socket.send(self.unsent)
        self.unsent = self.unsent[sent:]
        if not self.unsent:
            self.socket.shutdown(socket.SHUT_WR)
        return True
