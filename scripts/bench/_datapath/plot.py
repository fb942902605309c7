"""The picture: of every case the CPU time, the latency a system adds, and its memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .goals import OURS

Row = dict[str, Any]
_OURS, _OTHERS, _SPREAD = "#0b7285", "#adb5bd", "#495057"
_LATENCIES = (
    ("added_alone_p50_ms", "o", "p50, 1 connection"),
    ("added_alone_p99_ms", "D", "p99, 1 connection"),
    ("added_p50_ms", "o", "p50, under load"),
    ("added_p99_ms", "D", "p99, under load"),
)
_LINEAR_MS = 0.1
"""Differences below that are noise and may be negative: the axis is linear there, and logarithmic above."""


def draw(rows: list[Row], target: Path) -> None:
    """A line of three panels per case, the dearest system on top.

    Args:
        rows: records, those of the engine itself left out.
        target: the file; its ending names the format.

    Raises:
        OSError: it cannot be written.
    """
    cases = list(dict.fromkeys(row["case"] for row in rows))
    heights = [1.1 + 0.27 * sum(row["case"] == case for row in rows) for case in cases]
    figure = Figure(figsize=(17, sum(heights) + 0.4), layout="constrained")
    panels = figure.subplots(len(cases), 3, squeeze=False, height_ratios=heights)
    for (cost, latency, memory), case in zip(panels, cases, strict=True):
        of_case = sorted((row for row in rows if row["case"] == case), key=lambda row: row["cpu_us_per_request"])
        _draw_cost(cost, of_case)
        _draw_latency(latency, of_case)
        _draw_memory(memory, of_case)
        for panel, what in ((cost, "CPU us per request"), (latency, "added latency, ms"), (memory, "RSS, MiB")):
            panel.set_title(f"{case}: {what}", fontsize=10)
            panel.spines[["top", "right"]].set_visible(False)
    handles, labels = panels[0][1].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, ncols=len(labels), loc="outside lower center", title="added latency")
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=110)


def _draw_cost(panel: Axes, of_case: list[Row]) -> None:
    """The range over the rounds as a whisker."""
    cost = [row["cpu_us_per_request"] for row in of_case]
    spread = [
        [row["cpu_us_per_request"] - row["cpu_us_min"] for row in of_case],
        [row["cpu_us_max"] - row["cpu_us_per_request"] for row in of_case],
    ]
    _draw_bars(panel, of_case, cost, spread)


def _draw_memory(panel: Axes, of_case: list[Row]) -> None:
    _draw_bars(panel, of_case, [row["rss_mb"] for row in of_case], None)


def _draw_bars(panel: Axes, of_case: list[Row], values: list[float], spread: list[list[float]] | None) -> None:
    """Logarithmic where the values span decades."""
    colors = [_OURS if row["system"] == OURS else _OTHERS for row in of_case]
    bars = panel.barh([row["system"] for row in of_case], values, xerr=spread, color=colors, ecolor=_SPREAD)
    panel.bar_label(bars, [f"{value:,.0f}" for value in values], padding=6, fontsize=8)
    far = min(values) > 0 and max(values) > 60 * min(values)
    if far:
        panel.set_xscale("log")
    panel.set_xlim(left=1 if far else 0, right=max(values) * (8 if far else 1.3) or 1)


def _draw_latency(panel: Axes, of_case: list[Row]) -> None:
    names = [row["system"] for row in of_case]
    for name, marker, label in _LATENCIES:
        known = [(row[name], place) for place, row in enumerate(of_case) if name in row]
        colors = [_OURS if of_case[place]["system"] == OURS else _SPREAD for _, place in known]
        filled = colors if "alone" in name else "none"
        at, places = zip(*known, strict=True) if known else ((), ())
        panel.scatter(at, places, marker=marker, s=26, facecolors=filled, edgecolors=colors, label=label)
    panel.set_xscale("symlog", linthresh=_LINEAR_MS)
    panel.axvline(0, color=_OTHERS, linewidth=0.8)
    panel.set_yticks(range(len(names)), names)
    panel.set_ylim(-0.6, len(names) - 0.4)
