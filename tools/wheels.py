"""Build, repair, check and test wheels for the interpreters at hand: `make wheel`.

cibuildwheel does this in containers, for every platform. Here the same settings
(`[tool.cibuildwheel]` in pyproject.toml) are used without it, and what it would build is
checked by the identifiers that it prints.

    wheels.py                                   the interpreter that runs this, and pyenv's
    wheels.py --python python3.13               another one, or several
    wheels.py -- -x tests/test_http1.py         other tests, other options of pytest
    wheels.py --identifiers                     only ask cibuildwheel what it would build

A wheel must run on systems with glibc 2.28 or later, hold what the package in the sdist
holds and the compiled modules, and pass the tests in an environment of its own, outside the
checkout, with the tests of the sdist.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from dataclasses import dataclass
from io import BytesIO
from itertools import product
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WHEELHOUSE = ROOT / "wheelhouse"
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["cibuildwheel"]

NEWEST_GLIBC = (2, 28)
PYTHONS = ("cp311", "cp312", "cp313", "cp314", "cp314t")
PLATFORMS = {
    "linux": (("manylinux", "musllinux"), ("x86_64", "aarch64")),
    "macos": (("macosx",), ("x86_64", "arm64")),
}
# The command, the parser, and the server on every worker and poller: some minutes. Everything is
# tested from the checkout, and by cibuildwheel.
TESTS = [
    "tests/test_cli.py",
    "tests/test_parser.py",
    "tests/test_http1.py",
    "tests/test_lifespan.py",
]

FACTS = """
import ensurepip, json, os, sys, sysconfig
print(json.dumps({
    "executable": sys.executable,
    "tag": "cp%d%d" % sys.version_info[:2] + getattr(sys, "abiflags", ""),
    "usable": sys.implementation.name == "cpython" and sys.version_info >= (3, 11)
        and os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")),
}))
"""


class WheelError(Exception):
    """A wheel is not what it should be."""


def run(*command: str | Path, cwd: Path = ROOT, env: dict[str, str] | None = None) -> None:
    subprocess.run(command, check=True, cwd=cwd, env=env)


# --- interpreters -----------------------------------------------------------------------------


def facts_of(python: str) -> dict[str, str] | None:
    """What is worth knowing of an interpreter; None if no wheel can be built with it."""
    try:
        done = subprocess.run(
            [python, "-c", FACTS], capture_output=True, text=True, check=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError):
        return None
    facts: dict[str, str] = json.loads(done.stdout)
    return facts if facts["usable"] else None


def interpreters(named: list[str]) -> dict[str, str]:
    """Executables by the tag of their wheels. Those that are named have to be usable."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    others = [] if named else sorted(map(str, pyenv.glob("versions/*/bin/python3")))
    found: dict[str, str] = {}
    for python in [*(named or [sys.executable]), *others]:
        facts = facts_of(python)
        if facts is not None:
            found.setdefault(facts["tag"], facts["executable"])
        elif python not in others:
            raise WheelError(f"{python}: no CPython 3.11 or later with its headers and venv")
    return found


# --- one wheel --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sdist:
    archive: Path
    folder: Path  # where it was unpacked

    @classmethod
    def build(cls, scratch: Path) -> Sdist:
        run(sys.executable, "-m", "build", "--quiet", "--sdist", "--outdir", scratch, ROOT)
        (archive,) = scratch.glob("*.tar.gz")
        with tarfile.open(archive) as tar:
            # Not as an argument, which CPython has from 3.11.4 on: Debian 12 has 3.11.2.
            tar.extraction_filter = getattr(tarfile, "data_filter", lambda member, _: member)
            tar.extractall(scratch)
        shutil.copy(archive, WHEELHOUSE)
        return cls(archive, scratch / archive.name.removesuffix(".tar.gz"))

    def contents(self) -> set[str]:
        """What a wheel has to hold in its package, but the compiled modules."""
        package = self.folder / "src" / "fastserve"
        return {f"fastserve/{path.name}" for path in package.iterdir()}

    def modules(self) -> set[str]:
        return {path.stem for path in (self.folder / "src").glob("*.pyx")}


def make_environment(python: str, folder: Path) -> Path:
    """A fresh virtual environment's interpreter."""
    run(python, "-m", "venv", folder)
    made = folder / "bin" / "python"
    run(made, "-m", "pip", "install", "--quiet", "--upgrade", "pip>=25.1")
    return made


def build(sdist: Sdist, python: Path, scratch: Path) -> Path:
    """The wheel as setuptools leaves it."""
    flags = {**os.environ, **SETTINGS["environment"]}
    if sys.platform == "linux":
        # An interpreter from somebody's home may have its own folder in the linker's command.
        flags["LDSHARED"] = f"{os.environ.get('CC', 'cc')} -shared"
    built = scratch / "built"
    run(python, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", built, sdist.archive,
        env=flags)  # fmt: skip
    (wheel,) = built.glob("*.whl")
    return wheel


def repair(wheel: Path, scratch: Path) -> Path:
    """The wheel with a platform tag that says where it runs."""
    if sys.platform != "linux":
        return wheel
    repaired = scratch / "repaired"
    command = SETTINGS["linux"]["repair-wheel-command"]
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    run(
        *shlex.split(command.format(dest_dir=repaired, wheel=wheel)),
        env={**os.environ, "PATH": tools},
    )
    (wheel,) = repaired.glob("*.whl")
    return wheel


def check(wheel: Path, sdist: Sdist) -> None:
    """Raises WheelError unless the wheel's tag and contents are what they should be."""
    if sys.platform == "linux":
        versions = re.findall(r"manylinux_(\d+)_(\d+)_", wheel.name)
        if not versions or min((int(a), int(b)) for a, b in versions) > NEWEST_GLIBC:
            raise WheelError(f"{wheel.name}: not for glibc {NEWEST_GLIBC[0]}.{NEWEST_GLIBC[1]}")
    with zipfile.ZipFile(wheel) as archive:
        names = {
            entry.filename
            for entry in archive.infolist()
            if not entry.is_dir() and ".dist-info/" not in entry.filename
        }
        compiled = {name for name in names if name.endswith(".so")}
        if {Path(name).name.partition(".")[0] for name in compiled} != sdist.modules():
            raise WheelError(f"{wheel.name}: other compiled modules: {sorted(compiled)}")
        if difference := (names - compiled) ^ sdist.contents():
            raise WheelError(f"{wheel.name}: not what the package has: {sorted(difference)}")
        if strange := {name for name in names if not name.endswith((".py", ".pyi", ".pxd", ".so", "/py.typed"))}:  # fmt: skip
            raise WheelError(f"{wheel.name}: not for a wheel: {sorted(strange)}")
        if sys.platform == "linux":
            for name in compiled:
                check_binary(name, archive.read(name))


def check_binary(name: str, binary: bytes) -> None:
    from elftools.elf.elffile import ELFFile  # auditwheel needs it

    file = ELFFile(BytesIO(binary))
    if left := [s.name for s in file.iter_sections() if re.match(r"\.(symtab|debug)", s.name)]:
        raise WheelError(f"{name}: not stripped: {left}")
    dynamic = file.get_section_by_name(".dynamic")
    if paths := [
        tag for tag in dynamic.iter_tags() if tag.entry.d_tag in ("DT_RPATH", "DT_RUNPATH")
    ]:
        raise WheelError(f"{name}: looks for libraries in a folder of this machine: {paths}")


def test(wheel: Path, python: Path, sdist: Sdist, pytest: list[str]) -> None:
    groups = [
        f"--group={sdist.folder / 'pyproject.toml'}:{name}" for name in SETTINGS["test-groups"]
    ]
    run(python, "-m", "pip", "install", "--quiet", wheel, *groups)
    place = "import fastserve; print(fastserve.__version__, fastserve.__file__)"
    run(python, "-c", place, cwd=sdist.folder)
    # Not by `python -m`, which would put this folder on the path.
    run(python.parent / "pytest", "-q", "--timeout=120", *pytest, cwd=sdist.folder)


# --- everything -------------------------------------------------------------------------------


def check_identifiers() -> None:
    """Raises WheelError unless cibuildwheel would build each of PYTHONS on each of PLATFORMS."""
    program = Path(sys.executable).parent / "cibuildwheel"
    for platform, (systems, machines) in PLATFORMS.items():
        options = ["--platform", platform, "--archs", ",".join(machines)]
        done = subprocess.run(
            [program, "--print-build-identifiers", *options],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        expected = {f"{p}-{s}_{m}" for p, s, m in product(PYTHONS, systems, machines)}
        if difference := expected ^ set(done.stdout.split()):
            raise WheelError(f"cibuildwheel: {sorted(difference)} {done.stderr}")
        print(f"{platform}: {len(expected)} wheels", flush=True)


def make_wheel(python: str, sdist: Sdist, pytest: list[str]) -> Path:
    with tempfile.TemporaryDirectory(prefix="fastserve-wheel-") as folder:
        scratch = Path(folder)
        made = make_environment(python, scratch / "environment")
        wheel = repair(build(sdist, made, scratch), scratch)
        check(wheel, sdist)
        test(wheel, made, sdist, pytest)
        return Path(shutil.copy(wheel, WHEELHOUSE))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--python", action="append", default=[], help="build for this interpreter")
    parser.add_argument("--identifiers", action="store_true", help="only check those")
    parser.add_argument("pytest", nargs="*", help=f"for pytest; default: {' '.join(TESTS)}")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    check_identifiers()
    if arguments.identifiers:
        return
    for old in [*WHEELHOUSE.glob("*.whl"), *WHEELHOUSE.glob("*.tar.gz")]:
        old.unlink()
    with tempfile.TemporaryDirectory(prefix="fastserve-sdist-") as folder:
        sdist = Sdist.build(Path(folder))
        for tag, python in interpreters(arguments.python).items():
            print(f"== {tag}: {python}", flush=True)
            print(f"== {make_wheel(python, sdist, arguments.pytest or TESTS).name}", flush=True)


if __name__ == "__main__":
    try:
        main()
    except (WheelError, subprocess.CalledProcessError) as error:
        sys.exit(f"wheels: {error}")
