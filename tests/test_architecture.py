"""Who may know whom. The tables are the rule; whatever goes beyond them fails.

Nothing is imported here: the sources are read, so that an arrow in a function, under a
condition or in a declaration file counts like any other.
"""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

SOURCES = Path(__file__).resolve().parent.parent / "src"
PACKAGE = SOURCES / "fastserve"

# Arrows between modules of ours, however the import is written.
ARROWS = {
    # Descriptors of regular files, and what is to be sent of them.
    "_file": set(),
    "_buffer": {"_file"},
    # Pure: bytes in, bytes or facts out.
    "_parser": set(),
    "_headers": {"_buffer"},
    # What a protocol and a socket promise each other; neither knows the other.
    "_transport": {"_buffer"},
    "_conversation": set(),
    "_address": set(),
    # Of the parser it asks what an authority is.
    "_forwarded": {"_address", "_parser"},
    "_proxy": {"_address", "_forwarded", "_transport"},
    "_access": set(),
    "_http1": {
        "_access",
        "_buffer",
        "_conversation",
        "_file",
        "_forwarded",
        "_headers",
        "_parser",
        "_shared",
        "_transport",
    },
    "_deflate": set(),
    "_websocket": {
        "_buffer",
        "_conversation",
        "_deflate",
        "_headers",
        "_http1",
        "_shared",
        "_transport",
    },
    "_tls": {"_buffer", "_transport"},
    # What the processes show each other.
    "_shared": set(),
    "_reactor": {"_buffer", "_file", "_shared", "_transport"},
    # One loop each.
    "threads": set(),
    "worker": {"_conversation", "_reactor", "threads"},
    "worker_asyncio": {"_conversation", "_reactor", "worker"},
    "worker_trio": {"_conversation", "_reactor", "worker"},
    # The process around them.
    "checks": set(),
    "sources": {"checks"},
    "config": {"checks", "sources"},
    "access": {"_access", "checks", "tls"},
    "log": {"checks"},
    "stacks": set(),
    "watchdog": {"_shared", "log", "stacks"},
    "pidfile": {"checks"},
    "asgi": set(),
    "blocking": {"worker"},
    "wsgi": {"_conversation", "asgi", "blocking", "log", "worker"},
    "middleware": {"asgi", "log"},
    "application": {"asgi", "checks", "config", "wsgi"},
    "extensions": set(),
    "tls": {"config"},
    "systemd": set(),
    "errors": set(),
    "sockets": {"checks", "config", "errors", "systemd"},
    "memory": set(),
    "recycling": {"config", "memory"},
    "lifespan": {"asgi", "config", "log", "worker"},
    "server": {
        "_conversation",
        "_forwarded",
        "_http1",
        "_proxy",
        "_reactor",
        "_shared",
        "_tls",
        "_transport",
        "_websocket",
        "access",
        "application",
        "asgi",
        "config",
        "errors",
        "extensions",
        "lifespan",
        "log",
        "pidfile",
        "recycling",
        "sockets",
        "stacks",
        "systemd",
        "tls",
        "watchdog",
        "worker",
        "wsgi",
    },
    # Around several processes; the supervisor knows neither a loop nor the application.
    "channel": set(),
    "handover": {"channel", "sockets"},
    "cpus": set(),
    "supervisor": {
        "_shared",
        "channel",
        "config",
        "cpus",
        "errors",
        "handover",
        "log",
        "memory",
        "metrics",
        "monitoring",
        "pidfile",
        "sockets",
        "systemd",
        "watchdog",
        "watcher",
    },
    "watcher": {"checks", "config"},
    # What it tells those who watch it.
    "admin": {"_headers", "_parser", "log"},
    "metrics": {"_shared"},
    "statsd": {"_shared", "checks", "config", "log"},
    "monitoring": {"_shared", "admin", "config", "log", "metrics", "statsd"},
    "child": {
        "_shared",
        "application",
        "asgi",
        "channel",
        "config",
        "errors",
        "log",
        "server",
        "sockets",
        "stacks",
        "worker",
    },
    "launch": {
        "application",
        "child",
        "config",
        "handover",
        "log",
        "server",
        "supervisor",
        "worker",
    },
    "cli": {
        "__init__",
        "application",
        "checks",
        "config",
        "errors",
        "launch",
        "pidfile",
        "sources",
    },
    "__init__": {"_conversation", "config", "launch", "server"},
    "__main__": {"cli"},
}

# Arrows that are only a name in a string, imported when it is asked for.
BY_NAME = {
    "worker": {"worker_asyncio", "worker_trio"},
    "supervisor": {"child"},
    "__init__": {"_conversation", "config", "launch", "server"},
}

COMPILED = {name for name in ARROWS if name.startswith("_") and not name.startswith("__")}

# What compiled code may have besides: Cython's own declarations, `http` for the reason
# phrases, `os` for the words of an error number. No event loop, no logging; a protocol
# has of the operating system only the clock.
DECLARATIONS = {"cython", "cpython", "libc"}
COMPILED_MAY_HAVE = {
    "_file": DECLARATIONS | {"os", "stat"},
    "_buffer": DECLARATIONS,
    "_parser": DECLARATIONS,
    "_headers": DECLARATIONS | {"http"},
    "_transport": DECLARATIONS,
    "_conversation": DECLARATIONS,
    "_address": DECLARATIONS,
    "_forwarded": DECLARATIONS,
    "_proxy": DECLARATIONS,
    "_access": DECLARATIONS | {"posix.time"},
    "_http1": DECLARATIONS,
    "_deflate": DECLARATIONS,
    "_websocket": DECLARATIONS | {"base64", "hashlib"},
    "_tls": DECLARATIONS | {"ssl"},
    "_shared": DECLARATIONS | {"mmap", "os", "tempfile"},
    "_reactor": DECLARATIONS | {"os"},
}
# C headers; the reactor alone knows sockets. <sys/uio.h> is for a struct of two members.
C_HEADERS = {
    "_file": {"Python.h", "errno.h", "fcntl.h", "unistd.h"},
    "_buffer": {"Python.h", "sys/uio.h"},
    "_parser": {"Python.h"},
    "_headers": {"time.h"},
    "_transport": set(),
    "_conversation": {"Python.h"},
    "_address": {"Python.h"},
    "_forwarded": {"Python.h"},
    "_proxy": set(),
    "_access": {"Python.h", "time.h"},
    "_http1": {"Python.h"},
    "_deflate": {"zlib.h"},
    "_shared": set(),
    "_tls": set(),
    "_websocket": {"Python.h"},
    "_reactor": {
        "Python.h", "arpa/inet.h", "errno.h", "fcntl.h", "netinet/in.h", "signal.h", "string.h",
        "sys/epoll.h", "sys/sendfile.h", "sys/socket.h", "sys/timerfd.h", "sys/uio.h", "time.h",
        "unistd.h",
    },
}  # fmt: skip

# Who may know an event loop.
LOOPS = {"asyncio", "trio", "uvloop", "anyio", "curio", "selectors", "sniffio"}
KNOWS_LOOP = {
    "worker_asyncio": {"asyncio", "uvloop"},
    "worker_trio": {"trio"},
    "supervisor": {"selectors"},  # which is how it waits for its processes
    "monitoring": {"selectors"},  # has its admin's clients waited for there, too
    "admin": {"selectors"},
}

# Tables that are filled while the module is imported, by this function, and only read then.
FILLED_ONCE = {
    "_parser": ("fill_tables", {"CLASS", "HEX_VALUE", "KNOWN", "MEANINGS", "NAME_SLOT", "TOKEN"})
}

ASGI_MESSAGE = re.compile(r"\b(http|websocket|lifespan)\.(\w+)")
STRING_OR_COMMENT = re.compile(
    r"""(?P<string>[rbfucRBFUC]{0,2}(?:\"\"\"(?:\\.|[^\\])*?\"\"\"|'''(?:\\.|[^\\])*?'''
        |"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'))|\#[^\n]*""",
    re.VERBOSE,
)


class Source(NamedTuple):
    """A Cython file: its code without strings and comments, and the strings."""

    code: str
    strings: list[str]


def cython_source(text: str) -> Source:
    strings: list[str] = []

    def blank(match: re.Match[str]) -> str:
        if match["string"] is not None:
            strings.append(match[0])
            return '""' + "\n" * match[0].count("\n")
        return ""

    return Source(STRING_OR_COMMENT.sub(blank, text.replace("\\\n", " ")), strings)


def cython_imports(text: str) -> Iterator[str]:
    """Dotted names of all that is imported or cimported; relative ones with their dots."""
    code = cython_source(text).code
    statement = re.compile(
        r"^[ \t]*(?:from[ \t]+(?P<module>[\w.]+)[ \t]+c?import\b[ \t]*"
        r"(?P<names>\([^)]*\)|[^\n;]*)|(?:c?import|include)[ \t]+(?P<modules>[^\n;]*))",
        re.MULTILINE,
    )
    for match in statement.finditer(code):
        if match["module"] is None:
            for name in match["modules"].split(","):
                yield name.split(" as ")[0].strip()
        elif match["module"].strip(".") in ("", "fastserve"):
            for name in match["names"].strip("() \t\n").split(","):
                if name.strip():
                    yield f"{match['module']}.{name.split(' as ')[0].strip()}"
        else:
            yield match["module"]


def python_imports(text: str, module: str) -> Iterator[str]:
    """The same for Python, made absolute."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join(["fastserve", *([base] if base else [])])
            if base == "fastserve":
                for alias in node.names:
                    # A name of the package itself, unless it is a module.
                    yield f"fastserve.{alias.name}" if alias.name in ARROWS else "fastserve"
            else:
                yield base


def files_of(module: str) -> list[Path]:
    names = [SOURCES / f"{module}.pyx"]
    names += [PACKAGE / f"{module}{end}" for end in (".pxd", ".pxi", ".py", ".pyi")]
    return [path for path in names if path.exists()]


def imports_of(module: str) -> set[str]:
    found: set[str] = set()
    for path in files_of(module):
        text = path.read_text()
        if path.suffix in (".py", ".pyi"):
            found.update(python_imports(text, module))
        else:
            found.update(cython_imports(text))
    return found


def arrows_of(module: str) -> set[str]:
    found = set()
    for name in imports_of(module):
        package, _, rest = name.partition(".")
        if package == "fastserve":
            found.add(rest.partition(".")[0] or "__init__")
    return found - {module}


def pyx(module: str) -> str:
    return (SOURCES / f"{module}.pyx").read_text()


def test_every_module_is_in_the_table() -> None:
    files = [*SOURCES.glob("*.p*"), *PACKAGE.glob("*.p*")]
    assert {path.name.partition(".")[0] for path in files} - {"py"} == set(ARROWS)


def test_sources_and_declarations_have_their_places() -> None:
    assert not (SOURCES / "__init__.py").exists()
    assert not list(PACKAGE.glob("*.pyx"))
    assert not list(SOURCES.glob("*.pxd"))
    assert not list(SOURCES.glob("*.py"))
    for module in COMPILED:
        assert len(files_of(module)) == 3, f"{module} needs .pyx, .pxd and .pyi"


@pytest.mark.parametrize("module", ARROWS)
def test_arrows(module: str) -> None:
    assert arrows_of(module) <= ARROWS[module]


def test_no_arrow_of_the_table_is_gone() -> None:
    """An arrow that nobody uses any more would only be an invitation."""
    assert {module: arrows_of(module) for module in ARROWS} == ARROWS


def test_no_cycles() -> None:
    left = {module: set(arrows) for module, arrows in ARROWS.items() if module != "__init__"}
    for arrows in left.values():
        arrows.discard("__init__")
    while left:
        free = {module for module, arrows in left.items() if not arrows & set(left)}
        assert free, f"a cycle in {sorted(left)}"
        left = {module: arrows for module, arrows in left.items() if module not in free}


@pytest.mark.parametrize("module", sorted(set(ARROWS) - COMPILED))
def test_arrows_by_name(module: str) -> None:
    text = (PACKAGE / f"{module}.py").read_text()
    found = {
        match[1]
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if (match := re.fullmatch(r"fastserve\.(\w+)(:\w+)?", node.value))
    }
    assert found == BY_NAME.get(module, set())


@pytest.mark.parametrize("module", sorted(COMPILED))
class TestCompiled:
    def test_knows_nothing_else(self, module: str) -> None:
        text = "\n".join(path.read_text() for path in files_of(module) if path.suffix != ".pyi")
        others = {name for name in cython_imports(text) if not name.startswith("fastserve.")}
        allowed = COMPILED_MAY_HAVE[module]
        assert {
            n for n in others if n not in allowed and n.partition(".")[0] not in allowed
        } == set()

    def test_imports_nothing_behind_the_back(self, module: str) -> None:
        code = cython_source(pyx(module)).code
        assert not re.search(
            r"\b(__import__|import_module|importlib|PyImport_\w+|exec|eval)\b", code
        )

    def test_c_headers(self, module: str) -> None:
        text = "\n".join(path.read_text() for path in files_of(module))
        found = set(re.findall(r'#include\s*[<"]([\w./]+)[>"]', text))
        found |= set(re.findall(r'^cdef extern from\s+"<?([\w./]+)>?"', text, re.MULTILINE))
        assert found == C_HEADERS[module]

    def test_cimports_are_absolute(self, module: str) -> None:
        for path in files_of(module):
            if path.suffix != ".pyi":
                assert not [n for n in cython_imports(path.read_text()) if n.startswith(".")]

    def test_no_coroutines(self, module: str) -> None:
        # trio treats a compiled coroutine as something that Ctrl-C must not interrupt.
        assert not re.search(r"\b(async|await)\b", cython_source(pyx(module)).code)

    def test_no_generators(self, module: str) -> None:
        assert not re.search(r"\byield\b", cython_source(pyx(module)).code)

    def test_no_global_is_assigned_in_a_function(self, module: str) -> None:
        assert not re.search(r"^\s+global\s", cython_source(pyx(module)).code, re.MULTILINE)

    def test_no_mutable_state_in_the_module(self, module: str) -> None:
        """A buffer or container of the module would be shared by all threads and loops."""
        function, filled = FILLED_ONCE.get(module, ("", set()))
        found = set(mutable_globals(cython_source(pyx(module)).code))
        assert found == filled
        writes = writers(cython_source(pyx(module)).code, filled)
        assert writes <= {function, ""}


def mutable_globals(code: str) -> Iterator[str]:
    """Names at the outermost level that hold an array, a list, dict, set, bytearray or
    object. What is `const`, a tuple, str, bytes, frozenset or number does not count, nor
    an instance of a class of ours that has no attributes."""
    code = re.sub(r"^cdef:\n((?:[ \t]+[^\n]*\n|\n)+)", _unfold, code, flags=re.MULTILINE)
    for match in re.finditer(r"^cdef +(?!class|enum|extern|struct|union)([^\n(]+)$", code, re.M):
        declaration = match[1].partition("=")[0].strip()
        kind, _, name = declaration.rpartition(" ")
        if kind.startswith("const "):
            continue
        array = "[" in declaration
        container = re.match(r"(list|dict|set|bytearray|object|Array|memoryview)\b", kind)
        if array or container or "*" in declaration:
            yield name.partition("[")[0].lstrip("*")
    # The same with an initial value that has a call in it.
    for match in re.finditer(
        r"^cdef +(?:list|dict|set|bytearray|object) +(\w+) *=[^\n]*\(", code, re.M
    ):
        yield match[1]
    # And names of Python's.
    for match in re.finditer(
        r"^(\w+)(?: *:[^=\n]+)? *= *(?:\[|\{|(?:list|dict|set|bytearray|deque|defaultdict)\()",
        code,
        re.MULTILINE,
    ):
        yield match[1]


def _unfold(match: re.Match[str]) -> str:
    return "".join(f"cdef {line.strip()}\n" for line in match[1].splitlines() if line.strip())


def writers(code: str, names: set[str]) -> set[str]:
    """The outermost functions that assign to an element of one of the names, or take its
    address, or call a method of it that changes it; "" stands for the module itself."""
    if not names:
        return set()
    either = "|".join(sorted(names))
    write = re.compile(
        rf"\b({either})\s*\[[^\n]*\](\.\w+)?\s*([-+*/|&^]|<<|>>|//)?=(?!=)|\bmem(?:cpy|set|move)\(\s*({either})\b"
        rf"|\b({either})\.(update|pop|clear|setdefault|append|add)\b"
    )
    found = set()
    current = ""
    for line in code.splitlines():
        if line and not line[0].isspace() and not line.startswith(")"):
            head = re.match(r"(?:cdef|cpdef|def|class)\b[^\n(]*?(\w+)\s*[(:]", line)
            current = head[1] if head else ""
        if write.search(line):
            found.add(current)
    return found


class TestLoops:
    @pytest.mark.parametrize("module", ARROWS)
    def test_who_knows_a_loop(self, module: str) -> None:
        known = {name.partition(".")[0] for name in imports_of(module)} & LOOPS
        assert known == KNOWS_LOOP.get(module, set())

    @pytest.mark.parametrize("module", ["worker", "worker_asyncio", "worker_trio"])
    def test_of_asgi_a_worker_knows_two_types(self, module: str) -> None:
        """It names them where it says what it takes, and never touches them. (A TaskStarter knows
        what a task is, and nothing of ASGI.)"""
        tree = ast.parse((PACKAGE / f"{module}.py").read_text())
        names = {
            alias.asname or alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.module == "fastserve._conversation"
            for alias in node.names
        }
        names.discard("TaskStarter")
        assert names <= {"ApplicationCall", "Conversation"}
        annotations = {
            id(inner)
            for node in ast.walk(tree)
            for part in (
                getattr(node, "annotation", None),
                getattr(node, "returns", None),
            )
            if isinstance(part, ast.AST)
            for inner in ast.walk(part)
        }
        used = [
            f"{node.id} in line {node.lineno}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Name) and node.id in names and id(node) not in annotations
        ]
        assert used == []

    @pytest.mark.parametrize("module", ["worker", "worker_asyncio", "worker_trio"])
    def test_a_worker_knows_no_asgi_message(self, module: str) -> None:
        tree = ast.parse((PACKAGE / f"{module}.py").read_text())
        strings = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant)]
        assert [s for s in strings if isinstance(s, str) and ASGI_MESSAGE.search(s)] == []

    @pytest.mark.parametrize(
        "module",
        [
            "_address",
            "_buffer",
            "_file",
            "_forwarded",
            "_parser",
            "_proxy",
            "_reactor",
            "_shared",
            "_transport",
        ],
    )
    def test_below_http_nobody_knows_an_asgi_message(self, module: str) -> None:
        strings = cython_source(pyx(module)).strings
        assert [s for s in strings if ASGI_MESSAGE.search(s)] == []

    def test_the_halves_are_not_copies(self) -> None:
        """What two workers share belongs into `worker`."""
        ours, theirs = (
            [
                line.strip()
                for line in (PACKAGE / f"worker_{name}.py").read_text().splitlines()
                if line.strip() and not line.strip().startswith("#")
            ]
            for name in ("asyncio", "trio")
        )
        matcher = difflib.SequenceMatcher(None, ours, theirs, autojunk=False)
        same = sum(block.size for block in matcher.get_matching_blocks())
        assert same / ((len(ours) + len(theirs)) / 2) <= 0.25


class TestReader:
    """The eyes of the tests above, on sources that break the rules."""

    @pytest.mark.parametrize(
        "text, expected",
        [
            ("import asyncio", {"asyncio"}),
            ("import asyncio as a, trio", {"asyncio", "trio"}),
            ("cimport cython", {"cython"}),
            ("def f():\n    import logging\n", {"logging"}),
            ("from fastserve._reactor cimport (\n    Reactor, Slot,\n)", {"fastserve._reactor"}),
            ("from fastserve cimport _reactor, _http1 as h",
             {"fastserve._reactor", "fastserve._http1"}),
            ("from . cimport _buffer", {".._buffer"}),
            ("from ._buffer cimport SendBuffer", {"._buffer"}),
            ("from fastserve \\\n    cimport config", {"fastserve.config"}),
            ('"""from a import b\nimport c\n"""\n# import d\n', set()),
            ("x = 'import a'; s = \"it's\"\nimport b", {"b"}),
        ],
    )  # fmt: skip
    def test_cython_imports(self, text: str, expected: set[str]) -> None:
        assert set(cython_imports(text)) == expected

    @pytest.mark.parametrize(
        "text, expected",
        [
            ("def f():\n    if 1:\n        import asyncio.events", {"asyncio.events"}),
            ("from fastserve import config", {"fastserve.config"}),
            ("from fastserve import __version__", {"fastserve"}),
            ("from . import server", {"fastserve.server"}),
            ("from .server import run", {"fastserve.server"}),
            ("from fastserve.server import run", {"fastserve.server"}),
        ],
    )
    def test_python_imports(self, text: str, expected: set[str]) -> None:
        assert set(python_imports(text, "cli")) == expected

    @pytest.mark.parametrize(
        "text, expected",
        [
            ("cdef list spare = []", {"spare"}),
            ("cdef dict cache", {"cache"}),
            ("cdef bytearray scratch = bytearray(10)", {"scratch"}),
            ("cdef object anything = make()", {"anything"}),
            ("cdef char[64] line", {"line"}),
            ("cdef char line[64]", {"line"}),
            ("cdef char* block", {"block"}),
            ("cdef char *block = NULL", {"block"}),
            ("cdef:\n    list one\n    char[8] two\n", {"one", "two"}),
            ("cache = {}", {"cache"}),
            ("cache: dict[str, int] = dict()", {"cache"}),
            ("cdef const char* days = 0", set()),
            ("cdef const char[3] days", set()),
            ("cdef tuple lines = tuple([f(n) for n in range(3)])", set()),
            ("cdef frozenset names = frozenset((1, 2))", set()),
            ("cdef str TYPE = 1", set()),
            ("cdef int f(char* line):\n    cdef char[64] local\n    cdef list x = []", set()),
            ("cdef class A:\n    cdef list x\n", set()),
        ],
    )
    def test_mutable_globals(self, text: str, expected: set[str]) -> None:
        assert set(mutable_globals(text)) == expected

    def test_writers(self) -> None:
        code = (
            "cdef char[4] T\n"
            "cdef int fill() except -1:\n    T[0] = 1\n"
            "cdef int read(int x):\n    return T[x] == 1\n"
            "cdef class A:\n    cdef int method(self):\n        T[1] |= 2\n"
            "memcpy(T, x, 4)\n"
        )
        assert writers(code, {"T"}) == {"fill", "A", ""}
