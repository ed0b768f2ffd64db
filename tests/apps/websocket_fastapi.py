"""FastAPI's side of each WebSocket conversation that the tests have with a framework."""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Depends, FastAPI, WebSocket, WebSocketDisconnect, WebSocketException
from fastapi.responses import JSONResponse

app = FastAPI()


@app.websocket("/echo")
async def echo(socket: WebSocket) -> None:
    await socket.accept()
    while (message := await socket.receive())["type"] == "websocket.receive":
        if (text := message.get("text")) is not None:
            await socket.send_text(text)
        else:
            await socket.send_bytes(message["bytes"])
    print(f"closed {message['code']} {message.get('reason')}", flush=True)


@app.websocket("/choose")
async def choose(socket: WebSocket) -> None:
    """The last protocol that was offered, and fields of its own."""
    protocols = socket.scope["subprotocols"]
    await socket.accept(
        subprotocol=protocols[-1] if protocols else None,
        headers=[(b"x-greeting", b"hello"), (b"set-cookie", b"a=1"), (b"set-cookie", b"b=2")],
    )
    await socket.send_json({"offered": protocols})
    await socket.close()


@app.websocket("/leave")
async def leave(socket: WebSocket) -> None:
    await socket.accept()
    raise WebSocketException(4001, "genug für heute")


@app.websocket("/refuse")
async def refuse(socket: WebSocket) -> None:
    raise WebSocketException(4003, "nobody sees this")


@app.websocket("/deny")
async def deny(socket: WebSocket) -> None:
    response = JSONResponse({"owed": 5}, status_code=402, headers={"x-reason": "money"})
    await socket.send_denial_response(response)


@app.websocket("/fail")
async def fail(socket: WebSocket, who: str) -> None:
    await socket.accept()
    raise ArithmeticError(f"miscounted for {who}")


async def resource(who: str) -> AsyncIterator[str]:
    try:
        yield "open"
    except WebSocketDisconnect as error:
        print(f"closed with {error.code} for {who}", flush=True)
        raise


@app.websocket("/items/{number}")
async def item(socket: WebSocket, number: int, resource: Annotated[str, Depends(resource)]) -> None:
    """Until the client leaves: the exception goes to the dependency, and to FastAPI."""
    await socket.accept()
    await socket.send_json({"number": number, "resource": resource})
    await socket.receive_text()
