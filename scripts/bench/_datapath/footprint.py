"""Memory of one router with many connections: the proof of `scripts/prove/dataplane memory`, read as a figure."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path
from typing import Any

import uvloop
from rich.console import Console

ROOT = Path(__file__).resolve().parents[3]
SPARE = 600
"""File descriptors beside those of the connections."""
SLOPE_FROM_MIN = 5
"""A slope over less than that is the settling of the allocator."""


def need_descriptors(idle: int, live: int) -> bool:
    """Raise the soft limit on open files as far as it takes (children inherit it); False where the hard limit forbids."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    need = idle + 2 * live + SPARE
    if soft < need and (need <= hard or hard == resource.RLIM_INFINITY):
        resource.setrlimit(resource.RLIMIT_NOFILE, (need, hard))
        soft = need
    return soft >= need or soft == resource.RLIM_INFINITY


def main(console: Console, work: Path, idle: int, live: int, minutes: float) -> int:
    """Measure, print, and keep the figure in `.bench/memory.json` for the table of goals.

    Returns:
        Exit status: 0 measured, 1 the run saw something wrong, 2 it could not run.
    """
    if not need_descriptors(idle, live):
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        console.print(f"[red]cannot run[/]: {idle + 2 * live + SPARE} open files are needed, this machine allows {hard}")
        return 2
    sys.path[:0] = [str(ROOT / "scripts" / "prove"), str(ROOT)]
    from _dataplane import memory

    result = uvloop.run(memory.run(idle, live, minutes))
    peak = max(result.rss_mib.values()) * 2**20 / 1e6
    record = {"connections": idle, "live": live, "peak_mb": round(peak, 1), "slope_mib_per_h": result.slope_mib_per_h}
    (work / "memory.json").write_text(json.dumps(record | {"minutes": minutes, "rss_mib": result.rss_mib}) + "\n")
    stages = ", ".join(f"{what} {mib:.0f}" for what, mib in result.rss_mib.items())
    said = [f"{idle} idle connections and {live} live streams: RSS in MiB: {stages}; at most {peak:.0f} MB"]
    said.append(f"{result.churned} connections came and went in {minutes:g} min")
    if minutes >= SLOPE_FROM_MIN:
        said[-1] += f": {result.slope_mib_per_h:+.1f} MiB/h over the second half"
    console.print(*said, sep="\n", highlight=False)
    for violation in result.violations:
        console.print(f"[red]wrong[/] {violation}", highlight=False)
    return 1 if result.violations else 0


def last(work: Path, name: str = "memory") -> dict[str, Any] | None:
    """What the latest such run wrote, or None."""
    try:
        found = json.loads((work / f"{name}.json").read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
