"""How long entries are kept, and what keeps them longer: legal holds."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from router.ledger import records
from router.ledger.reader import LogReader, merged
from router.ledger.records import Record
from router.ledger.store import LogStore
from router.ledger.tiles import WIDTH, tile_path
from router.secret_file import make_private_directory

_DAY_S = 86400.0
_LARGEST_JUMP_S = 3600.0
"""A clock that is set forward by more than this makes entries look old that are not: nothing is removed then."""


class Hold(msgspec.Struct, frozen=True):
    """Nothing recorded between two moments (UNIX seconds) may be removed while this stands."""

    id: str
    reason: str
    since: float = 0.0
    until: float = math.inf


class HoldError(ValueError):
    """The file of holds cannot be used; the text says why."""


class ClockJumped(ValueError):
    """The clock was set forward while the router ran; the text says by how much."""


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


def standing_holds(directory: Path) -> tuple[Hold, ...]:
    """The legal holds of the file, and those that an operator's log says were placed and not released: whoever can remove a line
    of a file must not be able to end a hold by it.

    Raises:
        HoldError: the file or such a log is damaged. Nothing may be removed then: nobody knows what is held.
    """
    standing = {hold.id: hold for hold in read_holds(directory)}
    try:
        logs = [LogReader(path) for path in sorted(directory.glob("cli-*")) if path.is_dir()]
        placed: dict[str, Hold] = {}
        for _, record in merged(logs):
            if record.e == records.HOLD:
                placed[record.id] = Hold(record.id, **records.read_data(record))
            elif record.e == records.RELEASE:
                placed.pop(record.id, None)
    except (OSError, ValueError, TypeError) as error:
        raise HoldError(f"{directory}: the record of legal holds cannot be read ({error}); nothing will be removed") from None
    return tuple({**placed, **standing}.values())


def write_holds(directory: Path, holds: Sequence[Hold]) -> None:
    """Replace the legal holds, at once."""
    make_private_directory(directory)
    temporary = directory / f".holds.{os.getpid()}"
    temporary.write_text(json.dumps([msgspec.to_builtins(hold) for hold in holds], indent=1), encoding="utf-8")
    temporary.replace(directory / "holds.json")


Span = tuple[int, int]
"""Neighbouring bundles: the first, and the one after the last."""


def prunable(log: LogReader, bundles: Sequence[int], cutoff: float, holds: Sequence[Hold]) -> tuple[list[int], list[Span], bool]:
    """The bundles that may go: everything in them is older than `cutoff`, and no hold covers any of it.

    Args:
        log: the log.
        bundles: the bundles to look at, in order; what is not there any more is passed over.
        cutoff: UNIX seconds.
        holds: what must stay.

    Returns:
        Those bundles; the bundles that records in them say are gone already; and whether one was met that is too young: those
        after it are younger still.
    """
    found: list[int] = []
    gone: list[Span] = []
    for index in bundles:
        if not (log.root / tile_path("entries", index)).is_file():
            continue
        inside = [records.decode(entry) for _, entry in log.entries(index * WIDTH, (index + 1) * WIDTH)]
        first, last = min(record.t for record in inside), max(record.t for record in inside)
        if last >= cutoff:
            return found, gone, True
        if not any(hold.since <= last and first < hold.until for hold in holds):
            found.append(index)
            gone += (span for record in inside if (span := pruned_by(record)) is not None)
    return found, gone, False


def pruned_by(record: Record) -> Span | None:
    """The bundles that a record says were removed; None where it is about something else, such as captured payloads.

    Raises:
        RecordError: its data are no map.
        KeyError, TypeError, ValueError: it does not say which.
    """
    if record.e != records.PRUNE:
        return None
    data = records.read_data(record)
    return None if "payloads" in data else (int(data["first"]) // WIDTH, int(data["end"]) // WIDTH)


def check_clock(start: tuple[float, float], now: float) -> None:
    """Whether the clock may say how old something is.

    Args:
        start: UNIX seconds, and seconds of the monotonic clock, at the start of this process.
        now: UNIX seconds.

    Raises:
        ClockJumped: it was set forward since.
    """
    wall, monotonic = start
    jumped = (now - wall) - (time.monotonic() - monotonic)
    if jumped > _LARGEST_JUMP_S:
        raise ClockJumped(f"the clock went {jumped:.0f} s ahead of the time that has passed since the start")


class Pruner:
    """Removes entries that are older than `days`, a few bundles at a time: whoever calls it has other work to do.

    That they will be gone is recorded, durably, before they are.

    Args:
        store: the log.
        append: appends a record of an event durably.
        days: how long entries are kept.
    """

    def __init__(self, store: LogStore, append: Callable[[str, dict[str, Any]], None], days: float) -> None:
        self._store = store
        self._append = append
        self._days = days
        self._next = 0
        self._clocks = time.time(), time.monotonic()

    def step(self, now: float, most: int = 64) -> tuple[int, bool]:
        """Look at the next bundles, and remove those that may go.

        Args:
            now: UNIX seconds.
            most: bundles to look at.

        Returns:
            How many entries were removed, and whether all bundles have been looked at.

        Raises:
            OSError: the log cannot be written.
            HoldError: nobody knows what is held.
            ClockJumped: the clock cannot be trusted to say how old anything is.
        """
        check_clock(self._clocks, now)
        bundles = range(self._next, min(self._store.base // WIDTH, self._next + most))
        if not bundles:
            self._next = 0
            return 0, True
        log = LogReader(self._store.root)
        found, gone, young = prunable(log, bundles, now - self._days * _DAY_S, standing_holds(self._store.root.parent))
        # What only a record says that goes now is said again: without it, entries removed long ago would be missing.
        for start, end in _merged([*gone, *((index, index + 1) for index in found)]) if found else ():
            self._append(records.PRUNE, {"first": start * WIDTH, "end": end * WIDTH, "kept_days": self._days})
        for index in found:
            self._store.drop_bundle(index)
        self._next = 0 if young else bundles.stop
        return len(found) * WIDTH, young


def _merged(spans: Iterable[Span]) -> list[Span]:
    """The same bundles in as few spans as can be."""
    merged_spans: list[Span] = []
    for start, end in sorted(spans):
        if merged_spans and start <= merged_spans[-1][1]:
            merged_spans[-1] = (merged_spans[-1][0], max(end, merged_spans[-1][1]))
        else:
            merged_spans.append((start, end))
    return merged_spans
