"""`tidegate train`: labels from a file, the nightly refit, and the way back."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from msgspec.structs import replace

from router.complexity.compile import digest_of_weights, load_model, weights_of
from router.complexity.features import read_features
from router.complexity.label import IMPORT, LabelError, append_labels, file_of, make_label, prune_labels, read_labels
from router.complexity.peel import peel_text
from router.complexity.weights import Stored, WeightsError, pack_weights, read_weights
from router.config import Config
from router.config.complexity import Labels
from tidegate.outcome_file import read_outcomes
from tidegate.promotion import KEEP, NOTHING, PROMOTE, ROLLBACK, PromotionError, Refit, Shelf
from tidegate.refit import (
    GROWTH,
    LEAST_HELD_OUT,
    LEAST_TRAIN,
    Found,
    Material,
    arrays_of,
    gains_of,
    hold_against,
    judging_rows,
    material_of,
    training_rows,
)

HEAD = "labels"
"""The name of a gain head fitted on labels, where the configuration asks for none by name."""
_MACHINERY = Path(__file__).resolve().parents[1] / "train"
_HEADS = 4


class TrainError(ValueError):
    """A command of `tidegate train` that cannot be carried out; the text says why."""


def labels_of(config: Config) -> Labels:
    """The `labels:` section.

    Raises:
        TrainError: there is none.
    """
    if config.complexity.labels is None:
        raise TrainError("the configuration has no `complexity.labels`, which says where labels are kept")
    return config.complexity.labels


def import_file(config: Config, base: Path, path: Path, now: float) -> int:
    """Add the rows of a file to the labels, as hashed features and scores; returns how many there were.

    Raises:
        TrainError, EvalError: the configuration or a line of the file cannot be used; then nothing is added.
        OSError: the labels cannot be written.
    """
    directory = base / labels_of(config).dir
    rows = read_outcomes(path)
    made = [make_label(read_features(peel_text(row.prompt)), row.small, row.large, IMPORT, now) for row in rows]
    append_labels(file_of(directory, "import", now), made)
    return len(made)


def refit(config: Config, base: Path, now: float, *, dry: bool = False) -> tuple[Refit, dict[str, int]]:
    """Fit a challenger on the labels, hold it against the weights in use, and promote it if it is better.

    Args:
        config: the configuration.
        base: what relative paths start from.
        now: UNIX time in seconds.
        dry: promote nothing and write nothing.

    Returns:
        What came of it, and how many labels were left out, by reason.

    Raises:
        TrainError: labels or weights cannot be used, or the packages for fitting are missing.
    """
    labels = labels_of(config)
    shelf = Shelf(base / labels.dir)
    try:
        with shelf.locked():
            if not dry:
                prune_labels(shelf.directory, labels.keep_days, now)
            result, left_out = _refit(config, base, shelf, now, dry=dry)
            if not dry:
                shelf.note(result)
            return result, left_out
    except (LabelError, WeightsError, PromotionError) as error:
        raise TrainError(str(error)) from None
    except OSError as error:
        raise TrainError(f"{error.filename or shelf.directory}: {error.strerror}") from None


def _refit(config: Config, base: Path, shelf: Shelf, now: float, *, dry: bool) -> tuple[Refit, dict[str, int]]:
    section = config.complexity
    every = list(read_labels(shelf.directory))
    material, left_out = material_of(every, _pairs(config))
    path = weights_of(section, base)
    champion = load_model(path)
    stored = read_weights(path)
    names = [head.name for head in champion.gains]
    place = names.index(section.head) if section.head in names else 0
    train, test = training_rows(material), judging_rows(material)
    so_far = Refit(
        now, NOTHING, digest_of_weights(path), labels=len(every), questions=len(material), trained=len(train), held_out=len(test)
    )
    looks = shelf.looks_at(so_far.champion)
    if why := _why_not(so_far, looks):
        return replace(so_far, why=why), left_out
    challenger = pack_weights(fit_challenger(material, train, stored, section.head or HEAD))
    with shelf.tried(challenger) as where:
        digest, model = digest_of_weights(where), load_model(where)
    if digest == so_far.champion:
        return replace(so_far, why="these labels make the weights that are in use"), left_out
    seen = [material.features[row] for row in test]
    found = hold_against(
        gains_of(champion, place, seen), gains_of(model, 0, seen), material.gain[test], material.groups[test], len(looks) + 1
    )
    if found.better and not dry:
        shelf.keep(challenger, digest)
        shelf.promote(digest)
    return _said(so_far, found, digest, len(looks) + 1), left_out


def _said(so_far: Refit, found: Found, digest: str, look: int) -> Refit:
    return replace(
        so_far,
        outcome=PROMOTE if found.better else KEEP,
        challenger=digest,
        look=look,
        champion_quality=found.champion,
        challenger_quality=found.challenger,
        difference=found.difference,
        low=found.low,
        high=found.high,
        alpha=found.alpha,
    )


def _why_not(now: Refit, looks: list[Refit]) -> str:
    """Why nothing is compared this time; "" where it is."""
    if now.trained < LEAST_TRAIN or now.held_out < LEAST_HELD_OUT:
        return (
            f"{now.trained} questions to learn from and {now.held_out} held out; {LEAST_TRAIN} and {LEAST_HELD_OUT} are the least"
        )
    if looks and now.held_out < GROWTH * looks[-1].held_out:
        return f"{now.held_out} questions held out, {looks[-1].held_out} at the last look: nothing new to see"
    return ""


def _pairs(config: Config) -> frozenset[tuple[str, str]]:
    tiers = config.complexity.tiers
    models: dict[str, list[str]] = {tier: [model.id for model in config.models if model.tier == tier] for tier in tiers}
    for target in config.targets:
        if target.tier in models:
            models[target.tier] += target.models
    return frozenset((small, large) for small in models[tiers[0]] for large in models[tiers[-1]])


def fit_challenger(material: Material, train: np.ndarray, stored: Stored, name: str) -> Stored:
    """The weights in use with a head in front that is fitted on these rows, by the machinery of `scripts/train/complexity`.

    Raises:
        TrainError: that machinery, or a package it needs, is not there.
    """
    build, data, fit = _machinery()
    hand, words = arrays_of([material.features[row] for row in train])
    gain = material.gain[train]
    parts = fit.fit_gain(hand, words, gain, material.groups[train])
    rows = data.Outcomes(
        name, ("",) * len(train), np.array([""] * len(train)), material.groups[train], np.zeros(len(train), int),
        material.small[train], material.large[train], hand=hand, words=words,
    )  # fmt: skip
    head = build.store_gain(parts, name, "small", "large", "labels", rows, np.array(stored.means), np.array(stored.deviations))
    others = [gain for gain in stored.gains if gain.name != name][: _HEADS - 1]
    return replace(stored, gains=[head, *others])


def _machinery() -> tuple[Any, Any, Any]:
    if not (_MACHINERY / "_complexity" / "fit.py").is_file():
        raise TrainError(f"a refit needs a checkout of the project: {_MACHINERY} has nothing to fit with")
    if str(_MACHINERY) not in sys.path:
        sys.path.append(str(_MACHINERY))
    try:
        from _complexity import build, data, fit
    except ModuleNotFoundError as missing:
        raise TrainError(f"{missing.name} is not installed: uv pip install --group train") from None
    return build, data, fit


def roll_back(config: Config, base: Path) -> Refit:
    """Put the weights back in use that the last promotion replaced.

    Raises:
        TrainError: there are none.
    """
    shelf = Shelf(base / labels_of(config).dir)
    try:
        with shelf.locked():
            before = digest_of_weights(weights_of(config.complexity, base))
            shelf.demote()
            done = Refit(time.time(), ROLLBACK, digest_of_weights(weights_of(config.complexity, base)), challenger=before)
            shelf.note(done)
            return done
    except (PromotionError, WeightsError) as error:
        raise TrainError(str(error)) from None
