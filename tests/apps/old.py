"""The kind of application that Hypercorn 0.4 was announced with: ASGI 2, and it answers
whatever it is asked, on whichever channel."""

from collections.abc import Awaitable, Callable
from typing import Any

Message = dict[str, Any]


class QuickStart:
    """No branch for lifespan at all: it answers that with an HTTP response."""

    def __init__(self, scope: Message) -> None:
        self.scope = scope

    async def __call__(
        self, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
    ) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"quick start"})


class Cleanup:
    """Ends with the event that lifespan.shutdown once was called."""

    def __init__(self, scope: Message) -> None:
        self.scope = scope

    async def __call__(
        self, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
    ) -> None:
        while True:
            event = await receive()
            if event["type"] == "http.request" and not event.get("more_body", False):
                await send({"type": "http.response.start", "status": 200, "headers": []})
                await send({"type": "http.response.body", "body": b"clean"})
            elif event["type"] == "http.disconnect":
                break
            elif event["type"] == "lifespan.startup":
                await send({"type": "lifespan.startup.complete"})
            elif event["type"] == "lifespan.shutdown":
                await send({"type": "lifespan.cleanup.complete"})
                break
