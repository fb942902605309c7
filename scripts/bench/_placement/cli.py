"""The command line of `scripts/bench/placement`."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from rich.console import Console

from cluster.simulation.outcome import Outcome
from cluster.simulation.trace import TraceError

from . import cost, report, sections
from .cells import Cell, Traces, simulate
from .peers import PEERS
from .sections import Plan, Section

ROOT = Path(__file__).resolve().parents[3]
ABOUT = """\
Placement on simulated engines: tidegate's live decision against peers' policies, on public and made-up traces.

Engines are simulated (continuous batching, chunked prefill, paged KV cache with prefix reuse); the numbers compare
policies and do not predict a deployment. Peers are re-implemented from their sources at documented defaults, with the
queue their original has; tidegate runs with its defaults, admission queue included. Load 1.0x is the arrival speed-up at
which least-outstanding routing just clears a trace thrown at it all at once.

Split: the policy's constants were chosen on the first 5,000 rows of the conversation trace and on made-up traces with
other seeds and of another kind. Reported are the rows after them, the synthetic trace of Mooncake, which nothing was
chosen on, Azure's, and the made-up `tools*`.

Exit status: 0 every goal met, 1 one missed, 2 it could not run.
"""
USUAL = tuple(PEERS)
QUICK = (
    "least_outstanding",
    "vllm_smetric",
    "dynamo",
    "llmd_precise",
    "smg_least_load",
    "mooncake_min_ttft",
    "lmetric",
)
"""Those that are the best peer somewhere, the incumbent in Ray Serve, and two that many run."""
NOT_QUICK = ("sweep",)
"""Left out of a quick run unless asked for by name."""
USUAL_LOAD = 0.9
"""Of load 1.0x."""
SECTIONS: dict[str, Callable[[Plan, Traces, Callable[[str], None]], list[Section]]] = {
    "capacity": lambda plan, traces, note: sections.capacities(plan, _runner(traces), traces, note),
    "near": lambda plan, traces, note: [
        sections.near_saturation(plan, _runner(traces), traces, note, dict.fromkeys(plan.reuse, USUAL_LOAD), f"{USUAL_LOAD}x")
    ],
    "spill": lambda plan, traces, note: [sections.spilling(plan, _runner(traces), note)],
    "age": lambda plan, traces, note: [sections.ageing(plan, _runner(traces), note)],
    "routers": lambda plan, traces, note: [sections.several_routers(plan, _runner(traces), note)],
    "noreuse": lambda plan, traces, note: [sections.no_reuse(plan, _runner(traces), traces, note)],
    "faults": lambda plan, traces, note: [sections.faults(plan, _runner(traces), note)],
    "overload": lambda plan, traces, note: [sections.overload(plan, _runner(traces), note)],
    "sweep": lambda plan, traces, note: sections.sweep(plan, _runner(traces), note),
    "cost": lambda plan, traces, note: [cost.decision_cost()],
}


Source = tuple[Path, int | None, tuple[Path, ...]]
"""What `Traces` are made of, anew in each process."""


def _reuse(source: Source) -> tuple[str, ...]:
    """The traces that most sections look at: those with shared prefixes, or one's own.

    Raises:
        TraceError, OSError: one of these cannot be read.
    """
    traces, own = Traces(*source), source[2]
    if len({path.name for path in own}) < len(own):
        raise TraceError("two of the traces have the same name")
    for path in own:
        traces.rows(path.name)
    return tuple(name for name in traces.names if own or name != "azure23")


def _runner(traces: Traces) -> Callable[[Cell], Outcome]:
    done: dict[Cell, Outcome] = {}

    def run(cell: Cell) -> Outcome:
        if cell not in done:
            done[cell] = simulate(cell, traces)
        return done[cell]

    return run


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("placement", description=ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="within 5 minutes: shortened traces, fewer peers and settings, no sweep"
    )
    parser.add_argument("--data", type=Path, default=None, help="folder with traces/ (default: $TIDEGATE_DATA, ../shared/data)")
    parser.add_argument(
        "--trace",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="instead of all traces: one of yours, as often as you like; formats as in `tidegate plan`",
    )
    parser.add_argument("--only", help=f"comma-separated, of {', '.join(SECTIONS)}")
    parser.add_argument("--policies", help=f"comma-separated, of {', '.join(PEERS)}")
    parser.add_argument("--requests", type=int, help="cut the traces to so many requests (tools*: twice, synthetic: four times)")
    parser.add_argument("--models", default="8b", help="8b, 72b, or both with a comma")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 2, help="sections simulated at the same time")
    parser.add_argument("--json", type=Path, default=ROOT / ".bench" / "placement.json")
    parser.add_argument("--png", type=Path, default=ROOT / ".bench" / "placement.png")
    return parser


def find_data(given: Path | None) -> Path:
    """Where public data lies."""
    named = os.environ.get("TIDEGATE_DATA")
    return given or (Path(named) if named else ROOT.parent / "shared" / "data")


def _section(name: str, plan: Plan, source: Source, talk: bool) -> list[Section]:
    note: Callable[[str], None] = _say if talk else _nothing
    return SECTIONS[name](plan, Traces(*source), note)


def _say(text: str) -> None:
    sys.stderr.write(f"\r\x1b[K{text}")
    sys.stderr.flush()


def _nothing(text: str) -> None:
    return


def main(arguments: list[str] | None = None) -> int:
    """Run the bench. Exit status 0: every goal met, 1: one missed, 2: it could not run."""
    options = _parser().parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 160)
    usual = [name for name in SECTIONS if not (options.quick and name in NOT_QUICK)]
    chosen = options.only.split(",") if options.only else usual
    policies = tuple(options.policies.split(",")) if options.policies else (QUICK if options.quick else USUAL)
    if wrong := [name for name in (*chosen, *policies) if name not in SECTIONS and name not in PEERS]:
        console.print(f"unknown: {', '.join(wrong)}")
        return 2
    data = find_data(options.data)
    limit = options.requests or (2500 if options.quick else None)
    source = (data, limit, tuple(options.trace))
    try:
        reuse = _reuse(source)
    except (TraceError, OSError) as error:
        console.print(str(error), highlight=False, markup=False, soft_wrap=True)
        return 2
    plan = Plan(policies, reuse, tuple(options.models.split(",")), options.quick)
    if not options.trace and "conversation" not in reuse:
        console.print(f"no public traces in {data / 'traces'}: only made-up ones (--data)", style="yellow")
    started = time.monotonic()
    done: dict[str, list[Section]] = {}
    if options.jobs == 1 or len(chosen) == 1:
        for name in chosen:
            done[name] = _section(name, plan, source, sys.stderr.isatty())
            report.show(console, *done[name])
    else:
        with ProcessPoolExecutor(options.jobs) as pool:
            running = {pool.submit(_section, name, plan, source, False): name for name in chosen if name != "cost"}
            for future in as_completed(running):
                done[running[future]] = future.result()
                report.show(console, *done[running[future]])
        if "cost" in chosen:
            done["cost"] = _section("cost", plan, source, False)
            report.show(console, *done["cost"])
    ordered = [section for name in chosen for section in done[name]]
    report.write_json(options.json, ordered)
    console.print(report.draw(ordered, options.png), highlight=False)
    goals = [goal for section in ordered for goal in section.goals]
    kept = sum(goal.kept for goal in goals)
    console.print(f"{kept} of {len(goals)} goals met; {time.monotonic() - started:.0f} s; simulated engines", highlight=False)
    return 0 if kept == len(goals) else 1
