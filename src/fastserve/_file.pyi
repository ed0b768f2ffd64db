from typing import final

@final
class File:
    fd: int
    size: int
