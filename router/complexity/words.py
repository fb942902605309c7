"""The words of a cut text, counted and hashed: all of them at once in numpy, a fixed number of calls however long the text is.

No word is ever made into an object of its own: a word is read as three 64-bit numbers (its first 24 bytes, the rest masked
off), and those are hashed by multiply and add, which spreads well over the high bits (Dietzfelbinger et al. 1997).
"""

from __future__ import annotations

from array import array

import msgspec
import numpy as np
from numpy.typing import NDArray

from router.complexity import lexicon

BUCKETS = 1 << 16
"""Places in the hashed tables. Four times as many add less than 0.003 APGR (MMLU by folds), and weigh four times as much."""
MAX_WORD = 24
"""Bytes of a word that are hashed: a million letters without a space are one word, and cost as one."""
_PARTS = MAX_WORD // 8
_FACTORS = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], np.uint64)
_MIX = np.uint64(0xD6E8FEB86659FD93)
_HALF = np.uint64(32)
_SHIFT = np.uint64(64 - BUCKETS.bit_length() + 1)
_MASKS = np.array(
    [[(1 << 8 * min(8, max(0, length - 8 * part))) - 1 for part in range(_PARTS)] for length in range(MAX_WORD + 1)], np.uint64
)
_FIRST = np.uint64(0xFF)
_COLON = np.uint64(ord(":"))
_Hashes = NDArray[np.uint64]


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
    lists: NDArray[np.float64]
    buckets: array[int]


def hash_parts(parts: _Hashes) -> _Hashes:
    """Hashes of words given as rows of three numbers: their bytes in little-endian order, zeros behind their end."""
    hashes = parts @ _FACTORS
    hashes ^= hashes >> _HALF
    hashes *= _MIX
    return hashes


def _lexicon_tables() -> tuple[_Hashes, NDArray[np.intp], NDArray[np.float64]]:
    """Hashes of all listed words in order, the class of each, and by class which lists its words are on."""
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
    return hashes[order], numbers[order], members


_KEYS, _CLASSES, _MEMBERS = _lexicon_tables()
_NO_LISTS = np.zeros(len(lexicon.NAMES))
_NOTHING = Words(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, _NO_LISTS, array("H"))


def read_words(cut: bytes, digits: bool) -> Words:
    """Count and hash the words of a text.

    Args:
        cut: words in lower case and spaces, no other white space.
        digits: whether it has any digit.
    """
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


def _count_lists(ordered: _Hashes) -> NDArray[np.float64]:
    """How many words of each list of the lexicon there are; a search for keys in order is twice as fast."""
    near = _KEYS.searchsorted(ordered)
    listed = _CLASSES.take(near[_KEYS.take(near, mode="clip") == ordered])
    found: NDArray[np.float64] = np.bincount(listed, minlength=len(_MEMBERS)) @ _MEMBERS
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
