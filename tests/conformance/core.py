"""R1 to R15: what holds for every call of an application."""

from __future__ import annotations

from typing import Any

from conformance.checks import check, expect
from conformance.client import BINARY, TEXT, Failed, NotApplicable
from conformance.events import FAIL, OK, RECEIVE, Step, body, part, start, version_of
from conformance.server import Play, Target

VERSIONS = ("2.0", "2.1", "2.2", "2.3", "2.4", "2.5")


def lifespan_note(target: Target) -> dict[str, Any]:
    notes = target.server.journal.of("lifespan", "called")
    if not notes:
        raise Failed("the lifespan scope never came")
    return notes[0]


def http_and_websocket(target: Target) -> list[Play]:
    return [target.server.play(*OK), target.server.websocket()]


@check("R1")
def the_scope_is_a_dict(target: Target) -> None:
    for play in http_and_websocket(target):
        note = play.wait("called")
        expect(note["scope_is_dict"], f"the scope is {note['scope']!r}")
        expect(type(note["scope"]["type"]) is str, f"type is {note['scope']['type']!r}")


@check("R2")
def the_version_of_asgi(target: Target) -> None:
    for play in http_and_websocket(target):
        asgi: Any = play.scope.get("asgi")
        expect(isinstance(asgi, dict), f"asgi is {asgi!r}")
        expect(asgi.get("version") == "3.0", f"asgi is {asgi!r}")


@check("R3")
def the_version_of_the_specification(target: Target) -> str:
    """What the claim means for send() to a client that is gone is checked as well."""
    claims = []
    for play in http_and_websocket(target):
        claim = play.scope["asgi"].get("spec_version")
        expect(claim is not None, f"no spec_version for {play.scope['type']}")
        expect(claim in VERSIONS, f"spec_version is {claim!r}")
        claims.append(claim)
    if version_of(target.server.play(*OK).scope) >= (2, 4):
        note = sent_to_nobody(target)
        expect(
            note["what"] == "refused",
            f"http says {claims[0]}, but send() raises nothing to a client that is gone",
        )
        expect(
            "OSError" in note["bases"],
            f"http says {claims[0]}, but send() raises {note['error']}, no OSError",
        )
    return f"http {claims[0]}, websocket {claims[1]}"


def sent_to_nobody(target: Target, step: str = "send") -> dict[str, Any]:
    """The last note of an application that was told of the disconnect, and sends."""
    event = start(200)[1]
    play = target.server.play(("disconnected",), (step, event), (step, part(b"x")[1]))
    play.wait("called")
    play.connection.reset()
    end = play.ended()
    return end if end["what"] == "raised" else play.notes()[-2]


@check("R4")
def an_application_of_asgi_2(target: Target) -> None:
    with target.fresh(app="probe:asgi2") as server:
        expect(server.play(*OK).response().body == b"ok", "another answer")


@check("R5")
def one_call_for_each_request(target: Target) -> None:
    first = target.server.play(*OK)
    first.response()
    second = target.server.play(*OK, on=first.connection)
    second.response()
    socket = target.server.accepted(RECEIVE, RECEIVE, RECEIVE)
    for word in (b"one", b"two"):
        socket.connection.send_frame(TEXT, word)
    socket.wait("received", times=3)
    for play in (first, second, socket):
        calls = len(play.notes("called"))
        expect(calls == 1, f"{calls} calls for one connection")


@check("R6")
def send_returns_when_the_peer_is_gone(target: Target) -> None:
    sending = ("send_often", 400, 65536)
    play = target.server.play(start(200), sending)
    play.wait("sending", times=2)
    play.connection.reset()
    play.ended()


@check("R7")
def events_hold_plain_objects(target: Target) -> None:
    http = target.server.play(RECEIVE, method="POST", body=b"data")
    kind = type(http.event().get("body"))
    expect(kind is bytes, f"the body is {http.event().get('body')!r}")
    socket = target.server.accepted(RECEIVE, RECEIVE)
    socket.connection.send_frame(TEXT, b"word")
    socket.connection.send_frame(BINARY, b"data")
    for event in (http.event(), socket.event(2), socket.event(3)):
        expect(is_plain(event), f"received {event!r}")


def is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(type(key) is str and is_plain(item) for key, item in value.items())
    if isinstance(value, list):
        return all(map(is_plain, value))
    return type(value) is not tuple


INVALID: dict[str, list[Step]] = {
    "an unknown type": [("send", {"type": "http.response.nonsense"})],
    "no type": [("send", {"status": 200})],
    "no status": [("send", {"type": "http.response.start"})],
    "a status that is a str": [("send", {"type": "http.response.start", "status": "200"})],
    "a body that is a str": [start(200), body("text")],
    "a body before the start": [body(b"early")],
    "headers that are str": [start(200, ("a", "b"))],
}


@check("R8")
def an_invalid_event_raises(target: Target) -> None:
    silent = []
    for what, steps in INVALID.items():
        play = target.server.play(*steps)
        play.ended()
        if play.notes()[-2]["what"] != "refused":
            silent.append(what)
    expect(not silent, f"send() takes {', '.join(silent)}")


@check("R8")
def an_invalid_websocket_event_raises(target: Target) -> None:
    silent = []
    for what, event in {
        "an unknown type": {"type": "websocket.nonsense"},
        "text that is bytes": {"type": "websocket.send", "text": b"data"},
        "bytes that are a str": {"type": "websocket.send", "bytes": "text"},
    }.items():
        play = target.server.accepted(("send", event))
        play.ended()
        if play.notes()[-2]["what"] != "refused":
            silent.append(what)
    expect(not silent, f"send() takes {', '.join(silent)} on a WebSocket")


@check("R9")
def unknown_keys_are_no_error(target: Target) -> None:
    play = target.server.play(start(200, colour="blue"), body(b"ok", colour={"blue": 1}))
    expect(play.response().body == b"ok", "the body was lost")
    expect(not play.notes("refused"), "send() raises")


@check("R10")
def an_error_ends_the_call_and_its_connection(target: Target) -> str:
    play = target.server.play(start(200), part(b"begun"), FAIL)
    response = play.response()
    expect(
        not response.complete or response.framing == "close",
        f"a whole response of framing {response.framing!r}",
    )
    expect(play.connection.ends(), "the connection stays open")
    expect(target.server.play(*OK).response().status == 200, "the next request fails")
    return f"{response.framing}, then {play.connection.fate}"


@check("R11")
def a_message_after_the_close_is_no_error(target: Target) -> str:
    note = sent_to_nobody(target)
    if note["what"] == "sent":
        return "send() does nothing"
    claim = version_of(target.server.play(*OK).scope)
    expect(claim >= (2, 4) and "OSError" in note["bases"], f"send() raises {note['error']}")
    return f"send() raises {note['error']}, as from 2.4 on"


@check("R12")
def the_servers_own_exception_is_ignored(target: Target) -> str:
    said = len(target.server.log())
    note = sent_to_nobody(target, "send_or_raise")
    if note["what"] != "raised":
        raise NotApplicable("send() raises nothing to a client that is gone")
    expect_no_report(target, said)
    return str(note["error"])


def expect_no_report(target: Target, said: int) -> None:
    """What the server has logged since; another request's answer comes after it."""
    target.server.play(*OK).response()
    new = target.server.log()[said:]
    expect(
        "Traceback" not in new and "rror" not in new,
        f"it is logged: {new.strip().splitlines()[-1:]}",
    )


@check("R13")
def extensions_are_dicts_of_ones_own(target: Target) -> str:
    first = target.server.play(("spoil",), *OK)
    extensions = first.scope.get("extensions")
    if extensions is None:
        raise NotApplicable("the scope has no extensions")
    expect(isinstance(extensions, dict), f"extensions are {extensions!r}")
    for name, value in extensions.items():
        expect(isinstance(value, dict), f"{name} is {value!r}")
    first.response()
    same = target.server.play(*OK, on=first.connection).scope["extensions"]
    other = target.server.play(*OK).scope["extensions"]
    for later in (same, other):
        expect("spoilt" not in ascii(later), "what one call writes, another one sees")
    return ", ".join(sorted(extensions)) or "none"


@check("R14")
def a_scope_is_ones_own(target: Target) -> None:
    first = target.server.play(("spoil",), *OK)
    first.response()
    for on in (first.connection, None):
        scope = target.server.play(*OK, on=on).scope
        for key in set(scope) - {"extensions", "state"}:  # R13, R75
            expect(
                "spoilt" not in ascii(scope[key]),
                f"what one call writes into {key}, another one sees",
            )


@check("R15")
def a_task_in_the_main_thread(target: Target) -> str:
    play = target.server.play(("library",), *OK)
    note = play.wait("called")
    expect(note["main_thread"], "it runs in another thread")
    expect(note["in_task"], "there is no current task")
    library = play.wait("library")["name"]
    expect(library in (None, note["loop"]), f"sniffio says {library!r} under {note['loop']}")
    return str(note["loop"])
