"""What a simulated run comes to: attainment, latencies, reuse, what left the cluster and what that cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from cluster.simulation.engine import SimulatedRequest
from router.placement.profile import EngineProfile

WARM_UP = 0.15
"""Share of the requests, the first ones, that are not counted."""


@dataclass(frozen=True)
class Slo:
    """First token within `ttft_s` or `stretch` times the prompt's own cold prefill, whichever is longer; then this pace."""

    ttft_s: float = 2.0
    tpot_s: float = 0.05
    stretch: float = 2.0

    def limit(self, profile: EngineProfile, prompt: int) -> float:
        """Seconds to the first token that this prompt may take."""
        return max(self.ttft_s, self.stretch * profile.prefill_s(prompt))

    def met(self, request: SimulatedRequest, profile: EngineProfile) -> bool:
        """Whether the request was answered, and in time at both ends."""
        if request.done < 0 or request.outcome == "refused":
            return False
        if request.first - request.arrival > self.limit(profile, request.prompt):
            return False
        return request.output < 2 or (request.done - request.first) / (request.output - 1) <= self.tpot_s


@dataclass(frozen=True)
class Outcome:
    """Shares are of all counted requests, times in seconds, cost in uniform token prices (1 a token, in or out)."""

    requests: int
    met: float
    ttft_p50: float
    ttft_p90: float
    ttft_p99: float
    stretch_p99: float
    tpot_p99: float
    hit_rate: float
    spilled: float
    spilled_cost: float
    refused: float
    preemptions: int
    goodput: float
    """Requests within both limits per second, from the first counted arrival to the last."""

    def as_dict(self) -> dict[str, float]:
        """As plain data."""
        return asdict(self)


def summarise(requests: Sequence[SimulatedRequest], profile: EngineProfile, slo: Slo) -> Outcome:
    """Sum a finished run up."""
    counted = list(requests)[int(len(requests) * WARM_UP) :]
    answered = [request for request in counted if request.done >= 0 and request.outcome != "refused"]
    local = [request for request in answered if request.outcome == "local"]
    spilled = [request for request in answered if request.outcome == "cloud"]
    first = sorted(request.first - request.arrival for request in local)
    stretch = sorted((request.first - request.arrival) / profile.prefill_s(request.prompt) for request in local)
    pace = sorted((request.done - request.first) / (request.output - 1) for request in local if request.output > 1)
    met = sum(slo.met(request, profile) for request in counted)
    cost = sum(request.prompt + request.output for request in counted)
    span = max((request.arrival for request in counted), default=0) - min((request.arrival for request in counted), default=0)
    return Outcome(
        requests=len(counted),
        met=met / max(1, len(counted)),
        ttft_p50=_quantile(first, 0.5),
        ttft_p90=_quantile(first, 0.9),
        ttft_p99=_quantile(first, 0.99),
        stretch_p99=_quantile(stretch, 0.99),
        tpot_p99=_quantile(pace, 0.99),
        hit_rate=sum(r.cached for r in local) / max(1, sum(r.prompt for r in local)),
        spilled=len(spilled) / max(1, len(counted)),
        spilled_cost=sum(r.prompt + r.output for r in spilled) / max(1, cost),
        refused=sum(r.outcome == "refused" for r in counted) / max(1, len(counted)),
        preemptions=sum(r.preemptions for r in counted),
        goodput=met / span if span > 0 else 0.0,
    )


def _quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
