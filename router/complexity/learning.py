"""Learning from feedback in a running router: a bandit per tenant, and which request repeats which. Counts and hashes only."""

from __future__ import annotations

import hashlib
import os
import random
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from router.complexity.feedback import Arm, Bandit, Drawn, Rating, draw_tier, learn, signal_rating

MAX_TENANTS = 4096
MAX_REQUESTS = 20_000
REPEAT_S = 600.0
"""The same prompt by the same key within so many seconds is a comment on the answer before."""


class LearningSettings(msgspec.Struct, frozen=True):
    """`explore`: share drawn by chance. `tier_cost`: points of score that each larger tier must be better by."""

    explore: float
    tier_cost: float = 0.05
    implicit: bool = True


class Learnt(msgspec.Struct, frozen=True, gc=False):
    """One rating that counted, for others to hear of. `slot` names it without saying which request it was of."""

    slot: str
    tenant: str
    context: str
    tier: int
    rating: Rating


class Learning:
    """What a router has learnt: its own ratings, and, where routers share them, everybody's as last heard.

    Args:
        settings: the operator's.
        dice: gives numbers in [0, 1).
        setting: names the tiers and their models.
    """

    def __init__(self, settings: LearningSettings, dice: Callable[[], float] = random.random, setting: str = "") -> None:
        self.settings = settings
        self.setting = setting
        self.shared = False
        """Whether somebody empties `fresh`, and says with `hear` what is known by everybody."""
        self.fresh: deque[Learnt] = deque(maxlen=MAX_REQUESTS)
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
        self._learn(tenant, context, tier, tiers, rating)
        if self.shared:
            name = hashlib.blake2b(f"{slot[0]}\0{slot[1]}".encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
            self.fresh.append(Learnt(name, tenant, context, tier, rating))
        return True

    def hear(self, sums: Iterable[tuple[str, str, int, float, float]], told: int) -> None:
        """Go by what all routers know from here on, and by what they have not been told yet.

        Args:
            sums: tenant, context, tier, weight and total of all ratings.
            told: how many of `fresh`, from its beginning, are in them.
        """
        for _ in range(min(told, len(self.fresh))):
            self.fresh.popleft()
        known: dict[str, dict[str, dict[int, Arm]]] = {}
        for tenant, context, tier, weight, total in sums:
            known.setdefault(tenant, {}).setdefault(context, {})[tier] = Arm(weight, total)
        self._bandits.clear()
        for tenant, contexts in known.items():
            arms = {name: tuple(found.get(tier, Arm()) for tier in range(max(found) + 1)) for name, found in contexts.items()}
            _put(self._bandits, tenant, Bandit(arms), MAX_TENANTS)
        for one in self.fresh:
            self._learn(one.tenant, one.context, one.tier, one.tier + 1, one.rating)

    def _learn(self, tenant: str, context: str, tier: int, tiers: int, rating: Rating) -> None:
        bandit = learn(self._bandits.get(tenant, Bandit()), context, tier, tiers, rating)
        _put(self._bandits, tenant, bandit, MAX_TENANTS)

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
