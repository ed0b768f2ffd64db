"""Logging: the logger's set-up, and the access line.

The access log does not go through `logging`: it is a line per request, and
neither a record object nor a formatter adds anything to it.
"""

from __future__ import annotations

import logging
import re
import time

from fastserve.config import ConfigError

__all__ = ["AccessLog", "logger", "set_up"]

logger = logging.getLogger("fastserve")

LINE = "%(asctime)s [%(process)d] %(levelname)s %(message)s"
TIME = "%Y-%m-%d %H:%M:%S"


class _OwnHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """A type of its own, so that a second set-up knows the first one's work."""


def set_up(level: str) -> None:
    """Show the server's messages on stderr, unless the program has its own logging."""
    own = any(isinstance(handler, _OwnHandler) for handler in logger.handlers)
    if logger.hasHandlers() and not own:
        return
    if not own:
        handler = _OwnHandler()
        handler.setFormatter(logging.Formatter(LINE, TIME))
        logger.addHandler(handler)
        # Handlers that the application gives the root later would repeat each line.
        logger.propagate = False
    logger.setLevel(level.upper())


# Everything that could end the quoted field or the line, or confuse a terminal.
_UNSAFE = re.compile(rb"[^!#-\[\]-~]")

# strftime's names depend on the locale, the format's do not.
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def _escape(match: re.Match[bytes]) -> bytes:
    return b"\\x%02X" % match[0][0]


def _safe(text: bytes) -> str:
    return _UNSAFE.sub(_escape, text).decode("ascii")


class AccessLog:
    """One Common Log Format line per request, with the duration after it.

    Resource handling: the file is open from the beginning until `close`. A line
    is one unbuffered write to a file opened for appending, so that the lines of
    several processes stay whole, and none is lost when one ends.

    Error handling: a file that cannot be opened is a ConfigError. A line that
    cannot be written is dropped, and the first time is logged: a full disk must
    not end the requests.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._open()
        self._failed = False
        self._second = -1
        self._date = ""

    def write(
        self,
        client: tuple[str, int] | str | None,
        method: str,
        path_bytes: bytes,
        query_bytes: bytes,
        http_version: str,
        status: int,
        length: int,
        microseconds: int,
    ) -> None:
        host = client if isinstance(client, str) else client[0] if client else "-"
        query = f"?{_safe(query_bytes)}" if query_bytes else ""
        self._write_line(
            f"{host} - - [{self._now()}] "
            f'"{_safe(method.encode())} {_safe(path_bytes)}{query} HTTP/{http_version}" '
            f"{status} {length} {microseconds}us\n"
        )

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

    def _write_line(self, line: str) -> None:
        try:
            self._file.write(line.encode("utf-8", "backslashreplace"))
        except OSError as error:
            if not self._failed:
                self._failed = True
                logger.error("access log %s: %s", self._path, error.strerror)

    def _now(self) -> str:
        second = int(time.time())
        if second != self._second:
            self._second = second
            now = time.gmtime(second)
            self._date = (
                f"{now.tm_mday:02}/{_MONTHS[now.tm_mon - 1]}/{now.tm_year}:"
                f"{now.tm_hour:02}:{now.tm_min:02}:{now.tm_sec:02} +0000"
            )
        return self._date
