"""One pass over a text, shared by every model head: readable counts, and hashed words and pairs of words.

The cost is bounded: of a long text both ends are read (`HEAD_CHARS`, `TAIL_CHARS`); its true length stays a feature. What
leaves this module is numbers only: no word of the text can be read back from a bucket.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from zlib import crc32

import msgspec

from router.complexity import lexicon

HEAD_CHARS = 2500
TAIL_CHARS = 1500
BUCKETS = 1 << 15
"""Places in the hashed tables. 2**15 holds a language's common words and pairs with few collisions (1 in 10 at 3,500)."""
MAX_WORD = 24
"""Bytes of a word that count: a million letters without a space are one word, and cost as one."""

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
_DIGITS = b"0123456789"
_OPTION_MARKS = (b". ", b") ", b": ")
_LEXICON = lexicon.packed()
_FIELD = (1 << lexicon.BITS) - 1
_SHIFTS = tuple(lexicon.BITS * place for place in range(len(lexicon.NAMES)))
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
    """`values` in the order of `NAMES`; `buckets` are the distinct hashed words and pairs."""

    values: list[float]
    buckets: set[int]


def read_features(text: str) -> Features:
    """Features of a text, any text: the same text gives the same features on every machine.

    Args:
        text: what the user asks, wrappers peeled off (`router.complexity.peel`).
    """
    chars = len(text)
    if chars > HEAD_CHARS + TAIL_CHARS:
        text = text[:HEAD_CHARS] + "\n" + text[-TAIL_CHARS:]
    raw = text.encode("utf-8", "surrogatepass")
    words = raw.translate(_CUT).split()
    values = _shape(raw, words, chars)
    count = raw.count
    values += [_LOG[count(mark)] for _, mark in _COUNTED]
    hits = [_LEXICON[word] for word in words if word in _LEXICON]
    total = sum(hits)
    values += [_LOG[(total >> shift) & _FIELD] for shift in _SHIFTS]
    return Features(values, hash_words(words))


def hash_words(words: list[bytes]) -> set[int]:
    """Buckets of words and of pairs that follow each other (CRC-32, so the same in every process)."""
    if max(map(len, words), default=0) > MAX_WORD:
        words = [word[:MAX_WORD] for word in words]
    mask = BUCKETS - 1
    hashes = list(map(crc32, words))
    buckets = {value & mask for value in hashes}
    # The CRC of a word continued over the next word: both steps run in C.
    buckets.update([value >> 7 & mask for value in map(crc32, words[1:], hashes)])
    return buckets


def _shape(raw: bytes, words: list[bytes], chars: int) -> list[float]:
    size, count = len(raw) or 1, len(words)
    share, per_word = 1.0 / size, 1.0 / (count or 1)
    lengths = sorted(map(len, words))
    numbers = [word for word in words if word < b":"]  # of the bytes a word can begin with, only digits come before the colon
    options = _options(raw)
    option_words = [len(option.split()) for option in options]
    stem_words = max(0, count - sum(option_words))
    kinds = len(options) or 1
    stem = (raw.partition(b"\nA")[0] if options else raw).rstrip()
    kind, log = raw.translate(_KIND).count, _LOG
    return [
        math.log1p(chars),
        log[count],
        sum(lengths) * per_word,
        1.0 - bisect_left(lengths, 8) * per_word,
        1.0 - bisect_left(lengths, 12) * per_word,
        len(set(words)) * per_word,
        kind(b"U") * share,
        kind(b"0") * share,
        kind(b"=") * share,
        kind(b".") * share,
        kind(b"\x80") * share,
        log[len(numbers)],
        log[len(set(numbers))],
        float(len(max(numbers, key=len, default=b""))),
        float(len(options)),
        math.log1p(sum(map(len, options)) / kinds),
        log[max(option_words, default=0)],
        sum(1 for option in options if option.translate(None, _DIGITS) != option) / kinds,
        log[stem_words],
        stem_words * per_word,
        log[min(option_words, default=0)],
        log[max(option_words, default=0)] - log[min(option_words, default=0)],
        sum(1 for option in options if option.translate(None, _MATHS) != option) / kinds,
        log[sum(1 for word in numbers if len(word) == 4 and word[:1] in b"12")],
        log[bisect_left(lengths, 2)],
        1.0 if stem.endswith(b"?") else 0.0,
        1.0 if stem[-1:].isalpha() else 0.0,
        count / (raw.count(b". ") + raw.count(b"? ") + raw.count(b"\n") + 1),
        log[raw.count(b"tatement 1") + raw.count(b"cenario 1") + raw.count(b"\nI")],
    ]


def _options(raw: bytes) -> list[bytes]:
    """The choices of a multiple-choice question: lines that begin with a letter and a mark, `B. `, `B) ` or `B: `."""
    if not any(b"\nB" + mark in raw for mark in _OPTION_MARKS):
        return []
    return [line[3:] for line in raw.split(b"\n") if line[1:3] in _OPTION_MARKS and line[:1].isalpha()]
