"""fastserve does all that tests/conformance asks, and the suite asks all that is to be asked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from conformance.catalogue import ALL
from conformance.requirements import GROUPS, REQUIREMENTS, group_of
from conformance.servers import KNOWN
from conftest import WORKERS
from process import SOURCES, others_environment

TESTS = Path(__file__).resolve().parent
# Under load, and with the sanitizers, nothing may count as hung that is only slow.
PATIENCE = ["--patience", "30"]
LONG = pytest.mark.timeout(900)

# What a default of ours leaves unjudged: HTTP/2 is not spoken, and send() raises only on demand.
LEFT = {"R12", "R16", "R28", "R43", "R44"}
ON_DEMAND = {"R3", "R11", "R12", "R43", "R44"}


def results(*arguments: str, env: dict[str, str] | None = None) -> dict[str, Any]:
    """What the command finds out about one server, by requirement."""
    command = [sys.executable, "-m", "conformance", *arguments, "--json", "-"]
    env = {**(env or os.environ), "PYTHONPATH": str(SOURCES)}
    done = subprocess.run(command, cwd=TESTS, env=env, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr
    report = json.loads(done.stdout)[0]["requirements"]
    failed = any(each["result"] == "fail" for each in report.values())
    assert done.returncode == failed
    return dict(report)


def those(report: dict[str, Any], result: str) -> dict[str, str]:
    return {number: each["seen"] for number, each in report.items() if each["result"] == result}


@LONG
@pytest.mark.parametrize("worker", WORKERS)
def test_fastserve_does_all_of_it(worker: str) -> None:
    report = results(f"fastserve-{worker}", *PATIENCE)
    assert report.keys() == REQUIREMENTS.keys()
    assert those(report, "fail") == {}
    assert those(report, "not applicable").keys() == LEFT


@LONG
@pytest.mark.parametrize("worker", WORKERS)
def test_send_that_raises(worker: str) -> None:
    command = (
        f"{sys.executable} -m fastserve -k {worker} --raise-on-disconnect"
        " -b 127.0.0.1:{port} {app}"
    )
    report = results("--cmd", command, *PATIENCE, "--only", *sorted(ON_DEMAND))
    assert those(report, "pass").keys() == ON_DEMAND, report


def test_every_requirement_has_a_check() -> None:
    numbers = [f"R{n}" for n in range(1, 92)] + [f"H{n}" for n in range(1, 14)]
    numbers += [f"X{n}" for n in range(1, 9)]
    assert list(REQUIREMENTS) == numbers
    assert {check.number for check in ALL} == set(numbers)
    assert {group_of(number) for number in numbers} == set(GROUPS)


def test_names_of_checks_are_their_own() -> None:
    """Two functions of one name in a module: the first would still be run, and not be seen."""
    places = [(check.run.__module__, check.name) for check in ALL]
    assert len(places) == len(set(places))


# Failures that are well known; a suite that does not see them proves nothing.
UVICORN = {
    "R33": "chunked",
    "R36": "Content-Length and Transfer-Encoding",
    "R42": "RuntimeError",
    "H2": "keep-alive",
    "X2": "0666",
}


@LONG
def test_what_uvicorn_does_otherwise_is_seen() -> None:
    command = [sys.executable, "-m", "uvicorn", "--no-access-log", "--http", "httptools"]
    report = results(
        "--cmd",
        " ".join([*command, "--port {port} {app}"]),
        "--variant",
        "unix=" + " ".join([*command, "--uds {socket} {app}"]),
        "--only",
        *UVICORN,
        env=others_environment(),
    )
    failed = those(report, "fail")
    assert failed.keys() == UVICORN.keys()
    for number, word in UVICORN.items():
        assert word in failed[number]


def test_the_page_has_every_requirement_and_server() -> None:
    page = (TESTS.parent / "docs" / "conformance.md").read_text()
    for number, requirement in REQUIREMENTS.items():
        assert f"| {number} | {requirement.text}" in page
    for name in KNOWN:
        assert f"### {name}" in page


def exit_status(*arguments: str) -> Sequence[Any]:
    command = [sys.executable, "-m", "conformance", *arguments]
    done = subprocess.run(command, cwd=TESTS, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("command", "seen"),
    [
        (f"{sys.executable} -c 'exit(\"no way\")'", "the server does not start: no way"),
        ("no-such-server", "there is no program no-such-server"),
    ],
)
def test_a_server_that_does_not_start(command: str, seen: str) -> None:
    report = results("--cmd", command, "--only", "R1")
    assert those(report, "fail") == {"R1": f"the scope is a dict: {seen}"}


def test_the_exit_status(tmp_path: Path) -> None:
    """Of a comparison it says nothing of the peers, which are without a server here."""
    peers = tmp_path / "python"
    peers.write_text('#!/bin/sh\n[ "$1" = -c ] && echo 1.0\n')
    peers.chmod(0o755)
    compared = ("--all", "--only", "R1", "--peers", str(peers))
    assert exit_status("--cmd", "no-such-server", "--only", "R1")[0] == 1
    assert exit_status("uvicorn", *compared[1:])[0] == 1
    assert exit_status(*compared)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "which server?"),
        (["--all", "--only", "R1", "--table", "x.md"], "exclude each other"),
        (["nginx"], "no such server: nginx"),
        (["--cmd", "x {port}", "--variant", "moon=x"], "no such variant: moon"),
    ],
)
def test_what_the_command_refuses(arguments: list[str], complaint: str) -> None:
    status, said = exit_status(*arguments)
    assert status == 1
    assert complaint in said
