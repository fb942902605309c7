"""`tidegate eval`: how good the router is on outcome data, and which side of an experiment did better; with intervals."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from router.complexity.compile import load_model
from router.complexity.features import read_features
from router.complexity.model import Model, read_gains
from router.complexity.peel import peel_text
from router.complexity.weights import DEFAULT, WeightsError
from tidegate.curves import Interval, aiq, apgr_interval, cpt, difference_interval, mean_interval, recovered
from tidegate.outcome_file import EvalError, Outcome, read_rows, read_score


@dataclass(frozen=True)
class Evaluation:
    """The router on outcome data. `curve` has (share to large, mean quality); costs count a large call as `ratio` small ones."""

    rows: int
    small: float
    large: float
    apgr: Interval
    cpt50: float
    cpt80: float
    aiq: float
    curve: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Side:
    """One side of an experiment."""

    name: str
    rows: int
    score: Interval


def load_weights(path: Path | None) -> Model:
    """The model that is evaluated.

    Raises:
        EvalError: the weights cannot be used.
    """
    try:
        return load_model(path or DEFAULT)
    except WeightsError as error:
        raise EvalError(str(error)) from None


def evaluate(outcomes: list[Outcome], model: Model, head: int = 0, ratio: float = 10.0) -> Evaluation:
    """RouteLLM's and RouterBench's figures for one gain head.

    Args:
        outcomes: questions with both scores.
        model: compiled weights.
        head: place of the gain head.
        ratio: price of a large call in small ones.

    Raises:
        EvalError: the two models are equally good on these rows.
    """
    gains = [read_gains(model, read_features(peel_text(row.prompt))).gains[head] for row in outcomes]
    small, large = [row.small for row in outcomes], [row.large for row in outcomes]
    try:
        points = recovered(gains, small, large)
        low, high = sum(small) / len(small), sum(large) / len(large)
        curve = tuple((i / (len(points) - 1), low + point * (high - low)) for i, point in enumerate(points))
        return Evaluation(
            len(outcomes),
            low,
            high,
            apgr_interval(gains, small, large),
            cpt(gains, small, large, 0.5),
            cpt(gains, small, large, 0.8),
            aiq([(1 + share * (ratio - 1), quality) for share, quality in curve]),
            curve,
        )
    except ValueError as error:
        raise EvalError(str(error)) from None


def draw_curve(evaluation: Evaluation, width: int = 50) -> list[str]:
    """The cost-quality curve as lines of text: share to the large model, mean quality, a bar between the two models."""
    qualities = [quality for _, quality in evaluation.curve]
    low, high = min(qualities), max(qualities)
    span = (high - low) or 1.0
    return [f"{share:5.0%}  {quality:.3f}  {'#' * round((quality - low) / span * width)}" for share, quality in evaluation.curve]


def compare(path: Path) -> tuple[list[Side], list[tuple[str, str, Interval]]]:
    """The sides of an experiment from rated requests: JSON lines or CSV with `variant` and `score`.

    Returns:
        The sides by name, and for each pair (first against another) the difference with its 95 % interval.

    Raises:
        EvalError: the file cannot be used.
    """
    scores: dict[str, list[float]] = {}
    for where, row in read_rows(path):
        variant, score = row.get("variant"), row.get("score")
        if not isinstance(variant, str) or score is None:
            raise EvalError(f"{where}: a row needs variant and score")
        scores.setdefault(variant, []).append(read_score(score, "score", where))
    if not scores:
        raise EvalError(f"{path}: there are no rows")
    names = sorted(scores)
    sides = [Side(name, len(scores[name]), mean_interval(scores[name])) for name in names]
    return sides, [(names[0], other, difference_interval(scores[names[0]], scores[other])) for other in names[1:]]
