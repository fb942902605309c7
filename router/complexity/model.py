"""The fitted prior: expected gain of the large model over the small one, and the domain of a text, from one feature pass.

`gain = base + trees(features) + linear(features) + scale * sum(table[bucket]) / sqrt(number of buckets)`. The learning target is
the difference of the two models' scores on the same question, so the gain is in points of quality: +0.12 means that the large
model is expected to score 0.12 better. The parts are added, so an explanation is the same sum in another order.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable
from operator import mul
from typing import Any

import msgspec

from router.complexity.buckets import Tables, compile_tables, sum_heads
from router.complexity.features import NAMES, Features
from router.complexity.weights import Stored, StoredGain, Trees, signed

Scorer = Callable[[list[float]], float]
_OFFSET = 128
_WIDE_BITS = 40
"""A field of a packed feature weight: values up to 2**20 steps in a hundred features, times 255, stay below 2**40."""
_WIDE_MASK = (1 << _WIDE_BITS) - 1
_STEPS = 256
"""Steps of a feature's value that domains can tell apart."""


class GainHead(msgspec.Struct, frozen=True):
    """One tier pair. `field` is the place of its table among all heads' tables."""

    name: str
    small: str
    large: str
    base: float
    scale: float
    table: array[int]
    hand: tuple[tuple[int, float], ...]
    offset: float
    trees: Trees
    score_trees: Scorer
    cuts: tuple[float, ...]
    field: int


class DomainHead(msgspec.Struct, frozen=True):
    """Domains with their weights; the first one's field follows those of the gains.

    `hand[i]` has the int8 weights of feature `features[i]` for all domains in one number.
    """

    names: tuple[str, ...]
    scales: tuple[float, ...]
    biases: tuple[float, ...]
    features: tuple[int, ...]
    hand: tuple[int, ...]
    hand_scale: float
    field: int


class Model(msgspec.Struct, frozen=True):
    """Compiled weights. `tables` are those of all heads, gains first: one sum serves all."""

    tables: Tables
    gains: tuple[GainHead, ...]
    domains: DomainHead
    means: tuple[float, ...]
    deviations: tuple[float, ...]


class Reading(msgspec.Struct, frozen=True, gc=False):
    """What the model found: a gain per head, and a probability per domain (they add up to 1)."""

    gains: tuple[float, ...]
    domains: tuple[float, ...]


class Contribution(msgspec.Struct, frozen=True, gc=False):
    """One term of a gain."""

    name: str
    weight: float


def compile_model(stored: Stored) -> Model:
    """Checked weights made ready: tables packed, trees turned into one expression each."""
    tables = [signed(gain.table) for gain in stored.gains]
    size = len(stored.domains.tables) // max(1, len(stored.domains.names))
    tables += [signed(stored.domains.tables[i * size : (i + 1) * size]) for i in range(len(stored.domains.names))]
    return Model(
        compile_tables(tables),
        tuple(_compile_gain(gain, stored, place, tables[place]) for place, gain in enumerate(stored.gains)),
        _compile_domains(stored),
        tuple(stored.means),
        tuple(stored.deviations),
    )


def _compile_domains(stored: Stored) -> DomainHead:
    domains = stored.domains
    folded = [_fold(row, stored) for row in domains.hand]
    used = sorted({i for weights, _ in folded for i, _ in weights})
    dense = [dict(weights) for weights, _ in folded]
    largest = max((abs(weight) for weights, _ in folded for _, weight in weights), default=1.0)
    scale = largest / 127
    hand = tuple(
        sum((round(row.get(i, 0.0) / scale) + _OFFSET) << place * _WIDE_BITS for place, row in enumerate(dense)) for i in used
    )
    biases = tuple(bias + offset for bias, (_, offset) in zip(domains.biases, folded, strict=True))
    return DomainHead(tuple(domains.names), tuple(domains.scales), biases, tuple(used), hand, scale / _STEPS, len(stored.gains))


def _compile_gain(gain: StoredGain, stored: Stored, place: int, table: array[int]) -> GainHead:
    weights, offset = _fold(gain.hand, stored)
    return GainHead(
        gain.name,
        gain.small,
        gain.large,
        gain.base,
        gain.scale,
        table,
        weights,
        offset,
        gain.trees,
        compile_trees(gain.trees),
        tuple(gain.cuts),
        place,
    )


def _fold(row: list[float], stored: Stored) -> tuple[tuple[tuple[int, float], ...], float]:
    """Weights of standardised features as weights of the raw ones, and the constant that this leaves."""
    weights = tuple((i, weight / stored.deviations[i]) for i, weight in enumerate(row) if weight)
    return weights, -sum(weight * stored.means[i] for i, weight in weights)


def compile_trees(trees: Trees) -> Scorer:
    """All trees as one Python expression: a third of the time of a walk through arrays.

    The source is made of numbers only (`repr` of checked ints and floats), never of text from the file.
    """
    used = sorted({feature for feature in trees.feature if feature >= 0})
    taken = "".join(f"v{int(feature)}=v[{int(feature)}];" for feature in used)  # a local name is read faster than a place
    lines = ["def score(v):", f" {taken}", " return ("]
    lines += [f"  {'+' if i else ''}{_expression(trees, root)}" for i, root in enumerate(trees.roots)] or ["  0.0"]
    scope: dict[str, Any] = {}
    exec("\n".join([*lines, " )"]), {"__builtins__": {}}, scope)
    scorer: Scorer = scope["score"]
    return scorer


def _expression(trees: Trees, node: int) -> str:
    if trees.feature[node] < 0:
        return f"({float(trees.value[node])!r})"
    left, right = _expression(trees, trees.left[node]), _expression(trees, trees.right[node])
    return f"({left} if v{int(trees.feature[node])}<={float(trees.threshold[node])!r} else {right})"


def read_gains(model: Model, features: Features, only: int | None = None) -> Reading:
    """Every head's answer for one text, or with `only` that one gain (and the domains)."""
    values = features.values
    sums = sum_heads(model.tables, features.buckets)
    count = len(features.buckets)
    norm = 1.0 / math.sqrt(count) if count else 0.0
    gains = []
    for head in model.gains if only is None else (model.gains[only],):
        linear = head.offset
        for i, weight in head.hand:
            linear += weight * values[i]
        gains.append(head.base + linear + head.score_trees(values) + head.scale * norm * sums[head.field])
    return Reading(tuple(gains), _read_domains(model.domains, sums, norm, values))


def _read_domains(head: DomainHead, sums: list[int], norm: float, values: list[float]) -> tuple[float, ...]:
    """Softmax over the domains. Features count in whole steps, so that one sum of whole numbers serves all domains."""
    if not head.names:
        return ()
    steps = [int(values[i] * _STEPS) for i in head.features]
    hand = sum(map(mul, head.hand, steps))
    offset = sum(steps) * _OFFSET
    logits = []
    for scale, constant, words in zip(head.scales, head.biases, sums[head.field :], strict=True):
        logits.append(constant + scale * norm * words + head.hand_scale * ((hand & _WIDE_MASK) - offset))
        hand >>= _WIDE_BITS
    highest = max(logits)
    shares = [math.exp(logit - highest) for logit in logits]
    whole = sum(shares)
    return tuple([share / whole for share in shares])


def explain_gain(model: Model, features: Features, head: GainHead) -> tuple[Contribution, ...]:
    """The gain as a sum, largest terms first: they add up to it within 1e-6.

    A tree's part is split along its path: what the prediction changes by at each question belongs to the feature asked about
    (Saabas 2014); the value at the root belongs to `usual`. Hashed words are one term: which words it was is not kept.
    """
    values = features.values
    parts = dict.fromkeys(NAMES, 0.0)
    usual = head.base
    trees = head.trees
    for root in trees.roots:
        node = root
        usual += trees.value[root]
        while trees.feature[node] >= 0:
            feature = trees.feature[node]
            after = trees.left[node] if values[feature] <= trees.threshold[node] else trees.right[node]
            parts[NAMES[feature]] += trees.value[after] - trees.value[node]
            node = after
    for i, weight in head.hand:
        parts[NAMES[i]] += weight * (values[i] - model.means[i])
    buckets = features.buckets
    words = sum(head.table[bucket] for bucket in buckets) * head.scale / math.sqrt(len(buckets)) if buckets else 0.0
    terms = [Contribution("usual", usual), Contribution("wording", words)]
    terms += [Contribution(name, weight) for name, weight in parts.items() if weight]
    return tuple(sorted(terms, key=lambda term: -abs(term.weight)))
