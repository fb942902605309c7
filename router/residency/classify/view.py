"""One slice of a folded text, as the finders see it, and the work they may spend on it."""

from __future__ import annotations

from router.residency.classify.cues import Cue, Cues
from router.residency.classify.kinds import Kind

NEAR, WIDE, AFTER = 22, 64, 20
"""Characters before a candidate in which a cue decides, in which it helps, and characters after it."""
SURE = 0.9


class OverBudget(Exception):
    """More candidates than honest text of this length has."""


class Hit:
    """A candidate that passed, in positions of the slice."""

    __slots__ = ("confidence", "end", "kind", "scheme", "start")

    def __init__(self, kind: Kind, start: int, end: int, confidence: float, scheme: str) -> None:
        self.kind = kind
        self.start = start
        self.end = end
        self.confidence = confidence
        self.scheme = scheme


class View:
    """A slice.

    Args:
        text: the folded slice with what stands around it.
        first: where candidates may begin; before it is only context, which the slice before reports.
        last: the end of where they may begin.
        cues: the cue words.
        units: the work that may be spent: about 10 us each.
    """

    __slots__ = ("_cues", "_near", "data", "first", "hits", "last", "text", "units")

    def __init__(self, text: str, first: int, last: int, cues: Cues, units: float) -> None:
        self.text = text
        self.data = text.encode("ascii", "replace")
        """One byte per character: what is not ASCII is `?` here."""
        self.first = first
        self.last = last
        self.units = units
        self.hits: list[Hit] = []
        self._cues = cues
        self._near: dict[tuple[int, int], tuple[frozenset[Cue], frozenset[Cue]]] = {}

    def spend(self, units: float) -> None:
        """Account for work.

        Raises:
            OverBudget: there is none left.
        """
        self.units -= units
        if self.units < 0:
            raise OverBudget

    def owns(self, start: int) -> bool:
        """Whether a candidate that begins here is this slice's to report."""
        return self.first <= start < self.last

    def add(self, kind: Kind, start: int, end: int, confidence: float, scheme: str = "") -> None:
        """Report a hit."""
        self.hits.append(Hit(kind, start, end, confidence, scheme))

    def cues(self, start: int, end: int) -> tuple[frozenset[Cue], frozenset[Cue]]:
        """Cues close before a candidate, and all around it."""
        known = self._near.get((start, end))
        if known is None:
            self.spend(0.5)
            text = self.text
            near = self._cues.near(text[max(0, start - NEAR) : start], "")
            wide = self._cues.near(text[max(0, start - WIDE) : start], text[end : end + AFTER])
            known = self._near[start, end] = near, wide
        return known

    def weigh(self, base: float, start: int, end: int, wanted: frozenset[Cue]) -> float:
        """`base` confidence, with what the words around say: a cue makes sure, a benign word takes away, nearer ones win."""
        near, wide = self.cues(start, end)
        if near & wanted:
            return max(base, SURE) if Cue.BENIGN not in near else min(base + 0.15, SURE)
        if Cue.BENIGN in near:
            return base - 0.25
        if wide & wanted:
            return max(base, SURE - 0.05) if Cue.BENIGN not in wide else min(base + 0.2, SURE)
        return base - 0.15 if Cue.BENIGN in wide else base
