"""The options: one frozen dataclass, and each option has one home.

A field carries everything that is to be known of its option: the default, the
section and the sentence it has in the help, its spelling on the command line
and the check that brings a value (a string from outside, a number or a list
from Python) into its final form. Command line, keyword arguments and whatever
reads the environment derive from here; nothing of an option is said twice.

This module knows nothing else of the package.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import ipaddress
import math
import os
import re
import select
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

__all__ = [
    "DEFAULT_PORT",
    "OPTIONS",
    "Bind",
    "Config",
    "ConfigError",
    "Option",
    "parse_bind",
]

DEFAULT_PORT = 8000

# The core counts milliseconds, and a deadline of none means "no deadline".
SHORTEST_SECONDS = 0.001
LONGEST_SECONDS = 86_400.0

# Lengths reach the core as signed 64-bit numbers; this leaves room to add two.
LARGEST_BODY = 2**62


class ConfigError(ValueError):
    """An option that cannot be used; the message begins with its name."""


@dataclass(frozen=True, slots=True)
class Bind:
    """One address to listen on."""

    kind: Literal["tcp", "unix"]
    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        if self.kind == "unix":
            return f"unix:{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def parse_bind(text: str) -> Bind:
    """`host:port`, `host`, `[v6]:port` or `unix:path` as a Bind, else a ConfigError."""
    try:
        return _parse_bind(text)
    except ValueError as error:
        raise ConfigError(f"--bind: {error}") from None


_TCP_ADDRESS = re.compile(
    r"(?: \[ (?P<v6> [^\[\]]* ) \] | (?P<host> [^\[\]:]* ) ) (?: : (?P<port> .* ) )?",
    re.VERBOSE | re.DOTALL,
)


def _parse_bind(text: str) -> Bind:
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if not path or "\0" in path:
            raise ValueError(f"no path after 'unix:' in {text!r}")
        return Bind("unix", path=path)
    if "/" in text:
        raise ValueError(f"host:port or unix:path expected, not {text!r}")
    match = _TCP_ADDRESS.fullmatch(text)
    if match is None or (match["v6"] is None and ":" in (match["port"] or "")):
        raise ValueError(f"host:port expected, an IPv6 host in brackets, not {text!r}")
    host = match["host"] if match["v6"] is None else match["v6"]
    if not host:
        raise ValueError(f"no host in {text!r} (0.0.0.0 or [::] is every interface)")
    if not host.isprintable() or " " in host:
        raise ValueError(f"not a host name: {host!r}")
    if match["v6"] is not None and ":" not in host:
        raise ValueError(f"only an IPv6 address stands in brackets, not {host!r}")
    return Bind("tcp", host=host, port=_parse_port(match["port"], text))


def _parse_port(digits: str | None, text: str) -> int:
    if digits is None:
        return DEFAULT_PORT
    if not re.fullmatch("[0-9]{1,5}", digits) or int(digits) > 65535:
        raise ValueError(f"the port is a number from 0 to 65535, not {digits!r} (in {text!r})")
    return int(digits)


# Checks. Each takes a value as it came and returns it as the field keeps it, or
# raises ValueError with the rest of a sentence that begins with the option.


class Check:
    """What every check has: a call, and what stands for the value in the help."""

    metavar: str = ""

    def __call__(self, value: Any) -> Any:
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Whole(Check):
    """A whole number within bounds."""

    least: int
    most: int
    metavar: str = "N"

    def __call__(self, value: Any) -> int:
        try:
            number = int(value) if isinstance(value, str) else value
        except ValueError:
            number = None
        # bool is an int to Python, never to whoever wrote `backlog=True`.
        if (
            isinstance(number, bool)
            or not isinstance(number, int)
            or not self.least <= number <= self.most
        ):
            raise ValueError(
                f"a whole number from {self.least} to {self.most} expected, not {value!r}"
            )
        return number


@dataclass(frozen=True, slots=True)
class Seconds(Check):
    """A time span above zero; or none at all, where `may_be_off`."""

    may_be_off: bool = False
    metavar: str = "SECONDS"

    def __call__(self, value: Any) -> float:
        try:
            seconds = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            seconds = math.nan
        if self.may_be_off and seconds == 0:
            return 0.0
        if not SHORTEST_SECONDS <= seconds <= LONGEST_SECONDS:  # false for nan too
            raise ValueError(
                f"seconds from {SHORTEST_SECONDS:g} to {LONGEST_SECONDS:g} expected, not {value!r}"
            )
        return seconds


class Choice(Check):
    """One word of a few."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self.metavar = "|".join(names)

    def __call__(self, value: Any) -> str:
        if not isinstance(value, str) or value not in self.names:
            near = _nearest(value, self.names) if isinstance(value, str) else ""
            raise ValueError(f"one of {', '.join(self.names)} expected, not {value!r}{near}")
        return value


class WorkerClass(Choice):
    """The loop's name; `auto` becomes the quickest one at hand."""

    def __call__(self, value: Any) -> str:
        name = Choice.__call__(self, value)
        if name != "auto":
            return name
        return "asyncio" if importlib.util.find_spec("uvloop") is None else "uvloop"


class Poller(Choice):
    """How readiness is learned; not every system has epoll."""

    def __call__(self, value: Any) -> str:
        name = Choice.__call__(self, value)
        if name == "epoll" and not hasattr(select, "epoll"):
            raise ValueError("this system has no epoll; 'loop' works everywhere")
        return name


class Switch(Check):
    """On or off; the option of a field that is on by default turns it off."""

    def __call__(self, value: Any) -> bool:
        if not isinstance(value, bool):
            raise ValueError(f"True or False expected, not {value!r}")
        return value


@dataclass(frozen=True, slots=True)
class Boolean(Check):
    """On or off, and said so."""

    metavar: str = "true|false"

    def __call__(self, value: Any) -> bool:
        if isinstance(value, str):
            value = _BOOLEANS.get(value.lower(), value)
        if not isinstance(value, bool):
            raise ValueError(f"true or false expected, not {value!r}")
        return value


_BOOLEANS = {"true": True, "1": True, "yes": True, "on": True,
             "false": False, "0": False, "no": False, "off": False}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Path(Check):
    """A path; whether it can be used shows when it is."""

    metavar: str = "PATH"

    def __call__(self, value: Any) -> str:
        try:
            path = os.fsdecode(value)
        except TypeError:
            path = ""
        if not path or "\0" in path:
            raise ValueError(f"a path expected, not {value!r}")
        return path


@dataclass(frozen=True, slots=True)
class RootPath(Check):
    """The prefix under which a proxy mounts the application."""

    metavar: str = "PATH"

    def __call__(self, value: Any) -> str:
        if not isinstance(value, str) or (value and not value.startswith("/")):
            raise ValueError(f"a path that begins with '/' expected, not {value!r}")
        return value.rstrip("/")


@dataclass(frozen=True, slots=True)
class Binds(Check):
    """One address or several, each of them readable by parse_bind."""

    metavar: str = "ADDRESS"

    def __call__(self, value: Any) -> tuple[str, ...]:
        addresses = (value,) if isinstance(value, str) else value
        if not isinstance(addresses, Iterable):
            raise ValueError(f"an address or a list of addresses expected, not {value!r}")
        addresses = tuple(addresses)
        if not addresses:
            raise ValueError("at least one address expected")
        for address in addresses:
            if not isinstance(address, str):
                raise ValueError(f"host:port or unix:path expected, not {address!r}")
            _parse_bind(address)
        return addresses


class TrustedPeers(Check):
    """Addresses and networks, `unix` and `*`; several with commas between them."""

    metavar = "PEERS"
    most = 1000

    def __call__(self, value: Any) -> tuple[str, ...]:
        peers = _words(value, "addresses")
        if len(peers) > self.most:
            raise ValueError(f"at most {self.most} addresses expected, not {len(peers)}")
        return tuple(dict.fromkeys(map(self._peer, peers)))

    @staticmethod
    def _peer(word: str) -> str:
        if word in ("unix", "*"):
            return word
        try:
            network = ipaddress.ip_network(word)
        except ValueError as error:
            if "host bits" in str(error):
                right = ipaddress.ip_network(word, strict=False)
                raise ValueError(f"{word!r} is not a network; {right} is") from None
            network = None
        if network is None or "%" in word:
            raise ValueError(f"an address, a network, unix or * expected, not {word!r}")
        return str(network) if "/" in word else str(network.network_address)


class ProxyHeaders(Check):
    """What a trusted peer is asked for: the X-Forwarded fields by their last words, or
    `forwarded`; uvicorn's True and False stand for the default and for nothing."""

    names = ("for", "proto", "host", "port", "prefix")
    default = ("for", "proto")
    metavar = "NAMES"

    def __call__(self, value: Any) -> tuple[str, ...]:
        if isinstance(value, bool):
            return self.default if value else ()
        words = _words(value, "names")
        if words == ["off"]:
            return ()
        for word in words:
            if word not in (*self.names, "forwarded"):
                raise ValueError(
                    f"off, forwarded or some of {', '.join(self.names)} expected, not {word!r}"
                )
        if "forwarded" in words and not {*words} <= {"forwarded", "prefix"}:
            raise ValueError(
                "only one of Forwarded and X-Forwarded can be believed; "
                "with forwarded nothing but prefix is possible"
            )
        return tuple(name for name in (*self.names, "forwarded") if name in words)


def _words(value: Any, what: str) -> list[str]:
    """A text with commas in it, or a list."""
    words = value.split(",") if isinstance(value, str) else value
    if not isinstance(words, Iterable):
        raise ValueError(f"{what} with commas between them expected, not {value!r}")
    words = list(words)
    for word in words:
        if not isinstance(word, str):
            raise ValueError(f"{what} with commas between them expected, not {value!r}")
    return [word.strip() for word in words if word.strip()]


@dataclass(frozen=True, slots=True)
class Option:
    """What is to be known of an option besides its field's name and default."""

    name: str
    section: str
    help: str
    check: Check
    flag: str
    short: str = ""
    alias: str = ""
    repeatable: bool = False

    @property
    def is_switch(self) -> bool:
        return isinstance(self.check, Switch)

    @property
    def env_name(self) -> str:
        return f"FASTSERVE_{self.name.upper()}"

    @property
    def label(self) -> str:
        """How an error names it: only Python code can give a switch a wrong value."""
        return self.name if self.is_switch else self.flag

    def normalise(self, value: Any) -> Any:
        try:
            return self.check(value)
        except ValueError as error:
            raise ConfigError(f"{self.label}: {error}") from None


def option(
    default: Any,
    section: str,
    check: Check,
    help: str,
    *,
    flag: str = "",
    short: str = "",
    alias: str = "",
    repeatable: bool = False,
) -> Any:
    """A field that carries its option's facts; the rest is derived from its name."""
    facts = {
        "section": section,
        "check": check,
        "help": help,
        "short": short,
        "alias": alias,
        "repeatable": repeatable,
    }
    if flag:
        facts["flag"] = flag
    return dataclasses.field(default=default, metadata=facts)


APPLICATION = "Application"
LISTENING = "Listening and workers"
LOGGING = "Logging"
LIMITS = "Limits"
TIMES = "Time limits"
ANSWERS = "Answers"
WEBSOCKETS = "WebSockets"
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
    )
    bind: tuple[str, ...] = option(
        (f"127.0.0.1:{DEFAULT_PORT}",),
        LISTENING,
        Binds(),
        "Where to listen: host:port (port 0: any free one) or unix:path. May be repeated.",
        short="-b",
        repeatable=True,
    )
    backlog: int = option(
        2048,
        LISTENING,
        Whole(1, 65535),
        "How many connections may wait to be accepted.",
    )
    poller: str = option(
        "epoll" if hasattr(select, "epoll") else "loop",
        LISTENING,
        Poller("epoll", "loop"),
        "Watch the sockets in the core (epoll), or through the event loop.",
    )

    factory: bool = option(
        False,
        APPLICATION,
        Switch(),
        "MODULE:ATTR is called without arguments and returns the application.",
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
        Whole(0, 2**31 - 1, metavar="BYTES"),
        "Bytes per second that a request body must reach on average; 0 is any.",
    )
    write_timeout: float = option(
        60.0,
        TIMES,
        Seconds(),
        "For a client that takes no byte of its answer.",
    )
    keep_alive_timeout: float = option(
        75.0,
        TIMES,
        Seconds(),
        "For the next request on an idle connection.",
        flag="--keep-alive",
    )

    limit_request_line: int = option(
        8190,
        LIMITS,
        Whole(64, 2**20, metavar="BYTES"),
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
        Whole(256, 2**24, metavar="BYTES"),
        "The most bytes in all header fields together, else 431.",
    )
    limit_request_body: int | None = option(
        None,
        LIMITS,
        Whole(0, LARGEST_BODY, metavar="BYTES"),
        "The longest request body, else 413; any length unless given.",
    )

    include_server_header: bool = option(
        True,
        ANSWERS,
        Switch(),
        "Add no Server field.",
        flag="--no-server-header",
    )
    include_date_header: bool = option(
        True,
        ANSWERS,
        Switch(),
        "Add no Date field.",
        flag="--no-date-header",
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
        Whole(1, 2**30, metavar="BYTES"),
        "The longest message received, inflated, else it is closed with 1009.",
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
        alias="--websocket-ping-interval",
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
        Choice("critical", "error", "warning", "info", "debug"),
        "The least severe message that is shown.",
    )
    access_logfile: str | None = option(
        None,
        LOGGING,
        Path(metavar="FILE"),
        "Write a line per request to this file; - is stdout.",
    )

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is None and field.default is None:
                continue
            # The one moment at which a frozen instance may still be completed.
            object.__setattr__(self, field.name, OPTIONS[field.name].normalise(value))

    @classmethod
    def from_options(cls, **options: Any) -> Config:
        """A Config from keyword arguments; an unknown one is a ConfigError."""
        for name in options:
            if name not in OPTIONS:
                raise ConfigError(f"{name}: there is no such option{_nearest(name, OPTIONS)}")
        return cls(**options)

    @property
    def binds(self) -> tuple[Bind, ...]:
        """The addresses, taken apart."""
        return tuple(parse_bind(address) for address in self.bind)


def _nearest(word: str, words: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(words), n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def _option_of(field: dataclasses.Field[Any]) -> Option:
    facts = {"flag": f"--{field.name.replace('_', '-')}", **field.metadata}
    return Option(name=field.name, **facts)


OPTIONS: Mapping[str, Option] = MappingProxyType(
    {field.name: _option_of(field) for field in dataclasses.fields(Config)}
)
