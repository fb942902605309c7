"""`tidegate eval`: how good the router is on outcome data, and which side of an experiment did better; with intervals."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from router.complexity.compile import load_model
from router.complexity.features import read_features
from router.complexity.model import Model, read_gains
from router.complexity.peel import peel_text
from router.complexity.weights import DEFAULT, WeightsError
from tidegate.curves import Interval, aiq, apgr_interval, cpt, difference_interval, mean_interval, recovered

_FIELDS = ("prompt", "small", "large")


class EvalError(ValueError):
    """The data cannot be evaluated; the text says which file and line."""


@dataclass(frozen=True)
class Outcome:
    """One question with both scores, 0..1."""

    prompt: str
    small: float
    large: float


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


def read_outcomes(path: Path) -> list[Outcome]:
    """Rows of a CSV or of JSON lines with `prompt`, `small`, `large` (or `weak_correct`, `strong_correct`).

    Raises:
        EvalError: the file cannot be read, a column is missing, or a score is no number in 0..1.
    """
    outcomes = []
    for number, row in _rows(path):
        prompt = row.get("prompt")
        small, large = row.get("small", row.get("weak_correct")), row.get("large", row.get("strong_correct"))
        if not isinstance(prompt, str) or small is None or large is None:
            raise EvalError(f"{path}:{number}: a row needs {', '.join(_FIELDS)}")
        outcomes.append(Outcome(prompt, _score(small, path, number), _score(large, path, number)))
    if not outcomes:
        raise EvalError(f"{path}: there are no rows")
    return outcomes


def _rows(path: Path) -> Iterable[tuple[int, dict[str, object]]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise EvalError(f"{path}: cannot be read ({type(error).__name__})") from None
    if path.suffix == ".csv":
        yield from enumerate(csv.DictReader(text.splitlines(keepends=True)), 2)
        return
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            raise EvalError(f"{path}:{number}: this line is no JSON") from None
        if not isinstance(row, dict):
            raise EvalError(f"{path}:{number}: this line is no JSON object")
        yield number, row


def _score(value: object, path: Path, number: int) -> float:
    try:
        score = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise EvalError(f"{path}:{number}: a score is a number from 0 to 1") from None
    if not 0 <= score <= 1:
        raise EvalError(f"{path}:{number}: a score is a number from 0 to 1")
    return score


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
    for number, row in _rows(path):
        variant, score = row.get("variant"), row.get("score")
        if not isinstance(variant, str) or score is None:
            raise EvalError(f"{path}:{number}: a row needs variant and score")
        scores.setdefault(variant, []).append(_score(score, path, number))
    if not scores:
        raise EvalError(f"{path}: there are no rows")
    names = sorted(scores)
    sides = [Side(name, len(scores[name]), mean_interval(scores[name])) for name in names]
    return sides, [(names[0], other, difference_interval(scores[names[0]], scores[other])) for other in names[1:]]
