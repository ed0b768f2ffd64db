"""The examples, run the way their docstrings say."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import PATIENCE
from process import Process, others_environment

ROOT = Path(__file__).parent.parent
NOW = "2018-11-15T12:34:56.789+00:00"


class ClockAPI(ThreadingHTTPServer):
    """A clock on the web, as far as the example can tell; `answer` is what it says."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), ClockHandler)
        self.answer: tuple[int, bytes] = (200, b"")

    @property
    def url(self) -> str:
        host, port = self.server_address[:2]
        return f"http://{host!s}:{port}/now"


class ClockHandler(BaseHTTPRequestHandler):
    server: ClockAPI

    def do_GET(self) -> None:
        status, body = self.server.answer
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Not on the tests' stderr."""


@pytest.fixture(scope="module")
def clock() -> Iterator[ClockAPI]:
    with ClockAPI() as api:
        thread = threading.Thread(target=api.serve_forever)
        thread.start()
        yield api
        api.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def program(clock: ClockAPI) -> Iterator[Process]:
    """The seed's command, for the seed's kind of program."""
    server = Process(
        *("-k", "trio", "-b", "127.0.0.1:0", "examples.clock:App"),
        cwd=ROOT,
        env={"CLOCK_API_URL": clock.url, "NO_PROXY": "*"},
    )
    yield server
    server.end()


def curl(url: str) -> tuple[int, str]:
    done = subprocess.run(
        ["curl", "-sS", "--noproxy", "*", f"-m{PATIENCE}", "--write-out", "\n%{http_code}", url],
        env=others_environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    body, _, status = done.stdout.rpartition("\n")
    return int(status), body


@pytest.mark.parametrize("key", ["dateTime", "currentDateTime", "utc_datetime", "datetime"])
def test_the_time(program: Process, clock: ClockAPI, key: str) -> None:
    clock.answer = (200, json.dumps({"zone": "UTC", key: NOW}).encode())
    assert curl(program.url + "/") == (200, f"{NOW}\n")


def test_another_path(program: Process) -> None:
    assert curl(program.url + "/elsewhere") == (404, "Not found.\n")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ((500, b"{}"), "status 500"),
        ((200, b"midnight"), "no JSON"),
        ((200, b"{}"), "no time in the JSON"),
        ((200, b"[]"), "no time in the JSON"),
    ],
)
def test_a_clock_that_fails(
    program: Process, clock: ClockAPI, answer: tuple[int, bytes], reason: str
) -> None:
    clock.answer = answer
    assert curl(program.url + "/") == (502, f"The clock does not answer: {reason}\n")


def test_the_program_ends(clock: ClockAPI, worker: str) -> None:
    """On every worker: the client that it keeps for its lifetime is closed in order."""
    clock.answer = (200, json.dumps({"dateTime": NOW}).encode())
    server = Process(
        *("-k", worker, "-b", "127.0.0.1:0", "examples.clock:App"),
        cwd=ROOT,
        env={"CLOCK_API_URL": clock.url, "NO_PROXY": "*"},
    )
    try:
        assert curl(server.url + "/") == (200, f"{NOW}\n")
        server.send_signal(signal.SIGINT)
        assert server.wait() == 0
        assert not any("Traceback" in line for line in server.err.all())
    finally:
        server.end()


def test_a_clock_that_is_not_there(worker: str) -> None:
    server = Process(
        *("-k", worker, "-b", "127.0.0.1:0", "examples.clock:App"),
        cwd=ROOT,
        env={"CLOCK_API_URL": "http://127.0.0.1:1/", "NO_PROXY": "*"},
    )
    try:
        assert curl(server.url + "/") == (502, "The clock does not answer: ConnectError\n")
    finally:
        server.end()


def test_hello(worker: str) -> None:
    """As `make run` has it; it says nothing but where it listens."""
    server = Process(
        *("--app-dir", "examples", "-k", worker, "-b", "127.0.0.1:0", "hello:app"), cwd=ROOT
    )
    try:
        status, text = curl(server.url + "/a/path?query")
        assert status == 200
        assert text.startswith("Hello from fastserve!\n")
        assert text.split()[-4:] == ["worker:", worker, "path:", "/a/path"]
        server.send_signal(signal.SIGTERM)
        assert server.wait() == 0
        lines = server.err.all()
        assert len(lines) == 2, lines
        assert "Running on" in lines[0] and "SIGTERM" in lines[1]
    finally:
        server.end()
