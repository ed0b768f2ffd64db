import ssl
from collections.abc import Callable
from typing import Any

from fastserve._transport import Protocol, ProtocolFactory, Transport

class TlsFactory(ProtocolFactory):
    def __init__(
        self,
        inner: ProtocolFactory,
        wrap: Callable[[ssl.MemoryBIO, ssl.MemoryBIO], ssl.SSLObject],
        *,
        describe: Callable[[ssl.SSLObject], dict[str, Any]],
        handshake_timeout: float = 60,
    ) -> None: ...

class TlsProtocol(Protocol): ...
class TlsTransport(Transport): ...
