"""The one decision: which model and which target serve a request, or why none may.

`decide(facts, policy, view, now)` is pure: no I/O, no clock, no randomness. The live router, `POST /tidegate/v1/explain`, the
replay of a log and the property tests call this same function. Screening (`router.screen`, then health and exclusions) comes
first and is final; only what is left is scored. No score brings a screened target back. One verdict of health is softer: where
a circuit breaker's hold is all that keeps a request from every target it may use, the least bad of them is used after all.
"""

from __future__ import annotations

import msgspec
from msgspec.structs import replace

from router.decision import Candidate, Choice, Decision, Facts, Refusal, Verdict
from router.placement.breaker import Hold, hold, least_bad
from router.placement.predict import occupancy, predict_ttft
from router.placement.targets import Kind, Load, Target, View
from router.policy import Policy
from router.screen import Admitted, Shortlist, shortlist

MIN_BYTES_PER_TOKEN = 8
"""No tokenizer in use packs more bytes of ordinary text into a token: a prompt longer than this times the context cannot fit."""
_RETRY_WHEN_DOWN_S = 5.0


class _Scored(msgspec.Struct, frozen=True, gc=False):
    index: int
    target: Target
    model: str
    rank: int
    ttft_s: float
    occupancy: float


class _Held(msgspec.Struct, frozen=True, gc=False):
    """A target that would be scored, were it not for its breaker."""

    entry: Admitted
    load: Load
    hold: Hold


def decide(facts: Facts, policy: Policy, view: View, now: float) -> Decision:
    """Decide one request.

    Args:
        facts: what is known of the request.
        policy: the compiled configuration.
        view: targets and loads at this moment.
        now: UNIX time in seconds.

    Returns:
        A decision with exactly one of `chosen` and `refusal`, and every candidate with its reason.
    """
    found = shortlist(facts, policy, view.membership, now)
    if found.refusal is not None:
        return Decision(None, found.refusal, (), found.models, False)
    screened: list[Candidate] = []
    local: list[_Scored] = []
    cloud: list[_Scored] = []
    held: list[_Held] = []
    for entry in found.admitted:
        load = view.loads[entry.index]
        reason = screen_now(facts, policy, entry, load, view, now)
        if reason is not None:
            screened.append(_candidate(entry.target, entry.model, Verdict.SCREENED, reason))
            continue
        if load.breaker.cause is not None and (verdict := hold(load.breaker, now)) is not None:
            held.append(_Held(entry, load, verdict))
            continue
        scored = _score(entry, load, facts)
        (cloud if entry.target.kind is Kind.CLOUD else local).append(scored)
    last: _Held | None = None
    if held and not local and not cloud:
        last = min(held, key=lambda h: (h.entry.target.kind is Kind.CLOUD, least_bad(h.load.breaker, now), h.entry.index))
        (cloud if last.entry.target.kind is Kind.CLOUD else local).append(_score(last.entry, last.load, facts))
    screened += [_candidate(h.entry.target, h.entry.model, Verdict.SCREENED, h.hold.reason) for h in held if h is not last]
    screened += found.screened
    decision = _pick(facts, policy, view, now, found, screened, local, cloud)
    return decision if last is None else _say_last(decision, last.hold)


def _say_last(decision: Decision, verdict: Hold) -> Decision:
    """The same decision, with the reason that it went against a breaker."""
    chosen = decision.chosen
    if chosen is None:
        return decision
    reason = f"{chosen.reason}; the last allowed target in spite of {verdict.reason}"
    first, *others = decision.candidates
    return replace(decision, chosen=replace(chosen, reason=reason), candidates=(replace(first, reason=reason), *others))


def screen_now(facts: Facts, policy: Policy, entry: Admitted, load: Load, view: View, now: float) -> str | None:
    """Why an admitted target may not serve this request at this moment, or None when it may."""
    target = entry.target
    if target.context_tokens and facts.prompt_bytes > target.context_tokens * MIN_BYTES_PER_TOKEN:
        return f"context: the prompt cannot fit {target.context_tokens} tokens"
    if target.incarnation in facts.excluded:
        return "excluded: already tried for this request"
    if load.down_until > now:
        return "health: down"
    if target.kind is Kind.CLOUD:
        return _screen_spill(facts, policy, target, view)
    return None


def _screen_spill(facts: Facts, policy: Policy, target: Target, view: View) -> str | None:
    if not policy.spill_enabled:
        return "spill: switched off"
    if not facts.key.spill:
        return "spill: this key has no spill permission"
    cost = spill_cost_usd(target, facts)
    if cost > view.spend_left_usd:
        return f"budget: {cost:.6f} USD needed, {view.spend_left_usd:.6f} left today"
    return None


def spill_cost_usd(target: Target, facts: Facts) -> float:
    """Expected price of the request at this target, in US dollars; 500 answer tokens where the client sets no bound."""
    completion = facts.max_tokens or 500
    return (facts.prompt_tokens * target.price.prompt + completion * target.price.completion) / 1e6


def _score(entry: Admitted, load: Load, facts: Facts) -> _Scored:
    ttft = predict_ttft(entry.target, load, facts.prompt_tokens)
    return _Scored(entry.index, entry.target, entry.model, entry.rank, ttft, occupancy(entry.target, load))


def _pick(
    facts: Facts,
    policy: Policy,
    view: View,
    now: float,
    found: Shortlist,
    screened: list[Candidate],
    local: list[_Scored],
    cloud: list[_Scored],
) -> Decision:
    """Local within the SLO; else cloud where one is left; else local within the longest wait; else refuse."""
    slo, models = policy.slo, found.models
    was_spilling = (facts.label, models) in view.spilling
    patience = min(slo.max_wait_s, facts.timeout_s or slo.max_wait_s)
    limit = min(slo.ttft_s * (slo.resume_ratio if was_spilling else 1.0), patience)
    best_local = min(local, key=lambda s: (s.ttft_s > limit, s.rank, s.ttft_s, s.occupancy, s.index), default=None)
    saturated = best_local is None or best_local.ttft_s > limit
    if best_local is not None and not saturated:
        screened += [
            _candidate(s.target, s.model, Verdict.ELIGIBLE, "spill: local capacity is within the SLO", s.ttft_s) for s in cloud
        ]
        return _chose(best_local, facts, f"predicted {_ms(best_local.ttft_s)} ms", models, screened, local, False)
    cheapest = min(cloud, key=lambda s: (s.rank, spill_cost_usd(s.target, facts), s.ttft_s, s.index), default=None)
    if cheapest is not None:
        reason = _spill_reason(policy, models, best_local, limit)
        return _chose(cheapest, facts, reason, models, screened, local + cloud, saturated)
    if best_local is not None and best_local.ttft_s <= patience:
        reason = f"predicted {_ms(best_local.ttft_s)} ms: waits, no spill ({_why_no_spill(screened)})"
        return _chose(best_local, facts, reason, models, screened, local, saturated)
    refusal = _refuse_capacity(facts, policy, view, now, best_local)
    candidates = (
        *screened,
        *(_candidate(s.target, s.model, Verdict.ELIGIBLE, "wait too long", s.ttft_s) for s in local),
    )
    return Decision(None, refusal, candidates, models, saturated)


def _spill_reason(policy: Policy, models: tuple[str, ...], best_local: _Scored | None, limit: float) -> str:
    if best_local is not None:
        return f"spill: best local predicted {_ms(best_local.ttft_s)} ms, over {_ms(limit)} ms"
    if any(not site.external and site.model in models for site in policy.sites):
        return "spill: no allowed local target is up"
    return "cloud: this model is served outside only"


def _why_no_spill(screened: list[Candidate]) -> str:
    reasons = [c.reason for c in screened if c.reason.startswith(("spill:", "budget:"))]
    return reasons[0] if reasons else "no allowed cloud target"


def _chose(
    best: _Scored,
    facts: Facts,
    reason: str,
    models: tuple[str, ...],
    screened: list[Candidate],
    scored: list[_Scored],
    saturated: bool,
) -> Decision:
    cost = spill_cost_usd(best.target, facts) if best.target.kind is Kind.CLOUD else 0.0
    choice = Choice(best.index, best.target, best.model, reason, best.ttft_s, cost)
    candidates = [_candidate(best.target, best.model, Verdict.CHOSEN, reason, best.ttft_s)]
    candidates += [
        _candidate(s.target, s.model, Verdict.ELIGIBLE, "slower, or a less fitting model", s.ttft_s)
        for s in scored
        if s is not best
    ]
    return Decision(choice, None, (*candidates, *screened), models, saturated)


def _refuse_capacity(facts: Facts, policy: Policy, view: View, now: float, best_local: _Scored | None) -> Refusal:
    """503: by residency when the label is what keeps the request from other places of the cluster, else by load."""
    if best_local is not None:
        retry = max(1.0, best_local.ttft_s - policy.slo.ttft_s)
        message = f"All allowed targets are saturated (predicted wait {_ms(best_local.ttft_s)} ms)."
    else:
        pauses = [load.down_until - now for load in view.loads if load.down_until > now]
        retry = max(1.0, min(pauses, default=_RETRY_WHEN_DOWN_S))
        message = "No allowed target is up at the moment."
    narrowed = facts.label != policy.default_label and facts.label.is_within(policy.default_label)
    held_back = any(
        target.kind is not Kind.CLOUD and target.evidence.process & ~facts.label.process for target in view.membership.targets
    )
    return Refusal("residency_capacity" if narrowed or held_back else "overloaded", 503, message, retry)


def _candidate(target: Target, model: str | None, verdict: Verdict, reason: str, ttft_s: float | None = None) -> Candidate:
    predicted = None if ttft_s is None else round(ttft_s * 1e3, 3)
    return Candidate(target.id, target.incarnation, model or "", target.zone, verdict, reason, predicted)


def _ms(seconds: float) -> int:
    return round(seconds * 1e3)
