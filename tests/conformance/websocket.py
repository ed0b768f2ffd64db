"""R47 to R70: WebSocket."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from conformance.checks import check, expect
from conformance.client import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    Failed,
    NotApplicable,
    frame_bytes,
    handshake_fields,
    request,
)
from conformance.core import expect_no_report
from conformance.events import FAIL, GATE, OK, RECEIVE, accept, close, text, version_of
from conformance.http import (
    MOMENT,
    RAW,
    expect_client,
    expect_key,
    expect_server,
    expect_state,
)
from conformance.server import Play, Target

CONNECT = RECEIVE
ACCEPTED = [CONNECT, accept()]
PING_SECONDS = 25.0  # most servers' default is 20


def scope_of(target: Target, variant: str = "plain", /, **request: Any) -> dict[str, Any]:
    return target.running(variant).websocket(*ACCEPTED, **request).scope


def needs(play: Play, version: tuple[int, int]) -> None:
    claim = version_of(play.scope)
    if claim < version:
        raise NotApplicable(
            f"the scope says {claim[0]}.{claim[1]}, and this came with {version[0]}.{version[1]}"
        )


@check("R47")
def a_ping_is_answered(target: Target) -> None:
    play = target.server.accepted(RECEIVE)
    play.connection.send_frame(PING, b"are you there?")
    frame = play.connection.message()
    expect((frame.opcode, frame.payload) == (PONG, b"are you there?"), f"answered by {frame!r}")


@check("R47")
def the_server_pings(target: Target) -> Generator[None, None, str]:
    connection = target.server.lasting()
    connection.send(request("GET", "/", *handshake_fields()))
    expect(connection.response().status == 101, "the handshake fails")
    yield
    connection.within(PING_SECONDS)
    frame = connection.frame()
    connection.close()
    if frame is None or frame.opcode != PING:
        raise Failed(f"no ping within {PING_SECONDS:g} s")
    return "it pings"


@check("R48")
def fragments_are_one_message(target: Target) -> None:
    play = target.server.accepted(RECEIVE, RECEIVE)
    client = play.connection
    client.send_frame(TEXT, b"one \xc3", final=False)
    client.send_frame(PING)
    client.send_frame(CONTINUATION, b"\xa9", final=False)
    client.send_frame(CONTINUATION, b" two")
    expect(play.event(2).get("text") == "one é two", f"received {play.event(2)!r}")
    client.send_frame(BINARY, b"1", final=False)
    client.send_frame(CONTINUATION, b"2")
    expect(play.event(3).get("bytes") == b"12", f"received {play.event(3)!r}")


@check("R49")
def type_is_websocket(target: Target) -> None:
    expect_key(scope_of(target), "type", "websocket")


@check("R50")
def an_application_that_fails(target: Target) -> None:
    before = target.server.websocket(CONNECT, FAIL).response()
    expect(before.status == 500, f"before it accepts: {before.status}")
    play = target.server.accepted(FAIL)
    code, _ = play.connection.close_frame()
    expect(code == 1011, f"afterwards: closed with {code}")


@check("R50")
def an_application_that_returns(target: Target) -> None:
    early = target.server.websocket(CONNECT)
    status = early.response().status
    expect(status >= 400, f"before it accepts: {status}")
    play = target.server.accepted()
    try:
        play.connection.close_frame()
    except Failed:
        expect(play.connection.fate in ("closed", "reset"), "the connection stays open")


@check("R50")
def a_client_that_leaves(target: Target) -> None:
    play = target.server.accepted(("disconnected",))
    play.connection.reset()
    play.wait("disconnected")


@check("R51")
def versions(target: Target) -> str:
    scope = scope_of(target)
    expect_key(scope, "http_version", "1.1")
    claim = scope["asgi"].get("spec_version", "2.0")
    expect(claim in ("2.0", "2.1", "2.2", "2.3", "2.4", "2.5"), f"spec_version is {claim!r}")
    return f"spec_version {claim}"


@check("R52")
def scheme(target: Target) -> None:
    expect_key(scope_of(target), "scheme", "ws")


@check("R52")
def scheme_with_tls(target: Target) -> None:
    expect_key(scope_of(target, "tls"), "scheme", "wss")


@check("R53")
def path_and_query(target: Target) -> None:
    scope = scope_of(target, target="/caf%C3%A9%2Fx?y=%20")
    expect_key(scope, "path", "/café/x")
    expect_key(scope, "query_string", b"y=%20")
    expect(scope.get("root_path", "") == "", f"root_path is {scope.get('root_path')!r}")


@check("R53")
def raw_path(target: Target) -> None:
    scope = scope_of(target, target=f"{RAW}?query")
    if scope.get("raw_path") is None:
        raise NotApplicable("the scope has no raw_path")
    expect_key(scope, "raw_path", RAW.encode())


@check("R53")
def root_path(target: Target) -> None:
    scope = scope_of(target, "root", target="/base/x")
    expect_key(scope, "root_path", "/base")
    expect(scope["path"].startswith("/base/"), f"path is {scope['path']!r}, without it")


@check("R54")
def headers(target: Target) -> None:
    pairs = scope_of(target, fields=["X-A: 1", "X-B: 2", "X-A: 3", "Cookie: a", "Cookie: b"])[
        "headers"
    ]
    names = [name for name, _ in pairs]
    expect(names == [name.lower() for name in names], f"names are {names!r}")
    for name, expected in ((b"x-a", [b"1", b"3"]), (b"cookie", [b"a", b"b"])):
        values = [value for key, value in pairs if key == name]
        expect(values == expected, f"{name!r} is {values!r}")


@check("R55")
def addresses(target: Target) -> None:
    play = target.server.websocket(*ACCEPTED)
    expect_client(play)
    expect_server(play)


@check("R56")
def subprotocols(target: Target) -> None:
    offer = ["Sec-WebSocket-Protocol: b, a", "Sec-WebSocket-Protocol: c"]
    expect_key(scope_of(target, fields=offer), "subprotocols", ["b", "a", "c"])
    seen = list(scope_of(target).get("subprotocols", []))
    expect(seen == [], f"none offered: {seen!r}")


@check("R57")
def state(target: Target) -> None:
    expect_state(scope_of(target))


@check("R58")
def connect_comes_within_the_handshake(target: Target) -> None:
    play = target.server.websocket(CONNECT, GATE, accept())
    play.wait("at the gate")
    expect(play.event()["type"] == "websocket.connect", f"received {play.event()!r}")
    seen = play.connection.within(MOMENT)
    expect(not seen, f"answered before it is accepted: {seen[:40]!r}")
    play.open_gate()
    status = play.response().status
    expect(status == 101, f"accepted: {status}")


@check("R59")
def no_message_before_accept(target: Target) -> None:
    play = target.server.websocket(
        CONNECT, ("receive_within", MOMENT), accept(), then=frame_bytes(TEXT, b"early")
    )
    play.ended()
    notes = play.notes("received")[1:]
    expect(not notes, f"received {notes[0].get('event') if notes else ''!r}")


@check("R60")
def accept_has_headers_and_a_subprotocol(target: Target) -> None:
    fields = [(b"x-b", b"1"), (b"x-a", b"2"), (b"x-b", b"3")]
    play = target.server.websocket(
        CONNECT, accept(subprotocol="b", headers=fields), fields=["Sec-WebSocket-Protocol: a, b"]
    )
    response = play.response()
    expect(response.status == 101, f"answered with {response.status}")
    chosen = response.values(b"sec-websocket-protocol")
    expect(chosen == [b"b"], f"the subprotocol is {chosen!r}")
    if version_of(play.scope) >= (2, 1):
        seen = [pair for pair in response.fields if pair in fields]
        expect(seen == fields, f"the headers became {seen!r}")


@check("R60")
def what_headers_of_accept_may_not_have(target: Target) -> None:
    for name in (b"sec-websocket-protocol", b":status"):
        play = target.server.websocket(CONNECT, accept(headers=[(name, b"x")]))
        play.ended()
        raw = play.connection.within(MOMENT)
        head = raw.partition(b"\r\n\r\n")[0].lower()
        expect(name + b":" not in head, f"{name.decode()} is sent")


@check("R61")
def a_message_is_text_or_bytes(target: Target) -> None:
    play = target.server.accepted(RECEIVE, RECEIVE)
    play.connection.send_frame(TEXT, b"")
    play.connection.send_frame(BINARY, b"")
    for times, key, other, value in ((2, "text", "bytes", ""), (3, "bytes", "text", b"")):
        event = play.event(times)
        fits = event.get(key) == value and type(event[key]) is type(value)
        expect(fits and event.get(other) is None, f"received {event!r}")


@check("R62")
def a_message_to_send_is_text_or_bytes(target: Target) -> None:
    taken = []
    for what, more in (("neither", {}), ("both", {"text": "a", "bytes": b"b"})):
        play = target.server.accepted(("send", {"type": "websocket.send", **more}))
        play.ended()
        if play.notes()[-2]["what"] != "refused":
            taken.append(what)
    expect(not taken, f"send() takes {' and '.join(taken)}")
    play = target.server.accepted(("send", {"type": "websocket.send", "text": None, "bytes": b"b"}))
    frame = play.connection.message()
    expect((frame.opcode, frame.payload) == (BINARY, b"b"), f"with text None: {frame!r}")


@check("R63")
def disconnect_after_the_clients_close(target: Target) -> None:
    play = target.server.accepted(RECEIVE)
    play.connection.send_close(1000)
    expect(play.event(2)["type"] == "websocket.disconnect", f"received {play.event(2)!r}")


@check("R63")
def disconnect_after_ones_own_close(target: Target) -> None:
    play = target.server.accepted(close(), RECEIVE)
    play.connection.close_frame()
    play.connection.send_close(1000)
    expect(play.event(2)["type"] == "websocket.disconnect", f"received {play.event(2)!r}")


@check("R64")
def the_code_of_a_close(target: Target) -> None:
    for sent, expected in ((4321, 4321), (1000, 1000), (None, 1005)):
        play = target.server.accepted(RECEIVE)
        play.connection.send_close(sent)
        code = play.event(2).get("code", 1005)
        expect(code == expected, f"a Close with {sent} is {code}")


@check("R64")
def the_code_of_a_loss(target: Target) -> None:
    for how in ("close", "reset"):
        play = target.server.accepted(RECEIVE)
        getattr(play.connection, how)()
        code = play.event(2).get("code")
        expect(code == 1006, f"a connection that is lost has the code {code}")


@check("R65")
def the_reason_of_a_close(target: Target) -> None:
    play = target.server.accepted(RECEIVE)
    needs(play, (2, 5))
    play.connection.send_close(1001, "Grüße")
    reason = play.event(2).get("reason")
    expect(reason == "Grüße", f"reason is {reason!r}")


@check("R66")
def receive_after_disconnect(target: Target) -> str:
    play = target.server.accepted(("receive", 3))
    play.connection.send_close(1000)
    play.wait("received", times=4)
    kinds = {note.get("error") or note["event"]["type"] for note in play.notes("received")[2:]}
    return ", ".join(sorted(kinds))


@check("R67")
def send_after_the_close(target: Target) -> str:
    play = target.server.accepted(RECEIVE, text("late"))
    needs(play, (2, 4))
    play.connection.send_close(1000)
    play.ended()
    note = play.notes()[-2]
    expect(note["what"] == "refused", "send() raises nothing")
    expect("OSError" in note["bases"], f"send() raises {note['error']}, which is no OSError")
    return str(note["error"])


@check("R67")
def its_exception_is_no_error(target: Target) -> None:
    said = len(target.server.log())
    play = target.server.accepted(RECEIVE, ("send_or_raise", text("late")[1]))
    needs(play, (2, 4))
    play.connection.send_close(1000)
    if play.ended()["what"] != "raised":
        raise NotApplicable("send() raises nothing")
    expect_no_report(target, said)


@check("R68")
def a_close_before_accept_is_403(target: Target) -> None:
    response = target.server.websocket(CONNECT, close()).response()
    expect(response.status == 403, f"answered with {response.status}")


@check("R69")
def a_close_has_code_and_reason(target: Target) -> None:
    play = target.server.accepted(close(code=4001, reason="Ende"))
    seen = play.connection.close_frame()
    expected = "Ende" if version_of(play.scope) >= (2, 3) else seen[1]
    expect(seen == (4001, expected), f"the Close has {seen!r}")
    code, _ = target.server.accepted(close()).connection.close_frame()
    expect(code == 1000, f"without a code it is {code}")


@check("R70")
def what_no_close_may_have(target: Target) -> None:
    for more in (
        {"code": 1005},
        {"code": 1006},
        {"code": 1015},
        {"code": 3000, "reason": "é" * 100},
    ):
        play = target.server.accepted(close(**more), GATE)
        play.wait("at the gate")
        frame = play.connection.frame() if play.connection.within(MOMENT) else None
        if frame is None or frame.opcode != CLOSE:
            continue
        code = int.from_bytes(frame.payload[:2]) if frame.payload else None
        expect(code not in (1005, 1006, 1015), f"a Close with {code} is sent")
        expect(len(frame.payload) <= 125, f"a Close of {len(frame.payload)} bytes is sent")
        frame.payload[2:].decode()


@check("R63")
def a_refused_handshake_leaves_the_server_well(target: Target) -> None:
    play = target.server.websocket(CONNECT, close(), RECEIVE)
    play.response()
    event = play.event(2)
    expect(event["type"] == "websocket.disconnect", f"after a refusal: {event!r}")
    expect(target.server.play(*OK).response().status == 200, "the next request fails")
