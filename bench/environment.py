"""What is measured where: the peers' environment, versions, and a description of the machine."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

BENCH = Path(__file__).resolve().parent
PEERS = BENCH / "peers.txt"
FRAMEWORKS = BENCH / "frameworks.txt"
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


def path_first(folder: str) -> dict[str, str]:
    """The variable that has an interpreter look there before anywhere else."""
    others = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": os.pathsep.join([folder, others] if others else [folder])}


def ask_python(python: str, code: str, *arguments: str, folder: str = "") -> str:
    """Run `code` away from this folder, whose http.py would hide the standard module. `folder` is
    the first that modules are looked for in."""
    # Through -c the first entry of the path is the working folder.
    done = subprocess.run(
        [python, "-c", code, *arguments],
        cwd="/",
        env={**os.environ, **path_first(folder)} if folder else None,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout.strip()


def python_facts(python: str, packages: list[str], folder: str = "") -> dict[str, object]:
    facts: dict[str, object] = json.loads(ask_python(python, FACTS, *packages, folder=folder))
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


def pinned(requirements: Path = PEERS) -> dict[str, str]:
    """The versions in a file of pinned ones, by name."""
    lines = (line.partition("#")[0].strip() for line in requirements.read_text().splitlines())
    parts = (line.partition("==") for line in lines if line)
    return {name.partition("[")[0]: version for name, _, version in parts}


def peers_python(python: str) -> str:
    """The interpreter of the peers' environment, which is made on first use."""
    folder = _place(python, PEERS)
    interpreter = folder / "bin" / "python"
    complete = folder / "complete"
    if not complete.exists():
        subprocess.run([python, "-m", "venv", "--clear", str(folder)], check=True, timeout=120)
        _install(str(interpreter), PEERS)
        complete.touch()
    return str(interpreter)


def libraries(python: str, requirements: Path) -> str:
    """A folder with what a file of pinned versions names, for whoever has it on the path. It is
    made on first use."""
    folder = _place(python, requirements)
    complete = folder / "complete"
    if not complete.exists():
        shutil.rmtree(folder, ignore_errors=True)
        _install(python, requirements, "--target", str(folder))
        complete.touch()
    return str(folder)


def frameworks(python: str, interpreters: Iterable[str]) -> str:
    """The folder of the frameworks, when each of the interpreters finds the pinned ones there."""
    folder = libraries(python, FRAMEWORKS)
    expected = pinned(FRAMEWORKS)
    for interpreter in interpreters:
        found = python_facts(interpreter, list(expected), folder)["versions"]
        if found != expected:
            raise SystemExit(f"{interpreter} finds {found} and not {expected}")
    return folder


def _place(python: str, requirements: Path) -> Path:
    """There is one for each CPython and each content of the file of pinned versions."""
    facts = python_facts(python, [])
    digest = hashlib.sha256(requirements.read_bytes()).hexdigest()[:8]
    name = f"{facts['implementation']}-{facts['version']}{'t' if facts['free_threaded'] else ''}"
    if requirements != PEERS:
        name += f"-{requirements.stem}"
    return BENCH / ".peers" / f"{name}-{digest}"


def _install(interpreter: str, requirements: Path, *options: str) -> None:
    command = [interpreter, "-m", "pip", "install", "--quiet", *options, "-r", str(requirements)]
    subprocess.run(command, check=True, timeout=INSTALL_SECONDS)


def machine() -> dict[str, object]:
    return {
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "load before": round(os.getloadavg()[0], 2),
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "wrk": _first_line("wrk", "--version"),
        "cc": _first_line(os.environ.get("CC", "cc"), "--version"),
    }


def commit() -> str:
    """What is checked out, and whether it was changed since."""
    return _first_line(
        "git", "-C", str(BENCH), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"
    )


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
