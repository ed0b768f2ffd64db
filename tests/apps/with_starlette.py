"""Starlette: one route for each of its features that leans on the server."""

import contextlib
import os
from collections.abc import AsyncIterator
from typing import Any

import anyio
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles


class Stamp(BaseHTTPMiddleware):
    async def dispatch(self, request: Request, call_next: Any) -> Any:
        response = await call_next(request)
        response.headers["x-stamp"] = "seen"
        return response


async def home(request: Request) -> PlainTextResponse:
    return PlainTextResponse(f"hello from {request.state.where}")


async def echo(request: Request) -> JSONResponse:
    return JSONResponse({"method": request.method, "body": (await request.body()).decode()})


async def stream(request: Request) -> StreamingResponse:
    async def pieces() -> AsyncIterator[str]:
        for number in range(100):
            yield f"{number}\n"

    return StreamingResponse(pieces())


class Endless(StreamingResponse):
    """Says when it has ended. Its generator may end later: where it is not closed but left to the
    collector of garbage, nobody knows when."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            print("the stream has ended", flush=True)


async def endless(request: Request) -> Endless:
    async def pieces() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 1000
            await anyio.sleep(0.001)

    return Endless(pieces())


async def events(request: Request) -> StreamingResponse:
    async def pieces() -> AsyncIterator[str]:
        for number in range(3):
            yield f"data: {number}\n\n"
            await anyio.sleep(0)

    return StreamingResponse(pieces(), media_type="text/event-stream")


async def upload(request: Request) -> JSONResponse:
    async with request.form() as form:
        file: Any = form["file"]
        content = await file.read()
        return JSONResponse(
            {"name": file.filename, "size": len(content), "sum": sum(content), "note": form["note"]}
        )


async def file(request: Request) -> FileResponse:
    assert "http.response.pathsend" in request.scope["extensions"]
    return FileResponse(os.environ["FILES"] + "/" + request.path_params["name"])


async def background(request: Request) -> PlainTextResponse:
    async def later() -> None:
        print("in the background", flush=True)

    return PlainTextResponse("soon", background=BackgroundTask(later))


async def fail(request: Request) -> PlainTextResponse:
    raise ArithmeticError("miscounted")


@contextlib.asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[dict[str, Any]]:
    yield {"where": "starlette"}
    print("closed", flush=True)


ROUTES = [
    Route("/", home),
    Route("/echo", echo, methods=["POST", "PUT"]),
    Route("/stream", stream),
    Route("/endless", endless),
    Route("/events", events),
    Route("/upload", upload, methods=["POST"]),
    Route("/file/{name}", file),
    Mount("/static", StaticFiles(directory=os.environ.get("FILES", "."))),
    Route("/background", background),
    Route("/fail", fail),
]

app = Starlette(routes=ROUTES, lifespan=lifespan, middleware=[Middleware(Stamp)])
# The middleware runs the application in a task of its own; without it, nothing is between.
plain = Starlette(routes=ROUTES, lifespan=lifespan)
