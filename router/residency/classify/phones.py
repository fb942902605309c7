"""Whether digits are a telephone number: by `+` and the numbering plans of phonenumbers, by national shapes, by a word beside."""

from __future__ import annotations

import phonenumbers

from router.residency.classify.cues import Cue
from router.residency.classify.view import View

_WANTED = frozenset({Cue.PHONE})
_PARSE_UNITS = 12.0
"""`phonenumbers` takes some 100 to 200 us for a number."""

_NATIONAL: tuple[tuple[str, str, float], ...] = (
    ("2-2-2-2-2", "0", 0.8),
    ("3-3-4", "23456789", 0.55),
    ("1-3-3-4", "1", 0.65),
    ("1-3-3-2-2", "78", 0.8),
    ("5-6", "0", 0.6),
    ("4-3-4", "0", 0.6),
    ("4-3-3", "0", 0.6),
    ("3-4-4", "01", 0.68),
    ("2-4-4", "0123456789", 0.5),
    ("2-5-4", "123456789", 0.68),
    ("5-3-3", "0", 0.6),
    ("5-5", "6789", 0.62),
    ("3-2-2-2", "6789", 0.55),
    ("3-3-2-2", "0", 0.6),
    ("4-2-2-2", "0", 0.6),
    ("3-3-3", "679", 0.4),
    ("2-8", "0", 0.55),
    ("4-7", "0", 0.58),
    ("4-8", "0", 0.58),
    ("3-7", "03", 0.5),
    ("3-8", "0", 0.55),
    ("5-7", "0", 0.55),
    ("4-4-2-2", "0", 0.55),
    ("4-3-2-2", "0", 0.6),
    ("2-3-4-4", "0", 0.5),
)
"""Digit groups as national numbers are printed, the digits they begin with, and what the shape alone is worth."""
_BY_SHAPE = {shape: (first, worth) for shape, first, worth in _NATIONAL}


def phone_confidence(view: View, digits: str, groups: list[tuple[int, int]], start: int, end: int) -> float:
    """How sure it is that these digits are a telephone number.

    Args:
        view: the slice.
        digits: the digits alone.
        groups: where each group of digits stands.
        start: the first digit; a `+` or `(` before it counts.
        end: after the last digit.

    Raises:
        OverBudget: the numbering plans may not be asked any more.
    """
    if not 7 <= len(digits) <= 15:
        return 0.0
    lead = view.text[max(0, start - 2) : start]
    if "+" in lead or digits.startswith("00"):
        return _international(view, digits, start, end, plus="+" in lead)
    shape = "-".join(str(high - low) for low, high in groups)
    first, worth = _BY_SHAPE.get(shape, ("", 0.0))
    base = worth if digits[0] in first else 0.0
    if lead.endswith("(") and len(groups) > 1 and ")" in view.text[groups[0][1] : groups[1][0]]:
        base = max(base, 0.72)
    if base < 0.6 and len(groups) > 1 and "." in view.text[groups[0][1] : groups[-1][0]]:
        base = min(base, 0.45)
    if base == 0.55 and shape == "3-3-4" and (digits[3] in "01" or digits[1:3] == "11"):
        base = 0.3
    if base == 0.0 and (len(digits) > 13 or len(groups) > 6):
        return 0.0
    weighed = view.weigh(base or 0.1, start, end, _WANTED)
    return min(weighed, 0.86) if base == 0.0 else weighed


def _international(view: View, digits: str, start: int, end: int, plus: bool) -> float:
    view.spend(_PARSE_UNITS)
    number = digits if plus else digits.removeprefix("00")
    try:
        parsed = phonenumbers.parse("+" + number, None)
    except phonenumbers.NumberParseException:
        return 0.0
    if phonenumbers.is_valid_number(parsed):
        return 0.95 if plus else view.weigh(0.6, start, end, _WANTED)
    if phonenumbers.is_possible_number(parsed):
        return view.weigh(0.6 if plus else 0.2, start, end, _WANTED)
    return view.weigh(0.2, start, end, _WANTED)
