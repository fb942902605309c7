"""Trust is a pure function: every single missing proof costs EXACT, and nothing that gets older makes it better."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from router.placement.targets import Kind
from router.placement.trust import FALLBACK, FRESH_PROOF_S, LEVEL, SelfTest, Trust, TrustFacts, judge_trust

HEALTHY = TrustFacts(Kind.REPLICA, signals_age_s=0.4, proof_age_s=0.9, complete=True, self_test=SelfTest.PASSED, confirmed=0.98)


def test_a_healthy_replica_is_exact():
    verdict = judge_trust(HEALTHY)
    assert (verdict.trust, verdict.reason) == (Trust.EXACT, "")


@pytest.mark.parametrize(
    ("change", "trust", "reason"),
    [
        ({"signals_age_s": None}, Trust.BLIND, "no gauges"),
        ({"signals_age_s": 6.0}, Trust.BLIND, "gauges are old"),
        ({"kind": Kind.SERVER, "signals_age_s": None, "proof_age_s": None}, Trust.BLIND, "no replica"),
        ({"kind": Kind.SERVER, "proof_age_s": None}, Trust.DEGRADED, "no KV-cache events"),
        ({"kind": Kind.SERVER, "signals_age_s": 6.0}, Trust.BLIND, "gauges are old"),
        ({"kind": Kind.CLOUD}, Trust.BLIND, "no replica"),
        ({"proof_age_s": None}, Trust.DEGRADED, "no KV-cache events"),
        ({"proof_age_s": None, "limit": "the tokenizer is odd"}, Trust.DEGRADED, "the tokenizer is odd"),
        ({"proof_age_s": FRESH_PROOF_S + 0.1}, Trust.DEGRADED, "cut"),
        ({"limit": "several ranks"}, Trust.DEGRADED, "several ranks"),
        ({"complete": False}, Trust.DEGRADED, "incomplete"),
        ({"self_test": SelfTest.FAILED}, Trust.DEGRADED, "failed"),
        ({"self_test": SelfTest.PENDING}, Trust.DEGRADED, "not done yet"),
        ({"confirmed": 0.2}, Trust.DEGRADED, "render differently"),
    ],
)
def test_each_missing_proof_has_its_state_and_its_words(change, trust, reason):
    verdict = judge_trust(replace(HEALTHY, **change))
    assert verdict.trust is trust
    assert reason in verdict.reason


FACTS = st.builds(
    TrustFacts,
    kind=st.sampled_from(Kind),
    signals_age_s=st.none() | st.floats(0, 20),
    proof_age_s=st.none() | st.floats(0, 20),
    complete=st.booleans(),
    self_test=st.sampled_from(SelfTest),
    confirmed=st.floats(0, 1),
    limit=st.sampled_from(["", "odd"]),
)


@given(FACTS, st.floats(0, 10), st.sampled_from(["signals_age_s", "proof_age_s"]))
def test_age_never_makes_it_better(facts, more, name):
    age = getattr(facts, name)
    older = replace(facts, **{name: None if age is None else age + more})
    assert LEVEL[judge_trust(older).trust] <= LEVEL[judge_trust(facts).trust]


@given(FACTS)
def test_every_state_has_a_fallback_and_every_doubt_a_reason(facts):
    verdict = judge_trust(facts)
    assert FALLBACK[verdict.trust]
    assert bool(verdict.reason) is (verdict.trust is not Trust.EXACT)
