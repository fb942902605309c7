"""When it is worth to hold a request back, and the ticket it waits with. Pure: live router and simulation share it."""

from __future__ import annotations

from collections.abc import Hashable

import msgspec
from msgspec.structs import replace

from router.placement.admission import DEFAULT_CLASS, Ticket
from router.placement.predict import GENERIC, ask_of, expected_misses, forecast
from router.placement.targets import Load, Target, View, Work


class Bounds(msgspec.Struct, frozen=True, gc=False):
    """What predictions are held against, in seconds: `margin_s` is added to a first token, `pace_s` bounds a token of the
    answer as strictly as at present, `tpot_s` is the configured limit on it."""

    margin_s: float
    pace_s: float
    tpot_s: float


def worth_waiting(target: Target, load: Load, work: Work, bounds: Bounds, now: float, waited_s: float = 0.0) -> bool:
    """Whether a request that would be late at its best target should wait here rather than in the target's own queue.

    It should when it could be in time with less before it. One that is late even on an idle target (a prompt that is long for a
    slow engine, predictions with a wide margin) cannot be helped by waiting for that; it is only kept from standing behind more
    work than its own. Where nothing of ours is in flight everything goes: predictions and stuck gauges are found wrong by going.

    Args:
        target: the best target for it.
        load: the books on that target.
        work: what is expected of it there; `limit_s` is what is left of its limit.
        bounds: what predictions are held against.
        now: UNIX time.
        waited_s: the part of its wait that was counted against its limit.
    """
    if load.inflight == 0:
        return False
    idle = Load(profile=load.profile, slowdown=load.slowdown, pace_slowdown=load.pace_slowdown, throttle=load.throttle)
    ask = ask_of(work.prompt_tokens, work.output_tokens, bounds.tpot_s)
    alone = forecast(target, idle, ask, work.cached_tokens, now)
    if alone.ttft_s + max(0.0, bounds.margin_s) <= work.limit_s + waited_s:
        # Its own prefill is over when its own answer begins.
        pace_s = forecast(target, idle, ask, work.prompt_tokens, now).pace_s
        if pace_s <= bounds.pace_s:
            return True
    return work.ttft_s - work.prefill_s > work.prefill_s


_FEW_BESIDE = 3
"""Where no more than these are in flight a request goes at once: waiting would cost it more than it could save them."""
_GIVEN_TO_OTHERS = 0.4
"""Part of its own limit that a request gives to the pace of others; a long prompt needs half of it for itself."""
_WORTH_ITS_OWN = 0.5
"""From so many answers expected to miss their pace for it, a request waits longer, which is likely to cost it its own limit. Less
than one: the first tokens that it makes others wait for are not among them."""


def is_held_for_others(load: Load, prefill_s: float, waited_s: float, limit_s: float) -> bool:
    """Whether a request that would be in time, but slows the answers at its best target past their limit, waits for a better
    moment: as long as that costs it only time, then only if more is at stake for them than for it. More load never lets it go.

    Args:
        load: the books on that target.
        prefill_s: seconds of its own prefill there.
        waited_s: what it has waited, with the margin of predictions.
        limit_s: its limit on the first token.
    """
    if load.inflight <= _FEW_BESIDE:
        return False
    return waited_s < _GIVEN_TO_OTHERS * limit_s or expected_misses(load, prefill_s) >= _WORTH_ITS_OWN


def is_in_time(work: Work | None, margin_s: float) -> bool:
    """Whether a request would be in time at its best target: where it is held all the same, that is for the sake of others."""
    return work is not None and work.ttft_s + max(0.0, margin_s) <= work.limit_s


def work_anywhere(prompt_tokens: int, limit_s: float) -> Work:
    """What to expect of a request that no target can have yet."""
    prefill_s = GENERIC.prefill_s(max(1, prompt_tokens))
    return Work(prefill_s, prefill_s, 2.0, prompt_tokens, limit_s=max(limit_s, 2.0 * prefill_s))


def make_ticket(
    id: str,
    tenant: str,
    work: Work,
    margin_s: float,
    now: float,
    patience_s: float,
    priority: int = DEFAULT_CLASS,
    group: Hashable = "",
    pool: Hashable = "",
    size: int = 0,
) -> Ticket:
    """The ticket of a request that begins to wait.

    Args:
        id: names it among those waiting.
        tenant: whose share it takes.
        work: what is expected of it at its best target.
        margin_s: what predictions have been off by.
        now: UNIX time.
        patience_s: after so long it is refused.
        priority: its class.
        group: requests of one group may go to the same targets.
        pool: requests of one pool want the same models.
        size: bytes it keeps in memory.
    """
    deadline = now + work.limit_s - work.prefill_s - max(0.0, margin_s)
    return Ticket(id, tenant, now, work.prefill_s, deadline, now + patience_s, priority, group, pool, size)


_LATE_ROOM = 0.25
"""Part of what a request may wait at an engine that late ones leave free when they are twice as much as that."""
_LATE_CROWD = 0.8
"""Part of the bearable crowd that there may be where a late request goes."""


def seen_by(ticket: Ticket, view: View) -> View:
    """What a waiting request is decided on. Nobody is helped by the haste of one that is late already: it goes where it slows
    others the less."""
    return replace(view, crowd_share=_LATE_CROWD * view.crowd_share) if ticket.late and view.crowd_share else view


def counted_wait_s(ticket: Ticket, now: float, pile_s: float = 0.0) -> float:
    """The part of a ticket's wait that counts against its limit in the next decision.

    All of it, until it is late wherever it goes: from then on it goes when it would be in time had it just come, so that it
    takes nothing from those that still can be. Where many are late it leaves room for those yet to come: with engines kept
    full to the limit each new one would be late from its first moment, until the last of the late ones was gone.

    Args:
        ticket: of the request.
        now: UNIX time.
        pile_s: prefill seconds of all late requests that wait, for each engine.
    """
    if not ticket.late:
        return now - ticket.arrived
    slack_s = max(0.0, ticket.deadline - ticket.arrived)
    return _LATE_ROOM * min(slack_s, max(0.0, pile_s - slack_s))
