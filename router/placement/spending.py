"""What may still be spent outside the cluster today: by all keys together, and by each that has a bound of its own."""

from __future__ import annotations

from math import inf


class Spending:
    """The books of one router on one UTC day; money in US dollars, times in UNIX seconds.

    Args:
        daily_usd: what all keys together may spend a day; infinite for no bound.
    """

    def __init__(self, daily_usd: float) -> None:
        self.daily_usd = daily_usd
        self._spent = 0.0
        self._by_key: dict[str, float] = {}
        self._day = -1

    def left(self, now: float, key: str = "", bound_usd: float = inf) -> float:
        """What a request may cost: what is left of the whole, and of its key's own bound."""
        self._roll(now)
        left = self.daily_usd - self._spent
        return left if bound_usd == inf else min(left, bound_usd - self._by_key.get(key, 0.0))

    def spend(self, now: float, usd: float, key: str = "") -> None:
        """Something is about to be sent outside that is expected to cost so much; `key` where it has a bound of its own."""
        self._roll(now)
        self._spent += usd
        if key:
            self._by_key[key] = self._by_key.get(key, 0.0) + usd

    def _roll(self, now: float) -> None:
        day = int(now // 86400)
        if day != self._day:
            self._day, self._spent = day, 0.0
            self._by_key.clear()
