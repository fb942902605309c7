"""`tidegate plan`: the planner's options and its table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from cluster.simulation.outcome import Slo
from cluster.simulation.trace import TraceError
from router.placement.profile import KNOWN, LLAMA_8B_H100
from tidegate.plan import MADE_UP, Answer, PlanError, Question, find_profile, read_rows, search, simulate, to_json


def plan(
    trace: Annotated[str, typer.Argument(help=f"A trace file (.jsonl, .jsonl.gz), or made up: {', '.join(MADE_UP)}.")],
    profile: Annotated[
        str, typer.Option(help=f"What a step of the engine costs: a JSON file, or of {', '.join(KNOWN)}.")
    ] = LLAMA_8B_H100.name,
    ttft_ms: Annotated[float, typer.Option(min=1, help="Limit on the first token; a long prompt may take twice its own.")] = 2000,
    tpot_ms: Annotated[float, typer.Option(min=1, help="Limit on the time per answer token after it.")] = 50,
    goal: Annotated[float, typer.Option(min=0.5, max=0.999, help="Share of requests that must keep both.")] = 0.95,
    rate: Annotated[float, typer.Option(min=0, help="Requests per second; 0 keeps the trace's own times.")] = 0.0,
    replicas: Annotated[int, typer.Option(min=0, help="Say what so many do, instead of searching for the fewest.")] = 0,
    most: Annotated[int, typer.Option(min=1, max=512, help="Replicas at which the search gives up.")] = 64,
    cloud: Annotated[bool, typer.Option("--cloud", help="Requests may spill; without it nothing ever leaves.")] = False,
    requests: Annotated[int, typer.Option(min=0, help="Use only the first so many requests; 0: all.")] = 0,
    out: Annotated[Path | None, typer.Option("--json", help="Write question and answers there.")] = None,
) -> None:
    """How many replicas keep the limits on a trace: simulated engines, the live decision."""
    console = Console()
    answers: list[Answer] = []
    try:
        question = Question(find_profile(profile), Slo(ttft_ms / 1e3, tpot_ms / 1e3), goal, rate, cloud, most=most)
        rows = read_rows(trace)
        rows = rows[:requests] if requests else rows
        steps = iter([simulate(question, rows, replicas)]) if replicas else search(question, rows)
        with console.status("simulating"):
            for answer in steps:
                answers.append(answer)
    except (PlanError, TraceError) as error:
        if answers:
            console.print(_table(answers))
        Console(stderr=True).print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None
    console.print(_table(answers))
    final = answers[-1]
    verdict = "keep" if final.enough else "do not keep"
    left = f"{100 * final.outcome.spilled:.1f} % leave the cluster" if cloud else "nothing leaves the cluster"
    text = f"{final.replicas} replicas of {question.profile.name} {verdict} the limits for {100 * goal:g} % of requests; {left}"
    console.print(f"{text}. Simulated engines: check with a load test.", highlight=False)
    if out is not None:
        out.write_text(to_json(question, answers) + "\n")


def _table(answers: list[Answer]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    for column in (
        "replicas",
        "within limits %",
        "TTFT p50 s",
        "p90 s",
        "TPOT p99 ms",
        "hit %",
        "refused %",
        "spilled %",
        "cost %",
    ):
        table.add_column(column, justify="right")
    for answer in sorted({a.replicas: a for a in answers}.values(), key=lambda a: a.replicas):
        o = answer.outcome
        figures = (100 * o.met, o.ttft_p50, o.ttft_p90, 1e3 * o.tpot_p99, 100 * o.hit_rate)
        shares = (100 * o.refused, 100 * o.spilled, 100 * o.spilled_cost)
        style = "bold green" if answer.enough else None
        table.add_row(str(answer.replicas), *(f"{value:.2f}" for value in (*figures, *shares)), style=style)
    return table
