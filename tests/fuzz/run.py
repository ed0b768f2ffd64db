"""Build and run the fuzz targets: `python tests/fuzz/run.py [--runs N] [target ...]`.

Needs clang with libFuzzer (Debian: clang and libclang-rt-*-dev), Cython, and an
interpreter with a shared libpython: the one that runs this script is embedded.

    python tests/fuzz/run.py                    all targets, 1,000,000 inputs each
    python tests/fuzz/run.py --runs 50000       fewer
    python tests/fuzz/run.py --seconds 60       at most so long for each target
    python tests/fuzz/run.py --merge parser     write what is new to the seed corpus
    python tests/fuzz/run.py --again FILE parser    one input, such as a crash, once more

The seeds are in `tests/fuzz/corpus/<target>/` and are only read, but by `--merge`.
What a run finds, crashes too, is kept in `build/fuzz/`. A crash, a sanitizer's report
or an exception ends the run with its traceback, and the exit status is not 0.

A target is one file, `tests/fuzz/<target>.pyx`:

* a line `# modules: _parser`: the compiled modules it needs, without the package, and
  a line `# cython: boundscheck=True, wraparound=True` against the defaults of setup.py;
* `def check(bytes data)`, which raises what is wrong; it is called for each input;
* if wanted, `<target>.dict` beside it, a dictionary for libFuzzer.

The modules are built as setup.py says under FASTSERVE_FUZZ=1: with coverage, with
AddressSanitizer and with UndefinedBehaviorSanitizer.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
BUILD = ROOT / "build" / "fuzz"
LIBRARY = BUILD / "lib"
CLANGS = ("clang", *(f"clang-{version}" for version in range(22, 12, -1)))


def find_clang() -> str:
    for name in (os.environ.get("CLANG", ""), *CLANGS):
        if name and shutil.which(name):
            return name
    sys.exit("fuzz: no clang found; set CLANG to its name")


def build(targets: list[str], clang: str) -> None:
    """Compile the targets, the modules they need and the program that calls them."""
    os.environ |= {"FASTSERVE_FUZZ": "1", "CC": clang, "LDSHARED": f"{clang} -shared"}
    from distutils.core import run_setup  # setuptools provides it

    from setuptools import Extension

    os.chdir(ROOT)
    distribution = run_setup("setup.py", stop_after="init")
    known = {extension.name: extension for extension in distribution.ext_modules}
    sample = next(iter(known.values()))
    needed = []
    extensions = []
    for target in targets:
        source = HERE / f"{target}.pyx"
        match = re.search(r"^# modules: (.+)$", source.read_text(), re.MULTILINE)
        if match is None:
            sys.exit(f"fuzz: {source} does not say which modules it needs")
        needed += [f"fastserve.{name}" for name in match[1].replace(",", " ").split()]
        extensions.append(
            Extension(
                f"fuzz_{target}",
                [str(source.relative_to(ROOT))],
                include_dirs=["src"],
                extra_compile_args=sample.extra_compile_args,
                extra_link_args=sample.extra_link_args,
            )
        )
    for name in dict.fromkeys(needed):
        # Cython looks for the declarations below the sources of the target as well.
        known[name].include_dirs.append("src")
        extensions.append(known[name])
    distribution.ext_modules = extensions
    command = distribution.get_command_obj("build_ext")
    command.build_lib = str(LIBRARY)
    command.build_temp = str(BUILD / "temp")
    command.cython_c_in_temp = True  # the checkout may be built for something else
    command.inplace = False
    command.force = True
    distribution.verbose = 0
    distribution.run_command("build_ext")
    # An empty package: what the real one imports needs more than the compiled modules.
    (LIBRARY / "fastserve").mkdir(parents=True, exist_ok=True)
    (LIBRARY / "fastserve" / "__init__.py").touch()

    where = sysconfig.get_config_var("LIBDIR")
    version = sysconfig.get_config_var("LDVERSION")
    if not list(Path(where).glob(f"libpython{version}.*")):
        sys.exit(f"fuzz: no libpython{version} in {where}; use another interpreter")
    subprocess.run(
        [
            clang, "-g", "-O1", "-fsanitize=fuzzer,address,undefined",
            f"-I{sysconfig.get_path('include')}", str(HERE / "main.c"), "-o", str(BUILD / "main"),
            f"-L{where}", f"-Wl,-rpath,{where}", f"-lpython{version}", "-rdynamic",
            *(sysconfig.get_config_var("LIBS") or "").split(), "-lm",
        ],
        check=True,
    )  # fmt: skip


def environment(target: str) -> dict[str, str]:
    return os.environ | {
        "FUZZ_MODULE": f"fuzz_{target}",
        "PYTHONHOME": sys.base_prefix,
        "PYTHONPATH": str(LIBRARY),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONMALLOC": "malloc",  # so that AddressSanitizer sees Python's objects
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
    }


def run(target: str, options: argparse.Namespace) -> int:
    seeds = HERE / "corpus" / target
    found = BUILD / "corpus" / target
    seeds.mkdir(parents=True, exist_ok=True)
    found.mkdir(parents=True, exist_ok=True)
    command = [str(BUILD / "main"), "-timeout=10", f"-artifact_prefix={BUILD}/{target}-"]
    if options.again:
        command += [options.again]
    elif options.merge:
        command += ["-merge=1", str(seeds), str(found)]
    else:
        command += [f"-runs={options.runs}", f"-max_len={options.max_len}", "-print_final_stats=1"]
        if options.seconds:
            command.append(f"-max_total_time={options.seconds}")
        words = HERE / f"{target}.dict"
        if words.exists():
            command.append(f"-dict={words}")
        command += [str(found), str(seeds)]
    print(f"fuzz: {target}", flush=True)
    return subprocess.run(command, env=environment(target), check=False).returncode


def main() -> int:
    everything = sorted(path.stem for path in HERE.glob("*.pyx"))
    parser = argparse.ArgumentParser(description="Build and run the fuzz targets.")
    parser.add_argument("target", nargs="*", help=f"of {', '.join(everything)}; default: all")
    parser.add_argument("--runs", type=int, default=1_000_000, help="inputs for each target")
    parser.add_argument("--seconds", type=int, default=0, help="at most, for each target")
    parser.add_argument("--max-len", type=int, default=2048, help="bytes of an input")
    parser.add_argument("--merge", action="store_true", help="add what is new to the seeds")
    parser.add_argument("--again", metavar="FILE", help="run this one input")
    options = parser.parse_args()
    unknown = set(options.target) - set(everything)
    if unknown:
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    if options.again:
        options.again = str(Path(options.again).resolve())
        if len(options.target) != 1:
            parser.error("--again needs one target")
    targets = options.target or everything
    build(targets, find_clang())
    failed = [target for target in targets if run(target, options) != 0]
    for target in failed:
        print(f"fuzz: {target} failed", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
