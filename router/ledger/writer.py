"""The threads that write the audit log: one makes records of what was handed over and writes them in batches, one waits for the
medium. So what a crash of this process can take is never more than what the first has not come to, however slow the disk is.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from router.ledger import records
from router.ledger.recorder import Made
from router.ledger.retention import Pruner
from router.ledger.store import LogStore
from router.ledger.tiles import LONGEST_ENTRY

_log = logging.getLogger("tidegate.audit")

_CHUNK = 128
"""Records encoded before the thread lets the event loop have the interpreter again."""
_BATCH = 2000
"""Records in one append at most."""
_RETRY_S = 0.05
_TICK_S = 1.0
_PUBLISH_S = 5.0
_COPY_S = 60.0
_PRUNE_S = 3600.0

Settle = Callable[[BaseException | None], None]
"""Told, from a thread of the log, that a record is on the medium (None) or will never be (why)."""
Item = tuple[Callable[..., Sequence[Made]], tuple[Any, ...], float, float, Settle | None]
"""What makes the records and from what, the wall clock and the monotonic clock, and whom to tell."""
Waiting = tuple[float, float, str, str, Any, Settle | None]


class AuditUnavailable(Exception):
    """The log cannot be written, so nothing may leave the cluster."""


class LogWriter:
    """Appends to a `LogStore` from threads of its own.

    Args:
        store: the log; it belongs to this object from now on.
        forget: called when records were lost, so that what later ones refer to is said again.
        window_s: the longest time a record waits in this process's memory, in seconds.
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
        """Called from a thread about once a second."""
        self._forget = forget
        self._window_s = window_s
        self._capacity = capacity
        self._copies = copies
        self._items: deque[Item] = deque()
        self._waiting: list[Waiting] = []
        self._unsynced: list[Waiting] = []
        """What was written and may not be on the medium yet. Guarded by the store's lock, as `_waiting` is."""
        self._wake = threading.Event()
        self._urgent = threading.Event()
        self._due = threading.Event()
        self._closing = self._written_all = False
        self._lost = 0
        self._next_try = self._second_at = self._publish_at = self._copy_at = self._prune_at = 0.0
        self._pruner = None if keep_days is None else Pruner(store, self._append_now, keep_days)
        self._writing = threading.Thread(target=self._write_on, name="tidegate-audit", daemon=True)
        self._syncing = threading.Thread(target=self._sync_on, name="tidegate-audit-disk", daemon=True)

    def start(self) -> None:
        """Begin to write."""
        self._writing.start()
        self._syncing.start()

    @property
    def threads(self) -> tuple[int, ...]:
        """The system's ids of the threads: of the one that writes, and of the one that waits for the medium."""
        return tuple(thread.native_id for thread in (self._writing, self._syncing) if thread.native_id is not None)

    @property
    def clocks(self) -> tuple[int, ...]:
        """The clocks of CPU time of the threads: of the one that writes, and of the one that waits for the medium."""
        threads = (self._writing, self._syncing)
        return tuple(time.pthread_getcpuclockid(thread.ident) for thread in threads if thread.ident is not None)

    @property
    def alive(self) -> bool:
        """True while what is handed over will be looked at."""
        return not self._closing and self._writing.is_alive() and self._syncing.is_alive()

    def hand_over(self, make: Callable[..., Sequence[Made]], arguments: tuple[Any, ...], settle: Settle | None = None) -> None:
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
        end = time.monotonic() + timeout_s
        for thread in (self._writing, self._syncing):
            thread.join(max(0.0, end - time.monotonic()))

    def _write_on(self) -> None:
        """The writing thread: gives the operating system what was handed over, and waits for no medium."""
        while not self._written_all:
            self._wake.wait()
            if not self._closing:
                # Half the window for gathering; the other half is for encoding and the write.
                self._urgent.wait(self._window_s / 2)
            self._wake.clear()
            self._urgent.clear()
            closing = self._closing
            self._make_records()
            self._write(last=closing)
            self._written_all = closing and not self._items
            self._due.set()

    def _sync_on(self) -> None:
        """The other thread: everything that waits for the medium."""
        while True:
            self._due.wait(_TICK_S)
            self._due.clear()
            last = self._written_all
            self._sync()
            self._publish(now=last)
            self._prune()
            if last:
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
                made = make(*arguments)
            except OSError as error:  # a blob could not be written: what refers to it must not be, either
                self._fail(error)
                self._lose(settle, error)
                continue
            except Exception as error:
                if not self._lost:  # once: the records that follow have the same fault
                    _log.error("audit: a record could not be made: %s", type(error).__name__)
                self._lose(settle, error)
                continue
            for event, subject, data in made[:-1]:
                self._waiting.append((t, m, event, subject, data, None))
            event, subject, data = made[-1]
            self._waiting.append((t, m, event, subject, data, settle))
            if number % _CHUNK == _CHUNK - 1:
                time.sleep(0)

    def _lose(self, settle: Settle | None, error: BaseException) -> None:
        """One thing that happened will not be in the log; that it is missing will be."""
        self._lost += 1
        self._forget()
        if settle is not None:
            settle(AuditUnavailable(f"the audit log cannot be written: {_reason(error)}"))

    def _write(self, *, last: bool) -> None:
        """Write what waits. On failure nothing that waits to be sent outside is sent."""
        if self.failure is not None and time.monotonic() < self._next_try and not last:
            self._refuse_intents(self.failure)
            self._try_later()
            return
        while self._waiting:
            with self.store.lock:
                batch = self._waiting[:_BATCH]
                try:
                    self.store.write(self._encode(batch))
                except OSError as error:
                    self._fail(error)
                    break
                del self._waiting[: len(batch)]
                self._unsynced += batch
            self._due.set()
        if self._waiting:
            self._refuse_intents(self.failure or "")
            if last:
                _log.error("audit: %d records could not be written before the end", len(self._waiting))
            else:
                self._try_later()
        elif self._lost:
            lost, self._lost = self._lost, 0
            self._forget()
            self._waiting.append((time.time(), time.monotonic(), records.LOST, "", {"records": lost}, None))
            self._wake.set()

    def _try_later(self) -> None:
        """Come back although nobody hands anything over."""
        self._urgent.wait(_RETRY_S)
        self._wake.set()

    def _sync(self) -> None:
        """Bring to the medium what was written, and tell who waits for it; on failure it is to be written again."""
        with self.store.lock:
            written, self._unsynced = self._unsynced, []
        if not written:
            return
        try:
            self.store.sync()
        except OSError as error:
            self._take_back(written, error)
            return
        if self.failure is not None:  # before anybody hears of it: who was told may look
            _log.warning("audit: the log of %s is written again", self.store.origin)
            self.failure = None
        for item in written:
            if (done := item[-1]) is not None:
                done(None)
        try:
            self.store.tidy()
        except OSError as error:
            _log.warning("audit: files of %s could not be written: %s; they will be later", self.store.origin, _reason(error))

    def _take_back(self, written: list[Waiting], error: OSError) -> None:
        """What was written is not on the medium and never will be as it stands: back to what waits, all but intents."""
        with self.store.lock:
            self.store.roll_back()
            self._waiting[:0] = [*written, *self._unsynced]
            self._unsynced = []
            self._fail(error)
        self._refuse_intents(_reason(error))
        self._wake.set()

    def _encode(self, batch: list[Waiting]) -> list[bytes]:
        """The entries of a batch; one that is too long for the log is replaced by a record that says so."""
        entries: list[bytes] = []
        encode, first = records.encode, self.store.size
        for position, (t, m, event, subject, data, settle) in enumerate(batch):
            n = first + position
            entry = encode(n, t, m, event, subject, data)
            if len(entry) > LONGEST_ENTRY:
                entry = records.encode(n, t, m, records.LOST, subject[:256], {"records": 1, "too_long": event})
                self._forget()
                if settle is not None:
                    settle(AuditUnavailable("the record is too long for the audit log"))
                    batch[position] = (t, m, event, subject, data, None)
            entries.append(entry)
            if position % _CHUNK == _CHUNK - 1:
                time.sleep(0)
        return entries

    def _refuse_intents(self, reason: str) -> None:
        """An intent that could not be written is refused, not kept: what it announces will not happen."""
        with self.store.lock:
            refused = [item[-1] for item in self._waiting if item[-1] is not None]
            self._waiting = [item for item in self._waiting if item[-1] is None]
        for settle in refused:
            settle(AuditUnavailable(f"the audit log cannot be written: {reason}"))

    def _fail(self, error: BaseException) -> None:
        reason = _reason(error)
        if self.failure != reason:
            _log.error("audit: the log of %s cannot be written: %s; nothing leaves the cluster", self.store.origin, reason)
        self.failure = reason
        self._next_try = time.monotonic() + _RETRY_S

    def _publish(self, *, now: bool) -> None:
        moment = time.monotonic()
        if moment >= self._second_at or now:
            self._second_at = moment + _TICK_S
            self.each_second()
        if not self.store.size or (moment < self._publish_at and not now):
            return
        self._publish_at = moment + _PUBLISH_S
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
        if self._pruner is None or time.monotonic() < self._prune_at or self.failure is not None:
            return
        try:
            removed, done = self._pruner.step(time.time())
            if removed:
                _log.info("audit: %d entries of %s were removed under the retention rule", removed, self.store.origin)
        except (OSError, ValueError) as error:
            done = True
            _log.error("audit: nothing could be removed under the retention rule: %s", error)
        self._prune_at = time.monotonic() + (_PRUNE_S if done else _TICK_S)

    def _append_now(self, event: str, data: dict[str, Any]) -> None:
        """Write a record from the syncing thread, and return once it is on the medium."""
        with self.store.lock:
            self.store.write([records.encode(self.store.size, time.time(), time.monotonic(), event, "", data)])
        try:
            self.store.sync()
        except OSError as error:
            self._take_back([], error)
            raise


def _reason(error: BaseException) -> str:
    return (error.strerror or type(error).__name__) if isinstance(error, OSError) else type(error).__name__
