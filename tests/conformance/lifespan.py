"""R71 to R82: the lifespan, from start-up to the end of the process."""

from __future__ import annotations

import os
import signal
import time

from conformance.checks import check, expect
from conformance.client import Failed, NotApplicable
from conformance.core import lifespan_note
from conformance.events import FAIL, GATE, OK, RECEIVE
from conformance.http import MOMENT, expect_state
from conformance.server import (
    LIFESPAN,
    SHUTDOWN_COMPLETE,
    STARTUP_COMPLETE,
    Call,
    Play,
    Server,
    Target,
    eventually,
)

STATE = ("state", {"given": "at startup", "shared": []})


def lifespan(server: Server) -> Call:
    return Call(server, "lifespan")


@check("R71")
def once_in_the_loop_of_the_requests(target: Target) -> None:
    note = lifespan_note(target)
    calls = len(target.server.journal.of("lifespan", "called"))
    expect(calls == 1, f"{calls} lifespans in one process")
    request = target.server.play(*OK).wait("called")
    for key, what in (("pid", "process"), ("loop_number", "event loop")):
        expect(note[key] == request[key], f"requests are in another {what}")


@check("R71")
def once_in_each_process(target: Target) -> str:
    with target.fresh("processes") as server:
        journal = server.journal
        eventually(lambda: len(journal.of("lifespan", "called")) >= 2, server.patience)
        pids = [note["pid"] for note in journal.of("lifespan", "called")]
        expect(len(pids) == len(set(pids)) == 2, f"{len(pids)} lifespans in two processes")
    return "two processes"


@check("R72")
def the_scope(target: Target) -> str:
    scope = lifespan_note(target)["scope"]
    expect(scope["type"] == "lifespan", f"type is {scope['type']!r}")
    asgi = scope.get("asgi")
    expect(isinstance(asgi, dict), f"asgi is {asgi!r}")
    expect(asgi.get("version") == "3.0", f"asgi is {asgi!r}")
    claim = asgi.get("spec_version", "1.0")
    expect(claim in ("1.0", "2.0"), f"spec_version is {claim!r}, which the lifespan has not")
    return f"spec_version {claim}"


@check("R73")
def the_state_is_offered_empty(target: Target) -> None:
    scope = lifespan_note(target)["scope"]
    if "state" not in scope:
        raise NotApplicable("the scope has no state")
    expect(scope["state"] == {}, f"state is {scope['state']!r}")


@check("R74")
def an_application_without_lifespan(target: Target) -> None:
    for what, steps in (("at once", [FAIL]), ("at start-up", [RECEIVE, FAIL])):
        try:
            with target.fresh(lifespan=steps) as server:
                expect(server.play(*OK).response().status == 200, f"{what}: a request fails")
        except Failed as failure:
            raise Failed(f"an application that raises {what}: {failure}") from None


@check("R75")
def each_request_has_a_shallow_copy(target: Target) -> None:
    with target.fresh(
        lifespan=[RECEIVE, STATE, STARTUP_COMPLETE, RECEIVE, ("look",), SHUTDOWN_COMPLETE]
    ) as server:
        first = server.play(("state", {"mine": True}), *OK)
        expect_state(first.scope)
        first.response()
        second = server.play(("share",), *OK, on=first.connection)
        expect("mine" not in second.scope["state"], "what one request writes, another one sees")
        second.response()
        third = server.play(*OK).scope["state"]
        expect(third["shared"] == [second.number], "the copy is not shallow")
        server.tidy()
        server.terminate()
        looked = lifespan(server).wait("looked", patience=server.process_patience)["scope"]["state"]
        expect(
            looked == {"given": "at startup", "shared": [second.number]},
            f"at shutdown it is {looked!r}",
        )


def held_back(target: Target, server: Server) -> tuple[Play | None, bool]:
    """A request while start-up hangs at its gate: None if it was refused; and whether its call
    had begun before the gate opened."""
    start = lifespan(server)
    start.wait("at the gate", patience=server.process_patience)
    try:
        play = server.play(*OK)
    except OSError:
        play = None
    if play is not None:
        play.connection.within(MOMENT)
    begun = play is not None and bool(play.notes("called"))
    start.open_gate()
    server.wait_until_it_answers()
    return play, begun


WAITING = [RECEIVE, GATE, STARTUP_COMPLETE, RECEIVE, SHUTDOWN_COMPLETE]


@check("R76")
def startup_comes_before_connections(target: Target) -> str:
    with target.fresh(lifespan=WAITING, ready=False) as server:
        play, _ = held_back(target, server)
        expect(lifespan(server).event()["type"] == "lifespan.startup", "another event first")
        first = next(note for note in server.journal.notes if note["what"] == "received")
        calls = [
            n for n in server.journal.notes if n["what"] == "called" and n["call"] != "lifespan"
        ]
        expect(first["at"] < calls[0]["at"], "a request comes before it")
        if play is None:
            return "an early client is refused"
        expect(play.response().status == 200, "an early client gets no answer")
        return "an early client waits, and is answered"


@check("R77")
def startup_is_waited_for(target: Target) -> None:
    with target.fresh(lifespan=WAITING, ready=False) as server:
        _, begun = held_back(target, server)
        expect(not begun, "a request is processed before startup.complete")


@check("R78")
def startup_failed(target: Target) -> str:
    failed = ("send_or_raise", {"type": "lifespan.startup.failed", "message": "no database today"})
    with target.fresh(lifespan=[RECEIVE, failed], ready=False) as server:
        status = server.wait()
        if status is None:
            times = len(server.journal.of("lifespan", "called"))
            raise Failed(
                f"it still runs after {server.process_patience:g} s, and has tried {times} times"
            )
        expect(status != 0, "the exit status is 0")
        expect("no database today" in server.log(), "the message is not logged")
        return f"exit status {status}"


@check("R79")
def shutdown_comes_after_connections(target: Target) -> None:
    with target.fresh() as server:
        play = server.play(GATE, *OK, fields=["Connection: close"])
        play.wait("at the gate")
        server.terminate()
        play.connection.within(MOMENT)
        early = server.journal.of("lifespan", "received")[1:]
        expect(not early, "shutdown comes while a request is under way")
        play.open_gate()
        expect(play.response().status == 200, "the request under way gets no answer")
        second = lifespan(server).wait("received", times=2, patience=server.process_patience)
        expect(second["event"]["type"] == "lifespan.shutdown", f"received {second!r}")
        expect(play.ended()["at"] < second["at"], "shutdown comes before the request's end")
        lifespan(server).wait("returned")


@check("R80")
def shutdown_is_waited_for(target: Target) -> str:
    steps = [*LIFESPAN[:-1], ("sleep", 2 * MOMENT), SHUTDOWN_COMPLETE]
    with target.fresh(lifespan=steps) as server:
        server.tidy()
        server.terminate()
        status = server.wait()
        expect(status is not None, f"it still runs after {server.process_patience:g} s")
        expect(server.journal.of("lifespan", "received")[1:], "shutdown never comes")
        expect(server.journal.of("lifespan", "sent")[1:], "it ends before shutdown.complete")
        return f"exit status {status}"


@check("R81")
def shutdown_failed(target: Target) -> str:
    failed = ("send_or_raise", {"type": "lifespan.shutdown.failed", "message": "the tap drips"})
    with target.fresh(lifespan=[*LIFESPAN[:-1], failed]) as server:
        server.tidy()
        server.terminate()
        status = server.wait()
        expect(status is not None, f"it still runs after {server.process_patience:g} s")
        expect("the tap drips" in server.log(), "the message is not logged")
        return f"exit status {status}"


@check("R82")
def the_others_shut_down_after_a_crash(target: Target) -> str:
    with target.fresh("processes") as server:
        crash(server)
        server.tidy()
        if server.alive:
            server.terminate()
        status = server.wait()
        expect(status is not None, f"it still runs after {server.process_patience:g} s")
        started = {note["pid"] for note in server.journal.of("lifespan", "called")}
        ended = {note["pid"] for note in server.journal.of("lifespan", "returned")}
        expect(
            len(started - ended) == 1,
            f"{len(started - ended)} of {len(started)} processes had no shutdown",
        )
        return f"{len(ended)} processes"


def crash(server: Server) -> int:
    """Kill one of two workers, and wait until the others have had time to notice."""
    two = eventually(lambda: len(server.journal.of("lifespan", "sent")) >= 2, server.patience)
    expect(two, "the lifespan did not come to two processes")
    pid: int = server.journal.of("lifespan", "called")[0]["pid"]
    if pid == server.process.pid:
        raise NotApplicable("the process that serves is the one that was started")
    # Whoever watches over them may have yet to hear that both are ready: a start that fails is
    # something else.
    time.sleep(MOMENT)
    os.kill(pid, signal.SIGKILL)
    eventually(
        lambda: len(server.journal.of("lifespan", "sent")) >= 3 or not server.alive, server.patience
    )
    time.sleep(MOMENT)
    return pid
