"""The bench's sections as a picture: a panel each for those that say more as one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .cells import TIDEGATE
from .sections import Section

OURS, OTHERS = "#0b7285", "#adb5bd"
_PEERS = ("#e8590c", "#5f3dc4", "#2b8a3e", "#c2255c", "#846358", "#1864ab")
_LINES, _MARKERS = ("-", "--", ":", "-."), "osD^"
_COLUMNS = 3


def draw(sections: Sequence[Section], target: Path) -> bool:
    """Draw the sections that have a panel and rows, in the order of `PANELS`.

    Args:
        sections: of one run.
        target: the file; its ending names the format.

    Returns:
        Whether there was anything to draw.

    Raises:
        OSError: the file cannot be written.
    """
    # Of two sections of one kind (misses at two loads) the first is drawn.
    found = [next((s for s in sections if words in s.title and s.rows), None) for words in PANELS]
    pairs = [(section, panel) for section, panel in zip(found, PANELS.values(), strict=True) if section is not None]
    if not pairs:
        return False
    columns = min(_COLUMNS, len(pairs))
    lines = -(-len(pairs) // columns)
    figure = Figure(figsize=(6.4 * columns, 4.8 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).flat
    for axis, (section, panel) in zip(axes, pairs, strict=False):
        panel(axis, section)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in list(axes)[len(pairs) :]:
        axis.set_visible(False)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=110)
    return True


def _capacity(axis: Axes, section: Section) -> None:
    rows = sorted(section.rows, key=lambda row: row["mean"])
    colors = [OURS if row["policy"] == TIDEGATE else OTHERS for row in rows]
    bars = axis.barh([row["policy"] for row in rows], [row["mean"] for row in rows], color=colors)
    axis.bar_label(bars, [f"{row['mean']:.2f}" for row in rows], padding=4, fontsize=8)
    axis.set_title("load at 95 % attainment (geometric mean)", fontsize=10)


def _misses(axis: Axes, section: Section) -> None:
    rows = [row for row in section.rows if "misses %" in row]
    policies = list(dict.fromkeys(row["policy"] for row in rows))
    traces = list(dict.fromkeys(row["trace"] for row in rows))
    for k, trace in enumerate(traces):
        values = {row["policy"]: row["misses %"] for row in rows if row["trace"] == trace}
        axis.scatter([values[p] for p in policies], policies, marker=_MARKERS[k % 4], label=trace, s=24)
    axis.set_xscale("symlog", linthresh=1)
    axis.set_xlabel("% of requests that miss a limit")
    axis.legend(fontsize=8)
    axis.set_title(section.title, fontsize=10)


def _goodput(axis: Axes, section: Section) -> None:
    _curves(axis, section, "x", "load", relative=True)
    axis.set_title("goodput past saturation, of that at 0.9x", fontsize=10)


def _sweep(axis: Axes, section: Section) -> None:
    _curves(axis, section, "x", "load")


def _ages(axis: Axes, section: Section) -> None:
    _curves(axis, section, " s", "age of the signals, s")


def _routers(axis: Axes, section: Section) -> None:
    _curves(axis, section, "", "routers")
    axis.set_xscale("log", base=2)
    axis.set_xticks(counts := [int(column) for column in section.columns if column.isdigit()], map(str, counts))
    axis.minorticks_off()


def _curves(axis: Axes, section: Section, unit: str, label: str, relative: bool = False) -> None:
    """A line per row over the columns that are a number with this unit: a colour per policy, a stroke per trace."""
    points = {column: float(column.removesuffix(unit)) for column in section.columns if _is_number(column, unit)}
    others = [name for name in dict.fromkeys(row["policy"] for row in section.rows) if name != TIDEGATE]
    colors = {TIDEGATE: OURS} | {name: _PEERS[k % len(_PEERS)] for k, name in enumerate(others)}
    traces = list(dict.fromkeys(row["trace"] for row in section.rows))
    ways = list(dict.fromkeys(row.get("notices", "") for row in section.rows))
    for row in section.rows:
        values = [row[column] for column in points]
        base = values[0] or 1e-9 if relative else 1.0
        way = row.get("notices", "")
        axis.plot(
            list(points.values()),
            [value / base for value in values],
            color=colors[row["policy"]],
            linestyle=_LINES[traces.index(row["trace"]) % len(_LINES)],
            linewidth=2.0 if row["policy"] == TIDEGATE else 1.0,
            marker=_MARKERS[ways.index(way) % len(_MARKERS)],
            markersize=4,
            label=", ".join(filter(None, (row["policy"], row["trace"], way))),
        )
    axis.set_xlabel(label)
    axis.set_title(section.title, fontsize=10)
    axis.legend(fontsize=5.5, ncols=1 + len(section.rows) // 14)


def _is_number(column: str, unit: str) -> bool:
    return column.endswith(unit) and column.removesuffix(unit).replace(".", "", 1).isdigit()


def _spill(axis: Axes, section: Section) -> None:
    """What left, in requests (the bar) and in tokens (the mark); hatched where 95 % were not reached."""
    rows = section.rows[::-1]
    places = range(len(rows))
    shares = [row["spilled %"] for row in rows]
    colors = [OURS if row["policy"] == TIDEGATE else OTHERS for row in rows]
    bars = axis.barh(places, shares, color=colors, label="requests", hatch=["" if row["met %"] >= 95 else "//" for row in rows])
    axis.bar_label(bars, [f"{share:.1f}" for share in shares], padding=8, fontsize=8)
    axis.scatter([row["cost %"] for row in rows], places, marker="|", s=90, color="#e8590c", label="tokens", zorder=3)
    axis.set_yticks(places, [f"{row['policy']}, {row['trace']}\n{row['rule']}" for row in rows], fontsize=7)
    axis.margins(x=0.12)
    axis.set_xlabel(f"% sent to the cloud at {rows[0]['load']:g}x (hatched: fewer than 95 % within the limits)")
    axis.legend(fontsize=7)
    axis.set_title("spilled at equal attainment", fontsize=10)


PANELS = {
    "load at which": _capacity,
    "at 0.9x": _misses,
    "goodput past": _goodput,
    "met % by load": _sweep,
    "by the age": _ages,
    "by the number of routers": _routers,
    "spilled at": _spill,
}
"""Panels by words of a section's title."""
