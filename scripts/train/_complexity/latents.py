"""Latents: a few tables over the hashed words that trees may ask besides the readable counts.

What they are fitted to is known of public questions whatever pair of models is compared: the subject (its principal directions
among all subjects) and how many of 28 models answered right. A subject is never a feature, only what a latent was fitted to.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from _complexity.data import INNER, Outcomes, inner_folds

TOPICS = 8
"""Principal directions of the subjects."""
_PENALTY = 8.0
_STEPS = 8
"""Steps of conjugate gradients: the rest changes no prediction that matters."""


@dataclass(frozen=True)
class Source:
    """Rows with known targets that latents are fitted to, one latent per column."""

    names: tuple[str, ...]
    words: sp.csr_matrix
    targets: np.ndarray
    keys: np.ndarray

    def without(self, keys: np.ndarray) -> Source:
        """The rows of other questions."""
        kept = np.where(~np.isin(self.keys, keys))[0]
        return self if len(kept) == len(self.keys) else Source(self.names, self.words[kept], self.targets[kept], self.keys[kept])


@dataclass(frozen=True)
class Latents:
    """Fitted tables in whole numbers, one column per latent, as the weights file has them."""

    names: tuple[str, ...]
    whole: np.ndarray
    scales: np.ndarray

    def read(self, words: sp.csr_matrix) -> np.ndarray:
        """Latents of many rows."""
        found: np.ndarray = (words @ self.whole.astype(float)) * self.scales
        return found


@dataclass(frozen=True)
class Readings:
    """Latents, and what they say of the rows that a head is fitted on."""

    latents: Latents
    rows: np.ndarray


def learn_latents(sources: tuple[Source, ...], words: sp.csr_matrix, keys: np.ndarray) -> Readings:
    """Latents of all sources; every row is read by latents that were fitted without the questions of its inner fold."""
    inner = inner_folds(keys)
    rows = np.zeros((words.shape[0], sum(source.targets.shape[1] for source in sources)))
    for fold in range(INNER):
        held = inner == fold
        if held.any():
            rows[held] = fit_latents(tuple(source.without(keys[held]) for source in sources)).read(words[held])
    return Readings(fit_latents(sources), rows)


def quantise(weights: np.ndarray) -> tuple[np.ndarray, float]:
    """int8 and the scale that brings it back; the largest 0.02 % are clipped."""
    limit = float(np.quantile(np.abs(weights), 0.9998)) or float(np.abs(weights).max()) or 1e-9
    scale = limit / 127
    return np.clip(np.round(weights / scale), -127, 127).astype(np.int8), scale


def fit_latents(sources: tuple[Source, ...]) -> Latents:
    """All latents of all sources."""
    names, tables, scales = [], [], []
    for source in sources:
        fitted = _ridge(source.words, source.targets - source.targets.mean(0))
        for name, column in zip(source.names, fitted.T, strict=True):
            table, scale = quantise(column)
            names.append(name)
            tables.append(table)
            scales.append(scale)
    return Latents(tuple(names), np.stack(tables, 1), np.array(scales))


def _ridge(words: sp.csr_matrix, targets: np.ndarray) -> np.ndarray:
    """Ridge weights for many targets at once, by conjugate gradients on the normal equations."""
    turned = words.T
    residual = turned @ targets
    found, step = np.zeros_like(residual), residual.copy()
    size = (residual**2).sum(0)
    for _ in range(_STEPS):
        moved = turned @ (words @ step) + _PENALTY * step
        along = size / np.maximum((step * moved).sum(0), 1e-12)
        found += step * along
        residual -= moved * along
        before, size = size, (residual**2).sum(0)
        step = residual + step * (size / np.maximum(before, 1e-12))
    return found


def topics_of(data: list[Outcomes], count: int = TOPICS) -> Source:
    """The principal directions of the subjects of some benchmarks, in the space of their hashed words."""
    words = sp.vstack([part.words for part in data]).tocsr()
    subjects = np.concatenate([np.char.add(f"{part.name}:", part.subjects.astype(str)) for part in data])
    names, places = np.unique(subjects, return_inverse=True)
    member = np.eye(len(names))[places]
    member -= member.mean(0)
    centres = member.T @ words
    _, directions = np.linalg.eigh(centres @ centres.T)
    kept = directions[:, ::-1][:, :count]
    kept = kept * np.where(kept[np.abs(kept).argmax(0), np.arange(kept.shape[1])] < 0, -1.0, 1.0)
    labels = tuple(f"topic_{place + 1}" for place in range(kept.shape[1]))
    return Source(labels, words, member @ kept, np.concatenate([part.keys for part in data]))


_STRONG = ("gemini", "3_1-70B", "jamba")
_WEAK = ("Mixtral", "Mistral", "Yi", "gemma", "8B", "7B")


def difficulty_of(data: Outcomes) -> Source:
    """How many of a benchmark's models answered right, and by how much the strong ones were better than the weak ones."""
    strong = [place for place, name in enumerate(data.models) if any(part in name for part in _STRONG)]
    weak = [place for place, name in enumerate(data.models) if any(part in name for part in _WEAK) and place not in strong]
    targets = np.stack([data.others.mean(1), data.others[:, strong].mean(1) - data.others[:, weak].mean(1)], 1)
    return Source(("easy_for_others", "gap_of_others"), data.words, targets, data.keys)
