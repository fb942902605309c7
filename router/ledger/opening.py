"""Opening the audit log that a configuration asks for."""

from __future__ import annotations

from pathlib import Path

from router.config import Config
from router.ledger.log import AuditLog
from router.ledger.policies import policy_text
from router.ledger.remote_writer import RemoteWriter
from router.ledger.slots import SIGNING_KEY
from router.ledger.writer import CAPACITY
from router.ledger.writer_process import Order
from router.policy import Policy


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
    directory = (base / options.dir).absolute()
    order = Order(
        directory=str(directory),
        signing_key=str((base / options.signing_key).absolute() if options.signing_key else directory / SIGNING_KEY),
        window_s=options.window_ms / 1e3,
        capacity=CAPACITY,
        copies=tuple(str((base / copy).absolute()) for copy in options.checkpoint_copies),
        keep_days=options.retention.days,
    )
    log = AuditLog(RemoteWriter(order), policy.label_text)
    log.policy(policy.epoch, policy_text(config))
    return log
