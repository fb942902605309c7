"""The one decision: which model and which target serve a request, or why none may.

`decide(facts, policy, view, now)` is pure: no I/O, no clock, no randomness. The live router, `POST /tidegate/v1/explain`, the
replay of a log and the property tests call this same function. Screening (residency, capability, health, key scope,
exclusions) comes first and is final; only what is left is scored. No score brings a screened target back.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from router.config import AUTO
from router.placement.predict import occupancy, predict_ttft
from router.placement.targets import Kind, Load, Target, View
from router.policy import KeyGrant, Policy, Site
from router.residency.label import Label, admits

MIN_BYTES_PER_TOKEN = 8
"""No tokenizer in use packs more bytes of ordinary text into a token: a prompt longer than this times the context cannot fit."""
_RETRY_WHEN_DOWN_S = 5.0


class Verdict(StrEnum):
    """What became of a candidate."""

    CHOSEN = "chosen"
    ELIGIBLE = "eligible"
    SCREENED = "screened"


class Complexity(msgspec.Struct, frozen=True):
    """What the complexity rule found: the tier it asks for, a score 0..1, and the reasons in words."""

    tier: str
    score: float
    reasons: tuple[str, ...] = ()


class Facts(msgspec.Struct, frozen=True):
    """What is known of a request, without its content.

    `label` is the effective label; `excluded` holds incarnations that were already tried. `prompt_bytes` is the size of its
    text, `prompt_tokens` an estimate, `max_tokens` 0 when the client set no bound.
    """

    request_id: str
    key: KeyGrant
    endpoint: str
    model: str
    label: Label
    complexity: Complexity
    prompt_bytes: int = 0
    prompt_tokens: int = 0
    max_tokens: int = 0
    excluded: frozenset[str] = frozenset()


class Candidate(msgspec.Struct, frozen=True):
    """One target (for one model) and what the decision thought of it; times in milliseconds."""

    target: str
    incarnation: str
    model: str
    zone: str
    verdict: Verdict
    reason: str
    predicted_ttft_ms: float | None = None


class Choice(msgspec.Struct, frozen=True):
    """The target that serves the request; `index` is its place in `view.membership.targets`."""

    index: int
    target: Target
    model: str
    reason: str
    predicted_ttft_s: float
    cost_usd: float = 0.0


class Refusal(msgspec.Struct, frozen=True):
    """Why nothing serves the request: a code of the public contract, its HTTP status, and when to try again."""

    code: str
    status: int
    message: str
    retry_after_s: float | None = None


class Decision(msgspec.Struct, frozen=True):
    """The outcome. `saturated` names the models that count as saturated from now on (see `View.spilling`)."""

    chosen: Choice | None
    refusal: Refusal | None
    candidates: tuple[Candidate, ...]
    models: tuple[str, ...]
    saturated: bool


class _Scored(msgspec.Struct, frozen=True):
    index: int
    target: Target
    model: str
    rank: int
    ttft_s: float
    occupancy: float


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
    models = resolve_models(facts, policy)
    refusal = refuse_before_targets(facts, policy, models)
    if refusal is not None:
        return Decision(None, refusal, (), models, False)
    screened: list[Candidate] = []
    local: list[_Scored] = []
    cloud: list[_Scored] = []
    for index, target in enumerate(view.membership.targets):
        rank, model = _best_model(target, models)
        reason = screen(facts, policy, target, view.loads[index], model, view, now)
        if reason is not None:
            screened.append(_candidate(target, model, Verdict.SCREENED, reason))
            continue
        scored = _score(index, target, view.loads[index], model, rank, facts)
        (cloud if target.kind is Kind.CLOUD else local).append(scored)
    return _pick(facts, policy, view, now, models, screened, local, cloud)


def resolve_models(facts: Facts, policy: Policy) -> tuple[str, ...]:
    """The models that may answer, best first: the named one, or the members of a tier, nearest tier first.

    A tier or `auto` means "at least this good": larger tiers come next, smaller ones last.
    """
    if facts.model != AUTO and facts.model not in policy.tiers:
        return (facts.model,) if facts.model in policy.models else ()
    wanted = facts.complexity.tier if facts.model == AUTO else facts.model
    start = policy.tiers.index(wanted) if wanted in policy.tiers else 0
    order = (*policy.tiers[start:], *reversed(policy.tiers[:start]))
    models = dict.fromkeys(model for tier in order for model in policy.tier_models.get(tier, ()))
    allowed = facts.key.models
    return tuple(model for model in models if allowed is None or model in allowed)


def refuse_before_targets(facts: Facts, policy: Policy, models: tuple[str, ...]) -> Refusal | None:
    """A refusal that no change of load or membership could lift, or None.

    These depend on the configuration alone: an unknown model, a key without it, an endpoint nothing offers, a label that
    no configured place satisfies.
    """
    allowed = facts.key.models
    usable = [model for model in models if allowed is None or model in allowed]
    if not usable:
        message = f"The model `{facts.model}` does not exist or this key may not use it."
        return Refusal("model_not_found", 404, message)
    sites = [site for site in policy.sites if site.model in usable and facts.endpoint in site.endpoints]
    if not sites:
        return Refusal("model_not_found", 404, f"The model `{facts.model}` does not offer {facts.endpoint}.")
    if not any(_site_allows(site, facts, policy) for site in sites):
        words = policy.place_of(facts.label)
        duties = f" with {', '.join(words.duties)}" if words.duties else ""
        message = (
            f"No configured place for `{facts.model}` satisfies this request's residency label "
            f"(process in: {', '.join(words.process) or 'nowhere'}; store in: {', '.join(words.store) or 'nowhere'}{duties})."
        )
        return Refusal("residency_denied", 403, message)
    return None


def _site_allows(site: Site, facts: Facts, policy: Policy) -> bool:
    if site.external and not (facts.key.spill and policy.spill_enabled):
        return False
    # Expiry is a matter of time, so the caller's clock is not consulted here: `screen` does that.
    return admits(facts.label, site.evidence, -1.0)


def screen(facts: Facts, policy: Policy, target: Target, load: Load, model: str | None, view: View, now: float) -> str | None:
    """Why this target may not serve this request, or None when it may. Order: residency first, always.

    Everything here is a constraint; nothing here is a score.
    """
    if not admits(facts.label, target.evidence, now):
        return f"residency: {_residency_reason(facts.label, target, policy, now)}"
    if model is None:
        return "model: not served here"
    if facts.key.models is not None and model not in facts.key.models:
        return "key: model not allowed"
    if facts.endpoint not in target.endpoints:
        return f"endpoint: {facts.endpoint} is not offered here"
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


def _residency_reason(label: Label, target: Target, policy: Policy, now: float) -> str:
    evidence = target.evidence
    if now >= evidence.expires:
        return "the evidence of this target has expired"
    words = policy.vocabulary
    if outside := evidence.process & ~label.process:
        return f"processes in {'+'.join(words.zone_names(outside))}, which the label does not allow"
    if outside := evidence.store & ~label.store:
        return f"stores in {'+'.join(words.zone_names(outside))}, which the label does not allow"
    if missing := label.duties & ~evidence.duties:
        return f"lacks {'+'.join(words.duty_names(missing))}"
    return "the target has no evidence of where it is"


def _best_model(target: Target, models: tuple[str, ...]) -> tuple[int, str | None]:
    for rank, model in enumerate(models):
        if model in target.models:
            return rank, model
    return len(models), None


def _score(index: int, target: Target, load: Load, model: str | None, rank: int, facts: Facts) -> _Scored:
    assert model is not None
    ttft = predict_ttft(target, load, facts.prompt_tokens)
    return _Scored(index, target, model, rank, ttft, occupancy(target, load))


def _pick(
    facts: Facts,
    policy: Policy,
    view: View,
    now: float,
    models: tuple[str, ...],
    screened: list[Candidate],
    local: list[_Scored],
    cloud: list[_Scored],
) -> Decision:
    """Local within the SLO; else cloud where one is left; else local within the longest wait; else refuse."""
    slo = policy.slo
    was_spilling = not view.spilling.isdisjoint(models)
    limit = slo.ttft_s * (slo.resume_ratio if was_spilling else 1.0)
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
    if best_local is not None and best_local.ttft_s <= slo.max_wait_s:
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
