"""What is measured where: the peers' environment, versions, and a description of the machine."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

BENCH = Path(__file__).resolve().parent
PEERS = BENCH / "peers.txt"
INSTALL_SECONDS = 900

# What is worth knowing of the environment that has fastserve: distributions, as pip names them.
OURS = ["fastserve-asgi", "uvloop", "trio"]

FACTS = """
import importlib.metadata, importlib.util, json, platform, sys, sysconfig
versions = {}
for name in sys.argv[1:]:
    try:
        versions[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
print(json.dumps({
    "executable": sys.executable,
    "has_fastserve": importlib.util.find_spec("fastserve") is not None,
    "implementation": sys.implementation.name,
    "version": platform.python_version(),
    "free_threaded": bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
    "optimized": "--enable-optimizations" in (sysconfig.get_config_var("CONFIG_ARGS") or ""),
    "compiler": platform.python_compiler(),
    "versions": versions,
}))
"""


def ask_python(python: str, code: str, *arguments: str) -> str:
    """Run `code` away from this folder, whose http.py would hide the standard module."""
    # Through -c the first entry of the path is the working folder.
    done = subprocess.run(
        [python, "-c", code, *arguments],
        cwd="/",
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout.strip()


def python_facts(python: str, packages: list[str]) -> dict[str, object]:
    facts: dict[str, object] = json.loads(ask_python(python, FACTS, *packages))
    return facts


def require(program: str) -> None:
    if shutil.which(program) is None:
        raise SystemExit(f"this needs {program} on the path")


def absolute(python: str) -> str:
    """Other working folders are used later; a link into an environment must stay a link."""
    found = shutil.which(python)
    if found is None:
        raise SystemExit(f"no such interpreter: {python}")
    return os.path.abspath(found)


def pinned() -> list[str]:
    """The names in the file of pinned versions."""
    lines = (line.partition("#")[0].strip() for line in PEERS.read_text().splitlines())
    return [re.split(r"[\[=]", line)[0] for line in lines if line]


def peers_python(python: str) -> str:
    """The interpreter of the peers' environment, which is made on first use.

    There is one for each CPython and each content of the file of pinned versions.
    """
    facts = python_facts(python, [])
    digest = hashlib.sha256(PEERS.read_bytes()).hexdigest()[:8]
    name = f"{facts['implementation']}-{facts['version']}{'t' if facts['free_threaded'] else ''}"
    folder = BENCH / ".peers" / f"{name}-{digest}"
    interpreter = folder / "bin" / "python"
    complete = folder / "complete"
    if not complete.exists():
        subprocess.run([python, "-m", "venv", "--clear", str(folder)], check=True, timeout=120)
        install = [str(interpreter), "-m", "pip", "install", "--quiet", "-r", str(PEERS)]
        subprocess.run(install, check=True, timeout=INSTALL_SECONDS)
        complete.touch()
    return str(interpreter)


def machine() -> dict[str, object]:
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "wrk": _first_line("wrk", "--version"),
        "cc": _first_line(os.environ.get("CC", "cc"), "--version"),
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def _first_line(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except OSError:
        return "missing"
    lines = (done.stdout or done.stderr).splitlines()
    return lines[0] if lines else "unknown"
