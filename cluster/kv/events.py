"""vLLM's KV-cache events as they come over ZeroMQ: MessagePack `[ts, [event, ...], data_parallel_rank]`.

Only the fields that are needed are named; what a newer vLLM adds is passed over, and an event of an unknown kind is counted, not
fatal. Shapes: `vllm/distributed/kv_events.py` of vLLM 0.32.
"""

from __future__ import annotations

from typing import Any

import msgspec

BlockHash = int | bytes


class BlockStored(msgspec.Struct, tag="BlockStored", gc=False):
    """Consecutive blocks that entered the cache, with the tokens they hold."""

    block_hashes: list[BlockHash]
    parent_block_hash: BlockHash | None
    token_ids: list[int]
    block_size: int
    medium: str | None = None
    lora_name: str | None = None
    extra_keys: list[list[Any] | None] | None = None
    group_idx: int | None = None
    kv_cache_spec_kind: str | None = None


class BlockRemoved(msgspec.Struct, tag="BlockRemoved", gc=False):
    """Blocks that left the cache (or one tier of it)."""

    block_hashes: list[BlockHash]
    medium: str | None = None
    group_idx: int | None = None


class AllBlocksCleared(msgspec.Struct, tag="AllBlocksCleared", gc=False):
    """The prefix cache was reset."""


Event = BlockStored | BlockRemoved | AllBlocksCleared


class _Batch(msgspec.Struct, array_like=True, gc=False):
    ts: float
    events: list[msgspec.Raw]
    data_parallel_rank: int | None = None


class Batch(msgspec.Struct, frozen=True, gc=False):
    """The readable events of one message, the rank they are of, and how many could not be read."""

    rank: int
    events: list[Event]
    unreadable: int = 0


_BATCHES = msgspec.msgpack.Decoder(_Batch)
_EVENTS = msgspec.msgpack.Decoder(Event)


def decode_batch(payload: bytes) -> Batch:
    """Read one message.

    Raises:
        msgspec.MsgspecError: it is no batch of events at all.
    """
    batch = _BATCHES.decode(payload)
    events: list[Event] = []
    unreadable = 0
    for raw in batch.events:
        try:
            events.append(_EVENTS.decode(raw))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            unreadable += 1
    return Batch(batch.data_parallel_rank or 0, events, unreadable)
