"""Where a log lies on disk: C2SP's `tlog-tiles` layout, read here.

`tile/entries/NNN` holds 256 entries, each after its length in two bytes; `tile/L/NNN` holds the hashes of 256 complete
subtrees of 256**L entries each. A tile that is not full yet is named `NNN.p/W`, with W its width.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from pathlib import Path

from router.ledger.merkle import HASH_BYTES, Frontier, fold, node_hash, root_of, split_of

WIDTH = 256
LONGEST_ENTRY = 0xFFFF


class TileError(ValueError):
    """A tile is missing or damaged; the text names it."""


def tile_path(level: int | str, index: int, width: int = WIDTH) -> str:
    """The path of a tile under the log's directory; `level` is a number, or `entries`.

    Example: `tile/0/x001/234`, and `tile/entries/000.p/17` for a partial one.
    """
    digits = f"{index:03d}"
    digits = digits.zfill(-(-len(digits) // 3) * 3)
    parts = [digits[i : i + 3] for i in range(0, len(digits), 3)]
    path = "/".join([*(f"x{part}" for part in parts[:-1]), parts[-1]])
    return f"tile/{level}/{path}" + (f".p/{width}" if width < WIDTH else "")


def pack_each(entries: Sequence[bytes]) -> list[bytes]:
    """Entries as they stand in a bundle: each after its length."""
    return [len(entry).to_bytes(2, "big") + entry for entry in entries]


def pack_entries(entries: Sequence[bytes]) -> bytes:
    """An entry bundle."""
    return b"".join(pack_each(entries))


def unpack_entries(data: bytes) -> list[bytes]:
    """The entries of a bundle.

    Raises:
        TileError: the lengths do not add up.
    """
    entries, at = [], 0
    while at < len(data):
        if at + 2 > len(data):
            raise TileError("the bundle ends within a length")
        (length,) = struct.unpack_from(">H", data, at)
        at += 2
        if at + length > len(data):
            raise TileError("the bundle ends within an entry")
        entries.append(data[at : at + length])
        at += length
    return entries


def split_hashes(data: bytes) -> list[bytes]:
    """The hashes of a hash tile.

    Raises:
        TileError: not a whole number of hashes.
    """
    if len(data) % HASH_BYTES:
        raise TileError("the tile is not a whole number of hashes")
    return [data[i : i + HASH_BYTES] for i in range(0, len(data), HASH_BYTES)]


def tiles_of(size: int) -> list[tuple[int, int, int]]:
    """Every hash tile of a log of `size` entries as (level, index, width), partial ones included."""
    tiles, level, count = [], 0, size
    while count:
        tiles += [(level, index, WIDTH) for index in range(count // WIDTH)]
        if count % WIDTH:
            tiles.append((level, count // WIDTH, count % WIDTH))
        level, count = level + 1, count // WIDTH
    return tiles


class RightEdge:
    """The tiles of a log that are not full yet: everything an append needs to know.

    Each level keeps the hashes of its tile beside their frontier, so that no node is ever hashed twice.

    Args:
        levels: the hashes of the incomplete tile of each level, lowest first.
        full: how many tiles of each level are full.
    """

    def __init__(self, levels: Sequence[Sequence[bytes]] = (), full: Sequence[int] = ()) -> None:
        self._levels = [list(level) for level in levels]
        self._full = list(full)
        self._frontiers = [Frontier() for _ in levels]
        for frontier, hashes in zip(self._frontiers, self._levels, strict=True):
            frontier.extend(hashes)
        self.size = sum(len(hashes) << 8 * level for level, hashes in enumerate(self._levels))

    def copy(self) -> RightEdge:
        """The same edge, to try an append on."""
        other = RightEdge((), self._full)
        other._levels = [hashes.copy() for hashes in self._levels]
        other._frontiers = [frontier.copy() for frontier in self._frontiers]
        other.size = self.size
        return other

    def root(self) -> bytes:
        """The root of the log."""
        return fold([peak for frontier in reversed(self._frontiers) for peak in frontier.peaks])

    def append(self, leaf: bytes) -> list[tuple[str, bytes]]:
        """Add a leaf hash; as `extend`."""
        return self.extend((leaf,))

    def extend(self, leaves: Sequence[bytes]) -> list[tuple[str, bytes]]:
        """Add leaf hashes.

        Returns:
            The hash tiles that this made full, as path and content.
        """
        done: list[tuple[str, bytes]] = []
        self.size += len(leaves)
        self._add(0, leaves, done)
        return done

    def _add(self, level: int, hashes: Sequence[bytes], done: list[tuple[str, bytes]]) -> None:
        if level == len(self._levels):
            self._levels.append([])
            self._frontiers.append(Frontier())
            self._full.append(0)
        at, roots = 0, []
        while at < len(hashes):
            tile = self._levels[level]
            part = hashes[at : at + WIDTH - len(tile)]
            at += len(part)
            tile += part
            self._frontiers[level].extend(part)
            if len(tile) == WIDTH:
                done.append((tile_path(level, self._full[level]), b"".join(tile)))
                roots.append(self._frontiers[level].root())
                self._levels[level], self._frontiers[level] = [], Frontier()
                self._full[level] += 1
        if roots:
            self._add(level + 1, roots, done)

    def partial_tiles(self) -> list[tuple[str, bytes]]:
        """The tiles that are not full, as path and content."""
        return [
            (tile_path(level, self._full[level], len(hashes)), b"".join(hashes))
            for level, hashes in enumerate(self._levels)
            if hashes
        ]


class TileReader:
    """Entries and hashes of a log of `size` entries, read from its tiles.

    Args:
        read: gives the bytes of a path under the log's directory, or None when there is no such file.
        size: how many entries the log has; its right edge must lie in tiles (partial ones as a checkpoint left them).
    """

    def __init__(self, read: Callable[[str], bytes | None], size: int) -> None:
        self._read = read
        self._size = size
        self._hashes: dict[tuple[int, int], list[bytes]] = {}

    def bundle(self, index: int) -> list[bytes] | None:
        """The entries of bundle `index`, or None when it is not there (pruned)."""
        width = min(WIDTH, self._size - index * WIDTH)
        data = self._read_tile("entries", index, width)
        if data is None:
            return None
        entries = unpack_entries(data)
        if len(entries) < width:
            raise TileError(f"{tile_path('entries', index)} holds {len(entries)} entries, not {width}")
        return entries[:width]

    def hashes(self, level: int, index: int) -> list[bytes]:
        """The hashes of a tile.

        Raises:
            TileError: it is missing or too short.
        """
        known = self._hashes.get((level, index))
        if known is not None:
            return known
        width = min(WIDTH, (self._size >> 8 * level) - index * WIDTH)
        data = self._read_tile(level, index, width)
        if data is None:
            raise TileError(f"{tile_path(level, index, width)} is missing")
        hashes = split_hashes(data)
        if len(hashes) < width:
            raise TileError(f"{tile_path(level, index, width)} holds {len(hashes)} hashes, not {width}")
        if len(self._hashes) > 4096:
            self._hashes.clear()
        self._hashes[level, index] = hashes[:width]
        return hashes[:width]

    def subtree(self, start: int, end: int) -> bytes:
        """The hash over the entries from `start` to `end`, as proofs need it."""
        count = end - start
        if count & (count - 1):
            middle = start + split_of(count)
            return node_hash(self.subtree(start, middle), self.subtree(middle, end))
        level = (count.bit_length() - 1) // 8
        first, number = start >> 8 * level, count >> 8 * level
        return root_of(self.hashes(level, first // WIDTH)[first % WIDTH : first % WIDTH + number])

    def _read_tile(self, level: int | str, index: int, width: int) -> bytes | None:
        data = self._read(tile_path(level, index, width))
        return data if data is not None or width == WIDTH else self._read(tile_path(level, index))


def read_under(root: Path) -> Callable[[str], bytes | None]:
    """A reader of files under a directory; a missing one reads None."""

    def read(path: str) -> bytes | None:
        try:
            return (root / path).read_bytes()
        except FileNotFoundError:
            return None

    return read
