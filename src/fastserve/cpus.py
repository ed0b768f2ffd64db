"""How many processors this process may use: by its affinity, and by its control group's quota."""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path

__all__ = ["usable"]

# What a quota and its period, in microseconds, are in, by the type of the file system.
QUOTAS = {"cgroup2": ("cpu.max",), "cgroup": ("cpu.cfs_quota_us", "cpu.cfs_period_us")}


def usable(root: Path = Path("/")) -> int:
    """At least 1; part of a processor is one. `root`: where /proc and the groups are."""
    return max(1, math.ceil(min([_by_affinity(), *_by_quota(root)])))


def _by_affinity() -> int:
    if sys.version_info >= (3, 13):
        return os.process_cpu_count() or 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _by_quota(root: Path) -> Iterator[float]:
    """Of each group that this process is in, and of those around it (cgroups(7))."""
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
        mounts = (root / "proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return
    paths: dict[str, str] = {}
    for group in groups:
        _, controllers, path = group.split(":", 2)
        paths |= dict.fromkeys(controllers.split(","), path)
    for mount in mounts:
        where, _, what = mount.partition(" - ")
        top, point = where.split(" ")[3:5]
        kind, *_, options = what.split(" ")
        if kind == "cgroup2" or (kind == "cgroup" and "cpu" in options.split(",")):
            path = paths.get("" if kind == "cgroup2" else "cpu", top)
            below = Path(os.path.relpath(path, top)).parts
            folder = root / point.lstrip("/")
            yield from _quota(folder, kind)
            # In a container the path may be the host's, of which nothing is mounted.
            for name in () if ".." in below else below:
                folder /= name
                yield from _quota(folder, kind)


def _quota(folder: Path, kind: str) -> Iterator[float]:
    """None unless there is one: no file, `max` or -1."""
    with contextlib.suppress(OSError, ValueError):
        words = " ".join((folder / name).read_text() for name in QUOTAS[kind]).split()
        quota, period = map(int, words)
        if quota > 0:
            yield quota / period
