"""A simulated vLLM engine: continuous batching, chunked prefill, FCFS admission, recompute preemption.

Time passes from step to step. A step works on one token of every decoding sequence and on prefill chunks in the rest of
its token budget. While only decodes run, all steps up to the next change are taken in one closed form; a test holds that
this gives the times of single steps.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from heapq import heappop, heappush
from typing import Protocol

from cluster.simulation.kv_cache import BLOCK_TOKENS, SimulatedKvCache
from router.placement.profile import EngineProfile


class SimulatedRequest:
    """One request of a trace on its way through the simulation. Times are seconds of simulated time, -1 for not yet."""

    __slots__ = (
        "_started_tick",
        "arrival",
        "blocks",
        "cached",
        "children",
        "computed",
        "done",
        "engine",
        "first",
        "gap",
        "generated",
        "index",
        "outcome",
        "output",
        "placed",
        "preemptions",
        "prompt",
        "tail",
        "version",
        "work",
    )

    def __init__(self, index: int, arrival: float, prompt: int, output: int, blocks: Sequence[int]) -> None:
        self.index = index
        self.arrival = arrival
        self.prompt = prompt
        self.output = max(1, output)
        self.blocks = tuple(blocks[: prompt // BLOCK_TOKENS])
        self.tail = prompt - BLOCK_TOKENS * len(self.blocks)
        self.children: list[SimulatedRequest] = []
        """Later turns of the same conversation: they are not sent before this one is answered."""
        self.gap = 0.0
        """Seconds of trace time between the parent's arrival and this one's."""
        self.engine = -1
        self.placed = -1.0
        self.first = -1.0
        self.done = -1.0
        self.outcome = ""
        self.cached = 0
        """Prompt tokens the first admission found in the KV cache."""
        self.computed = 0
        self.generated = 0
        self.preemptions = 0
        self.version = 0
        self.work: object = None
        """What the router that placed it tells its peers of it."""
        self._started_tick = 0


class Gauges:
    """What `/metrics` of a simulated engine says at one moment."""

    __slots__ = ("kv_usage", "running", "sampled_at", "waiting", "waiting_tokens")

    def __init__(self, sampled_at: float, running: int, waiting: int, kv_usage: float, waiting_tokens: int) -> None:
        self.sampled_at = sampled_at
        self.running = running
        self.waiting = waiting
        self.kv_usage = kv_usage
        self.waiting_tokens = waiting_tokens
        """Uncached prompt tokens of waiting requests and of unfinished prefills."""


class Listener(Protocol):
    """Hears of first tokens and finished answers."""

    def on_first(self, request: SimulatedRequest, now: float) -> None:
        """The first token of a request is out."""

    def on_done(self, request: SimulatedRequest, now: float) -> None:
        """The last token of a request is out."""


class SimulatedEngine:
    """One engine. The owner calls `submit` on arrival and `finish_step` when `step_end` comes.

    Args:
        profile: what a step costs.
        listener: hears of tokens.
        slowdown: factor on every step's time; 2 is an engine at half speed.
    """

    def __init__(self, profile: EngineProfile, listener: Listener, slowdown: float = 1.0) -> None:
        self.profile = profile
        self.slowdown = slowdown
        self.kv = SimulatedKvCache(profile.kv_tokens)
        self.step_end = math.inf
        self.step_number = 0
        """Grows with every planned step: an owner's older wake-up is void."""
        self._listener = listener
        self._waiting: deque[SimulatedRequest] = deque()
        self._prefilling: list[SimulatedRequest] = []
        self._decoding: dict[int, SimulatedRequest] = {}
        self._finish: list[tuple[int, int, int, SimulatedRequest]] = []
        self._tick = 0
        self._context = 0
        self._chunks: list[tuple[SimulatedRequest, int]] = []
        self._run_steps = 0
        self._step_start = 0.0
        self._step_base = 0.0

    @property
    def running(self) -> int:
        """Sequences being worked on."""
        return len(self._decoding) + len(self._prefilling)

    def gauges(self, now: float) -> Gauges:
        """The gauges at this moment."""
        waiting = sum(request.prompt + request.generated for request in self._waiting)
        waiting += sum(request.prompt + request.generated - request.computed for request in self._prefilling)
        return Gauges(now, self.running, len(self._waiting), self.kv.usage, waiting)

    def submit(self, request: SimulatedRequest, now: float) -> None:
        """A request arrives. A run of decode steps is cut at the end of the step that is under way."""
        self._waiting.append(request)
        if self.step_end == math.inf:
            self._plan(now)
        elif self._run_steps > 1:
            steps = self._steps_until(now - self._step_start)
            if steps < self._run_steps:
                self._run_steps = steps
                self._set_end(self._step_start + self._run_time(steps))

    def finish_step(self) -> None:
        """The planned step, or run of decode steps, is over: tokens come out and the next one begins."""
        now = self.step_end
        steps = self._run_steps
        self._tick += steps
        decoding = len(self._decoding)
        self._context += steps * decoding
        if decoding:
            self.kv.grow(steps * decoding)
        finish = self._finish
        while finish and finish[0][0] <= self._tick:
            _, _, version, request = heappop(finish)
            if version == request.version:
                self._end_decoding(request)
                self._complete(request, now)
        for request, chunk in self._chunks:
            self._finish_chunk(request, chunk, now)
        self._chunks = []
        self._plan(now)

    # -- planning -------------------------------------------------------------------------------------------------------

    def _plan(self, now: float) -> None:
        self._make_room()
        decoding = len(self._decoding)
        budget = self.profile.step_tokens - decoding
        chunks: list[tuple[SimulatedRequest, int]] = []
        attention = 0.0
        for request in self._prefilling:
            if budget <= 0:
                break
            budget, attention = self._take_chunk(request, budget, attention, chunks)
        while budget > 0 and self._waiting and self.running < self.profile.slots and self._admit(self._waiting[0]):
            request = self._waiting.popleft()
            self._prefilling.append(request)
            budget, attention = self._take_chunk(request, budget, attention, chunks)
        if not chunks and not decoding:
            self.step_end = math.inf
            self._run_steps = 0
            return
        self._step_start, self._chunks = now, chunks
        if chunks:
            tokens = decoding + sum(chunk for _, chunk in chunks)
            self._run_steps = 1
            self._set_end(now + self.slowdown * self.profile.step_s(tokens, self._context, attention))
            return
        until_next = self._finish[0][0] - self._tick
        self._run_steps = max(1, min(until_next, self.kv.free // decoding))
        self._step_base = self.profile.step_s(decoding)
        self._set_end(now + self._run_time(self._run_steps))

    def _take_chunk(
        self, request: SimulatedRequest, budget: int, attention: float, chunks: list[tuple[SimulatedRequest, int]]
    ) -> tuple[int, float]:
        chunk = min(budget, request.prompt + request.generated - request.computed)
        chunks.append((request, chunk))
        return budget - chunk, attention + chunk * (request.computed + 0.5 * chunk)

    def _admit(self, request: SimulatedRequest) -> bool:
        kv = self.kv
        private = request.tail + request.generated
        if kv.need_for(request.blocks, private) + len(self._decoding) > kv.free and (self._decoding or self._prefilling):
            return False
        hit = kv.count_prefix(request.blocks)
        # The last token is always computed: its output is the first token of the answer.
        request.computed = min(hit * BLOCK_TOKENS, request.prompt + request.generated - 1)
        if not request.preemptions:
            request.cached = request.computed
        kv.hold(request.blocks, private)
        return True

    def _make_room(self) -> None:
        """Preempt the youngest while the next step of all decodes does not fit: its work is lost and done again."""
        while len(self._decoding) > 1 and self.kv.free < len(self._decoding) + len(self._prefilling):
            youngest = max(self._decoding.values(), key=lambda request: (request.placed, request.index))
            self._end_decoding(youngest)
            self.kv.release(youngest.blocks, youngest.tail + youngest.generated)
            youngest.preemptions += 1
            youngest.computed = 0
            self._waiting.appendleft(youngest)

    def _set_end(self, when: float) -> None:
        self.step_end = when
        self.step_number += 1

    # -- tokens ---------------------------------------------------------------------------------------------------------

    def _finish_chunk(self, request: SimulatedRequest, chunk: int, now: float) -> None:
        before = request.computed // BLOCK_TOKENS
        request.computed += chunk
        self.kv.mark_computed(request.blocks[before : request.computed // BLOCK_TOKENS])
        if request.computed < request.prompt + request.generated:
            return
        self._prefilling.remove(request)
        request.generated += 1
        self.kv.grow(1)
        if request.first < 0:
            request.first = now
            self._listener.on_first(request, now)
        if request.generated >= request.output:
            self._complete(request, now)
            return
        request._started_tick = self._tick
        request.version += 1
        self._decoding[request.index] = request
        self._context += request.prompt + request.generated
        ends = self._tick + request.output - request.generated
        heappush(self._finish, (ends, request.index, request.version, request))

    def _end_decoding(self, request: SimulatedRequest) -> None:
        del self._decoding[request.index]
        request.generated += self._tick - request._started_tick
        request.version += 1
        self._context -= request.prompt + request.generated
        while self._finish and self._finish[0][2] != self._finish[0][3].version:
            heappop(self._finish)

    def _complete(self, request: SimulatedRequest, now: float) -> None:
        self.kv.release(request.blocks, request.tail + request.generated)
        request.done = now
        self._listener.on_done(request, now)

    # -- runs of decode steps in closed form -----------------------------------------------------------------------------

    def _run_time(self, steps: int) -> float:
        """Seconds of so many decode-only steps: the context grows by one token a sequence and step."""
        grown = steps * (steps - 1) / 2 * len(self._decoding)
        seconds = steps * self._step_base + self.profile.per_context * (steps * self._context + grown)
        return self.slowdown * seconds

    def _steps_until(self, seconds: float) -> int:
        """Steps of the current run that have begun `seconds` after its start, at least one."""
        half = 0.5 * self.profile.per_context * len(self._decoding)
        linear = self._step_base + self.profile.per_context * self._context - half
        wanted = max(0.0, seconds) / self.slowdown
        root = (math.sqrt(linear * linear + 4 * half * wanted) - linear) / (2 * half) if half else wanted / linear
        return max(1, math.ceil(root - 1e-9))
