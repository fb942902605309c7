"""How fast a queue drains, measured while somebody waits in it: what `Retry-After` is made of. Pure data, no clock."""

from __future__ import annotations

from math import exp

_TAU_S = 10.0
"""Seconds over which the rate is averaged."""
_STALE_S = 60.0
"""After so long without anybody waiting, what was measured says nothing of now."""
_LEAST_WAIT_S = 0.5
_LEAST_SERVED = 3.0


class Drain:
    """The drain rate of one pool of waiting requests. Times are UNIX seconds."""

    __slots__ = ("_at", "_seconds", "_served", "stalled", "waiting")

    def __init__(self) -> None:
        self.waiting = 0
        """How many of the pool wait."""
        self.stalled = False
        """No target of the pool is up: that says nothing of how fast one drains it once it is, so the clock stands still."""
        self._at = 0.0
        self._served = 0.0
        self._seconds = 0.0
        """Seconds in which somebody waited; old ones fade, as the count of those served does."""

    def waits(self, now: float) -> None:
        """One more waits."""
        self._pass(now)
        self.waiting += 1

    def served(self, now: float) -> None:
        """One of those that wait was sent to a target."""
        self._pass(now)
        self._served += 1.0

    def leaves(self, now: float) -> None:
        """One waits no longer, whatever became of it."""
        self._pass(now)
        self.waiting -= 1

    def stalls(self, now: float, stalled: bool) -> None:
        """Whether no target of the pool is up."""
        if stalled != self.stalled:
            self._pass(now)
            self.stalled = stalled

    def rate(self, now: float) -> float | None:
        """Requests sent per second of waiting; None before enough was seen."""
        self._pass(now)
        known = self._seconds >= _LEAST_WAIT_S and (self._served >= _LEAST_SERVED or self._seconds >= _TAU_S / 2)
        return self._served / self._seconds if known else None

    def hopeful_rate(self, now: float) -> float | None:
        """The same as if one more had just been sent: with slow engines that is all there is to go by for a while."""
        rate = self.rate(now)
        return None if rate is None else rate + 1.0 / self._seconds

    def _pass(self, now: float) -> None:
        since = now - self._at
        if since <= 0:
            return
        self._at = now
        if not self.waiting and since > _STALE_S:
            self._served = self._seconds = 0.0
        elif self.waiting and not self.stalled:
            fade = exp(-since / _TAU_S)
            self._served *= fade
            self._seconds = self._seconds * fade + _TAU_S * (1.0 - fade)
