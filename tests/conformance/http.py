"""R16 to R46: HTTP."""

from __future__ import annotations

from typing import Any

from conformance import http2
from conformance.checks import check, expect
from conformance.client import Failed, NotApplicable
from conformance.core import expect_no_report, sent_to_nobody
from conformance.events import (
    FAIL,
    GATE,
    OK,
    RECEIVE,
    Step,
    body,
    extension,
    length,
    part,
    start,
    version_of,
)
from conformance.server import Play, Target

MOMENT = 0.3  # seconds in which something that is wrong would come


def scope_of(target: Target, variant: str = "plain", /, **request: Any) -> dict[str, Any]:
    return target.running(variant).play(*OK, **request).scope


def expect_key(scope: dict[str, Any], key: str, value: Any) -> None:
    expect(key in scope, f"no {key}")
    expect(scope[key] == value and type(scope[key]) is type(value), f"{key} is {scope[key]!r}")


# The scope


@check("R16")
def streams_are_told_apart(target: Target) -> None:
    client = http2.Client(target.server.connect())
    slow = client.ask(target.server, start(200), GATE, body(b"slow"))
    quick = client.ask(target.server, start(200), body(b"quick"))
    expect(client.body(quick.stream) == b"quick", "the body of another stream")
    slow.open_gate()
    expect(client.body(slow.stream) == b"slow", "the body of another stream")


@check("R17")
def cookies_are_not_joined(target: Target) -> None:
    cookies = [(b"set-cookie", b"a=1"), (b"set-cookie", b"b=2")]
    play = target.server.play(
        start(200, length(0), *cookies), body(), fields=["Cookie: a=1", "Cookie: b=2"]
    )
    pairs = play.scope["headers"]
    expect(all(len(pair) == 2 for pair in pairs), f"headers are {pairs!r}")
    seen = [value for name, value in pairs if name.lower() == b"cookie"]
    expect(seen == [b"a=1", b"b=2"], f"cookies are {seen!r}")
    answered = play.response().values(b"set-cookie")
    expect(answered == [b"a=1", b"b=2"], f"Set-Cookie is {answered!r}")


@check("R18")
def type_is_http(target: Target) -> None:
    expect_key(scope_of(target), "type", "http")


@check("R19")
def http_version(target: Target) -> None:
    for version in ("1.1", "1.0"):
        expect_key(scope_of(target, version=version), "http_version", version)


@check("R20")
def method(target: Target) -> str:
    expect_key(scope_of(target, method="DELETE"), "method", "DELETE")
    play = target.server.play(*OK, method="get")
    response = play.response()
    if play.notes("called"):
        # ASGI says upper-cased; to RFC 9110 section 9.1 the two are different methods.
        expect(play.scope["method"] in ("get", "GET"), f"get is {play.scope['method']!r}")
        return f"the method get is {play.scope['method']}"
    expect(400 <= response.status <= 501, f"get is answered with {response.status}")
    return f"get is refused with {response.status}"


@check("R21")
def scheme(target: Target) -> None:
    expect_key(scope_of(target), "scheme", "http")


@check("R21")
def scheme_with_tls(target: Target) -> None:
    expect_key(scope_of(target, "tls"), "scheme", "https")


@check("R22")
def path(target: Target) -> str:
    scope = scope_of(target, target="/caf%C3%A9%20%2F%3f/x?y=/z")
    expect_key(scope, "path", "/café /?/x")
    play = target.server.play(*OK, target="/%FF%C3")
    status = play.response().status
    expect(status < 500, f"a path that is no UTF-8 is answered with {status}")
    if play.notes("called"):
        decoded = play.scope["path"]
        surrogates = any("\ud800" <= letter <= "\udfff" for letter in decoded)
        expect(not surrogates, f"a path that is no UTF-8 is {decoded!r}")
        return f"one that is no UTF-8: {decoded!a}"
    return f"one that is no UTF-8: {status}"


RAW = "/caf%C3%a9/%2e%2E/a%20b;c"


@check("R23")
def raw_path(target: Target) -> None:
    scope = scope_of(target, target=f"{RAW}?query")
    if scope.get("raw_path") is None:
        raise NotApplicable("the scope has no raw_path")
    expect_key(scope, "raw_path", RAW.encode())


@check("R23")
def raw_path_below_a_root(target: Target) -> None:
    scope = scope_of(target, "root", target="/base/x%20y")
    if scope.get("raw_path") is None:
        raise NotApplicable("the scope has no raw_path")
    expect_key(scope, "raw_path", b"/base/x%20y")


@check("R24")
def query_string(target: Target) -> None:
    expect_key(scope_of(target, target="/x?a=%C3%A9&b=+?/"), "query_string", b"a=%C3%A9&b=+?/")
    expect_key(scope_of(target, target="/x"), "query_string", b"")


@check("R25")
def root_path(target: Target) -> str:
    expect(scope_of(target).get("root_path", "") == "", "a root path that nobody gave")
    scope = scope_of(target, "root", target="/base/x")
    expect_key(scope, "root_path", "/base")
    expect(scope["path"].startswith("/base/"), f"path is {scope['path']!r}, without it")
    return f"/base/x: path {scope['path']!r}"


@check("R26")
def order_of_headers(target: Target) -> None:
    pairs = scope_of(target, fields=["X-A: 1", "X-B: 2", "X-A: 3", "X-A: 1"])["headers"]
    values = [value for name, value in pairs if name.lower() == b"x-a"]
    expect(values == [b"1", b"3", b"1"], f"three values became {values!r}")


@check("R27")
def header_names_are_lower_case(target: Target) -> None:
    for name, _ in scope_of(target, fields=["X-CamelCase: 1"])["headers"]:
        expect(type(name) is bytes and name == name.lower(), f"a name is {name!r}")


@check("R28")
def authority_becomes_host(target: Target) -> None:
    """One that contradicts a host may be refused (RFC 9113 section 8.3.1)."""
    for fields, what in (([], "no host"), ([("host", "other.test")], "another host")):
        client = http2.Client(target.server.connect())
        play = client.ask(target.server, *OK, authority="first.test", fields=fields)
        if client.refuses(play.stream):
            expect(fields, "a request without host is refused")
            continue
        headers = play.scope["headers"]
        expect(not [n for n, _ in headers if n.startswith(b":")], f"pseudo fields in {headers!r}")
        hosts = [value for name, value in headers if name == b"host"]
        expect(hosts == [b"first.test"], f":authority first.test and {what}: host is {hosts!r}")
        if not fields:
            expect(
                headers[0][0] == b"host", f"host is not the first of {[n for n, _ in headers]!r}"
            )


def expect_client(play: Play) -> None:
    client = play.scope.get("client")
    expected = list(play.connection.socket.getsockname()[:2])
    expect(client is not None and list(client) == expected, f"client is {client!r}")


def expect_server(play: Play) -> None:
    server = play.scope.get("server")
    expected = list(play.connection.socket.getpeername()[:2])
    expect(server is not None and list(server) == expected, f"server is {server!r}")


@check("R29")
def client(target: Target) -> None:
    expect_client(target.server.play(*OK))


@check("R29")
def client_on_a_unix_socket(target: Target) -> None:
    client = scope_of(target, "unix").get("client")
    fits = client is None or (isinstance(client[0], str) and type(client[1]) is int)
    expect(fits, f"client on a unix socket is {client!r}")


@check("R30")
def server_address(target: Target) -> None:
    expect_server(target.server.play(*OK))


@check("R30")
def server_on_a_unix_socket(target: Target) -> None:
    server = target.running("unix")
    told = server.play(*OK).scope.get("server")
    expected = [server.address, None]
    shown = repr(told).replace(str(server.address), "PATH")
    expect(told is not None and list(told) == expected, f"server on a unix socket is {shown}")


@check("R31")
def state(target: Target) -> None:
    expect_state(scope_of(target))


def expect_state(scope: dict[str, Any]) -> None:
    if "state" not in scope:
        raise NotApplicable("the scope has no state")
    given = scope["state"].get("given")
    expect(given == "at startup", f"state is {scope['state']!r}")


# The request's body


@check("R32")
def chunks_are_decoded(target: Target) -> None:
    chunks = b"5;name=value\r\nhello\r\n6\r\n world\r\n0\r\nX-Sum: 1\r\n\r\n"
    play = target.server.play(
        ("body",), *OK, method="POST", fields=["Transfer-Encoding: chunked"], then=chunks
    )
    seen = play.wait("body")["body"]
    expect(seen == b"hello world", f"the body is {seen!r}")


@check("R34")
def a_request_without_a_body_has_one_event(target: Target) -> None:
    event = target.server.play(RECEIVE, *OK).event()
    plain = {"body": b"", "more_body": False, **event}
    expect(event["type"] == "http.request", f"received {event!r}")
    expect(plain["body"] == b"" and plain["more_body"] is False, f"received {event!r}")


@check("R34")
def a_body_arrives_whole(target: Target) -> None:
    data = bytes(range(256)) * 1000
    note = target.server.play(("body",), *OK, method="POST", body=data).wait("body")
    expect(note["body"] == data, f"{len(note['body'])} bytes of {len(data)}")


# The response


@check("R33")
def a_body_of_unknown_length(target: Target) -> str:
    steps = [start(200), part(b"one"), body(b"two")]
    response = target.server.play(*steps).response()
    expect(response.complete and response.body == b"onetwo", f"the body is {response.body!r}")
    old = target.server.play(*steps, version="1.0").response()
    expect(not old.values(b"transfer-encoding"), "a response to HTTP/1.0 is chunked")
    expect(old.body == b"onetwo", f"the body in HTTP/1.0 is {old.body!r}")
    return response.framing


@check("R35")
def the_start_may_still_be_replaced(target: Target) -> str:
    play = target.server.play(start(200, length(0)), FAIL)
    try:
        response = play.response()
    except Failed:
        return "the connection is closed"
    whole = response.status == 200 and response.complete and not play.connection.ends()
    expect(not whole, "a failed call is answered with 200 on a connection that lives on")
    return f"{response.status}"


@check("R36")
def transfer_encoding_of_the_application(target: Target) -> None:
    codings = ((b"transfer-encoding", b"chunked"), (b"Transfer-Encoding", b"gzip"))
    for coding in codings:
        for fields in ([length(5), coding], [coding, length(5)], [coding]):
            response = target.server.play(start(200, *fields), body(b"hello")).response()
            seen = response.values(b"transfer-encoding")
            both = seen and response.values(b"content-length")
            expect(not both, f"Content-Length and Transfer-Encoding {seen!r} together")
            expect(length(5) not in fields or not seen, f"Transfer-Encoding {seen!r} is honoured")
            expect(b"gzip" not in b"".join(seen), f"Transfer-Encoding {seen!r} is honoured")
            expect(response.body == b"hello", f"the body is {response.body!r}")


@check("R37")
def headers_may_be_missing(target: Target) -> None:
    play = target.server.play(("send", {"type": "http.response.start", "status": 201}), body(b"ok"))
    response = play.response()
    expect(not play.notes("refused"), "send() raises when headers are missing")
    expect((response.status, response.body) == (201, b"ok"), f"the answer is {response.status}")


@check("R38")
def response_headers_keep_their_order(target: Target) -> None:
    fields = [(b"x-b", b"1"), (b"x-a", b"2"), (b"x-b", b"3"), (b"x-c", b"4")]
    response = target.server.play(start(200, length(0), *fields), body()).response()
    seen = [pair for pair in response.fields if pair in fields]
    expect(seen == fields, f"they became {seen!r}")


FORBIDDEN = [
    (b":status", b"500"), (b"x-a", b"1\r\nx-evil: 2"), (b"x-a", b"1\nx-evil: 2"),
    (b"x-a", b"1\x002"), (b"x-a: 1\r\nx-evil", b"2"),
]  # fmt: skip


@check("R38")
def no_header_becomes_two(target: Target) -> None:
    for name, value in FORBIDDEN:
        play = target.server.play(start(200, length(0), (name, value)), body())
        play.ended()
        raw = play.connection.within(MOMENT)
        for sign in (b"x-evil", b":status", b"\x00"):
            expect(sign not in raw.lower(), f"{name!r}: {value!r} is sent")


@check("R39")
def trailers_complete_the_response(target: Target) -> None:
    trailers = {
        "type": "http.response.trailers",
        "headers": [(b"x-sum", b"1")],
        "more_trailers": False,
    }
    play = target.server.play(
        start(200, (b"trailer", b"x-sum"), trailers=True), body(b"data"), GATE, ("send", trailers),
        fields=["TE: trailers"],
    )  # fmt: skip
    if not extension(play.scope, "http.response.trailers"):
        raise NotApplicable("trailers are not offered")
    play.wait("at the gate")
    before = play.connection.within(MOMENT)
    expect(b"0\r\n\r\n" not in before, "the response ends before the trailers")
    play.open_gate()
    response = play.response()
    expect(response.complete, "the response never ends")
    expect(response.trailers == [(b"x-sum", b"1")], f"trailers are {response.trailers!r}")


@check("R40")
def a_part_is_sent_at_once(target: Target) -> None:
    play = target.server.play(start(200), part(b"first"), GATE, body(b"last"))
    play.wait("at the gate")
    seen = play.connection.until(b"first")
    expect(seen is not None, "the first part is kept until more comes")
    play.open_gate()
    expect(play.connection.until(b"last") is not None, "the last part does not come")


@check("R41")
def an_empty_last_event_completes(target: Target) -> None:
    play = target.server.play(start(200), ("send", {"type": "http.response.body"}), GATE)
    response = play.response()
    expect(response.complete and response.body == b"", "the response does not end")


@check("R42")
def messages_after_the_end_are_ignored(target: Target) -> None:
    late = [body(b"late"), start(500), body(b"later", more_body=True)]
    play = target.server.play(start(200, length(2)), body(b"ok"), *late)
    play.response()
    play.ended()
    errors = [note["error"] for note in play.notes("refused")]
    expect(not errors, f"send() raises {', '.join(sorted(set(errors)))}")
    rest = play.connection.within(MOMENT)
    expect(not rest, f"they reach the client: {rest[:30]!r}")


@check("R43")
def send_to_nobody_raises(target: Target) -> str:
    claim = version_of(scope_of(target))
    if claim < (2, 4):
        raise NotApplicable(f"the scope says {claim[0]}.{claim[1]}, and this came with 2.4")
    note = sent_to_nobody(target)
    expect(note["what"] == "refused", "send() raises nothing")
    expect("OSError" in note["bases"], f"send() raises {note['error']}")
    return str(note["error"])


@check("R44")
def its_exception_is_no_error(target: Target) -> str:
    said = len(target.server.log())
    sending = ("send_often", 400, 65536)
    play = target.server.play(start(200), sending, ("send_or_raise", part(b"x")[1]), GATE)
    play.wait("sending", times=2)
    play.connection.reset()
    if play.wait("returned", "raised", "at the gate")["what"] != "raised":
        raise NotApplicable("send() raises nothing to a client that is gone")
    expect_no_report(target, said)
    return "it is not logged"


@check("R45")
def disconnect_after_the_response(target: Target) -> None:
    play = target.server.play(RECEIVE, *OK, ("receive", 3))
    play.response()
    for times in (2, 3, 4):
        event = play.event(times)
        expect(event["type"] == "http.disconnect", f"received {event!r}")


@check("R45")
def disconnect_after_the_close(target: Target) -> None:
    play = target.server.play(RECEIVE, ("receive", 3))
    play.wait("received")
    play.connection.close()
    for times in (2, 3, 4):
        event = play.event(times)
        expect(event["type"] == "http.disconnect", f"received {event!r}")


EARLY: dict[str, list[Step]] = {
    "without a word": [],
    "after the start": [start(200, length(5))],
    "in the body": [start(200), part(b"some")],
}


@check("R46")
def a_call_that_returns_too_early(target: Target) -> None:
    for what, steps in EARLY.items():
        play = target.server.play(*steps)
        try:
            response = play.response()
        except Failed:
            expect(play.connection.fate in ("closed", "reset"), f"{what}: {play.connection.fate}")
            expect(steps, f"{what}: no response")
            continue
        if steps:
            expect(
                response.status >= 500 or not response.complete or response.framing == "close",
                f"{what}: a whole 200",
            )
        else:
            expect(response.status == 500, f"{what}: {response.status}")
        expect(play.connection.ends(), f"{what}: the connection stays open")
