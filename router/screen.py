"""Screening: what may serve a request at all, as far as configuration and membership alone decide it.

Constraints, not scores. None of this depends on load, so the result for one kind of request (`Scope`) is remembered with the
membership it was found for and serves every like request until a target comes or goes.
"""

from __future__ import annotations

import math

import msgspec

from router.config import AUTO
from router.decision import Candidate, Facts, Refusal, Verdict
from router.placement.targets import Kind, Membership, Target
from router.policy import Policy, Site
from router.residency.label import Label, admits

MEMO_LIMIT = 1024
"""Kinds of requests remembered per membership: a client can vary a label or a model name, but not without bound."""

GROUP = 16
"""Targets that a short prompt compares at most while one of them serves it in time. The best of 16 is nearly as good as the best
of all (Mitzenmacher, "The Power of Two Choices", 2001), and the cost of a decision stays what it is at 16."""


class Admitted(msgspec.Struct, frozen=True, gc=False):
    """A target that may serve the request, by its place in the membership; a lower `rank` is a more fitting model."""

    index: int
    target: Target
    model: str
    rank: int


class Group(msgspec.Struct, frozen=True, gc=False):
    """Local targets that are ranked together. `places`: membership index -> place in `entries`; `context_tokens`: what all of
    them can take, infinite where none says how much."""

    entries: tuple[Admitted, ...] = ()
    places: dict[int, int] = {}
    context_tokens: float = math.inf


class Shortlist(msgspec.Struct, frozen=True):
    """What screening leaves. `valid_until` is the UNIX time at which the first evidence in it expires."""

    models: tuple[str, ...]
    refusal: Refusal | None
    admitted: tuple[Admitted, ...]
    screened: tuple[Candidate, ...]
    valid_until: float
    local: tuple[Admitted, ...] = ()
    """Those of the admitted that are inside the cluster, and those that are not."""
    outside: tuple[Admitted, ...] = ()
    whole: Group = Group()
    """All of `local`."""
    same_rank: bool = True
    """Whether all local ones serve an equally fitting model."""
    groups: tuple[Group, ...] = ()
    """Where there are very many equally fitting ones: the same in parts, each a cross-section of the whole."""


def shortlist(facts: Facts, policy: Policy, membership: Membership, now: float) -> Shortlist:
    """The targets that may serve a request, and why the others may not.

    Args:
        facts: what is known of the request; load, exclusions and budget are not looked at here.
        policy: the compiled configuration.
        membership: the targets there are.
        now: UNIX time in seconds.
    """
    key = facts.key
    scope = (
        policy.epoch,
        facts.label,
        facts.model,
        facts.complexity.tier,
        facts.complexity.model,
        facts.endpoint,
        key.models,
        key.spill,
    )
    found = membership.memo.get(scope)
    if found is None or now >= found.valid_until:
        found = _screen_all(facts, policy, membership, now)
        if len(membership.memo) >= MEMO_LIMIT:
            membership.memo.clear()
        membership.memo[scope] = found
    return found


def _screen_all(facts: Facts, policy: Policy, membership: Membership, now: float) -> Shortlist:
    models = resolve_models(facts, policy)
    refusal = refuse_before_targets(facts, policy, models)
    admitted: list[Admitted] = []
    screened: list[Candidate] = []
    for index, target in enumerate(membership.targets):
        rank, model = _best_model(target, models)
        reason = screen(facts, policy, target, model, now)
        if reason is None and model is not None:
            admitted.append(Admitted(index, target, model, rank))
        else:
            screened.append(
                Candidate(target.id, target.incarnation, model or "", target.zone, Verdict.SCREENED, reason or "model")
            )
    expiries = [target.evidence.expires for target in membership.targets if target.evidence.expires > now]
    local = tuple(entry for entry in admitted if entry.target.kind is not Kind.CLOUD)
    outside = tuple(entry for entry in admitted if entry.target.kind is Kind.CLOUD)
    same_rank = len({entry.rank for entry in local}) < 2
    parts = -(-len(local) // GROUP) if same_rank else 1
    groups = tuple(_group(local[first::parts]) for first in range(parts)) if parts > 1 else ()
    until = min(expiries, default=math.inf)
    return Shortlist(models, refusal, tuple(admitted), tuple(screened), until, local, outside, _group(local), same_rank, groups)


def _group(entries: tuple[Admitted, ...]) -> Group:
    context = min((entry.target.context_tokens or math.inf for entry in entries), default=math.inf)
    return Group(entries, {entry.index: place for place, entry in enumerate(entries)}, context)


def screen(facts: Facts, policy: Policy, target: Target, model: str | None, now: float) -> str | None:
    """Why this target may never serve such a request, or None when it may. Order: residency first, always."""
    label = facts.label if model is None else policy.label_for(facts.label, model)
    if not admits(label, target.evidence, now):
        return f"residency: {_residency_reason(label, target, policy, now)}"
    if model is None:
        return "model: not served here"
    if facts.key.models is not None and model not in facts.key.models:
        return "key: model not allowed"
    if facts.endpoint not in target.endpoints:
        return f"endpoint: {facts.endpoint} is not offered here"
    return None


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
    prefer = facts.complexity.model
    if prefer in policy.models and facts.model == AUTO:
        models = {prefer: None, **models}
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
    if not any(site_allows(site, facts, policy) for site in sites):
        words = policy.place_of(facts.label)
        duties = f" with {', '.join(words.duties)}" if words.duties else ""
        message = (
            f"No configured place for `{facts.model}` satisfies this request's residency label "
            f"(process in: {', '.join(words.process) or 'nowhere'}; store in: {', '.join(words.store) or 'nowhere'}{duties})."
        )
        return Refusal("residency_denied", 403, message)
    return None


def site_allows(site: Site, facts: Facts, policy: Policy) -> bool:
    """Whether a place of the configuration could have a request, were something up there."""
    if site.external and not (facts.key.spill and policy.spill_enabled):
        return False
    # Expiry is a matter of time, so the caller's clock is not consulted here: `screen` does that.
    return admits(policy.label_for(facts.label, site.model), site.evidence, -1.0)


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
