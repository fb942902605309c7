"""The simulated engine against closed forms and against itself in single steps; traces; runs that repeat."""

from __future__ import annotations

import gzip
import itertools
import random

import pytest

from cluster.simulation.cluster import Scenario, Simulation
from cluster.simulation.engine import SimulatedEngine, SimulatedRequest
from cluster.simulation.kv_cache import BLOCK_TOKENS, SimulatedKvCache
from cluster.simulation.outcome import Slo, summarise
from cluster.simulation.trace import TraceError, link_turns, make_documents_trace, make_tools_trace, read_trace
from router.placement.profile import LLAMA_8B_H100, EngineProfile

PROFILE = LLAMA_8B_H100
SMALL = EngineProfile("small", 10e-3, 10e-6, 20e-6, 300, 50e-9, 1e-9, 12_000, 2048, 16)


class Notes:
    """Remembers what an engine says."""

    def __init__(self):
        self.first, self.done = {}, {}

    def on_first(self, request, now):
        self.first[request.index] = now

    def on_done(self, request, now):
        self.done[request.index] = now


class Everywhere:
    """Places requests in turn."""

    def __init__(self, engines):
        self.engines, self.turn = engines, 0

    def place(self, request, now):
        self.turn += 1
        return self.turn % self.engines

    def nothing(self, *arguments):
        return ()

    on_first = on_done = on_gauges = on_blocks = on_notice = release = nothing


def run_alone(engine, arrivals, single_steps=False):
    """Drive one engine; `single_steps` cuts every run of decodes after each step."""
    pending = sorted(arrivals, key=lambda request: request.arrival)
    while pending or engine.step_end < float("inf"):
        if pending and pending[0].arrival <= engine.step_end:
            request = pending.pop(0)
            request.placed = request.arrival
            engine.submit(request, request.arrival)
        else:
            engine.finish_step()
        if single_steps and engine._run_steps > 1:
            engine._run_steps = 1
            engine._set_end(engine._step_start + engine._run_time(1))


def requests_of(count, seed, prompt=3000, output=200, spread=2.0):
    source = random.Random(seed)
    return [
        SimulatedRequest(i, source.random() * spread, source.randrange(10, prompt), source.randrange(1, output), ())
        for i in range(count)
    ]


@pytest.mark.parametrize(("prompt", "output"), [(100, 1), (2048, 2), (5000, 50), (40_000, 300)])
def test_a_lone_request_takes_what_the_formula_says(prompt, output):
    notes = Notes()
    engine = SimulatedEngine(PROFILE, notes)
    run_alone(engine, [SimulatedRequest(0, 0.0, prompt, output, ())])
    assert notes.first[0] == pytest.approx(PROFILE.prefill_s(prompt), rel=1e-9)
    decodes = sum(PROFILE.step_s(1, prompt + 1 + step) for step in range(output - 1))
    assert notes.done[0] - notes.first[0] == pytest.approx(decodes, rel=1e-9)


@pytest.mark.parametrize("profile", [PROFILE, SMALL])
def test_runs_of_decodes_equal_single_steps(profile):
    outcomes = []
    for single in (False, True):
        notes = Notes()
        engine = SimulatedEngine(profile, notes)
        run_alone(engine, requests_of(60, seed=3), single)
        outcomes.append((notes.first, notes.done, engine.kv.used))
    assert outcomes[0][0] == pytest.approx(outcomes[1][0], abs=1e-6)
    assert outcomes[0][1] == pytest.approx(outcomes[1][1], abs=1e-6)
    assert outcomes[0][2] == outcomes[1][2] == 0


def test_memory_runs_short_requests_are_preempted_and_everybody_ends():
    notes = Notes()
    engine = SimulatedEngine(SMALL, notes)
    requests = requests_of(40, seed=5, prompt=2500, output=900, spread=0.5)
    run_alone(engine, requests)
    assert len(notes.done) == 40 and engine.kv.used == 0
    assert sum(request.preemptions for request in requests) > 0
    assert all(request.generated == request.output for request in requests)


def test_half_speed_takes_twice_as_long():
    times = []
    for slowdown in (1.0, 2.0):
        notes = Notes()
        run_alone(SimulatedEngine(PROFILE, notes, slowdown), [SimulatedRequest(0, 0.0, 9000, 40, ())])
        times.append(notes.done[0])
    assert times[1] == pytest.approx(2 * times[0])


def test_a_later_turn_computes_only_what_is_new():
    notes = Notes()
    engine = SimulatedEngine(PROFILE, notes)
    first = SimulatedRequest(0, 0.0, 10 * BLOCK_TOKENS, 5, range(10))
    later = SimulatedRequest(1, 5.0, 12 * BLOCK_TOKENS, 5, range(12))
    run_alone(engine, [first, later])
    assert later.cached == 10 * BLOCK_TOKENS
    assert notes.first[1] - 5.0 == pytest.approx(PROFILE.prefill_s(2 * BLOCK_TOKENS, 10 * BLOCK_TOKENS))
    assert engine.kv.stored == list(range(12))


def test_a_prompt_under_way_is_no_hit_for_its_twin():
    engine = SimulatedEngine(PROFILE, Notes())
    twins = [SimulatedRequest(i, 0.0, 8 * BLOCK_TOKENS, 2, range(8)) for i in range(2)]
    run_alone(engine, twins)
    assert twins[0].cached == 0 and twins[1].cached < 8 * BLOCK_TOKENS


def test_the_cache_evicts_the_end_of_the_oldest_prompt_first():
    kv = SimulatedKvCache(4 * BLOCK_TOKENS)
    for blocks in ((1, 2), (3, 4)):
        kv.hold(blocks, 0)
        kv.mark_computed(blocks)
        kv.release(blocks, 0)
    kv.hold((5,), 0)
    assert kv.removed == [2] and kv.count_prefix((1, 2)) == 1 and kv.count_prefix((3, 4)) == 2
    kv.release((5,), 0)
    assert kv.used == 0 and kv.count_prefix((5,)) == 0, "what was never computed cannot be reused"


def simulate(requests, **changes):
    scenario = Scenario(**{"profile": PROFILE, "engines": 2, **changes})
    simulation = Simulation(scenario, requests, lambda number: Everywhere(scenario.engines))
    simulation.run()
    return simulation


def test_runs_repeat_and_a_turn_waits_for_its_parent():
    rows = make_documents_trace(300)
    ends = []
    for _ in range(2):
        requests = link_turns(rows)
        simulate(requests, speed=4.0)
        ends.append([request.done for request in requests])
        for request in requests:
            assert all(child.arrival >= request.done for child in request.children)
    assert ends[0] == ends[1] and min(ends[0]) > 0
    assert sum(len(request.children) for request in requests) > 50


class Listener(Everywhere):
    """Notes when notices come."""

    def __init__(self, count):
        super().__init__(count)
        self.heard = []

    def on_notice(self, kind, request, engine, now):
        self.heard.append((now, request.index, kind))


@pytest.mark.parametrize("batch_s", [0.0, 0.004, 0.5])
def test_notices_leave_in_batches_and_the_first_after_a_pause_at_once(batch_s):
    requests = link_turns(make_documents_trace(120))
    listeners = []

    def make(number):
        listeners.append(Listener(4))
        return listeners[-1]

    Simulation(Scenario(PROFILE, 4, routers=2, speed=20.0, notice_s=0.01, batch_s=batch_s), requests, make).run()
    other = listeners[1].heard
    told = [request for request in requests if request.index % 2 == 0]
    happened = {(request.index, "placed"): request.placed for request in told}
    happened |= {(request.index, "first"): request.first for request in told}
    assert len([entry for entry in other if entry[2] == "placed"]) == len(told)
    delays = [now - happened[index, kind] - 0.01 for now, index, kind in other if kind != "done"]
    assert min(delays) == pytest.approx(0.0, abs=1e-9) and max(delays) <= batch_s + 1e-9
    left = sorted({now for now, _, _ in other})
    assert all(later - earlier >= batch_s - 1e-9 for earlier, later in itertools.pairwise(left))
    assert batch_s < 0.5 or len(left) < len(other)


def test_an_outcome_counts_what_was_refused_as_missed():
    requests = link_turns(make_tools_trace(200))
    simulate(requests, engines=4)
    for request in requests[100:150]:
        request.outcome = "refused"
    outcome = summarise(requests, PROFILE, Slo())
    assert outcome.requests == 170 and outcome.refused == pytest.approx(50 / 170)
    assert outcome.met == pytest.approx(120 / 170), "everybody else was in time"


def test_traces_are_read_spread_and_refused_when_malformed(tmp_path):
    path = tmp_path / "trace.jsonl.gz"
    lines = [f"[{3000 * (i // 10)},{600 + i},5,[{i * 10},2]]" for i in range(100)]
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    rows = read_trace(path, seed=1)
    assert rows == read_trace(path, seed=1) and len({row[0] for row in rows}) == 100
    assert all(row[3][1] == row[3][0] + 1 for row in rows) and rows[0][0] < 3.0 < rows[-1][0]
    path.write_bytes(b"[0,1,2,[0,1]]\n[0,oops]\n")
    with pytest.raises(TraceError, match=":2:"):
        read_trace(path)


def test_made_up_traces_have_the_marginals_they_promise():
    rows = make_tools_trace(5000)
    prompts = sum(row[1] for row in rows) / len(rows)
    answers = sum(row[2] for row in rows) / len(rows)
    assert 7500 < prompts < 9700 and 150 < answers < 220
    seen, reused = set(), 0
    for _, prompt, _, blocks in rows:
        full = blocks[: prompt // BLOCK_TOKENS]
        depth = next((i for i, block in enumerate(full) if block not in seen), len(full))
        reused += depth * BLOCK_TOKENS
        seen.update(full)
    assert 0.5 < reused / (prompts * len(rows)) < 0.75
