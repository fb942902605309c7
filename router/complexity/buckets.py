"""The tables of all heads: what stands at the places of a text is summed for all of them at once, in whole numbers."""

from __future__ import annotations

from array import array

import msgspec
import numpy as np
from numpy.typing import NDArray

from router.complexity.words import BUCKETS

_LONG = 192
"""From so many places on numpy, which costs little per place, is faster than Python, which costs nothing per call."""
_FIELD_BITS = 20
"""A field of a packed bucket: a capped text has at most 4,001 places, and 4,001 times 255 stays below 2**20."""
_FIELD = (1 << _FIELD_BITS) - 1
_OFFSET = 128


class Tables(msgspec.Struct, frozen=True):
    """The int8 tables of all heads, twice: `packed[bucket]` has a field per head, `rows[bucket]` a number per head."""

    packed: list[int]
    rows: NDArray[np.int8]
    heads: int


def compile_tables(tables: list[array[int]]) -> Tables:
    """The heads' tables, all of `BUCKETS` places, made ready; without any head every place is 0."""
    packed = [0] * BUCKETS
    for place, table in enumerate(tables):
        shift = place * _FIELD_BITS
        packed = [number | (weight + _OFFSET) << shift for number, weight in zip(packed, table, strict=True)]
    shared: dict[int, int] = {}
    packed = [shared.setdefault(number, number) for number in packed]  # most places are empty: keep one number for them
    rows = np.zeros((BUCKETS, len(tables)), np.int8)
    for place, table in enumerate(tables):
        rows[:, place] = table
    return Tables(packed, rows, len(tables))


def sum_heads(tables: Tables, places: array[int]) -> list[int]:
    """For every head the sum of its weights at the places of a text."""
    count = len(places)
    if count >= _LONG:
        found: list[int] = tables.rows[np.frombuffer(places, np.uint16)].sum(axis=0, dtype=np.int64).tolist()
        return found
    total = sum(map(tables.packed.__getitem__, places))
    bias = _OFFSET * count
    return [(total >> shift & _FIELD) - bias for shift in range(0, tables.heads * _FIELD_BITS, _FIELD_BITS)]
