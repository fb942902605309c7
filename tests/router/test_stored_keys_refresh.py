"""The thread that keeps stored keys fresh outlives whatever stands in the store: it must see the next revocation."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from sqlalchemy import update

from router.identity.stored import StoredKeys
from router.policy_source import compile_loaded
from router.store.database import Database, StoreError
from router.store.keys import KeyTable, StoredKey, mac_of
from router.store.tables import keys as rows
from tests.router.builders import make_config

PEPPER = b"p" * 32


def scopes(name: str) -> bytes:
    return b'{"id": "%s", "tenant": "t", "sha256": "%s", "residency": "us"}' % (name.encode(), b"0" * 64)


@pytest.fixture
def store():
    database = Database("sqlite://")
    table = KeyTable(database)
    loaded = compile_loaded(make_config(), "", Path())
    for name in ("good", "odd"):
        table.add(StoredKey(mac_of(PEPPER, name.encode()), name, "t", scopes(name), time.time()))
    yield database, table, StoredKeys(table, PEPPER, loaded.config, loaded.policy)
    database.close()


def spoil(database: Database, **values: object) -> None:
    with database.transaction() as connection:
        connection.execute(update(rows).where(rows.c.id == "odd").values(**values))


@pytest.mark.parametrize("values", [{"mac": "no hex"}, {"mac": "é" * 64}, {"scopes": b"\xff"}, {"scopes": b"[" * 5000}])
def test_a_row_that_cannot_be_read_is_no_valid_key_and_hides_no_revocation(store, values):
    database, table, known = store
    spoil(database, **values)
    known.refresh()
    assert known.find(b"good", time.time()) is not None and known.find(b"odd", time.time()) is None
    assert table.revoke("good", time.time()) == 1
    known.refresh()
    assert known.find(b"good", time.time()) is None
    assert table.revoke("odd", time.time()) in (0, 1)  # without a traceback


def test_an_error_nobody_foresaw_ends_no_refresh_and_says_nothing_of_its_text(store, monkeypatch, caplog):
    _, table, known = store
    known.refresh()

    def broken() -> int:
        raise RuntimeError("a text that may hold anything")

    with monkeypatch.context() as patched:
        patched.setattr(table, "version", broken)
        known.refresh()
    assert "RuntimeError" in caplog.text and "may hold anything" not in caplog.text
    table.revoke("good", time.time())
    known.refresh()
    assert known.find(b"good", time.time()) is None


def test_an_unreachable_store_is_told_with_its_reason(store, monkeypatch, caplog):
    _, table, known = store

    def gone() -> int:
        raise StoreError("the store cannot be reached")

    monkeypatch.setattr(table, "version", gone)
    known.refresh()
    assert "the store cannot be reached; the keys that were known stay valid" in caplog.text
