"""Kill a router's log at every step of its writing, over and over, and see what is left.

Children are forked; each goes on with the log that the one before it left, tells its parent through a pipe what it handed
over and what was acknowledged, and kills itself with SIGKILL at a step drawn beforehand, in the middle of a write if it is one.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Sequence
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
from router.ledger.writer import LogWriter
from router.placement.targets import Kind

WINDOW_S = 0.1


def _withheld(threads: Sequence[int]) -> str:
    """Nanoseconds that each of these threads has been ready to run and was given no processor: by others, not by the log."""
    return " ".join(Path(f"/proc/self/task/{thread}/schedstat").read_text().split()[1] for thread in threads)


class CrashingDisk(Disk):
    """A disk under which the process dies at step `at`: a write leaves only a part of itself, the rest happens or not."""

    def __init__(self, at: int, rng: random.Random, say: int) -> None:
        self._left = at
        self._random = rng
        self._say = say
        self.threads: tuple[int, ...] = ()
        """The event loop's thread and the one that writes."""

    def _step(self) -> bool:
        self._left -= 1
        return self._left < 0

    def _die(self) -> None:
        os.write(self._say, f"K died {time.monotonic()} {_withheld(self.threads)}\n".encode())
        os.kill(os.getpid(), signal.SIGKILL)

    def write(self, descriptor: int, data: bytes) -> None:
        """Write all, or die within."""
        if self._step():
            super().write(descriptor, data[: self._random.randrange(len(data) + 1)])
            self._die()
        super().write(descriptor, data)

    def sync(self, descriptor: int) -> None:
        """Die before or after."""
        dies = self._step()
        if dies and self._random.random() < 0.5:
            self._die()
        super().sync(descriptor)
        if dies:
            self._die()

    def truncate(self, descriptor: int, size: int) -> None:
        """Die before."""
        if self._step():
            self._die()
        super().truncate(descriptor, size)

    def rename(self, old: Path, new: Path) -> None:
        """Die before or after."""
        dies = self._step()
        if dies and self._random.random() < 0.5:
            self._die()
        super().rename(old, new)
        if dies:
            self._die()

    def remove(self, path: Path) -> None:
        """Die before."""
        if self._step():
            self._die()
        super().remove(path)

    def sync_directory(self, path: Path) -> None:
        """Die before."""
        if self._step():
            self._die()
        super().sync_directory(path)


class Losses:
    """What the crashes cost."""

    def __init__(self) -> None:
        self.crashes = 0
        self.records = 0
        self.external = 0
        self.lost_external = 0
        self.lost_local = 0
        self.late = 0
        self.oldest_lost_s = 0.0
        """The age of the oldest local record lost, without the time for which the machine gave the router no processor."""
        self.oldest_with_waiting_s = 0.0
        self.torn = 0
        self.problems: list[str] = []


def crash(work: Path, count: int, seed: int, generations: int = 40) -> Losses:
    """Crash `count` times; a new log is begun after every `generations` crashes."""
    rng = random.Random(seed)
    signer = Signer(rng.randbytes(32))
    losses = Losses()
    acknowledged: set[str] = set()
    for number in range(count):
        root = work / "crashing"
        if number % generations == 0:
            shutil.rmtree(root, ignore_errors=True)
            acknowledged = set()
        told = _run_child(root, signer, number, rng.randrange(2, 90))
        losses.crashes += 1
        _examine(root, signer, told, acknowledged, losses)
    return losses


def _run_child(root: Path, signer: Signer, number: int, at: int) -> list[list[str]]:
    """What the child said until it died, line by line."""
    hear, say = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(hear)
        try:
            logging.disable()
            _live(root, signer, number, at, say)
        finally:
            os._exit(0)
    os.close(say)
    with os.fdopen(hear) as pipe:
        told = [line.split() for line in pipe]
    os.waitpid(child, 0)
    return told


def _live(root: Path, signer: Signer, number: int, at: int, say: int) -> None:
    disk = CrashingDisk(at, random.Random(number), say)
    store = LogStore(root, signer, disk=disk, segment_bytes=20_000)
    traffic = Traffic(number)
    writer = LogWriter(store, window_s=WINDOW_S / 2)
    log = AuditLog(writer, traffic.policy.label_text)
    log.policy(traffic.policy.epoch, policy_text(traffic.config))
    disk.threads = (threading.get_native_id(), *writer.threads[:1])
    asyncio.run(_serve(log, traffic, disk.threads, number, say))
    log.close()


async def _serve(log: AuditLog, traffic: Traffic, threads: Sequence[int], number: int, say: int) -> None:
    rng = random.Random(number)
    for event in traffic.events(3000):
        name = f"{number}-{event.facts.request_id}"
        os.write(say, f"L {name} {time.monotonic()} {_withheld(threads)}\n".encode())
        log.event("note", name, {})
        log.decided(event.facts, traffic.policy.epoch, event.view, event.decision, event.now)
        choice = event.decision.chosen
        if choice is not None and choice.target.kind is Kind.CLOUD:
            await log.intent(event.facts, choice, traffic.policy.epoch, 1, "cloud/cloud/")
        if rng.random() < 0.1:
            await log.durably(records.INTENT, name, {})
            os.write(say, f"X {name}\n".encode())  # from here on bytes would leave the cluster
        elif rng.random() < 0.2:
            await asyncio.sleep(0.001)


def _examine(root: Path, signer: Signer, told: list[list[str]], acknowledged: set[str], losses: Losses) -> None:
    """Verify what a crash left, recover it, verify again, and look for what must be there."""
    if (root / "journal").is_dir() and any((root / "journal").iterdir()):
        before = verify_log(root, [signer.verifier])
        if before.size and not before.ok:
            losses.problems += [f"before recovery: {problem}" for problem in before.problems[:3]]
    store = LogStore(root, signer, segment_bytes=20_000)
    losses.torn += bool(store.recovered_bytes)
    store.close()
    report = verify_log(root, [signer.verifier])
    if report.size and not report.ok:
        losses.problems += [f"after recovery: {problem}" for problem in report.problems[:3]]
    found = {(record.e, record.id) for record in LogReader(root).records()}
    acknowledged |= {line[1] for line in told if line[0] == "X"}
    losses.records += len(found)
    losses.external += sum(line[0] == "X" for line in told)
    losses.lost_external += sum((records.INTENT, name) not in found for name in acknowledged)
    died = next((line for line in told if line[0] == "K"), ["K", "died", "0"])
    lost = [line for line in told if line[0] == "L" and ("note", line[1]) not in found]
    ages = [_age(line, died) for line in lost]
    losses.lost_local += len(ages)
    losses.late += sum(age > WINDOW_S for age in ages)
    losses.oldest_lost_s = max([losses.oldest_lost_s, *ages])
    losses.oldest_with_waiting_s = max([losses.oldest_with_waiting_s, *(float(died[2]) - float(line[2]) for line in lost)])


def _age(handed_over: list[str], died: list[str]) -> float:
    """Seconds between two lines, less those for which one of the threads waited for a processor."""
    waited = max((int(after) - int(before) for before, after in zip(handed_over[3:], died[3:], strict=False)), default=0)
    return max(0.0, float(died[2]) - float(handed_over[2]) - waited / 1e9)
