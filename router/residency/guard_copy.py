"""The policy as guards need it: in names, without digests of keys, with the time it was issued."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import msgspec

from router.config import ANY
from router.policy import KeyGrant, Policy
from router.residency.guard import NONE_STORED, REDACTED, ROUTER, GuardKey, GuardPolicy, StoredCeilings


def copy_for_guards(policy: Policy, issued: float, stored: StoredCeilings = NONE_STORED) -> GuardPolicy:
    """What a guard decides again with.

    Args:
        policy: the compiled configuration.
        issued: UNIX time in seconds at which it was taken; of two copies a guard keeps the later one.
        stored: the ceilings of the keys that do not stand in the configuration.
    """
    keys: dict[str, GuardKey] = {}
    for grant in policy.keys.values():
        keys.update(_known_as(grant, policy))
    keys[ROUTER] = GuardKey(policy.label_text(policy.tags[ANY]))
    tags = {name: policy.label_text(label) for name, label in policy.tags.items()}
    models = {name: policy.label_text(label) for name, label in policy.model_labels.items()}
    return GuardPolicy(policy.epoch, issued, keys, tags, models, stored)


def ceilings_of(grants: Iterable[KeyGrant], policy: Policy) -> StoredCeilings:
    """The ceilings of stored keys, the same for every router that sees the same keys under the same policy.

    Args:
        grants: what each stored key may do; while a key is rotated there are two of one id.
        policy: the configuration that the grants were compiled under.
    """
    found: dict[str, GuardKey] = {}
    for grant in grants:
        for name, key in _known_as(grant, policy).items():
            if found.setdefault(name, key) != key:
                found[name] = GuardKey("//")  # two ceilings under one name: nobody can say which is meant
    if not found:
        return NONE_STORED
    ceilings: list[GuardKey] = []
    numbers: dict[bytes, int] = {}
    keys: dict[str, int] = {}
    for name in sorted(found):
        packed = msgspec.msgpack.encode(found[name])
        if packed not in numbers:
            numbers[packed] = len(ceilings)
            ceilings.append(found[name])
        keys[name] = numbers[packed]
    digest = hashlib.sha256(msgspec.msgpack.encode((ceilings, list(keys.items())))).hexdigest()[:16]
    return StoredCeilings(ceilings, keys, digest)


def _known_as(grant: KeyGrant, policy: Policy) -> dict[str, GuardKey]:
    """A key's ceilings by the names it has in passes."""
    relaxed = [(policy.label_text(grant.ceiling.join(more.label)), more.begins, more.ends) for more in grant.relaxed]
    known = {grant.guard_id: GuardKey(policy.label_text(grant.ceiling), relaxed)}
    if grant.redacted is not None:
        known[grant.guard_id + REDACTED] = GuardKey(policy.label_text(grant.redacted))
    return known
