"""The grant of a token's bearer: the key's, as far as the token's tenant and its own scopes leave it."""

from __future__ import annotations

from functools import reduce

from msgspec.structs import replace

from router.config import AUTO
from router.identity.narrowing import Narrowing
from router.identity.networks import Networks, compile_networks
from router.identity.priority import CLASSES
from router.policy import KeyGrant, Policy
from router.residency.label import Label


def bearer_grant(grant: KeyGrant, name: str, tenant: str, narrowing: Narrowing | None, policy: Policy) -> KeyGrant:
    """The grant of a token that bears the scopes of a configured key.

    Args:
        grant: the key's grant under `policy`.
        name: the id of the bearer.
        tenant: its tenant; what the policy demands of that tenant holds, too.
        narrowing: the token's own scopes.
        policy: the compiled configuration.

    Raises:
        ValueError: the token names a tag that is not there, or blocks of addresses that are none.
    """
    narrowing = narrowing or Narrowing()
    unknown = [tag for tag in narrowing.residency if tag not in policy.tags]
    if unknown:
        raise ValueError(f"unknown tag `{unknown[0]}`")
    labels = [policy.tags[tag] for tag in narrowing.residency]
    if tenant in policy.tenant_labels:
        labels.append(policy.tenant_labels[tenant])
    own = tuple(limit for limit in grant.limits if limit.scope.startswith("key:"))
    return replace(
        grant,
        id=name,
        tenant=tenant,
        ceiling=reduce(Label.meet, labels, grant.ceiling),
        ceiling_tags=(*grant.ceiling_tags, *narrowing.residency),
        # A relaxation widens the key's ceiling, never what the token or its tenant leaves of it.
        relaxed=tuple(replace(more, label=reduce(Label.meet, labels, more.label)) for more in grant.relaxed),
        redacted=None if grant.redacted is None else reduce(Label.meet, labels, grant.redacted),
        models=_fewer_models(grant.models, narrowing.models, policy),
        spill=grant.spill and narrowing.spill is not False,
        limits=own + policy.tenant_limits.get(tenant, ()),
        networks=_fewer_networks(grant.networks, narrowing.cidr),
        priority=max(grant.priority, 0 if narrowing.priority is None else CLASSES.index(narrowing.priority)),
        narrowing=narrowing,
        bearer_tags=(*narrowing.residency, *policy.tenants.get(tenant, ())),
    )


def _fewer_models(allowed: frozenset[str] | None, named: tuple[str, ...] | None, policy: Policy) -> frozenset[str] | None:
    if named is None or AUTO in named:
        return allowed
    wanted = frozenset(model for name in named for model in policy.tier_models.get(name, (name,)))
    return wanted if allowed is None else allowed & wanted


def _fewer_networks(allowed: Networks | None, blocks: tuple[str, ...] | None) -> Networks | None:
    if blocks is None:
        return allowed
    wanted = compile_networks(blocks)
    return wanted if allowed is None else allowed.within(wanted)
