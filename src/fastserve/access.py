"""The access log: what a format says, and a file that gets its lines.

The lines are written by the compiled core (`fastserve._access`), into memory. A thread takes
them from there and writes them to the file, so that neither a pipe that nobody reads nor a
disk that hangs can hold up the event loop.
"""

from __future__ import annotations

import contextlib
import http
import logging
import os
import queue
import re
import select
import ssl
import stat
import sys
import threading
from collections.abc import Iterable

from fastserve._access import AccessLines
from fastserve.checks import ATOM, ConfigError
from fastserve.tls import VERSION_NUMBERS

__all__ = ["AccessLog", "parts_of"]

logger = logging.getLogger("fastserve")

# How long a line may wait for others; on a terminal somebody is looking.
FLUSH_SECONDS = 1.0
TERMINAL_SECONDS = 0.05
# At the end, for a file that takes nothing.
CLOSE_SECONDS = 2.0

Part = tuple[str, str, int, bytes]

# What each atom shows, and how its text is escaped. What is not there is "-".
ATOMS = {
    "h": ("host", "word"),
    "u": ("user", "word"),
    "t": ("time", "word"),
    "r": ("request", "word"),
    "R": ("request", "word"),
    "m": ("method", "word"),
    "U": ("path", "word"),
    "Uq": ("target", "word"),
    "q": ("query", "word"),
    "H": ("version", "word"),
    "S": ("scheme", "word"),
    "s": ("status", "word"),
    "st": ("reason", "quoted"),
    "b": ("sent_or_none", "word"),
    "B": ("sent", "word"),
    "received": ("received", "word"),
    "f": ("asked:referer", "quoted"),
    "a": ("asked:user-agent", "quoted"),
    "T": ("seconds", "word"),
    "M": ("milliseconds", "word"),
    "D": ("microseconds", "word"),
    "L": ("decimal_seconds", "word"),
    "ttfb": ("first_byte", "word"),
    "queue": ("queued", "word"),
    "id": ("id", "word"),
    "tls": ("tls_version", "word"),
    "cipher": ("tls_cipher", "word"),
}

# The members of a line that is a JSON object.
MEMBERS = {
    "time": "time",
    "client": "host",
    "method": "method",
    "scheme": "scheme",
    "path": "path",
    "query": "query",
    "version": "version",
    "status": "status",
    "bytes": "sent",
    "received": "received",
    "duration_us": "microseconds",
    "ttfb_us": "first_byte",
    "queue_us": "queued",
    "request_id": "id",
    "referer": "asked:referer",
    "user_agent": "asked:user-agent",
    "tls": "tls_version",
    "cipher": "tls_cipher",
}


class AccessLog:
    """The access log at `path`; - is stdout. `lines` is for the core, which fills it.

    Resource handling: the file is open, and a thread runs, from the beginning until `close`.
    Lines are written together: to a file by one write to its end, to anything else in writes
    that are whole for whoever else writes there. Its description may be shared with other
    processes, so that it is not made non-blocking.

    Error handling: a file that cannot be opened is a ConfigError. Lines that cannot be written
    are dropped, which is logged once, and again with their number when it is over: a full
    disk must not end the requests.
    """

    def __init__(
        self, path: str, format: str, *, sample: float = 1.0, exclude: Iterable[str] = ()
    ) -> None:
        self._path = path
        # Each word that is put in makes the thread look around.
        self._bell: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._reopening = False
        self._closing = False
        self._failed = False  # and that was logged
        self._lost = 0
        self._torn = b""  # the rest of a line whose beginning is in the file
        self._open()
        parts = parts_of(format)
        self.lines = AccessLines(
            parts,
            wake=self._bell.put,
            full=self._full,
            names=_names(parts),
            excluded=[os.fsencode(each) for each in exclude],
            sample=sample,
            seed=os.urandom(8),
        )
        self._thread = threading.Thread(target=self._run, name="access log", daemon=True)
        self._thread.start()

    def reopen(self) -> None:
        """Go on in a new file of the same name, after the old one was moved away."""
        self._reopening = True
        self._bell.put(None)

    def close(self) -> None:
        """Write what is left; a file that does not take it has some seconds for it."""
        self._closing = True
        self._bell.put(None)
        self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            logger.error("access log %s: it takes nothing, the last lines are lost", self._path)

    def _open(self) -> None:
        try:
            self._fd = _open_stdout() if self._path == "-" else _open_file(self._path)
        except OSError as error:
            raise ConfigError(f"--access-logfile: {self._path!r}: {error.strerror}") from None
        self._is_file = stat.S_ISREG(os.fstat(self._fd).st_mode)

    def _full(self) -> None:
        """The first line is being dropped, and the thread may be stuck."""
        if not self._failed:
            self._failed = True
            logger.error("access log %s: it takes nothing, lines are dropped", self._path)

    # In the thread.

    def _run(self) -> None:
        patience = TERMINAL_SECONDS if os.isatty(self._fd) else FLUSH_SECONDS
        closing = False
        while not closing:
            self._bell.get()
            if not (self._closing or self._reopening):
                with contextlib.suppress(queue.Empty):
                    self._bell.get(timeout=patience)
            closing = self._closing
            self._flush()
            if self._reopening:
                self._reopening = False
                self._go_on_in_a_new_file()
        os.close(self._fd)

    def _flush(self) -> None:
        failed = self._failed  # before: what fails from now on will be seen the next time
        lines, dropped = self.lines.take()
        self._lost += dropped
        lines = self._torn + lines
        written = 0
        try:
            while written < len(lines):
                written += self._write(lines, written)
        except OSError as error:
            self._drop(lines, written, error)
        else:
            self._torn = b""
            if failed and not dropped:
                logger.warning("access log %s: goes on; %d lines are lost", self._path, self._lost)
                self._failed = False
                self._lost = 0

    def _write(self, lines: bytes, start: int) -> int:
        """How many bytes of `lines` went out. A file keeps each write together; where others
        may write to the same pipe, only so much stays together (POSIX: PIPE_BUF)."""
        end = len(lines)
        if not self._is_file:
            most = start + select.PIPE_BUF
            end = (lines.rfind(b"\n", start, most) + 1) or (lines.find(b"\n", start) + 1)
        try:
            return os.write(self._fd, memoryview(lines)[start:end])
        except BlockingIOError:  # another process has made the description non-blocking
            writable = select.poll()
            writable.register(self._fd, select.POLLOUT)
            writable.poll()
            return 0

    def _drop(self, lines: bytes, written: int, error: OSError) -> None:
        """But keep what is left of a line whose beginning is in the file."""
        end = written
        if lines[:written][-1:] not in (b"", b"\n") or (written == 0 and self._torn):
            end = lines.find(b"\n", written) + 1
        self._torn = lines[written:end]
        self._lost += lines.count(b"\n", end)
        if not self._failed:
            self._failed = True
            logger.error("access log %s: %s", self._path, error.strerror)

    def _go_on_in_a_new_file(self) -> None:
        before = self._fd
        try:
            self._open()
        except ConfigError as error:
            logger.error("the access log stays where it is: %s", error)
        else:
            os.close(before)
            self._torn = b""


def _open_stdout() -> int:
    if sys.__stdout__ is None:  # what has its number now is something else
        logger.error("access log: stdout is closed, so there is none")
        return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    return os.dup(1)


def _open_file(path: str) -> int:
    flags = os.O_WRONLY
    with contextlib.suppress(OSError):
        if stat.S_ISFIFO(os.stat(path).st_mode):
            flags = os.O_RDWR  # for writing alone, opening would wait for a reader
    return os.open(path, flags | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)


def parts_of(format: str) -> list[Part]:
    """What AccessLines takes, for a well-formed format with atoms, or for "json"."""
    if format == "json":
        return _json_parts()
    parts: list[Part] = []
    end = 0
    for match in ATOM.finditer(format):
        parts.append(_text(format[end : match.start()]))
        parts.append(_text("%") if match["atom"] is None else _of_atom(**match.groupdict()))
        end = match.end()
    parts.append(_text(format[end:]))
    return _merged(parts)


def _merged(parts: Iterable[Part]) -> list[Part]:
    """The same with one text where there are several in a row."""
    merged: list[Part] = []
    for what, style, width, argument in parts:
        plain = what == "text" and not width
        if plain and merged and merged[-1][0] == "text" and not merged[-1][2]:
            argument = merged.pop()[3] + argument
        if argument or not plain:
            merged.append((what, style, width, argument))
    return merged


def _of_atom(atom: str, width: str) -> Part:
    what, style = ATOMS.get(atom, ("text:-", "word"))
    if atom == "p":
        what = f"text:<{os.getpid()}>"
    elif atom.startswith("{"):
        name, kind = atom[1:-2], atom[-1]
        if kind == "e":
            what = "text:" + _quotable(os.environ.get(name, "-"))
        elif kind in "io":
            what = f"{'asked' if kind == 'i' else 'answered'}:{name.lower()}"
            style = "quoted"
    return _part(what, style, int(width or 0))


def _json_parts() -> list[Part]:
    parts = []
    before = "{"
    for name, what in MEMBERS.items():
        parts += [_text(f'{before}"{name}": '), _part(what, "json")]
        before = ", "
    return _merged([*parts, _text(f', "pid": {os.getpid()}}}')])


def _part(what: str, style: str, width: int = 0) -> Part:
    name, _, argument = what.partition(":")
    return name, style, width, argument.encode()


def _text(text: str) -> Part:
    return "text", "word", 0, text.encode("utf-8", "backslashreplace")


# What could end a quoted text or the line, or confuse a terminal.
_UNQUOTABLE = re.compile(rb"[^ !#-\[\]-~]")


def _quotable(text: str) -> str:
    raw = text.encode("utf-8", "surrogateescape")
    return _UNQUOTABLE.sub(lambda match: b"\\x%02X" % match[0][0], raw).decode("ascii")


def _names(parts: Iterable[Part]) -> dict[str, dict[int, bytes]]:
    """The texts of numbers that the parts show."""
    shown = {what for what, *_ in parts}
    names: dict[str, dict[int, bytes]] = {}
    if "reason" in shown:
        names["reason"] = {status.value: status.phrase.encode() for status in http.HTTPStatus}
    if "tls_version" in shown:
        names["tls_version"] = {number: name.encode() for name, number in VERSION_NUMBERS.items()}
    if "tls_cipher" in shown:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.set_ciphers("ALL")
        names["tls_cipher"] = {
            cipher["id"] & 0xFFFF: cipher["name"].encode() for cipher in context.get_ciphers()
        }
    return names
