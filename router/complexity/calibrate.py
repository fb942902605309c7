"""From a wish ("30 % to large", "at most 2 points of quality lost") to a threshold, kept true while the traffic changes.

A fixed threshold fails under drift: one that sends 50 % of one kind of traffic to the large model sends 3 % of another. So the
threshold is a quantile of the latest gains (numbers, never text), and what was sent too much or too little is made good by the
next requests. `step` is pure: the caller keeps the state, one per tenant and route.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, insort
from collections.abc import Sequence

import msgspec

WINDOW = 256
"""Gains remembered; a change of traffic has left the window after so many requests."""
_REPAY = 48.0
"""Requests over which a debt of one request is made good."""
_DEBT_LIMIT = 24.0


class Wish(msgspec.Struct, frozen=True):
    """What the operator asks for; exactly one is set.

    `shares[i]`: part of the requests that goes beyond tier `i` (0..1, falling). `max_loss`: expected quality given up, in points
    of 0..1, against sending everything to the largest tier. `price`: the gain from which the next tier is worth it.
    """

    shares: tuple[float, ...] = ()
    max_loss: float | None = None
    price: float | None = None


class Track(msgspec.Struct, frozen=True, gc=False):
    """The latest gains of one stream of requests, oldest first and by size, and the requests owed per boundary.

    Nobody writes in the arrays; they are arrays because one is copied for every request, without a look at its numbers.
    """

    window: array[float]
    ordered: array[float]
    debts: tuple[float, ...]
    seen: int = 0


class Step(msgspec.Struct, frozen=True, gc=False):
    """The place of the tier, the thresholds it was chosen by, the shares aimed at, and the state for the next request."""

    tier: int
    thresholds: tuple[float, ...]
    shares: tuple[float, ...]
    track: Track


def first_track(cuts: tuple[float, ...], boundaries: int) -> Track:
    """The state before any request: as if the traffic were the training pool, whose percentiles are `cuts`."""
    start = cuts[::4][:WINDOW]
    return Track(array("d", start), array("d", sorted(start)), (0.0,) * boundaries)


def step(track: Track, wish: Wish, gain: float, boundaries: int) -> Step:
    """Choose a tier for one request.

    Args:
        track: the state so far.
        wish: what the operator asks for.
        gain: the expected gain of this request.
        boundaries: number of tiers less one.
    """
    if wish.price is not None:
        tier = boundaries if gain > wish.price else 0
        return Step(tier, (wish.price,) * boundaries, (), remember(track, gain, track.debts))
    ordered = track.ordered
    shares = wish.shares or (share_for_loss(ordered, wish.max_loss or 0.0),) * boundaries
    owed = track.debts if len(track.debts) == boundaries else (*track.debts, *((0.0,) * boundaries))[:boundaries]
    tier = 0
    thresholds = []
    for place, debt in enumerate(owed):
        share = _share(shares, place)
        threshold = upper_quantile(ordered, min(1.0, max(0.0, share + debt / _REPAY)))
        thresholds.append(threshold)
        # Of requests that are all alike, the debt decides: else all of them, or none, would go up.
        beyond = gain > threshold or (gain == threshold and share > 0 and debt + share >= 0.5)
        if beyond and share > 0 and tier == place:
            tier = place + 1
    debts = [
        max(-_DEBT_LIMIT, min(_DEBT_LIMIT, debt + _share(shares, place) - (tier > place))) for place, debt in enumerate(owed)
    ]
    return Step(tier, tuple(thresholds), tuple(shares), remember(track, gain, tuple(debts)))


def remember(track: Track, gain: float, debts: tuple[float, ...]) -> Track:
    """The state with one more gain, and other debts. The first requests push out what stands for the training pool."""
    window, ordered = track.window, track.ordered[:]
    # The stand-ins leave two at a time, so that the user's own traffic soon speaks for itself.
    drop = 2 if track.seen < 26 and len(window) > 2 else 1 if len(window) >= WINDOW else 0
    for old in window[:drop]:
        del ordered[bisect_left(ordered, old)]
    insort(ordered, gain)
    later = window[drop:]
    later.append(gain)
    return Track(later, ordered, debts, track.seen + 1)


def upper_quantile(ordered: Sequence[float], share: float) -> float:
    """The value that `share` of the sorted values lie above; linear in between."""
    if not ordered:
        return 0.0
    place = (1.0 - share) * len(ordered) - 0.5
    if place <= 0:
        return ordered[0] - (1e-9 if share >= 1 else 0.0)
    if place >= len(ordered) - 1:
        return ordered[-1]
    low = int(place)
    return ordered[low] + (place - low) * (ordered[low + 1] - ordered[low])


def share_for_loss(ordered: Sequence[float], max_loss: float) -> float:
    """The smallest share to escalate so that the gains given up by the rest stay within `max_loss` per request on average.

    The gains are calibrated, so their sum is the quality that is expected to be lost.
    """
    if not ordered:
        return 1.0
    allowed = max_loss * len(ordered)
    given_up = 0.0
    for kept, gain in enumerate(ordered):
        given_up += max(0.0, gain)
        if given_up > allowed:
            return 1.0 - kept / len(ordered)
    return 0.0


def _share(shares: tuple[float, ...], place: int) -> float:
    return shares[min(place, len(shares) - 1)]
