"""Who holds which prefix, by what was routed where: the fallback when no KV events come, and exact enough with one router.

An engine keeps what it served last, least recently used first out; so does this memory, with the same capacity. It knows
nothing of what other routers sent unless they say so, and nothing of a restart unless the incarnation changes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence


class RoutedPrefixes:
    """A `PrefixLookup` of bounded size.

    Args:
        capacity: chunks remembered per target; best what fits its KV cache.
    """

    def __init__(self, capacity: int = 4096) -> None:
        self._capacity = capacity
        self._holders: dict[int, int] = {}
        """Chunk hash -> bit mask of the targets that hold it."""
        self._bits: dict[str, int] = {}
        self._names: dict[int, str] = {}
        self._recent: dict[str, OrderedDict[int, None]] = {}

    def __len__(self) -> int:
        return len(self._holders)

    def overlap(self, prefix: Sequence[int]) -> Mapping[str, int]:
        """Leading chunks held, by incarnation. One dictionary look-up a chunk, whatever the number of targets."""
        holders = self._holders
        found: dict[str, int] = {}
        mask = -1
        depth = 0
        for depth, chunk in enumerate(prefix):
            here = holders.get(chunk, 0) & mask
            if here != mask:
                if depth:
                    self._note(mask & ~here, depth, found)
                mask = here
                if not mask:
                    return found
        if prefix and mask != -1:
            self._note(mask, depth + 1, found)
        return found

    def _note(self, mask: int, depth: int, found: dict[str, int]) -> None:
        while mask:
            bit = mask & -mask
            found[self._names[bit]] = depth
            mask ^= bit

    def routed(self, prefix: Sequence[int], incarnation: str, now: float) -> None:
        """Remember the prefix there; its end is the first to be forgotten, as in the engine's own cache."""
        bit, recent, holders = self._bit(incarnation), self._recent[incarnation], self._holders
        for chunk in reversed(prefix):
            if chunk in recent:
                recent.move_to_end(chunk)
            else:
                recent[chunk] = None
                holders[chunk] = holders.get(chunk, 0) | bit
        while len(recent) > self._capacity:
            chunk, _ = recent.popitem(last=False)
            self._release(chunk, bit)

    def forget(self, incarnations: Iterable[str]) -> None:
        """Targets that are gone hold nothing any more, and their bits are free for others."""
        for incarnation in incarnations:
            bit = self._bits.pop(incarnation, 0)
            if bit:
                for chunk in self._recent.pop(incarnation):
                    self._release(chunk, bit)
                del self._names[bit]

    def _bit(self, incarnation: str) -> int:
        bit = self._bits.get(incarnation)
        if bit is None:
            bit = 1
            while bit in self._names:
                bit <<= 1
            self._bits[incarnation], self._names[bit], self._recent[incarnation] = bit, incarnation, OrderedDict()
        return bit

    def _release(self, chunk: int, bit: int) -> None:
        left = self._holders[chunk] & ~bit
        if left:
            self._holders[chunk] = left
        else:
            del self._holders[chunk]
