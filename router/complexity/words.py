"""The words of a cut text, counted and hashed: of a long one all at once in numpy, of a short one word by word.

A word is read as three 64-bit numbers (its first 24 bytes, the rest masked off), and those are hashed by multiply and add, which
spreads well over the high bits (Dietzfelbinger et al. 1997). Numpy takes a fixed number of calls however long the text is; those
alone cost more than the words of a short one, of which only the hashes are made there. Both ways give the very same numbers.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence
from typing import TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from router.complexity import lexicon

BUCKETS = 1 << 16
"""Places in the hashed tables. Four times as many add less than 0.003 APGR (MMLU by folds), and weigh four times as much."""
PLACES = 1 << 20
"""Places of words alone, for what is known of single words: of two words not one pair in a million shares one."""
MAX_WORD = 24
"""Bytes of a word that are hashed: a million letters without a space are one word, and cost as one."""
SHORT_BYTES = 400
"""Up to here a text is read word by word: where a whole decision takes as long both ways."""
_PARTS = MAX_WORD // 8
_FACTORS = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], np.uint64)
_PAIRS = np.uint16(40503)
"""Odd, near `BUCKETS` times the golden ratio (Knuth, 6.4): a pair is the first word's place times this, and the second's."""
_SHIFT = np.uint64(64 - BUCKETS.bit_length() + 1)
_PLACE_SHIFT = np.uint64(64 - PLACES.bit_length() + 1)
_MASKS = np.array(
    [[(1 << 8 * min(8, max(0, length - 8 * part))) - 1 for part in range(_PARTS)] for length in range(MAX_WORD + 1)], np.uint64
)
_WORD = np.dtype(f"V{MAX_WORD}")
_AFTER_DIGITS = ord(":")
"""Nothing else that begins a word comes before it."""
_PADDED = b"%%-%db" % MAX_WORD
_SPACE_TO_ZERO = bytes.maketrans(b" ", b"\0")
_SHORTER = {size: bytes(range(size)) for size in (8, 12)}
_Hashes = NDArray[np.uint64]
_Number = TypeVar("_Number", np.uint16, np.uint64)


class Words(msgspec.Struct, frozen=True, gc=False):
    """What is counted of a text's words. `letters` is the sum of their lengths in bytes; long ones have 8 bytes, very long ones
    12; a number begins with a digit, a year is one of four bytes from 1000 to 2999. `lists` counts the words of each list of
    the lexicon; `buckets` are the distinct places of hashed words and pairs among `BUCKETS`, `places` those of words alone
    among `PLACES`, in order, 8 bytes each.
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
    places: bytes


def hash_parts(parts: _Hashes) -> _Hashes:
    """Hashes of words given as rows of three numbers: their bytes in little-endian order, zeros behind their end."""
    hashes: _Hashes = parts @ _FACTORS
    return hashes


_Tables = tuple[_Hashes, NDArray[np.intp], NDArray[np.float64], dict[bytes, int]]


def _lexicon_tables() -> _Tables:
    """Hashes of all listed words in order, the class of each, and by class which lists its words are on.

    And every listed word as one number with 16 bits per list, 1 where the word is on it: a sum of them counts all lists at once.
    """
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
    by_class = {places: sum(1 << 16 * place for place in places) for places in classes}  # few objects stay in a cache
    fields = {word: by_class[places] for word, places in lists.items()}
    return hashes[order], numbers[order], members, fields


_KEYS, _CLASSES, _MEMBERS, _FIELDS = _lexicon_tables()
_NO_LISTS = [0] * len(lexicon.NAMES)
_NOTHING = Words(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, _NO_LISTS, array("H"), b"")


def read_words(cut: bytes, digits: bool) -> Words:
    """Count and hash the words of a text.

    Args:
        cut: words in lower case and spaces, no other white space.
        digits: whether it has any digit.
    """
    return read_few(cut, digits) if len(cut) <= SHORT_BYTES else read_many(cut, digits)


def read_few(cut: bytes, digits: bool) -> Words:
    """`read_words` word by word, but for the hashes: the faster way for a short text."""
    words = cut.split()
    if not words:
        return _NOTHING
    lengths = list(map(len, words))
    heads = words if max(lengths) <= MAX_WORD else [word[:MAX_WORD] for word in words]
    sizes = bytes(map(len, heads))
    padded = (_PADDED * len(heads) % tuple(heads)).translate(_SPACE_TO_ZERO)
    hashes = hash_parts(np.frombuffer(padded, "<u8").reshape(-1, _PARTS))
    numbers = [place for place, word in enumerate(heads) if word[0] < _AFTER_DIGITS] if digits else []
    lists = sum(filter(None, map(_FIELDS.get, words)))
    return Words(
        len(words),
        sum(lengths),
        len(sizes.translate(None, _SHORTER[8])),
        len(sizes.translate(None, _SHORTER[12])),
        sizes.count(1),
        len(set(heads)),
        *_of_numbers([heads[at][0] for at in numbers], [heads[at] for at in numbers], [lengths[at] for at in numbers]),
        array("H", lists.to_bytes(2 * len(_NO_LISTS), sys.byteorder)).tolist(),
        array("H", _buckets(hashes).tobytes()),
        _places(np.sort(hashes)),
    )


def _of_numbers(first: list[int], names: Sequence[object], lengths: list[int]) -> tuple[int, int, int, int]:
    """How many numbers, how many different ones, the length of the longest, and how many years.

    Args:
        first: the numbers' first bytes.
        names: themselves, or their hashes.
        lengths: their lengths.
    """
    if not first:
        return 0, 0, 0, 0
    years = sum([size == 4 and begin in b"12" for begin, size in zip(first, lengths, strict=True)])
    return len(first), len(set(names)), max(lengths), years


def read_many(cut: bytes, digits: bool) -> Words:
    """`read_words` in numpy: the faster way for a long text."""
    size = len(cut) + 2
    text = b"".join((b" ", cut, b" ", bytes(MAX_WORD)))
    letters = np.frombuffer(text, np.uint8, size)
    spaces = letters == 32
    edges = (spaces[1:] != spaces[:-1]).nonzero()[0]
    if not len(edges):
        return _NOTHING
    before = edges[0::2]
    lengths = edges[1::2] - before
    starts = before + 1
    parts = np.ndarray(size, _WORD, text, 0, (1,))[starts].view("<u8").reshape(-1, _PARTS)
    parts &= _MASKS.take(lengths, 0, mode="clip")
    hashes = hash_parts(parts)
    ordered = np.sort(hashes)
    numbers = (0, 0, 0, 0)
    if digits:
        first = letters[starts]
        found = (first < _AFTER_DIGITS).nonzero()[0]
        numbers = _of_numbers(first[found].tolist(), hashes[found].tolist(), lengths[found].tolist())
    sizes = np.bincount(np.minimum(lengths, 12), minlength=13).tolist()
    return Words(
        len(lengths),
        int(np.add.reduce(lengths)),
        sum(sizes[8:]),
        sizes[12],
        sizes[1],
        1 + int(np.count_nonzero(ordered[1:] != ordered[:-1])),
        *numbers,
        _count_lists(ordered),
        array("H", _buckets(hashes).tobytes()),
        _places(ordered),
    )


def _count_lists(ordered: _Hashes) -> list[int]:
    """How many words of each list of the lexicon there are; a search for keys in order is twice as fast."""
    near = _KEYS.searchsorted(ordered)
    listed = _CLASSES.take(near[_KEYS.take(near, mode="clip") == ordered])
    found: list[int] = (np.bincount(listed, minlength=len(_MEMBERS)) @ _MEMBERS).astype(np.intp).tolist()
    return found


def _buckets(hashes: _Hashes) -> NDArray[np.uint16]:
    """Places of words and of pairs that follow each other, each once."""
    count = len(hashes)
    places = np.empty(2 * count - 1, np.uint16)
    places[:count] = hashes >> _SHIFT
    np.multiply(places[: count - 1], _PAIRS, out=places[count:])
    places[count:] += places[1:count]
    places.sort(kind="stable")  # by radix, which is four times as fast here
    return _once(places)


def _places(ordered: _Hashes) -> bytes:
    """Places of words alone, each once, as 64-bit numbers: what numpy looks things up by."""
    return _once(ordered >> _PLACE_SHIFT).tobytes()


def _once(ordered: NDArray[_Number]) -> NDArray[_Number]:
    """Numbers in order, each once."""
    kept = np.empty(len(ordered), np.bool_)
    kept[0] = True
    np.not_equal(ordered[1:], ordered[:-1], out=kept[1:])
    return ordered[kept]
