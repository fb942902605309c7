"""`tidegate breakglass ...`: the commands; `tidegate.breakglass` does the work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NoReturn

import msgspec
import typer

from tidegate.home import find_home
from tidegate.recorded import operator
from tidegate.terminal import Console

app = typer.Typer(help="Widen one key's ceiling for some hours, with the signatures of two people.", no_args_is_help=True)
console = Console(soft_wrap=True, highlight=False, markup=False)
errors = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)

ConfigOption = Annotated[Path | None, typer.Option("--config", help="The configuration that names the approvers.")]
RequestArgument = Annotated[str, typer.Argument(help="The request's id, or the path of its file.")]


@app.command()
def keygen(path: Annotated[Path, typer.Argument(help="Where the private key goes; it stays with its owner.")]) -> None:
    """Make an approver's key pair and print the public key, for `break_glass.approvers`."""
    from tidegate.breakglass import GlassError, make_key

    try:
        console.print(make_key(path))
    except (GlassError, OSError) as error:
        _fail(str(error))


@app.command()
def request(
    key: Annotated[str, typer.Option(help="The id of the key whose requests are to go further.")],
    tag: Annotated[list[str], typer.Option(help="What is added to its ceiling; of several, the meet.")],
    reason: Annotated[str, typer.Option(help="Why. It stands in the audit log.")],
    hours: Annotated[float, typer.Option(help="How long.")] = 1.0,
    begins: Annotated[str, typer.Option(help="A time with its offset. Default: now.")] = "",
    config: ConfigOption = None,
) -> None:
    """Ask for a relaxation and print the file that the approvers sign."""
    from tidegate.breakglass import BreakGlassFile, GlassError

    try:
        glass = BreakGlassFile(find_home(), config)
        console.print(str(glass.request(key, tag, hours, reason, begins)))
        if not (known := glass.knows(key)):
            where = "the configuration or its store" if known is False else "the configuration, and the store cannot be read"
            errors.print(f"warning: there is no key `{key}` in {where}: signed, this widens nothing until there is one")
    except (GlassError, OSError) as error:
        _fail(str(error))


@app.command()
def approve(
    request: RequestArgument,
    approver: Annotated[str, typer.Option("--as", help="Your name under `break_glass.approvers`.")],
    private_key: Annotated[Path, typer.Option("--private-key", help="Your private key.")],
    config: ConfigOption = None,
) -> None:
    """Sign a request. With the last signature it needs it holds, on every router, within a second."""
    from tidegate.breakglass import BreakGlassFile, GlassError

    try:
        signed, required = BreakGlassFile(find_home(), config).approve(request, approver, private_key)
    except (GlassError, OSError) as error:
        _fail(str(error))
    console.print(f"signed: {signed} of {required}" + ("; it is in force" if signed >= required else ""))


@app.command()
def revoke(
    request: Annotated[str, typer.Argument(help="The relaxation's id.")],
    by: Annotated[str, typer.Option(help="Who takes it back, for the audit log.")] = "",
    config: ConfigOption = None,
) -> None:
    """Take a relaxation back; what it let out is cut within a second. One person is enough."""
    from tidegate.breakglass import BreakGlassFile, GlassError

    try:
        BreakGlassFile(find_home(), config).revoke(request, by or operator())
    except (GlassError, OSError) as error:
        _fail(str(error))
    console.print(f"revoked: {request}")


@app.command("list")
def list_relaxations(config: ConfigOption = None) -> None:
    """Print every relaxation with its state, one JSON object a line."""
    from tidegate.breakglass import BreakGlassFile, GlassError

    try:
        for row in BreakGlassFile(find_home(), config).rows():
            console.print(msgspec.json.encode(row).decode())
    except (GlassError, OSError) as error:
        _fail(str(error))


def _fail(text: str) -> NoReturn:
    errors.print(f"error: {text}")
    raise typer.Exit(1)
