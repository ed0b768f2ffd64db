"""The extension modules. All metadata and tool settings are in pyproject.toml.

The sources stay `.pyx` here, so that setuptools itself calls Cython and the
sdist holds them; their declarations (`.pxd`) are in the package, because Cython
looks for `fastserve._name` only below a folder of that name.
"""

import os
from glob import glob

from setuptools import Extension, setup

MODULES = (
    "_file", "_buffer", "_transport", "_parser", "_headers", "_conversation", "_address",
    "_forwarded", "_proxy", "_access", "_http1", "_deflate", "_websocket", "_tls", "_shared",
    "_reactor",
)  # fmt: skip
LIBRARIES = {"_deflate": ["z"]}

DECLARATIONS = sorted(glob("src/fastserve/*.pxd"))

flags: list[str] = (
    ["-Wno-unreachable-code-fallthrough"] if "clang" in os.environ.get("CC", "") else []
)
link_flags: list[str] = []
macros: list[tuple[str, str]] = []

if os.environ.get("FASTSERVE_SANITIZE"):  # AddressSanitizer and UBSan: make test-asan
    sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
    flags += [*sanitizers, "-O1", "-g", "-fno-omit-frame-pointer"]
    link_flags += sanitizers
if os.environ.get("FASTSERVE_FUZZ"):  # coverage for libFuzzer: make fuzz
    flags += ["-fsanitize=fuzzer-no-link,address,undefined", "-O1", "-g"]
    link_flags += ["-fsanitize=fuzzer-no-link,address,undefined"]

trace = bool(os.environ.get("FASTSERVE_TRACE"))  # line tracing: coverage of the .pyx
if trace:
    macros += [("CYTHON_TRACE", "1"), ("CYTHON_USE_SYS_MONITORING", "0")]

setup(
    ext_modules=[
        Extension(
            f"fastserve.{name}",
            [f"src/{name}.pyx"],
            depends=DECLARATIONS,
            extra_compile_args=flags,
            extra_link_args=link_flags,
            define_macros=macros,
            libraries=LIBRARIES.get(name, []),
        )
        for name in MODULES
    ],
    options={
        "build_ext": {
            "cython_directives": {
                "language_level": "3",
                "boundscheck": False,
                "wraparound": False,
                "cdivision": True,
                "binding": False,
                "auto_pickle": False,
                "linetrace": trace,
            }
        }
    },
)
