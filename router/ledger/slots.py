"""Opening the audit log of this process: the first of `router-0`, `router-1`, ... that no other process appends to."""

from __future__ import annotations

import logging
from pathlib import Path

from router.config import Config
from router.ledger.checkpoint import CheckpointError, Signer, load_signer
from router.ledger.disk import Disk
from router.ledger.log import AuditLog
from router.ledger.policies import policy_text
from router.ledger.recover import LogDamaged
from router.ledger.store import LogBusy, LogStore
from router.policy import Policy

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


def open_audit(config: Config, policy: Policy, base: Path) -> AuditLog | None:
    """The audit log that a configuration asks for, with its policy recorded; None when it is switched off.

    A log that cannot be opened does not keep a router from starting: it serves as `audit.when_unwritable` says, and sends
    nothing outside.

    Args:
        config: the configuration.
        policy: the same, compiled.
        base: directory that relative paths start from.
    """
    options = config.audit
    if not options.enabled:
        return None
    directory = base / options.dir
    store: LogStore | None = None
    try:
        signer = load_signer(base / options.signing_key if options.signing_key else directory / SIGNING_KEY)
        store = open_slot(directory, signer)
    except (OSError, CheckpointError, LogBusy) as error:
        _log.error("audit: no log can be opened: %s; nothing leaves the cluster", error)
    log = AuditLog(
        store,
        policy.label_text,
        window_s=options.window_ms / 1e3,
        copies=tuple(base / copy for copy in options.checkpoint_copies),
        keep_days=options.retention.days,
    )
    log.policy(policy.epoch, policy_text(config))
    return log
