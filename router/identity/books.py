"""Where counters get their room from: this router alone, leases that several share (`router.identity.leases`), or nowhere."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Protocol

import msgspec

from router.identity.limit import Limit, Period

_MINUTE_S, _DAY_S = 60, 86400


class Window(msgspec.Struct, frozen=True, gc=False):
    """A span of time with a number; `weight` is how much of the window before still counts (only minutes slide)."""

    index: int
    end: float
    weight: float = 0.0


class Source(Protocol):
    """Where counters get their room from. Times are UNIX seconds."""

    @property
    def counted(self) -> str:
        """Over whom, in words for `tidegate status`."""

    def room(self, limit: Limit, window: Window, now: float, wanted: int = 0) -> int:
        """How much may still be taken; `wanted` is what is asked for, so that a source which holds less can get more."""

    def take(self, limit: Limit, index: int, amount: int) -> None:
        """Take so much; a negative amount gives back."""


class Reservation(msgspec.Struct, frozen=True, gc=False):
    """What one request took: `taken` holds the limits and their windows; `headers` are response header lines, ready to send."""

    tokens: int = 0
    micro_usd: int = 0
    taken: tuple[tuple[Limit, int], ...] = ()
    headers: bytes = b""


NOTHING = Reservation()


class OwnBooks:
    """The counters of one router alone."""

    counted = "by this router for itself"

    def __init__(self) -> None:
        self._used: dict[tuple[str, int], int] = {}

    def room(self, limit: Limit, window: Window, now: float, wanted: int = 0) -> int:
        """How much may still be taken."""
        counter = limit.counter
        used = self._used.get((counter, window.index), 0)
        if window.weight:
            used += int(self._used.get((counter, window.index - 1), 0) * window.weight)
        return limit.amount - used

    def take(self, limit: Limit, index: int, amount: int) -> None:
        """Take so much."""
        entry = (limit.counter, index)
        if entry not in self._used and len(self._used) > 100_000:
            self._forget_old()
        self._used[entry] = max(0, self._used.get(entry, 0) + amount)

    def _forget_old(self) -> None:
        newest: dict[str, int] = {}
        for counter, index in self._used:
            newest[counter] = max(index, newest.get(counter, 0))
        self._used = {entry: used for entry, used in self._used.items() if entry[1] >= newest[entry[0]] - 1}


class NoBooks:
    """Stands where counters cannot be had: there is no room in any."""

    counted = "by nobody, for the store could not be opened when this router started: nothing is spent"

    def room(self, limit: Limit, window: Window, now: float, wanted: int = 0) -> int:
        """How much may still be taken: nothing."""
        return 0

    def take(self, limit: Limit, index: int, amount: int) -> None:
        """Nobody counts."""


def window_of(period: Period, now: float) -> Window:
    """The window a moment lies in."""
    if period is Period.MINUTE:
        index = int(now // _MINUTE_S)
        end = (index + 1.0) * _MINUTE_S
        return Window(index, end, (end - now) / _MINUTE_S)
    if period is Period.DAY:
        index = int(now // _DAY_S)
        return Window(index, (index + 1.0) * _DAY_S)
    if period is Period.NOW:
        return Window(0, math.inf)
    moment = datetime.fromtimestamp(now, UTC)
    following = moment.year + moment.month // 12, moment.month % 12 + 1
    return Window(moment.year * 12 + moment.month, datetime(*following, 1, tzinfo=UTC).timestamp())
