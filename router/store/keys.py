"""Keys in the store, made, rotated and revoked while routers run: only their HMACs, under a pepper that is kept elsewhere."""

from __future__ import annotations

import hmac
import logging
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import Connection, insert, or_, select, update

from router.secret_file import read_secret_file
from router.store.database import Database, StoreError
from router.store.tables import changes, keys

_NEWS = "keys"
_log = logging.getLogger("tidegate.keys")


class StoredKey(msgspec.Struct, frozen=True):
    """A key as it is stored. `scopes` is what `router.config.Key` holds, as JSON. Times are UNIX seconds."""

    mac: bytes
    id: str
    tenant: str
    scopes: bytes
    created: float
    expires: float | None = None
    revoked: float | None = None

    def is_valid(self, now: float) -> bool:
        """Neither revoked nor expired."""
        return self.revoked is None and (self.expires is None or now < self.expires)


def mac_of(pepper: bytes, key: bytes) -> bytes:
    """HMAC-SHA256 of a key."""
    return hmac.digest(pepper, key, "sha256")


def read_pepper(path: Path, *, make: bool = False) -> bytes:
    """The pepper in a file (64 hex digits); with `make`, a missing one is made, for its owner's eyes only.

    Raises:
        StoreError: it cannot be read, or is none.
    """
    try:
        return read_secret_file(path, make=make)
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"{path}: the pepper of stored keys cannot be read: {error}") from None
    except ValueError:
        raise StoreError(f"{path}: this is no pepper (64 hex digits)") from None


class KeyTable:
    """The stored keys.

    Args:
        database: the store.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def version(self) -> int:
        """A number that grows with every change.

        Raises:
            StoreError: the store cannot be reached.
        """
        with self._database.transaction() as connection:
            return _version(connection)

    def all(self) -> list[StoredKey]:
        """Every key whose row can be read, the oldest first.

        Raises:
            StoreError: the store cannot be reached.
        """
        with self._database.transaction() as connection:
            rows = connection.execute(select(keys).order_by(keys.c.created)).all()
        return [key for row in rows if (key := _read(row)) is not None]

    def add(self, key: StoredKey) -> None:
        """Store a key.

        Raises:
            StoreError: a valid key of this id is there, or the store cannot be reached.
        """
        with self._database.transaction() as connection:
            if _valid(connection, key.id, key.created):
                raise StoreError(f"there is a key `{key.id}` already: rotate or revoke it")
            _insert(connection, key)

    def rotate(self, key: StoredKey, overlap_s: float) -> StoredKey:
        """Store a new key in the place of the one of its id, which stays valid for `overlap_s` seconds more.

        Returns:
            The new key, with the scopes of the old one.

        Raises:
            StoreError: there is no valid key of this id, or the store cannot be reached.
        """
        with self._database.transaction() as connection:
            old = _valid(connection, key.id, key.created)
            if not old:
                raise StoreError(f"there is no valid key `{key.id}` in the store")
            new = msgspec.structs.replace(key, tenant=old[-1].tenant, scopes=old[-1].scopes, expires=old[-1].expires)
            until = key.created + overlap_s
            where = (keys.c.id == key.id) & keys.c.revoked.is_(None) & or_(keys.c.expires.is_(None), keys.c.expires > until)
            connection.execute(update(keys).where(where).values(expires=until))
            _insert(connection, new)
            return new

    def revoke(self, name: str, now: float) -> int:
        """Revoke every key of an id.

        Returns:
            How many were valid until now.

        Raises:
            StoreError: the store cannot be reached.
        """
        with self._database.transaction() as connection:
            count = len(_valid(connection, name, now))
            connection.execute(update(keys).where((keys.c.id == name) & keys.c.revoked.is_(None)).values(revoked=now))
            _bump(connection)
            return count


def _valid(connection: Connection, name: str, now: float) -> list[StoredKey]:
    rows = connection.execute(select(keys).where((keys.c.id == name) & keys.c.revoked.is_(None)).order_by(keys.c.created))
    return [key for row in rows if (key := _read(row)) is not None and key.is_valid(now)]


def _read(row: Any) -> StoredKey | None:
    """The key in a row; None for a row that holds none. Nobody can use such a key, and the others must not suffer from it."""
    try:
        return StoredKey(bytes.fromhex(row.mac), row.id, row.tenant, row.scopes, row.created, row.expires, row.revoked)
    except (TypeError, ValueError):
        _log.error("keys: the row of the stored key %s cannot be read: this key is not valid", row.id)
        return None


def _insert(connection: Connection, key: StoredKey) -> None:
    values = {**msgspec.structs.asdict(key), "mac": key.mac.hex()}
    connection.execute(insert(keys).values(**values))
    _bump(connection)


def _version(connection: Connection) -> int:
    found = connection.execute(select(changes.c.version).where(changes.c.name == _NEWS)).scalar()
    return int(found or 0)


def _bump(connection: Connection) -> None:
    if not connection.execute(update(changes).where(changes.c.name == _NEWS).values(version=changes.c.version + 1)).rowcount:
        connection.execute(insert(changes).values(name=_NEWS, version=1))
