"""The names of ASGI's types, for annotations."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

__all__ = ["ASGI2", "ASGI3", "Message", "Receive", "Scope", "Send"]

Scope = dict[str, Any]
Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGI3 = Callable[[Scope, Receive, Send], Awaitable[None]]
ASGI2 = Callable[[Scope], Callable[[Receive, Send], Awaitable[None]]]
