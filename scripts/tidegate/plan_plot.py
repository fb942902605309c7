"""The planner's answer as a picture: what was tried, the first tokens of each class, and where each class was served."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tidegate.plan import Answer, Question, fleet_text
from tidegate.planfile import PlanError

_COLORS = ("#0b7285", "#e8590c", "#5f3dc4", "#2b8a3e", "#c2255c", "#846358", "#1864ab", "#868e96")


def check_plot(target: Path) -> None:
    """Refuse before anything is simulated what could not be drawn after it.

    Raises:
        PlanError: the file cannot be a picture.
    """
    if target.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise PlanError(f"--plot {target}: the name must end in .png, .svg or .pdf")
    if not target.parent.is_dir():
        raise PlanError(f"--plot {target}: there is no directory {target.parent}")


def draw(question: Question, answers: Sequence[Answer], target: Path) -> None:
    """Draw it.

    Args:
        question: what was asked.
        answers: all that were tried; the last is the final one.
        target: the file, by whose ending the format goes.

    Raises:
        OSError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    final = answers[-1]
    figure = Figure(figsize=(15.5, 4.6))
    tried, tokens, places = figure.subplots(1, 3)
    _draw_tried(tried, answers)
    _draw_first_tokens(tokens, question, final)
    _draw_places(places, question, final)
    for axis in (tried, tokens, places):
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{fleet_text(question, final.replicas)} (simulated engines)", fontsize=11)
    figure.tight_layout()
    figure.savefig(target, dpi=130)


def _draw_tried(axis: Any, answers: Sequence[Answer]) -> None:
    """Share within the limits, by the fleet's price."""
    steps = sorted({answer.replicas: answer for answer in answers}.values(), key=lambda answer: (answer.price, answer.replicas))
    for number, found in enumerate(answers[-1].classes):
        color = _COLORS[number % len(_COLORS)]
        shares = [100 * answer.classes[number].outcome.met for answer in steps]
        axis.plot([answer.price for answer in steps], shares, marker="o", color=color, label=found.name)
        axis.axhline(100 * found.goal, color=color, linestyle=":", linewidth=1)
    axis.axvline(answers[-1].price, color="#adb5bd", linewidth=1)
    axis.set_xlabel("price of the fleet")
    axis.set_title("requests within the limits, % (dotted: the goal)", fontsize=10)
    axis.legend(fontsize=8)


def _draw_first_tokens(axis: Any, question: Question, final: Answer) -> None:
    for number, found in enumerate(final.classes):
        color = _COLORS[number % len(_COLORS)]
        if found.first_tokens:
            axis.plot([max(1e-3, second) for second in found.first_tokens], range(101), color=color, label=found.name)
        axis.axvline(question.plan.classes[number].ttft_ms / 1e3, color=color, linestyle=":", linewidth=1)
    axis.set_xscale("log")
    axis.set_xlabel("seconds")
    axis.set_title("first token, % of requests (dotted: the limit)", fontsize=10)


def _draw_places(axis: Any, question: Question, final: Answer) -> None:
    names = [f"{found.name}\n({found.label})" for found in final.classes]
    base = [0.0] * len(names)
    for number, (zone, about) in enumerate(sorted(question.plan.zones.items())):
        shares = [100 * found.places.get(zone, 0.0) for found in final.classes]
        hatch = "//" if about.external else None
        axis.bar(names, shares, bottom=base, color=_COLORS[number % len(_COLORS)], hatch=hatch, label=zone)
        base = [low + share for low, share in zip(base, shares, strict=True)]
    axis.bar(names, [max(0.0, 100 - low) for low in base], bottom=base, color="#f1f3f5", label="refused")
    axis.set_title("answered in, % of requests (hatched: outside)", fontsize=10)
    axis.tick_params(axis="x", labelsize=8)
    axis.legend(fontsize=8)
