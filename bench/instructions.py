"""How many user-space instructions does a request cost, counted and not timed?

The server runs under `valgrind --tool=callgrind` twice, for N and for 3N requests on one
connection; the difference, divided by 2N, is free of start, warm-up and stop, and hardly differs
from run to run, whatever else the machine is doing. Each length is run three times and the
smallest count of each is used: what disturbs a run (a timer that comes due) only ever adds.

`--check` compares with the figure recorded for the same CPython, loop version and compiler.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import environment
import harness
import servers
from client import HOST, AnswerError, Client, connect

BENCH = Path(__file__).resolve().parent
RECORDED = BENCH / "instructions.json"
# Those in which the client below gets its answer.
MODES = [mode for mode in servers.MODES if mode != "tls"]
OURS = [name for name in servers.COMMANDS if servers.is_ours(name)]
GROWTH_ALLOWED = 0.05
START_SECONDS = 180.0
STOP_SECONDS = 120.0
# Between two requests, long enough for the server to go back to waiting: whether it found the
# next one already there would otherwise be chance, and make trio's figure spread by 15 %.
PAUSE_SECONDS = 0.005
# About: what a run takes beside its requests, and what one of them takes.
RUN_SECONDS, REQUEST_SECONDS = 8.0, 0.008

REQUEST = (
    "GET /some/path?x=1 HTTP/1.1\r\n"
    f"Host: {HOST}\r\n"
    "User-Agent: instructions/1.0\r\n"
    "Accept: */*\r\n"
    "\r\n"
).encode()
ANSWER = (200, b"Hello, world!")
SCENARIO = "plaintext"


class CountError(Exception):
    """A run gave no count."""


@dataclass(frozen=True)
class Counter:
    """Runs servers under callgrind. With `keep`, the longer runs' profiles stay there."""

    installation: servers.Installation
    keep: Path | None
    progress: harness.Progress
    mode: str

    def per_request(self, name: str, requests: int, runs: int) -> float:
        shortest = [self.count(name, requests) for _ in range(runs)]
        longest = [self.count(name, 3 * requests, self.keep) for _ in range(runs)]
        show_runs(name, shortest, longest, requests)
        return (min(longest) - min(shortest)) / (2 * requests)

    def count(self, name: str, requests: int, keep: Path | None = None) -> int:
        """The instructions of one run, of all processes of the server."""
        with tempfile.TemporaryDirectory() as folder:
            profiles = Path(folder)
            port = servers.free_port()
            command = ["valgrind", "--tool=callgrind", "--trace-children=yes"]
            command.append(f"--callgrind-out-file={profiles}/{name}.%p")
            command += self.installation.command(name, "plaintext", port, "-1", self.mode)
            with servers.running(
                command,
                port,
                self.installation.work,
                variables={"PYTHONHASHSEED": "0"},
                stop_patience=STOP_SECONDS,
            ) as server:
                try:
                    ask(server, requests)
                except (AnswerError, OSError, servers.ServerError) as error:
                    raise CountError(f"{name}: {error}; its log: {server.log_tail()}") from error
            self.progress.step(expected(requests), f"{name}: {requests} requests")
            return collect(name, profiles, keep)


def expected(requests: int) -> float:
    """About how many seconds a run takes."""
    return RUN_SECONDS + REQUEST_SECONDS * requests


def ask(server: servers.Server, requests: int) -> None:
    with Client(connect(server.port, START_SECONDS, server.alive)) as client:
        for _ in range(requests):
            time.sleep(PAUSE_SECONDS)
            for answer in client.ask(REQUEST):
                if answer != ANSWER:
                    raise AnswerError(f"wrong answer: {answer}")


def collect(name: str, profiles: Path, keep: Path | None) -> int:
    """Add up what the processes left behind, which is nothing if they had to be killed."""
    total = 0
    found = sorted(profiles.glob(f"{name}.*"))
    for profile in found:
        text = profile.read_text(errors="replace")
        total += sum(int(count) for count in re.findall(r"^totals: (\d+)", text, re.MULTILINE))
        if keep is not None:
            keep.mkdir(parents=True, exist_ok=True)
            (keep / f"callgrind.out.{profile.name}").write_text(text)
    if not total:
        raise CountError(f"{name}: it left no profile; did it not end when asked to?")
    return total


def show_runs(name: str, shortest: list[int], longest: list[int], requests: int) -> None:
    """Each run's own difference, to show how far they spread."""
    single = [(more - less) / (2 * requests) for less, more in zip(shortest, longest, strict=True)]
    listed = ", ".join(f"{count:.0f}" for count in single)
    print(f"{name}: single runs {listed}", file=sys.stderr)


# --- recorded figures -------------------------------------------------------------------------


def combination(facts: dict[str, object], name: str, compiler: str) -> str:
    """What a figure depends on, such as "cpython-3.13.0 uvloop-0.22.1 gcc-12.2"."""
    worker = worker_of(name)
    versions = facts["versions"]
    assert isinstance(versions, dict)
    python = f"{facts['implementation']}-{facts['version']}"
    python += "t" if facts["free_threaded"] else ""
    # An interpreter built with profile feedback runs the same code in fewer instructions.
    python += "+pgo" if facts["optimized"] else ""
    loop = "asyncio" if worker == "asyncio" else f"{worker}-{versions.get(worker, 'none')}"
    machine = environment.machine()["architecture"]
    return " ".join([python, loop, compiler] + ([] if machine == "x86_64" else [str(machine)]))


def worker_of(name: str) -> str:
    return name.rpartition("-")[2]


def core_compiler(python: str) -> str:
    """The compiler that fastserve's extensions say they were made with."""
    find = (
        "import importlib.util; s = importlib.util.find_spec('fastserve');"
        "print(*(s.submodule_search_locations if s else []), sep='\\n')"
    )
    for folder in environment.ask_python(python, find).splitlines():
        for extension in sorted(Path(folder).glob("*.so")):
            return compiler_of(extension.read_bytes())
    return "unknown"


def compiler_of(binary: bytes) -> str:
    # The start files of the C library carry gcc's name even where clang compiled the rest.
    for name, pattern in (
        ("clang", rb"clang version (\d+\.\d+)"),
        ("gcc", rb"GCC: \([^)]*\) (\d+\.\d+)"),
    ):
        found = re.search(pattern, binary)
        if found:
            return f"{name}-{found[1].decode()}"
    return "unknown"


Figures = dict[str, dict[str, int]]


def load() -> Figures:
    figures: Figures = json.loads(RECORDED.read_text()) if RECORDED.exists() else {}
    return figures


def record(figures: Figures) -> None:
    recorded = load()
    for key, by_worker in figures.items():
        recorded.setdefault(key, {}).update(by_worker)
    RECORDED.write_text(json.dumps(recorded, indent=2, sort_keys=True) + "\n")


def judge(recorded: Figures, key: str, worker: str, count: int) -> tuple[str, bool]:
    """What to say about a count, and whether it is acceptable."""
    known = recorded.get(key, {}).get(worker)
    if known is None:
        return "nothing recorded for this combination, not judged", True
    growth = count / known - 1
    fine = growth <= GROWTH_ALLOWED
    verdict = "ok" if fine else f"FAILED, more than {GROWTH_ALLOWED:.0%} growth"
    return f"recorded {known}, {growth:+.1%}: {verdict}", fine


# --- command line -----------------------------------------------------------------------------


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument(
        "--server",
        nargs="+",
        choices=servers.COMMANDS,
        default=OURS,
        metavar="NAME",
        dest="servers",
        help=f"of {', '.join(servers.COMMANDS)}; default: ours",
    )
    parser.add_argument("--requests", type=int, default=300, help="N; the default is 300")
    parser.add_argument("--runs", type=int, default=3, help="runs of each length")
    parser.add_argument(
        "--mode",
        choices=MODES,
        default="",
        help="run the servers in another way; nothing is recorded for it",
    )
    parser.add_argument(
        "--callgrind-out",
        type=Path,
        metavar="DIR",
        help="keep the profiles there, for callgrind_annotate",
    )
    parser.add_argument(
        "--python", default=sys.executable, help="an interpreter whose environment has fastserve"
    )
    parser.add_argument("--json", type=Path, default=harness.RESULTS / "instructions.json")
    parser.add_argument("--plan", action="store_true", help="only say how many seconds it takes")
    action = parser.add_mutually_exclusive_group()
    action.add_argument(
        "--check",
        action="store_true",
        help="fail if a figure is more than 5 %% above the recorded one",
    )
    action.add_argument("--record", action="store_true", help=f"write {RECORDED.name}")
    arguments = parser.parse_args()
    if arguments.requests < 1 or arguments.runs < 1:
        parser.error("at least one run of one request")
    if arguments.mode and (arguments.check or arguments.record):
        parser.error("with --mode there is nothing to --check and nothing to --record")
    unknown = [name for name in arguments.servers if not servers.knows(name, arguments.mode)]
    if unknown:
        parser.error(f"no --mode {arguments.mode} of {', '.join(unknown)}")
    return arguments


def plan(arguments: argparse.Namespace) -> float:
    shortest, longest = expected(arguments.requests), expected(3 * arguments.requests)
    seconds: float = len(arguments.servers) * arguments.runs * (shortest + longest)
    return seconds


def write(path: Path, packages: dict[str, dict[str, object]], counts: dict[str, int]) -> None:
    """As the scripts that measure time do: see figures.py."""
    content = {
        "machine": environment.machine(),
        "packages": packages,
        "scenarios": {SCENARIO: "instructions per request, plaintext GET, one connection"},
        "rounds": {SCENARIO: {name: [{"instructions": n}] for name, n in counts.items()}},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")


def measure(
    counter: Counter, arguments: argparse.Namespace, describe: Callable[[str], str]
) -> tuple[Figures, dict[str, int], bool]:
    """Count for every server, and say how it compares: figures to record, which are fastserve's own,
    all counts, and whether all is well."""
    recorded = load()
    figures: Figures = {}
    counts: dict[str, int] = {}
    fine = True
    for name in arguments.servers:
        try:
            count = round(counter.per_request(name, arguments.requests, arguments.runs))
        except (CountError, subprocess.TimeoutExpired) as error:
            print(f"{name}: FAILED, {error}")
            fine = False
            continue
        counts[name] = count
        line = f"{name}: {count} instructions per request"
        if servers.is_ours(name) and not arguments.mode:
            key, worker = describe(name), worker_of(name)
            verdict, acceptable = judge(recorded, key, worker, count)
            line += f" [{key}] {verdict}"
            fine = fine and (acceptable or not arguments.check)
            figures.setdefault(key, {})[worker] = count
        print(line, flush=True)
    return figures, counts, fine


def main() -> int:
    arguments = parse_arguments()
    if arguments.plan:
        print(plan(arguments))
        return 0
    environment.require("valgrind")
    python = environment.absolute(arguments.python)
    facts = environment.python_facts(python, environment.OURS)
    peers = ""
    if any(map(servers.is_peer, arguments.servers)):
        peers = environment.peers_python(python)
    packages = {"fastserve's": facts}
    if peers:
        packages["peers'"] = environment.python_facts(peers, list(environment.pinned()))
    with tempfile.TemporaryDirectory() as folder:
        installation = servers.prepare(
            Path(folder),
            # valgrind is to be given a program, and a shell script may be what was named.
            str(facts["executable"]),
            peers,
            "floor" in arguments.servers,
        )
        progress = harness.Progress(plan(arguments))
        counter = Counter(installation, arguments.callgrind_out, progress, arguments.mode)
        compiler = core_compiler(python)
        figures, counts, fine = measure(
            counter, arguments, lambda name: combination(facts, name, compiler)
        )
        progress.end()
    write(arguments.json, packages, counts)
    if arguments.record and fine:
        record(figures)
        print(f"recorded in {RECORDED.name}")
    return 0 if fine else 1


if __name__ == "__main__":
    harness.leave(main)
