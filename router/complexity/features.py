"""One pass over a text, shared by every model head: readable counts, and hashed words and pairs of words.

The cost is bounded: of a long text both ends are read (`HEAD_CHARS`, `TAIL_CHARS`); its true length stays a feature. What
leaves this module is numbers only: no word of the text can be read back from a bucket.
"""

from __future__ import annotations

import math
import re
from array import array

import msgspec

from router.complexity import lexicon
from router.complexity.words import Words, read_words

HEAD_CHARS = 2500
TAIL_CHARS = 1500

# Lower case; digits and the underscore (blanks to fill in) stay, all other ASCII is a space; bytes from 0x80 on stay.
_CUT = bytes(
    byte + 32 if 65 <= byte <= 90 else byte if 97 <= byte <= 122 or 48 <= byte <= 57 or byte == 95 or byte >= 128 else 32
    for byte in range(256)
)
_DIGITS = b"0123456789"
_MATHS = b"=+*/^<>|\\{}"
_KINDS = {
    "upper": bytes(range(65, 91)),
    "digits": _DIGITS,
    "maths_signs": _MATHS,
    "punctuation": b".,;:!?()[]'\"-",
    "foreign_bytes": bytes(range(128, 256)),
}
_MARKS = {
    "question_marks": b"?",
    "commas": b",",
    "colons": b":",
    "semicolons": b";",
    "brackets": b"(",
    "dollars": b"$",
    "percents": b"%",
    "equals": b"=",
    "quotes": b'"',
    "lines": b"\n",
    "backslashes": b"\\",
    "carets": b"^",
    "bars": b"|",
    "backticks": b"`",
    "braces": b"{",
    "hyphens": b"-",
    "apostrophes": b"'",
}
_MARK_BYTES = tuple(mark[0] for mark in _MARKS.values())
_UPPER, _POINTS, _FOREIGN = (_KINDS[name] for name in ("upper", "punctuation", "foreign_bytes"))
_PLAIN_TEXT = bytes(range(97, 123)) + b" "
_NO_SIGNS = bytes(byte for byte in range(256) if _CUT[byte] != 32) + _UPPER
_ASKED, _LINES = (list(_MARKS).index(name) for name in ("question_marks", "lines"))
_OPTION_MARKS = (b". ", b") ", b": ")
_SECOND_OPTIONS = tuple(b"\nB" + mark for mark in _OPTION_MARKS)
_OPTIONS = re.compile(rb"\n[A-Za-z][.):] ([^\n]*)")
_ZERO, _EQUALS = b"0="
_SHOWN = bytes(_ZERO if byte in _DIGITS else _EQUALS if byte in _MATHS else byte for byte in range(256))
"""Every digit is shown as `0`, every mathematical sign as `=`: whether there is one is then one look for one byte."""
_BLANK = ord("_")
_USUAL_CHARS = 150
"""Length of a usual question: the value `open_length` is 0 there, and for a question with choices."""
_LOGGED = (
    "chars",
    "words",
    "numbers",
    "distinct_numbers",
    "option_chars",
    "option_words_max",
    "option_words_min",
    "stem_words",
    "years",
    "single_letters",
    "statements",
    "full_stops",
    "blanks",
)
"""Counts of which log(1 + n) is the feature, besides marks and words of lists."""
_PLAIN = (
    "mean_word",
    "long_words",
    "very_long_words",
    "distinct_words",
    "upper",
    "digits",
    "maths_signs",
    "punctuation",
    "foreign_bytes",
    "longest_number",
    "options",
    "option_numbers",
    "stem_share",
    "option_spread",
    "option_signs",
    "stem_asks",
    "stem_open",
    "sentence_words",
    "open_length",
)
NAMES: tuple[str, ...] = (*_PLAIN, *_LOGGED, *_MARKS, *(f"words_{name}" for name in lexicon.NAMES))
"""What stands where in `Features.values`."""
_LOG = tuple(math.log1p(number) for number in range(HEAD_CHARS + TAIL_CHARS + 2))
"""log(1 + n) of every number of things that a capped text can have: whatever is counted takes a character or more."""


class Features(msgspec.Struct, frozen=True, gc=False):
    """`values` in the order of `NAMES`; `buckets` are the distinct places of the hashed words and pairs.

    `places` are those of words alone. They tell much more of a text than buckets that pairs share, so they are read and
    forgotten: no label has them.
    """

    values: list[float]
    buckets: array[int]
    places: bytes = b""


class _Options(msgspec.Struct, frozen=True, gc=False):
    """The choices of a multiple-choice question: how many, their bytes, the most and fewest words of one, words of all, and
    how many have a digit, or a mathematical sign, in them."""

    count: int = 0
    size: int = 0
    most: int = 0
    fewest: int = 0
    words: int = 0
    numbers: int = 0
    signs: int = 0


_NO_OPTIONS = _Options()


def read_features(text: str) -> Features:
    """Features of a text, any text: the same text gives the same features on every machine.

    Args:
        text: what the user asks, wrappers peeled off (`router.complexity.peel`).
    """
    chars = len(text)
    if chars > HEAD_CHARS + TAIL_CHARS:
        text = text[:HEAD_CHARS] + "\n" + text[-TAIL_CHARS:]
    raw = text.encode("utf-8", "surrogatepass")
    kinds = _count_kinds(raw)
    words = read_words(raw.translate(_CUT), kinds[1] > 0)
    return Features(_values(raw, chars, words, kinds), words.buckets, words.places)


def _count_kinds(raw: bytes) -> tuple[int, int, int, int, int, bytes]:
    """How many bytes of each kind there are, in the order of `_KINDS`; and what is neither a word nor a space."""
    rest = raw.translate(None, _PLAIN_TEXT)
    size = len(rest)
    signs = rest.translate(None, _NO_SIGNS)
    return (
        size - len(rest.translate(None, _UPPER)),
        size - len(rest.translate(None, _DIGITS)),
        len(signs) - len(signs.translate(None, _MATHS)),
        len(signs) - len(signs.translate(None, _POINTS)),
        size - len(rest.translate(None, _FOREIGN)),
        signs,
    )


def _values(raw: bytes, chars: int, words: Words, counted: tuple[int, int, int, int, int, bytes]) -> list[float]:
    """All values, in the order of `NAMES`; `counted` is what `_count_kinds` found."""
    count = words.count
    share, per_word = 1.0 / (len(raw) or 1), 1.0 / (count or 1)
    upper, digits, signs, points, foreign, others = counted
    marks = list(map(others.count, _MARK_BYTES))
    asked, lines = marks[_ASKED], marks[_LINES]
    options = _options(raw, digits > 0, signs > 0) if lines else _NO_OPTIONS
    kinds = options.count or 1
    stem_words = max(0, count - options.words)
    stem = (raw.partition(b"\nA")[0] if options.count else raw).rstrip()
    stops = raw.count(b". ")
    values = [
        words.letters * per_word,
        words.long * per_word,
        words.very_long * per_word,
        words.distinct * per_word,
        upper * share,
        digits * share,
        signs * share,
        points * share,
        foreign * share,
        float(words.longest_number),
        float(options.count),
        options.numbers / kinds,
        stem_words * per_word,
        math.log((1 + options.most) / (1 + options.fewest)),
        options.signs / kinds,
        1.0 if stem.endswith(b"?") else 0.0,
        1.0 if stem[-1:].isalpha() else 0.0,
        count / (stops + (raw.count(b"? ") if asked else 0) + lines + 1.0),
        0.0 if options.count or not chars else math.log(chars / _USUAL_CHARS),
    ]
    values += (
        math.log1p(chars),
        _LOG[count],
        _LOG[words.numbers],
        _LOG[words.distinct_numbers],
        math.log1p(options.size / kinds),
    )
    logged = (
        options.most,
        options.fewest,
        stem_words,
        words.years,
        words.single,
        _statements(raw, digits, lines),
        stops,
        raw.count(b"__") if _BLANK in raw else 0,
        *marks,
        *words.lists,
    )
    values += [_LOG[number] for number in logged]
    return values


def _statements(raw: bytes, digits: int, lines: int) -> int:
    """Marks of numbered statements and scenarios."""
    numbered = raw.count(b"tatement 1") + raw.count(b"cenario 1") if digits else 0
    return numbered + (raw.count(b"\nI") if lines else 0)


def _options(raw: bytes, digits: bool, signs: bool) -> _Options:
    """Lines that begin with a letter and a mark, `B. `, `B) ` or `B: `, where there is a second one of them.

    Args:
        raw: the text.
        digits: whether it has any digit.
        signs: whether it has any mathematical sign.
    """
    if not any(map(raw.__contains__, _SECOND_OPTIONS)):
        return _NO_OPTIONS
    options: list[bytes] = _OPTIONS.findall(b"\n" + raw.translate(_SHOWN))
    spaces = [option.count(b" ") for option in options]
    return _Options(
        len(options),
        sum(map(len, options)),
        max(spaces) + 1,
        min(spaces) + 1,
        sum(spaces) + len(spaces),
        sum([_ZERO in option for option in options]) if digits else 0,
        sum([_EQUALS in option for option in options]) if signs else 0,
    )
