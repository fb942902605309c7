"""A retry budget: failing targets must not double the load on those that are left (as in Finagle's RetryBudget)."""

from __future__ import annotations

SHARE = 0.2
"""Retries per request, in the long run."""
MINIMUM_PER_S = 3.0
"""Retries granted regardless of traffic, so that a quiet router still retries."""
_CAP = 100.0


class RetryBudget:
    """A bucket that every request fills a little and every retry empties by one. Times in seconds of any steady clock."""

    def __init__(self, now: float) -> None:
        self._left = MINIMUM_PER_S
        self._filled_at = now

    def deposit(self) -> None:
        """A request was taken on."""
        if self._left < _CAP:
            self._left += SHARE

    def withdraw(self, now: float) -> bool:
        """True when one more retry may be made."""
        self._left = min(_CAP, self._left + (now - self._filled_at) * MINIMUM_PER_S)
        self._filled_at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True
