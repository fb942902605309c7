"""`tidegate policy ...`: what a new policy would let through that the old one does not, and the signatures for that."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from router.config import Config, ConfigError, parse_config, read_layers
from router.ledger.policies import compile_without_keys
from router.policy_source import merge, read_configured, read_policy_file
from router.residency.relaxing import compare
from tidegate.home import DEFAULT_CONFIG, find_home
from tidegate.terminal import Console

app = typer.Typer(help="Compare policies, and sign for a wider one.", no_args_is_help=True)
console = Console(soft_wrap=True, highlight=False, markup=False)
errors = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)

ConfigOption = Annotated[Path | None, typer.Option("--config", help=f"The configuration that runs; default: {DEFAULT_CONFIG}.")]


@app.command()
def diff(
    new: Annotated[Path, typer.Argument(help="Another configuration, or a policy file for the one that runs.")],
    config: ConfigOption = None,
) -> None:
    """Print what NEW lets go further (+) and what it stops (-). Exit code 1 when anything goes further, 2 for bad input."""
    old = config or find_home().root / DEFAULT_CONFIG
    try:
        before, after = read_configured(old, find_home().root), _other(old, new)
        change = compare((before, compile_without_keys(before)), (after, compile_without_keys(after)), time.time())
    except ConfigError as error:
        _fail(str(error), 2)
    for sign, lines in (("+", change.wider), ("-", change.narrower)):
        for line in lines:
            console.print(f"{sign} {line}")
    if change.wider:
        raise typer.Exit(1)


@app.command()
def approve(
    before: Annotated[str, typer.Option(help="The digest of the policy that runs, from the router's log.")],
    after: Annotated[str, typer.Option(help="The digest of the policy that was refused, from the same line.")],
    reason: Annotated[str, typer.Option(help="Why; the same for all who sign.")],
    approver: Annotated[str, typer.Option("--as", help="Your name under `break_glass.approvers`.")],
    private_key: Annotated[Path, typer.Option("--private-key", help="Your private key.")],
    config: ConfigOption = None,
) -> None:
    """Sign that a wider policy may replace the one that runs. With the last signature routers take it within a second."""
    from tidegate.breakglass import BreakGlassFile, GlassError

    try:
        signed, required = BreakGlassFile(find_home(), config).approve_policy(before, after, reason, approver, private_key)
    except (GlassError, OSError) as error:
        _fail(str(error), 1)
    console.print(f"signed: {signed} of {required}" + ("; routers may take it" if signed >= required else ""))


def _other(old: Path, new: Path) -> Config:
    try:
        part = read_policy_file(new)
    except ConfigError:
        return read_configured(new, find_home().root)
    args, upper = read_layers(old)
    return parse_config(merge(merge(args, part, str(new)), upper, "user_config"), str(new))


def _fail(text: str, code: int) -> NoReturn:
    errors.print(f"error: {text}")
    raise typer.Exit(code)
