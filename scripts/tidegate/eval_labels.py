"""What the audit log says about the label loop: how many labels there are and of what kind, and what every refit came to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime

import msgspec

from router.ledger import records
from tidegate.curves import Interval, mean_interval
from tidegate.promotion import Refit
from tidegate.train_commands import lines_of


@dataclass
class LabelStory:
    """`kinds` counts labels by what scored them, `failures` attempts that made none by their reason."""

    kinds: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    small: list[float] = field(default_factory=list)
    large: list[float] = field(default_factory=list)
    refits: list[Refit] = field(default_factory=list)
    taken: list[tuple[float, str]] = field(default_factory=list)
    """When some router began to use which weights."""

    @property
    def empty(self) -> bool:
        """Whether the log says nothing of labels."""
        return not (self.kinds or self.failures or self.refits or self.taken)


def read_story(entries: Iterable[records.Record], since: float = 0.0) -> LabelStory:
    """The labels and refits in a log, from a UNIX time on."""
    story = LabelStory()
    for record in entries:
        if record.t < since:
            continue
        if record.e == records.LABEL:
            found = records.read_data(record)
            if found["by"]:
                story.kinds[found["by"]] += 1
                story.small.append(float(found["small"]))
                story.large.append(float(found["large"]))
            else:
                story.failures[found["why"]] += 1
        elif record.e == records.REFIT:
            story.refits.append(msgspec.convert(records.read_data(record), Refit))
        elif record.e == records.WEIGHTS:
            story.taken.append((record.t, record.id))
    return story


def lines_about(story: LabelStory) -> list[str]:
    """The story in words, oldest first."""
    lines = []
    if story.kinds or story.failures:
        by = ", ".join(f"{count} by {kind}" for kind, count in story.kinds.most_common())
        lines.append(f"labels: {sum(story.kinds.values())}{f' ({by})' if by else ''}")
        lines += [f"  {count} attempts made none: {why}" for why, count in story.failures.most_common()]
        for name, scores in (("small", story.small), ("large", story.large)):
            if scores:
                lines.append(f"  {name} {_said(mean_interval(scores))}")
    for refit in story.refits:
        lines.append(f"refit {_when(refit.at)}")
        lines += [f"  {line}" for line in lines_of(refit)]
    lines += [f"weights {digest} in use by a router since {_when(at)}" for at, digest in story.taken]
    return lines


def _said(value: Interval) -> str:
    return f"{value.value:.3f} [{value.low:.3f}, {value.high:.3f}]"


def _when(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M} UTC"
