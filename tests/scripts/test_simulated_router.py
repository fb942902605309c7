"""The simulated router runs the live decision: better than least outstanding on shared prefixes, and steady past saturation."""

from __future__ import annotations

import random

import pytest
from msgspec.structs import replace
from tidegate.simulated_router import RouterSetup, SimulatedRouter, make_policy

from cluster.simulation.cluster import Scenario, Simulation
from cluster.simulation.engine import Gauges
from cluster.simulation.outcome import Slo, summarise
from cluster.simulation.trace import link_turns, make_documents_trace
from router.placement.profile import LLAMA_8B_H100, QWEN_72B_4XH100
from tests.cluster.test_simulation import Everywhere

PROFILE = LLAMA_8B_H100
ROWS = make_documents_trace(900)


def outcome(speed, setup=None, rows=ROWS, **changes):
    profile, slo = (setup.profile, setup.slo) if setup else (PROFILE, Slo())
    scenario = Scenario(profile, setup.engines if setup else 4, speed=speed, **changes)
    requests = link_turns(rows)
    if setup is None:
        Simulation(scenario, requests, lambda number: Everywhere(4)).run()
    else:
        policy = make_policy(setup)
        Simulation(scenario, requests, lambda number: SimulatedRouter(number, setup, policy)).run()
    return summarise(requests, profile, slo)


def test_it_finds_the_holders_of_prefixes_and_meets_more_limits_than_taking_turns():
    ours, turns = outcome(16.0, RouterSetup(PROFILE, engines=4, believed=PROFILE)), outcome(16.0)
    assert ours.met > turns.met and ours.hit_rate > 2 * turns.hit_rate and ours.ttft_p90 < turns.ttft_p90


def test_past_saturation_the_queue_keeps_goodput_and_refuses_what_cannot_be_served():
    setup = RouterSetup(PROFILE, engines=4, believed=PROFILE, queue=500, max_wait_s=30.0)
    below, far = outcome(20.0, setup), outcome(100.0, setup)
    assert far.refused > 0 and far.goodput >= below.goodput


def a_storm(dice, capacity):
    """Prompts of 4,000 tokens with nothing in common: 5 s at half of what the engines can, 5 s at ten times, 20 s at half."""
    now, rows = 0.0, []
    for share, until in ((0.5, 5.0), (10.0, 10.0), (0.5, 30.0)):
        while now < until:
            now += dice.expovariate(share * capacity)
            rows.append((now, 4000, 20, tuple(range(1000 * len(rows), 1000 * len(rows) + 250))))
    return rows


@pytest.mark.parametrize("engines", [1, 4])
def test_who_comes_after_a_storm_is_not_late_because_of_those_it_left_waiting(engines):
    slo = Slo(tpot_s=10.0)
    setup = RouterSetup(PROFILE, slo=slo, engines=engines, believed=PROFILE, max_wait_s=30.0)
    requests = link_turns(a_storm(random.Random(engines), engines / PROFILE.prefill_s(4000)))
    policy = make_policy(setup)
    Simulation(Scenario(PROFILE, engines), requests, lambda number: SimulatedRouter(number, setup, policy)).run()
    after = [request for request in requests if request.arrival > 12.0]
    in_time = sum(slo.met(request, PROFILE) for request in after)
    assert len(after) > 50 * engines and in_time > 0.98 * len(after), f"{in_time} of {len(after)}"
    assert any(request.first > 12.0 and request.arrival < 10.0 for request in requests), "those left waiting are served as well"


def test_near_saturation_long_prompts_wait_for_the_pace_of_the_others(monkeypatch):
    setup = RouterSetup(PROFILE, engines=4, believed=PROFILE, queue=500, max_wait_s=30.0)
    careful = outcome(80.0, setup)
    monkeypatch.setattr("router.placement.books._MOST_CARE", 0.5)
    careless = outcome(80.0, setup)
    assert careful.met > careless.met + 0.02 and careful.refused < 0.03


def test_where_steps_are_long_holding_saves_more_than_it_costs(monkeypatch):
    setup = RouterSetup(QWEN_72B_4XH100, Slo(4.0, 0.075), engines=4, believed=QWEN_72B_4XH100, queue=500, max_wait_s=30.0)
    traces = [make_documents_trace(1500, seed=seed) for seed in (22, 24)]

    def met():
        return sum(outcome(12.5, setup, rows).met for rows in traces) / len(traces)

    held = met()
    with monkeypatch.context() as patch:
        patch.setattr("router.placement.waiting._GIVEN_TO_OTHERS", 1e9)
        assert held > met() + 0.01, "held past their own limit for next to nothing"
    monkeypatch.setattr("router.placement.books._MOST_CARE", 0.5)
    assert held > met() + 0.03, "never held"


@pytest.mark.parametrize("believed", [PROFILE, None])
def test_many_short_requests_fill_all_engines_alike_when_their_slots_run_out(believed):
    dice, now, rows = random.Random(7), 0.0, []
    for i in range(4500):
        now += dice.expovariate(1000.0)
        rows.append((now, dice.randint(30, 400), max(1, min(300, int(dice.lognormvariate(3.5, 0.7)))), (i,)))
    ours = outcome(1.0, RouterSetup(PROFILE, Slo(tpot_s=0.1), engines=4, believed=believed, max_wait_s=30.0), rows)
    turns = outcome(1.0, None, rows)
    assert ours.met > turns.met, f"{ours.met:.3f}, taking turns {turns.met:.3f}"


def test_where_slots_are_few_nobody_is_held_for_waits_that_are_not_there():
    dice, now, rows = random.Random(5), 0.0, []
    for i in range(2500):
        now += dice.expovariate(200.0)
        rows.append((now, dice.randint(30, 400), max(1, min(300, int(dice.lognormvariate(3.5, 0.7)))), (i,)))
    few = replace(PROFILE, slots=16)
    ours = outcome(1.0, RouterSetup(few, engines=4, believed=few, max_wait_s=30.0), rows)
    assert ours.met > 0.99, ours


@pytest.mark.parametrize("believed", [PROFILE, None])
@pytest.mark.parametrize("share", [0.5, 1.0])
def test_answers_that_come_in_one_piece_are_placed_as_well_as_streams(believed, share):
    """Each once taught that a first token takes as long as its whole answer: a third of what fits was refused or late."""
    dice, now, rows = random.Random(11), 0.0, []
    for i in range(2500):
        now += dice.expovariate(40.0)
        rows.append((now, min(30_000, int(dice.lognormvariate(6.5, 1.0))), int(dice.lognormvariate(5.0, 0.7)), (i,)))
    streams, whole = (
        outcome(1.0, RouterSetup(PROFILE, engines=4, believed=believed, max_wait_s=30.0, whole_share=part), rows)
        for part in (0.0, share)
    )
    assert streams.met > 0.97 and whole.met > streams.met - 0.01, (streams, whole)


def a_document_everybody_asks_about(dice):
    """Three in five requests begin with the same 30,000 tokens, the others have nothing in common."""
    now, rows = 0.0, []
    for i in range(1500):
        now += dice.expovariate(42.0)
        own = tuple(range(1000 * (i + 1), 1000 * (i + 1) + 60))
        if dice.random() < 0.6:
            rows.append((now, 30_720 + dice.randint(50, 900), int(dice.lognormvariate(4.5, 0.8)), tuple(range(60)) + own))
        else:
            rows.append((now, min(30_000, int(dice.lognormvariate(7.0, 1.2))), int(dice.lognormvariate(5.3, 0.8)), own))
    return rows


def test_what_everybody_asks_about_is_computed_where_there_is_room_though_others_hold_it(monkeypatch):
    traces = [a_document_everybody_asks_about(random.Random(seed)) for seed in (1, 2)]
    setup = RouterSetup(PROFILE, engines=8, believed=PROFILE, max_wait_s=30.0)

    def first_tokens():
        return sum(outcome(1.2, setup, rows).ttft_p50 for rows in traces)

    shared = first_tokens()
    monkeypatch.setattr("router.placement.predict.common_beginning", lambda cached: (0, 0.0))
    assert shared < first_tokens() / 2, "each pays alone for what all will ask for"


def test_long_prompts_with_short_answers_do_not_gather_on_a_few_engines_while_the_others_have_time_to_spare():
    dice, now, rows = random.Random(12), 0.0, []
    for i in range(2000):
        now += dice.expovariate(5.0)
        if dice.random() < 0.25:
            rows.append((now, int(dice.uniform(2500, 7500)), max(8, int(dice.lognormvariate(3.8, 0.5))), (i,)))
        else:
            rows.append((now, max(10, int(dice.lognormvariate(5.5, 0.8))), max(2, int(dice.lognormvariate(5.3, 0.6))), (i,)))
    ours, turns = (
        outcome(14.0, RouterSetup(PROFILE, engines=4, believed=PROFILE, max_wait_s=30.0), rows),
        outcome(14.0, None, rows),
    )
    assert ours.met > turns.met and ours.ttft_p90 < turns.ttft_p90, f"{ours.met:.3f}, taking turns {turns.met:.3f}"


def test_what_short_prompts_wait_for_a_step_to_end_does_not_teach_that_prefills_are_slow():
    made = []

    def maker(number):
        made.append(SimulatedRouter(number, setup, policy))
        return made[-1]

    setup = RouterSetup(PROFILE, engines=4, believed=PROFILE, max_wait_s=30.0)
    policy, dice = make_policy(setup), random.Random(3)
    rows = [(i / 20, dice.randint(30, 300), 150, (i,)) for i in range(1500)]
    Simulation(Scenario(PROFILE, 4, speed=1.0), link_turns(rows), maker).run()
    learned = [load.slowdown for load in made[0].fleet.view(1e9).loads]
    assert all(0.9 < slowdown < 1.1 for slowdown in learned), learned


class StuckGauges(Simulation):
    """Every engine says all the time that many wait."""

    def _deliver(self, gauges):
        super()._deliver([Gauges(gauge.sampled_at, 60, 20, 0.0, 20_000) for gauge in gauges])


def test_gauges_of_all_engines_that_are_stuck_high_stop_nothing():
    requests = link_turns(ROWS)
    setup = RouterSetup(PROFILE, engines=4, believed=PROFILE, max_wait_s=30.0)
    policy = make_policy(setup)
    StuckGauges(Scenario(PROFILE, 4, speed=16.0), requests, lambda number: SimulatedRouter(number, setup, policy)).run()
    stuck = summarise(requests, PROFILE, Slo())
    assert stuck.met > outcome(16.0, setup).met - 0.03, stuck


def test_spilling_sends_few_and_keeps_the_limits():
    setup = RouterSetup(PROFILE, engines=4, believed=PROFILE, cloud=True, goal=0.955)
    over = outcome(50.0, setup)
    assert over.met > 0.9 and 0 < over.spilled < 0.5


def test_an_unknown_engine_is_learned():
    known = outcome(16.0, RouterSetup(PROFILE, engines=4, believed=PROFILE))
    unknown = outcome(16.0, RouterSetup(PROFILE, engines=4, believed=None))
    assert unknown.met > known.met - 0.05


def test_several_routers_that_tell_each_other_do_nearly_as_well_as_one():
    setup = RouterSetup(PROFILE, engines=4, believed=PROFILE)
    assert outcome(16.0, setup, routers=4, round_s=0.1).met > outcome(16.0, setup).met - 0.02
