"""The words that a domain is told by: each has a row of numbers in the weights, found by its place, a part of its hash.

A place has 20 bits and is of a word alone, never of a pair, so that a word nobody fitted seldom meets one that was.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import msgspec
import numpy as np
from numpy.typing import NDArray

from router.complexity.buckets import sum_rows
from router.complexity.words import PLACES

PLACE_BYTES = 4
MOST_WORDS = (1 << 16) - 1
"""Of a vocabulary: the index has 16 bits a place, and 0 is a word that is not known."""


class Vocabulary(msgspec.Struct, frozen=True):
    """`index` has the row of each of the `PLACES`, 0 for none; `rows` begins with a row of zeros, and has a column per head."""

    index: NDArray[np.uint16]
    rows: NDArray[np.float32]
    scales: NDArray[np.float64]


def compile_vocabulary(
    places: NDArray[np.uint32], rows: NDArray[np.floating | np.signedinteger], scales: Sequence[float]
) -> Vocabulary:
    """A vocabulary made ready.

    Args:
        places: of the words, each once.
        rows: a row per word, a column per head. Of whole numbers up to 127 every sum over a capped text is exact.
        scales: what a column's sums are multiplied by.
    """
    index = np.zeros(PLACES, np.uint16)
    index[places] = np.arange(1, len(places) + 1)
    return Vocabulary(index, np.vstack([np.zeros((1, rows.shape[1])), rows]).astype(np.float32), np.array(scales, np.float64))


def sum_known(vocabulary: Vocabulary, places: bytes) -> NDArray[np.float64]:
    """For every head the sum of the rows of a text's known words, divided by the root of how many they are.

    Args:
        vocabulary: the words that are known.
        places: `Features.places`.
    """
    found = vocabulary.index.take(np.frombuffer(places, np.int64))
    return sum_rows(vocabulary.rows, found) * (vocabulary.scales / sqrt(np.count_nonzero(found) or 1))
