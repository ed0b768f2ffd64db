from collections.abc import Callable, Coroutine, Iterable
from typing import Any, final

from fastserve._access import AccessLines
from fastserve._conversation import Conversation, Host
from fastserve._forwarded import Trust
from fastserve._shared import Row
from fastserve._transport import ProtocolFactory, Stage

class Upgrade: ...

@final
class Gate:
    def __init__(
        self,
        limit: int,
        *,
        queue_size: int = 0,
        queue_timeout: float = 5,
        exempt: Iterable[str] = (),
    ) -> None: ...

class Http1Factory(ProtocolFactory):
    def __init__(
        self,
        host: Host,
        *,
        upgrade: Upgrade | None = None,
        gate: Gate | None = None,
        trust: Trust | None = None,
        access: AccessLines | None = None,
        row: Row | None = None,
        state: dict[str, Any] | None = None,
        wait_for_shutdown: Callable[[], Coroutine[Any, Any, None]],
        is_shutting_down: Callable[[], bool],
        root_path: str = "",
        server_header: bytes = b"fastserve",
        date_header: bool = True,
        fields: Iterable[tuple[bytes, bytes]] = (),
        names: Iterable[str] = (),
        raise_on_disconnect: bool = False,
        limit_request_line: int = 8190,
        limit_request_fields: int = 100,
        limit_request_field_bytes: int = 65536,
        limit_request_body: int | None = None,
        header_timeout: float = 30,
        body_timeout: float = 60,
        keep_alive_timeout: float = 75,
        keep_alive_requests: int = 0,
        body_min_rate: int = 240,
        request_timeout: float = 0,
    ) -> None: ...
    def drain(self, stage: Stage) -> None: ...

class HttpExchange(Conversation): ...
