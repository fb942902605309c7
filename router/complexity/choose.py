"""From a request to a tier: rules first, then expected gain against a threshold; always with reasons.

`judge_request` is pure: weights, rules and wishes come compiled in a `Plan`, what changes from request to request (the share
tracker) comes in and goes out as a value. It names a tier or a preferred model and nothing else: what may serve the request is
decided by screening, which no complexity can widen.
"""

from __future__ import annotations

from typing import Any

import msgspec

from router.complexity.calibrate import Step, Track, Wish, first_track, step
from router.complexity.explain import reasons_of
from router.complexity.features import Features, read_features
from router.complexity.model import Model, Reading, read_gains
from router.complexity.peel import Asked, peel_request
from router.complexity.rules import Rule, Shape, first_match, read_shape


class Plan(msgspec.Struct, frozen=True):
    """How `auto` is decided. `head` is the place of the gain head; `domain_models` maps a domain to a specialised model."""

    tiers: tuple[str, ...]
    model: Model
    head: int
    wish: Wish
    rules: tuple[Rule, ...] = ()
    domain_models: dict[str, str] = {}
    domain_floor: float = 0.6
    header_names: frozenset[str] = frozenset()
    by_gain: bool = True
    """False: rules and domains only; what they leave open is not this module's to decide (`tier` is "")."""


class Asker(msgspec.Struct, frozen=True, gc=False):
    """Who asks and when: key, tenant, UNIX time in seconds, and the headers that rules may ask for (names in lower case)."""

    key: str = ""
    tenant: str = ""
    now: float = 0.0
    headers: dict[str, str] = {}


class Judged(msgspec.Struct, frozen=True, gc=False):
    """The outcome: a tier, the model to prefer ("" none), the expected gain, the domain, the reasons, the next tracker state.

    `rule` names the rule that decided ("" none). `features` are numbers only; explanations are made from them afterwards.
    `context` and `propensity` are set where feedback had a say.
    """

    tier: str
    model: str
    gain: float
    domain: str
    reasons: tuple[str, ...]
    track: Track
    thresholds: tuple[float, ...] = ()
    rule: str = ""
    features: Features | None = None
    context: str = ""
    propensity: float = 1.0


def start_track(plan: Plan) -> Track:
    """The tracker before any request."""
    return first_track(plan.model.gains[plan.head].cuts, len(plan.tiers) - 1)


def judge_request(body: dict[str, Any], tokens: int, plan: Plan, track: Track, asker: Asker) -> Judged:
    """Judge one parsed request.

    Args:
        body: the parsed request, of any dialect and any quality.
        tokens: estimated length of the whole prompt.
        plan: the compiled wishes.
        track: the share tracker's state.
        asker: key, tenant, time, headers.
    """
    asked = peel_request(body)
    features = read_features(asked.text)
    reading = read_gains(plan.model, features, plan.head)
    domain, sure = domain_of(plan, reading)
    gain = reading.gains[0]
    if plan.rules:
        shape = read_shape(body, asked, features, tokens, domain, asker.key, asker.tenant, asker.now, asker.headers)
        rule = first_match(plan.rules, shape)
        if rule is not None and not rule.leave:
            return _by_rule(rule, plan, gain, domain, shape, track, features)
    prefer = plan.domain_models.get(domain, "")
    if not plan.by_gain:
        return Judged("", prefer, gain, domain, (f"domain {domain} ({sure:.0%})",), track, (), "", features)
    taken = step(track, plan.wish, gain, len(plan.tiers) - 1)
    reasons = reasons_of(gain, taken, plan.tiers, domain, sure, prefer, asked)
    return Judged(plan.tiers[taken.tier], prefer, gain, domain, reasons, taken.track, taken.thresholds, "", features)


def domain_of(plan: Plan, reading: Reading) -> tuple[str, float]:
    """The likeliest domain and its probability; `general` below the floor of confidence."""
    if not reading.logits:
        return "general", 0.0
    place, sure = reading.likeliest()
    return (plan.model.domains.names[place] if sure >= plan.domain_floor else "general"), sure


def _by_rule(rule: Rule, plan: Plan, gain: float, domain: str, shape: Shape, track: Track, features: Features) -> Judged:
    what = f"model {rule.model}" if rule.model else f"tier {rule.tier}"
    tier = rule.tier if rule.tier in plan.tiers else plan.tiers[-1]  # an unknown tier is refused when a rule is read
    reasons = (
        f"rule `{rule.name}` asks for {what}",
        f"about {shape.tokens} prompt tokens, language {shape.language or 'unknown'}",
    )
    return Judged(tier, rule.model, gain, domain, reasons, track, (), rule.name, features)


__all__ = ["Asked", "Asker", "Judged", "Plan", "Step", "judge_request", "start_track"]
