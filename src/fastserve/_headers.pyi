from collections.abc import Iterable
from typing import final

@final
class DateLine:
    def render(self) -> bytes: ...

@final
class ResponseHead:
    status: int
    content_length: int
    close: bool
    has_date: bool
    has_server: bool
    def begin(self, status: int, headers: Iterable[tuple[bytes, bytes]] = ()) -> None: ...
    def render(self) -> bytes: ...
