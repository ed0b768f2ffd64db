"""Judge servers.

Examples:
    python -m conformance --cmd 'uvicorn --port {port} {app}'
    python -m conformance --cmd 'hypercorn -b 127.0.0.1:{port} {app}' \\
        --variant unix='hypercorn -b unix:{socket} {app}' --json -
    python -m conformance fastserve-trio --only R36 R42
    python -m conformance --all --peers .venv/bin/python --table ../docs/conformance.md

In a command {app} is the application, {port} the port on 127.0.0.1; in those of variants {socket}
is the path of a unix socket, {certfile} and {keyfile} are a certificate and its key, in PEM. Run it
with the tests' folder as the current one, or on PYTHONPATH. The exit status is 0 when no check
failed; with --all, which compares, when none of fastserve's did.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from functools import partial
from pathlib import Path
from typing import NamedTuple

from conformance.catalogue import ALL
from conformance.checks import FAIL, run
from conformance.report import Report, page, table, verdicts
from conformance.server import PATIENCE, VARIANTS, Commands, Target
from conformance.servers import KNOWN, python_of


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m conformance",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("servers", nargs="*", metavar="SERVER", help=f"one of {', '.join(KNOWN)}")
    parser.add_argument("--all", action="store_true", help="all of these")
    parser.add_argument("--cmd", metavar="COMMAND", help="another server, by its command")
    parser.add_argument(
        "--variant",
        action="append",
        default=[],
        metavar="NAME=COMMAND",
        help="its command to start it " + "; ".join(f"{n}: {what}" for n, what in VARIANTS.items()),
    )
    parser.add_argument("--peers", metavar="PYTHON", help="the interpreter that has the peers")
    parser.add_argument("--only", nargs="+", metavar="NUMBER", help="requirements to check")
    parser.add_argument("--patience", type=float, default=PATIENCE, metavar="SECONDS",
                        help="how long to wait for what should happen at once [%(default)g]")  # fmt: skip
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="servers at a time [1]")
    parser.add_argument("--json", metavar="FILE", help="write the results there; - is stdout")
    parser.add_argument("--table", metavar="FILE", help="write the page of the documentation there")
    return parser


class Candidate(NamedTuple):
    """A server to judge. `shown` is its command as it is reported."""

    name: str
    version: str
    commands: Commands
    shown: str


def chosen(given: argparse.Namespace) -> list[Candidate]:
    candidates = []
    if given.cmd is not None:
        variants = dict(each.split("=", 1) for each in given.variant)
        if unknown := variants.keys() - VARIANTS.keys():
            raise SystemExit(f"no such variant: {', '.join(unknown)}")
        name = given.cmd.split()[0]
        candidates.append(Candidate(name, "", Commands(given.cmd, variants), given.cmd))
    for name in KNOWN if given.all else given.servers:
        if name not in KNOWN:
            raise SystemExit(f"no such server: {name}; --cmd takes a command")
        known, python = KNOWN[name], python_of(name, given.peers)
        commands, shown = known.commands(python), known.commands("python").plain
        candidates.append(Candidate(name, known.version(python), commands, shown))
    if not candidates:
        raise SystemExit("which server? See --help")
    return candidates


def judge(given: argparse.Namespace, candidate: Candidate) -> Report:
    checks = [each for each in ALL if given.only is None or each.number in given.only]
    outcomes = []
    for outcome in run(checks, Target(candidate.commands, given.patience)):
        outcomes.append(outcome)
        if sys.stderr.isatty() and given.jobs == 1:
            done = f"{candidate.name}: {len(outcomes)} of {len(checks)} checks"
            end = "\n" if len(outcomes) == len(checks) else "\r"
            print(done, end=end, file=sys.stderr, flush=True)
    return Report(candidate.name, candidate.version, candidate.shown, verdicts(outcomes))


def write(path: str, text: str) -> None:
    if path == "-":
        print(text)
    else:
        Path(path).write_text(text)


def main(arguments: Sequence[str] | None = None) -> int:
    given = options().parse_args(arguments)
    if given.only and given.table:
        raise SystemExit("a page has all requirements: --table and --only exclude each other")
    # So that the servers are ended too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    candidates = chosen(given)
    reports = []
    with ProcessPoolExecutor(given.jobs) as pool:
        judged = map if given.jobs == 1 else pool.map
        for report in judged(partial(judge, given), candidates):
            reports.append(report)
            if given.json != "-":
                print(table(report), flush=True)
    if given.json:
        write(given.json, json.dumps([report.as_json() for report in reports], indent=1))
    if given.table:
        write(given.table, page(reports, date.today()))
    peers = {name for name, known in KNOWN.items() if given.all and not known.is_ours}
    return int(any(report.count(FAIL) for report in reports if report.name not in peers))


if __name__ == "__main__":
    sys.exit(main())
