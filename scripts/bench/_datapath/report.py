"""The result on the terminal, as JSON, and as a picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from . import bodies, mock_engine, plot, systems
from .goals import FLOOR, PEER, Goal
from .run import SLOW_CONNECTIONS, Outcome

WIDTH = 165
"""What the tables need; a file or a pipe is given that much, a terminal has the width it has."""


def console() -> Console:
    """The console for the result."""
    made = Console()
    return made if made.is_terminal else Console(width=WIDTH)


def show(console: Console, outcome: Outcome, rows: list[dict[str, Any]]) -> None:
    """One table per case, cheapest first, then what is missing or wrong."""
    for case in outcome.plan.cases:
        of_case = sorted((row for row in rows if row["case"] == case), key=lambda row: row["cpu_us_per_request"])
        if of_case:
            compared = bodies.find(case).compared
            cost = {row["system"]: row["cpu_us_per_request"] for row in rows if row["case"] == compared}
            console.print(_table(case, of_case, outcome, cost))
    console.print(
        "CPU: user + system time of all processes of the system, median (range) over the rounds; `direct` is the engine itself. "
        "Alone: one connection; added: more than the engine takes by itself. x vllm cache, x haproxy: CPU against "
        f"{PEER} and {FLOOR}. Per chunk: (a stream - a JSON answer) / {mock_engine.CHUNKS}. Systems that cost "
        f"milliseconds a request are loaded by {SLOW_CONNECTIONS} connections at most for it. In json-auto the model is left to "
        "the router and the fitted prior judges each request; x: against the same prompts in json."
    )
    for name, why in outcome.missing.items():
        console.print(f"[yellow]missing[/] {name}: {why}", highlight=False)
    for note in dict.fromkeys(outcome.notes):
        console.print(f"[yellow]note[/] {note}", highlight=False)
    for (name, case), why in outcome.wrong.items():
        console.print(f"[red]wrong[/] {name}, {case}: {why}", highlight=False, markup=True)


def _table(case: str, of_case: list[dict[str, Any]], outcome: Outcome, cost: dict[str, float]) -> Table:
    plan = outcome.plan
    table = Table(
        title=f"{case}: {plan.connections} connections, {of_case[0]['targets']} targets, {plan.rounds} x {plan.seconds} s",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1),
    )
    table.add_column("system", no_wrap=True)
    names = ["CPU us", "range", "x vllm\ncache", "x ha-\nproxy", "req/s", "p50 ms", "p99 ms"]
    names += ["added\np50", "added\np99", "alone\np50 ms", "added\np50", "added\np99", "RSS\nMiB"]
    per_chunk = any("cpu_us_per_chunk" in row for row in of_case)
    if per_chunk:
        names.insert(1, "per\nchunk")
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for row in of_case:
        cells = [f"{row['cpu_us_per_request']:,.0f}"]
        if per_chunk:
            cells.append(f"{row['cpu_us_per_chunk']:.1f}" if "cpu_us_per_chunk" in row else "-")
        cells.append(f"{row['cpu_us_min']:,.0f}..{row['cpu_us_max']:,.0f}")
        cells += [_ratio(row, cost.get(PEER)), _ratio(row, cost.get(FLOOR))]
        cells += [f"{row['rps']:,.0f}", f"{row['p50_ms']:.2f}", f"{row['p99_ms']:.2f}"]
        cells += [_signed(row.get("added_p50_ms")), _signed(row.get("added_p99_ms"))]
        cells.append(f"{row['alone_p50_ms']:.2f}")
        cells += [_signed(row.get("added_alone_p50_ms")), _signed(row.get("added_alone_p99_ms"))]
        cells.append(f"{row['rss_mb']:.0f}")
        table.add_row(row["system"], *cells, style="bold" if row["system"] == "tidegate" else None)
    return table


def show_goals(console: Console, goals: list[Goal]) -> None:
    """What was to be reached, and whether it was."""
    table = Table(title="goals", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1))
    table.add_column("measure")
    for name in ("goal", "measured"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("")
    verdicts = {True: "[green]met[/]", False: "[red]missed[/]", None: "not measured"}
    for goal in goals:
        limit = f"{'>=' if goal.at_least else '<='} {goal.limit:g}{goal.unit}"
        measured = "-" if goal.value is None else f"{goal.value:g}{goal.unit}"
        table.add_row(goal.measure, limit, measured, verdicts[goal.met])
    console.print(table)
    console.print("Memory and tokens/s come from the latest `datapath --memory` and `scripts/bench/throughput` in this checkout.")


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.2f}"


def _ratio(row: dict[str, Any], other: float | None) -> str:
    if other is None or row["system"] == systems.DIRECT:
        return "-"
    return f"{row['cpu_us_per_request'] / other:.2f}"


def write_json(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write the records as a JSON list."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, indent=1) + "\n")


def draw(path: Path, rows: list[dict[str, Any]]) -> str:
    """Draw CPU time, added latency and memory; returns a line that says where the picture is, or why there is none."""
    shown = [row for row in rows if row["system"] != systems.DIRECT]
    if not shown:
        return "no picture: nothing was measured"
    try:
        plot.draw(shown, path)
    except OSError as error:
        return f"no picture: {path}: {error.strerror}"
    return f"picture: {path}"
