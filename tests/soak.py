"""Does a server stay as it is under hours of traffic of all kinds? In minutes: make soak

    soak.py [--requests N] [--reloads N] [--workers NAME ...]

For each worker a server of one process meets clients that behave in every way that `actions` knows,
big bodies, pipelines, TLS, and peers that stall until a time limit ends them. After each stint, when
all have left, it must have the descriptors that it had after the first ones and no call of the
application left; in the end its resident memory must not have grown with the number of requests.

Then a supervisor replaces its workers again and again under traffic: no request may fail, no worker
be lost, and the supervisor itself must stay as it is.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import signal
import socket
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from actions import ACTIONS, DEFLATE, Action, Peer, leave_a_body, leave_a_head, leave_at_once
from conftest import MIB, WORKERS, Client, TlsClient, pem, request, trusting
from process import (
    Load,
    Process,
    children_of,
    ends,
    eventually,
    resident_bytes,
    settled,
    slowly,
    workers_of,
)

TESTS = Path(__file__).parent
STINTS = 16
# Until then pools and tables may grow.
WARM_UP_STINTS = 4
MOST_GROWTH = MIB  # for each so many requests
EACH = 100_000
BIG = bytes(range(256)) * (MIB // 256)
PIPELINE = 64

# Time limits that slow peers meet within a stint, and nobody else does.
LIMITS = {
    "--header-timeout": 2,
    "--body-timeout": 2,
    "--write-timeout": 2,
    "--keep-alive": 3,
    "--ssl-handshake-timeout": 2,
    "--ws-ping-interval": 2,
    "--ws-ping-timeout": 1,
}


class TlsPeer(Peer):
    def connect(self) -> TlsClient:
        client = socket.create_connection(self.address)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return trusting().wrap_socket(client, server_hostname="localhost")

    def websocket(self, target: str, *fields: str) -> TlsClient:
        return self.connect().open(target, *fields)


# --- what clients do besides the actions ------------------------------------------------------


def post_much(peer: Peer) -> None:
    client = peer.kept()
    client.sendall(request("POST", "/echo", body=BIG))
    assert client.read_response().body == BIG


def post_much_in_chunks(peer: Peer) -> None:
    client = peer.kept()
    client.sendall(request("POST", "/echo", "Transfer-Encoding: chunked"))
    for size in (1, 1000, 65536, len(BIG) - 66537):
        client.sendall(b"%x\r\n%b\r\n" % (size, BIG[:size]))
    client.sendall(b"0\r\n\r\n")
    assert len(client.read_response().body) == len(BIG)


def leave_an_answer(peer: Peer) -> None:
    """In its middle, by a reset, since not all was read."""
    with peer.connect() as client:
        client.sendall(request("POST", "/echo", body=BIG))
        client.read_until(b"\r\n\r\n")


def ask_much(peer: Peer) -> None:
    """One after the other, and in pipelines, whose answers are counted alone."""
    client = peer.kept()
    for _ in range(50):
        assert client.get("/hello").status == 200
    for _ in range(20):
        client.sendall(request("GET", "/hello"))
        answer = client.read_until(b"Hello, world!")
        client.sendall(PIPELINE * request("GET", "/hello"))
        answers = client.read_exactly(PIPELINE * len(answer))
        assert answers.endswith(b"Hello, world!")


MORE_ACTIONS = (post_much, post_much_in_chunks, leave_an_answer, ask_much)
OVER_TLS = ("get", "stream", "post", "post in chunks", "leaves a body", "leaves a flood",
            "leaves a head", "compressed socket", "leaves a socket")  # fmt: skip


def dribble_a_head(peer: Peer) -> None:
    with peer.connect() as client:
        with contextlib.suppress(ConnectionError):
            for byte in request("GET", "/hello", *("X: y",) * 20):
                client.sendall(bytes([byte]))
                time.sleep(0.02)
        assert b" 408 " in client.read_to_end()


def stall_in(part: bytes) -> Action:
    def stall(peer: Peer) -> None:
        with peer.connect() as client:
            client.sendall(part)
            assert b" 408 " in client.read_to_end()

    return stall


def stay_idle(peer: Peer) -> None:
    with peer.connect() as client:
        assert client.get("/hello").status == 200
        assert client.is_closed_by_peer()


def say_nothing(peer: Peer) -> None:
    with peer.connect() as client:
        assert client.is_closed_by_peer()


def read_nothing(peer: Peer) -> None:
    """The server gives up; that it has shows by a reset."""
    with peer.connect() as client:
        client.sendall(request("GET", "/flood"))
        eventually(lambda: client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))


def answer_no_ping(peer: Peer) -> None:
    with peer.websocket("/socket", DEFLATE) as client:
        assert client.read_frame().first == 0x89
        assert client.read_close()[0] == 1011


SLOW = (
    dribble_a_head,
    stall_in(b"GET /hello HTTP/1.1\r\nHost: te"),
    stall_in(request("POST", "/echo", "Content-Length: 100000") + b"b" * 1000),
    stall_in(request("POST", "/echo", "Transfer-Encoding: chunked") + b"ff\r\nbbb"),
    stay_idle,
    say_nothing,
    read_nothing,
    answer_no_ping,
)


def handshake_slowly(peer: Peer) -> None:
    """Begins with TLS, and says no more."""
    with Client(peer.address) as client:
        client.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01")
        assert client.is_closed_by_peer()


# --- one process ------------------------------------------------------------------------------


class Moment(NamedTuple):
    requests: int
    resident: int


class Soaked:
    """A server of one process, and what is known of it from outside."""

    def __init__(self, process: Process) -> None:
        self.process = process
        # The same order in each run.
        self.random = random.Random(0)
        self.moments: list[Moment] = []
        self.descriptors = 0
        self.plain = Peer(self._address("http"))
        self.tls = TlsPeer(self._address("https"))

    def _address(self, scheme: str) -> tuple[str, int]:
        match = self.process.logs(rf"Running on {scheme}://(\S+):(\d+) ")
        return match[1], int(match[2])

    def counted(self) -> tuple[int, int]:
        """Calls of the application: how many there were, and how many there are besides this."""
        with self.plain.connect() as client:
            calls, alive = client.get("/count").body.split()
        return int(calls), int(alive) - 1

    def stint(self, requests: int) -> None:
        """So many requests, and some peers that are slow meanwhile. Leaves nothing open."""
        end = self.counted()[0] + requests
        with ThreadPoolExecutor(2 * len(SLOW)) as threads:
            slow = [threads.submit(each, self.plain) for each in SLOW]
            slow.append(threads.submit(handshake_slowly, self.tls))
            slow.append(threads.submit(stay_idle, self.tls))
            while self.counted()[0] < end:
                self.round()
            for each in slow:
                each.result()
        self.rest()

    def round(self) -> None:
        """Everything once, in any order."""
        work = [(action, self.plain) for action, _ in ACTIONS.values()]
        work += [(action, self.plain) for action in MORE_ACTIONS]
        work.append((ACTIONS[self.random.choice(OVER_TLS)][0], self.tls))
        self.random.shuffle(work)
        for action, peer in work:
            action(peer)
        for peer in (self.plain, self.tls):
            peer.lose()

    def rest(self) -> None:
        """Nothing is left of the clients; what memory has become of them is noted."""
        pid = self.process.popen.pid
        eventually(lambda: self.counted()[1] == 0)
        if len(self.moments) < WARM_UP_STINTS:
            self.descriptors = settled(lambda: descriptors_of(pid))
        eventually(lambda: descriptors_of(pid) == self.descriptors)
        self.moments.append(Moment(self.counted()[0], resident_bytes(pid)))

    def growth(self) -> float:
        """Bytes for each request after the first stints: the slope of the line that fits best."""
        moments = self.moments[WARM_UP_STINTS:]
        return statistics.linear_regression(*zip(*moments, strict=True)).slope


def soak(worker: str, requests: int) -> bool:
    limits = [str(word) for option in LIMITS.items() for word in option]
    process = Process(
        *("-k", worker, "-b", "127.0.0.1:0", "--insecure-bind", "127.0.0.1:0", *limits),
        *("--certfile", pem("server.pem"), "--keyfile", pem("server.key")),
        *("--access-logfile", os.devnull, "apps.mixed:app"),
        cwd=TESTS,
    )
    try:
        soaked = Soaked(process)
        for _ in range(STINTS):
            soaked.stint(requests // STINTS)
            print(".", end="", file=sys.stderr, flush=True)
        process.send_signal(signal.SIGTERM)
        status = process.wait()
    finally:
        process.end()
    growth = soaked.growth() * EACH
    sound = growth < MOST_GROWTH and status == 0
    begun, ended = soaked.moments[WARM_UP_STINTS - 1], soaked.moments[-1]
    print(
        f"\r{worker}: {ended.requests} requests; {soaked.descriptors} descriptors; resident MiB"
        f" {begun.resident / MIB:.1f} to {ended.resident / MIB:.1f} after the first {begun.requests},"
        f" {growth / MIB:+.2f} for each {EACH}: {'level' if sound else 'GROWS'}"
    )
    return sound


# --- a supervisor -----------------------------------------------------------------------------


@contextlib.contextmanager
def again_and_again(actions: tuple[Action, ...], peer: Peer) -> Iterator[None]:
    """Meanwhile, and whatever becomes of it."""
    done = threading.Event()

    def act() -> None:
        while not done.wait(0.005):
            for action in actions:
                with contextlib.suppress(OSError, AssertionError):
                    action(peer)

    thread = threading.Thread(target=act)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def reload_again_and_again(worker: str, reloads: int) -> bool:
    """A server of two workers."""
    server = Process("-k", worker, "--workers", "2", "-b", "127.0.0.1:0", "served:app")
    pid = server.popen.pid
    seen: list[tuple[int, int]] = []
    try:
        peer = Peer(server.address)
        with (
            Load(server.address) as load,
            again_and_again((leave_a_body, leave_a_head, leave_at_once), peer),
        ):
            for number in range(1, reloads + 1):
                server.send_signal(signal.SIGHUP)
                slowly(lambda most=2 * number + 2: len(workers_of(server)) == most)
                slowly(lambda: children_of(pid) == set(workers_of(server)[-2:]))
                seen.append((descriptors_of(pid), resident_bytes(pid)))
        ends(server)
    finally:
        server.end()
    lost = [line for line in server.err.lines if re.search(" (WARNING|ERROR|CRITICAL) ", line)]
    (descriptors, resident), (descriptors_after, resident_after) = seen[1], seen[-1]
    sound = not load.failures and not lost and descriptors == descriptors_after
    print(
        f"{worker}, {reloads} reloads: {load.answers.total()} requests, {len(load.failures)} failed;"
        f" supervisor: {descriptors_after} descriptors ({descriptors} at first), resident MiB"
        f" {resident / MIB:.1f} to {resident_after / MIB:.1f}: {'level' if sound else 'NOT SOUND'}"
    )
    for line in (*load.failures, *lost):
        print(line, file=sys.stderr)
    return sound


def descriptors_of(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--workers", nargs="+", choices=WORKERS, default=WORKERS, metavar="NAME")
    parser.add_argument("--requests", type=int, default=320_000, help="of each worker, at least")
    parser.add_argument("--reloads", type=int, default=8, help="of each supervisor")
    arguments = parser.parse_args()
    if arguments.requests < STINTS or arguments.reloads < 3:
        parser.error(f"at least {STINTS} requests and 3 reloads")
    outcomes = [soak(worker, arguments.requests) for worker in arguments.workers]
    outcomes += [reload_again_and_again(worker, arguments.reloads) for worker in arguments.workers]
    return 0 if all(outcomes) else 1


if __name__ == "__main__":
    raise SystemExit(main())
