"""The file of fitted weights: read once when a policy is compiled, checked before a single number of it is used.

Layout: `TGCW`, format version (u16, little endian), SHA-256 of the rest (32 bytes), then zlib-compressed msgpack of `Stored`.
The file also carries a digest of the feature names, the word lists and the hashing: weights fitted for another feature pass are
refused, not misread.
"""

from __future__ import annotations

import hashlib
import math
import zlib
from functools import cache
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from router.complexity.features import NAMES, read_features
from router.complexity.lexicon import LISTS
from router.complexity.vocabulary import MOST_WORDS, PLACE_BYTES
from router.complexity.words import BUCKETS, PLACES

MAGIC = b"TGCW"
FORMAT = 4
READABLE = (3, 4)
"""Format 3 had no vocabulary."""
MAX_FILE_BYTES = 4 << 20
MAX_UNPACKED_BYTES = 32 << 20
MOST_LEAVES = 8
"""Of a tree."""
DEFAULT = Path(__file__).with_name("prior.tgcw")
"""The weights that come with the project."""


class WeightsError(ValueError):
    """The weights cannot be used. The text names the file and says what is wrong with it."""


class OutdatedWeights(WeightsError):
    """They were fitted by another version of tidegate, whose features or format are not this one's."""


class Trees(msgspec.Struct, frozen=True):
    """Regression trees as flat arrays; node `i` goes to `left[i]` when `value <= threshold[i]`, else to `right[i]`.

    `feature[i]` is -1 at a leaf. `value[i]` is what the node predicts on the training rows that reach it; a leaf's value is
    what the tree adds. `roots` are the trees' first nodes.
    """

    roots: list[int]
    feature: list[int]
    threshold: list[float]
    left: list[int]
    right: list[int]
    value: list[float]


class StoredGain(msgspec.Struct, frozen=True):
    """One head that predicts score(large) - score(small). The hashed table is int8 times `scale`."""

    name: str
    small: str
    large: str
    trained_on: str
    rows: int
    base: float
    scale: float
    table: bytes
    hand: list[float]
    trees: Trees
    cuts: list[float]
    """Quantiles 0, 1, ... 100 % of the predicted gain over the training pool: where a share's threshold starts from."""


class StoredDomains(msgspec.Struct, frozen=True):
    """The domain head: one int8 table per domain, concatenated, each with a scale, a bias and weights of the hand features.

    And its vocabulary, which may be empty: a place per word (u32, little endian, rising), a row of an int8 per domain for each,
    and a scale per domain.
    """

    names: list[str]
    scales: list[float]
    biases: list[float]
    tables: bytes
    hand: list[list[float]]
    places: bytes = b""
    rows: bytes = b""
    row_scales: list[float] = []


class Stored(msgspec.Struct, frozen=True):
    """Everything in a weights file."""

    features: str
    means: list[float]
    deviations: list[float]
    gains: list[StoredGain]
    domains: StoredDomains


@cache
def features_digest() -> str:
    """Names the feature pass the weights belong to; it stays the same while a process lives, and every label asks for it."""
    lists = ";".join(f"{name}:{' '.join(sorted(set(words.split())))}" for name, words in LISTS.items())
    probe = ",".join(map(str, sorted(read_features("The 2nd probe: which places do these words have?").buckets)))
    return hashlib.sha256(f"{BUCKETS};{','.join(NAMES)};{lists};{probe}".encode()).hexdigest()[:16]


def pack_weights(stored: Stored) -> bytes:
    """The bytes of a weights file."""
    body = zlib.compress(msgspec.msgpack.encode(stored), 9)
    return MAGIC + FORMAT.to_bytes(2, "little") + hashlib.sha256(body).digest() + body


def read_weights(path: Path) -> Stored:
    """Read and check a weights file.

    Raises:
        WeightsError: it is missing, is no such file, was changed, belongs to another feature pass, or holds impossible numbers.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise WeightsError(f"{path}: cannot read the weights: {error.strerror}") from None
    if len(data) > MAX_FILE_BYTES or data[:4] != MAGIC:
        raise WeightsError(f"{path}: this is no weights file of the complexity model")
    if (found := int.from_bytes(data[4:6], "little")) not in READABLE:
        raise OutdatedWeights(
            f"{path}: weights of format {found}; this version reads formats {READABLE[0]} to {FORMAT}: "
            "run scripts/train/complexity again"
        )
    body = data[38:]
    if hashlib.sha256(body).digest() != data[6:38]:
        raise WeightsError(f"{path}: the checksum does not match: the file is cut or was changed")
    try:
        unpacked = zlib.decompressobj().decompress(body, MAX_UNPACKED_BYTES)
        stored = msgspec.msgpack.decode(unpacked, type=Stored)
    except (zlib.error, msgspec.MsgspecError) as error:
        raise WeightsError(f"{path}: the weights cannot be decoded ({type(error).__name__})") from None
    _check(stored, path)
    return stored


def _check(stored: Stored, path: Path) -> None:
    if stored.features != features_digest():
        raise OutdatedWeights(f"{path}: these weights were fitted for another feature pass: run scripts/train/complexity again")
    width = len(NAMES)
    domains = stored.domains
    sizes_fit = (
        len(stored.means) == len(stored.deviations) == width
        and all(len(gain.table) == BUCKETS and len(gain.hand) == width and len(gain.cuts) == 101 for gain in stored.gains)
        and len(domains.tables) == BUCKETS * len(domains.names)
        and len(stored.gains) <= 64
        and len(domains.names) == len(domains.scales) == len(domains.biases) == len(domains.hand) <= 64
        and all(len(row) == width for row in domains.hand)
        and all(deviation > 0 for deviation in stored.deviations)
        and _vocabulary_fits(domains)
    )
    if not sizes_fit or not all(_trees_fit(gain.trees, width) for gain in stored.gains) or not _finite(stored):
        raise WeightsError(f"{path}: the weights are damaged: sizes or numbers that cannot be")


def _vocabulary_fits(domains: StoredDomains) -> bool:
    count, rest = divmod(len(domains.places), PLACE_BYTES)
    if rest or count > MOST_WORDS or len(domains.rows) != count * len(domains.names):
        return False
    places = places_of(domains)
    rising = not count or bool((places[1:] > places[:-1]).all() and places[-1] < PLACES)
    return rising and len(domains.row_scales) == (len(domains.names) if count else 0)


def _finite(stored: Stored) -> bool:
    domains = stored.domains
    numbers = [*stored.means, *stored.deviations, *domains.scales, *domains.biases, *domains.row_scales]
    for row in domains.hand:
        numbers += row
    for gain in stored.gains:
        numbers += [gain.base, gain.scale, *gain.hand, *gain.cuts, *gain.trees.threshold, *gain.trees.value]
    return all(map(math.isfinite, numbers))


def _trees_fit(trees: Trees, width: int) -> bool:
    """Every node leads forward to nodes that exist, so that a walk always ends, and soon."""
    count = len(trees.feature)
    if not count == len(trees.threshold) == len(trees.left) == len(trees.right) == len(trees.value) <= 100_000:
        return False
    if not all(0 <= root < count for root in trees.roots) or len(trees.roots) > 2000:
        return False
    leaves = [1] * count
    for node in reversed(range(count)):
        feature, left, right = trees.feature[node], trees.left[node], trees.right[node]
        if feature >= 0:
            if not (feature < width and node < left < count and node < right < count):
                return False
            leaves[node] = min(leaves[left] + leaves[right], MOST_LEAVES + 1)  # nodes that are shared would make millions
    return all(leaves[root] <= MOST_LEAVES for root in trees.roots)


def places_of(domains: StoredDomains) -> NDArray[np.uint32]:
    """The places of the words of a vocabulary."""
    return np.frombuffer(domains.places, "<u4").astype(np.uint32)


def signed(table: bytes) -> NDArray[np.int8]:
    """A table of int8 as numbers."""
    return np.frombuffer(table, np.int8)
