"""The Merkle tree of RFC 9162 (section 2.1): hashes, roots, and proofs of inclusion.

Pure functions over hashes of 32 bytes. Where hashes come from (memory, tiles) is the caller's business: proofs are built
over a `Subtree`, a function that gives the hash of the entries from `start` to `end`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import sha256

HASH_BYTES = 32
EMPTY_ROOT = sha256().digest()

Subtree = Callable[[int, int], bytes]


_begun_leaf = sha256(b"\x00").copy
_begun_node = sha256(b"\x01").copy
"""A hash that has read its prefix is copied faster than a new one is begun."""


def leaf_hash(entry: bytes) -> bytes:
    """Hash of an entry: SHA-256(0x00 || entry)."""
    begun = _begun_leaf()
    begun.update(entry)
    return begun.digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Hash of an inner node: SHA-256(0x01 || left || right)."""
    begun = _begun_node()
    begun.update(left + right)
    return begun.digest()


def root_of(hashes: Sequence[bytes]) -> bytes:
    """The root over leaf hashes (or over the roots of complete subtrees of one size)."""
    frontier = Frontier()
    frontier.extend(hashes)
    return frontier.root()


def fold(peaks: Sequence[bytes]) -> bytes:
    """The root over complete subtrees of falling size, the largest first."""
    if not peaks:
        return EMPTY_ROOT
    result = peaks[-1]
    for peak in reversed(peaks[:-1]):
        result = node_hash(peak, result)
    return result


def split_of(count: int) -> int:
    """The largest power of two below `count` (which is at least 2): how many leaves the left subtree has."""
    return 1 << (count - 1).bit_length() - 1


class Frontier:
    """The right edge of a growing tree: enough to append and to know the root, in O(log n) memory."""

    __slots__ = ("_peaks", "size")

    def __init__(self, size: int = 0, peaks: Sequence[bytes] = ()) -> None:
        self.size = size
        self._peaks = list(peaks)

    def copy(self) -> Frontier:
        """The same edge, to try an append on."""
        return Frontier(self.size, self._peaks)

    @property
    def peaks(self) -> tuple[bytes, ...]:
        """The roots of the complete subtrees, the largest first."""
        return tuple(self._peaks)

    def append(self, leaf: bytes) -> None:
        """Add a leaf hash."""
        self.extend((leaf,))

    def extend(self, leaves: Sequence[bytes]) -> None:
        """Add leaf hashes, level by level: each inner node is hashed once, in one pass over its level."""
        count, row, peaks = self.size, list(leaves), self._peaks
        self.size += len(row)
        made: list[bytes] = []
        while row:
            if count & 1:
                row.insert(0, peaks.pop())
            if len(row) & 1:
                made.append(row.pop())
            row = list(map(node_hash, row[::2], row[1::2]))
            count >>= 1
        peaks += reversed(made)

    def root(self) -> bytes:
        """The root at the present size."""
        return fold(self._peaks)


def inclusion_proof(index: int, size: int, subtree: Subtree) -> list[bytes]:
    """PATH(index, D[size]) of RFC 9162, 2.1.3.1.

    Raises:
        ValueError: there is no such entry.
    """
    if not 0 <= index < size:
        raise ValueError(f"there is no entry {index} in a log of {size}")
    path: list[bytes] = []
    start, end = 0, size
    while end - start > 1:
        middle = start + split_of(end - start)
        if index < middle:
            path.append(subtree(middle, end))
            end = middle
        else:
            path.append(subtree(start, middle))
            start = middle
    return path[::-1]


def root_from_inclusion(leaf: bytes, index: int, size: int, path: Sequence[bytes]) -> bytes | None:
    """The root that an inclusion proof leads to (RFC 9162, 2.1.3.2), or None when the proof has the wrong form."""
    if not 0 <= index < size:
        return None
    node, last, result = index, size - 1, leaf
    for item in path:
        if last == 0:
            return None
        if node & 1 or node == last:
            result = node_hash(item, result)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            result = node_hash(result, item)
        node, last = node >> 1, last >> 1
    return result if last == 0 else None


def is_included(leaf: bytes, index: int, size: int, path: Sequence[bytes], root: bytes) -> bool:
    """True when the proof shows that `leaf` is entry `index` of the log of `size` with this root."""
    return root_from_inclusion(leaf, index, size, path) == root
