"""What to make of a moment at which no allowed target is up: wait for one that will be, or refuse at once. Pure."""

from __future__ import annotations

from router.decide import DOWN, screen_now
from router.decision import Facts
from router.placement.targets import View
from router.policy import Policy
from router.screen import shortlist, site_allows


def may_come_up(facts: Facts, policy: Policy, view: View, now: float) -> bool:
    """Whether waiting could help a request that no target may have now: one is only full or paused, or Serve is replacing it.

    Args:
        facts: of the request.
        policy: the compiled configuration.
        view: what the refusal was made on.
        now: UNIX time in seconds.
    """
    found = shortlist(facts, policy, view.membership, now)
    for entry in found.local:
        reason = screen_now(facts, policy, entry, view.loads[entry.index], view, now)
        if reason is None or reason == DOWN:
            return True
        if reason.startswith("context"):
            return False  # another engine of the model has no longer context
    return found.refusal is None and any(
        site.replaced and site.model in found.models and facts.endpoint in site.endpoints and site_allows(site, facts, policy)
        for site in policy.sites
    )
