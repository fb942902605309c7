"""The nightly refit: a challenger is fitted on the labels so far and held against the weights in use, on labels neither has seen.

What is compared is quality in points: the mean, over all shares of requests that may go to the large model, of what the large
model adds on the requests a router sends there. It is APGR without the division by the whole gap, so it has a meaning where the
models are equally good, too. A challenger is promoted only where the interval of the paired difference lies above zero.

Three things keep chance from promoting: labels are held out by question, for good, so that no weights ever learn from them;
near-duplicates count as one question; every look at one champion uses up some of the error allowed in all (`alpha_of`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from router.complexity.features import NAMES, Features
from router.complexity.label import IMPORT, Label
from router.complexity.model import Model, read_gains
from router.complexity.weights import features_digest

HELD_OUT = 0.3
"""Share of the questions that no refit ever learns from."""
LEAST_TRAIN, LEAST_HELD_OUT = 200, 100
"""Questions below which nothing is fitted, or compared."""
GROWTH = 1.1
"""Another look is taken once there are so many times the held-out questions of the last one."""
ERROR = 0.02
"""Two-sided, over all looks at one champion: weights that are as good are promoted once in a hundred times. The first look's
interval is one of 99 %."""
_DRAWS = 400
_BANDS, _ROWS = 12, 5
"""Minhash bands: of two questions that share 80 % of their words and pairs of words, 99 % are compared as near-duplicates."""
_NEAR = 0.7
_PRIME = (1 << 61) - 1


@dataclass(frozen=True)
class Material:
    """Labels as arrays, one row a distinct question. `held` marks those that are never learnt from; `groups` near-duplicates."""

    features: tuple[Features, ...]
    small: np.ndarray
    large: np.ndarray
    imported: np.ndarray
    held: np.ndarray
    groups: np.ndarray

    def __len__(self) -> int:
        return len(self.features)

    @property
    def gain(self) -> np.ndarray:
        """What is learned."""
        return self.large - self.small


@dataclass(frozen=True)
class Found:
    """A comparison: quality in points of champion and challenger over `rows` held-out questions, and the paired difference."""

    rows: int
    champion: float
    challenger: float
    difference: float
    low: float
    high: float
    alpha: float

    @property
    def better(self) -> bool:
        """Whether the challenger is, beyond chance."""
        return self.low > 0


def material_of(labels: Sequence[Label], pairs: frozenset[tuple[str, str]]) -> tuple[Material, dict[str, int]]:
    """What can be learnt from labels, and how many were left out, by reason.

    Several labels of one question are one row with their mean scores: a prompt that is sent a thousand times counts once.

    Args:
        labels: all there are.
        pairs: ids of small and large models that are in use; labels of others say nothing about these.
    """
    left_out = {"of another feature pass": 0, "of other models": 0, "without a word": 0}
    known: dict[bytes, list[Label]] = {}
    digest = features_digest()
    for label in labels:
        if label.features != digest:
            left_out["of another feature pass"] += 1
        elif label.by != IMPORT and label.pair not in pairs:
            left_out["of other models"] += 1
        elif not label.buckets:
            left_out["without a word"] += 1
        else:
            known.setdefault(label.buckets, []).append(label)
    rows = [known[name] for name in sorted(known)]
    groups = near_duplicates([row[0].places for row in rows])
    held = np.array([_is_held(row[0].buckets) for row in rows], bool)
    made = Material(
        tuple(Features(row[0].values, row[0].places) for row in rows),
        np.array([sum(label.small for label in row) / len(row) for row in rows]),
        np.array([sum(label.large for label in row) / len(row) for row in rows]),
        np.array([all(label.by == IMPORT for label in row) for row in rows], bool),
        held,
        groups,
    )
    return made, {why: count for why, count in left_out.items() if count}


def training_rows(material: Material) -> np.ndarray:
    """The places of the rows a challenger may learn from: not held out, nor a near-duplicate of one that is."""
    near = np.isin(material.groups, material.groups[material.held])
    return np.where(~near)[0]


def judging_rows(material: Material) -> np.ndarray:
    """The places of the rows that champion and challenger are compared on.

    Those of the operator's own traffic as soon as there are enough: what somebody else made of it in a file is then learnt from,
    but has no say in what is promoted.
    """
    own = np.where(material.held & ~material.imported)[0]
    return own if len(own) >= LEAST_HELD_OUT else np.where(material.held)[0]


def near_duplicates(texts: Sequence[Sequence[int]]) -> np.ndarray:
    """A number per text; texts that share most of their places have the same."""
    parents = list(range(len(texts)))

    def root(place: int) -> int:
        while parents[place] != place:
            parents[place] = parents[parents[place]]
            place = parents[place]
        return place

    dice = np.random.default_rng(0)
    factors, offsets = dice.integers(1, _PRIME, (2, _BANDS * _ROWS))
    seen: dict[tuple[int, bytes], int] = {}
    for place, text in enumerate(texts):
        buckets = np.asarray(text, np.uint64)[:, None]
        # Whole numbers that overflow are as good a hash as any.
        least = ((buckets * factors.astype(np.uint64) + offsets.astype(np.uint64)) >> np.uint64(13)).min(0)
        for band, part in enumerate(least.reshape(_BANDS, _ROWS)):
            other = seen.setdefault((band, part.tobytes()), place)
            if root(other) != root(place) and _shared(texts[other], text) >= _NEAR:
                parents[root(place)] = root(other)
    return np.array([root(place) for place in range(len(texts))], int)


def _shared(one: Sequence[int], other: Sequence[int]) -> float:
    both = len(set(one) & set(other))
    return both / (len(one) + len(other) - both)


def gains_of(model: Model, head: int, features: Sequence[Features]) -> np.ndarray:
    """Expected gains as a router computes them."""
    return np.array([read_gains(model, one, head).gains[0] for one in features])


def alpha_of(look: int) -> float:
    """The error that look number 1, 2, ... at one champion may use up: all of them together `ERROR`, however many there are."""
    return ERROR / (look * (look + 1))


def hold_against(
    champion: np.ndarray, challenger: np.ndarray, gain: np.ndarray, groups: np.ndarray, look: int = 1, seed: int = 0
) -> Found:
    """Compare two routers on the same questions.

    Args:
        champion: gains that the weights in use expect.
        challenger: gains that the new ones expect.
        gain: what the large model really added.
        groups: near-duplicates, which are drawn together.
        look: how many times this champion has been held against a challenger, this one included.
        seed: of the bootstrap.
    """
    alpha = alpha_of(look)
    dice = np.random.default_rng(seed)
    names, place = np.unique(groups, return_inverse=True)
    first, second = _order(champion), _order(challenger)
    draws = np.vstack([np.ones(len(names)), dice.poisson(1.0, (_DRAWS, len(names)))])[:, place]
    before, after = (_qualities(order, gain, draws) for order in (first, second))
    found = (after - before)[1:]
    # The spread is the bootstrap's, the width a normal one's: so far out so few draws have no quantiles.
    half = z_of(alpha) * float(np.std(found, ddof=1))
    difference = float(after[0] - before[0])
    return Found(len(gain), float(before[0]), float(after[0]), difference, difference - half, difference + half, alpha)


def z_of(alpha: float) -> float:
    """The normal quantile that leaves `alpha` outside on both sides together."""
    return NormalDist().inv_cdf(1 - alpha / 2)


def _order(scores: np.ndarray) -> np.ndarray:
    """Rows by falling score; equal ones in a fixed random order, never in that of the labels."""
    lots = np.random.default_rng(1).permutation(len(scores))
    return np.lexsort((lots, -scores))


def _qualities(order: np.ndarray, gain: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Mean over all shares of what is gained, per question, under each draw's weights: a row counts for every share from its own
    place on."""
    heavy = draws[:, order]
    whole = heavy.sum(1, keepdims=True)
    beyond = 1.0 - (np.cumsum(heavy, axis=1) - heavy / 2) / whole
    found: np.ndarray = (heavy * beyond) @ gain[order] / whole[:, 0]
    return found


def _is_held(buckets: bytes) -> bool:
    return int.from_bytes(hashlib.sha256(b"held out\0" + buckets).digest()[:8], "big") < HELD_OUT * (1 << 64)


def arrays_of(features: Sequence[Features]) -> tuple[np.ndarray, Any]:
    """Hand features, and hashed words with the weight 1 / sqrt(number), as the fit wants them."""
    import scipy.sparse as sp

    from router.complexity.words import BUCKETS

    ends = np.cumsum([0, *(len(one.buckets) for one in features)])
    counts = np.maximum(1, np.diff(ends))
    places = np.concatenate([np.asarray(one.buckets, np.int32) for one in features])
    words = sp.csr_matrix((np.repeat(1 / np.sqrt(counts), np.diff(ends)), places, ends), shape=(len(features), BUCKETS))
    return np.array([one.values for one in features]).reshape(len(features), len(NAMES)), words
