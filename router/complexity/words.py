"""The words of a cut text, counted and hashed: each word once, a few calls in C for all of them."""

from __future__ import annotations

from array import array
from struct import Struct
from zlib import crc32

import msgspec
import numpy as np

from router.complexity import lexicon

BUCKETS = 1 << 15
"""Places in the hashed tables. 2**15 holds a language's common words and pairs with few collisions (1 in 10 at 3,500)."""
MAX_WORD = 24
"""Bytes of a word that are hashed: a million letters without a space are one word, and cost as one."""
LONG_WORDS = 96
"""From so many words on numpy is faster at hashing (measured: 40 against 27 us at 34 words, 120 against 220 us at 330)."""
_CLASSES, _COMBINED = lexicon.classes()
_LAST = BUCKETS - 1
_COUNTS = Struct(f"<{len(lexicon.NAMES)}H")
_BELOW = {limit: bytes(range(limit)) for limit in (8, 12)}


class Words(msgspec.Struct, frozen=True, gc=False):
    """What is counted of a text's words. `letters` is the sum of their lengths in bytes; long ones have 8 bytes, very long ones
    12; a number begins with a digit, a year is one of four bytes from 1000 to 2999. `lists` counts the words of each list of
    the lexicon; `buckets` are the distinct places of hashed words and pairs.
    """

    count: int
    letters: int
    long: int
    very_long: int
    single: int
    distinct: int
    numbers: int
    distinct_numbers: int
    longest_number: int
    years: int
    lists: tuple[int, ...]
    buckets: array[int]


def read_words(cut: bytes) -> Words:
    """Count and hash the words of a text that was cut at spaces."""
    words = cut.split()
    count = len(words)
    lengths = _lengths(words)
    numbers = [word for word in words if word < b":"]  # a word begins with nothing else that comes before the colon
    return Words(
        count,
        len(cut) - cut.count(b" "),
        len(lengths.translate(None, _BELOW[8])),
        len(lengths.translate(None, _BELOW[12])),
        lengths.count(1),
        len(set(words)),
        len(numbers),
        len(set(numbers)),
        len(max(numbers, key=len, default=b"")),
        sum(1 for word in numbers if len(word) == 4 and word[:1] in b"12"),
        _count_lists(words),
        _hash_words([word[:MAX_WORD] for word in words] if max(lengths, default=0) > MAX_WORD else words),
    )


def _lengths(words: list[bytes]) -> bytes:
    """Lengths of words, a byte each: counting them is then one call. A length from 255 on counts as 255."""
    try:
        return bytes(map(len, words))
    except ValueError:
        return bytes(min(255, len(word)) for word in words)


def _count_lists(words: list[bytes]) -> tuple[int, ...]:
    """How many words of each list of the lexicon there are."""
    found = bytes(map(_CLASSES.__getitem__, filter(_CLASSES.__contains__, words)))
    total = sum(_COMBINED[place] * found.count(place) for place in set(found))
    return _COUNTS.unpack(total.to_bytes(_COUNTS.size, "little"))


def _hash_words(words: list[bytes]) -> array[int]:
    """Places of words and of pairs that follow each other, each once (CRC-32, so the same in every process).

    The CRC of a word continued over the next word is the pair's: both steps run in C.
    """
    if len(words) < LONG_WORDS:
        hashes = list(map(crc32, words))
        places = {value & _LAST for value in hashes}
        places.update([value >> 7 & _LAST for value in map(crc32, words[1:], hashes)])
        return array("H", sorted(places))
    singles = np.fromiter(map(crc32, words), np.uint32, len(words))
    pairs = np.fromiter(map(crc32, words[1:], singles.tolist()), np.uint32, len(words) - 1)
    found = np.concatenate((singles & _LAST, pairs >> 7 & _LAST)).astype(np.uint16)
    found.sort()
    return array("H", found[np.append(True, found[1:] != found[:-1])].tobytes())
