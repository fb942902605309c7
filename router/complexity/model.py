"""The fitted prior: expected gain of the large model over the small one, and the domain of a text, from one feature pass.

`gain = base + trees(features, latents) + linear(features) + scale * sum(table[bucket]) / sqrt(number of buckets)`, where a latent
is a table over the hashed words, too: which topic a text is from, how hard other models find such texts. The learning target is
the difference of the two models' scores on the same question, so the gain is in points of quality: +0.12 means that the large
model is expected to score 0.12 better. The parts are added, so an explanation is the same sum in another order.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from router.complexity.buckets import Tables, compile_tables, sum_heads
from router.complexity.features import NAMES, Features
from router.complexity.weights import Stored, StoredGain, Trees, signed

Scorer = Callable[[list[float]], float]


class GainHead(msgspec.Struct, frozen=True):
    """One tier pair. `hand` are the weights of the raw features, by name; `scale` and `table` those of the hashed words."""

    name: str
    small: str
    large: str
    usual: float
    scale: float
    table: NDArray[np.int8]
    hand: dict[str, float]
    trees: Trees
    score_trees: Scorer
    cuts: tuple[float, ...]


class Domains(msgspec.Struct, frozen=True):
    """The domains' names."""

    names: tuple[str, ...]


class Model(msgspec.Struct, frozen=True):
    """Compiled weights. `tables` are those of gains, latents and domains, in this order: one sum serves all.

    `hand` has a row for each of them, with the weights of the raw features at the places `used`; `constants` are what is added.
    Those of latents are zero.
    """

    tables: Tables
    scales: NDArray[np.float64]
    used: tuple[int, ...]
    hand: NDArray[np.float64]
    constants: NDArray[np.float64]
    gains: tuple[GainHead, ...]
    latents: tuple[str, ...]
    domains: Domains
    means: dict[str, float]


class Reading(msgspec.Struct, frozen=True, gc=False):
    """What the model found: a gain per head, and a logit per domain."""

    gains: tuple[float, ...]
    logits: list[float]

    @property
    def domains(self) -> tuple[float, ...]:
        """A probability per domain; they add up to 1."""
        shares = self._shares()
        whole = sum(shares)
        return tuple([share / whole for share in shares])

    def likeliest(self) -> tuple[int, float]:
        """The place of the likeliest domain, of which there must be one, and its probability."""
        shares = self._shares()
        return shares.index(1.0), 1.0 / sum(shares)

    def _shares(self) -> list[float]:
        highest = max(self.logits, default=0.0)
        return [math.exp(logit - highest) for logit in self.logits]


class Contribution(msgspec.Struct, frozen=True, gc=False):
    """One term of a gain."""

    name: str
    weight: float


def compile_model(stored: Stored) -> Model:
    """Checked weights made ready: tables packed, weights folded into those of raw features, trees turned into an expression."""
    gains, latents, domains = stored.gains, stored.latents, stored.domains
    tables = [signed(gain.table) for gain in gains]
    tables += [*_split(latents.tables, len(latents.names)), *_split(domains.tables, len(domains.names))]
    none = [[0.0] * len(NAMES)] * len(latents.names)
    standard = np.array([*(gain.hand for gain in gains), *none, *domains.hand], np.float64).reshape(-1, len(NAMES))
    hand = standard / np.array(stored.deviations)
    bases = [*(gain.base for gain in gains), *([0.0] * len(none)), *domains.biases]
    constants = np.array(bases, np.float64) - hand @ np.array(stored.means)
    heads = tuple(_compile_gain(gain, row) for gain, row in zip(gains, hand, strict=False))
    used = np.flatnonzero(hand.any(0))
    return Model(
        compile_tables(tables),
        np.array([*(gain.scale for gain in gains), *latents.scales, *domains.scales], np.float64),
        tuple(used.tolist()),
        hand[:, used],
        constants,
        heads,
        tuple(latents.names),
        Domains(tuple(domains.names)),
        dict(zip(NAMES, stored.means, strict=True)),
    )


def _split(tables: bytes, count: int) -> list[NDArray[np.int8]]:
    size = len(tables) // max(1, count)
    return [signed(tables[at * size : (at + 1) * size]) for at in range(count)]


def _compile_gain(gain: StoredGain, row: NDArray[np.float64]) -> GainHead:
    return GainHead(
        gain.name,
        gain.small,
        gain.large,
        gain.base,
        gain.scale,
        signed(gain.table),
        {name: weight for name, weight in zip(NAMES, row.tolist(), strict=True) if weight},
        gain.trees,
        compile_trees(gain.trees),
        tuple(gain.cuts),
    )


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
    heads, end = len(model.gains), len(model.gains) + len(model.latents)
    values = features.values
    used = np.array([values[place] for place in model.used])
    scores = (model.hand @ used + model.constants + _worded(model, features)).tolist()
    inputs = values + scores[heads:end]
    if only is None:
        gains = tuple([scores[place] + head.score_trees(inputs) for place, head in enumerate(model.gains)])
    else:
        gains = (scores[only] + model.gains[only].score_trees(inputs),)
    return Reading(gains, scores[end:])


def _worded(model: Model, features: Features) -> NDArray[np.float64]:
    """What the hashed words say to each head and latent."""
    found: NDArray[np.float64] = sum_heads(model.tables, features.buckets) * (
        model.scales / math.sqrt(len(features.buckets) or 1)
    )
    return found


def explain_gain(model: Model, features: Features, head: GainHead) -> tuple[Contribution, ...]:
    """The gain as a sum, largest terms first: they add up to it within 1e-6.

    A tree's part is split along its path: what the prediction changes by at each question belongs to the feature asked about
    (Saabas 2014); the value at the root belongs to `usual`. Hashed words are one term: which words it was is not kept.
    """
    heads = len(model.gains)
    place = next(place for place, known in enumerate(model.gains) if known is head)
    worded = _worded(model, features)
    names = (*NAMES, *model.latents)
    values = features.values + worded[heads : heads + len(model.latents)].tolist()
    parts = dict.fromkeys(names, 0.0)
    usual = head.usual
    trees = head.trees
    for root in trees.roots:
        node = root
        usual += trees.value[root]
        while trees.feature[node] >= 0:
            feature = trees.feature[node]
            after = trees.left[node] if values[feature] <= trees.threshold[node] else trees.right[node]
            parts[names[feature]] += trees.value[after] - trees.value[node]
            node = after
    for name, weight in head.hand.items():
        parts[name] += weight * (values[NAMES.index(name)] - model.means[name])
    terms = [Contribution("usual", usual), Contribution("wording", float(worded[place]))]
    terms += [Contribution(name, weight) for name, weight in parts.items() if weight]
    return tuple(sorted(terms, key=lambda term: -abs(term.weight)))
