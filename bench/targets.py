"""What fastserve is to reach, and whether the figures say that it does."""

from __future__ import annotations

from dataclasses import dataclass, replace

from figures import BEST_PEER, Cell, Figures, Summary

UVLOOP, ASYNCIO, TRIO = "fastserve-uvloop", "fastserve-asyncio", "fastserve-trio"


@dataclass(frozen=True)
class Target:
    """A figure, or what it is beside another one: `against` gives a multiple, `above` a difference."""

    what: str
    cell: Cell
    limit: float
    unit: str = " x"
    against: Cell | None = None
    above: Cell | None = None
    least: bool = False  # the limit is from below

    def measured(self, figures: Figures) -> Summary | None:
        if self.against is not None:
            return figures.ratio(self.cell, self.against)
        if self.above is not None:
            return figures.compared(self.cell, self.above, lambda a, b: a - b)
        return figures.summary(self.cell)

    def met(self, found: Summary) -> bool:
        return found.median >= self.limit if self.least else found.median <= self.limit

    def peer(self, figures: Figures) -> str:
        """Which peer was the best, where that is asked."""
        for cell in (self.cell, self.against):
            if cell is not None and cell.server == BEST_PEER:
                found = figures.found(cell)
                return found.server if found else ""
        return ""


def _http(scenario: str, server: str, figure: str = "cpu_us") -> Cell:
    return Cell("http", scenario, server, figure)


def _cheaper(what: str, scenario: str, limit: float, server: str = UVLOOP) -> Target:
    """At most so many times the best peer's cost."""
    cell = _http(scenario, server)
    return Target(what, cell, limit, against=replace(cell, server=BEST_PEER))


def _dearer(what: str, scenario: str, limit: float, peer: str, server: str = UVLOOP) -> Target:
    """A peer costs at least so many times what we do."""
    return Target(what, _http(scenario, peer), limit, against=_http(scenario, server), least=True)


def _beside(what: str, scenario: str, limit: float, other: str, server: str = UVLOOP) -> Target:
    """At most so many times the other's cost."""
    return Target(what, _http(scenario, server), limit, against=_http(scenario, other))


def _more(what: str, scenario: str, plain: str, limit: float) -> Target:
    """At most so many times our own cost in another scenario."""
    return Target(what, _http(scenario, UVLOOP), limit, against=_http(plain, UVLOOP))


def _message(what: str, scenario: str, limit: float, other: str, server: str = UVLOOP) -> Target:
    cell = Cell("websocket", scenario, server)
    return Target(what, cell, limit, against=replace(cell, server=other))


TARGETS = (
    _beside("plaintext GET, uvloop against the floor", "plaintext", 1.7, "floor"),
    _beside("asyncio against the floor", "plaintext", 2.1, "floor", ASYNCIO),
    _beside("trio against our own uvloop", "plaintext", 1.5, UVLOOP, TRIO),
    _dearer("uvicorn (httptools) against our uvloop", "plaintext", 3.3, "uvicorn"),
    _dearer("granian against our uvloop", "plaintext", 1.9, "granian"),
    _dearer("hypercorn on trio against our trio", "plaintext", 45, "hypercorn-trio", TRIO),
    _dearer("a browser's GET, uvicorn against our uvloop", "browser", 3.3, "uvicorn"),
    _cheaper("16 pipelined GETs against the best peer", "pipelined", 0.3),
    _beside("one connection against the floor", "one", 2.2, "floor"),
    _cheaper("an answer of 256 KiB against the best peer", "body-256k", 0.8),
    _cheaper("1 MiB streamed in 16 KiB against the best peer", "streamed", 0.75),
    _cheaper("an upload of 1 MiB against the best peer", "upload", 0.7),
    Target(
        "TLS, above our own cleartext",
        _http("tls", UVLOOP),
        8.5,
        " us",
        above=_http("plaintext", UVLOOP),
    ),
    _beside("TLS against granian", "tls", 0.7, "granian"),
    _beside("TLS against uvicorn", "tls", 0.45, "uvicorn"),
    _beside("TLS, trio against granian", "tls", 1.0, "granian", TRIO),
    Target(
        "TLS connections a second, against uvicorn",
        _http("handshakes", UVLOOP, "per_second"),
        1.0,
        against=_http("handshakes", "uvicorn", "per_second"),
        least=True,
    ),
    _cheaper("a file of 256 KiB against the best peer", "file-256k", 0.5),
    _cheaper("a file of 100 MiB against the best peer", "file-100m", 0.5),
    _more("forwarded fields believed, against not", "forwarded", "distrusted", 1.03),
    _more("an access log, against none", "logged", "plaintext", 1.08),
    _dearer("an access log, the best peer against us", "logged", 6.0, BEST_PEER),
    _more("a supervisor that counts, against none", "supervised", "plaintext", 1.03),
    _message("WebSocket echo of 100 B against the best peer", "small", 0.5, BEST_PEER),
    _message("the same, trio", "small", 0.8, BEST_PEER, TRIO),
    _message("WebSocket echo of 8 KiB against the best peer", "large", 0.5, BEST_PEER),
    _message("a broadcast against the bare loop", "broadcast", 1.5, "floor"),
    _message("a broadcast against the best peer", "broadcast", 0.6, BEST_PEER),
    *(
        Target(
            f"an idle WebSocket that has echoed 1 KiB, compressed; {name}",
            Cell("websocket", "idle", server, "kib"),
            16,
            " KiB",
        )
        for name, server in (("asyncio", ASYNCIO), ("uvloop", UVLOOP))
    ),
    *(
        Target(
            f"an idle HTTP connection, beyond the kernel's; {name}",
            Cell("memory", "idle", server, "kib"),
            2,
            " KiB",
        )
        for name, server in (("asyncio", ASYNCIO), ("uvloop", UVLOOP), ("trio", TRIO))
    ),
    Target(
        "share of the worker of four with fewest connections",
        Cell("workers", "share", UVLOOP, "least_percent"),
        20,
        " %",
        least=True,
    ),
    Target(
        "and of that with most",
        Cell("workers", "share", UVLOOP, "most_percent"),
        30,
        " %",
    ),
    Target(
        "p99 of new connections while one worker of four is blocked, against none",
        Cell("workers", "blocked", UVLOOP, "p99_us"),
        2.0,
        against=Cell("workers", "calm", UVLOOP, "p99_us"),
    ),
    *(
        Target(
            f"instructions of a request, one connection; {name}",
            Cell("instructions", "plaintext", server, "instructions"),
            limit,
            "",
        )
        for name, server, limit in (
            ("uvloop", UVLOOP, 30_000),
            ("asyncio", ASYNCIO, 45_000),
            ("trio", TRIO, 120_000),
        )
    ),
)
