"""The checks: what a value must be, and the form in which a Config keeps it.

A value may come as a string from outside, or as a number, a list or a truth value
from a file or from Python; the check of its option takes them all. Nothing here
knows an option, a file or the command line.
"""

from __future__ import annotations

import difflib
import importlib.util
import ipaddress
import math
import os
import re
import select
import ssl
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

__all__ = [
    "ATOM",
    "DEFAULT_PORT",
    "Bind",
    "Binds",
    "Boolean",
    "Check",
    "Choice",
    "ConfigError",
    "HeaderField",
    "HostName",
    "LineFormat",
    "LogLevel",
    "Mask",
    "Path",
    "Poller",
    "ProxyHeaders",
    "RootPath",
    "Seconds",
    "Several",
    "Share",
    "Size",
    "Switch",
    "Target",
    "Text",
    "TrustedPeers",
    "VerifyMode",
    "Whole",
    "WorkerClass",
    "Workers",
    "nearest",
    "one_line",
    "parse_bind",
]

DEFAULT_PORT = 8000

# The core counts milliseconds, and a deadline of none means "no deadline".
SHORTEST_SECONDS = 0.001
LONGEST_SECONDS = 86_400.0


class ConfigError(ValueError):
    """An option that cannot be used; the message begins with its name."""


@dataclass(frozen=True, slots=True)
class Bind:
    """One address to listen on."""

    kind: Literal["tcp", "unix", "fd", "systemd"]
    host: str = ""
    port: int = 0
    path: str = ""
    fd: int = -1
    name: str = ""

    def __str__(self) -> str:
        if self.kind == "unix":
            return f"unix:{self.path}"
        if self.kind == "fd":
            return f"fd://{self.fd}"
        if self.kind == "systemd":
            return f"systemd:{self.name}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def parse_bind(text: str) -> Bind:
    """`host:port`, `host`, `[v6]:port`, `unix:path`, `fd://N`, `systemd:` or `systemd:name` as
    a Bind, else a ConfigError."""
    try:
        return _parse_bind(text)
    except ValueError as error:
        raise ConfigError(f"--bind: {error}") from None


_TCP_ADDRESS = re.compile(
    r"(?: \[ (?P<v6> [^\[\]]* ) \] | (?P<host> [^\[\]:]* ) ) (?: : (?P<port> .* ) )?",
    re.VERBOSE | re.DOTALL,
)


def _parse_bind(text: str, default_port: int = DEFAULT_PORT) -> Bind:
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if not path or "\0" in path:
            raise ValueError(f"no path after 'unix:' in {text!r}")
        return Bind("unix", path=path)
    if text.startswith("fd://"):
        digits = text.removeprefix("fd://")
        if not re.fullmatch("[0-9]{1,9}", digits):
            raise ValueError(f"a descriptor's number expected after fd://, not {digits!r}")
        return Bind("fd", fd=int(digits))
    if text.startswith("systemd:"):
        return Bind("systemd", name=text.removeprefix("systemd:"))
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
    port = default_port if match["port"] is None else _parse_port(match["port"], text)
    return Bind("tcp", host=host, port=port)


def _parse_port(digits: str, text: str) -> int:
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
        # What int() takes besides is not what anybody means: spaces, "1_0", other digits.
        is_text = isinstance(value, str) and re.fullmatch("-?[0-9]{1,20}", value)
        number = int(value) if is_text else value
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
class Workers(Check):
    """A number of processes, or auto."""

    metavar: str = "N"

    def __call__(self, value: Any) -> int | str:
        if value == "auto":
            return "auto"
        try:
            number = Whole(0, 1000)(value)
        except ValueError as error:
            raise ValueError(f"auto, or {error}") from None
        return number or 1  # none but this one, as Hypercorn has it


@dataclass(frozen=True, slots=True)
class Size(Check):
    """A number of bytes within bounds; as text it may end in K, M or G, powers of 1024."""

    least: int
    most: int
    metavar: str = "SIZE"

    def __call__(self, value: Any) -> int:
        match = _SIZE.fullmatch(value) if isinstance(value, str) else None
        number = int(match["number"]) * _BYTES[match["unit"].upper()] if match else value
        if (
            isinstance(number, bool)
            or not isinstance(number, int)
            or not self.least <= number <= self.most
        ):
            raise ValueError(
                f"a size in bytes from {self.least} to {self.most} expected, or one like 64K, 16M"
                f" or 1G, not {value!r}"
            )
        return number


_SIZE = re.compile("(?P<number>[0-9]{1,20})(?P<unit>[KMGkmg]?)")
_BYTES = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}


@dataclass(frozen=True, slots=True)
class Seconds(Check):
    """A time span above zero, or none at all where `may_be_off`. A number counts seconds;
    text may end in a unit."""

    may_be_off: bool = False
    most: float = LONGEST_SECONDS
    metavar: str = "TIME"

    def __call__(self, value: Any) -> float:
        match = _TIME.fullmatch(value) if isinstance(value, str) else None
        try:
            if match:
                seconds = float(match["number"]) * _SECONDS[match["unit"]]
            else:
                seconds = math.nan if isinstance(value, bool | str) else float(value)
        except (TypeError, ValueError, OverflowError):
            seconds = math.nan
        if self.may_be_off and seconds == 0:
            return 0.0
        if not SHORTEST_SECONDS <= seconds <= self.most:  # false for nan too
            raise ValueError(
                f"seconds from {SHORTEST_SECONDS:g} to {self.most:.9g} expected, or a time"
                f" like 500ms, 30s, 5m, 2h or 1d, not {value!r}"
            )
        return seconds


_TIME = re.compile(r"(?P<number>[0-9]{1,20}(?:\.[0-9]{1,20})?|\.[0-9]{1,20})(?P<unit>ms|[smhd]?)")
_SECONDS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}


@dataclass(frozen=True, slots=True)
class Share(Check):
    """A part of the whole: a number from 0 to 1."""

    metavar: str = "SHARE"

    def __call__(self, value: Any) -> float:
        try:
            # Not "0_1", which float() takes too.
            share = math.nan if isinstance(value, bool) or "_" in str(value) else float(value)
        except (TypeError, ValueError, OverflowError):
            share = math.nan
        if not 0 <= share <= 1:
            raise ValueError(f"a number from 0 to 1 expected, not {value!r}")
        return share


class Choice(Check):
    """One word of a few."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self.metavar = "|".join(names)

    def __call__(self, value: Any) -> str:
        if not isinstance(value, str) or value not in self.names:
            near = nearest(value, self.names) if isinstance(value, str) else ""
            raise ValueError(f"one of {', '.join(self.names)} expected, not {value!r}{near}")
        return value


class VerifyMode(Choice):
    """Whether clients show certificates; the standard library's names and numbers do too."""

    def __call__(self, value: Any) -> str:
        # bool is an int to Python, never to whoever wrote `verify_mode = true`.
        if type(value) in (int, str) and value in (0, 1, 2, *"012"):
            value = ssl.VerifyMode(int(value)).name
        if isinstance(value, str):
            value = value.upper().removeprefix("CERT_").lower()
        return Choice.__call__(self, value)


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


class LogLevel(Choice):
    """A severity, as any of the servers writes it."""

    def __call__(self, value: Any) -> str:
        if isinstance(value, str):
            value = value.lower()
            value = {"trace": "debug", "warn": "warning"}.get(value, value)
        return Choice.__call__(self, value)


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


class Switch(Boolean):
    """The same, with a flag that takes no value: it says the opposite of the default."""


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
class Text(Check):
    """Any words, but not none."""

    metavar: str = "TEXT"

    def __call__(self, value: Any) -> str:
        if not isinstance(value, str) or not value:
            raise ValueError(f"a text expected, not {value!r}")
        return value


@dataclass(frozen=True, slots=True)
class MetricText(Check):
    """A part of a StatsD line, or nothing: no space, and nothing that ends such a part."""

    metavar: str = "TEXT"

    def __call__(self, value: Any) -> str:
        if not isinstance(value, str) or not re.fullmatch(r"[!-{}~]*", value):
            raise ValueError(f"printable ASCII without spaces and | expected, not {value!r}")
        return value


@dataclass(frozen=True, slots=True)
class HeaderField(Check):
    """A field for a response, as `Name: value` (RFC 9110 section 5)."""

    metavar: str = "NAME:VALUE"

    def __call__(self, value: Any) -> str:
        match = _FIELD.fullmatch(value) if isinstance(value, str) else None
        if match is None:
            raise ValueError(f"a field like 'Name: value' expected, not {value!r}")
        if match["name"].lower() in _FRAMING:
            raise ValueError(f"{match['name']} is for the server to say")
        return f"{match['name']}: {match['value']}"


_FIELD = re.compile(
    r"(?P<name>[!#$%&'*+\-.^_`|~0-9A-Za-z]+):[\t ]*"
    r"(?P<value>|[!-~\x80-\xff](?:[\t -~\x80-\xff]*[!-~\x80-\xff])?)[\t ]*"
)
# Those that would be wrong in some responses: what ends them, and what ends the connection.
_FRAMING = frozenset(
    "connection content-length date keep-alive te trailer transfer-encoding upgrade".split()
)


@dataclass(frozen=True, slots=True)
class HostName(Check):
    """A host as the Host field has it (RFC 9110 section 7.2), but for the port."""

    metavar: str = "NAME"

    def __call__(self, value: Any) -> str:
        if not isinstance(value, str) or not _HOST_NAME.fullmatch(value):
            raise ValueError(
                "a host name or address without a port expected, an IPv6 address in brackets,"
                f" not {value!r}"
            )
        return value.lower()


_HOST_NAME = re.compile(r"[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\]")


@dataclass(frozen=True, slots=True)
class Mask(Check):
    """File mode bits, in octal."""

    metavar: str = "MASK"

    def __call__(self, value: Any) -> str:
        digits = format(value, "o") if type(value) is int and value >= 0 else value
        if not isinstance(digits, str) or not re.fullmatch("(0o)?[0-7]{1,4}", digits):
            raise ValueError(f"octal digits such as 007 expected, not {value!r}")
        return f"{int(digits, 8):03o}"


class Several(Check):
    """One value or a list of them."""

    def __init__(self, check: Check) -> None:
        self.check = check
        self.metavar = check.metavar

    def __call__(self, value: Any) -> tuple[Any, ...]:
        if isinstance(value, (str, bytes, os.PathLike)):
            value = (value,)
        if not isinstance(value, Iterable):
            raise ValueError(f"one or a list of them expected, not {value!r}")
        return tuple(self.check(each) for each in value)


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
class RootPath(Check):
    """The prefix under which a proxy mounts the application."""

    metavar: str = "PATH"

    def __call__(self, value: Any) -> str:
        if not isinstance(value, str) or (value and not value.startswith("/")):
            raise ValueError(f"a path that begins with '/' expected, not {value!r}")
        return value.rstrip("/")


@dataclass(frozen=True, slots=True)
class Target(Check):
    """The name of an application; whether it can be had shows when it is imported."""

    metavar: str = "MODULE:ATTR"

    def __call__(self, value: Any) -> str:
        if not isinstance(value, str) or not value:
            raise ValueError(f"a name like module:attr expected, not {value!r}")
        return value


@dataclass(frozen=True, slots=True)
class LineFormat(Check):
    """A format with atoms like %(h)s, in which %% is a percent sign; or `json`."""

    metavar: str = "FORMAT"

    def __call__(self, value: Any) -> str:
        if not isinstance(value, str) or not value:
            raise ValueError(f"a format expected, not {value!r}")
        if not value.replace("\t", " ").isprintable():
            raise ValueError(f"a format is one line, without control characters, not {value!r}")
        if "%" in ATOM.sub("", value):
            raise ValueError(f"'%' begins an atom like %(h)s, or is doubled, in {value!r}")
        return value


# An atom may have a width, as in %(h)-15s: the format is one for Python's % operator.
ATOM = re.compile(
    r"%% | % \( (?P<atom> [^(){}]* | \{ [^(){}]+ \} [a-zA-Z] ) \) (?P<width> -?[0-9]{0,3} ) s",
    re.VERBOSE,
)


@dataclass(frozen=True, slots=True)
class Binds(Check):
    """One address or several, each of them readable by parse_bind."""

    may_be_none: bool = False
    metavar: str = "ADDRESS"

    def __call__(self, value: Any) -> tuple[str, ...]:
        addresses = (value,) if isinstance(value, str) else value
        if not isinstance(addresses, Iterable):
            raise ValueError(f"an address or a list of addresses expected, not {value!r}")
        addresses = tuple(addresses)
        if not addresses and not self.may_be_none:
            raise ValueError("at least one address expected")
        for address in addresses:
            if not isinstance(address, str):
                raise ValueError(f"host:port or unix:path expected, not {address!r}")
            _parse_bind(address)
        return addresses


@dataclass(frozen=True, slots=True)
class Address(Check):
    """One address, of TCP, UDP or a unix socket."""

    default_port: int = DEFAULT_PORT
    metavar: str = "ADDRESS"

    def __call__(self, value: Any) -> str:
        bind = _parse_bind(value, self.default_port) if isinstance(value, str) else None
        if bind is None or bind.kind not in ("tcp", "unix"):
            raise ValueError(f"host:port or unix:path expected, not {value!r}")
        return str(bind)


def nearest(word: str, words: Iterable[str], spell: Callable[[str], str] = str) -> str:
    """A hint at the one of `words` that may have been meant; empty if none is like it."""
    near = difflib.get_close_matches(word, list(words), n=1)
    return f" (did you mean {spell(near[0])}?)" if near else ""


def one_line(error: BaseException) -> str:
    """The type of an error of somebody's code, and what it says."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
