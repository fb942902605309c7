"""What an operator does by hand stands in the audit log, in a log of its own beside the routers'."""

from __future__ import annotations

import getpass
import os
import time
from typing import Any

from router.config import Config
from router.ledger import records
from router.ledger.checkpoint import CheckpointError, load_signer
from router.ledger.slots import SIGNING_KEY, open_slot
from router.ledger.store import LogBusy
from tidegate.home import Home


class NotRecorded(Exception):
    """The audit log cannot be written."""


def operator() -> str:
    """Who runs this command: the user's name, or its number where it has none, as in a container with an arbitrary user."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def record(home: Home, config: Config, event: str, subject: str, data: dict[str, Any]) -> None:
    """Append one entry, durably; nothing where the audit log is switched off.

    Args:
        home: the installation.
        config: says where the log lies.
        event: one of `router.ledger.records`, or `key.*`.
        subject: what it is about.
        data: more of it; nothing secret.

    Raises:
        NotRecorded: it could not be written.
    """
    if not config.audit.enabled:
        return
    where = home.root / config.audit.dir
    try:
        seed = config.audit.signing_key
        log = open_slot(where, load_signer(home.root / seed if seed else where / SIGNING_KEY), "cli")
        log.append([records.encode(log.size, time.time(), time.monotonic(), event, subject, data)])
        log.close()
    except (OSError, CheckpointError, LogBusy) as error:
        raise NotRecorded(f"it could not be recorded in the audit log: {error}") from None
