"""Opening the audit log of this process: the first of `router-0`, `router-1`, ... that no other process appends to."""

from __future__ import annotations

import logging
from pathlib import Path

from router.ledger.checkpoint import Signer
from router.ledger.disk import Disk
from router.ledger.recover import LogDamaged
from router.ledger.store import LogBusy, LogStore

_log = logging.getLogger("tidegate.audit")
_MOST = 1024
SIGNING_KEY = "signing.key"
"""The file in the audit directory that holds the private signing key, unless the configuration names another."""


def open_slot(directory: Path, signer: Signer, prefix: str = "router", disk: Disk | None = None) -> LogStore:
    """Open the first free log.

    A damaged one is left as it is, as evidence, and the next is taken: a router must be able to start, and `tidegate audit
    verify` will speak of the damage until somebody has looked at it.

    Args:
        directory: holds the logs.
        signer: signs their checkpoints.
        prefix: `router`, or `cli` for what an operator does by hand.
        disk: does the writing.

    Raises:
        OSError: the directory cannot be used.
        LogBusy: there are no free logs.
    """
    for number in range(_MOST):
        try:
            return LogStore(directory / f"{prefix}-{number}", signer, f"tidegate/{prefix}-{number}", disk)
        except LogBusy:
            continue
        except LogDamaged as error:
            _log.error("audit: %s; this log is left as it is, and another is begun", error)
    raise LogBusy(f"{directory}: {_MOST} logs, and all are in use or damaged")
