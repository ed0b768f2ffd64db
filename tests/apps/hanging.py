"""An application whose start-up never ends."""

from typing import Any

import anyio


async def app(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    print("startup", flush=True)
    try:
        await anyio.sleep_forever()
    finally:
        print("cancelled", flush=True)
