"""One cell of the bench: a policy, a trace, a load and a scenario, simulated; results are remembered by their cell."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from tidegate.simulated_router import RouterSetup, SimulatedRouter, make_policy

from cluster.simulation.cluster import CLOUD, Placer, Scenario, Simulation
from cluster.simulation.engine import SimulatedRequest
from cluster.simulation.kv_cache import BLOCK_TOKENS
from cluster.simulation.outcome import WARM_UP, Outcome, Slo, summarise
from cluster.simulation.trace import Row, TraceError, link_turns, make_tools_trace, read_trace
from router.placement.profile import LLAMA_8B_H100, QWEN_72B_4XH100, EngineProfile

from .peers import PEERS, LeastOutstanding, Peer

TIDEGATE = "tidegate"
PROFILES = {"8b": LLAMA_8B_H100, "72b": QWEN_72B_4XH100}
SLOS = {"8b": Slo(2.0, 0.05), "72b": Slo(4.0, 0.075)}


@dataclass(frozen=True)
class Cell:
    """What is simulated. `rule` names a peer's spill rule and `knob` its setting.

    `queue` bounds tidegate's admission queue, at the live default; peers have what queue their originals have. `notices` between
    routers go as `NOTICES` says; `none`: there are none.
    """

    policy: str
    trace: str
    load: float
    model: str = "8b"
    engines: int = 8
    routers: int = 1
    staleness_s: float = 0.25
    notices: str = "direct"
    slow: tuple[int, ...] = ()
    liars: tuple[int, ...] = ()
    cloud: bool = False
    rule: str = ""
    knob: float = 0.0
    queue: int = 1000


TUNED_ROWS = 5000
"""The first rows of the conversation trace are those that the policy's constants were chosen on: no figure comes from them."""
MAX_WAIT_S = 30.0
"""The live default of `slo.max_wait_ms`."""
NOTICES: dict[str, dict[str, float]] = {
    "direct": {},
    "rounds": {"round_s": 0.1, "notice_s": 0.02},
}
"""How routers tell each other, where it is not the usual way. `direct`: in datagrams, gathered as long as the live ones and read
2 ms later. `rounds`, where none gets through: by Serve's broadcast, every 100 ms, and at once for long prefills."""
LEAST_ROWS = 200
OWN_TRACES = Path(__file__).with_name("traces")


class Traces:
    """The traces of a run by name, cut to `limit` requests. Public files that are not there are left out.

    Args:
        data: folder with `traces/`.
        limit: requests of the conversation and Azure traces at most; twice as many of the made-up one, four times of the
            synthetic one.
        own: files to take instead of all these; `rows` raises TraceError or OSError for one that cannot be read.
    """

    def __init__(self, data: Path, limit: int | None = None, own: Sequence[Path] = ()) -> None:
        self._limit = limit
        self._rows: dict[str, list[Row]] = {}
        self._speeds: dict[tuple[str, str, int], float] = {}
        self._makers: dict[str, Callable[[], list[Row]]] = {}
        if own:
            self._makers = {path.name: partial(read_own, path) for path in own}
            return
        conversation, azure = (data / "traces" / name for name in ("conversation.jsonl.gz", "azure23_conv.jsonl.gz"))
        if conversation.is_file():
            self._makers["conversation"] = lambda: read_trace(conversation)[TUNED_ROWS:]
        if azure.is_file():
            self._makers["azure23"] = lambda: read_trace(azure)
        self._makers["synthetic"] = lambda: read_trace(OWN_TRACES / "synthetic.jsonl.gz")
        self._makers["tools*"] = lambda: make_tools_trace(12_000)

    @property
    def names(self) -> tuple[str, ...]:
        """Traces at hand; a star marks made-up ones."""
        return tuple(self._makers)

    def rows(self, name: str) -> list[Row]:
        """The rows of a trace."""
        if name not in self._rows:
            # Tools come three times as fast: as many requests are over before anything fills up. The synthetic trace is short.
            scale = {"tools*": 2, "synthetic": 4}.get(name, 1)
            self._rows[name] = self._makers[name]()[: self._limit and scale * self._limit]
        return self._rows[name]

    def speed(self, name: str, model: str, engines: int) -> float:
        """The speed-up that is load 1.0: thrown at the engines all at once, least-outstanding routing just clears the trace
        in its own length."""
        key = (name, model, engines)
        if key not in self._speeds:
            rows = self.rows(name)
            requests = [SimulatedRequest(i, 0.0, row[1], row[2], row[3]) for i, row in enumerate(rows)]
            profile = PROFILES[model]
            scenario = Scenario(profile, engines, all_at_once=True)
            Simulation(scenario, requests, lambda number: LeastOutstanding(engines, profile)).run()
            self._speeds[key] = (rows[-1][0] - rows[0][0]) / max(request.done for request in requests)
        return self._speeds[key]

    def pooled(self, name: str, model: str, engines: int) -> tuple[float, float, float]:
        """What one least-recently-used cache with the memory of all engines would do, in trace order.

        Returns:
            The share of prompt tokens it would have held, and the median and 90th percentile, in seconds, of the prefills it
            leaves, each alone on an idle engine.
        """
        profile = PROFILES[model]
        room = engines * profile.kv_tokens // BLOCK_TOKENS
        kept: OrderedDict[int, None] = OrderedDict()
        hit = total = 0
        alone: list[float] = []
        for _, prompt, _, blocks in self.rows(name):
            full = blocks[: prompt // BLOCK_TOKENS]
            depth = 0
            while depth < len(full) and full[depth] in kept:
                depth += 1
            held = min(depth * BLOCK_TOKENS, prompt - 1)
            hit, total = hit + held, total + prompt
            alone.append(profile.prefill_s(prompt - held, held))
            for block in reversed(full):
                kept[block] = None
                kept.move_to_end(block)
            while len(kept) > room:
                kept.popitem(last=False)
        counted = sorted(alone[int(len(alone) * WARM_UP) :])
        return hit / max(1, total), counted[len(counted) // 2], counted[int(0.9 * len(counted))]


def read_own(path: Path) -> list[Row]:
    """A trace of somebody's own, without requests that no engine of the bench can hold: vLLM refuses those at once.

    Raises:
        TraceError: it has no format that is known, no times, or too few requests to say anything.
        OSError: it cannot be read.
    """
    most = min(profile.kv_tokens for profile in PROFILES.values())
    rows = [row for row in read_trace(path) if row[1] + row[2] <= most]
    if rows and rows[-1][0] == rows[0][0]:
        raise TraceError(f"{path}: all requests have the same time")
    if len(rows) < LEAST_ROWS:
        raise TraceError(f"{path}: {len(rows)} requests, too few for shares of them to mean anything (least: {LEAST_ROWS})")
    return rows


class Spilling:
    """A peer with a spill rule in front: it sends out what the rule says, whatever the request."""

    def __init__(self, peer: Peer, rule: str, knob: float) -> None:
        self._peer, self._rule, self._knob = peer, rule, knob
        self.on_first, self.on_done = peer.on_first, peer.on_done
        self.on_gauges, self.on_blocks = peer.on_gauges, peer.on_blocks
        self.on_notice, self.release = peer.on_notice, peer.release

    def place(self, request: SimulatedRequest, now: float) -> int:
        """Outside when the rule's threshold is reached everywhere."""
        return CLOUD if self._full(request, now) else self._peer.place(request, now)

    def _full(self, request: SimulatedRequest, now: float) -> bool:
        peer, knob = self._peer, self._knob
        if self._rule == "in-flight cap":
            return min(peer.inflight) >= knob
        if self._rule == "queue depth":
            return min(gauge.waiting for gauge in peer.gauges) >= knob
        if self._rule == "KV usage":
            return min(gauge.kv_usage for gauge in peer.gauges) >= knob
        if self._rule == "queued tokens":
            return min(peer.pending) >= knob
        # "predicted TTFT": queued tokens and the request's own, at the profile's rate, against the limit.
        profile = peer.profile
        peer._now = now
        seconds = [profile.prefill_s(peer.pending[i] + max(1, peer.uncached(request, i))) for i in range(peer.count)]
        return min(seconds) > knob * max(2.0, 2 * profile.prefill_s(request.prompt))


def simulate(cell: Cell, traces: Traces) -> Outcome:
    """Run one cell."""
    profile, slo = PROFILES[cell.model], SLOS[cell.model]
    requests = link_turns(traces.rows(cell.trace))
    scenario = Scenario(
        profile,
        engines=cell.engines,
        routers=cell.routers,
        speed=cell.load * traces.speed(cell.trace, cell.model, cell.engines),
        staleness_s=cell.staleness_s,
        notices=cell.notices != "none",
        **NOTICES.get(cell.notices, {}),
        slowdowns=dict.fromkeys(cell.slow, 2.0),
        liars=frozenset(cell.liars),
    )
    Simulation(scenario, requests, _maker(cell, profile, slo)).run()
    return summarise(requests, profile, slo)


def _maker(cell: Cell, profile: EngineProfile, slo: Slo) -> Callable[[int], Placer]:
    if cell.policy == TIDEGATE:
        setup = RouterSetup(
            profile,
            slo,
            cell.engines,
            profile,
            cell.cloud,
            0.955,
            MAX_WAIT_S,
            queue=cell.queue,
            events_age_s=cell.staleness_s,
        )
        policy = make_policy(setup)
        return lambda number: SimulatedRouter(number, setup, policy)
    if cell.rule:
        return lambda number: Spilling(PEERS[cell.policy](cell.engines, profile, number), cell.rule, cell.knob)
    return lambda number: PEERS[cell.policy](cell.engines, profile, number)


def capacity(cell: Cell, run: Callable[[Cell], Outcome], width: float, goal: float = 0.95) -> float:
    """The load at which the share `goal` still meets both limits, by bisection between 0.1 and 2.6 to the given width."""
    low, high = 0.1, 2.6
    # Most are between a half and one and a half: look there first.
    probes = [1.0, 0.75, 1.3]
    while high - low > width:
        load = next((probe for probe in probes if low < probe < high), (low + high) / 2)
        if run(replace(cell, load=load)).met >= goal:
            low = load
        else:
            high = load
    return (low + high) / 2


def geometric_mean(values: Sequence[float]) -> float:
    """The geometric mean; 0 for none."""
    product = 1.0
    for value in values:
        product *= max(value, 1e-9)
    return product ** (1 / len(values)) if values else 0.0
