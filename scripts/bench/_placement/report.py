"""Tables on the terminal, JSON, and plots."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from . import plot
from .sections import Section


def show(console: Console, *sections: Section) -> None:
    """Print sections, and whether their goals are met."""
    for section in sections:
        _show(console, section)


def _show(console: Console, section: Section) -> None:
    table = Table(title=section.title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1))
    for column in section.columns:
        words = column in ("policy", "trace", "rule", "fault", "notices", "targets")
        table.add_column(column, justify="left" if words else "right", no_wrap=True)
    for row in section.rows:
        style = "bold" if row.get("policy") == "tidegate" else None
        table.add_row(*(_cell(row.get(column)) for column in section.columns), style=style)
    console.print(table)
    if section.note:
        console.print(f"  {section.note}", style="dim")
    show_goals(console, section)


def show_goals(console: Console, section: Section) -> None:
    """Every goal with its value."""
    for goal in section.goals:
        word, colour = ("met", "green") if goal.kept else ("MISSED", "red")
        console.print(f"  [{colour}]{word:6}[/] {goal.text}: {goal.value:.3g} (goal {goal.wanted})", highlight=False)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def write_json(path: Path, sections: Sequence[Section]) -> None:
    """All sections as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(section) for section in sections], indent=1) + "\n")


def draw(sections: Sequence[Section], target: Path) -> str:
    """Draw what can be drawn; a line that says where the picture is, or why there is none."""
    try:
        drawn = plot.draw(sections, target)
    except OSError as error:
        return f"no picture: {target}: {error.strerror}"
    return f"picture: {target}" if drawn else "no picture: nothing in these sections is drawn"
