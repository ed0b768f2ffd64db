"""A bounded number of threads for functions that block. No event loop is known here."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue

__all__ = ["Threads"]


class Threads:
    """At most `limit` threads, each started when it is needed; jobs run first come, first served.

    Resource handling: a thread without a job waits for the next one until `close`. They are
    daemons, for one that never returns must not keep the process from ending.

    Error handling: a job handles its own errors.
    """

    def __init__(self, limit: int = 1) -> None:
        self.limit = limit
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._count = 0
        self._free = 0  # threads without a job; below zero, jobs without a thread

    def start(self, job: Callable[[], None]) -> None:
        """Run `job()` as soon as a thread is free. Raises RuntimeError if the first thread
        cannot be started."""
        with self._lock:
            self._free -= 1
            grows = self._free < 0 and self._count < self.limit
            if grows:
                self._count += 1
                self._free += 1
        self._jobs.put(job)
        if grows:
            self._grow()

    def _grow(self) -> None:
        name = f"fastserve-{self._count}"
        try:
            threading.Thread(target=self._work, name=name, daemon=True).start()
        except RuntimeError:
            with self._lock:
                self._count -= 1
                self._free -= 1
                if self._count == 0:
                    raise  # else the threads that there are will come to it

    def close(self) -> None:
        """Every thread ends: now, or when its job has. What was not begun is begun first."""
        with self._lock:
            for _ in range(self._count):
                self._jobs.put(None)
            self._count = 0

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
            del job  # not to be kept while the thread waits
            with self._lock:
                self._free += 1
