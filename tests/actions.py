"""What clients do, each in one function: asked rightly, asked wrongly, or cut off in the middle.

The server runs the application of apps/mixed.py. An action raises where the server does not do
its part, and leaves nothing open but the connection that `Peer` keeps.
"""

from __future__ import annotations

import socket
import zlib
from collections.abc import Callable

from conftest import Client, WebSocketClient, frame, handshake, request, reset


class Peer:
    """Where the server is, and the connection that is used for all that leaves it open."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.address = address
        self.client: Client | None = None

    def connect(self) -> Client:
        return Client(self.address)

    def websocket(self, target: str, *fields: str) -> WebSocketClient:
        """A WebSocket that was accepted."""
        return WebSocketClient(self.address).open(target, *fields)

    def kept(self) -> Client:
        if self.client is None:
            self.client = self.connect()
            # Else a second small write would wait for the peer's delayed acknowledgement.
            self.client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self.client

    def lose(self) -> None:
        if self.client is not None:
            self.client.close()
            self.client = None


Action = Callable[[Peer], None]


def get(path: str, *, closes: bool = False) -> Action:
    message = request("GET", path)

    def action(peer: Peer) -> None:
        client = peer.kept()
        client.sendall(message)
        client.read_response()
        if closes:
            assert client.is_closed_by_peer()
            peer.lose()

    return action


def pipelined(peer: Peer) -> None:
    client = peer.kept()
    client.sendall(20 * request("GET", "/hello"))
    for _ in range(20):
        assert client.read_response().body == b"Hello, world!"


def post(peer: Peer) -> None:
    client = peer.kept()
    for length in (1, 30_000):
        client.sendall(request("POST", "/echo", body=b"b" * length))
        assert client.read_response().body == b"b" * length


def post_in_chunks(peer: Peer) -> None:
    client = peer.kept()
    client.sendall(request("POST", "/echo", "Transfer-Encoding: chunked", "X-A: b"))
    client.sendall(b"5\r\nabcde\r\n")
    client.sendall(b"3;x=y\r\nfgh\r\n0\r\nX-Trailer: t\r\n\r\n")
    assert client.read_response().body == b"abcdefgh"


def post_unread(peer: Peer) -> None:
    client = peer.kept()
    client.sendall(request("POST", "/unread", body=b"b" * 10_000))
    assert client.read_response().body == b"no, thank you"


def expect_continue(peer: Peer) -> None:
    client = peer.kept()
    client.sendall(request("POST", "/echo", "Expect: 100-continue", "Content-Length: 3"))
    assert client.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 100")
    client.sendall(b"abc")
    assert client.read_response().body == b"abc"


def cut_response(peer: Peer) -> None:
    with peer.connect() as client:
        client.sendall(request("GET", "/fail_late"))
        client.read_until(b"begun")
        client.is_closed_by_peer()


def leave_while_waiting(peer: Peer) -> None:
    for leave in (Client.close, reset):
        client = peer.connect()
        client.sendall(request("GET", "/wait"))
        client.read_until(b"begun")
        leave(client)


def leave_a_flood(peer: Peer) -> None:
    for leave in (Client.close, reset):
        client = peer.connect()
        client.sendall(request("GET", "/flood"))
        client.read_until(b"f")
        leave(client)


def leave_a_body(peer: Peer) -> None:
    for leave in (Client.close, reset):
        client = peer.connect()
        client.sendall(request("POST", "/echo", "Content-Length: 100000") + b"b" * 1000)
        leave(client)


def leave_a_head(peer: Peer) -> None:
    for leave in (Client.close, reset):
        client = peer.connect()
        client.sendall(b"GET /hello HTTP/1.1\r\nHost: te")
        leave(client)


def leave_at_once(peer: Peer) -> None:
    for leave in (Client.close, reset):
        leave(peer.connect())


def refused(*messages: bytes) -> Action:
    def action(peer: Peer) -> None:
        for message in messages:
            with peer.connect() as client:
                client.sendall(message)
                assert 400 <= client.read_response().status < 600
                assert client.is_closed_by_peer()

    return action


DEFLATE = "Sec-WebSocket-Extensions: permessage-deflate"
BREAKS = b"\x81\x04text"  # is not masked


def socket_session(*fields: str, end: bytes = b"\x03\xe8") -> Action:
    """Messages of all sizes, plain, in fragments and compressed; then the client closes."""
    compressor = zlib.compressobj(wbits=-15)
    packed = compressor.compress(b"z" * 5000) + compressor.flush(zlib.Z_SYNC_FLUSH)

    def action(peer: Peer) -> None:
        with peer.websocket("/socket", *fields) as client:
            client.sendall(frame(0x81, b"text") + frame(0x01, b"te") + frame(0x80, b"xt"))
            client.sendall(frame(0x89, b"ping") + frame(0x82, bytes(100_000)))
            answers = 4
            if fields:
                client.sendall(frame(0xC2, packed[:-4]) + frame(0x42, packed[:9]))
                client.sendall(frame(0x80, packed[9:-4]))
                answers += 2
            for _ in range(answers):
                client.read_frame()
            client.sendall(frame(0x88, end))
            client.read_close()
            assert client.is_closed_by_peer()

    return action


def socket_breaks(peer: Peer) -> None:
    for data in (BREAKS, frame(0x81, b"\xff"), frame(0x01, bytes(1000)) + BREAKS):
        with peer.websocket("/socket", DEFLATE) as client:
            client.sendall(data)
            client.read_close()
            assert client.is_closed_by_peer()


def socket_ends(path: str) -> Action:
    """The application ends it, and the client answers, says something else or leaves."""

    def action(peer: Peer) -> None:
        for answer in (frame(0x88, b"\x03\xe8"), frame(0x81, b"late") + BREAKS, b""):
            with peer.websocket(path) as client:
                client.sendall(40 * frame(0x81, b"text"))
                client.read_close()
                client.sendall(answer)

    return action


def leave_a_socket(peer: Peer) -> None:
    parts = (b"", frame(0x82, bytes(1000))[:500], frame(0x01, bytes(1000)), frame(0x41, b"\xf2"))
    for part in parts:
        for leave in (Client.close, reset):
            client = peer.websocket("/socket", DEFLATE)
            client.sendall(part)
            leave(client)


def leave_a_socket_flood(peer: Peer) -> None:
    for leave in (Client.close, reset):
        client = peer.websocket("/socket_floods")
        client.read_frame()
        leave(client)


def leave_a_full_socket(peer: Peer) -> None:
    for leave in (Client.close, reset):
        client = peer.websocket("/socket_ignores")
        client.sendall(200 * frame(0x81, b"text"))
        client.read_close()
        leave(client)


def leave_a_handshake(peer: Peer) -> None:
    for leave in (Client.close, reset):
        client = peer.connect()
        client.sendall(handshake("/socket") + frame(0x81, b"text"))
        leave(client)


refuse_socket = refused(
    handshake("/socket_denies"),
    handshake("/socket_refuses"),
    handshake("/fail"),
    handshake("/silent"),
    handshake("/socket").replace(b"13", b"12"),
    handshake("/socket").replace(b"==", b""),
)

refuse = refused(
    b"GET / HTTP/1.1\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01",
    b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\nHost: t\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: t\r\n" + b"X: y\r\n" * 200 + b"\r\n",
    b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n",
    b"GET / HTTP/9.9\r\nHost: t\r\n\r\n",
)
refuse_chunk = refused(request("POST", "/echo", "Transfer-Encoding: chunked") + b"nonsense\r\n")

# What happens, and how often.
ACTIONS: dict[str, tuple[Action, int]] = {
    "get": (get("/hello"), 1500),
    "pipelined": (pipelined, 150),
    "big head": (get("/big_head"), 300),
    "stream": (get("/stream"), 500),
    "post": (post, 300),
    "post in chunks": (post_in_chunks, 300),
    "post unread": (post_unread, 300),
    "100-continue": (expect_continue, 300),
    "raises": (get("/fail", closes=True), 200),
    "raises late": (cut_response, 200),
    "bad head": (get("/bad_head", closes=True), 200),
    "bad message": (get("/bad_message", closes=True), 200),
    "no response": (get("/silent", closes=True), 200),
    "leaves while waiting": (leave_while_waiting, 150),
    "leaves a flood": (leave_a_flood, 450),
    "leaves a body": (leave_a_body, 1200),
    "leaves a head": (leave_a_head, 150),
    "leaves at once": (leave_at_once, 150),
    "refused": (refuse, 60),
    "refused chunk": (refuse_chunk, 200),
    "socket": (socket_session(), 450),
    "compressed socket": (socket_session(DEFLATE, end=b""), 150),
    "socket breaks": (socket_breaks, 60),
    "socket closes": (socket_ends("/socket_closes"), 60),
    "socket fails": (socket_ends("/socket_fails"), 60),
    "refused socket": (refuse_socket, 60),
    "leaves a socket": (leave_a_socket, 60),
    "leaves a flooding socket": (leave_a_socket_flood, 150),
    "leaves a full socket": (leave_a_full_socket, 300),
    "leaves a handshake": (leave_a_handshake, 150),
}
