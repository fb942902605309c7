"""Who waits, for how long, and who goes next when no target can serve everybody in time. Pure data: no clock, no tasks.

A bounded queue in classes of priority. Within a class tenants get equal shares of the prefill work (start-time fair
queueing), within a tenant the earliest deadline goes first. A request that can no longer keep its limit steps behind all
that can: past saturation the work goes to those it still helps, so goodput stays where it was, and the late ones are
served in the gaps or refused when their patience ends.

The owner (the handler, or the simulation) offers what `decide` calls late, and after every change of the books walks
`candidates` and decides again.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import exp

DEFAULT_CLASS = 1
"""Classes are small integers; 0 goes first."""
_RATE_TAU_S = 10.0
_MIN_RETRY_S, _MAX_RETRY_S = 1.0, 120.0


class Ticket:
    """One waiting request.

    Args:
        id: names it among those waiting.
        tenant: shares are per tenant.
        arrived: UNIX time at which it began to wait.
        cost_s: prefill seconds it is expected to take.
        deadline: UNIX time after which it is late wherever it goes: its limit less its own prefill.
        give_up: UNIX time at which it is refused.
        priority: its class.
    """

    __slots__ = ("arrived", "cost_s", "deadline", "give_up", "id", "priority", "start", "tenant")

    def __init__(
        self, id: str, tenant: str, arrived: float, cost_s: float, deadline: float, give_up: float, priority: int = DEFAULT_CLASS
    ) -> None:
        self.id = id
        self.tenant = tenant
        self.arrived = arrived
        self.cost_s = max(1e-3, cost_s)
        self.deadline = deadline
        self.give_up = give_up
        self.priority = priority
        self.start = 0.0
        """Virtual time at which its tenant's share reaches it."""


class AdmissionQueue:
    """Tickets of requests that wait.

    Args:
        limit: how many may wait at once.
        weights: shares of tenants; 1 for those not named.
    """

    def __init__(self, limit: int = 1000, weights: dict[str, float] | None = None) -> None:
        self._limit = limit
        self._weights = weights or {}
        self._waiting: dict[str, Ticket] = {}
        self._virtual = 0.0
        self._finish: dict[str, float] = {}
        self._rate = 0.0
        self._rate_at = 0.0

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, id: str) -> bool:
        return id in self._waiting

    def offer(self, ticket: Ticket, now: float) -> Ticket | None:
        """Let a request wait.

        Returns:
            None, or the ticket that has to go instead because the queue is full: the youngest of the lowest class, which is
            the offered one itself unless that has a higher class.
        """
        displaced = None
        if len(self._waiting) >= self._limit:
            displaced = max(self._waiting.values(), key=lambda other: (other.priority, other.arrived), default=ticket)
            if displaced.priority <= ticket.priority:
                return ticket
            del self._waiting[displaced.id]
        if not self._waiting:
            # Nobody owes anybody anything after a pause.
            self._finish.clear()
        ticket.start = max(self._virtual, self._finish.get(ticket.tenant, 0.0))
        self._finish[ticket.tenant] = ticket.start + ticket.cost_s / self._weights.get(ticket.tenant, 1.0)
        self._waiting[ticket.id] = ticket
        return displaced

    def candidates(self, now: float) -> Iterator[Ticket]:
        """Tickets in the order in which places should be looked for: in time before late, class, fair share, deadline."""
        return iter(sorted(self._waiting.values(), key=lambda ticket: _order(ticket, now)))

    def take(self, ticket: Ticket, now: float) -> None:
        """It found a place."""
        if self._waiting.pop(ticket.id, None) is not None:
            self._virtual = max(self._virtual, ticket.start)
            self.served(now)

    def withdraw(self, id: str) -> None:
        """Its client left."""
        self._waiting.pop(id, None)

    def expire(self, now: float) -> list[Ticket]:
        """Take out those whose patience has ended."""
        over = [ticket for ticket in self._waiting.values() if ticket.give_up <= now]
        for ticket in over:
            del self._waiting[ticket.id]
        return over

    def next_expiry(self) -> float | None:
        """When `expire` should be called again."""
        return min((ticket.give_up for ticket in self._waiting.values()), default=None)

    def served(self, now: float) -> None:
        """A request was sent to a target, from the queue or past it: the drain rate is measured by these."""
        self._decay(now)
        self._rate += 1.0 / _RATE_TAU_S

    def retry_after(self, now: float) -> float:
        """Seconds after which somebody refused now would find the queue drained, at the rate of the last seconds."""
        self._decay(now)
        if self._rate < 1e-3:
            return _MIN_RETRY_S if not self._waiting else _MAX_RETRY_S
        return min(_MAX_RETRY_S, max(_MIN_RETRY_S, (len(self._waiting) + 1) / self._rate))

    def _decay(self, now: float) -> None:
        self._rate *= exp(-max(0.0, now - self._rate_at) / _RATE_TAU_S)
        self._rate_at = max(now, self._rate_at)


def _order(ticket: Ticket, now: float) -> tuple[bool, int, float, float]:
    return (now > ticket.deadline, ticket.priority, ticket.start, ticket.deadline)
