"""The file that holds the process's id."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from fastserve.checks import ConfigError

__all__ = ["pid_file", "read_pid"]


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


def read_pid(path: str) -> int:
    """The id of the process that wrote the file. Raises ConfigError."""
    try:
        with open(path, encoding="ascii") as file:
            pid = int(file.read(32))
    except OSError as error:
        raise ConfigError(f"--pid: {path!r}: {error.strerror}") from None
    except ValueError:
        pid = 0
    # Anything below would be a group of processes.
    if pid <= 1:
        raise ConfigError(f"--pid: {path!r} has no process's id in it")
    return pid
