"""Config: every option's default, check and message."""

import dataclasses
import importlib.util
import select

import pytest

from fastserve.checks import Seconds
from fastserve.config import (
    ALIASES,
    IGNORED,
    OPTIONS,
    REFUSED,
    Bind,
    Config,
    ConfigError,
    parse_bind,
)


def test_defaults_are_what_the_documentation_says() -> None:
    config = Config()
    assert config.bind == ("127.0.0.1:8000",)
    assert config.backlog == 2048
    assert config.lifespan == "auto"
    assert config.graceful_timeout == 30.0
    assert config.startup_timeout == config.shutdown_timeout == 60.0
    assert config.limit_request_line == 8190
    assert config.limit_request_fields == 100
    assert config.limit_request_field_bytes == 65536
    assert config.limit_request_body is None
    assert config.header_timeout == 30.0
    assert config.body_timeout == config.write_timeout == 60.0
    assert config.body_min_rate == 240
    assert config.keep_alive_timeout == 75.0
    assert config.include_server_header is config.include_date_header is True
    assert config.raise_on_disconnect is config.factory is False
    assert config.access_logfile is None


def test_config_is_frozen_and_keyword_only() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().backlog = 1  # type: ignore[misc]
    with pytest.raises(TypeError):
        Config("trio")  # type: ignore[misc]


@pytest.mark.parametrize("field", dataclasses.fields(Config), ids=lambda field: field.name)
def test_every_field_is_a_whole_option(field: dataclasses.Field[object]) -> None:
    option = OPTIONS[field.name]
    assert option.help.endswith(".")
    assert option.section
    assert option.flag.startswith("--") or option.is_argument
    if not option.is_switch:
        assert option.check.metavar
    if field.default is not None:
        option.normalise(field.default)


def test_spellings_are_distinct() -> None:
    flags = [word for option in OPTIONS.values() for word in (option.flag, option.short)]
    flags += [alias.spelling for alias, _ in ALIASES.values()]
    flags += [f"--{name.replace('_', '-')}" for name in [*IGNORED, *REFUSED]]
    flags = [word for word in flags if word]
    assert len(flags) == len(set(flags))
    names = [*OPTIONS, *IGNORED, *REFUSED]
    names += [alias.name for option in OPTIONS.values() for alias in option.aliases]
    assert len(names) == len(set(names))


def test_a_copy_with_changes_is_equal_to_a_fresh_one() -> None:
    config = Config(worker_class="asyncio", bind="localhost")
    assert dataclasses.replace(config, backlog=5) == Config(
        worker_class="asyncio", bind=["localhost"], backlog=5
    )


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("X-One:1", "X-One: 1"),
        ("x-one: \t a:b, c \t", "x-one: a:b, c"),
        ("X-None:", "X-None: "),
        ("Server: mine", "Server: mine"),
        ("X-Latin: caf\xe9", "X-Latin: caf\xe9"),
    ],
)
def test_header_fields(given: str, kept: str) -> None:
    assert Config(header=given).header == (kept,)


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "X-One",
        ": 1",
        "X One: 1",
        "X-One: a\r\nX-Two: b",
        "X-One: a\x00",
        "X-One: \u20ac",
        "X-One :1",
    ],
)
def test_what_is_no_header_field(bad: str) -> None:
    with pytest.raises(ConfigError, match="^--header: a field like 'Name: value' expected"):
        Config(header=bad)


@pytest.mark.parametrize("name", ["Connection", "content-length", "Transfer-Encoding", "DATE"])
def test_header_fields_of_the_servers_own(name: str) -> None:
    with pytest.raises(ConfigError, match=f"^--header: {name} is for the server to say$"):
        Config(header=f"{name}: 5")


def test_a_truth_value_is_no_verify_mode() -> None:
    with pytest.raises(ConfigError, match="^--verify-mode: one of none, optional, required"):
        Config(verify_mode=True)


@pytest.mark.parametrize(
    ("text", "bind"),
    [
        ("127.0.0.1:80", Bind("tcp", host="127.0.0.1", port=80)),
        ("localhost", Bind("tcp", host="localhost", port=8000)),
        ("localhost:0", Bind("tcp", host="localhost", port=0)),
        ("0.0.0.0:65535", Bind("tcp", host="0.0.0.0", port=65535)),
        ("[::1]:8080", Bind("tcp", host="::1", port=8080)),
        ("[::]", Bind("tcp", host="::", port=8000)),
        ("[fe80::1%lo]:1", Bind("tcp", host="fe80::1%lo", port=1)),
        ("unix:/run/app.sock", Bind("unix", path="/run/app.sock")),
        ("unix:a:b/c", Bind("unix", path="a:b/c")),
    ],
)
def test_binds(text: str, bind: Bind) -> None:
    assert parse_bind(text) == bind
    assert parse_bind(str(bind)) == bind


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no host"),
        (":8000", "no host"),
        ("[]:8000", "no host"),
        ("localhost:", "port"),
        ("localhost:http", "port"),
        ("localhost:65536", "port"),
        ("localhost:-1", "port"),
        ("localhost:+1", "port"),
        ("localhost:\u0661", "port"),
        ("::1", "brackets"),
        ("::1:8000", "brackets"),
        ("[localhost]:1", "brackets"),
        ("[::1", "brackets"),
        ("[::1]8000", "brackets"),
        ("http://localhost:8000", "host:port"),
        ("/run/app.sock", "unix:path"),
        ("a b:1", "host name"),
        ("a\n:1", "host name"),
        ("unix:", "no path"),
        ("unix:a\0b", "no path"),
    ],
)
def test_bad_binds(text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=rf"^--bind: .*{reason}"):
        parse_bind(text)
    with pytest.raises(ConfigError, match="^--bind: "):
        Config(bind=["localhost", text])


@pytest.mark.parametrize("value", [[], (), None, 8000, [8000]])
def test_bind_wants_addresses(value: object) -> None:
    with pytest.raises(ConfigError, match="^--bind: "):
        Config.from_options(bind=value)


def test_names_of_hosts() -> None:
    config = Config.from_options(server_name=["A.example", "[2001:DB8::1]", "127.0.0.1", "a_b"])
    assert config.server_name == ("a.example", "[2001:db8::1]", "127.0.0.1", "a_b")
    for bad in ("", "a:80", "::1", "a b", "é.example", "*.a", "a/b", [5]):
        with pytest.raises(ConfigError, match="^--server-name: a host name or address without"):
            Config.from_options(server_name=bad)


WHOLE = [
    ("backlog", 1, 65535),
    ("limit_request_fields", 1, 10_000),
]
SIZES = [
    ("body_min_rate", 0, 2**31 - 1),
    ("limit_request_line", 64, 2**20),
    ("limit_request_field_bytes", 256, 2**24),
    ("limit_request_body", 0, 2**62),
    ("ws_max_size", 1, 2**30),
]


@pytest.mark.parametrize(("name", "least", "most"), WHOLE)
def test_whole_numbers_within_bounds(name: str, least: int, most: int) -> None:
    for value in (least, most):
        assert getattr(Config.from_options(**{name: value}), name) == value
        assert getattr(Config.from_options(**{name: str(value)}), name) == value
    for bad in (
        *(least - 1, most + 1, f"{least}_0", f" {least}", f"+{least}", "١٢٣٤", "x", "", "1.5"),
        *(1.5, True, [1]),
    ):
        with pytest.raises(
            ConfigError, match=f"^{OPTIONS[name].flag}: a whole number from {least}"
        ):
            Config.from_options(**{name: bad})


@pytest.mark.parametrize(("name", "least", "most"), SIZES)
def test_sizes_within_bounds(name: str, least: int, most: int) -> None:
    for value in (least, most):
        assert getattr(Config.from_options(**{name: value}), name) == value
        assert getattr(Config.from_options(**{name: str(value)}), name) == value
    assert getattr(Config.from_options(**{name: "1K"}), name) == 1024
    too_much = f"{most // 2**30 + 1}G"
    for bad in (least - 1, most + 1, too_much, "x", "", "K", "1.5", "1KB", "-1", 1.5, True, [1]):
        with pytest.raises(ConfigError, match=f"^{OPTIONS[name].flag}: a size in bytes from"):
            Config.from_options(**{name: bad})


@pytest.mark.parametrize(
    ("text", "size"), [("16M", 2**24), ("16m", 2**24), ("64k", 2**16), ("2G", 2**31), ("0", 0)]
)
def test_units_of_sizes(text: str, size: int) -> None:
    assert Config.from_options(limit_request_body=text).limit_request_body == size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("500ms", 0.5), ("30s", 30), ("5m", 300), ("1.5m", 90), ("2h", 7200), ("1d", 86_400)],
)
def test_units_of_times(text: str, seconds: float) -> None:
    assert Config.from_options(keep_alive_timeout=text).keep_alive_timeout == seconds


SECONDS = [name for name, option in OPTIONS.items() if option.check.metavar == "TIME"]
MAY_BE_OFF = {
    "drain_delay",
    "drain_idle_timeout",
    "loop_lag_warn",
    "request_timeout",
    "ssl_reload_interval",
    "timeout",
    "ws_ping_interval",
    "ws_ping_timeout",
}


@pytest.mark.parametrize("name", SECONDS)
def test_seconds(name: str) -> None:
    check = OPTIONS[name].check
    assert isinstance(check, Seconds)
    most = check.most
    assert most == 86_400 or name == "max_lifetime"
    for value in (0.001, 1, most, "2.5", f"{most:.0f}s"):
        seconds = getattr(Config.from_options(**{name: value}), name)
        assert isinstance(seconds, float)
        assert seconds == float(str(value).removesuffix("s"))
    for bad in (
        0,
        -1,
        "0",
        "nan",
        "inf",
        "5 m",
        "5w",
        f"{most + 86_400:.0f}s",
        "-1s",
        "s",
        "1e3",
        float("nan"),
        10**400,
        most + 1,
        "",
        "x",
        True,
        None,
    ):
        if name in MAY_BE_OFF and bad in (0, "0"):
            assert getattr(Config.from_options(**{name: bad}), name) == 0
            continue
        if bad is None and OPTIONS[name].default is None:
            continue  # not given
        with pytest.raises(ConfigError, match=f"^{OPTIONS[name].flag}: seconds from"):
            Config.from_options(**{name: bad})


BOOLEANS = ["ws_per_message_deflate", "ws_context_takeover"]
SWITCHES = [name for name, option in OPTIONS.items() if option.is_switch]


@pytest.mark.parametrize("name", BOOLEANS + SWITCHES)
def test_said_to_be_on_or_off(name: str) -> None:
    for value, expected in {
        **dict.fromkeys((True, "true", "True", "1", "yes", "on"), True),
        **dict.fromkeys((False, "false", "FALSE", "0", "no", "off"), False),
    }.items():
        assert getattr(Config.from_options(**{name: value}), name) is expected
    for bad in ("", "maybe", 1.5, None, 0, 1, 2):
        with pytest.raises(ConfigError, match=f"^{OPTIONS[name].label}: true or false expected"):
            Config.from_options(**{name: bad})


def test_the_keep_alive_option_is_spelt_short() -> None:
    assert OPTIONS["keep_alive_timeout"].flag == "--keep-alive"


@pytest.mark.parametrize("name", ["worker_class", "lifespan", "poller", "log_level"])
def test_choices_suggest_the_nearest(name: str) -> None:
    option = OPTIONS[name]
    word = option.check.metavar.split("|")[-1]
    assert getattr(Config.from_options(**{name: word}), name) == word
    with pytest.raises(ConfigError, match=rf"^{option.flag}: .* \(did you mean {word}\?\)"):
        Config.from_options(**{name: word + "x"})
    for bad in (None, 1, ["auto"], ""):
        with pytest.raises(ConfigError, match=f"^{option.flag}: one of "):
            Config.from_options(**{name: bad})


def test_auto_is_uvloop_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert Config().worker_class == "uvloop"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert Config().worker_class == "asyncio"
    assert Config(worker_class="uvloop").worker_class == "uvloop"


def test_epoll_is_refused_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(select, "epoll", raising=False)
    assert Config(poller="loop").poller == "loop"
    with pytest.raises(ConfigError, match="^--poller: .*no epoll"):
        Config(poller="epoll")


@pytest.mark.parametrize(("given", "kept"), [("", ""), ("/", ""), ("/a", "/a"), ("/a/b/", "/a/b")])
def test_root_path(given: str, kept: str) -> None:
    assert Config(root_path=given).root_path == kept


@pytest.mark.parametrize("bad", ["a", "a/", None, b"/a"])
def test_bad_root_path(bad: object) -> None:
    with pytest.raises(ConfigError, match="^--root-path: "):
        Config.from_options(root_path=bad)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("", ()),
        ("*", ("*",)),
        ("unix", ("unix",)),
        ("127.0.0.1", ("127.0.0.1",)),
        ("::1, 10.0.0.0/8,unix,", ("::1", "10.0.0.0/8", "unix")),
        (["2001:DB8::/32", "10.0.0.1", "10.0.0.1"], ("2001:db8::/32", "10.0.0.1")),
        ((), ()),
    ],
)
def test_trusted_peers(given: object, kept: tuple[str, ...]) -> None:
    assert Config.from_options(forwarded_allow_ips=given).forwarded_allow_ips == kept


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("localhost", "an address, a network, unix or \\* expected, not 'localhost'"),
        ("10.0.0.0/33", "an address"),
        ("fe80::1%eth0", "an address"),
        ("10.0.0.1, all", "an address.*'all'"),
        ("10.0.0.1/8", "'10.0.0.1/8' is not a network; 10.0.0.0/8 is"),
        (None, "addresses with commas"),
        ([b"::1"], "addresses with commas"),
        (["10.0.0.1"] * 1001, "at most 1000"),
    ],
)
def test_bad_trusted_peers(bad: object, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^--forwarded-allow-ips: {message}"):
        Config.from_options(forwarded_allow_ips=bad)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("off", ()),
        (False, ()),  # as uvicorn has it
        (True, ("for", "proto")),
        ("proto, for", ("for", "proto")),
        (["prefix", "host", "port"], ("host", "port", "prefix")),
        ("forwarded", ("forwarded",)),
        ("forwarded,prefix", ("prefix", "forwarded")),
    ],
)
def test_proxy_headers(given: object, kept: tuple[str, ...]) -> None:
    assert Config.from_options(proxy_headers=given).proxy_headers == kept


@pytest.mark.parametrize("bad", ["on", "x-forwarded-for", "for,off", "forwarded,for", None, 1])
def test_bad_proxy_headers(bad: object) -> None:
    with pytest.raises(ConfigError, match="^--proxy-headers: "):
        Config.from_options(proxy_headers=bad)


@pytest.mark.parametrize("name", ["app_dir", "access_logfile", "error_logfile", "pid"])
def test_paths(name: str) -> None:
    assert getattr(Config.from_options(**{name: "a/b"}), name) == "a/b"
    for bad in ("", "a\0b", 1):
        with pytest.raises(ConfigError, match=f"^{OPTIONS[name].flag}: a path"):
            Config.from_options(**{name: bad})


def test_an_unknown_option_is_named_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"^worker_clas: .*did you mean worker_class\?"):
        Config.from_options(worker_clas="trio")
    with pytest.raises(ConfigError, match="^zzz: there is no such option$"):
        Config.from_options(zzz=1)


def test_a_config_error_is_a_value_error_without_context() -> None:
    with pytest.raises(ValueError, match="^--backlog") as caught:
        Config(backlog=0)
    assert caught.value.__suppress_context__
