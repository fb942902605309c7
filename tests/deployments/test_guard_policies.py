"""What routers hand on to guards: the policy, and the ceilings of stored keys as soon as those change."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import msgspec

from deployments.membership import GuardPolicies
from router.identity.stored import StoredKeys
from router.policy_source import compile_loaded
from router.residency.guard import NONE_STORED, STORED, GuardPolicy, StoredCeilings
from router.store.database import Database
from router.store.keys import KeyTable, StoredKey, mac_of
from tests.router.builders import make_config

PEPPER = b"p" * 32


class Handle:
    """Stands for a deployment's handle: keeps what its replicas are told."""

    def __init__(self) -> None:
        self.told: list[tuple[object, ...]] = []

    def broadcast(self, method: str, *arguments: object) -> Handle:
        self.told.append((method, *arguments))
        return self

    async def _fetch_replica_results_async(self) -> list[bytes]:
        return []


async def test_guards_are_told_of_stored_keys_when_those_change_and_only_then():
    loaded = compile_loaded(make_config(), "", Path())
    table = KeyTable(Database("sqlite://"))
    keys = StoredKeys(table, PEPPER, loaded.config, loaded.policy)
    keys.refresh()
    guards = GuardPolicies(loaded, 1.0, keys.ceilings)
    assert guards.stamp == loaded.policy.epoch and not guards.renew(keys.ceilings, 2.0)

    scopes = b'{"id": "new", "tenant": "t", "sha256": "%s", "residency": "us"}' % (b"0" * 64)
    table.add(StoredKey(b"m" * 32, "new", "t", scopes, time.time()))
    keys.refresh()
    assert guards.renew(keys.ceilings, 3.0) and not guards.renew(keys.ceilings, 4.0)
    engines, egress = Handle(), Handle()
    await guards.to_engines(engines)
    await guards.to_egress(egress)
    copy = msgspec.json.decode(engines.told[0][1], type=GuardPolicy)
    assert (copy.stamp, copy.issued) == (guards.stamp, 3.0) and guards.stamp != loaded.policy.epoch
    assert copy.stored.find(STORED + "new").ceiling == "us/us/"
    assert msgspec.msgpack.decode(egress.told[0][4], type=StoredCeilings) == copy.stored
    assert keys.widest == {"t": loaded.policy.tags["us"]}

    table.revoke("new", time.time())
    keys.refresh()
    assert keys.ceilings == NONE_STORED and guards.renew(keys.ceilings, 5.0)


class HangingTable(KeyTable):
    """A store that answers once, and then not before it is let go."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.asked, self.go_on = threading.Event(), threading.Event()
        self.hangs = False

    def version(self) -> int:
        if self.hangs:
            self.asked.set()
            self.go_on.wait(60)
        return super().version()


def test_a_store_that_hangs_holds_no_new_policy_up_and_known_keys_stay_valid():
    loaded = compile_loaded(make_config(), "", Path())
    table = HangingTable(Database("sqlite://"))
    scopes = b'{"id": "known", "tenant": "t", "sha256": "%s", "residency": "us"}' % (b"0" * 64)
    table.add(StoredKey(mac_of(PEPPER, b"secret"), "known", "t", scopes, time.time()))
    keys = StoredKeys(table, PEPPER, loaded.config, loaded.policy)
    keys.refresh()
    table.hangs = True
    refreshing = threading.Thread(target=keys.refresh, daemon=True)
    refreshing.start()
    assert table.asked.wait(30)
    keys.adopt(loaded.config, loaded.policy)  # would not come back, did it ask the store
    assert refreshing.is_alive()
    found = keys.find(b"secret", time.time())
    assert found is not None and found.id == "known"
    table.go_on.set()
    refreshing.join(30)
