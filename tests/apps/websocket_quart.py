"""Quart's side of each WebSocket conversation that the tests have with a framework."""

import json
from typing import Any

from quart import Blueprint, Quart, websocket

pages = Blueprint("pages", __name__)


@pages.websocket("/echo")
async def echo() -> None:
    """Quart cancels it when the client closes, and keeps the code and reason to itself."""
    try:
        while True:
            await websocket.send(await websocket.receive())
    finally:
        print(f"cancelled for {websocket.args.get('who')}", flush=True)


@pages.websocket("/choose")
async def choose() -> None:
    """The last protocol that was offered, and fields of its own."""
    protocols = websocket.requested_subprotocols
    headers: Any = [("x-greeting", "hello"), ("set-cookie", "a=1"), ("set-cookie", "b=2")]
    await websocket.accept(headers, protocols[-1] if protocols else None)
    await websocket.send(json.dumps({"offered": protocols}))


@pages.websocket("/leave")
async def leave() -> None:
    await websocket.accept()
    await websocket.close(4001, "genug für heute")


@pages.websocket("/refuse")
async def refuse() -> None:
    await websocket.close(4003, "nobody sees this")


@pages.websocket("/deny")
async def deny() -> tuple[dict[str, int], int, dict[str, str]]:
    return {"owed": 5}, 402, {"x-reason": "money"}


@pages.websocket("/fail")
async def fail() -> None:
    await websocket.accept()
    raise ArithmeticError(f"miscounted for {websocket.args['who']}")


app = Quart(__name__)
app.register_blueprint(pages)
