"""The commands `tidegate eval outcomes`, `log` and `report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from router.ledger import records
from router.ledger.reader import merged
from router.ledger.records import RecordError
from router.ledger.tiles import TileError
from tidegate import eval as evaluation
from tidegate.audit import DirOption, SinceOption, open_logs, span
from tidegate.curves import Interval, mean_interval, share_interval
from tidegate.eval_experiments import REST, compare_arms, read_experiments
from tidegate.eval_labels import lines_about, read_story
from tidegate.eval_plot import draw
from tidegate.outcome_file import EvalError, read_outcomes
from tidegate.terminal import Console

_OF_INTEREST = {records.END, records.FEEDBACK, records.SHADOW, records.LABEL, records.REFIT, records.WEIGHTS}

RatioOption = Annotated[float, typer.Option(min=1, help="Price of a large call in small ones.")]
PlotOption = Annotated[Path | None, typer.Option(help="Draw cost and quality there (.svg).")]

app = typer.Typer(help="Evaluate the choice of models on outcomes.", no_args_is_help=True)
console = Console(soft_wrap=True, highlight=False, markup=False)
errors = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)


@app.command()
def outcomes(
    file: Annotated[Path, typer.Argument(help="CSV or JSON lines: prompt, small, large (scores 0..1).")],
    weights: Annotated[
        Path | None, typer.Option(help="Weights from scripts/train/complexity; default: the shipped ones.")
    ] = None,
    head: Annotated[str | None, typer.Option(help="Which gain of the weights; default: the first.")] = None,
    ratio: RatioOption = 10.0,
    plot: PlotOption = None,
) -> None:
    """RouteLLM's APGR and CPT, RouterBench's AIQ, and the cost-quality curve of the router on outcome data."""
    try:
        model = evaluation.load_weights(weights)
        names = [gain.name for gain in model.gains]
        if head is not None and head not in names:
            raise EvalError(f"no gain `{head}` in the weights; there are {', '.join(names)}")
        found = evaluation.evaluate(read_outcomes(file), model, names.index(head) if head else 0, ratio)
    except EvalError as error:
        errors.print(f"error: {error}")
        raise typer.Exit(1) from None
    _print(found, plot)


@app.command("log")
def log_(
    directory: DirOption = None,
    since: SinceOption = "",
    ratio: RatioOption = 10.0,
    plot: PlotOption = None,
) -> None:
    """The same figures for the router as it ran: what it expected of each request that became a label, from the audit log."""
    start, _ = span(since, "")
    try:
        entries = (record for _, record in merged(open_logs(directory)) if record.e in (records.END, records.LABEL))
        gains, small, large = evaluation.read_log(entries, start)
        if not gains:
            raise EvalError("no request in this log became a label: see `labels` under `complexity:`")
        found = evaluation.figures(gains, small, large, ratio)
    except (TileError, RecordError) as error:
        errors.print(f"error: the log is damaged: {error}")
        raise typer.Exit(1) from None
    except EvalError as error:
        errors.print(f"error: {error}")
        raise typer.Exit(1) from None
    _print(found, plot)


def _print(found: evaluation.Evaluation, plot: Path | None) -> None:
    for line in evaluation.lines_of(found):
        console.print(line)
    if plot is None:
        return
    try:
        draw(found, plot)
    except EvalError as error:
        errors.print(f"error: {error}")
        raise typer.Exit(1) from None


@app.command()
def report(
    file: Annotated[Path | None, typer.Argument(help="CSV or JSON lines: variant, score (0..1). Default: the audit log.")] = None,
    directory: DirOption = None,
    since: SinceOption = "",
) -> None:
    """The sides of A/B and shadow experiments with 95 % intervals, and every step of the label loop and its refits.

    A difference counts when its interval leaves out zero.
    """
    if file is None:
        _report_log(directory, since)
        return
    try:
        sides, differences = evaluation.compare(file)
    except EvalError as error:
        errors.print(f"error: {error}")
        raise typer.Exit(1) from None
    for side in sides:
        console.print(f"{side.name:20} {side.rows:6} rows  {side.score.value:.3f} [{side.score.low:.3f}, {side.score.high:.3f}]")
    for first, other, gap in differences:
        console.print(f"{other} less {first}: {_said(gap)}: {_verdict(gap)}")


def _report_log(directory: Path | None, since: str) -> None:
    start, _ = span(since, "")
    try:
        entries = [record for _, record in merged(open_logs(directory)) if record.e in _OF_INTEREST]
        arms, shadows = read_experiments(entries, start)
        story = read_story(entries, start)
    except (TileError, RecordError) as error:
        errors.print(f"error: the log is damaged: {error}")
        raise typer.Exit(1) from None
    for name, lines in compare_arms(arms).items():
        console.print(f"{name}: {arms[name].requests} requests")
        for line in lines:
            gap = "" if line.difference is None else f"   {_said(line.difference)} against {REST}"
            console.print(f"  {line.figure:10} {line.value.value:9.3f} [{line.value.low:.3f}, {line.value.high:.3f}]{gap}")
    for name, seen in sorted(shadows.items()):
        console.print(f"shadow {name}: looked at {seen.looked} requests, would have chosen otherwise for {seen.differs}")
        if seen.agrees:
            console.print(f"  same answer  {_said(share_interval(seen.agrees))}")
        for what, values in (("USD", seen.usd), ("seconds", seen.seconds)):
            if values:
                console.print(f"  {what} more   {_said(mean_interval(values))}")
    for line in lines_about(story):
        console.print(line)
    if not set(arms) - {REST} and not shadows and story.empty:
        console.print("no experiment is in this log: see `experiments` under `complexity:`")


def _said(gap: Interval) -> str:
    return f"{gap.value:+.4g} [{gap.low:+.4g}, {gap.high:+.4g}]"


def _verdict(gap: Interval) -> str:
    return "better" if gap.low > 0 else "worse" if gap.high < 0 else "no clear difference"
