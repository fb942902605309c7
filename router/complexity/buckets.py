"""The tables of all heads: what stands at the places of a text is summed for all of them at once, in whole numbers."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from router.complexity.words import BUCKETS

_FIELD_BITS = 21
"""A field of a packed number: a capped text has at most 4,001 places, and 4,001 times 255 stays below 2**21."""
_FIELDS = 3
"""So many of them fit into 63 bits."""
_OFFSET = 128
_SHIFTS = np.arange(_FIELDS, dtype=np.int64) * _FIELD_BITS
_FIELD = (1 << _FIELD_BITS) - 1


class Tables(msgspec.Struct, frozen=True):
    """The int8 tables of `heads` heads, three to a number: `packed[bucket]` has them all, each weight plus 128."""

    packed: NDArray[np.int64]
    heads: int


def compile_tables(tables: Sequence[NDArray[np.int8]]) -> Tables:
    """The heads' tables, all of `BUCKETS` places, made ready."""
    packed = np.zeros((BUCKETS, max(1, -(-len(tables) // _FIELDS))), np.int64)
    for place, table in enumerate(tables):
        packed[:, place // _FIELDS] |= (table.astype(np.int64) + _OFFSET) << int(_SHIFTS[place % _FIELDS])
    return Tables(packed, len(tables))


def sum_heads(tables: Tables, places: array[int]) -> NDArray[np.int64]:
    """For every head the sum of its weights at the places of a text."""
    if not places:
        return np.zeros(tables.heads, np.int64)
    total = np.add.reduce(tables.packed.take(np.frombuffer(places, np.uint16), 0), 0)
    found: NDArray[np.int64] = ((total[:, None] >> _SHIFTS) & _FIELD).ravel()[: tables.heads]
    return found - _OFFSET * len(places)
