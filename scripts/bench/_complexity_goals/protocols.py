"""The accuracy protocols: what is fitted on which questions, and tested on which others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from _complexity.data import Outcomes, without_questions
from _complexity.domains import MEASURED, fit_domains, labels_of
from _complexity.fit import fit_gain, steady_target, with_length
from _complexity.vectors import load_vectors, topics_of
from sklearn.linear_model import Ridge
from tidegate.curves import Interval, apgr, apgr_interval, cpt

PAIR = ("m_Meta-Llama-3_1-70B-Instruct", "m_Meta-Llama-3_1-8B-Instruct")
HS_MATHS = "high_school_mathematics"
_GSM = frozenset({"gsm8k", "agentverse-mgsm"})


@dataclass(frozen=True)
class Curve:
    """A router's figures on one test."""

    apgr: Interval
    cpt50: float
    cpt80: float


def curve(scores: np.ndarray, data: Outcomes, draws: int = 60) -> Curve:
    """RouteLLM's figures of scores for the rows of `data`."""
    s, small, large = scores.tolist(), data.small.tolist(), data.large.tolist()
    return Curve(apgr_interval(s, small, large, draws), cpt(s, small, large, 0.5), cpt(s, small, large, 0.8))


def few_labels(data: Outcomes, labels: int, seeds: int, without: str | None = None) -> tuple[float, float, float]:
    """Fit on `labels` random questions, test on all others; means of APGR, CPT50 and CPT80 over the seeds."""
    found = []
    for seed in range(seeds):
        order = np.random.default_rng(seed).permutation(len(data))
        train = data.take(order[:labels])
        rest = order[labels:][~np.isin(data.keys[order[labels:]], train.keys)]
        test = data.take(rest)
        scores = fit_gain(train.hand, train.words, train.gain, train.keys).predict(test.hand, test.words)
        kept = np.ones(len(test), bool) if without is None else test.subjects != without
        part = test.take(np.where(kept)[0])
        s, small, large = scores[kept].tolist(), part.small.tolist(), part.large.tolist()
        found.append((apgr(s, small, large), cpt(s, small, large, 0.5), cpt(s, small, large, 0.8)))
    mean = np.mean(found, axis=0)
    return float(mean[0]), float(mean[1]), float(mean[2])


def across_folds(
    data: Outcomes, groups: np.ndarray | None = None, *, steady: bool = False, fit: Callable[..., Any] = fit_gain
) -> np.ndarray:
    """Gains for every row from a fit on the other folds (or groups) without the row's question.

    With `steady`, the training target is the gain as the other models' outcomes on the *training* questions explain it.
    """
    groups = data.folds if groups is None else groups
    scores = np.zeros(len(data))
    for group in np.unique(groups):
        test = data.take(np.where(groups == group)[0])
        train = without_questions(data.take(np.where(groups != group)[0]), test.keys)
        target = steady_target(train.gain, others_of(train)) if steady else train.gain
        fitted = fit(train.hand, train.words, target, train.keys)
        scores[groups == group] = fitted.predict(test.hand, test.words)
    return scores


def others_of(data: Outcomes) -> np.ndarray:
    """Outcomes of the models beside the pair."""
    return data.others[:, [place for place, name in enumerate(data.models) if name not in PAIR]]


def subject_groups(data: Outcomes, count: int) -> np.ndarray:
    """Every subject in one of `count` groups: testing on a group is testing on subjects never seen."""
    names, places = np.unique(data.subjects, return_inverse=True)
    return (np.random.default_rng(0).permutation(len(names)) % count)[places]


def zero_shot(test: Outcomes, sources: list[Outcomes]) -> np.ndarray:
    """Gains from a fit on other benchmarks only: no question of the test, and nothing of the test's own benchmark."""
    parts = []
    for source in sources:
        kept = source.take(np.where(~np.isin(source.subjects, list(_GSM)))[0])
        parts.append(without_questions(kept, test.keys))
    hand, words = np.vstack([p.hand for p in parts]), sp.vstack([p.words for p in parts]).tocsr()
    gain, keys = np.concatenate([p.gain for p in parts]), np.concatenate([p.keys for p in parts])
    return with_length(fit_gain(hand, words, gain, keys)).predict(test.hand, test.words)


def choose_among(data: Outcomes, folds: tuple[int, ...]) -> tuple[float, float, float]:
    """Mean score when the model with the highest predicted score answers; of the best single model; and of an oracle."""
    chosen = np.zeros(len(data))
    rows = np.isin(data.folds, folds)
    for fold in folds:
        test = data.folds == fold
        train = data.take(np.where(rows & ~test & ~np.isin(data.keys, data.keys[test]))[0])
        scores = predict_scores(train, data.hand[test], data.words[test])
        chosen[test] = data.others[test][np.arange(int(test.sum())), scores.argmax(1)]
    return float(chosen[rows].mean()), float(data.others[rows].mean(0).max()), float(data.others[rows].max(1).mean())


def predict_scores(train: Outcomes, hand: np.ndarray, words: sp.csr_matrix) -> np.ndarray:
    """A score per model: one ridge head each over hand features and hashed words."""
    means, deviations = train.hand.mean(0), train.hand.std(0) + 1e-6
    middle = train.others.mean(0)
    model = Ridge(alpha=2.0, solver="sparse_cg", tol=1e-3, fit_intercept=False)
    model.fit(_joined(train.hand, train.words, means, deviations), train.others - middle)
    found: np.ndarray = _joined(hand, words, means, deviations) @ model.coef_.T + middle
    return found


def _joined(hand: np.ndarray, words: sp.csr_matrix, means: np.ndarray, deviations: np.ndarray) -> sp.csr_matrix:
    return sp.hstack([words, sp.csr_matrix(np.clip((hand - means) / deviations, -4, 4) * 0.1)]).tocsr()


def domain_scores(sources: list[Outcomes], test: Outcomes) -> dict[str, tuple[float, float, float]]:
    """Precision, recall and F1 of each measured domain: fitted on the sources, tested on other questions."""
    train = [without_questions(source, test.keys) for source in sources]
    labels = np.concatenate([labels_of(source) for source in train])
    hand, words = np.vstack([p.hand for p in train]), sp.vstack([p.words for p in train]).tocsr()
    means, deviations = hand.mean(0), hand.std(0) + 1e-6
    known = labels >= 0
    vectors = load_vectors()
    topics = topics_of([prompt for source in train for prompt in source.prompts], vectors)
    fit = fit_domains(((hand - means) / deviations)[known], words[known], topics[known], labels[known], len(MEASURED))
    guess = fit.logits((test.hand - means) / deviations, test.words, topics_of(test.prompts, vectors)).argmax(1)
    truth = labels_of(test)
    found = {}
    for place, name in enumerate(MEASURED):
        right = float(((guess == place) & (truth == place)).sum())
        precision = right / max(1, int(((guess == place) & (truth >= 0)).sum()))
        recall = right / max(1, int((truth == place).sum()))
        found[name] = (precision, recall, 2 * precision * recall / max(1e-9, precision + recall))
    return found
