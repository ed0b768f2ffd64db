"""The lifespan conversation: start-up, state, shutdown, and all that goes wrong in them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import pytest
from conftest import PATIENCE, Serve, request, respond
from process import APPS, Process

import fastserve
from fastserve.application import load
from fastserve.server import ServerError

App = Callable[[Any, Any, Any], Any]


def messages(server: Any) -> list[str]:
    return [record.getMessage() for record in server.errors]


def answering(live: App, answer: bytes = b"served") -> App:
    """An application whose lifespan is `live`."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await live(scope, receive, send)
        else:
            await respond(send, answer)

    return app


async def polite(scope: Any, receive: Any, send: Any) -> None:
    assert (await receive())["type"] == "lifespan.startup"
    await send({"type": "lifespan.startup.complete"})
    assert (await receive())["type"] == "lifespan.shutdown"
    await send({"type": "lifespan.shutdown.complete"})


# The conversation.


@pytest.mark.parametrize("lifespan", ["auto", "on"])
def test_the_conversation(serve: Serve, lifespan: str) -> None:
    told: list[Any] = []

    async def live(scope: Any, receive: Any, send: Any) -> None:
        told.append(scope)
        told.append(await receive())
        await send({"type": "lifespan.startup.complete"})
        told.append(await receive())
        await send({"type": "lifespan.shutdown.complete"})

    server = serve(answering(live), lifespan=lifespan)
    scope, startup = told
    assert scope == {
        "type": "lifespan",
        "asgi": {"version": "3.0", "spec_version": "2.0"},
        "state": {},
    }
    assert startup == {"type": "lifespan.startup"}
    with server.connect() as client:
        assert client.get().body == b"served"
    server.stop()
    assert told[2:] == [{"type": "lifespan.shutdown"}]
    assert server.errors == []


def test_off(serve: Serve) -> None:
    scopes: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scopes.append(scope)
        await respond(send)

    server = serve(app, lifespan="off")
    with server.connect() as client:
        client.get()
    server.stop()
    assert [scope["type"] for scope in scopes] == ["http"]
    assert "state" not in scopes[0]


def test_nothing_is_served_before_the_start_is_complete(serve: Serve) -> None:
    """A connection made meanwhile is not refused, and answered afterwards."""
    gate = threading.Event()
    asked = threading.Event()
    order: list[str] = []
    ports: list[int] = []

    async def live(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        asked.set()
        while not gate.is_set():
            await anyio.sleep(0.01)
        order.append("startup")
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await live(scope, receive, send)
            return
        order.append("request")
        await respond(send)

    with socket.create_server(("127.0.0.1", 0)) as free:
        ports.append(free.getsockname()[1])

    def visit() -> None:
        assert asked.wait(PATIENCE)
        with socket.create_connection(("127.0.0.1", ports[0]), PATIENCE) as early:
            early.sendall(request("GET", "/", "Connection: close"))
            gate.set()
            order.append(early.makefile("rb").read()[9:12].decode())

    visitor = threading.Thread(target=visit)
    visitor.start()
    serve(app, bind=f"127.0.0.1:{ports[0]}")
    visitor.join(PATIENCE)
    assert order == ["startup", "request", "200"]


def test_shutdown_comes_after_the_last_connection(serve: Serve) -> None:
    order: list[str] = []
    begun = threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            order.append("shutdown")
            await send({"type": "lifespan.shutdown.complete"})
            return
        begun.set()
        while (await receive())["more_body"]:
            pass
        order.append("request")
        await respond(send)

    server = serve(app)
    with server.connect() as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 2\r\n\r\na")
        assert begun.wait(PATIENCE)
        server.ask_to_stop()
        client.sendall(b"b")
        assert client.read_response().status == 200
    server.stop()
    assert order == ["request", "shutdown"]


# State.


def test_state(serve: Serve) -> None:
    shared: list[int] = []
    seen: list[dict[str, Any]] = []

    async def live(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        scope["state"].update(shared=shared, answer=42)
        await send({"type": "lifespan.startup.complete"})
        await receive()
        seen.append(dict(scope["state"]))
        await send({"type": "lifespan.shutdown.complete"})

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await live(scope, receive, send)
            return
        seen.append(dict(scope["state"]))
        scope["state"]["shared"].append(1)
        scope["state"]["mine"] = True
        scope["state"]["answer"] = 0
        await respond(send)

    server = serve(app)
    with server.connect() as client:
        client.get()
        client.get()
    server.stop()
    # The copy is shallow: keys are each request's own, what they stand for is shared.
    assert seen == [{"shared": shared, "answer": 42}] * 3
    assert seen[0]["shared"] is shared
    assert shared == [1, 1]


async def raises(scope: Any, receive: Any, send: Any) -> None:
    raise NotImplementedError("no lifespan")


async def raises_later(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    raise NotImplementedError("no lifespan")


async def returns(scope: Any, receive: Any, send: Any) -> None:
    """Returns at once, as if everything had been said."""


async def answers_http(scope: Any, receive: Any, send: Any) -> None:
    await respond(send)


@pytest.mark.parametrize("live", [raises, raises_later, returns, answers_http])
def test_an_application_without_lifespan_is_served(serve: Serve, live: App) -> None:
    scopes: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await live(scope, receive, send)
        else:
            scopes.append(scope)
            await respond(send, b"served")

    server = serve(app)
    with server.connect() as client:
        assert client.get().body == b"served"
    server.stop()
    assert "state" not in scopes[0]
    assert server.errors == []


@pytest.mark.parametrize("live", [raises, raises_later, answers_http])
def test_on_insists(serve: Serve, live: App) -> None:
    with pytest.raises(ServerError, match="the application raised on lifespan") as caught:
        serve(answering(live), lifespan="on")
    assert caught.value.exit_status == 3


# Failures.


@pytest.mark.parametrize("lifespan", ["auto", "on"])
@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"message": "no database"}, "no database"),
        ({}, "it gave no reason"),
        ({"message": ""}, "it gave no reason"),
    ],
)
def test_a_failed_startup(serve: Serve, lifespan: str, more: Any, reason: str) -> None:
    async def live(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", **more})

    with pytest.raises(ServerError) as caught:
        serve(answering(live), lifespan=lifespan)
    assert str(caught.value) == f"the application failed to start up: {reason}"
    assert caught.value.exit_status == 3


def test_an_exit_at_startup(serve: Serve) -> None:
    async def live(scope: Any, receive: Any, send: Any) -> None:
        sys.exit(7)

    with pytest.raises(ServerError, match="failed to start up: it called exit\\(7\\)"):
        serve(answering(live))


def test_the_startup_timeout(serve: Serve) -> None:
    events: list[str] = []

    async def live(scope: Any, receive: Any, send: Any) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            events.append("cancelled")

    with pytest.raises(ServerError, match="did not start up within 0.05 s") as caught:
        serve(answering(live), startup_timeout=0.05)
    assert caught.value.exit_status == 3
    assert events == ["cancelled"]


def test_the_shutdown_timeout(serve: Serve) -> None:
    events: list[str] = []

    async def live(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        try:
            await anyio.sleep_forever()
        finally:
            events.append("cancelled")

    server = serve(answering(live), shutdown_timeout=0.05)
    server.stop()
    assert server.failure is None
    assert messages(server) == ["the application did not shut down within 0.05 s"]
    assert events == ["cancelled"]


def test_a_failed_shutdown(serve: Serve) -> None:
    async def live(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.failed", "message": "still dirty"})

    server = serve(answering(live))
    server.stop()
    assert server.failure is None
    assert messages(server) == ["the application failed to shut down: still dirty"]


def test_shutdown_raises(serve: Serve) -> None:
    async def live(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        raise ArithmeticError("miscounted")

    server = serve(answering(live))
    server.stop()
    assert server.failure is None
    assert [str(error) for error in server.exceptions()] == ["miscounted"]


def test_a_crash_after_startup(serve: Serve) -> None:
    """Logged; the requests go on, and nobody is asked to shut down."""
    crash, crashed = threading.Event(), threading.Event()

    async def live(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        try:
            while not crash.is_set():
                await anyio.sleep(0.01)
            raise ArithmeticError("miscounted")
        finally:
            crashed.set()

    server = serve(answering(live))
    with server.connect() as client:
        assert client.get().body == b"served"
        crash.set()
        assert crashed.wait(PATIENCE)
        assert client.get().body == b"served"
    server.stop()
    assert server.failure is None
    assert [str(error) for error in server.exceptions()] == ["miscounted"]


def test_startup_complete_is_sent_twice(serve: Serve) -> None:
    refusals: list[str] = []

    async def live(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        try:
            await send({"type": "lifespan.startup.complete"})
        except RuntimeError as error:
            refusals.append(str(error))
        await receive()
        await send({"type": "lifespan.shutdown.complete"})

    server = serve(answering(live))
    server.stop()
    assert len(refusals) == 1 and "lifespan.startup.complete" in refusals[0]


def test_receive_after_shutdown_does_not_return(serve: Serve) -> None:
    """A loop that only ends by cancellation, as the first Trio applications had."""
    events: list[str] = []

    async def live(scope: Any, receive: Any, send: Any) -> None:
        while True:
            event = await receive()
            events.append(event["type"])
            await send({"type": f"{event['type']}.complete"})

    server = serve(answering(live))
    server.stop()
    assert events == ["lifespan.startup", "lifespan.shutdown"]
    assert server.errors == []


# Applications of another age.


@pytest.mark.parametrize("name", ["QuickStart", "Cleanup"])
def test_asgi_2(serve: Serve, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(APPS))
    import old

    server = serve(load(getattr(old, name), fastserve.Config()))
    with server.connect() as client:
        assert client.get().body == {"QuickStart": b"quick start", "Cleanup": b"clean"}[name]
    server.stop()
    assert server.failure is None
    assert server.errors == []


# What lives as long as the server.


def counting(native: bool, worker: str) -> App:
    """A task that the lifespan starts counts the requests that it is handed."""

    @contextlib.asynccontextmanager
    async def tasks() -> AsyncIterator[Callable[..., object]]:
        if not native:
            async with anyio.create_task_group() as group:
                yield group.start_soon
                group.cancel_scope.cancel()
        elif worker == "trio":
            import trio

            async with trio.open_nursery() as nursery:
                yield nursery.start_soon
                nursery.cancel_scope.cancel()
        else:
            async with asyncio.TaskGroup() as tasks:
                started: list[asyncio.Task[None]] = []

                def start(function: Callable[..., Any], *args: Any) -> None:
                    started.append(tasks.create_task(function(*args)))

                yield start
                for task in started:
                    task.cancel()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await receive()
            writing, reading = anyio.create_memory_object_stream[Any](10)

            async def count() -> None:
                number = 0
                async for reply in reading:
                    number += 1
                    await reply.send(number)

            async with reading, writing, tasks() as start:
                start(count)
                scope["state"]["counter"] = writing
                await send({"type": "lifespan.startup.complete"})
                await receive()
            await send({"type": "lifespan.shutdown.complete"})
        else:
            sending, answers = anyio.create_memory_object_stream[int](1)
            with sending, answers:
                await scope["state"]["counter"].send(sending)
                await respond(send, str(await answers.receive()).encode())

    return app


@pytest.mark.parametrize("native", [True, False], ids=["native", "anyio"])
def test_a_background_task(serve: Serve, worker: str, native: bool) -> None:
    server = serve(counting(native, worker))
    with server.connect() as client:
        assert [client.get().body for _ in range(3)] == [b"1", b"2", b"3"]
    server.stop()
    assert server.failure is None
    assert server.errors == []


def test_a_starlette_lifespan(serve: Serve) -> None:
    """A context manager around `yield`, with an anyio task group open across it."""
    applications = pytest.importorskip("starlette.applications")
    responses = pytest.importorskip("starlette.responses")
    routing = pytest.importorskip("starlette.routing")
    events: list[str] = []

    @contextlib.asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[dict[str, Any]]:
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.sleep_forever)
            events.append("open")
            yield {"greeting": "hello"}
            group.cancel_scope.cancel()
        events.append("closed")

    async def page(request: Any) -> Any:
        return responses.PlainTextResponse(request.state.greeting)

    app = applications.Starlette(routes=[routing.Route("/", page)], lifespan=lifespan)
    server = serve(app)
    with server.connect() as client:
        assert client.get().body == b"hello"
    assert events == ["open"]
    server.stop()
    assert events == ["open", "closed"]
    assert server.errors == []


# In processes.

FAILING = """
import sys
async def app(scope, receive, send):
    await receive()
    await send({"type": "lifespan.startup.failed", "message": "no database"})
import fastserve.cli
sys.modules["failing"] = sys.modules["__main__"]
fastserve.cli.main()
"""


def test_a_failed_startup_ends_the_process(worker: str) -> None:
    server = Process("-k", worker, "-b", "127.0.0.1:0", "failing:app", python=("-c", FAILING))
    try:
        assert server.wait() == 3
        assert server.err.all() == [
            "fastserve: error: the application failed to start up: no database"
        ]
    finally:
        server.end()
