"""What stands at the addresses of the simulation, and the router's exchanges with it."""

from __future__ import annotations

from functools import lru_cache

from _residency.worlds import OUTSIDE, Rules
from router.placement.targets import Endpoint
from router.residency.guard import PassRefused, Place, check_pass, derive_target_key
from router.residency.label import admits

SECRET = b"s" * 32
PATH = Endpoint.CHAT


@lru_cache(4096)
def target_key(incarnation: str) -> bytes:
    """The pass key of an incarnation, once."""
    return derive_target_key(SECRET, incarnation)


class Process:
    """What really stands at an address: one incarnation of an engine or egress, with its own guard."""

    def __init__(self, incarnation: str, place: Place, rules: Rules) -> None:
        self.is_egress = place.process == (OUTSIDE,)
        self.incarnation = incarnation
        self.place = place
        self.truth = (frozenset(place.process), frozenset(place.store), frozenset(place.duties))
        self.key = target_key(incarnation)
        self.take(rules)
        self.cache: dict[str, tuple[str, str]] = {}

    def take(self, rules: Rules) -> None:
        """A policy reaches this guard."""
        self.rules, self.copy = rules, rules.copy

    def admits(self, token: str, now: float) -> bool:
        """The guard, as `EngineGuard` has it: the pass, then its own policy. The egress has its place from that policy, too."""
        try:
            permission = check_pass(self.key, token, "POST", PATH, self.incarnation, self.place, now)
        except PassRefused:
            return False
        if self.copy.refuses(permission, self.place, now) is not None:
            return False
        if not self.is_egress:
            return True
        policy, (report,) = self.rules.policy, self.rules.cloud_reports(self.incarnation.partition("@")[2])
        return admits(policy.label_of(Place.from_text(permission.label_text)), report.target.evidence, now)


class Exchange:
    """An exchange as the router's code cuts it."""

    connection = None

    def __init__(self) -> None:
        self.deadline = float("inf")
        self.failure = ""

    def broken(self, why: str) -> None:
        """It was cut."""
        self.failure = why
