"""What one decision costs: the live `decide`, its view and the prefix look-up, in CPU time of this machine."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from tidegate.simulated_router import RouterSetup, SimulatedRouter, make_policy

from cluster.simulation.engine import SimulatedRequest
from router.decide import decide
from router.placement.profile import LLAMA_8B_H100
from router.placement.targets import Work

from .sections import Goal, Section

PROMPT_TOKENS, CHUNKS = 4_600, 34
"""A prompt of 17 kB in chunks of 512 bytes."""


def decision_cost() -> Section:
    """One row per number of targets."""
    section = Section(
        "CPU us of a decision, prefix look-up of a 4,600-token prompt included",
        ["targets", "loaded", "idle", "saturated", "look-up alone"],
        note="loaded: 12 requests in flight on every target, one of them waiting; saturated: all of them waiting.",
    )
    for count in (4, 16, 64, 256):
        loaded, lookup = _measure(count, 12, 1)
        idle, _ = _measure(count, 0, 0)
        saturated, _ = _measure(count, 12, 12)
        row = {"targets": str(count), "loaded": loaded, "idle": idle, "saturated": saturated, "look-up alone": lookup}
        section.rows.append(row)
        limit = {16: 60.0, 256: 200.0}.get(count)
        if limit:
            section.goals.append(Goal(f"decision at {count} targets, loaded, us", loaded, f"<= {limit:g}", loaded <= limit))
    return section


def _measure(count: int, inflight: int, waiting: int) -> tuple[float, float]:
    setup = RouterSetup(LLAMA_8B_H100, engines=count, believed=LLAMA_8B_H100)
    router = SimulatedRouter(0, setup, make_policy(setup))
    source = random.Random(count)
    now = 1000.0
    for i in range(count * inflight):
        prompt = source.randrange(500, 20_000)
        blocks = [source.randrange(1 << 40) for _ in range(prompt // 512)]
        request = SimulatedRequest(i, now, prompt, 200, blocks)
        router.place(request, now)
        if i < count * (inflight - waiting):
            router.on_first(request, now + (request.work.ttft_s if isinstance(request.work, Work) else 0.1))
            now += 0.5 / count
    prefix = tuple(source.randrange(1 << 60) for _ in range(CHUNKS))
    prefixes = router.prefixes
    for i in range(max(1, count // 4)):
        prefixes.route(f"engine-{i}", prefix[: source.randrange(4, CHUNKS)])
    request = SimulatedRequest(1 << 30, now, PROMPT_TOKENS, 200, prefix[: PROMPT_TOKENS // 512])
    facts = router.facts(request)
    now += 0.5
    whole = _best(lambda: decide(facts, router.policy, router.view(prefix, now, PROMPT_TOKENS / CHUNKS), now))
    return whole, _best(lambda: prefixes.depths(prefix))


def _best(step: Callable[[], object], calls: int = 300) -> float:
    best = float("inf")
    for _ in range(7):
        started = time.process_time()
        for _ in range(calls):
            step()
        best = min(best, (time.process_time() - started) / calls * 1e6)
    return best
