"""The policy as guards need it: in names, without digests of keys, with the time it was issued."""

from __future__ import annotations

from router.config import ANY
from router.policy import Policy
from router.residency.guard import OUTSIDE, REDACTED, ROUTER, GuardKey, GuardPolicy


def copy_for_guards(policy: Policy, issued: float) -> GuardPolicy:
    """What a guard decides again with.

    Args:
        policy: the compiled configuration.
        issued: UNIX time in seconds at which it was taken; of two copies a guard keeps the later one.
    """
    keys = {
        grant.id: GuardKey(
            policy.label_text(grant.ceiling),
            [(policy.label_text(grant.ceiling.join(more.label)), more.begins, more.ends) for more in grant.relaxed],
        )
        for grant in policy.keys.values()
    }
    for grant in policy.keys.values():
        if grant.redacted is not None:
            keys[grant.id + REDACTED] = GuardKey(policy.label_text(grant.redacted))
    keys[OUTSIDE] = keys[ROUTER] = GuardKey(policy.label_text(policy.tags[ANY]))
    tags = {name: policy.label_text(label) for name, label in policy.tags.items()}
    models = {name: policy.label_text(label) for name, label in policy.model_labels.items()}
    return GuardPolicy(policy.epoch, issued, keys, tags, models)
