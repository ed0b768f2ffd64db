"""The applications that every server is measured with: ASGI 3, nothing clever.

None takes part in the lifespan protocol; raising is how an application says so.
"""

import os
import time
from pathlib import Path

HELLO = b"Hello, world!"
HELLO_HEADERS = [(b"content-type", b"text/plain"), (b"content-length", b"13")]

# Of a file, for a server that cannot send one itself.
PIECE = 256 * 1024

BODY = bytes(range(256)) * 1024
CHUNK, CHUNKS = bytes(range(256)) * 64, 64

# The send() of each connection that listens to what is broadcast.
LISTENERS = set()


async def plaintext(scope, receive, send):
    """Thirteen bytes, whatever is asked."""
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": HELLO_HEADERS})
    await send({"type": "http.response.body", "body": HELLO})


async def worker(scope, receive, send):
    """Which process answers. /block/SECONDS keeps it from doing anything else for so long."""
    assert scope["type"] == "http"
    if scope["path"].startswith("/block/"):
        time.sleep(float(scope["path"].removeprefix("/block/")))
    body = b"%d" % os.getpid()
    length = (b"content-length", b"%d" % len(body))
    await send({"type": "http.response.start", "status": 200, "headers": [length]})
    await send({"type": "http.response.body", "body": body})


async def echo(scope, receive, send):
    """Collect the whole body, then answer with it."""
    assert scope["type"] == "http"
    body = b""
    while True:
        event = await receive()
        if event["type"] == "http.disconnect":
            return
        body += event.get("body", b"")
        if not event.get("more_body", False):
            break
    headers = [
        (b"content-type", b"application/octet-stream"),
        (b"content-length", b"%d" % len(body)),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def body(scope, receive, send):
    """256 KiB in one piece."""
    assert scope["type"] == "http"
    length = (b"content-length", b"%d" % len(BODY))
    await send({"type": "http.response.start", "status": 200, "headers": [length]})
    await send({"type": "http.response.body", "body": BODY})


async def streamed(scope, receive, send):
    """1 MiB in pieces of 16 KiB, of a length that is not told before."""
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for _ in range(CHUNKS):
        await send({"type": "http.response.body", "body": CHUNK, "more_body": True})
    await send({"type": "http.response.body"})


async def upload(scope, receive, send):
    """Read the whole body, and keep none of it; answer with its length."""
    assert scope["type"] == "http"
    size = 0
    more = True
    while more:
        event = await receive()
        if event["type"] == "http.disconnect":
            return
        size += len(event.get("body", b""))
        more = event.get("more_body", False)
    answer = b"%d" % size
    length = (b"content-length", b"%d" % len(answer))
    await send({"type": "http.response.start", "status": 200, "headers": [length]})
    await send({"type": "http.response.body", "body": answer})


async def file(scope, receive, send):
    """The file beside this one that is asked for; the server sends it, if it can."""
    assert scope["type"] == "http"
    path = Path(__file__).with_name(scope["path"].removeprefix("/"))
    length = (b"content-length", b"%d" % path.stat().st_size)
    await send({"type": "http.response.start", "status": 200, "headers": [length]})
    if "http.response.pathsend" in scope.get("extensions", {}):
        await send({"type": "http.response.pathsend", "path": str(path)})
        return
    with path.open("rb", buffering=0) as opened:
        while piece := opened.read(PIECE):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body"})


async def websocket_echo(scope, receive, send):
    """Every text message is sent back."""
    assert scope["type"] == "websocket"
    await receive()
    await send({"type": "websocket.accept"})
    while True:
        event = await receive()
        if event["type"] == "websocket.disconnect":
            return
        await send({"type": "websocket.send", "text": event["text"]})


async def broadcast(scope, receive, send):
    """What the connection to /speak says goes to every other one, and at last back to it."""
    assert scope["type"] == "websocket"
    await receive()
    if scope["path"] == "/speak":
        await send({"type": "websocket.accept"})
        await _speak(receive, send)
        return
    # Before accepting: a client may have all its connections before this task goes on.
    LISTENERS.add(send)
    try:
        await send({"type": "websocket.accept"})
        await receive()  # a listener says nothing; this is its end
    finally:
        LISTENERS.discard(send)


async def _speak(receive, send):
    while True:
        event = await receive()
        if event["type"] == "websocket.disconnect":
            return
        text = event["text"]
        for listener in tuple(LISTENERS):
            await listener({"type": "websocket.send", "text": text})
        await send({"type": "websocket.send", "text": text})
