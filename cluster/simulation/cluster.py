"""A simulated cluster: requests arrive at one of several routers, which place them on simulated engines by what they know.

What a router knows is late on purpose: gauges are sampled every `staleness_s`, KV events arrive that much later, and
notices between routers take `notice_s`. Its own streams tell it of first and last tokens at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Protocol

from cluster.simulation.engine import Gauges, SimulatedEngine, SimulatedRequest
from router.placement.peers import BATCH_S, HURRY_S
from router.placement.profile import EngineProfile
from router.placement.targets import Work

CLOUD, HOLD, REFUSE = -1, -2, -3
"""What a router may answer instead of an engine's number: send it outside, keep it for now, refuse it."""
_TICK_S = 0.05
"""A router that holds requests looks at them this often without any event, as the live one does."""
_THINK_S = 0.5
"""A later turn comes this long after its parent's answer at the earliest."""


class Placer(Protocol):
    """One router. `now` is simulated time in seconds; engines are numbers from 0."""

    def place(self, request: SimulatedRequest, now: float) -> int:
        """The engine for a request, or CLOUD, HOLD, REFUSE. The placer books it before it returns."""

    def on_first(self, request: SimulatedRequest, now: float) -> None:
        """First token of a request this router placed."""

    def on_done(self, request: SimulatedRequest, now: float) -> None:
        """Last token of a request this router placed."""

    def on_gauges(self, gauges: Sequence[Gauges], now: float) -> None:
        """A round of scrapes, one an engine; each says when it was sampled."""

    def on_blocks(self, engine: int, stored: Sequence[int], removed: Sequence[int], now: float) -> None:
        """KV events of one engine."""

    def on_notice(self, kind: str, request: SimulatedRequest, engine: int, now: float) -> None:
        """Another router placed a request (`placed`), saw its first token (`first`) or its end (`done`)."""

    def release(self, now: float) -> Iterable[tuple[SimulatedRequest, int]]:
        """Requests held so far for which there is a place (or CLOUD, REFUSE) now."""


@dataclass(frozen=True)
class Scenario:
    """What is simulated.

    `slowdowns` are factors on an engine's step times by number; `liars` are engines whose gauges always say zero.
    `speed` makes arrivals that much denser than in the trace. `profiles`, one an engine, is for engines that differ.
    Notices between routers leave in batches, at most one every `batch_s` from each, and take `notice_s` from there. Where they
    can only tell in rounds (`round_s`), those that need no hurry take that long instead.
    """

    profile: EngineProfile
    engines: int = 8
    routers: int = 1
    speed: float = 1.0
    staleness_s: float = 0.25
    notice_s: float = 0.002
    batch_s: float = BATCH_S
    round_s: float = 0.0
    notices: bool = True
    cloud_first_s: float = 0.6
    cloud_per_token_s: float = 0.02
    slowdowns: dict[int, float] = field(default_factory=dict)
    liars: frozenset[int] = frozenset()
    all_at_once: bool = False
    profiles: tuple[EngineProfile, ...] = ()


class Simulation:
    """Runs one trace through one scenario. Deterministic: events at the same time keep the order they were made in.

    Args:
        scenario: what is simulated.
        requests: `link_turns` of a trace; they are changed by the run, so every run needs its own.
        make_placer: makes the router of a number.
    """

    def __init__(self, scenario: Scenario, requests: Sequence[SimulatedRequest], make_placer: Callable[[int], Placer]) -> None:
        self.scenario = scenario
        self.requests = requests
        self.now = 0.0
        profiles = scenario.profiles or (scenario.profile,) * scenario.engines
        self.engines = [SimulatedEngine(profile, self, scenario.slowdowns.get(i, 1.0)) for i, profile in enumerate(profiles)]
        self.placers = [make_placer(i) for i in range(scenario.routers)]
        self._events: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self._order = 0
        self._open = len(requests)
        self._planned = [-1] * len(profiles)
        self._held = [0] * scenario.routers
        self._ticking = [False] * scenario.routers
        self._batch_at = [-math.inf] * scenario.routers

    def run(self) -> None:
        """Run until every request has ended."""
        speed = math.inf if self.scenario.all_at_once else self.scenario.speed
        later = {id(child) for request in self.requests for child in request.children}
        for request in self.requests:
            request.arrival /= speed
            request.gap /= speed
        for request in self.requests:
            if id(request) not in later:
                self._at(request.arrival, self._arrive, request)
        self._at(0.0, self._scrape)
        events = self._events
        while events and self._open:
            when, _, action, arguments = heappop(events)
            self.now = when
            action(*arguments)

    # -- events ---------------------------------------------------------------------------------------------------------

    def _at(self, when: float, action: Callable[..., None], *arguments: object) -> None:
        self._order += 1
        heappush(self._events, (when, self._order, action, arguments))

    def _arrive(self, request: SimulatedRequest) -> None:
        request.arrival = self.now
        placer = self.placers[request.index % len(self.placers)]
        where = placer.place(request, self.now)
        self._put(request, where)
        if where == HOLD:
            self._hold(request.index % len(self.placers))
            self._release(placer)

    def _hold(self, number: int) -> None:
        self._held[number] += 1
        if not self._ticking[number]:
            self._ticking[number] = True
            self._at(self.now + _TICK_S, self._tick, number)

    def _tick(self, number: int) -> None:
        self._release(self.placers[number])
        self._ticking[number] = self._held[number] > 0
        if self._ticking[number]:
            self._at(self.now + _TICK_S, self._tick, number)

    def _put(self, request: SimulatedRequest, where: int) -> None:
        if where == HOLD:
            return
        request.placed = self.now
        request.engine = where
        if where >= 0:
            request.outcome = "local"
            self._tell_peers("placed", request)
            self.engines[where].submit(request, self.now)
            self._watch(where)
        elif where == CLOUD:
            request.outcome = "cloud"
            request.first = self.now + self.scenario.cloud_first_s
            request.done = request.first + (request.output - 1) * self.scenario.cloud_per_token_s
            self._at(request.done, self._ended, request)
        else:
            request.outcome = "refused"
            self._ended(request)

    def _watch(self, number: int) -> None:
        engine = self.engines[number]
        if engine.step_end < math.inf and self._planned[number] != engine.step_number:
            self._planned[number] = engine.step_number
            self._at(engine.step_end, self._step, number, engine.step_number)

    def _step(self, number: int, step_number: int) -> None:
        engine = self.engines[number]
        if engine.step_number != step_number:
            return
        engine.finish_step()
        stored, removed = engine.kv.stored, engine.kv.removed
        if stored or removed:
            engine.kv.stored, engine.kv.removed = [], []
            self._at(self.now + self.scenario.staleness_s, self._blocks, number, stored, removed)
        self._watch(number)

    def _blocks(self, number: int, stored: Sequence[int], removed: Sequence[int]) -> None:
        for placer in self.placers:
            placer.on_blocks(number, stored, removed, self.now)

    def _scrape(self) -> None:
        """A round of scrapes arrives every `staleness_s`, saying how things were that long ago."""
        every = max(0.05, self.scenario.staleness_s)
        gauges = [
            Gauges(self.now, 0, 0, 0.0, 0) if i in self.scenario.liars else engine.gauges(self.now)
            for i, engine in enumerate(self.engines)
        ]
        # Ages between 0 and `every` on average half of it late in transit: sampled now, used until the next round.
        self._at(self.now, self._deliver, gauges)
        self._at(self.now + every, self._scrape)

    def _deliver(self, gauges: Sequence[Gauges]) -> None:
        for placer in self.placers:
            placer.on_gauges(gauges, self.now)
            self._release(placer)

    def _release(self, placer: Placer) -> None:
        for request, where in placer.release(self.now):
            self._held[request.index % len(self.placers)] -= 1
            self._put(request, where)

    def _tell_peers(self, kind: str, request: SimulatedRequest) -> None:
        scenario = self.scenario
        if len(self.placers) == 1 or not scenario.notices:
            return
        if scenario.round_s:
            urgent = kind == "placed" and _is_urgent(request.work)
            arrives = self.now + (scenario.notice_s if urgent else scenario.round_s)
        else:
            arrives = self._next_batch(request.index % len(self.placers)) + scenario.notice_s
        self._at(arrives, self._notice, kind, request, request.engine)

    def _next_batch(self, number: int) -> float:
        """When what a router has to tell now leaves: with the batch that is being gathered, else as soon as one may."""
        if self._batch_at[number] < self.now:
            self._batch_at[number] = max(self.now, self._batch_at[number] + self.scenario.batch_s)
        return self._batch_at[number]

    def _notice(self, kind: str, request: SimulatedRequest, engine: int) -> None:
        mine = request.index % len(self.placers)
        for number, placer in enumerate(self.placers):
            if number != mine:
                placer.on_notice(kind, request, engine, self.now)

    # -- what engines say -----------------------------------------------------------------------------------------------

    def on_first(self, request: SimulatedRequest, now: float) -> None:
        """The router that placed it sees the first token."""
        placer = self.placers[request.index % len(self.placers)]
        placer.on_first(request, now)
        self._tell_peers("first", request)
        self._at(now, self._release, placer)

    def on_done(self, request: SimulatedRequest, now: float) -> None:
        """The router sees the end; held requests may move up, and the next turn follows."""
        placer = self.placers[request.index % len(self.placers)]
        placer.on_done(request, now)
        self._tell_peers("done", request)
        self._ended(request)
        self._at(now, self._release, placer)

    def _ended(self, request: SimulatedRequest) -> None:
        self._open -= 1
        for child in request.children:
            self._at(max(self.now + _THINK_S, request.arrival + child.gap, child.arrival), self._arrive, child)


def _is_urgent(work: object) -> bool:
    return isinstance(work, Work) and work.prefill_s >= HURRY_S
