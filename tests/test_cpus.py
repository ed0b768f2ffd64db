"""How many processors --workers auto counts, in control groups of both versions."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from fastserve import cpus

MOUNT = "31 23 0:28 {top} {point} rw,relatime shared:9 - {kind} {kind} {options}\n"
TOP = "/sys/fs/cgroup"


@pytest.fixture(autouse=True)
def many_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    """So many that a quota is what counts."""
    monkeypatch.setattr(cpus, "_by_affinity", lambda: 64)


def machine(folder: Path, groups: str, mounts: str, **files: str) -> Path:
    """A root with these groups; `files` have __ for each slash in their names."""
    texts = {"proc/self/cgroup": groups, "proc/self/mountinfo": mounts}
    for name, text in [*texts.items(), *files.items()]:
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def version_2(folder: Path, path: str = "/", **files: str) -> Path:
    return machine(
        folder,
        f"0::{path}\n",
        MOUNT.format(top="/", point=TOP, kind="cgroup2", options="rw,nsdelegate"),
        **{f"sys__fs__cgroup__{name}": text for name, text in files.items()},
    )


def version_1(folder: Path, quota: str, *, path: str = "/", top: str = "/") -> Path:
    return machine(
        folder,
        f"4:memory:{path}\n1:cpu,cpuacct:{path}\n0::/\n",
        MOUNT.format(top=top, point=f"{TOP}/memory", kind="cgroup", options="rw,memory")
        + MOUNT.format(top=top, point=f"{TOP}/cpu", kind="cgroup", options="rw,cpu,cpuacct"),
        **{
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": f"{quota}\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
    )


@pytest.mark.parametrize(
    ("quota", "count"), [(1000, 1), (100_000, 1), (100_001, 2), (250_000, 3), (10**8, 64)]
)
def test_the_quota(tmp_path: Path, quota: int, count: int) -> None:
    for place, made in {
        "container": version_2(tmp_path / "2", **{"cpu.max": f"{quota} 100000\n"}),
        "service": version_2(
            tmp_path / "service",
            "/a/b",
            **{"cpu.max": "max 100000\n", "a__b__cpu.max": f"{quota} 100000\n"},
        ),
        "slice around it": version_2(
            tmp_path / "slice",
            "/a/b",
            **{"a__cpu.max": f"{quota} 100000\n", "a__b__cpu.max": "max 100000\n"},
        ),
        "version 1": version_1(tmp_path / "1", str(quota)),
        "container of version 1": version_1(tmp_path / "c", str(quota), path="/x", top="/x"),
        "path of the host": version_1(tmp_path / "h", str(quota), path="/x", top="/y"),
    }.items():
        assert cpus.usable(made) == count, place


def test_no_quota(tmp_path: Path) -> None:
    for made in (
        tmp_path,
        version_1(tmp_path / "1", "-1"),
        version_1(tmp_path / "broken", "much"),
        version_2(tmp_path / "2", **{"cpu.max": "max 100000\n"}),
        version_2(tmp_path / "none"),
    ):
        assert cpus.usable(made) == 64


@pytest.mark.skipif(sys.platform != "linux", reason="needs an affinity")
def test_the_affinity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert cpus.usable(tmp_path) == 1
    finally:
        os.sched_setaffinity(0, before)
    assert cpus.usable(tmp_path) == len(before)
