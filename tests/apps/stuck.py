"""An application that keeps its loop from turning, in several ways."""

import ctypes
import os
import time
from typing import Any

import anyio


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await live(receive, send)
        return
    await PATHS[scope["path"]]()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"%d" % os.getpid()})


async def live(receive: Any, send: Any) -> None:
    """The shutdown takes until the file named by GATE is there."""
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    gate = os.environ.get("GATE", os.devnull)
    while not os.path.exists(gate):
        await anyio.sleep(0.01)
    await send({"type": "lifespan.shutdown.complete"})


async def pid() -> None:
    """The process's id is the answer."""


async def busy() -> None:
    while True:
        pass


async def asleep() -> None:
    time.sleep(600)


async def locked() -> None:
    """In C code that keeps the interpreter's lock."""
    ctypes.PyDLL(None).sleep(600)


async def crash() -> None:
    ctypes.string_at(0)


PATHS = {
    "/pid": pid,
    "/busy": busy,
    "/asleep": asleep,
    "/locked": locked,
    "/crash": crash,
}
