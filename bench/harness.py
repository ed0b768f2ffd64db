"""What the scripts that measure time share: rounds in turn, samples, medians, tables, JSON."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, NoReturn, TypeVar

import environment
import servers

BENCH = Path(__file__).resolve().parent
BASELINE = "fastserve-uvloop"
START_SECONDS = 20.0
SETTLE_SECONDS = 5.0


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

    def brief(self) -> str:
        return f"{self.rate:.0f}/s, {self.cost:.1f} us, {self.busy:.0%} busy"


SampleT = TypeVar("SampleT", bound=Sample)


def cost(sample: Sample) -> float:
    return sample.cost


def rate(sample: Sample) -> float:
    return sample.rate


# --- what is run ------------------------------------------------------------------------------


def parse_arguments(
    about: str,
    known_servers: Collection[str],
    known_scenarios: Collection[str],
    json_file: str,
) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=about.partition("\n")[0])
    parser.add_argument(
        "--servers",
        nargs="+",
        choices=known_servers,
        metavar="NAME",
        help=f"default: all of {', '.join(known_servers)}",
    )
    parser.add_argument(
        "--scenarios",
        "--only",
        nargs="+",
        choices=known_scenarios,
        metavar="NAME",
        help=f"default: all of {', '.join(known_scenarios)}",
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4, help="length of each run")
    parser.add_argument("--json", type=Path, default=BENCH / "results" / json_file)
    parser.add_argument(
        "--python", default=sys.executable, help="an interpreter whose environment has fastserve"
    )
    arguments = parser.parse_args()
    if arguments.rounds < 1 or arguments.seconds < 1:
        parser.error("at least one round of one second")
    arguments.servers = arguments.servers or list(known_servers)
    arguments.scenarios = arguments.scenarios or list(known_scenarios)
    return arguments


@dataclass(frozen=True)
class Bench:
    """What stays the same through all rounds, and what is said of it."""

    names: list[str]
    keys: list[str]
    rounds: int
    seconds: int
    installation: servers.Installation
    server_core: int
    load_core: int
    description: dict[str, object]
    packages: dict[str, dict[str, object]]


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
    samples = []
    for number in range(bench.rounds):
        # Nobody is always the first, or always after the same other.
        turn = number % len(bench.names)
        for name in bench.names[turn:] + bench.names[:turn]:
            for sample in visit(name, number):
                samples.append(sample)
                show_progress(sample, bench.rounds)
    elapsed = time.monotonic() - started
    bench.description["runs"] = f"{bench.rounds} x {bench.seconds} s, {elapsed:.0f} s in all"
    return samples


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


def show_progress(sample: Sample, rounds: int) -> None:
    what = f"round {sample.round + 1}/{rounds} {sample.server} {sample.scenario}:"
    if sample.error:
        print(what, "FAILED,", brief(sample.error), file=sys.stderr)
    else:
        print(what, sample.brief(), file=sys.stderr)


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
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "machine": bench.description,
        "packages": bench.packages,
        "summary": {
            key: {name: row(results, name, key) for name in bench.names if results.of(name, key)}
            for key in bench.keys
        },
        "samples": [dataclasses.asdict(sample) for sample in results.samples],
    }
    path.write_text(json.dumps(content, indent=1) + "\n")


def leave(main: Callable[[], int]) -> NoReturn:
    """Run a script's `main` and exit as it says; Ctrl-C is worth no traceback."""
    with contextlib.suppress(KeyboardInterrupt):
        raise SystemExit(main())
    raise SystemExit(130)
