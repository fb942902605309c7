"""A head's trees, all walked at once: a fixed number of numpy calls however many trees there are.

Every inner node is asked at the same time whether its value is above the threshold; one that says yes rules out the leaves on its
left. The first leaf of a tree that nobody rules out is the one a walk would have reached (QuickScorer: Lucchese et al. 2015).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import msgspec
import numpy as np
from numpy.typing import NDArray

from router.complexity.weights import MOST_LEAVES, Trees

_Masks = NDArray[np.uint8]
_RULED_OUT = np.arange(1 << MOST_LEAVES)
_FIRST_LEFT = np.log2(~_RULED_OUT & _RULED_OUT + 1).astype(np.intp) % MOST_LEAVES
"""By the leaves that are ruled out, a bit each: the first one that is not."""


class Forest(msgspec.Struct, frozen=True):
    """Trees by columns: a row of `feature`, `threshold` and `rules_out` per inner node, where there are fewer a node that rules
    nothing out. `leaves` has `MOST_LEAVES` values per tree, left to right; a tree's begin at its place in `first`.
    """

    feature: NDArray[np.intp]
    threshold: NDArray[np.float64]
    rules_out: _Masks
    leaves: NDArray[np.float64]
    first: NDArray[np.intp]

    def score(self, values: NDArray[np.float64]) -> float:
        """The sum of the leaves that a text with these values reaches."""
        above = values.take(self.feature) > self.threshold
        out = np.bitwise_or.reduce(above.view(np.uint8) * self.rules_out, 0)
        return float(np.add.reduce(self.leaves.take(_FIRST_LEFT.take(out) + self.first)))


def compile_trees(trees: Trees) -> Forest:
    """Checked trees made ready."""
    nodes = [list(_nodes(trees, root)) for root in trees.roots]
    deepest = max(map(len, nodes), default=0)
    feature = np.zeros((deepest, len(nodes)), np.intp)
    threshold = np.full((deepest, len(nodes)), math.inf)
    rules_out = np.zeros((deepest, len(nodes)), np.uint8)
    leaves = np.zeros((len(nodes), MOST_LEAVES))
    for tree, (root, found) in enumerate(zip(trees.roots, nodes, strict=True)):
        values = list(_leaves(trees, root))
        leaves[tree, : len(values)] = values
        for row, (node, first, count) in enumerate(found):
            feature[row, tree] = trees.feature[node]
            threshold[row, tree] = trees.threshold[node]
            rules_out[row, tree] = (1 << count) - 1 << first
    return Forest(feature, threshold, rules_out, leaves.ravel(), np.arange(len(nodes)) * MOST_LEAVES)


def _leaves(trees: Trees, node: int) -> Iterator[float]:
    """Values of the leaves below a node, left to right."""
    if trees.feature[node] < 0:
        yield trees.value[node]
    else:
        yield from _leaves(trees, trees.left[node])
        yield from _leaves(trees, trees.right[node])


def _nodes(trees: Trees, node: int, first: int = 0) -> Iterator[tuple[int, int, int]]:
    """Inner nodes from here down: node, the first leaf on its left, and how many are there."""
    if trees.feature[node] >= 0:
        count = sum(1 for _ in _leaves(trees, trees.left[node]))
        yield node, first, count
        yield from _nodes(trees, trees.left[node], first)
        yield from _nodes(trees, trees.right[node], first + count)
