"""The channel between a supervisor and a worker process: messages, both ways, over a socket.

The end of either process is the end of the channel, whatever ended it.
"""

from __future__ import annotations

import contextlib
import json
import socket
from typing import Any

__all__ = ["Channel"]

Message = dict[str, Any]


class Channel:
    """One end. A message is a dict that JSON can carry, on a line of its own.

    Resource handling: `close()` closes the socket.
    """

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._rest = b""
        self._messages: list[Message] = []

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, **message: Any) -> None:
        """Does nothing if the other side is gone, or has let hundreds of messages lie."""
        with contextlib.suppress(OSError):
            self._socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> list[Message] | None:
        """What has come, or None at the end; waits for something if the socket blocks."""
        try:
            data = self._socket.recv(65536)
        except BlockingIOError:
            return []
        except OSError:
            data = b""
        if not data:
            return None
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [json.loads(line) for line in lines]

    def wait(self) -> Message | None:
        """The next message, or None at the end."""
        while not self._messages:
            received = self.receive()
            if received is None:
                return None
            self._messages = received
        return self._messages.pop(0)

    def setblocking(self, blocks: bool) -> None:
        self._socket.setblocking(blocks)

    def close(self) -> None:
        self._socket.close()
