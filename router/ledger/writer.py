"""The thread that writes the audit log: takes what was handed over, makes records of it, and appends them in batches."""

from __future__ import annotations

import contextlib
import errno
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from router.ledger import records
from router.ledger.retention import prune, read_holds
from router.ledger.store import LogStore
from router.ledger.tiles import LONGEST_ENTRY

_log = logging.getLogger("tidegate.audit")

_CHUNK = 32
"""Records encoded before the thread lets the event loop have the interpreter again."""
_BATCH = 2000
"""Records in one append at most."""
_RETRY_S = 0.05
_PUBLISH_S = 1.0
_COPY_S = 60.0
_PRUNE_S = 3600.0

Settle = Callable[[BaseException | None], None]
"""Told, from the writing thread, that a record is on the medium (None) or will never be (why)."""
Made = tuple[str, str, Any]
"""Event, id and data of a record."""
Item = tuple[Callable[..., Any], tuple[Any, ...], float, float, Settle | None]


class AuditUnavailable(Exception):
    """The log cannot be written, so nothing may leave the cluster."""


class LogWriter:
    """Appends to a `LogStore` from a thread.

    Args:
        store: the log; it belongs to this object from now on.
        forget: called when records were lost, so that what later ones refer to is said again.
        window_s: the longest time a record waits in memory, in seconds.
        capacity: records kept in memory while the disk is full; beyond it they are counted and lost.
        copies: files that a published checkpoint is appended to once a minute.
        keep_days: entries older than this are removed unless a legal hold covers them; None keeps all.
    """

    def __init__(
        self,
        store: LogStore,
        forget: Callable[[], None],
        window_s: float,
        capacity: int,
        copies: tuple[Path, ...],
        keep_days: float | None,
    ) -> None:
        self.store = store
        self.failure: str | None = None
        """Why the log cannot be written now; None while it can."""
        self.each_second: Callable[[], None] = lambda: None
        """Called from the thread about once a second."""
        self._forget = forget
        self._window_s = window_s
        self._capacity = capacity
        self._copies = copies
        self._keep_days = keep_days
        self._items: deque[Item] = deque()
        self._waiting: list[tuple[float, float, str, str, Any, Settle | None]] = []
        self._wake = threading.Event()
        self._urgent = threading.Event()
        self._closing = False
        self._lost = 0
        self._next_try = self._publish_at = self._copy_at = self._prune_at = 0.0
        self._thread = threading.Thread(target=self._run, name="tidegate-audit", daemon=True)

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """True while what is handed over will be looked at."""
        return not self._closing and self._thread.is_alive()

    def hand_over(self, make: Callable[..., Any], arguments: tuple[Any, ...], settle: Settle | None = None) -> None:
        """Have `make(*arguments)` called by the thread, and the records it gives appended; `settle`: at once.

        Costs an append; never waits, never fails.
        """
        # A deque's append and popleft are one step each for the interpreter, so no lock is needed.
        self._items.append((make, arguments, time.time(), time.monotonic(), settle))
        if not self._wake.is_set():
            self._wake.set()
        if settle is not None:
            self._urgent.set()

    def close(self, timeout_s: float) -> None:
        """Write what is left and let go of the log. Blocks up to `timeout_s` seconds."""
        self._closing = True
        self._wake.set()
        self._urgent.set()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            self._wake.wait(_PUBLISH_S)
            if self._wake.is_set() and not self._closing:
                # Half the window for gathering; the other half is for encoding and the disk.
                self._urgent.wait(self._window_s / 2)
            self._wake.clear()
            self._urgent.clear()
            closing = self._closing
            self._make_records()
            self._write(last=closing)
            self._publish(now=closing)
            self._prune()
            if closing and not self._items:
                break
        closed = AuditUnavailable("the audit log is closed")
        for settle in [*(item[-1] for item in self._items), *(item[-1] for item in self._waiting)]:
            if settle is not None:
                settle(closed)
        with contextlib.suppress(OSError):
            self.store.close()

    def _make_records(self) -> None:
        """From what was handed over to events with data; in chunks, so that the event loop is not kept waiting."""
        for number in range(len(self._items)):
            make, arguments, t, m, settle = self._items.popleft()
            if len(self._waiting) >= self._capacity:
                self._lose(settle, OSError(errno.ENOSPC, "the disk has been full for long"))
                continue
            try:
                made = list(make(*arguments))
            except OSError as error:  # a blob could not be written: what refers to it must not be, either
                self._fail(error)
                self._lose(settle, error)
                continue
            except Exception as error:
                if not self._lost:  # once: the records that follow have the same fault
                    _log.error("audit: a record could not be made: %s", type(error).__name__)
                self._lose(settle, error)
                continue
            for position, (event, subject, data) in enumerate(made, start=1):
                self._waiting.append((t, m, event, subject, data, settle if position == len(made) else None))
            if number % _CHUNK == 0:
                time.sleep(0)

    def _lose(self, settle: Settle | None, error: BaseException) -> None:
        """One thing that happened will not be in the log; that it is missing will be."""
        self._lost += 1
        self._forget()
        if settle is not None:
            settle(AuditUnavailable(f"the audit log cannot be written: {_reason(error)}"))

    def _write(self, *, last: bool) -> None:
        """Append what waits. On failure nothing that waits to be sent outside is sent."""
        if self.failure is not None and time.monotonic() < self._next_try and not last:
            self._refuse_intents(self.failure)
            return
        while self._waiting:
            batch = self._waiting[:_BATCH]
            try:
                self.store.append(self._encode(batch))
            except OSError as error:
                self._fail(error)
                self._refuse_intents(_reason(error))
                if last:
                    _log.error("audit: %d records could not be written before the end", len(self._waiting))
                return
            del self._waiting[: len(batch)]
            for item in batch:
                if (done := item[-1]) is not None:
                    done(None)
        if self.failure is not None:
            _log.warning("audit: the log of %s is written again", self.store.origin)
            self.failure = None
        if self._lost:
            lost, self._lost = self._lost, 0
            self._forget()
            self._waiting.append((time.time(), time.monotonic(), records.LOST, "", {"records": lost}, None))
            self._wake.set()

    def _encode(self, batch: list[tuple[float, float, str, str, Any, Settle | None]]) -> list[bytes]:
        """The entries of a batch; one that is too long for the log is replaced by a record that says so."""
        entries: list[bytes] = []
        for position, (t, m, event, subject, data, settle) in enumerate(batch):
            n = self.store.size + position
            entry = records.encode(n, t, m, event, subject, data)
            if len(entry) > LONGEST_ENTRY:
                entry = records.encode(n, t, m, records.LOST, subject[:256], {"records": 1, "too_long": event})
                self._forget()
                if settle is not None:
                    settle(AuditUnavailable("the record is too long for the audit log"))
                    batch[position] = (t, m, event, subject, data, None)
            entries.append(entry)
            if position % _CHUNK == 0:
                time.sleep(0)
        return entries

    def _refuse_intents(self, reason: str) -> None:
        """An intent that could not be written is refused, not kept: what it announces will not happen."""
        kept = []
        for item in self._waiting:
            if (settle := item[-1]) is None:
                kept.append(item)
            else:
                settle(AuditUnavailable(f"the audit log cannot be written: {reason}"))
        self._waiting = kept

    def _fail(self, error: BaseException) -> None:
        reason = _reason(error)
        if self.failure != reason:
            _log.error("audit: the log of %s cannot be written: %s; nothing leaves the cluster", self.store.origin, reason)
        self.failure = reason
        self._next_try = time.monotonic() + _RETRY_S
        self._wake.set()

    def _publish(self, *, now: bool) -> None:
        moment = time.monotonic()
        if not self.store.size or (moment < self._publish_at and not now):
            return
        self._publish_at = moment + _PUBLISH_S
        self.each_second()
        try:
            note = self.store.publish()
            if now or moment >= self._copy_at:
                self._copy_at = moment + _COPY_S
                for copy in self._copies:
                    with copy.open("ab") as file:
                        file.write(note + b"\n")
        except OSError as error:
            _log.warning("audit: the checkpoint could not be published: %s", _reason(error))

    def _prune(self) -> None:
        if self._keep_days is None or time.monotonic() < self._prune_at or self.failure is not None:
            return
        self._prune_at = time.monotonic() + _PRUNE_S
        try:
            holds = read_holds(self.store.root.parent)
            removed = prune(self.store, self._append_now, self._keep_days, holds, time.time())
            if removed:
                _log.info("audit: %d entries of %s were removed under the retention rule", removed, self.store.origin)
        except (OSError, ValueError) as error:
            _log.error("audit: nothing could be removed under the retention rule: %s", error)

    def _append_now(self, event: str, data: dict[str, Any]) -> None:
        self.store.append([records.encode(self.store.size, time.time(), time.monotonic(), event, "", data)])


def _reason(error: BaseException) -> str:
    return (error.strerror or type(error).__name__) if isinstance(error, OSError) else type(error).__name__
