"""Who holds which prefix by own history: against a model of one plain LRU set a target."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from router.placement.history import RoutedPrefixes

names = st.sampled_from(["a", "b", "c", "d"])
paths = st.lists(st.integers(0, 2), min_size=1, max_size=5)


def chain(path):
    """Hashes of which each stands for everything up to it."""
    return tuple(hash(tuple(path[: i + 1])) for i in range(len(path)))


@given(st.lists(st.tuples(names, paths), max_size=30), paths)
def test_overlap_is_the_longest_routed_beginning(history, question):
    memory, known = RoutedPrefixes(10_000), {}
    for name, path in history:
        memory.routed(chain(path), name, 0.0)
        known.setdefault(name, set()).update(chain(path))
    wanted = {}
    for name, held in known.items():
        depth = next((i for i, chunk in enumerate(chain(question)) if chunk not in held), len(question))
        if depth:
            wanted[name] = depth
    assert memory.overlap(chain(question)) == wanted


@given(st.lists(st.tuples(names, paths), max_size=60))
def test_memory_is_bounded_and_forgetting_leaves_nothing(history):
    memory = RoutedPrefixes(6)
    for name, path in history:
        memory.routed(chain(path), name, 0.0)
    assert len(memory) <= 6 * 4
    memory.forget(["a", "b", "c", "d"])
    assert len(memory) == 0 and memory.overlap(chain([0, 1])) == {}


def test_the_end_of_a_prefix_is_forgotten_before_its_beginning():
    memory = RoutedPrefixes(4)
    memory.routed((1, 2, 3), "a", 0.0)
    memory.routed((9, 8), "a", 1.0)
    assert memory.overlap((1, 2, 3)) == {"a": 2}
    assert memory.overlap((9, 8)) == {"a": 2}
