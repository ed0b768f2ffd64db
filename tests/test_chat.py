"""The chat, as people meet it: from a program, and on its page in a browser."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import shutil
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import aiohttp
import pytest
from conftest import PATIENCE, request
from process import Process, Program, others_environment
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

ROOT = Path(__file__).parent.parent
# Twice as much as anyone is sent before it says that it has read, and more than waits for it.
MANY = [f"{number:02} " + "x" * 1997 for number in range(32)]
TOO_MANY = [f"{number:03} " + "x" * 1996 for number in range(160)]


@pytest.fixture
def site(worker: str) -> Iterator[Process]:
    arguments = ("--app-dir", "examples", "-k", worker, "-b", "127.0.0.1:0")
    # Nobody in a room leaves by himself when the end is near.
    server = Process(*arguments, "--graceful-timeout", "0.5", "chat:app", cwd=ROOT)
    try:
        yield server
        server.send_signal(signal.SIGTERM)
        assert server.wait() == 0
        assert not any("Traceback" in line for line in server.err.all())
    finally:
        server.end()


class Guest:
    """Someone in a room, by way of a program."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket

    def says(self, text: str) -> None:
        self.socket.send(text)

    def hears(self) -> dict[str, Any]:
        """The next event; it counts as read."""
        event = self.is_told()
        self.socket.send("")
        return event

    def is_told(self) -> dict[str, Any]:
        """The next event, without a sign of having read it."""
        event: dict[str, Any] = json.loads(self.socket.recv(timeout=PATIENCE))
        return event

    def until_closed(self) -> tuple[list[dict[str, Any]], int, str]:
        """What is told before the server's close, and its code and reason."""
        events = []
        with pytest.raises(ConnectionClosed) as caught:
            while True:
                events.append(self.is_told())
        assert caught.value.rcvd is not None, "no close frame came"
        return events, caught.value.rcvd.code, caught.value.rcvd.reason


@contextlib.contextmanager
def at(site: Process, path: str) -> Iterator[ClientConnection]:
    url = site.url.replace("http", "ws") + path
    with connect(url, open_timeout=PATIENCE, close_timeout=PATIENCE, proxy=None) as socket:
        yield socket


@contextlib.contextmanager
def knock(site: Process, name: str, room: str = "lobby") -> Iterator[Guest]:
    """Someone who may or may not be let in."""
    with at(site, f"/rooms/{quote(room, safe='')}?{urlencode({'name': name})}") as socket:
        yield Guest(socket)


@contextlib.contextmanager
def enter(site: Process, name: str, *present: str, room: str = "lobby") -> Iterator[Guest]:
    """Someone who has come in where those `present` were."""
    with knock(site, name, room) as guest:
        assert guest.hears() == {"event": "present", "names": list(present)}
        assert guest.hears() == joined(name)
        yield guest


def joined(name: str) -> dict[str, str]:
    return {"event": "joined", "name": name}


def left(name: str) -> dict[str, str]:
    return {"event": "left", "name": name}


def said(name: str, text: str) -> dict[str, str]:
    return {"event": "said", "name": name, "text": text}


def test_two_in_a_room_and_one_in_another(site: Process) -> None:
    with enter(site, "Ann") as ann, enter(site, "Eve", room="a/b ü") as eve:
        with enter(site, "Bob", "Ann") as bob:
            assert ann.hears() == joined("Bob")
            ann.says("Hello, Bob!")
            assert ann.hears() == bob.hears() == said("Ann", "Hello, Bob!")
            bob.says('"<grüß> 🐍\n')
            assert ann.hears() == bob.hears() == said("Bob", '"<grüß> 🐍\n')
        assert ann.hears() == left("Bob")
        with enter(site, "Bob", "Ann"):  # the name is free again
            assert ann.hears() == joined("Bob")
        eve.says("I heard nothing.")
        assert eve.hears() == said("Eve", "I heard nothing.")


def test_one_who_disappears(site: Process) -> None:
    """Without a close frame."""
    with enter(site, "Ann") as ann:
        with enter(site, "Bob", "Ann") as bob:
            assert ann.hears() == joined("Bob")
            bob.socket.socket.shutdown(2)
            assert ann.hears() == left("Bob")
        ann.says("Bob?")
        assert ann.hears() == said("Ann", "Bob?")


def test_what_is_refused(site: Process) -> None:
    with enter(site, "Ann") as ann:
        with knock(site, "Ann") as guest:
            assert guest.until_closed() == ([], 1008, "the name is taken")
        for name in ("", " ", "x" * 41):
            with knock(site, name) as guest:
                assert guest.until_closed() == ([], 1008, "a name has 1 to 40 characters")
        for message, code in ((b"bytes", 1003), ("x" * 2001, 1009)):
            with enter(site, "Bob", "Ann") as bob:
                assert ann.hears() == joined("Bob")
                bob.socket.send(message)
                assert ann.hears() == left("Bob")
                assert bob.until_closed()[:2] == ([], code)
    for path in ("/", "/rooms/", "/room/lobby"):
        with pytest.raises(InvalidStatus) as caught, at(site, path):
            pass
        assert caught.value.response.status_code == 403


def test_one_who_reads_late(site: Process) -> None:
    """Nothing is lost, and nobody waits."""
    with enter(site, "Ann") as ann, enter(site, "Bob", "Ann") as bob:
        for text in MANY:
            bob.says(text)
            assert bob.hears() == said("Bob", text)
        assert ann.hears() == joined("Bob")
        assert [ann.hears() for _ in MANY] == [said("Bob", text) for text in MANY]


def test_one_who_stops_reading(site: Process) -> None:
    """The others go on, and the one who has stopped is out."""
    with (
        enter(site, "Sam") as sam,
        enter(site, "Ann", "Sam") as ann,
        enter(site, "Bob", "Sam", "Ann") as bob,
    ):
        assert ann.hears() == joined("Bob")
        heard: list[dict[str, Any]] = []
        for text in TOO_MANY:
            bob.says(text)
            while True:
                heard.append(bob.hears())
                assert ann.hears() == heard[-1]
                if heard[-1] == said("Bob", text):
                    break
        assert heard.count(left("Sam")) == 1

        sam.says("What did I miss?")
        told, *verdict = sam.until_closed()
        assert verdict == [1008, "too much was left unread"]
        assert 10 < len(told) < 20
        assert told == [joined("Ann"), joined("Bob"), *heard][: len(told)]
        with enter(site, "Sam", "Ann", "Bob"):
            assert ann.hears() == bob.hears() == joined("Sam")


def test_pages(site: Process) -> None:
    page = (ROOT / "examples" / "chat.html").read_bytes()
    with site.connect() as client:
        response = client.get("/")
        assert (response.status, response.body) == (200, page)
        assert response.field(b"content-type") == b"text/html; charset=utf-8"
        for path in ("/chat.html", "/rooms/lobby", "/favicon.ico"):
            response = client.get(path)
            assert (response.status, response.body) == (404, b"Not found.\n")
        client.sendall(request("HEAD", "/"))
        response = client.read_response(head_only=True)
        assert response.field(b"content-length") == b"%d" % len(page)


def test_the_server_ends(site: Process) -> None:
    """The fixture sees that it does so in order."""
    with enter(site, "Ann") as ann, enter(site, "Bob", "Ann") as bob:
        assert ann.hears() == joined("Bob")
        site.send_signal(signal.SIGTERM)
        assert site.wait() == 0
        for guest in (ann, bob):
            _, code, _ = guest.until_closed()  # one may hear that the other has left
            assert code in (1001, 1012)


# ------------------------------------------------------------------- in a browser


class Browser(Program):
    """Chromium without a screen."""

    def __init__(self, program: str, folder: Path) -> None:
        super().__init__(
            program,
            "--headless=new",
            "--remote-debugging-port=0",
            f"--user-data-dir={folder}",
            "--disable-background-networking",
            "--disable-breakpad",
            "--disable-dev-shm-usage",
            "--disable-gpu",
            "--no-default-browser-check",
            "--no-first-run",
            "--no-proxy-server",
            *(["--no-sandbox"] if os.geteuid() == 0 else []),
            env={**others_environment(), "HOME": str(folder)},
        )

    @property
    def url(self) -> str:
        """Where DevTools listen."""
        return self.err.wait_for(r"^DevTools listening on (ws://\S+)$", 3 * PATIENCE)[1]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    programs = map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
    program = next(filter(None, programs), None)
    if program is None:
        pytest.skip("Chromium is not installed")
    browser = Browser(program, tmp_path_factory.mktemp("chromium"))
    try:
        yield browser
    finally:
        browser.end()


class DevTools:
    """The browser's remote control: one command at a time, and what it tells meanwhile."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket
        self.numbers = itertools.count(1)
        self.events: list[dict[str, Any]] = []

    async def command(self, method: str, session: str | None = None, **parameters: Any) -> Any:
        command = {"id": next(self.numbers), "method": method, "params": parameters}
        await self.socket.send_json(
            command if session is None else command | {"sessionId": session}
        )
        while (message := await self.socket.receive_json()).get("id") != command["id"]:
            self.events.append(message)
        assert "error" not in message, f"{method}: {message['error']}"
        return message["result"]

    async def event(self, method: str, session: str) -> None:
        """Wait until it is told, if it has not been."""
        while not self.told(method, session):
            self.events.append(await self.socket.receive_json())

    def told(self, method: str, session: str) -> list[dict[str, Any]]:
        return [
            event["params"]
            for event in self.events
            if (event.get("method"), event.get("sessionId")) == (method, session)
        ]

    async def open(self, url: str) -> Tab:
        """A tab in a window of its own, with the page loaded."""
        target = await self.command("Target.createTarget", url="about:blank", newWindow=True)
        attached = await self.command("Target.attachToTarget", **target, flatten=True)
        tab = Tab(self, attached["sessionId"])
        for domain in ("Page", "Runtime", "Log"):
            await tab.command(f"{domain}.enable")
        await tab.command("Emulation.setFocusEmulationEnabled", enabled=True)
        await tab.command("Page.navigate", url=url)
        await self.event("Page.loadEventFired", tab.session)
        return tab


# A promise of what the expression is, as soon as that is true.
UNTIL = """new Promise((resolve) => {
    const look = () => {
        const value = (%s);
        if (value) { observer.disconnect(); resolve(value); }
    };
    const observer = new MutationObserver(look);
    observer.observe(document, { attributes: true, childList: true, subtree: true });
    look();
})"""
LINES = "[...document.querySelectorAll('#log li')].map((line) => line.textContent)"


class Tab:
    """A page, as someone in front of it would use it."""

    def __init__(self, tools: DevTools, session: str) -> None:
        self.tools = tools
        self.session = session

    async def command(self, method: str, **parameters: Any) -> Any:
        return await self.tools.command(method, self.session, **parameters)

    async def evaluate(self, expression: str) -> Any:
        done = await self.command(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    async def until(self, expression: str) -> Any:
        try:
            async with asyncio.timeout(PATIENCE):
                return await self.evaluate(UNTIL % expression)
        except TimeoutError:
            page = await self.evaluate("document.body.innerText")
            pytest.fail(f"{expression} was never true on this page:\n{page}")

    async def shows(self, line: str) -> None:
        """Waits until `line` is in the log."""
        await self.until(f"{LINES}.includes({json.dumps(line)})")

    async def type(self, field: str, text: str) -> None:
        """Into an input that can be used, and then Enter."""
        await self.until(f"!document.querySelector('{field}').disabled")
        await self.evaluate(f"document.querySelector('{field}').focus()")
        await self.command("Input.insertText", text=text)
        key = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13}
        await self.command("Input.dispatchKeyEvent", type="keyDown", text="\r", **key)
        await self.command("Input.dispatchKeyEvent", type="keyUp", **key)

    async def click(self, button: str) -> None:
        """With the mouse, in its middle."""
        middle = await self.evaluate(
            f"(({{ x, y, width, height }}) => ({{ x: x + width / 2, y: y + height / 2 }}))"
            f"(document.querySelector('{button}').getBoundingClientRect())"
        )
        press = {"button": "left", "clickCount": 1, **middle}
        await self.command("Input.dispatchMouseEvent", type="mousePressed", **press)
        await self.command("Input.dispatchMouseEvent", type="mouseReleased", **press)

    def complaints(self) -> list[dict[str, Any]]:
        """Exceptions in the page's script, and what the browser has logged that is more than news."""
        logged = self.tools.told("Log.entryAdded", self.session)
        return [
            *self.tools.told("Runtime.exceptionThrown", self.session),
            *(event for event in logged if event["entry"]["level"] in ("warning", "error")),
        ]


@contextlib.asynccontextmanager
async def devtools(browser: Browser) -> AsyncIterator[DevTools]:
    """In time that is bounded as a whole."""
    async with (
        asyncio.timeout(6 * PATIENCE),
        aiohttp.ClientSession() as session,
        session.ws_connect(browser.url, max_msg_size=0) as socket,
    ):
        yield DevTools(socket)


def test_two_tabs(site: Process, browser: Browser) -> None:
    markup = "<img src=x onerror='document.title = \"run\"'>"

    async def main() -> None:
        async with devtools(browser) as tools:
            ann = await tools.open(f"{site.url}/")
            await ann.type("#name", "Ann")
            await ann.shows("Ann has come in.")
            bob = await tools.open(f"{site.url}/")
            await bob.type("#name", "<b>Bob</b>")
            await bob.shows("Here: Ann.")
            await ann.shows("<b>Bob</b> has come in.")

            await bob.type("#text", "Hello, Ann!")
            await ann.shows("<b>Bob</b>Hello, Ann!")
            await ann.type("#text", "Grüß dich! 🐍")
            await bob.shows("AnnGrüß dich! 🐍")

            # What others write is text.
            await bob.type("#text", markup)
            await ann.shows(f"<b>Bob</b>{markup}")
            assert await ann.evaluate("document.querySelectorAll('#log img, #log b b').length") == 0
            assert await ann.evaluate("document.title") == "Chat"

            await bob.click("#enter")
            await bob.shows("You have left.")
            await ann.shows("<b>Bob</b> has left.")
            await bob.type("#room", "")  # the name is still there
            await ann.until(f"{LINES}.at(-1) === '<b>Bob</b> has come in.'")

            # And the address brings others to the same room.
            assert await bob.evaluate("location.hash") == "#room=lobby"
            assert ann.complaints() == bob.complaints() == []

    asyncio.run(main())


def test_a_tab_and_a_program(site: Process, browser: Browser) -> None:
    """The page acknowledges what it shows, and says when it is over and why."""

    async def main() -> None:
        async with devtools(browser) as tools:
            ann = await tools.open(f"{site.url}/#room=caf%C3%A9+%26")
            await ann.type("#name", "Ann")
            await ann.shows("Ann has come in.")
            await asyncio.to_thread(talk)
            await ann.shows(f"Bob{MANY[-1]}")
            await ann.shows("Bob has left.")
            assert "Ann has left." not in await ann.evaluate(LINES)

            eve = await tools.open(f"{site.url}/#room=caf%C3%A9+%26")
            await eve.type("#name", "Ann")
            await eve.shows("Closed: the name is taken.")
            assert ann.complaints() == eve.complaints() == []

    def talk() -> None:
        with enter(site, "Bob", "Ann", room="café &") as bob:
            for text in MANY:
                bob.says(text)
                assert bob.hears() == said("Bob", text)

    asyncio.run(main())
