"""How fast does each server answer, and what does a request cost its processor?

Every server is pinned to one core and wrk to another. They take turns, round after round, so
that a slow minute of the machine hits them all; a round starts each server afresh. Before it is
measured, a server must have answered a few hundred requests rightly; a run in which wrk saw an
error does not count and makes the script fail.
"""

from __future__ import annotations

import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import environment
import harness
import servers
import wrk
from client import HOST, AnswerError, Client, connect
from harness import START_SECONDS, Bench, Results, rate, settle

# Bytes of an access line; what has not been written yet at the end of a run is made up for.
LINE_LEAST = 20
HELLO = b"Hello, world!"
KIB, MIB = 1024, 1024 * 1024

# What the targets are written in: the first server's cost as a multiple of the second's.
PAIRS = (
    ("fastserve-uvloop", "floor"),
    ("fastserve-asyncio", "floor"),
    ("fastserve-trio", "floor"),
    ("fastserve-asyncio", "fastserve-uvloop"),
    ("fastserve-trio", "fastserve-uvloop"),
    ("uvicorn", "fastserve-uvloop"),
    ("uvicorn-zttp", "fastserve-uvloop"),
    ("granian", "fastserve-uvloop"),
    ("gunicorn", "fastserve-uvloop"),
    ("gunicorn-h1c", "fastserve-uvloop"),
    ("hypercorn-uvloop", "fastserve-uvloop"),
    ("hypercorn-asyncio", "fastserve-asyncio"),
    ("hypercorn-trio", "fastserve-trio"),
)

BROWSER_HEADERS = (
    ("Connection", "keep-alive"),
    ("sec-ch-ua", '"Chromium";v="140", "Not=A?Brand";v="24", "Google Chrome";v="140"'),
    ("sec-ch-ua-mobile", "?0"),
    ("sec-ch-ua-platform", '"Linux"'),
    ("Upgrade-Insecure-Requests", "1"),
    (
        "User-Agent",
        "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko)"
        " Chrome/140.0.0.0 Safari/537.36",
    ),
    (
        "Accept",
        "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8",
    ),
    ("Sec-Fetch-Site", "none"),
    ("Sec-Fetch-Mode", "navigate"),
    ("Sec-Fetch-Dest", "document"),
    ("Accept-Encoding", "gzip, deflate, br, zstd"),
    ("Accept-Language", "en-GB,en;q=0.9,de;q=0.8"),
    ("Cookie", "session=5f2b7c1e9a3d4c6f8b0a1d2e3f4a5b6c; theme=dark; consent=yes"),
)  # and Host, the fourteenth

FORWARDED_HEADERS = (
    ("X-Forwarded-For", "203.0.113.7"),
    ("X-Forwarded-Proto", "https"),
    ("X-Forwarded-Host", "www.example.org"),
)


# Another parser or loop of a server that is there already.
VARIANTS = ("uvicorn-zttp", "gunicorn", "hypercorn-asyncio")
# Dearer than the next by so much that few scenarios say it.
SLOW = ("hypercorn-uvloop", "hypercorn-trio")
FEW = (*VARIANTS, *SLOW, "gunicorn-h1c", "fastserve-asyncio")


@dataclass(frozen=True)
class Scenario(harness.Scenario):
    app: str = "plaintext"
    connections: int = 64
    method: str = "GET"
    path: str = "/"
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    pipelined: int = 1
    mode: str = ""  # of the server, one of servers.MODES
    small_answer: bytes = HELLO
    size: int = 0  # of an answer that is not small
    warm_up: int = 320  # requests
    longer: int = 1  # times as long as other runs

    @property
    def answer(self) -> bytes:
        return bytes(range(256)) * (self.size // 256) if self.size else self.small_answer

    @property
    def floor_size(self) -> int:
        return -1 if self.small_answer == HELLO else len(self.small_answer)

    def suits(self, server: str) -> bool:
        """The floor has no files, and waits for nobody who is slow to read."""
        large = self.size and server == "floor"
        return super().suits(server) and servers.knows(server, self.mode) and not large

    def expected(self, seconds: int) -> float:
        return super().expected(seconds * self.longer)

    def request(self, port: int) -> bytes:
        lines = [f"{self.method} {self.path} HTTP/1.1", f"Host: {HOST}:{port}"]
        lines += [f"{name}: {value}" for name, value in self.headers]
        if self.body:
            lines.append(f"Content-Length: {len(self.body)}")
        head = "".join(f"{line}\r\n" for line in lines) + "\r\n"
        return (head.encode() + self.body) * self.pipelined


SCENARIOS = {
    "plaintext": Scenario("plaintext GET, 64 connections", path="/plaintext"),
    "echo": Scenario(
        "echo POST of 1 KiB, 64 connections",
        app="echo",
        method="POST",
        body=b"x" * KIB,
        small_answer=b"x" * KIB,
        spared=VARIANTS + SLOW,
    ),
    "browser": Scenario(
        "GET as a browser sends it, 14 headers, 64 connections",
        path="/articles/2024/an-address?page=2",
        headers=BROWSER_HEADERS,
        spared=(*VARIANTS, "hypercorn-uvloop"),
    ),
    "pipelined": Scenario(
        "16 pipelined GETs, 64 connections", pipelined=16, spared=VARIANTS + SLOW
    ),
    "one": Scenario(
        "plaintext GET, one connection", connections=1, spared=(*VARIANTS, *SLOW, "gunicorn-h1c")
    ),
    "many": Scenario("plaintext GET, 512 connections", connections=512, spared=FEW),
    "forwarded": Scenario(
        "plaintext GET as a trusted proxy passes it on, 64 connections",
        headers=FORWARDED_HEADERS,
        spared=FEW,
    ),
    "distrusted": Scenario(
        "the same, but nobody is trusted", headers=FORWARDED_HEADERS, mode="distrustful", spared=FEW
    ),
    "tls": Scenario(
        "plaintext GET over TLS, 64 connections, keep-alive",
        mode="tls",
        spared=(*VARIANTS, "hypercorn-uvloop", "fastserve-asyncio"),
    ),
    "handshakes": Scenario(
        "a TLS connection for each GET, 64 at a time",
        headers=(("Connection", "close"),),
        mode="tls",
        warm_up=1,
        spared=FEW,
    ),
    "body-256k": Scenario(
        "an answer of 256 KiB in one piece, 16 connections",
        app="body",
        connections=16,
        size=256 * KIB,
        warm_up=32,
        spared=VARIANTS + SLOW,
    ),
    "streamed": Scenario(
        "an answer of 1 MiB in chunks of 16 KiB, 16 connections",
        app="streamed",
        connections=16,
        size=MIB,
        warm_up=16,
        spared=VARIANTS + SLOW,
    ),
    "upload": Scenario(
        "POST of 1 MiB, 16 connections",
        app="upload",
        connections=16,
        method="POST",
        body=b"x" * MIB,
        small_answer=b"%d" % MIB,
        warm_up=16,
        without=("gunicorn-h1c",),  # which closes the connection after it
        spared=("uvicorn-zttp", "hypercorn-asyncio", *SLOW),
    ),
    "file-256k": Scenario(
        "a file of 256 KiB, 16 connections",
        app="file",
        connections=16,
        path="/file-256k",
        size=256 * KIB,
        spared=(*VARIANTS, "hypercorn-uvloop", "fastserve-asyncio"),
    ),
    "file-100m": Scenario(
        "a file of 100 MiB, one connection",
        app="file",
        connections=1,
        path="/file-100m",
        size=100 * MIB,
        warm_up=2,
        longer=2,
        spared=FEW,
    ),
    "logged": Scenario(
        "plaintext GET with an access log, 64 connections", mode="logged", spared=FEW
    ),
    "supervised": Scenario(
        "plaintext GET, under a supervisor with metrics, 64 connections",
        mode="supervised",
        spared=FEW,
    ),
    "starlette": Scenario(
        "Starlette: a JSON route, 64 connections",
        app="starlette",
        path="/greetings/Ada",
        small_answer=b'{"message":"Hello, world!","name":"Ada"}',
        spared=VARIANTS,
    ),
    "fastapi": Scenario(
        "FastAPI: a route with validation, 64 connections",
        app="fastapi",
        method="POST",
        path="/orders/17?amount=3",
        headers=(("Content-Type", "application/json"),),
        body=b'{"name":"a lamp","price":12.5,"tags":["light","desk"]}',
        small_answer=b'{"number":17,"item":{"name":"a lamp","price":12.5,"tags":["light","desk"]},'
        b'"total":37.5}',
        spared=VARIANTS,
    ),
    "seed-get": Scenario(
        "echo benchmark: GET, 20 connections", app="echo", connections=20, small_answer=b""
    ),
    "seed-post": Scenario(
        "echo benchmark: POST, 20 connections",
        app="echo",
        connections=20,
        method="POST",
        body=b"hello=world",
        small_answer=b"hello=world",
    ),
}


@dataclass(frozen=True)
class Sample(harness.Sample):
    """One run of wrk, with its median and 99th percentile latency."""

    p50_us: float = 0.0
    p99_us: float = 0.0

    def figures(self) -> dict[str, float]:
        return super().figures() | {
            "busy": self.busy,
            "p50_us": self.p50_us,
            "p99_us": self.p99_us,
        }


# --- one run ----------------------------------------------------------------------------------


def check_and_warm_up(server: servers.Server, name: str, scenario: Scenario) -> None:
    request, expected = scenario.request(server.port), scenario.answer
    connection = connect(server.port, START_SECONDS, server.alive)
    if scenario.mode == "tls":
        context = ssl.create_default_context(cafile=servers.CERTIFICATES / "ca.pem")
        connection = context.wrap_socket(connection, server_hostname="localhost")
    with Client(connection) as client:
        for _ in range(scenario.warm_up // scenario.pipelined):
            for answer in client.ask(request, scenario.pipelined):
                # The floor cannot echo; it answers with as many bytes.
                same = len(answer.body) == len(expected)
                if name != "floor":
                    same = answer.body == expected
                if answer.status != 200 or not same:
                    raise AnswerError(f"wrong answer: {answer.status} {answer.body[:80]!r}")


def measure(bench: Bench, server: servers.Server, name: str, key: str, number: int) -> Sample:
    scenario = SCENARIOS[key]
    try:
        check_and_warm_up(server, name, scenario)
        settle(server)
        before = server.cpu_seconds()
        requests, seconds, p50, p99 = wrk.run(
            scenario.request(server.port),
            server.port,
            bench.installation.work,
            connections=scenario.connections,
            seconds=bench.seconds * scenario.longer,
            core=bench.load_core,
            scheme="https" if scenario.mode == "tls" else "http",
        )
        spent = server.cpu_seconds() - before
        if scenario.mode == "logged" and bench.installation.logged_bytes() < LINE_LEAST * requests:
            raise AnswerError("it has not logged its requests")
        server.alive()
    except (AnswerError, OSError, servers.ServerError, subprocess.TimeoutExpired) as error:
        return Sample(name, key, number, error=harness.failure(error, server))
    return Sample(name, key, number, requests, seconds, spent, p50, p99)


def visit(bench: Bench, name: str, number: int) -> Iterator[Sample]:
    """Start the server, once for all scenarios that can share it, and measure them."""
    for group in shareable(name, bench.asked(name)):
        first = SCENARIOS[group[0]]
        for key in group:
            write_file(bench.installation.work, SCENARIOS[key])
        bench.installation.access_log.unlink(missing_ok=True)
        port = servers.free_port()
        command = bench.installation.command(
            name, first.app, port, str(first.floor_size), first.mode
        )
        with servers.running(
            command,
            port,
            bench.installation.work,
            bench.server_core,
            bench.installation.environment(first.app),
        ) as server:
            for key in group:
                yield measure(bench, server, name, key, number)


def write_file(work: Path, scenario: Scenario) -> None:
    path = work / scenario.path.removeprefix("/")
    if scenario.app == "file" and not path.exists():
        path.write_bytes(scenario.answer)


def shareable(name: str, keys: list[str]) -> list[list[str]]:
    groups: dict[tuple[str, int, str], list[str]] = {}
    for key in keys:
        scenario = SCENARIOS[key]
        kind = (scenario.app, scenario.floor_size if name == "floor" else 0, scenario.mode)
        groups.setdefault(kind, []).append(key)
    return list(groups.values())


def row(results: Results[Sample], name: str, key: str) -> dict[str, float | None]:
    cpu_us = {f"cpu_us_{what}": value for what, value in results.row(name, key).items()}
    return cpu_us | {
        "requests_per_second": results.median(name, key, rate),
        "busy": results.median(name, key, lambda sample: sample.busy),
        "p50_us": results.median(name, key, lambda sample: sample.p50_us),
        "p99_us": results.median(name, key, lambda sample: sample.p99_us),
    }


# --- printing ---------------------------------------------------------------------------------


def print_chart(results: Results[Sample], names: list[str], key: str) -> None:
    rates = {
        name: results.median(name, key, rate)
        for name in names
        if name != "floor" and results.of(name, key)
    }
    if not rates:
        return
    scale = 40 / max(rates.values())
    print(f"\n{SCENARIOS[key].method.lower()} requests/second")
    print("#" * 68)
    for name, value in sorted(rates.items(), key=lambda item: item[1]):
        print("█" * max(1, round(value * scale)), f"{value:.0f} {name}")


def main() -> int:
    arguments = harness.parse_arguments(__doc__ or "", servers.COMMANDS, SCENARIOS, "http.json")
    environment.require("wrk")
    with harness.prepared(arguments) as bench:
        samples = harness.run(bench, lambda name, number: visit(bench, name, number))
    results = Results(samples)
    harness.print_heading(bench)
    for key in bench.keys:
        harness.print_table(results, bench.names, key, SCENARIOS[key].title, "req")
    harness.print_pairs(results, PAIRS, bench.names, bench.keys)
    for key in bench.keys:
        if key.startswith("seed-"):
            print_chart(results, bench.names, key)
    return harness.finish(arguments.json, bench, results, row)


if __name__ == "__main__":
    harness.leave(main)
