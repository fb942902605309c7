"""`tidegate eval`: how good the router is on outcome data, and which side of an experiment did better; with intervals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from router.complexity.compile import load_model
from router.complexity.features import read_features
from router.complexity.model import Model, read_gains
from router.complexity.peel import peel_text
from router.complexity.weights import DEFAULT, WeightsError
from router.config import AUTO
from router.ledger import records
from tidegate.curves import Interval, aiq, apgr_interval, cpt, difference_interval, mean_interval, recovered
from tidegate.outcome_file import EvalError, Outcome, read_rows, read_score

_LABEL = "label"
"""The mode in the receipts of requests that only made labels."""


@dataclass(frozen=True)
class Evaluation:
    """The router on outcome data. `curve` has (share to large, mean cost in small calls, mean quality)."""

    rows: int
    small: float
    large: float
    apgr: Interval
    cpt50: float
    cpt80: float
    aiq: float
    curve: tuple[tuple[float, float, float], ...]


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
    return figures(gains, [row.small for row in outcomes], [row.large for row in outcomes], ratio)


def figures(gains: Sequence[float], small: Sequence[float], large: Sequence[float], ratio: float = 10.0) -> Evaluation:
    """The same from what a router expected of each row, and both scores.

    Raises:
        EvalError: there are no rows, or the two models are equally good on them.
    """
    try:
        points = recovered(gains, small, large)
        low, high = sum(small) / len(small), sum(large) / len(large)
        curve = tuple((i / (len(points) - 1), low + point * (high - low)) for i, point in enumerate(points))
        return Evaluation(
            len(gains),
            low,
            high,
            apgr_interval(gains, small, large),
            cpt(gains, small, large, 0.5),
            cpt(gains, small, large, 0.8),
            aiq([(1 + share * (ratio - 1), quality) for share, quality in curve]),
            tuple((share, 1 + share * (ratio - 1), quality) for share, quality in curve),
        )
    except ValueError as error:
        raise EvalError(str(error)) from None


def draw_curve(evaluation: Evaluation, width: int = 50) -> list[str]:
    """The cost-quality curve as lines of text: share to the large model, mean cost, mean quality, a bar."""
    qualities = [quality for _, _, quality in evaluation.curve]
    low, high = min(qualities), max(qualities)
    span = (high - low) or 1.0
    return [
        f"{share:7.0%}  {cost:5.2f}  {quality:7.3f}  {'#' * round((quality - low) / span * width)}"
        for share, cost, quality in evaluation.curve
    ]


def lines_of(evaluation: Evaluation) -> list[str]:
    """All figures in words."""
    area = evaluation.apgr
    return [
        f"rows           {evaluation.rows}; small {evaluation.small:.3f}, large {evaluation.large:.3f}",
        f"APGR           {area.value:.3f} [{area.low:.3f}, {area.high:.3f}], 0.5 is chance",
        f"CPT(50%)       {evaluation.cpt50:.1f} % of the calls to the large model; CPT(80%) {evaluation.cpt80:.1f} %",
        f"AIQ            {evaluation.aiq:.3f}",
        "to large   cost  quality",
        *draw_curve(evaluation),
    ]


def read_log(entries: Iterable[records.Record], since: float = 0.0) -> tuple[list[float], list[float], list[float]]:
    """What the router expected of the large model on each request that became a label, and what it came to: from its audit log.

    Args:
        entries: the records, in order.
        since: UNIX time in seconds from which on they count.

    Returns:
        The gains that were expected at the time, and the scores of the small and of the large model.
    """
    expected: dict[str, float] = {}
    gains, small, large = [], [], []
    for record in entries:
        if record.t < since:
            continue
        if record.e == records.END:
            data = records.read_data(record, records.EndData)
            if data.requested_model == AUTO and data.mode != _LABEL:
                expected[record.id] = data.score
        elif record.e == records.LABEL and record.id in expected:
            found = records.read_data(record)
            if found["by"]:
                gains.append(expected.pop(record.id))
                small.append(float(found["small"]))
                large.append(float(found["large"]))
    return gains, small, large


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
