"""The prefix index: what it answers, what it forgets, what it costs."""

import random
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.placement.chunks import ENDS, LONGEST_TEXT, bytes_until, chunk_hashes, derive_chunk_key, namespace
from router.placement.prefix import CHUNK_COST, CONFIRM_AFTER_S, MOST_HISTORY, PrefixIndex

KEY = derive_chunk_key(b"s" * 32, "model")
OTHER_KEY = derive_chunk_key(b"t" * 32, "model")
SPACE = namespace()


def hashes(text: bytes, space: bytes = SPACE, key: bytes = KEY) -> tuple[int, ...]:
    return chunk_hashes(key, space, text)


def text_of(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def index_with(*replicas: str, exact: bool = True) -> PrefixIndex:
    index = PrefixIndex()
    for replica in replicas:
        index.join(replica)
        index.trust_events(replica, exact)
    return index


# Chunks


@given(st.binary(max_size=6000), st.binary(max_size=3000), st.binary(max_size=3000))
def test_hashes_agree_exactly_as_far_as_whole_chunks_do(shared, one, other):
    first, second = hashes(shared + one), hashes(shared + other)
    common = 0
    while common < min(len(first), len(second)) and first[common] == second[common]:
        common += 1
    whole = sum(
        1 for end in ENDS if (shared + one)[:end] == (shared + other)[:end] and end <= len(shared) + min(len(one), len(other))
    )
    assert common == whole


def test_a_chunk_stands_for_everything_before_it():
    a, b = bytearray(text_of(4000)), bytearray(text_of(4000))
    b[0] ^= 1
    assert not set(hashes(bytes(a))) & set(hashes(bytes(b)))


def test_keys_and_namespaces_share_no_hash():
    text = text_of(3000)
    spaces = [
        namespace(),
        namespace(lora="a"),
        namespace(salt="a"),
        namespace("a", "a"),
        namespace("aa"),
        namespace("", "\ud800"),
    ]
    chains = [hashes(text, space) for space in spaces] + [hashes(text, key=OTHER_KEY)]
    assert len({h for chain in chains for h in chain}) == sum(map(len, chains))


def test_very_long_text_is_cut():
    assert bytes_until(len(hashes(bytes(LONGEST_TEXT + 5000)))) == LONGEST_TEXT


@pytest.mark.parametrize("size", [100, 1023, 3000, 5000, 17_000, 32_767, 34_000, 140_000, 1_000_000])
def test_little_of_a_prefix_stays_unknown(size):
    known = bytes_until(len(hashes(bytes(size))))
    limit = 128 if size < 1024 else 256 if size < 4096 else 512 if size < 32 * 1024 else size / 16
    assert 0 <= size - known < limit


# The index


def test_it_finds_the_longest_prefix_of_each_replica():
    text = text_of(3000)
    chain = hashes(text)
    index = index_with("a", "b", "c")
    index.store("a", chain)
    index.store("b", chain[:4])
    found = index.find(chain, len(text))
    assert found.found == {"a": bytes_until(len(chain)), "b": bytes_until(4)}
    assert found.share("b") == bytes_until(4) / 3000
    assert found.share("c") == 0
    assert found.tokens("b", 700) == 700 * bytes_until(4) // 3000


def test_a_whole_prompt_still_computes_one_token():
    chain = hashes(text_of(1024))
    index = index_with("a")
    index.store("a", chain)
    assert index.find(chain, 1024).tokens("a", 300) == 299


def test_a_hole_ends_the_prefix():
    chain = hashes(text_of(3000))
    index = index_with("a")
    index.store("a", chain)
    index.remove("a", chain[2:3])
    assert index.find(chain, 3000).found == {"a": bytes_until(2)}
    index.remove("a", chain[:1])
    assert index.find(chain, 3000).found == {}


def test_removing_what_nobody_stored_is_fine():
    index = index_with("a", "b")
    chain = hashes(text_of(3000))
    index.store("a", chain)
    index.remove("b", chain)
    index.remove("nobody", chain)
    index.store("nobody", chain)
    assert index.find(chain, 3000).found == {"a": bytes_until(len(chain))}


def test_clear_and_leave_take_effect_at_once_and_are_swept_later():
    chain = hashes(text_of(3000))
    index = index_with("a", "b")
    index.store("a", chain)
    index.store("b", chain)
    index.clear("a")
    assert index.find(chain, 3000).found == {"b": bytes_until(len(chain))}
    index.leave("b")
    assert index.find(chain, 3000).found == {}
    for _ in range(4):
        index.tend(0.0)
    assert len(index) == 0
    index.store("a", chain[:1])
    assert index.find(chain, 3000).found == {"a": bytes_until(1)}


def test_slots_are_used_again():
    index = PrefixIndex()
    chain = hashes(text_of(1000))
    for i in range(200):
        index.join(f"r{i}")
        index.store(f"r{i}", chain)
        index.leave(f"r{i}")
        for _ in range(3):
            index.tend(0.0)
    assert len(index._names) < 5
    assert len(index) == 0


def test_what_was_just_routed_counts_until_the_events_had_time():
    chain = hashes(text_of(3000))
    index = index_with("a", "b")
    index.route("a", chain)
    assert index.find(chain, 3000).found == {"a": bytes_until(len(chain))}
    index.computed("a", chain, now=100.0)
    assert index.tend(100.0 + CONFIRM_AFTER_S - 0.1) == []
    assert index.find(chain, 3000).found == {"a": bytes_until(len(chain))}
    index.store("a", chain[:6])
    results = index.tend(100.0 + CONFIRM_AFTER_S)
    assert [(r.incarnation, r.confirmed) for r in results] == [("a", True)]
    assert index.find(chain, 3000).found == {"a": bytes_until(6)}
    assert index.history_entries == 0


def test_what_no_event_confirms_is_dropped_and_told():
    chain = hashes(text_of(3000))
    index = index_with("a")
    index.route("a", chain)
    index.computed("a", chain, now=0.0)
    index.route("a", chain)
    index.computed("a", chain, now=0.5, judged=False)
    assert [r.confirmed for r in index.tend(CONFIRM_AFTER_S)] == [False]
    assert index.find(chain, 3000).found != {}  # the second request still has time
    assert index.tend(CONFIRM_AFTER_S + 1) == []
    assert index.find(chain, 3000).found == {}


def test_a_failed_attempt_leaves_nothing():
    chain = hashes(text_of(3000))
    index = index_with("a")
    index.route("a", chain)
    index.failed("a", chain)
    assert index.find(chain, 3000).found == {}
    assert index.history_entries == 0


def test_without_events_the_history_stays_and_is_bounded():
    old, new = hashes(text_of(8 * 1024, 1)), hashes(text_of(16 * 1024, 2))
    index = PrefixIndex(history_chunks=len(new))
    index.join("a")
    index.route("a", old)
    index.computed("a", old, now=0.0)
    index.tend(1000.0)
    assert index.find(old, 8192).share("a") == 1.0
    index.route("a", new)
    assert index.history_entries == len(new)
    assert index.find(old, 8192).share("a") == 0.0
    assert index.find(new, 16384).share("a") == 1.0
    index.trust_events("a", True)
    assert index.find(new, 16384).share("a") == 0.0


def test_the_table_is_bounded_and_routing_refreshes():
    index = PrefixIndex(max_chunks=100)
    index.join("a")
    index.trust_events("a", True)
    system = hashes(text_of(4096, 1))
    index.store("a", system)
    for i in range(20):
        index.route("a", system)
        index.failed("a", system)
        index.store("a", hashes(text_of(4096, 10 + i)))
        assert len(index) <= 100
    assert index.find(system, 4096).share("a") == 1.0


STEPS = st.tuples(
    st.sampled_from("abc"), st.sampled_from(["store", "remove", "clear", "doubt"]), st.integers(0, 5), st.integers(0, 9)
)


@given(st.lists(STEPS))
def test_it_agrees_with_a_plain_model(steps):
    """The same events into plain sets: the answers are equal, whatever the order."""
    chains = [hashes(text_of(2000, i % 3)[: 200 * (i + 1)] + text_of(2000, i)) for i in range(6)]
    index = index_with("a", "b", "c")
    plain: dict[str, set[int]] = {"a": set(), "b": set(), "c": set()}
    for replica, action, chain, length in steps:
        part = chains[chain][:length] if action == "store" else chains[chain][length:]
        if action == "clear":
            index.clear(replica)
            plain[replica].clear()
        elif action == "doubt":
            index.trust_events(replica, length % 2 == 0)
        else:
            getattr(index, action)(replica, part)
            plain[replica] = plain[replica] | set(part) if action == "store" else plain[replica] - set(part)
        index.tend(0.0)
    for chain in chains:
        expected = {}
        for replica, held in plain.items():
            depth = next((i for i, h in enumerate(chain) if h not in held), len(chain))
            if depth:
                expected[replica] = bytes_until(depth)
        assert index.find(chain, 4000).found == expected


def test_an_entry_costs_what_the_documentation_says():
    """So that a bound in MiB is one. Measured where the table has just grown, as it is at its dearest."""
    index = index_with("a")
    chance = random.Random(1)
    tracemalloc.start()
    index.store("a", (chance.getrandbits(64) for _ in range(100_000)))
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert size / 100_000 <= CHUNK_COST


names = st.sampled_from(["a", "b", "c", "d"])
paths = st.lists(st.integers(0, 2), min_size=1, max_size=5)


def chain_of(path):
    """Hashes of which each stands for everything up to it."""
    return tuple(hash(tuple(path[: i + 1])) for i in range(len(path)))


@given(st.lists(st.tuples(names, paths), max_size=30), paths)
def test_own_history_finds_the_longest_routed_beginning(history, question):
    index, known = index_with("a", "b", "c", "d", exact=False), {}
    for name, path in history:
        index.route(name, chain_of(path))
        known.setdefault(name, set()).update(chain_of(path))
    wanted = {}
    for name, held in known.items():
        depth = next((i for i, chunk in enumerate(chain_of(question)) if chunk not in held), len(question))
        if depth:
            wanted[name] = depth
    assert index.depths(chain_of(question)) == wanted


@given(st.lists(st.tuples(names, paths), max_size=60))
def test_own_history_is_bounded_and_a_replica_that_leaves_takes_all_of_it(history):
    index = PrefixIndex(history_chunks=6)
    for name in "abcd":
        index.join(name)
    for name, path in history:
        index.route(name, chain_of(path))
    assert all(index.history_of(name) <= 6 for name in "abcd")
    for name in "abcd":
        index.leave(name)
    assert index.history_entries == 0 and index.depths(chain_of([0, 1])) == {} and not index._routed


def test_a_replicas_history_is_as_long_as_its_cache():
    index = PrefixIndex(history_chunks=6)
    for name in "ab":
        index.join(name)
    index.make_room("a", 3)
    index.make_room("b", 9)
    index.make_room("nobody", 1)
    for start in range(0, 40, 2):
        for name in "ab":
            index.route(name, (start, start + 1))
    assert (index.history_of("a"), index.history_of("b")) == (3, 9)
    index.leave("b")
    index.join("c")
    for start in range(0, 40, 2):
        index.route("c", (start, start + 1))
    assert index.history_of("c") == 6, "another replica in its place has a bound of its own"
    index.make_room("a", 1 << 60)
    index.route("a", tuple(range(MOST_HISTORY + 9)))
    assert index.history_of("a") == MOST_HISTORY


def test_the_end_of_a_prompt_is_forgotten_before_its_beginning():
    index = PrefixIndex(history_chunks=4)
    index.join("a")
    index.route("a", (1, 2, 3))
    index.route("a", (9, 8))
    assert index.depths((1, 2, 3)) == {"a": 2}
    assert index.depths((9, 8)) == {"a": 2}


def doubted(index: PrefixIndex, replica: str) -> None:
    """Its events are trusted no more, and the table was passed over since."""
    index.trust_events(replica, False)
    index.tend(0.0)
    index.tend(1.0)


def test_what_events_said_until_they_were_cut_is_pushed_out_by_what_is_sent_there():
    """The engine makes room as well, but its word that something is gone never comes."""
    index = PrefixIndex(history_chunks=4)
    for name in "ab":
        index.join(name)
        index.trust_events(name, True)
        index.store(name, (1, 2, 3))
        index.store(name, (4, 5, 6))
    doubted(index, "a")
    index.route("a", (7, 8))
    assert index.depths((1, 2, 3)) == {"a": 1, "b": 3}
    assert index.depths((4, 5, 6)) == {"a": 3, "b": 3}
    assert index.depths((7, 8)) == {"a": 2}
    index.trust_events("a", True)
    assert index.depths((1, 2, 3)) == {"a": 3, "b": 3}
    assert index.depths((7, 8)) == {}


def test_a_cache_that_held_more_than_the_bound_on_histories_has_room_for_that_much():
    index = PrefixIndex(history_chunks=2)
    index.join("a")
    index.trust_events("a", True)
    index.store("a", tuple(range(10)))
    index.remove("a", (8, 9))
    doubted(index, "a")
    assert index.history_of("a") == 8
    index.route("a", (20, 21, 22))
    assert index.history_of("a") == 8
    assert index.depths(tuple(range(10))) == {"a": 5}


def test_late_events_are_history_like_what_was_sent():
    index = PrefixIndex(history_chunks=3)
    index.join("a")
    for chunk in (1, 2, 3):
        index.store("a", (chunk,))
    index.route("a", (1,))
    index.failed("a", (1,))
    assert index.depths((1,)) == {"a": 1}  # it was there before
    index.remove("a", (2, 3))
    assert index.depths((2,)) == index.depths((3,)) == {}


def test_trust_that_returns_during_the_pass_over_the_table_changes_nothing():
    index = index_with("a", "b")
    index.store("a", (1, 2))
    index.trust_events("a", False)
    index.tend(0.0)
    index.trust_events("a", True)
    index.tend(1.0)
    assert index.depths((1, 2)) == {"a": 2}
    assert index.history_entries == 0


def test_a_replica_that_leaves_during_the_pass_over_the_table_comes_back_with_nothing():
    index = index_with("a", "b")
    index.store("a", (1, 2))
    index.store("b", (1, 2))
    index.trust_events("b", False)
    index.tend(0.0)
    index.leave("b")
    index.tend(1.0)
    index.join("b")
    assert index.depths((1, 2)) == {"a": 2}


def test_a_history_has_room_for_what_is_left_of_its_replica_in_a_full_table():
    index = PrefixIndex(max_chunks=4, history_chunks=1)
    for name in "ab":
        index.join(name)
        index.trust_events(name, True)
        index.store(name, (1, 2, 3, 4))
    index.store("a", (5, 6))
    doubted(index, "a")
    doubted(index, "b")
    assert (index.history_of("a"), index.history_of("b")) == (4, 2)
