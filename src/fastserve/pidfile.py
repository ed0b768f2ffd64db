"""The file that holds the process's id."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from fastserve.checks import ConfigError

__all__ = ["pid_file"]


@contextlib.contextmanager
def pid_file(path: str) -> Iterator[None]:
    """Written at the beginning and removed at the end, unless it says something else by
    then: a server that has taken over has written its own id. Raises ConfigError."""
    text = f"{os.getpid()}\n"
    try:
        with open(path, "w", encoding="ascii") as file:
            file.write(text)
    except OSError as error:
        raise ConfigError(f"--pid: {path!r}: {error.strerror}") from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError, ValueError):
            with open(path, encoding="ascii") as file:
                is_ours = file.read() == text
            if is_ours and text == f"{os.getpid()}\n":
                os.unlink(path)
