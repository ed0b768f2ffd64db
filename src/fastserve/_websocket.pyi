from collections.abc import Callable
from typing import Self, final

from fastserve._deflate import DeflatePool
from fastserve._http1 import HttpExchange, Upgrade
from fastserve._transport import Protocol

@final
class FrameDecoder:
    def __new__(
        cls,
        *,
        max_size: int = 16777216,
        pool: DeflatePool | None = None,
        takes_over: bool = False,
    ) -> Self: ...
    def feed(self, data: bytes) -> list[tuple[object, ...]]: ...

@final
class WebSocketConnection(Protocol): ...

@final
class WebSocketUpgrade(Upgrade):
    def __init__(
        self,
        *,
        negotiate: Callable[[str], tuple[str, int, bool, bool] | None] | None = None,
        max_size: int = 16777216,
        max_queue: int = 32,
        ping_interval: float = 20,
        ping_timeout: float = 20,
        close_timeout: float = 10,
    ) -> None: ...

@final
class WebSocketExchange(HttpExchange): ...
