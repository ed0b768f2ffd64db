"""What the server does with its processes shows here: every step is a line on stdout."""

import asyncio
import os
import subprocess
import sys
from typing import Any

import anyio


def say(line: str) -> None:
    # In one piece, since several workers may have the same stdout.
    os.write(1, f"{line}\n".encode())


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await live(receive, send)
    else:
        await PATHS[scope["path"]](receive, send)


async def live(receive: Any, send: Any) -> None:
    await receive()
    say("startup")
    await send({"type": "lifespan.startup.complete"})
    await receive()
    say("shutdown")
    await send({"type": "lifespan.shutdown.complete"})


async def respond(send: Any, body: bytes, *, more_body: bool = False) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body, "more_body": more_body})


async def hello(receive: Any, send: Any) -> None:
    await respond(send, b"hello")


async def echo(receive: Any, send: Any) -> None:
    """Ends when the client has sent its whole body."""
    say("begun")
    body = b""
    while (message := await receive())["type"] == "http.request":
        body += message["body"]
        if not message["more_body"]:
            await respond(send, body)
            break
    say("ended")


async def forever(receive: Any, send: Any) -> None:
    say("begun")
    try:
        await anyio.sleep_forever()
    except BaseException as error:
        say(f"{type(error).__module__.split('.')[0]}.{type(error).__name__}")
        raise


async def socket(receive: Any, send: Any) -> None:
    """A WebSocket, until it is closed."""
    await send({"type": "websocket.accept"})
    say("begun")
    while (await receive())["type"] != "websocket.disconnect":
        pass
    say("ended")


async def leave(receive: Any, send: Any) -> None:
    sys.exit("the application wants to leave")


async def interrupt(receive: Any, send: Any) -> None:
    raise KeyboardInterrupt


async def child(receive: Any, send: Any) -> None:
    """A child process that is given everything there is to inherit, and stays."""
    process = subprocess.Popen(["sleep", "600"], close_fds=False)
    await respond(send, str(process.pid).encode())
    CHILDREN.append(process)


async def loop(receive: Any, send: Any) -> None:
    """The name of the event loop."""
    try:
        name = type(asyncio.get_running_loop()).__module__.partition(".")[0]
    except RuntimeError:
        name = "trio"
    await respond(send, name.encode())


async def debug(receive: Any, send: Any) -> None:
    """Whether the loop is in its debug mode."""
    try:
        on = asyncio.get_running_loop().get_debug()
    except RuntimeError:
        on = False
    await respond(send, str(on).encode())


async def pid(receive: Any, send: Any) -> None:
    await respond(send, str(os.getpid()).encode())


async def environment(receive: Any, send: Any) -> None:
    await respond(send, " ".join(os.environ).encode())


async def crash(receive: Any, send: Any) -> None:
    os._exit(7)


CHILDREN: list[subprocess.Popen[bytes]] = []
PATHS = {
    "/": hello,
    "/echo": echo,
    "/forever": forever,
    "/socket": socket,
    "/leave": leave,
    "/interrupt": interrupt,
    "/child": child,
    "/loop": loop,
    "/debug": debug,
    "/pid": pid,
    "/environment": environment,
    "/crash": crash,
}
