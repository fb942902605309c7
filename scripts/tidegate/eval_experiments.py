"""What the audit log says about experiments: each side of an A/B trial against everybody else, and what shadows found."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from router.config import AUTO
from router.ledger import records
from tidegate.curves import Interval, interval_between, mean_interval, share_interval
from tidegate.report import OWN

REST = "everybody else"
FIGURES = ("score", "failed", "escalated", "seconds", "tokens")
"""Rated score 0..1, share of errors, share of cascades that asked a larger model, seconds per answer, tokens per request."""

SHARES = ("failed", "escalated")


@dataclass
class Arm:
    """One side of an experiment: a list of numbers for each figure."""

    requests: int = 0
    figures: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in FIGURES})


@dataclass
class Shadows:
    """What a shadow trial found; costs in US dollars and times in seconds are shadow less client's answer."""

    looked: int = 0
    differs: int = 0
    agrees: list[float] = field(default_factory=list)
    usd: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Line:
    """One figure of one side: its own interval, and the difference to everybody else's where both have enough."""

    figure: str
    value: Interval
    difference: Interval | None


def read_experiments(entries: Iterable[records.Record], since: float = 0.0) -> tuple[dict[str, Arm], dict[str, Shadows]]:
    """The sides of all experiments in a log, and what shadows found.

    Args:
        entries: the records, in order.
        since: UNIX time in seconds from which on they count.
    """
    arms: dict[str, Arm] = {}
    shadows: dict[str, Shadows] = {}
    sides: dict[str, Arm] = {}
    for record in entries:
        if record.t < since:
            continue
        if record.e == records.END:
            data = records.read_data(record, records.EndData)
            if data.requested_model == AUTO and data.mode not in OWN:
                arm = sides[record.id] = arms.setdefault(data.trial or REST, Arm())
                _take_end(arm, data)
        elif record.e == records.FEEDBACK:
            rating = records.read_data(record)
            if rating["weight"] >= 1.0 and record.id in sides:
                sides.pop(record.id).figures["score"].append(float(rating["score"]))
        elif record.e == records.SHADOW:
            found = records.read_data(record)
            _take_shadow(shadows.setdefault(found["trial"], Shadows()), found)
    return arms, shadows


def compare_arms(arms: dict[str, Arm]) -> dict[str, list[Line]]:
    """By side, every figure there are numbers for, with 95 % intervals."""
    rest = arms.get(REST, Arm())
    lines: dict[str, list[Line]] = {}
    for name in sorted(arms, key=lambda name: (name != REST, name)):
        lines[name] = []
        for figure, values in arms[name].figures.items():
            if not values:
                continue
            against = rest.figures[figure]
            both = name != REST and len(values) > 1 and len(against) > 1
            own = _interval(figure, values)
            lines[name].append(Line(figure, own, interval_between(_interval(figure, against), own) if both else None))
    return lines


def _interval(figure: str, values: list[float]) -> Interval:
    return share_interval(values) if figure in SHARES else mean_interval(values)


def _take_end(arm: Arm, data: records.EndData) -> None:
    arm.requests += 1
    figures = arm.figures
    figures["failed"].append(float(data.status >= 400 or bool(data.code)))
    figures["escalated"].append(float(any(step.name == "larger" for step in data.steps)))
    figures["seconds"].append(data.ended - data.received)
    if data.prompt_tokens >= 0:
        figures["tokens"].append(float(data.prompt_tokens + max(0, data.completion_tokens)))


def _take_shadow(shadows: Shadows, found: dict[str, object]) -> None:
    shadows.looked += 1
    if not found["differs"]:
        return
    shadows.differs += 1
    shadows.agrees.append(float(bool(found["agrees"])))
    own, main = found["usd"], found["main_usd"]
    if isinstance(own, int | float) and isinstance(main, int | float):
        shadows.usd.append(own - main)
    own, main = found["seconds"], found["main_seconds"]
    if isinstance(own, int | float) and isinstance(main, int | float):
        shadows.seconds.append(own - main)
