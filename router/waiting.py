"""Where requests wait in the live router: the admission queue with its clients, its clock and its refusals.

A request comes here when no target it may use is expected to serve it in time and it may not spill, or when none is up while one
could come up. It leaves when a walk through the queue finds it a place, when its patience ends, when its client leaves, when the
policy forbids it, or when the router drains. Walks follow every change of the books (an attempt's first byte or end, a report of
the cluster) and, because predicted waits shrink by the mere passing of time, a tick while anybody waits. Nothing here runs while
nobody waits.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, Protocol

from msgspec.structs import replace

from router.decide import capacity_code, decide
from router.decision import Decision, Facts, Refusal
from router.identity.priority import CLASSES
from router.ledger.metrics import Durations
from router.outage import may_come_up
from router.placement.admission import MIN_RETRY_S, AdmissionQueue, Ticket
from router.placement.targets import NO_PREFILL
from router.placement.waiting import Bounds, counted_wait_s, is_in_time, make_ticket, seen_by, work_anywhere, worth_waiting
from router.screen import shortlist
from router.wire.errors import ApiError

if TYPE_CHECKING:
    from router.admitted import AdmittedRequest
    from router.config import Config
    from router.placement.targets import View, Work
    from router.state import RouterState
    from router.wire.direct import DirectRequest

TICK_S = 0.05
"""How often waiting requests are tried without any event: predicted waits shrink with time alone."""


class Waiter(Protocol):
    """A request that can wait (`router.serving.Serving`). Only `facts` may raise."""

    @property
    def admitted(self) -> AdmittedRequest:
        """The request."""

    @property
    def client(self) -> DirectRequest:
        """Its way back."""

    def facts(self) -> Facts:
        """What is known of it, under the policy and label of now.

        Raises:
            ApiError: the policy no longer lets it go anywhere.
        """

    def wait(self, decision: Decision) -> None:
        """It waits from now on, by this decision."""

    def resume(self, facts: Facts, view: View, decision: Decision, now: float, waited_s: float) -> None:
        """A place was found, by a decision made `now`, after so many seconds: send it there."""

    def end_wait(self, error: Exception | None, waited_s: float) -> None:
        """It waits no longer, and is not sent: refused with an error, or its client has left (None)."""


class _Leaver:
    """Hears from the connection of a waiting request."""

    __slots__ = ("_gone",)

    def __init__(self, gone: Callable[[], None]) -> None:
        self._gone = gone

    def client_gone(self) -> None:
        """The connection was lost."""
        self._gone()

    def client_paused(self) -> None:
        """Nothing is written while it waits."""

    def client_resumed(self) -> None:
        """Nothing is written while it waits."""


class WaitingRoom:
    """The waiting requests of one router. Times are UNIX seconds.

    Args:
        state: the router; its policy, fleet and configuration must be there already.
    """

    def __init__(self, state: RouterState) -> None:
        self._state = state
        self._queue = AdmissionQueue()
        self._waiters: dict[str, Waiter] = {}
        self._number = 0
        self._timer: asyncio.TimerHandle | None = None
        self._walking = False
        self._again = False
        self._open_until = math.inf
        self.depth = 0
        """How many wait: what the hot path looks at."""
        self.waits: dict[str, Durations] = {}
        """How long requests waited that were sent, by class."""
        self.outcomes: Counter[tuple[str, str]] = Counter()
        """By class and what became of them: `sent`, `refused`, `left`."""
        self.adopt(state.config)

    def adopt(self, config: Config) -> None:
        """Take the bounds and shares of a configuration."""
        admission = config.admission
        self._queue.adopt(admission.max_waiting, admission.shares, admission.max_waiting_mib * 2**20)
        self.enabled = admission.max_waiting > 0

    # -- coming

    def takes(self, waiter: Waiter, facts: Facts, view: View, decision: Decision, now: float) -> bool:
        """Whether a request that was just decided waits: then it is this room's from here on (and may be gone again already).

        Args:
            waiter: the request.
            facts: what was decided on.
            view: what the decision saw.
            decision: the decision.
            now: UNIX time.
        """
        work = self._work_of(facts, view, decision, now)
        if work is None:
            return False
        self._number += 1
        slo = self._state.policy.slo
        patience_s = min(slo.max_wait_s, facts.timeout_s or slo.max_wait_s, max(0.0, self._open_until - now))
        ticket = make_ticket(
            str(self._number),
            facts.key.tenant,
            work,
            view.margin_s,
            now,
            patience_s,
            facts.priority,
            _group_of(facts),
            decision.models,
            len(waiter.admitted.body),
        )
        waiter.wait(decision)
        self._waiters[ticket.id] = waiter
        self._queue.offer(ticket, now)
        self.depth = len(self._queue)
        self._seat(ticket, waiter, now)
        return True

    def _work_of(self, facts: Facts, view: View, decision: Decision, now: float) -> Work | None:
        """What a request that is better kept here is expected to ask; None for one that is not."""
        if not self.enabled or facts.endpoint in NO_PREFILL:
            return None
        choice, policy = decision.chosen, self._state.policy
        if choice is None:
            assert decision.refusal is not None
            waits = decision.refusal.status == 503 and may_come_up(facts, policy, view, now)
            return work_anywhere(facts.prompt_tokens, policy.slo.ttft_s) if waits else None
        if choice.work is not None and not self._is_held(view, decision, now, 0.0):
            barred = self._queue.barred(facts.priority, facts.key.tenant)
            if not barred >> choice.index & 1:
                return None
        return choice.work

    def _seat(self, ticket: Ticket, waiter: Waiter, now: float) -> None:
        """Look for a place at once, and refuse who cannot stay."""
        self.walk(now)
        for displaced in self._queue.overflow(now):
            self._turn_away(displaced, now, "The waiting queue of this router is full.")
        if ticket.id not in self._waiters:
            return
        wait_s = self._queue.expected_wait(ticket, now)
        if wait_s > ticket.give_up - now:
            self._queue.withdraw(ticket.id, now)
            self._turn_away(ticket, now, f"The wait would be about {wait_s:.0f} s, longer than the limit.")
            return
        self._arm()
        waiter.client.listen(_Leaver(lambda: self._gone(ticket)))

    def _is_held(self, view: View, decision: Decision, now: float, waited_s: float) -> bool:
        """Whether a decided request is better kept here."""
        choice = decision.chosen
        if choice is None or choice.work is None or not decision.late:
            return False
        tpot_s = self._state.policy.slo.tpot_s
        bounds = Bounds(view.margin_s, tpot_s * view.pace_share, tpot_s)
        return worth_waiting(choice.target, view.loads[choice.index], choice.work, bounds, now, waited_s)

    # -- going

    def walk(self, now: float) -> None:
        """The books have changed: send whoever has a place now. Called from inside itself, it looks once more."""
        if self._walking:
            self._again = True
            return
        self._walking = True
        try:
            self._again = bool(self.depth)
            while self._again:
                self._again = False
                self._queue.walk(now, lambda ticket, barred: self._attempt(ticket, barred, now))
        finally:
            self._walking = False
        if self.depth and (late := self._queue.newly_late()):
            self._state.fleet.calibration.waited_too_long(late)

    def _attempt(self, ticket: Ticket, barred: int, now: float) -> int | None:
        """Try one: None when it is gone, else the place it waits for."""
        waiter = self._waiters[ticket.id]
        try:
            waited_s = counted_wait_s(ticket, now, self._queue.late_s / max(1, len(self._state.fleet.membership.targets)))
            facts = replace(waiter.facts(), waited_s=waited_s)
            view, decision = self._decide(waiter, ticket, facts, now)
            choice = decision.chosen
            if choice is None:
                return self._refused_for_good(ticket, facts, view, decision, now)
            place = 1 << choice.index
            if place & barred:
                ticket.yields = False
                facts = replace(facts, excluded=facts.excluded | _incarnations(view, barred))
                view, decision = self._decide(waiter, ticket, facts, now)
                if decision.chosen is None or decision.late or decision.chosen.work is None:
                    return place
            if self._is_held(view, decision, now, waited_s):
                ticket.yields = decision.chosen is not None and is_in_time(decision.chosen.work, view.margin_s)
                return place
        except Exception as error:
            self._end(ticket, now, error)
            return None
        self._queue.take(ticket, now)
        self._out(ticket, now, "sent").resume(facts, view, decision, now, now - ticket.arrived)
        return None

    def _decide(self, waiter: Waiter, ticket: Ticket, facts: Facts, now: float) -> tuple[View, Decision]:
        state = self._state
        view = seen_by(ticket, state.view_for(facts, waiter.admitted.chains, now))
        return view, decide(facts, state.policy, view, now)

    def _refused_for_good(self, ticket: Ticket, facts: Facts, view: View, decision: Decision, now: float) -> int | None:
        """No target may have it now: wait on while one could come up."""
        refusal = decision.refusal
        assert refusal is not None
        if refusal.status == 503 and may_come_up(facts, self._state.policy, view, now):
            return 0
        self._end(ticket, now, as_error(refusal))
        return None

    def _end(self, ticket: Ticket, now: float, error: Exception) -> None:
        self._out(ticket, now, "refused").end_wait(error, now - ticket.arrived)

    def recheck(self, now: float) -> None:
        """The policy, the time or the evidence changed: who may go nowhere any more is refused, the others are tried anew."""
        for ticket in list(self._queue):
            waiter = self._waiters.get(ticket.id)
            if waiter is None:
                continue
            try:
                facts = waiter.facts()
                found = shortlist(facts, self._state.policy, self._state.fleet.membership, now)
                if found.refusal is not None:
                    raise as_error(found.refusal)
                self._queue.move(ticket, _group_of(facts))
            except Exception as error:
                self._end(ticket, now, error)
        self.walk(now)

    def clock_set(self, by: float) -> None:
        """The clock was set ahead by so many seconds, back if negative."""
        self._open_until += by
        self._queue.clock_set(by)

    def drain(self, until: float) -> None:
        """The router shuts down: nobody waits beyond `until` (UNIX time), those who come later neither."""
        self._open_until = until
        self._queue.hasten(until)
        if self.depth:
            self._arm()

    def _gone(self, ticket: Ticket) -> None:
        waiter = self._waiters.get(ticket.id)
        if waiter is not None:
            now = time.time()
            self._out(ticket, now, "left").end_wait(None, now - ticket.arrived)

    def _turn_away(self, ticket: Ticket, now: float, why: str) -> None:
        retry_s = self._queue.retry_after(ticket.pool, now)
        if now >= self._open_until:
            retry_s = MIN_RETRY_S  # another router has taken this one's place by then
        try:
            state = self._state
            code = capacity_code(self._waiters[ticket.id].facts(), state.policy, state.fleet.membership)
            raise ApiError(503, code, why, retry_after_s=MIN_RETRY_S if retry_s is None else retry_s)
        except ApiError as error:
            self._end(ticket, now, error)

    def _out(self, ticket: Ticket, now: float, outcome: str) -> Waiter:
        """It waits no longer. Whoever gets the waiter from here ends it: nobody else has it any more."""
        self._queue.withdraw(ticket.id, now)
        waiter = self._waiters.pop(ticket.id)
        waiter.client.listen(None)
        self.depth = len(self._queue)
        name = CLASSES[ticket.priority]
        self.outcomes[name, outcome] += 1
        if outcome == "sent":
            self.waits.setdefault(name, Durations()).observe(max(0.0, now - ticket.arrived))
        return waiter

    # -- time

    def _arm(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(TICK_S, self._tick)

    def _tick(self) -> None:
        self._timer = None
        now = time.time()
        for ticket in self._queue.expire(now):
            self._expired(ticket, now)
        self.walk(now)
        if self.depth:
            self._arm()

    def _expired(self, ticket: Ticket, now: float) -> None:
        waited = _seconds(now - ticket.arrived)
        if now >= self._open_until:
            self._turn_away(ticket, now, f"This router is shutting down; no target was free within {waited}.")
            return
        if now - ticket.arrived < self._state.policy.slo.max_wait_s - TICK_S:
            text = f"The request's deadline passed after {waited} of waiting for a target."
            self._end(ticket, now, ApiError(504, "deadline_exceeded", text))
            return
        self._turn_away(ticket, now, f"No allowed target had room within {waited}.")

    # -- what is told

    def waiting_s(self, models: frozenset[str]) -> float:
        """Prefill seconds of the waiting requests whose best fitting model is one of these."""
        return sum(ticket.cost_s for ticket in self._queue if isinstance(ticket.pool, tuple) and ticket.pool[0] in models)

    def describe(self, now: float) -> dict[str, Any]:
        """Depth, by class, the longest wait and the drain rate: for `tidegate status`."""
        tickets = list(self._queue)
        by_class = Counter(CLASSES[ticket.priority] for ticket in tickets)
        pools = {ticket.pool for ticket in tickets}
        rates = [rate for pool in pools if (rate := self._queue.rate(pool, now)) is not None]
        oldest = min((ticket.arrived for ticket in tickets), default=now)
        return {
            "depth": len(tickets),
            "by_class": {name: by_class[name] for name in CLASSES},
            "longest_s": round(max(0.0, now - oldest), 3),
            "drain_per_s": round(sum(rates), 3) if rates else None,
        }


def _group_of(facts: Facts) -> Hashable:
    """What decides which targets a request may use, load aside."""
    key, complexity = facts.key, facts.complexity
    return (
        facts.label,
        facts.model,
        complexity.tier,
        complexity.model,
        facts.endpoint,
        key.models,
        key.spill,
        facts.excluded,
    )


def as_error(refusal: Refusal) -> ApiError:
    """A refusal that no change of load could lift, as an answer."""
    return ApiError(refusal.status, refusal.code, refusal.message, retry_after_s=refusal.retry_after_s)


def _incarnations(view: View, mask: int) -> frozenset[str]:
    return frozenset(target.incarnation for i, target in enumerate(view.membership.targets) if mask >> i & 1)


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s"
