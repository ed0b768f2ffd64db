"""FastAPI: validation, dependencies, uploads, streams."""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Depends, FastAPI, UploadFile
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

app = FastAPI()


class Item(BaseModel):
    name: str
    price: float


async def resource() -> AsyncIterator[str]:
    yield "open"
    print("resource closed", flush=True)


@app.get("/items/{number}")
async def item(number: int, word: str = "none") -> dict[str, object]:
    return {"number": number, "word": word}


@app.get("/threaded/{number}")
def threaded(number: int) -> dict[str, int]:
    """A plain function: FastAPI runs it in a thread."""
    return {"number": number}


@app.post("/items", status_code=201)
async def create(item: Item) -> Item:
    return item


@app.get("/resource")
async def use(resource: Annotated[str, Depends(resource)]) -> dict[str, str]:
    return {"resource": resource}


@app.post("/upload")
async def upload(file: UploadFile) -> dict[str, object]:
    content = await file.read()
    return {"name": file.filename, "size": len(content), "sum": sum(content)}


@app.get("/stream")
async def stream() -> StreamingResponse:
    async def pieces() -> AsyncIterator[bytes]:
        for number in range(100):
            yield b"%d\n" % number

    return StreamingResponse(pieces(), media_type="text/plain")
