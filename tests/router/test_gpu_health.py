"""What a target's GPUs say of themselves: a throttled one is worth less, a broken one gets no work while another can have it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from router.decide import decide
from router.explain import gpu_health
from router.ledger.metrics import Metrics
from router.placement.breaker import GPU_HOLD_S, Cause, hold
from router.placement.fleet import Fleet
from router.placement.predict import ask_of, forecast, rank_costs
from router.placement.targets import Load, Report, Signals
from router.placement.trust import Trust, Verdict
from tests.router.builders import NOW, make_facts, make_policy, make_target

POLICY = make_policy()
A, B = (make_target(POLICY, name, "eu") for name in "ab")
ABROAD = make_target(POLICY, "us", "us")
ASK = ask_of(1_000, 200, 0.1)
SCRAPED = {
    "gpu_faults": 2.0,
    "gpu_throttle": 1.5,
    "target_deferred": 3.0,
    "target_preemptions": 9.0,
    "target_silent_seconds": 4.0,
}


def reported(fleet, at, **signals):
    """Target A says this of itself; the others are well."""
    targets = fleet.membership.targets or (A, B)
    fleet.update([Report(target, Signals(at, **(signals if target.id == "a" else {}))) for target in targets])
    return fleet


def chosen(fleet, now=NOW, **facts):
    return decide(make_facts(POLICY, **facts), POLICY, fleet.view(now), now).chosen.target


@given(st.floats(1.0, 8.0), st.floats(1.0, 8.0), st.integers(0, 20))
def test_a_throttled_target_is_never_more_attractive(one, other, inflight):
    less, more = (replace(Load(inflight=inflight), throttle=value) for value in sorted((one, other)))
    assert forecast(A, less, ASK, 0, NOW).cost <= forecast(A, more, ASK, 0, NOW).cost
    assert forecast(A, less, ASK, 0, NOW).ttft_s <= forecast(A, more, ASK, 0, NOW).ttft_s
    costs = rank_costs([less, more], {0: 0, 1: 1}, ASK, {}, NOW)
    assert costs[0] <= costs[1]


def test_work_goes_around_a_throttled_gpu_until_it_is_cool_again():
    fleet = reported(Fleet(float("inf")), NOW)
    assert chosen(fleet) is A, "all else equal, the first"
    assert chosen(reported(fleet, NOW + 1, gpu_throttle=3.0)) is B
    assert "3.0 times slower" in gpu_health(fleet.load_of(A.incarnation))
    assert chosen(reported(fleet, NOW + 2)) is A
    assert gpu_health(fleet.load_of(A.incarnation)) == ""


def test_what_is_learned_comes_on_top_of_the_throttle_and_does_not_learn_it_too():
    fleet = reported(Fleet(float("inf")), NOW, gpu_throttle=4.0)
    for i in range(40):
        now = NOW + i
        choice = decide(make_facts(POLICY, excluded=frozenset({B.incarnation})), POLICY, fleet.view(now), now).chosen
        booking = fleet.book(A, 100, now, work=choice.work)
        # As slow as the throttle says, and no slower.
        fleet.first_byte(booking, now + choice.work.ttft_s)
        fleet.end(booking, now + choice.work.ttft_s, completed=True)
    assert fleet.load_of(A.incarnation).slowdown == pytest.approx(1.0, rel=0.05)


def test_a_broken_gpu_gets_no_work_while_another_target_may_have_it_and_the_reason_is_on_record():
    fleet = reported(Fleet(float("inf")), NOW, gpu_faults=1)
    now = NOW + 1
    assert chosen(fleet, now) is B
    decision = decide(make_facts(POLICY), POLICY, fleet.view(now), now)
    assert [c.reason for c in decision.candidates if c.target == "a"] == ["health: breaker open (a GPU is broken)"]
    assert "1 broken GPU" in gpu_health(fleet.load_of(A.incarnation))
    # The next word holds it on, answers of what was in flight do not end that, and its recovery does.
    reported(fleet, NOW + GPU_HOLD_S - 1, gpu_faults=1)
    assert hold(fleet.load_of(A.incarnation).breaker, NOW + GPU_HOLD_S + 1) is not None
    reported(fleet, NOW + GPU_HOLD_S)
    assert fleet.load_of(A.incarnation).breaker.cause is None
    assert chosen(fleet, NOW + GPU_HOLD_S) is A


def test_the_only_target_with_a_broken_gpu_still_answers_and_no_other_zone_does():
    fleet = Fleet(float("inf"))
    fleet.update([Report(A, Signals(NOW, gpu_faults=1)), Report(ABROAD, Signals(NOW))])
    inside = replace(make_facts(POLICY).label, process=A.evidence.process, store=A.evidence.store)
    facts = make_facts(POLICY, label=inside)
    assert decide(facts, POLICY, fleet.view(NOW), NOW).chosen.target is A


def test_a_breaker_that_is_open_for_something_else_is_not_lost_to_a_sound_gpu():
    fleet = reported(Fleet(float("inf")), NOW)
    for _ in range(3):
        booking = fleet.book(A, 100, NOW)
        fleet.end(booking, NOW, completed=False)
        fleet.failed(A.incarnation, NOW, True, NOW)
    assert fleet.load_of(A.incarnation).breaker.cause is Cause.FAILURES_IN_A_ROW
    reported(fleet, NOW + 0.5)
    assert fleet.load_of(A.incarnation).breaker.cause is Cause.FAILURES_IN_A_ROW


def test_what_an_engine_says_of_its_queue_and_its_gpus_can_be_scraped():
    fleet = reported(Fleet(float("inf")), NOW, gpu_faults=2, gpu_throttle=1.5, deferred=3, preemptions=9, silent_s=4.0)
    page = Metrics(fleet, lambda target, age: Verdict(Trust.BLIND, ""), "r").render().decode()
    told = {name: f'tidegate_{name}{{router="r",target="a",zone="eu"}} {value}' for name, value in SCRAPED.items()}
    assert {name: line in page.splitlines() for name, line in told.items()} == dict.fromkeys(SCRAPED, True)
