"""`tidegate report ...`: what was used and what it cost, from the audit log."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Annotated

import msgspec
import typer

from router.config import ConfigError
from router.ledger import records
from router.ledger.cost import PriceList, cost_usd
from router.ledger.policies import read_policy
from router.ledger.reader import LogReader
from router.ledger.receipts import CACHE_HIT
from router.ledger.records import RecordError
from router.ledger.search import Handled, requests
from router.ledger.tiles import TileError
from tidegate.audit import DirOption, SinceOption, UntilOption, console, errors, fail, open_logs, span

app = typer.Typer(help="Reports from the audit log.", no_args_is_help=True)

BY = ("tenant", "key", "model", "target")
OWN = ("shadow", "label")
"""Modes of requests that the router makes for itself: they have lines of their own beside tenants and keys."""


class Line(msgspec.Struct):
    """One line of the report."""

    name: str
    requests: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    uncounted: int = 0
    """Requests that were answered, at least in part, and whose tokens nobody counted."""
    usd: float = 0.0
    cached: int = 0
    """Requests that the response cache answered: they cost nothing, and their tokens are not among these."""


@app.command()
def cost(
    by: Annotated[str, typer.Option(help=f"One of {', '.join(BY)}.")] = "tenant",
    directory: DirOption = None,
    since: SinceOption = "",
    until: UntilOption = "",
    form: Annotated[str, typer.Option("--format", help="table, csv or json.")] = "table",
) -> None:
    """Requests, tokens and money, at the prices that were in force when each request was decided."""
    if by not in BY:
        fail(f"--by: there is no `{by}`; there are {', '.join(BY)}")
    if form not in ("table", "csv", "json"):
        fail("--format is table, csv or json")
    start, end = span(since, until)
    logs = open_logs(directory)
    try:
        lines = add_up(logs, by, start, end)
    except (TileError, RecordError) as error:
        fail(f"{error}; `tidegate audit verify` says more", 1)
    if form == "json":
        console.print(msgspec.json.encode(lines).decode())
    elif form == "csv":
        console.print(_csv(lines), end="")
    else:
        _print_table(lines, by)
    if any(line.uncounted for line in lines):
        errors.print("note: `uncounted` requests began an answer whose tokens nobody counted; their cost is missing here")


def add_up(logs: list[LogReader], by: str, since: float = 0.0, until: float = float("inf")) -> list[Line]:
    """The lines of the report, the dearest first.

    Raises:
        TileError, RecordError: a log is damaged.
    """
    prices = {epoch: prices for log in logs for epoch, prices in _price_lists(log)}
    lines: dict[str, Line] = {}
    for item in requests(logs, since, until):
        name = str(getattr(item, by)) or "none"
        if by in ("tenant", "key") and item.mode in OWN:  # what the router asks for itself is nobody's use
            name = f"({item.mode})"
        line = lines.setdefault(name, Line(name))
        _count(line, item, prices.get(item.epoch))
    return sorted(lines.values(), key=lambda line: (-line.usd, -line.requests, line.name))


def _count(line: Line, item: Handled, prices: PriceList | None) -> None:
    line.requests += 1
    line.failed += item.status >= 400
    if item.cache == CACHE_HIT:
        line.cached += 1
        return
    if item.prompt_tokens < 0:
        line.uncounted += 200 <= item.status < 300
        return
    completion = max(0, item.completion_tokens)
    line.prompt_tokens += item.prompt_tokens
    line.completion_tokens += completion
    if prices is not None:
        line.usd += cost_usd(prices.of(item.target, item.model), item.prompt_tokens, completion)


def _price_lists(log: LogReader) -> Iterator[tuple[str, PriceList]]:
    """The prices of every policy that a log speaks of."""
    for record in log.records():
        if record.e == records.POLICY:
            data = records.read_data(record)
            try:
                yield data["epoch"], PriceList(read_policy(log.blob(data["blob"]), data["epoch"])[0])
            except ConfigError as error:
                errors.print(f"note: the prices of policy {data['epoch']} cannot be read: {error}")


def _csv(lines: list[Line]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(Line.__struct_fields__)
    for line in lines:
        name = f"'{line.name}" if line.name[:1] in "=+-@" else line.name
        writer.writerow([name, *msgspec.structs.astuple(line)[1:]])
    return out.getvalue()


def _print_table(lines: list[Line], by: str) -> None:
    width = max([len(by), *(len(line.name) for line in lines)])
    counted = f"{'requests':>9} {'failed':>8} {'cached':>8} {'prompt':>12} {'answer':>12} {'uncounted':>9}"
    console.print(f"{by:{width}}  {counted} {'USD':>12}")
    for line in lines:
        counts = f"{line.requests:9} {line.failed:8} {line.cached:8} {line.prompt_tokens:12} {line.completion_tokens:12}"
        console.print(f"{line.name:{width}}  {counts} {line.uncounted:9} {line.usd:12.6f}")
