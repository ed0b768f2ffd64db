"""The places that options come from: flags, the environment, files, Python objects.

A source is a mapping from names to values as they were found, and knows how such a
name is spelled in its place, for messages. Which names there are, and what their
values must be, is Config's to know.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar

from fastserve.checks import ConfigError, one_line

__all__ = [
    "Environment",
    "File",
    "Flags",
    "Source",
    "read",
    "read_object",
    "read_pyfile",
    "read_toml",
]

PREFIX = "FASTSERVE_"


@dataclass(frozen=True)
class Source:
    """What was given in one place; here by keyword, from Python."""

    values: Mapping[str, Any]

    # Whether a name that nobody knows is only worth a warning.
    is_shared: ClassVar[bool] = False
    # Whether it is the flags themselves that are written there.
    has_flags: ClassVar[bool] = False
    # Whether all values of a repeatable option are in one text.
    is_text: ClassVar[bool] = False

    def label(self, name: str, flag: str) -> str:
        """How a message names what was given; `flag` is empty where there is none."""
        return flag or name

    def spelled(self, name: str) -> str:
        """How the name would have to be written in this place."""
        return name

    def origin(self, name: str, flag: str) -> str:
        """Where a value comes from, for whoever asks later."""
        return "keyword"


class Flags(Source):
    """The command line."""

    has_flags = True

    def origin(self, name: str, flag: str) -> str:
        return flag or "command line"


class Environment(Source):
    """The variables that begin with FASTSERVE_; an empty one counts as not given.

    They are no one program's own: for a service called fastserve Kubernetes and Docker
    set FASTSERVE_SERVICE_HOST and the like in every container. So an unknown one is no
    error, and FASTSERVE_PORT=tcp://10.0.0.1:80 is not for us.
    """

    is_shared = True
    is_text = True

    def __init__(self, environ: Mapping[str, str]) -> None:
        super().__init__(
            {
                variable.removeprefix(PREFIX).lower(): value
                for variable, value in environ.items()
                if variable.startswith(PREFIX) and variable.isupper()
                if value and not re.match("(?:tcp|udp)://", value)
            }
        )

    def label(self, name: str, flag: str) -> str:
        return self.spelled(name)

    def spelled(self, name: str) -> str:
        return f"{PREFIX}{name.upper()}"

    def origin(self, name: str, flag: str) -> str:
        return self.spelled(name)


@dataclass(frozen=True)
class File(Source):
    """A file, or a Python object: whatever has a name."""

    where: str

    def label(self, name: str, flag: str) -> str:
        return f"{name} in {self.where}"

    def origin(self, name: str, flag: str) -> str:
        return self.where


def read(place: str) -> File:
    """What `--config` names: a TOML file, `file:` and a Python file, or `python:` and a
    module. Raises ConfigError."""
    kind, _, rest = place.partition(":")
    if kind == "file":
        return read_pyfile(rest)
    if kind == "python":
        # Hypercorn's first releases had the file's path here.
        return read_pyfile(rest) if rest.endswith(".py") or "/" in rest else read_object(rest)
    return read_toml(place)


def read_toml(path: str | os.PathLike[str]) -> File:
    where = os.fspath(path)
    try:
        with open(path, "rb") as file:
            values = tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"{where}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{where}: not TOML: {error}") from None
    return File({key.replace("-", "_"): value for key, value in values.items()}, where)


def read_pyfile(path: str | os.PathLike[str]) -> File:
    """The names that the file has when it has been run."""
    where = os.fspath(path)
    module = ModuleType("fastserve_config")
    module.__file__ = where
    try:
        with open(path, "rb") as file:
            code = file.read()
    except OSError as error:
        raise ConfigError(f"{where}: {error.strerror or error}") from None
    try:
        exec(compile(code, where, "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        raise _failed(where, error) from error
    return File(_options_of(module), where)


def read_object(target: object | str) -> File:
    """A module or another object, or the name of one: `package.module` or
    `package.module.attribute`."""
    if isinstance(target, str):
        return File(_options_of(_find(target)), target)
    return File(_options_of(target), getattr(target, "__name__", type(target).__name__))


def _find(name: str) -> object:
    with _current_folder():
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            missing = error.name or ""
            parent, _, attribute = name.rpartition(".")
            if missing == name and parent:
                found = _find(parent)
                if hasattr(found, attribute):
                    return getattr(found, attribute)
            if missing == name or name.startswith(f"{missing}."):
                raise ConfigError(f"{name}: there is no module {missing!r}") from None
            raise _failed(name, error) from error
        except (Exception, SystemExit) as error:
            if isinstance(error, ConfigError):
                raise
            raise _failed(name, error) from error


@contextmanager
def _current_folder() -> Iterator[None]:
    """The console script's path begins with its own folder, where nobody's files are."""
    folder = os.getcwd()
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _failed(where: str, error: BaseException) -> ConfigError:
    """The one line for an error in somebody's Python."""
    line = ""
    traceback = error.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == where:
            line = f" (line {traceback.tb_lineno})"
        traceback = traceback.tb_next
    return ConfigError(f"{where}: {one_line(error)}{line}")


def _options_of(holder: object) -> dict[str, Any]:
    """Its attributes, but for those that no option can be: what is private, in capitals,
    imported or defined with `def` or `class`."""
    return {
        name: value
        for name, value in inspect.getmembers_static(holder)
        if not name.startswith("_") and not name.isupper()
        if not isinstance(value, ModuleType | staticmethod | classmethod | property)
        if not callable(value) and type(value).__module__ != "__future__"
    }
