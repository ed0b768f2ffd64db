"""How fast does each server answer, and what does a request cost its processor?

Every server is pinned to one core and wrk to another. They take turns, round after round, so
that a slow minute of the machine hits them all; a round starts each server afresh. Before it is
measured, a server must have answered a few hundred requests rightly; a run in which wrk saw an
error does not count and makes the script fail.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import environment
import servers
from client import HOST, AnswerError, Client, connect

BENCH = Path(__file__).resolve().parent
BASELINE = "fastserve-uvloop"
START_SECONDS = 20.0
SETTLE_SECONDS = 5.0
WARM_UP_REQUESTS = 320
HELLO = b"Hello, world!"

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


@dataclass(frozen=True)
class Scenario:
    title: str
    app: str = "plaintext"
    connections: int = 64
    method: str = "GET"
    path: str = "/"
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    pipelined: int = 1

    @property
    def answer(self) -> bytes:
        return HELLO if self.app == "plaintext" else self.body

    @property
    def floor_size(self) -> int:
        return -1 if self.app == "plaintext" else len(self.body)

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
        "echo POST of 1 KiB, 64 connections", app="echo", method="POST", body=b"x" * 1024
    ),
    "browser": Scenario(
        "GET as a browser sends it, 14 headers, 64 connections",
        path="/articles/2024/an-address?page=2",
        headers=BROWSER_HEADERS,
    ),
    "pipelined": Scenario("16 pipelined GETs, 64 connections", pipelined=16),
    "one": Scenario("plaintext GET, one connection", connections=1),
    "many": Scenario("plaintext GET, 512 connections", connections=512),
    "seed-get": Scenario("echo benchmark: GET, 20 connections", app="echo", connections=20),
    "seed-post": Scenario(
        "echo benchmark: POST, 20 connections",
        app="echo",
        connections=20,
        method="POST",
        body=b"hello=world",
    ),
}


@dataclass(frozen=True)
class Sample:
    """One run of wrk. `error` says why it does not count."""

    server: str
    scenario: str
    round: int
    requests: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    p50_us: float = 0.0
    p99_us: float = 0.0
    error: str = ""

    @property
    def rate(self) -> float:
        return self.requests / self.seconds

    @property
    def cost(self) -> float:
        """CPU microseconds per request."""
        return self.cpu_seconds * 1e6 / self.requests

    @property
    def busy(self) -> float:
        """How much of its core the server used."""
        return self.cpu_seconds / self.seconds


# --- one run of wrk ---------------------------------------------------------------------------

# wrk.init makes the request that is then sent without asking Lua again; a global function
# "request" would be called for each. What must be sent is put where init leaves its own.
LUA = """\
local init = wrk.init
wrk.init = function(arguments)
   init(arguments)
   wrk.request = function() return "%s" end
end
done = function(summary, latency)
   local errors = summary.errors
   io.write(string.format("RESULT %%d %%d %%d %%d %%d %%d %%d %%d %%d\\n",
      summary.requests, summary.duration,
      errors.connect, errors.read, errors.write, errors.status, errors.timeout,
      latency:percentile(50), latency:percentile(99)))
end
"""


def lua_script(request: bytes) -> str:
    return LUA % "".join(f"\\{byte:03d}" for byte in request)


def run_wrk(
    scenario: Scenario, port: int, seconds: int, core: int, work: Path
) -> tuple[int, float, float, float]:
    """Requests, seconds, and the median and 99th percentile latency in microseconds."""
    script = work / "wrk.lua"
    script.write_text(lua_script(scenario.request(port)))
    command = ["wrk", "-t1", f"-c{scenario.connections}", f"-d{seconds}s", "--timeout", "10s"]
    command += ["-s", str(script), f"http://{HOST}:{port}/"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=seconds + 30,
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
    )
    results = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not results:
        raise AnswerError(f"wrk gave no result: {done.stdout[-500:]}{done.stderr[-500:]}")
    requests, duration, *errors, p50, p99 = (int(value) for value in results[0])
    if any(errors):
        kinds = zip(("connect", "read", "write", "status", "timeout"), errors, strict=True)
        raise AnswerError("wrk saw errors: " + ", ".join(f"{kind} {n}" for kind, n in kinds if n))
    if not requests:
        raise AnswerError("wrk completed no request")
    return requests, duration / 1e6, p50, p99


def check_and_warm_up(server: servers.Server, name: str, scenario: Scenario) -> None:
    request = scenario.request(server.port)
    with Client(connect(server.port, START_SECONDS, server.alive)) as client:
        for _ in range(WARM_UP_REQUESTS // scenario.pipelined):
            for answer in client.ask(request, scenario.pipelined):
                # The floor cannot echo; it answers with as many bytes.
                same = len(answer.body) == len(scenario.answer)
                if name != "floor":
                    same = answer.body == scenario.answer
                if answer.status != 200 or not same:
                    raise AnswerError(f"wrong answer: {answer.status} {answer.body[:80]!r}")


def settle(server: servers.Server) -> None:
    """Wait, not for long, until the server is done with what the previous run left behind."""
    deadline = time.monotonic() + SETTLE_SECONDS
    spent = -1.0
    while spent != server.cpu_seconds() and time.monotonic() < deadline:
        spent = server.cpu_seconds()
        time.sleep(0.1)


@dataclass(frozen=True)
class Bench:
    """What stays the same through all rounds."""

    installation: servers.Installation
    server_core: int
    load_core: int
    seconds: int

    def measure(self, server: servers.Server, name: str, key: str, number: int) -> Sample:
        scenario = SCENARIOS[key]
        try:
            check_and_warm_up(server, name, scenario)
            settle(server)
            before = server.cpu_seconds()
            requests, seconds, p50, p99 = run_wrk(
                scenario, server.port, self.seconds, self.load_core, self.installation.work
            )
            spent = server.cpu_seconds() - before
            server.alive()
        except (AnswerError, OSError, servers.ServerError, subprocess.TimeoutExpired) as error:
            why = str(error) or type(error).__name__
            return Sample(name, key, number, error=f"{why}; its log: {server.log_tail()}")
        return Sample(name, key, number, requests, seconds, spent, p50, p99)

    def visit(self, name: str, keys: list[str], number: int) -> Iterator[Sample]:
        """Start the server, once for all scenarios that can share it, and measure them."""
        for group in shareable(keys):
            first = SCENARIOS[group[0]]
            port = servers.free_port()
            command = self.installation.command(name, first.app, port, first.floor_size)
            with servers.running(command, port, self.installation.work, self.server_core) as server:
                for key in group:
                    yield self.measure(server, name, key, number)


def shareable(keys: list[str]) -> list[list[str]]:
    groups: dict[tuple[str, int], list[str]] = {}
    for key in keys:
        scenario = SCENARIOS[key]
        groups.setdefault((scenario.app, scenario.floor_size), []).append(key)
    return list(groups.values())


def run(bench: Bench, names: list[str], keys: list[str], rounds: int) -> list[Sample]:
    samples = []
    for number in range(rounds):
        # Nobody is always the first, or always after the same other.
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            for sample in bench.visit(name, keys, number):
                samples.append(sample)
                show_progress(sample, rounds)
    return samples


def show_progress(sample: Sample, rounds: int) -> None:
    what = f"round {sample.round + 1}/{rounds} {sample.server} {sample.scenario}:"
    if sample.error:
        print(what, "FAILED,", brief(sample.error), file=sys.stderr)
    else:
        print(
            what,
            f"{sample.rate:.0f}/s, {sample.cost:.1f} us, {sample.busy:.0%} busy",
            file=sys.stderr,
        )


def brief(error: str) -> str:
    """Without the log but for its last line; all of it is in the JSON file."""
    lines = error.splitlines()
    return lines[0] if len(lines) == 1 else f"{lines[0]} ... {lines[-1]}"


# --- from samples to figures ------------------------------------------------------------------


class Results:
    """The samples that count, by server and scenario, in order of rounds."""

    def __init__(self, samples: list[Sample]) -> None:
        self._samples: dict[tuple[str, str], list[Sample]] = {}
        for sample in samples:
            if not sample.error:
                self._samples.setdefault((sample.server, sample.scenario), []).append(sample)

    def of(self, server: str, scenario: str) -> list[Sample]:
        return self._samples.get((server, scenario), [])

    def ratio(
        self, server: str, other: str, scenario: str, figure: Callable[[Sample], float]
    ) -> float | None:
        """The median over the rounds of a figure's ratio: both sides met the same minute."""
        others = {sample.round: sample for sample in self.of(other, scenario)}
        ratios = [
            figure(sample) / figure(others[sample.round])
            for sample in self.of(server, scenario)
            if sample.round in others and figure(others[sample.round])
        ]
        return statistics.median(ratios) if ratios else None

    def summary(self, names: list[str], keys: list[str]) -> dict[str, dict[str, object]]:
        return {
            key: {name: self.row(name, key) for name in names if self.of(name, key)} for key in keys
        }

    def row(self, name: str, key: str) -> dict[str, float | None]:
        samples = self.of(name, key)
        costs = [sample.cost for sample in samples]
        return {
            "requests_per_second": statistics.median(sample.rate for sample in samples),
            "cpu_us": statistics.median(costs),
            "cpu_us_min": min(costs),
            "cpu_us_max": max(costs),
            "busy": statistics.median(sample.busy for sample in samples),
            "p50_us": statistics.median(sample.p50_us for sample in samples),
            "p99_us": statistics.median(sample.p99_us for sample in samples),
            "cpu_to_baseline": self.ratio(name, BASELINE, key, cost),
            "cpu_to_floor": self.ratio(name, "floor", key, cost),
        }


def cost(sample: Sample) -> float:
    return sample.cost


def rate(sample: Sample) -> float:
    return sample.rate


# --- printing ---------------------------------------------------------------------------------


def times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}"


def print_table(results: Results, names: list[str], key: str) -> None:
    print(f"\n{key}: {SCENARIOS[key].title}")
    print(
        f"{'server':<18} {'req/s':>9} {'CPU us/req':>10} {'min..max':>15} {'busy':>5}"
        f" {'x ours':>7} {'x floor':>8}"
    )
    for name in names:
        if not results.of(name, key):
            print(f"{name:<18} {'failed':>9}")
            continue
        row = results.row(name, key)
        spread = f"{row['cpu_us_min']:.1f}..{row['cpu_us_max']:.1f}"
        print(
            f"{name:<18} {row['requests_per_second']:>9.0f} {row['cpu_us']:>10.1f} {spread:>15}"
            f" {row['busy']:>5.0%} {times(row['cpu_to_baseline']):>7}"
            f" {times(row['cpu_to_floor']):>8}"
        )


def print_pairs(results: Results, names: list[str], keys: list[str]) -> None:
    """CPU cost, and in brackets requests/s, of the first as a multiple of the second's."""
    pairs = [pair for pair in PAIRS if pair[0] in names and pair[1] in names]
    if not pairs:
        return
    print("\nratios: CPU per request (requests/s)")
    print(" " * 36 + "".join(f"{key:>16}" for key in keys))
    for one, other in pairs:
        cells = ""
        for key in keys:
            cpu = times(results.ratio(one, other, key, cost))
            cells += f"{cpu + ' (' + times(results.ratio(one, other, key, rate)) + ')':>16}"
        print(f"{one + ' / ' + other:<36}" + cells)


def print_chart(results: Results, names: list[str], key: str) -> None:
    rates = {
        name: statistics.median(sample.rate for sample in results.of(name, key))
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


def print_heading(description: dict[str, object], packages: dict[str, dict[str, object]]) -> None:
    for name, value in description.items():
        print(f"{name}: {value}")
    for whose, facts in packages.items():
        found = facts["versions"]
        assert isinstance(found, dict)
        listed = ", ".join(f"{name} {version}" for name, version in found.items())
        python = f"{facts['implementation']} {facts['version']} ({facts['compiler']})"
        print(f"{whose} environment: {python}, {listed}")


# --- command line -----------------------------------------------------------------------------


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument(
        "--servers",
        nargs="+",
        choices=servers.COMMANDS,
        metavar="NAME",
        help=f"default: all of {', '.join(servers.COMMANDS)}",
    )
    parser.add_argument(
        "--scenarios",
        nargs="+",
        choices=SCENARIOS,
        metavar="NAME",
        help=f"default: all of {', '.join(SCENARIOS)}",
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4, help="length of each run of wrk")
    parser.add_argument("--json", type=Path, default=BENCH / "results" / "http.json")
    parser.add_argument(
        "--python", default=sys.executable, help="an interpreter whose environment has fastserve"
    )
    arguments = parser.parse_args()
    if arguments.rounds < 1 or arguments.seconds < 1:
        parser.error("at least one round of one second")
    return arguments


def choose(wanted: list[str] | None, ours: dict[str, object]) -> list[str]:
    """All servers by default, without fastserve where it is not installed."""
    if wanted:
        return wanted
    if ours["has_fastserve"]:
        return list(servers.COMMANDS)
    print("fastserve is not installed for --python; measuring the others", file=sys.stderr)
    return [name for name in servers.COMMANDS if not servers.is_ours(name)]


def main() -> int:
    arguments = parse_arguments()
    environment.require("wrk")
    python = environment.absolute(arguments.python)
    packages = {"fastserve's": environment.python_facts(python, environment.OURS)}
    names = choose(arguments.servers, packages["fastserve's"])
    keys = arguments.scenarios or list(SCENARIOS)
    peers = ""
    if any(map(servers.is_peer, names)):
        peers = environment.peers_python(python)
        packages["peers'"] = environment.python_facts(peers, environment.pinned())
    description = environment.machine()
    server_core, load_core = servers.pick_cores()

    with tempfile.TemporaryDirectory() as folder:
        installation = servers.prepare(Path(folder), python, peers, "floor" in names)
        bench = Bench(installation, server_core, load_core, arguments.seconds)
        started = time.monotonic()
        samples = run(bench, names, keys, arguments.rounds)

    results = Results(samples)
    description["cores used"] = f"{server_core} server, {load_core} wrk"
    description["runs"] = (
        f"{arguments.rounds} x {arguments.seconds} s, {time.monotonic() - started:.0f} s in all"
    )
    print_heading(description, packages)
    for key in keys:
        print_table(results, names, key)
    print_pairs(results, names, keys)
    for key in keys:
        if key.startswith("seed-"):
            print_chart(results, names, key)
    write_json(arguments.json, description, packages, results.summary(names, keys), samples)
    return report_failures(samples)


def write_json(
    path: Path,
    description: dict[str, object],
    packages: dict[str, dict[str, object]],
    summary: dict[str, dict[str, object]],
    samples: list[Sample],
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "machine": description,
        "packages": packages,
        "summary": summary,
        "samples": [dataclasses.asdict(sample) for sample in samples],
    }
    path.write_text(json.dumps(content, indent=1) + "\n")


def report_failures(samples: list[Sample]) -> int:
    failed = [sample for sample in samples if sample.error]
    for sample in failed:
        what = f"{sample.server} {sample.scenario}, round {sample.round + 1}"
        print(f"FAILED: {what}: {brief(sample.error)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        raise SystemExit(main())
    raise SystemExit(130)
