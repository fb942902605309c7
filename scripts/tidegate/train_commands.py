"""The commands `tidegate train import`, `refit` and `rollback`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, NoReturn

import msgspec
import typer

from router.config import Config, ConfigError, load_file
from router.ledger import records
from tidegate import train
from tidegate.home import DEFAULT_CONFIG, find_home
from tidegate.outcome_file import EvalError
from tidegate.promotion import KEEP, PROMOTE, Refit
from tidegate.recorded import NotRecorded, operator, record
from tidegate.terminal import Console

app = typer.Typer(help="Learn from labels which requests need the large model.", no_args_is_help=True)
console = Console(soft_wrap=True, highlight=False, markup=False)
errors = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
ConfigOption = Annotated[Path | None, typer.Option("--config", help=f"The configuration; default: {DEFAULT_CONFIG}.")]


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="CSV or JSON lines: prompt, small, large (scores 0..1).")],
    config: ConfigOption = None,
) -> None:
    """Add outcomes of your own to the labels; of the prompts, hashed features are kept."""
    home, read = find_home(), _config(config)
    try:
        count = train.import_file(read, home.root, file, time.time())
    except (train.TrainError, EvalError) as error:
        _fail(str(error))
    except OSError as error:
        _fail(f"{error.filename}: {error.strerror}")
    console.print(f"{count} rows are labels now, in {train.labels_of(read).dir}")


@app.command()
def refit(
    config: ConfigOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and leave everything as it is.")] = False,
) -> None:
    """Fit on the labels, compare with the weights in use, and promote what is better beyond chance. For a nightly timer."""
    home, read = find_home(), _config(config)
    try:
        found, left_out = train.refit(read, home.root, time.time(), dry=dry_run)
    except train.TrainError as error:
        _fail(str(error))
    for why, count in left_out.items():
        console.print(f"left out       {count} labels {why}")
    for line in lines_of(found):
        console.print(line)
    if not dry_run:
        _record(read, found)


@app.command()
def rollback(config: ConfigOption = None) -> None:
    """Put the weights back in use that the last promotion replaced."""
    home, read = find_home(), _config(config)
    try:
        done = train.roll_back(read, home.root)
    except train.TrainError as error:
        _fail(str(error))
    console.print(f"weights {done.champion} are in use again, in place of {done.challenger}")
    _record(read, done)


def lines_of(found: Refit) -> list[str]:
    """A refit in words."""
    lines = [
        f"labels         {found.labels}; {found.questions} questions, {found.trained} to learn from, {found.held_out} held out"
    ]
    if found.outcome not in (PROMOTE, KEEP):
        return [
            *lines,
            f"{found.outcome}: {found.why}" if found.why else f"{found.outcome}: {found.champion} for {found.challenger}",
        ]
    interval = f"[{found.low:+.4f}, {found.high:+.4f}] ({1 - found.alpha:.1%})"
    return [
        *lines,
        f"champion       {found.champion}: {found.champion_quality:+.4f} points over all shares",
        f"challenger     {found.challenger}: {found.challenger_quality:+.4f}",
        f"difference     {found.difference:+.4f} {interval}, look {found.look}",
        f"{found.outcome}: {found.challenger if found.outcome == PROMOTE else found.champion}",
    ]


def _record(config: Config, found: Refit) -> None:
    try:
        record(find_home(), config, records.REFIT, found.challenger or found.champion, {
            **msgspec.to_builtins(found), "by": operator(),
        })  # fmt: skip
    except NotRecorded as error:
        _fail(f"done, but not recorded: {error}")


def _config(path: Path | None) -> Config:
    try:
        return load_file(path or find_home().root / DEFAULT_CONFIG)
    except ConfigError as error:
        _fail(str(error))


def _fail(text: str) -> NoReturn:
    errors.print(f"error: {text}")
    raise typer.Exit(1)
