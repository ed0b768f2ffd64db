"""All questions in one go: each script in turn, one bar with what is left, and then the report."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import harness
import report
import servers

BENCH = Path(__file__).resolve().parent
# They share their options; instructions.py, which measures no time, has others.
TIMED = ("http", "websocket", "workers", "memory")
COUNTED = "instructions"
SCRIPTS = [name for name in (*TIMED, COUNTED) if (BENCH / f"{name}.py").exists()]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scripts", nargs="+", choices=SCRIPTS, default=SCRIPTS, metavar="NAME")
    parser.add_argument("--servers", nargs="+", metavar="NAME", help="for the scripts that know it")
    parser.add_argument(
        "--scenarios",
        "--only",
        nargs="+",
        metavar="NAME",
        help="the scripts without any are left out",
    )
    parser.add_argument("--rounds", type=int, help="default: the scripts' own")
    parser.add_argument("--seconds", type=int, help="default: the scripts' own")
    parser.add_argument("--python", default=sys.executable, help="has fastserve")
    parser.add_argument(
        "--publish", action="store_true", help="make the documentation's figures of these"
    )
    return parser.parse_args()


def command(script: str, arguments: argparse.Namespace) -> list[str]:
    """How it is run; nothing, if nothing of what was chosen is for it."""
    words = [sys.executable, str(BENCH / f"{script}.py"), "--python", arguments.python]
    if script == COUNTED:
        ours = [name for name in arguments.servers or servers.COMMANDS if servers.is_ours(name)]
        if arguments.scenarios or not ours:
            return []
        runs = ["--runs", str(arguments.rounds)] if arguments.rounds else []
        return [*words, "--server", *ours, *runs]
    words.append("--lenient")
    for option in ("servers", "scenarios"):
        if given := getattr(arguments, option):
            words += [f"--{option}", *given]
    for option in ("rounds", "seconds"):
        if given := getattr(arguments, option):
            words += [f"--{option}", str(given)]
    return words


def planned(command: list[str]) -> float:
    """The seconds that a script expects to take."""
    done = subprocess.run([*command, "--plan"], stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout)


def main() -> int:
    arguments = parse_arguments()
    commands = {script: command(script, arguments) for script in arguments.scripts}
    plans = {script: planned(words) for script, words in commands.items() if words}
    plans = {script: seconds for script, seconds in plans.items() if seconds}
    if not plans:
        raise SystemExit("no script knows of anything that was chosen")
    total, before, started = sum(plans.values()), 0.0, time.monotonic()
    print(f"about {total / 60:.0f} minutes", file=sys.stderr)
    failed = []
    for script, seconds in plans.items():
        print(f"\n=== {script}", flush=True)
        variables = {harness.Progress.VARIABLE: f"{before} {total} {started}"}
        done = subprocess.run(commands[script], env={**os.environ, **variables})
        if done.returncode:
            failed.append(script)
        before += seconds
    print("\n=== report", flush=True)
    if arguments.publish:
        report.publish(arguments.python)
    else:
        report.draft(arguments.python)
    if failed:
        print(f"not all is well with {', '.join(failed)}: see above", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    harness.leave(main)
