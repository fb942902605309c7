"""Decisions written by the log's thread and made again from the log alone."""

from __future__ import annotations

from pathlib import Path

from _ledger.detect import build_log
from router.ledger.checkpoint import Signer
from router.ledger.reader import LogReader
from router.ledger.replay import Gap, Replayer, decide_again, differences


class Agreement:
    """How many decisions came out as they were recorded."""

    def __init__(self) -> None:
        self.decisions = 0
        self.agreed = 0
        self.problems: list[str] = []


def replay(work: Path, decisions: int, seed: int) -> Agreement:
    """Record `decisions` decisions over a changing fleet, and make each again."""
    root = work / "replayed"
    build_log(root, Signer(seed.to_bytes(32, "big")), seed, decisions, segment_bytes=1 << 20)
    result = Agreement()
    make_again(root, result)
    if result.decisions != decisions:
        result.problems.append(f"{decisions} were made, {result.decisions} are in the log")
    return result


def make_again(root: Path, result: Agreement) -> None:
    """Make every decision of a log again, and count those that came out as recorded."""
    for found in Replayer(LogReader(root)).situations():
        result.decisions += 1
        said = [found.reason] if isinstance(found, Gap) else differences(decide_again(found), found.data)
        result.agreed += not said
        result.problems += said[:1]
