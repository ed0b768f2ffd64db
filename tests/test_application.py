"""Finding an application, and telling ASGI 3, ASGI 2 and WSGI apart."""

import asyncio
import functools
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fastserve.application import ApplicationError, Asgi2Adapter, load
from fastserve.config import Config, ConfigError
from fastserve.wsgi import WSGI


@pytest.fixture(autouse=True)
def clean_imports(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The modules and the path that a test brings in are gone after it."""
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.fixture
def app_dir(tmp_path: Path) -> Path:
    (tmp_path / "single.py").write_text(
        "async def app(scope, receive, send): pass\n"
        "class Holder:\n"
        "    inner = app\n"
        "number = 3\n"
        "def make(): return app\n"
    )
    return tmp_path


def find(target: str, app_dir: Path, **options: Any) -> Any:
    return load(target, Config(app_dir=str(app_dir), **options))


def run(app: Callable[..., Any]) -> dict[str, Any]:
    """What an application leaves in a scope when it is called as ASGI 3."""
    scope: dict[str, Any] = {"type": "http"}

    async def receive() -> dict[str, Any]:
        return {"type": "http.request"}

    async def send(message: dict[str, Any]) -> None:
        scope["sent"] = message

    async def main() -> None:
        await app(scope, receive, send)

    asyncio.run(main())
    return scope


def test_an_attribute_of_a_module(app_dir: Path) -> None:
    app = find("single:app", app_dir)
    assert app is sys.modules["single"].app
    assert sys.path[0] == str(app_dir)


def test_an_attribute_of_an_attribute(app_dir: Path) -> None:
    assert find("single:Holder.inner", app_dir) is sys.modules["single"].app


def test_a_module_in_a_package(app_dir: Path) -> None:
    package = app_dir / "package" / "inner"
    package.mkdir(parents=True)
    (package / "web.py").write_text("async def app(scope, receive, send): pass\n")
    assert find("package.inner.web:app", app_dir).__module__ == "package.inner.web"


def test_the_app_dir_is_put_first_once(app_dir: Path) -> None:
    find("single:app", app_dir)
    find("single:app", app_dir)
    assert sys.path.count(str(app_dir)) == 1


def test_a_relative_app_dir_is_made_absolute(
    app_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(app_dir)
    assert load("single:app", Config()) is sys.modules["single"].app
    assert sys.path[0] == str(app_dir)


def test_a_missing_app_dir(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="^--app-dir: .*not a directory"):
        find("single:app", tmp_path / "missing")


@pytest.mark.parametrize(
    ("target", "hint"),
    [
        ("single", "(did you mean single:app?)"),
        ("single:", "(did you mean single:app?)"),
        ("single.py", "(did you mean single:app?)"),
        ("./a/single.py:web", "(did you mean a.single:web?)"),
        ("", ""),
        (":app", ""),
        ("..single:app", ""),
        ("single:app()", ""),
        ("single:app:app", ""),
    ],
)
def test_a_target_of_another_form(app_dir: Path, target: str, hint: str) -> None:
    with pytest.raises(ApplicationError, match="is not of the form module:attr") as caught:
        find(target, app_dir)
    assert str(caught.value).endswith(hint)
    assert ("did you mean" in str(caught.value)) is bool(hint)


@pytest.mark.parametrize(
    ("target", "missing"),
    [("nowhere:app", "nowhere"), ("nowhere.web:app", "nowhere"), ("single.web:app", "single.web")],
)
def test_a_missing_module_is_no_error_of_the_application(
    app_dir: Path, target: str, missing: str
) -> None:
    with pytest.raises(ApplicationError, match=f"^there is no module '{missing}'$") as caught:
        find(target, app_dir)
    assert caught.value.__cause__ is None


def test_a_file_with_an_attribute(app_dir: Path) -> None:
    with pytest.raises(ApplicationError, match=r"\(did you mean single:web\?\)$"):
        find("single.py:web", app_dir)


def test_a_missing_attribute_suggests_the_nearest(app_dir: Path) -> None:
    with pytest.raises(
        ApplicationError, match=r"^single has no attribute 'apq' \(did you mean 'app'\?\)$"
    ) as caught:
        find("single:apq", app_dir)
    assert caught.value.__cause__ is None
    with pytest.raises(ApplicationError, match=r"^single.Holder has no attribute 'zzz'$"):
        find("single:Holder.zzz", app_dir)


@pytest.mark.parametrize(
    ("source", "line"),
    [
        (
            "import nothing_of_the_kind",
            "ModuleNotFoundError: No module named 'nothing_of_the_kind'",
        ),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("raise SystemExit", "SystemExit"),
        ("raise ValueError('two\\nlines')", "ValueError: two lines"),
        ("def (", "SyntaxError: "),
    ],
)
def test_an_error_inside_the_module_is_kept(app_dir: Path, source: str, line: str) -> None:
    (app_dir / "broken.py").write_text(source)
    with pytest.raises(ApplicationError, match="^module 'broken' cannot be imported: ") as caught:
        find("broken:app", app_dir)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)
    cause = caught.value.__cause__
    assert cause is not None
    files = [frame.filename for frame in traceback.extract_tb(cause.__traceback__)]
    assert files[:1] in ([str(app_dir / "broken.py")], [])
    assert str(app_dir / "broken.py") in "".join(traceback.format_exception(cause))


def test_a_factory(app_dir: Path) -> None:
    assert find("single:make", app_dir, factory=True) is sys.modules["single"].app


def test_a_factory_given_as_an_object() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None: ...

    assert load(lambda: app, Config(factory=True)) is app


def test_a_factory_without_the_option_is_recognised(app_dir: Path) -> None:
    with pytest.raises(ApplicationError, match="--factory"):
        find("single:make", app_dir)


def test_what_is_no_factory(app_dir: Path) -> None:
    with pytest.raises(ApplicationError, match="^single:app cannot be called without"):
        find("single:app", app_dir, factory=True)
    with pytest.raises(ApplicationError, match="^single:number cannot be called"):
        find("single:number", app_dir, factory=True)

    async def make() -> None: ...

    with pytest.raises(ApplicationError, match="coroutine function"):
        load(make, Config(factory=True))


def test_a_factory_that_raises_keeps_its_error() -> None:
    def make() -> None:
        raise KeyError("setting")

    with pytest.raises(ApplicationError, match="^factory .*make failed: KeyError") as caught:
        load(make, Config(factory=True))
    cause = caught.value.__cause__
    assert isinstance(cause, KeyError)
    assert traceback.extract_tb(cause.__traceback__)[0].name == "make"


def test_a_factory_that_makes_no_application() -> None:
    with pytest.raises(ApplicationError, match="its type is NoneType"):
        load(lambda: None, Config(factory=True))


@pytest.mark.parametrize("target", [None, 3, object(), ["app"]])
def test_what_cannot_be_called(target: object) -> None:
    with pytest.raises(ApplicationError, match=f"its type is {type(target).__name__}"):
        load(target, Config())


# ASGI 3 applications. Each leaves its name in the scope.


async def function(scope: Any, receive: Any, send: Any) -> None:
    scope["by"] = "function"


async def function_with_more(scope: Any, receive: Any, send: Any, by: str = "default") -> None:
    scope["by"] = by


async def function_after_one(by: str, scope: Any, receive: Any, send: Any) -> None:
    scope["by"] = by


def plain_function(scope: Any, receive: Any, send: Any) -> Any:
    return function(scope, receive, send)


def any_arguments(*arguments: Any) -> Any:
    return function(*arguments)


class Instance:
    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        scope["by"] = "instance"

    async def method(self, scope: Any, receive: Any, send: Any) -> None:
        scope["by"] = "method"


class PlainInstance:
    def __call__(self, scope: Any, receive: Any, send: Any) -> Any:
        return function(scope, receive, send)


class Awaitable:
    """A class that is called with all three and is awaited itself."""

    def __init__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scope = scope

    def __await__(self) -> Any:
        self.scope["by"] = "awaitable"
        return iter(())


def middleware(app: Any) -> Any:
    @functools.wraps(app)
    async def wrapper(*arguments: Any) -> None:
        await app(*arguments)

    return wrapper


@pytest.mark.parametrize(
    ("app", "by"),
    [
        (function, "function"),
        (function_with_more, "default"),
        (functools.partial(function_after_one, "partial"), "partial"),
        (functools.partial(functools.partial(function_after_one), "twice"), "twice"),
        (functools.partial(function_with_more, by="keyword"), "keyword"),
        (plain_function, "function"),
        (any_arguments, "function"),
        (lambda *arguments: function(*arguments), "function"),
        (Instance(), "instance"),
        (Instance().method, "method"),
        (PlainInstance(), "function"),
        (functools.partial(Instance()), "instance"),
        (Awaitable, "awaitable"),
        (middleware(function), "function"),
    ],
)
def test_asgi_3_is_left_as_it_is(app: Any, by: str) -> None:
    assert load(app, Config()) is app
    assert run(app)["by"] == by


# ASGI 2 applications.


class Double:
    def __init__(self, scope: Any) -> None:
        self.scope = scope

    async def __call__(self, receive: Any, send: Any) -> None:
        self.scope["got"] = await receive()
        await send({"type": "reply"})


class DoubleWithMore(Double):
    def __init__(self, scope: Any, more: int = 0) -> None:
        super().__init__(scope)


class DoubleAfterOne(Double):
    def __init__(self, one: int, scope: Any) -> None:
        super().__init__(scope)


class Maker:
    def __call__(self, scope: Any) -> Double:
        return Double(scope)

    def method(self, scope: Any) -> Double:
        return Double(scope)


def double_function(scope: Any) -> Any:
    return Double(scope)


def marked(*arguments: Any) -> Any:
    return Double(*arguments)


marked._asgi_double_callable = True  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "app",
    [
        Double,
        DoubleWithMore,
        functools.partial(DoubleAfterOne, 1),
        Maker(),
        Maker().method,
        double_function,
        lambda scope: Double(scope),
        functools.partial(double_function),
        marked,
    ],
)
def test_asgi_2_is_wrapped(app: Any) -> None:
    loaded = load(app, Config())
    assert isinstance(loaded, Asgi2Adapter)
    scope = run(loaded)
    assert scope["got"] == {"type": "http.request"}
    assert scope["sent"] == {"type": "reply"}


def test_an_asgi_2_class_by_name(app_dir: Path) -> None:
    (app_dir / "double.py").write_text(
        "class App:\n"
        "    def __init__(self, scope): self.scope = scope\n"
        "    async def __call__(self, receive, send): self.scope['seen'] = True\n"
    )
    assert run(find("double:App", app_dir))["seen"] is True


def test_an_asgi_2_error_comes_out_as_it_is() -> None:
    def app(scope: Any) -> Any:
        raise NotImplementedError(scope["type"])

    with pytest.raises(NotImplementedError, match="http"):
        run(load(app, Config()))


def test_a_marked_single_callable_is_believed() -> None:
    def app(scope: Any) -> None: ...

    app._asgi_single_callable = True  # type: ignore[attr-defined]
    with pytest.raises(ApplicationError, match="scope, receive and send$"):
        load(app, Config())


# WSGI applications.


def wsgi(environ: Any, start_response: Any) -> Any: ...


def wsgi_generator(environ: Any, start_response: Any) -> Any:
    yield b""


def wsgi_after_one(one: int, environ: Any, start_response: Any) -> Any: ...


class WsgiClass:
    """The class of PEP 3333's example: its instance is what is iterated."""

    def __init__(self, environ: Any, start_response: Any) -> None: ...

    def __iter__(self) -> Any: ...


class WsgiInstance:
    def __call__(self, environ: Any, start_response: Any) -> Any: ...

    def method(self, environ: Any, start_response: Any, /) -> Any: ...


@functools.wraps(wsgi)
def wrapped_wsgi(*arguments: Any) -> Any: ...


@pytest.mark.parametrize(
    "app",
    [
        wsgi,
        wsgi_generator,
        lambda environ, start_response: [],
        functools.partial(wsgi_after_one, 1),
        WsgiClass,
        WsgiInstance(),
        WsgiInstance().method,
        wrapped_wsgi,
    ],
)
def test_wsgi_is_wrapped(app: Any) -> None:
    loaded = load(app, Config())
    assert isinstance(loaded, WSGI)
    assert loaded.application is app


def test_what_cannot_be_told_is_asgi_3_unless_said(app_dir: Path) -> None:
    assert load(any_arguments, Config()) is any_arguments
    assert load(any_arguments, Config(interface="asgi3")) is any_arguments
    assert isinstance(load(any_arguments, Config(interface="asgi2")), Asgi2Adapter)
    assert isinstance(load(any_arguments, Config(interface="wsgi")), WSGI)


@pytest.mark.parametrize(
    ("app", "interface", "message"),
    [
        (function, "wsgi", "is no WSGI application: it does not take environ and start_response$"),
        (wsgi, "asgi3", "is no ASGI application: it does not take scope, receive and send$"),
        (wsgi, "asgi2", "is no ASGI 2 application: it does not take scope$"),
        (lambda: None, "wsgi", r"start_response \(if it makes the application, add --factory\)$"),
    ],
)
def test_an_interface_that_it_has_not(app: Any, interface: str, message: str) -> None:
    with pytest.raises(ApplicationError, match=message):
        load(app, Config(interface=interface))


@pytest.fixture
def prefixed(app_dir: Path) -> Path:
    source = "def app(*arguments): pass\ndef two(environ, start_response): pass\n"
    (app_dir / "either.py").write_text(source)
    (app_dir / "wsgi.py").write_text(source)
    return app_dir


def test_a_prefix_names_the_interface(prefixed: Path) -> None:
    assert isinstance(find("wsgi:either:app", prefixed), WSGI)
    assert isinstance(find("wsgi:either:app", prefixed, interface="wsgi"), WSGI)
    assert find("asgi:either:app", prefixed) is sys.modules["either"].app
    assert isinstance(find("asgi:either:app", prefixed, interface="asgi2"), Asgi2Adapter)
    with pytest.raises(ApplicationError, match="is no ASGI application"):
        find("asgi:either:two", prefixed)
    with pytest.raises(ApplicationError, match="is not for the interface asgi3$"):
        find("wsgi:either:app", prefixed, interface="asgi3")


def test_a_module_may_be_called_wsgi(prefixed: Path) -> None:
    assert find("wsgi:app", prefixed) is sys.modules["wsgi"].app
    assert isinstance(find("wsgi:wsgi:two", prefixed), WSGI)


async def one_argument(scope: Any) -> None: ...


async def two_arguments(scope: Any, receive: Any) -> None: ...


class NoArguments:
    async def __call__(self, scope: Any, receive: Any, send: Any) -> None: ...


@pytest.mark.parametrize(
    ("app", "hint"),
    [
        (one_argument, False),
        (two_arguments, False),
        (lambda: None, True),
        (NoArguments, True),
    ],
)
def test_what_takes_other_arguments(app: Any, hint: bool) -> None:
    with pytest.raises(ApplicationError, match="does not take scope, receive and send") as caught:
        load(app, Config())
    assert ("--factory" in str(caught.value)) is hint
