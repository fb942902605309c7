"""`tidegate whatif`: what another policy would have made of the traffic that was recorded."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from router.config import ConfigError, load_file
from router.ledger.policies import compile_without_keys
from router.ledger.records import RecordError
from router.ledger.replay import Gap, Replayer
from router.ledger.tiles import TileError
from router.ledger.whatif import KINDS, LEAVES, REFUSED, Change, WhatIf
from tidegate.audit import DirOption, SinceOption, UntilOption, console, fail, open_logs, span

FAIL_ON = f"{LEAVES},{REFUSED}"


def whatif(
    policy: Annotated[Path, typer.Option(help="The other configuration.")],
    directory: DirOption = None,
    since: SinceOption = "",
    until: UntilOption = "",
    fail_on: Annotated[str, typer.Option(help=f"Changes that make the exit code 1, of {', '.join(KINDS)}.")] = FAIL_ON,
    show: Annotated[int, typer.Option(min=0, help="Print so many changed requests.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print every changed request as JSON, one a line.")] = False,
) -> None:
    """Decide recorded requests again under another policy. Exit code 0: nothing of concern; 1: see --fail-on; 2: bad input."""
    concerns = {name for name in fail_on.split(",") if name}
    if unknown := concerns - set(KINDS):
        fail(f"--fail-on: unknown {', '.join(sorted(unknown))}; there are {', '.join(KINDS)}")
    try:
        config = load_file(policy)
        other = WhatIf(config, compile_without_keys(config))
    except ConfigError as error:
        fail(str(error))
    start, end = span(since, until)
    counts: Counter[str] = Counter()
    changes: list[Change] = []
    gaps: Counter[str] = Counter()
    total = 0
    cost = [0.0, 0.0]
    try:
        for log in open_logs(directory):
            for found in Replayer(log).situations():
                if not start <= found.record.t < end:
                    continue
                total += 1
                if isinstance(found, Gap):
                    gaps[found.reason] += 1
                    continue
                change = other.judge(found)
                cost[0] += found.data.cost_usd
                cost[1] += found.data.cost_usd if change is None else change.cost_after
                if change is not None:
                    counts.update(change.kinds)
                    _print_change(change, as_json, len(changes) < show)
                    changes.append(change)
    except (TileError, RecordError) as error:
        fail(f"{error}; `tidegate audit verify` says more")
    if not as_json:
        _print_summary(total, gaps, len(changes), counts, cost)
    if concerns & set(counts):
        raise typer.Exit(1)


def _print_change(change: Change, as_json: bool, shown: bool) -> None:
    if as_json:
        console.print(msgspec.json.encode(change).decode())
    elif shown:
        console.print(f"{change.id}  key {change.key}  {change.before} -> {change.after}  [{', '.join(change.kinds)}]")


def _print_summary(total: int, gaps: Counter[str], changed: int, counts: Counter[str], cost: list[float]) -> None:
    if not total:
        console.print("no decision is recorded in this time")
        return
    console.print(f"{total} decisions, {changed} of them would have come out otherwise ({100 * changed / total:.1f} %)")
    words = {
        "leaves": "would have left the cluster",
        "stays": "would have stayed inside",
        "refused": "would have been refused",
        "served": "would have been served",
        "model": "would have got another model",
        "target": "would have gone to another target",
        "reason": "would have been refused for another reason",
    }
    for kind in KINDS:
        if counts[kind]:
            console.print(f"  {counts[kind]:6} {words[kind]}")
    console.print(f"  expected cost outside: {cost[0]:.4f} -> {cost[1]:.4f} USD")
    for reason, count in gaps.most_common():
        console.print(f"  {count:6} could not be decided again: {reason}", markup=False)
