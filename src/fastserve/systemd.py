"""What systemd tells a service, and what it wants to be told (sd_listen_fds(3), sd_notify(3))."""

from __future__ import annotations

import contextlib
import os
import socket

__all__ = ["activated", "notify"]

FIRST_DESCRIPTOR = 3


def activated() -> list[tuple[int, str]]:
    """The sockets that were handed over: descriptor and name.

    The variables are taken out of the environment, so that no child believes they are its
    own; a second call finds none."""
    pid = os.environ.pop("LISTEN_PID", "")
    count = os.environ.pop("LISTEN_FDS", "")
    names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
    if pid != str(os.getpid()) or not count.isdecimal():
        return []
    found = []
    for index in range(int(count)):
        fd = FIRST_DESCRIPTOR + index
        with contextlib.suppress(OSError):
            os.set_inheritable(fd, False)
        found.append((fd, names[index] if index < len(names) else ""))
    return found


def notify(*lines: str) -> None:
    """Send assignments such as READY=1 to the service manager, if there is one.

    Nothing is raised: a service does not fail because nobody listens to its state."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path.startswith(("/", "@")):
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender,
    ):
        sender.sendto("\n".join(lines).encode(), address)
