"""Logging: the logger of the server's own messages, and its set-up."""

from __future__ import annotations

import json
import logging
import logging.config
import os
import time
import tomllib

from fastserve.checks import ConfigError

__all__ = ["logger", "reopen", "set_up"]

logger = logging.getLogger("fastserve")

LINE = "%(asctime)s [%(process)d] %(levelname)s %(message)s"
TIME = "%Y-%m-%d %H:%M:%S"
# Of a level's name on a terminal: SGR parameters (ECMA-48 section 8.3.117).
COLORS = {"DEBUG": "2", "INFO": "32", "WARNING": "33", "ERROR": "31", "CRITICAL": "1;31"}


class _OwnHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """A type of its own, so that a second set-up knows the first one's work."""


class _OwnFileHandler(logging.FileHandler):
    """The same for a file."""

    def reopen(self) -> None:
        try:
            old = self.setStream(self._open())
        except OSError as error:
            logger.error("the log stays where it is: %s", error.strerror)
        else:
            if old is not None:
                old.close()


class _ColorFormatter(logging.Formatter):
    """Colours the level's name."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        plain = record.levelname
        record.levelname = f"\033[{COLORS.get(plain, '0')}m{plain}\033[0m"
        try:
            return super().formatMessage(record)
        finally:
            record.levelname = plain


class _JsonFormatter(logging.Formatter):
    """An object in one line for each message, whatever lines it has itself."""

    def format(self, record: logging.LogRecord) -> str:
        second = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        members = {
            "time": f"{second}.{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "pid": record.process,
            "message": record.getMessage(),
        }
        if record.exc_info:
            members["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            members["stack"] = self.formatStack(record.stack_info)
        return json.dumps(members)


def set_up(
    level: str, path: str = "-", *, format: str = "text", colors: str = "auto", file: str = ""
) -> None:
    """Configure logging by `file`, if there is one. Then show the server's messages on stderr,
    or append them to the file at `path`, unless the program has its own logging.

    `format`: text or json. `colors`: always, never, or auto, on a terminal. Raises
    ConfigError."""
    if file:
        _configure(file)
    own = [
        handler for handler in logger.handlers if isinstance(handler, _OwnHandler | _OwnFileHandler)
    ]
    if logger.hasHandlers() and not own:
        return
    handler = _handler(path)
    handler.setFormatter(_formatter(handler, format, colors))
    for before in own:
        logger.removeHandler(before)
        before.close()
    logger.addHandler(handler)
    # Handlers that the application gives the root later would repeat each line.
    logger.propagate = False
    logger.setLevel(level.upper())


def reopen() -> None:
    """Go on in a new file of the same name, after the old one was moved away."""
    for handler in logger.handlers:
        if isinstance(handler, _OwnFileHandler):
            handler.reopen()


def _handler(path: str) -> logging.Handler:
    if path == "-":
        return _OwnHandler()
    try:
        return _OwnFileHandler(path, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise ConfigError(f"--error-logfile: {path!r}: {error.strerror}") from None


def _formatter(handler: logging.Handler, format: str, colors: str) -> logging.Formatter:
    if format == "json":
        return _JsonFormatter()
    if colors == "always" or (colors == "auto" and _is_terminal(handler)):
        return _ColorFormatter(LINE, TIME)
    return logging.Formatter(LINE, TIME)


def _is_terminal(handler: logging.Handler) -> bool:
    """https://no-color.org has the variable."""
    if not isinstance(handler, _OwnHandler) or os.environ.get("NO_COLOR"):
        return False
    return bool(handler.stream and handler.stream.isatty()) and os.environ.get("TERM") != "dumb"


def _configure(file: str) -> None:
    """By logging.config: a dict as TOML or JSON, or its older ini format."""
    kind, _, path = file.partition(":")
    if kind not in ("json", "toml"):
        kind, path = os.path.splitext(file)[1].removeprefix("."), file
    try:
        if kind not in ("json", "toml"):
            logging.config.fileConfig(path, disable_existing_loggers=False, encoding="utf-8")
            return
        with open(path, encoding="utf-8") as source:
            text = source.read()
        found = json.loads(text) if kind == "json" else tomllib.loads(text)
        logging.config.dictConfig({"version": 1, "disable_existing_loggers": False, **found})
    except Exception as error:  # its formats, and the classes that it names, have many
        reason = getattr(error, "strerror", None) or error.__cause__ or error
        raise ConfigError(f"--log-config: {path!r}: {' '.join(str(reason).split())}") from error
