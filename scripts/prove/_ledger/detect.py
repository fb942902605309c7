"""Tamper with copies of a real log, thousands of times, and count what verification finds."""

from __future__ import annotations

import asyncio
import random
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from _ledger.tamper import TAMPERINGS, rollbacks
from _ledger.traffic import Traffic
from router.ledger.checkpoint import Signer, open_note
from router.ledger.log import AuditLog
from router.ledger.policies import policy_text
from router.ledger.reader import LogReader
from router.ledger.store import LogStore
from router.ledger.verify import verify_log
from router.ledger.writer import LogWriter


class Tally:
    """What was tried and found, and the tamperings that were not found."""

    def __init__(self) -> None:
        self.tried: Counter[str] = Counter()
        self.missed: list[str] = []

    @property
    def total(self) -> int:
        """Tamperings tried."""
        return sum(self.tried.values())

    @property
    def detected(self) -> int:
        """Tamperings found."""
        return self.total - len(self.missed)


def build_log(root: Path, signer: Signer, seed: int, requests: int, segment_bytes: int = 60_000) -> None:
    """A log of real decisions, written the way a router writes it; closed in order."""
    traffic = Traffic(seed)
    log = AuditLog(LogWriter(LogStore(root, signer, segment_bytes=segment_bytes), window_s=0.02), traffic.policy.label_text)
    log.policy(traffic.policy.epoch, policy_text(traffic.config))
    for number, event in enumerate(traffic.events(requests)):
        log.decided(event.facts, traffic.policy.epoch, event.view, event.decision, event.now, event.receipt.label_sources)
        log.ended(event.receipt)
        if number % 10 == 9:  # many appends, as a router at work makes them
            asyncio.run(log.durably("note", f"note-{number}", {}))
    for number in range(4):
        asyncio.run(log.durably("note", f"last-{number}", {}))
    log.close(60)


def tamper_with(work: Path, count: int, seed: int, requests: int = 700, names: Sequence[str] = tuple(TAMPERINGS)) -> Tally:
    """Tamper `count` times, in turn by every way in `names`, and verify each time.

    The auditor holds the verifier key and nothing else; for rollbacks and forks also a checkpoint.
    """
    rng = random.Random(seed)
    signer = Signer(rng.randbytes(32))
    original, copy = work / "log", work / "copy"
    build_log(original, signer, seed, requests)
    clean = verify_log(original, [signer.verifier])
    if not clean.ok:
        raise AssertionError(f"the log is not sound to begin with: {clean.problems}")
    origin = open_note((original / "head").read_bytes(), [signer.verifier]).origin
    tally = Tally()
    number = 0
    while tally.total < count:
        name = names[number % len(names)]
        number += 1
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(original, copy)
        what = TAMPERINGS[name](copy, rng)
        if what is None:
            continue
        tally.tried[name] += 1
        report = verify_log(copy, [signer.verifier])
        if report.ok:
            tally.missed.append(f"{name}: {what} ({origin})")
    return tally


def roll_back(work: Path, count: int, seed: int) -> Tally:
    """Roll logs back and fork them `count` times, and verify each against a checkpoint held elsewhere."""
    rng = random.Random(seed)
    signer = Signer(rng.randbytes(32))
    original = work / "source"
    build_log(original, signer, seed, 150)
    entries = [entry for _, entry in LogReader(original).entries()]
    tally = Tally()
    while tally.total < count:
        for name, attacked, held in rollbacks(work, signer, entries, rng):
            tally.tried[name] += 1
            if verify_log(attacked, [signer.verifier], [held]).ok:
                tally.missed.append(f"{name}: not found against the checkpoint held")
    return tally
