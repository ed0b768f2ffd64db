from typing import Any, final

from fastserve._forwarded import Trust
from fastserve._transport import Protocol, ProtocolFactory

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
