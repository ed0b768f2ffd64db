"""Starlette's side of each WebSocket conversation that the tests have with a framework."""

from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket


async def echo(socket: WebSocket) -> None:
    await socket.accept()
    while (message := await socket.receive())["type"] == "websocket.receive":
        if (text := message.get("text")) is not None:
            await socket.send_text(text)
        else:
            await socket.send_bytes(message["bytes"])
    print(f"closed {message['code']} {message.get('reason')}", flush=True)


async def choose(socket: WebSocket) -> None:
    """The last protocol that was offered, and fields of its own."""
    protocols = socket.scope["subprotocols"]
    await socket.accept(
        subprotocol=protocols[-1] if protocols else None,
        headers=[(b"x-greeting", b"hello"), (b"set-cookie", b"a=1"), (b"set-cookie", b"b=2")],
    )
    await socket.send_json({"offered": protocols})
    await socket.close()


async def leave(socket: WebSocket) -> None:
    await socket.accept()
    await socket.close(4001, "genug für heute")


async def refuse(socket: WebSocket) -> None:
    await socket.close(4003, "nobody sees this")


async def deny(socket: WebSocket) -> None:
    response = JSONResponse({"owed": 5}, status_code=402, headers={"x-reason": "money"})
    await socket.send_denial_response(response)


async def fail(socket: WebSocket) -> None:
    await socket.accept()
    raise ArithmeticError(f"miscounted for {socket.query_params['who']}")


app = Starlette(
    routes=[
        WebSocketRoute(f"/{endpoint.__name__}", endpoint)
        for endpoint in (echo, choose, leave, refuse, deny, fail)
    ]
)
