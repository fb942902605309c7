"""From token blocks to chunks of text: follows the blocks of one KV cache and says which chunk hashes are whole in it.

A block holds a fixed number of tokens, a chunk a fixed number of bytes: a chunk spans several blocks, or a block several chunks.
A chunk is in the cache when every block that holds a part of it is. For each block only the text behind its last chunk border is
kept (fewer bytes than a chunk), because that is what its children continue.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cluster.kv.events import BlockHash, BlockStored
from router.placement.chunks import ENDS, first_state, namespace, next_state

_FOLLOWED_KINDS = frozenset({None, "full_attention", "mla_attention", "sink_full_attention"})
"""Groups whose blocks stay as long as the prefix does. The others (sliding windows, Mamba states) drop blocks in the middle."""


class _Block:
    """One block: where the chunk chain stands at its end, and the chunks that end in it."""

    __slots__ = ("children", "chunks", "copies", "first_held", "name", "opaque", "parent", "state", "tail", "whole")

    def __init__(self, name: BlockHash, parent: _Block | None, opaque: bool) -> None:
        self.name = name
        self.parent = parent
        self.opaque = opaque
        self.copies: dict[str | None, int] = {}
        self.chunks: tuple[int, ...] = ()
        self.first_held = False
        self.children: dict[BlockHash, _Block] | None = None
        self.state = 0
        self.whole = 0
        self.tail = b""


class BlockText:
    """The cache of one engine rank.

    Args:
        key: `derive_chunk_key` of the model.
        token_bytes: the text of each token id.
    """

    def __init__(self, key: bytes, token_bytes: Sequence[bytes]) -> None:
        self._key = key
        self._token_bytes = token_bytes
        self._blocks: dict[BlockHash, _Block] = {}
        self._held: dict[int, int] = {}
        self._changed: set[int] = set()
        self._group: int | None = None
        self.orphans = 0
        """Blocks whose beginning was never seen; they cannot be told."""
        self.other_groups = False
        """Whether the model also has KV groups that drop blocks in the middle of a prefix."""
        self.block_tokens = 0

    def __len__(self) -> int:
        return len(self._blocks)

    def __contains__(self, chunk: int) -> bool:
        return chunk in self._held

    def held(self) -> Iterator[int]:
        """Every chunk that is whole in the cache."""
        return iter(self._held)

    def take_changes(self) -> tuple[list[int], list[int]]:
        """The net change since the last call: chunks that came, chunks that went."""
        stored = [chunk for chunk in self._changed if chunk in self._held]
        removed = [chunk for chunk in self._changed if chunk not in self._held]
        self._changed.clear()
        return stored, removed

    def clear(self) -> None:
        """The cache was reset."""
        self._changed.update(self._held)
        self._held.clear()
        self._blocks.clear()
        self.orphans = 0

    def store(self, event: BlockStored) -> None:
        """Blocks entered the cache, or one more copy of them did."""
        if not self._follows(event.group_idx, event.kv_cache_spec_kind):
            return
        size, hashes = event.block_size, event.block_hashes
        if size <= 0 or len(event.token_ids) != size * len(hashes):
            self.orphans += len(hashes)
            return
        self.block_tokens = max(self.block_tokens, size)
        parent: _Block | None = None
        if event.parent_block_hash is not None:
            parent = self._blocks.get(event.parent_block_hash)
            if parent is None:
                self.orphans += len(hashes)
                return
        for i, block_hash in enumerate(hashes):
            block = self._blocks.get(block_hash)
            if block is None:
                keys = event.extra_keys[i] if event.extra_keys and i < len(event.extra_keys) else None
                tokens = event.token_ids[i * size : (i + 1) * size]
                block = self._blocks[block_hash] = self._new_block(block_hash, parent, tokens, event.lora_name or "", keys)
            was_held = bool(block.copies)
            block.copies[event.medium] = block.copies.get(event.medium, 0) + 1
            if not was_held:
                self._appear(block)
            parent = block

    def remove(self, block_hash: BlockHash, medium: str | None, group: int | None) -> None:
        """One copy of a block left the cache. vLLM says so once for each copy it had said to be stored."""
        if group is not None and group != self._group:
            return
        block = self._blocks.get(block_hash)
        if block is None:
            return
        left = block.copies.get(medium, 0) - 1
        if left > 0:
            block.copies[medium] = left
            return
        if block.copies.pop(medium, None) is None or block.copies:
            return
        self._disappear(block)
        self._forget(block)

    def _follows(self, group: int | None, kind: str | None) -> bool:
        if kind not in _FOLLOWED_KINDS:
            self.other_groups = True
            return False
        if self._group is None:
            self._group = group
        return group == self._group

    def _new_block(
        self, name: BlockHash, parent: _Block | None, tokens: list[int], lora: str, keys: list[object] | None
    ) -> _Block:
        salt, opaque = _read_extra_keys(keys, lora, is_first=parent is None)
        block = _Block(name, parent, opaque or (parent is not None and parent.opaque))
        if block.opaque:
            return block
        table = self._token_bytes
        try:
            text = b"".join([table[token] for token in tokens])
        except IndexError:
            block.opaque = True
            return block
        if parent is None:
            state, whole = first_state(self._key, namespace(lora, salt)), 0
        else:
            state, whole, text = parent.state, parent.whole, parent.tail + text
        start, chunks = (ENDS[whole - 1] if whole else 0), []
        base = start
        while whole < len(ENDS) and ENDS[whole] - base <= len(text):
            state = next_state(self._key, state, text[start - base : ENDS[whole] - base])
            chunks.append(state)
            start = ENDS[whole]
            whole += 1
        block.state, block.whole, block.chunks = state, whole, tuple(chunks)
        block.tail = text[start - base :] if whole < len(ENDS) else b""
        if parent is not None and parent.tail:
            if parent.children is None:
                parent.children = {}
            parent.children[name] = block
        return block

    def _appear(self, block: _Block) -> None:
        for chunk in block.chunks[1:]:
            self._hold(chunk)
        self._review_first(block)
        self._review_children(block)

    def _disappear(self, block: _Block) -> None:
        for chunk in block.chunks[1:]:
            self._release(chunk)
        self._review_first(block)
        self._review_children(block)

    def _review_children(self, block: _Block) -> None:
        """A chunk that begins in a block ends in a descendant of it: so both have to be there."""
        for child in (block.children or {}).values():
            if child.chunks:
                self._review_first(child)
            else:
                self._review_children(child)

    def _review_first(self, block: _Block) -> None:
        if not block.chunks:
            return
        held = bool(block.copies)
        before = block.parent
        while held and before is not None and before.tail:
            held = bool(before.copies)
            if before.chunks:
                break
            before = before.parent
        if held and not block.first_held:
            self._hold(block.chunks[0])
        elif block.first_held and not held:
            self._release(block.chunks[0])
        block.first_held = held

    def _forget(self, block: _Block | None) -> None:
        """Drop what nothing needs: a block that is gone is kept only while children continue a chunk of it."""
        while block is not None and not block.copies and not block.children:
            del self._blocks[block.name]
            parent = block.parent
            if parent is not None and parent.children is not None:
                parent.children.pop(block.name, None)
            block = parent if parent is not None and parent.tail else None

    def _hold(self, chunk: int) -> None:
        self._held[chunk] = self._held.get(chunk, 0) + 1
        self._changed.add(chunk)

    def _release(self, chunk: int) -> None:
        left = self._held.get(chunk, 0) - 1
        if left > 0:
            self._held[chunk] = left
        else:
            self._held.pop(chunk, None)
            self._changed.add(chunk)


def _read_extra_keys(keys: list[object] | None, lora: str, *, is_first: bool) -> tuple[str, bool]:
    """The `cache_salt` among a block's extra keys, and whether it also holds what is no text (images, audio, embeddings)."""
    rest = list(keys or ())
    if lora and rest and rest[0] == lora:
        rest.pop(0)
    salt = ""
    if is_first and rest and isinstance(rest[-1], str):
        salt = str(rest.pop())
    return salt, bool(rest)
