"""A simulated paged KV cache: prefix blocks shared by reference count, kept after use, evicted least recently used first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

BLOCK_TOKENS = 512
"""Tokens behind one block id of a trace. Engines use smaller blocks; a trace does not say what is inside its own."""


class SimulatedKvCache:
    """Blocks of prompts (known by id, shared) and private tokens (answers, unfinished blocks) in one pool of tokens.

    Blocks whose last user left stay until the room is needed. A prompt's blocks are let go tail first, as vLLM does, so
    that what is evicted next is the end of the prefix nobody has used for longest. `stored` and `removed` collect the KV
    events until somebody takes them.
    """

    __slots__ = ("_computed", "_kept", "_references", "capacity", "removed", "stored", "used")

    def __init__(self, capacity_tokens: int) -> None:
        self.capacity = capacity_tokens
        self.used = 0
        """Tokens that requests hold now; what is only kept for reuse does not count."""
        self.stored: list[int] = []
        self.removed: list[int] = []
        self._references: dict[int, int] = {}
        self._computed: set[int] = set()
        self._kept: OrderedDict[int, None] = OrderedDict()

    @property
    def usage(self) -> float:
        """Share of the pool in use, as `vllm:kv_cache_usage_perc` counts it."""
        return self.used / self.capacity

    @property
    def free(self) -> int:
        """Tokens that can be allocated now, evicting what nobody uses."""
        return self.capacity - self.used

    def count_prefix(self, blocks: Sequence[int]) -> int:
        """How many of the leading blocks can be reused: those that are computed, not those somebody will compute."""
        computed = self._computed
        for depth, block in enumerate(blocks):
            if block not in computed:
                return depth
        return len(blocks)

    def need_for(self, blocks: Sequence[int], private: int) -> int:
        """Tokens that must be allocated for a request with these prompt blocks and so many private tokens."""
        references = self._references
        return private + BLOCK_TOKENS * sum(1 for block in blocks if block not in references)

    def hold(self, blocks: Sequence[int], private: int) -> None:
        """Take the blocks and private tokens into use; the caller has checked `need_for` against `free`."""
        references, kept = self._references, self._kept
        for block in blocks:
            if block in references:
                references[block] += 1
                continue
            kept.pop(block, None)
            references[block] = 1
            self.used += BLOCK_TOKENS
        self.used += private
        self._evict()

    def mark_computed(self, blocks: Sequence[int]) -> None:
        """A prefill filled these blocks: from now on others can reuse them."""
        for block in blocks:
            if block not in self._computed:
                self._computed.add(block)
                self.stored.append(block)

    def grow(self, tokens: int) -> None:
        """Private tokens come in; the caller has checked `free`."""
        self.used += tokens
        self._evict()

    def release(self, blocks: Sequence[int], private: int) -> None:
        """Let go of a request's blocks, tail first. What was never computed is gone at once."""
        references, kept, computed = self._references, self._kept, self._computed
        for block in reversed(blocks):
            count = references[block] - 1
            if count:
                references[block] = count
                continue
            del references[block]
            self.used -= BLOCK_TOKENS
            if block in computed:
                kept[block] = None
        self.used -= private

    def _evict(self) -> None:
        kept = self._kept
        room = (self.capacity - self.used) // BLOCK_TOKENS
        while kept and len(kept) > room:
            block, _ = kept.popitem(last=False)
            self._computed.discard(block)
            self.removed.append(block)
