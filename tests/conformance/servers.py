"""The servers of the table, and how each is started.

Whatever is given beyond an address, the application and TLS only shortens a time, so that nobody
waits for half a minute: until a ping, until a slow request head is given up, until a stop is
forced. All else is left at its default.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass

from conformance.server import Commands

FASTSERVE = (
    "{{python}} -m fastserve -k {worker} --header-timeout 4 --ws-ping-interval 2"
    " --graceful-timeout 3 --drain-idle-timeout 1 {{more}} {{app}}"
)
UVICORN = (
    "{python} -m uvicorn --no-access-log --ws-ping-interval 2 --timeout-graceful-shutdown 3"
    " {more} {app}"
)
HYPERCORN = "{python} -m hypercorn --websocket-ping-interval 2 --graceful-timeout 3 {more} {app}"
GRANIAN = (
    "{python} -m granian --interface asgi --no-access-log --http1-header-read-timeout 4000"
    " --workers-kill-timeout 3 {more} {app}"
)
DAPHNE = "{python} -m daphne --ping-interval 2 {more} {app}"
GUNICORN = "{python} -m gunicorn -k asgi --no-control-socket --graceful-timeout 3 {more} {app}"

# What `{more}` stands for: an address, and what a variant needs beside it.
BIND = {
    "plain": "-b 127.0.0.1:{port}",
    "unix": "-b unix:{socket}",
    "tls": "-b 127.0.0.1:{port} --certfile {certfile} --keyfile {keyfile}",
    "root": "-b 127.0.0.1:{port} --root-path /base",
    "processes": "-b 127.0.0.1:{port} --workers 2",
}
PORT = {
    "plain": "--port {port}",
    "unix": "--uds {socket}",
    "tls": "--port {port} --ssl-certfile {certfile} --ssl-keyfile {keyfile}",
    "root": "--port {port} --root-path /base",
    "processes": "--port {port} --workers 2",
}


@dataclass(frozen=True)
class Known:
    """`distribution` is what it is installed as; `more` what `{more}` stands for, by variant."""

    distribution: str
    command: str
    more: dict[str, str]

    def commands(self, python: str) -> Commands:
        """Its command lines, with that interpreter."""
        lines = {
            variant: self.command.replace("{python}", python).replace("{more}", more)
            for variant, more in self.more.items()
        }
        return Commands(lines.pop("plain"), lines)

    @property
    def is_ours(self) -> bool:
        return self.distribution == "fastserve-asgi"

    def version(self, python: str) -> str:
        if self.is_ours:
            code = "import fastserve; print(fastserve.__version__)"
        else:
            code = f"from importlib.metadata import version; print(version({self.distribution!r}))"
        done = subprocess.run(
            [python, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        return done.stdout.strip()


KNOWN = {
    **{
        f"fastserve-{worker}": Known("fastserve-asgi", FASTSERVE.format(worker=worker), BIND)
        for worker in ("uvloop", "asyncio", "trio")
    },
    "uvicorn": Known("uvicorn", UVICORN, PORT),
    "hypercorn": Known("hypercorn", HYPERCORN, BIND),
    "granian": Known(
        "granian",
        GRANIAN,
        {
            **PORT,
            "tls": "--port {port} --ssl-certificate {certfile} --ssl-keyfile {keyfile}",
            "root": "--port {port} --url-path-prefix /base",
        },
    ),
    "daphne": Known(
        "daphne",
        DAPHNE,
        {
            "plain": "--port {port}",
            "unix": "--unix-socket {socket}",
            "tls": "-e ssl:{port}:privateKey={keyfile}:certKey={certfile}",
            "root": "--port {port} --root-path /base",
        },
    ),
    "gunicorn": Known("gunicorn", GUNICORN, BIND),
}


def python_of(name: str, peers: str | None) -> str:
    """The interpreter that has that server."""
    if KNOWN[name].is_ours or peers is None:
        return sys.executable
    return peers
