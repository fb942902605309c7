"""Engines that stop and go on (a network's hiccup, a paused machine): seen at once, and not held against them."""

from __future__ import annotations

import math

import pytest
from msgspec.structs import replace

from router.decide import decide
from router.placement.books import Calibration
from router.placement.fleet import Fleet
from router.placement.predict import ask_of, forecast, rank_costs
from router.placement.profile import LLAMA_8B_H100
from router.placement.targets import Kind, Load, Report, Signals, Work
from tests.router.builders import KEY, NOW, SPILL_KEY, make_facts, make_policy, make_target, make_view

POLICY = make_policy()
A, B = make_target(POLICY, "a", "eu"), make_target(POLICY, "b", "eu")
CLOUD = make_target(POLICY, "provider", "cloud", kind=Kind.CLOUD, models={"tiny": "t-1"})


class Cluster:
    """Two engines and a provider; every request has the same prompt."""

    def __init__(self):
        self.fleet = Fleet(math.inf, {"tiny": LLAMA_8B_H100})
        self.fleet.update([Report(target) for target in (A, B, CLOUD)])
        self.count = 0

    def send(self, now, key=SPILL_KEY):
        """A request that arrives now: its booking, and where it went."""
        self.count += 1
        facts = make_facts(POLICY, key, request_id=f"r{self.count}", prompt_tokens=2000, prompt_bytes=8000)
        chosen = decide(facts, POLICY, self.fleet.view(now), now).chosen
        return self.fleet.book(chosen.target, 2000, now, work=chosen.work, model=chosen.model), chosen.target.id

    def answer(self, booking, first_at):
        self.fleet.first_byte(booking, first_at)
        self.fleet.end(booking, first_at + 0.2, completed=True, output_tokens=20)


def test_engines_that_have_stopped_are_left_before_their_requests_fail():
    cluster = Cluster()
    went = [cluster.send(NOW + 0.5 * i)[1] for i in range(40)]
    assert {"a", "b"} == set(went[:4])
    assert went[20:] == ["provider"] * 20


def test_one_engine_that_has_stopped_gets_nothing_more_while_another_works():
    cluster = Cluster()
    _, name = cluster.send(NOW)
    went = []
    for i in range(1, 40):
        booking, target = cluster.send(NOW + 0.5 * i, KEY)
        went.append(target)
        if target != name:
            cluster.answer(booking, NOW + 0.5 * i + 0.1)
    assert went[4:].count(name) == 0


@pytest.mark.parametrize("stall_s", [10.0, 30.0, 120.0])
def test_a_stall_of_the_whole_cluster_sends_nobody_outside_once_it_is_over(stall_s):
    cluster = Cluster()
    for i in range(100):
        cluster.answer(cluster.send(NOW + i)[0], NOW + i + 0.1)
    began = NOW + 100.0
    stalled = [cluster.send(began + 0.02 * i, KEY)[0] for i in range(60)]
    over = began + stall_s
    for i, booking in enumerate(stalled):
        cluster.answer(booking, over + 0.05 * i)
    went = []
    for i in range(200):
        now = over + 5.0 + 0.5 * i
        booking, target = cluster.send(now)
        cluster.answer(booking, now + 0.1)
        went.append(target)
        cluster.fleet.fade(now + 0.4)
    assert went.count("provider") == 0


def test_the_margin_is_narrow_again_soon_after_a_stall():
    calibration = Calibration(goal=0.95)
    for _ in range(300):
        calibration.first(0.12, 0.1, NOW)
    usual_s = calibration.margin_s
    for _ in range(100):
        calibration.first(30.0, 0.1, NOW)
    assert calibration.margin_s > 1.0
    for _ in range(500):
        calibration.first(0.12, 0.1, NOW)
    assert calibration.margin_s < 15 * usual_s


def test_a_wide_margin_counts_where_something_waits_only():
    facts = make_facts(POLICY, SPILL_KEY, prompt_tokens=2000, prompt_bytes=8000)
    free, crowded = (
        Load(profile=LLAMA_8B_H100, inflight=3),
        Load(profile=LLAMA_8B_H100, inflight=3, unstarted=1, clear_at=NOW + 0.2),
    )

    def where(load, **more):
        view = replace(make_view((A, load), (CLOUD, Load())), margin_s=60.0)
        return decide(replace(facts, **more), POLICY, view, NOW).chosen.target.id

    assert (where(free), where(crowded)) == ("a", "provider")
    assert where(free, waited_s=60.0) == "provider", "its own wait always counts"


def test_a_first_token_that_is_overdue_is_expected_to_be_so_for_nearly_as_long_again():
    ask = ask_of(100, 50, 0.05)
    load = Load(profile=LLAMA_8B_H100, inflight=3, unstarted=3, clear_at=NOW + 1.5, queue_s=1.0)

    def wait_s(now):
        return forecast(A, load, ask, 0, now).ttft_s - forecast(A, replace(load, clear_at=0.0, queue_s=0.0), ask, 0, now).ttft_s

    assert [wait_s(NOW + after) for after in (0.0, 0.5, 1.5, 3.5)] == pytest.approx([1.5, 1.0, 1.5, 3.5], abs=0.02)
    assert wait_s(NOW + 3600) == wait_s(NOW + 60) < 20.0, "nothing is refused for a wait that nobody knows"
    rough = [rank_costs([load], {0: 0}, ask, {}, NOW + after)[0] for after in (0.5, 1.5, 3.5)]
    assert [cost - rough[0] for cost in rough] == pytest.approx([0.0, 0.5, 2.5], abs=0.02)


def test_an_engine_whose_core_is_silent_is_left_and_taken_again():
    cluster = Cluster()

    def report(at, silent_s):
        cluster.fleet.update([Report(A, Signals(at, silent_s=silent_s)), Report(B, Signals(at)), Report(CLOUD)])

    report(NOW, 3.0)
    went = []
    for i in range(20):
        booking, target = cluster.send(NOW + i, KEY)
        cluster.answer(booking, NOW + i + 0.1)
        went.append(target)
    assert went == ["b"] * 20
    cluster.fleet.update([Report(A, Signals(NOW + 20, silent_s=3.0)), Report(CLOUD)])
    assert cluster.send(NOW + 20)[1] == "provider"
    booking, target = cluster.send(NOW + 20, KEY)
    assert target == "a", "nothing is refused for a wait that nobody knows"
    cluster.answer(booking, NOW + 20.5)
    report(NOW + 21, 0.0)
    assert {cluster.send(NOW + 21 + i)[1] for i in range(2)} == {"a", "b"}
    cluster.fleet.update([Report(A), Report(B), Report(CLOUD)])
    assert cluster.fleet.load_of(A.incarnation).silent_s == 0.0


def test_nothing_is_overdue_where_nothing_waits():
    cluster = Cluster()
    booking, _ = cluster.send(NOW)
    cluster.fleet.first_byte(booking, NOW + 0.1)
    before, after = (forecast(A, cluster.fleet.view(now).loads[0], ask_of(100, 50, 0.05), 0, now) for now in (NOW + 1, NOW + 900))
    assert after.ttft_s == pytest.approx(before.ttft_s)


def test_an_engine_believed_to_be_a_hundred_times_faster_than_it_is_is_found_out():
    """Its prefills are next to nothing then, beside the step that they come in the middle of."""
    fleet = Fleet(math.inf, {"tiny": LLAMA_8B_H100})
    fleet.update([Report(A)])
    alone_s = LLAMA_8B_H100.prefill_s(2000)

    def serve(now, real):
        slowdown = fleet.load_of(A.incarnation).slowdown or 1.0
        work = Work(prefill_s=slowdown * alone_s, ttft_s=slowdown * alone_s + 0.01, tau_s=2.0, prompt_tokens=2000)
        booking = fleet.book(A, 2000, now, work=work)
        fleet.first_byte(booking, now + real * alone_s + 0.01)
        fleet.end(booking, now + 1.0, completed=True, output_tokens=20)

    for i in range(300):
        serve(NOW + i, 0.001)
    assert fleet.load_of(A.incarnation).slowdown < 0.3
    for i in range(300):
        serve(NOW + 300 + i, 1.0)
    assert fleet.load_of(A.incarnation).slowdown == pytest.approx(1.0, rel=0.2)
