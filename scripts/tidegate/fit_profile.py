"""From measured times to an `EngineProfile`: a robust, non-negative least-squares fit of what a step costs.

The cost of a step is linear in its constants but for the knee, so the knee is searched and the rest is solved for. Errors are
relative (a step of 5 ms and a prefill of 5 s weigh the same), and what lies far off the others counts little (Huber's weights,
iterated): a machine's hiccups only ever make things slower.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from router.placement.profile import EngineProfile

_ROUNDS = 12
"""Of reweighting."""
_HUBER = 1.5
"""Residuals beyond so many times the usual one count less."""
_LEAST_SCALE = 0.002
_MEASURABLE = 0.02
"""A knee is believed when it explains at least so much of the error, or of nothing else."""
_LEAST_OBSERVATIONS = 6

Floats = NDArray[np.float64]


class FitError(ValueError):
    """The measurements do not determine a profile; the text says what is missing."""


@dataclass(frozen=True)
class Step:
    """One step of an engine: tokens worked on, context of its decodes, prefills' `sum(chunk * (context + chunk / 2))`."""

    tokens: int
    context: float = 0.0
    attention: float = 0.0


@dataclass(frozen=True)
class Observation:
    """Seconds that some steps took together; `requests` is how often the way of a request to the engine and back is in them."""

    seconds: float
    steps: tuple[Step, ...]
    requests: int = 0


@dataclass(frozen=True)
class Fit:
    """The constants found. `request_s` is what a request takes outside of steps (HTTP, tokenising, queues between processes);
    `error` the median relative deviation of the measurements from the fit, `worst` the largest."""

    profile: EngineProfile
    request_s: float
    error: float
    worst: float


@dataclass(frozen=True)
class Limits:
    """What is known of an engine without timing it."""

    name: str
    kv_tokens: int
    step_tokens: int
    slots: int


def prefill_steps(uncached: int, cached: int, step_tokens: int) -> tuple[Step, ...]:
    """The steps of one prompt that is alone on an engine.

    Args:
        uncached: prompt tokens to compute.
        cached: prompt tokens before them.
        step_tokens: the budget of a step.
    """
    steps, done = [], 0
    while done < uncached:
        chunk = min(step_tokens, uncached - done)
        steps.append(Step(chunk, attention=chunk * (cached + done + 0.5 * chunk)))
        done += chunk
    return tuple(steps)


def fit(observations: Sequence[Observation], limits: Limits) -> Fit:
    """Find the profile that explains the measurements.

    Args:
        observations: prefills of several lengths and decode steps of several batch sizes and contexts.
        limits: goes into the profile as it is.

    Raises:
        FitError: there are too few measurements, or none of one of the two kinds.
    """
    usable = [seen for seen in observations if seen.seconds > 0 and seen.steps]
    if len(usable) < _LEAST_OBSERVATIONS:
        raise FitError(f"{len(usable)} measurements are too few; at least {_LEAST_OBSERVATIONS} are needed")
    if not any(seen.requests for seen in usable) or all(seen.requests for seen in usable):
        raise FitError("prefills and decode steps are both needed")
    times = np.array([seen.seconds for seen in usable])
    longest = max(step.tokens for seen in usable for step in seen.steps)
    candidates = [longest, *sorted({round(2 ** (power / 4)) for power in range(12, 4 * 16)} & set(range(8, longest)))]
    loss, knee, constants = min(_try(usable, times, knee) for knee in candidates)
    finer = {round(knee * (1 + part / 80)) for part in range(-16, 17)} & set(range(8, longest))
    loss, knee, constants = min([(loss, knee, constants), *(_try(usable, times, other) for other in sorted(finer - {knee}))])
    straight = _try(usable, times, longest)
    if straight[0] <= loss * (1 + _MEASURABLE):
        loss, knee, constants = straight
    overhead, per_token, more, per_context, attention, request_s = constants
    profile = EngineProfile(
        limits.name,
        overhead=overhead,
        per_token=per_token,
        per_token_full=per_token + more,
        knee=knee,
        per_context=per_context,
        attention=attention,
        kv_tokens=limits.kv_tokens,
        step_tokens=limits.step_tokens,
        slots=limits.slots,
    )
    off = np.abs(_features(usable, knee) @ np.array(constants) / times - 1.0)
    return Fit(profile, request_s, float(np.median(off)), float(np.max(off)))


def _try(observations: Sequence[Observation], times: Floats, knee: int) -> tuple[float, int, tuple[float, ...]]:
    """The loss with this knee, the knee, and the best constants for it."""
    loss, constants = _solve(_features(observations, knee), times)
    return loss, knee, tuple(float(constant) for constant in constants)


def _features(observations: Sequence[Observation], knee: int) -> Floats:
    rows = []
    for seen in observations:
        tokens = sum(step.tokens for step in seen.steps)
        above = sum(max(0, step.tokens - knee) for step in seen.steps)
        context = sum(step.context for step in seen.steps)
        attention = sum(step.attention for step in seen.steps)
        rows.append([len(seen.steps), tokens, above, context, attention, seen.requests])
    return np.array(rows, dtype=float)


def _solve(features: Floats, times: Floats) -> tuple[float, Floats]:
    """Huber's loss of the best non-negative constants, and these."""
    relative = features / times[:, None]
    widths = np.linalg.norm(relative, axis=0)
    widths[widths == 0] = 1.0
    scaled, ones = relative / widths, np.ones(len(times))
    weights = ones
    found = np.zeros(features.shape[1])
    for _ in range(_ROUNDS):
        roots = np.sqrt(weights)
        found = _non_negative(scaled * roots[:, None], ones * roots)
        residuals = np.abs(scaled @ found - 1.0)
        scale = max(_LEAST_SCALE, 1.4826 * float(np.median(residuals)))
        weights = np.minimum(1.0, _HUBER * scale / np.maximum(residuals, 1e-12))
    residuals = np.abs(scaled @ found - 1.0)
    # One scale for all knees, or a fit that gives up half of the measurements would look best.
    bound = 0.05
    loss = float(np.sum(np.where(residuals <= bound, residuals**2, bound * (2 * residuals - bound))))
    return loss, found / widths


def _non_negative(matrix: Floats, wanted: Floats) -> Floats:
    """Least squares with no constant below zero (Lawson and Hanson, "Solving Least Squares Problems", 1974, chapter 23)."""
    count = matrix.shape[1]
    found, used = np.zeros(count), np.zeros(count, dtype=bool)
    for _ in range(3 * count):
        gradient = matrix.T @ (wanted - matrix @ found)
        gradient[used] = -math.inf
        best = int(np.argmax(gradient))
        if gradient[best] <= 1e-10:
            break
        used[best] = True
        while True:
            trial = np.zeros(count)
            trial[used] = np.linalg.lstsq(matrix[:, used], wanted, rcond=None)[0]
            if np.all(trial[used] > 0):
                found = trial
                break
            falling = used & (trial <= 0)
            step = float(np.min(found[falling] / np.maximum(found[falling] - trial[falling], 1e-300)))
            found = found + step * (trial - found)
            used &= found > 1e-15
            found[~used] = 0.0
    return found
