from collections.abc import Iterable
from typing import Any, final

from fastserve._transport import Protocol, ProtocolFactory

@final
class Trust:
    def __new__(
        cls,
        networks: Iterable[tuple[bytes, int]] = (),
        *,
        unix: bool = False,
        anyone: bool = False,
        names: Iterable[str] = (),
        hops: int = 0,
    ) -> Trust: ...
    def believe(self, client: tuple[str, int] | None) -> Origin | None: ...

@final
class Origin:
    def tell(self, headers: list[tuple[bytes, bytes]], scheme: str = "http") -> dict[str, Any]: ...

@final
class ProxyHeader:
    local: bool
    told: bool
    source: tuple[str, int] | None
    destination: tuple[str, int] | None
    def feed(self, data: bytes) -> tuple[Any, ...]: ...

@final
class ProxyFactory(ProtocolFactory):
    def __init__(self, inner: ProtocolFactory, trust: Trust, *, timeout: float) -> None: ...

@final
class ProxyProtocol(Protocol): ...
