"""A circuit breaker per target: when a target fails or is much slower than its peers, it gets no work for a while.

Pure functions over one frozen `Breaker`; the books (`router.placement.fleet`) own the state and the clock. Four things open it:
failures in a row, the share of failures, a first token that is late against the peers of the same model, and a GPU
that says it is broken. It stays open for
a time that doubles with every opening, up to a cap; then it is half-open and lets exactly one request through as a probe.

Its verdict is a `Hold`, a statement about health and nothing else. It is not a permission and not a refusal: residency is
decided elsewhere and before, and where a hold is all that keeps a request from its last allowed target, `decide` sets it aside.
"""

from __future__ import annotations

import math
from enum import IntEnum, StrEnum

import msgspec
from msgspec.structs import replace

FAILURES_IN_A_ROW = 3
"""As many as a quiet router's retry budget covers, so that nobody sees a failure before the breaker opens."""
FAILURE_SHARE = 0.5
FAILURE_SHARE_OF = 10.0
"""Fewer recent requests than this say nothing about a share."""
HALF_LIFE_S = 10.0
"""Seconds after which a request counts half in the share."""
SLOW_FACTOR = 4.0
"""A first token this many times later than the peers' typical one is an outlier."""
SLOW_FROM_S = 0.25
"""Below this nobody is slow: small numbers differ by large factors."""
SAMPLES = 8
"""First tokens seen before a target's pace counts, its own or as a peer."""
GPU_HOLD_S = 30.0
"""Longer than the time between two readings of a machine's GPUs."""
BASE_OPEN_S = 1.0
MAX_OPEN_S = 30.0
EJECTED_SHARE = 0.5
"""At most this part of the targets of a model may be held at a time."""
_TOKENS_PER_UNIT = 512.0
_SLOW_FROM = math.log(SLOW_FROM_S)
_SMOOTHING = 0.2
_MAX_TRIPS = 16


class State(IntEnum):
    """As the metric `tidegate_breaker_state` has it."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


class Cause(StrEnum):
    """What opened a breaker."""

    FAILURES_IN_A_ROW = "failures in a row"
    FAILURE_SHARE = "failure share"
    SLOW = "slow first tokens"
    GPU = "a GPU is broken"


class Breaker(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What a breaker remembers of one target. Times are UNIX seconds; the default is a target nothing is known of.

    `consecutive` counts failures in a row; `good` and `bad` are counts that halve every `HALF_LIFE_S`, as of `counted_at`.
    `pace` is the running mean of the logarithm of the time to the first token per unit of prompt, over `paces` samples.
    `cause` is None while closed. `trips` counts openings that no longer stretch of good service has made up for.
    """

    consecutive: int = 0
    good: float = 0.0
    bad: float = 0.0
    counted_at: float = 0.0
    pace: float = 0.0
    paces: int = 0
    judged_at: float = 0.0
    cause: Cause | None = None
    trips: int = 0
    opened_at: float = 0.0
    until: float = 0.0
    probing: bool = False


class Hold(msgspec.Struct, frozen=True, gc=False):
    """Why a target is offered no work at the moment, as far as its breaker is concerned; `until` is UNIX time."""

    state: State
    cause: Cause
    until: float

    @property
    def reason(self) -> str:
        """For receipts: always begins with `health:`, which no residency reason does."""
        what = "breaker open" if self.state is State.OPEN else "breaker half-open, its one probe is under way"
        return f"health: {what} ({self.cause.value})"


CLOSED = Breaker()


def state_of(breaker: Breaker, now: float) -> State:
    """Closed, open, or half-open."""
    if breaker.cause is None:
        return State.CLOSED
    return State.OPEN if now < breaker.until else State.HALF_OPEN


def hold(breaker: Breaker, now: float) -> Hold | None:
    """Why the target gets no work now, or None: it is closed, or half-open and its probe has not been sent yet."""
    if breaker.cause is None or (now >= breaker.until and not breaker.probing):
        return None
    return Hold(state_of(breaker, now), breaker.cause, breaker.until)


def begin(breaker: Breaker, now: float) -> tuple[Breaker, bool]:
    """A request is about to be sent. The second value says that it is the probe; whoever sends it must see to its end."""
    if breaker.cause is None or now < breaker.until or breaker.probing:
        return breaker, False
    return replace(breaker, probing=True), True


def release(breaker: Breaker) -> Breaker:
    """The probe ended, well or badly or because its client left: the next request may be one."""
    return replace(breaker, probing=False) if breaker.probing else breaker


def succeeded(breaker: Breaker, now: float, since: float, whole: bool = False) -> Breaker:
    """A request that began at `since` was answered to its end; `whole`: in one piece, so that nobody saw its first token.

    A success of a request that began after the open time proves health, unless slowness was the cause: then the first token
    decides (`paced`), where it is seen. One that began earlier says nothing: every breaker would be closed again by what was
    in flight.
    """
    if breaker.cause is not None:
        proves = since >= breaker.until and (whole or breaker.cause is not Cause.SLOW)
        return closed_on_trial(breaker, now) if proves else breaker
    good, bad = _decayed(breaker, now)
    trips = breaker.trips
    if trips and now >= breaker.until + 2.0 * (breaker.until - breaker.opened_at):
        trips = 0
    # By position: this is on every request's path, and a third of what `replace` costs.
    return Breaker(
        0, good + 1.0, bad, now, breaker.pace, breaker.paces, breaker.judged_at, None, trips, breaker.opened_at, breaker.until
    )


def failed(breaker: Breaker, now: float, since: float) -> Breaker:
    """A request that began at `since` failed through the target's fault.

    While the breaker is open or half-open, requests from before the end of the opening are that same failure, not a new one.
    """
    if breaker.cause is not None and since < breaker.until:
        return breaker
    good, bad = _decayed(breaker, now)
    return replace(breaker, consecutive=breaker.consecutive + 1, good=good, bad=bad + 1.0, counted_at=now)


def due(breaker: Breaker, now: float) -> Cause | None:
    """The cause for which the breaker should open after a failure, or None.

    A failure in half-open always opens it again; a call for a breaker that is open already gives None.
    """
    if breaker.cause is not None:
        probed_badly = now >= breaker.until and breaker.consecutive > 0
        return breaker.cause if probed_badly else None
    if breaker.consecutive >= FAILURES_IN_A_ROW:
        return Cause.FAILURES_IN_A_ROW
    total = breaker.good + breaker.bad
    if total >= FAILURE_SHARE_OF and breaker.bad > FAILURE_SHARE * total:
        return Cause.FAILURE_SHARE
    return None


def opened(breaker: Breaker, cause: Cause, now: float) -> Breaker:
    """Open for `BASE_OPEN_S * 2 ** trips`, at most `MAX_OPEN_S`; what was counted before is forgotten."""
    pause = min(MAX_OPEN_S, BASE_OPEN_S * 2.0**breaker.trips)
    trips = min(breaker.trips + 1, _MAX_TRIPS)
    return Breaker(cause=cause, trips=trips, opened_at=now, until=now + pause)


def broken(breaker: Breaker, now: float) -> Breaker:
    """Held because its machine says that a GPU is broken; each further word of that holds it for `GPU_HOLD_S` more."""
    began = breaker.opened_at if breaker.cause is Cause.GPU else now
    return Breaker(cause=Cause.GPU, trips=breaker.trips, opened_at=began, until=now + GPU_HOLD_S)


def closed_on_trial(breaker: Breaker, now: float) -> Breaker:
    """Closed again; until the first good answer the next failure opens it, and for longer than the last time."""
    return Breaker(
        consecutive=FAILURES_IN_A_ROW - 1,
        counted_at=now,
        trips=breaker.trips,
        opened_at=breaker.opened_at,
        until=breaker.until,
        judged_at=now,
    )


def paced(breaker: Breaker, now: float, seconds: float, prompt_tokens: int) -> Breaker:
    """A first token came after `seconds`. Times are compared per unit of prompt, and means are of logarithms."""
    sample = math.log(max(seconds, 1e-4) / (1.0 + prompt_tokens / _TOKENS_PER_UNIT))
    b, paces = breaker, breaker.paces
    pace = b.pace + _SMOOTHING * (sample - b.pace) if paces else sample
    paces = paces + 1 if paces < SAMPLES else paces
    return Breaker(
        b.consecutive, b.good, b.bad, b.counted_at, pace, paces, b.judged_at, b.cause, b.trips, b.opened_at, b.until, b.probing
    )


def worth_judging(breaker: Breaker, now: float) -> bool:
    """Whether to compare this target's pace with its peers' now: at most once a second, and only where it could be slow."""
    if breaker.cause is not None:
        return breaker.cause is Cause.SLOW and now >= breaker.until and breaker.paces > 0
    return breaker.paces >= SAMPLES and now >= breaker.judged_at + 1.0 and breaker.pace > _SLOW_FROM


def is_slow(breaker: Breaker, peers: list[Breaker]) -> bool:
    """Whether the pace is an outlier against the median of the peers'; False where no peer has a pace."""
    paces = sorted(peer.pace for peer in peers if peer.paces >= SAMPLES)
    if not paces:
        return False
    typical = paces[(len(paces) - 1) // 2]
    return breaker.pace > _SLOW_FROM and breaker.pace - typical > math.log(SLOW_FACTOR)


def may_eject(held_peers: int, pool: int) -> bool:
    """Whether one more target of a pool of `pool` may be held while `held_peers` others are. Never the only one."""
    return held_peers + 1 <= math.floor(EJECTED_SHARE * pool)


def clock_set(breaker: Breaker, by: float) -> Breaker:
    """The same at the times that the clock would have shown, had it always been set as it is now: `by` seconds ahead."""
    b = breaker
    counted_at = b.counted_at + by if b.counted_at else 0.0
    return replace(b, counted_at=counted_at, judged_at=b.judged_at + by, opened_at=b.opened_at + by, until=b.until + by)


def least_bad(breaker: Breaker, now: float) -> tuple[int, float, float]:
    """Sort key among held targets when nothing else is allowed: half-open first, then whose time is up first."""
    return (int(state_of(breaker, now)), breaker.until, breaker.bad)


def _decayed(breaker: Breaker, now: float) -> tuple[float, float]:
    if now <= breaker.counted_at or not breaker.counted_at:
        return breaker.good, breaker.bad
    share = 0.5 ** ((now - breaker.counted_at) / HALF_LIFE_S)
    return breaker.good * share, breaker.bad * share
