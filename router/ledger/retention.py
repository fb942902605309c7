"""How long entries are kept, and what keeps them longer: legal holds."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from router.ledger import records
from router.ledger.reader import LogReader
from router.ledger.store import LogStore
from router.ledger.tiles import WIDTH, tile_path

_DAY_S = 86400.0


class Hold(msgspec.Struct, frozen=True):
    """Nothing recorded between two moments (UNIX seconds) may be removed while this stands."""

    id: str
    reason: str
    since: float = 0.0
    until: float = math.inf


class HoldError(ValueError):
    """The file of holds cannot be used; the text says why."""


def read_holds(directory: Path) -> tuple[Hold, ...]:
    """The legal holds over the logs in a directory.

    Raises:
        HoldError: the file is damaged. Nothing may be removed then: nobody knows what is held.
    """
    path = directory / "holds.json"
    try:
        data = json.loads(path.read_bytes())
        return tuple(msgspec.convert(data, list[Hold]))
    except FileNotFoundError:
        return ()
    except (OSError, ValueError) as error:
        raise HoldError(f"{path}: the legal holds cannot be read ({error}); nothing will be removed until they can") from None


def write_holds(directory: Path, holds: Sequence[Hold]) -> None:
    """Replace the legal holds, at once."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = directory / f".holds.{os.getpid()}"
    temporary.write_text(json.dumps([msgspec.to_builtins(hold) for hold in holds], indent=1), encoding="utf-8")
    temporary.replace(directory / "holds.json")


def prunable(log: LogReader, base: int, cutoff: float, holds: Sequence[Hold]) -> list[tuple[int, int]]:
    """Ranges of bundles that may go: everything in them is older than `cutoff`, and no hold covers any of it.

    Args:
        log: the log.
        base: bundles at or after this entry stay, because the journal still repeats them.
        cutoff: UNIX seconds.
        holds: what must stay.
    """
    ranges: list[tuple[int, int]] = []
    for index in range(base // WIDTH):
        if not (log.root / tile_path("entries", index)).is_file():
            continue
        times = [records.decode(entry).t for _, entry in log.entries(index * WIDTH, (index + 1) * WIDTH)]
        first, last = min(times), max(times)
        if last >= cutoff or any(hold.since <= last and first < hold.until for hold in holds):
            continue
        if ranges and ranges[-1][1] == index:
            ranges[-1] = (ranges[-1][0], index + 1)
        else:
            ranges.append((index, index + 1))
    return ranges


def prune(store: LogStore, append: Callable[[str, dict[str, Any]], None], days: float, holds: Sequence[Hold], now: float) -> int:
    """Remove entries older than `days`. That they will be gone is recorded, durably, before they are.

    Args:
        store: the log.
        append: appends a record of an event durably.
        days: how long entries are kept.
        holds: what must stay.
        now: UNIX seconds.

    Returns:
        How many entries were removed.

    Raises:
        OSError: the log cannot be written.
    """
    removed = 0
    for start, end in prunable(LogReader(store.root), store.base, now - days * _DAY_S, holds):
        append(records.PRUNE, {"first": start * WIDTH, "end": end * WIDTH, "kept_days": days})
        for index in range(start, end):
            store.drop_bundle(index)
        removed += (end - start) * WIDTH
    return removed
