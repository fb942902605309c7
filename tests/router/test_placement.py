"""Placement: forecasts grow with load, the choice stays inside what is allowed, and what is learned helps."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from router.decide import decide
from router.decision import Verdict
from router.placement.books import Calibration
from router.placement.fleet import Fleet
from router.placement.peers import END, FIRST, SENT, Notice
from router.placement.predict import ask_of, common_beginning, expected_misses, forecast, rank_costs
from router.placement.profile import LLAMA_8B_H100, QWEN_72B_4XH100
from router.placement.targets import FRESH_S, Kind, Load, Price, Report, Signals, Work
from router.screen import GROUP
from tests.router.builders import NOW, SPILL_KEY, make_facts, make_policy, make_target, make_view

POLICY = make_policy(slo={"ttft_ms": 2000, "tpot_ms": 50})
TARGETS = [make_target(POLICY, f"t{i}", "eu" if i % 2 else "us") for i in range(12)]
CLOUD = make_target(POLICY, "provider", "cloud", kind=Kind.CLOUD, models={"tiny": "t-1"}, price=Price(1, 2))
WORK = Work(prefill_s=0.5, ttft_s=0.5, tau_s=4.0, prompt_tokens=8000, output_tokens=100, limit_s=2.0)

loads = st.builds(
    Load,
    inflight=st.integers(0, 80),
    unstarted=st.integers(0, 20),
    foreign=st.integers(0, 40),
    clear_at=st.floats(NOW - 5, NOW + 10),
    queue_s=st.floats(0, 5),
    context_tokens=st.integers(0, 400_000),
    kv_tokens=st.integers(0, 500_000),
    work_s=st.floats(0, 10),
    work_at=st.just(NOW - 1),
    long_work_s=st.floats(0, 20),
    fresh=st.floats(0, 10),
    fresh_at=st.just(NOW - 0.3),
    service_s=st.floats(0, 20),
    slowdown=st.floats(0, 4),
    harm=st.floats(0, 0.5),
    profile=st.sampled_from([None, LLAMA_8B_H100, QWEN_72B_4XH100]),
)
heavier = st.sampled_from(
    [
        {"inflight": 3, "unstarted": 3, "queue_s": 0.4},
        {"inflight": 5, "context_tokens": 9000},
        {"foreign": 4},
        {"clear_at": 1.5, "queue_s": 1.5},
        {"queue_s": 2.0},
        {"kv_tokens": 100_000},
        {"work_s": 3.0},
        {"long_work_s": 8.0},
        {"fresh": 2.0},
    ]
)
prompts = st.integers(1, 60_000)


def more_of(load: Load, extra: dict[str, float]) -> Load:
    return replace(load, **{name: getattr(load, name) + value for name, value in extra.items()})


@given(loads, heavier, prompts, st.integers(0, 60_000))
def test_every_part_of_a_forecast_grows_with_what_is_booked(load, extra, prompt, cached):
    ask = ask_of(prompt, 200, 0.05)
    before = forecast(TARGETS[0], load, ask, cached, NOW)
    after = forecast(TARGETS[0], more_of(load, extra), ask, cached, NOW)
    for name in ("ttft_s", "prefill_s", "pace_s", "cost"):
        assert getattr(after, name) >= getattr(before, name) - 1e-9
    rough = [rank_costs([one], {0: 0}, ask, {0: cached}, NOW)[0] for one in (load, more_of(load, extra))]
    assert rough[1] >= rough[0] - 1e-9


elsewhere = st.dictionaries(st.integers(1, 50), st.integers(1, 60_000))


@given(loads, prompts, st.integers(0, 60_000), st.integers(0, 60_000), elsewhere)
def test_more_of_the_prompt_in_the_cache_is_never_worse(load, prompt, cached, more, others):
    ask = ask_of(prompt, 200, 0.05, others)
    less = forecast(TARGETS[0], load, ask, cached, NOW).cost
    assert forecast(TARGETS[0], load, ask, cached + more, NOW).cost <= less + 1e-9
    rough = [rank_costs([load], {0: 0}, ask, {0: tokens}, NOW)[0] for tokens in (cached, cached + more)]
    assert rough[1] <= rough[0] + 1e-9


def test_one_more_copy_of_what_many_hold_is_paid_for_by_the_requests_to_come():
    assert common_beginning({0: 9000}) == (0, 0.0), "a conversation's own: nobody else will ask"
    assert common_beginning({0: 9000, 1: 500, 2: 500, 3: 500}) == (500, 0.75)
    assert common_beginning(dict.fromkeys(range(7), 30_000) | {7: 512}) == (30_000, pytest.approx(6 / 7))
    busy = Load(inflight=35, context_tokens=850_000, profile=LLAMA_8B_H100, work_s=0.8, work_at=NOW)
    free = Load(inflight=35, context_tokens=80_000, profile=LLAMA_8B_H100, work_s=0.8, work_at=NOW)
    facts = make_facts(POLICY, prompt_tokens=31_000, prompt_bytes=124_000)
    view = replace(make_view(*zip(TARGETS[:8], [busy] * 7 + [free], strict=True)), output_tokens={"tiny": 150})
    many = decide(facts, POLICY, replace(view, cached=dict.fromkeys(range(7), 30_000)), NOW)
    one = decide(facts, POLICY, replace(view, cached={0: 30_000}), NOW)
    assert (many.chosen.index, one.chosen.index) == (7, 0)


@given(st.lists(loads, min_size=12, max_size=12), prompts, st.dictionaries(st.integers(0, 11), st.integers(1, 60_000)), heavier)
def test_the_choice_is_eligible_repeats_and_leaves_a_target_that_gets_heavier(many, prompt, cached, extra):
    facts = make_facts(POLICY, prompt_tokens=prompt, prompt_bytes=prompt * 4)
    view = replace(make_view(*zip(TARGETS, many, strict=True)), cached=cached)
    decision = decide(facts, POLICY, view, NOW)
    assert decision == decide(facts, POLICY, view, NOW)
    told = {candidate.target: candidate for candidate in decision.candidates}
    assert len(told) == len(TARGETS)
    if decision.chosen is None:
        assert decision.refusal.status == 503
        return
    chosen = decision.chosen.index
    assert told[TARGETS[chosen].id].verdict is Verdict.CHOSEN
    for index in range(0, len(TARGETS), 3):
        if index != chosen:
            heavy = [more_of(load, extra) if i == index else load for i, load in enumerate(many)]
            after = decide(facts, POLICY, replace(view, loads=tuple(heavy)), NOW)
            assert after.chosen is None or after.chosen.index != index, "it was not chosen when it was lighter"


def test_with_many_targets_the_few_forecasts_find_what_all_of_them_would():
    many = [
        Load(inflight=i % 9, clear_at=NOW + (i * 37 % 50) / 10, work_s=i % 3, work_at=NOW, profile=LLAMA_8B_H100)
        for i in range(GROUP)
    ]
    targets = [make_target(POLICY, f"m{i}", "eu") for i in range(GROUP)]
    facts = make_facts(POLICY, prompt_tokens=5000, prompt_bytes=20_000)
    view = replace(make_view(*zip(targets, many, strict=True)), cached={7: 4000, 60: 4900})
    ask = ask_of(5000, 200, 0.05)
    costs = [forecast(targets[i], many[i], ask, view.cached.get(i, 0), NOW).cost for i in range(GROUP)]
    chosen = decide(facts, POLICY, view, NOW).chosen
    assert costs[chosen.index] <= min(costs) * 1.05


def test_a_held_prefix_wins_until_its_holder_is_overloaded():
    facts = make_facts(POLICY, prompt_tokens=20_000, prompt_bytes=80_000)
    profile = LLAMA_8B_H100
    free, busy = Load(profile=profile), Load(profile=profile, inflight=8, unstarted=4, clear_at=NOW + 3, queue_s=2.5)
    holds = {0: 18_000}
    assert decide(facts, POLICY, replace(make_view((TARGETS[0], free), (TARGETS[1], free)), cached=holds), NOW).chosen.index == 0
    moved = replace(make_view((TARGETS[0], busy), (TARGETS[1], free)), cached=holds)
    assert decide(facts, POLICY, moved, NOW).chosen.index == 1


def test_the_long_prompt_spills_and_the_short_one_stays():
    wait = Load(profile=LLAMA_8B_H100, inflight=4, unstarted=2, clear_at=NOW + 1.2, queue_s=1.2)
    view = make_view((TARGETS[0], wait), (CLOUD, Load()))
    short = make_facts(POLICY, SPILL_KEY, prompt_tokens=500, prompt_bytes=2000)
    long = make_facts(POLICY, SPILL_KEY, prompt_tokens=30_000, prompt_bytes=120_000)
    assert decide(short, POLICY, view, NOW).chosen.target.id == TARGETS[0].id
    spilled = decide(long, POLICY, view, NOW)
    assert spilled.chosen.target.id == CLOUD.id and "ms" in spilled.chosen.reason
    assert not spilled.saturated, "its own prefill is the reason, not the queue: nobody else has to leave"


def test_a_pace_that_is_too_slow_spills_and_says_so():
    slow = Load(profile=LLAMA_8B_H100, inflight=120, context_tokens=1_500_000)
    facts = make_facts(POLICY, SPILL_KEY, prompt_tokens=500, prompt_bytes=2000)
    decision = decide(facts, POLICY, make_view((TARGETS[0], slow), (CLOUD, Load())), NOW)
    assert decision.chosen.target.id == CLOUD.id and "per token" in decision.chosen.reason
    stays = decide(make_facts(POLICY, prompt_tokens=500, prompt_bytes=2000), POLICY, make_view((TARGETS[0], slow)), NOW)
    assert stays.chosen.target.id == TARGETS[0].id and stays.late


def test_a_long_prompt_is_not_held_for_a_pace_that_only_its_own_prefill_makes():
    facts = make_facts(POLICY, prompt_tokens=50_000, prompt_bytes=200_000)
    idle = Load(profile=LLAMA_8B_H100, inflight=2, context_tokens=20_000)
    slow = Load(profile=LLAMA_8B_H100, inflight=120, context_tokens=1_500_000)
    for load, late in ((idle, False), (slow, True)):
        assert decide(facts, POLICY, replace(make_view((TARGETS[0], load)), pace_share=0.8), NOW).late is late


CROWDED = Load(profile=LLAMA_8B_H100, inflight=20, context_tokens=150_000, work_s=2.0, work_at=NOW)
QUIET = Load(profile=LLAMA_8B_H100, inflight=20, context_tokens=150_000)


def test_a_long_prompt_that_may_not_leave_waits_while_it_would_slow_answers_past_their_limit():
    long = make_facts(POLICY, prompt_tokens=30_000, prompt_bytes=120_000)
    short = make_facts(POLICY, prompt_tokens=300, prompt_bytes=1200)
    view = replace(make_view((TARGETS[0], CROWDED), (TARGETS[1], CROWDED)), pace_share=1.4)
    assert not decide(long, POLICY, view, NOW).late, "nothing was learned that would call for it"
    careful = replace(view, crowd_share=1.0)
    held = decide(long, POLICY, careful, NOW)
    assert held.late and "ms per token: waits" in held.chosen.reason
    beside_two = replace(make_view((TARGETS[0], replace(CROWDED, inflight=2))), pace_share=1.4, crowd_share=0.9)
    assert not decide(long, POLICY, beside_two, NOW).late, "two answers are not worth its waiting"
    assert not decide(long, POLICY, replace(careful, crowd_share=1.9), NOW).late
    assert not decide(short, POLICY, replace(make_view((TARGETS[0], QUIET)), crowd_share=1.0), NOW).late


def test_nobody_waits_while_one_target_would_keep_the_pace_and_the_price_says_which():
    facts = make_facts(POLICY, prompt_tokens=12_000, prompt_bytes=48_000)
    far = replace(QUIET, unstarted=2, queue_s=1.0)
    alone, both = make_view((TARGETS[0], CROWDED)), make_view((TARGETS[0], CROWDED), (TARGETS[1], far))
    alone, both = (replace(view, cached={0: 6000}, crowd_share=1.0, pace_share=1.4) for view in (alone, both))
    assert decide(facts, POLICY, alone, NOW).late
    chosen = decide(facts, POLICY, both, NOW)
    assert not chosen.late and chosen.chosen.index == decide(facts, POLICY, replace(both, crowd_share=0.0), NOW).chosen.index


def test_the_share_for_those_that_may_leave_is_not_that_for_those_that_wait():
    facts = make_facts(POLICY, SPILL_KEY, prompt_tokens=30_000, prompt_bytes=120_000)
    inside, both = make_view((TARGETS[0], CROWDED)), make_view((TARGETS[0], CROWDED), (CLOUD, Load()))
    assert decide(facts, POLICY, replace(both, pace_share=1.0), NOW).chosen.target.id == CLOUD.id
    assert decide(facts, POLICY, replace(both, pace_share=1.9, crowd_share=0.9), NOW).chosen.target.id == TARGETS[0].id
    assert decide(facts, POLICY, replace(inside, pace_share=1.9, crowd_share=0.9), NOW).late


def test_a_held_prompt_goes_before_holding_costs_it_its_own_limit_unless_more_is_at_stake_for_others():
    long = make_facts(POLICY, prompt_tokens=30_000, prompt_bytes=120_000)
    limit = 2 * LLAMA_8B_H100.prefill_s(30_000)
    for harm, waited_s, late in ((0.0, 0.3 * limit, True), (0.01, 0.42 * limit, False), (0.05, 0.42 * limit, True)):
        view = replace(make_view((TARGETS[0], replace(CROWDED, harm=harm))), crowd_share=1.0)
        decision = decide(replace(long, waited_s=waited_s), POLICY, view, NOW)
        at_stake = harm * 20 * decision.chosen.work.prefill_s**2
        assert decision.late is late and decision.chosen.index == 0
        assert f"{at_stake:.2f} answers beside it would miss their pace" in decision.chosen.reason
    wide = replace(view, margin_s=0.42 * limit, loads=(CROWDED,))
    assert not decide(long, POLICY, wide, NOW).late, "what predictions are off by may be all it has to give"


@given(loads, heavier, prompts, st.floats(0.9, 2.0), st.floats(0.0, 5.0))
def test_more_on_a_target_never_lets_go_who_waited(load, more, prompt, share, waited_s):
    facts = make_facts(POLICY, prompt_tokens=prompt, prompt_bytes=4 * prompt, waited_s=waited_s)
    changes = {name: getattr(load, name) + value for name, value in more.items()}
    before, after = (
        decide(facts, POLICY, replace(make_view((TARGETS[0], one)), crowd_share=share), NOW)
        for one in (load, replace(load, **changes))
    )
    assert after.chosen is None or after.late or not before.late


def test_the_margin_and_the_time_already_waited_count_against_the_limit():
    load = Load(profile=LLAMA_8B_H100, clear_at=NOW + 1.0, queue_s=1.0, inflight=1, unstarted=1)
    facts = make_facts(POLICY, prompt_tokens=500, prompt_bytes=2000)
    view = make_view((TARGETS[0], load))
    assert not decide(facts, POLICY, view, NOW).late
    assert decide(facts, POLICY, replace(view, margin_s=1.0), NOW).late
    assert decide(replace(facts, waited_s=1.0), POLICY, view, NOW).late


def make_fleet(*targets, **more):
    fleet = Fleet(float("inf"), {"tiny": LLAMA_8B_H100}, **more)
    fleet.update([Report(target) for target in targets])
    return fleet


def test_prefills_queue_up_in_the_books_and_are_released_in_order():
    fleet = make_fleet(TARGETS[0])
    first, second = (fleet.book(TARGETS[0], 8000, NOW, work=WORK) for _ in range(2))
    load = fleet.view(NOW).loads[0]
    assert load.clear_at == pytest.approx(NOW + 1.0) and load.queue_s == pytest.approx(0.5)
    assert load.kv_tokens == 2 * 8100
    fleet.first_byte(first, NOW + 0.8)
    load = fleet.view(NOW).loads[0]
    assert load.clear_at == pytest.approx(NOW + 1.3) and load.queue_s == 0.0
    fleet.end(first, NOW + 2, completed=True, output_tokens=100)
    fleet.end(second, NOW + 2, completed=False)
    load = fleet.view(NOW).loads[0]
    assert (load.context_tokens, load.kv_tokens, load.queue_s, load.inflight) == (0, 0, 0.0, 0)


@given(st.lists(st.tuples(st.integers(0, 6), st.sampled_from(["book", "peer", "first", "end"])), max_size=60))
def test_whatever_the_order_the_books_empty_out(steps):
    fleet = make_fleet(TARGETS[0], TARGETS[1])
    ours, peers = {}, set()
    for number, step in steps:
        target = TARGETS[number % 2]
        if step == "book" and number not in ours:
            ours[number] = fleet.book(target, 8000, NOW, work=WORK)
        elif step == "peer":
            fleet.noticed(Notice(number, SENT, target.incarnation, WORK), NOW)
            peers.add(number)
        elif step == "first" and number in ours:
            fleet.first_byte(ours[number], NOW + 1)
            fleet.noticed(Notice(number, FIRST), NOW + 1)
        elif number in ours:
            fleet.end(ours[number], NOW + 2, completed=True, output_tokens=20)
    for booking in ours.values():
        fleet.end(booking, NOW + 3, completed=False)
    for number in peers:
        fleet.noticed(Notice(number, END), NOW + 3)
    for load in fleet.view(NOW + 3).loads:
        assert (load.inflight, load.unstarted, load.context_tokens, load.kv_tokens) == (0, 0, 0, 0)
        assert load.queue_s == pytest.approx(0.0, abs=1e-9)


def test_an_answer_counts_as_fresh_from_its_first_token_to_its_end_and_less_with_age():
    fleet = make_fleet(TARGETS[0])
    first = fleet.book(TARGETS[0], 8000, NOW, work=WORK)
    assert fleet.view(NOW).loads[0].fresh == 0.0
    fleet.first_byte(first, NOW + 1.0)
    second = fleet.book(TARGETS[0], 8000, NOW + 2.0, work=WORK)
    fleet.first_byte(second, NOW + 2.0)
    assert fleet.view(NOW).loads[0].fresh == pytest.approx(1.0 + math.exp(-1.0 / FRESH_S))
    fleet.end(second, NOW + 2.5, completed=True, output_tokens=20)
    assert fleet.view(NOW).loads[0].fresh == pytest.approx(math.exp(-1.5 / FRESH_S))
    fleet.end(first, NOW + 3.0, completed=False)
    assert fleet.view(NOW).loads[0].fresh == pytest.approx(0.0, abs=1e-9)


def test_an_answer_stays_fresh_while_prefills_run_beside_it():
    fleet = make_fleet(TARGETS[0])
    first = fleet.book(TARGETS[0], 8000, NOW, work=WORK)
    fleet.first_byte(first, NOW + 1.0)
    second = fleet.book(TARGETS[0], 60_000, NOW + 1.5, work=WORK)
    fleet.first_byte(second, NOW + 5.5)
    assert fleet.load_of(TARGETS[0].incarnation).fresh == pytest.approx(1.0 + math.exp(-0.5 / FRESH_S))
    fleet.end(first, NOW + 6.0, completed=True, output_tokens=20)
    assert fleet.load_of(TARGETS[0].incarnation).fresh == pytest.approx(math.exp(-0.5 / FRESH_S))
    fleet.end(second, NOW + 7.0, completed=True, output_tokens=20)
    assert fleet.load_of(TARGETS[0].incarnation).fresh == pytest.approx(0.0, abs=1e-9)


def test_answers_do_not_age_in_a_forecast_while_a_prefill_is_under_way():
    idle = Load(profile=LLAMA_8B_H100, inflight=2, fresh=2.0, fresh_at=NOW - 3.0, work_s=1.5, work_at=NOW)
    ask = ask_of(8000, 100, 0.05)
    busy = replace(idle, unstarted=1, clear_at=NOW)

    def price_of_freshness(load: Load) -> float:
        without = forecast(TARGETS[0], replace(load, fresh=0.0), ask, 0, NOW).cost
        return forecast(TARGETS[0], load, ask, 0, NOW).cost - without

    assert price_of_freshness(idle) * math.exp(2.9 / FRESH_S) < price_of_freshness(busy)


def test_a_long_prompt_goes_where_no_answer_has_just_begun():
    old, young = Load(profile=LLAMA_8B_H100, inflight=2), Load(profile=LLAMA_8B_H100, inflight=2, fresh=2.0, fresh_at=NOW)
    facts = make_facts(POLICY, prompt_tokens=30_000, prompt_bytes=120_000)
    for loads, chosen in (((young, old), 1), ((old, young), 0)):
        assert decide(facts, POLICY, make_view(*zip(TARGETS[:2], loads, strict=True)), NOW).chosen.index == chosen


def test_prefills_of_the_last_seconds_send_a_request_elsewhere_even_when_they_are_over():
    usual = Load(profile=LLAMA_8B_H100, inflight=6, context_tokens=200_000, work_at=NOW - 4)
    rested, hot = (replace(usual, long_work_s=seconds) for seconds in (1.0, 14.0))
    facts = make_facts(POLICY, prompt_tokens=500, prompt_bytes=2000)
    for loads, chosen in (((hot, rested), 1), ((rested, hot), 0)):
        assert decide(facts, POLICY, make_view(*zip(TARGETS[:2], loads, strict=True)), NOW).chosen.index == chosen


def test_a_peers_request_that_a_gauge_showed_before_its_notice_came_counts_once():
    fleet = make_fleet(TARGETS[0])
    fleet.update([Report(TARGETS[0], Signals(NOW, 0, 2, 0.0))])
    assert (fleet.load_of(TARGETS[0].incarnation).foreign, fleet.load_of(TARGETS[0].incarnation).foreign_waiting) == (2, 2)
    fleet.noticed(Notice(1, SENT, TARGETS[0].incarnation, WORK), NOW + 0.05)
    load = fleet.load_of(TARGETS[0].incarnation)
    assert (load.inflight, load.foreign, load.foreign_waiting) == (1, 1, 1)
    for number in (2, 3):
        fleet.noticed(Notice(number, SENT, TARGETS[0].incarnation, WORK), NOW + 0.05)
    load = fleet.load_of(TARGETS[0].incarnation)
    assert (load.inflight, load.foreign, load.foreign_waiting) == (3, 0, 0)


def test_a_slow_replica_is_found_out_and_likes_stay_alike():
    fleet = make_fleet(TARGETS[0], TARGETS[1])
    now = NOW
    for i in range(60):
        for target, factor in ((TARGETS[0], 2.5), (TARGETS[1], 1.05 if i % 2 else 0.95)):
            slowdown = fleet.view(now).loads[TARGETS.index(target)].slowdown or 1.0
            predicted = 0.5 * slowdown
            booking = fleet.book(target, 8000, now, work=replace(WORK, prefill_s=predicted, ttft_s=predicted))
            fleet.first_byte(booking, now + 0.5 * factor)
            fleet.end(booking, now + 1.0 * factor, completed=True, output_tokens=20)
            now += 3
    slow, usual = fleet.view(now).loads
    assert slow.slowdown == pytest.approx(2.5, rel=0.15)
    assert usual.slowdown < 1.8
    facts = make_facts(POLICY, prompt_tokens=8000, prompt_bytes=32_000)
    assert decide(facts, POLICY, fleet.view(now), now).chosen.target.id == TARGETS[1].id


def test_a_queue_full_of_answers_that_came_early_teaches_by_how_much_not_how_many_there_were():
    fleet = make_fleet(TARGETS[0])
    work = replace(WORK, prefill_s=0.01, ttft_s=0.01)
    queue = [fleet.book(TARGETS[0], 200, NOW, work=replace(work, ttft_s=0.01 * (place + 1))) for place in range(200)]
    for place, booking in enumerate(queue):
        fleet.first_byte(booking, NOW + 0.005 * (place + 1))
    assert fleet.load_of(TARGETS[0].incarnation).slowdown == pytest.approx(0.5, rel=0.05)


def test_a_wait_for_a_slot_teaches_nothing_of_how_fast_prefills_go():
    fleet = make_fleet(TARGETS[0])
    for at in range(30):
        booking = fleet.book(TARGETS[0], 200, NOW + at, work=replace(WORK, prefill_s=0.01, ttft_s=1.0))
        fleet.first_byte(booking, NOW + at + 0.2)
        fleet.end(booking, NOW + at + 0.5, completed=True, output_tokens=20)
    assert fleet.load_of(TARGETS[0].incarnation).slowdown in (0.0, 1.0)


def test_prefills_booked_ahead_and_the_wait_for_a_slot_pass_at_the_same_time():
    ask = ask_of(200, 50, 0.05)
    load = Load(inflight=300, unstarted=44, queue_s=1.0, service_s=2.0, profile=LLAMA_8B_H100)
    few = forecast(TARGETS[0], replace(load, inflight=200), ask, 0, NOW)
    assert forecast(TARGETS[0], load, ask, 0, NOW).ttft_s == pytest.approx(few.ttft_s, abs=0.05)
    slow = forecast(TARGETS[0], replace(load, service_s=10.0), ask, 0, NOW)
    assert slow.ttft_s == pytest.approx(45 * 10.0 / 256, abs=0.05), "the longer one counts"


def test_what_a_request_waited_for_a_slot_is_not_time_for_which_it_had_one():
    fleet = make_fleet(TARGETS[0])
    booking = fleet.book(TARGETS[0], 8000, NOW, work=WORK)
    fleet.first_byte(booking, NOW + 6)
    fleet.end(booking, NOW + 8, completed=True, output_tokens=40)
    assert fleet.load_of(TARGETS[0].incarnation).service_s == pytest.approx(2 + WORK.prefill_s)
    quick = fleet.book(TARGETS[0], 8000, NOW + 10, work=WORK)
    fleet.first_byte(quick, NOW + 10.1)
    fleet.end(quick, NOW + 10.1, completed=True, output_tokens=1)
    assert fleet.load_of(TARGETS[0].incarnation).service_s == pytest.approx(0.8 * 2.5 + 0.2 * 0.1), "never more than it was there"


def test_a_slot_is_held_no_less_long_than_it_is_held_already():
    few = replace(TARGETS[0], slots=2)
    fleet, ask = make_fleet(few), ask_of(8000, 100, 0.05)
    quick = fleet.book(few, 8000, NOW, work=WORK)
    fleet.first_byte(quick, NOW + 0.1)
    fleet.end(quick, NOW + 0.2, completed=True, output_tokens=2)
    bookings = [fleet.book(few, 8000, NOW + 1, work=WORK) for _ in range(4)]
    for booking in bookings[:2]:
        fleet.first_byte(booking, NOW + 2)
    soon, later = (forecast(few, fleet.load_of(few.incarnation), ask, 0, NOW + at).ttft_s for at in (2.1, 12.0))
    assert later > soon + 0.9 * (3 / 2 * 10 - 3 / 2 * 0.6), "three are ahead of it at two slots, each held for ten seconds"
    fleet.clock_set(-3600.0)
    assert fleet.load_of(few.incarnation).begun_at == pytest.approx(NOW + 2 - 3600)
    for booking in bookings:
        fleet.end(booking, NOW - 3590, completed=True, output_tokens=300)
    assert fleet.load_of(few.incarnation).begun_at == 0.0


def test_an_answer_in_one_piece_says_nothing_of_the_first_token():
    for profiles in ({"tiny": LLAMA_8B_H100}, {}):
        fleet = Fleet(float("inf"), profiles)
        fleet.update([Report(TARGETS[0]), Report(TARGETS[1]), Report(CLOUD)])
        now, first = NOW, None
        for number in range(20):
            facts = make_facts(POLICY, SPILL_KEY, request_id=f"r{number}", prompt_tokens=200, prompt_bytes=800)
            chosen = decide(facts, POLICY, fleet.view(now), now).chosen
            assert chosen.target.kind is not Kind.CLOUD, "the cluster is idle"
            first = first or chosen.predicted_ttft_s
            assert chosen.predicted_ttft_s < 4 * first
            booking = fleet.book(chosen.target, 200, now, work=chosen.work, model="tiny", whole=True)
            now += 12.0
            fleet.first_byte(booking, now)
            fleet.end(booking, now, completed=True, output_tokens=600)
        assert fleet.calibration.margin_s == 0.0 and fleet.load_of(chosen.target.incarnation).ttft_s == 0.0


def test_a_prefill_that_nobody_sees_ends_when_it_was_predicted_to():
    fleet = make_fleet(TARGETS[0])
    bookings = [fleet.book(TARGETS[0], 8000, NOW, work=replace(WORK, ttft_s=0.5 * (i + 1)), whole=True) for i in range(3)]
    seen = [fleet.view(NOW + seconds).loads[0] for seconds in (0.1, 0.6, 1.1, 1.6)]
    assert [load.unstarted for load in seen] == [3, 2, 1, 0]
    assert [load.queue_s for load in seen] == pytest.approx([1.0, 0.5, 0.0, 0.0])
    assert [round(load.clear_at - NOW, 6) for load in seen] == [1.5, 1.5, 1.5, -NOW] and seen[-1].inflight == 3
    early = fleet.book(TARGETS[0], 8000, NOW + 2, work=WORK, whole=True)
    for booking in (*bookings, early):
        fleet.first_byte(booking, NOW + 2.1)
        fleet.end(booking, NOW + 2.1, completed=True, output_tokens=1)
    assert fleet.view(NOW + 9).loads[0].unstarted == fleet.view(NOW + 9).loads[0].inflight == 0


def test_prefills_nobody_sees_are_over_when_a_later_one_is():
    """An engine that was predicted to be slower than it is would else seem full of prefills while it stands idle."""
    late = replace(WORK, ttft_s=30.0)
    fleet = make_fleet(TARGETS[0], TARGETS[1])
    bookings = [fleet.book(TARGETS[0], 8000, NOW + 0.1 * i, work=late, whole=True) for i in range(5)]
    fleet.book(TARGETS[1], 8000, NOW, work=late, whole=True)
    fleet.first_byte(bookings[2], NOW + 2)
    fleet.end(bookings[2], NOW + 2, completed=True, output_tokens=11)
    load = fleet.view(NOW + 2).loads[0]
    assert (load.inflight, load.unstarted) == (4, 2), "the two after it may not have begun"
    written_s = 10 * LLAMA_8B_H100.step_s(2, 3 * (8000 + 50))
    assert load.begun_at == pytest.approx(NOW + 2 - written_s, abs=0.1), "they began no later than it did"
    streamed = fleet.book(TARGETS[0], 8000, NOW + 3, work=late)
    fleet.first_byte(streamed, NOW + 4)
    assert [load.unstarted for load in fleet.view(NOW + 4).loads] == [0, 1], "another target's says nothing"


def test_an_answer_that_broke_off_says_nothing_of_prefills_before_it():
    fleet = make_fleet(TARGETS[0])
    first, second = (fleet.book(TARGETS[0], 8000, NOW, work=replace(WORK, ttft_s=30.0), whole=True) for _ in range(2))
    fleet.end(second, NOW + 1, completed=False)
    assert fleet.view(NOW + 1).loads[0].unstarted == 1
    fleet.update([Report(TARGETS[1])])
    fleet.update([Report(TARGETS[0])])
    again = fleet.book(TARGETS[0], 8000, NOW + 2, work=WORK, whole=True)
    fleet.first_byte(again, NOW + 3)
    fleet.end(again, NOW + 3, completed=True, output_tokens=2)
    fleet.end(first, NOW + 4, completed=True, output_tokens=2)
    assert fleet.view(NOW + 4).loads[0].unstarted == fleet.view(NOW + 4).loads[0].inflight == 0


def test_prefills_nobody_sees_follow_the_clock_when_it_is_set():
    fleet = make_fleet(TARGETS[0])
    fleet.book(TARGETS[0], 8000, NOW, work=WORK, whole=True)
    fleet.clock_set(3600.0)
    assert fleet.view(NOW + 3600.1).loads[0].unstarted == 1
    assert fleet.view(NOW + 3600.6).loads[0].unstarted == 0


def test_what_a_peer_sent_for_an_answer_in_one_piece_begins_unseen_too():
    fleet = make_fleet(TARGETS[0])
    told = msgspec.msgpack.decode(msgspec.msgpack.encode(replace(WORK, whole=True)), type=Work)
    fleet.noticed(Notice(1, SENT, TARGETS[0].incarnation, told), NOW)
    assert [fleet.view(NOW + seconds).loads[0].unstarted for seconds in (0.1, 0.6)] == [1, 0]
    fleet.noticed(Notice(1, END), NOW + 5)
    assert fleet.view(NOW + 5).loads[0].inflight == 0


@pytest.mark.parametrize("factor", [0.5, 3.0])
def test_answers_in_one_piece_teach_how_fast_the_engine_is(factor):
    fleet, now = make_fleet(TARGETS[0]), NOW
    alone = LLAMA_8B_H100.step_s(1, 8050)
    for _ in range(60):
        work = replace(WORK, ttft_s=0.1, prefill_s=0.1)
        booking = fleet.book(TARGETS[0], 8000, now, work=work, model="tiny", whole=True)
        now += 0.1 + factor * alone * 99
        fleet.first_byte(booking, now)
        fleet.end(booking, now, completed=True, output_tokens=100)
    load = fleet.load_of(TARGETS[0].incarnation)
    assert load.pace_slowdown == pytest.approx(factor, rel=0.15) and load.slowdown == 0.0
    for _ in range(60):  # mostly prefill
        slowdown = fleet.load_of(TARGETS[0].incarnation).slowdown or 1.0
        booking = fleet.book(TARGETS[0], 8000, now, work=replace(WORK, ttft_s=0.5 * slowdown), model="tiny", whole=True)
        now += 0.5 * factor
        fleet.first_byte(booking, now)
        fleet.end(booking, now, completed=True, output_tokens=2)
    assert fleet.load_of(TARGETS[0].incarnation).slowdown == pytest.approx(factor, rel=0.2)


def test_short_prompts_that_wait_share_steps():
    ask, load = ask_of(200, 50, 0.05), Load(inflight=30, unstarted=10, queue_s=0.1, profile=LLAMA_8B_H100)
    alone, behind = (forecast(TARGETS[0], one, ask, 0, NOW) for one in (replace(load, queue_s=0.0), load))
    assert alone.added_s == alone.prefill_s > 1.9 * behind.added_s and behind.ttft_s - alone.ttft_s == pytest.approx(
        0.1 + behind.added_s - alone.added_s
    )
    just_before_the_end = forecast(TARGETS[0], replace(load, queue_s=1e-4), ask, 0, NOW)
    assert just_before_the_end.ttft_s == pytest.approx(alone.ttft_s), "its own step takes as long as it takes"
    long = ask_of(40_000, 50, 0.05)
    alone, behind = (forecast(TARGETS[0], one, long, 0, NOW) for one in (replace(load, queue_s=0.0), load))
    assert behind.added_s == pytest.approx(alone.added_s, rel=0.03)


def test_the_margin_follows_what_predictions_are_off_by():
    fleet = make_fleet(TARGETS[0])
    for i in range(400):
        booking = fleet.book(TARGETS[0], 8000, NOW + i, work=WORK)
        fleet.first_byte(booking, NOW + i + 0.5 + (0.4 if i % 4 == 0 else 0.0))
        fleet.end(booking, NOW + i + 0.95, completed=True)
    assert 0.1 < fleet.calibration.margin_s < 0.6


def test_missed_limits_make_the_pace_limit_stricter_and_kept_ones_relax_it():
    fleet = make_fleet(TARGETS[0], tpot_s=0.05)
    before = fleet.calibration.pace_share
    for i in range(10):
        booking = fleet.book(TARGETS[0], 8000, NOW + i, work=WORK)
        fleet.first_byte(booking, NOW + i + 0.5)
        fleet.end(booking, NOW + i + 30, completed=True, output_tokens=20)
    strict = fleet.calibration.pace_share
    assert strict < before
    for i in range(50):
        booking = fleet.book(TARGETS[0], 8000, NOW + i, work=WORK)
        fleet.first_byte(booking, NOW + i + 0.5)
        fleet.end(booking, NOW + i + 0.9, completed=True, output_tokens=20)
    assert fleet.calibration.pace_share > strict


def end_one(fleet, target, start, model="tiny", tokens=20, seconds=1.0, prefill_s=1.0):
    booking = fleet.book(target, 8000, start, work=replace(WORK, prefill_s=prefill_s), model=model)
    fleet.first_byte(booking, start + prefill_s)
    fleet.end(booking, start + prefill_s + seconds, completed=True, output_tokens=tokens)


def test_what_long_prefills_do_to_the_answers_beside_them_is_learned_per_model():
    other = make_target(POLICY, "other", "eu", models={"large": "large"})
    fleet = make_fleet(TARGETS[0], other, tpot_s=0.05)
    for target in (TARGETS[0], other):
        for _ in range(4):  # four answers that go on beside everything else
            fleet.book(target, 100, NOW, work=replace(WORK, prefill_s=0.01))
    for i in range(100):
        start = NOW + 10 * i
        end_one(fleet, TARGETS[0], start, seconds=3.0 if i % 10 == 0 else 0.5)
        end_one(fleet, other, start, seconds=0.5)
        end_one(fleet, TARGETS[0], start, tokens=-1, seconds=9.0)
    harm, none = fleet.load_of(TARGETS[0].incarnation).harm, fleet.load_of(other.incarnation).harm
    assert harm == pytest.approx(0.09 / 4, rel=0.1) and none == 0.0
    load = fleet.load_of(TARGETS[0].incarnation)
    assert expected_misses(load, 2.0) == pytest.approx(4 * 4 * harm), "twice the prefill, four times the harm"
    assert expected_misses(replace(load, foreign=4), 2.0) == 2 * expected_misses(load, 2.0)


def test_a_single_miss_is_no_reason_to_give_a_limit_up():
    fleet = make_fleet(TARGETS[0], tpot_s=0.05)
    fleet.book(TARGETS[0], 100, NOW, work=replace(WORK, prefill_s=0.01))
    end_one(fleet, TARGETS[0], NOW, seconds=3.0, prefill_s=0.1)
    assert fleet.load_of(TARGETS[0].incarnation).harm == 0.0


def test_what_is_beside_a_prefill_is_what_was_there_before_it():
    fleet = make_fleet(TARGETS[0], tpot_s=0.05)
    for i in range(50):
        end_one(fleet, TARGETS[0], NOW + 10 * i, seconds=3.0)
    assert fleet.load_of(TARGETS[0].incarnation).harm == 0.0, "alone it can harm nobody"


def test_nothing_waits_for_others_until_answers_miss_their_pace_and_then_ever_less():
    learned = Calibration(goal=0.95)
    assert learned.crowd_share == 0.0
    shares = []
    for _ in range(40):
        learned.answered(False)
        shares.append(learned.crowd_share)
    assert shares == sorted(shares, reverse=True) and 0.85 < shares[-1] < 1.0
    for _ in range(5000):
        learned.answered(True)
    assert learned.crowd_share == 0.0


def test_those_who_became_late_as_they_waited_make_it_rarer():
    learned = Calibration(goal=0.95)
    for _ in range(20):
        learned.answered(False)
    other = Calibration(goal=0.95)
    for _ in range(20):
        other.answered(False)
    other.waited_too_long(1000)
    for _ in range(100):
        learned.answered(True)
        other.answered(True)
    assert other.crowd_share > learned.crowd_share > 0.0


def test_a_flood_of_late_ones_is_saturation_and_does_not_end_the_care():
    learned = Calibration(goal=0.95)
    for i in range(2000):
        learned.waited_too_long(2)
        learned.answered(i % 10 > 0)
    assert 0.9 <= learned.crowd_share < 1.1


@given(st.lists(st.booleans(), max_size=300))
def test_what_is_learned_of_the_pace_stays_within_bounds(answers):
    learned = Calibration(goal=0.95)
    for met in answers:
        learned.answered(met)
    assert learned.crowd_share == 0.0 or 0.9 <= learned.crowd_share < 2.0
    assert 0.4 <= learned.pace_share <= 1.4


def test_gauges_stuck_at_zero_change_nothing():
    fleet, blind = make_fleet(TARGETS[0], TARGETS[1]), make_fleet(TARGETS[0], TARGETS[1])
    for each in (fleet, blind):
        each.book(TARGETS[0], 8000, NOW, work=WORK)
    fleet.update([Report(target, Signals(NOW + 1, 0, 0, 0.0)) for target in TARGETS[:2]])
    facts = make_facts(POLICY)
    assert (
        decide(facts, POLICY, fleet.view(NOW), NOW).chosen.index == decide(facts, POLICY, blind.view(NOW), NOW).chosen.index == 1
    )


def answer_beside_foreign(fleet, waits_s, rounds=60):
    """First tokens of requests beside twenty that wait by the gauges; each is told once more before it."""
    for at in range(rounds):
        fleet.update([Report(TARGETS[0], Signals(NOW + at, running=30, waiting=20))])
        booking = fleet.book(TARGETS[0], 2000, NOW + at, work=replace(WORK, prefill_s=0.05, ttft_s=0.05))
        fleet.first_byte(booking, NOW + at + 0.05 + waits_s)
        fleet.end(booking, NOW + at + 0.5, completed=True, output_tokens=20)
    return fleet.load_of(TARGETS[0].incarnation)


def test_gauges_stuck_with_requests_that_wait_are_found_out_by_those_that_did_not_have_to():
    ask = ask_of(8000, 100, 0.05)
    stuck, true = (answer_beside_foreign(make_fleet(TARGETS[0]), waits_s) for waits_s in (0.0, 1.0))
    assert stuck.foreign_waiting == true.foreign_waiting > 10 and stuck.foreign_weight < 0.05 and true.foreign_weight > 0.9
    alone = forecast(TARGETS[0], replace(stuck, foreign_waiting=0), ask, 0, NOW + 100)
    assert forecast(TARGETS[0], stuck, ask, 0, NOW + 100).ttft_s < 2 * alone.ttft_s
    assert forecast(TARGETS[0], true, ask, 0, NOW + 100).ttft_s > 10 * alone.ttft_s
    again = answer_beside_foreign(make_fleet(TARGETS[0]), 0.0, rounds=1)
    assert again.foreign_weight == pytest.approx(0.9), "one that was lucky proves little"


def test_a_queue_that_keeps_all_of_ours_away_is_believed_until_it_is_time_to_see():
    fleet = make_fleet(TARGETS[0])
    for at in range(0, 61, 5):
        fleet.update([Report(TARGETS[0], Signals(NOW + at, running=30, waiting=20))])
    untried = fleet.load_of(TARGETS[0].incarnation)
    assert untried.foreign_weight == pytest.approx(math.exp(-2.0))
    booking = fleet.book(TARGETS[0], 2000, NOW + 60, work=WORK)
    for at in range(61, 90):
        fleet.update([Report(TARGETS[0], Signals(NOW + at, running=30, waiting=20))])
    assert fleet.load_of(TARGETS[0].incarnation).foreign_weight == untried.foreign_weight, "one of ours is there to tell"
    fleet.first_byte(booking, NOW + 90)
    assert fleet.load_of(TARGETS[0].incarnation).foreign_weight > untried.foreign_weight


def test_answer_lengths_are_learned_by_model():
    fleet = make_fleet(TARGETS[0])
    for i in range(5):
        booking = fleet.book(TARGETS[0], 8000, NOW + i, work=WORK, model="tiny")
        fleet.first_byte(booking, NOW + i + 0.5)
        fleet.end(booking, NOW + i + 2, completed=True, output_tokens=40)
    assert fleet.view(NOW).output_tokens["tiny"] == pytest.approx(41, abs=1)


def test_a_replica_nobody_has_tried_is_taken_to_be_like_the_others():
    fleet = make_fleet(TARGETS[0], TARGETS[1])
    now = NOW
    for _ in range(30):
        slowdown = fleet.view(now).loads[0].slowdown or 1.0
        booking = fleet.book(TARGETS[0], 8000, now, work=replace(WORK, prefill_s=0.5 * slowdown, ttft_s=0.5 * slowdown))
        fleet.first_byte(booking, now + 0.05)
        fleet.end(booking, now + 0.1, completed=True)
        now += 20
    tried, new = fleet.view(now).loads
    assert tried.slowdown == pytest.approx(0.1, rel=0.2) and new.slowdown == pytest.approx(tried.slowdown, rel=0.2)
    busy = fleet.book(TARGETS[0], 8000, now, work=WORK)
    assert decide(make_facts(POLICY), POLICY, fleet.view(now), now).chosen.target.id == TARGETS[1].id
    fleet.end(busy, now, completed=False)
    fleet.update([Report(target) for target in TARGETS[:3]])
    assert fleet.view(now).loads[2].slowdown == pytest.approx(tried.slowdown, rel=0.2), "one that has just come, too"
