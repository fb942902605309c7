"""From blocks to chunks: whatever enters and leaves the cache, in any order, the chunks told are those that are whole in it."""

import random
import tracemalloc

import pytest

from cluster.kv.block_text import BlockText
from cluster.kv.events import AllBlocksCleared, BlockRemoved, BlockStored, decode_batch
from router.placement.chunks import ENDS, chunk_hashes, derive_chunk_key, namespace

KEY = derive_chunk_key(b"s" * 32, "m")
TABLE = tuple(bytes([65 + i % 26]) * (1 + i % 7) for i in range(500))


def text(tokens) -> bytes:
    return b"".join(TABLE[t] for t in tokens)


def block_names(tokens, size, salt=""):
    return [hash((salt, tuple(tokens[: (i + 1) * size]))) for i in range(len(tokens) // size)]


def stored(tokens, size=16, start=0, salt="", **more) -> BlockStored:
    names = block_names(tokens, size, salt or more.get("lora_name") or "")
    whole = tokens[start * size : len(names) * size]
    return BlockStored(names[start:], names[start - 1] if start else None, whole, size, "GPU", **more)


def a_prompt(seed: int, length: int = 700, shared: list[int] | None = None) -> list[int]:
    chance = random.Random(seed)
    return [*(shared or []), *(chance.randrange(len(TABLE)) for _ in range(length))]


def expected(tokens, size=16, space=None) -> set[int]:
    whole = len(tokens) // size * size
    return set(chunk_hashes(KEY, space or namespace(), text(tokens[:whole])))


@pytest.mark.parametrize("size", [1, 16, 32, 128, 656])
def test_a_stored_prompt_is_told_as_the_router_hashes_it(size):
    tokens = a_prompt(1)
    cache = BlockText(KEY, TABLE)
    cache.store(stored(tokens, size))
    assert set(cache.held()) == expected(tokens, size)
    assert set(cache.take_changes()[0]) == expected(tokens, size)
    assert cache.take_changes() == ([], [])
    assert cache.block_tokens == size


def test_a_prompt_stored_piece_by_piece_is_the_same():
    tokens = a_prompt(1)
    cache = BlockText(KEY, TABLE)
    for i in range(len(tokens) // 16):
        cache.store(stored(tokens[: (i + 1) * 16], start=i))
    assert set(cache.held()) == expected(tokens)


def test_branches_share_what_is_before_them():
    shared = a_prompt(1, 200)
    one, other = a_prompt(2, 300, shared), a_prompt(3, 300, shared)
    cache = BlockText(KEY, TABLE)
    cache.store(stored(one))
    cache.store(stored(other, start=200 // 16))
    assert set(cache.held()) == expected(one) | expected(other)
    for name in block_names(one, 16)[200 // 16 :]:
        cache.remove(name, "GPU", None)
    assert set(cache.held()) == expected(other)


def test_a_block_held_twice_goes_with_its_last_copy():
    tokens = a_prompt(1)
    cache = BlockText(KEY, TABLE)
    cache.store(stored(tokens))
    cache.store(stored(tokens))
    names = block_names(tokens, 16)
    for name in names:
        cache.remove(name, "GPU", None)
    assert set(cache.held()) == expected(tokens)
    for name in reversed(names):
        cache.remove(name, "GPU", None)
    assert set(cache.held()) == set()
    assert len(cache) == 0


def test_another_tier_holds_it_too():
    tokens = a_prompt(1)
    cache = BlockText(KEY, TABLE)
    event = stored(tokens)
    cache.store(event)
    event.medium = "CPU"
    cache.store(event)
    for name in event.block_hashes:
        cache.remove(name, "GPU", None)
    assert set(cache.held()) == expected(tokens)
    cache.clear()
    assert set(cache.held()) == set()


def brute_force(paths, present, size) -> set[int]:
    held = set()
    for tokens in paths:
        names = block_names(tokens, size)
        ends = [len(text(tokens[: (i + 1) * size])) for i in range(len(names))]
        hashes = chunk_hashes(KEY, namespace(), text(tokens[: len(names) * size]))
        for i, chunk in enumerate(hashes):
            start, end = (ENDS[i - 1] if i else 0), ENDS[i]
            covering = [n for n, (b, e) in zip(names, zip([0, *ends], ends, strict=False), strict=True) if b < end and e > start]
            if all(n in present for n in covering):
                held.add(chunk)
    return held


@pytest.mark.parametrize("seed", range(25))
def test_any_order_of_coming_and_going(seed):
    """Blocks are evicted in any order, also one in the middle of a chunk, and come back."""
    chance = random.Random(seed)
    size = chance.choice([4, 16, 64, 128])
    shared = a_prompt(seed, 90)
    paths = [a_prompt(100 + seed + i, 160, shared if i % 2 else shared[:50]) for i in range(4)]
    cache = BlockText(KEY, TABLE)
    present: set[int] = set()
    told: set[int] = set()
    for _ in range(60):
        tokens = chance.choice(paths)
        names = block_names(tokens, size)
        if chance.random() < 0.5:
            start = next((i for i, name in enumerate(names) if name not in present), len(names))
            end = chance.randint(start, len(names))
            while start < end:
                # An engine computes only what it does not have, and what follows a hole anew.
                cache.store(stored(tokens[: (start + 1) * size], size, start)) if names[start] not in present else None
                present.add(names[start])
                start += 1
        elif present:
            gone = chance.choice(sorted(present))
            present.discard(gone)
            cache.remove(gone, "GPU", None)
        came, went = cache.take_changes()
        told = (told | set(came)) - set(went)
        assert set(cache.held()) == told == brute_force(paths, present, size)
    for name in sorted(present):
        cache.remove(name, "GPU", None)
    assert set(cache.held()) == set() and len(cache) == 0


def test_adapters_and_salts_have_spaces_of_their_own():
    tokens = a_prompt(1)
    size = len(tokens) // 16
    cache = BlockText(KEY, TABLE)
    cache.store(stored(tokens, lora_name="pirate", extra_keys=[["pirate"]] * size))
    cache.store(stored(tokens, salt="x", extra_keys=[["tenant-7"], *([None] * (size - 1))]))
    both = BlockText(KEY, TABLE)
    both.store(stored(tokens, lora_name="pirate", extra_keys=[["pirate", "tenant-7"], *([["pirate"]] * (size - 1))]))
    assert set(cache.held()) == expected(tokens, space=namespace("pirate")) | expected(tokens, space=namespace(salt="tenant-7"))
    assert set(both.held()) == expected(tokens, space=namespace("pirate", "tenant-7"))


def test_what_is_no_text_is_not_told_from_there_on():
    """An image in the third block: what is before it counts, what is behind it does not."""
    tokens = a_prompt(1)
    keys = [None, None, [["image-hash", 3]], *([None] * (len(tokens) // 16 - 3))]
    cache = BlockText(KEY, TABLE)
    cache.store(stored(tokens, extra_keys=keys))
    assert set(cache.held()) == expected(tokens[:32])
    beyond = BlockText(KEY, TABLE)
    beyond.store(stored([*tokens[:32], *[9999] * 16, *tokens[48:]]))
    assert set(beyond.held()) == expected(tokens[:32])


def test_blocks_without_a_beginning_are_counted():
    tokens = a_prompt(1)
    cache = BlockText(KEY, TABLE)
    cache.store(stored(tokens, start=4))
    assert set(cache.held()) == set()
    assert cache.orphans == len(tokens) // 16 - 4


def test_only_groups_that_keep_a_prefix_are_followed():
    tokens = a_prompt(1)
    cache = BlockText(KEY, TABLE)
    cache.store(stored(tokens, group_idx=0, kv_cache_spec_kind="sliding_window"))
    assert cache.other_groups and set(cache.held()) == set()
    cache.store(stored(tokens, group_idx=1, kv_cache_spec_kind="full_attention"))
    for name in block_names(tokens, 16):
        cache.remove(name, "GPU", 0)
    assert set(cache.held()) == expected(tokens)


def test_batches_of_newer_versions_are_read():
    import msgspec

    tokens = list(range(16))
    event = {"type": "BlockStored", "block_hashes": [b"x" * 32], "parent_block_hash": None, "token_ids": tokens, "block_size": 16}
    event |= {"lora_id": None, "medium": "GPU", "lora_name": None, "session_id": "s", "invented": [1, 2]}
    removed = {"type": "BlockRemoved", "block_hashes": [1, 2], "medium": None}
    half = msgspec.Raw(msgspec.msgpack.encode(removed | {"medium": "GPU"}).replace(b"GPU", b"G\xffU"))
    payload = msgspec.msgpack.encode([1.0, [event, removed, {"type": "AllBlocksCleared"}, {"type": "Invented"}, half], 3])
    batch = decode_batch(payload)
    assert (batch.rank, batch.unreadable) == (3, 2)
    assert [type(event) for event in batch.events] == [BlockStored, BlockRemoved, AllBlocksCleared]
    with pytest.raises(msgspec.MsgspecError):
        decode_batch(b"\xc1")


def test_a_block_costs_less_than_a_kilobyte():
    cache = BlockText(KEY, TABLE)
    prompts = [a_prompt(i, 16 * 500) for i in range(10)]
    events = [stored(prompt) for prompt in prompts]
    tracemalloc.start()
    for event in events:
        cache.store(event)
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert size / len(cache) < 1000
