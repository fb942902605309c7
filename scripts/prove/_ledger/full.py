"""A disk that fills up and empties again at every step: nothing external without a record, and the log stays sound."""

from __future__ import annotations

import asyncio
import errno
import logging
import random
import shutil
from pathlib import Path

from _ledger.traffic import Traffic
from router.ledger import records
from router.ledger.checkpoint import Signer
from router.ledger.disk import Disk
from router.ledger.log import AuditLog
from router.ledger.policies import policy_text
from router.ledger.reader import LogReader
from router.ledger.store import LogStore
from router.ledger.verify import verify_log
from router.ledger.writer import AuditUnavailable, LogWriter


class FullDisk(Disk):
    """A disk without room while `full`; a write that meets it leaves a part of itself behind."""

    def __init__(self, rng: random.Random) -> None:
        self.full = False
        self._random = rng

    def write(self, descriptor: int, data: bytes) -> None:
        """Write all, or a part and the error."""
        if self.full:
            super().write(descriptor, data[: self._random.randrange(len(data) + 1)])
            raise OSError(errno.ENOSPC, "No space left on device")
        super().write(descriptor, data)

    def sync(self, descriptor: int) -> None:
        """Some file systems say only here that there was no room."""
        if self.full:
            raise OSError(errno.EIO, "Input/output error")
        super().sync(descriptor)


class Fullness:
    """What full disks cost."""

    def __init__(self) -> None:
        self.sent = 0
        self.refused = 0
        self.sent_while_full = 0
        self.without_record = 0
        self.problems: list[str] = []


def fill_up(work: Path, rounds: int, seed: int) -> Fullness:
    """Fill and empty the disk `rounds` times while requests go on."""
    logger = logging.getLogger("tidegate.audit")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        return _fill_up(work, rounds, seed)
    finally:
        logger.setLevel(level)


def _fill_up(work: Path, rounds: int, seed: int) -> Fullness:
    rng = random.Random(seed)
    signer = Signer(rng.randbytes(32))
    root = work / "full"
    shutil.rmtree(root, ignore_errors=True)
    disk = FullDisk(rng)
    traffic = Traffic(seed)
    log = AuditLog(LogWriter(LogStore(root, signer, disk=disk, segment_bytes=20_000), window_s=0.004), traffic.policy.label_text)
    log.policy(traffic.policy.epoch, policy_text(traffic.config))
    count = Fullness()
    sent = asyncio.run(_serve(log, traffic, disk, rounds, count))
    disk.full = False
    log.close(60)
    report = verify_log(root, [signer.verifier])
    count.problems += report.problems[:5]
    intents = {record.id for record in LogReader(root).records() if record.e == records.INTENT}
    count.without_record = len(sent - intents)
    return count


async def _serve(log: AuditLog, traffic: Traffic, disk: FullDisk, rounds: int, count: Fullness) -> set[str]:
    sent: set[str] = set()
    for number, event in enumerate(traffic.events(rounds * 8)):
        if number % 4 == 0:
            disk.full = not disk.full
            await asyncio.sleep(0.06)  # the log tries again after 50 ms
        log.decided(event.facts, traffic.policy.epoch, event.view, event.decision, event.now)
        try:
            await log.durably(records.INTENT, event.facts.request_id, {})
        except AuditUnavailable:
            count.refused += 1
            continue
        count.sent += 1
        count.sent_while_full += disk.full
        sent.add(event.facts.request_id)
    return sent
