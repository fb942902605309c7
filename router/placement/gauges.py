"""How what an engine says of itself corrects the router's own books."""

from __future__ import annotations

import math

from msgspec.structs import replace

from router.placement.targets import Load, Signals

_UNTRIED_S = 30.0
"""For so long a gauge that shows waiting requests keeps all of ours away before one goes to see: a queue that nobody serves is a
gauge that is stuck."""
_OVERTAKEN_S = 10.0
"""A report that is so much older than the last one was not overtaken by it: the engine's clock was set back."""


def with_signals(load: Load, signals: Signals | None, own_share: int) -> Load:
    """Gauges correct the books: what the engine has beyond our own share is foreign work.

    `own_share` is the most we had in flight during the last two reports, because a gauge lags: a request of ours that has
    just ended may still be in it. A gauge that says less than we have is late, not right: our own count leads. Who no longer says
    anything is reckoned with as one who never did: what foreign work it had is anybody's guess.
    """
    if signals is None:
        return load if load.signals is None else replace(load, signals=None, foreign=0, foreign_waiting=0, silent_s=0.0)
    newer_by = math.inf if load.signals is None else signals.sampled_at - load.signals.sampled_at
    if -_OVERTAKEN_S < newer_by <= 0.0:
        return load
    foreign = max(0, signals.running + signals.waiting - max(own_share, load.inflight))
    waiting = min(foreign, max(0, signals.waiting - load.unstarted))
    weight = load.foreign_weight
    if waiting and load.inflight == 0 and 0.0 < newer_by < math.inf:
        weight *= math.exp(-newer_by / _UNTRIED_S)
    return replace(
        load,
        signals=signals,
        foreign=foreign,
        foreign_waiting=waiting,
        foreign_weight=weight,
        throttle=max(1.0, signals.gpu_throttle),
        silent_s=signals.silent_s,
    )


def explained(load: Load) -> Load:
    """A peer's notice names what the last gauges showed as nobody's: it is not counted twice until the next ones."""
    if not load.foreign:
        return load
    return replace(load, foreign=load.foreign - 1, foreign_waiting=max(0, load.foreign_waiting - 1))
