"""How good a router is on outcome data, in the definitions of RouteLLM (arXiv 2406.18665) and RouterBench (arXiv 2403.12031).

A row is a question with the score of a small and of a large model; a router gives each row a number, and the rows with the
highest numbers go to the large model. Sweeping the share gives a curve; 0 is the small model alone and 1 the large one alone.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

BINS = 10
"""RouteLLM evaluates ten quantiles of the router's scores."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


def recovered(scores: Sequence[float], small: Sequence[float], large: Sequence[float], bins: int = BINS) -> list[float]:
    """Share of the quality gap that is recovered at 0, 1/bins, ..., 1 of the rows sent to the large model.

    Rows with equal numbers are taken in a fixed random order, never in the order of the file.

    Raises:
        ValueError: lengths differ, there are no rows, or the two models are equally good.
    """
    if not len(scores) == len(small) == len(large) or not len(scores):
        raise ValueError("scores, small and large need one entry for each of at least one row")
    return _curve([large[row] - small[row] for row in _order(scores)], bins)


def _order(scores: Sequence[float]) -> list[int]:
    """Rows by falling number; equal ones in a fixed random order."""
    order = list(range(len(scores)))
    random.Random(0).shuffle(order)
    order.sort(key=lambda row: -scores[row])
    return order


def _curve(gains: Sequence[float], bins: int) -> list[float]:
    gap = sum(gains)
    if abs(gap) < 1e-12:
        raise ValueError("the two models are equally good on these rows: there is no gap to recover")
    points, done, sofar = [0.0], 0, 0.0
    for place in range(1, bins + 1):
        end = round(place * len(gains) / bins)
        sofar += sum(gains[done:end])
        done = end
        points.append(sofar / gap)
    return points


def apgr(scores: Sequence[float], small: Sequence[float], large: Sequence[float]) -> float:
    """Average performance gap recovered: the area under the curve, 0.5 for a router that guesses."""
    return _area(recovered(scores, small, large))


def _area(points: Sequence[float]) -> float:
    width = 1.0 / (len(points) - 1)
    return sum((a + b) / 2 * width for a, b in pairwise(points))


def cpt(scores: Sequence[float], small: Sequence[float], large: Sequence[float], share: float) -> float:
    """Call-performance threshold: the percentage of calls to the large model that recovers `share` of the gap.

    Linear between the ten quantiles; 100 where the curve never gets there.
    """
    points = recovered(scores, small, large)
    for place, (a, b) in enumerate(pairwise(points)):
        if a < share <= b:
            return 100.0 * (place + (share - a) / (b - a)) / (len(points) - 1)
    return 100.0


def apgr_interval(
    scores: Sequence[float], small: Sequence[float], large: Sequence[float], draws: int = 200, seed: int = 0
) -> Interval:
    """APGR with a percentile bootstrap over rows."""
    dice = random.Random(seed)
    gains = [large[row] - small[row] for row in _order(scores)]
    found = []
    for _ in range(draws):
        rows = sorted(dice.choices(range(len(gains)), k=len(gains)))
        try:
            found.append(_area(_curve([gains[row] for row in rows], BINS)))
        except ValueError:
            continue
    found.sort()
    value = apgr(scores, small, large)
    if not found:
        return Interval(value, value, value)
    return Interval(value, found[int(0.025 * len(found))], found[min(len(found) - 1, int(0.975 * len(found)))])


def aiq(points: Sequence[tuple[float, float]]) -> float:
    """RouterBench's average improvement in quality: mean height of the non-decreasing convex hull over the range of costs.

    Args:
        points: (cost, quality) of each setting of the router, any order.

    Raises:
        ValueError: fewer than two different costs.
    """
    hull = non_decreasing_hull(points)
    low, high = min(cost for cost, _ in points), max(cost for cost, _ in points)
    if high <= low:
        raise ValueError("AIQ needs settings of different cost")
    if hull[-1][0] < high:
        hull.append((high, hull[-1][1]))
    area = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(hull))
    return area / (high - low)


def non_decreasing_hull(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The upper hull of (cost, quality) that never falls: what mixing the settings can reach."""
    hull: list[tuple[float, float]] = []
    for point in sorted(set(points), key=lambda p: (p[0], -p[1])):
        if hull and point[1] <= hull[-1][1]:
            continue
        if hull and point[0] == hull[-1][0]:
            continue
        while len(hull) >= 2 and _turns_up(hull[-2], hull[-1], point):
            hull.pop()
        hull.append(point)
    return hull


def _turns_up(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> bool:
    return (b[1] - a[1]) * (c[0] - a[0]) <= (c[1] - a[1]) * (b[0] - a[0])


def mean_interval(values: Sequence[float]) -> Interval:
    """A mean with its 95 % interval (normal approximation; one value has no width)."""
    count = len(values)
    if not count:
        raise ValueError("a mean needs at least one value")
    mean = sum(values) / count
    if count == 1:
        return Interval(mean, mean, mean)
    spread = sum((value - mean) ** 2 for value in values) / (count - 1)
    half = 1.96 * (spread / count) ** 0.5
    return Interval(mean, mean - half, mean + half)


def share_interval(values: Sequence[float]) -> Interval:
    """A share of ones among zeros and ones with its 95 % interval (Wilson 1927): it has a width even where all are alike."""
    count = len(values)
    if not count:
        raise ValueError("a share needs at least one value")
    share, z = sum(values) / count, 1.96
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * (share * (1 - share) / count + z * z / (4 * count * count)) ** 0.5
    return Interval(share, max(0.0, middle - half), min(1.0, middle + half))


def interval_between(first: Interval, second: Interval) -> Interval:
    """Second less first, for two separate samples with their own intervals (square and add: Newcombe 1998)."""
    value = second.value - first.value
    low = ((second.value - second.low) ** 2 + (first.high - first.value) ** 2) ** 0.5
    high = ((second.high - second.value) ** 2 + (first.value - first.low) ** 2) ** 0.5
    return Interval(value, value - low, value + high)


def difference_interval(a: Sequence[float], b: Sequence[float]) -> Interval:
    """Mean of `b` less mean of `a` with Welch's 95 % interval, for two separate samples."""
    first, second = mean_interval(a), mean_interval(b)
    half = ((first.high - first.value) ** 2 + (second.high - second.value) ** 2) ** 0.5
    value = second.value - first.value
    return Interval(value, value - half, value + half)
