"""Whether a worker's loop turns: seen by its heart, which beats in the table of the workers.

The loop itself writes the beat, so that one that hangs does not beat, whatever else the process
still does. Who looks counts only the time in which it was able to look: after it was stopped
itself, with the whole machine or the process, nobody is blamed for that.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from fastserve import stacks
from fastserve._shared import Row
from fastserve.log import logger

__all__ = ["Pulse", "watching"]

# Looks within the shortest time that matters, but not more often than this.
LOOKS = 4
SHORTEST_INTERVAL = 0.05
LONGEST_INTERVAL = 1.0


class Pulse:
    """The beat in `row`, looked at four times in `seconds` or oftener."""

    def __init__(self, row: Row, seconds: float) -> None:
        self.interval = min(max(seconds / LOOKS, SHORTEST_INTERVAL), LONGEST_INTERVAL)
        self.still = 0.0  # seconds in which there was no beat
        self.missed = 0.0  # seconds by which the last look came too late
        self._row = row
        self._beat = row.beat
        self._looked = time.monotonic()

    @property
    def next_look(self) -> float:
        return self._looked + self.interval

    def look(self) -> None:
        now, beat = time.monotonic(), self._row.beat
        passed, self._looked = now - self._looked, now
        self.missed = max(passed - 2 * self.interval, 0.0)
        turned = beat != self._beat or not beat
        self.still = 0.0 if turned else self.still + passed - self.missed
        self._beat = beat


@contextmanager
def watching(row: Row, seconds: float) -> Iterator[None]:
    """Log where this thread, whose loop writes to `row`, stands when the loop has had no turn
    for so many seconds. 0: never."""
    if not seconds:
        yield
        return
    over = threading.Event()
    watch = _Watch(row, seconds, threading.get_ident())
    thread = threading.Thread(
        target=watch.run, args=(over,), name="fastserve-watchdog", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(LONGEST_INTERVAL)  # unless it cannot write what it has to say


class _Watch:
    def __init__(self, row: Row, seconds: float, thread: int) -> None:
        self._pulse = Pulse(row, seconds)
        self._seconds = seconds
        self._thread = thread  # which runs the loop
        self._told = 0.0  # how long the present stall was when it was last looked at

    def run(self, over: threading.Event) -> None:
        ends = False
        while not ends:
            ends = over.wait(self._pulse.interval)
            self._pulse.look()
            if self._pulse.missed >= self._seconds:
                logger.warning(
                    "nothing ran in this process for %.1f s: it was stopped, had no processor,"
                    " or C code kept the interpreter's lock",
                    self._pulse.missed,
                )
            if self._pulse.still:
                self._stalls(self._pulse.still)
            elif self._told:
                logger.warning("the loop turns again, after %.1f s", self._told)
                self._told = 0.0

    def _stalls(self, seconds: float) -> None:
        if not self._told:
            if seconds < self._seconds:
                return
            logger.warning(
                "the loop has had no turn for %.1f s, its thread stands at\n%s",
                seconds,
                stacks.of_thread(self._thread).rstrip(),
            )
        self._told = seconds
