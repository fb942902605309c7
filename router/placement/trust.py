"""How far a replica's word about itself can be believed: EXACT, DEGRADED or BLIND, from ages and proofs alone."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from router.placement.targets import Kind

FRESH_SIGNALS_S = 5.0
FRESH_PROOF_S = 3.5
"""The engine's own "no event is missing" comes every second; a replica whose events are cut is DEGRADED within 5 s."""
ENOUGH_CONFIRMED = 0.5
"""Share of routed prompts that the replica's events have to confirm. Evictions and cancelled requests cost a few."""


class Trust(StrEnum):
    """A replica's state; `FALLBACK` says what placement goes by in each."""

    EXACT = "EXACT"
    DEGRADED = "DEGRADED"
    BLIND = "BLIND"


LEVEL = {Trust.BLIND: 0, Trust.DEGRADED: 1, Trust.EXACT: 2}
"""As the metric `tidegate_trust_state` tells it."""
FALLBACK = {
    Trust.EXACT: "its KV-cache events",
    Trust.DEGRADED: "its gauges, and what this router has sent there",
    Trust.BLIND: "what this router has in flight and has sent there",
}


class SelfTest(StrEnum):
    """Outcome of the latest self-test: the second of two prompts with one beginning must be predicted and served as a hit."""

    PENDING = "pending"
    PASSED = "passed"
    FAILED = "failed"


class TrustFacts(msgspec.Struct, frozen=True, gc=False):
    """What a verdict rests on. Ages in seconds, None: never heard.

    `proof_age_s` is the time since the engine itself confirmed that no event is missing, `confirmed` the share of routed prompts
    its events confirmed (1 before there were enough), `limit` what keeps its events from being exact, in words.
    """

    kind: Kind
    signals_age_s: float | None = None
    proof_age_s: float | None = None
    complete: bool = False
    self_test: SelfTest = SelfTest.PENDING
    confirmed: float = 1.0
    limit: str = ""


class Verdict(msgspec.Struct, frozen=True, gc=False):
    """A state and the reason for it; the reason is "" for EXACT."""

    trust: Trust
    reason: str = ""


def judge_trust(facts: TrustFacts) -> Verdict:
    """The state of one target. Pure; more age or a failed proof never makes it better."""
    if facts.kind is Kind.CLOUD or (facts.kind is Kind.SERVER and facts.signals_age_s is None):
        return Verdict(Trust.BLIND, "no replica of this cluster: it tells nothing of itself")
    if facts.signals_age_s is None or facts.signals_age_s > FRESH_SIGNALS_S:
        return Verdict(Trust.BLIND, "no gauges" if facts.signals_age_s is None else "gauges are old")
    if facts.proof_age_s is None:
        return Verdict(Trust.DEGRADED, facts.limit or "no KV-cache events")
    if facts.proof_age_s > FRESH_PROOF_S:
        return Verdict(Trust.DEGRADED, "KV-cache events are cut")
    if facts.limit:
        return Verdict(Trust.DEGRADED, facts.limit)
    if not facts.complete:
        return Verdict(Trust.DEGRADED, "KV-cache events are incomplete")
    if facts.self_test is SelfTest.FAILED:
        return Verdict(Trust.DEGRADED, "the self-test failed")
    if facts.confirmed < ENOUGH_CONFIRMED:
        return Verdict(Trust.DEGRADED, "events do not confirm what was routed: prompts render differently in the engine")
    if facts.self_test is SelfTest.PENDING:
        return Verdict(Trust.DEGRADED, "the self-test is not done yet")
    return Verdict(Trust.EXACT)
