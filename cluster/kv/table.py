"""What an agent knows of its engine's cache, over all its ranks, and the changes routers have not heard of yet."""

from __future__ import annotations

import time
from collections.abc import Sequence

from cluster.kv.block_text import BlockText
from cluster.kv.events import AllBlocksCleared, Batch, BlockRemoved, BlockStored
from router.placement.kv_messages import Beat, Chunks, pack_hashes

FORGIVEN_AFTER_S = 600.0
"""After this long without a block of unknown beginning, what was missed once is taken to have left the cache."""


class CacheTable:
    """The chunks of one engine. Data-parallel ranks have caches of their own; a chunk counts when any of them holds it.

    Args:
        key: `derive_chunk_key` of the model.
        token_bytes: the text of each token id; empty when it is not known: then nothing is ever told.
        ranks: how many data-parallel ranks the engine has.
        note: what limits this table, in words.
    """

    def __init__(self, key: bytes, token_bytes: Sequence[bytes], ranks: int = 1, note: str = "") -> None:
        self._ranks = [BlockText(key, token_bytes) for _ in range(ranks)]
        self._tells = bool(token_bytes)
        self._note = note
        self._missed_at = [-1.0] * ranks
        self._orphans = [0] * ranks

    def apply(self, rank: int, batch: Batch) -> None:
        """Take one batch of events of one rank."""
        if not self._tells:
            return
        cache = self._ranks[rank]
        for event in batch.events:
            if isinstance(event, BlockStored):
                cache.store(event)
            elif isinstance(event, BlockRemoved):
                for block_hash in event.block_hashes:
                    cache.remove(block_hash, event.medium, event.group_idx)
            elif isinstance(event, AllBlocksCleared):
                cache.clear()
                self._missed_at[rank], self._orphans[rank] = -1.0, 0
        if cache.orphans != self._orphans[rank]:
            self._orphans[rank] = cache.orphans
            self._missed_at[rank] = time.monotonic()
        if batch.unreadable:
            self._missed_at[rank] = time.monotonic()

    def lose(self, rank: int) -> None:
        """Events are gone for good: what the rank holds is not known any more."""
        self._ranks[rank].clear()
        self._missed_at[rank] = time.monotonic()

    def changes(self) -> Chunks | None:
        """What changed since the last call, or None."""
        if len(self._ranks) == 1:
            stored, removed = self._ranks[0].take_changes()
        else:
            touched = {chunk for rank in self._ranks for part in rank.take_changes() for chunk in part}
            stored = [chunk for chunk in touched if any(chunk in rank for rank in self._ranks)]
            removed = [chunk for chunk in touched if not any(chunk in rank for rank in self._ranks)]
        return Chunks(pack_hashes(stored), pack_hashes(removed)) if stored or removed else None

    def held(self) -> list[int]:
        """Every chunk in the cache of any rank."""
        if len(self._ranks) == 1:
            return list(self._ranks[0].held())
        return list({chunk for rank in self._ranks for chunk in rank.held()})

    def beat(self, proof_age_s: float) -> Beat:
        """The state as routers hear it each second."""
        now = time.monotonic()
        complete = all(at < 0 or now - at > FORGIVEN_AFTER_S for at in self._missed_at)
        note = self._note
        if not complete:
            note = "the beginning of some cached blocks was never seen"
        elif not note and any(rank.other_groups for rank in self._ranks):
            note = "the model also keeps caches that drop the middle of a prefix: what is told is an upper bound"
        blocks = sum(len(rank) for rank in self._ranks)
        tokens = max(rank.block_tokens for rank in self._ranks)
        return Beat(proof_age_s, complete, blocks, tokens, note)
