from collections.abc import Callable, Iterable, Mapping
from typing import Any, final

@final
class Entry: ...

@final
class LineBuffer: ...

@final
class AccessLines:
    def __init__(
        self,
        parts: Iterable[tuple[str, str, int, bytes]],
        *,
        wake: Callable[[None], object],
        full: Callable[[], object],
        names: Mapping[str, Mapping[int, bytes]] | None = None,
        excluded: Iterable[bytes] = (),
        sample: float = 1,
        seed: bytes = ...,
    ) -> None: ...
    def take(self) -> tuple[bytes, int]: ...
    def write(
        self,
        *,
        client: tuple[str, int] | str | None = None,
        method: str = "GET",
        raw_path: bytes = b"/",
        query_string: bytes = b"",
        minor_version: int = 1,
        scheme: str = "http",
        tls: dict[str, Any] | None = None,
        headers: Iterable[tuple[bytes, bytes]] = (),
        answered: object = (),
        status: int = 200,
        sent: int = 0,
        received: int = 0,
        duration: int = 0,
        queued: int | None = None,
        first_byte: int | None = None,
        moment: int = 0,
        trusted: bool = False,
    ) -> None: ...
