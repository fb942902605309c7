"""The tables of all heads: what stands at the places of a text is summed for all of them at once."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from router.complexity.words import BUCKETS

Tables = NDArray[np.float32]
"""A row per bucket, a column per head, whole numbers: a capped text has at most 4,001 places, and 4,001 times 128 stays below
2**24, up to where a float32 holds every whole number. So every sum is exact."""


def compile_tables(tables: Sequence[NDArray[np.int8]]) -> Tables:
    """The heads' tables, all of `BUCKETS` places, made ready."""
    return np.stack(tables, 1).astype(np.float32) if tables else np.zeros((BUCKETS, 0), np.float32)


def sum_heads(tables: Tables, places: array[int]) -> NDArray[np.float32]:
    """For every head the sum of its weights at the places of a text."""
    found: NDArray[np.float32] = np.add.reduce(tables.take(np.frombuffer(places, np.uint16) if places else (), 0), 0)
    return found
