"""Draws bars, as an SVG and a PNG: report.py says what, as JSON on stdin.

    {"folder": "docs", "charts": {"requests": {"digest": "...", "note": "...", "panels": [
        {"title": "get requests/second", "bars": [
            {"name": "granian", "ours": false, "median": 9144, "least": 9000, "most": 9300}]}]}}}

The same figures give the same bytes: no date, no random names.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

OURS, OTHERS, SPREAD = "#2a6fb0", "#a9b1ba", "#444444"
BAR_INCHES, WIDTH_INCHES, TITLE_INCHES = 0.26, 7.5, 0.55
STYLE = {
    "svg.hashsalt": "fastserve",
    # Text as text, in whatever sans the reader has: small, and it can be searched.
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
}


def draw_panel(axes: Axes, title: str, bars: list[dict[str, Any]]) -> None:
    names = [bar["name"] for bar in bars]
    medians = [bar["median"] for bar in bars]
    spread = [
        [bar["median"] - bar["least"] for bar in bars],
        [bar["most"] - bar["median"] for bar in bars],
    ]
    colours = [OURS if bar["ours"] else OTHERS for bar in bars]
    axes.barh(names, medians, color=colours, xerr=spread, ecolor=SPREAD, capsize=2)
    furthest = max(bar["most"] for bar in bars)
    for number, bar in enumerate(bars):
        axes.text(bar["most"] + furthest * 0.015, number, f"{bar['median']:,.0f}", va="center")
    axes.set_title(title, loc="left", fontweight="bold")
    axes.set_xlim(0, furthest * 1.12)
    axes.margins(y=0.02)
    axes.xaxis.set_visible(False)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.tick_params(axis="y", length=0)


def draw(stem: Path, digest: str, note: str, panels: list[dict[str, Any]]) -> None:
    heights = [len(panel["bars"]) * BAR_INCHES + TITLE_INCHES for panel in panels]
    figure = Figure(figsize=(WIDTH_INCHES, sum(heights)), layout="constrained")
    grid = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)
    for axes, panel in zip(grid[:, 0], panels, strict=True):
        draw_panel(axes, panel["title"], panel["bars"])
    figure.supxlabel(note, fontsize="small", color=SPREAD, x=0.01, ha="left")
    figure.savefig(
        stem.with_suffix(".svg"), metadata={"Date": None, "Creator": None, "Description": digest}
    )
    figure.savefig(
        stem.with_suffix(".png"), dpi=150, metadata={"Software": None, "Description": digest}
    )


def main() -> None:
    asked = json.load(sys.stdin)
    with matplotlib.rc_context(STYLE):
        for name, chart in asked["charts"].items():
            draw(Path(asked["folder"]) / name, chart["digest"], chart["note"], chart["panels"])


if __name__ == "__main__":
    main()
