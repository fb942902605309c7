"""Which targets are fit for work: what failures, late first tokens and broken GPUs do to the books on a target.

Pure functions over the books of all targets, as the breaker (`router.placement.breaker`) is over its own numbers; here is what
needs a look at the others: whether a target is late against its peers, and whether enough of them are left to hold it.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from router.placement import breaker as breakers
from router.placement.booking import Booking
from router.placement.breaker import Breaker, Cause
from router.placement.targets import Kind, Load, Signals, Target

_BASE_DOWN_S = 1.0
_MAX_DOWN_S = 5.0
"""Short, because a refused connection costs next to nothing and whoever comes back should be found soon."""
_ANY_SLOTS = 256
"""Sequence slots of a target that does not say how many it has."""


def after_failure(
    targets: Sequence[Target], loads: Sequence[Load], index: int, now: float, *, since: float | None, reached: bool
) -> Load:
    """The books on a target that failed a request.

    `reached=False`, nothing answered there (no connection): from the second time in a row on no work for a while, doubling.
    Once is chance, and pausing the only target for it would refuse everybody. One crash breaks everything in flight:
    failures while the target is paused are that same failure, not a row of them. `reached=True`, it answered badly: that is
    for its breaker alone, which unlike a pause never takes the last allowed target away.

    Args:
        targets: all targets.
        loads: the books on them, in the same order.
        index: which of them failed.
        now: UNIX time.
        since: when the failed request began; now, where it is not known.
        reached: whether a connection existed.
    """
    load = loads[index]
    if not reached and now >= load.down_until:
        failures = min(load.failures + 1, 10)
        pause = min(_MAX_DOWN_S, _BASE_DOWN_S * 2.0 ** (failures - 2)) if failures > 1 else 0.0
        load = replace(load, failures=failures, down_until=now + pause)
    breaker = breakers.failed(load.breaker, now, now if since is None else since)
    cause = None if breaker is load.breaker else breakers.due(breaker, now)
    if cause is not None:
        breaker = _opened(targets, loads, index, breaker, cause, now)
    return replace(load, breaker=breaker)


def after_first_byte(targets: Sequence[Target], loads: Sequence[Load], index: int, booking: Booking, now: float) -> Breaker:
    """The breaker after a first token: late against the peers of the same model opens it, in time closes one that was slow.

    A target with more requests than slots queues, which says nothing about its health: such samples are not taken.

    Args:
        targets: all targets.
        loads: the books on them, in the same order, before this first token.
        index: which of them it came from.
        booking: its request.
        now: UNIX time.
    """
    load, target = loads[index], targets[index]
    early = load.breaker.cause is not None and booking.started_at < load.breaker.until
    if early or load.inflight + load.foreign > (target.slots or _ANY_SLOTS):
        return load.breaker
    breaker = breakers.paced(load.breaker, now, booking.seconds_until(now), booking.tokens)
    if not breakers.worth_judging(breaker, now):
        return breaker
    breaker = replace(breaker, judged_at=now)
    if breakers.is_slow(breaker, [loads[i].breaker for i in _peers(targets, index)]):
        return _opened(targets, loads, index, breaker, Cause.SLOW, now)
    return breaker if breaker.cause is None else breakers.closed_on_trial(breaker, now)


def after_gpus_read(targets: Sequence[Target], loads: Sequence[Load], index: int, signals: Signals) -> Load:
    """The books on a target after its GPUs were read: no work for a broken one while others can do it, as with any breaker."""
    load = loads[index]
    breaker = load.breaker
    if signals.gpu_faults:
        if breaker.cause is not None or _may_eject(targets, loads, index):
            return replace(load, breaker=breakers.broken(breaker, signals.sampled_at))
    elif breaker.cause is Cause.GPU:
        return replace(load, breaker=breakers.closed_on_trial(breaker, signals.sampled_at))
    return load


def _opened(targets: Sequence[Target], loads: Sequence[Load], index: int, breaker: Breaker, cause: Cause, now: float) -> Breaker:
    if _may_eject(targets, loads, index):
        return breakers.opened(breaker, cause, now)
    return breaker if breaker.cause is None else breakers.closed_on_trial(breaker, now)


def _may_eject(targets: Sequence[Target], loads: Sequence[Load], index: int) -> bool:
    peers = _peers(targets, index)
    held = sum(loads[i].breaker.cause is not None for i in peers)
    return breakers.may_eject(held, len(peers) + 1)


def _peers(targets: Sequence[Target], index: int) -> list[int]:
    """The other targets on the same side of the cluster's border that serve a model of this one."""
    own = targets[index]
    return [
        i
        for i, other in enumerate(targets)
        if i != index
        and (other.kind is Kind.CLOUD) == (own.kind is Kind.CLOUD)
        and not own.models.keys().isdisjoint(other.models)
    ]
