"""The application under the servers: it takes the steps that the request names, and keeps a journal.

A request says in its field "Probe" who it is and what is to be done:

    Probe: 17 [("receive",), ("send", {"type": "http.response.start", "status": 200}), ...]

Each step is a method `do_...` of Call. The journal is a file with a Python literal in each line.
This file is copied beside the server's socket and imported there, so it imports nothing of ours.
"""

from __future__ import annotations

import ast
import asyncio
import gc
import os
import sys
import threading
import time
import types
import weakref

FOLDER = os.environ["PROBE_FOLDER"]
JOURNAL = os.open(os.path.join(FOLDER, "journal"), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
LIFESPAN = os.environ["PROBE_LIFESPAN"]

PLAIN = (bytes, str, int, float, bool, types.NoneType)

ANSWER = [
    ("send", {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]}),
    ("send", {"type": "http.response.body", "body": b"ok"}),
]  # fmt: skip
ACCEPT = [("receive",), ("send", {"type": "websocket.accept"}), ("disconnected",)]


def plain(value):
    """`value` as it can stand in a literal. Whatever ASGI has no room for becomes a tuple that
    begins with "not plain" and its type's name."""
    kind = type(value)
    if kind in (list, tuple):
        return kind(plain(item) for item in value)
    if kind is dict:
        return {plain(key): plain(item) for key, item in value.items()}
    if kind in PLAIN and value == value and value not in (float("inf"), float("-inf")):
        return value
    if isinstance(value, int):  # an enumeration's, say
        return int(value)
    return ("not plain", kind.__name__)


def in_trio():
    trio = sys.modules.get("trio")
    return trio is not None and trio.lowlevel.in_trio_run()


async def sleep(seconds):
    if in_trio():
        await sys.modules["trio"].sleep(seconds)
    else:
        await asyncio.sleep(seconds)


def loop_and_task():
    """What this runs in, by name, and a number for the loop."""
    if in_trio():
        lowlevel = sys.modules["trio"].lowlevel
        return "trio", id(lowlevel.current_trio_token()), lowlevel.current_task() is not None
    loop = asyncio.get_running_loop()
    return "asyncio", id(loop), asyncio.current_task() is not None


def spoil(value):
    """Write into every container below `value`."""
    if isinstance(value, dict):
        for item in list(value.values()):
            spoil(item)
        value["spoilt"] = True
    elif isinstance(value, list):
        for item in value:
            spoil(item)
        value.append("spoilt")


class Sentinel:
    pass


class Call:
    """One call of the application."""

    watched: weakref.ref | None = None  # by a call, for a later one

    def __init__(self, name, scope, receive, send):
        self.name = name
        self.scope = scope
        self.receive = receive
        self.send = send

    def note(self, what, **facts):
        record = {"call": self.name, "what": what, "pid": os.getpid(), "at": time.monotonic()}
        os.write(JOURNAL, (ascii(record | facts) + "\n").encode())

    async def play(self, steps):
        loop, number, task = loop_and_task()
        self.note(
            "called",
            scope=plain(self.scope),
            scope_is_dict=isinstance(self.scope, dict),
            loop=loop,
            loop_number=number,
            in_task=task,
            main_thread=threading.current_thread() is threading.main_thread(),
        )
        try:
            for name, *arguments in steps:
                await getattr(self, f"do_{name}")(*arguments)
        except BaseException as error:
            self.note("raised", error=type(error).__name__)
            raise
        self.note("returned")

    async def do_receive(self, times=1):
        for _ in range(times):
            self.note("asks")
            try:
                event = await self.receive()
            except Exception as error:
                self.note("received", error=type(error).__name__)
            else:
                self.note("received", event=plain(event))

    async def do_receive_within(self, seconds):
        """As receive, for so long; to have waited in vain is noted as well."""
        if in_trio():
            with sys.modules["trio"].move_on_after(seconds):
                return await self.do_receive()
        else:
            try:
                return await asyncio.wait_for(self.do_receive(), seconds)
            except TimeoutError:
                pass
        self.note("waited")

    async def do_body(self):
        """Receive a request's body."""
        pieces = []
        event = await self.receive()
        while event["type"] == "http.request":
            pieces.append(bytes(event.get("body", b"")))
            if not event.get("more_body", False):
                break
            event = await self.receive()
        self.note("body", body=b"".join(pieces), pieces=len(pieces), last=event["type"])

    async def do_disconnected(self):
        """Receive until the client is gone."""
        event = await self.receive()
        while not event["type"].endswith(".disconnect"):
            event = await self.receive()
        self.note("disconnected", event=plain(event))

    async def do_send(self, event):
        """Send, and note an exception in place of raising it."""
        self.note("sends")
        try:
            await self.send(event)
        except Exception as error:
            bases = [base.__name__ for base in type(error).__mro__]
            self.note("refused", error=type(error).__name__, bases=bases)
        else:
            self.note("sent")

    async def do_send_or_raise(self, event):
        await self.send(event)

    async def do_send_often(self, times, size):
        """Send parts of a body of that size, until one raises."""
        event = {"type": "http.response.body", "body": bytes(size), "more_body": True}
        for count in range(times):
            self.note("sending", count=count)
            try:
                await self.send(event)
            except Exception as error:
                bases = [base.__name__ for base in type(error).__mro__]
                self.note("refused", error=type(error).__name__, bases=bases)
                return
        self.note("sent", count=times)

    async def do_send_file(self, path, event):
        """zerocopysend of that file, which must still be open afterwards."""
        with open(path, "rb") as file:
            await self.do_send(
                {**event, "type": "http.response.zerocopysend", "file": file.fileno()}
            )
            await self.send({"type": "http.response.body", "body": b"", "more_body": False})
            try:
                os.fstat(file.fileno())
            except OSError:
                self.note("closed by the server")
            else:
                self.note("still open")

    async def do_sleep(self, seconds):
        await sleep(seconds)

    async def do_tidy(self, seconds):
        """Sleep for ever; when that is cancelled, take so long to come to an end."""
        try:
            await sleep(3600)
        finally:
            self.note("tidying")
            if in_trio():
                with sys.modules["trio"].CancelScope(shield=True):
                    await sleep(seconds)
            else:
                await sleep(seconds)
            self.note("tidied")

    async def do_gate(self):
        """Wait until the client's side opens this call's gate."""
        self.note("at the gate")
        while not os.path.exists(os.path.join(FOLDER, f"gate-{self.name}")):
            await sleep(0.01)

    async def do_fail(self):
        raise RuntimeError("this call was told to fail")

    async def do_spoil(self):
        spoil(self.scope)

    async def do_state(self, update):
        """Put something into the lifespan's state."""
        if "state" in self.scope:
            self.scope["state"].update(update)

    async def do_share(self):
        """Append to the list that the lifespan put into the state."""
        self.scope["state"]["shared"].append(self.name)

    async def do_look(self):
        self.note("looked", scope=plain(self.scope))

    async def do_library(self):
        try:
            import sniffio
        except ImportError:
            self.note("library", name=None)
        else:
            self.note("library", name=sniffio.current_async_library())

    async def do_watch(self):
        """Remember, without holding it, something that lives as long as the scope does."""
        self.scope["probe"] = Sentinel()
        Call.watched = weakref.ref(self.scope["probe"])

    async def do_watched(self):
        gc.collect()
        self.note("watched", alive=Call.watched is not None and Call.watched() is not None)


def told(scope):
    """The name and the steps of a call."""
    if scope["type"] == "lifespan":
        return "lifespan", ast.literal_eval(LIFESPAN)
    for name, value in scope["headers"]:
        if bytes(name).lower() == b"probe":
            number, _, steps = bytes(value).decode().partition(" ")
            return number, ast.literal_eval(steps)
    return "0", ANSWER if scope["type"] == "http" else ACCEPT


async def app(scope, receive, send):
    name, steps = told(scope)
    await Call(name, scope, receive, send).play(steps)


class Asgi2:
    """The same as an application of ASGI 2, which is called twice."""

    def __init__(self, scope):
        self.scope = scope

    async def __call__(self, receive, send):
        await app(self.scope, receive, send)


asgi2 = Asgi2
