"""The one decision: which model and which target serve a request, or why none may.

`decide(facts, policy, view, now)` is pure: no I/O, no clock, no randomness. The live router, `POST /tidegate/v1/explain`, the
replay of a log and the property tests call this same function. Screening (`router.screen`, then health and exclusions) comes
first and is final; only what is left is scored. No score brings a screened target back. One verdict of health is softer: where
a circuit breaker's hold is all that keeps a request from every target it may use, the least bad of them is used after all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec
from msgspec.structs import replace

from router.compare import FEW, groups_for, worth_a_look
from router.decision import Candidate, Choice, Decision, Facts, Refusal, Verdict
from router.placement.breaker import Hold, hold, least_bad
from router.placement.predict import (
    DEFAULT_OUTPUT_TOKENS,
    GENERIC,
    Ask,
    Forecast,
    ask_of,
    expected_misses,
    forecast,
)
from router.placement.profile import EngineProfile
from router.placement.targets import CLOUD, Load, Membership, Target, View, Work
from router.placement.waiting import is_held_for_others
from router.policy import Policy
from router.screen import Admitted, Group, Shortlist, shortlist, site_allows

MIN_BYTES_PER_TOKEN = 8
"""No tokenizer in use packs more bytes of ordinary text into a token: a prompt longer than this times the context cannot fit."""
_RETRY_WHEN_DOWN_S = 5.0
DOWN = "health: down"
_MOST_FORECASTS = 32
"""Forecasts made at most of a group, while all of them are late."""


class _Scored(msgspec.Struct, frozen=True, gc=False):
    """A target that may serve, with its forecast; `late` when it is not expected to keep the limits.

    `limit` is the one on its first token, in seconds; 0 outside, where none holds.
    """

    entry: Admitted
    forecast: Forecast
    late: bool
    limit: float = 0.0


class _Question(msgspec.Struct, frozen=True, gc=False):
    """One request as the scoring sees it. Times in seconds, `pace` and `crowded` in seconds per token.

    `waited` is what it has waited here, `margin` that and what predictions have been off by.

    Over `pace` a request leaves for outside where it may; where it may not, over `crowded` it waits for a better moment (0: only
    where its own answer would be too slow).
    """

    ask: Ask
    patience: float
    waited: float
    margin: float
    pace: float
    crowded: float
    resume: float


def decide(facts: Facts, policy: Policy, view: View, now: float) -> Decision:
    """Decide one request.

    Args:
        facts: what is known of the request.
        policy: the compiled configuration.
        view: targets and loads at this moment.
        now: UNIX time in seconds.

    Returns:
        A decision with exactly one of `chosen` and `refusal`; its candidates, each with a reason, are made when asked for.
    """
    basis = _Basis(facts, policy, view, now)
    found = shortlist(facts, policy, view.membership, now)
    if found.refusal is not None:
        return Decision(None, found.refusal, found.models, False)
    question = _pose(facts, policy, view, found)
    best, cloud = _scan(facts, policy, view, now, found, question)
    if best is None and cloud is None and (last := _last_resort(basis, found, question)) is not None:
        scored, remark = last
        outside = scored.entry.target.kind is CLOUD
        decision = _pick(basis, found, question, None if outside else scored, scored if outside else None)
        if decision.chosen is None:
            return decision
        return replace(decision, chosen=replace(decision.chosen, reason=decision.chosen.reason + remark))
    return _pick(basis, found, question, best, cloud)


def _pose(facts: Facts, policy: Policy, view: View, found: Shortlist) -> _Question:
    slo = policy.slo
    expected = view.output_tokens.get(found.models[0], DEFAULT_OUTPUT_TOKENS) if found.models else DEFAULT_OUTPUT_TOKENS
    if 0 < facts.max_tokens < expected:
        expected = facts.max_tokens
    patience, timeout, margin = slo.max_wait_s, facts.timeout_s, view.margin_s
    return _Question(
        ask=ask_of(facts.prompt_tokens, expected, slo.tpot_s, view.cached),
        patience=timeout if 0 < timeout < patience else patience,
        waited=facts.waited_s,
        margin=margin + facts.waited_s if margin > 0.0 else facts.waited_s,
        pace=slo.tpot_s * view.pace_share,
        crowded=slo.tpot_s * view.crowd_share if view.crowd_share else 0.0,
        resume=slo.resume_ratio if view.spilling and (facts.label, found.models) in view.spilling else 1.0,
    )


def _limit(question: _Question, profile: EngineProfile | None, policy: Policy) -> float:
    """Seconds to the first token that this request may take, by an idle engine of this profile."""
    alone = (profile or GENERIC).prefill_s(question.ask.prompt_tokens)
    return min(max(policy.slo.ttft_s, policy.slo.stretch * alone), question.patience)


def _scan(
    facts: Facts, policy: Policy, view: View, now: float, found: Shortlist, question: _Question
) -> tuple[_Scored | None, _Scored | None]:
    """The best local target and the cheapest cloud target.

    With many targets, a rough cost says which few are worth a forecast; more are looked at while the best one is late.
    """
    best: _Scored | None = None
    timely: _Scored | None = None
    outside = _cheapest_outside(facts, policy, view, now, found, question.ask) if found.outside else None
    # Who can leave does so by one limit, who can only wait does so by another: waiting helps nobody's answer but the others'.
    waits = outside is None and question.crowded > 0.0
    bound = question.crowded if waits else question.pace
    for group in groups_for(facts, found, view.cached):
        best, timely = _look(group, facts, policy, view, now, question, bound, found.same_rank)
        if timely is not None:
            break
    if best is not None and timely is None and not best.late:
        load = view.loads[best.entry.index]
        if waits:
            late = is_held_for_others(load, best.forecast.prefill_s, question.margin, best.limit)
        else:
            late = outside is not None or _is_slow(best.entry, load, question, now)
        if late:
            best = _Scored(best.entry, best.forecast, True, best.limit)
    elif best is not None and best.forecast.pace_s <= bound and _is_late_for_margin(best, question):
        timely = best = _Scored(best.entry, best.forecast, False, best.limit)
    # The price of a slow pace is in the cost already; the limit on it decides only whether something leaves or waits.
    return (timely if timely is not None and outside is not None else best), outside


def _look(
    group: Group, facts: Facts, policy: Policy, view: View, now: float, question: _Question, bound: float, same_rank: bool
) -> tuple[_Scored | None, _Scored | None]:
    """The best of a group, and the best of those that keep the limit on the first token and `bound` on the pace."""
    loads, cached, adapter_s, ask = view.loads, view.cached, view.adapter_s, question.ask
    best: _Scored | None = None
    timely: _Scored | None = None
    best_key = timely_key = (True, 1 << 30, math.inf, 0)
    known: EngineProfile | None = None
    limit = 0.0
    seen_targets = 0
    suits_all = not facts.excluded and facts.prompt_bytes <= group.context_tokens * MIN_BYTES_PER_TOKEN
    for entry in worth_a_look(group, view, ask, now, same_rank):
        if (seen_targets >= FEW and timely is not None) or seen_targets >= _MOST_FORECASTS:
            break
        index = entry.index
        load = loads[index]
        if not (suits_all and load.down_until <= now and load.breaker.cause is None) and (  # else nothing can keep it out
            screen_now(facts, policy, entry, load, view, now) is not None or held_back(load, now) is not None
        ):
            continue
        seen_targets += 1
        profile = load.profile or GENERIC
        if profile is not known:
            known, limit = profile, _limit(question, profile, policy)
        seen = forecast(entry.target, load, ask, cached.get(index, 0), now)
        if adapter_s:
            seen = _with_adapter(seen, adapter_s, index)
        late = _is_late(seen, limit, question, question.margin)
        key = (late, entry.rank, seen.cost, index)
        if key < best_key:
            best, best_key = _Scored(entry, seen, late, limit), key
        if not late and seen.pace_s <= bound and key < timely_key:
            timely, timely_key = best if key is best_key else _Scored(entry, seen, False, limit), key
    return best, timely


def _with_adapter(seen: Forecast, adapter_s: Mapping[int, float], index: int) -> Forecast:
    """The forecast of a request whose adapter has to be made ready first."""
    seconds = adapter_s.get(index)
    return seen if seconds is None else replace(seen, ttft_s=seen.ttft_s + seconds, cost=seen.cost + seconds)


def _is_slow(entry: Admitted, load: Load, question: _Question, now: float) -> bool:
    """Whether the answer's own pace would break its limit: its own prefill, which slows others, is over when it begins."""
    return forecast(entry.target, load, question.ask, question.ask.prompt_tokens, now).pace_s > question.pace


def held_back(load: Load, now: float) -> Hold | None:
    """The hold of a target's circuit breaker, if one is on."""
    breaker = load.breaker
    return None if breaker.cause is None else hold(breaker, now)


def _last_resort(basis: _Basis, found: Shortlist, question: _Question) -> tuple[_Scored, str] | None:
    """Where breakers are all that keeps a request from every target it may use: the least bad, inside before outside."""
    facts, view, now = basis.facts, basis.view, basis.now
    held: list[tuple[Admitted, Load, Hold]] = []
    for entry in found.admitted:
        load = view.loads[entry.index]
        verdict = held_back(load, now)
        if verdict is not None and screen_now(facts, basis.policy, entry, load, view, now) is None:
            held.append((entry, load, verdict))
    if not held:
        return None
    entry, load, verdict = min(held, key=lambda h: (h[0].target.kind is CLOUD, least_bad(h[1].breaker, now), h[0].index))
    seen = forecast(entry.target, load, question.ask, view.cached.get(entry.index, 0), now)
    seen = _with_adapter(seen, view.adapter_s, entry.index)
    remark = f"; the last allowed target in spite of {verdict.reason}"
    if entry.target.kind is CLOUD:
        return _Scored(entry, seen, False), remark
    limit = _limit(question, load.profile, basis.policy)
    return _Scored(entry, seen, _is_late(seen, limit, question, question.margin), limit), remark


def _cheapest_outside(facts: Facts, policy: Policy, view: View, now: float, found: Shortlist, ask: Ask) -> _Scored | None:
    best: _Scored | None = None
    best_price: tuple[int, float, float, int] = (1 << 30, math.inf, math.inf, 0)
    for entry in found.outside:
        load = view.loads[entry.index]
        if screen_now(facts, policy, entry, load, view, now) is None and held_back(load, now) is None:
            seen = forecast(entry.target, load, ask, 0, now)
            price = (entry.rank, spill_cost_usd(entry.target, facts), seen.ttft_s, entry.index)
            if price < best_price:
                best, best_price = _Scored(entry, seen, False), price
    return best


def _is_late(seen: Forecast, limit: float, question: _Question, margin: float) -> bool:
    """Whether a forecast and `margin`, seconds that it may be off by, break the limit on the first token (`_limit`).

    While the label's requests are being spilled, only the wait must be well below the limit: a request whose own prefill is
    most of its time gains nothing from an emptier queue.
    """
    wait = seen.ttft_s - seen.prefill_s
    return wait / question.resume + seen.prefill_s + margin > limit


def _is_late_for_margin(best: _Scored, question: _Question) -> bool:
    """Whether a request that begins within a step is late only for what predictions have been off by.

    Such a prediction is taken at its word where the best there is would be late: else after a stall nothing would go to any
    engine, however idle, and nobody would learn that it is over.
    """
    seen = best.forecast
    begins = seen.ttft_s - seen.added_s <= seen.pace_s
    return best.late and begins and not _is_late(seen, best.limit, question, question.waited)


def screen_now(facts: Facts, policy: Policy, entry: Admitted, load: Load, view: View, now: float) -> str | None:
    """Why an admitted target may not serve this request at this moment, or None when it may."""
    target = entry.target
    if not _fits(facts, target):
        return f"context: the prompt cannot fit {target.context_tokens} tokens"
    if facts.excluded and target.incarnation in facts.excluded:
        return "excluded: already tried for this request"
    if load.down_until > now:
        return DOWN
    if target.kind is CLOUD:
        return _screen_spill(facts, policy, target, view)
    return None


def _screen_spill(facts: Facts, policy: Policy, target: Target, view: View) -> str | None:
    if not policy.spill_enabled:
        return "spill: switched off"
    if not facts.key.spill:
        return "spill: this key has no spill permission"
    cost = spill_cost_usd(target, facts)
    if cost > view.spend_left_usd:
        return f"budget: {cost:.6f} USD needed, {view.spend_left_usd:.6f} left to this router today"
    return None


def spill_cost_usd(target: Target, facts: Facts) -> float:
    """Expected price of the request at this target, in US dollars; 500 answer tokens where the client sets no bound."""
    completion = facts.max_tokens or 500
    return (facts.prompt_tokens * target.price.prompt + completion * target.price.completion) / 1e6


def _pick(basis: _Basis, found: Shortlist, question: _Question, best: _Scored | None, cheapest: _Scored | None) -> Decision:
    """Local within the limits; else cloud where one is left; else local within the longest wait; else refuse."""
    policy, models = basis.policy, found.models
    if best is None:
        if cheapest is None:
            if (too_long := _refuse_length(basis, found)) is not None:
                as_before = (basis.facts.label, models) in basis.view.spilling  # it says nothing of the load
                return Decision(None, too_long, models, as_before, basis=basis)
            return Decision(None, _refuse_capacity(basis, None), models, True, basis=basis)
        known = any(not site.external and site.model in models for site in policy.sites)
        reason = "spill: no allowed local target is up" if known else "cloud: this model is served outside only"
        return _chose(cheapest, basis, question, reason, models, True)
    seen, limit = best.forecast, best.limit
    if not best.late:
        return _chose(best, basis, question, f"predicted {_ms(seen.ttft_s)} ms{_beside(basis, question, best)}", models, False)
    # A long prompt may be late on an idle cluster: only waiting makes targets count as saturated.
    saturated = seen.ttft_s - seen.prefill_s > limit * question.resume
    if cheapest is not None:
        return _chose(cheapest, basis, question, _spill_reason(seen, question, limit), models, saturated)
    # What bounds the wait does not bound the request's own work: a long prompt that nobody else delays would never be sent, and
    # a prediction that is wrong never found out.
    if seen.ttft_s - seen.prefill_s <= question.patience and (not basis.facts.timeout_s or seen.ttft_s <= basis.facts.timeout_s):
        what = (
            f"{_ms(seen.ttft_s)} ms"
            if _is_late(seen, limit, question, question.margin)
            else f"{seen.pace_s * 1e3:.1f} ms per token"
        )
        reason = f"predicted {what}: waits{_beside(basis, question, best)}, no spill ({_why_no_spill(basis, found)})"
        return _chose(best, basis, question, reason, models, saturated)
    return Decision(None, _refuse_capacity(basis, best), models, saturated, basis=basis)


def _beside(basis: _Basis, question: _Question, best: _Scored) -> str:
    """The other number that decides where requests wait for the pace of others."""
    seen = best.forecast
    if not 0.0 < question.crowded < seen.pace_s:
        return ""
    return f", {expected_misses(basis.view.loads[best.entry.index], seen.prefill_s):.2f} answers beside it would miss their pace"


def _spill_reason(seen: Forecast, question: _Question, limit: float) -> str:
    """The number that decided."""
    if seen.pace_s > question.pace:
        return f"spill: best local predicted {seen.pace_s * 1e3:.1f} ms per token, over {question.pace * 1e3:.1f} ms"
    return f"spill: best local predicted {_ms(seen.ttft_s)} ms + {_ms(question.margin)} ms margin, over {_ms(limit)} ms"


def _why_no_spill(basis: _Basis, found: Shortlist) -> str:
    facts, policy, view = basis.facts, basis.policy, basis.view
    reasons = (candidate.reason for candidate in found.screened)
    now_screened = (
        screen_now(facts, policy, entry, view.loads[entry.index], view, basis.now)
        for entry in found.admitted
        if entry.target.kind is CLOUD
    )
    for reason in (*now_screened, *reasons):
        if reason is not None and reason.startswith(("spill:", "budget:")):
            return reason
    return "no allowed cloud target"


def _chose(best: _Scored, basis: _Basis, question: _Question, reason: str, models: tuple[str, ...], saturated: bool) -> Decision:
    entry, seen, facts = best.entry, best.forecast, basis.facts
    work = None
    cost = 0.0
    if entry.target.kind is CLOUD:
        cost = spill_cost_usd(entry.target, facts)
    else:
        work = Work(
            prefill_s=seen.added_s,
            ttft_s=seen.ttft_s,
            tau_s=question.ask.tau_s,
            prompt_tokens=facts.prompt_tokens,
            cached_tokens=min(facts.prompt_tokens, basis.view.cached.get(entry.index, 0)),
            output_tokens=question.ask.output_tokens,
            limit_s=max(0.001, best.limit - facts.waited_s),
        )
    choice = Choice(entry.index, entry.target, entry.model, reason, seen.ttft_s, cost, work)
    return Decision(choice, None, models, saturated, best.late, basis)


def _refuse_length(basis: _Basis, found: Shortlist) -> Refusal | None:
    """400 where the prompt is longer than every place takes that the request may ever use; None while one could take it.

    A place that is only configured, or has failed this request, could.
    """
    facts, policy = basis.facts, basis.policy
    allowed = {site.model for site in policy.sites if site.model in found.models and site_allows(site, facts, policy)}
    entries = [entry for entry in found.admitted if entry.target.kind is not CLOUD or (facts.key.spill and policy.spill_enabled)]
    if not entries or allowed - {entry.model for entry in entries} or any(_fits(facts, entry.target) for entry in entries):
        return None
    most = max(entry.target.context_tokens for entry in entries)
    # Clients know a prompt that is too long by OpenAI's words.
    message = f"This model's maximum context length is {most} tokens; the prompt cannot fit."
    return Refusal("invalid_request", 400, message)


def _fits(facts: Facts, target: Target) -> bool:
    return not target.context_tokens or facts.prompt_bytes <= target.context_tokens * MIN_BYTES_PER_TOKEN


def _refuse_capacity(basis: _Basis, best: _Scored | None) -> Refusal:
    """503: by residency when the label is what keeps the request from other places of the cluster, else by load."""
    facts, policy, view, now = basis.facts, basis.policy, basis.view, basis.now
    if best is not None:
        retry = max(1.0, best.forecast.ttft_s - policy.slo.ttft_s)
        message = f"All allowed targets are saturated (predicted wait {_ms(best.forecast.ttft_s)} ms)."
    else:
        pauses = [load.down_until - now for load in view.loads if load.down_until > now]
        retry = max(1.0, min(pauses, default=_RETRY_WHEN_DOWN_S))
        message = "No allowed target is up at the moment."
    return Refusal(capacity_code(facts, policy, view.membership), 503, message, retry)


def capacity_code(facts: Facts, policy: Policy, membership: Membership) -> str:
    """What a request is refused with that no allowed target has room for: by residency where that keeps it from others."""
    narrowed = facts.label != policy.default_label and facts.label.is_within(policy.default_label)
    held_back = any(target.kind is not CLOUD and target.evidence.process & ~facts.label.process for target in membership.targets)
    return "residency_capacity" if narrowed or held_back else "overloaded"


class _Basis(msgspec.Struct, frozen=True, gc=False):
    """The arguments of a decision: frozen, so its candidates can be told later exactly as they were."""

    facts: Facts
    policy: Policy
    view: View
    now: float

    def candidates(self, decision: Decision) -> tuple[Candidate, ...]:
        """Every target with its verdict and reason, the chosen one first."""
        facts, policy, view, now = self.facts, self.policy, self.view, self.now
        found = shortlist(facts, policy, view.membership, now)
        question = _pose(facts, policy, view, found)
        chosen = decision.chosen
        told: list[Candidate] = []
        screened: list[Candidate] = []
        for entry in found.admitted:
            target, load = entry.target, view.loads[entry.index]
            reason = screen_now(facts, policy, entry, load, view, now)
            if reason is not None:
                screened.append(_candidate(target, entry.model, Verdict.SCREENED, reason))
                continue
            verdict = held_back(load, now)
            if verdict is not None and (chosen is None or chosen.index != entry.index):
                screened.append(_candidate(target, entry.model, Verdict.SCREENED, verdict.reason))
                continue
            seen = forecast(target, load, question.ask, view.cached.get(entry.index, 0), now)
            seen = _with_adapter(seen, view.adapter_s, entry.index)
            if chosen is not None and chosen.index == entry.index:
                told.insert(0, _candidate(target, entry.model, Verdict.CHOSEN, chosen.reason, seen.ttft_s))
                continue
            told.append(_candidate(target, entry.model, Verdict.ELIGIBLE, _why_not(decision, target), seen.ttft_s))
        return (*told, *screened, *found.screened)


def _why_not(decision: Decision, target: Target) -> str:
    if decision.chosen is None:
        return "wait too long"
    if target.kind is CLOUD and decision.chosen.target.kind is not CLOUD:
        return "spill: local capacity is within the SLO"
    return "slower, dearer for others, or a less fitting model"


def _candidate(target: Target, model: str | None, verdict: Verdict, reason: str, ttft_s: float | None = None) -> Candidate:
    predicted = None if ttft_s is None else round(ttft_s * 1e3, 3)
    return Candidate(target.id, target.incarnation, model or "", target.zone, verdict, reason, predicted)


def _ms(seconds: float) -> int:
    return round(seconds * 1e3)
