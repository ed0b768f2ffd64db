"""The traps that docs/design.md lists: each was fallen into once, each has its guard.

Several need two things to happen in one batch of the reactor. A request to `/block`
holds the loop's thread until the test lets it go, so that what the clients do meanwhile
is found all at once.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import pytest
from conftest import PATIENCE, Client, Serve, handshake, read_body, request, reset, respond
from process import eventually

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="untouched")


class Block:
    """Holds a server's loop while the clients act."""

    def __init__(self) -> None:
        self.held = threading.Event()
        self.go_on = threading.Event()

    async def __call__(self, send: Any) -> None:
        self.held.set()
        assert self.go_on.wait(PATIENCE)
        await respond(send)

    def hold(self, client: Client) -> None:
        client.sendall(request("GET", "/block"))
        assert self.held.wait(PATIENCE)


def test_a_pipeline_starts_each_application_on_a_fresh_stack_and_context(serve: Serve) -> None:
    count = 3000

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        seen = variable.get()
        variable.set("set by another request")
        await respond(send, f"{scope['path']} {seen}".encode())

    with serve(app).connect() as client:
        pipeline = b"".join(request("GET", f"/{n}") for n in range(count))
        writer = threading.Thread(target=client.sendall, args=(pipeline,))
        writer.start()
        for n in range(count):
            assert client.read_response().body == f"/{n} untouched".encode()
        writer.join()


def test_a_cancelled_receive_that_was_woken_in_the_same_turn_loses_nothing(serve: Serve) -> None:
    block = Block()
    waiting: list[Callable[[], object]] = []

    async def receive_until_cancelled(receive: Any) -> bytes | None:
        """The body that was received all the same; None if it was not."""
        if server.worker == "trio":
            import trio

            with trio.CancelScope() as scope:
                waiting.append(scope.cancel)
                return (await receive())["body"]
            return None
        task = asyncio.ensure_future(receive())
        waiting.append(task.cancel)
        await asyncio.wait([task])
        return None if task.cancelled() else task.result()["body"]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        if scope["path"] == "/block":
            await block(send)
        elif scope["path"] == "/cancel":
            waiting[0]()
            await respond(send)
        else:
            received = await receive_until_cancelled(receive)
            await respond(send, await read_body(receive) if received is None else received)

    server = serve(app)
    with server.connect() as first, server.connect() as second, server.connect() as third:
        body = b"not to be lost"
        first.sendall(f"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n".encode())
        eventually(lambda: bool(waiting))
        block.hold(second)
        first.sendall(body)
        third.sendall(request("GET", "/cancel"))
        block.go_on.set()
        assert third.read_response().status == 200
        assert first.read_response().body == body
    assert server.errors == []


def test_waking_after_a_cancellation_and_twice_does_nothing(serve: Serve) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await receive()
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(receive)
            for _ in range(20):
                with anyio.move_on_after(0):
                    await receive()
            group.cancel_scope.cancel()
        await respond(send, b"still here")
        assert (await receive())["type"] == "http.disconnect"

    server = serve(app)
    with server.connect() as client:
        for _ in range(10):
            assert client.get().body == b"still here"
    assert server.errors == []


def test_waking_in_the_turn_of_a_cancellation_does_nothing(serve: Serve) -> None:
    """The waiter was aborted, but its task has not run since."""
    waiting: list[tuple[Callable[[], object], Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        if scope["path"] == "/cancel":
            cancel, send_for_it = waiting.pop()
            cancel()
            # Completes the other exchange, which wakes whoever is in its receive().
            await send_for_it({"type": "http.response.body", "body": b"ended"})
            await respond(send)
            return
        await receive()
        await send({"type": "http.response.start", "status": 200})
        if server.worker == "trio":
            import trio

            with trio.CancelScope() as scope_:
                waiting.append((scope_.cancel, send))
                await receive()
        else:
            task = asyncio.ensure_future(receive())
            await asyncio.sleep(0)
            waiting.append((task.cancel, send))
            await asyncio.wait([task])

    server = serve(app)
    with server.connect() as first, server.connect() as second:
        for _ in range(3):
            first.sendall(request("GET", "/"))
            eventually(lambda: bool(waiting))
            assert second.get("/cancel").status == 200
            assert first.read_response().body == b"ended"
    assert server.errors == []


def test_the_end_of_a_body_is_told_after_a_pause(serve: Serve) -> None:
    """All of it was parsed but the end, when reading was paused."""
    go_on = threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        if scope["path"] == "/late":
            while not go_on.is_set():
                await anyio.sleep(0.01)
        await respond(send, await read_body(receive))

    server = serve(app)
    with server.connect() as first, server.connect() as second:
        body = bytes(70_000)  # more than one block, and more than is kept
        first.sendall(request("POST", "/late", body=body))
        for _ in range(5):
            # Each turn of the loop that answers this also receives what is there.
            assert second.get("/").status == 200
        go_on.set()
        assert first.read_response().body == body


def test_the_receive_block_is_not_the_exchanges(serve: Serve) -> None:
    """A body and a pipelined request outlive what the reactor receives next."""
    go_on = threading.Event()
    entered = threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        if scope["path"] == "/slow":
            entered.set()
            while not go_on.is_set():
                await anyio.sleep(0.01)
        await respond(send, scope["path"].encode() + await read_body(receive))

    server = serve(app)
    with server.connect() as first, server.connect() as second:
        body = b"a" * 20000
        first.sendall(request("POST", "/slow", body=body) + request("POST", "/next", body=b"b" * 9))
        assert entered.wait(PATIENCE)
        for _ in range(5):
            second.sendall(request("POST", "/other", body=b"x" * 60000))
            assert second.read_response().body == b"/other" + b"x" * 60000
        go_on.set()
        assert first.read_response().body == b"/slow" + body
        assert first.read_response().body == b"/next" + b"b" * 9


def test_a_reset_while_reading_is_paused_ends_the_connection(serve: Serve) -> None:
    """Else the level-triggered event would come for ever, and nobody would see it."""
    full = threading.Event()
    go_on = threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        full.set()
        while not go_on.is_set():
            await anyio.sleep(0.01)
        for _ in range(3):
            assert (await receive())["type"] == "http.disconnect"
        ended.set()

    ended = threading.Event()
    server = serve(app)
    client = server.connect()
    client.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10000000\r\n\r\n")
    client.settimeout(0.3)
    with pytest.raises(TimeoutError):
        client.sendall(bytes(10_000_000))
    assert full.wait(PATIENCE)
    sockets = open_sockets()
    reset(client)
    if server.config.poller == "epoll":
        eventually(lambda: open_sockets() == sockets - 2)
    else:
        # asyncio and trio do not watch a descriptor that nobody wants to read.
        eventually(lambda: open_sockets() == sockets - 1)
    go_on.set()
    if server.config.poller == "epoll":
        assert ended.wait(PATIENCE)


def open_sockets() -> int:
    names = []
    for number in os.listdir("/proc/self/fd"):
        try:
            names.append(os.readlink(f"/proc/self/fd/{number}"))
        except OSError:
            continue
    return sum(name.startswith("socket:") for name in names)


def test_a_stale_event_does_not_hit_the_descriptors_next_owner(serve: Serve) -> None:
    block = Block()
    sends: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        if scope["path"] == "/block":
            await block(send)
        elif scope["path"] == "/stream":
            await send({"type": "http.response.start", "status": 200})
            await send({"type": "http.response.body", "body": b"begun", "more_body": True})
            sends.append(send)
            while (await receive())["type"] != "http.disconnect":
                pass
        else:
            # The peer of that stream is gone: this closes its descriptor, in this batch.
            for _ in range(2):
                await sends[0](
                    {"type": "http.response.body", "body": b"a" * 1000, "more_body": True}
                )
            await respond(send)

    server = serve(app)
    with server.connect() as holder, server.connect() as closer:
        stream = server.connect()
        stream.sendall(request("GET", "/stream"))
        stream.read_until(b"begun")
        block.hold(holder)
        closer.sendall(request("GET", "/close"))
        with server.connect() as newcomer:
            reset(stream)
            block.go_on.set()
            assert closer.read_response().status == 200
            newcomer.sendall(request("GET", "/close"))
            assert newcomer.read_response().status == 200


def test_the_server_stops_while_traffic_keeps_it_busy(serve: Serve) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await respond(send)

    server = serve(app)
    answered = threading.Event()

    def hammer(client: Client) -> None:
        with client:
            while True:
                try:
                    client.sendall(request("GET", "/") * 4)
                    for _ in range(4):
                        client.read_response()
                except (AssertionError, OSError):
                    return
                answered.set()

    clients = [server.connect() for _ in range(4)]
    threads = [threading.Thread(target=hammer, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    assert answered.wait(PATIENCE)
    server.stop()
    for thread in threads:
        thread.join(PATIENCE)
    assert not any(thread.is_alive() for thread in threads)


def test_a_scope_that_an_application_left_open_does_not_reach_the_next(serve: Serve) -> None:
    left_open: list[Any] = []

    async def leave_open() -> Any:
        with anyio.CancelScope() as scope:
            left_open.append(scope)
            yield

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        if scope["path"] == "/leave":
            generator = leave_open()
            left_open.append(generator)
            await generator.__anext__()
        elif scope["path"] == "/cancel":
            for item in left_open:
                if isinstance(item, anyio.CancelScope):
                    item.cancel()
        else:
            await anyio.sleep(0)
        await respond(send, scope["path"].encode())

    server = serve(app)
    with server.connect() as client:
        assert client.get("/leave").body == b"/leave"
        if server.worker != "trio":
            left_open.clear()
        assert client.get("/cancel").body == b"/cancel"
        for _ in range(3):
            assert client.get("/next").body == b"/next"


def test_what_was_sent_leaves_before_the_application_waits(serve: Serve) -> None:
    go_on = threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"first", "more_body": True})
        while not go_on.is_set():
            await anyio.sleep(0.01)
        await send({"type": "http.response.body", "body": b"second", "more_body": True})
        while go_on.is_set():
            await anyio.sleep(0.01)
        await send({"type": "http.response.body", "body": b"third"})

    with serve(app).connect() as client:
        client.sendall(request("GET", "/"))
        assert client.read_until(b"first\r\n")
        go_on.set()
        assert client.read_until(b"second\r\n")
        go_on.clear()
        assert client.read_until(b"third\r\n0\r\n\r\n")


class Truth:
    """A value that is looked at by a call of the application's own."""

    def __init__(self, call: Callable[[], object]) -> None:
        self.call = call

    def __bool__(self) -> bool:
        self.call()
        return False

    def fileno(self) -> int:
        self.call()
        return MODULE.fileno()

    def tell(self) -> int:
        return 0

    def seek(self, place: int) -> int:
        return place


class Content(bytearray):
    call: Callable[[], object]

    def __bytes__(self) -> bytes:
        self.call()
        return b"outer"


def listed(call: Callable[[], object], *members: Any) -> Iterator[Any]:
    call()
    yield from members


def content(call: Callable[[], object]) -> Content:
    made = Content(b"outer")
    made.call = call
    return made


MODULE = open(__file__, "rb")  # noqa: SIM115
START = {"type": "http.response.start", "status": 200, "headers": [], "trailers": True}
BODY = {"type": "http.response.body", "body": b"inner"}
# More than is collected: it leaves at once.
PIECE = {**BODY, "body": bytes(200_000), "more_body": True}
END = {"type": "http.response.trailers"}
ACCEPT = {"type": "websocket.accept"}
SEND = {"type": "websocket.send"}
# What was sent before, the message whose value has a call made when it is looked at, what that
# call sends, and what it sends to a client that is gone, so that this is found out.
NESTED: list[tuple[list[Any], Callable[[Any], Any], list[Any], list[Any]]] = [
    ([], lambda call: {**START, "headers": listed(call)}, [START, BODY, END], [START, PIECE]),
    ([], lambda call: {**START, "trailers": Truth(call)}, [START, BODY, END], [START, PIECE]),
    ([START], lambda call: {**BODY, "more_body": Truth(call)}, [BODY, END], [PIECE]),
    ([START], lambda call: {**BODY, "body": content(call)}, [BODY, END], [PIECE]),
    (
        [START],
        lambda call: {"type": "http.response.zerocopysend", "file": Truth(call)},
        [BODY, END],
        [PIECE],
    ),
    (
        [],
        lambda call: {"type": "http.response.early_hint", "links": listed(call, b"</a>")},
        [START, BODY, END],
        [START, PIECE],
    ),
    ([START, BODY], lambda call: {**END, "headers": listed(call)}, [END], [END]),
    ([START, BODY], lambda call: {**END, "more_trailers": Truth(call)}, [END], [END]),
    ([], lambda call: {**ACCEPT, "headers": listed(call)}, [ACCEPT], [ACCEPT]),
    (
        [ACCEPT],
        lambda call: {**SEND, "bytes": content(call)},
        [{"type": "websocket.close"}],
        [{**SEND, "text": "x"}],
    ),
]


@pytest.mark.parametrize("gone", [False, True], ids=["sends", "finds-nobody"])
@pytest.mark.parametrize("nested", NESTED)
def test_a_message_may_have_the_application_called(serve: Serve, nested: Any, gone: bool) -> None:
    before, message, rest, rest_to_nobody = nested
    inside, go_on, over = threading.Event(), threading.Event(), threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/after":
            await respond(send, b"after")
            return

        def call() -> None:
            inside.set()
            assert go_on.wait(PATIENCE)
            for each in rest_to_nobody if gone else rest:
                send(each)

        await anyio.sleep(0)  # from here on, it is no longer a batch that is answered
        for each in before:
            await send(each)
        try:
            await send(message(call))
        except (OSError, RuntimeError) as error:
            refusals.append(str(error))
        finally:
            over.set()

    refusals: list[str] = []
    server = serve(app, lifespan="off")
    is_websocket = ACCEPT in (rest[0], *before)
    with server.connect() as client:
        opening = handshake("/") if is_websocket else request("GET", "/", "TE: trailers")
        client.sendall(opening)
        assert inside.wait(PATIENCE)
        if gone:
            reset(client)
        go_on.set()
        assert over.wait(PATIENCE)
        if not gone:
            answer = client.read_response(head_only=True)
            assert answer.status == (101 if is_websocket else 200)
    with server.connect() as other:
        assert other.get("/after").body == b"after"
    assert server.errors == []
    allowed = ("websocket.accept was sent already", "the WebSocket is closed")
    assert all(refusal in allowed for refusal in refusals)
