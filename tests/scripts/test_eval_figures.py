"""Every figure of `tidegate eval`, on a CSV and on the router's own log, against computations of another kind.

Here a router's curve comes from thresholds on its scores, as in RouteLLM's evaluation, the areas from numpy, and the hull from
trying every pair of settings; nothing of `tidegate.curves` is used.
"""

from __future__ import annotations

import csv
import random
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tidegate.cli import app
from tidegate.curves import aiq, apgr, cpt
from typer.testing import CliRunner

from router.complexity.compile import load_model
from router.complexity.features import read_features
from router.complexity.model import read_gains
from router.complexity.weights import DEFAULT
from router.ledger import records
from router.ledger.checkpoint import Signer
from router.ledger.log import AuditLog
from router.ledger.store import LogStore
from router.ledger.writer import LogWriter
from tests.scripts.planted import EASY, HARD, PLAIN
from tests.scripts.test_eval_experiments import receipt

RATIO = 7.0


def thresholds_curve(scores: np.ndarray, small: np.ndarray, large: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Share to the large model and mean quality, where everything at or above each tenth's threshold goes up."""
    cuts = [np.inf, *(np.sort(scores)[len(scores) - count] for count in (len(scores) * np.arange(1, 11) / 10).astype(int))]
    up = [scores >= cut for cut in cuts]
    return np.array([one.mean() for one in up]), np.array([np.where(one, large, small).mean() for one in up])


def expected(scores: np.ndarray, small: np.ndarray, large: np.ndarray) -> dict[str, float]:
    share, quality = thresholds_curve(scores, small, large)
    gap = (quality - small.mean()) / (large.mean() - small.mean())
    assert (np.diff(gap) > 0).all(), "np.interp, which RouteLLM uses, has no meaning on other curves"
    return {
        "small": small.mean(),
        "large": large.mean(),
        "apgr": np.trapezoid(gap, share),
        "cpt50": 100 * np.interp(0.5, gap, share),
        "cpt80": 100 * np.interp(0.8, gap, share),
        "aiq": tried_hull_area(np.array([1 + one * (RATIO - 1) for one in share]), quality),
    }


def tried_hull_area(costs: np.ndarray, quality: np.ndarray) -> float:
    """Mean over costs, on a fine grid, of the best quality that a mixture of any two settings reaches for at most that cost."""
    grid = np.linspace(costs.min(), costs.max(), 2001)
    best = np.array([quality[costs <= cost].max() for cost in grid])
    for a in range(len(costs)):
        for b in range(len(costs)):
            if costs[a] < costs[b]:
                part = (grid - costs[a]) / (costs[b] - costs[a])
                inside = (part >= 0) & (part <= 1)
                best[inside] = np.maximum(best[inside], (quality[a] + part * (quality[b] - quality[a]))[inside])
    best = np.maximum.accumulate(best)
    return float(np.trapezoid(best, grid) / (grid[-1] - grid[0]))


_PATTERNS = {
    "small": r"small ([\d.]+)",
    "large": r"large ([\d.]+)",
    "apgr": r"APGR +([-\d.]+)",
    "cpt50": r"CPT\(50%\) +([\d.]+)",
    "cpt80": r"CPT\(80%\) ([\d.]+)",
    "aiq": r"AIQ +([\d.]+)",
    "low": r"APGR +[-\d.]+ \[([-\d.]+)",
    "high": r"APGR.*?, ([-\d.]+)\]",
}


def figures_in(output: str) -> dict[str, float]:
    found = {}
    for name, pattern in _PATTERNS.items():
        match = re.search(pattern, output)
        assert match is not None, output
        found[name] = float(match[1])
    return found


def check(output: str, scores: np.ndarray, small: np.ndarray, large: np.ndarray) -> None:
    wanted, found = expected(scores, small, large), figures_in(output)
    for name, value in wanted.items():
        assert found[name] == pytest.approx(value, abs=0.051 if name.startswith("cpt") else 0.00051), (name, found, wanted)
    assert found["low"] < found["apgr"] < found["high"] < found["low"] + 0.5
    rows = [line.split() for line in output.splitlines() if re.match(r" +\d+%", line)]
    share, quality = thresholds_curve(scores, small, large)
    assert [float(row[0].rstrip("%")) / 100 for row in rows] == pytest.approx(list(share))
    assert [float(row[1]) for row in rows] == pytest.approx(list(1 + share * (RATIO - 1)), abs=0.0051)
    assert [float(row[2]) for row in rows] == pytest.approx(list(quality), abs=0.00051)


def sampled(gain: float, dice: random.Random) -> tuple[float, float]:
    """Scores of which the large model's are better the more it was expected."""
    small = dice.choice([0.0, 0.25, 0.5])
    return small, min(1.0, small + dice.choice([0.0, 0.5]) + (0.5 if dice.random() < 0.2 + 2 * gain else 0.0))


def test_a_csv_has_the_figures_that_its_definitions_give(tmp_path):
    dice, model = random.Random(3), load_model(DEFAULT)
    texts = [" ".join(dice.sample(dice.choice([EASY, HARD]), 4) + dice.sample(PLAIN, 7) + [f"no{i}"]) for i in range(1000)]
    scores = np.array([read_gains(model, read_features(text)).gains[0] for text in texts])
    chosen = np.sort(np.unique(scores, return_index=True)[1])[:900]  # equal scores would have to be drawn lots for
    texts, scores = [texts[place] for place in chosen], scores[chosen]
    ranks = scores.argsort().argsort() / len(scores)
    outcomes = np.array([sampled(0.4 * rank, dice) for rank in ranks])
    path = tmp_path / "outcomes.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(
            [("prompt", "small", "large"), *((t, a, b) for t, (a, b) in zip(texts, outcomes, strict=True))]
        )
    plot = tmp_path / "curve.svg"
    shown = CliRunner().invoke(app, ["eval", "outcomes", str(path), "--ratio", str(RATIO), "--plot", str(plot)])
    assert shown.exit_code == 0, shown.output
    check(shown.output, scores, outcomes[:, 0], outcomes[:, 1])
    check_plot(plot, scores, outcomes[:, 0], outcomes[:, 1])


def check_plot(plot: Path, scores: np.ndarray, small: np.ndarray, large: np.ndarray) -> None:
    """The eleven marks stand where the curve's points do, on linear axes."""
    drawing = ET.fromstring(plot.read_text())
    marks = [(float(mark.get("cx")), float(mark.get("cy"))) for mark in drawing.iter("{http://www.w3.org/2000/svg}circle")]
    share, quality = thresholds_curve(scores, small, large)
    assert len(marks) == 11
    for axis, values, tolerance in ((0, share, 0.002), (1, quality, 0.002)):
        drawn = np.array([mark[axis] for mark in marks])
        slope, start = np.polyfit(values, drawn, 1)
        assert np.abs(drawn - (start + slope * values)).max() < tolerance * abs(slope)
        assert (slope > 0) == (axis == 0)


def test_the_routers_own_log_has_the_same(tmp_path):
    dice = random.Random(4)
    log = AuditLog(LogWriter(LogStore(tmp_path / "log", Signer(bytes(32))), window_s=0.01), str)
    gains, pairs = [], []
    for number in range(400):
        gain = round(dice.uniform(0, 0.4), 6)
        small, large = sampled(gain, dice)
        log.ended(receipt(f"r{number}", complexity_gain=gain))
        if number % 4 == 3:
            kind = {"by": "", "why": "nothing tells which is better"}
        else:
            kind = {"by": "judge", "small": small, "large": large}
            gains.append(gain)
            pairs.append((small, large))
        log.event(records.LABEL, f"r{number}", {"small_model": "s", "large_model": "l", **kind})
    log.ended(receipt("own", mode="label"))
    log.event(records.LABEL, "unknown", {"small_model": "s", "large_model": "l", "by": "judge", "small": 1.0, "large": 0.0})
    log.close()
    shown = CliRunner().invoke(app, ["eval", "log", "--dir", str(tmp_path / "log"), "--ratio", str(RATIO)])
    assert shown.exit_code == 0 and "rows           300;" in shown.output, shown.output
    small, large = np.array(pairs).T
    check(shown.output, np.array(gains), small, large)


def test_a_log_without_labels_and_a_drawing_of_another_kind_are_refused(tmp_path):
    log = AuditLog(LogWriter(LogStore(tmp_path / "log", Signer(bytes(32))), window_s=0.01), str)
    log.ended(receipt("a"))
    log.close()
    shown = CliRunner().invoke(app, ["eval", "log", "--dir", str(tmp_path / "log")])
    assert shown.exit_code == 1 and "became a label" in shown.stderr
    path = tmp_path / "o.csv"
    path.write_text("prompt,small,large\nx,0,1\ny,0,0.5\n")
    shown = CliRunner().invoke(app, ["eval", "outcomes", str(path), "--plot", str(tmp_path / "curve.gif")])
    assert shown.exit_code == 1 and "must end in .svg" in shown.stderr
    equal = tmp_path / "equal.csv"
    equal.write_text("prompt,small,large\nx,0,1\ny,1,0\n")
    assert "no gap to recover" in CliRunner().invoke(app, ["eval", "outcomes", str(equal)]).stderr


POINTS = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 10)), min_size=2, max_size=12)


@settings(max_examples=150, deadline=None)
@given(POINTS)
def test_aiq_is_the_hull_of_all_mixtures(points):
    costs, quality = np.array(points, float).T
    if costs.min() == costs.max():
        with pytest.raises(ValueError, match="different cost"):
            aiq(points)
        return
    assert aiq([(float(c), float(q)) for c, q in points]) == pytest.approx(tried_hull_area(costs, quality), abs=0.02)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=20, max_size=20), st.integers(0, 10**6))
def test_apgr_and_cpt_are_their_definitions_on_any_rows(pairs, seed):
    small, large = np.array(pairs, float).T / 4
    scores = np.random.default_rng(seed).permutation(20).astype(float)
    if abs(large.sum() - small.sum()) < 1e-9:
        return
    share, quality = thresholds_curve(scores, small, large)
    gap = (quality - small.mean()) / (large.mean() - small.mean())
    assert apgr(list(scores), list(small), list(large)) == pytest.approx(np.trapezoid(gap, share))
    fine = np.linspace(0, 1, 100_001)
    reached = fine[np.interp(fine, share, gap) >= 0.5 - 1e-12]
    assert cpt(list(scores), list(small), list(large), 0.5) == pytest.approx(100 * reached[0], abs=0.002)
