from collections.abc import Iterable
from typing import Any, final

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
