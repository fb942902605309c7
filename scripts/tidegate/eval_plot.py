"""The cost-quality curve as a drawing: SVG that any browser shows, written without a plotting library."""

from __future__ import annotations

from pathlib import Path

from tidegate.curves import non_decreasing_hull
from tidegate.eval import Evaluation
from tidegate.outcome_file import EvalError

_WIDTH, _HEIGHT, _EDGE = 640, 420, 60
_TICKS = 5


def draw(evaluation: Evaluation, path: Path) -> None:
    """Write the drawing.

    Raises:
        EvalError: the name does not end in .svg, or the file cannot be written.
    """
    if path.suffix.lower() != ".svg":
        raise EvalError(f"--plot {path}: the name must end in .svg")
    try:
        path.write_text(svg_of(evaluation), encoding="utf-8")
    except OSError as error:
        raise EvalError(f"--plot {path}: {error.strerror}") from None


def svg_of(evaluation: Evaluation) -> str:
    """Cost against quality: the router's curve with a mark per tenth of the requests, its hull, and drawing lots."""
    points = [(cost, quality) for _, cost, quality in evaluation.curve]
    left, right = points[0][0], points[-1][0]
    low, high = min(quality for _, quality in points), max(quality for _, quality in points)
    span = (high - low) or 1.0
    wide = (right - left) or 1.0

    def place(point: tuple[float, float]) -> str:
        x = _EDGE + (point[0] - left) / wide * (_WIDTH - 2 * _EDGE)
        y = _HEIGHT - _EDGE - (point[1] - low) / span * (_HEIGHT - 2 * _EDGE)
        return f"{x:.1f},{y:.1f}"

    hull = non_decreasing_hull(points)
    hull = [*hull, (right, hull[-1][1])] if hull[-1][0] < right else hull
    lines = (
        ("#bbb", "4 4", [points[0], points[-1]]),
        ("#c60", "2 3", hull),
        ("#06c", "none", points),
    )
    shapes = []
    for colour, dash, line in lines:
        way = " ".join(map(place, line))
        shapes.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}" points="{way}"/>')
    for point in points:
        x, y = place(point).split(",")
        shapes.append(f'<circle cx="{x}" cy="{y}" r="3" fill="#06c"/>')
    for tick in range(_TICKS + 1):
        cost, quality = left + wide * tick / _TICKS, low + span * tick / _TICKS
        x, y = place((cost, low)).split(",")[0], place((left, quality)).split(",")[1]
        shapes.append(f'<text x="{x}" y="{_HEIGHT - _EDGE + 20}" text-anchor="middle">{cost:.2f}</text>')
        shapes.append(f'<text x="{_EDGE - 8}" y="{y}" text-anchor="end">{quality:.3f}</text>')
    title = f"APGR {evaluation.apgr.value:.3f}, AIQ {evaluation.aiq:.3f}, {evaluation.rows} rows"
    shapes.append(f'<text x="{_WIDTH / 2}" y="24" text-anchor="middle">{title}</text>')
    shapes.append(f'<text x="{_WIDTH / 2}" y="{_HEIGHT - 12}" text-anchor="middle">mean cost, in calls of the small model</text>')
    shapes.append(f'<text x="12" y="{_EDGE - 20}">quality (blue: router, orange: its hull, grey: lots)</text>')
    size = f'width="{_WIDTH}" height="{_HEIGHT}" viewBox="0 0 {_WIDTH} {_HEIGHT}"'
    body = "\n".join(shapes)
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">\n{body}\n</svg>\n'
