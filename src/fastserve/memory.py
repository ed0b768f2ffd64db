"""What memory a process has."""

from __future__ import annotations

import os
import resource
import sys

__all__ = ["own_resident", "resident"]


def resident(pid: int) -> int | None:
    """Of another process, in bytes; None where nobody tells, or where it has ended."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None


def own_resident() -> int:
    """Of this process; the most it ever was, where nothing else is told."""
    now = resident(os.getpid())
    if now is not None:
        return now
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
