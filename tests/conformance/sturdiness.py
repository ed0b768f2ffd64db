"""X1 to X8: what no specification numbers, and servers have been seen to fail."""

from __future__ import annotations

import os
import signal
import stat
import time

from conformance.checks import check, expect
from conformance.events import GATE, OK, body, start
from conformance.http import MOMENT
from conformance.lifespan import crash, lifespan
from conformance.server import LIFESPAN, SHUTDOWN_COMPLETE, Note, Server, Target, eventually

MUCH = 64 << 20


@check("X1")
def a_reset_lets_go_of_the_connection(target: Target) -> None:
    play = target.server.play(("watch",), *OK)
    play.response()
    play.ended()
    play.connection.reset()

    def gone() -> bool:
        return not target.server.play(("watched",), *OK).wait("watched")["alive"]

    seconds = target.patience / 2
    expect(eventually(gone, seconds), f"{seconds:g} s after the reset it is still held")


@check("X2")
def a_unix_socket_is_not_for_everybody(target: Target) -> str:
    address = target.running("unix").address
    mode = stat.S_IMODE(os.stat(str(address)).st_mode)
    expect(not mode & stat.S_IWOTH, f"its permissions are {mode:04o}")
    return f"{mode:04o}"


@check("X3")
def the_last_response_says_close(target: Target) -> None:
    with target.fresh() as server:
        play = server.play(GATE, *OK)
        play.wait("at the gate")
        server.terminate()
        time.sleep(MOMENT)
        play.open_gate()
        response = play.response()
        expect(response.status == 200, f"answered with {response.status}")
        expect(response.has_token(b"connection", b"close"), "no Connection: close while it stops")


@check("X3")
def an_idle_connection_may_have_a_request_under_way(target: Target) -> None:
    with target.fresh() as server:
        play = server.play(*OK)
        play.response()
        server.terminate()
        early = play.connection.within(MOMENT)
        expect(
            not early and not play.connection.fate.startswith(("closed", "reset")),
            "it is cut at once",
        )
        response = server.play(*OK, on=play.connection).response()
        expect(response.has_token(b"connection", b"close"), "no Connection: close while it stops")


SLOW_SHUTDOWN = [*LIFESPAN[:-1], ("sleep", 2 * MOMENT), SHUTDOWN_COMPLETE]


@check("X4")
def shutdown_is_whole_after_the_time_is_up(target: Target) -> None:
    with target.fresh(lifespan=SLOW_SHUTDOWN) as server:
        play = server.play(("tidy", MOMENT))
        play.wait("called")
        server.terminate()
        shutdown = whole_shutdown(server)
        tidied = play.notes("tidied")
        expect(
            tidied and tidied[0]["at"] < shutdown["at"],
            "the call that was cancelled is not waited for",
        )


@check("X5")
def shutdown_is_whole_after_a_second_signal(target: Target) -> None:
    with target.fresh(lifespan=SLOW_SHUTDOWN) as server:
        server.play(("sleep", 3600)).wait("called")
        server.process.send_signal(signal.SIGINT)
        time.sleep(MOMENT)
        server.process.send_signal(signal.SIGINT)
        whole_shutdown(server)


def whole_shutdown(server: Server) -> Note:
    """The note of lifespan.shutdown, when the process has ended."""
    seconds = 2 * server.process_patience  # something has to be given up first
    status = server.wait(seconds)
    expect(status is not None, f"it still runs after {seconds:g} s")
    events = server.journal.of("lifespan", "received")[1:]
    expect(events, "shutdown never comes")
    expect(server.journal.of("lifespan", "returned"), "shutdown is begun, and not waited for")
    return events[0]


@check("X6")
def a_worker_is_replaced(target: Target) -> None:
    with target.fresh("processes") as server:
        crash(server)
        expect(server.alive, "the whole server ends with it")
        expect(server.play(*OK).response().status == 200, "the next request fails")
        pids = {note["pid"] for note in lifespan(server).notes("sent")}
        expect(len(pids) >= 3, "no other takes its place")


@check("X7")
def a_body_that_is_not_taken_is_not_kept(target: Target) -> None:
    play = target.server.play(GATE, method="POST", fields=[f"Content-Length: {4 * MUCH}"])
    taken = play.connection.push(bytes(1 << 18), MUCH, stalled=1.0)
    expect(taken < MUCH, f"{MUCH >> 20} MiB are taken, though nobody has asked for them")


@check("X8")
def a_response_that_is_not_read_is_not_kept(target: Target) -> None:
    times = MUCH >> 16
    play = target.server.play(start(200), ("send_often", times, 1 << 16), body())
    play.wait("sending", times=2)
    done = eventually(lambda: play.notes("sent")[1:], 2.0)
    expect(not done, f"send() takes {MUCH >> 20} MiB for a client that reads nothing")
