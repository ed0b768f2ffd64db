"""From one supervisor to the next: a new program on the sockets of the old one.

The new one finds in its environment which descriptors it has been given. It says over a channel
that it is ready; the channel's end without that is its failure.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass

from fastserve.channel import Channel
from fastserve.sockets import Handed, Sockets

__all__ = ["Predecessor", "Successor", "is_under_way"]

# Not FASTSERVE_, which options begin with.
VARIABLE = "_FASTSERVE_HANDOVER"


@dataclass(eq=False)
class Successor:
    """The new program, seen from the old one."""

    popen: subprocess.Popen[bytes]
    channel: Channel

    @classmethod
    def start(cls, sockets: Sockets) -> Successor:
        """By the command that has started this one. Raises OSError."""
        ours, theirs = socket.socketpair()
        with theirs:
            every = [*sockets.listening, *sockets.admin]
            handed = [(each.socket.fileno(), each.bind) for each in every]
            value = json.dumps({"channel": theirs.fileno(), "listening": handed})
            try:
                popen = subprocess.Popen(
                    [sys.executable, *sys.orig_argv[1:]],
                    pass_fds=(theirs.fileno(), *(fd for fd, _ in handed)),
                    env={**os.environ, VARIABLE: value},
                )
            except OSError:
                ours.close()
                raise
        ours.setblocking(False)
        return cls(popen, Channel(ours))


class Predecessor:
    """The old program, seen from the new one, which takes the sockets from it."""

    def __init__(self) -> None:
        value = json.loads(os.environ.pop(VARIABLE))
        self.channel = Channel(_socket(value["channel"]))
        self.handed: Handed = {}
        for fd, bind in value["listening"]:
            self.handed.setdefault(bind, []).append(_socket(fd))


def is_under_way() -> bool:
    """Whether this is the new program of a hand-over."""
    return VARIABLE in os.environ


def _socket(fd: int) -> socket.socket:
    os.set_inheritable(fd, False)
    return socket.socket(fileno=fd)
