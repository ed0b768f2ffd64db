from collections.abc import Callable
from typing import Any, Self, final

from fastserve._shared import Row
from fastserve._transport import ProtocolFactory, Stage

HAS_EPOLL: bool

@final
class Reactor:
    connections: int
    tick_interval: float
    def __new__(
        cls,
        worker: Any,
        *,
        poller: str,
        tick_interval: float,
        write_timeout: float,
        write_min_rate: int = 0,
        report: Callable[[BaseException], None],
        max_connections: int = 0,
        max_per_address: int = 0,
        row: Row | None = None,
    ) -> Self: ...
    def fileno(self) -> int: ...
    def listen(
        self,
        fd: int,
        factory: ProtocolFactory,
        server: tuple[str, int | None] | None = None,
        *,
        shared: bool = False,
        own: bool = False,
    ) -> None: ...
    def poll(self) -> int: ...
    def ready(self, token: int, events: int) -> bool: ...
    def tick(self) -> None: ...
    def stop_accepting(
        self, on_empty: Callable[[], object], *, others_accept: bool = False
    ) -> None: ...
    def drain(self, stage: Stage) -> None: ...
    def close(self) -> None: ...
