"""The gate of the response cache: whether an answer may be kept, and whether a kept one may be given to a request.

With `resolve_label` and the guard this is what residency rests on, so it believes nobody: it asks again for what the key of an
entry says already (scope, label, model, epoch), and goes by the same `may_use` that a request's stay at a target goes by. A kept
answer is bytes of whoever asked first, so nobody with a wider label gets them.
"""

from __future__ import annotations

import msgspec

from router.placement.targets import Target
from router.policy import KeyGrant, Policy
from router.residency.inflight import may_use
from router.residency.label import Evidence, Label, admits


class Provenance(msgspec.Struct, frozen=True, gc=False):
    """Where a kept answer comes from, and under what it was asked for.

    `label` is the effective label with what the model demands; `owner` is the key it belongs to, "" when its tenant shares it.
    """

    epoch: str
    tenant: str
    owner: str
    label: Label
    model: str
    target: Target


def owner_of(grant: KeyGrant) -> str:
    """The one that answers of a key belong to which shares with nobody. A stored key may have a configured one's id."""
    return f"{grant.guard_id}/{grant.id}"


def may_keep(policy: Policy, grant: KeyGrant, answer: Provenance, known: Evidence | None, store: Evidence, now: float) -> bool:
    """Whether an answer that has just come may be kept.

    Args:
        policy: the policy of now; one from under another is not kept.
        grant: the grant of the key that asked.
        answer: where it comes from.
        known: what is known of the target now, None when it is gone: then nobody can say where the answer was made.
        store: where the cache keeps things.
        now: UNIX time in seconds.
    """
    return (
        known is not None
        and answer.epoch == policy.epoch
        and answer.tenant == grant.tenant
        and answer.owner in ("", owner_of(grant))
        and admits(answer.label, store, now)
        and may_use(policy, grant, answer.label, answer.model, answer.target, known, now)
    )


def may_give(
    policy: Policy, grant: KeyGrant, label: Label, answer: Provenance, known: Evidence | None, store: Evidence, now: float
) -> bool:
    """Whether a kept answer may be given to a request.

    Args:
        policy: the policy of now.
        grant: the grant of the key that asks.
        label: the request's effective label, before what the model demands.
        answer: where the answer comes from.
        known: what is known now of the target that made it; None when it is gone, then its evidence of then counts.
        store: where the cache keeps things.
        now: UNIX time in seconds.
    """
    own = policy.label_for(label, answer.model)
    return (
        answer.epoch == policy.epoch
        and answer.tenant == grant.tenant
        and answer.owner in ("", owner_of(grant))
        and own.is_within(answer.label)
        and admits(own, store, now)
        and may_use(policy, grant, label, answer.model, answer.target, answer.target.evidence, now)
        and (known is None or may_use(policy, grant, label, answer.model, answer.target, known, now))
    )
