"""What the scripts have measured, read again: figures of each round, by scenario and server.

A file of results has the machine, the packages, the scenarios' titles, and `rounds`: for each scenario
and server a list with the figures of each round by name, or null where a run did not count.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import servers

BEST_PEER = "best peer"


@dataclass(frozen=True)
class Cell:
    """A figure's place. The server may be BEST_PEER: whose median is the lowest there."""

    script: str
    scenario: str
    server: str
    figure: str = "cpu_us"


@dataclass(frozen=True)
class Summary:
    median: float
    least: float
    most: float


class Figures:
    """All files of a folder, by the names of the scripts that wrote them."""

    def __init__(self, folder: Path) -> None:
        self.runs: dict[str, dict[str, Any]] = {
            path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))
        }

    def title(self, script: str, scenario: str) -> str:
        title: str = self.runs[script]["scenarios"][scenario]
        return title

    def measured(self, script: str, scenario: str) -> list[str]:
        """The servers that were asked, in order."""
        return list(self.runs.get(script, {}).get("rounds", {}).get(scenario, {}))

    def of(self, cell: Cell) -> list[float | None]:
        """The figure in each round; an empty list if it was not measured."""
        rounds = self.runs.get(cell.script, {}).get("rounds", {})
        samples = rounds.get(cell.scenario, {}).get(cell.server, [])
        return [sample.get(cell.figure) if sample else None for sample in samples]

    def summary(self, cell: Cell) -> Summary | None:
        return summarize(self.of(cell))

    def found(self, cell: Cell) -> Cell | None:
        """The cell itself, or the best peer's."""
        if cell.server != BEST_PEER:
            return cell
        peers = [
            replace(cell, server=name)
            for name in self.measured(cell.script, cell.scenario)
            if servers.is_peer(name)
        ]
        medians = {peer: found.median for peer in peers if (found := self.summary(peer))}
        return min(medians, key=medians.__getitem__, default=None)

    def compared(
        self, one: Cell, other: Cell, how: Callable[[float, float], float]
    ) -> Summary | None:
        """Of what `how` gives in each round, in which both met the same minute of the machine."""
        left, right = self.found(one), self.found(other)
        if left is None or right is None:
            return None
        pairs = zip(self.of(left), self.of(right), strict=False)
        return summarize([how(a, b) if a is not None and b else None for a, b in pairs])

    def ratio(self, one: Cell, other: Cell) -> Summary | None:
        return self.compared(one, other, lambda a, b: a / b)


def summarize(values: list[float | None]) -> Summary | None:
    known = [value for value in values if value is not None]
    return Summary(statistics.median(known), min(known), max(known)) if known else None
