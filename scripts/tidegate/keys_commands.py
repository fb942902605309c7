"""`tidegate keys ...`: the commands; `tidegate.keys` and `tidegate.stored_keys` do the work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NoReturn

import msgspec
import typer

from tidegate import keys, render
from tidegate.home import find_home
from tidegate.terminal import Console

app = typer.Typer(help="Make, rotate, revoke and list client keys.", no_args_is_help=True)
console = Console(soft_wrap=True, highlight=False, markup=False)
errors = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)

NameArgument = Annotated[str, typer.Argument(help="The key's id.")]
ConfigOption = Annotated[Path | None, typer.Option("--config", help="The configuration that names the store.")]


@app.command("create")
def create_key(
    name: NameArgument,
    stored: Annotated[bool, typer.Option("--stored", help="Keep it in the store: valid at once, with the scopes below.")] = False,
    config: ConfigOption = None,
    tenant: Annotated[str, typer.Option(help="Who owns it.")] = "default",
    residency: Annotated[list[str] | None, typer.Option(help="The ceiling: a residency tag; several must all hold.")] = None,
    model: Annotated[list[str] | None, typer.Option(help="A model or tier it may use. Default: all.")] = None,
    spill: Annotated[bool, typer.Option("--spill", help="Its requests may leave for a cloud target.")] = False,
    spill_daily_usd: Annotated[float | None, typer.Option(min=0.01, help="What leaving may cost a day.")] = None,
    cidr: Annotated[list[str] | None, typer.Option(help="Addresses it may be used from, such as 10.20.0.0/16.")] = None,
    capture: Annotated[bool, typer.Option("--capture", help="Keep its requests and answers, encrypted.")] = False,
    cache: Annotated[bool, typer.Option("--cache", help="Answer it from the response cache, too.")] = False,
    priority: Annotated[str, typer.Option(help="Where requests wait: high, normal or low.")] = "normal",
    expires: Annotated[str, typer.Option(help="It ends at this date or time (UTC).")] = "",
    requests_per_minute: Annotated[int, typer.Option(min=0)] = 0,
    tokens_per_minute: Annotated[int, typer.Option(min=0)] = 0,
    concurrent_requests: Annotated[int, typer.Option(min=0)] = 0,
    daily_tokens: Annotated[int, typer.Option(min=0)] = 0,
    monthly_tokens: Annotated[int, typer.Option(min=0)] = 0,
    daily_usd: Annotated[float, typer.Option(min=0)] = 0,
    monthly_usd: Annotated[float, typer.Option(min=0)] = 0,
) -> None:
    """Make a key and print it this once. Without --stored, its digest is kept for the configuration to name."""
    scopes = {
        "tenant": tenant,
        "residency": residency,
        "models": model,
        "spill": spill,
        "spill_daily_usd": spill_daily_usd,
        "cidr": cidr,
        "priority": priority,
        "capture": capture,
        "cache": cache,
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
        "concurrent_requests": concurrent_requests,
        "daily_tokens": daily_tokens,
        "monthly_tokens": monthly_tokens,
        "daily_usd": daily_usd,
        "monthly_usd": monthly_usd,
    }
    try:
        if stored:
            console.print(_store(config).create(name, scopes, expires))
            return
        usual = {"tenant": "default", "priority": "normal"}
        if expires or any(value and value != usual.get(key) for key, value in scopes.items()):
            _fail("scopes are set in the configuration for this kind of key; with --stored they are set here")
        render.print_new_key(Console(), keys.create_key(find_home(), name))
    except keys.KeyFileError as error:
        _fail(str(error))


@app.command()
def rotate(
    name: NameArgument,
    overlap_hours: Annotated[float, typer.Option(min=0, max=8784, help="How long the old key stays valid.")] = 24,
    config: ConfigOption = None,
) -> None:
    """Make a new key in the place of a stored one, with the same scopes, and print it this once."""
    try:
        console.print(_store(config).rotate(name, overlap_hours * 3600))
    except keys.KeyFileError as error:
        _fail(str(error))


@app.command()
def revoke(name: NameArgument, config: ConfigOption = None) -> None:
    """Make a stored key worthless, within a second, on every router."""
    try:
        _store(config).revoke(name)
    except keys.KeyFileError as error:
        _fail(str(error))
    console.print(f"revoked: {name}")


@app.command("list")
def list_keys(config: ConfigOption = None) -> None:
    """Print the stored keys, one JSON object a line; never the keys themselves."""
    try:
        for row in _store(config).rows():
            console.print(msgspec.json.encode(row).decode())
    except keys.KeyFileError as error:
        _fail(str(error))


def _store(config: Path | None):  # type: ignore[no-untyped-def]  # imported late: SQLAlchemy is not for every command
    from tidegate.stored_keys import KeyStore

    return KeyStore(find_home(), config)


def _fail(text: str) -> NoReturn:
    errors.print(f"error: {text}")
    raise typer.Exit(1)
