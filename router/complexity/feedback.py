"""Learning from feedback: a bandit over tiers with a floor of exploration that the operator sets. Counts only, never text.

Feedback says little per request (one in three is rated, one in ten wrongly), so it moves a choice only where its evidence is
clear: a tier must be better beyond the confidence bound. Labels from both models on the same prompt teach far more.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec

MAX_CONTEXTS = 512
_SIGNALS = {"retry": 0.25, "regenerate": 0.2, "escalate": 0.0, "copy": 0.9, "accept": 1.0}
"""What an implicit signal says about the answer before it, 0..1."""
_IMPLICIT_WEIGHT = 0.3


class FeedbackError(ValueError):
    """A feedback request that cannot be used; the text is fit for the client."""


class Rating(msgspec.Struct, frozen=True, gc=False):
    """One piece of feedback: which request, how good 0..1, how much it counts."""

    request_id: str
    score: float
    weight: float


class Arm(msgspec.Struct, frozen=True, gc=False):
    """What is known of one tier in one context: weight of the ratings, and the sum of their scores times weight."""

    weight: float = 0.0
    total: float = 0.0


class Bandit(msgspec.Struct, frozen=True):
    """Arms by context; `order` is the order of first sight, the oldest context is forgotten first."""

    arms: dict[str, tuple[Arm, ...]] = {}


class Drawn(msgspec.Struct, frozen=True, gc=False):
    """The tier's place, the probability with which it was drawn (for unbiased estimates), and whether by chance."""

    tier: int
    propensity: float
    explored: bool


def read_rating(body: Any) -> Rating:
    """The body of `POST /tidegate/v1/feedback`: `{"request_id": ..., "score": 0..1}` or `{"request_id": ..., "signal": "retry"}`.

    Raises:
        FeedbackError: says which field is wrong.
    """
    if not isinstance(body, dict):
        raise FeedbackError("the body is a JSON object with `request_id` and `score`")
    unknown = set(body) - {"request_id", "score", "signal"}
    if unknown:
        raise FeedbackError("only `request_id`, `score` and `signal` are taken; comments are not kept")
    request_id = body.get("request_id")
    if not isinstance(request_id, str) or not 0 < len(request_id) <= 256:
        raise FeedbackError("`request_id` is the `x-request-id` of an answer")
    if ("score" in body) == ("signal" in body):
        raise FeedbackError("give exactly one of `score` (0 to 1) and `signal`")
    if "signal" in body:
        signal = body["signal"]
        if not isinstance(signal, str) or signal not in _SIGNALS:
            raise FeedbackError(f"`signal` is one of {', '.join(sorted(_SIGNALS))}")
        return signal_rating(request_id, signal)
    score = body["score"]
    if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 1:
        raise FeedbackError("`score` is a number from 0 (bad) to 1 (good)")
    return Rating(request_id, float(score), 1.0)


def signal_rating(request_id: str, signal: str) -> Rating:
    """What an implicit signal says about a request; it counts less than a score."""
    return Rating(request_id, _SIGNALS[signal], _IMPLICIT_WEIGHT)


def context_of(domain: str, gain: float) -> str:
    """What a rating is filed under: the domain and the expected gain in steps; nothing of the text."""
    return f"{domain}:{max(-4, min(12, math.floor(gain * 20)))}"


def learn(bandit: Bandit, context: str, tier: int, tiers: int, rating: Rating) -> Bandit:
    """The bandit after one rating."""
    arms = list(bandit.arms.get(context, (Arm(),) * tiers))
    arms += [Arm()] * (tiers - len(arms))
    arm = arms[tier]
    arms[tier] = Arm(arm.weight + rating.weight, arm.total + rating.weight * rating.score)
    known = {name: kept for name, kept in bandit.arms.items() if name != context}
    if len(known) >= MAX_CONTEXTS:
        del known[next(iter(known))]
    return Bandit({**known, context: tuple(arms)})


def draw_tier(
    bandit: Bandit, context: str, wanted: int, tiers: int, explore: float, dice: float, costs: tuple[float, ...]
) -> Drawn:
    """The tier to use when the prior wants `wanted`.

    Args:
        bandit: what is known.
        context: see `context_of`.
        wanted: the prior's choice.
        tiers: how many there are.
        explore: share that is drawn at random among all tiers: the operator's floor.
        dice: a number in [0, 1) from the caller; the same number gives the same answer.
        costs: what a tier must be better by, in points, to be worth it.
    """
    best = _clearly_better(bandit.arms.get(context, ()), wanted, costs)
    by_chance = explore / tiers
    if dice < explore:
        tier = min(tiers - 1, int(dice / by_chance))
        return Drawn(tier, by_chance + (1 - explore if tier == best else 0.0), True)
    return Drawn(best, 1 - explore + by_chance, False)


def _clearly_better(arms: tuple[Arm, ...], wanted: int, costs: tuple[float, ...]) -> int:
    """The prior's tier unless another one's lower bound is above its upper bound."""
    if wanted >= len(arms):
        return wanted
    _, high = _bounds(arms[wanted])
    best, best_low = wanted, high - _cost(costs, wanted)
    for tier, arm in enumerate(arms):
        low, _ = _bounds(arm)
        if tier != wanted and arm.weight >= 20 and low - _cost(costs, tier) > best_low:
            best, best_low = tier, low - _cost(costs, tier)
    return best


def _bounds(arm: Arm) -> tuple[float, float]:
    """Hoeffding's 95 % interval of a mean of scores in 0..1."""
    if arm.weight <= 0:
        return 0.0, 1.0
    mean = arm.total / arm.weight
    half = math.sqrt(math.log(40) / (2 * arm.weight))
    return mean - half, mean + half


def _cost(costs: tuple[float, ...], tier: int) -> float:
    return costs[tier] if tier < len(costs) else 0.0
