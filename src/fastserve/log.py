"""Logging: the logger of the server's own messages, and its set-up."""

from __future__ import annotations

import logging

from fastserve.checks import ConfigError

__all__ = ["logger", "set_up"]

logger = logging.getLogger("fastserve")

LINE = "%(asctime)s [%(process)d] %(levelname)s %(message)s"
TIME = "%Y-%m-%d %H:%M:%S"


class _OwnHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """A type of its own, so that a second set-up knows the first one's work."""


class _OwnFileHandler(logging.FileHandler):
    """The same for a file."""


def set_up(level: str, path: str = "-") -> None:
    """Show the server's messages on stderr, or append them to the file at `path`, unless
    the program has its own logging. Raises ConfigError."""
    own = [
        handler for handler in logger.handlers if isinstance(handler, _OwnHandler | _OwnFileHandler)
    ]
    if logger.hasHandlers() and not own:
        return
    handler = _handler(path)
    handler.setFormatter(logging.Formatter(LINE, TIME))
    for before in own:
        logger.removeHandler(before)
        before.close()
    logger.addHandler(handler)
    # Handlers that the application gives the root later would repeat each line.
    logger.propagate = False
    logger.setLevel(level.upper())


def _handler(path: str) -> logging.Handler:
    if path == "-":
        return _OwnHandler()
    try:
        return _OwnFileHandler(path, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise ConfigError(f"--error-logfile: {path!r}: {error.strerror}") from None
