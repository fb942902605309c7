"""One pass over a text, shared by every model head: readable counts, and hashed words and pairs of words.

The cost is bounded: of a long text both ends are read (`HEAD_CHARS`, `TAIL_CHARS`); its true length stays a feature. What
leaves this module is numbers only: no word of the text can be read back from a bucket.
"""

from __future__ import annotations

import math
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
_MATHS = b"=+*/^<>|\\{}"
_POINTS = b".,;:!?()[]'\"-"
_KIND = bytes(
    85
    if 65 <= byte <= 90
    else 48
    if 48 <= byte <= 57
    else 61
    if byte in _MATHS
    else 46
    if byte in _POINTS
    else 128
    if byte >= 128
    else 97
    for byte in range(256)
)
"""Kind of a byte: U upper case, 0 digit, = maths, . punctuation, 128 outside ASCII, a the rest."""
_PLAIN = bytes(byte for byte in range(256) if _KIND[byte] == 97)
_UNMARKED = bytes(byte for byte in range(256) if byte >= 128 or byte in b" _" or bytes((byte,)).isalnum())
"""What no mark of `_COUNTED` is: thrown away first, the rest of a text is short to count in."""
_DIGITS = b"0123456789"
_OPTION_MARKS = (b". ", b") ", b": ")
_LOG = tuple(math.log1p(count) for count in range(4096))
"""log(1 + n) for every count a capped text can have."""
_COUNTED = (
    ("question_marks", b"?"),
    ("commas", b","),
    ("full_stops", b". "),
    ("colons", b":"),
    ("semicolons", b";"),
    ("brackets", b"("),
    ("dollars", b"$"),
    ("percents", b"%"),
    ("equals", b"="),
    ("quotes", b'"'),
    ("blanks", b"__"),
    ("lines", b"\n"),
    ("backslashes", b"\\"),
    ("carets", b"^"),
    ("bars", b"|"),
    ("backticks", b"`"),
    ("braces", b"{"),
    ("hyphens", b"-"),
    ("apostrophes", b"'"),
)
_PLACES = {name: place for place, (name, _) in enumerate(_COUNTED)}
_STOPS, _ASKED, _LINES = _PLACES["full_stops"], _PLACES["question_marks"], _PLACES["lines"]
_SHAPE = (
    "chars",
    "words",
    "mean_word",
    "long_words",
    "very_long_words",
    "distinct_words",
    "upper",
    "digits",
    "maths_signs",
    "punctuation",
    "foreign_bytes",
    "numbers",
    "distinct_numbers",
    "longest_number",
    "options",
    "option_chars",
    "option_words_max",
    "option_numbers",
    "stem_words",
    "stem_share",
    "option_words_min",
    "option_spread",
    "option_signs",
    "years",
    "single_letters",
    "stem_asks",
    "stem_open",
    "sentence_words",
    "statements",
)
NAMES: tuple[str, ...] = (*_SHAPE, *(name for name, _ in _COUNTED), *(f"words_{name}" for name in lexicon.NAMES))
"""What stands where in `Features.values`."""


class Features(msgspec.Struct, frozen=True, gc=False):
    """`values` in the order of `NAMES`; `buckets` are the distinct places of the hashed words and pairs."""

    values: list[float]
    buckets: array[int]


def read_features(text: str) -> Features:
    """Features of a text, any text: the same text gives the same features on every machine.

    Args:
        text: what the user asks, wrappers peeled off (`router.complexity.peel`).
    """
    chars = len(text)
    if chars > HEAD_CHARS + TAIL_CHARS:
        text = text[:HEAD_CHARS] + "\n" + text[-TAIL_CHARS:]
    raw = text.encode("utf-8", "surrogatepass")
    words = read_words(raw.translate(_CUT))
    marks = raw.translate(None, _UNMARKED)
    counts = [(marks if len(mark) == 1 else raw).count(mark) for _, mark in _COUNTED]
    values = _shape(raw, words, chars, counts)
    values += map(_LOG.__getitem__, counts)
    values += map(_LOG.__getitem__, words.lists)
    return Features(values, words.buckets)


def _shape(raw: bytes, words: Words, chars: int, counts: list[int]) -> list[float]:
    """The readable counts, in the order of `_SHAPE`; `counts` are those of `_COUNTED`."""
    size, count = len(raw) or 1, words.count
    share, per_word = 1.0 / size, 1.0 / (count or 1)
    kind, log = raw.translate(_KIND, _PLAIN).count, _LOG
    digits = kind(b"0")
    options = _options(raw)
    option_words = [len(option.split()) for option in options]
    most, fewest = max(option_words, default=0), min(option_words, default=0)
    stem_words = max(0, count - sum(option_words))
    kinds = len(options) or 1
    stem = (raw.partition(b"\nA")[0] if options else raw).rstrip()
    return [
        math.log1p(chars),
        log[count],
        words.letters * per_word,
        1.0 - (count - words.long) * per_word,
        1.0 - (count - words.very_long) * per_word,
        words.distinct * per_word,
        kind(b"U") * share,
        digits * share,
        kind(b"=") * share,
        kind(b".") * share,
        kind(b"\x80") * share,
        log[words.numbers],
        log[words.distinct_numbers],
        float(words.longest_number),
        float(len(options)),
        math.log1p(sum(map(len, options)) / kinds),
        log[most],
        sum(1 for option in options if option.translate(None, _DIGITS) != option) / kinds,
        log[stem_words],
        stem_words * per_word,
        log[fewest],
        log[most] - log[fewest],
        sum(1 for option in options if option.translate(None, _MATHS) != option) / kinds,
        log[words.years],
        log[words.single],
        1.0 if stem.endswith(b"?") else 0.0,
        1.0 if stem[-1:].isalpha() else 0.0,
        count / (counts[_STOPS] + (raw.count(b"? ") if counts[_ASKED] else 0) + counts[_LINES] + 1),
        log[_statements(raw, digits) + (raw.count(b"\nI") if counts[_LINES] else 0)],
    ]


def _statements(raw: bytes, digits: int) -> int:
    """Marks of numbered statements and scenarios."""
    return raw.count(b"tatement 1") + raw.count(b"cenario 1") if digits else 0


def _options(raw: bytes) -> list[bytes]:
    """The choices of a multiple-choice question: lines that begin with a letter and a mark, `B. `, `B) ` or `B: `."""
    if not any(b"\nB" + mark in raw for mark in _OPTION_MARKS):
        return []
    return [line[3:] for line in raw.split(b"\n") if line[1:3] in _OPTION_MARKS and line[:1].isalpha()]
