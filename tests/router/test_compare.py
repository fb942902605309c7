"""With very many targets a request is compared over a part of them: nothing that matters may be lost by that."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from router.compare import LONG
from router.decide import decide
from router.placement.predict import DEFAULT_OUTPUT_TOKENS, ask_of, forecast
from router.placement.targets import Kind, Load
from router.screen import GROUP, shortlist
from tests.router.builders import NOW, SPILL_KEY, make_facts, make_policy, make_target, make_view

POLICY = make_policy()
MANY = [make_target(POLICY, f"tiny@eu/{i}", "eu", slots=8) for i in range(300)]
CLOUD = make_target(POLICY, "provider", "cloud", kind=Kind.CLOUD, models={"tiny": "t-1"})
BUSY = Load(inflight=6, unstarted=2, clear_at=NOW + 0.2, queue_s=0.1, work_s=0.3, work_at=NOW)
LATE = Load(inflight=80, unstarted=70, clear_at=NOW + 400.0, queue_s=300.0, service_s=30.0)


def cost(target, load, facts, cached=0):
    ask = ask_of(facts.prompt_tokens, DEFAULT_OUTPUT_TOKENS, POLICY.slo.tpot_s)
    return forecast(target, load, ask, cached, NOW).cost


@pytest.mark.parametrize("number", [0, 17, 123, 299])
@pytest.mark.parametrize("request_id", ["req-1", "req-2", "req-3", "req-4", "req-5"])
def test_the_only_target_in_time_is_found_whichever_part_the_request_draws(number, request_id):
    pairs = [(target, Load() if i == number else LATE) for i, target in enumerate(MANY)]
    facts = make_facts(POLICY, SPILL_KEY, request_id=request_id)
    decision = decide(facts, POLICY, make_view(*pairs, (CLOUD, Load())), NOW)
    assert decision.chosen.target is MANY[number]
    assert not decision.saturated


@pytest.mark.parametrize("request_id", ["req-1", "req-2", "req-3", "req-4", "req-5"])
def test_whoever_holds_the_prompt_takes_part_wherever_it_stands(request_id):
    facts = make_facts(POLICY, request_id=request_id, prompt_tokens=20_000, prompt_bytes=80_000)
    for number in (3, 77, 250):
        view = replace(make_view(*((target, Load()) for target in MANY)), cached={number: 19_000, 5: 64})
        assert decide(facts, POLICY, view, NOW).chosen.target is MANY[number]


@settings(max_examples=60)
@given(data=st.data())
def test_the_choice_is_the_best_of_its_part_and_good_among_all(data):
    loads = data.draw(st.lists(st.sampled_from([Load(), BUSY, LATE]), min_size=len(MANY), max_size=len(MANY)))
    facts = make_facts(POLICY, request_id=data.draw(st.text(min_size=1, max_size=20)))
    chosen = decide(facts, POLICY, make_view(*zip(MANY, loads, strict=True)), NOW).chosen
    assert chosen == decide(facts, POLICY, make_view(*zip(MANY, loads, strict=True)), NOW).chosen
    by_cost = sorted(cost(target, load, facts) for target, load in zip(MANY, loads, strict=True))
    # A part is a nineteenth of them: the best of it is among the better ones of all, unless nothing in it serves in time.
    assert cost(chosen.target, loads[chosen.index], facts) <= by_cost[len(MANY) - len(MANY) // 10]


def test_requests_draw_all_parts_so_no_target_is_forgotten():
    view = make_view(*((target, Load()) for target in MANY))
    chosen = {decide(make_facts(POLICY, request_id=f"req-{i}"), POLICY, view, NOW).chosen.target.id for i in range(200)}
    groups = shortlist(make_facts(POLICY), POLICY, view.membership, NOW).groups
    assert len(chosen) == len(groups) == 19
    assert sorted(entry.index for group in groups for entry in group.entries) == list(range(len(MANY)))


@pytest.mark.parametrize("number", [0, 17, 123, 299])
def test_a_long_prompt_goes_to_the_best_target_of_all(number):
    view = make_view(*((target, Load() if i == number else BUSY) for i, target in enumerate(MANY)))

    def places(view, tokens):
        asked = (make_facts(POLICY, request_id=f"req-{i}", prompt_tokens=tokens, prompt_bytes=4 * tokens) for i in range(60))
        return {decide(facts, POLICY, view, NOW).chosen.index for facts in asked}

    assert places(view, LONG) == {number}
    assert len(places(view, LONG - 1)) > 1
    held = replace(view, cached={5: LONG // 2})
    assert len(places(held, LONG + LONG // 2 - 1)) > 1  # what is cached has not to be computed


def test_few_targets_are_all_compared():
    view = make_view(*((target, Load()) for target in MANY[:GROUP]))
    assert shortlist(make_facts(POLICY), POLICY, view.membership, NOW).groups == ()


@given(number=st.integers(0, 299), more=st.integers(1, 50))
def test_more_load_never_makes_a_target_more_attractive(number, more):
    facts = make_facts(POLICY)
    loads = [BUSY] * len(MANY)
    before = decide(facts, POLICY, make_view(*zip(MANY, loads, strict=True)), NOW).chosen
    loads[number] = replace(BUSY, inflight=BUSY.inflight + more, unstarted=BUSY.unstarted + more, clear_at=NOW + 0.2 + more)
    after = decide(facts, POLICY, make_view(*zip(MANY, loads, strict=True)), NOW).chosen
    assert before.index == number or after.index != number
