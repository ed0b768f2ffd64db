"""Metrics for a StatsD server: what was counted, as differences, in datagrams."""

from __future__ import annotations

import contextlib
import itertools
import math
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from fastserve._shared import BUCKETS_END_AT, Row
from fastserve.checks import parse_bind
from fastserve.config import Config
from fastserve.log import logger

__all__ = ["Statsd"]

# Seconds between two words of it.
INTERVAL = 1.0
# How many durations stand for those of an interval.
SAMPLES = 100
# Bytes, so that no network need split them.
DATAGRAM = 1400

Address = tuple[Any, ...] | str


class Statsd:
    """Sends what `totals()` has grown by, from time to time, if the configuration says where:
    `turn()` is to be called when it is `due`. Nobody waits, and what cannot be sent is lost.

    Resource handling: `close()` sends the rest.
    """

    def __init__(self, config: Config, totals: Callable[[], Row]) -> None:
        self._prefix = config.statsd_prefix.rstrip(".")
        self._prefix += ".fastserve." if self._prefix else "fastserve."
        self._tags = f"|#{config.dogstatsd_tags}" if config.dogstatsd_tags else ""
        self._totals = totals
        self._responses: dict[str, int] = {}
        self._durations = [0] * (len(BUCKETS_END_AT) + 1)
        self._socket: socket.socket | None = None
        self.due = math.inf
        if config.statsd_host is None:
            return
        try:
            self._socket, self._address = _open(config.statsd_host)
        except (OSError, UnicodeError) as error:
            logger.error("no metrics are sent to %s: %s", config.statsd_host, error)
        else:
            self.due = time.monotonic() + INTERVAL

    def turn(self) -> None:
        now = time.monotonic()
        if self._socket is not None and now >= self.due:
            self.due = now + INTERVAL
            self._send(self._socket)

    def close(self) -> None:
        if self._socket is not None:
            self._send(self._socket)
            self.abandon()

    def abandon(self) -> None:
        """In a process that is another's copy."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, sender: socket.socket) -> None:
        for datagram in _datagrams(self._lines()):
            with contextlib.suppress(OSError):
                sender.sendto(datagram, self._address)

    def _lines(self) -> Iterator[str]:
        totals = self._totals()
        responses, (durations, _) = totals.responses, totals.duration
        grown = {
            status: count - self._responses.get(status, 0) for status, count in responses.items()
        }
        before, self._responses = self._durations, responses
        self._durations = durations
        if sum(grown.values()):
            yield self._line("requests", f"{sum(grown.values())}|c")
        for status, count in grown.items():
            if count:
                yield self._line(f"request.status.{status}", f"{count}|c")
        new = [now - then for now, then in zip(durations, before, strict=True)]
        share = min(1.0, SAMPLES / max(sum(new), 1))
        rate = f"|@{share:.9g}" if share < 1 else ""
        for seconds in _samples(new):
            yield self._line("request.duration", f"{1000 * seconds:.3f}|ms{rate}")

    def _line(self, name: str, value: str) -> str:
        return f"{self._prefix}{name}:{value}{self._tags}"


def _open(text: str) -> tuple[socket.socket, Address]:
    """A socket, and where to send to. Raises OSError, UnicodeError."""
    bind = parse_bind(text)
    family: int = socket.AF_UNIX
    address: Address = bind.path
    if bind.kind == "tcp":
        found = socket.getaddrinfo(bind.host, bind.port, type=socket.SOCK_DGRAM)
        # Where a name has both, most of these servers listen on IPv4 alone, and none would tell.
        family, *_, address = min(found, key=lambda each: each[0] != socket.AF_INET)
    sender = socket.socket(family, socket.SOCK_DGRAM)
    sender.setblocking(False)
    return sender, address


def _samples(counts: list[int]) -> Iterator[float]:
    """Seconds, at most SAMPLES, that are spread as those in the buckets are, and evenly in each:
    all of them stand for the same number."""
    total = sum(counts)
    number = min(total, SAMPLES)
    ends = [*BUCKETS_END_AT, BUCKETS_END_AT[-1]]
    upto = list(itertools.accumulate(counts))
    for index in range(number):
        rank = (index + 0.5) * total / number
        bucket = next(place for place, count in enumerate(upto) if rank <= count)
        begin = ends[bucket - 1] if bucket else 0.0
        within = 1 - (upto[bucket] - rank) / counts[bucket]
        yield begin + (ends[bucket] - begin) * within


def _datagrams(lines: Iterable[str]) -> Iterator[bytes]:
    gathered = b""
    for line in lines:
        encoded = line.encode("ascii")
        if gathered and len(gathered) + 1 + len(encoded) > DATAGRAM:
            yield gathered
            gathered = b""
        gathered += b"\n" + encoded if gathered else encoded
    if gathered:
        yield gathered
