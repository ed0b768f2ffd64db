"""WebSockets in real applications, with real clients: each of the one with each of the other.

The applications are `tests/apps/websocket_*.py`; they all do the same under the same paths.
The clients are four implementations of the protocol, none of them related to the server's.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, NamedTuple, Protocol, cast

import aiohttp
import picows
import pytest
import trio
import websockets.asyncio.client
import wsproto
import wsproto.events
import wsproto.extensions
from conftest import MIB, PATIENCE, WORKERS, skip_without
from process import Process
from websockets.exceptions import ConnectionClosed, InvalidStatus

LOOPS = ["asyncio", "uvloop"]
FRAMEWORKS = {
    "starlette": WORKERS,
    "fastapi": WORKERS,
    "channels": LOOPS,
    "quart": LOOPS,
    "quart_trio": ["trio"],
}
QUARTS = ("quart", "quart_trio")

Data = str | bytes
Fields = list[tuple[str, str]]


class Refused(Exception):
    """The answer to the handshake was not a 101. Not every client waits for its body."""

    def __init__(self, status: int, fields: Fields, body: bytes | None = None) -> None:
        self.status = status
        self.fields = named(fields)
        self.body = body


def named(fields: Fields) -> Fields:
    return [(name.lower(), value) for name, value in fields]


# ------------------------------------------------------------------------ clients


class Conversation(Protocol):
    """What every client can do once it is in."""

    subprotocol: str | None
    fields: Fields
    deflates: bool

    async def send(self, data: Data) -> None: ...
    async def receive(self) -> Data: ...
    async def close(self, code: int, reason: str) -> None: ...
    async def closed(self) -> tuple[int, str]:
        """The server's code and reason; fails if something else comes first."""


class Client(NamedTuple):
    name: str
    open: Callable[[str, Sequence[str]], AbstractAsyncContextManager[Conversation]]
    run: Callable[[Callable[[], Awaitable[None]]], None]
    offers_deflate: bool = True


class WithWebsockets:
    def __init__(self, socket: websockets.asyncio.client.ClientConnection) -> None:
        assert socket.response is not None
        self.socket = socket
        self.subprotocol: str | None = socket.subprotocol
        self.fields = named(list(socket.response.headers.raw_items()))
        self.deflates = bool(socket.protocol.extensions)

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, url: str, subprotocols: Sequence[str]) -> AsyncIterator[Conversation]:
        try:
            async with websockets.asyncio.client.connect(
                url,
                subprotocols=cast(Any, subprotocols) or None,
                max_size=None,
                open_timeout=PATIENCE,
                close_timeout=PATIENCE,
                proxy=None,
            ) as socket:
                yield cls(socket)
        except InvalidStatus as error:
            response = error.response
            fields = list(response.headers.raw_items())
            raise Refused(response.status_code, fields, bytes(response.body)) from None

    async def send(self, data: Data) -> None:
        await self.socket.send(data)

    async def receive(self) -> Data:
        return await self.socket.recv()

    async def close(self, code: int, reason: str) -> None:
        await self.socket.close(code, reason)

    async def closed(self) -> tuple[int, str]:
        with pytest.raises(ConnectionClosed) as caught:
            await self.socket.recv()
        assert caught.value.rcvd is not None, "no close frame came"
        return caught.value.rcvd.code, caught.value.rcvd.reason


class WithAiohttp:
    def __init__(self, socket: aiohttp.ClientWebSocketResponse, fields: Fields) -> None:
        self.socket = socket
        self.subprotocol = socket.protocol
        self.fields = fields
        self.deflates = bool(socket.compress)

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, url: str, subprotocols: Sequence[str]) -> AsyncIterator[Conversation]:
        fields: Fields = []

        async def remember(
            session: aiohttp.ClientSession, context: Any, end: aiohttp.TraceRequestEndParams
        ) -> None:
            fields.extend(named(list(end.response.headers.items())))

        trace = aiohttp.TraceConfig()
        trace.on_request_end.append(remember)
        try:
            async with (
                aiohttp.ClientSession(trace_configs=[trace]) as session,
                session.ws_connect(
                    url,
                    protocols=subprotocols,
                    compress=15,
                    max_msg_size=0,
                    timeout=aiohttp.ClientWSTimeout(ws_close=PATIENCE),
                ) as socket,
            ):
                yield cls(socket, fields)
        except aiohttp.WSServerHandshakeError as error:
            raise Refused(error.status, list((error.headers or {}).items())) from None

    async def send(self, data: Data) -> None:
        await (
            self.socket.send_str(data) if isinstance(data, str) else self.socket.send_bytes(data)
        )

    async def receive(self) -> Data:
        message = await self.socket.receive()
        assert message.type in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY), message
        data: Data = message.data
        return data

    async def close(self, code: int, reason: str) -> None:
        await self.socket.close(code=code, message=reason.encode())

    async def closed(self) -> tuple[int, str]:
        message = await self.socket.receive()
        assert message.type is aiohttp.WSMsgType.CLOSE, message
        return message.data, message.extra or ""


class PicowsListener(picows.WSListener):
    """Frames become whole messages; a close is a tuple of code and reason."""

    def __init__(self) -> None:
        self.messages: asyncio.Queue[Data | tuple[int, str] | None] = asyncio.Queue()
        self.parts: list[bytes] = []
        self.kind = picows.WSMsgType.BINARY

    def on_ws_frame(self, transport: picows.WSTransport, frame: picows.WSFrame) -> None:
        if frame.msg_type == picows.WSMsgType.CLOSE:
            code, reason = cast(Any, frame.get_close_code()), frame.get_close_reason()
            self.messages.put_nowait((int(code), reason or ""))
            transport.send_close(code, reason)
            transport.disconnect()
        elif frame.msg_type not in (picows.WSMsgType.PING, picows.WSMsgType.PONG):
            if frame.msg_type != picows.WSMsgType.CONTINUATION:
                self.kind = frame.msg_type
            self.parts.append(frame.get_payload_as_bytes())
            if frame.fin:
                data = b"".join(self.parts)
                self.parts.clear()
                text = self.kind == picows.WSMsgType.TEXT
                self.messages.put_nowait(data.decode() if text else data)

    def on_ws_disconnected(self, transport: picows.WSTransport) -> None:
        self.messages.put_nowait(None)


class WithPicows:
    def __init__(self, transport: picows.WSTransport, listener: PicowsListener) -> None:
        self.transport = transport
        self.listener = listener
        self.fields = named(list(transport.response.headers.items()))
        self.subprotocol = dict(self.fields).get("sec-websocket-protocol")
        self.deflates = False

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, url: str, subprotocols: Sequence[str]) -> AsyncIterator[Conversation]:
        offer = {"Sec-WebSocket-Protocol": ", ".join(subprotocols)} if subprotocols else None
        try:
            transport, listener = await picows.ws_connect(
                PicowsListener, url, extra_headers=offer, websocket_handshake_timeout=PATIENCE
            )
        except picows.WSHandshakeError as error:
            assert error.response is not None
            fields = list(error.response.headers.items())
            raise Refused(int(error.response.status), fields) from None
        try:
            yield cls(transport, cast(PicowsListener, listener))
        finally:
            transport.disconnect()
            await transport.wait_disconnected()

    async def send(self, data: Data) -> None:
        kind = picows.WSMsgType.TEXT if isinstance(data, str) else picows.WSMsgType.BINARY
        self.transport.send(kind, data)

    async def receive(self) -> Data:
        message = await self.listener.messages.get()
        assert isinstance(message, str | bytes), message
        return message

    async def close(self, code: int, reason: str) -> None:
        self.transport.send_close(cast(Any, code), reason)
        await self.transport.wait_disconnected()

    async def closed(self) -> tuple[int, str]:
        message = await self.listener.messages.get()
        assert isinstance(message, tuple), message
        return message


class WithWsproto:
    """A client of the tests' own, on trio."""

    def __init__(self, stream: trio.SocketStream, offer: wsproto.events.Request) -> None:
        self.stream = stream
        self.connection = wsproto.WSConnection(wsproto.ConnectionType.CLIENT)
        self.offer = offer
        self.subprotocol: str | None = None
        self.fields: Fields = []
        self.deflates = False

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, url: str, subprotocols: Sequence[str]) -> AsyncIterator[Conversation]:
        authority, _, path = url.removeprefix("ws://").partition("/")
        host, _, port = authority.partition(":")
        deflate = wsproto.extensions.PerMessageDeflate()
        offer = wsproto.events.Request(
            authority, f"/{path}", subprotocols=list(subprotocols), extensions=[deflate]
        )
        async with await trio.open_tcp_stream(host, int(port)) as stream:
            conversation = cls(stream, offer)
            await conversation.begin()
            yield conversation

    async def begin(self) -> None:
        await self.stream.send_all(self.connection.send(self.offer))
        event = await self.event()
        if isinstance(event, wsproto.events.AcceptConnection):
            self.subprotocol = event.subprotocol
            self.fields = text_of(event.extra_headers)
            self.deflates = bool(event.extensions)
            return
        assert isinstance(event, wsproto.events.RejectConnection), event
        body = b""
        part: Any = event
        while not getattr(part, "body_finished", not event.has_body):
            part = await self.event()
            assert isinstance(part, wsproto.events.RejectData), part
            body += part.data
        raise Refused(event.status_code, text_of(event.headers), body)

    async def event(self) -> wsproto.events.Event:
        while True:
            for event in self.connection.events():
                if isinstance(event, wsproto.events.Ping):
                    await self.stream.send_all(self.connection.send(event.response()))
                else:
                    return event
            data = await self.stream.receive_some()
            self.connection.receive_data(data or None)

    async def send(self, data: Data) -> None:
        event: wsproto.events.Event = (
            wsproto.events.TextMessage(data)
            if isinstance(data, str)
            else wsproto.events.BytesMessage(data)
        )
        await self.stream.send_all(self.connection.send(event))

    async def receive(self) -> Data:
        parts: list[Any] = []
        while True:
            event = await self.event()
            assert isinstance(event, wsproto.events.Message), event
            parts.append(event.data)
            if event.message_finished:
                text = isinstance(event, wsproto.events.TextMessage)
                return "".join(parts) if text else b"".join(parts)

    async def close(self, code: int, reason: str) -> None:
        event = wsproto.events.CloseConnection(code, reason)
        await self.stream.send_all(self.connection.send(event))
        assert await self.closed() == (code, reason)
        assert await self.stream.receive_some() == b"", "the server left the connection open"

    async def closed(self) -> tuple[int, str]:
        event = await self.event()
        assert isinstance(event, wsproto.events.CloseConnection), event
        if self.connection.state is not wsproto.connection.ConnectionState.CLOSED:
            await self.stream.send_all(self.connection.send(event.response()))
        return event.code, event.reason or ""


def text_of(headers: Sequence[tuple[bytes, bytes]]) -> Fields:
    return named([(name.decode(), value.decode()) for name, value in headers])


def on_asyncio(main: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(3 * PATIENCE):
            await main()

    asyncio.run(bounded())


def on_trio(main: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        with trio.fail_after(3 * PATIENCE):
            await main()

    trio.run(bounded)


CLIENTS = [
    Client("websockets", WithWebsockets.open, on_asyncio),
    Client("aiohttp", WithAiohttp.open, on_asyncio),
    Client("picows", WithPicows.open, on_asyncio, offers_deflate=False),
    Client("wsproto", WithWsproto.open, on_trio),
]


# --------------------------------------------------------------------------- sites


class Site(Process):
    """A framework's application in a process."""

    def __init__(self, framework: str, worker: str) -> None:
        super().__init__("-k", worker, "-b", "127.0.0.1:0", f"websocket_{framework}:app")
        self.framework = framework


def start(framework: str, worker: str) -> Iterator[Site]:
    for library in (framework, worker):
        skip_without(library)
    site = Site(framework, worker)
    try:
        yield site
        site.send_signal(signal.SIGTERM)
        assert site.wait() == 0
        assert not any("Exception ignored" in line for line in site.err.all())
    finally:
        site.end()


@pytest.fixture(
    scope="module",
    params=[(name, worker) for name, workers in FRAMEWORKS.items() for worker in workers],
    ids="-".join,
)
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    yield from start(*request.param)


@pytest.fixture(scope="module", params=WORKERS)
def fastapi(request: pytest.FixtureRequest) -> Iterator[Site]:
    yield from start("fastapi", request.param)


@pytest.fixture(scope="module", params=LOOPS)
def channels(request: pytest.FixtureRequest) -> Iterator[Site]:
    yield from start("channels", request.param)


@pytest.fixture(params=CLIENTS, ids=lambda client: client.name)
def client(request: pytest.FixtureRequest) -> Client:
    found: Client = request.param
    return found


class Visit(NamedTuple):
    """A client in front of a site."""

    site: Site
    client: Client

    def open(self, path: str, *subprotocols: str) -> AbstractAsyncContextManager[Conversation]:
        # Whose it was shows in what the application prints and raises.
        url = f"{self.site.url}/{path}?who={self.client.name}".replace("http", "ws", 1)
        return self.client.open(url, subprotocols)


@pytest.fixture
def visit(site: Site, client: Client) -> Visit:
    return Visit(site, client)


# --------------------------------------------------------------------------- tests


def test_echo(visit: Visit) -> None:
    async def main() -> None:
        async with visit.open("echo") as conversation:
            for data in ("text", "grüß 🐍", "\0", b"bytes", bytes(range(256))):
                await conversation.send(data)
                assert await conversation.receive() == data
            # More than one at a time.
            numbers = [str(number) for number in range(100)]
            for number in numbers:
                await conversation.send(number)
            assert [await conversation.receive() for _ in numbers] == numbers

    visit.client.run(main)


def test_empty_messages(visit: Visit) -> None:
    if visit.site.framework in QUARTS:
        pytest.skip("Quart takes an empty binary message for a text that is not there")

    async def main() -> None:
        async with visit.open("echo") as conversation:
            for data in ("", b""):
                await conversation.send(data)
                assert await conversation.receive() == data

    visit.client.run(main)


@pytest.mark.parametrize("data", [bytes(range(256)) * (MIB // 256), "ü" * (MIB // 2)], ids=type)
def test_a_mebibyte(visit: Visit, data: Data) -> None:
    async def main() -> None:
        async with visit.open("echo") as conversation:
            await conversation.send(data)
            assert await conversation.receive() == data

    visit.client.run(main)


def test_deflate(visit: Visit) -> None:
    """With who offers it, and with nobody else."""

    async def main() -> None:
        async with visit.open("echo") as conversation:
            assert conversation.deflates == visit.client.offers_deflate
            # The second is shorter on the wire if what went before is remembered.
            for data in ("the same " * 1000, "the same " * 1000, b"\0" * 100_000, "x"):
                await conversation.send(data)
                assert await conversation.receive() == data

    visit.client.run(main)


def test_subprotocol_and_fields(visit: Visit) -> None:
    async def main() -> None:
        async with visit.open("choose", "one", "two") as conversation:
            assert conversation.subprotocol == "two"
            assert ("x-greeting", "hello") in conversation.fields
            cookies = [value for name, value in conversation.fields if name == "set-cookie"]
            assert cookies == ["a=1", "b=2"]
            assert json.loads(await conversation.receive()) == {"offered": ["one", "two"]}
            assert await conversation.closed() == (1000, "")
        async with visit.open("choose") as conversation:
            assert conversation.subprotocol is None
            assert json.loads(await conversation.receive()) == {"offered": []}

    visit.client.run(main)


def test_the_application_closes(visit: Visit) -> None:
    async def main() -> None:
        async with visit.open("leave") as conversation:
            assert await conversation.closed() == (4001, "genug für heute")

    visit.client.run(main)


def test_the_client_closes(visit: Visit) -> None:
    async def main() -> None:
        async with visit.open("echo") as conversation:
            await conversation.send("last")
            assert await conversation.receive() == "last"
            await conversation.close(4002, f"tschüß, {name}")

    name = visit.client.name
    visit.client.run(main)
    if visit.site.framework in QUARTS:  # its applications are not told why
        visit.site.says(f"cancelled for {name}")
    else:
        visit.site.says(f"closed 4002 tschüß, {name}")


def refused(visit: Visit, path: str) -> Refused:
    async def main() -> None:
        with pytest.raises(Refused) as caught:
            async with visit.open(path):
                pass
        refusals.append(caught.value)

    refusals: list[Refused] = []
    visit.client.run(main)
    return refusals[0]


def test_refusal(visit: Visit) -> None:
    assert refused(visit, "refuse").status == 403


def test_denial_response(visit: Visit) -> None:
    if visit.site.framework == "channels":
        pytest.skip("Channels has no denial response")
    refusal = refused(visit, "deny")
    assert refusal.status == 402
    assert ("x-reason", "money") in refusal.fields
    if refusal.body is not None:
        assert json.loads(refusal.body) == {"owed": 5}


def test_no_such_path(visit: Visit) -> None:
    # Channels' router raises, Quart answers as for any page, Starlette's closes.
    statuses = {"channels": 500, "quart": 404, "quart_trio": 404}
    assert refused(visit, "missing").status == statuses.get(visit.site.framework, 403)


def test_failure(visit: Visit) -> None:
    """Of the application, after it has accepted."""

    async def main() -> None:
        async with visit.open("fail") as conversation:
            code, _ = await conversation.closed()
            # Quart takes the exception for itself, and closes as if there were none.
            assert code == (1000 if visit.site.framework in QUARTS else 1011)

    visit.client.run(main)
    visit.site.logs(f"ArithmeticError: miscounted for {visit.client.name}")


class TestFastAPI:
    def test_parameters_and_dependencies(self, fastapi: Site, client: Client) -> None:
        visit = Visit(fastapi, client)

        async def main() -> None:
            async with visit.open("items/7") as conversation:
                answer = json.loads(await conversation.receive())
                assert answer == {"number": 7, "resource": "open"}
                await conversation.close(1001, "")

        client.run(main)
        fastapi.says(f"closed with 1001 for {client.name}")
        assert refused(visit, "items/seven").status == 403


class TestChannels:
    def test_a_consumer_in_threads(self, channels: Site, client: Client) -> None:
        async def main() -> None:
            async with Visit(channels, client).open("threaded") as conversation:
                for data in ("text", b"bytes"):
                    await conversation.send(data)
                    assert await conversation.receive() == data
                await conversation.close(code, "")

        code = 4100 + CLIENTS.index(client)
        client.run(main)
        channels.says(f"closed a thread's {code}")

    def test_a_group(self, channels: Site, client: Client) -> None:
        """Whatever comes first: a message, or one that another has sent to the group."""
        visit = Visit(channels, client)

        async def main() -> None:
            async with visit.open("groups/a") as one, visit.open("groups/a") as two:
                for number in range(50):
                    await one.send(json.dumps(number))
                    await two.send(json.dumps(-number))
                for conversation in (one, two):
                    heard = [json.loads(await conversation.receive()) for _ in range(100)]
                    assert sorted(heard) == sorted([*range(50), *(-n for n in range(50))])

        client.run(main)

    def test_another_origin(self, channels: Site) -> None:
        """Seen by Channels' validator."""

        async def main() -> None:
            url = channels.url.replace("http", "ws", 1)
            async with aiohttp.ClientSession() as session:
                async with session.ws_connect(f"{url}/guarded", origin=channels.url) as socket:
                    await socket.send_str("in")
                    assert await socket.receive_str() == "in"
                with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
                    await session.ws_connect(f"{url}/guarded", origin="http://elsewhere.example")
                assert caught.value.status == 403

        on_asyncio(main)
