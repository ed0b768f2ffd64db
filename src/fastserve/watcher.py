"""Which files of an application change: for --reload."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from pathlib import Path
from types import TracebackType

from fastserve.checks import ConfigError
from fastserve.config import Config

__all__ = ["Watcher"]

# Milliseconds: several files that are saved at once are one change.
TOGETHER = 200
# Between two looks at whether it is over.
LOOK = 500


class Watcher:
    """The files below some folders, from the beginning to the end of its context. Its
    descriptor is readable when some have changed.

    Raises ConfigError where a folder is missing, or watchfiles is.
    """

    def __init__(self, config: Config) -> None:
        try:
            import watchfiles
        except ImportError:
            raise ConfigError(
                "--reload needs watchfiles: pip install 'fastserve-asgi[reload]'"
            ) from None
        self._folders = config.reload_dir or (config.app_dir or ".",)
        for folder in self._folders:
            if not os.path.isdir(folder):
                raise ConfigError(f"--reload-dir: {folder!r} is no folder")
        self._include = config.reload_include
        self._exclude = config.reload_exclude
        self._usual = watchfiles.DefaultFilter()
        self._watch = watchfiles.watch
        self._changed: set[str] = set()
        self._over = threading.Event()
        self._receiver, self._sender = socket.socketpair()
        self._receiver.setblocking(False)
        self._thread = threading.Thread(target=self._run, name="fastserve-watcher", daemon=True)

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()
        self._receiver.close()
        self._sender.close()

    def fileno(self) -> int:
        return self._receiver.fileno()

    def take(self) -> list[str]:
        """The paths that have changed since the last call."""
        with contextlib.suppress(BlockingIOError):
            self._receiver.recv(4096)
        changed, self._changed = self._changed, set()
        return sorted(changed)

    def _run(self) -> None:
        changes = self._watch(
            *self._folders,
            watch_filter=lambda change, path: self._usual(change, path) and self._matters(path),
            debounce=TOGETHER,
            rust_timeout=LOOK,
            stop_event=self._over,
        )
        for change in changes:
            self._changed |= {os.path.relpath(path) for _, path in change}
            self._sender.send(b"!")

    def _matters(self, path: str) -> bool:
        file = Path(path)
        return any(file.match(pattern) for pattern in self._include) and not any(
            file.match(pattern) for pattern in self._exclude
        )
