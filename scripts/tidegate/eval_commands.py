"""The commands `tidegate eval outcomes` and `tidegate eval report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tidegate import eval as evaluation

app = typer.Typer(help="Evaluate the choice of models on outcomes.", no_args_is_help=True)


@app.command()
def outcomes(
    file: Annotated[Path, typer.Argument(help="CSV or JSON lines: prompt, small, large (scores 0..1).")],
    weights: Annotated[
        Path | None, typer.Option(help="Weights from scripts/train/complexity; default: the shipped ones.")
    ] = None,
    head: Annotated[str | None, typer.Option(help="Which gain of the weights; default: the first.")] = None,
    ratio: Annotated[float, typer.Option(min=1, help="Price of a large call in small ones.")] = 10.0,
) -> None:
    """RouteLLM's APGR and CPT, RouterBench's AIQ, and the cost-quality curve of the router on outcome data."""
    try:
        model = evaluation.load_weights(weights)
        names = [gain.name for gain in model.gains]
        if head is not None and head not in names:
            raise evaluation.EvalError(f"no gain `{head}` in the weights; there are {', '.join(names)}")
        found = evaluation.evaluate(evaluation.read_outcomes(file), model, names.index(head) if head else 0, ratio)
    except evaluation.EvalError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    area = found.apgr
    typer.echo(f"rows           {found.rows}; small {found.small:.3f}, large {found.large:.3f}")
    typer.echo(f"APGR           {area.value:.3f} [{area.low:.3f}, {area.high:.3f}], 0.5 is chance")
    typer.echo(f"CPT(50%)       {found.cpt50:.1f} % of the calls to the large model; CPT(80%) {found.cpt80:.1f} %")
    typer.echo(f"AIQ            {found.aiq:.3f}")
    typer.echo("to large  quality")
    for line in evaluation.draw_curve(found):
        typer.echo(line)


@app.command()
def report(file: Annotated[Path, typer.Argument(help="CSV or JSON lines: variant, score (0..1).")]) -> None:
    """The sides of an A/B or shadow experiment with 95 % intervals; a difference counts when its interval leaves out zero."""
    try:
        sides, differences = evaluation.compare(file)
    except evaluation.EvalError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    for side in sides:
        typer.echo(f"{side.name:20} {side.rows:6} rows  {side.score.value:.3f} [{side.score.low:.3f}, {side.score.high:.3f}]")
    for first, other, gap in differences:
        verdict = "better" if gap.low > 0 else "worse" if gap.high < 0 else "no clear difference"
        typer.echo(f"{other} less {first}: {gap.value:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]: {verdict}")
