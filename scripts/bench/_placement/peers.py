"""Peers' policies, re-implemented from their published descriptions and sources (no code is theirs), at documented defaults.

Every class says what it follows. All know what their originals know: the streams they proxy at once, gauges and KV events
as late as the scenario makes them.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable, Sequence

from cluster.simulation.cluster import HOLD
from cluster.simulation.engine import Gauges, SimulatedRequest
from cluster.simulation.kv_cache import BLOCK_TOKENS
from router.placement.prefix import PrefixIndex
from router.placement.profile import EngineProfile

SPECULATIVE_S = 2.0


class Peer:
    """Own books of what is in flight where; a subclass only ranks engines."""

    syncs = False
    """Whether the original tells its replicas of its own bookings."""

    def __init__(self, engines: int, profile: EngineProfile, seed: int = 0) -> None:
        self.count = engines
        self.profile = profile
        self.source = random.Random(seed)
        self.inflight = [0] * engines
        self.pending = [0] * engines
        """Uncached prompt tokens given to an engine and not yet answered with a first token."""
        self.context = [0] * engines
        """Prompt tokens of everything in flight."""
        self.since_scrape = [0] * engines
        self.gauges: Sequence[Gauges] = [Gauges(0.0, 0, 0, 0.0, 0) for _ in range(engines)]
        self.holds: list[set[int]] = [set() for _ in range(engines)]
        self.routed = PrefixIndex(history_chunks=profile.kv_tokens // BLOCK_TOKENS)
        for engine in range(engines):
            self.routed.join(str(engine))
        self._speculative: list[dict[int, float]] = [{} for _ in range(engines)]
        self._booked: dict[int, tuple[int, int]] = {}

    def choose(self, request: SimulatedRequest, now: float) -> int:
        """The engine."""
        raise NotImplementedError

    def uncached(self, request: SimulatedRequest, engine: int) -> int:
        """Prompt tokens the engine would have to compute, as the policy believes."""
        return request.prompt - BLOCK_TOKENS * self.exact(request, engine, self._now)

    def exact(self, request: SimulatedRequest, engine: int, now: float) -> int:
        """Leading blocks by KV events, and by what was routed there in the last two seconds."""
        holds, recent = self.holds[engine], self._speculative[engine]
        for depth, block in enumerate(request.blocks):
            if block not in holds and recent.get(block, -1.0) < now:
                return depth
        return len(request.blocks)

    def approximate(self, request: SimulatedRequest) -> list[int]:
        """Leading blocks by own history."""
        found = self.routed.depths(request.blocks)
        return [found.get(str(i), 0) for i in range(self.count)]

    def place(self, request: SimulatedRequest, now: float) -> int:
        """Choose and book."""
        self._now = now
        engine = self.choose(request, now)
        self._book(request, engine, now)
        return engine

    def _book(self, request: SimulatedRequest, engine: int, now: float) -> None:
        tokens = request.prompt - BLOCK_TOKENS * self.exact(request, engine, now)
        self._booked[request.index] = (engine, tokens)
        self.inflight[engine] += 1
        self.pending[engine] += tokens
        self.context[engine] += request.prompt
        self.since_scrape[engine] += request.prompt
        self.routed.route(str(engine), request.blocks)
        for block in request.blocks:
            self._speculative[engine][block] = now + SPECULATIVE_S

    def on_first(self, request: SimulatedRequest, now: float) -> None:
        """A first token."""
        engine, tokens = self._booked[request.index]
        self.pending[engine] -= tokens
        self._booked[request.index] = (engine, 0)

    def on_done(self, request: SimulatedRequest, now: float) -> None:
        """An end."""
        engine, tokens = self._booked.pop(request.index)
        self.inflight[engine] -= 1
        self.pending[engine] -= tokens
        self.context[engine] -= request.prompt

    def on_gauges(self, gauges: Sequence[Gauges], now: float) -> None:
        """A round of scrapes."""
        self.gauges = gauges
        self.since_scrape = [0] * self.count
        for recent in self._speculative:
            if len(recent) > 20_000:
                for block in [block for block, until in recent.items() if until < now]:
                    del recent[block]

    def on_blocks(self, engine: int, stored: Sequence[int], removed: Sequence[int], now: float) -> None:
        """KV events."""
        self.holds[engine].update(stored)
        self.holds[engine].difference_update(removed)

    def on_notice(self, kind: str, request: SimulatedRequest, engine: int, now: float) -> None:
        """A peer router's booking, for those that tell each other."""
        if not self.syncs:
            return
        self._now = now
        if kind == "placed":
            self._book(request, engine, now)
        elif request.index in self._booked:
            (self.on_first if kind == "first" else self.on_done)(request, now)

    def release(self, now: float) -> Iterable[tuple[SimulatedRequest, int]]:
        """Nothing is held."""
        return ()

    def least(self, scores: Sequence[float]) -> int:
        """The lowest score; equals are drawn by lot, as with all peers whose scan starts anywhere."""
        best = min(scores)
        return self.source.choice([i for i, score in enumerate(scores) if score == best])


class RoundRobin(Peer):
    """One after the other."""

    _next = 0

    def choose(self, request: SimulatedRequest, now: float) -> int:
        """The next one."""
        self._next += 1
        return self._next % self.count


class LeastOutstanding(Peer):
    """Fewest requests in flight by own count."""

    def choose(self, request: SimulatedRequest, now: float) -> int:
        """The one with the fewest."""
        return self.least(self.inflight)


class PowerOfTwo(Peer):
    """Ray Serve's default: of two drawn by lot, the one with fewer in flight."""

    def choose(self, request: SimulatedRequest, now: float) -> int:
        """The better of two."""
        return min(self.source.sample(range(self.count), 2), key=lambda i: self.inflight[i])


class CacheAware(Peer):
    """vllm-router `cache_aware` (docs/load_balancing): longest match over 0.5 by own history, else the smallest tree; past
    an imbalance of 32 and 1.1x the shortest queue."""

    threshold, absolute, relative = 0.5, 32, 1.1

    def matches(self, request: SimulatedRequest, now: float) -> list[int]:
        """Leading blocks an engine is believed to hold."""
        return self.approximate(request)

    def without_match(self) -> int:
        """Where a request goes whose prefix nobody holds: the smallest tree."""
        return self.least([self.routed.history_of(str(i)) for i in range(self.count)])

    def choose(self, request: SimulatedRequest, now: float) -> int:
        """Affinity while balanced."""
        high, low = max(self.inflight), min(self.inflight)
        if high - low > self.absolute and high > self.relative * low:
            return self.least(self.inflight)
        found = self.matches(request, now)
        if max(found) * BLOCK_TOKENS > self.threshold * request.prompt:
            return self.least([-depth for depth in found])
        return self.without_match()


class SmgEvents(CacheAware):
    """smg `cache_aware` on KV events (docs/concepts/routing/cache-aware): 0.3, 64, 1.5; without a match the least loaded."""

    threshold, absolute, relative = 0.3, 64, 1.5

    def matches(self, request: SimulatedRequest, now: float) -> list[int]:
        """By KV events."""
        return [self.exact(request, i, now) for i in range(self.count)]

    def without_match(self) -> int:
        """The least loaded."""
        return self.least(self.inflight)


class KvAware(Peer):
    """vllm-router `kv_aware` (src/policies/kv_aware.rs): the longest exact prefix whatever the load, else least loaded."""

    def choose(self, request: SimulatedRequest, now: float) -> int:
        """The longest prefix."""
        found = [self.exact(request, i, now) for i in range(self.count)]
        return self.least([-depth for depth in found]) if max(found) else self.least(self.inflight)


class SMetric(Peer):
    """vllm-router `smetric` (src/policies/smetric.rs): a later turn stays where its history is while that engine can meet
    the TTFT objective; anything else goes to the least (queued work x requests in flight). Rate learned, limit 2 s."""

    hit_ratio, slo_s = 0.5, 2.0

    def __init__(self, engines: int, profile: EngineProfile, seed: int = 0) -> None:
        super().__init__(engines, profile, seed)
        self._work = [0.0] * engines
        self._costs: dict[int, float] = {}
        self._turns: dict[int, int] = {}

    def choose(self, request: SimulatedRequest, now: float) -> int:
        """Gated affinity, or least work."""
        found = self.approximate(request)
        costs = [self._cost(request.prompt, request.prompt - BLOCK_TOKENS * depth) for depth in found]
        queued = [self._work[i] + costs[i] for i in range(self.count)]
        meets = [seconds <= self.slo_s for seconds in queued]
        held = max(range(self.count), key=lambda i: found[i])
        expected = self._turns.get(request.index, 0)
        if expected and found[held] * BLOCK_TOKENS > self.hit_ratio * expected and (meets[held] or not any(meets)):
            chosen = held
        else:
            chosen = self.least([queued[i] * self.inflight[i] for i in range(self.count)])
        for child in request.children:
            self._turns[child.index] = request.prompt
        self._costs[request.index] = costs[chosen]
        self._work[chosen] += costs[chosen]
        return chosen

    def _cost(self, prompt: int, new: int) -> float:
        return self.profile.per_token_full * new + self.profile.attention * new * (prompt - new / 2)

    def on_first(self, request: SimulatedRequest, now: float) -> None:
        """Queued work is released at the first token."""
        super().on_first(request, now)
        self._work[request.engine] -= self._costs.pop(request.index)


class Dynamo(Peer):
    """Dynamo's KV router, which Ray Serve's KVAwareRouter embeds (docs/components/router): prefill blocks still to compute
    there plus this request's, weight 1, plus blocks of everything active; the lowest. Replicas tell each other.

    Requests wait in the router, first come first served, while every worker has more prefill tokens pending than
    `--router-queue-threshold` (16 in 1.3) times its step budget."""

    syncs = True
    threshold = 16.0

    def __init__(self, engines: int, profile: EngineProfile, seed: int = 0) -> None:
        super().__init__(engines, profile, seed)
        self._line: deque[SimulatedRequest] = deque()

    def place(self, request: SimulatedRequest, now: float) -> int:
        """Choose and book, or hold."""
        if self._line or self._is_busy():
            self._line.append(request)
            return HOLD
        return super().place(request, now)

    def release(self, now: float) -> Iterable[tuple[SimulatedRequest, int]]:
        """Those who came first, until all workers are busy again."""
        while self._line and not self._is_busy():
            request = self._line.popleft()
            yield request, super().place(request, now)

    def _is_busy(self) -> bool:
        return min(self.pending) > self.threshold * self.profile.step_tokens

    def choose(self, request: SimulatedRequest, now: float) -> int:
        """The lowest sum."""
        return self.least(
            [self.pending[i] + self.uncached(request, i) + self.context[i] + request.prompt for i in range(self.count)]
        )


class _LlmD(Peer):
    """llm-d's endpoint picker: weighted scorers over scraped metrics, highest sum. Prefix 3, queue 2, KV usage 2."""

    def shares(self, request: SimulatedRequest, now: float) -> list[float]:
        """Share of the prompt an engine is believed to hold."""
        raise NotImplementedError

    def choose(self, request: SimulatedRequest, now: float) -> int:
        """The highest sum."""
        waiting = [gauge.waiting for gauge in self.gauges]
        low, high = min(waiting), max(waiting)
        queue = [1.0 if high == low else (high - count) / (high - low) for count in waiting]
        shares = self.shares(request, now)
        return self.least([-(3 * shares[i] + 2 * queue[i] + 2 * (1 - self.gauges[i].kv_usage)) for i in range(self.count)])


class LlmDDefault(_LlmD):
    """With the approximate prefix scorer (own history)."""

    def shares(self, request: SimulatedRequest, now: float) -> list[float]:
        """By own history."""
        return [depth / max(1, len(request.blocks)) for depth in self.approximate(request)]


class LlmDPrecise(_LlmD):
    """With the precise prefix scorer (KV events, speculative entries for two seconds)."""

    def shares(self, request: SimulatedRequest, now: float) -> list[float]:
        """By KV events."""
        return [self.exact(request, i, now) / max(1, len(request.blocks)) for i in range(self.count)]


class SmgLeastLoad(Peer):
    """smg `least_load` (policies/least_load.rs): (queued + dispatched since the poll) / 2000 tokens/s + 0.15 k/(1-k)."""

    def choose(self, request: SimulatedRequest, now: float) -> int:
        """The least time to drain."""
        scores = []
        for i, gauge in enumerate(self.gauges):
            k = min(0.999, gauge.kv_usage)
            scores.append((gauge.waiting_tokens + self.since_scrape[i]) / 2000 + 0.15 * k / (1 - k))
        return self.least(scores)


class RayPrefix(Peer):
    """Ray Serve LLM's PrefixCacheAffinityRouter at its defaults: match rate from 0.1 on, never rebalances; without a match
    the smallest tree, and power of two among several."""

    def choose(self, request: SimulatedRequest, now: float) -> int:
        """Affinity first."""
        found = self.approximate(request)
        best = max(found)
        if best * BLOCK_TOKENS >= 0.1 * request.prompt:
            wanted = [i for i in range(self.count) if found[i] == best]
        else:
            sizes = [self.routed.history_of(str(i)) for i in range(self.count)]
            wanted = [i for i in range(self.count) if sizes[i] == min(sizes)]
        if len(wanted) > 2:
            wanted = self.source.sample(wanted, 2)
        return min(wanted, key=lambda i: self.inflight[i])


class MinTtft(Peer):
    """Mooncake's conductor (FAST'25, algorithm 1, without transfers): the least (queued prefill time + own prefill time)."""

    syncs = True

    def __init__(self, engines: int, profile: EngineProfile, seed: int = 0) -> None:
        super().__init__(engines, profile, seed)
        self._seconds = [0.0] * engines
        self._own: dict[int, tuple[int, float]] = {}

    def choose(self, request: SimulatedRequest, now: float) -> int:
        """The earliest first token."""
        return self.least([self._seconds[i] + self._prefill(request, i) for i in range(self.count)])

    def _prefill(self, request: SimulatedRequest, engine: int) -> float:
        new = max(1, self.uncached(request, engine))
        return self.profile.prefill_s(new, request.prompt - new)

    def _book(self, request: SimulatedRequest, engine: int, now: float) -> None:
        seconds = self._prefill(request, engine)
        super()._book(request, engine, now)
        self._seconds[engine] += seconds
        self._own[request.index] = (engine, seconds)

    def on_first(self, request: SimulatedRequest, now: float) -> None:
        """Queued work is released at the first token."""
        super().on_first(request, now)
        engine, seconds = self._own.pop(request.index)
        self._seconds[engine] -= seconds


class LMetric(Peer):
    """LMetric (arXiv 2603.15202): the product of prompt tokens to compute (queued and own) and requests in the batch."""

    syncs = True

    def choose(self, request: SimulatedRequest, now: float) -> int:
        """The lowest product."""
        return self.least([(self.pending[i] + self.uncached(request, i)) * (self.inflight[i] + 1) for i in range(self.count)])


PRODUCTS: dict[str, type[Peer]] = {
    "round_robin": RoundRobin,
    "least_outstanding": LeastOutstanding,
    "ray_pow2": PowerOfTwo,
    "ray_prefix": RayPrefix,
    "vllm_cache_aware": CacheAware,
    "vllm_kv_aware": KvAware,
    "vllm_smetric": SMetric,
    "dynamo": Dynamo,
    "llmd_default": LlmDDefault,
    "llmd_precise": LlmDPrecise,
    "smg_events": SmgEvents,
    "smg_least_load": SmgLeastLoad,
}
PAPERS: dict[str, type[Peer]] = {"mooncake_min_ttft": MinTtft, "lmetric": LMetric}
PEERS = {**PRODUCTS, **PAPERS}
