"""Requests whose answers come in one piece: nobody sees their prefill end. It is taken to end when it was predicted to, or with
that of one that was sent later: an engine computes prompts in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from heapq import heapify, heappop, heappush

from router.placement.booking import Booking

_LONGEST_S = 60.0
"""After so long a prefill is taken to be done, whatever was predicted."""


class Unseen:
    """Bookings by when their prefill should be done. Those that have ended meanwhile are given out like the others."""

    __slots__ = ("_count", "_heap", "_lines")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Booking]] = []
        self._lines: dict[str, deque[Booking]] = {}
        """By incarnation, in the order in which they were sent."""
        self._count = 0

    def __bool__(self) -> bool:
        return bool(self._heap)

    def add(self, booking: Booking, seconds: float) -> None:
        """It was sent when it was booked, and its prefill should be done after so many seconds."""
        self._count += 1
        heappush(self._heap, (booking.started_at + min(seconds, _LONGEST_S), self._count, booking))
        line = self._lines.setdefault(booking.incarnation, deque())
        while line and (line[0].started or line[0].ended):
            line.popleft()
        line.append(booking)

    def begun(self, now: float) -> Iterator[tuple[Booking, float]]:
        """Those whose prefill should be done by now, each once, and since when."""
        while self._heap and self._heap[0][0] <= now:
            due, _, booking = heappop(self._heap)
            yield booking, due

    def before(self, booking: Booking) -> Iterator[Booking]:
        """Those that were sent to the same target no later than this one, itself among them, each once."""
        line = self._lines.get(booking.incarnation)
        while line and line[0].started_at <= booking.started_at:
            yield line.popleft()

    def forget(self, incarnations: Iterable[str]) -> None:
        """These targets are gone."""
        for incarnation in incarnations:
            self._lines.pop(incarnation, None)

    def clock_set(self, by: float) -> None:
        """The clock was set ahead by so many seconds, back if negative."""
        self._heap = [(due + by, number, booking) for due, number, booking in self._heap]
        heapify(self._heap)
