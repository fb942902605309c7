"""The decision: constraints first and final, then the shortest predicted wait, then spilling, then a typed refusal."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from router.decide import decide
from router.decision import Complexity, Verdict
from router.placement.targets import Endpoint, Kind, Load, Price, Signals
from router.residency.label import Evidence, admits
from router.residency.resolve import resolve_label
from tests.router.builders import KEY, NOW, SPILL_KEY, grant_of, make_facts, make_policy, make_target, make_view

POLICY = make_policy()
EU = make_target(POLICY, "tiny@eu/a", "eu", slots=4)
US = make_target(POLICY, "tiny@us/b", "us", slots=4)
BIG = make_target(POLICY, "big@eu/c", "eu", "big", duties=["baa"])
CLOUD = make_target(POLICY, "provider", "cloud", kind=Kind.CLOUD, models={"tiny": "t-1", "big": "b-1"}, price=Price(1, 2))
FREE, FULL = Load(), Load(inflight=40, unstarted=36, unstarted_tokens=3600, service_s=1.0)
FULL_FOR_EVER = Load(inflight=400, service_s=10.0)


def reason_of(decision, name):
    return next(c.reason for c in decision.candidates if c.target == name)


def test_the_least_loaded_target_is_chosen_and_every_candidate_is_named():
    decision = decide(make_facts(POLICY), POLICY, make_view((EU, FULL), (US, FREE), (CLOUD, FREE)), NOW)
    assert decision.chosen.target.id == US.id
    assert {c.target for c in decision.candidates} == {EU.id, US.id, CLOUD.id}
    verdicts = {c.target: c.verdict for c in decision.candidates}
    assert verdicts == {US.id: Verdict.CHOSEN, EU.id: Verdict.ELIGIBLE, CLOUD.id: Verdict.SCREENED}
    assert reason_of(decision, CLOUD.id).startswith("residency:")


def test_a_tag_keeps_the_request_in_its_zone_even_when_another_is_free():
    label = resolve_label(grant_of(POLICY), ["eu"], POLICY)
    decision = decide(make_facts(POLICY, label=label), POLICY, make_view((EU, FULL), (US, FREE)), NOW)
    assert decision.chosen.target.id == EU.id
    assert reason_of(decision, US.id) == "residency: processes in us, which the label does not allow"


def test_a_tag_whose_zone_is_down_is_refused_as_residency_capacity_with_the_time_to_come_back():
    label = resolve_label(grant_of(POLICY, SPILL_KEY), ["eu"], POLICY)
    view = make_view((EU, Load(down_until=NOW + 7)), (US, FREE), (CLOUD, FREE))
    refusal = decide(make_facts(POLICY, SPILL_KEY, label=label), POLICY, view, NOW).refusal
    assert (refusal.code, refusal.status) == ("residency_capacity", 503)
    assert refusal.retry_after_s == pytest.approx(7)


SHORT, LONG = (replace(target, context_tokens=tokens) for target, tokens in ((EU, 100), (US, 200)))


@pytest.mark.parametrize("spilling", [frozenset(), {(POLICY.default_label, ("tiny",))}])
def test_a_prompt_longer_than_any_context_is_the_clients_fault_and_no_load(spilling):
    facts = make_facts(POLICY, prompt_bytes=2000, prompt_tokens=500)
    decision = decide(facts, POLICY, make_view((SHORT, FREE), (LONG, FULL), (CLOUD, FREE), spilling=spilling), NOW)
    assert (decision.refusal.code, decision.refusal.status, decision.refusal.retry_after_s) == ("invalid_request", 400, None)
    assert "maximum context length is 200 tokens" in decision.refusal.message
    assert decision.saturated is bool(spilling), "as it was before"


def test_a_prompt_that_some_place_could_take_waits_for_it():
    facts = make_facts(POLICY, prompt_bytes=1000, prompt_tokens=250)
    failed = replace(facts, excluded=frozenset({LONG.incarnation}))
    for asked, view in (
        (facts, make_view((SHORT, FREE), (LONG, Load(down_until=NOW + 7)))),
        (failed, make_view((SHORT, FREE), (LONG, FREE))),
        (make_facts(POLICY, prompt_bytes=9000, model="auto"), make_view((SHORT, FREE))),
    ):
        assert decide(asked, POLICY, view, NOW).refusal.status == 503
    spiller = make_facts(POLICY, SPILL_KEY, prompt_bytes=9000)
    assert decide(spiller, POLICY, make_view((SHORT, FREE), (CLOUD, FREE)), NOW).chosen.target.id == CLOUD.id
    assert decide(spiller, POLICY, make_view((SHORT, FREE), (replace(CLOUD, context_tokens=9), FREE)), NOW).refusal.status == 400


def test_a_duty_that_no_configured_place_carries_is_denied_before_any_target_is_looked_at():
    label = resolve_label(grant_of(POLICY), ["phi"], POLICY)
    decision = decide(make_facts(POLICY, label=label), POLICY, make_view((EU, FREE)), NOW)
    assert (decision.refusal.code, decision.refusal.status) == ("residency_denied", 403)
    allowed = decide(make_facts(POLICY, label=label, model="big"), POLICY, make_view((BIG, FREE)), NOW)
    assert allowed.chosen.target.id == BIG.id


def test_unknown_zone_and_expired_evidence_admit_nothing():
    nowhere = make_target(POLICY, "tiny@nowhere", "nowhere")
    expired = make_target(POLICY, "tiny@old", "eu", evidence=replace(EU.evidence, expires=NOW - 1))
    for key in (KEY, SPILL_KEY):
        decision = decide(make_facts(POLICY, key), POLICY, make_view((nowhere, FREE), (expired, FREE)), NOW)
        assert decision.chosen is None
        assert "?" in reason_of(decision, nowhere.id)
        assert "expired" in reason_of(decision, expired.id)


@pytest.mark.parametrize("load", [FULL_FOR_EVER, Load(down_until=NOW + 5)])
def test_a_saturated_or_dead_cluster_spills_only_with_permission(load):
    view = make_view((EU, load), (US, load), (CLOUD, FREE))
    spilled = decide(make_facts(POLICY, SPILL_KEY), POLICY, view, NOW)
    assert spilled.chosen.target.id == CLOUD.id
    assert spilled.chosen.reason.startswith("spill:")
    assert spilled.chosen.cost_usd == pytest.approx((100 * 1 + 500 * 2) / 1e6)
    kept = decide(make_facts(POLICY, KEY), POLICY, view, NOW)
    assert kept.chosen is None and kept.refusal.status == 503 and kept.refusal.retry_after_s >= 1
    assert kept.refusal.code == "overloaded"


def test_spill_permission_without_a_label_that_reaches_the_cloud_is_no_permission():
    grant = replace(grant_of(POLICY, SPILL_KEY), ceiling=grant_of(POLICY).ceiling)
    facts = make_facts(POLICY, grant=grant)
    decision = decide(facts, POLICY, make_view((EU, FULL_FOR_EVER), (CLOUD, FREE)), NOW)
    assert decision.chosen is None
    assert reason_of(decision, CLOUD.id).startswith("residency:")


def test_no_spill_while_there_is_room_and_no_spill_without_budget():
    room = decide(make_facts(POLICY, SPILL_KEY), POLICY, make_view((EU, FREE), (CLOUD, FREE)), NOW)
    assert room.chosen.target.id == EU.id
    view = make_view((EU, FULL_FOR_EVER), (CLOUD, FREE), spend_left_usd=1e-9)
    broke = decide(make_facts(POLICY, SPILL_KEY), POLICY, view, NOW)
    assert broke.chosen is None and reason_of(broke, CLOUD.id).startswith("budget:")


def test_hysteresis_keeps_spilling_until_the_wait_is_well_below_the_limit():
    slo = POLICY.slo.ttft_s
    between = Load(inflight=4, service_s=slo * 0.85 * 4)
    facts = make_facts(POLICY, SPILL_KEY)
    assert decide(facts, POLICY, make_view((EU, between), (CLOUD, FREE)), NOW).chosen.target.id == EU.id
    spilling = make_view((EU, between), (CLOUD, FREE), spilling=frozenset({(facts.label, ("tiny",))}))
    assert decide(facts, POLICY, spilling, NOW).chosen.target.id == CLOUD.id
    another = make_view((EU, between), (CLOUD, FREE), spilling=frozenset({(POLICY.tags["us"], ("tiny",))}))
    assert decide(facts, POLICY, another, NOW).chosen.target.id == EU.id, "another label's saturation is not ours"


def test_waiting_within_the_longest_wait_is_allowed_and_says_why_it_did_not_spill():
    waits = Load(inflight=8, service_s=4.0)
    decision = decide(make_facts(POLICY), POLICY, make_view((EU, waits)), NOW)
    assert decision.chosen.target.id == EU.id and decision.saturated
    assert "waits, no spill" in decision.chosen.reason


def test_auto_takes_the_tier_the_complexity_asks_for_and_falls_back_to_a_larger_one():
    view = make_view((EU, FREE), (BIG, FREE))
    facts = make_facts(POLICY, model="auto")
    assert decide(facts, POLICY, view, NOW).chosen.model == "tiny"
    hard = make_facts(POLICY, model="auto", complexity=Complexity("large", 0.9))
    assert decide(hard, POLICY, view, NOW).chosen.model == "big"
    small_down = make_view((EU, Load(down_until=NOW + 9)), (BIG, FREE))
    assert decide(facts, POLICY, small_down, NOW).chosen.model == "big"
    assert decide(make_facts(POLICY, model="large"), POLICY, view, NOW).chosen.model == "big"


def test_refusals_that_depend_on_configuration_alone():
    view = make_view((EU, FREE), (BIG, FREE))
    unknown = decide(make_facts(POLICY, model="gpt-9"), POLICY, view, NOW).refusal
    assert (unknown.code, unknown.status) == ("model_not_found", 404)
    scoped = replace(grant_of(POLICY), models=frozenset({"tiny"}))
    assert decide(make_facts(POLICY, grant=scoped, model="big"), POLICY, view, NOW).refusal.code == "model_not_found"
    assert decide(make_facts(POLICY, grant=scoped, model="auto"), POLICY, view, NOW).chosen.model == "tiny"
    rerank = decide(make_facts(POLICY, endpoint=Endpoint.RERANK), POLICY, view, NOW).refusal
    assert rerank.code == "model_not_found"


def test_a_tried_target_is_not_tried_again():
    facts = make_facts(POLICY, excluded=frozenset({EU.incarnation}))
    decision = decide(facts, POLICY, make_view((EU, FREE), (US, FULL)), NOW)
    assert decision.chosen.target.id == US.id
    assert reason_of(decision, EU.id).startswith("excluded:")


loads = st.builds(
    Load,
    inflight=st.integers(0, 300),
    unstarted_tokens=st.integers(0, 10**6),
    foreign=st.integers(0, 300),
    service_s=st.floats(0, 60),
    ttft_s=st.floats(0, 60),
    prefill_tps=st.floats(0, 1e5),
    down_until=st.sampled_from([0.0, NOW + 3]),
    signals=st.none() | st.builds(Signals, sampled_at=st.just(NOW), kv_usage=st.floats(-1, 1)),
)
tags = st.lists(st.sampled_from(["eu", "us", "phi", "local", "any", "cloud"]), max_size=3)


@given(
    st.lists(loads, min_size=4, max_size=4), tags, st.sampled_from([KEY, SPILL_KEY]), st.sampled_from(["tiny", "auto", "large"])
)
def test_whatever_the_load_the_choice_is_inside_the_label_and_repeats(four, header, key, model):
    view = make_view((EU, four[0]), (US, four[1]), (BIG, four[2]), (CLOUD, four[3]))
    grant = grant_of(POLICY, key)
    label = grant.ceiling
    for tag in header:
        label = label.meet(POLICY.tags[tag])
    facts = make_facts(POLICY, key, label=label, model=model)
    decision = decide(facts, POLICY, view, NOW)
    assert (decision.chosen is None) != (decision.refusal is None)
    assert decision == decide(facts, POLICY, view, NOW)
    if decision.chosen is not None:
        chosen = decision.chosen.target
        assert admits(label, chosen.evidence, NOW)
        assert four[decision.chosen.index].down_until <= NOW
        assert chosen.kind is not Kind.CLOUD or (grant.spill and "cloud" in POLICY.vocabulary.zone_names(label.process))


@given(loads, loads, st.integers(1, 100))
def test_more_load_never_makes_a_target_more_attractive(eu, us, extra):
    eu, us = replace(eu, down_until=0.0), replace(us, down_until=0.0)
    facts = make_facts(POLICY)
    before = decide(facts, POLICY, make_view((EU, eu), (US, us)), NOW)
    heavier = replace(eu, inflight=eu.inflight + extra, unstarted_tokens=eu.unstarted_tokens + extra)
    after = decide(facts, POLICY, make_view((EU, heavier), (US, us)), NOW)
    if before.chosen is not None and before.chosen.target.id == US.id and after.chosen is not None:
        assert after.chosen.target.id == US.id


def test_evidence_of_a_pool_counts_as_all_its_places():
    both = Evidence(POLICY.vocabulary.zone_mask(["eu", "us"]), POLICY.vocabulary.zone_mask(["eu", "us"]))
    pool = make_target(POLICY, "pool", "eu", evidence=both)
    label = resolve_label(grant_of(POLICY), ["eu"], POLICY)
    assert decide(make_facts(POLICY, label=label), POLICY, make_view((pool, FREE)), NOW).chosen is None
