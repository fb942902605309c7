"""The audit log, what it keeps how long, and the store of keys and counters."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from router.config.strict import Strict

RETENTION_FLOOR_DAYS = {"ai-act": 183, "hipaa": 2192, "pci-dss": 365, "dora": 1827}
"""AI Act Art. 19 and 26(6): six months. HIPAA 45 CFR 164.316(b)(2)(i): six years. PCI DSS 10.5.1: twelve months. DORA leaves
the length to the entity; five years is what its supervisors ask of records of ICT services."""


class Store(Strict):
    """Where keys and the use of limits are kept. One router node: a file. Several: a PostgreSQL server that all reach."""

    url: str | None = None
    """`postgresql://user@host/name`; the password comes from `PGPASSWORD` or `~/.pgpass`. Default: SQLite, in `path`."""
    path: str = ".tidegate/store.db"
    """Relative to TIDEGATE_HOME."""

    def url_from(self, base: Path) -> str:
        """Where it is, as a database URL; `path` starts from `base`."""
        return self.url or f"sqlite:///{base / self.path}"


class Retention(Strict):
    """How long the audit log's entries are kept. A legal hold (`tidegate audit hold`) goes before it."""

    days: float | None = Field(default=None, gt=0)
    """Entries older than this are removed; their hashes stay, so that the log still verifies. Default: all are kept."""
    profiles: list[Literal["ai-act", "hipaa", "pci-dss", "dora"]] = []
    """Rules whose floor `days` must not undercut."""

    @model_validator(mode="after")
    def _floor(self) -> Retention:
        for profile in self.profiles:
            if self.days is not None and self.days < RETENTION_FLOOR_DAYS[profile]:
                raise ValueError(f"`{profile}` asks for at least {RETENTION_FLOOR_DAYS[profile]} days, not {self.days:g}")
        return self


class Audit(Strict):
    """The audit log of every router: an append-only Merkle log on its own disk."""

    enabled: bool = True
    """Switched off, nothing is recorded, and nothing is sent to cloud targets either."""
    dir: str = ".tidegate/audit"
    """Relative to TIDEGATE_HOME. Each router process takes a directory of its own in it."""
    window_ms: float = Field(default=100, gt=0, le=100)
    """The longest time the record of a local request may wait in memory."""
    when_unwritable: Literal["serve", "refuse"] = "serve"
    """What becomes of local requests while the log cannot be written. Nothing is sent outside then in any case."""
    signing_key: str | None = None
    """A file with the Ed25519 seed in hex; made when missing. Default: `signing.key` in `dir`."""
    checkpoint_copies: list[str] = []
    """Files, best on another machine's disk, that a signed checkpoint is appended to every minute."""
    retention: Retention = Retention()
