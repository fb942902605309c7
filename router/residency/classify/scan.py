"""The scanner: slices of a text, folded, through every finder, under a budget of work.

The budget counts candidates, not time, so the same text always has the same answer. It grows with the text (honest text has
some 20 candidates in 1,000 characters); text that has more is *unknown*, which callers treat as the strictest answer. Work
comes in slices of `SLICE` characters, a few milliseconds at most, between which an event loop may do something else.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Generator, Iterable, Iterator

from router.residency.classify.codes import CodeFinder
from router.residency.classify.cues import Cues
from router.residency.classify.decode import decoded_parts
from router.residency.classify.digits import DigitFinder
from router.residency.classify.fold import fold, make_table
from router.residency.classify.kinds import Finding, Kind, Scan
from router.residency.classify.labelled import LabelledFinder
from router.residency.classify.schemes import make_schemes
from router.residency.classify.secret_values import SecretFinder
from router.residency.classify.view import Hit, OverBudget, View

SLICE = 2048
OVERLAP = 256
"""Characters of context on both sides of a slice: more than any identifier and its cue need."""
UNITS_PER_SLICE = 300
"""About 10 us each. The worst slice takes some 5 ms."""
YIELD_AFTER_S = 0.002
_HIDDEN = re.compile(
    "[\u00ad\u034f\u115f\u1160\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0]{3}|[\U000e0000-\U000e01ef]{8}|[\u0300-\u036f\u20d0-\u20ff]{4}"
)
"""Runs of invisible characters and stacks of marks that no script and no emoji has: they are there to hide something, and could
stretch an identifier beyond the overlap of two slices."""


class Scanner:
    """Finds sensitive values in text; stateless once built, so one may serve many threads.

    Args:
        countries: two-letter prefixes of national schemes to look for; None looks for all.
        min_confidence: below it nothing is reported.
    """

    __slots__ = ("_codes", "_cues", "_digits", "_labelled", "_minimum", "_secrets", "_table")

    def __init__(self, countries: Iterable[str] | None = None, min_confidence: float = 0.5) -> None:
        kept = None if countries is None else frozenset(countries)
        self._table = make_table()
        self._cues = Cues(self._table)
        self._digits = DigitFinder(make_schemes(kept))
        self._codes = CodeFinder(kept)
        self._labelled = LabelledFinder(self._table)
        self._secrets = SecretFinder()
        self._minimum = min_confidence

    def scan(self, text: str) -> Scan:
        """Scan a text in one go: about 0.5 ms per 1,000 characters."""
        steps = self.steps(text)
        while True:
            try:
                next(steps)
            except StopIteration as stopped:
                result: Scan = stopped.value
                return result

    async def scan_gently(self, text: str) -> Scan:
        """Scan a text, giving the event loop its turn every few milliseconds."""
        steps = self.steps(text)
        began = time.perf_counter()
        while True:
            try:
                next(steps)
            except StopIteration as stopped:
                result: Scan = stopped.value
                return result
            if time.perf_counter() - began >= YIELD_AFTER_S:
                await asyncio.sleep(0)
                began = time.perf_counter()

    def steps(self, text: str) -> Generator[None, None, Scan]:
        """Scan slice by slice; yields after each, returns the result."""
        found = list(_armoured(text))
        for low in range(0, max(len(text), 1), SLICE):
            try:
                found += self._slice(text, low)
            except OverBudget:
                return Scan(_in_order(found), "budget")
            yield
        return Scan(_in_order(found))

    def _slice(self, text: str, low: int) -> list[Finding]:
        start, high = max(0, low - OVERLAP), low + SLICE
        piece = text[start : high + OVERLAP]
        if not piece.isascii() and _HIDDEN.search(piece):
            raise OverBudget
        folded = fold(piece, self._table)
        first = len(fold(text[start:low], self._table).text) if start < low else 0
        last = len(fold(text[start:high], self._table).text)
        view = View(folded.text, first, last, self._cues, UNITS_PER_SLICE)
        self._find(view)
        found = []
        for hit in view.hits:
            if hit.confidence >= self._minimum:
                begin, end = folded.span(hit.start, hit.end)
                found.append(_finding(hit, start + begin, start + end))
        found += self._disguised(view, folded.text, start, folded.span)
        return found

    def _find(self, view: View) -> None:
        self._secrets.find(view)
        self._codes.find(view)
        self._digits.find(view)
        self._labelled.find(view)

    def _disguised(self, view: View, text: str, offset: int, span: Callable[[int, int], tuple[int, int]]) -> list[Finding]:
        """What is found under one layer of encoding; it stands where the whole encoded part stands."""
        found = []
        for low, high, inside in decoded_parts(text):
            if not view.owns(low):
                continue
            view.spend(2)
            plain = fold(inside[:SLICE], self._table).text
            # The words before the wrapping are cues for what is inside it.
            before = text[max(0, low - 64) : low] + " "
            inner = View(before + plain, len(before), len(before) + len(plain), self._cues, view.units)
            self._find(inner)
            view.units = inner.units
            begin, end = span(low, high)
            found += [
                _finding(hit, offset + begin, offset + end) for hit in inner.hits if hit.confidence >= max(self._minimum, 0.6)
            ]
            if len(inside) > SLICE:
                raise OverBudget
        return found


def _finding(hit: Hit, start: int, end: int) -> Finding:
    return Finding(hit.kind, start, end, round(hit.confidence, 2), hit.scheme)


def _armoured(text: str) -> Iterator[Finding]:
    """Private keys between their BEGIN and END lines, which may be slices apart; without END, all the rest."""
    at = 0
    while (middle := text.find("PRIVATE KEY", at)) >= 0:
        begin = text.rfind("-----BEGIN", max(at, middle - 32), middle)
        at = middle + 11
        if begin >= 0:
            # Only here: looked for at every mention of a key, a text without it would be gone through once for each.
            end = text.find("-----END", middle)
            closing = text.find("-----", end + 8, end + 64) if end >= 0 else -1
            at = len(text) if end < 0 else closing + 5 if closing >= 0 else end + 8
            yield Finding(Kind.SECRET, begin, at, 0.99, "private_key")


def _in_order(found: list[Finding]) -> tuple[Finding, ...]:
    """By place, each once. Findings may overlap: digits that are both a bank account and a tax number are either."""
    return tuple(sorted(set(found), key=lambda f: (f.start, -f.end, f.kind)))


def merged(found: Iterable[Finding]) -> tuple[Finding, ...]:
    """Findings that do not overlap: of those that do, the surest, then the longest, stays, stretched over all of them."""
    kept: list[Finding] = []
    for item in sorted(found, key=lambda f: (f.start, -f.end)):
        if kept and item.start < kept[-1].end:
            last = kept[-1]
            best = max(last, item, key=lambda f: (f.confidence, f.end - f.start))
            kept[-1] = Finding(best.kind, last.start, max(last.end, item.end), best.confidence, best.scheme)
        else:
            kept.append(item)
    return tuple(kept)
