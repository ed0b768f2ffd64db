"""What an application behind a proxy learns of its clients."""

import json
from typing import Any

from served import echo, forever, live, respond


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await live(receive, send)
    elif scope["type"] == "websocket":
        await talk(scope, receive, send)
    elif scope["path"] == "/echo":
        await echo(receive, send)
    elif scope["path"] == "/forever":
        await forever(receive, send)
    else:
        await respond(send, facts(scope).encode())


def facts(scope: Any) -> str:
    found = {key: scope[key] for key in ("client", "scheme", "root_path", "path", "http_version")}
    found["host"] = [value.decode() for name, value in scope["headers"] if name == b"host"]
    return json.dumps(found)


async def talk(scope: Any, receive: Any, send: Any) -> None:
    """The facts first, then everything back."""
    await receive()
    await send({"type": "websocket.accept"})
    await send({"type": "websocket.send", "text": facts(scope)})
    while (message := await receive())["type"] == "websocket.receive":
        await send({**message, "type": "websocket.send"})
