"""One spelling for many: text folded so that patterns written in ASCII find what was written another way.

Folded are compatibility forms (full-width, circled, mathematical), digits of every script, accents, look-alike letters of
Cyrillic and Greek, and dashes and spaces of every kind; invisible characters (zero-width, bidirectional controls, soft hyphens,
variation selectors, combining marks) are dropped. A folded text is one ASCII-or-opaque character per character kept, so
the way back to positions in the original is short, and it is computed only when somebody asks (redaction).
"""

from __future__ import annotations

import re
import sys
import unicodedata
from bisect import bisect_right
from itertools import chain

_INVISIBLE = (
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0"
    "\U000e0000-\U000e01ef"
)
_COMBINING = (
    "\u0300-\u036f\u0483-\u0489\u0591-\u05c7\u0610-\u061a\u064b-\u065f\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f"
)
_SPREAD = "\u2460-\u24ff\u2776-\u2793\u2100-\u2128\u2150-\u218b\u3200-\u33ff\ufb00-\ufb06\U0001f100-\U0001f1ff\u00bc-\u00be"
"""Blocks with characters that stand for several (`(10)` in a circle, ligatures, fractions)."""
_SPECIAL = re.compile(f"[{_INVISIBLE}{_COMBINING}{_SPREAD}]")
_DROPPED = re.compile(f"[{_INVISIBLE}{_COMBINING}]")

_LOOK_ALIKE = {
    **dict(zip("АВЕЅІЈКМНОРСТУХҮԌԚԜӀ", "ABESIJKMHOPCTYXYGQWI", strict=True)),
    **dict(zip("авеѕіјкмнорстухүԁԛԝӏһɡ", "abesijkmhopctyxydqwlhg", strict=True)),
    **dict(zip("ΑΒΕΖΗΙΚΜΝΟΡΤΥΧ", "ABEZHIKMNOPTYX", strict=True)),
    **dict(zip("ανορυικχ", "avopuikx", strict=True)),
    **dict.fromkeys("‐‑‒–—―−⁃﹘﹣－˗ー", "-"),
    **dict.fromkeys("․‧·•∙⋅。．｡・", "."),
    **dict.fromkeys("⁄∕／", "/"),
    **dict.fromkeys("：﹕ː", ":"),
    **dict.fromkeys("＠﹫", "@"),
    **dict.fromkeys("’‘ʼ＇`´", "'"),
    **dict.fromkeys("“”„«»＂", '"'),
    **dict.fromkeys("\u0085\u2028\u2029", "\n"),
    **{"ß": "s", "ı": "i", "ł": "l", "Ł": "L", "ø": "o", "Ø": "O", "đ": "d", "Đ": "D", "æ": "e", "œ": "e"},
}
_RANGES = (
    range(0x80, 0x3400),
    range(0xA620, 0xAC00),
    range(0xF900, 0x10000),
    range(0x104A0, 0x104AA),
    range(0x10D30, 0x10D3A),
    range(0x11000, 0x11DB0),
    range(0x16A60, 0x16B60),
    range(0x1D400, 0x1D800),
    range(0x1E140, 0x1E960),
    range(0x1FBF0, 0x1FBFA),
)


def _plain(character: str) -> str:
    """The one ASCII character that `character` stands for, or itself."""
    if character in _LOOK_ALIKE:
        return _LOOK_ALIKE[character]
    digit = unicodedata.decimal(character, None)
    if digit is not None:
        return str(digit)
    if unicodedata.category(character) == "Zs":
        return " "
    base = unicodedata.normalize("NFKD", character)
    first = base[0]
    if first.isascii() and (len(base) == 1 or all(unicodedata.combining(mark) for mark in base[1:])):
        return first
    return _LOOK_ALIKE.get(first, character) if len(base) > 1 and unicodedata.combining(base[1]) else character


def make_table() -> dict[int, str]:
    """The table of `str.translate` that `fold` uses; about 15,000 characters are looked at, in some 20 ms."""
    # Half of a character is legal in JSON and in no encoding.
    table: dict[int, str] = dict.fromkeys(range(0xD800, 0xE000), "?")
    for code in chain(*_RANGES):
        character = chr(code)
        plain = _plain(character)
        if plain != character:
            table[code] = sys.intern(plain)
    return table


class Folded:
    """A text and its folded form.

    Attributes:
        text: the folded text, case kept.
        original: what it was folded from.
    """

    __slots__ = ("_origins", "_starts", "original", "shifted", "text")

    def __init__(self, original: str, text: str, shifted: bool) -> None:
        self.original = original
        self.text = text
        self.shifted = shifted
        """Whether positions in `text` and `original` differ."""
        self._starts: list[int] | None = None
        self._origins: list[int] = []

    def span(self, start: int, end: int) -> tuple[int, int]:
        """Where `text[start:end]` stands in `original`; characters dropped within belong to it."""
        if not self.shifted:
            return start, end
        if self._starts is None:
            self._map()
        return self._back(start), self._back(end - 1) + 1 if end > start else self._back(start)

    def _map(self) -> None:
        """Pieces of identity: `_starts[i]` in the folded text came from `_origins[i]` in the original."""
        starts, origins, shift = [0], [0], 0
        for match in _SPECIAL.finditer(self.original):
            at, width = match.start(), len(_spread(match))
            if width == 1:
                continue
            # Each character of an expansion leads back to the one that it came from.
            for i in range(width):
                starts.append(at + shift + i)
                origins.append(at)
            shift += width - 1
            starts.append(at + 1 + shift)
            origins.append(at + 1)
        self._starts, self._origins = starts, origins

    def _back(self, position: int) -> int:
        assert self._starts is not None
        i = bisect_right(self._starts, position) - 1
        return self._origins[i] + position - self._starts[i]


def _spread(match: re.Match[str]) -> str:
    character = match.group()
    if _DROPPED.match(character):
        return ""
    plain = unicodedata.normalize("NFKC", character).replace("\u2044", "/")
    return plain if plain.isascii() else character


def fold(text: str, table: dict[int, str]) -> Folded:
    """Fold `text`; ASCII comes back as it is, at no cost.

    Args:
        text: anything; lone surrogates too.
        table: `make_table()`.
    """
    if text.isascii():
        return Folded(text, text, False)
    shifted = _SPECIAL.search(text) is not None
    visible = _SPECIAL.sub(_spread, text) if shifted else text
    return Folded(text, visible.translate(table), shifted)
