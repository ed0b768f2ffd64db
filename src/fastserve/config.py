"""The options: one frozen dataclass, and each option has one home.

A field carries everything that is to be known of its option: the default, the
section and the sentence it has in the help, its spelling on the command line, the
names that other servers have for it, and the check that brings a value into its
final form. Command line, environment, files and keyword arguments derive from
here; nothing of an option is said twice.

This module and the two below it know nothing else of the package.
"""

from __future__ import annotations

import dataclasses
import os
import select
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from fastserve import sources
from fastserve.checks import (
    DEFAULT_PORT,
    Address,
    Bind,
    Binds,
    Boolean,
    Check,
    Choice,
    ConfigError,
    HeaderField,
    HostName,
    LineFormat,
    LogLevel,
    Mask,
    MetricText,
    Path,
    Poller,
    ProxyHeaders,
    RootPath,
    Seconds,
    Several,
    Share,
    Size,
    Switch,
    Target,
    Text,
    TrustedPeers,
    VerifyMode,
    Whole,
    WorkerClass,
    Workers,
    nearest,
    parse_bind,
)
from fastserve.sources import Source

__all__ = [
    "ALIASES",
    "DEFAULT_BIND",
    "IGNORED",
    "OPTIONS",
    "REFUSED",
    "Alias",
    "Bind",
    "Config",
    "ConfigError",
    "Option",
    "Resolved",
    "parse_bind",
    "resolve",
]

# Lengths reach the core as signed 64-bit numbers; this leaves room to add two.
LARGEST_BODY = 2**62

DEFAULT_BIND = f"127.0.0.1:{DEFAULT_PORT}"
DEFAULT_STATSD_PORT = 8125

FAREWELL = 2.0
# By then nobody waits any more for what a worker has under way: proxies give up after as long,
# WebSockets have missed their pong.
LOOP_TIMEOUT = 60.0
# What a process that is to end gets beyond the time that its stages take.
STOP_MARGIN = 15.0


def _same(value: Any, now: Any) -> Any:
    return value


@dataclass(frozen=True, slots=True)
class Alias:
    """Another name of an option, most often another server's.

    `convert` makes the option's value from the alias's and from the value that the
    option has so far, from whatever comes before; ValueError says what is wrong with it.
    A `switch` has a flag without a value, which stands for True. Several `part`s of one
    option may be given together. `flag` is derived from the name; an empty one is none.
    """

    name: str
    convert: Callable[[Any, Any], Any] = _same
    flag: str | None = None
    metavar: str = ""
    switch: bool = False
    part: bool = False

    @property
    def spelling(self) -> str:
        return _flag_of(self.name) if self.flag is None else self.flag


@dataclass(frozen=True, slots=True)
class Option:
    """What is to be known of an option besides its field's name and default."""

    name: str
    default: Any
    section: str
    help: str
    check: Check
    flag: str
    short: str = ""
    aliases: tuple[Alias, ...] = ()
    repeatable: bool = False
    separator: str = ","
    secret: bool = False

    @property
    def is_switch(self) -> bool:
        return isinstance(self.check, Switch)

    @property
    def is_argument(self) -> bool:
        """It has no flag: on the command line it stands for itself."""
        return not self.flag

    @property
    def label(self) -> str:
        """How an error names it. The flag of a switch may well say the opposite."""
        return self.name if self.is_switch or self.is_argument else self.flag

    @property
    def default_text(self) -> str:
        """The default, as it would be written; empty if there is none."""
        default = self.default
        if default is None:
            return ""
        if isinstance(default, bool):
            return str(default).lower()
        if isinstance(default, tuple):
            return ", ".join(default)
        return f"{default:g}" if isinstance(default, float) else str(default)

    def normalise(self, value: Any, label: str = "") -> Any:
        """The value as the field keeps it; a ConfigError begins with `label`."""
        if value is None and self.default is None:
            return None
        try:
            return self.check(value)
        except ValueError as error:
            raise ConfigError(f"{label or self.label}: {error}") from None


def option(
    default: Any,
    section: str,
    check: Check,
    help: str,
    *,
    flag: str | None = None,
    short: str = "",
    aliases: tuple[Alias, ...] = (),
    repeatable: bool = False,
    separator: str = ",",
    secret: bool = False,
) -> Any:
    """A field that carries its option's facts; the rest is derived from its name.

    `separator`: between the values of a repeatable one in a variable. `secret`: the value is
    never shown."""
    facts = {
        "section": section,
        "check": check,
        "help": help,
        "short": short,
        "aliases": aliases,
        "repeatable": repeatable,
        "separator": separator,
        "secret": secret,
    }
    if flag is not None:
        facts["flag"] = flag
    return dataclasses.field(default=default, metadata=facts)


def _flag_of(name: str) -> str:
    return f"--{name.replace('_', '-')}"


# How a value of another server becomes one of ours.


def _one_address(now: tuple[str, ...]) -> Bind:
    """The TCP address of which a part is replaced."""
    bind = parse_bind(now[0])
    if len(now) == 1 and bind.kind == "tcp":
        return bind
    return parse_bind(DEFAULT_BIND)


def _with_host(value: Any, now: tuple[str, ...]) -> str:
    if not isinstance(value, str):
        raise ValueError(f"a host expected, not {value!r}")
    host = value.removeprefix("[").removesuffix("]")
    return str(dataclasses.replace(_one_address(now), host=host))


def _with_port(value: Any, now: tuple[str, ...]) -> str:
    return str(dataclasses.replace(_one_address(now), port=Whole(0, 65535)(value)))


def _unix_path(value: Any, now: tuple[str, ...]) -> str:
    return f"unix:{Path()(value)}"


def _descriptor(value: Any, now: tuple[str, ...]) -> str:
    return f"fd://{Whole(0, 2**31 - 1)(value)}"


def _access_log(value: Any, now: str | None) -> Any:
    """A file to Hypercorn; on or off to uvicorn, in a variable as text."""
    if isinstance(value, str):
        value = {"true": True, "false": False}.get(value.lower(), value)
    if value is True:
        return "-" if now is None else now
    return None if value is False else value


def _no_access_log(value: bool, now: str | None) -> str | None:
    return None if value else now


def _colors(value: bool, now: str) -> str:
    return "always" if value else "never"


def _no_colors(value: bool, now: str) -> str:
    return "never" if value else now


def _no_proxy_headers(value: bool, now: tuple[str, ...]) -> tuple[str, ...]:
    return () if value else now


def _fields(value: Any, now: tuple[str, ...]) -> tuple[str, ...]:
    """uvicorn's pairs of name and value."""
    try:
        return tuple(f"{name}: {text}" for name, text in value)
    except (TypeError, ValueError):
        raise ValueError(f"pairs of name and value expected, not {value!r}") from None


def _uvloop(value: bool, now: str) -> str:
    return "uvloop" if value else now


APPLICATION = "Application"
LISTENING = "Listening and workers"
LOGGING = "Logging"
MONITORING = "Monitoring"
LIMITS = "Limits"
TIMES = "Time limits"
ANSWERS = "Answers"
WEBSOCKETS = "WebSockets"
TLS = "TLS"
PROXIES = "Proxies"


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that can be set. Values are checked and normalised when it is made."""

    worker_class: str = option(
        "auto",
        LISTENING,
        WorkerClass("auto", "asyncio", "uvloop", "trio"),
        "The event loop; auto is uvloop where it is installed, else asyncio.",
        short="-k",
        aliases=(Alias("loop", metavar="LOOP"), Alias("uvloop", _uvloop, switch=True)),
    )
    workers: int | str = option(
        1,
        LISTENING,
        Workers(),
        "How many processes serve; auto is one for each core that they may use, by affinity and by"
        " the quota of their control group.",
        short="-w",
    )
    preload: bool = option(
        False,
        LISTENING,
        Switch(),
        "Import the application once, before the workers are forked, which share its memory.",
        aliases=(Alias("preload_app", flag=""),),
    )
    reload: bool = option(
        False,
        LISTENING,
        Switch(),
        "Replace the workers when a file changes: for developers. Needs watchfiles.",
        aliases=(Alias("use_reloader", flag=""),),
    )
    reload_dir: tuple[str, ...] = option(
        (),
        LISTENING,
        Several(Path(metavar="DIR")),
        "A folder whose files are watched, with all below it; --app-dir, or the present one,"
        " unless given. May be repeated.",
        aliases=(Alias("reload_dirs", flag=""),),
        repeatable=True,
    )
    reload_include: tuple[str, ...] = option(
        ("*.py",),
        LISTENING,
        Several(Text(metavar="PATTERN")),
        "Which files matter, as a pattern. May be repeated.",
        aliases=(Alias("reload_includes", flag=""),),
        repeatable=True,
    )
    reload_exclude: tuple[str, ...] = option(
        (),
        LISTENING,
        Several(Text(metavar="PATTERN")),
        "And which of them do not. May be repeated.",
        aliases=(Alias("reload_excludes", flag=""),),
        repeatable=True,
    )
    max_requests: int | None = option(
        None,
        LISTENING,
        Whole(1, 2**31 - 1),
        "Replace a worker after so many requests; never unless given.",
        aliases=(Alias("limit_max_requests"),),
    )
    max_requests_jitter: int = option(
        0,
        LISTENING,
        Whole(0, 2**31 - 1),
        "And after up to so many more, at random, so that not all of them go at once.",
        aliases=(Alias("limit_max_requests_jitter"),),
    )
    max_lifetime: float | None = option(
        None,
        LISTENING,
        Seconds(most=366 * 86_400.0),
        "Replace a worker that is so old; never unless given.",
    )
    max_rss: int | None = option(
        None,
        LISTENING,
        Size(2**20, 2**62),
        "Replace a worker that has more memory than this; never unless given.",
    )
    bind: tuple[str, ...] = option(
        (DEFAULT_BIND,),
        LISTENING,
        Binds(),
        "Where to listen: host:port (port 0: any free one), unix:path, fd://N, or systemd:name for"
        " a socket that systemd has opened. May be repeated.",
        short="-b",
        aliases=(
            Alias("host", _with_host, metavar="HOST", part=True),
            Alias("port", _with_port, metavar="PORT", part=True),
            Alias("uds", _unix_path, metavar="PATH"),
            Alias("unix_domain", _unix_path, flag=""),
            Alias("fd", _descriptor, metavar="N"),
            Alias("file_descriptor", _descriptor, flag=""),
        ),
        repeatable=True,
    )
    insecure_bind: tuple[str, ...] = option(
        (),
        LISTENING,
        Binds(may_be_none=True),
        "Where to listen without TLS, beside addresses with it. May be repeated.",
        repeatable=True,
    )
    server_name: tuple[str, ...] = option(
        (),
        LISTENING,
        Several(HostName()),
        "A host that is served, by its name in the Host field; others get 421. Any unless given."
        " May be repeated.",
        aliases=(Alias("server_names", flag=""),),
        repeatable=True,
    )
    umask: str = option(
        "177",
        LISTENING,
        Mask(),
        "Permissions that a unix socket does not get.",
        short="-m",
    )
    user: str | None = option(
        None,
        LISTENING,
        Text(metavar="USER"),
        "Who a unix socket belongs to: a name or a number.",
        short="-u",
    )
    group: str | None = option(
        None,
        LISTENING,
        Text(metavar="GROUP"),
        "And which group.",
        short="-g",
    )
    backlog: int = option(
        2048,
        LISTENING,
        Whole(1, 65535),
        "How many connections may wait to be accepted.",
    )
    reuse_port: bool = option(
        False,
        LISTENING,
        Switch(),
        "Let others listen on the same TCP addresses too (SO_REUSEPORT); each worker then does so"
        " by itself.",
    )
    poller: str = option(
        "epoll" if hasattr(select, "epoll") else "loop",
        LISTENING,
        Poller("epoll", "loop"),
        "Watch the sockets in the core (epoll), or through the event loop.",
    )
    pid: str | None = option(
        None,
        LISTENING,
        Path(metavar="FILE"),
        "Write the process id to this file, which is removed at the end.",
        short="-p",
        aliases=(Alias("pid_path", flag=""),),
    )
    debug: bool = option(
        False,
        LISTENING,
        Switch(),
        "Run asyncio or uvloop in its debug mode, which is slow; trio has none.",
    )

    application: str | None = option(
        None,
        APPLICATION,
        Target(),
        "The application, as MODULE:ATTR.",
        flag="",
        aliases=(Alias("application_path", flag=""),),
    )
    factory: bool = option(
        False,
        APPLICATION,
        Switch(),
        "MODULE:ATTR is called without arguments and returns the application.",
    )
    interface: str = option(
        "auto",
        APPLICATION,
        Choice("auto", "asgi3", "asgi2", "wsgi"),
        "What the application is; auto tells it by what it takes.",
    )
    wsgi_threads: int = option(
        16,
        APPLICATION,
        Whole(1, 1000),
        "Requests that are in a WSGI application at a time, each in a thread.",
    )
    app_dir: str = option(
        ".",
        APPLICATION,
        Path(metavar="DIR"),
        "Look for the application's module here first.",
    )
    root_path: str = option(
        "",
        APPLICATION,
        RootPath(),
        "The prefix under which a proxy offers the application.",
    )
    lifespan: str = option(
        "auto",
        APPLICATION,
        Choice("auto", "on", "off"),
        "Start-up and shutdown events; auto goes on without them if the application raises.",
    )

    graceful_timeout: float = option(
        30.0,
        TIMES,
        Seconds(),
        "For requests under way when the server is told to stop.",
        aliases=(Alias("timeout_graceful_shutdown"),),
    )
    drain_delay: float = option(
        0.0,
        TIMES,
        Seconds(may_be_off=True),
        "How long new connections are still accepted when the server is told to stop.",
    )
    drain_idle_timeout: float = option(
        5.0,
        TIMES,
        Seconds(may_be_off=True),
        "For one more request on each idle connection, when the server is told to stop.",
    )
    startup_timeout: float = option(
        60.0,
        TIMES,
        Seconds(),
        "For the application's lifespan start-up.",
    )
    shutdown_timeout: float = option(
        60.0,
        TIMES,
        Seconds(),
        "For the application's lifespan shutdown.",
    )
    header_timeout: float = option(
        30.0,
        TIMES,
        Seconds(),
        "For a whole request head, else 408.",
    )
    body_timeout: float = option(
        60.0,
        TIMES,
        Seconds(),
        "For the next byte of a request body.",
    )
    body_min_rate: int = option(
        240,
        TIMES,
        Size(0, 2**31 - 1),
        "Bytes per second at which a request body must come on average, and an answer be taken in"
        " each --write-timeout; 0 is any.",
    )
    write_timeout: float = option(
        60.0,
        TIMES,
        Seconds(),
        "For a client to take more of its answer, at --body-min-rate.",
    )
    keep_alive_timeout: float = option(
        75.0,
        TIMES,
        Seconds(),
        "For the next request on an idle connection.",
        flag="--keep-alive",
        aliases=(Alias("timeout_keep_alive"), Alias("keep_alive", flag="")),
    )
    request_timeout: float = option(
        0.0,
        TIMES,
        Seconds(may_be_off=True),
        "For a whole answer, else 504, or the end of what has begun; 0 is for ever.",
        aliases=(Alias("http_timeout"),),
    )
    timeout: float | None = option(
        None,
        TIMES,
        Seconds(may_be_off=True),
        "For a turn of a worker's event loop, else it is replaced; 0 is for ever. Unless given,"
        " 60 s with several workers.",
        short="-t",
        aliases=(Alias("timeout_worker_healthcheck"),),
    )
    loop_lag_warn: float = option(
        5.0,
        TIMES,
        Seconds(may_be_off=True),
        "Log where an event loop stands that has had no turn for so long; 0 never does.",
    )

    limit_request_line: int = option(
        8190,
        LIMITS,
        Size(64, 2**20),
        "The longest request line, else 414.",
    )
    limit_request_fields: int = option(
        100,
        LIMITS,
        Whole(1, 10_000),
        "The most header fields in a request, else 431.",
    )
    limit_request_field_bytes: int = option(
        65536,
        LIMITS,
        Size(256, 2**24),
        "The most bytes in all header fields together, else 431.",
        aliases=(
            Alias("h11_max_incomplete_event_size"),
            Alias("h11_max_incomplete_size", flag=""),
        ),
    )
    limit_request_body: int | None = option(
        None,
        LIMITS,
        Size(0, LARGEST_BODY),
        "The longest request body, else 413; any length unless given.",
    )

    keep_alive_max_requests: int | None = option(
        None,
        LIMITS,
        Whole(1, 2**31 - 1),
        "The most requests on one connection, which then ends. Any number unless given.",
    )
    limit_concurrency: int | None = option(
        None,
        LIMITS,
        Whole(1, 2**31 - 1),
        "The most requests under way at once, else 503; any number unless given.",
    )
    queue_size: int = option(
        0,
        LIMITS,
        Whole(0, 2**20),
        "How many requests above --limit-concurrency may wait for their turn.",
    )
    queue_timeout: float = option(
        5.0,
        LIMITS,
        Seconds(),
        "How long each of them may wait, else 503.",
    )
    probe_path: tuple[str, ...] = option(
        (),
        LIMITS,
        Several(Text(metavar="PATH")),
        "A health probe's path, which no limit of requests holds back. May be repeated.",
        repeatable=True,
    )
    max_connections: int | None = option(
        None,
        LIMITS,
        Whole(1, 2**31 - 1),
        "The most connections; the next ones wait to be accepted. Any number unless given.",
    )
    max_connections_per_address: int | None = option(
        None,
        LIMITS,
        Whole(1, 2**31 - 1),
        "The most connections of one IP address; more are closed. Any number unless given.",
    )

    include_server_header: bool = option(
        True,
        ANSWERS,
        Switch(),
        "Add no Server field.",
        flag="--no-server-header",
        aliases=(Alias("server_header", switch=True),),
    )
    include_date_header: bool = option(
        True,
        ANSWERS,
        Switch(),
        "Add no Date field.",
        flag="--no-date-header",
        aliases=(Alias("date_header", switch=True),),
    )
    header: tuple[str, ...] = option(
        (),
        ANSWERS,
        Several(HeaderField()),
        "Add this field to every answer, whatever the application gives. May be repeated.",
        aliases=(Alias("headers", _fields, flag=""),),
        repeatable=True,
        separator="\n",
    )
    raise_on_disconnect: bool = option(
        False,
        ANSWERS,
        Switch(),
        "send() raises an OSError once the client is gone, as ASGI 2.4 and later have it.",
    )

    ws_max_size: int = option(
        16 * 1024 * 1024,
        WEBSOCKETS,
        Size(1, 2**30),
        "The longest message received, inflated, else it is closed with 1009.",
        aliases=(Alias("websocket_max_message_size", flag=""),),
    )
    ws_max_queue: int = option(
        32,
        WEBSOCKETS,
        Whole(1, 65536),
        "Received messages that may wait for the application before reading pauses.",
    )
    ws_ping_interval: float = option(
        20.0,
        WEBSOCKETS,
        Seconds(may_be_off=True),
        "Between two pings; 0 sends none.",
        aliases=(Alias("websocket_ping_interval"),),
    )
    ws_ping_timeout: float = option(
        20.0,
        WEBSOCKETS,
        Seconds(may_be_off=True),
        "For the pong, else it is closed with 1011; 0 waits for ever.",
    )
    ws_close_timeout: float = option(
        10.0,
        WEBSOCKETS,
        Seconds(),
        "For the client's part of the closing handshake.",
    )
    ws_per_message_deflate: bool = option(
        True,
        WEBSOCKETS,
        Boolean(),
        "Compress messages for clients that offer it.",
    )
    ws_context_takeover: bool = option(
        False,
        WEBSOCKETS,
        Boolean(),
        "Let compressed messages refer to earlier ones: smaller, for 300 KiB a socket.",
    )

    certfile: tuple[str, ...] = option(
        (),
        TLS,
        Several(Path(metavar="FILE")),
        "The certificate with its chain, in PEM; clients are served by TLS. May be repeated,"
        " to have several by the name that a client asks for.",
        aliases=(Alias("ssl_certfile"),),
        repeatable=True,
    )
    keyfile: tuple[str, ...] = option(
        (),
        TLS,
        Several(Path(metavar="FILE")),
        "The private key of each certificate, in the same order, unless it is in its file.",
        aliases=(Alias("ssl_keyfile"),),
        repeatable=True,
    )
    keyfile_password: str | None = option(
        None,
        TLS,
        Text(),
        "What decrypts the private keys.",
        aliases=(Alias("ssl_keyfile_password"),),
        secret=True,
    )
    ca_certs: str | None = option(
        None,
        TLS,
        Path(metavar="FILE"),
        "Who signs the clients' certificates, in PEM.",
        aliases=(Alias("ssl_ca_certs"),),
    )
    verify_mode: str = option(
        "none",
        TLS,
        VerifyMode("none", "optional", "required"),
        "Whether clients are asked for a certificate.",
        aliases=(Alias("ssl_cert_reqs"), Alias("cert_reqs")),
    )
    ciphers: str = option(
        # With forward secrecy and authentication alone, whatever the system's default is.
        "ECDHE+AESGCM:ECDHE+CHACHA20",
        TLS,
        Text(),
        "The ciphers for TLS 1.2, as OpenSSL lists them.",
        aliases=(Alias("ssl_ciphers"),),
    )
    tls_min_version: str = option(
        "1.2",
        TLS,
        Choice("1.2", "1.3"),
        "The oldest version of TLS that is spoken.",
    )
    ssl_handshake_timeout: float = option(
        60.0,
        TLS,
        Seconds(),
        "For the whole handshake.",
    )
    ssl_reload_interval: float = option(
        5.0,
        TLS,
        Seconds(may_be_off=True),
        "Between two looks at whether the files have changed; 0 looks only when told to.",
    )
    forwarded_allow_ips: tuple[str, ...] = option(
        ("127.0.0.1", "::1", "unix"),
        PROXIES,
        TrustedPeers(),
        "Which peers are believed: addresses, networks, unix (sockets), * (all).",
    )
    proxy_headers: tuple[str, ...] = option(
        ProxyHeaders.default,
        PROXIES,
        ProxyHeaders(),
        "Which X-Forwarded fields of theirs: for,proto,host,port,prefix; or forwarded; or off.",
        aliases=(Alias("no_proxy_headers", _no_proxy_headers, switch=True),),
    )
    forwarded_hops: int = option(
        0,
        PROXIES,
        Whole(0, 32),
        "How many proxies there are in a row; 0 asks their addresses.",
    )
    proxy_protocol: bool = option(
        False,
        PROXIES,
        Switch(),
        "Every connection begins with a PROXY header, version 1 or 2.",
    )

    log_level: str = option(
        "info",
        LOGGING,
        LogLevel("critical", "error", "warning", "info", "debug"),
        "The least severe message that is shown.",
    )
    access_logfile: str | None = option(
        None,
        LOGGING,
        Path(metavar="FILE"),
        "Write a line per request to this file; - is stdout.",
        aliases=(
            Alias("access_log", _access_log),
            Alias("no_access_log", _no_access_log, switch=True),
            Alias("accesslog", flag=""),
            Alias("access_log_target", flag=""),
        ),
    )
    access_logformat: str = option(
        '%(h)s %(l)s %(l)s %(t)s "%(r)s" %(s)s %(B)s %(D)sus',
        LOGGING,
        LineFormat(),
        "What is in that line: atoms like %(h)s, or json (docs/logging.md).",
        aliases=(Alias("access_log_format", flag=""),),
    )
    access_log_sample: float = option(
        1.0,
        LOGGING,
        Share(),
        "The share of the requests that have a line; those that fail, with a status from 500 on,"
        " always have one.",
    )
    access_log_exclude: tuple[str, ...] = option(
        (),
        LOGGING,
        Several(Text(metavar="PATH")),
        "A path that has no line; /path/* is all below it. May be repeated.",
        repeatable=True,
    )
    error_logfile: str = option(
        "-",
        LOGGING,
        Path(metavar="FILE"),
        "Write the server's own messages to this file; - is stderr.",
        aliases=(
            Alias("log_file"),
            Alias("error_log"),
            Alias("errorlog", flag=""),
            Alias("error_log_target", flag=""),
        ),
    )
    log_format: str = option(
        "text",
        LOGGING,
        Choice("text", "json"),
        "How the server's own messages are written; json is an object in each line.",
    )
    log_colors: str = option(
        "auto",
        LOGGING,
        Choice("auto", "always", "never"),
        "Whether they have colours; auto on a terminal, unless NO_COLOR is set.",
        aliases=(
            Alias("use_colors", _colors, switch=True),
            Alias("no_use_colors", _no_colors, switch=True),
        ),
    )
    log_config: str | None = option(
        None,
        LOGGING,
        Path(metavar="FILE"),
        "Configure Python's logging by this file: .toml or .json for a dict, else ini.",
        aliases=(Alias("logconfig", flag=""),),
    )

    admin_bind: str | None = option(
        None,
        MONITORING,
        Address(),
        "Answer /live, /ready, /metrics and /workers here: host:port or unix:path. Not for the public.",
    )
    statsd_host: str | None = option(
        None,
        MONITORING,
        Address(DEFAULT_STATSD_PORT),
        "Send metrics to this StatsD server: host:port or unix:path, of datagrams.",
    )
    statsd_prefix: str = option(
        "",
        MONITORING,
        MetricText(metavar="PREFIX"),
        "What the names of these metrics begin with, before fastserve.",
    )
    dogstatsd_tags: str = option(
        "",
        MONITORING,
        MetricText(metavar="TAGS"),
        "What they are tagged with, as DogStatsD has it: name:value, with commas between several.",
    )

    def __post_init__(self) -> None:
        for option in OPTIONS.values():
            # The one moment at which a frozen instance may still be completed.
            value = option.normalise(getattr(self, option.name))
            object.__setattr__(self, option.name, value)

    @classmethod
    def from_options(cls, **options: Any) -> Config:
        """From keyword arguments, under their own names or others'.

        Raises ConfigError, as the other ways do."""
        return _config_from(Source(options))

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any] | None = None, /, **options: Any) -> Config:
        return _config_from(Source({**(mapping or {}), **options}))

    @classmethod
    def from_toml(cls, path: str | os.PathLike[str]) -> Config:
        return _config_from(sources.read_toml(path))

    @classmethod
    def from_pyfile(cls, path: str | os.PathLike[str]) -> Config:
        return _config_from(sources.read_pyfile(path))

    @classmethod
    def from_object(cls, target: object | str) -> Config:
        """From a module's or another object's attributes; a string is its dotted name."""
        return _config_from(sources.read_object(target))

    @property
    def needs_supervisor(self) -> bool:
        """Whether something is asked for that the one process cannot do alone."""
        asked = (self.workers != 1, self.preload, self.reload, self.recycles, self.timeout)
        return any((*asked, self.admin_bind, self.statsd_host))

    @property
    def recycles(self) -> bool:
        """Whether workers are replaced from time to time."""
        return any((self.max_requests, self.max_lifetime, self.max_rss))

    @property
    def loop_timeout(self) -> float:
        """Seconds that a worker's loop has for a turn; 0: any number. While somebody develops,
        a debugger may well stop it."""
        if self.timeout is not None:
            return self.timeout
        return 0.0 if self.reload else LOOP_TIMEOUT

    @property
    def logging(self) -> dict[str, str]:
        """What log.set_up() takes."""
        return {
            "level": self.log_level,
            "path": self.error_logfile,
            "format": self.log_format,
            "colors": self.log_colors,
            "file": self.log_config or "",
        }

    @property
    def farewell(self) -> float:
        """Seconds between the word to an application that it is over, and its cancellation: as
        long as the graceful time was, but no longer than FAREWELL."""
        return min(self.graceful_timeout, FAREWELL)

    @property
    def stop_timeout(self) -> float:
        """Seconds after which a process that is to finish what is under way must be stuck."""
        stages = self.drain_delay + self.graceful_timeout + self.farewell
        return stages + self.shutdown_timeout + STOP_MARGIN


def _option_of(field: dataclasses.Field[Any]) -> Option:
    facts = {"flag": _flag_of(field.name), **field.metadata}
    return Option(name=field.name, default=field.default, **facts)


OPTIONS: Mapping[str, Option] = MappingProxyType(
    {field.name: _option_of(field) for field in dataclasses.fields(Config)}
)

# Each alias by its name, with the option that it stands for.
ALIASES: Mapping[str, tuple[Alias, Option]] = MappingProxyType(
    {alias.name: (alias, option) for option in OPTIONS.values() for alias in option.aliases}
)


@dataclass(frozen=True, slots=True)
class Ignored:
    """Another server's option that changes nothing here; its flag may have a value."""

    reason: str
    has_value: bool = False


IGNORED: Mapping[str, Ignored] = MappingProxyType(
    {
        "http": Ignored("there is one parser", has_value=True),
        "ws": Ignored("WebSockets are always served, by one implementation", has_value=True),
        "reset_contextvars": Ignored("each request has a fresh context anyway"),
        "daemon": Ignored("the process stays in the foreground"),
        "reload_delay": Ignored("a change is told by the system, not looked for", has_value=True),
        "max_app_queue_size": Ignored(
            "what an application has not taken is bounded in bytes", has_value=True
        ),
        "h11_pass_raw_headers": Ignored(
            "header names are in lower case, as ASGI has them", has_value=True
        ),
    }
)

_NO_HTTP2 = "HTTP/2 is not there yet"
_NO_HTTP3 = "HTTP/3 is not there"

# Another server's options that must not be ignored in silence.
REFUSED: Mapping[str, str] = MappingProxyType(
    {
        "http2": _NO_HTTP2,
        "alpn_protocols": _NO_HTTP2,
        "h2_max_concurrent_streams": _NO_HTTP2,
        "h2_max_header_list_size": _NO_HTTP2,
        "h2_max_inbound_frame_size": _NO_HTTP2,
        "quic_bind": _NO_HTTP3,
        "alt_svc_headers": _NO_HTTP3,
        "read_timeout": "see header_timeout and body_timeout, which are for a whole head"
        " and for each read of a body",
        "ssl_version": "see tls_min_version, the oldest version that is spoken",
        "verify_flags": "clients' certificates are checked without revocation lists,"
        " as Python's ssl does unless told otherwise",
        "access_logger": "see access_logfile and access_logformat",
        "logger_class": "see error_logfile, or give the logger 'fastserve' handlers of your own",
        "logconfig_dict": "call logging.config.dictConfig before: the handlers that are there stay",
        "error_logger": "see error_logfile, or give the logger 'fastserve' handlers of your own",
    }
)


class Resolved(NamedTuple):
    """A Config, where each option that was given comes from, and what deserves a warning."""

    config: Config
    origins: dict[str, str]
    warnings: list[str]


def resolve(places: Iterable[Source]) -> Resolved:
    """One Config from several places, of which a later one beats an earlier one.

    Raises ConfigError: it begins with the name that is wrong, as its place spells it."""
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    doubts: list[str] = []
    for source in places:
        given: dict[str, Alias | None] = {}
        for name, value in source.values.items():
            if name not in OPTIONS and name not in ALIASES:
                doubts += _unknown(source, name)
                continue
            alias, option = ALIASES[name] if name in ALIASES else (None, OPTIONS[name])
            label, origin = _names(source, option, alias)
            if option.name in given:
                _refuse_second(source, option, given[option.name], alias)
            given[option.name] = alias
            if alias is None and option.repeatable and source.is_text and isinstance(value, str):
                value = tuple(value.split(option.separator))
            elif alias is not None:
                value = _converted(alias, value, values.get(option.name, option.default), label)
            values[option.name] = option.normalise(value, label)
            origins[option.name] = origin
    return Resolved(Config(**values), origins, doubts)


def _config_from(source: Source) -> Config:
    resolved = resolve([source])
    for doubt in resolved.warnings:
        warnings.warn(doubt, stacklevel=3)
    return resolved.config


def _names(source: Source, option: Option, alias: Alias | None) -> tuple[str, str]:
    """The label of what was given, for errors, and its origin."""
    if alias is not None:
        name, flag = alias.name, alias.spelling
        return source.label(name, flag), source.origin(name, flag)
    flag = "" if option.is_switch and not source.has_flags else option.flag
    return source.label(option.name, flag), source.origin(option.name, option.flag)


def _refuse_second(
    source: Source, option: Option, before: Alias | None, alias: Alias | None
) -> None:
    """One place may say a thing only once, for nobody knows which of the two is meant."""
    if before is not None and alias is not None and before.part and alias.part:
        return
    first, second = (_names(source, option, each)[0] for each in (before, alias))
    raise ConfigError(f"{second}: {first} is given too, and both set {option.name}")


def _converted(alias: Alias, value: Any, now: Any, label: str) -> Any:
    try:
        return alias.convert(Boolean()(value) if alias.switch else value, now)
    except ValueError as error:
        raise ConfigError(f"{label}: {error}") from None


def _unknown(source: Source, name: str) -> list[str]:
    """A warning about a name that is no option's; raises ConfigError where it is an error."""
    label = source.label(name, _flag_of(name) if source.has_flags else "")
    if name in IGNORED:
        return [f"{label}: ignored, since {IGNORED[name].reason}"]
    if name in REFUSED:
        raise ConfigError(f"{label}: {REFUSED[name]}")
    near = nearest(name, [*OPTIONS, *ALIASES], source.spelled)
    message = f"{label}: there is no such option{near}"
    if source.is_shared:
        return [message]
    raise ConfigError(message)
