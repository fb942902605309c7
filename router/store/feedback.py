"""What feedback has taught all routers, as sums in the store."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from sqlalchemy import Connection, delete, insert, select, update

from router.store.database import Database
from router.store.tables import changes, feedback, rated

_NAME = "feedback"
_KEPT_S = 7 * 86400.0
"""How long it is known that a rating was counted: longer than any receipt is kept."""


class Lesson(msgspec.Struct, frozen=True, gc=False):
    """One rating: `slot` names it, so that it counts once; `total` is its score times its weight."""

    slot: str
    tenant: str
    context: str
    tier: int
    weight: float
    total: float


class FeedbackTable:
    """The sums.

    Args:
        database: the store.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def exchange(
        self, setting: str, lessons: Sequence[Lesson], known: int, now: float
    ) -> tuple[int, tuple[tuple[str, str, int, float, float], ...] | None]:
        """Add ratings, and hear what all routers together know.

        Args:
            setting: names the tiers and their models.
            lessons: what is new here.
            known: the version that this router has heard.
            now: UNIX time in seconds.

        Returns:
            The version of now, and tenant, context, tier, weight and total of every sum, or None where nothing is new.

        Raises:
            StoreError: the store cannot be reached; nothing was added.
        """
        with self._database.transaction() as connection:
            version = _version(connection)
            if lessons:
                added = [lesson for lesson in lessons if _is_first(connection, lesson.slot, now)]
                for lesson in added:
                    _add(connection, setting, lesson)
                connection.execute(delete(rated).where(rated.c.at < now - _KEPT_S))
                version = _bump(connection, version)
            if version == known:
                return version, None
            wanted = (feedback.c.tenant, feedback.c.context, feedback.c.tier, feedback.c.weight, feedback.c.total)
            rows = connection.execute(select(*wanted).where(feedback.c.setting == setting))
            return version, tuple((row.tenant, row.context, row.tier, row.weight, row.total) for row in rows)


def _is_first(connection: Connection, slot: str, now: float) -> bool:
    if connection.execute(select(rated.c.slot).where(rated.c.slot == slot)).first() is not None:
        return False
    connection.execute(insert(rated).values(slot=slot, at=now))
    return True


def _add(connection: Connection, setting: str, lesson: Lesson) -> None:
    names = {"setting": setting, "tenant": lesson.tenant, "context": lesson.context, "tier": lesson.tier}
    where = (
        (feedback.c.setting == setting)
        & (feedback.c.tenant == lesson.tenant)
        & (feedback.c.context == lesson.context)
        & (feedback.c.tier == lesson.tier)
    )
    more = {"weight": feedback.c.weight + lesson.weight, "total": feedback.c.total + lesson.total}
    if not connection.execute(update(feedback).where(where).values(**more)).rowcount:
        connection.execute(insert(feedback).values(**names, weight=lesson.weight, total=lesson.total))


def _version(connection: Connection) -> int:
    row = connection.execute(select(changes.c.version).where(changes.c.name == _NAME)).first()
    return 0 if row is None else int(row.version)


def _bump(connection: Connection, version: int) -> int:
    if not connection.execute(update(changes).where(changes.c.name == _NAME).values(version=version + 1)).rowcount:
        connection.execute(insert(changes).values(name=_NAME, version=version + 1))
    return version + 1
