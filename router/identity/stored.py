"""Stored keys as a router knows them: a copy in memory, renewed by a thread, so that no request waits for the store."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from router.compiled import grant_of_key
from router.config import Config, ConfigError, Key
from router.identity.leases import LeasedBooks
from router.identity.limit import Limit, spill_limit
from router.policy import KeyGrant, Policy, reach_of
from router.residency.guard import NONE_STORED
from router.residency.guard_copy import ceilings_of
from router.residency.label import Label
from router.store.counters import Counters
from router.store.database import Database, StoreError, reason_of
from router.store.feedback import FeedbackTable
from router.store.keys import KeyTable, StoredKey, mac_of, read_pepper

_log = logging.getLogger("tidegate.keys")

_POLL_S = 0.4
"""A revoked key is refused everywhere within a second of its revocation."""
_LONGEST_WAIT_S = 0.5
"""What a new policy waits for leases on its limits; later ones come when they come."""
PEPPER_FILE = ".tidegate/keys/pepper"
USAGE_DIRECTORY = ".tidegate/usage"


class StoredKeys:
    """Finds the grant of a stored key.

    Args:
        table: the keys in the store.
        pepper: the HMAC's key.
        config: gives names their meaning.
        policy: the same, compiled.
    """

    def __init__(self, table: KeyTable, pepper: bytes, config: Config, policy: Policy) -> None:
        self._table = table
        self._pepper = pepper
        self._config, self._policy = config, policy
        self._grants: Mapping[bytes, tuple[KeyGrant, float]] = {}
        self._by_id: Mapping[str, tuple[KeyGrant, float]] = {}
        """For each id the grant that ends last: a key that was rotated has two for a while."""
        self.widest: Mapping[str, Label] = {}
        """Per tenant the join of its stored keys' ceilings; see `Policy.widest`."""
        self.ceilings = NONE_STORED
        """What guards must know of them; another object after every change."""
        self.before_use: Callable[[tuple[Limit, ...]], None] = lambda _: None
        """Told the limits of keys before any of these keys is valid here."""
        self._of_policy: tuple[Limit, ...] = ()
        self._read: Sequence[StoredKey] = ()
        """The store's rows as last read."""
        self._version = -1
        self._failing = False
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tidegate-keys", daemon=True)

    @property
    def failing(self) -> bool:
        """True while the store does not say what has changed."""
        return self._failing

    def start(self) -> None:
        """Read the keys, then keep them fresh."""
        self.refresh()
        self._thread.start()

    def close(self) -> None:
        """Stop."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(10)

    def find(self, credential: bytes, now: float) -> KeyGrant | None:
        """The grant of a key that is valid at `now` (UNIX seconds)."""
        found = self._grants.get(mac_of(self._pepper, credential))
        return found[0] if found is not None and now < found[1] else None

    def by_id(self, grant: KeyGrant) -> KeyGrant | None:
        """The grant of now of the key that had `grant`; None once it is not valid."""
        found = self._by_id.get(grant.id)
        return found[0] if found is not None and time.time() < found[1] else None

    def adopt(self, config: Config, policy: Policy) -> None:
        """Compile every key anew, for another configuration; at once, because labels are masks over its names.

        Called on the event loop, so the store is not asked: the keys as last read are compiled.
        """
        with self._lock:
            self._config, self._policy = config, policy
            self._take(compile_all(self._read, config, policy))
        # Leases on the policy's own new limits wait for the store; a store that hangs must not hang everybody here.
        leases = threading.Thread(target=self.limit_by, args=(policy,), name="tidegate-leases", daemon=True)
        leases.start()
        leases.join(_LONGEST_WAIT_S)

    def limit_by(self, policy: Policy) -> None:
        """Know the limits of a policy's own keys and tenants, too."""
        of_keys = (limit for grant in policy.keys.values() for limit in grant.counted)
        of_tenants = (limit for limits in policy.tenant_limits.values() for limit in limits)
        whole = spill_limit(policy.daily_budget_usd) if policy.spill_enabled else None
        self._of_policy = tuple({*of_keys, *of_tenants, *(() if whole is None else (whole,))})
        self.before_use(self._of_policy)

    def limits(self) -> tuple[Limit, ...]:
        """The limits of all keys, stored and configured."""
        now = time.time()
        return tuple({*self._of_policy, *_limits_of(entry for entry in self._grants.values() if now < entry[1])})

    def _run(self) -> None:
        while not self._stop.wait(_POLL_S):
            self.refresh()

    def refresh(self) -> None:
        """Ask the store whether anything changed. Only this waits for it, and never with the lock that `adopt` takes."""
        try:
            version = self._table.version()
            if version != self._version:
                self._load(tuple(self._table.all()))
                self._version = version
        except Exception as error:  # whatever it is, the thread must see the next revocation
            if not self._failing:
                _log.error("keys: %s; the keys that were known stay valid", reason_of(error))
            self._failing = True
        else:
            self._failing = False

    def _load(self, rows: Sequence[StoredKey]) -> None:
        now = time.time()
        grants = compile_all(rows, self._config, self._policy)
        self.before_use(_limits_of(entry for entry in grants.values() if now < entry[1]))
        with self._lock:
            self._read = rows
            # Another policy may have come while the leases were asked for.
            self._take(compile_all(rows, self._config, self._policy))

    def _take(self, grants: Mapping[bytes, tuple[KeyGrant, float]]) -> None:
        widest: dict[str, Label] = {}
        for grant, _ in grants.values():
            widest[grant.tenant] = reach_of(grant).join(widest.get(grant.tenant, grant.ceiling))
        self.widest = widest
        self.ceilings = ceilings_of((grant for grant, _ in grants.values()), self._policy)
        self._by_id = {entry[0].id: entry for entry in sorted(grants.values(), key=lambda entry: entry[1])}
        self._grants = grants  # last: whoever finds a key finds everything about it


def _limits_of(entries: Iterable[tuple[KeyGrant, float]]) -> tuple[Limit, ...]:
    return tuple({limit for grant, _ in entries for limit in grant.counted})


def compile_all(rows: Iterable[StoredKey], config: Config, policy: Policy) -> dict[bytes, tuple[KeyGrant, float]]:
    """What every key that was not revoked may do, by its HMAC, with the UNIX time at which it ends."""
    grants = {}
    for key in rows:
        if key.revoked is not None:
            continue
        try:
            grants[key.mac] = (compile_stored(key, config, policy), float("inf") if key.expires is None else key.expires)
        except (ConfigError, ValueError) as error:
            # Its tags or models are not in this configuration: such a key may do nothing.
            _log.error("keys: the stored key %s cannot be used: %s", key.id, error)
        except Exception as error:  # one key that nobody foresaw must not keep the revocation of another from being seen
            _log.error("keys: the stored key %s cannot be used (%s)", key.id, type(error).__name__)
    return grants


def compile_stored(key: StoredKey, config: Config, policy: Policy) -> KeyGrant:
    """The grant of a stored key under a configuration.

    Raises:
        ConfigError, ValueError: it names tags or models that the configuration does not have.
    """
    relaxed = policy.relaxed.get(key.id, ())
    return grant_of_key(Key.model_validate_json(key.scopes), config, policy.tags, f"key {key.id}", relaxed=relaxed)


class Shared:
    """What this router shares with others: limits and keys, over one store.

    Args:
        database: the store.
        config: the configuration.
        policy: the same, compiled.
        base: directory that relative paths start from.
        replica: a name of this process that no other has or had.

    Raises:
        StoreError: the pepper cannot be read.
    """

    def __init__(self, database: Database, config: Config, policy: Policy, base: Path, replica: str) -> None:
        self._database = database
        pepper = read_pepper(base / PEPPER_FILE, make=True)
        self.keys = StoredKeys(KeyTable(database), pepper, config, policy)
        self.books = LeasedBooks(Counters(database, replica), self.keys.limits, base / USAGE_DIRECTORY)
        self.feedback = FeedbackTable(database)
        self.keys.limit_by(policy)
        self.keys.before_use = self.books.ask_for

    @property
    def failing(self) -> bool:
        """True while the store does not answer."""
        return self.keys.failing or self.books.failing

    def start(self) -> None:
        """Begin to keep both fresh."""
        self.keys.start()
        self.books.start()

    def close(self) -> None:
        """Report the last use and let go of the store."""
        self.keys.close()
        self.books.close()
        self._database.close()


def open_shared(config: Config, policy: Policy, base: Path, replica: str) -> Shared | None:
    """The store that a configuration names, or None when it cannot be opened: then this router keeps its own books."""
    try:
        shared = Shared(Database(config.store.url_from(base)), config, policy, base, replica)
    except StoreError as error:
        _log.error(
            "store: %s; this router keeps its own books, knows no stored keys, and sends nothing outside that a budget bounds",
            error,
        )
        return None
    shared.start()
    return shared
