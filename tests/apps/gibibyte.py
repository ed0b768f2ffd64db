"""Streams a gibibyte, or takes one, and says how far it has come."""

import anyio

GIB = 1024**3
PIECE = bytes(64 * 1024)

moved = 0
may_read = anyio.Event()


async def app(scope, receive, send):
    global moved
    if scope["type"] != "http":
        raise RuntimeError("only HTTP")
    await globals()[scope["path"].strip("/")](receive, send)


async def answer(send, body):
    await send({"type": "http.response.start", "status": 200})
    await send({"type": "http.response.body", "body": body})


async def progress(receive, send):
    await answer(send, b"%d" % moved)


async def read(receive, send):
    may_read.set()
    await answer(send, b"")


async def download(receive, send):
    global moved
    await send({"type": "http.response.start", "status": 200})
    for _ in range(GIB // len(PIECE)):
        await send({"type": "http.response.body", "body": PIECE, "more_body": True})
        moved += len(PIECE)
    await send({"type": "http.response.body"})


async def upload(receive, send):
    global moved
    await may_read.wait()
    more_body = True
    while more_body:
        message = await receive()
        moved += len(message["body"])
        more_body = message["more_body"]
    await answer(send, b"%d" % moved)
