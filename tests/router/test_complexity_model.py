"""The fitted prior: one feature pass, sums that add up, a weights file that is checked."""

from __future__ import annotations

import hashlib
import math
import zlib
from array import array

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.complexity.buckets import compile_tables, sum_heads
from router.complexity.compile import load_model
from router.complexity.features import HEAD_CHARS, NAMES, TAIL_CHARS, read_features
from router.complexity.forest import compile_trees
from router.complexity.model import compile_model, explain_gain, read_gains
from router.complexity.weights import DEFAULT, MOST_LEAVES, Trees, WeightsError, pack_weights, read_weights
from router.complexity.words import BUCKETS

MODEL = load_model(DEFAULT)
EXTREMES = [
    "",
    " ",
    "\x00",
    "a" * 1_000_000,
    "9" * 1_000_000,
    "?" * 100_000,
    "```" * 50_000,
    "\U0001f600" * 5000,
    "\ud800" * 100,
    "\nA. x\nB. y" * 5000,
    "a " * 500_000,
    "\u0301" * 9000,
    "\uff46\uff55\uff4c\uff4c \uff57\uff49",
    "١٢٣ عربى",
    "\nB. ",
]


@pytest.mark.parametrize("text", EXTREMES, ids=range(len(EXTREMES)))
def test_any_text_has_finite_features_gains_and_domains(text):
    features = read_features(text)
    assert len(features.values) == len(NAMES) and all(map(math.isfinite, features.values))
    assert all(0 <= bucket < BUCKETS for bucket in features.buckets)
    reading = read_gains(MODEL, features)
    assert all(map(math.isfinite, reading.gains)) and all(abs(gain) < 2 for gain in reading.gains)
    assert sum(reading.domains) == pytest.approx(1.0)
    for head, gain in zip(MODEL.gains, reading.gains, strict=True):
        assert sum(term.weight for term in explain_gain(MODEL, features, head)) == pytest.approx(gain, abs=1e-6)


def test_every_block_of_unicode_is_read():
    for start in range(0, 0x110000, 0x80):
        text = "".join(map(chr, range(start, start + 0x80)))
        assert all(map(math.isfinite, read_gains(MODEL, read_features(text)).gains))


@given(st.text(max_size=400))
@settings(max_examples=150, deadline=None)
def test_the_same_text_reads_the_same_and_explanations_add_up(text):
    features = read_features(text)
    assert features == read_features(text)
    reading = read_gains(MODEL, features)
    for head, gain in zip(MODEL.gains, reading.gains, strict=True):
        assert abs(sum(term.weight for term in explain_gain(MODEL, features, head)) - gain) < 1e-6


def test_domains_of_plain_requests():
    def domain(text):
        shares = read_gains(MODEL, read_features(text)).domains
        return MODEL.domains.names[shares.index(max(shares))]

    assert domain("Write a python function that returns the longest substring of a string without repeated characters.") == "code"
    assert domain("The plaintiff sued the defendant for breach of contract. Will the court grant the motion to dismiss?") == "law"
    assert (
        domain("A 45-year-old woman comes to the physician because of fever and abdominal pain. Which drug treats it?")
        == "medicine"
    )
    assert domain("Translate into German: the invoice is attached") == "translation"
    assert domain("hello, how are you?") == "chat"


def walk(trees, root, values):
    while trees.feature[root] >= 0:
        root = trees.left[root] if values[trees.feature[root]] <= trees.threshold[root] else trees.right[root]
    return trees.value[root]


@st.composite
def some_trees(draw):
    """Up to eight trees over four features, of one leaf up to as many as a tree may have, thresholds that values can equal."""
    trees = Trees([], [], [], [], [], [])

    def grow(leaves):
        place = len(trees.feature)
        for column, value in (
            (trees.feature, -1 if leaves == 1 else draw(st.integers(0, 3))),
            (trees.threshold, float(draw(st.integers(-2, 2)))),
            (trees.left, 0),
            (trees.right, 0),
            (trees.value, float(2**place)),
        ):
            column.append(value)
        if leaves > 1:
            left = draw(st.integers(1, leaves - 1))
            trees.left[place] = grow(left)
            trees.right[place] = grow(leaves - left)
        return place

    for _ in range(draw(st.integers(0, 3))):
        trees.roots.append(grow(draw(st.integers(1, 8)) if trees.roots else MOST_LEAVES))
    return trees


@given(some_trees(), st.lists(st.sampled_from([-3.0, -2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 2.5]), min_size=4, max_size=4))
@settings(max_examples=200, deadline=None)
def test_trees_asked_all_at_once_say_what_a_walk_says(trees, values):
    wanted = math.fsum(walk(trees, root, values) for root in trees.roots)
    assert compile_trees(trees).score(np.array(values)) == pytest.approx(wanted, rel=1e-12)


def test_the_shipped_trees_say_what_a_walk_says():
    for text in ("", "Why?", "Prove that 2 + 2 = 4.\nA. yes\nB. no", "x" * 5000):
        features = read_features(text)
        for head in MODEL.gains:
            wanted = math.fsum(walk(head.trees, root, features.values) for root in head.trees.roots)
            assert head.forest.score(np.array(features.values)) == pytest.approx(wanted, abs=1e-12)


def test_the_first_bytes_of_a_weights_file_say_what_it_is(tmp_path):
    good = DEFAULT.read_bytes()
    stored = read_weights(DEFAULT)
    assert read_weights_of(tmp_path, pack_weights(stored)) == stored
    for data, message in (
        (b"", "no weights file"),
        (b"\x89PNG" + good[4:], "no weights file"),
        (good[:4] + b"\x09\x00" + good[6:], "format 9"),
        (good[:4] + b"\x02\x00" + good[6:], "format 2; .* run scripts/train/complexity again"),
        (good[:-1], "checksum"),
        (good[:500] + b"x" + good[501:], "checksum"),
        (good + b"x" * (5 << 20), "no weights file"),
    ):
        with pytest.raises(WeightsError, match=message):
            read_weights_of(tmp_path, data)
    with pytest.raises(WeightsError, match="cannot read"):
        read_weights(tmp_path / "none")


def test_weights_of_another_feature_pass_or_with_impossible_numbers_are_refused(tmp_path):
    from msgspec.structs import replace

    stored = read_weights(DEFAULT)
    with pytest.raises(WeightsError, match="another feature pass"):
        read_weights_of(tmp_path, pack_weights(replace(stored, features="0" * 16)))
    head = stored.gains[0]
    loop = replace(head.trees, left=[0] * len(head.trees.left))
    deep = Trees([0], [0] * 60 + [-1], [0.0] * 61, [*range(1, 61), 0], [*range(1, 61), 0], [0.0] * 61)  # 2**60 ways through it
    for wrong in (
        replace(head, base=math.nan),
        replace(head, table=b"x"),
        replace(head, hand=[0.0]),
        replace(head, trees=loop),
        replace(head, trees=deep),
    ):
        with pytest.raises(WeightsError, match="damaged"):
            read_weights_of(tmp_path, pack_weights(replace(stored, gains=[wrong])))


def test_a_damaged_vocabulary_is_refused(tmp_path):
    from msgspec.structs import replace

    stored = read_weights(DEFAULT)
    domains = stored.domains
    count, width = len(domains.places) // 4, len(domains.names)
    assert count > 10_000 and len(domains.rows) == count * width
    for wrong in (
        replace(domains, places=domains.places[:-1]),
        replace(domains, places=domains.places[:-4]),
        replace(domains, places=domains.places[4:8] + domains.places[:4] + domains.places[8:]),
        replace(domains, places=domains.places[:4] + domains.places[:4] + domains.places[8:]),
        replace(domains, places=domains.places[:-4] + (1 << 20).to_bytes(4, "little")),
        replace(domains, rows=domains.rows[width:]),
        replace(domains, row_scales=domains.row_scales[1:]),
        replace(domains, row_scales=[]),
        replace(domains, row_scales=[math.inf] * width),
        replace(domains, places=b"", rows=b""),
        replace(domains, places=np.arange(70_000, dtype="<u4").tobytes(), rows=bytes(70_000 * width)),
    ):
        with pytest.raises(WeightsError, match="damaged"):
            read_weights_of(tmp_path, pack_weights(replace(stored, domains=wrong)))


def test_weights_from_before_there_was_a_vocabulary_are_read_and_their_head_is_as_it_was(tmp_path):
    from msgspec.structs import replace

    stored = read_weights(DEFAULT)
    fields = msgspec.to_builtins(stored, builtin_types=(bytes,))
    for name in ("places", "rows", "row_scales"):
        del fields["domains"][name]
    body = zlib.compress(msgspec.msgpack.encode(fields))
    older = read_weights_of(tmp_path, b"TGCW\x03\x00" + hashlib.sha256(body).digest() + body)
    assert older == replace(stored, domains=replace(stored.domains, places=b"", rows=b"", row_scales=[]))
    features = read_features("Which court hears an appeal?")
    with_words, without = read_gains(MODEL, features), read_gains(compile_model(older), features)
    assert without.gains == with_words.gains and without.logits != with_words.logits
    assert without.logits == read_gains(MODEL, replace(features, places=b"")).logits


def test_the_joined_tables_are_the_tables():
    stored = read_weights(DEFAULT)
    model = compile_model(stored)
    domains = stored.domains
    tables = [gain.table for gain in stored.gains]
    tables += [domains.tables[at * BUCKETS : (at + 1) * BUCKETS] for at in range(len(domains.names))]
    for text in ("", "fox", "the quick brown fox jumps over the lazy dog", "one two three " * 700):
        places = read_features(text).buckets
        plain = [sum(b - 256 if b > 127 else b for b in (table[place] for place in places)) for table in tables]
        assert sum_heads(model.tables, places).tolist() == plain


def test_sums_are_exact_for_the_most_places_a_text_can_have():
    worst = [array("b", [sign] * BUCKETS) for sign in (127, -127, -128, 127)]
    tables = compile_tables([np.array(table, np.int8) for table in worst])
    places = array("H", range(HEAD_CHARS + TAIL_CHARS + 1))
    assert sum_heads(tables, places).tolist() == [len(places) * sign for sign in (127, -127, -128, 127)]


def read_weights_of(folder, data):
    path = folder / "w.tgcw"
    path.write_bytes(data)
    return read_weights(path)
