"""Applications whose start-up, or whose shutdown, never ends."""

from typing import Any

import anyio


async def app(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    print("startup", flush=True)
    try:
        await anyio.sleep_forever()
    finally:
        print("cancelled", flush=True)


async def ending(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    print("shutdown", flush=True)
    try:
        await anyio.sleep_forever()
    finally:
        print("cancelled", flush=True)
