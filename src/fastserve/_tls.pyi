import ssl
from collections.abc import Callable
from typing import Any, final

from fastserve._transport import Protocol, ProtocolFactory, Transport

@final
class TlsFactory(ProtocolFactory):
    def __init__(
        self,
        inner: ProtocolFactory,
        wrap: Callable[[ssl.MemoryBIO, ssl.MemoryBIO], ssl.SSLObject],
        *,
        describe: Callable[[ssl.SSLObject], dict[str, Any]],
        handshake_timeout: float = 60,
    ) -> None: ...

@final
class TlsProtocol(Protocol): ...

@final
class TlsTransport(Transport): ...
