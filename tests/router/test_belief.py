"""What was learned of an engine's pace does not outlive its truth: slowness that nothing tests fades until something does."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.decide import decide
from router.placement.belief import Belief
from router.placement.fleet import Fleet
from router.placement.targets import Kind, Report, Signals
from tests.router.builders import NOW, SPILL_KEY, make_facts, make_policy, make_target

POLICY = make_policy()
A, B = make_target(POLICY, "a", "eu"), make_target(POLICY, "b", "eu")
CLOUD = make_target(POLICY, "provider", "cloud", kind=Kind.CLOUD, models={"tiny": "t-1"})


class World:
    """Requests one after the other over two engines and a provider, and a clock that ticks every second."""

    def __init__(self):
        self.fleet = Fleet(math.inf)
        self.fleet.update([Report(target) for target in (A, B, CLOUD)])
        self.now = NOW
        self.sent = []

    def ask(self, seconds):
        """One request whose first token takes so long on an engine; the answer's end comes a second later."""
        facts = make_facts(POLICY, SPILL_KEY, request_id=f"r{len(self.sent)}", prompt_tokens=1000, prompt_bytes=4000)
        chosen = decide(facts, POLICY, self.fleet.view(self.now), self.now).chosen
        booking = self.fleet.book(chosen.target, 1000, self.now, work=chosen.work, model=chosen.model)
        self.now += 0.1 if chosen.target.kind is Kind.CLOUD else seconds
        self.fleet.first_byte(booking, self.now)
        self.now += 1.0
        self.fleet.end(booking, self.now, completed=True, output_tokens=50)
        self.sent.append(chosen.target.id)
        return chosen.target.id

    def wait(self, seconds):
        for _ in range(seconds):
            self.now += 1.0
            self.fleet.fade(self.now)


@pytest.mark.parametrize("warm_up_s", [3.0, 20.0, 300.0])
def test_a_first_request_that_waits_for_weights_to_load_does_not_send_all_others_outside(warm_up_s):
    world = World()
    assert world.ask(warm_up_s) == "a"
    for _ in range(60):
        world.wait(2)
        world.ask(0.1)
    assert world.sent[10:].count("provider") == 0
    assert {"a", "b"} < {*world.sent[10:], "provider"}


def test_a_cluster_that_was_slow_for_a_while_is_used_again():
    world = World()
    for _ in range(20):
        world.ask(0.1)
        world.wait(1)
    while world.sent[-5:] != ["provider"] * 5:
        world.ask(40.0)
        world.wait(1)
        assert len(world.sent) < 400
    for _ in range(200):
        world.ask(0.1)
        world.wait(1)
    assert world.sent[-100:].count("provider") == 0


def test_an_engine_that_stays_slow_is_tried_ever_more_seldom():
    world = World()
    for _ in range(1200):
        world.ask(8.0)
        world.wait(2)
    tries = [number for number, target in enumerate(world.sent) if target != "provider"]
    assert 3 < len(tries) < 20
    assert tries[-1] - tries[-2] > 2 * (tries[4] - tries[3])


def test_a_slow_replica_beside_a_fast_one_gets_another_chance():
    world = World()
    slow = world.fleet.book(A, 1000, NOW, work=None)
    world.fleet.end(slow, NOW, completed=False)
    for _ in range(30):
        world.ask(0.1)
        world.wait(1)
    before = world.sent.count("b")
    while world.fleet.load_of(A.incarnation).slowdown < 4 * world.fleet.load_of(B.incarnation).slowdown:
        facts = make_facts(POLICY, prompt_tokens=1000, prompt_bytes=4000, excluded=frozenset({B.incarnation}))
        chosen = decide(facts, POLICY, world.fleet.view(world.now), world.now).chosen
        booking = world.fleet.book(A, 1000, world.now, work=chosen.work, model="tiny")
        world.now += 20.0
        world.fleet.first_byte(booking, world.now)
        world.fleet.end(booking, world.now, completed=True)
    assert [world.ask(0.1) for _ in range(3)] == ["b"] * 3
    for _ in range(200):
        world.wait(2)
        world.ask(0.1)
    assert world.sent.count("b") > before and world.sent[-20:].count("a") > 2


def test_what_waits_for_a_first_token_keeps_a_belief_from_fading():
    world = World()
    world.ask(20.0)
    believed = world.fleet.load_of(A.incarnation).slowdown
    hung = world.fleet.book(A, 1000, world.now)
    world.fleet.update([Report(A), Report(B, Signals(world.now, running=9, waiting=5)), Report(CLOUD)])
    world.wait(60)
    assert [world.fleet.load_of(target.incarnation).slowdown for target in (A, B)] == [believed, believed]
    world.fleet.end(hung, world.now, completed=False)
    world.wait(60)
    assert world.fleet.load_of(A.incarnation).slowdown < 2.0


def test_a_clock_that_is_set_back_does_not_keep_a_belief_for_hours():
    world = World()
    world.ask(20.0)
    world.now -= 7200.0
    world.fleet.clock_set(-7200.0)
    world.wait(60)
    assert world.fleet.load_of(A.incarnation).slowdown < 2.0


def test_a_wide_margin_that_nothing_tests_shrinks():
    world = World()
    for _ in range(60):
        world.fleet.calibration.first(30.0, 0.1, world.now)
    assert world.fleet.calibration.margin_s > 1.0
    world.wait(900)
    assert world.fleet.calibration.margin_s < 0.1


@given(st.lists(st.tuples(st.floats(1e-3, 1e3), st.floats(0, 1e4)), min_size=1, max_size=30), st.floats(0, 1e5))
def test_what_fades_lies_between_the_belief_and_no_slowdown(observations, rest):
    own, shared, now = Belief(0.05), Belief(0.01), 1e9
    for implied, after in observations:
        now += after
        own.observe(implied, shared, now)
    fresh, faded = own.beside(shared, now), own.beside(shared, now + rest)
    assert min(fresh, 1.0) * 0.999 <= faded <= max(fresh, 1.0) * 1.001
    assert own.beside(shared, now + rest + 60.0) <= max(faded, 1.0) * 1.001
