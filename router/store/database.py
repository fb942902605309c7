"""Opening the store: SQLite (WAL) in a file, or PostgreSQL, brought to the newest schema."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config as AlembicConfig
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from router.secret_file import make_private_directory
from router.store.hanging import Impatience

_LOCK = 0x7469646567617465  # "tidegate": one advisory lock for everything, held for a millisecond at a time
_BUSY_MS = 5000
_CONNECTION = {
    "connect_timeout": 3,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 12_000,
}
"""libpq's, in seconds but for the last. A server, or a firewall's entry, that goes without a word is noticed within 12 s. With
what the system comes with, whoever asked would wait for a quarter of an hour, and no key could be revoked meanwhile."""
_PAUSE_MS = 10_000
"""A transaction in which nothing is asked for so long is given up: its machine is gone, and everybody waits for its lock."""
_LOCK_MS = 5_000
_ANSWER_S = 15.0
"""A transaction that takes so long has a server that hangs: it is longer than all of the limits above."""
_START_S = 120.0
"""The same for bringing it to the newest schema, which another router may be doing."""
_LOCKED = text(
    "SELECT set_config('idle_in_transaction_session_timeout', :pause, true), set_config('lock_timeout', :wait, true), "
    "pg_advisory_xact_lock(:lock)"
)


class StoreError(Exception):
    """The store cannot be used; the text says why, and never holds a password."""


_DRIVERS = frozenset({"sqlite", "sqlite+pysqlite", "postgresql+psycopg"})


def reason_of(error: Exception) -> str:
    """What a log may say of an error: the text of one that nobody foresaw is not known to be harmless."""
    return str(error) if isinstance(error, StoreError) else type(error).__name__


class Database:
    """A store that is open.

    Args:
        url: an SQLAlchemy URL, `sqlite:///path` or `postgresql+psycopg://...`.

    Raises:
        StoreError: it cannot be opened or brought up to date.
    """

    def __init__(self, url: str) -> None:
        try:
            parsed = make_url(url)
        except (ArgumentError, ValueError):  # ValueError: a port that is no number
            raise StoreError("store.url: this is no database URL, such as postgresql://user@host/name") from None
        if parsed.drivername in ("postgresql", "postgres"):
            parsed = parsed.set(drivername="postgresql+psycopg")
        if parsed.drivername not in _DRIVERS:
            raise StoreError(f"store.url: `{parsed.drivername}` is no store: give sqlite:///path or postgresql://user@host/name")
        self.name = parsed.render_as_string(hide_password=True)
        self._is_sqlite = parsed.drivername.startswith("sqlite")
        given = parsed.query
        arguments = {} if self._is_sqlite else {name: value for name, value in _CONNECTION.items() if name not in given}
        if self._is_sqlite and parsed.database:
            try:
                make_private_directory(Path(parsed.database).parent)
            except OSError as error:
                raise StoreError(f"the store {self.name} cannot be opened: {_reason(error)}") from None
        self._engine = create_engine(parsed, connect_args=arguments, pool_pre_ping=not self._is_sqlite)
        if self._is_sqlite:
            _prepare_sqlite(self._engine)
        self._impatience = None if self._is_sqlite else Impatience(self._engine)
        try:
            with self._within(_START_S):
                self._migrate(parsed.database or "")
        except (SQLAlchemyError, OSError) as error:
            self.close()
            raise StoreError(f"the store {self.name} cannot be opened: {_reason(error)}") from None

    def __repr__(self) -> str:
        return f"Database({self.name!r})"

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Connection]:
        """A transaction that nothing else of tidegate's interleaves with.

        Raises:
            StoreError: the store cannot be reached, or failed.
        """
        try:
            with self._within(_ANSWER_S), self._engine.begin() as connection:
                if not self._is_sqlite:  # SQLite's BEGIN IMMEDIATE is such a lock already
                    connection.execute(_LOCKED, {"pause": str(_PAUSE_MS), "wait": str(_LOCK_MS), "lock": _LOCK})
                yield connection
        except SQLAlchemyError as error:
            raise StoreError(f"the store {self.name} failed: {_reason(error)}") from None

    def _within(self, seconds: float) -> contextlib.AbstractContextManager[None]:
        return self._impatience.limit(seconds) if self._impatience is not None else contextlib.nullcontext()

    def close(self) -> None:
        """Let go of every connection."""
        self._engine.dispose()

    def _migrate(self, path: str) -> None:
        config = AlembicConfig()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
        with contextlib.ExitStack() as stack:
            if self._is_sqlite and path and path != ":memory:":
                for name in (path, f"{path}.lock"):  # SQLite's own would be for everybody to read; -wal and -shm follow the first
                    os.close(os.open(name, os.O_RDWR | os.O_CREAT, 0o600))
                lock = stack.enter_context(Path(f"{path}.lock").open("a"))
                fcntl.flock(lock, fcntl.LOCK_EX)
            connection = stack.enter_context(self._engine.begin())
            if not self._is_sqlite:
                connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
            config.attributes["connection"] = connection
            command.upgrade(config, "head")


def _prepare_sqlite(engine: Engine) -> None:
    """WAL, so that readers never wait; and transactions that take the write lock when they begin, not in the middle."""

    @event.listens_for(engine, "connect")
    def _connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in (f"busy_timeout={_BUSY_MS}", "journal_mode=WAL", "synchronous=NORMAL"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def _reason(error: Exception) -> str:
    """The driver's own first line: SQLAlchemy's text would quote statements and their values."""
    original = getattr(error, "orig", None) or error
    return (str(original).splitlines() or [type(original).__name__])[0][:200]
