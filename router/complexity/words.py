"""The words of a cut text, counted and hashed: of a long one all at once in numpy, of a short one word by word.

A word is read as three 64-bit numbers (its first 24 bytes, the rest masked off), and those are hashed by multiply and add, which
spreads well over the high bits (Dietzfelbinger et al. 1997). Numpy takes a fixed number of calls however long the text is; those
alone cost more than the words of a short one. Both ways give the very same numbers.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import chain

import msgspec
import numpy as np
from numpy.typing import NDArray

from router.complexity import lexicon

BUCKETS = 1 << 16
"""Places in the hashed tables. Four times as many add less than 0.003 APGR (MMLU by folds), and weigh four times as much."""
MAX_WORD = 24
"""Bytes of a word that are hashed: a million letters without a space are one word, and cost as one."""
SHORT_BYTES = 320
"""Up to here a text is read word by word: where both ways take as long."""
_PARTS = MAX_WORD // 8
_FIRST_FACTOR, _SECOND_FACTOR, _THIRD_FACTOR = 0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9
_FACTORS = np.array([_FIRST_FACTOR, _SECOND_FACTOR, _THIRD_FACTOR], np.uint64)
_MIXER = 0xD6E8FEB86659FD93
_MIX = np.uint64(_MIXER)
_ALL = (1 << 64) - 1
_HALF = np.uint64(32)
_DOWN = 64 - BUCKETS.bit_length() + 1
_SHIFT = np.uint64(_DOWN)
_MASKS = np.array(
    [[(1 << 8 * min(8, max(0, length - 8 * part))) - 1 for part in range(_PARTS)] for length in range(MAX_WORD + 1)], np.uint64
)
_FIRST = np.uint64(0xFF)
_COLON = np.uint64(ord(":"))
_Hashes = NDArray[np.uint64]
_Known = tuple[int, int, int, tuple[int, ...]]


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
    lists: list[int]
    buckets: array[int]


def hash_parts(parts: _Hashes) -> _Hashes:
    """Hashes of words given as rows of three numbers: their bytes in little-endian order, zeros behind their end."""
    hashes = parts @ _FACTORS
    hashes ^= hashes >> _HALF
    hashes *= _MIX
    return hashes


def _read_word(word: bytes) -> _Known:
    """What `hash_parts` makes of a word that is on no list, its place, the multiple that a pair begins with; and no lists."""
    number = int.from_bytes(word[:MAX_WORD], "little")
    if number > _ALL:
        value = (number & _ALL) * _FIRST_FACTOR + (number >> 64 & _ALL) * _SECOND_FACTOR + (number >> 128) * _THIRD_FACTOR
    else:
        value = number * _FIRST_FACTOR
    value &= _ALL
    value = (value ^ value >> 32) * _MIXER & _ALL
    return value, value >> _DOWN, value * _FIRST_FACTOR, ()


class _KnownWords(dict[bytes, _Known]):
    """The words of the lexicon; any other is read when it is asked for, and not kept."""

    def __missing__(self, word: bytes) -> _Known:
        return _read_word(word)


def _lexicon_tables() -> tuple[_Hashes, NDArray[np.intp], NDArray[np.float64], _KnownWords]:
    """Hashes of all listed words in order, the class of each, and by class which lists its words are on; and all by word."""
    lists: dict[bytes, frozenset[int]] = {}
    for place, words in enumerate(lexicon.LISTS.values()):
        for word in words.encode().split():
            lists[word] = lists.get(word, frozenset()) | {place}
    classes = sorted(set(lists.values()), key=sorted)
    members = np.zeros((len(classes), len(lexicon.NAMES)))
    for number, places in enumerate(classes):
        members[number, sorted(places)] = 1.0
    parts = np.frombuffer(b"".join(word[:MAX_WORD].ljust(MAX_WORD, b"\0") for word in lists), "<u8").reshape(-1, _PARTS)
    hashes = hash_parts(parts)
    order = hashes.argsort()
    if len(np.unique(hashes)) != len(hashes):
        raise AssertionError("two words of the lexicon share a hash: change a factor")
    numbers = np.array([classes.index(places) for places in lists.values()], np.intp)
    known = _KnownWords({word: (*_read_word(word)[:3], tuple(sorted(places))) for word, places in lists.items()})
    return hashes[order], numbers[order], members, known


_KEYS, _CLASSES, _MEMBERS, _KNOWN = _lexicon_tables()
_NO_LISTS = [0] * len(lexicon.NAMES)
_NOTHING = Words(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, _NO_LISTS, array("H"))


def read_words(cut: bytes, digits: bool) -> Words:
    """Count and hash the words of a text.

    Args:
        cut: words in lower case and spaces, no other white space.
        digits: whether it has any digit.
    """
    return read_few(cut, digits) if len(cut) <= SHORT_BYTES else read_many(cut, digits)


def read_few(cut: bytes, digits: bool) -> Words:
    """`read_words` word by word: the faster way for a short text."""
    words = cut.split()
    if not words:
        return _NOTHING
    values, firsts, multiples, listed = zip(*[_KNOWN[word] for word in words], strict=True)
    places = {*firsts, *[(before + after & _ALL) >> _DOWN for before, after in zip(multiples[:-1], values[1:], strict=True)]}
    lists = _NO_LISTS.copy()
    for place in chain.from_iterable(listed):
        lists[place] += 1
    lengths = sorted(map(len, words))
    count = len(words)
    return Words(
        count,
        sum(lengths),
        count - bisect_left(lengths, 8),
        count - bisect_left(lengths, 12),
        bisect_right(lengths, 1),
        len(set(values)),
        *(_few_numbers(words, values) if digits else (0, 0, 0, 0)),
        lists,
        array("H", places),
    )


def _few_numbers(words: list[bytes], values: Sequence[int]) -> tuple[int, int, int, int]:
    """As `_read_numbers`."""
    found = [place for place, word in enumerate(words) if word[0] < 58]
    if not found:
        return 0, 0, 0, 0
    lengths = [len(words[place]) for place in found]
    years = sum([size == 4 and words[place][0] in (49, 50) for place, size in zip(found, lengths, strict=True)])
    return len(found), len({values[place] for place in found}), max(lengths), years


def read_many(cut: bytes, digits: bool) -> Words:
    """`read_words` in numpy: the faster way for a long text."""
    size = len(cut) + 2
    text = b"".join((b" ", cut, b" ", bytes(MAX_WORD)))
    spaces = np.frombuffer(text, np.uint8, size) == 32
    edges = (spaces[1:] != spaces[:-1]).nonzero()[0]
    if not len(edges):
        return _NOTHING
    before, ends = edges[0::2], edges[1::2]
    lengths = ends - before
    parts = np.ndarray((size, _PARTS), "<u8", text, 0, (1, 8))[before + 1]
    parts &= _MASKS.take(lengths, 0, mode="clip")
    hashes = hash_parts(parts)
    ordered = np.sort(hashes)
    numbers = _read_numbers(parts[:, 0] & _FIRST, hashes, lengths) if digits else (0, 0, 0, 0)
    sizes = np.bincount(np.minimum(lengths, 12), minlength=13).tolist()
    return Words(
        len(lengths),
        len(cut) - cut.count(b" "),
        sum(sizes[8:]),
        sizes[12],
        sizes[1],
        1 + int(np.count_nonzero(ordered[1:] != ordered[:-1])),
        *numbers,
        _count_lists(ordered),
        array("H", _places(hashes).tobytes()),
    )


def _read_numbers(first: _Hashes, hashes: _Hashes, lengths: NDArray[np.intp]) -> tuple[int, int, int, int]:
    """How many numbers, how many different ones, the length of the longest, and how many years; `first` are first bytes."""
    found = (first < _COLON).nonzero()[0]  # a word begins with nothing else that comes before the colon
    if not len(found):
        return 0, 0, 0, 0
    long = lengths[found]
    starts = first[found][long == 4]
    years = int(np.count_nonzero((starts == 49) | (starts == 50)))  # 1xxx and 2xxx
    return len(found), len(set(hashes[found].tolist())), int(long.max()), years


def _count_lists(ordered: _Hashes) -> list[int]:
    """How many words of each list of the lexicon there are; a search for keys in order is twice as fast."""
    near = _KEYS.searchsorted(ordered)
    listed = _CLASSES.take(near[_KEYS.take(near, mode="clip") == ordered])
    found: list[int] = (np.bincount(listed, minlength=len(_MEMBERS)) @ _MEMBERS).astype(np.intp).tolist()
    return found


def _places(hashes: _Hashes) -> NDArray[np.uint16]:
    """Places of words and of pairs that follow each other, each once."""
    count = len(hashes)
    found = np.empty(2 * count - 1, np.uint64)
    found[:count] = hashes
    np.add(hashes[:-1] * _FACTORS[0], hashes[1:], out=found[count:])
    found >>= _SHIFT
    places = found.astype(np.uint16)
    places.sort()
    kept = np.empty(len(places), np.bool_)
    kept[0] = True
    np.not_equal(places[1:], places[:-1], out=kept[1:])
    return places[kept]
