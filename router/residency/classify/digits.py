"""Numbers: cards, national and tax numbers, phones. One pass finds runs of digits; checks then say what a run is."""

from __future__ import annotations

import re
from collections.abc import Iterator

import re2

from router.residency.classify.checks import card_network, weighted
from router.residency.classify.cues import Cue
from router.residency.classify.kinds import Kind
from router.residency.classify.phones import phone_confidence
from router.residency.classify.schemes import Scheme
from router.residency.classify.view import View

_RUN = re2.compile(rb"\+?\(?\d(?:[ \t().\-/]{0,3}\d){5,}")
_BROKEN = re2.compile(rb"\b\d{4}(?:[ \-]\d{4,6}){0,3}[ \-]{0,2}\r?\n[ \t>]{0,4}\d{4,6}(?:[ \-]\d{4,6}){0,2}\b")
"""Groups as they are printed on a card, with the end of one line between them. More ends would be a column of a table."""
_GROUP = re.compile(r"\d+")
_DATE = re.compile(
    r"(?<!\d)(?:(?:19|20)\d\d([-/.])(?:0?[1-9]|1[0-2])\1(?:0?[1-9]|[12]\d|3[01])|(?:0?[1-9]|[12]\d|3[01])([-/.])(?:0?[1-9]|[12]\d|3[01])\2(?:19|20)\d\d)(?!\d)(?:[ T]\d\d\b)?"
)
_AMOUNT = re.compile(r"\d{1,3}(?:\.\d{3})+\Z|\d{1,3}\.\d{4,}\Z|\d+\.\d{1,2}\Z")
_ADDRESS = re.compile(r"(?:25[0-5]|2[0-4]\d|1?\d?\d)(?:\.(?:25[0-5]|2[0-4]\d|1?\d?\d)){3}\Z")
_CARD_CUES = frozenset({Cue.CARD, Cue.BANK})
_PHONE_CUES = frozenset({Cue.PHONE, Cue.CALL})
_CARD_SHAPES = frozenset({"4-4-4-4", "4-6-5", "4-4-4-4-3", "4-6-4"})
_MAX_DIGITS, _MIN_DIGITS = 22, 7
_BROKEN_CARD = 0.6
_LABELLED_MIN = 0.62
"""What digits that somebody calls a personal number are worth when no check fits them: a typo, or a scheme not known here."""

_HEX = re.compile(r"(?i)[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|(?<![0-9a-z])(?=[0-9]{0,40}[a-f])[0-9a-f]{16,80}(?![0-9a-z])")
_DOTTED = frozenset("0123456789.")
_SECONDS = re.compile(r"1[4-8]\d{8}(?:\d{3})?\Z")
_DAY = re.compile(r"20[0-3]\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])(?:\d{4}|\d{6})?\Z")

Group = tuple[int, int]


class DigitFinder:
    """Finds what is written in digits only.

    Args:
        schemes: `make_schemes()`.
    """

    __slots__ = ("_schemes",)

    def __init__(self, schemes: dict[int, tuple[Scheme, ...]]) -> None:
        self._schemes = schemes

    def find(self, view: View) -> None:
        """Report every number of this slice.

        Raises:
            OverBudget: too many candidates.
        """
        for match in _RUN.finditer(view.data):
            start, end = match.span()
            if end <= view.first:
                continue
            if start >= view.last:
                break
            view.spend(1)
            for low, high in _without_dates(view.text, start, end):
                self._run(view, low, high)
        if "\n" in view.text:
            self._broken_cards(view)

    def _broken_cards(self, view: View) -> None:
        """Cards that go on in the next line, as mails and PDFs break them."""
        for match in _BROKEN.finditer(view.data):
            start, end = match.span()
            if not view.owns(start):
                continue
            view.spend(0.5)
            groups = [m.group() for m in _GROUP.finditer(view.text, start, end)]
            digits = "".join(groups)
            network = card_network(digits) if "-".join(str(len(group)) for group in groups) in _CARD_SHAPES else ""
            confidence = view.weigh(_BROKEN_CARD, start, end, _CARD_CUES) if network else 0.0
            if confidence >= 0.5:
                view.add(Kind.CARD, start, end, confidence, network)

    def _run(self, view: View, start: int, end: int) -> None:
        """One run: as a whole, else the numbers within it."""
        text = view.text[start:end]
        if _ADDRESS.match(text):
            return
        groups = [(start + m.start(), start + m.end()) for m in _GROUP.finditer(text)]
        total = sum(high - low for low, high in groups)
        if total < _MIN_DIGITS - 1:
            return
        if total <= _MAX_DIGITS and self._try(view, groups, whole=True):
            return
        if len(groups) > 1 or total > _MAX_DIGITS:
            self._parts(view, groups)

    def _parts(self, view: View, groups: list[Group]) -> None:
        """Numbers inside a longer run: contiguous groups with one kind of separator between them."""
        i = 0
        while i < len(groups):
            j, digits, taken = i, 0, 0
            separator = ""
            ends: list[int] = []
            while j < len(groups):
                digits += groups[j][1] - groups[j][0]
                if digits > _MAX_DIGITS:
                    break
                if j > i:
                    between = view.text[groups[j - 1][1] : groups[j][0]]
                    if separator and between != separator:
                        break
                    separator = between
                if digits >= _MIN_DIGITS:
                    ends.append(j)
                j += 1
            for end in reversed(ends):
                view.spend(1)
                if self._try(view, groups[i : end + 1], whole=False):
                    taken = end + 1
                    break
            i = taken or i + 1

    def _try(self, view: View, groups: list[Group], whole: bool) -> bool:
        """Report these groups if they are one identifier."""
        start, end = groups[0][0], groups[-1][1]
        digits = "".join(view.text[low:high] for low, high in groups)
        glued = _is_glued(view.text, start, end)
        if (glued or view.text[end : end + 1] == "-") and _in_uuid(view.text, start, end):
            return False
        best, kind, name = self._identify(view, digits, groups, start, end)
        if whole or len(groups) == 1:
            phone = phone_confidence(view, digits, groups, start, end)
            # The word beside it decides between a phone and an identifier whose check fits by chance.
            if phone > best or (phone >= 0.8 and kind is not Kind.CARD and view.cues(start, end)[0] & _PHONE_CUES):
                best, kind, name = phone, Kind.PHONE, ""
        if best < 0.88 and _AMOUNT.match(view.text[start:end]) and Cue.PERSON not in view.cues(start, end)[0]:
            best = 0.0
        if glued:
            best -= 0.25
        if not whole and len(groups) > 1:
            best -= 0.05
        if best < 0.5:
            return False
        if view.owns(start):
            view.add(kind, _begin(view.text, start, kind), end, min(best, 0.99), name)
        return True

    def _identify(self, view: View, digits: str, groups: list[Group], start: int, end: int) -> tuple[float, Kind, str]:
        best, kind, name = 0.0, Kind.NATIONAL_ID, ""
        shape = "-".join(str(high - low) for low, high in groups)
        network = card_network(digits)
        if network:
            view.spend(0.5)
            usual = len(digits) in (15, 16)
            base = (0.82 if usual else 0.55 if len(digits) > 16 else 0.4) + (0.08 if shape in _CARD_SHAPES else 0.0)
            best, kind, name = view.weigh(base, start, end, _CARD_CUES), Kind.CARD, network
        if len(set(digits)) <= 1:
            return best, kind, name
        odd = _oddness(digits, groups, not set(view.text[start:end]) - _DOTTED)
        for scheme in self._schemes.get(len(digits), ()):
            view.spend(0.25)
            if not _passes(scheme, digits):
                continue
            base = scheme.shaped if shape in scheme.shapes else scheme.plain - odd
            value = view.weigh(base, start, end, scheme.cues)
            if value > best:
                best, kind, name = value, scheme.kind, scheme.name
        if best < 0.5 and 8 <= len(digits) <= 18 and len(groups) <= 6:
            near, _ = view.cues(start, end)
            if Cue.BENIGN not in near and (Cue.PERSON in near or Cue.HEALTH in near):
                health = Cue.HEALTH in near and Cue.PERSON not in near
                return _LABELLED_MIN, Kind.HEALTH_ID if health else Kind.NATIONAL_ID, ""
        return best, kind, name


def _oddness(digits: str, groups: list[Group], dotted: bool) -> float:
    """What speaks against an identifier that is not printed like this: uneven groups, dots as in a version, a book's number, a time in seconds."""
    sizes = {high - low for low, high in groups[:-1]}
    odd = 0.25 if len(sizes) > 1 else 0.0
    if dotted and len(groups) > 2:
        odd += 0.25
    if len(digits) == 13 and digits.startswith(("978", "979")) and weighted(digits, (1, 3) * 7, 10) == 0:
        odd += 0.4
    if len(groups) == 1 and (_SECONDS.match(digits) or _DAY.match(digits)):
        odd += 0.1
    return odd


def _in_uuid(text: str, start: int, end: int) -> bool:
    """Whether the digits are part of a UUID or of a longer hexadecimal number."""
    low = max(0, start - 40)
    return any(m.start() + low < end and m.end() + low > start for m in _HEX.finditer(text[low : end + 40]))


def _passes(scheme: Scheme, digits: str) -> bool:
    try:
        return bool(scheme.check(digits))
    except (ValueError, IndexError, ArithmeticError):
        return False


def _without_dates(text: str, start: int, end: int) -> Iterator[Group]:
    """The run less the calendar dates in it: a date beside an identifier is no part of it."""
    at = start
    for match in _DATE.finditer(text, start, end):
        if match.start() - at >= 6:
            yield at, match.start()
        at = match.end()
    if end - at >= 6:
        yield at, end


def _is_glued(text: str, start: int, end: int) -> bool:
    """Whether the digits are part of a longer code: letters touch them, directly or over a hyphen."""
    before = text[max(0, start - 2) : start]
    after = text[end : end + 2]
    if before and (
        _is_letter(before[-1]) or (before[-1] in "-_/.#" and len(before) > 1 and before[0].isalnum() and before[0].isascii())
    ):
        return True
    return bool(after) and (_is_letter(after[0]) or (after[0] in "-_" and len(after) > 1 and _is_letter(after[1])))


def _is_letter(character: str) -> bool:
    return character.isascii() and character.isalpha()


def _begin(text: str, start: int, kind: Kind) -> int:
    """A phone number begins at its plus or bracket."""
    if kind is Kind.PHONE:
        while start and text[start - 1] in "+(":
            start -= 1
    return start
