"""The Merkle tree against an independent implementation, and against itself at every size."""

from __future__ import annotations

import pymerkle
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.ledger.merkle import (
    EMPTY_ROOT,
    Frontier,
    inclusion_proof,
    is_included,
    leaf_hash,
    root_of,
)
from router.ledger.tiles import (
    WIDTH,
    RightEdge,
    TileError,
    TileReader,
    pack_entries,
    split_hashes,
    tile_path,
    tiles_of,
    unpack_entries,
)

ENTRIES = [f"entry {n}".encode() for n in range(300)]
LEAVES = [leaf_hash(entry) for entry in ENTRIES]


def subtree(start: int, end: int) -> bytes:
    return root_of(LEAVES[start:end])


@pytest.fixture(scope="module")
def oracle() -> pymerkle.InmemoryTree:
    tree = pymerkle.InmemoryTree(algorithm="sha256")
    for entry in ENTRIES:
        tree.append_entry(entry)
    return tree


def test_roots_are_those_of_pymerkle_at_every_size(oracle):
    frontier = Frontier()
    for size, leaf in enumerate(LEAVES, start=1):
        frontier.append(leaf)
        assert frontier.root() == oracle.get_root(size) == root_of(LEAVES[:size])
    assert Frontier().root() == EMPTY_ROOT


def test_pymerkle_accepts_our_proofs_and_ours_are_its_own(oracle):
    for size in (1, 2, 3, 7, 8, 64, 255, 256, 257, 300):
        for index in {0, size // 2, size - 1}:
            ours = inclusion_proof(index, size, subtree)
            theirs = oracle.prove_inclusion(index + 1, size)
            pymerkle.verify_inclusion(LEAVES[index], oracle.get_root(size), theirs)
            siblings = [node for node in theirs.path if node != LEAVES[index]]
            assert [node.hex() for node in ours] == [node.hex() if isinstance(node, bytes) else node for node in siblings]


def test_every_proof_of_a_small_tree_holds_and_no_other_entry_root_or_place_fits():
    for size in range(1, 33):
        root = root_of(LEAVES[:size])
        for index in range(size):
            path = inclusion_proof(index, size, subtree)
            assert is_included(LEAVES[index], index, size, path, root)
            assert not is_included(LEAVES[index + 1], index, size, path, root)
            assert not is_included(LEAVES[index], index, size, [*path, root], root)
            assert not is_included(LEAVES[index], size, size, path, root)


@given(st.integers(1, 300), st.data())
def test_a_changed_proof_never_holds(size, data):
    index = data.draw(st.integers(0, size - 1))
    path = inclusion_proof(index, size, subtree)
    root = root_of(LEAVES[:size])
    assert is_included(LEAVES[index], index, size, path, root)
    if path:
        which, bit = data.draw(st.integers(0, len(path) - 1)), data.draw(st.integers(0, 255))
        changed = bytearray(path[which])
        changed[bit // 8] ^= 1 << bit % 8
        assert not is_included(LEAVES[index], index, size, [*path[:which], bytes(changed), *path[which + 1 :]], root)
        assert not is_included(LEAVES[index], index, size, path[:-1], root)


@pytest.mark.parametrize(("index", "size"), [(0, 0), (3, 3), (-1, 2)])
def test_no_proof_for_an_entry_that_is_not_there(index, size):
    with pytest.raises(ValueError, match="there is no entry"):
        inclusion_proof(index, size, subtree)


def test_tile_paths_are_those_of_the_specification():
    assert tile_path(0, 0) == "tile/0/000"
    assert tile_path(0, 1234067) == "tile/0/x001/x234/067"
    assert tile_path("entries", 999, 17) == "tile/entries/999.p/17"
    assert tile_path(2, 1000) == "tile/2/x001/000"


def test_the_tiles_of_a_log_give_its_root_and_proofs_without_its_entries():
    size = 70_000
    leaves = [leaf_hash(str(n).encode()) for n in range(size)]
    edge, files = RightEdge(), {}
    for leaf in leaves:
        files.update(edge.append(leaf))
    files.update(edge.partial_tiles())
    assert set(files) == {tile_path(*tile) for tile in tiles_of(size)}
    reader = TileReader(files.get, size)
    root = root_of(leaves)
    assert edge.root() == root
    for index in (0, 255, 256, 65_535, 65_536, size - 1):
        assert is_included(leaves[index], index, size, inclusion_proof(index, size, reader.subtree), root)
    with pytest.raises(TileError, match="tile/0/000 is missing"):
        TileReader({}.get, size).hashes(0, 0)


@given(st.lists(st.binary(max_size=400), max_size=WIDTH))
def test_bundles_keep_their_entries(entries):
    packed = pack_entries(entries)
    assert unpack_entries(packed) == entries
    if packed:
        with pytest.raises(TileError):
            unpack_entries(packed + b"\x01")


def test_a_hash_tile_is_a_whole_number_of_hashes():
    with pytest.raises(TileError, match="whole number"):
        split_hashes(bytes(33))
