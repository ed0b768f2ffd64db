"""Quart: streams both ways, uploads, and its own start-up and shutdown."""

from collections.abc import AsyncIterator
from typing import Any

from quart import Quart, request

app = Quart(__name__)
state: dict[str, str] = {}


@app.before_serving
async def start() -> None:
    state["greeting"] = "hello"


@app.after_serving
async def stop() -> None:
    print("closed", flush=True)


@app.get("/")
async def home() -> str:
    return f"{state['greeting']} from quart"


@app.post("/echo")
async def echo() -> dict[str, str]:
    return {"method": request.method, "body": (await request.get_data(as_text=True))}


@app.get("/stream")
async def stream() -> Any:
    async def pieces() -> AsyncIterator[bytes]:
        for number in range(100):
            yield b"%d\n" % number

    return pieces(), 200, {"Content-Type": "text/plain"}


@app.post("/count")
async def count() -> str:
    """Reads the body piece by piece."""
    size = 0
    async for piece in request.body:
        size += len(piece)
    return str(size)


@app.post("/upload")
async def upload() -> dict[str, Any]:
    file = (await request.files)["file"]
    content = file.read()
    return {"name": file.filename, "size": len(content), "sum": sum(content)}
