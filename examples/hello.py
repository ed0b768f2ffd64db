"""The smallest useful application: it says hello, and how it was reached.

fastserve --app-dir examples hello:app
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

Message = dict[str, Any]


def worker() -> str:
    """The event loop that runs this."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return "trio"
    return type(loop).__module__.partition(".")[0]


async def live(
    receive: Callable[[], Awaitable[Message]],
    send: Callable[[Message], Awaitable[None]],
) -> None:
    """There is nothing to open before the first request, or to close after the last."""
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await send({"type": "lifespan.shutdown.complete"})


async def app(
    scope: dict[str, Any],
    receive: Callable[[], Awaitable[Message]],
    send: Callable[[Message], Awaitable[None]],
) -> None:
    if scope["type"] == "lifespan":
        await live(receive, send)
        return
    if scope["type"] != "http":
        raise NotImplementedError(scope["type"])
    text = f"Hello from fastserve!\n\nworker: {worker()}\npath:   {scope['path']}\n"
    body = text.encode()
    await send(
        {
            "type": "http.response.start",
            "status": 200,
            "headers": [
                (b"content-type", b"text/plain; charset=utf-8"),
                (b"content-length", b"%d" % len(body)),
            ],
        }
    )
    await send({"type": "http.response.body", "body": body})
