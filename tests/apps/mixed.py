"""One route for each way in which an exchange can go."""

import weakref
from typing import Any

import anyio
from conftest import read_body, respond


class Marker:
    """Has what an application is given, and dies with it."""

    def __init__(self, *given: object) -> None:
        self.given = given


class Application:
    """One route for each way in which an exchange can go."""

    def __init__(self) -> None:
        self.markers: weakref.WeakSet[Marker] = weakref.WeakSet()
        self.calls = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            raise RuntimeError("none")
        self.calls += 1
        marker = Marker(scope, receive, send)
        self.markers.add(marker)
        await getattr(self, scope["path"][1:])(receive, send)

    async def count(self, receive: Any, send: Any) -> None:
        """Calls that there were, and those that there are."""
        await respond(send, b"%d %d" % (self.calls, len(self.markers)))

    async def hello(self, receive: Any, send: Any) -> None:
        await respond(send, b"Hello, world!", headers=((b"x-head", b"v" * 20),))

    async def echo(self, receive: Any, send: Any) -> None:
        await respond(send, await read_body(receive))

    async def stream(self, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for number in range(5):
            body = b"s" * (20_000 if number == 3 else 10)
            await send({"type": "http.response.body", "body": body, "more_body": True})
            await anyio.sleep(0)
        await send({"type": "http.response.body", "body": b""})

    async def big_head(self, receive: Any, send: Any) -> None:
        await respond(send, b"", headers=tuple((b"x-%d" % n, b"v" * 100) for n in range(30)))

    async def fail(self, receive: Any, send: Any) -> None:
        raise ValueError("on purpose")

    async def fail_late(self, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"begun", "more_body": True})
        raise ValueError("on purpose")

    async def bad_head(self, receive: Any, send: Any) -> None:
        await respond(send, b"", headers=((b"x", b"v" * 2000), (b"x", b"a\r\nb")))

    async def bad_message(self, receive: Any, send: Any) -> None:
        try:
            await send({"type": "http.response.body", "body": b"too early"})
        finally:
            await send({"type": "http.response.start", "status": 20})

    async def silent(self, receive: Any, send: Any) -> None:
        pass

    async def unread(self, receive: Any, send: Any) -> None:
        await respond(send, b"no, thank you")

    async def wait(self, receive: Any, send: Any) -> None:
        """Begins to answer, and waits for the client to leave."""
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"begun", "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass

    async def flood(self, receive: Any, send: Any) -> None:
        """Sends more than anybody takes, and a task waits for the client to leave."""

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            group.cancel_scope.cancel()

        await send({"type": "http.response.start", "status": 200, "headers": []})
        async with anyio.create_task_group() as group:
            group.start_soon(watch)
            while True:
                body = b"f" * 65536
                await send({"type": "http.response.body", "body": body, "more_body": True})

    async def socket(self, receive: Any, send: Any) -> None:
        """Accepts and echoes."""
        await receive()
        await send({"type": "websocket.accept", "subprotocol": None, "headers": [(b"a", b"b")]})
        while (message := await receive())["type"] == "websocket.receive":
            await send({**message, "type": "websocket.send"})

    async def socket_closes(self, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await receive()
        await send({"type": "websocket.close", "code": 4000, "reason": "enough"})

    async def socket_fails(self, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})
        await receive()
        raise ValueError("on purpose")

    async def socket_denies(self, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.http.response.start", "status": 401})
        for more in (True, False):
            body = {"type": "websocket.http.response.body", "body": b"no", "more_body": more}
            await send(body)

    async def socket_refuses(self, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.close"})

    async def socket_floods(self, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})
        while True:
            await send({"type": "websocket.send", "bytes": bytes(65536)})

    async def socket_ignores(self, receive: Any, send: Any) -> None:
        """Takes one message of many, and is gone."""
        await send({"type": "websocket.accept"})
        await receive()
        await receive()


app = Application()
