"""R83 to R91: what a server may offer in the scope's extensions."""

from __future__ import annotations

import ssl
from typing import Any

from conformance.checks import check, expect
from conformance.client import NotApplicable
from conformance.events import GATE, OK, RECEIVE, Step, body, extension, length, start
from conformance.server import CERTIFICATES, Play, Target

FILE = CERTIFICATES / "server.pem"


def offered(play: Play, name: str) -> None:
    if not extension(play.scope, name):
        raise NotApplicable("it is not offered")


@check("R83")
def a_refusal_with_a_response(target: Target) -> None:
    kind = "websocket.http.response"
    play = target.server.websocket(
        RECEIVE,
        ("send", {"type": f"{kind}.start", "status": 418, "headers": [(b"x-a", b"1")]}),
        ("send", {"type": f"{kind}.body", "body": b"\xff tea", "more_body": True}),
        ("send", {"type": f"{kind}.body", "body": b"pot"}),
        RECEIVE,
    )
    offered(play, kind)
    response = play.response()
    expect(
        response.status == 418 and response.values(b"x-a") == [b"1"],
        f"answered with {response.status}",
    )
    expect(response.body == b"\xff teapot", f"the body is {response.body!r}")
    expect(play.event(2)["type"] == "websocket.disconnect", f"received {play.event(2)!r}")


@check("R84")
def push_needs_http_2(target: Target) -> None:
    play = target.server.play(*OK)
    expect(not extension(play.scope, "http.response.push"), "push is offered in HTTP/1.1")


@check("R85")
def a_file_by_its_descriptor(target: Target) -> None:
    data = FILE.read_bytes()
    play = target.server.play(
        start(200, length(50)),
        ("send_file", str(FILE), {"offset": 10, "count": 50, "more_body": True}),
    )
    offered(play, "http.response.zerocopysend")
    response = play.response()
    expect(response.body == data[10:60], f"the body is {response.body!r}")
    expect(
        play.wait("still open", "closed by the server")["what"] == "still open",
        "the server closes the descriptor",
    )


@check("R86")
def a_file_by_its_path(target: Target) -> None:
    data = FILE.read_bytes()
    event = {"type": "http.response.pathsend", "path": str(FILE)}
    play = target.server.play(start(200, length(len(data))), ("send", event))
    offered(play, "http.response.pathsend")
    expect(play.response().body == data, "another body")
    late = target.server.play(*OK, on=play.connection)
    expect(late.response().body == b"ok", "the connection is out of step")


@check("R87")
def tls_only_with_tls(target: Target) -> None:
    for play in (target.server.play(*OK), target.server.websocket()):
        expect(not extension(play.scope, "tls"), f"{play.scope['type']} without TLS has it")


@check("R88")
def what_tls_says(target: Target) -> str:
    play = target.running("tls").play(*OK)
    offered(play, "tls")
    said = play.scope["extensions"]["tls"]
    used = play.connection.socket
    assert isinstance(used, ssl.SSLSocket)
    versions = {"TLSv1.2": 0x0303, "TLSv1.3": 0x0304}
    expect(
        said.get("tls_version") == versions[str(used.version())],
        f"tls_version is {said.get('tls_version')!r}",
    )
    expect(type(said.get("cipher_suite")) is int, f"cipher_suite is {said.get('cipher_suite')!r}")
    expect("server_cert" in said, "no server_cert")
    certificate = said["server_cert"]
    if certificate is not None:
        presented = used.getpeercert(binary_form=True)
        expect(ssl.PEM_cert_to_DER_cert(certificate) == presented, "server_cert is another one")
    expect(
        not said.get("client_cert_chain"), f"client_cert_chain is {said.get('client_cert_chain')!r}"
    )
    return ", ".join(sorted(said))


@check("R89")
def early_hints(target: Target) -> None:
    hint = {"type": "http.response.early_hint", "links": [b"</a.css>; rel=preload"]}
    play = target.server.play(("send", hint), ("send", hint), GATE, *OK)
    offered(play, "http.response.early_hint")
    play.wait("at the gate")
    expect(not play.notes("refused"), "send() raises")
    play.open_gate()
    response = play.response()
    expect(response.status == 200, f"answered with {response.status}")
    hints = [(each.status, each.values(b"link")) for each in response.interim]
    expect(hints in ([], [(103, hint["links"])] * 2), f"interim responses are {hints!r}")


@check("R90")
def trailers_only_for_who_wants_them(target: Target) -> None:
    trailers = ("send", {"type": "http.response.trailers", "headers": [(b"x-sum", b"1")]})
    steps: list[Step] = [start(200, trailers=True), body(b"data"), trailers]
    for fields, expected in ((["TE: trailers"], [(b"x-sum", b"1")]), ([], [])):
        play = target.server.play(*steps, fields=fields)
        offered(play, "http.response.trailers")
        response = play.response()
        expect(
            response.complete and response.body == b"data",
            f"{fields}: the body is {response.body!r}",
        )
        expect(response.trailers == expected, f"{fields}: trailers are {response.trailers!r}")


@check("R91")
def debug_is_for_clients_of_tests(target: Target) -> None:
    offers: Any = target.server.play(*OK).scope
    expect(not extension(offers, "http.response.debug"), "it is offered")
