from enum import IntFlag

class Stage(IntFlag):
    SERVING = 0
    LAST_ANSWERS = 1
    END_IDLE = 2
    END_ENDLESS = 3
    END_ALL = 4

class Transport:
    server: tuple[str, int | None] | None
    client: tuple[str, int] | None

class Protocol: ...
class ProtocolFactory: ...
