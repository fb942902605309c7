"""`POST /tidegate/v1/feedback` and what requests themselves say about the answers before them."""

from __future__ import annotations

import time
from typing import Any

from router.admitted import AdmittedRequest
from router.complexity.feedback import FeedbackError, Rating, read_rating, signal_rating
from router.complexity.learning import repeat_rating
from router.ledger import records
from router.policy import KeyGrant, Policy
from router.state import RouterState
from router.wire.errors import ApiError, invalid_request
from router.wire.json_body import parse_object

MAX_BODY = 16 * 1024
NO_TENANT = "default"
"""The tenant of keys that were given none: they have nothing else in common."""


def rating_of(body: bytes) -> Rating:
    """The rating in a feedback request.

    Raises:
        ApiError: 400, saying what is wrong with it.
    """
    try:
        return read_rating(parse_object(body))
    except FeedbackError as error:
        raise invalid_request(f"{error}.") from None


async def take_feedback(state: RouterState, grant: KeyGrant, rating: Rating) -> dict[str, Any]:
    """Take a rating by the key that made the request, or another key of its tenant.

    Raises:
        ApiError: 404 where this key may not know of such a request.
    """
    found = state.receipts.find(rating.request_id)
    if found is None and state.find_elsewhere is not None:
        found = await state.find_elsewhere(rating.request_id)
    same_tenant = grant.tenant != NO_TENANT and found is not None and found["tenant"] == grant.tenant
    same_key = found is not None and (found["key"], found["tenant"]) == (grant.id, grant.tenant)
    if found is None or not (same_key or same_tenant):
        raise ApiError(404, "invalid_request", "There is no request with this id (any more).", param="request_id")
    return {"request_id": rating.request_id, "score": rating.score, "learned": _learn(state, found, rating)}


def note_repeat(state: RouterState, admitted: AdmittedRequest) -> None:
    """A prompt that comes again soon is a comment on the answer before it."""
    learning = state.complexity.learning
    if learning is None or not learning.settings.implicit or admitted.form is not None:
        return
    before = learning.repeats(admitted.facts.key.id, admitted.path, admitted.parsed, admitted.request_id, time.time())
    found = state.receipts.find(before) if before is not None else None
    if found is not None and (rating := repeat_rating(found["request_id"], found["status"], found["code"])) is not None:
        _learn(state, found, rating)


def note_escalation(state: RouterState, admitted: AdmittedRequest, model: str) -> None:
    """A cascade did not let a model's answer stand."""
    receipt = admitted.receipt
    seen = {"tenant": receipt.tenant, "key": receipt.key, "context": receipt.context, "attempts": [{"model": model}]}
    _learn(state, seen, signal_rating(admitted.request_id, "escalate"))


def tier_of(policy: Policy, model: str) -> int | None:
    """The place of a model's tier, None for one in no tier."""
    return next((place for place, tier in enumerate(policy.tiers) if model in policy.tier_models.get(tier, ())), None)


def _learn(state: RouterState, found: dict[str, Any], rating: Rating) -> bool:
    """Record a rating, and learn from it where that is switched on and the choice of the tier was the router's."""
    if state.audit is not None:
        data = {"key": found["key"], "tenant": found["tenant"], "score": rating.score, "weight": rating.weight}
        state.audit.event(records.FEEDBACK, rating.request_id, data)
    learning, attempts, policy = state.complexity.learning, found["attempts"], state.policy
    tier = tier_of(policy, attempts[-1]["model"]) if attempts else None
    if learning is None or tier is None or not found["context"]:
        return False
    return learning.rate(found["tenant"], found["context"], tier, len(policy.tiers), rating)
