"""Learning from feedback in a running router: a bandit per tenant, and which request repeats which. Counts and hashes only."""

from __future__ import annotations

import hashlib
import os
import random
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import msgspec

from router.complexity.feedback import Bandit, Drawn, Rating, draw_tier, learn, signal_rating

MAX_TENANTS = 4096
MAX_REQUESTS = 20_000
REPEAT_S = 600.0
"""The same prompt by the same key within so many seconds is a comment on the answer before."""


class LearningSettings(msgspec.Struct, frozen=True):
    """`explore`: share drawn by chance. `tier_cost`: points of score that each larger tier must be better by."""

    explore: float
    tier_cost: float = 0.05
    implicit: bool = True


class Learning:
    """What one router has learnt; it is forgotten when the router ends.

    Args:
        settings: the operator's.
        dice: gives numbers in [0, 1).
    """

    def __init__(self, settings: LearningSettings, dice: Callable[[], float] = random.random) -> None:
        self.settings = settings
        self._dice = dice
        self._secret = os.urandom(32)
        self._bandits: OrderedDict[str, Bandit] = OrderedDict()
        self._asked: OrderedDict[bytes, tuple[str, float]] = OrderedDict()
        self._rated: OrderedDict[tuple[str, bool], None] = OrderedDict()

    def __repr__(self) -> str:
        return f"Learning(tenants={len(self._bandits)}, requests={len(self._asked)})"

    def draw(self, tenant: str, context: str, wanted: int, tiers: int) -> Drawn:
        """The tier for a request whose prior wants `wanted`."""
        costs = tuple(self.settings.tier_cost * tier for tier in range(tiers))
        bandit = self._bandits.get(tenant, Bandit())
        return draw_tier(bandit, context, wanted, tiers, self.settings.explore, self._dice(), costs)

    def rate(self, tenant: str, context: str, tier: int, tiers: int, rating: Rating) -> bool:
        """Learn from a rating; False where the request was rated so before: an explicit and an implicit one count once each."""
        slot = (rating.request_id, rating.weight >= 1.0)
        if slot in self._rated:
            return False
        _put(self._rated, slot, None, MAX_REQUESTS)
        bandit = learn(self._bandits.get(tenant, Bandit()), context, tier, tiers, rating)
        _put(self._bandits, tenant, bandit, MAX_TENANTS)
        return True

    def repeats(self, key: str, path: str, parsed: dict[str, Any], request_id: str, now: float) -> str | None:
        """Remember a request; the id of the one it repeats, if that is not long ago.

        Args:
            key: the key's id.
            path: the endpoint.
            parsed: the request, of which a keyed hash is kept.
            request_id: its own id.
            now: UNIX time in seconds.
        """
        said = parsed.get("messages", parsed.get("prompt", parsed.get("input")))
        digest = hashlib.blake2b(f"{key}\0{path}\0".encode("utf-8", "surrogatepass"), key=self._secret, digest_size=16)
        digest.update(repr(said).encode("utf-8", "surrogatepass"))
        name = digest.digest()
        before = self._asked.pop(name, None)
        _put(self._asked, name, (request_id, now), MAX_REQUESTS)
        return before[0] if before is not None and now - before[1] <= REPEAT_S else None

    def describe(self) -> dict[str, Any]:
        """What is known, per tenant: for people."""
        return {tenant: msgspec.to_builtins(bandit.arms) for tenant, bandit in self._bandits.items()}


def repeat_rating(request_id: str, status: int, code: str) -> Rating | None:
    """What a repeated prompt says about the answer before: nothing where that was an error of ours."""
    if code == "client_gone":
        return signal_rating(request_id, "retry")
    return signal_rating(request_id, "regenerate") if status == 200 and not code else None


def _put(book: OrderedDict[Any, Any], name: Any, value: Any, capacity: int) -> None:
    book[name] = value
    book.move_to_end(name)
    if len(book) > capacity:
        book.popitem(last=False)
