"""H1 to H13: what HTTP/1.1 and WebSocket ask of the server beneath ASGI."""

from __future__ import annotations

import zlib
from collections.abc import Generator

from conformance.checks import check, expect
from conformance.client import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    TEXT,
    Connection,
    Failed,
    NotApplicable,
    frame_bytes,
    handshake_fields,
    request,
)
from conformance.events import GATE, OK, RECEIVE, body, length, part, start
from conformance.http import MOMENT
from conformance.server import Play, Target

HEADER_SECONDS = 12.0  # for a request head that never ends


def next_is_answered(target: Target, play: Play) -> None:
    """The connection is in step: the next request on it has its own answer."""
    try:
        response = target.server.play(*OK, on=play.connection).response()
    except (Failed, OSError) as failure:
        raise Failed(f"the next request on the connection: {failure}") from None
    expect(
        (response.status, response.body) == (200, b"ok"),
        f"the next request is answered with {response.status}",
    )


@check("H1")
def no_body_for_head(target: Target) -> None:
    play = target.server.play(start(200, length(5)), body(b"hello"), method="HEAD")
    response = play.response("HEAD")
    expect(
        response.values(b"content-length") == [b"5"],
        f"Content-Length is {response.values(b'content-length')!r}",
    )
    play.ended()
    next_is_answered(target, play)


@check("H1")
def no_body_for_204_and_304(target: Target) -> None:
    for status in (204, 304):
        play = target.server.play(start(status), body(b""))
        response = play.response()
        coding = response.values(b"transfer-encoding")
        expect(not coding, f"{status} has Transfer-Encoding {coding!r}")
        sizes = response.values(b"content-length")
        expect(status == 304 or not sizes, f"204 has Content-Length {sizes!r}")
        next_is_answered(target, play)


@check("H1")
def a_body_that_a_204_may_not_have(target: Target) -> None:
    play = target.server.play(start(204), body(b"HTTP/1.1 500 Evil\r\n\r\n"))
    play.response()
    play.ended()
    seen = play.connection.within(MOMENT)
    expect(not seen, f"behind a 204: {seen[:30]!r}")


@check("H2")
def keep_alive_in_http_1_0(target: Target) -> None:
    play = target.server.play(*OK, version="1.0", fields=["Connection: keep-alive"])
    response = play.response()
    expect(response.has_token(b"connection", b"keep-alive"), "keep-alive is not confirmed")
    second = target.server.play(*OK, version="1.0", on=play.connection)
    expect(second.response().body == b"ok", "the second request is not answered")
    expect(second.connection.ends(), "the connection stays open without being asked to")


@check("H2")
def no_chunks_in_http_1_0(target: Target) -> None:
    response = target.server.play(
        start(200), part(b"one"), body(b"two"), version="1.0", fields=["Connection: keep-alive"]
    ).response()
    expect(not response.values(b"transfer-encoding"), "it is chunked")
    expect(response.body == b"onetwo" and response.complete, f"the body is {response.body!r}")


@check("H3")
def continue_when_the_body_is_asked_for(target: Target) -> str:
    expecting = ["Expect: 100-continue", "Content-Length: 5"]
    play = target.server.play(GATE, ("body",), *OK, method="POST", fields=expecting)
    play.wait("called")
    eager = bool(play.connection.within(MOMENT))
    play.open_gate()
    status = play.connection.head().status
    expect(status == 100, f"the body is asked for, and {status} comes in place of 100")
    play.connection.send(b"hello")
    expect(play.wait("body")["body"] == b"hello", "another body")
    expect(play.response().status == 200, "another answer")
    expect(not eager, "100 comes before the application asks for the body")
    return "100, then 200"


@check("H3")
def no_continue_after_a_final_status(target: Target) -> str:
    expecting = ["Expect: 100-continue", "Content-Length: 5"]
    play = target.server.play(
        start(413, length(2)), body(b"no"), RECEIVE, method="POST", fields=expecting
    )
    response = play.response()
    expect(
        response.status == 413 and not response.interim,
        f"{[r.status for r in response.interim]} comes first",
    )
    rest = play.connection.to_end(2 * MOMENT)
    expect(not rest, f"behind the answer comes {rest[:20]!r}")
    return "the connection is " + (
        "closed" if play.connection.fate == "closed" else "kept, to have the body"
    )


@check("H4")
def less_than_the_content_length(target: Target) -> None:
    play = target.server.play(start(200, length(10)), body(b"hello"))
    try:
        response = play.response()
        expect(response.status >= 500 or not response.complete, "the length was changed")
    except Failed as failure:
        expect(play.connection.fate in ("closed", "reset"), str(failure))
    expect(play.connection.ends(), "the connection stays open")


@check("H4")
def more_than_the_content_length(target: Target) -> None:
    play = target.server.play(start(200, length(2)), body(b"ok too much"))
    play.ended()
    raw = play.connection.to_end(2 * MOMENT)
    expect(b"too much" not in raw, "what is too much is sent")
    expect(play.notes("refused"), "send() raises nothing")


@check("H5")
def a_body_that_nobody_reads(target: Target) -> str:
    smuggled = request("GET", "/smuggled", "Probe: smuggled []")
    play = target.server.play(*OK, method="POST", body=smuggled)
    expect(play.response().body == b"ok", "another answer")
    try:
        following = target.server.play(*OK, on=play.connection)
        response = following.response()
    except (Failed, OSError):
        response = None
    expect(not target.server.journal.of("smuggled"), "the body is taken for a request")
    if response is None:
        return "the connection is closed"
    expect(response.body == b"ok", f"the next request is answered with {response.status}")
    return "the connection goes on"


MALFORMED = {
    "both Content-Length and Transfer-Encoding": [
        "Content-Length: 5",
        "Transfer-Encoding: chunked",
    ],
    "two lengths that differ": ["Content-Length: 5", "Content-Length: 6"],
    "a list of lengths that differ": ["Content-Length: 5, 6"],
    "a signed length": ["Content-Length: +5"],
    "a length in hexadecimal": ["Content-Length: 0x5"],
    "a last coding that is not chunked": ["Transfer-Encoding: chunked, gzip"],
    "chunked twice": ["Transfer-Encoding: chunked, chunked"],
    "a folded field": ["X-A: 1", " 2"],
    "a space before the colon": ["X-A : 1"],
    "a bare CR in a value": ["X-A: 1\r2"],
    "a bare CR before a length": ["X-A: 1\rContent-Length: 5"],
    "NUL in a value": ["X-A: 1\0002"],
    "a space in a name": ["X A: 1"],
    "a field without a name": [": 1"],
    "a field without a colon": ["X-A"],
}


def refusal(target: Target, raw: bytes, path: str) -> str:
    """How a malformed request is treated: "" if it is refused."""
    connection = target.server.connect()
    before = len(target.server.journal.refresh())
    connection.send(raw)
    try:
        status = connection.response().status
    except Failed:
        status = 0
    calls = [
        n
        for n in target.server.journal.refresh()[before:]
        if n["what"] == "called" and n["scope"].get("path") == path
    ]
    if calls:
        return "reaches the application"
    if status == 0:
        return "" if connection.fate in ("closed", "reset") else "gets no answer"
    if not 400 <= status <= 505:
        return f"is answered with {status}"
    return (
        ""
        if connection.ends(target.patience / 5)
        else f"gets {status}, and the connection stays open"
    )


def expect_refused(target: Target, requests: dict[str, bytes]) -> None:
    wrong = []
    for what, raw in requests.items():
        if seen := refusal(target, raw, "/malformed"):
            wrong.append(f"{what} {seen}")
    expect(not wrong, "; ".join(wrong))


@check("H6")
def what_two_could_read_differently(target: Target) -> None:
    chunked = b"5\r\nhello\r\n0\r\n\r\n"
    expect_refused(
        target,
        {
            what: request("POST", "/malformed", *fields) + chunked
            for what, fields in MALFORMED.items()
        },
    )


@check("H6")
def malformed_chunks(target: Target) -> None:
    """These may reach the application, but not as a body."""
    wrong = []
    for what, data in {
        "a chunk size that is no number": b"x\r\nhello\r\n0\r\n\r\n",
        "a negative chunk size": b"-5\r\nhello\r\n0\r\n\r\n",
        "a chunk that is longer than its size": b"4\r\nhello\r\n0\r\n\r\n",
        "a chunk size of 17 digits": b"10000000000000005\r\nhello\r\n0\r\n\r\n",
        "a chunk extension without end": b"5;" + b"x" * 200_000 + b"\r\nhello\r\n0\r\n\r\n",
        "trailers without end": b"0\r\n" + b"x-a: 1\r\n" * 40_000 + b"\r\n",
    }.items():
        play = target.server.play(
            ("body",), *OK, method="POST", fields=["Transfer-Encoding: chunked"]
        )
        try:
            play.connection.send(data)
            status = play.response().status
        except (Failed, OSError):
            status = 0
        if any(note["last"] == "http.request" for note in play.notes("body")) and status == 200:
            wrong.append(what)
    expect(not wrong, f"taken for a body: {', '.join(wrong)}")


@check("H7")
def the_host(target: Target) -> None:
    def of(*fields: str) -> bytes:
        return request("GET", "/malformed", *fields, host=None)

    expect_refused(
        target,
        {
            "no Host": of(),
            "two of Host": of("Host: a", "Host: b"),
            "a Host with a space": of("Host: a b"),
            "a Host with a path": of("Host: a/b"),
            "a Host with user information": of("Host: me@a"),
        },
    )
    connection = target.server.connect()
    connection.send(request("GET", "/", version="1.0", host=None))
    expect(connection.response().status == 200, "HTTP/1.0 without a Host is refused")


@check("H8")
def bounds_on_a_request(target: Target) -> None:
    endless = b"GET /malformed HTTP/1.1\r\nHost: test\r\n" + b"X-A: 1\r\n" * 200_000
    expect_refused(
        target,
        {
            "a line of 200 KiB": request("GET", "/malformed?" + "x" * 200_000),
            "fields of 1.6 MB": endless + b"\r\n",
            "HTTP/3.0": request("GET", "/malformed", version="3.0"),
            "the transfer coding x-nonsense": request(
                "POST", "/malformed", "Transfer-Encoding: x-nonsense"
            ),
        },
    )


@check("H8")
def an_unknown_expectation(target: Target) -> str:
    status = target.server.play(*OK, fields=["Expect: the-unexpected"]).response().status
    expect(status in (200, 417), f"answered with {status}")
    return f"answered with {status}"


@check("H8")
def a_head_that_never_ends(target: Target) -> Generator[None, None, str]:
    connection = target.server.lasting()
    connection.send(b"GET / HTTP/1.1\r\nHost: te")
    yield
    raw = connection.to_end(HEADER_SECONDS)
    connection.close()
    expect(connection.fate in ("closed", "reset"), f"{connection.fate}: it may take for ever")
    expect(not raw or raw.startswith(b"HTTP/1.1 408"), f"answered with {raw[:30]!r}")
    return "408" if raw else "closed without a word"


@check("H9")
def pipelined_answers_keep_their_order(target: Target) -> None:
    server = target.server
    connection = server.connect()
    slow = server.play(GATE, start(200, length(4)), body(b"slow"), on=connection)
    quick = server.play(start(200, length(5)), body(b"quick"), on=connection)
    slow.wait("at the gate")
    connection.within(MOMENT)
    slow.open_gate()
    bodies = [slow.response().body, quick.response().body]
    expect(bodies == [b"slow", b"quick"], f"the answers are {bodies!r}")


@check("H9")
def nothing_follows_connection_close(target: Target) -> None:
    late = request("GET", "/late", "Probe: late []")
    play = target.server.play(*OK, fields=["Connection: close"], then=late)
    response = play.response()
    expect(response.status == 200, f"the request itself is answered with {response.status}")
    expect(play.connection.ends(), "the connection stays open")
    target.server.play(*OK).response()
    expect(not target.server.journal.of("late"), "a request behind Connection: close is processed")


@check("H10")
def half_a_connection(target: Target) -> None:
    play = target.server.play(GATE, *OK)
    play.connection.half_close()
    play.wait("at the gate")
    play.open_gate()
    expect(play.response().body == b"ok", "no answer to who has closed his side")


@check("H11")
def handshakes_that_are_wrong(target: Target) -> None:
    connection = target.server.connect()
    connection.send(request("GET", "/", *handshake_fields(version="12")))
    response = connection.response()
    expect(response.status == 426, f"version 12 is answered with {response.status}")
    known = response.values(b"sec-websocket-version")
    expect(known == [b"13"], f"426 says the versions {known!r}")
    for key, what in (("", "no key"), ("c2hvcnQ=", "a key of 5 bytes")):
        connection = target.server.connect()
        connection.send(request("GET", "/", *handshake_fields(key=key)))
        status = connection.response().status
        expect(status == 400, f"{what} is answered with {status}")


@check("H11")
def an_unknown_upgrade_is_ignored(target: Target) -> None:
    play = target.server.play(*OK, fields=["Connection: Upgrade", "Upgrade: time-travel"])
    expect(play.response().status == 200, "no ordinary answer")
    next_is_answered(target, play)


VIOLATIONS = {
    "a frame that is not masked": (frame_bytes(TEXT, b"hello", mask=False), 1002),
    "a reserved bit": (frame_bytes(TEXT, b"hello", rsv=2), 1002),
    "a reserved opcode": (frame_bytes(3, b"hello"), 1002),
    "a ping of 126 bytes": (frame_bytes(PING, bytes(126)), 1002),
    "a ping in fragments": (frame_bytes(PING, b"", final=False), 1002),
    "a continuation of nothing": (frame_bytes(CONTINUATION, b"hello"), 1002),
    "a message within a message": (frame_bytes(TEXT, b"a", final=False) + frame_bytes(TEXT, b"b"), 1002),
    "a Close of one byte": (frame_bytes(CLOSE, b"\x03"), 1002),
    "a Close with 1005": (frame_bytes(CLOSE, b"\x03\xed"), 1002),
    "text that is no UTF-8": (frame_bytes(TEXT, b"\xff"), 1007),
    "text that is no UTF-8 across fragments": (frame_bytes(TEXT, b"\xe2\x82", final=False) + frame_bytes(CONTINUATION, b"x"), 1007),
}  # fmt: skip


@check("H12")
def frames_that_are_wrong(target: Target) -> None:
    wrong = []
    for what, (raw, expected) in VIOLATIONS.items():
        play = target.server.accepted(("disconnected",))
        play.connection.send(raw)
        try:
            code, _ = play.connection.close_frame()
        except Failed:
            dropped = play.connection.fate in ("closed", "reset")
            wrong.append(f"{what} " + ("has no Close" if dropped else "is accepted"))
            continue
        if code != expected:
            wrong.append(f"{what} is closed with {code}")
    expect(not wrong, "; ".join(wrong))


def closed_for_size(connection: Connection) -> None:
    try:
        code, _ = connection.close_frame()
    except (Failed, OSError) as failure:
        expect(connection.fate in ("closed", "reset"), f"it is taken: {failure}")
        return
    expect(code == 1009, f"it is closed with {code}")


@check("H12")
def a_message_that_is_too_long(target: Target) -> None:
    play = target.server.accepted(RECEIVE)
    play.connection.send(bytes([0x80 | BINARY, 0xFF]) + (1 << 40).to_bytes(8) + bytes(4))
    taken = play.connection.push(bytes(1 << 20), 64 << 20, stalled=2.0)
    expect(taken < 64 << 20, "64 MiB of one message are taken")
    closed_for_size(play.connection)


@check("H12")
def a_message_that_inflates(target: Target) -> None:
    offer = ["Sec-WebSocket-Extensions: permessage-deflate"]
    play = target.server.websocket(
        RECEIVE, ("send", {"type": "websocket.accept"}), RECEIVE, fields=offer
    )
    if not play.response().values(b"sec-websocket-extensions"):
        raise NotApplicable("it does not compress")
    deflate = zlib.compressobj(wbits=-15)
    pieces = [deflate.compress(bytes(1 << 20)) for _ in range(64)]
    bomb = b"".join(pieces) + deflate.flush(zlib.Z_SYNC_FLUSH)
    play.connection.send_frame(BINARY, bomb[:-4], rsv=4)
    closed_for_size(play.connection)


@check("H13")
def an_empty_part_ends_nothing(target: Target) -> None:
    play = target.server.play(start(200), part(b""), part(b"one"), part(b""), body(b"two"))
    response = play.response()
    expect(response.body == b"onetwo", f"the body is {response.body!r}")
    if response.framing == "chunked":
        next_is_answered(target, play)
