"""Payload capture: whose requests and answers are kept, where, how much of each, and for how long. Off unless this is there."""

from __future__ import annotations

from pydantic import Field

from router.config.access import Credential
from router.config.strict import Strict


class Capture(Strict):
    """Bodies of requests and answers, encrypted per subject. Opt in with `capture: true` on a key, or with `tenants` here."""

    zone: str = Field(min_length=1, max_length=64)
    """Where the disk stands that `dir` is on. Only what a request's label lets this zone store is kept."""
    duties: list[str] = []
    """The duties this place carries; a label that requires others is not kept."""
    tenants: list[str] = []
    """Tenants all of whose keys are captured."""
    dir: str = ".tidegate/capture"
    """Relative to TIDEGATE_HOME. Keep its `keys` out of backups: what is destroyed there must not come back."""
    kek: Credential = Credential(file=".tidegate/keys/capture.kek")
    """The key-encryption key, 64 hex digits; a missing file is made. Best on another disk than `dir`."""
    max_kib: int = Field(default=256, ge=1, le=65536)
    """How much of a request, and of an answer, is kept; the record says how long it was."""
    queue_mib: int = Field(default=64, ge=1)
    """What may wait in memory for the disk; beyond that payloads are lost, and counted."""
    retention_days: float = Field(default=30, ge=1)
    """After so long payloads are removed, unless a legal hold (`tidegate audit hold`) covers them."""
