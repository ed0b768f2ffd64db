"""Whatever happens on a connection, nothing of it stays: no object, no descriptor.

Each test does something a few times, so that caches and pools are filled, counts what is
alive, does it many times more, and counts again.
"""

from __future__ import annotations

import gc
import importlib
import logging
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from actions import ACTIONS, Action, Peer
from apps.mixed import Application
from conftest import PATIENCE, Instances, Running, Serve, request

import fastserve
from fastserve._access import AccessLines
from fastserve.access import parts_of

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
combinations = pytest.mark.parametrize(
    "worker, poller",
    [("asyncio", "epoll"), ("asyncio", "loop"), ("uvloop", "epoll"), ("trio", "epoll")],
    indirect=True,
)

# Every type of the compiled modules whose instances the collector knows, by its own name.
TYPES = {
    kind
    for stub in Path(fastserve.__file__).parent.glob("_*.pyi")
    for module in (importlib.import_module(f"fastserve.{stub.stem}"),)
    for kind in vars(module).values()
    if isinstance(kind, type) and kind.__module__ == module.__name__
}
NEEDED = {
    "HttpExchange",
    "Awaitable",
    "ApplicationCall",
    "Http1Connection",
    "SocketTransport",
    "WebSocketExchange",
    "WebSocketConnection",
    "FrameDecoder",
}
# How often growth may come again until it counts: tables and free lists grow now and then,
# a leak grows in each round.
ROUNDS = 3
MOST_ROUNDS = 9


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


class Watched(Peer):
    """A server, and what lives in this process because of it."""

    def __init__(self, running: Running, app: Application) -> None:
        super().__init__(running.address)
        self.app = app
        self.instances = Instances(TYPES)

    def settle(self, *, collect: bool) -> None:
        """Waits until the server has nothing under way."""
        self.lose()
        end = time.monotonic() + PATIENCE
        while True:
            if collect:
                gc.collect()
            alive = self.instances.alive()
            if not (set(alive) & NEEDED) and not len(self.app.markers):
                return
            assert time.monotonic() < end, f"still alive: {alive}, {len(self.app.markers)} calls"
            time.sleep(0.01)

    def repeat(self, action: Action, times: int) -> None:
        for _ in range(times):
            action(self)

    def stays_level(self, action: Action, times: int) -> None:
        self.repeat(action, max(20, times // 10))
        self.settle(collect=True)
        objects, files = self.instances.alive(), descriptors()
        growth = []
        # What stays for each exchange stays in every round; other growth comes and goes.
        while not growth or (min(growth) >= 0.5 and len(growth) < MOST_ROUNDS):
            blocks, calls = sys.getallocatedblocks(), self.app.calls
            self.repeat(action, times // ROUNDS)
            self.settle(collect=True)
            assert self.instances.alive() == objects
            assert descriptors() == files
            done = max(self.app.calls - calls, times // ROUNDS)
            growth.append((sys.getallocatedblocks() - blocks) / done)
        # One object that stays for each exchange would be 1.
        assert min(growth) < 0.5, f"blocks for each exchange: {growth}"


@pytest.fixture
def no_records() -> Iterator[None]:
    """Who keeps a record of an exception, as pytest does, keeps all that its frames hold."""

    def is_harmless(record: logging.LogRecord) -> bool:
        return record.levelno < logging.WARNING

    logger = logging.getLogger("fastserve")
    logger.addFilter(is_harmless)
    yield
    logger.removeFilter(is_harmless)


@pytest.fixture
def watched(no_records: None, serve: Serve) -> Iterator[Watched]:
    app = Application()
    watched = Watched(serve(app), app)
    yield watched
    watched.lose()


def test_the_types_are_known() -> None:
    assert {kind.__name__ for kind in TYPES} >= {*NEEDED, "ResponseHead", "RequestParser"}


@combinations
@pytest.mark.parametrize("name", ACTIONS)
def test_nothing_stays(watched: Watched, name: str) -> None:
    watched.stays_level(*ACTIONS[name])


@combinations
@pytest.mark.parametrize("name", ACTIONS)
def test_no_collector_is_needed(watched: Watched, name: str) -> None:
    """What belongs to an exchange is no part of a cycle: counting references frees it."""
    action, times = ACTIONS[name]
    watched.repeat(action, 20)
    watched.settle(collect=True)
    gc.disable()
    try:
        watched.repeat(action, times // 10)
        watched.settle(collect=False)
    finally:
        gc.enable()


@pytest.mark.parametrize("worker, poller", [("uvloop", "epoll")], indirect=True)
@pytest.mark.parametrize("name", ACTIONS)
def test_nothing_stays_of_an_access_line(no_records: None, serve: Serve, name: str) -> None:
    app = Application()
    format = "%(h)s %(u)s %(r)s %({x-a}i)s %({x-head}o)s %(id)s %(ttfb)s"
    watched = Watched(serve(app, access_logfile=os.devnull, access_logformat=format), app)
    watched.stays_level(*ACTIONS[name])
    watched.lose()


def test_nothing_stays_of_a_line_that_was_written() -> None:
    lines = AccessLines(parts_of("json"), wake=lambda _: None, full=lambda: None)

    def write(times: int) -> int:
        for number in range(times):
            fields = [(b"user-agent", b"a" * 50), (b"x-request-id", b"%d" % number)]
            lines.write(raw_path=b"/%d" % number, headers=fields, client=("é", 1), trusted=True)
            if number % 1000 == 0:
                lines.take()
        lines.take()
        return sys.getallocatedblocks()

    before = write(10_000)
    assert write(10_000) - before < 1000


@combinations
def test_after_the_server(no_records: None, serve: Serve) -> None:
    """A server that has ended leaves nothing either, with connections open until then."""

    def once() -> None:
        app = Application()
        running = serve(app, graceful_timeout=0.1)
        clients = [running.connect() for _ in range(4)]
        clients[0].get("/hello")
        clients[1].sendall(request("GET", "/wait"))
        clients[1].read_until(b"begun")
        clients[2].sendall(b"GET /hello HT")
        running.stop()
        for client in clients:
            client.close()

    for _ in range(3):
        once()
    instances, files = Instances(TYPES), descriptors()
    for _ in range(10):
        once()
    gc.collect()
    assert not set(instances.alive()) & NEEDED
    assert descriptors() == files
