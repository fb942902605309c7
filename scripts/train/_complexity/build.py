"""From outcome data to the weights file that the router loads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import scipy.sparse as sp

from _complexity.data import Outcomes, find_data, load_own, load_parquet, measure
from _complexity.domains import DOMAINS, fit_domains, labels_of, written_examples
from _complexity.fit import Parts, export_trees, fit_gain, quantise, steady_target, with_length
from _complexity.vectors import load_vectors, places_of, topics_of
from router.complexity.weights import Stored, StoredDomains, StoredGain, features_digest, pack_weights


def store_gain(
    parts: Parts, name: str, small: str, large: str, trained_on: str, data: Outcomes, means: np.ndarray, deviations: np.ndarray
) -> StoredGain:
    """A fitted head as the file has it; hand weights move to the file's common standardisation."""
    trees, _ = export_trees(parts.trees, parts.tree_weight)
    linear = parts.linear * deviations / parts.deviations
    base = parts.base - parts.tree_weight * parts.tree_offset + float(parts.linear @ ((means - parts.means) / parts.deviations))
    cuts = np.quantile(parts.predict(data.hand, data.words), np.linspace(0, 1, 101))
    return StoredGain(
        name, small, large, trained_on, len(data), base, parts.scale, parts.whole.tobytes(), linear.tolist(), trees, cuts.tolist()
    )


def build_prior(folder: Path) -> Stored:
    """The shipped weights: a general gain head, one for Llama-3.1 8B against 70B, and the domain head."""
    sets = {path.stem: load_parquet(path) for path in sorted(folder.glob("*.parquet"))}
    pro = sets["mmlu_pro_llama31"]
    means, deviations = _standard(sets)
    hand = np.vstack([data.hand for data in sets.values()])
    words = sp.vstack([data.words for data in sets.values()]).tocsr()
    keys = np.concatenate([data.keys for data in sets.values()])
    targets = {name: data.gain for name, data in sets.items()}
    targets["mmlu_pro_llama31"] = steady_target(pro.gain, _others(pro))
    everything = Outcomes(
        "general",
        tuple(p for data in sets.values() for p in data.prompts),
        np.concatenate([d.subjects for d in sets.values()]),
        keys,
        np.concatenate([d.folds for d in sets.values()]),
        np.concatenate([d.small for d in sets.values()]),
        np.concatenate([d.large for d in sets.values()]),
        hand=hand,
        words=words,
    )
    general = with_length(fit_gain(hand, words, np.concatenate(list(targets.values())), keys))
    llama = fit_gain(pro.hand, pro.words, targets["mmlu_pro_llama31"], pro.keys)
    gains = [
        store_gain(general, "general", "small", "large", "+".join(sets), everything, means, deviations),
        store_gain(llama, "llama-3.1-8b-70b", "Llama-3.1-8B", "Llama-3.1-70B", "mmlu_pro", pro, means, deviations),
    ]
    domains = build_domains(list(sets.values()), means, deviations)
    return Stored(features_digest(), means.tolist(), deviations.tolist(), gains, domains)


def build_own(path: Path, name: str, prior: Stored) -> Stored:
    """The prior with one more head in front, fitted on an operator's own outcomes."""
    data = load_own(path)
    if len(data) < 200:
        raise SystemExit(f"{path}: {len(data)} rows; 200 are the least that say anything, 1,500 what to aim for")
    parts = fit_gain(data.hand, data.words, data.gain, data.keys)
    means, deviations = np.array(prior.means), np.array(prior.deviations)
    own = store_gain(parts, name, "small", "large", path.stem, data, means, deviations)
    return Stored(prior.features, prior.means, prior.deviations, [own, *prior.gains], prior.domains)


def build_domains(sets: list[Outcomes], means: np.ndarray, deviations: np.ndarray) -> StoredDomains:
    """The domain head over all benchmarks and the written examples."""
    texts, written = written_examples()
    extra_hand, extra_words = measure(texts)
    vectors = load_vectors()
    topics = topics_of([*(prompt for data in sets for prompt in data.prompts), *texts], vectors)
    labels = np.concatenate([*(labels_of(data) for data in sets), written])
    hand = (np.vstack([*(data.hand for data in sets), extra_hand]) - means) / deviations
    words = sp.vstack([*(data.words for data in sets), extra_words]).tocsr()
    known = labels >= 0
    fit = fit_domains(hand[known], words[known], topics[known], labels[known], len(DOMAINS))
    packed = [quantise(column) for column in fit.table.T]
    places = places_of(vectors)
    order = np.argsort(places)
    rows = [quantise(column) for column in (vectors.floats @ fit.axes)[order].T]
    return StoredDomains(
        list(DOMAINS),
        [scale for _, scale in packed],
        fit.biases.tolist(),
        b"".join(table.tobytes() for table, _ in packed),
        [np.where(np.abs(row) > 0.02, row, 0.0).tolist() for row in fit.hand.T],
        places[order].astype("<u4").tobytes(),
        np.stack([row for row, _ in rows], 1).tobytes(),
        [scale for _, scale in rows],
    )


def _standard(sets: dict[str, Outcomes]) -> tuple[np.ndarray, np.ndarray]:
    hand = np.vstack([data.hand for data in sets.values()])
    return hand.mean(0), hand.std(0) + 1e-6


def _others(data: Outcomes) -> np.ndarray:
    """Outcomes of the models that are not the pair itself."""
    pair = {"m_Meta-Llama-3_1-70B-Instruct", "m_Meta-Llama-3_1-8B-Instruct"}
    return data.others[:, [place for place, name in enumerate(data.models) if name not in pair]]


def write_prior(given: str | None, out: Path) -> Stored:
    """Fit and write the shipped weights."""
    stored = build_prior(find_data(given))
    out.write_bytes(pack_weights(stored))
    return stored
