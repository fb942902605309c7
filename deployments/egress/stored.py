"""The ceilings of stored keys, for an egress outside Ray: no router tells it, so it reads the store itself."""

from __future__ import annotations

import logging
from pathlib import Path

from router.config import Config
from router.identity.stored import compile_all
from router.policy import Policy
from router.residency.guard import NONE_STORED, StoredCeilings
from router.residency.guard_copy import ceilings_of
from router.store.database import Database, reason_of
from router.store.keys import KeyTable

_log = logging.getLogger("tidegate.egress")


class StoreReader:
    """Reads ceilings again whenever the keys or the policy have changed. Never sees a key, nor the pepper.

    Args:
        base: directory that relative paths start from.
    """

    def __init__(self, base: Path) -> None:
        self._base = base
        self._database: Database | None = None
        self._url = ""
        self._seen: tuple[str, int] = ("", -1)
        self._known = NONE_STORED
        self._failing = False

    def read(self, config: Config, policy: Policy) -> StoredCeilings:
        """What is known by now; while the store cannot be reached, what was known under the same policy, else nothing. Blocks."""
        try:
            table = self._open(config)
            if table is None:
                return NONE_STORED
            seen = (policy.epoch, table.version())
            if seen != self._seen:
                grants = compile_all(table.all(), config, policy).values()
                self._known, self._seen = ceilings_of((grant for grant, _ in grants), policy), seen
            self._failing = False
        except Exception as error:  # whatever it is, whoever asks must ask again: the next revocation counts
            if not self._failing:
                _log.error("%s; nothing leaves for stored keys that are not known yet", reason_of(error))
            self._failing = True
        return self._known if self._seen[0] == policy.epoch else NONE_STORED

    def close(self) -> None:
        """Let go of the store."""
        if self._database is not None:
            self._database.close()
        self._database, self._url = None, ""

    def _open(self, config: Config) -> KeyTable | None:
        """The keys in the store that the configuration names; None where nobody has made one yet."""
        url = config.store.url_from(self._base)
        if config.store.url is None and not (self._base / config.store.path).exists():
            return None
        if self._database is None or url != self._url:
            self.close()
            self._database, self._url = Database(url), url
        return KeyTable(self._database)
