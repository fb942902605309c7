"""Who waits, for how long, and who goes next when no target can serve everybody in time. Pure data: no clock, no tasks.

A bounded queue in classes of priority. Within a class, a request that can no longer keep its limit steps behind all that can:
past saturation the work goes to those it still helps, so goodput stays where it was, and the late ones are served in the gaps
or refused when their patience ends. Among the rest, tenants get equal shares of the prefill work (start-time fair queueing,
Goyal et al. 1996), within a tenant the earliest deadline goes first.

The owner (the live router, or the simulation) offers what `worth_waiting` says should wait, and after every change of the books
lets `walk` try the tickets in that order. The place a ticket waits for is kept from lower classes and from other tenants behind
it, or one tenant's stream of short requests would starve another's long ones.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Callable, Hashable, Iterator, Mapping
from heapq import heappop, heappush

from router.placement.drain import Drain

_MOST_POOLS = 256
"""Pools whose drain is remembered while nobody waits: old policies' models are not kept for ever."""
DEFAULT_CLASS = 1
"""Classes are small integers; 0 goes first."""
MIN_RETRY_S, MAX_RETRY_S = 1.0, 120.0
DOWN_RETRY_S = 5.0
"""When to ask again where no target is up: nobody knows when one will be."""
_MOST_TRIES = 8
"""Tickets of a group tried in vain in one walk; the rest is for the next change."""

LATE_EVERY_S = 0.05
"""Late tickets are tried this often at most, in seconds: they wait for a quiet moment, not for the next place."""

_Key = tuple[int, bool, float, float, int]


def _key_of(pair: tuple[_Key, object]) -> _Key:
    return pair[0]


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
        group: requests of one group may go to the same targets.
        pool: groups of one pool drain together: they want the same models.
        size: bytes it keeps in memory.
    """

    __slots__ = (
        "arrived",
        "cost_s",
        "deadline",
        "give_up",
        "group",
        "id",
        "key",
        "late",
        "pool",
        "priority",
        "size",
        "start",
        "tenant",
        "yields",
    )

    def __init__(
        self,
        id: str,
        tenant: str,
        arrived: float,
        cost_s: float,
        deadline: float,
        give_up: float,
        priority: int = DEFAULT_CLASS,
        group: Hashable = "",
        pool: Hashable = "",
        size: int = 0,
    ) -> None:
        self.id = id
        self.tenant = tenant
        self.arrived = arrived
        self.cost_s = max(1e-3, cost_s)
        self.deadline = deadline
        self.give_up = give_up
        self.priority = priority
        self.group = group
        self.pool = pool
        self.size = size
        self.start = 0.0
        """Virtual time at which its tenant's share reaches it."""
        self.late = False
        self.yields = False
        """True while it waits for a quieter moment at its place: those of its class may use the place meanwhile."""
        self.key: _Key = (priority, False, 0.0, deadline, 0)
        """Its place in the order: class, in time before late, fair share, deadline, and the order of arrival."""


class AdmissionQueue:
    """Tickets of requests that wait.

    Args:
        limit: how many may wait at once.
        weights: shares of tenants; 1 for those not named.
        size_limit: bytes that may wait at once.
    """

    def __init__(self, limit: int = 1000, weights: Mapping[str, float] | None = None, size_limit: float = math.inf) -> None:
        self.adopt(limit, weights or {}, size_limit)
        self._waiting: dict[str, Ticket] = {}
        self._lines: dict[Hashable, list[tuple[_Key, Ticket]]] = {}
        """The tickets of each group, in order."""
        self._due: list[tuple[float, int, Ticket]] = []
        self._endings: list[tuple[float, int, Ticket]] = []
        self._drains: dict[Hashable, Drain] = {}
        self._virtual: dict[int, float] = {}
        """Virtual time of each class: the latest start among those it served."""
        self._finish: dict[tuple[int, str], float] = {}
        self._keeps: dict[tuple[int, bool, str, bool], int] = {}
        """Places kept in the latest walk, by class, lateness and tenant of those they are kept for, and whether those yield."""
        self._number = 0
        self._size = 0
        self._late_at = -math.inf
        self._turned_late = 0
        self._late_s = 0.0

    @property
    def late_s(self) -> float:
        """Prefill seconds of all tickets that are late."""
        return max(0.0, self._late_s)

    def adopt(self, limit: int, weights: Mapping[str, float], size_limit: float) -> None:
        """Take new bounds and shares; what waits already keeps its place until `overflow` is asked for."""
        self._limit, self._weights, self._size_limit = limit, weights, size_limit

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, id: str) -> bool:
        return id in self._waiting

    def __iter__(self) -> Iterator[Ticket]:
        return iter(self._waiting.values())

    def offer(self, ticket: Ticket, now: float) -> None:
        """Let a request wait. The bounds are kept by `overflow`, once it has been tried to place it."""
        if not self._waiting:
            # Nobody owes anybody anything after a pause.
            self._finish.clear()
            self._virtual.clear()
        self._drain(ticket.pool).waits(now)
        share = (ticket.priority, ticket.tenant)
        ticket.start = max(self._virtual.get(ticket.priority, 0.0), self._finish.get(share, 0.0))
        self._finish[share] = ticket.start + self._price(ticket)
        self._number += 1
        ticket.late = now > ticket.deadline
        ticket.key = (ticket.priority, ticket.late, ticket.start, ticket.deadline, self._number)
        self._waiting[ticket.id] = ticket
        self._size += ticket.size
        self._late_s += ticket.cost_s * ticket.late
        insort(self._lines.setdefault(ticket.group, []), (ticket.key, ticket))
        heappush(self._endings, (ticket.give_up, self._number, ticket))
        if not ticket.late:
            heappush(self._due, (ticket.deadline, self._number, ticket))

    def overflow(self, now: float) -> list[Ticket]:
        """Take out those for whom there is no room: the last in order, whoever offered last."""
        self._turn_late(now)
        out: list[Ticket] = []
        while self._waiting and (len(self._waiting) > self._limit or self._size > self._size_limit):
            last = max(line[-1] for line in self._lines.values())[1]
            self._drop(last, now)
            out.append(last)
        return out

    def newly_late(self) -> int:
        """How many became late while they waited since this was last asked."""
        count, self._turned_late = self._turned_late, 0
        return count

    def candidates(self, now: float) -> Iterator[Ticket]:
        """All tickets in order."""
        self._turn_late(now)
        return (ticket for _, ticket in sorted(pair for line in self._lines.values() for pair in line))

    def walk(self, now: float, attempt: Callable[[Ticket, int], int | None]) -> None:
        """Try to place tickets in order, a bounded number of each group; late ones only every `LATE_EVERY_S`.

        Args:
            now: UNIX time.
            attempt: gets a ticket and the places it is barred from. It takes the ticket out of the queue and returns None, or
                returns the place the ticket waits for, as a bit mask (0: none is up).
        """
        self._turn_late(now)
        late_too = now >= self._late_at
        if late_too:
            self._late_at = now + LATE_EVERY_S
        keeps = self._keeps = {} if late_too else {keeper: place for keeper, place in self._keeps.items() if keeper[1]}
        failed: dict[Hashable, int] = {}
        fronts = sorted(((line[0][0], group) for group, line in self._lines.items()), key=_key_of)
        while fronts:
            key, group = fronts.pop(0)
            # Looked up by its key, not by its number: what was tried before may have taken this one out as well.
            found = self._next(group, key)
            if found is None:
                continue
            ticket = found[1]
            if ticket.late and not late_too:
                behind = self._next(group, (ticket.priority + 1, False, -math.inf, -math.inf, 0))
                if behind is not None:
                    insort(fronts, (behind[0], group), key=_key_of)
                continue
            place = attempt(ticket, self.barred(ticket.priority, ticket.tenant, late=ticket.late))
            self._drain(ticket.pool).stalls(now, place == 0)
            if place is not None:
                failed[group] = failed.get(group, 0) + 1
                keeper = (ticket.priority, ticket.late, ticket.tenant, ticket.yields)
                keeps[keeper] = keeps.get(keeper, 0) | place
                if failed[group] >= _MOST_TRIES:
                    continue
            behind = self._next(group, (*found[0][:4], found[0][4] + 1))
            if behind is not None:
                insort(fronts, (behind[0], group), key=_key_of)

    def barred(self, priority: int, tenant: str, *, late: bool = False) -> int:
        """The places, as a bit mask, that were kept in the latest walk for those who go before such a request: all of a higher
        class, and other tenants' whose turn it is, unless they wait there for the sake of others. Within one tenant the short may
        overtake the long: more are in time then."""
        mask = 0
        for (other, other_late, owner, yields), places in self._keeps.items():
            if other < priority or (other == priority and owner != tenant and other_late <= late and not yields):
                mask |= places
        return mask

    def _next(self, group: Hashable, key: _Key) -> tuple[_Key, Ticket] | None:
        """The first ticket of a group from a place in the order on."""
        line = self._lines.get(group, [])
        at = bisect_left(line, key, key=_key_of)
        return line[at] if at < len(line) else None

    def take(self, ticket: Ticket, now: float) -> None:
        """It found a place."""
        if self._waiting.get(ticket.id) is ticket:
            self._remove(ticket)
            self._virtual[ticket.priority] = max(self._virtual.get(ticket.priority, 0.0), ticket.start)
            self._drain(ticket.pool).served(now)
            self._settle(ticket, now)

    def withdraw(self, id: str, now: float) -> None:
        """It will not be served: its client left, or it was refused."""
        ticket = self._waiting.get(id)
        if ticket is not None:
            self._drop(ticket, now)

    def expire(self, now: float) -> list[Ticket]:
        """Take out those whose patience has ended."""
        over = []
        while self._endings and self._endings[0][0] <= now:
            ticket = heappop(self._endings)[2]
            if self._waiting.get(ticket.id) is ticket:
                self._drop(ticket, now)
                over.append(ticket)
        return over

    def clock_set(self, by: float) -> None:
        """The clock was set ahead by so many seconds, back if negative: all have waited as long as before."""
        for ticket in self._waiting.values():
            ticket.arrived += by
            ticket.deadline += by
            ticket.give_up += by
        self._endings = sorted((ticket.give_up, ticket.key[4], ticket) for ticket in self._waiting.values())

    def hasten(self, give_up: float) -> None:
        """Nobody who waits now is to wait longer than until then."""
        for ticket in self._waiting.values():
            ticket.give_up = min(ticket.give_up, give_up)
        self._endings = sorted((ticket.give_up, ticket.key[4], ticket) for ticket in self._waiting.values())

    def move(self, ticket: Ticket, group: Hashable) -> None:
        """Its request may go to other targets from now on."""
        if self._waiting.get(ticket.id) is ticket and group != ticket.group:
            self._unline(ticket)
            ticket.group = group
            insort(self._lines.setdefault(group, []), (ticket.key, ticket))

    def rate(self, pool: Hashable, now: float) -> float | None:
        """Requests of a pool sent per second while some of it waited, of the last seconds; None while that is not known."""
        return self._drain(pool).rate(now)

    def retry_after(self, pool: Hashable, now: float) -> float | None:
        """Seconds after which somebody refused now would find the pool drained, at the measured rate; None without one."""
        drain = self._drain(pool)
        rate = drain.rate(now)
        if rate is None or drain.stalled:
            return DOWN_RETRY_S if drain.stalled else None
        return MAX_RETRY_S if rate <= 0 else min(MAX_RETRY_S, max(MIN_RETRY_S, (drain.waiting + 1) / rate))

    def expected_wait(self, ticket: Ticket, now: float) -> float:
        """Seconds until those of its pool that go before it are gone, by the measured rate at its best; 0 without one."""
        rate = self._drain(ticket.pool).hopeful_rate(now)
        if rate is None:
            return 0.0
        lines = [line for line in self._lines.values() if line[0][1].pool == ticket.pool]
        return sum(bisect_left(line, ticket.key, key=_key_of) for line in lines) / rate

    def _drain(self, pool: Hashable) -> Drain:
        found = self._drains.get(pool)
        if found is None:
            found = self._drains[pool] = Drain()
        return found

    def _price(self, ticket: Ticket) -> float:
        return ticket.cost_s / self._weights.get(ticket.tenant, 1.0)

    def _drop(self, ticket: Ticket, now: float) -> None:
        """Out, unserved: its tenant does not pay for it."""
        self._remove(ticket)
        share = (ticket.priority, ticket.tenant)
        if share in self._finish:
            self._finish[share] -= self._price(ticket)
        self._settle(ticket, now)

    def _settle(self, ticket: Ticket, now: float) -> None:
        self._drain(ticket.pool).leaves(now)
        if not self._waiting:
            self._due.clear()
            self._endings.clear()
            self._keeps = {}
            if len(self._drains) > _MOST_POOLS:
                self._drains.clear()

    def _remove(self, ticket: Ticket) -> None:
        del self._waiting[ticket.id]
        self._size -= ticket.size
        self._late_s = self._late_s - ticket.cost_s * ticket.late if self._waiting else 0.0
        self._unline(ticket)

    def _unline(self, ticket: Ticket) -> None:
        line = self._lines[ticket.group]
        del line[bisect_left(line, ticket.key, key=_key_of)]
        if not line:
            del self._lines[ticket.group]

    def _turn_late(self, now: float) -> None:
        """Those whose deadline has passed step behind those of their class that can still keep theirs."""
        while self._due and self._due[0][0] < now:
            ticket = heappop(self._due)[2]
            if self._waiting.get(ticket.id) is ticket and not ticket.late:
                self._unline(ticket)
                ticket.late = True
                self._turned_late += 1
                self._late_s += ticket.cost_s
                ticket.key = (ticket.priority, True, *ticket.key[2:])
                insort(self._lines.setdefault(ticket.group, []), (ticket.key, ticket))
