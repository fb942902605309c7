"""What the data plane is to reach, and whether a run did: ratios of figures taken side by side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]
OURS, FLOOR, PEER, SLOW_PEER = "tidegate", "haproxy", "vllm-router/cache_aware", "litellm"
RUST = ("vllm-router/round_robin", PEER, "sglang-router/cache_aware", "smg/cache_aware")
"""Routers in Rust. The best of them is taken figure by figure."""


@dataclass(frozen=True)
class Goal:
    """One line of the table. `value` is None where the run did not measure what it takes."""

    measure: str
    limit: float
    value: float | None
    at_least: bool = False
    unit: str = "x"

    @property
    def met(self) -> bool | None:
        """Whether it is reached; None: not measured."""
        if self.value is None:
            return None
        return self.value >= self.limit if self.at_least else self.value <= self.limit


def judge(rows: list[Row], memory: Row | None = None, throughput: Row | None = None, few: int = 4, many: int = 256) -> list[Goal]:
    """The goals with what was measured.

    Args:
        rows: records of one run of the bench.
        memory: what the memory run wrote, if there was one.
        throughput: what `scripts/bench/throughput` wrote, if it ran.
        few: the run's usual number of targets.
        many: the number it is compared with.
    """

    def of(system: str, case: str, name: str) -> float | None:
        found = [row.get(name) for row in rows if row["system"] == system and row["case"] == case]
        return found[0] if found else None

    def best(case: str, name: str) -> float | None:
        known = [value for system in RUST if (value := of(system, case, name)) is not None]
        return min(known) if known else None

    ours: Callable[[str, str], float | None] = lambda case, name: of(OURS, case, name)  # noqa: E731
    cpu, chunk, added = "cpu_us_per_request", "cpu_us_per_chunk", "added_alone_p50_ms"
    json_cpu, our_chunk, our_added = ours("json", cpu), ours("sse64", chunk), ours("json", added)
    auto_cpu = ours("json-auto", cpu)
    goals = [
        Goal(f"CPU per JSON request, 500 tokens, model named, against {PEER}", 0.6, _ratio(json_cpu, of(PEER, "json", cpu))),
        Goal("the same where `auto` has the fitted prior judge it", 0.6, _ratio(auto_cpu, of(PEER, "json", cpu))),
        Goal(f"the same against {SLOW_PEER}, model named", 0.02, _ratio(json_cpu, of(SLOW_PEER, "json", cpu))),
        Goal(f"the same against {SLOW_PEER}, `auto`", 0.02, _ratio(auto_cpu, of(SLOW_PEER, "json", cpu))),
        Goal("CPU per streamed chunk, against the best Rust router", 0.75, _ratio(our_chunk, best("sse64", chunk))),
        Goal(f"CPU per streamed chunk, against {FLOOR}", 1.5, _ratio(our_chunk, of(FLOOR, "sse64", chunk))),
        Goal("added latency p50, 1 connection, against the best Rust router", 1.0, _ratio(our_added, best("json", added))),
    ]
    title = f"at {many} targets, against {few}"
    goals += [
        Goal(f"CPU per JSON request {title}", 1.3, _ratio(ours(f"json@{many}", cpu), json_cpu)),
        Goal(f"CPU per streamed chunk {title}", 1.3, _ratio(ours(f"sse64@{many}", chunk), our_chunk)),
        Goal(f"added latency p50 {title}", 1.3, _ratio(ours(f"json@{many}", added), our_added)),
    ]
    size = memory if memory and (memory["connections"], memory["live"]) >= (10_000, 1_000) else None
    goals.append(
        Goal("memory, 10,000 idle connections and 1,000 live streams", 400, size["peak_mb"] if size else None, unit=" MB")
    )
    through = throughput["ratio"] if throughput else None
    goals.append(Goal("output tokens/s through the router, against vLLM direct", 0.98, through, at_least=True))
    return goals


def _ratio(value: float | None, other: float | None) -> float | None:
    """None where a part is missing, or where the other one is not above zero, so that nothing can be said."""
    return round(value / other, 3) if value is not None and other is not None and other > 0 else None
