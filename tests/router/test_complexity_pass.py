"""The feature pass and the scores, against the same pass written plainly: what is fast must give the very same numbers."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from router.complexity import lexicon
from router.complexity.compile import load_model
from router.complexity.features import _MARKS, _USUAL_CHARS, HEAD_CHARS, NAMES, TAIL_CHARS, read_features
from router.complexity.model import read_gains
from router.complexity.peel import _LABEL_CHARS, MAX_CHARS, peel_text
from router.complexity.weights import DEFAULT, Trees, places_of, read_weights, signed
from router.complexity.words import BUCKETS, MAX_WORD, PLACES, SHORT_BYTES, read_few, read_many, read_words

MODEL = load_model(DEFAULT)
STORED = read_weights(DEFAULT)
DOMAIN_ROWS = dict(
    zip(
        places_of(STORED.domains).tolist(),
        signed(STORED.domains.rows).reshape(-1, len(STORED.domains.names)).tolist(),
        strict=True,
    )
)
LISTS = {name: set(words.encode().split()) for name, words in lexicon.LISTS.items()}
LABELS = (
    "### Question:",
    "## Question",
    "Question:",
    "User question:",
    "User request:",
    "My request:",
    "Query:",
    "Task:",
    "<query>",
)
PIECES = [
    " ",
    "\n",
    ". ",
    "? ",
    "?",
    ":",
    "__",
    "=",
    "\\",
    "(",
    '"',
    "1987",
    "3",
    "2,5",
    "a",
    "I",
    "not",
    "plaintiff",
    "Statement 1",
]
PIECES += ["\nA. ", "\nB) 12 = x", "\nQuestion: ", "ß", "漢字", "\U0001f600", "\x0b", "\u00a0", "PATIENT", "calculate", "x" * 40]


def plain_words(text):
    """Words as the pass cuts them: lower case, digits and underscores stay, everything outside ASCII stays."""
    raw = text.encode("utf-8", "surrogatepass")
    stays = b"abcdefghijklmnopqrstuvwxyz0123456789_"
    return bytes(byte if byte in stays or byte >= 128 else 32 for byte in raw.lower()).split()


def plain_values(text):
    """Every value by its name, counted one thing after the other."""
    chars = len(text)
    if chars > HEAD_CHARS + TAIL_CHARS:
        text = text[:HEAD_CHARS] + "\n" + text[-TAIL_CHARS:]
    raw, words = text.encode("utf-8", "surrogatepass"), plain_words(text)
    size, count = len(raw) or 1, len(words) or 1
    numbers = [word for word in words if word[:1].isdigit()]
    marks = (b". ", b") ", b": ")
    options = [line[3:] for line in raw.split(b"\n") if line[1:3] in marks and line[:1].isalpha()]
    options = options if any(b"\nB" + mark in raw for mark in marks) else []
    lengths = [len(option.split(b" ")) for option in options]
    stem = (raw.partition(b"\nA")[0] if options else raw).rstrip()
    stem_words = max(0, len(words) - sum(lengths))
    share = {
        "upper": sum(65 <= byte <= 90 for byte in raw),
        "digits": sum(48 <= byte <= 57 for byte in raw),
        "maths_signs": sum(byte in b"=+*/^<>|\\{}" for byte in raw),
        "punctuation": sum(byte in b".,;:!?()[]'\"-" for byte in raw),
        "foreign_bytes": sum(byte >= 128 for byte in raw),
    }
    found = {name: number / size for name, number in share.items()} | {
        "chars": math.log1p(chars),
        "words": math.log1p(len(words)),
        "mean_word": sum(map(len, words)) / count,
        "long_words": sum(len(word) >= 8 for word in words) / count,
        "very_long_words": sum(len(word) >= 12 for word in words) / count,
        "distinct_words": len({word[:MAX_WORD] for word in words}) / count,
        "numbers": math.log1p(len(numbers)),
        "distinct_numbers": math.log1p(len({word[:MAX_WORD] for word in numbers})),
        "longest_number": max(map(len, numbers), default=0),
        "options": len(options),
        "option_chars": math.log1p(sum(map(len, options)) / (len(options) or 1)),
        "option_words_max": math.log1p(max(lengths, default=0)),
        "option_numbers": sum(any(48 <= byte <= 57 for byte in option) for option in options) / (len(options) or 1),
        "stem_words": math.log1p(stem_words),
        "stem_share": stem_words / count,
        "option_words_min": math.log1p(min(lengths, default=0)),
        "option_spread": math.log1p(max(lengths, default=0)) - math.log1p(min(lengths, default=0)),
        "option_signs": sum(any(byte in b"=+*/^<>|\\{}" for byte in option) for option in options) / (len(options) or 1),
        "years": math.log1p(sum(len(word) == 4 and word[:1] in (b"1", b"2") for word in numbers)),
        "single_letters": math.log1p(sum(len(word) == 1 for word in words)),
        "stem_asks": float(stem.endswith(b"?")),
        "stem_open": float(stem[-1:].isalpha()),
        "sentence_words": len(words) / (raw.count(b". ") + raw.count(b"? ") + raw.count(b"\n") + 1),
        "open_length": 0.0 if options or not chars else math.log(chars / _USUAL_CHARS),
        "statements": math.log1p(raw.count(b"tatement 1") + raw.count(b"cenario 1") + raw.count(b"\nI")),
    }
    found |= {name: math.log1p(raw.count(mark)) for name, mark in (*_MARKS.items(), ("full_stops", b". "), ("blanks", b"__"))}
    found |= {f"words_{name}": math.log1p(sum(word in known for word in words)) for name, known in LISTS.items()}
    return found, [word[:MAX_WORD] for word in words]


FACTORS = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9)
ALL_BITS = (1 << 64) - 1


def plain_hash(word):
    """Three numbers of eight bytes each, multiplied and added up."""
    parts = (int.from_bytes(word[at : at + 8], "little") for at in (0, 8, 16))
    return sum(part * factor for part, factor in zip(parts, FACTORS, strict=True)) & ALL_BITS


def plain_buckets(words):
    places = [plain_hash(word) * BUCKETS >> 64 for word in words]
    pairs = [(before * 40503 + after) % BUCKETS for before, after in pairwise(places)]
    return {*places, *pairs}


def plain_worded(table, scale, buckets):
    numbers = memoryview(table).cast("b")
    return sum(numbers[bucket] for bucket in buckets) * scale / math.sqrt(len(buckets)) if buckets else 0.0


def plain_gain(values, buckets, gain):
    """The stored numbers as the file's format says, tree by tree and bucket by bucket."""
    wording = plain_worded(gain.table, gain.scale, buckets)
    standard = [
        (value - mean) / deviation for value, mean, deviation in zip(values, STORED.means, STORED.deviations, strict=True)
    ]
    hand = sum(weight * value for weight, value in zip(gain.hand, standard, strict=True))
    return gain.base + hand + wording + sum(leaf_of(gain.trees, root, values) for root in gain.trees.roots)


def plain_logit(values, buckets, places, at):
    """A domain's logit as the file's format says, word by word."""
    domains = STORED.domains
    known = [DOMAIN_ROWS[place] for place in places if place in DOMAIN_ROWS]
    words = sum(row[at] for row in known) * domains.row_scales[at] / math.sqrt(len(known)) if known else 0.0
    wording = plain_worded(domains.tables[at * BUCKETS : (at + 1) * BUCKETS], domains.scales[at], buckets)
    standard = [
        (value - mean) / deviation for value, mean, deviation in zip(values, STORED.means, STORED.deviations, strict=True)
    ]
    return domains.biases[at] + words + wording + sum(w * value for w, value in zip(domains.hand[at], standard, strict=True))


def leaf_of(trees: Trees, node, values):
    while trees.feature[node] >= 0:
        node = trees.left[node] if values[trees.feature[node]] <= trees.threshold[node] else trees.right[node]
    return trees.value[node]


def check(text):
    features = read_features(text)
    values, words = plain_values(text)
    for name, value in zip(NAMES, features.values, strict=True):
        assert value == pytest.approx(values[name], rel=1e-12, abs=1e-12), name
    assert set(features.buckets) == plain_buckets(words) and len(set(features.buckets)) == len(features.buckets)
    for gain, stored in zip(read_gains(MODEL, features).gains, STORED.gains, strict=True):
        assert gain == pytest.approx(plain_gain(features.values, set(features.buckets), stored), abs=1e-9)
    places = {plain_hash(word) * PLACES >> 64 for word in words}
    assert list(memoryview(features.places).cast("Q")) == sorted(places)
    for at, logit in enumerate(read_gains(MODEL, features).logits):
        assert logit == pytest.approx(plain_logit(features.values, set(features.buckets), places, at), abs=1e-6)
    assert read_gains(MODEL, features, 1).gains == read_gains(MODEL, features).gains[1:]


def test_a_corpus_of_all_lengths_scores_as_the_plain_pass():
    dice = random.Random(6)
    vocabulary = [*PIECES, *(word.decode() for words in LISTS.values() for word in words)]
    for length in (0, 1, 2, 20, 60, 95, 96, 97, 150, 400, 900, 3000):
        for _ in range(6):
            check(" ".join(dice.choices(vocabulary, k=length)))
            check("".join(dice.choices(PIECES, k=length)))


@given(st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=8)), max_size=300).map("".join))
@settings(max_examples=100, deadline=None)
def test_any_text_scores_as_the_plain_pass(text):
    check(text)


BYTES_OF_WORDS = st.one_of(
    st.sampled_from([word.encode() for word in lexicon.LISTS["law"].split()]),
    st.sampled_from(
        [b"3", b"1987", b"2999x", b"0" * 30, b"_", b"____", b"a", b"x" * 8, b"x" * 16, b"x" * 17, b"x" * 24, b"x" * 25]
    ),
    st.text(st.characters(min_codepoint=0x80), min_size=1, max_size=9).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.text("abcdefghijklmnopqrstuvwxyz0123456789_", min_size=1, max_size=26).map(str.encode),
)


def same_both_ways(cut, digits):
    few, many = read_few(cut, digits), read_many(cut, digits)
    assert sorted(few.buckets) == list(many.buckets)
    assert replace(few, buckets=many.buckets) == many
    assert read_words(cut, digits) == (few if len(cut) <= SHORT_BYTES else many)


@given(st.lists(st.one_of(BYTES_OF_WORDS, st.just(b"")), max_size=120).map(b" ".join), st.booleans())
@settings(max_examples=400, deadline=None)
def test_a_text_read_word_by_word_and_all_at_once_is_the_same(cut, digits):
    same_both_ways(cut, digits)


def test_every_block_of_unicode_is_the_same_both_ways():
    for start in range(0, 0x110000, 0x100):
        points = [chr(point) for point in range(start, start + 0x100)]
        for text in ("".join(points), " ".join(points), " 1".join(points)):
            same_both_ways(b" ".join(plain_words(text)), True)


def test_the_length_at_which_the_way_changes_changes_nothing():
    for size in range(SHORT_BYTES - 30, SHORT_BYTES + 30):
        text = ("the plaintiff asked 12 witnesses about 1987 " * 20)[:size]
        check(text)
        same_both_ways(b" ".join(plain_words(text)), True)


@given(
    st.lists(
        st.sampled_from([*(f"\n{label}" for label in LABELS), "\n", "Task:", "what is it", "x" * 50, "x" * 2100]), max_size=40
    )
)
@settings(max_examples=200, deadline=None)
def test_the_question_stands_after_the_last_label(pieces):
    text = whole = "y" * 401 + "".join(pieces)
    if len(whole) > MAX_CHARS:
        text = whole[: MAX_CHARS // 2] + "\n" + whole[-(MAX_CHARS // 2) :]  # its two ends are read
    ends = [at + 1 + len(label) for label in LABELS if (at := text.rfind(f"\n{label}", -_LABEL_CHARS)) >= 0]
    tail = text[max(ends) :].strip() if ends else ""
    assert peel_text(whole) == (tail if len(tail) >= 8 else text.strip())
