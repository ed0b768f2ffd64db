"""When a worker process has served enough, and another one is to take its place."""

from __future__ import annotations

import random
import time

from fastserve.config import Config
from fastserve.memory import own_resident

__all__ = ["Recycling"]


class Recycling:
    """The limits of one process, from when it begins to serve."""

    def __init__(self, config: Config) -> None:
        self._requests = config.max_requests
        if self._requests is not None:
            self._requests += random.randint(0, config.max_requests_jitter)
        self._lifetime = config.max_lifetime
        self._memory = config.max_rss
        self._born = time.monotonic()

    def reason(self, requests: int) -> str | None:
        """Why it is enough by now, or None. `requests`: how many were begun."""
        if self._requests is not None and requests >= self._requests:
            return f"{requests} requests"
        if self._lifetime is not None and time.monotonic() - self._born >= self._lifetime:
            return f"{self._lifetime:g} s"
        if self._memory is not None and (memory := own_resident()) > self._memory:
            return f"{memory >> 20} MiB of memory"
        return None
