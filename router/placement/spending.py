"""What may still be spent outside the cluster today: by all keys together, and by each that has a budget of its own.

Set aside when a request is sent, settled by what it did cost. Where the budgets get their room from is a `Source`, as for every
other limit: leases that all routers share, or this router alone.
"""

from __future__ import annotations

from math import inf

from router.identity.books import NOTHING, OwnBooks, Reservation, Source, window_of
from router.identity.limit import MICRO_USD, Limit, Period, in_micro_usd, spill_limit


class Spending:
    """The budgets of a UTC day; money in US dollars, times in UNIX seconds.

    Args:
        daily_usd: what all keys together may spend a day; infinite for no bound.
    """

    def __init__(self, daily_usd: float) -> None:
        self.source: Source = OwnBooks()
        """Where the budgets get their room from."""
        self.adopt(daily_usd)

    def adopt(self, daily_usd: float) -> None:
        """Take another bound for all keys together; what was spent stays spent."""
        self._whole = spill_limit(daily_usd)

    def left(self, now: float, own: Limit | None = None, wanted_usd: float = 0.0) -> float:
        """What a request may cost here and now; infinite without a budget.

        Args:
            now: the time.
            own: the budget of its key.
            wanted_usd: what it may come to cost; a source that holds less tries to get as much for who asks next.
        """
        if self._whole is None and own is None:
            return inf
        limits = self._limits(own)
        window, wanted = window_of(Period.DAY, now), in_micro_usd(wanted_usd)
        return min(self.source.room(limit, window, now, wanted) for limit in limits) / MICRO_USD

    def describe(self, now: float) -> dict[str, object] | None:
        """The budget of all keys together for `tidegate status`; None without one. `left_usd` is what is left to this router."""
        if self._whole is None:
            return None
        left = round(max(0.0, self.left(now)), 6)
        return {"daily_usd": self._whole.amount / MICRO_USD, "left_usd": left, "counted": self.source.counted}

    def set_aside(self, now: float, usd: float, own: Limit | None = None) -> Reservation:
        """Something is about to be sent outside that is expected to cost so much, and was decided by what is left now."""
        limits = self._limits(own)
        if not usd or not limits:
            return NOTHING
        day, micro_usd = window_of(Period.DAY, now).index, in_micro_usd(usd)
        for limit in limits:
            self.source.take(limit, day, micro_usd)
        return Reservation(0, micro_usd, tuple((limit, day) for limit in limits))

    def settle(self, reservation: Reservation, usd: float) -> None:
        """Replace what was set aside by what it cost."""
        for limit, day in reservation.taken:
            self.source.take(limit, day, in_micro_usd(usd) - reservation.micro_usd)

    def _limits(self, own: Limit | None) -> tuple[Limit, ...]:
        return tuple(limit for limit in (self._whole, own) if limit is not None)
