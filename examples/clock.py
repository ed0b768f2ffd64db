"""What time is it? An ASGI 2 application, a class, that asks a clock on the web.

    pip install 'fastserve-asgi[trio]' httpx
    fastserve -k trio examples.clock:App

`/` is the time, any other path is not found. httpx takes the event loop it is
called in, so the same class runs under every worker. CLOCK_API_URL names
another clock: an address that answers with JSON and has the time in one of TIME_KEYS.
"""

import os
from collections.abc import Awaitable, Callable
from typing import Any

import httpx

CLOCK_API_URL = os.environ.get(
    "CLOCK_API_URL", "https://timeapi.io/api/time/current/zone?timeZone=UTC"
)

# Public clocks come and go, and each has its own word for it.
TIME_KEYS = ("dateTime", "currentDateTime", "utc_datetime", "datetime")

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class ClockError(Exception):
    """The clock gave no time."""


class App:
    """Made for each scope, then awaited with that scope's receive and send."""

    def __init__(self, scope: dict[str, Any]) -> None:
        self.scope = scope

    async def __call__(self, receive: Receive, send: Send) -> None:
        if self.scope["type"] == "lifespan":
            await self.live(receive, send)
        elif self.scope["type"] == "http":
            await self.answer(receive, send)
        else:
            raise NotImplementedError(self.scope["type"])

    async def live(self, receive: Receive, send: Send) -> None:
        """One HTTP client from start-up to shutdown: its connections are used again."""
        await receive()
        async with httpx.AsyncClient(timeout=5, follow_redirects=True) as client:
            self.scope["state"]["client"] = client
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})

    async def answer(self, receive: Receive, send: Send) -> None:
        while (message := await receive())["type"] == "http.request":
            if not message.get("more_body", False):
                break
        else:
            return  # the client is gone
        if self.scope["path"] != "/":
            await respond(send, 404, "Not found.\n")
            return
        try:
            await respond(send, 200, f"{await self.time()}\n")
        except ClockError as error:
            await respond(send, 502, f"The clock does not answer: {error}\n")

    async def time(self) -> str:
        try:
            return time_in(await self.scope["state"]["client"].get(CLOCK_API_URL))
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ClockError(type(error).__name__) from error


def time_in(response: httpx.Response) -> str:
    if response.is_error:
        raise ClockError(f"status {response.status_code}")
    try:
        facts = response.json()
    except ValueError:
        raise ClockError("no JSON") from None
    for key in TIME_KEYS:
        if isinstance(facts, dict) and isinstance(facts.get(key), str):
            return str(facts[key])
    raise ClockError("no time in the JSON")


async def respond(send: Send, status: int, text: str) -> None:
    body = text.encode()
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [
                (b"content-type", b"text/plain; charset=utf-8"),
                (b"content-length", b"%d" % len(body)),
            ],
        }
    )
    await send({"type": "http.response.body", "body": body})
