"""What the bench measures, section by section: each plans its cells, and turns their outcomes into rows and goals."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cluster.simulation.outcome import Outcome
from router.placement.peers import BATCH_S

from .cells import TIDEGATE, Cell, Traces, capacity, geometric_mean
from .peers import PAPERS

Run = Callable[[Cell], Outcome]


@dataclass(frozen=True)
class Goal:
    """A figure against what it should be; `kept` says whether it is."""

    text: str
    value: float
    wanted: str
    kept: bool


@dataclass
class Section:
    """One table of the report."""

    title: str
    columns: list[str]
    rows: list[dict[str, Any]] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)
    note: str = ""


@dataclass(frozen=True)
class Plan:
    """Which policies and traces a run looks at. `reuse` are the traces with shared prefixes."""

    policies: tuple[str, ...]
    reuse: tuple[str, ...]
    models: tuple[str, ...]
    quick: bool


def capacities(plan: Plan, run: Run, traces: Traces, note: Callable[[str], None]) -> list[Section]:
    """Load at which 95 % meet both limits, and everything at 0.9x of the highest of these that any policy reached."""
    columns = [f"{model} {trace}" for model in plan.models for trace in plan.reuse]
    section = Section("load at which 95 % of requests meet both limits", ["policy", *columns, "mean"])
    found: dict[str, dict[str, float]] = {}
    width = 0.03 if plan.quick else 0.012
    for policy in (TIDEGATE, *plan.policies):
        row: dict[str, float] = {}
        for model in plan.models:
            for trace in plan.reuse:
                note(f"capacity of {policy} on {trace}, {model}")
                row[f"{model} {trace}"] = capacity(Cell(policy, trace, 1.0, model), run, width)
        found[policy] = row
        section.rows.append({"policy": policy, **row, "mean": geometric_mean(list(row.values()))})
    products = [policy for policy in plan.policies if policy not in PAPERS]
    for name, group in (("product", products), ("peer, papers included", list(plan.policies))):
        if not group:
            continue
        ratios = [found[TIDEGATE][c] / max(found[policy][c] for policy in group) for c in columns]
        mean, least = geometric_mean(ratios), min(ratios)
        wanted = ">= 1.15x, none below 1.03x"
        section.goals.append(Goal(f"capacity against the best {name}, per trace: mean", mean, wanted, mean >= 1.15))
        section.goals.append(Goal(f"capacity against the best {name}: worst trace", least, ">= 1.03x", least >= 1.03))
    model = plan.models[0]
    loads = {trace: 0.9 * max(row[f"{model} {trace}"] for row in found.values()) for trace in plan.reuse}
    return [section, near_saturation(plan, run, traces, note, loads, "0.9x of the best policy's")]


def near_saturation(
    plan: Plan, run: Run, traces: Traces, note: Callable[[str], None], loads: Mapping[str, float], name: str
) -> Section:
    """Everything at one load of each trace, on the first model's engines; `name` says which load that is."""
    model = plan.models[0]
    names = ["trace", "load", "policy", "misses %", "TTFT p50", "p90", "p99", "own-prefill p99", "TPOT p99 ms", "hit %"]
    section = Section(f"at {name} load", names)
    ratios: dict[str, list[float]] = {"misses": [], "p50": [], "p90": []}
    bounds: dict[str, list[float]] = {"misses": [], "p50": [], "p90": []}
    pooled: list[float] = []
    for trace, load in loads.items():
        outcomes = {}
        for policy in (TIDEGATE, *plan.policies):
            note(f"{load:.2f}x of {policy} on {trace}")
            outcomes[policy] = run(Cell(policy, trace, load, model))
            section.rows.append({"trace": trace, "load": load, "policy": policy, **_figures(outcomes[policy])})
        best, floor50, floor90 = traces.pooled(trace, model, 8)
        # Nobody can be faster: nothing waits, nothing decodes beside it, and whatever any engine could hold is held here.
        bound = {"TTFT p50": floor50, "p90": floor90, "hit %": 100 * best}
        section.rows.append({"trace": trace, "load": load, "policy": "(bound: pooled LRU, no wait)", **bound})
        ours = outcomes[TIDEGATE]
        peers = [outcomes[policy] for policy in plan.policies]
        if peers:
            bounds["p50"].append(floor50 / min(peer.ttft_p50 for peer in peers))
            bounds["p90"].append(floor90 / min(peer.ttft_p90 for peer in peers))
            ratios["misses"].append((1 - ours.met + 1e-4) / (min(1 - peer.met for peer in peers) + 1e-4))
            ratios["p50"].append(ours.ttft_p50 / min(peer.ttft_p50 for peer in peers))
            ratios["p90"].append(ours.ttft_p90 / min(peer.ttft_p90 for peer in peers))
        pooled.append(ours.hit_rate / best if best else 1.0)
    for figure, limit in (("misses", 0.6), ("p50", 0.85), ("p90", 0.9)):
        if ratios[figure]:
            mean = geometric_mean(ratios[figure])
            least = f"; no policy gets below {geometric_mean(bounds[figure]):.2f}" if bounds[figure] else ""
            text = f"{figure} at {name} load against the best peer in it (mean{least})"
            section.goals.append(Goal(text, mean, f"<= {limit}x", mean <= limit))
    text = f"hit rate at {name} load against one pooled LRU (worst trace)"
    section.goals.append(Goal(text, min(pooled), ">= 0.88", min(pooled) >= 0.88))
    return section


def _figures(outcome: Outcome) -> dict[str, float]:
    return {
        "misses %": 100 * (1 - outcome.met),
        "TTFT p50": outcome.ttft_p50,
        "p90": outcome.ttft_p90,
        "p99": outcome.ttft_p99,
        "own-prefill p99": outcome.stretch_p99,
        "TPOT p99 ms": 1e3 * outcome.tpot_p99,
        "hit %": 100 * outcome.hit_rate,
    }


RULES: dict[str, Sequence[float]] = {
    "in-flight cap": (6, 10, 14, 18, 24, 32),
    "queued tokens": (2000, 8000, 20000),
    "queue depth": (1, 4),
    "predicted TTFT": (0.3, 0.6, 0.9),
}
"""Peers' spill rules and the settings among which the best is chosen in hindsight, for each cell anew."""


def spilling(plan: Plan, run: Run, note: Callable[[str], None], loads: Iterable[float] = (1.5,)) -> Section:
    """What leaves for the cloud at equal attainment; peers get their best rule in hindsight."""
    section = Section(
        "spilled at equal 95 % attainment (cloud answers count as met)",
        ["trace", "load", "policy", "rule", "met %", "spilled %", "cost %"],
        note="cost: share of all tokens. Peers: the cheapest rule with 95 %, in hindsight; goals leave out traces where it is 0.",
    )
    peers = [p for p in ("dynamo", "smg_least_load", "mooncake_min_ttft", "vllm_smetric") if p in plan.policies][
        : 2 if plan.quick else 4
    ]
    counts: list[float] = []
    costs: list[float] = []
    least = 1.0
    for trace in plan.reuse:
        for load in loads:
            note(f"spill at {load}x on {trace}")
            ours = run(Cell(TIDEGATE, trace, load, cloud=True))
            section.rows.append(_spill_row(trace, load, TIDEGATE, "deadline and pace", ours))
            least = min(least, ours.met)
            best: list[Outcome] = []
            for peer in peers:
                tried = [
                    (f"{rule} {knob:g}", run(Cell(peer, trace, load, cloud=True, rule=rule, knob=knob)))
                    for rule, knobs in RULES.items()
                    for knob in (knobs[1::2] if plan.quick else knobs)
                ]
                reached = [pair for pair in tried if pair[1].met >= 0.95]
                name, outcome = min(reached, key=lambda p: p[1].spilled_cost) if reached else max(tried, key=lambda p: p[1].met)
                section.rows.append(_spill_row(trace, load, peer, name, outcome))
                if reached:
                    best.append(outcome)
            # Where somebody needs no cloud, the load is not past saturation: there is nothing to compare.
            if best and min(outcome.spilled for outcome in best) > 0:
                counts.append((ours.spilled + 1e-4) / (min(o.spilled for o in best) + 1e-4))
                costs.append((ours.spilled_cost + 1e-4) / (min(o.spilled_cost for o in best) + 1e-4))
    if counts:
        count, cost = geometric_mean(counts), geometric_mean(costs)
        section.goals.append(Goal("spilled requests against the best peer rule (mean)", count, "<= 0.3x", count <= 0.3))
        section.goals.append(Goal("cloud cost against the best peer rule (mean)", cost, "<= 0.75x", cost <= 0.75))
    section.goals.append(Goal("share that met both limits while spilling (worst trace)", least, ">= 0.95", least >= 0.95))
    return section


def _spill_row(trace: str, load: float, policy: str, rule: str, outcome: Outcome) -> dict[str, Any]:
    shares = {"met %": 100 * outcome.met, "spilled %": 100 * outcome.spilled, "cost %": 100 * outcome.spilled_cost}
    return {"trace": trace, "load": load, "policy": policy, "rule": rule, **shares}


def ageing(plan: Plan, run: Run, note: Callable[[str], None], load: float = 0.9) -> Section:
    """Signals 0 to 5 s old."""
    ages = (0.0, 5.0) if plan.quick else (0.0, 0.25, 1.0, 5.0)
    section = Section(
        f"met % at {load}x by the age of gauges and KV events", ["trace", "policy", *(f"{age:g} s" for age in ages)]
    )
    worst = 0.0
    policies = [p for p in ("dynamo", "llmd_precise", "smg_least_load", "lmetric") if p in plan.policies]
    for trace in plan.reuse:
        for policy in (TIDEGATE, *policies[: 2 if plan.quick else 4]):
            note(f"ages of {policy} on {trace}")
            met = [100 * run(Cell(policy, trace, load, staleness_s=age)).met for age in ages]
            section.rows.append({"trace": trace, "policy": policy} | {f"{a:g} s": m for a, m in zip(ages, met, strict=True)})
            if policy == TIDEGATE:
                worst = max(worst, met[0] - min(met))
    section.goals.append(Goal("loss from signals 5 s old, points (worst trace)", worst, "<= 1", worst <= 1.0))
    return section


def several_routers(plan: Plan, run: Run, note: Callable[[str], None], load: float = 0.9) -> Section:
    """1 to 8 routers."""
    counts = (1, 8) if plan.quick else (1, 2, 4, 8)
    columns = [f"{count}" for count in counts]
    section = Section(
        f"met % at {load}x by the number of routers",
        ["trace", "policy", "notices", *columns],
        note=f"direct: gathered for at most {BATCH_S * 1e3:.0f} ms and 2 ms on the way, as the live routers' datagrams; "
        "rounds: every 100 ms, at once for long prefills, as by Serve's broadcast where no datagram gets through.",
    )
    worst = 0.0
    policies = [p for p in ("dynamo", "lmetric", "smg_least_load") if p in plan.policies][: 1 if plan.quick else 3]
    for trace in plan.reuse:
        for policy in (TIDEGATE, *policies):
            for notices in ("direct", "rounds", "none") if policy == TIDEGATE else ("direct", "none"):
                note(f"routers of {policy} on {trace}")
                met = [100 * run(Cell(policy, trace, load, routers=count, notices=notices)).met for count in counts]
                row = {"trace": trace, "policy": policy, "notices": notices}
                section.rows.append(row | dict(zip(columns, met, strict=True)))
                if policy == TIDEGATE and notices == "direct":
                    worst = max(worst, met[0] - met[-1])
    section.goals.append(Goal("loss at 8 routers with direct notices, points (worst trace)", worst, "<= 1.5", worst <= 1.5))
    return section


def no_reuse(plan: Plan, run: Run, traces: Traces, note: Callable[[str], None]) -> Section:
    """Traffic in which no prompt begins like another."""
    section = Section("no reuse (azure23): met %", ["policy", "0.7x", "0.8x", "0.9x"])
    if "azure23" not in traces.names:
        section.note = "the trace is not at hand"
        return section
    best = [0.0, 0.0, 0.0]
    loads = (0.7, 0.8, 0.9)
    ours = list(best)
    for policy in (TIDEGATE, *plan.policies):
        note(f"no reuse, {policy}")
        met = [100 * run(Cell(policy, "azure23", load)).met for load in loads]
        section.rows.append({"policy": policy} | {f"{load}x": value for load, value in zip(loads, met, strict=True)})
        if policy == TIDEGATE:
            ours = met
        else:
            best = [max(pair) for pair in zip(best, met, strict=True)]
    worst = min(a - b for a, b in zip(ours, best, strict=True))
    section.goals.append(Goal("no reuse against the best peer, points (worst load)", worst, ">= -1", worst >= -1.0))
    return section


def faults(plan: Plan, run: Run, note: Callable[[str], None]) -> Section:
    """An engine at half speed, an engine whose gauges always say zero."""
    section = Section("met % with one bad replica", ["trace", "load", "fault", "tidegate", "least outstanding", "best peer"])
    worst = 100.0
    for trace in plan.reuse:
        for load in (0.85,) if plan.quick else (0.7, 0.85):
            for name, more in (("half speed", {"slow": (0,)}), ("gauges stuck at 0", {"liars": (0,)})):
                note(f"{name} on {trace}")
                others = ("least_outstanding", *(p for p in ("dynamo", "smg_least_load") if p in plan.policies))
                met = {p: 100 * run(replace(Cell(p, trace, load), **more)).met for p in (TIDEGATE, *others)}  # type: ignore[arg-type]
                section.rows.append(
                    {
                        "trace": trace,
                        "load": load,
                        "fault": name,
                        "tidegate": met[TIDEGATE],
                        "least outstanding": met["least_outstanding"],
                        "best peer": max(met[p] for p in others),
                    }
                )
                worst = min(worst, met[TIDEGATE] - met["least_outstanding"])
    section.goals.append(Goal("one bad replica against least outstanding, points (worst case)", worst, ">= 0", worst >= 0.0))
    return section


SWEEP = (0.5, 0.75, 1.0, 1.5, 2.0, 3.0)


def sweep(plan: Plan, run: Run, note: Callable[[str], None]) -> list[Section]:
    """Shares within both limits and goodput from half of load 1.0 to three times of it; no goal, the others are read off it."""
    columns = ["trace", "policy", *(f"{load}x" for load in SWEEP)]
    met = Section("met % by load, no cloud", columns)
    goodput = Section("requests/s within both limits by load, no cloud", columns)
    known = ("least_outstanding", "dynamo", "smg_least_load", "mooncake_min_ttft", "lmetric")
    for trace in plan.reuse:
        for policy in (TIDEGATE, *(p for p in known if p in plan.policies)):
            note(f"sweep of {policy} on {trace}")
            done = {f"{load}x": run(Cell(policy, trace, load)) for load in SWEEP}
            row = {"trace": trace, "policy": policy}
            met.rows.append(row | {load: 100 * outcome.met for load, outcome in done.items()})
            goodput.rows.append(row | {load: outcome.goodput for load, outcome in done.items()})
    return [met, goodput]


def overload(plan: Plan, run: Run, note: Callable[[str], None]) -> Section:
    """Past saturation without a cloud: answers per second within both limits."""
    loads = (0.9, 1.1, 1.5, 3.0)
    section = Section(
        "goodput past saturation, requests/s within both limits; no cloud",
        ["trace", "policy", *(f"{load}x" for load in loads), "refused % at 1.5x"],
        note="tidegate holds what is late in its admission queue for at most 30 s; Dynamo queues by its threshold.",
    )
    least = 9.9
    for trace in plan.reuse:
        for policy in (TIDEGATE, *(p for p in ("dynamo", "smg_least_load") if p in plan.policies)):
            note(f"overload of {policy} on {trace}")
            done = [run(Cell(policy, trace, load)) for load in loads]
            row = {"trace": trace, "policy": policy} | {f"{load}x": o.goodput for load, o in zip(loads, done, strict=True)}
            section.rows.append({**row, "refused % at 1.5x": 100 * done[2].refused})
            if policy == TIDEGATE:
                least = min(least, min(o.goodput for o in done[1:]) / done[0].goodput)
    section.goals.append(Goal("goodput at 1.1x to 3x against 0.9x (worst)", least, ">= 1", least >= 1.0))
    return section
