"""The access log: a line per request, in a format that is compiled into one function.

It does not go through `logging`: neither a record object nor a formatter adds
anything to a line per request.
"""

from __future__ import annotations

import base64
import binascii
import functools
import logging
import os
import re
import time
from collections.abc import Callable, Iterable

from fastserve.checks import ATOM, ConfigError

__all__ = ["AccessLog"]

logger = logging.getLogger("fastserve")

Client = tuple[str, int] | str | None
Fields = Iterable[tuple[bytes, bytes]]

# The arguments of a compiled format, and what each atom is made of.
ARGUMENTS = "client, method, path, query, version, status, length, us, asked=(), answered=()"
NOTHING = "'-'"
ATOMS = {
    "h": "host(client)",
    "u": "user(asked)",
    "t": "now()",
    "r": 'f\'{method} {safe(path)}{"?" + safe(query) if query else ""} HTTP/{version}\'',
    "m": "method",
    "U": "safe(path)",
    "q": "safe(query)",
    "H": "f'HTTP/{version}'",
    "s": "status",
    "b": "length or '-'",
    "B": "length",
    "f": "field(asked, b'referer')",
    "a": "field(asked, b'user-agent')",
    "T": "us // 1000000",
    "M": "us // 1000",
    "D": "us",
    "L": "f'{us // 1000000}.{us % 1000000:06}'",
    "p": "pid",
}


class AccessLog:
    """One line per request; `write` takes what the core tells of each.

    Resource handling: the file is open from the beginning until `close`. A line
    is one unbuffered write to a file opened for appending, so that the lines of
    several processes stay whole, and none is lost when one ends.

    Error handling: a file that cannot be opened is a ConfigError. A line that
    cannot be written is dropped, and the first time is logged: a full disk must
    not end the requests.
    """

    def __init__(self, path: str, format: str) -> None:
        self._path = path
        self._open()
        self._failed = False
        self._line, self.wants_fields = _compiled(format)

    def write(self, *facts: object) -> None:
        """`facts`: client, method, raw path, query string, version, status, length of the
        body in bytes, duration in microseconds; where the format `wants_fields`, the
        fields of the request and of the response."""
        try:
            self._file.write(self._line(*facts).encode("utf-8", "backslashreplace"))
        except OSError as error:
            if not self._failed:
                self._failed = True
                logger.error("access log %s: %s", self._path, error.strerror)

    def _open(self) -> None:
        out = self._path == "-"
        try:
            self._file = open(1 if out else self._path, "ab", buffering=0, closefd=not out)  # noqa: SIM115
        except OSError as error:
            raise ConfigError(f"--access-logfile: {self._path!r}: {error.strerror}") from None

    def reopen(self) -> None:
        """Go on in a new file of the same name, after the old one was moved away."""
        old = self._file
        try:
            self._open()
        except ConfigError as error:
            logger.error("the access log stays where it is: %s", error)
        else:
            old.close()

    def close(self) -> None:
        self._file.close()


def _compiled(format: str) -> tuple[Callable[..., str], bool]:
    """The format as a function, and whether it needs header fields.

    What is compiled is made of the table above and of quoted names alone."""
    values: list[str] = []

    def place(match: re.Match[str]) -> str:
        if match["atom"] is None:
            return "%%"
        value = _expression(match["atom"])
        if value == NOTHING and not match["width"]:
            return "-"
        values.append(value)
        return f"%{match['width']}s"

    template = ATOM.sub(place, format) + "\n"
    code = f"lambda {ARGUMENTS}: {template!r} % ({''.join(f'{value}, ' for value in values)})"
    known = {
        "field": _field,
        "host": _host,
        "now": Clock().now,
        "pid": f"<{os.getpid()}>",
        "safe": _safe,
        "user": _user,
    }
    return eval(code, known), any("asked" in value or "answered" in value for value in values)


def _expression(atom: str) -> str:
    if not atom.startswith("{"):
        return ATOMS.get(atom, NOTHING)
    name, kind = atom[1:-2], atom[-1]
    if kind == "e":
        return repr(_quotable(os.environ.get(name, "-").encode("utf-8", "surrogateescape")))
    if kind in "io":
        fields = "asked" if kind == "i" else "answered"
        return f"field({fields}, {name.lower().encode()!r})"
    return NOTHING


# Everything that could end a quoted field or the line, or confuse a terminal; a space
# as well, where a space ends the field.
_UNSAFE = re.compile(rb"[^!#-\[\]-~]")
_UNQUOTABLE = re.compile(rb"[^ !#-\[\]-~]")


def _escape(match: re.Match[bytes]) -> bytes:
    return b"\\x%02X" % match[0][0]


def _safe(text: bytes) -> str:
    return _UNSAFE.sub(_escape, text).decode("ascii")


def _quotable(text: bytes) -> str:
    return _UNQUOTABLE.sub(_escape, text).decode("ascii")


def _host(client: Client) -> str:
    return _safe_host(client if isinstance(client, str) else client[0] if client else "-")


@functools.lru_cache(256)
def _safe_host(host: str) -> str:
    """A proxy may have told it, and a Unix socket's peer may choose its own name."""
    return _safe(host.encode("utf-8", "surrogatepass")) or "-"


def _field(fields: Fields, name: bytes) -> str:
    found = b", ".join([value for key, value in fields if key.lower() == name])
    return _quotable(found) or "-"


def _user(fields: Fields) -> str:
    """The user's name in Basic credentials (RFC 7617); nobody has checked it here."""
    for name, value in fields:
        scheme, _, rest = value.partition(b" ")
        if name == b"authorization" and scheme.lower() == b"basic":
            try:
                return (
                    _safe(base64.b64decode(rest.strip(), validate=True).partition(b":")[0]) or "-"
                )
            except binascii.Error:
                return "-"
    return "-"


class Clock:
    """The time as the log writes it, made once a second."""

    # strftime's names depend on the locale, the format's do not.
    MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

    def __init__(self) -> None:
        self._second = -1
        self._text = ""

    def now(self) -> str:
        second = int(time.time())
        if second != self._second:
            self._second = second
            now = time.gmtime(second)
            self._text = (
                f"[{now.tm_mday:02}/{self.MONTHS[now.tm_mon - 1]}/{now.tm_year}:"
                f"{now.tm_hour:02}:{now.tm_min:02}:{now.tm_sec:02} +0000]"
            )
        return self._text
