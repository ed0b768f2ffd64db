"""The command line as a person meets it: help, and one clear line for a mistake."""

import dataclasses
import importlib.util
import os
import re
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import fastserve
from fastserve import cli
from fastserve.application import load
from fastserve.config import OPTIONS, Config
from fastserve.errors import ServerError


class FakeServer(types.ModuleType):
    """Stands in for fastserve.launch: loads the application, keeps what it was given."""

    application: object = None
    config: Config
    error: BaseException | None = None
    checked = False

    def check(self, application: object, config: Config) -> None:
        self.checked = True
        load(application, config)

    def run(self, application: object, config: Config, *, reread: Callable[[], Config]) -> None:
        self.application, self.config = application, config
        assert reread() == config
        if self.error is not None:
            raise self.error
        load(application, config)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    fake = FakeServer("fastserve.launch")
    before = set(sys.modules)
    monkeypatch.setitem(sys.modules, "fastserve.launch", fake)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield fake
    for name in set(sys.modules) - before - {"fastserve.launch"}:
        del sys.modules[name]


@pytest.fixture
def app_dir(tmp_path: Path) -> Path:
    (tmp_path / "web.py").write_text("async def app(scope, receive, send): pass\n")
    (tmp_path / "broken.py").write_text("def fail(): return 1 / 0\nfail()\n")
    return tmp_path


def command(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert isinstance(caught.value.code, int)
    return caught.value.code


def fastserve_process(
    *arguments: str, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fastserve", *arguments],
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=30,
    )


def the_line(text: str) -> str:
    """stderr must be one line of ours."""
    assert text.startswith("fastserve: error: ")
    assert text.count("\n") == 1 and text.endswith("\n")
    return text


@pytest.fixture(scope="module")
def help_text() -> str:
    done = fastserve_process("--help")
    assert done.returncode == 0
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize("name", OPTIONS)
def test_the_help_has_every_option(help_text: str, name: str) -> None:
    option = OPTIONS[name]
    flowing = " ".join(help_text.split())
    assert option.flag in flowing
    if option.is_argument:
        assert option.check.metavar in flowing
        return
    assert option.help in flowing
    assert f"{option.short}, {option.flag}" in flowing or not option.short


def test_the_help_shows_defaults_and_sections(help_text: str) -> None:
    assert "[2048]" in help_text
    assert "[127.0.0.1:8000]" in help_text
    assert "[30]" in help_text
    assert "[]" not in help_text
    for section in {option.section for option in OPTIONS.values()}:
        assert f"\n{section}:\n" in help_text
    assert all(len(line) <= 80 for line in help_text.splitlines())


def test_help_needs_no_compiled_module_and_no_loop() -> None:
    program = (
        "import sys; from fastserve.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted(name for name in sys.modules if name.partition('.')[0] in"
        " {'asyncio', 'trio', 'uvloop'} or name.startswith('fastserve._') "
        "and name != 'fastserve.__main__'), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30
    )
    assert done.stderr.strip() == "[]"


def test_version() -> None:
    done = fastserve_process("--version")
    assert done.returncode == 0
    assert done.stdout.startswith(f"fastserve {fastserve.__version__}, ")
    assert done.stdout.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--bnid", "x", "web:app"], r"--bnid: there is no such option \(did you mean --bind\?\)"),
        (["--worker-clas", "trio", "web:app"], r"did you mean --worker-class\?"),
        (["web:app", "other:app"], "unexpected extra argument"),
        (["web:app", "--bind"], "requires an argument"),
        ([], "MODULE:ATTR"),
    ],
)
def test_a_mistyped_command_line(arguments: list[str], expected: str) -> None:
    done = fastserve_process(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert re.search(expected, the_line(done.stderr))
    assert "fastserve --help" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["-b", "localhost:http"], "--bind: the port is a number"),
        (["-b", "::1"], "--bind: host:port expected"),
        (["-k", "trioo"], "--worker-class: one of auto, asyncio, uvloop, trio"),
        (["--backlog", "many"], "--backlog: a whole number from 1"),
        (["--keep-alive", "0"], "--keep-alive: seconds from"),
        (["--root-path", "api"], "--root-path: a path that begins with '/'"),
        (["--log-level", "loud"], "--log-level: one of critical"),
    ],
)
def test_a_bad_value(arguments: list[str], expected: str) -> None:
    done = fastserve_process(*arguments, "web:app")
    assert done.returncode == 1
    assert done.stdout == ""
    assert expected in the_line(done.stderr)


def test_only_what_is_given_is_passed_on(server: FakeServer, app_dir: Path) -> None:
    assert command("web:app", "--app-dir", str(app_dir)) == 0
    assert server.application == "web:app"
    assert server.config == Config(app_dir=str(app_dir), application="web:app")


def test_every_option_arrives(server: FakeServer, app_dir: Path) -> None:
    given: dict[str, Any] = {
        "worker_class": "asyncio",
        "workers": 3,
        "preload": True,
        "reload": True,
        "reload_dir": ("src",),
        "reload_include": ("*.toml",),
        "reload_exclude": ("test_*",),
        "max_requests": 17,
        "max_requests_jitter": 18,
        "max_lifetime": 19.0,
        "max_rss": 2**20,
        "bind": ("127.0.0.1:0", "unix:/tmp/x.sock"),
        "insecure_bind": ("127.0.0.1:81",),
        "server_name": ("a.example", "b.example"),
        "umask": "007",
        "user": "0",
        "group": "0",
        "backlog": 5,
        "reuse_port": True,
        "poller": "loop",
        "pid": "/tmp/x.pid",
        "debug": True,
        "application": "web:app",
        "factory": True,
        "interface": "asgi3",
        "wsgi_threads": 3,
        "app_dir": str(app_dir),
        "root_path": "/api",
        "lifespan": "on",
        "graceful_timeout": 1.5,
        "drain_delay": 1.25,
        "drain_idle_timeout": 0.0,
        "startup_timeout": 2.0,
        "shutdown_timeout": 3.0,
        "header_timeout": 4.0,
        "body_timeout": 5.0,
        "body_min_rate": 0,
        "write_timeout": 6.0,
        "keep_alive_timeout": 7.0,
        "request_timeout": 7.5,
        "timeout": 20.0,
        "loop_lag_warn": 0.5,
        "limit_request_line": 1000,
        "limit_request_fields": 10,
        "limit_request_field_bytes": 2000,
        "limit_request_body": 3000,
        "include_server_header": False,
        "include_date_header": False,
        "header": ("X-One: 1", "X-Two: a, b"),
        "raise_on_disconnect": True,
        "keep_alive_max_requests": 14,
        "limit_concurrency": 12,
        "queue_size": 13,
        "queue_timeout": 14.0,
        "probe_path": ("/live", "/ready"),
        "max_connections": 15,
        "max_connections_per_address": 16,
        "ws_max_size": 70000,
        "ws_max_queue": 3,
        "ws_ping_interval": 8.0,
        "ws_ping_timeout": 9.0,
        "ws_close_timeout": 10.5,
        "ws_per_message_deflate": False,
        "ws_context_takeover": True,
        "certfile": ("one.pem", "two.pem"),
        "keyfile": ("one.key", "two.key"),
        "keyfile_password": "secret",
        "ca_certs": "ca.pem",
        "verify_mode": "optional",
        "ciphers": "ECDHE+AESGCM",
        "tls_min_version": "1.3",
        "ssl_handshake_timeout": 11.0,
        "ssl_reload_interval": 0.0,
        "forwarded_allow_ips": ("10.0.0.0/8",),
        "proxy_headers": ("forwarded",),
        "forwarded_hops": 2,
        "proxy_protocol": True,
        "log_level": "debug",
        "access_logfile": "-",
        "access_logformat": "%(s)s",
        "access_log_sample": 0.5,
        "access_log_exclude": ("/live", "/static/*"),
        "error_logfile": "errors",
        "log_format": "json",
        "log_colors": "never",
        "log_config": "log.toml",
        "admin_bind": "127.0.0.1:9000",
        "statsd_host": "127.0.0.1:8125",
        "statsd_prefix": "web",
        "dogstatsd_tags": "site:one,env:two",
    }
    assert given.keys() == OPTIONS.keys()
    (app_dir / "web.py").write_text("def app(): return lambda *a: None\n")
    arguments: list[str] = []
    for name, value in given.items():
        option = OPTIONS[name]
        if option.is_argument:
            continue
        if option.is_switch:
            arguments.append(option.flag)
        else:
            for one in value if isinstance(value, tuple) else [value]:
                arguments += [option.short or option.flag, str(one)]
    assert command(*arguments, "web:app") == 0
    assert server.config == Config(**given)


def test_hypercorns_spelling_of_the_ping_interval(server: FakeServer, app_dir: Path) -> None:
    (app_dir / "web.py").write_text("app = lambda *a: None\n")
    arguments = ("--app-dir", str(app_dir), "--websocket-ping-interval", "5", "web:app")
    assert command(*arguments) == 0
    assert server.config.ws_ping_interval == 5.0


def test_a_missing_module(
    server: FakeServer, app_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("--app-dir", str(app_dir), "wev:app") == 1
    assert "there is no module 'wev'" in the_line(capsys.readouterr().err)


def test_a_missing_attribute(
    server: FakeServer, app_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("--app-dir", str(app_dir), "web:apq") == 1
    line = the_line(capsys.readouterr().err)
    assert "web has no attribute 'apq' (did you mean 'app'?)" in line


def test_an_error_of_the_application_keeps_its_traceback(
    server: FakeServer, app_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("--app-dir", str(app_dir), "broken:app") == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert str(app_dir / "broken.py") in lines[1]
    assert lines[-1] == (
        "fastserve: error: module 'broken' cannot be imported: ZeroDivisionError: division by zero"
    )
    # None of our own frames stands between the reader and the error.
    assert "fastserve/" not in "".join(line for line in lines if line.startswith("  File"))


@pytest.mark.parametrize("target", ["web", "web.py", "web:"])
def test_a_target_without_attribute(
    server: FakeServer, app_dir: Path, capsys: pytest.CaptureFixture[str], target: str
) -> None:
    assert command("--app-dir", str(app_dir), target) == 1
    assert "did you mean web:app?" in the_line(capsys.readouterr().err)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ServerError("lifespan start-up failed"), 1),
        (ServerError("no trio: pip install 'fastserve-asgi[trio]'", 3), 3),
        (OSError(98, "Address already in use"), 1),
    ],
)
def test_a_failing_server_is_one_line(
    server: FakeServer, capsys: pytest.CaptureFixture[str], error: Exception, status: int
) -> None:
    server.error = error
    assert command("web:app") == status
    assert str(error) in the_line(capsys.readouterr().err)


def test_control_c_before_the_server_is_silent(
    server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.error = KeyboardInterrupt()
    assert command("web:app") == 130
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.skipif(
    importlib.util.find_spec("fastserve.launch") is None, reason="the server is not built"
)
@pytest.mark.parametrize(
    ("target", "expected"),
    [("wev:app", "there is no module 'wev'"), ("web:apq", "did you mean 'app'?")],
)
def test_a_missing_application_in_a_process(app_dir: Path, target: str, expected: str) -> None:
    done = fastserve_process("--app-dir", str(app_dir), "-b", "127.0.0.1:0", target)
    assert done.returncode == 1
    assert expected in the_line(done.stderr)


# What is asked about the configuration itself.


def test_a_configuration_is_checked(
    server: FakeServer, app_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("--check-config", "--app-dir", str(app_dir), "web:app") == 0
    assert server.checked and server.application is None
    assert capsys.readouterr().out == "web:app can be served\n"


@pytest.mark.parametrize(
    ("arguments", "status", "expected"),
    [
        (["web:apq"], 1, "did you mean 'app'?"),
        (["--backlog", "0", "web:app"], 1, "--backlog: "),
        (["-c", "missing.toml", "web:app"], 1, "missing.toml: No such file"),
        (["-c", "bad.toml", "web:app"], 1, "bakclog in bad.toml: there is no such option"),
        ([], 2, "MODULE:ATTR"),
    ],
)
def test_a_wrong_configuration_is_told(
    server: FakeServer,
    app_dir: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    status: int,
    expected: str,
) -> None:
    monkeypatch.chdir(app_dir)
    (app_dir / "bad.toml").write_text("bakclog = 1\n")
    assert command("--check-config", *arguments) == status
    assert expected in the_line(capsys.readouterr().err)


def test_the_application_may_be_named_elsewhere(
    server: FakeServer, app_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (app_dir / "conf.toml").write_text('application_path = "web:other"\n')
    (app_dir / "web.py").write_text("app = other = third = lambda *a: None\n")
    monkeypatch.chdir(app_dir)
    assert command("-c", "conf.toml") == 0
    assert server.application == "web:other"
    monkeypatch.setenv("FASTSERVE_APPLICATION", "web:app")
    assert command("-c", "conf.toml") == 0
    assert server.application == "web:app"
    assert command("-c", "conf.toml", "web:third") == 0
    assert server.application == "web:third"


def test_the_configuration_is_shown(
    app_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = app_dir / "conf.toml"
    file.write_text('keep_alive_timeout = "2m"\nroot_path = "/\\"\\u00e9"\n')
    monkeypatch.setenv("FASTSERVE_LIMIT_REQUEST_BODY", "16M")
    monkeypatch.setenv("FASTSERVE_BAKLOG", "1")
    arguments = ("-c", str(file), "--port", "0", "-b", "x", "web:app")
    assert command("--print-config", *arguments) == 1
    assert "--bind: --port is given too" in the_line(capsys.readouterr().err)

    assert command("--print-config", "-c", str(file), "--port", "0", "--factory", "web:app") == 0
    shown, told = capsys.readouterr()
    lines = [re.split(" +# ", line) for line in shown.splitlines()]
    assert [line[0].removeprefix("# ").split()[0] for line in lines] == list(OPTIONS)
    for expected in (
        ["keep_alive_timeout = 120.0", str(file)],
        ["limit_request_body = 16777216", "FASTSERVE_LIMIT_REQUEST_BODY"],
        ['bind = ["127.0.0.1:0"]', "--port"],
        ["factory = true", "--factory"],
        ['application = "web:app"', "command line"],
        ["backlog = 2048", "default"],
        ["# access_logfile is not set", "default"],
    ):
        assert expected in lines
    assert told == (
        "fastserve: warning: FASTSERVE_BAKLOG: there is no such option"
        " (did you mean FASTSERVE_BACKLOG?)\n"
    )

    # It is a file that --config takes.
    (app_dir / "shown.toml").write_text(shown)
    expected = Config(
        keep_alive_timeout=120,
        root_path='/"\u00e9',
        limit_request_body=2**24,
        bind="127.0.0.1:0",
        factory=True,
        application="web:app",
    )
    assert Config.from_toml(app_dir / "shown.toml") == expected


def test_a_secret_is_not_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = dataclasses.replace(OPTIONS["root_path"], secret=True)
    monkeypatch.setattr(cli, "OPTIONS", {**OPTIONS, "root_path": secret})
    assert command("--print-config", "--root-path", "/hush") == 0
    shown = capsys.readouterr().out
    assert "hush" not in shown
    assert re.search("^# root_path is set, and not shown +# --root-path$", shown, re.MULTILINE)


def test_what_cannot_be_written_is_shown_somehow() -> None:
    """A path that is not UTF-8, and a terminal that takes nothing else."""
    path = os.fsdecode(b"/run/\xff.pid")
    env = {"PYTHONIOENCODING": "utf-8:strict"}
    done = fastserve_process("--print-config", "--pid", path, env=env)
    assert (done.returncode, done.stderr) == (0, "")
    assert 'pid = "/run/\\udcff.pid"' in done.stdout


def test_both_questions(
    server: FakeServer, app_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--check-config", "--print-config", "--app-dir", str(app_dir), "web:app")
    assert command(*arguments) == 0
    assert capsys.readouterr().out.endswith("web:app can be served\n")
    assert server.checked


@pytest.mark.parametrize("flag", ["--http2", "--h2-max-concurrent-streams", "--quic-bind"])
def test_what_is_not_there_is_said(capsys: pytest.CaptureFixture[str], flag: str) -> None:
    assert command(flag, "1", "web:app") == 2
    assert re.search(f"{flag}: HTTP/[23] is not there", the_line(capsys.readouterr().err))


# ------------------------------------------------------------------ reload-certs


def test_the_help_of_reload_certs(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("reload-certs", "--help") == 0
    assert capsys.readouterr().out.startswith("Usage: fastserve reload-certs [OPTIONS]\n")


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (None, "No such file or directory"),
        ("", "has no process's id in it"),
        ("0", "has no process's id in it"),
        ("-1", "has no process's id in it"),
        ("nonsense", "has no process's id in it"),
        ("4194305", "process 4194305: No such process"),  # above what the kernel gives
    ],
)
def test_reload_certs_of_no_server(
    content: str | None, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "pid"
    if content is not None:
        path.write_text(content)
    assert command("reload-certs", "--pid", str(path)) == 1
    said = the_line(capsys.readouterr().err)
    assert said.startswith("fastserve: error: --pid: ") and said.endswith(f"{line}\n")


def test_reload_certs_has_to_know_of_whom(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("reload-certs") == 2
    assert "Give the --pid it was started with" in the_line(capsys.readouterr().err)


def test_reload_certs_reads_the_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "conf.toml"
    path.write_text(f'pid = "{tmp_path}/pid"\n')
    assert command("reload-certs", "-c", str(path)) == 1
    assert str(tmp_path / "pid") in the_line(capsys.readouterr().err)


# ---------------------------------------------------------------------- --env-file


def test_env_file(app_dir: Path) -> None:
    (app_dir / "env").write_text(
        "# a comment\nFASTSERVE_BACKLOG=77\nexport GREETING='good day'\nPRESENT=no\n"
    )
    (app_dir / "greeting.py").write_text(
        "import os\nprint(os.environ['GREETING'], os.environ['PRESENT'])\n"
        "async def app(scope, receive, send): pass\n"
    )
    done = fastserve_process(
        *("--env-file", str(app_dir / "env"), "--app-dir", str(app_dir)),
        *("--check-config", "--print-config", "greeting:app"),
        env={"PRESENT": "yes"},
    )
    assert done.stderr == ""
    assert "good day yes\n" in done.stdout
    assert re.search(r"^backlog = 77 +# FASTSERVE_BACKLOG$", done.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ("content", "reason"), [(None, "No such file or directory"), (b"A=\xff\n", "not UTF-8")]
)
def test_an_unusable_env_file(
    content: bytes | None, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "env"
    if content is not None:
        path.write_bytes(content)
    assert command("--env-file", str(path), "web:app") == 1
    assert the_line(capsys.readouterr().err).endswith(f"--env-file: {str(path)!r}: {reason}\n")


def test_env_file_without_its_library() -> None:
    program = "import sys; sys.modules['dotenv'] = None; from fastserve.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, "--env-file", "env", "web:app"],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 1
    assert "pip install 'fastserve-asgi[dotenv]'" in the_line(done.stderr)
