"""What the scripts that measure time share: rounds in turn, samples, medians, tables, JSON."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, NoReturn, TypeVar

import environment
import servers

BENCH = Path(__file__).resolve().parent
RESULTS = BENCH / "results"
BASELINE = "fastserve-uvloop"
START_SECONDS = 20.0
SETTLE_SECONDS = 5.0


@dataclass(frozen=True)
class Scenario:
    """What a server is asked for. The scripts have their own, with more in them."""

    title: str
    # Servers that cannot take part, and those of which nothing is learned here: they are asked
    # only where servers are named.
    without: tuple[str, ...] = dataclasses.field(default=(), kw_only=True)
    spared: tuple[str, ...] = dataclasses.field(default=(), kw_only=True)

    def suits(self, server: str) -> bool:
        return server not in self.without

    def expected(self, seconds: int) -> float:
        """About how many seconds a run takes, with the server's start and end."""
        return seconds + 1.0


@dataclass(frozen=True)
class Sample:
    """One server under load, once. `error` says why it does not count."""

    server: str
    scenario: str
    round: int
    count: int = 0  # of requests, messages or whatever else was done
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    error: str = dataclasses.field(default="", kw_only=True)

    @property
    def rate(self) -> float:
        return self.count / self.seconds

    @property
    def cost(self) -> float:
        """CPU microseconds for each that was done."""
        return self.cpu_seconds * 1e6 / self.count

    @property
    def busy(self) -> float:
        """How much of its core the server used."""
        return self.cpu_seconds / self.seconds

    def figures(self) -> dict[str, float]:
        """What is published of it."""
        return {"cpu_us": self.cost, "per_second": self.rate}

    def brief(self) -> str:
        return f"{self.rate:.0f}/s, {self.cost:.1f} us, {self.busy:.0%} busy"


@dataclass(frozen=True)
class MemorySample(Sample):
    """One run. What a scenario of memory counts, and times, is connections that were opened."""

    grown_bytes: int = 0  # by how much the server's resident memory grew in the run

    def figures(self) -> dict[str, float]:
        return super().figures() | {"kib": kibibytes(self)}

    def brief(self) -> str:
        return f"{super().brief()}, {kibibytes(self):.2f} KiB each"


SampleT = TypeVar("SampleT", bound=Sample)
MemorySampleT = TypeVar("MemorySampleT", bound=MemorySample)


def cost(sample: Sample) -> float:
    return sample.cost


def rate(sample: Sample) -> float:
    return sample.rate


def kibibytes(sample: MemorySample) -> float:
    """Resident memory for each connection."""
    return sample.grown_bytes / 1024 / sample.count


# --- what is run ------------------------------------------------------------------------------


def parse_arguments(
    about: str,
    known_servers: Collection[str],
    scenarios: Mapping[str, Scenario],
    json_file: str,
    rounds: int = 3,
    seconds: int = 2,
) -> argparse.Namespace:
    """`rounds` and `seconds` are the defaults. What is chosen comes as `servers`, a list of names, and
    `scenarios`, by name; `spare` says that nobody chose the servers."""
    parser = argparse.ArgumentParser(description=about.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=rounds, help=f"default: {rounds}")
    parser.add_argument(
        "--seconds", type=int, default=seconds, help=f"length of each run; default: {seconds}"
    )
    parser.add_argument("--json", type=Path, default=RESULTS / json_file)
    add_choices(parser, known_servers, scenarios)
    arguments = parser.parse_args()
    if arguments.rounds < 1 or arguments.seconds < 1:
        parser.error("at least one round of one second")
    arguments.spare = arguments.servers is None
    arguments.servers = chosen(parser, arguments.servers, known_servers, arguments.lenient)
    keys = chosen(parser, arguments.scenarios, scenarios, arguments.lenient)
    arguments.scenarios = {key: scenarios[key] for key in keys}
    if arguments.plan:
        visits = (expected(arguments, name) for name in arguments.servers)
        print(arguments.rounds * sum(map(sum, visits)))
        raise SystemExit(0)
    return arguments


def add_choices(
    parser: argparse.ArgumentParser, known_servers: Collection[str], scenarios: Collection[str]
) -> None:
    parser.add_argument(
        "--servers",
        nargs="+",
        metavar="NAME",
        help=f"of {', '.join(known_servers)}; default: all, in scenarios where they tell something",
    )
    parser.add_argument(
        "--scenarios",
        "--only",
        nargs="+",
        metavar="NAME",
        help=f"default: all of {', '.join(scenarios)}",
    )
    parser.add_argument(
        "--python", default=sys.executable, help="an interpreter whose environment has fastserve"
    )
    parser.add_argument("--plan", action="store_true", help="only say how many seconds it takes")
    parser.add_argument(
        "--lenient", action="store_true", help="names that are not known here are another script's"
    )


def chosen(
    parser: argparse.ArgumentParser, names: list[str] | None, known: Collection[str], lenient: bool
) -> list[str]:
    """All, if none were given."""
    unknown = [name for name in names or () if name not in known]
    if unknown and not lenient:
        parser.error(f"not known: {', '.join(unknown)}; there are {', '.join(known)}")
    return [name for name in known if names is None or name in names]


def expected(arguments: argparse.Namespace, name: str) -> list[float]:
    """The seconds of each run that a server has in a round."""
    return [
        scenario.expected(arguments.seconds)
        for scenario in arguments.scenarios.values()
        if asks(scenario, name, arguments.spare)
    ]


def asks(scenario: Scenario, name: str, spare: bool) -> bool:
    return scenario.suits(name) and not (spare and name in scenario.spared)


@dataclass(frozen=True)
class Bench:
    """What stays the same through all rounds, and what is said of it."""

    names: list[str]
    scenarios: dict[str, Scenario]
    spare: bool  # those of which nothing is learned
    rounds: int
    seconds: int
    installation: servers.Installation
    server_core: int
    load_core: int
    description: dict[str, object]
    packages: dict[str, dict[str, object]]

    @property
    def keys(self) -> list[str]:
        return list(self.scenarios)

    def asked(self, name: str) -> list[str]:
        """The scenarios that a server has part in."""
        return [key for key in self.keys if asks(self.scenarios[key], name, self.spare)]


@contextlib.contextmanager
def prepared(arguments: argparse.Namespace, load_is_peer: bool = False) -> Iterator[Bench]:
    """The servers' programs in a scratch folder. `load_is_peer`: the load needs the peers too."""
    python = environment.absolute(arguments.python)
    packages = {"fastserve's": environment.python_facts(python, environment.OURS)}
    names = present(arguments.servers, bool(packages["fastserve's"]["has_fastserve"]))
    peers = ""
    if load_is_peer or any(map(servers.is_peer, names)):
        peers = environment.peers_python(python)
        packages["peers'"] = environment.python_facts(peers, list(environment.pinned()))
    frameworks = ""
    if set(servers.FRAMEWORKS) & set(arguments.scenarios):
        frameworks = environment.frameworks(python, filter(None, [python, peers]))
        packages["applications'"] = environment.python_facts(
            python, list(environment.pinned(environment.FRAMEWORKS)), frameworks
        )
    server_core, load_core = servers.pick_cores()
    description = environment.machine()
    description["cores used"] = f"{server_core} server, {load_core} load"
    with tempfile.TemporaryDirectory() as folder:
        yield Bench(
            names,
            arguments.scenarios,
            arguments.spare,
            arguments.rounds,
            arguments.seconds,
            servers.prepare(Path(folder), python, peers, "floor" in names, frameworks),
            server_core,
            load_core,
            description,
            packages,
        )


def present(names: list[str], has_fastserve: bool) -> list[str]:
    if has_fastserve or not any(map(servers.is_ours, names)):
        return names
    print("fastserve is not installed for --python; measuring the others", file=sys.stderr)
    return [name for name in names if not servers.is_ours(name)]


def run(bench: Bench, visit: Callable[[str, int], Iterator[SampleT]]) -> list[SampleT]:
    """Let `visit` measure each server, by name, once in each round."""
    started = time.monotonic()
    seconds = {key: scenario.expected(bench.seconds) for key, scenario in bench.scenarios.items()}
    visits = [seconds[key] for name in bench.names for key in bench.asked(name)]
    progress = Progress(bench.rounds * sum(visits))
    samples = []
    for number in range(bench.rounds):
        # Nobody is always the first, or always after the same other.
        turn = number % len(bench.names)
        for name in bench.names[turn:] + bench.names[:turn]:
            for sample in visit(name, number):
                samples.append(sample)
                show(progress, sample, seconds[sample.scenario], bench.rounds)
    progress.end()
    elapsed = time.monotonic() - started
    bench.description["rounds"] = bench.rounds
    bench.description["seconds"] = bench.seconds
    bench.description["took"] = round(elapsed)
    return samples


class Progress:
    """How far we are, and what is left, on stderr: a bar where that is a terminal, else lines.

    A script that is one of several says so in the environment: the seconds expected of those before
    it and of all, and when the first began.
    """

    VARIABLE = "BENCH_PROGRESS"
    WIDTH = 30

    def __init__(self, total: float) -> None:
        given = os.environ.get(self.VARIABLE, f"0 {total} {time.monotonic()}")
        self._done, self._total, self._started = map(float, given.split())
        self._bar = sys.stderr.isatty()

    def step(self, expected: float, text: str, worth_a_line: bool = False) -> None:
        """What was expected to take so long is done. `text` stays, where there is a bar, only if it
        is worth a line."""
        self._done += expected
        part = min(self._done / self._total, 1.0) if self._total else 1.0
        left = (time.monotonic() - self._started) * (1 - part) / part if part else 0.0
        state = f"{part:4.0%}, {left / 60:.0f} min left"
        if not self._bar:
            print(f"[{state}] {text}", file=sys.stderr)
            return
        if worth_a_line:
            print(f"\r\x1b[K{text}", file=sys.stderr)
        filled = round(part * self.WIDTH)
        line = f"{'█' * filled}{'░' * (self.WIDTH - filled)} {state}  {text}"
        width = os.get_terminal_size(sys.stderr.fileno()).columns
        print(f"\r\x1b[K{line[: width - 1]}", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        if self._bar:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def settle(server: servers.Server, quiet: float = 0.1, patience: float = SETTLE_SECONDS) -> None:
    """Wait, not for long, until the server is done with what came before: until it has used no
    more of its processor for `quiet` seconds."""
    deadline = time.monotonic() + patience
    spent = -1.0
    while spent != server.cpu_seconds() and time.monotonic() < deadline:
        spent = server.cpu_seconds()
        time.sleep(quiet)


def failure(error: Exception, server: servers.Server) -> str:
    """Why a sample does not count, with the end of the server's log."""
    return f"{str(error) or type(error).__name__}; its log: {server.log_tail()}"


def show(progress: Progress, sample: Sample, expected: float, rounds: int) -> None:
    what = f"round {sample.round + 1}/{rounds} {sample.server} {sample.scenario}: "
    said = f"FAILED, {brief(sample.error)}" if sample.error else sample.brief()
    progress.step(expected, what + said, bool(sample.error))


def brief(error: str) -> str:
    """Without the log but for its last line; all of it is in the JSON file."""
    lines = error.splitlines()
    return lines[0] if len(lines) == 1 else f"{lines[0]} ... {lines[-1]}"


# --- from samples to figures ------------------------------------------------------------------


class Results(Generic[SampleT]):
    """The samples that count, by server and scenario, in order of rounds."""

    def __init__(self, samples: list[SampleT]) -> None:
        self.samples = samples  # those that failed too
        self._good: dict[tuple[str, str], list[SampleT]] = {}
        for sample in samples:
            if not sample.error:
                self._good.setdefault((sample.server, sample.scenario), []).append(sample)

    def of(self, server: str, scenario: str) -> list[SampleT]:
        return self._good.get((server, scenario), [])

    def asked(self, names: list[str], scenario: str) -> list[str]:
        """Those that took part, also where they failed."""
        found = {sample.server for sample in self.samples if sample.scenario == scenario}
        return [name for name in names if name in found]

    def median(self, server: str, scenario: str, figure: Callable[[SampleT], float]) -> float:
        return statistics.median(figure(sample) for sample in self.of(server, scenario))

    def ratio(
        self, server: str, other: str, scenario: str, figure: Callable[[SampleT], float]
    ) -> float | None:
        """The median over the rounds of a figure's ratio: both sides met the same minute."""
        others = {sample.round: sample for sample in self.of(other, scenario)}
        ratios = [
            figure(sample) / figure(others[sample.round])
            for sample in self.of(server, scenario)
            if sample.round in others and figure(others[sample.round])
        ]
        return statistics.median(ratios) if ratios else None

    def row(
        self, server: str, scenario: str, figure: Callable[[SampleT], float] = cost
    ) -> dict[str, float | None]:
        """Median and spread of a figure, and what it is compared with."""
        figures = [figure(sample) for sample in self.of(server, scenario)]
        return {
            "median": statistics.median(figures),
            "min": min(figures),
            "max": max(figures),
            "to_baseline": self.ratio(server, BASELINE, scenario, figure),
            "to_floor": self.ratio(server, "floor", scenario, figure),
        }


# --- printing ---------------------------------------------------------------------------------


def times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}"


def print_table(
    results: Results[SampleT], names: list[str], key: str, title: str, unit: str
) -> None:
    """CPU microseconds for each `unit` of a scenario, and the units per second."""
    print(f"\n{key}: {title}")
    print(
        f"{'server':<18} {unit + '/s':>9} {'CPU us/' + unit:>10} {'min..max':>15} {'busy':>5}"
        f" {'x ours':>7} {'x floor':>8}"
    )
    for name in results.asked(names, key):
        if not results.of(name, key):
            print(f"{name:<18} {'failed':>9}")
            continue
        row = results.row(name, key)
        spread = f"{row['min']:.1f}..{row['max']:.1f}"
        print(
            f"{name:<18} {results.median(name, key, rate):>9.0f} {row['median']:>10.1f}"
            f" {spread:>15} {results.median(name, key, lambda sample: sample.busy):>5.0%}"
            f" {times(row['to_baseline']):>7} {times(row['to_floor']):>8}"
        )


def print_memory(results: Results[MemorySampleT], names: list[str], key: str, title: str) -> None:
    """Resident KiB for each connection of a scenario."""
    print(f"\n{key}: {title}")
    print(f"{'server':<18} {'KiB':>9} {'min..max':>15} {'x ours':>7} {'CPU us to open':>15}")
    for name in results.asked(names, key):
        if not results.of(name, key):
            print(f"{name:<18} {'failed':>9}")
            continue
        figures = results.row(name, key, kibibytes)
        spread = f"{figures['min']:.2f}..{figures['max']:.2f}"
        print(
            f"{name:<18} {figures['median']:>9.2f} {spread:>15}"
            f" {times(figures['to_baseline']):>7} {results.median(name, key, cost):>15.0f}"
        )


def print_pairs(
    results: Results[SampleT], pairs: Collection[tuple[str, str]], names: list[str], keys: list[str]
) -> None:
    """CPU cost, and in brackets the rate, of the first as a multiple of the second's."""
    pairs = [pair for pair in pairs if pair[0] in names and pair[1] in names]
    if not pairs or not keys:
        return
    print("\nratios: CPU (per second)")
    print(" " * 36 + "".join(f"{key:>16}" for key in keys))
    for one, other in pairs:
        cells = ""
        for key in keys:
            cpu = times(results.ratio(one, other, key, cost))
            cells += f"{cpu + ' (' + times(results.ratio(one, other, key, rate)) + ')':>16}"
        print(f"{one + ' / ' + other:<36}" + cells)


def print_heading(bench: Bench) -> None:
    for name, value in bench.description.items():
        print(f"{name}: {value}")
    for whose, facts in bench.packages.items():
        found = facts["versions"]
        assert isinstance(found, dict)
        listed = ", ".join(f"{name} {version}" for name, version in found.items())
        python = f"{facts['implementation']} {facts['version']} ({facts['compiler']})"
        print(f"{whose} environment: {python}, {listed}")


def timed_row(results: Results[SampleT], name: str, key: str) -> dict[str, float | None]:
    """What JSON has of a server in a scenario."""
    figures = {f"cpu_us_{what}": value for what, value in results.row(name, key).items()}
    return figures | {
        "per_second": results.median(name, key, rate),
        "busy": results.median(name, key, lambda sample: sample.busy),
    }


def memory_row(results: Results[MemorySampleT], name: str, key: str) -> dict[str, float | None]:
    """And in a scenario of memory."""
    memory = results.row(name, key, kibibytes)
    return timed_row(results, name, key) | {f"kib_{what}": kib for what, kib in memory.items()}


Row = Callable[[Results[SampleT], str, str], dict[str, float | None]]


def finish(path: Path, bench: Bench, results: Results[SampleT], row: Row[SampleT]) -> int:
    """Everything to a file, and what failed to stderr. `row` says what the summary has for a server
    and a scenario. Returns the script's exit status."""
    _write_json(path, bench, results, row)
    failed = [sample for sample in results.samples if sample.error]
    for sample in failed:
        what = f"{sample.server} {sample.scenario}, round {sample.round + 1}"
        print(f"FAILED: {what}: {brief(sample.error)}", file=sys.stderr)
    return 1 if failed else 0


def _write_json(path: Path, bench: Bench, results: Results[SampleT], row: Row[SampleT]) -> None:
    content = {
        "machine": bench.description,
        "packages": bench.packages,
        "scenarios": {key: scenario.title for key, scenario in bench.scenarios.items()},
        "rounds": by_round(bench, results.samples),
        "summary": {
            key: {name: row(results, name, key) for name in bench.names if results.of(name, key)}
            for key in bench.keys
        },
        "samples": [dataclasses.asdict(sample) for sample in results.samples],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")


Rounds = dict[str, dict[str, list[dict[str, float] | None]]]


def by_round(bench: Bench, samples: list[SampleT]) -> Rounds:
    """What is published: the figures of each round by scenario and server; None if it failed."""
    rounds: Rounds = {key: {} for key in bench.keys}
    for sample in samples:
        of_server = rounds[sample.scenario].setdefault(sample.server, [None] * bench.rounds)
        if not sample.error:
            figures = sample.figures().items()
            of_server[sample.round] = {name: float(f"{value:.5g}") for name, value in figures}
    return rounds


def leave(main: Callable[[], int]) -> NoReturn:
    """Run a script's `main` and exit as it says; Ctrl-C is worth no traceback."""
    with contextlib.suppress(KeyboardInterrupt):
        raise SystemExit(main())
    raise SystemExit(130)
