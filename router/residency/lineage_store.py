"""The lineage of conversations on disk: one SQLite file that all routers of a machine share and the next start finds.

It holds keyed hashes, labels in names and a time, nothing a client said. A write is one transaction in write-ahead mode without
a sync of its own: it survives the process at once and the machine within moments, and a lookup sees what any other process
has written. A store that fails says so once and then answers with nothing; see `router.residency.lineage` for what that means.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterable
from pathlib import Path

from router.residency.lineage import meet_texts
from router.secret_file import make_private_directory

_log = logging.getLogger("tidegate.router")
_SCHEMA = "CREATE TABLE IF NOT EXISTS lineage (hash BLOB PRIMARY KEY, label TEXT NOT NULL, at REAL NOT NULL) WITHOUT ROWID"
_BUSY_S = 0.05
_SWEEP_EVERY = 10_000
_MOST_VARIABLES = 500


class LineageStore:
    """Entries in a file.

    Args:
        path: the file; its directory is made.
        keep_s: seconds after which an entry that was not renewed is forgotten.
        now: UNIX time in seconds.

    Raises:
        OSError: the file cannot be made or is no database.
    """

    def __init__(self, path: Path, keep_s: float, now: float) -> None:
        self._keep_s = keep_s
        self._writes = 0
        self.failure = ""
        """The latest failure's type; empty while the store works."""
        make_private_directory(path.parent)
        path.touch(mode=0o600)
        try:
            self._db = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.execute(_SCHEMA)
            self._sweep(now)
        except sqlite3.Error as error:
            raise OSError(f"{path}: {error}") from None

    def get(self, hashes: Iterable[bytes]) -> dict[bytes, str]:
        """The entries there are for these hashes; nothing when the store fails."""
        wanted = list(hashes)
        found: dict[bytes, str] = {}
        try:
            for start in range(0, len(wanted), _MOST_VARIABLES):
                some = wanted[start : start + _MOST_VARIABLES]
                marks = ",".join("?" * len(some))
                found.update(self._db.execute(f"SELECT hash, label FROM lineage WHERE hash IN ({marks})", some).fetchall())
            self._worked()
        except sqlite3.Error as error:
            self._failed(error)
        return found

    def put(self, entries: dict[bytes, str], now: float) -> None:
        """Keep entries; one that is there already takes the meet."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                for digest, text in entries.items():
                    before = self._db.execute("SELECT label FROM lineage WHERE hash = ?", (digest,)).fetchone()
                    label = text if before is None else meet_texts(before[0], text)
                    self._db.execute("INSERT OR REPLACE INTO lineage VALUES (?, ?, ?)", (digest, label, now))
                self._db.execute("COMMIT")
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._writes += len(entries)
            if self._writes >= _SWEEP_EVERY:
                self._sweep(now)
            self._worked()
        except sqlite3.Error as error:
            self._failed(error)

    def clock_set(self, seconds: float) -> None:
        """The machine's clock was set ahead by so many seconds: what was noted before is no older for it.

        Each router that shares the file says so, and an entry may be kept too long. None is forgotten too soon.
        """
        try:
            self._db.execute("UPDATE lineage SET at = at + ?", (seconds,))
            self._worked()
        except sqlite3.Error as error:
            self._failed(error)

    def close(self) -> None:
        """Release the file."""
        self._db.close()

    def _sweep(self, now: float) -> None:
        self._writes = 0
        self._db.execute("DELETE FROM lineage WHERE at < ?", (now - self._keep_s,))

    def _worked(self) -> None:
        if self.failure:
            _log.warning("lineage: the store works again")
            self.failure = ""

    def _failed(self, error: sqlite3.Error) -> None:
        if not self.failure:
            _log.error("lineage: the store fails (%s): follow-ups may not inherit labels known elsewhere", type(error).__name__)
        self.failure = type(error).__name__
