"""Checks of a policy that can be run and yet says what can never happen: spilling over, and the keeping of payloads."""

from __future__ import annotations

import time
from collections.abc import Iterable

from router.config import Config
from router.ledger.capturing import Place
from router.policy import KeyGrant, Policy, reach_of
from router.residency.label import admits
from tidegate.finding import Finding, Level


def check_spill(config: Config, policy: Policy) -> Iterable[Finding]:
    """Whether what the configuration says of spilling over can ever happen; nothing where it says nothing of it.

    Args:
        config: the configuration.
        policy: the same, compiled.
    """
    cloud = [target.id for target in config.targets if target.kind == "cloud"]
    asking = ["spill.enabled"] if config.spill.enabled and "enabled" in config.spill.model_fields_set else []
    asking += ["spill.daily_budget_usd"] if config.spill.daily_budget_usd is not None else []
    asking += [f"keys[{i}].spill" for i, key in enumerate(config.keys) if key.spill]
    if not cloud:
        if asking:
            text = f"{', '.join(asking[:5])}: there is no target with `kind: cloud`, so nothing leaves"
            yield Finding("spill", Level.WARNING, text, "add the target, or take this out")
        return
    if not config.spill.enabled:
        yield Finding("spill", Level.OK, f"`spill.enabled` is false: nothing is sent to {', '.join(cloud)}")
        return
    spilling = [grant for grant in policy.keys.values() if grant.spill]
    if not spilling:
        text = f"to {', '.join(cloud)} for stored keys only: none of the configuration says `spill: true`"
        yield Finding("spill", Level.OK, text)
    now = time.time()
    for grant in spilling:
        if not _reaches_outside(grant, policy, now):
            label = policy.label_text(grant.ceiling)
            text = f"key {grant.id} says `spill: true`, but may use no cloud target ({label}): nothing of it leaves"
            step = "name a tag with the target's zone; see also `models` of the key, `expires` and `duties` of the target"
            yield Finding("spill", Level.WARNING, text, step)


def _reaches_outside(grant: KeyGrant, policy: Policy, now: float) -> bool:
    reach = reach_of(grant) if grant.redacted is None else reach_of(grant).join(grant.redacted)
    return any(
        site.external
        and (grant.models is None or site.model in grant.models)
        and admits(policy.label_for(reach, site.model), site.evidence, now)
        for site in policy.sites
    )


def check_capture(config: Config, policy: Policy) -> Iterable[Finding]:
    """Whether what keys and tenants have kept may ever be kept where `capture` says; nothing where nobody has.

    Args:
        config: the configuration.
        policy: the same, compiled.
    """
    if config.capture is None:
        return
    place = Place(config.capture.zone, tuple(config.capture.duties))
    for grant in policy.keys.values():
        captured = grant.capture or grant.tenant in config.capture.tenants
        if captured and not place.may_store(policy, reach_of(grant)):
            text = (
                f"key {grant.id}: `capture` keeps nothing of it, for its label ({policy.label_text(grant.ceiling)}) forbids that"
            )
            step = f"a tag that lets zone `{place.zone}` store, and the `duties` it requires under `capture`, if they hold there"
            yield Finding("capture", Level.WARNING, text, step)
