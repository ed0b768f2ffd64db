from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextvars import Context
from typing import Any

from fastserve._transport import ProtocolFactory

class ClientDisconnected(OSError): ...

class Http1Factory(ProtocolFactory):
    in_flight: int
    def __init__(
        self,
        application: Callable[..., Awaitable[None]],
        worker: Any,
        *,
        report: Callable[[BaseException], None],
        access: Callable[..., None] | None = None,
        state: dict[str, Any] | None = None,
        scheme: str = "http",
        root_path: str = "",
        server_header: bytes = b"fastserve",
        date_header: bool = True,
        raise_on_disconnect: bool = False,
        limit_request_line: int = 8190,
        limit_request_fields: int = 100,
        limit_request_field_bytes: int = 65536,
        limit_request_body: int | None = None,
        header_timeout: float = 30,
        body_timeout: float = 60,
        keep_alive_timeout: float = 75,
        body_min_rate: int = 240,
    ) -> None: ...
    def drain(self, on_idle: Callable[[], object]) -> None: ...

class HttpExchange:
    def finished(self, error: BaseException | None) -> None: ...
    def cancelled(self) -> None: ...
    def receive(self) -> Coroutine[Any, Any, dict[str, Any]]: ...
    def send(self, message: dict[str, Any]) -> Coroutine[Any, Any, None]: ...

class ApplicationCall(Coroutine[Any, Any, None]):
    suspended: bool
    def enter(self, context: Context, on_suspend: Callable[[], object]) -> None: ...
    def __await__(self) -> Generator[Any, Any]: ...
    def send(self, value: Any) -> Any: ...
    def throw(self, *error: Any) -> Any: ...
    def close(self) -> None: ...
