"""An ASGI server with a compiled core, for asyncio, uvloop and trio.

The public names are imported when they are first asked for: `fastserve --help`
and `fastserve.__version__` need neither the compiled modules nor an event loop.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastserve._conversation import ClientDisconnected
    from fastserve.config import Config, ConfigError
    from fastserve.launch import run
    from fastserve.server import serve

__version__ = "0.1.0"

__all__ = ["ClientDisconnected", "Config", "ConfigError", "__version__", "run", "serve"]

_HOMES = {
    "ClientDisconnected": "fastserve._conversation",
    "Config": "fastserve.config",
    "ConfigError": "fastserve.config",
    "run": "fastserve.launch",
    "serve": "fastserve.server",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
