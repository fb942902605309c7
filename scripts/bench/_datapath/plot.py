"""Draw the bars: `plot.py ROWS.json OUT.png`. Runs on the Python of the bench's environment, which has matplotlib."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def main(source: Path, target: Path) -> None:
    """One panel per case, one bar per system, the range as a whisker; logarithmic where costs span decades."""
    rows = [row for row in json.loads(source.read_text()) if row["system"] != "direct"]
    cases = list(dict.fromkeys(row["case"] for row in rows))
    columns = min(4, len(cases))
    lines = -(-len(cases) // columns)
    figure, panels = plt.subplots(lines, columns, figsize=(4.6 * columns, 3.6 * lines), squeeze=False)
    for panel in panels.flat[len(cases) :]:
        panel.set_visible(False)
    for panel, case in zip(panels.flat, cases, strict=False):
        of_case = sorted((row for row in rows if row["case"] == case), key=lambda row: -row["cpu_us_per_request"])
        cost = [row["cpu_us_per_request"] for row in of_case]
        spread = [
            [row["cpu_us_per_request"] - row["cpu_us_min"] for row in of_case],
            [row["cpu_us_max"] - row["cpu_us_per_request"] for row in of_case],
        ]
        colors = ["#0b7285" if row["system"] == "tidegate" else "#adb5bd" for row in of_case]
        bars = panel.barh([row["system"] for row in of_case], cost, xerr=spread, color=colors, ecolor="#495057")
        panel.bar_label(bars, [f"{value:,.0f}" for value in cost], padding=6, fontsize=8)
        far = max(cost) > 60 * min(cost)
        if far:
            panel.set_xscale("log")
        panel.set_xlim(left=1 if far else 0, right=max(cost) * (8 if far else 1.3))
        panel.set_title(case, fontsize=10)
        panel.set_xlabel("CPU us per request")
        panel.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=130)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
