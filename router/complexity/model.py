"""The fitted prior: expected gain of the large model over the small one, and the domain of a text, from one feature pass.

`gain = base + trees(features) + linear(features) + scale * sum(table[bucket]) / sqrt(number of buckets)`. The learning target is
the difference of the two models' scores on the same question, so the gain is in points of quality: +0.12 means that the large
model is expected to score 0.12 better. The parts are added, so an explanation is the same sum in another order.
"""

from __future__ import annotations

from math import exp, sqrt
from struct import Struct

import msgspec
import numpy as np
from numpy.typing import NDArray

from router.complexity.buckets import Tables, compile_tables, sum_heads
from router.complexity.features import NAMES, Features
from router.complexity.forest import Forest, compile_trees
from router.complexity.vocabulary import Vocabulary, compile_vocabulary, sum_known
from router.complexity.weights import Stored, StoredDomains, StoredGain, Trees, places_of, signed

_PACKED = Struct(f"{len(NAMES)}d")
"""The values of a text as numpy reads them: packed so, they are an array in 40 % of the time of `np.array`."""


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
    forest: Forest
    cuts: tuple[float, ...]


class Domains(msgspec.Struct, frozen=True):
    """The domains' names, and what single words say of them; weights may have no vocabulary."""

    names: tuple[str, ...]
    vocabulary: Vocabulary | None


class Model(msgspec.Struct, frozen=True):
    """Compiled weights. `tables` are those of gains and domains, in this order: one sum serves all.

    `hand` has a row for each of them, with the weights of the raw features; `constants` are what is added.
    """

    tables: Tables
    scales: NDArray[np.float64]
    hand: NDArray[np.float64]
    constants: NDArray[np.float64]
    gains: tuple[GainHead, ...]
    domains: Domains
    means: dict[str, float]


class Reading(msgspec.Struct, frozen=True, gc=False):
    """What the model found: a gain per head, and a logit per domain."""

    gains: tuple[float, ...]
    logits: list[float]

    @property
    def domains(self) -> tuple[float, ...]:
        """A probability per domain; they add up to 1."""
        highest = max(self.logits, default=0.0)
        shares = [exp(logit - highest) for logit in self.logits]
        whole = sum(shares)
        return tuple([share / whole for share in shares])

    def likeliest(self) -> tuple[int, float]:
        """The place of the likeliest domain, of which there must be one, and its probability."""
        highest = max(self.logits)
        return self.logits.index(highest), 1.0 / sum([exp(logit - highest) for logit in self.logits])


class Contribution(msgspec.Struct, frozen=True, gc=False):
    """One term of a gain."""

    name: str
    weight: float


def compile_model(stored: Stored) -> Model:
    """Checked weights made ready: tables packed, weights folded into those of raw features, trees laid side by side."""
    gains, domains = stored.gains, stored.domains
    tables = [*(signed(gain.table) for gain in gains), *_split(domains.tables, len(domains.names))]
    standard = np.array([*(gain.hand for gain in gains), *domains.hand], np.float64).reshape(-1, len(NAMES))
    hand = standard / np.array(stored.deviations)
    bases = [*(gain.base for gain in gains), *domains.biases]
    constants = np.array(bases, np.float64) - hand @ np.array(stored.means)
    heads = tuple(_compile_gain(gain, row) for gain, row in zip(gains, hand, strict=False))
    return Model(
        compile_tables(tables),
        np.array([*(gain.scale for gain in gains), *domains.scales], np.float64),
        hand,
        constants,
        heads,
        Domains(tuple(domains.names), _compile_words(domains)),
        dict(zip(NAMES, stored.means, strict=True)),
    )


def _compile_words(domains: StoredDomains) -> Vocabulary | None:
    if not domains.places:
        return None
    rows = signed(domains.rows).reshape(-1, len(domains.names))
    return compile_vocabulary(places_of(domains), rows, domains.row_scales)


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


def read_gains(model: Model, features: Features, only: int | None = None) -> Reading:
    """Every head's answer for one text, or with `only` that one gain (and the domains)."""
    heads = len(model.gains)
    values = np.frombuffer(_PACKED.pack(*features.values))
    found = model.hand @ values + model.constants + _worded(model, features)
    if model.domains.vocabulary is not None:
        found[heads:] += sum_known(model.domains.vocabulary, features.places)
    scores = found.tolist()
    asking = range(heads) if only is None else (only,)
    gains = tuple([scores[place] + model.gains[place].forest.score(values) for place in asking])
    return Reading(gains, scores[heads:])


def _worded(model: Model, features: Features) -> NDArray[np.float64]:
    """What the hashed words say to each head."""
    found: NDArray[np.float64] = sum_heads(model.tables, features.buckets) * (model.scales / sqrt(len(features.buckets) or 1))
    return found


def explain_gain(model: Model, features: Features, head: GainHead) -> tuple[Contribution, ...]:
    """The gain as a sum, largest terms first: they add up to it within 1e-6.

    A tree's part is split along its path: what the prediction changes by at each question belongs to the feature asked about
    (Saabas 2014); the value at the root belongs to `usual`. Hashed words are one term: which words it was is not kept.
    """
    place = next(place for place, known in enumerate(model.gains) if known is head)
    worded = _worded(model, features)
    values = features.values
    parts = dict.fromkeys(NAMES, 0.0)
    usual = head.usual
    trees = head.trees
    for root in trees.roots:
        node = root
        usual += trees.value[root]
        while trees.feature[node] >= 0:
            feature = trees.feature[node]
            after = trees.left[node] if values[feature] <= trees.threshold[node] else trees.right[node]
            parts[NAMES[feature]] += trees.value[after] - trees.value[node]
            node = after
    for name, weight in head.hand.items():
        parts[name] += weight * (values[NAMES.index(name)] - model.means[name])
    terms = [Contribution("usual", usual), Contribution("wording", float(worded[place]))]
    terms += [Contribution(name, weight) for name, weight in parts.items() if weight]
    return tuple(sorted(terms, key=lambda term: -abs(term.weight)))
