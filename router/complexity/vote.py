"""Voting: several models answer, one answer wins. For keys that ask for it with `x-tidegate-mode: vote`."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from router.complexity.cascade import plain_answer

HEADER = b"x-tidegate-mode"


class Ballot(msgspec.Struct, frozen=True, gc=False):
    """One model's answer; `rank` orders models (higher is better) for ties, `weight` is what its vote counts."""

    model: str
    text: str
    rank: int = 0
    weight: float = 1.0
    failed: bool = False


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """The place of the winning ballot (-1: none), the weight behind it, and how it came about."""

    winner: int
    support: float
    reason: str


def wants_vote(value: bytes) -> bool:
    """Whether the header's value asks for a vote."""
    return value.strip().lower() == b"vote"


def count_votes(ballots: Sequence[Ballot]) -> Outcome:
    """The answer with most weight behind it; among equals the one of the best model; empty and failed ones do not vote.

    Free text rarely agrees word for word: then the best model's answer stands and the reason says that nobody agreed.
    """
    valid = [place for place, ballot in enumerate(ballots) if not ballot.failed and ballot.text.strip()]
    if not valid:
        return Outcome(-1, 0.0, "no model answered")
    groups: dict[str, list[int]] = {}
    for place in valid:
        groups.setdefault(plain_answer(ballots[place].text), []).append(place)
    total = sum(ballots[place].weight for place in valid) or 1.0

    def strength(places: list[int]) -> tuple[float, int]:
        return sum(ballots[place].weight for place in places), max(ballots[place].rank for place in places)

    best = max(groups.values(), key=strength)
    winner = max(best, key=lambda place: ballots[place].rank)
    support = strength(best)[0] / total
    if len(best) == 1 and len(valid) > 1:
        winner = max(valid, key=lambda place: ballots[place].rank)
        return Outcome(winner, ballots[winner].weight / total, "no two models agree: the best model's answer")
    return Outcome(winner, support, f"{len(best)} of {len(ballots)} models agree")
