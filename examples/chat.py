"""Rooms to talk in: `/` is the page, `/rooms/<room>?name=<name>` the WebSocket behind it.

    fastserve --app-dir examples chat:app

A text message is told to everyone in the room, and so is who comes and who goes; each
of these is a JSON object with an `event`. One who has read an event says so with an
empty message.

That is what keeps a reader who stalls from stalling the others. This is plain ASGI, on
whatever event loop: a visitor has one task, and it waits for what its client says. So
those who speak send the others what they say, but nobody more than UNREAD_BYTES that
were not acknowledged; a server takes that much without making `send` wait. The rest
waits here until an acknowledgement comes, and whoever falls too far behind leaves the
room. (A client that claims to have read what it has not can hold up those who speak,
until the server's --write-timeout ends it.)

The rooms are in this process; several processes would each have their own.
"""

import contextlib
import json
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

Message = dict[str, Any]
Scope = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Verdict = tuple[int, str]  # a close code and a reason

PAGE = Path(__file__).with_name("chat.html").read_bytes()

LONGEST_NAME = 40  # characters, as LONGEST_TEXT
LONGEST_TEXT = 2000
LARGEST_ROOM = 100
UNREAD_BYTES = 32 * 1024
WAITING_BYTES = 256 * 1024

UNSUPPORTED, POLICY, TOO_BIG, TRY_LATER = 1003, 1008, 1009, 1013


class Visitor:
    """Someone in a room, as the others need to know them."""

    def __init__(self, send: Send) -> None:
        self.send = send
        # The oldest first: events to be sent, and the sizes of those sent and not yet read.
        self.waiting: deque[bytes] = deque()
        self.waiting_bytes = 0
        self.unread: deque[int] = deque()
        self.unread_bytes = 0

    @property
    def is_behind(self) -> bool:
        return self.waiting_bytes > WAITING_BYTES

    async def tell(self, event: bytes) -> None:
        self.waiting.append(event)
        self.waiting_bytes += len(event)
        await self.go_on()

    async def has_read(self) -> None:
        if self.unread:
            self.unread_bytes -= self.unread.popleft()
        await self.go_on()

    async def go_on(self) -> None:
        """Send what may be sent. Several tasks can be in here, each with events of its own."""
        while self.waiting and self.unread_bytes + len(self.waiting[0]) <= UNREAD_BYTES:
            event = self.waiting.popleft()
            self.waiting_bytes -= len(event)
            self.unread.append(len(event))
            self.unread_bytes += len(event)
            # One who is gone is told so by its own receive().
            with contextlib.suppress(OSError):
                await self.send({"type": "websocket.send", "text": event.decode()})


class Room(dict[str, Visitor]):
    """The visitors by their names."""

    def objection(self, name: str) -> Verdict | None:
        """Why nobody can come in by that name."""
        if not 0 < len(name) <= LONGEST_NAME:
            return POLICY, f"a name has 1 to {LONGEST_NAME} characters"
        if name in self:
            return POLICY, "the name is taken"
        if len(self) >= LARGEST_ROOM:
            return TRY_LATER, "the room is full"
        return None

    async def tell(self, what: str, **facts: Any) -> None:
        """Tell everyone who keeps up; the others leave."""
        text = event(what, **facts)
        behind = []
        for name, visitor in list(self.items()):
            if self.get(name) is not visitor:
                continue  # has left while others were told
            if visitor.is_behind:
                del self[name]
                behind.append(name)
            else:
                await visitor.tell(text)
        for name in behind:
            await self.tell("left", name=name)


class Chat:
    def __init__(self) -> None:
        self.rooms: dict[str, Room] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await live(receive, send)
        elif scope["type"] == "http":
            await answer(scope, send)
        elif scope["type"] == "websocket":
            await self.admit(scope, receive, send)
        else:
            raise NotImplementedError(scope["type"])

    async def admit(self, scope: Scope, receive: Receive, send: Send) -> None:
        """From the handshake to the close."""
        await receive()
        place = scope["path"].removeprefix("/rooms/")
        if not place or place == scope["path"]:
            await close(send)  # before it was accepted: the answer is a 403
            return
        await send({"type": "websocket.accept"})
        name = query(scope, "name").strip()
        room = self.rooms.get(place, Room())
        verdict = room.objection(name)
        if verdict is None:
            self.rooms[place] = room
            try:
                verdict = await visit(room, name, receive, send)
            finally:
                if not room and self.rooms.get(place) is room:
                    del self.rooms[place]
        if verdict is not None:
            await close(send, *verdict)


async def visit(room: Room, name: str, receive: Receive, send: Send) -> Verdict | None:
    """From coming in to leaving; why the visitor has to leave, unless it went by itself."""
    present = event("present", names=list(room))
    visitor = room[name] = Visitor(send)
    try:
        await visitor.tell(present)
        await room.tell("joined", name=name)
        return await listen(room, name, visitor, receive)
    finally:
        if room.get(name) is visitor:
            del room[name]
            await room.tell("left", name=name)


async def listen(room: Room, name: str, visitor: Visitor, receive: Receive) -> Verdict | None:
    """Tell the room what the visitor says."""
    while (message := await receive())["type"] == "websocket.receive":
        text = message.get("text")
        if room.get(name) is not visitor:
            return POLICY, "too much was left unread"
        if text is None:
            return UNSUPPORTED, "only text is understood"
        if len(text) > LONGEST_TEXT:
            return TOO_BIG, f"a message has at most {LONGEST_TEXT} characters"
        if text:
            await room.tell("said", name=name, text=text)
        else:
            await visitor.has_read()
    return None


def event(what: str, **facts: Any) -> bytes:
    return json.dumps({"event": what, **facts}, ensure_ascii=False).encode()


async def close(send: Send, code: int = 1000, reason: str = "") -> None:
    await send({"type": "websocket.close", "code": code, "reason": reason})


async def live(receive: Receive, send: Send) -> None:
    """There is nothing to open before the first visitor, or to close after the last."""
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await send({"type": "lifespan.shutdown.complete"})


async def answer(scope: Scope, send: Send) -> None:
    found = scope["path"] == "/" and scope["method"] in ("GET", "HEAD")
    body = PAGE if found else b"Not found.\n"
    kind = b"text/html" if found else b"text/plain"
    await send(
        {
            "type": "http.response.start",
            "status": 200 if found else 404,
            "headers": [
                (b"content-type", kind + b"; charset=utf-8"),
                (b"content-length", b"%d" % len(body)),
            ],
        }
    )
    await send({"type": "http.response.body", "body": body})


def query(scope: Scope, key: str) -> str:
    """The value of a field of the query string; "" if it is not there."""
    fields = parse_qs(str(scope["query_string"], "latin-1"))
    return fields.get(key, [""])[0]


app = Chat()
