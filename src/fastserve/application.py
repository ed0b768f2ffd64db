"""From "module:attr" to an ASGI 3 callable.

Behind a name there is an application, or a factory of one (only with the
option, for nothing tells the two apart for certain). What it takes tells which
kind of application it is, unless the `interface` option does:

* scope, receive and send: ASGI 3. So is whatever takes anything (`*args`, or
  compiled and without a signature), since nothing can be told of it.
* the scope alone, returning what is awaited with the other two: ASGI 2.
* two things, and it is no coroutine function: WSGI.

What comes out of `load` is always called as ASGI 3.

An ApplicationError is one line that names what is wrong. It has a `__cause__`
only when the application's own code raised: then its traceback is worth showing.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any, cast

from fastserve.asgi import ASGI2, ASGI3, Receive, Scope, Send
from fastserve.checks import ConfigError, nearest, one_line
from fastserve.config import Config
from fastserve.wsgi import WSGI

__all__ = ["ApplicationError", "Asgi2Adapter", "load"]


class ApplicationError(Exception):
    """The application cannot be had; `__cause__` is what its own code raised, if it did."""


class Asgi2Adapter:
    """An ASGI 2 application, callable as an ASGI 3 one."""

    __slots__ = ("application",)

    def __init__(self, application: ASGI2) -> None:
        self.application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.application(scope)(receive, send)


def load(target: object | str, config: Config) -> ASGI3:
    """The application behind "module:attr" (or the object itself), made ASGI 3."""
    interface = config.interface
    if isinstance(target, str):
        interface, name = _take_prefix(target, interface)
        found = _find(name, config.app_dir)
    else:
        name = _name_of(target)
        found = target
    if config.factory:
        found = _call_factory(found, name)
    return _as_asgi3(found, name, interface)


def _take_prefix(target: str, interface: str) -> tuple[str, str]:
    """The interface and the name behind "wsgi:module:attr" or "asgi:module:attr"; "wsgi:app"
    is an attribute of the module `wsgi`."""
    prefix, _, name = target.partition(":")
    if prefix not in ("asgi", "wsgi") or ":" not in name:
        return interface, target
    if interface == "auto":
        return prefix, name
    if not interface.startswith(prefix):
        raise ApplicationError(f"{target!r} is not for the interface {interface}")
    return interface, name


def _name_of(target: object) -> str:
    return getattr(target, "__qualname__", None) or repr(target)


def _find(target: str, app_dir: str) -> object:
    module_name, colon, path = target.partition(":")
    attributes = path.split(".")
    if not colon or not all(name.isidentifier() for name in module_name.split(".") + attributes):
        raise ApplicationError(f"{target!r} is not of the form module:attr{_hint(target)}")
    _put_first(app_dir)
    # pkg.py could be a module "py" in a package, so this is a mistake only if it is not found.
    found = _import(module_name, _hint(target) if module_name.endswith(".py") else "")
    where = module_name
    for attribute in attributes:
        try:
            found = getattr(found, attribute)
        except AttributeError:
            hint = nearest(attribute, dir(found), repr)
            raise ApplicationError(f"{where} has no attribute {attribute!r}{hint}") from None
        where = f"{where}.{attribute}"
    return found


def _hint(target: str) -> str:
    """People give the file, with slashes, or leave the attribute away."""
    path, _, attributes = target.partition(":")
    module = os.path.normpath(path).removesuffix(".py").replace(os.sep, ".")
    attributes = attributes or "app"
    if not all(name.isidentifier() for name in f"{module}.{attributes}".split(".")):
        return ""
    return f" (did you mean {module}:{attributes}?)"


def _put_first(app_dir: str) -> None:
    if not os.path.isdir(app_dir):
        raise ConfigError(f"--app-dir: {app_dir!r} is not a directory")
    folder = os.path.abspath(app_dir)
    if sys.path[:1] != [folder]:
        sys.path.insert(0, folder)
        # A finder may remember the folder as it was before a module was put there.
        importlib.invalidate_caches()


def _import(name: str, hint: str) -> object:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if name == missing or name.startswith(f"{missing}."):
            raise ApplicationError(f"there is no module {missing!r}{hint}") from None
        raise _failed(f"module {name!r} cannot be imported", error) from error
    except (Exception, SystemExit) as error:
        raise _failed(f"module {name!r} cannot be imported", error) from error


def _call_factory(factory: object, name: str) -> object:
    if not callable(factory) or not _accepts(factory, 0):
        raise ApplicationError(f"{name} cannot be called without arguments: it is no factory")
    if inspect.iscoroutinefunction(factory):
        raise ApplicationError(f"{name} is a coroutine function; a factory is a plain one")
    try:
        return factory()
    except (Exception, SystemExit) as error:
        raise _failed(f"factory {name} failed", error) from error


def _failed(what: str, error: BaseException) -> ApplicationError:
    """The one line for an error of the application; its traceback begins in their code."""
    error.__traceback__ = _from_their_code(error.__traceback__)
    return ApplicationError(f"{what}: {one_line(error)}")


def _from_their_code(traceback: TracebackType | None) -> TracebackType | None:
    while traceback is not None:
        filename = traceback.tb_frame.f_code.co_filename
        if filename not in (__file__, importlib.__file__) and not filename.startswith("<frozen"):
            break
        traceback = traceback.tb_next
    return traceback


def _as_asgi3(application: object, name: str, interface: str) -> ASGI3:
    """`interface`: the option's value, or "asgi" for either of the two."""
    if not callable(application):
        kind = type(application).__name__
        raise ApplicationError(f"{name} is no application: its type is {kind}")
    if interface == "wsgi" or (interface == "auto" and _is_wsgi(application)):
        _check(application, name, "WSGI", ("environ", "start_response"))
        return WSGI(application)
    if interface == "asgi2" or (interface != "asgi3" and _is_asgi2(application)):
        _check(application, name, "ASGI 2", ("scope",))
        return Asgi2Adapter(cast(ASGI2, application))
    _check(application, name, "ASGI", ("scope", "receive", "send"))
    return cast(ASGI3, application)


def _check(application: Callable[..., Any], name: str, kind: str, takes: tuple[str, ...]) -> None:
    if _accepts(application, len(takes)):
        return
    hint = " (if it makes the application, add --factory)" if _accepts(application, 0) else ""
    arguments = " and ".join(filter(None, (", ".join(takes[:-1]), takes[-1])))
    raise ApplicationError(f"{name} is no {kind} application: it does not take {arguments}{hint}")


def _is_wsgi(application: Callable[..., Any]) -> bool:
    if getattr(application, "_asgi_single_callable", False):
        return False
    return (
        not _is_async(application)
        and _required(application) == 2
        and _accepts(application, 2)
        and not _accepts(application, 3)
    )


def _is_asgi2(application: Callable[..., Any]) -> bool:
    # asgiref's markers: how a wrapper with *args says what it is.
    if getattr(application, "_asgi_single_callable", False):
        return False
    if getattr(application, "_asgi_double_callable", False):
        return True
    if inspect.isclass(application):
        # A class of the three is awaited itself (Starlette's HTTPEndpoint).
        return _accepts(application, 1) and not hasattr(application, "__await__")
    if _is_async(application):
        return False
    return _accepts(application, 1) and _required(application) == 1


def _is_async(application: Callable[..., Any]) -> bool:
    while isinstance(application, functools.partial):
        application = application.func
    return inspect.iscoroutinefunction(application) or (
        not inspect.isclass(application) and inspect.iscoroutinefunction(type(application).__call__)
    )


def _accepts(function: Callable[..., Any], count: int) -> bool:
    """Whether so many positional arguments will do; on doubt they will."""
    try:
        inspect.signature(function).bind(*[None] * count)
    except TypeError:
        return False
    except ValueError:  # compiled, and without a signature
        return True
    return True


def _required(function: Callable[..., Any]) -> int:
    """How many positional parameters have no default; 3 where nothing is known."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return 3
    return sum(
        parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        for parameter in parameters
    )
