"""`tidegate plan`: the planner's options, its table and what it says."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table

from cluster.gpu import read_gpus
from cluster.simulation.trace import TraceError
from router.ledger.records import RecordError
from router.ledger.tiles import TileError
from router.placement.profile import KNOWN, LLAMA_8B_H100
from tidegate.audit import open_logs, span
from tidegate.calibrate import Calibration, CalibrationError, Plan, calibrate
from tidegate.plan import Answer, Question, fleet_text, pose, search, simulate, to_json
from tidegate.plan_plot import check_plot, draw
from tidegate.planfile import PlanError, PlanFile, make_plan, read_plan
from tidegate.profiles import save
from tidegate.terminal import Console
from tidegate.traffic import MADE_UP, Traffic, external_zones, from_log, plan_from_log, read_log, read_rows, share_out

_GOAL = 0.95


def plan(
    trace: Annotated[
        str, typer.Argument(help=f"A trace file (ours, Mooncake's, Azure's, BurstGPT's), or made up: {', '.join(MADE_UP)}.")
    ] = "",
    audit: Annotated[Path | None, typer.Option(help="Replay what the audit log recorded: the logs' directory.")] = None,
    since: Annotated[str, typer.Option(help="With --audit: from this time on, e.g. 2026-11-22T05:00 or 24h.")] = "",
    until: Annotated[str, typer.Option(help="With --audit: up to this time.")] = "",
    file: Annotated[Path | None, typer.Option("--plan", help="A plan file: zones, labels, models, classes.")] = None,
    profile: Annotated[
        list[str] | None,
        typer.Option(help=f"What a step of the engine costs: NAME or MODEL=NAME; a JSON file, or of {', '.join(KNOWN)}."),
    ] = None,
    ttft_ms: Annotated[float, typer.Option(min=1, help="Limit on the first token; a long prompt may take twice its own.")] = 2000,
    tpot_ms: Annotated[float, typer.Option(min=1, help="Limit on the time per answer token after it.")] = 50,
    goal: Annotated[float, typer.Option(min=0.5, max=0.99, help="Share of requests that must keep both.")] = _GOAL,
    rate: Annotated[float, typer.Option(min=0, help="Requests per second; 0 keeps the trace's own times.")] = 0.0,
    load: Annotated[
        float, typer.Option(min=0.01, max=1000, help="So many times as dense as recorded, where no rate is given.")
    ] = 1.0,
    replicas: Annotated[int, typer.Option(min=0, help="Say what so many of each do, instead of searching for the fewest.")] = 0,
    most: Annotated[int, typer.Option(min=1, max=512, help="Replicas of each at which the search gives up.")] = 64,
    cloud: Annotated[bool, typer.Option("--cloud", help="Requests may spill; without it nothing ever leaves.")] = False,
    requests: Annotated[int, typer.Option(min=0, help="Use only the first so many requests; 0: all.")] = 0,
    out: Annotated[Path | None, typer.Option("--json", help="Write question and answers there.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the answer there (.png, .svg, .pdf).")] = None,
    engine: Annotated[str, typer.Option("--calibrate", metavar="URL", help="Measure a running engine that is idle.")] = "",
    name: Annotated[str, typer.Option(help="With --calibrate: the profile's name. Default: model@gpu.")] = "",
    model: Annotated[str, typer.Option(help="With --calibrate: which of the engine's models.")] = "",
    api_key_env: Annotated[str, typer.Option(help="With --calibrate: the variable that holds the engine's key.")] = "",
    step_tokens: Annotated[int, typer.Option(min=0, help="With --calibrate: its --max-num-batched-tokens; 0: found out.")] = 0,
    slots: Annotated[int, typer.Option(min=0, help="With --calibrate: its --max-num-seqs; 0: found out.")] = 0,
    kv_tokens: Annotated[int, typer.Option(min=0, help="With --calibrate: tokens its KV cache holds; 0: asked.")] = 0,
) -> None:
    """How many replicas of which model keep every class's limits, and what ever leaves: simulated engines, the live decision."""
    console = Console()
    try:
        profiles = profile or []
        if engine:
            wanted = Plan(engine, name, model, _api_key(api_key_env), step_tokens, slots, kv_tokens)
            measured = _calibrate(console, wanted, out if not (trace or audit) else None)
            profiles = profiles or [measured]
            if not trace and audit is None:
                return
        if plot is not None:
            check_plot(plot)
        limits = {"ttft_ms": ttft_ms, "tpot_ms": tpot_ms, "goal": goal}
        planned, traffic = _question(trace, audit, (since, until), file, profiles, limits, most, cloud, requests)
        question = pose(planned, rate, load)
        traffic = traffic.that_fits([question.profiles[wanted.model].kv_tokens for wanted in planned.classes])
    except (PlanError, TraceError, CalibrationError, TileError, RecordError, OSError) as error:
        _fail(error)
    answers = _answer(console, question, traffic, replicas)
    _conclude(console, question, traffic, answers)
    if out is not None:
        out.write_text(to_json(question, answers, traffic.notes) + "\n", encoding="utf-8")
    if plot is not None:
        draw(question, answers, plot)


def _fail(error: Exception) -> Any:
    Console(stderr=True).print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(1) from None


def _api_key(variable: str) -> str:
    if variable and variable not in os.environ:
        raise PlanError(f"--api-key-env: there is no variable {variable} in the environment")
    return os.environ.get(variable, "") if variable else ""


def _question(
    trace: str,
    audit: Path | None,
    times: tuple[str, str],
    file: Path | None,
    profiles: Sequence[str],
    limits: dict[str, float | None],
    most: int,
    cloud: bool,
    requests: int,
) -> tuple[PlanFile, Traffic]:
    """The plan file, given or made from options, and the traffic."""
    if bool(trace) == (audit is not None):
        raise PlanError("name one of: a trace, --audit, --calibrate" if not trace else "a trace or --audit, not both")
    if file is not None and (profiles or cloud):
        raise PlanError("--profile and --cloud stand in the plan file (`profile`, `spill`)")
    planned = None if file is None else read_plan(file)
    if audit is not None:
        logs = open_logs(audit)
        recorded = read_log(logs, *span(*times))
        recorded = recorded[:requests] if requests else recorded
        if planned is None:
            planned = make_plan(plan_from_log(recorded, external_zones(logs), _by_model(profiles), limits), "the audit log")
        return planned, from_log(recorded, planned)
    rows = read_rows(trace)
    rows = rows[:requests] if requests else rows
    if planned is None:
        planned = _simple(profiles[0] if profiles else LLAMA_8B_H100.name, limits, most, cloud)
    return planned, share_out(rows, planned)


def _by_model(profiles: Sequence[str]) -> dict[str, str]:
    pairs = [text.partition("=") for text in profiles]
    if wrong := [text for text, equals, _ in pairs if not equals]:
        raise PlanError(f"--profile {wrong[0]}: with --audit say of which model, MODEL={wrong[0]}")
    return {model: name for model, _, name in pairs}


def _simple(profile: str, limits: dict[str, float | None], most: int, cloud: bool) -> PlanFile:
    """One model, one class, one zone, and a provider where requests may leave."""
    zones = {"here": {}, "cloud": {"external": True}} if cloud else {"here": {}}
    model = {"id": "model", "profile": profile, "zones": ["here"], "least": 1, "most": most}
    wanted = {"name": "requests", "model": "model", "label": "all", "spill": cloud, **limits}
    return make_plan({"zones": zones, "labels": {"all": list(zones)}, "models": [model], "classes": [wanted]})


def _answer(console: Console, question: Question, traffic: Traffic, replicas: int) -> list[Answer]:
    answers: list[Answer] = []
    try:
        steps = iter([simulate(question, traffic, [replicas] * len(question.pools))]) if replicas else search(question, traffic)
        with console.status("simulating"):
            for answer in steps:
                answers.append(answer)
    except PlanError as error:
        if answers:
            console.print(_table(question, answers))
        _fail(error)
    return answers


def _conclude(console: Console, question: Question, traffic: Traffic, answers: Sequence[Answer]) -> None:
    console.print(_table(question, answers))
    final = answers[-1]
    keep = "keep" if final.enough else "do not keep"
    goals = ", ".join(f"{found.name} {100 * found.outcome.met:.1f} % (goal {100 * found.goal:g} %)" for found in final.classes)
    say = [f"{fleet_text(question, final.replicas)} {keep} the limits: {goals}."]
    for label, count in final.left.items():
        total = sum(question.plan.classes[number].label == label for number in traffic.classes)
        left = f"{100 * count / total:.1f} % of its requests leave the cluster" if count else "nothing leaves the cluster"
        say.append(f"Label {label}: {left}.")
    say += [f"Note: {note}." for note in traffic.notes]
    say.append("Simulated engines: check with a load test.")
    for line in say:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _table(question: Question, answers: Sequence[Answer]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)  # 80 columns are enough
    table.add_column("replicas", justify="right", no_wrap=True)
    table.add_column("class", no_wrap=True)
    for column in ("within limits %", "TTFT p50 s", "p90 s", "TPOT p99 ms", "hit %", "refused %", "spilled %", "cost %"):
        table.add_column(column, justify="right", min_width=max(len("100.00"), *map(len, column.split())))
    for answer in sorted({a.replicas: a for a in answers}.values(), key=lambda a: (a.price, a.replicas)):
        style = "bold green" if answer.enough else None
        fleet = " + ".join(str(count) for count in answer.replicas)
        for found in answer.classes:
            o = found.outcome
            figures = (100 * o.met, o.ttft_p50, o.ttft_p90, 1e3 * o.tpot_p99, 100 * o.hit_rate)
            shares = (100 * o.refused, 100 * o.spilled, 100 * o.spilled_cost)
            table.add_row(fleet, found.name, *(f"{value:.2f}" for value in (*figures, *shares)), style=style)
            fleet = ""
    if len(question.pools) > 1:
        table.caption = "replicas: " + " + ".join(f"{pool.model} in {pool.zone}" for pool in question.pools)
    return table


# -- calibration


def _calibrate(console: Console, wanted: Plan, out: Path | None) -> str:
    """Measure, write the profile, say what was found; the name of what can be used from now on."""
    with console.status("measuring") as status:
        found = asyncio.run(calibrate(wanted, status.update))
    assert found.fit is not None
    profile = found.fit.profile
    if not wanted.name:
        gpus = read_gpus(None)
        profile = _renamed(found, gpus[0].name if gpus else "cpu")
    path = save(profile, {"at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "url": wanted.url, **found.as_dict()}, out)
    console.print(_calibration_table(found), highlight=False)
    fit = found.fit
    say = [f"{profile.name}: written to {path}; {100 * fit.error:.1f} % off in the median, {100 * fit.worst:.0f} % at worst."]
    if found.hit_tokens:
        saved = 100 * (1 - found.warm_s / found.cold_s)
        say.append(
            f"{found.hit_tokens} cached tokens: first token {found.cold_s:.3f} -> {found.warm_s:.3f} s ({saved:.0f} % saved)."
        )
    for line in (*say, *(f"Note: {note}." for note in found.notes)):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    return str(path)


def _renamed(found: Calibration, machine: str) -> Any:
    from msgspec.structs import replace

    assert found.fit is not None
    return replace(found.fit.profile, name=f"{found.model}@{machine.replace(' ', '-').lower()}")


def _calibration_table(found: Calibration) -> Table:
    assert found.fit is not None
    profile = found.fit.profile
    table = Table("constant", "value", box=box.SIMPLE_HEAD, padding=(0, 1))
    for what, value in (
        ("a step", f"{1e3 * profile.overhead:.3f} ms"),
        (f"a token, of the first {profile.knee}", f"{1e6 * profile.per_token:.2f} us"),
        ("a token above", f"{1e6 * profile.per_token_full:.2f} us"),
        ("a token of context, per decode", f"{1e9 * profile.per_context:.2f} ns"),
        ("attention, per token and token before it", f"{1e9 * profile.attention:.3f} ns"),
        ("a request, outside of steps", f"{1e3 * found.fit.request_s:.2f} ms"),
        ("KV cache", f"{profile.kv_tokens} tokens ({found.kv_blocks} blocks of {found.block_tokens})"),
        ("step budget, slots", f"{profile.step_tokens} tokens, {profile.slots}"),
        ("prefill of 1,000 cold tokens", f"{1e3 * profile.prefill_s(1000):.1f} ms"),
        ("decode pace, 1 and 8 answers of 500", f"{1e3 * profile.step_s(1, 500):.2f}, {1e3 * profile.step_s(8, 4000):.2f} ms"),
    ):
        table.add_row(what, value)
    return table
