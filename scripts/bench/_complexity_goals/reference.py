"""The design that the goals were set against, fitted again here: trees over hand features and a ridge over hashed words, added.

Its published figures are of all questions, with near-duplicates of one on both sides of a split. This bench keeps one question in
six back and parts no duplicates: a goal above those figures is further away than it looks, and here is by how much.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from _complexity.data import Outcomes, question_key
from _complexity.fit import Recipe, fit_trees, fit_words
from tidegate.curves import apgr

from _complexity_goals import protocols
from _complexity_goals.final import part

RECIPE = Recipe(trees=150, leaves=15, leaf_penalty=0.0, word_penalty=5.0, by_chance=False)


@dataclass(frozen=True)
class Reference:
    """Gain = trees(hand) + words @ table: each part predicts the gain in its own unit."""

    trees: Any
    table: np.ndarray

    def predict(self, hand: np.ndarray, words: sp.csr_matrix) -> np.ndarray:
        """Gains of many rows."""
        found: np.ndarray = self.trees.predict(hand, num_threads=1) + words @ self.table
        return found


def fit_reference(hand: np.ndarray, words: sp.csr_matrix, target: np.ndarray, keys: np.ndarray) -> Reference:
    """Fit it; `keys` are there to be called as `fit_gain` is."""
    return Reference(fit_trees(hand, target, RECIPE), fit_words(words, target - target.mean(), RECIPE.word_penalty))


def as_published(data: Outcomes) -> Outcomes:
    """The rows under keys by which only questions with the very same stem are duplicates."""
    return data.with_keys(np.array([question_key(prompt) for prompt in data.prompts]))


def compare(sets: dict[str, Outcomes], fit: Callable[..., Any]) -> Iterator[tuple[str, float, float]]:
    """APGR of the reference and of `fit`, by protocol, the published one first; each takes a minute.

    Args:
        sets: all rows of all benchmarks, nothing kept back.
        fit: another way to fit a head.
    """
    mmlu, pro = sets["routellm_mmlu"], sets["mmlu_pro_llama31"]
    ours = part(mmlu).development
    cases = [
        ("MMLU 5-fold, all questions, near-duplicates not parted", as_published(mmlu), mmlu.folds),
        ("  near-duplicates parted", mmlu, mmlu.folds),
        ("  and one question in six kept back", ours, ours.folds),
        ("MMLU, subjects never seen (10 groups), as the last", ours, protocols.subject_groups(ours, 10)),
        ("MMLU-Pro 5-fold, as the last", part(pro).development, part(pro).development.folds),
    ]
    for name, data, groups in cases:
        yield name, _apgr(data, groups, fit_reference), _apgr(data, groups, fit)


def _apgr(data: Outcomes, groups: np.ndarray, fit: Callable[..., Any]) -> float:
    scores = protocols.across_folds(data, groups, steady=len(data.others) > 0, fit=fit)
    return apgr(scores.tolist(), data.small.tolist(), data.large.tolist())
