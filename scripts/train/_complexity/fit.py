"""Fitting one gain head: trees over hand features plus a linear table over hashed words, mixed by what each is worth.

Both parts regress the gain itself. How much of each goes into the sum is found by non-negative least squares on predictions for
questions the parts had not seen (4 inner folds), which also makes the sum calibrated: a predicted +0.10 is worth +0.10.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import lightgbm
import numpy as np
import scipy.sparse as sp
from scipy.optimize import nnls
from sklearn.linear_model import Ridge

from _complexity.data import INNER, inner_folds
from router.complexity.features import NAMES
from router.complexity.weights import Trees

FEW_ROWS = 3000
"""Below this many labels the linear model over the hand features is a third part, and length alone a fourth."""


_CHARS = NAMES.index("chars")


@dataclass(frozen=True)
class Recipe:
    """Strength of the parts. `word_penalty` and `hand_penalty` are ridge penalties, the rest is LightGBM's."""

    trees: int = 300
    leaves: int = 7
    rate: float = 0.05
    min_rows: int = 40
    share_of_features: float = 0.5
    leaf_penalty: float = 100.0
    word_penalty: float = 8.0
    hand_penalty: float = 100.0
    by_chance: bool = True
    """One threshold per feature is tried, drawn by chance (Geurts et al. 2006): single labels say too little to search for it."""


FEW = Recipe(
    trees=100,
    leaves=4,
    min_rows=20,
    share_of_features=0.3,
    leaf_penalty=10.0,
    word_penalty=5.0,
    hand_penalty=300.0,
    by_chance=False,
)
"""For a few thousand labels or less."""


@dataclass(frozen=True)
class Parts:
    """A fitted head. `gain = base + scale * words @ whole + standardised hand @ linear + trees(hand)`."""

    base: float
    whole: np.ndarray
    scale: float
    means: np.ndarray
    deviations: np.ndarray
    linear: np.ndarray
    trees: Any
    tree_weight: float
    tree_offset: float

    def predict(self, hand: np.ndarray, words: sp.csr_matrix) -> np.ndarray:
        """Gains of many rows."""
        standard = (hand - self.means) / self.deviations
        trees = self.tree_weight * (self.trees.predict(hand, num_threads=1) - self.tree_offset) if self.tree_weight else 0.0
        return self.base + words @ (self.scale * self.whole) + standard @ self.linear + trees


LENGTH_SLOPE = 0.1
"""What a question without choices gains more when it is e times as long: a prior, not a finding (see `with_length`)."""


def with_length(parts: Parts) -> Parts:
    """A head for traffic nobody has labels of: a longer open question is taken to gain more, however the pool was.

    Nine of ten questions of the pool have choices, so what is learned says little of those without; that longer ones need
    more of a model is what day one runs on. A head fitted on an operator's own labels has no such prior.
    """
    linear = parts.linear.copy()
    place = NAMES.index("open_length")
    linear[place] += LENGTH_SLOPE * parts.deviations[place]
    return replace(parts, linear=linear, base=parts.base + LENGTH_SLOPE * float(parts.means[place]))


def recipe_for(rows: int) -> Recipe:
    """The recipe for so many labels."""
    return FEW if rows < FEW_ROWS else Recipe()


def fit_gain(
    hand: np.ndarray,
    words: sp.csr_matrix,
    target: np.ndarray,
    keys: np.ndarray,
) -> Parts:
    """Fit a head.

    Args:
        hand: features by row.
        words: hashed words by row.
        target: gains, or a less noisy stand-in for them.
        keys: question keys: rows of one question stay in one inner fold.
    """
    recipe = recipe_for(len(target))
    means, deviations = hand.mean(0), hand.std(0) + 1e-6
    standard = (hand - means) / deviations
    middle = float(target.mean())
    inner = inner_folds(keys)
    few = len(target) < FEW_ROWS
    guesses = np.zeros((len(target), 4))
    if few:
        guesses[:, 3] = standard[:, _CHARS]
    for fold in range(INNER):
        a, b = inner != fold, inner == fold
        if not a.any() or not b.any():
            continue
        guesses[b, 0] = words[b] @ fit_words(words[a], target[a] - middle, recipe.word_penalty)
        guesses[b, 1] = fit_trees(hand[a], target[a], recipe).predict(hand[b], num_threads=1) - middle
        if few:
            guesses[b, 2] = standard[b] @ fit_linear(standard[a], target[a] - middle, recipe.hand_penalty)
    shares, _ = nnls(guesses, target - middle)
    shares = _keep_balance(shares, few)
    linear = np.zeros(hand.shape[1])
    if few:
        linear += shares[2] * fit_linear(standard, target - middle, recipe.hand_penalty)
        linear[_CHARS] += shares[3]
    whole, scale = quantise(shares[0] * fit_words(words, target - middle, recipe.word_penalty))
    return Parts(
        middle,
        whole,
        scale,
        means,
        deviations,
        linear,
        fit_trees(hand, target, recipe),
        float(shares[1]),
        middle,
    )


def _keep_balance(shares: np.ndarray, few: bool) -> np.ndarray:
    """No fitted part is left out altogether: which one helps on the inner folds is itself a noisy finding."""
    fitted = 3 if few else 2
    shares = shares.copy()
    shares[:fitted] = np.maximum(shares[:fitted], 0.25 * max(shares[:fitted].sum(), 0.2) / fitted)
    return shares


def fit_words(words: sp.csr_matrix, target: np.ndarray, penalty: float) -> np.ndarray:
    """Ridge weights of the buckets."""
    model = Ridge(alpha=penalty, solver="sparse_cg", tol=1e-3, fit_intercept=False)
    weights: np.ndarray = model.fit(words, target).coef_
    return weights


def fit_linear(standard: np.ndarray, target: np.ndarray, penalty: float) -> np.ndarray:
    """Ridge weights of standardised hand features."""
    weights: np.ndarray = np.linalg.solve(standard.T @ standard + penalty * np.eye(standard.shape[1]), standard.T @ target)
    return weights


def fit_trees(hand: np.ndarray, target: np.ndarray, recipe: Recipe) -> Any:
    """Gradient-boosted small trees (squared loss)."""
    options = {
        "objective": "l2",
        "num_leaves": recipe.leaves,
        "learning_rate": recipe.rate,
        "min_data_in_leaf": recipe.min_rows,
        "feature_fraction": recipe.share_of_features,
        "lambda_l2": recipe.leaf_penalty,
        "extra_trees": recipe.by_chance,
        "extra_seed": 0,
        "bagging_fraction": 0.7,
        "bagging_freq": 1,
        "num_threads": 1,
        "verbose": -1,
        "seed": 0,
        "deterministic": True,
        "force_row_wise": True,
    }
    return lightgbm.train(options, lightgbm.Dataset(hand, target), num_boost_round=recipe.trees)


def quantise(weights: np.ndarray) -> tuple[np.ndarray, float]:
    """int8 and the scale that brings it back. Not one is clipped: the few heavy weights are those of the commonest words."""
    scale = (float(np.abs(weights).max()) or 1e-9) / 127
    return np.round(weights / scale).astype(np.int8), scale


def steady_target(gain: np.ndarray, others: np.ndarray) -> np.ndarray:
    """A gain with less noise, where further models answered the same questions.

    One sampled answer says little about a question. The regression of the gain on the outcomes of all other models (and on how
    hard the question is on average, squared: a gap is largest at medium difficulty) keeps what those agree on.
    """
    mean = others.mean(1, keepdims=True)
    known = np.hstack([others, mean, mean**2])
    known = (known - known.mean(0)) / (known.std(0) + 1e-6)
    middle = gain.mean()
    fitted: np.ndarray = known @ fit_linear(known, gain - middle, 50.0) + middle
    return fitted


def export_trees(booster: Any, weight: float) -> tuple[Trees, float]:
    """LightGBM's trees as flat arrays with leaves times `weight`, and the sum of the roots' values.

    Every inner node carries the mean of its leaves by training rows, which is what an explanation splits along the path.
    """
    flat = Trees([], [], [], [], [], [])
    for tree in booster.dump_model()["tree_info"]:
        flat.roots.append(len(flat.feature))
        _flatten(tree["tree_structure"], flat, weight)
    return flat, sum(flat.value[root] for root in flat.roots)


def _flatten(node: dict[str, Any], flat: Trees, weight: float) -> tuple[float, int]:
    """Append a node and what is below it; returns its value and its training rows."""
    place = len(flat.feature)
    flat.feature.append(-1)
    flat.threshold.append(0.0)
    flat.left.append(0)
    flat.right.append(0)
    flat.value.append(0.0)
    if "leaf_value" in node:
        flat.value[place] = float(node["leaf_value"]) * weight
        return flat.value[place], max(1, int(node.get("leaf_count", 1)))
    flat.feature[place] = int(node["split_feature"])
    flat.threshold[place] = float(node["threshold"])
    flat.left[place] = len(flat.feature)
    left, left_rows = _flatten(node["left_child"], flat, weight)
    flat.right[place] = len(flat.feature)
    right, right_rows = _flatten(node["right_child"], flat, weight)
    rows = left_rows + right_rows
    flat.value[place] = (left * left_rows + right * right_rows) / rows
    return flat.value[place], rows
