"""What a supervisor tells those who watch it: the admin listener's pages, and StatsD."""

from __future__ import annotations

import dataclasses
import json
import selectors
import socket
from collections.abc import Callable, Iterable

from fastserve._shared import Row
from fastserve.admin import AdminListener, Page
from fastserve.config import Config
from fastserve.log import logger
from fastserve.metrics import Exposition, Snapshot
from fastserve.statsd import Statsd

__all__ = ["Monitoring"]


class Monitoring:
    """Shows what `snapshot()` says to those who ask, and sends what `totals()` says. Its owner
    calls `turn()` from time to time, when it is `due` at the latest.

    Resource handling: `close()` sends the rest, and ends the connections; `abandon()` is for
    a process that is another's copy.
    """

    def __init__(
        self,
        config: Config,
        selector: selectors.BaseSelector,
        snapshot: Callable[[], Snapshot],
        totals: Callable[[], Row],
    ) -> None:
        self._snapshot = snapshot
        self._admin = AdminListener(selector, self._pages() if config.admin_bind else {})
        self._statsd = Statsd(config, totals)

    @property
    def due(self) -> float:
        return min(self._admin.due, self._statsd.due)

    def turn(self) -> None:
        self._admin.turn()
        self._statsd.turn()

    def listen(self, listening: Iterable[socket.socket]) -> None:
        self._admin.listen(listening)

    def stop_listening(self) -> None:
        self._admin.stop_listening()

    def close(self) -> None:
        self._admin.close()
        self._statsd.close()

    def abandon(self) -> None:
        self._admin.close()
        self._statsd.abandon()

    def _pages(self) -> dict[str, Callable[[], Page]]:
        pages = {"/live": _live, "/ready": self._ready, "/workers": self._workers}
        try:
            exposition = Exposition(self._snapshot)
        except ImportError:
            logger.warning(
                "--admin-bind: there is no /metrics without prometheus-client:"
                " pip install 'fastserve-asgi[metrics]'"
            )
        else:
            pages["/metrics"] = lambda: Page(exposition.render(), media_type=exposition.media_type)
        return pages

    def _ready(self) -> Page:
        state = self._snapshot().state
        return Page(f"{state}\n", 200 if state == "ready" else 503)

    def _workers(self) -> Page:
        shown = [dataclasses.asdict(each) for each in self._snapshot().workers]
        return Page(json.dumps(shown, indent=2) + "\n", media_type="application/json")


def _live() -> Page:
    return Page("live\n")
