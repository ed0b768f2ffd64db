"""What clients that stall or wait, or an application that stalls, cost in resident memory."""

from __future__ import annotations

import contextlib
import re
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import MIB, POLLERS, WORKERS, Client, measures_memory, request, skip_without
from process import Process, eventually, resident_bytes, settled

pytestmark = measures_memory

GIB = 1024 * MIB
BOUND = 32 * MIB
FIRST, IDLE = 200, 2000


class Gibibyte(Process):
    # Through trio's loop each connection has a task of trio's.
    has_watchers = False

    def progress(self) -> int:
        with self.connect() as client:
            return int(client.get("/progress").body)

    def memory(self, key: str) -> int:
        """Resident bytes: `VmRSS`, now, or `VmHWM`, the most there ever were."""
        status = Path(f"/proc/{self.popen.pid}/status").read_text()
        match = re.search(rf"^{key}:\s+(\d+) kB$", status, re.MULTILINE)
        assert match is not None
        return 1024 * int(match[1])


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """For this process and those that it starts."""
    before, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = FIRST + IDLE + 200
    if before != resource.RLIM_INFINITY and before < needed:
        if most != resource.RLIM_INFINITY and most < needed:
            pytest.skip(f"needs {needed} descriptors")
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, most))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (before, most))


@pytest.fixture(params=[(worker, poller) for worker in WORKERS for poller in POLLERS], ids="-".join)
def server(request: pytest.FixtureRequest) -> Iterator[Gibibyte]:
    worker, poller = request.param
    skip_without(worker)
    server = Gibibyte("-k", worker, "--poller", poller, "-b", "127.0.0.1:0", "gibibyte:app")
    server.has_watchers = (worker, poller) == ("trio", "loop")
    try:
        yield server
    finally:
        server.end()


def test_client_that_does_not_read(server: Gibibyte) -> None:
    assert server.progress() == 0
    before = server.memory("VmRSS")
    with server.connect() as client:
        client.sendall(request("GET", "/download", "Connection: close"))
        client.read_until(b"\r\n\r\n")
        stalled = [0, 0]

        def has_stalled() -> bool:
            stalled.append(server.progress())
            return 0 < stalled[-3] == stalled[-2] == stalled[-1]

        eventually(has_stalled)
        assert stalled[-1] < BOUND
        received = len(client.received)
        block = bytearray(MIB)
        while count := client.recv_into(block):
            received += count
    assert received > GIB
    assert server.progress() == GIB
    assert server.memory("VmHWM") - before < BOUND


def test_application_that_does_not_read(server: Gibibyte) -> None:
    assert server.progress() == 0
    before = server.memory("VmRSS")
    with server.connect() as client:
        client.sendall(request("POST", "/upload", f"Content-Length: {GIB}"))
        left = push(client, GIB)
        assert GIB - left < BOUND
        with server.connect() as other:
            assert other.get("/read").status == 200
        block = memoryview(bytes(MIB))
        while left:
            left -= client.send(block[:left])
        assert client.read_response().body == b"%d" % GIB
    assert server.memory("VmHWM") - before < BOUND


def test_idle_connections(many_descriptors: None, server: Gibibyte) -> None:
    """At most 2 KiB each, or 6 with a task of trio's."""
    most = 6144 if server.has_watchers else 2048

    def resident() -> int:
        return settled(lambda: resident_bytes(server.popen.pid))

    with contextlib.ExitStack() as stack:

        def open(count: int) -> None:
            for _ in range(count):
                client = stack.enter_context(server.connect())
                assert client.get("/progress").body == b"0"

        open(FIRST)
        before = resident()
        open(IDLE)
        assert (resident() - before) / IDLE < most


def push(client: Client, length: int) -> int:
    """Sends until nothing is taken any more; how much of `length` is left then."""
    block = memoryview(bytes(MIB))
    client.settimeout(0.5)
    try:
        while length:
            length -= client.send(block[:length])
    except TimeoutError:
        client.settimeout(10)
    return length
