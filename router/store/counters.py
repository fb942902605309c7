"""Leases on counters: each router replica is granted a part of a limit, so that all together never use more than there is.

One transaction at a time, for all replicas (`Database.transaction`), so that the sums in it are true.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
from sqlalchemy import Connection, delete, insert, select, update

from router.store.database import Database
from router.store.tables import leases, replicas

ALIVE_S = 3.0
"""A replica not heard of for so long is taken for dead: what it was granted and did not use is free again."""

_KEPT_S = 40 * 86400.0
"""Longer than any window."""


class Wish(msgspec.Struct, frozen=True):
    """What a replica asks of one counter.

    `used` is what it has used so far, `ahead` how much more it would like, `amount` the limit. `keep` is what it may use in
    any case until the answer is there: it was granted before and cannot be taken back from outside. `need` is what one piece of
    work asked for and did not find: granted in whole where so much is free, for a part of it helps nobody. `before` names the
    counter whose use still weighs on this one with `weight` (0..1): the window before, for windows that slide. `held` marks
    counters of what is in use now, such as concurrent requests: a dead replica uses nothing of those. Of `strict` ones counts
    what a replica was granted until it is known what it used of it, dead or not: it may use all of it, unheard.
    """

    counter: str
    amount: int
    used: int
    ahead: int
    keep: int
    expires: float
    need: int = 0
    before: str = ""
    weight: float = 0.0
    held: bool = False
    strict: bool = False


class Grant(msgspec.Struct, frozen=True):
    """What a replica may use in all, and how much of the limit is free for nobody yet."""

    granted: int
    free: int


class Counters:
    """The shared counters.

    Args:
        database: the store.
        replica: the name of this process, new with every start.
    """

    def __init__(self, database: Database, replica: str) -> None:
        self._database = database
        self.replica = replica

    def lease(self, wishes: Sequence[Wish], now: float) -> tuple[Mapping[str, Grant], int]:
        """Report use, and get or renew leases.

        Returns:
            A grant for each counter asked for, and how many replicas are alive.

        Raises:
            StoreError: the store cannot be reached. Nothing was granted.
        """
        with self._database.transaction() as connection:
            alive = self._heartbeat(connection, now)
            return {wish.counter: self._grant(connection, wish, alive) for wish in wishes}, len(alive)

    def leave(self) -> None:
        """This replica ends: what it did not use is free at once.

        Raises:
            StoreError: the store cannot be reached; the others find out by themselves.
        """
        with self._database.transaction() as connection:
            mine = leases.c.replica == self.replica
            connection.execute(update(leases).where(mine).values(granted=leases.c.used))
            connection.execute(delete(replicas).where(replicas.c.id == self.replica))

    def bury(self, replica: str, used: Mapping[str, int], now: float) -> None:
        """Another replica has ended, and is known to have used so much: that is entered, and the rest is free at once.

        Args:
            replica: its name.
            used: what it used, by counter.
            now: UNIX seconds.

        Raises:
            StoreError: the store cannot be reached.
        """
        with self._database.transaction() as connection:
            for counter, amount in used.items():
                where = (leases.c.counter == counter) & (leases.c.replica == replica)
                connection.execute(update(leases).where(where & (leases.c.used < amount)).values(used=amount))
                known = connection.execute(update(leases).where(where).values(granted=leases.c.used)).rowcount
                if amount and not known:
                    row = {"counter": counter, "replica": replica, "granted": amount, "used": amount}
                    connection.execute(insert(leases).values(**row, expires=now + _KEPT_S))
            connection.execute(delete(replicas).where(replicas.c.id == replica))

    def _heartbeat(self, connection: Connection, now: float) -> frozenset[str]:
        changed = connection.execute(update(replicas).where(replicas.c.id == self.replica).values(seen=now))
        if not changed.rowcount:
            connection.execute(insert(replicas).values(id=self.replica, seen=now))
            connection.execute(delete(leases).where(leases.c.expires < now))
            connection.execute(delete(replicas).where(replicas.c.seen < now - 3600))
        # A clock that was set back makes others look younger than they are; never older than one was last seen.
        rows = connection.execute(select(replicas.c.id).where(replicas.c.seen > now - ALIVE_S))
        return frozenset(row.id for row in rows)

    def _grant(self, connection: Connection, wish: Wish, alive: frozenset[str]) -> Grant:
        others, mine = 0, False
        for row in connection.execute(select(leases).where(leases.c.counter == wish.counter)):
            if row.replica == self.replica:
                mine = True
            elif row.replica in alive or wish.strict:
                others += max(row.granted, row.used)
            elif not wish.held:
                others += row.used
        keep = max(wish.keep, wish.used)
        free = wish.amount - others - keep
        if wish.before and wish.weight > 0:
            earlier = connection.execute(select(leases.c.used).where(leases.c.counter == wish.before))
            free -= int(sum(row.used for row in earlier) * wish.weight)
        # A fair part of what is left: the last units go one by one, so that no replica sits on them.
        fair = -(-free // len(alive)) if free > 0 else 0
        more = min(max(0, wish.used + wish.ahead - keep), fair)
        missing = wish.used + wish.need - keep
        granted = keep + (missing if more < missing <= free else more)
        values = {"granted": granted, "used": wish.used, "expires": wish.expires}
        if mine:
            where = (leases.c.counter == wish.counter) & (leases.c.replica == self.replica)
            connection.execute(update(leases).where(where).values(**values))
        else:
            connection.execute(insert(leases).values(counter=wish.counter, replica=self.replica, **values))
        return Grant(granted, max(0, free - (granted - keep)))
