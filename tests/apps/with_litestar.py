"""Litestar: handlers, data, streams, uploads."""

from collections.abc import AsyncIterator
from typing import Annotated, Any

from litestar import Litestar, Request, get, post
from litestar.datastructures import UploadFile
from litestar.enums import RequestEncodingType
from litestar.params import Body
from litestar.response import Stream


@get("/")
async def home() -> str:
    return "hello from litestar"


@get("/items/{number:int}")
async def item(number: int, word: str) -> dict[str, Any]:
    return {"number": number, "word": word}


@post("/echo", status_code=200)
async def echo(request: Request[Any, Any, Any]) -> dict[str, str]:
    return {"method": request.method, "body": (await request.body()).decode()}


@get("/stream", media_type="text/plain")
async def stream() -> Stream:
    async def pieces() -> AsyncIterator[bytes]:
        for number in range(100):
            yield b"%d\n" % number

    return Stream(pieces())


@post("/upload", status_code=200)
async def upload(
    data: Annotated[dict[str, UploadFile], Body(media_type=RequestEncodingType.MULTI_PART)],
) -> dict[str, Any]:
    file = data["file"]
    content = await file.read()
    return {"name": file.filename, "size": len(content), "sum": sum(content)}


async def closed() -> None:
    print("closed", flush=True)


app = Litestar([home, item, echo, stream, upload], on_shutdown=[closed])
