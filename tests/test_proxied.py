"""Servers behind proxies, over real sockets: what a peer says, and what becomes of it.

What the fields may look like in detail is in test_proxy.py; here it matters who is believed,
and where it arrives: in the scope, in the access log, on a WebSocket.
"""

from __future__ import annotations

import json
import socket
import struct
import threading
from pathlib import Path
from typing import Any

import pytest
from conftest import (
    PATIENCE,
    Client,
    Running,
    Serve,
    TlsClient,
    hello,
    pem,
    read_body,
    request,
    respond,
    trusting,
)

from fastserve.server import ServerError

SPOOFS = [
    ("X-Forwarded-For: 203.0.113.9", "X-Forwarded-Proto: https"),
    ("X-Forwarded-For: 203.0.113.9", "X-Forwarded-For: 127.0.0.1", "X-Forwarded-Proto: https"),
    ("X-Forwarded-Host: evil.example", "X-Forwarded-Port: 1", "X-Forwarded-Prefix: /evil"),
    ('Forwarded: for="[2001:db8::1]:9";proto=https;host=evil.example',),
    ("X-Real-IP: 203.0.113.9", "True-Client-IP: 203.0.113.9", "X-Forwarded-Ssl: on"),
]
HANDSHAKE = (
    "Connection: upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)
EVERYTHING = "for,proto,host,port,prefix"


async def show(scope: Any, receive: Any, send: Any) -> None:
    """Answers with what the scope says of where the request comes from."""
    if scope["type"] == "lifespan":
        raise RuntimeError("none")
    facts = {key: scope[key] for key in ("type", "client", "server", "scheme", "root_path", "path")}
    facts["host"] = [v.decode() for n, v in scope["headers"] if n == b"host"]
    if scope["type"] == "websocket":
        await send(
            {"type": "websocket.accept", "headers": [(b"facts", json.dumps(facts).encode())]}
        )
        return
    facts["body"] = (await read_body(receive)).decode()
    await respond(send, json.dumps(facts).encode())


def ask(client: Client | TlsClient, *fields: str, path: str = "/x") -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(client.get(path, *fields).body)
    return facts


def accepted(client: Client) -> dict[str, Any]:
    """The same from a WebSocket's handshake."""
    head = client.read_until(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 ")
    facts: dict[str, Any] = json.loads(head.partition(b"facts: ")[2].partition(b"\r\n")[0])
    return facts


def own(client: Client, server: Running) -> dict[str, Any]:
    """What is seen of a client that no proxy speaks for."""
    return {
        "type": "http",
        "client": list(client.getsockname()),
        "server": list(server.address),
        "scheme": "http",
        "root_path": "",
        "path": "/x",
        "host": ["test"],
        "body": "",
    }


# ---------------------------------------------------------------------------- trust


@pytest.mark.parametrize(
    "options",
    [
        {"proxy_headers": "off"},
        {"forwarded_allow_ips": "10.0.0.0/8,unix", "proxy_headers": EVERYTHING},
        {"forwarded_allow_ips": "10.0.0.0/8", "proxy_headers": "forwarded,prefix"},
        {"forwarded_allow_ips": "", "proxy_headers": EVERYTHING, "forwarded_hops": 1},
        {"proxy_headers": False},
    ],
)
def test_nobody_else_is_believed(serve: Serve, options: dict[str, Any]) -> None:
    server = serve(show, **options)
    with server.connect() as client:
        for fields in SPOOFS:
            assert ask(client, *fields) == own(client, server), fields


def test_by_default_the_address_and_scheme_of_local_proxies(serve: Serve) -> None:
    server = serve(show)
    with server.connect() as client:
        # On one connection: what was said of one request says nothing of the next.
        for _ in range(2):
            facts = ask(client, *SPOOFS[0], *SPOOFS[2], *SPOOFS[3])
            assert facts == own(client, server) | {"client": ["203.0.113.9", 0], "scheme": "https"}
            assert ask(client) == own(client, server)
            facts = ask(client, "X-Forwarded-For: 6.6.6.6, 203.0.113.9, 127.0.0.1")
            assert facts == own(client, server) | {"client": ["203.0.113.9", 0]}
            assert ask(client, "X-Forwarded-For: nonsense") == own(client, server)
            assert ask(client, "X-Forwarded-For: unknown")["client"] is None


def test_every_field(serve: Serve) -> None:
    server = serve(show, proxy_headers=EVERYTHING, root_path="/own")
    with server.connect() as client:
        facts = ask(
            client,
            "X-Forwarded-For: 2001:DB8::7",
            "X-Forwarded-Proto: https",
            "X-Forwarded-Host: example.com",
            "X-Forwarded-Port: 8443",
            "X-Forwarded-Prefix: /api/",
        )
        assert facts == own(client, server) | {
            "client": ["2001:db8::7", 0],
            "scheme": "https",
            "host": ["example.com:8443"],
            "root_path": "/api",
            "path": "/api/x",
        }
        # The prefix takes the place of --root-path, which holds where none is told.
        assert ask(client)["root_path"] == "/own"
        assert ask(client, "X-Forwarded-Prefix: /")["root_path"] == ""
        facts = ask(client, "X-Forwarded-Prefix: /api", path="/api/y")
        assert (facts["root_path"], facts["path"]) == ("/api", "/api/y")
        # HTTP/1.0 has no Host to be replaced.
        client.sendall(b"GET /x HTTP/1.0\r\nX-Forwarded-Host: example.com\r\n\r\n")
        assert json.loads(client.read_response().body)["host"] == ["example.com"]


def test_forwarded(serve: Serve) -> None:
    server = serve(show, proxy_headers="forwarded,prefix", forwarded_hops=2)
    with server.connect() as client:
        facts = ask(
            client,
            'Forwarded: for=6.6.6.6, for="[2001:db8::7]:99";proto=https;host="example.com:1"',
            "Forwarded: for=10.0.0.1;proto=http;host=internal",
            "X-Forwarded-Prefix: /p",
            *SPOOFS[0],
        )
        assert facts == own(client, server) | {
            "client": ["2001:db8::7", 99],
            "scheme": "https",
            "host": ["example.com:1"],
            "root_path": "/p",
            "path": "/p/x",
        }
        # Fewer than there have to be: somebody has gone around a proxy.
        assert ask(client, "Forwarded: for=6.6.6.6;proto=https") == own(client, server)


def test_unix_sockets(serve: Serve, tmp_path: Path) -> None:
    for number, (peers, believed) in enumerate(
        [("unix", True), ("127.0.0.1,::1", False), ("*", True)]
    ):
        server = serve(show, bind=f"unix:{tmp_path}/{number}", forwarded_allow_ips=peers)
        with server.connect() as client:
            facts = ask(client, *SPOOFS[0])
            assert facts["client"] == (["203.0.113.9", 0] if believed else None), peers
            assert facts["scheme"] == ("https" if believed else "http")
            assert ask(client)["client"] is None


def test_ipv6(serve: Serve) -> None:
    try:
        server = serve(show, bind="[::1]:0", forwarded_allow_ips="::1")
    except ServerError as error:
        pytest.skip(f"no IPv6 here: {error}")
    host, port = server.address[0].strip("[]"), server.address[1]
    with socket.create_connection((host, int(port)), PATIENCE) as client:
        client.sendall(request("GET", "/x", *SPOOFS[0], "Connection: close"))
        answer = b""
        while data := client.recv(65536):
            answer += data
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["client"] == ["203.0.113.9", 0]


def test_values_of_any_length(serve: Serve) -> None:
    server = serve(show, proxy_headers=EVERYTHING, limit_request_field_bytes=2**20)
    with server.connect() as client:
        for value in ("1" * 500_000, "127.0.0.1," * 50_000, "," * 500_000, '"' * 500_000):
            assert ask(client, f"X-Forwarded-For: {value}") == own(client, server)
        facts = ask(client, *(f"X-Forwarded-For: 203.0.113.{n}" for n in range(90)))
        assert facts["client"] == ["203.0.113.89", 0]
        for name in ("Proto", "Host", "Port", "Prefix"):
            assert ask(client, f"X-Forwarded-{name}: /{'a' * 200_000}") == own(client, server)


def test_a_request_in_pieces(serve: Serve) -> None:
    server = serve(show)
    with server.connect() as client:
        data = request("POST", "/x", "X-Forwarded-For: 203.0.113.9, 127.0.0.1", body=b"abc")
        for at in range(len(data)):
            client.sendall(data[at : at + 1])
        facts = json.loads(client.read_response().body)
        assert facts["client"] == ["203.0.113.9", 0]
        assert facts["body"] == "abc"


def test_websockets(serve: Serve) -> None:
    server = serve(show, proxy_headers=EVERYTHING)
    for proto, scheme in [
        ("https", "wss"),
        ("wss", "wss"),
        ("http", "ws"),
        ("ws", "ws"),
        ("x", "ws"),
    ]:
        with server.connect() as client:
            client.sendall(
                request(
                    "GET",
                    "/x",
                    *HANDSHAKE,
                    "X-Forwarded-For: 203.0.113.9",
                    "X-Forwarded-Host: example.com",
                    f"X-Forwarded-Proto: {proto}",
                )
            )
            facts = accepted(client)
            assert facts["type"] == "websocket"
            assert facts["client"] == ["203.0.113.9", 0]
            assert facts["host"] == ["example.com"]
            assert facts["scheme"] == scheme


def test_the_access_log_has_the_client(serve: Serve, tmp_path: Path) -> None:
    log = tmp_path / "access"
    server = serve(show, access_logfile=str(log), limit_request_body=5)
    with server.connect() as client:
        ask(client, *SPOOFS[0])
        ask(client)
        ask(client, "X-Forwarded-For: unknown")
        client.sendall(request("POST", "/x", *SPOOFS[0], body=b"too long"))
        assert client.read_response().status == 413
    server.stop()
    clients = [line.split()[0] for line in log.read_text().splitlines()]
    assert clients == ["203.0.113.9", "127.0.0.1", "-", "203.0.113.9"]


# ------------------------------------------------------------------ the PROXY protocol

V1 = b"PROXY TCP4 203.0.113.9 198.51.100.7 1234 443\r\n"
V1_V6 = b"PROXY TCP6 2001:db8::9 2001:db8::7 1234 443\r\n"
SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
V2 = (
    SIGNATURE + b"\x21\x11" + struct.pack(">H", 12 + 7)
    + socket.inet_aton("203.0.113.9") + socket.inet_aton("198.51.100.7")
    + struct.pack(">HH", 1234, 443) + b"\x04\x00\x04skip"
)  # fmt: skip
LOCAL = SIGNATURE + b"\x20\x00\x00\x00"
UNKNOWN = b"PROXY UNKNOWN\r\n"
TOLD = {"client": ["203.0.113.9", 1234], "server": ["198.51.100.7", 443]}
GET = request("GET", "/x", *SPOOFS[0])


def facts_of(client: Client) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(client.read_response().body)
    return facts


@pytest.mark.parametrize("header", [V1, V2], ids=["v1", "v2"])
def test_proxy_protocol(serve: Serve, header: bytes) -> None:
    server = serve(show, proxy_protocol=True)
    with server.connect() as client:
        # The balancer is trusted, whom it speaks for is not.
        client.sendall(header + GET + GET)
        expected = own(client, server) | TOLD
        assert facts_of(client) == expected
        assert facts_of(client) == expected
        assert ask(client) == expected
    with server.connect() as client:
        client.sendall(V1_V6 + GET)
        assert facts_of(client)["client"] == ["2001:db8::9", 1234]


@pytest.mark.parametrize("header", [V1, V2], ids=["v1", "v2"])
def test_proxy_protocol_in_two_pieces(serve: Serve, header: bytes) -> None:
    """Cut everywhere; each piece arrives alone, since the answers to what was sent before are
    awaited in between."""
    server = serve(show, proxy_protocol=True)
    data = header + GET
    for cut in range(1, len(header) + 1):
        with server.connect() as client, server.connect() as other:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client.sendall(data[:cut])
            other.sendall(V1 + GET)
            facts_of(other)
            client.sendall(data[cut:])
            assert facts_of(client)["client"] == TOLD["client"], cut
    with server.connect() as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(len(data)):
            client.sendall(data[at : at + 1])
        assert facts_of(client)["client"] == TOLD["client"]


def test_who_speaks_behind_a_balancer_is_asked_by_his_own_address(serve: Serve) -> None:
    server = serve(show, proxy_protocol=True, forwarded_allow_ips="127.0.0.1,203.0.113.9")
    with server.connect() as client:
        client.sendall(V1 + request("GET", "/x", "X-Forwarded-For: 192.0.2.5", *SPOOFS[0][1:]))
        facts = facts_of(client)
        assert facts["client"] == ["192.0.2.5", 0]
        assert facts["scheme"] == "https"


def test_a_balancer_speaks_for_itself_or_for_nobody(serve: Serve) -> None:
    server = serve(show, proxy_protocol=True)
    with server.connect() as client:  # its health check
        client.sendall(LOCAL + GET)
        assert facts_of(client)["client"] == ["203.0.113.9", 0]
        assert ask(client) == own(client, server)
    with server.connect() as client:  # nobody knows who
        client.sendall(UNKNOWN + GET)
        assert facts_of(client) == own(client, server)


def test_proxy_protocol_without_forwarded_fields(serve: Serve) -> None:
    server = serve(show, proxy_protocol=True, proxy_headers="off")
    with server.connect() as client:
        client.sendall(V1 + GET)
        assert facts_of(client) == own(client, server) | TOLD


def test_proxy_protocol_on_unix_sockets(serve: Serve, tmp_path: Path) -> None:
    server = serve(show, proxy_protocol=True, bind=f"unix:{tmp_path}/socket")
    with server.connect() as client:
        client.sendall(V1 + GET)
        assert facts_of(client)["client"] == TOLD["client"]


def test_without_the_option_a_header_is_no_request(serve: Serve) -> None:
    server = serve(show)
    for header in (V1, V2):
        with server.connect() as client:
            client.sendall(header + GET)
            assert client.read_response().status == 400
            assert client.is_closed_by_peer()


@pytest.mark.parametrize(
    "data",
    [
        GET,
        b"PROXY TCP4 203.0.113.9 198.51.100.7 1234 65536\r\n" + GET,
        b"PROXY " + b"x" * 100_000,
        SIGNATURE + b"\x31\x11\x00\x0c" + bytes(12) + GET,
        SIGNATURE + b"\x21\x11\x00\x0b" + bytes(11) + GET,
        V1[:-2] + b"\n" + GET,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
    ids=["http", "port", "giant", "version", "short", "lf", "tls"],
)
def test_anything_else_is_refused_by_closing(serve: Serve, data: bytes) -> None:
    called: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        called.append(scope["type"])
        await hello(scope, receive, send)

    server = serve(app, proxy_protocol=True, lifespan="off")
    with server.connect() as client:
        try:
            client.sendall(data)
        except ConnectionError:
            return
        assert client.is_closed_by_peer()
    assert called == []
    assert server.errors == []


def test_a_peer_that_is_not_trusted_is_refused(serve: Serve) -> None:
    server = serve(show, proxy_protocol=True, forwarded_allow_ips="10.0.0.1,unix")
    for data in (b"", V1 + GET, V2 + GET, GET):
        with server.connect() as client:
            try:
                client.sendall(data)
            except ConnectionError:
                continue
            assert client.is_closed_by_peer()
    assert server.errors == []


def test_a_header_that_does_not_come_or_end(serve: Serve) -> None:
    server = serve(show, proxy_protocol=True, header_timeout=0.3)
    clients = []
    for data in (b"", V1[:-1], V2[:20], SIGNATURE + b"\x21\x11\xff\xff" + bytes(100)):
        client = server.connect()
        client.sendall(data)
        clients.append(client)
    for client in clients:
        assert client.is_closed_by_peer()
        client.close()
    # From there on the next protocol counts: a head of its own may take its own time.
    with server.connect() as client:
        client.sendall(V1 + GET[:10])
        assert client.read_response().status == 408


def test_a_slow_header_is_cut(serve: Serve) -> None:
    """The time is for all of it, however it trickles."""
    server = serve(show, proxy_protocol=True, header_timeout=0.5)
    ended = threading.Event()

    def trickle(client: Client) -> None:
        for byte in SIGNATURE + b"\x21\x11\xff\xff" + bytes(65535):
            try:
                client.send(bytes([byte]))
            except OSError:
                return
            if ended.wait(0.05):
                return

    with server.connect() as client:
        thread = threading.Thread(target=trickle, args=(client,))
        thread.start()
        try:
            assert client.is_closed_by_peer()
        finally:
            ended.set()
            thread.join()


def test_a_connection_that_ends_within_the_header(serve: Serve) -> None:
    server = serve(show, proxy_protocol=True)
    for data in (b"", V1[:10], V2[:20], V1):
        with server.connect() as client:
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            assert client.is_closed_by_peer()
    with server.connect() as client:  # a half-close behind a request is answered
        client.sendall(V1 + GET)
        client.shutdown(socket.SHUT_WR)
        assert facts_of(client)["client"] == TOLD["client"]
    assert server.errors == []


def test_a_giant_header_is_passed_over(serve: Serve) -> None:
    server = serve(show, proxy_protocol=True)
    addresses = V2[16:28]
    header = SIGNATURE + b"\x21\x11\xff\xff" + addresses + b"\xff" * (65535 - 12)
    with server.connect() as client:
        client.sendall(header + GET)
        assert facts_of(client)["client"] == TOLD["client"]


def test_a_waiting_balancer_does_not_hold_up_the_end(serve: Serve) -> None:
    server = serve(show, proxy_protocol=True, graceful_timeout=60)
    with server.connect() as client, server.connect() as other:
        client.sendall(V1[:10])
        other.sendall(V1 + GET)
        facts_of(other)
        server.ask_to_stop()
        assert client.is_closed_by_peer()
        assert other.is_closed_by_peer()
    server.stop(PATIENCE)


def test_bodies_and_pipelines_behind_the_header(serve: Serve) -> None:
    server = serve(show, proxy_protocol=True)
    body = b"b" * 60_000
    with server.connect() as client:
        client.sendall(V2 + b"".join(request("POST", "/x", body=body) for _ in range(20)))
        for _ in range(20):
            assert len(facts_of(client)["body"]) == len(body)


def test_a_websocket_behind_the_header(serve: Serve) -> None:
    server = serve(show, proxy_protocol=True)
    with server.connect() as client:
        client.sendall(V2 + request("GET", "/x", *HANDSHAKE) + b"\x88\x82\0\0\0\0\x03\xe8")
        assert accepted(client)["client"] == TOLD["client"]
        assert client.read_exactly(4) == b"\x88\x02\x03\xe8"
        assert client.is_closed_by_peer()


def test_the_header_comes_before_the_handshake(serve: Serve) -> None:
    """And what it says of the peer holds for what is above TLS, that nobody knows him too."""
    server = serve(
        show,
        proxy_protocol=True,
        proxy_headers=EVERYTHING,
        certfile=pem("server.pem"),
        keyfile=pem("server.key"),
    )
    fields = ("X-Forwarded-For: 192.0.2.5", "X-Forwarded-Port: 443")
    for header, client in [
        (V1, TOLD["client"]),
        (V2, TOLD["client"]),
        (UNKNOWN, None),
        (LOCAL, ["192.0.2.5", 0]),
    ]:
        with server.connect() as connection:
            own_name = list(connection.getsockname())
            connection.sendall(header)
            with trusting().wrap_socket(connection, server_hostname="localhost") as secure:
                facts = ask(secure, *fields)
        assert facts["client"] == (own_name if client is None else client), header
        assert facts["scheme"] == "https"
        assert facts["host"] == ["test"]  # 443 is the port of https
