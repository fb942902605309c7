"""One request in the books of the target it was sent to."""

from __future__ import annotations

from router.identity.books import NOTHING, Reservation
from router.placement.books import Entry, TargetBook


class Booking:
    """One request's entry in the books of one target; it ends exactly once."""

    __slots__ = (
        "book",
        "delayed",
        "ended",
        "entry",
        "incarnation",
        "model",
        "notice",
        "probe",
        "set_aside",
        "started",
        "started_at",
        "tokens",
        "whole",
    )

    def __init__(self, incarnation: str, tokens: int, now: float, whole: bool = False) -> None:
        self.incarnation = incarnation
        self.tokens = tokens
        self.started_at = now
        self.whole = whole
        """The answer comes in one piece: its first byte is its last token's, and says nothing about the first."""
        self.started = False
        self.delayed = False
        """Its client took the answer more slowly than it came: when that ended says nothing of the target."""
        self.ended = False
        self.entry: Entry | None = None
        self.book: TargetBook | None = None
        """Those of its target that `entry` is in; a target that goes and comes back gets new ones."""
        self.model = ""
        self.notice = 0
        """The number that peers know it by; 0 where they were told nothing."""
        self.probe = False
        """True for the one request that a half-open breaker let through."""
        self.set_aside: Reservation = NOTHING
        """What it took of the budgets for what leaves the cluster."""

    def seconds_until(self, now: float) -> float:
        """How long it has been under way; never nothing, so that a rate can be made of it."""
        return max(1e-4, now - self.started_at)

    def slot_s(self, now: float) -> float:
        """Seconds for which a request that ends had a slot of its target: what it waited for one is not among them."""
        entry, seconds = self.entry, now - self.started_at
        if entry is None or not entry.first_at:
            return seconds
        return min(seconds, now - entry.first_at + entry.work.prefill_s)
