"""Draw the bench's JSON: `plot.py SECTIONS.json OUT.png`. Needs matplotlib."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

OURS, OTHERS = "#0b7285", "#adb5bd"


def main(source: Path, target: Path) -> None:
    """Capacity bars, misses near saturation, goodput past it: a panel each, for what the file holds."""
    # Of two sections of one kind (misses at two loads) the first is drawn.
    sections = {section["title"].split(" ")[0]: section for section in reversed(json.loads(source.read_text()))}
    panels = [panel for name, panel in PANELS.items() if name in sections]
    if not panels:
        raise SystemExit("nothing to draw")
    figure, axes = plt.subplots(1, len(panels), figsize=(5.4 * len(panels), 4.4), squeeze=False)
    names = [name for name in PANELS if name in sections]
    for axis, name, panel in zip(axes[0], names, panels, strict=True):
        panel(axis, sections[name])
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=130)


def _capacity(axis: Any, section: dict[str, Any]) -> None:
    rows = sorted(section["rows"], key=lambda row: row["mean"])
    colors = [OURS if row["policy"] == "tidegate" else OTHERS for row in rows]
    bars = axis.barh([row["policy"] for row in rows], [row["mean"] for row in rows], color=colors)
    axis.bar_label(bars, [f"{row['mean']:.2f}" for row in rows], padding=4, fontsize=8)
    axis.set_title("load at 95 % attainment (geometric mean)", fontsize=10)


def _misses(axis: Any, section: dict[str, Any]) -> None:
    rows = [row for row in section["rows"] if "misses %" in row]
    policies = list(dict.fromkeys(row["policy"] for row in rows))
    traces = list(dict.fromkeys(row["trace"] for row in rows))
    for k, trace in enumerate(traces):
        values = {row["policy"]: row["misses %"] for row in rows if row["trace"] == trace}
        axis.scatter([values[p] for p in policies], policies, marker="osD^"[k % 4], label=trace, s=24)
    axis.set_xscale("symlog", linthresh=1)
    axis.set_xlabel("% of requests that miss a limit")
    axis.legend(fontsize=8)
    axis.set_title(section["title"], fontsize=10)


def _goodput(axis: Any, section: dict[str, Any]) -> None:
    loads = [column for column in section["columns"] if column.endswith("x") and column[0].isdigit()]
    for row in section["rows"]:
        first = row[loads[0]] or 1e-9
        ours = row["policy"] == "tidegate"
        axis.plot(
            [float(load[:-1]) for load in loads],
            [row[load] / first for load in loads],
            color=OURS if ours else OTHERS,
            marker="o" if ours else "x",
            label=f"{row['policy']}, {row['trace']}",
        )
    axis.set_xlabel("load")
    axis.set_title("goodput past saturation, of that at 0.9x", fontsize=10)
    axis.legend(fontsize=6)


PANELS = {"load": _capacity, "at": _misses, "goodput": _goodput}

if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
