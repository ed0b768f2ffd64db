"""Where options come from: every way gives the same Config, and each name says its own."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any
from unittest import mock

import hypothesis
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from fastserve import cli
from fastserve.checks import Boolean, Choice, Seconds, Size, Whole
from fastserve.config import ALIASES, OPTIONS, Config, ConfigError, Option, Resolved, resolve
from fastserve.sources import Environment, File, Flags, Source, read, read_object

FEW = settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
NAMES = list(OPTIONS)
WORD = st.text("abcdefghijklmnopqrstuvwxyzABC0123456789_.", min_size=1, max_size=12)

SPECIAL: dict[str, st.SearchStrategy[Any]] = {
    "bind": st.lists(
        st.one_of(
            st.builds("{}:{}".format, WORD, st.integers(0, 65535)),
            st.just("[::1]:80"),
            st.builds("unix:{}".format, WORD),
        ),
        min_size=1,
        max_size=3,
    ),
    "server_name": st.lists(WORD, min_size=1, max_size=3),
    "forwarded_allow_ips": st.sampled_from(["*", "unix", "10.0.0.0/8", "::1"]),
    "proxy_headers": st.sampled_from(["off", "for", "forwarded", "proto"]),
    "workers": st.sampled_from(["auto", 1, 2, 1000]),
    "umask": st.integers(0, 0o777).map("{:03o}".format),
    "root_path": st.builds("/{}".format, WORD),
    "header": st.lists(st.builds("{}: a, b".format, WORD), min_size=1, max_size=3),
    "application": st.builds("{}:app".format, WORD),
    "access_logformat": st.lists(st.sampled_from(["%(h)s", " ", '"', "%%", "\\", "%({a-b}i)-9s"]))
    .map("".join)
    .map("x{}".format),
    "access_log_sample": st.floats(0, 1),
    "admin_bind": st.builds("{}:{}".format, WORD, st.integers(0, 65535)),
    "statsd_host": st.builds("unix:{}".format, WORD),
}


def values_of(option: Option) -> st.SearchStrategy[Any]:
    check = option.check
    if option.name in SPECIAL:
        return SPECIAL[option.name]
    if isinstance(check, Whole | Size):
        return st.integers(check.least, check.most)
    if isinstance(check, Seconds):
        return st.one_of(st.integers(1, 86_400), st.floats(0.001, 86_400))
    if isinstance(check, Choice):
        return st.sampled_from(check.names)
    if isinstance(check, Boolean):
        return st.booleans()
    return WORD


def texts_of(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [str(one).lower() if isinstance(one, bool) else str(one) for one in values]


def parsed(*arguments: str, environ: dict[str, str] | None = None) -> Resolved:
    """What the command line comes to; nothing is served."""
    with (
        mock.patch.object(cli, "_serve") as serve,
        mock.patch.dict("os.environ", environ or {}),
    ):
        status = cli._run(arguments)
    assert status == 0, arguments
    resolved: Resolved = serve.call_args.args[0]
    return resolved


def from_flags(option: Option, value: Any) -> Config | None:
    target = "web:app"
    if option.is_argument:
        return parsed(value).config
    if not option.is_switch:
        flags = [f"{option.flag}={text}" for text in texts_of(value)]
    elif value == option.default:
        return None  # this is what no flag says
    else:
        flags = [option.flag]
    return parsed(*flags, target).config


@pytest.mark.parametrize("name", NAMES)
@FEW
@hypothesis.given(data=st.data())
def test_every_way_gives_the_same(name: str, data: st.DataObject, tmp_path: Path) -> None:
    option = OPTIONS[name]
    value = data.draw(values_of(option))
    given = {"application": "web:app", name: value}
    expected = Config(**given)

    file = tmp_path / "conf.toml"
    file.write_text("".join(f"{key} = {json.dumps(one)}\n" for key, one in given.items()))
    python = tmp_path / "conf.py"
    python.write_text("".join(f"{key} = {one!r}\n" for key, one in given.items()))
    variables = {
        "FASTSERVE_APPLICATION": given["application"],
        f"FASTSERVE_{name.upper()}": option.separator.join(texts_of(value)),
    }

    assert from_flags(option, value) in (expected, None)
    assert parsed(environ=variables).config == expected
    assert parsed("-c", str(file)).config == expected
    assert parsed(environ={"FASTSERVE_CONFIG": f"file:{python}"}).config == expected
    assert Config.from_options(**given) == expected
    assert Config.from_mapping(given) == Config.from_mapping(**given) == expected
    assert Config.from_toml(file) == Config.from_pyfile(python) == expected
    assert Config.from_object(types.SimpleNamespace(**given)) == expected


BAD = {
    "bind": "a b:1",
    "root_path": "api",
    "header": "Connection: close",
    "access_logformat": "100%",
    "application": 5,
    "pid": "\0",
    "app_dir": "\0",
    "reload_dir": "\0",
    "reload_include": [""],
    "reload_exclude": [5],
    "access_logfile": "\0",
    "access_log_sample": 1.5,
    "access_log_exclude": [""],
    "log_config": "\0",
    "error_logfile": "\0",
    "insecure_bind": "a b:1",
    "server_name": "a:80",
    "probe_path": 5,
    "certfile": "\0",
    "keyfile": "\0",
    "keyfile_password": 5,
    "ca_certs": "\0",
    "ciphers": 5,
    "umask": "9",
    "forwarded_allow_ips": "localhost",
    "proxy_headers": "x",
    "user": 5,
    "group": 5,
    "admin_bind": "fd://5",
    "statsd_host": "a b:1",
    "statsd_prefix": "a b",
    "dogstatsd_tags": "a|b",
}


@pytest.mark.parametrize("name", NAMES)
def test_every_way_names_a_bad_value(name: str, tmp_path: Path) -> None:
    option = OPTIONS[name]
    bad = BAD.get(name, "nonsense")
    file = tmp_path / "conf.toml"
    file.write_text(f"{name} = {json.dumps(bad)}\n")
    variable = f"FASTSERVE_{name.upper()}"
    ways = {
        f"{name} in {file}: ": read(str(file)),
        f"{option.label}: ": Source({name: bad}),
    }
    if isinstance(bad, str):
        ways[f"{variable}: "] = Environment({variable: bad})
        ways[f"{option.flag}: "] = Flags({name: bad})
    for beginning, source in ways.items():
        with pytest.raises(ConfigError) as caught:
            resolve([source])
        assert str(caught.value).startswith(beginning)
        assert "\n" not in str(caught.value)


# Who beats whom.


def test_a_flag_beats_the_environment_which_beats_the_file(tmp_path: Path) -> None:
    file = tmp_path / "conf.toml"
    file.write_text('backlog = 1\nlimit_request_fields = 1\nlifespan = "on"\n')
    environ = {"FASTSERVE_BACKLOG": "2", "FASTSERVE_LIMIT_REQUEST_FIELDS": "2"}
    resolved = parsed("-c", str(file), "--backlog", "3", "web:app", environ=environ)
    config = resolved.config
    assert (config.backlog, config.limit_request_fields, config.lifespan) == (3, 2, "on")
    assert resolved.origins == {
        "backlog": "--backlog",
        "limit_request_fields": "FASTSERVE_LIMIT_REQUEST_FIELDS",
        "lifespan": str(file),
        "application": "command line",
    }


def test_only_what_is_given_overrides() -> None:
    everything = {"factory": True, "include_date_header": False, "keep_alive_timeout": 5}
    config = resolve([Source(everything), Flags({"backlog": "7"}), Environment({})]).config
    assert config == Config(**everything, backlog=7)


def test_a_switch_can_be_taken_back() -> None:
    file = File({"factory": True, "include_server_header": False}, "conf.toml")
    environment = Environment({"FASTSERVE_FACTORY": "false"})
    config = resolve([file, environment, Flags({"server_header": True})]).config
    assert config.factory is False
    assert config.include_server_header is True


def test_an_empty_variable_is_none() -> None:
    assert resolve([Environment({"FASTSERVE_BACKLOG": ""})]).config == Config()


def test_a_list_in_a_variable() -> None:
    resolved = resolve([Environment({"FASTSERVE_BIND": "localhost:1,unix:a b"})])
    assert resolved.config.bind == ("localhost:1", "unix:a b")


# Other names.

ALIAS_CASES: dict[str, list[tuple[Any, Any]]] = {
    "loop": [("asyncio", "asyncio")],
    "uvloop": [(True, "uvloop")],
    "host": [("::1", ("[::1]:8000",)), ("[::]", ("[::]:8000",)), ("0.0.0.0", ("0.0.0.0:8000",))],
    "port": [(0, ("127.0.0.1:0",)), ("9000", ("127.0.0.1:9000",))],
    "uds": [("/run/a.sock", ("unix:/run/a.sock",))],
    "unix_domain": [("/run/a.sock", ("unix:/run/a.sock",))],
    "server_names": [("a.example", ("a.example",))],
    "preload_app": [(True, True)],
    "use_reloader": [(True, True)],
    "reload_dirs": [("src", ("src",))],
    "reload_includes": [("*.toml", ("*.toml",))],
    "reload_excludes": [("test_*", ("test_*",))],
    "limit_max_requests": [(5, 5)],
    "limit_max_requests_jitter": [(5, 5)],
    "pid_path": [("a.pid", "a.pid")],
    "application_path": [("web:app", "web:app")],
    "timeout_graceful_shutdown": [("5", 5.0)],
    "timeout_keep_alive": [(5, 5.0), ("5s", 5.0)],
    "keep_alive": [(5, 5.0)],
    "http_timeout": [(5, 5.0)],
    "timeout_worker_healthcheck": [(5, 5.0)],
    "h11_max_incomplete_event_size": [(4096, 4096)],
    "h11_max_incomplete_size": [(4096, 4096)],
    "server_header": [(False, False)],
    "date_header": [(False, False)],
    "websocket_max_message_size": [(4096, 4096)],
    "websocket_ping_interval": [(5, 5.0)],
    "access_log": [("a.log", "a.log"), (True, "-"), ("true", "-"), (False, None), ("False", None)],
    "no_access_log": [(True, None)],
    "accesslog": [("a.log", "a.log")],
    "access_log_target": [("-", "-")],
    "access_log_format": [("%(h)s", "%(h)s")],
    "log_file": [("e.log", "e.log")],
    "error_log": [("e.log", "e.log")],
    "errorlog": [("e.log", "e.log")],
    "error_log_target": [("e.log", "e.log")],
    "use_colors": [(True, "always"), (False, "never")],
    "no_use_colors": [(True, "never"), (False, "auto")],
    "logconfig": [("log.ini", "log.ini")],
    "no_proxy_headers": [(True, ())],
    "ssl_certfile": [("a.pem", ("a.pem",))],
    "ssl_keyfile": [("a.key", ("a.key",))],
    "ssl_keyfile_password": [("secret", "secret")],
    "ssl_ca_certs": [("ca.pem", "ca.pem")],
    "ssl_cert_reqs": [(2, "required"), ("1", "optional")],
    "cert_reqs": [("CERT_NONE", "none"), (0, "none")],
    "ssl_ciphers": [("HIGH", "HIGH")],
}
# Descriptors arrive where addresses can be `fd://N`; what the aliases make is seen below.
DESCRIPTORS = {"fd", "file_descriptor"}


def test_no_alias_is_forgotten() -> None:
    assert {*ALIAS_CASES, *DESCRIPTORS, "headers"} == set(ALIASES)


@pytest.mark.parametrize("name", ALIAS_CASES)
def test_an_alias(name: str, tmp_path: Path) -> None:
    alias, option = ALIASES[name]
    for given, expected in ALIAS_CASES[name]:
        assert getattr(Config.from_options(**{name: given}), option.name) == expected
        file = tmp_path / "conf.toml"
        file.write_text(f"{name} = {json.dumps(given)}")
        assert getattr(Config.from_toml(file), option.name) == expected
        text = str(given)
        if alias.switch or not isinstance(given, bool):
            variable = f"FASTSERVE_{name.upper()}"
            config = resolve([Environment({variable: text})]).config
            assert getattr(config, option.name) == expected
        if alias.spelling and (given is True or not isinstance(given, bool)):
            words = [alias.spelling] if alias.switch else [alias.spelling, text]
            if alias.switch or not isinstance(given, bool):
                assert getattr(parsed(*words, "a:b").config, option.name) == expected


def test_pairs_are_fields() -> None:
    given = [("X-A", "a: b"), ("x-b", "")]
    assert Config.from_options(headers=given).header == ("X-A: a: b", "x-b: ")
    for bad in ("X-A: a", [("X-A",)], 5):
        with pytest.raises(ConfigError, match="^headers: pairs of name and value expected"):
            Config.from_options(headers=bad)
    with pytest.raises(ConfigError, match="^headers: a field like 'Name: value' expected"):
        Config.from_options(headers=[("X-A", "a\r\nX-B: b")])


@pytest.mark.parametrize("name", sorted(DESCRIPTORS))
def test_a_descriptor_is_an_address(name: str) -> None:
    alias, _ = ALIASES[name]
    assert alias.convert("3", ()) == alias.convert(3, ()) == "fd://3"
    with pytest.raises(ValueError, match="whole number"):
        alias.convert("-1", ())


@pytest.mark.parametrize(
    ("below", "given", "expected"),
    [
        ({"bind": "0.0.0.0:80"}, {"port": "9000"}, ("0.0.0.0:9000",)),
        ({"bind": "[::]:80"}, {"port": "9000"}, ("[::]:9000",)),
        ({"bind": "0.0.0.0:80"}, {"host": "::1"}, ("[::1]:80",)),
        ({"host": "0.0.0.0"}, {"port": "9000"}, ("0.0.0.0:9000",)),
        ({"host": "0.0.0.0", "port": 1}, {"bind": "localhost:2"}, ("localhost:2",)),
        ({}, {"host": "::", "port": "1"}, ("[::]:1",)),
        ({}, {"port": "1", "host": "::"}, ("[::]:1",)),
        # No single address of which a part could be replaced.
        ({"bind": ["a:1", "b:2"]}, {"port": "9000"}, ("127.0.0.1:9000",)),
        ({"bind": "unix:a"}, {"port": "9000"}, ("127.0.0.1:9000",)),
    ],
)
def test_host_and_port_replace_their_part(
    below: dict[str, Any], given: dict[str, Any], expected: tuple[str, ...]
) -> None:
    assert resolve([Source(below), Flags(given)]).config.bind == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"port": "http"}, "--port: a whole number from 0 to 65535"),
        ({"port": "65536"}, "--port: "),
        ({"host": ""}, "--host: no host"),
        ({"host": "a b"}, "--host: "),
        ({"uds": ""}, "--uds: a path"),
        ({"timeout_keep_alive": "soon"}, "--timeout-keep-alive: seconds"),
        ({"loop": "none"}, "--loop: one of auto"),
        ({"bind": ("a",), "host": "b"}, "--host: --bind is given too, and both set bind"),
        ({"uds": "a", "port": "1"}, "--port: --uds is given too, and both set bind"),
        ({"include_server_header": False, "server_header": True},
         "--server-header: --no-server-header is given too"),
    ],
)  # fmt: skip
def test_a_bad_alias_is_named(given: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve([Flags(given)])
    assert str(caught.value).startswith(expected)


@pytest.mark.parametrize(
    "line",
    [
        # From uvicorn's and Hypercorn's own documentation.
        "web:app --host 0.0.0.0 --port 80 --loop uvloop --http httptools --ws wsproto"
        " --no-access-log --no-use-colors --log-level trace --timeout-keep-alive 5"
        " --timeout-graceful-shutdown 10 --no-server-header --date-header --backlog 10"
        " --h11-max-incomplete-event-size 16384 --lifespan on --factory --app-dir ."
        " --ws-max-size 1000 --ws-max-queue 5 --ws-ping-interval 5 --ws-ping-timeout 5"
        " --ws-per-message-deflate false --root-path /api --reset-contextvars",
        "web:app --access-log - --access-logformat %(h)s --backlog 10 -b 0.0.0.0:80 --debug"
        " --error-log - -k trio --keep-alive 5 -p app.pid --root-path /api",
        "web:app --uvloop --access-logfile - --error-logfile - --graceful-timeout 3"
        " --log-level INFO --pid a.pid --websocket-ping-interval 5 --daemon",
    ],
)
def test_another_servers_command_line(line: str) -> None:
    resolved = parsed(*line.split())
    assert resolved.config.application == "web:app"


def test_a_configuration_of_hypercorns(tmp_path: Path) -> None:
    file = tmp_path / "hypercorn.toml"
    file.write_text(
        'access_log_format = "%(h)s %(r)s"\naccess_log_target = "-"\nerror_log_target = "e"\n'
        'application_path = "web:app"\nbacklog = 100\ndebug = true\nhost = "::1"\nport = 5000\n'
        'h11_max_incomplete_size = 16384\nkeep_alive_timeout = 5\npid_path = "p"\n'
        'root_path = ""\nstartup_timeout = 60\nshutdown_timeout = 60\n'
        'websocket_max_message_size = 1024\nworker_class = "trio"\n'
    )
    assert Config.from_toml(file) == Config(
        access_logformat="%(h)s %(r)s",
        access_logfile="-",
        error_logfile="e",
        application="web:app",
        backlog=100,
        debug=True,
        bind="[::1]:5000",
        limit_request_field_bytes=16384,
        keep_alive_timeout=5,
        pid="p",
        startup_timeout=60,
        shutdown_timeout=60,
        ws_max_size=1024,
        worker_class="trio",
    )


@pytest.mark.parametrize(
    "name", ["h2_max_concurrent_streams", "h2_max_header_list_size", "h2_max_inbound_frame_size"]
)
def test_http2_is_refused_in_words(name: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name}: HTTP/2 is not there yet$"):
        Config.from_options(**{name: 1})
    with pytest.raises(ConfigError, match=f"^FASTSERVE_{name.upper()}: HTTP/2 is not"):
        resolve([Environment({f"FASTSERVE_{name.upper()}": "1"})])


def test_what_is_ignored_is_said() -> None:
    with pytest.warns(UserWarning, match="^http: ignored, since there is one parser$"):
        Config.from_options(http="h11")
    assert parsed("--http", "h11", "a:b").warnings == ["--http: ignored, since there is one parser"]


# Mistyped names.


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (Source({"baklog": 1}), "baklog: there is no such option (did you mean backlog?)"),
        (File({"baklog": 1}, "a.toml"), "baklog in a.toml: there is no such option"),
        (File({"hots": 1}, "a.toml"), "hots in a.toml: there is no such option (did you mean host"),
        (File({"zzz": 1}, "a.toml"), "zzz in a.toml: there is no such option"),
        (File({"server": {}}, "a.toml"), "server in a.toml: there is no such option"),
    ],
)
def test_a_mistyped_name(source: Source, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve([source])
    assert str(caught.value).startswith(expected)


@pytest.mark.parametrize(
    ("variable", "warning"),
    [
        ("FASTSERVE_BAKLOG", "there is no such option (did you mean FASTSERVE_BACKLOG?)"),
        ("FASTSERVE_SERVICE_HOST", "there is no such option"),
        ("FASTSERVE_ZZZ", "there is no such option"),
    ],
)
def test_an_unknown_variable_is_a_warning(variable: str, warning: str) -> None:
    """A service of this name has Kubernetes set some in every container."""
    resolved = resolve([Environment({variable: "1"})])
    assert resolved.config == Config()
    assert resolved.warnings == [f"{variable}: {warning}"]


def test_variables_for_somebody_else() -> None:
    environ = {"FASTSERVE_PORT": "tcp://10.0.0.1:80", "fastserve_port": "1", "PORT": "2"}
    assert resolve([Environment(environ)]) == (Config(), {}, [])


# Files and modules.


def test_dashes_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "conf.toml"
    file.write_text("keep-alive-timeout = 5\n")
    assert Config.from_toml(file).keep_alive_timeout == 5


def test_helpers_in_a_python_file(tmp_path: Path) -> None:
    file = tmp_path / "conf.py"
    file.write_text(
        "from __future__ import annotations\nimport os\nfrom pathlib import Path\n"
        "HERE = 1\n_private = 2\ndef f(): return 5\nclass C: pass\nbacklog = f()\n"
    )
    assert Config.from_pyfile(file) == Config(backlog=5)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("backlog = ", "SyntaxError: "),
        ("\n1 / 0\n", "ZeroDivisionError: division by zero (line 2)"),
        ("raise SystemExit('no')", "SystemExit: no (line 1)"),
        ("import not_there", "ModuleNotFoundError: "),
        ("baklog = 1", "there is no such option (did you mean backlog?)"),
    ],
)
def test_a_bad_python_file(tmp_path: Path, text: str, expected: str) -> None:
    file = tmp_path / "conf.py"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        Config.from_pyfile(file)
    assert str(file) in str(caught.value) and expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("backlog", "not TOML: "), ("a = 1\na = 2", "not TOML: "), (b"a = '\xff'", "not TOML: ")],
)
def test_a_bad_toml_file(tmp_path: Path, text: str | bytes, expected: str) -> None:
    file = tmp_path / "conf.toml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError) as caught:
        Config.from_toml(file)
    assert str(caught.value).startswith(f"{file}: {expected}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("place", ["missing.toml", "file:missing.py", "python:missing.py"])
def test_a_missing_file(place: str) -> None:
    name = place.rpartition(":")[2]
    with pytest.raises(ConfigError, match=f"^{name}: No such file or directory$"):
        read(place)


def test_a_file_that_a_python_file_misses(tmp_path: Path) -> None:
    file = tmp_path / "conf.py"
    file.write_text("\nopen('other')\n")
    with pytest.raises(ConfigError) as caught:
        read(f"file:{file}")
    assert str(caught.value) == (
        f"{file}: FileNotFoundError: [Errno 2] No such file or directory: 'other' (line 2)"
    )


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    for place in (str(tmp_path), f"file:{tmp_path}"):
        with pytest.raises(ConfigError, match="Is a directory"):
            read(place)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"package_{abs(hash(str(tmp_path)))}"
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("")
    (tmp_path / name / "conf.py").write_text(
        "backlog = 5\nclass Production:\n    backlog = 6\n    def method(self): pass\n"
        "class instance: pass\nother = Production()\ndel other\nthe = Production\n"
        "_small = Production()\n"
    )
    (tmp_path / name / "bad.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    return name


def test_a_module(package: str) -> None:
    before = list(sys.path)
    assert resolve([read(f"python:{package}.conf")]).config == Config(backlog=5)
    assert resolve([read(f"python:{package}.conf.Production")]).config == Config(backlog=6)
    assert resolve([read(f"python:{package}/conf.py")]).config == Config(backlog=5)
    assert Config.from_object(f"{package}.conf._small") == Config(backlog=6)
    assert Config.from_object(sys.modules[f"{package}.conf"]) == Config(backlog=5)
    assert sys.path == before


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("no_such_package", "no_such_package: there is no module 'no_such_package'"),
        ("{package}.missing", "there is no module '{package}.missing'"),
        ("{package}.bad", "{package}.bad: ZeroDivisionError: division by zero"),
    ],
)
def test_a_bad_module(package: str, name: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_object(name.format(package=package))
    assert expected.format(package=package) in str(caught.value)
