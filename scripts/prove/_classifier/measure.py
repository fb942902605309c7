"""Recall, false alarms and time of the classifier."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable

from _classifier.corpus import Message
from router.residency.classify.scan import Scanner


class Score:
    """Counts over one part of the corpus."""

    def __init__(self) -> None:
        self.found: Counter[str] = Counter()
        self.there: Counter[str] = Counter()
        self.alarms: Counter[str] = Counter()
        self.clean: Counter[str] = Counter()
        self.missed: list[Message] = []
        self.alarmed: list[Message] = []
        self.characters = 0
        self.seconds = 0.0

    @property
    def recall(self) -> float:
        """Share of the sensitive values that were found."""
        return sum(self.found.values()) / max(1, sum(self.there.values()))

    @property
    def false_alarms(self) -> float:
        """Share of the hard negatives in which something was found."""
        return sum(self.alarms.values()) / max(1, sum(self.clean.values()))


def measure(scanner: Scanner, messages: Iterable[Message]) -> Score:
    """Scan every message; a value counts as found when a finding covers at least half of it."""
    score = Score()
    for message in messages:
        began = time.thread_time()
        result = scanner.scan(message.text)
        score.seconds += time.thread_time() - began
        score.characters += len(message.text)
        if message.span is None:
            score.clean[message.kind] += 1
            if result.findings or result.unknown:
                score.alarms[message.kind] += 1
                score.alarmed.append(message)
            continue
        low, high = message.span
        score.there[message.kind] += 1
        covered = max((min(f.end, high) - max(f.start, low) for f in result.findings), default=0)
        if covered * 2 >= high - low:
            score.found[message.kind] += 1
        else:
            score.missed.append(message)
    return score
