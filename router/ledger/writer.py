"""The threads that write the audit log: one gives entries to the operating system in batches, one waits for the medium.

So what a crash of this process can take is never more than what the first has not come to, however slow the disk is.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256
from itertools import repeat
from pathlib import Path
from typing import Any, Protocol

from router.ledger import records
from router.ledger.pipe import Opened
from router.ledger.retention import Pruner
from router.ledger.store import LogGone, LogStore
from router.ledger.tiles import LONGEST_ENTRY

_log = logging.getLogger("tidegate.audit")

CAPACITY = 50_000
"""Records kept in memory while they cannot be written."""
_BATCH = 512
"""Records in one append at most: what is urgent waits for no more than these."""
_RETRY_S = 0.05
_TICK_S = 1.0
_PUBLISH_S = 5.0
_COPY_S = 60.0
_PRUNE_S = 3600.0

FULL = OSError(errno.ENOSPC, "too much is waiting to be written")
TOO_LONG = OSError(errno.EFBIG, "the record is too long for it")
"""Why a record is lost."""

Settle = Callable[[BaseException | None], None]
"""Told, from a thread of the log, that a record is on the medium (None) or will never be (why)."""
Waiting = tuple[bytes, Settle | None]
"""A record that has no index yet (`records.begin`), and whom to tell."""


Opening = Callable[[Opened], Iterable[bytes]]
"""What a log begins with that was opened: records, begun."""


class AuditUnavailable(Exception):
    """The log cannot be written, so nothing may leave the cluster."""


class Writer(Protocol):
    """Whatever puts records into a log: threads of this process (`LogWriter`) or another process (`RemoteWriter`)."""

    failure: str | None
    each_second: Callable[[], None]

    @property
    def origin(self) -> str: ...
    @property
    def alive(self) -> bool: ...
    @property
    def has_room(self) -> bool: ...
    @property
    def losses(self) -> int: ...
    def start(self, opening: Opening) -> None: ...
    def keep(self, data: bytes) -> str: ...
    def hand_over(self, begun: bytes, settle: Settle | None = None) -> bool: ...
    def lose(self, error: BaseException, settle: Settle | None = None) -> None: ...
    def close(self, timeout_s: float) -> None: ...


class LogWriter:
    """Appends to a `LogStore` from threads of its own.

    Args:
        store: the log; it belongs to this object from now on.
        window_s: the longest time a record waits in this process's memory, in seconds; 0: no record waits for others.
        capacity: records kept in memory while the disk is full; beyond it they are counted and lost.
        copies: files that a published checkpoint is appended to once a minute.
        keep_days: entries older than this are removed unless a legal hold covers them; None keeps all.
    """

    def __init__(
        self,
        store: LogStore,
        window_s: float = 0.1,
        capacity: int = CAPACITY,
        copies: tuple[Path, ...] = (),
        keep_days: float | None = None,
    ) -> None:
        self.store = store
        self.failure: str | None = None
        """Why the log cannot be written now; None while it can."""
        self.gone = False
        """The log's files are not where they were: only another `LogWriter` can go on."""
        self.each_second: Callable[[], None] = lambda: None
        """Called from a thread about once a second."""
        self.on_change: Callable[[], None] = lambda: None
        """Called from whatever thread when something was written or lost, or when the log cannot be written, or can again."""
        self.losses = 0
        """How often something was lost: what was recorded before must be recorded anew to be referred to."""
        self.written = 0
        """Records given to the operating system that were handed over here."""
        self._window_s = window_s
        self._capacity = capacity
        self._copies = copies
        self._items: deque[Waiting] = deque()
        self._blobs: deque[bytes] = deque()
        self._waiting: list[Waiting] = []
        self._unsynced: list[Waiting] = []
        """What was written and may not be on the medium yet. Guarded by the store's lock, as `_waiting` is."""
        self._wake = threading.Event()
        self._urgent = threading.Event()
        self._due = threading.Event()
        self._closing = self._written_all = False
        self._lost = 0
        self._losing = threading.Lock()
        self._next_try = self._second_at = self._publish_at = self._copy_at = self._prune_at = 0.0
        self._pruner = None if keep_days is None else Pruner(store, self._append_now, keep_days)
        self._writing = threading.Thread(target=self._write_on, name="tidegate-audit", daemon=True)
        self._syncing = threading.Thread(target=self._sync_on, name="tidegate-audit-disk", daemon=True)

    @property
    def origin(self) -> str:
        """The log's own name, as its checkpoints carry it."""
        return self.store.origin

    @property
    def opened(self) -> Opened:
        """The log as it was opened."""
        return Opened(self.store.origin, self.store.size, self.store.recovered_bytes)

    def start(self, opening: Opening = lambda opened: ()) -> None:
        """Begin to write.

        Args:
            opening: gives the records that come first.
        """
        for begun in opening(self.opened):
            self.hand_over(begun)
        self._writing.start()
        self._syncing.start()

    @property
    def threads(self) -> tuple[int, ...]:
        """The system's ids of the threads: of the one that writes, and of the one that waits for the medium."""
        return tuple(thread.native_id for thread in (self._writing, self._syncing) if thread.native_id is not None)

    @property
    def alive(self) -> bool:
        """True while what is handed over will be looked at."""
        return not self._closing and self._writing.is_alive() and self._syncing.is_alive()

    @property
    def has_room(self) -> bool:
        """False while more is waiting for the disk than may be kept in memory: what happens now is counted and lost."""
        return len(self._items) + len(self._waiting) < self._capacity

    def keep(self, data: bytes) -> str:
        """Have a blob written before any record that is handed over after this; it does not wait for the disk.

        Returns:
            The SHA-256 that records refer to it by, in hex.
        """
        self._blobs.append(data)
        return sha256(data).hexdigest()

    def hand_over(self, begun: bytes, settle: Settle | None = None) -> bool:
        """Have a record appended; with `settle` at once. Costs an append to a queue; never waits, never fails.

        Returns:
            False when it was lost: it is counted in the log as soon as there is room.
        """
        if not self.has_room:
            self.lose(FULL, settle)
            return False
        if len(begun) > LONGEST_ENTRY:
            self.lose(TOO_LONG, settle)
            return False
        if self._lost:
            self._tell_lost()
        # A deque's append and popleft are one step each for the interpreter, so no lock is needed.
        self._items.append((begun, settle))
        if not self._wake.is_set():
            self._wake.set()
        if settle is not None:
            self._urgent.set()
        return True

    def hand_over_all(self, begun: Sequence[bytes]) -> None:
        """The same for many that nobody waits for."""
        if (
            self._lost
            or len(self._items) + len(self._waiting) + len(begun) > self._capacity
            or max(map(len, begun), default=0) > LONGEST_ENTRY
        ):
            for one in begun:
                self.hand_over(one)
            return
        self._items.extend(zip(begun, repeat(None)))
        self._wake.set()

    def lose(self, error: BaseException, settle: Settle | None = None) -> None:
        """Something that happened will not be in the log; that it is missing will be."""
        with self._losing:
            self._lost += 1
            self.losses += 1
        self.on_change()
        if settle is not None:
            settle(unavailable(reason_of(error)))

    def lose_many(self, count: int) -> None:
        """So many records were lost before they came here."""
        with self._losing:
            self._lost += count

    def _tell_lost(self) -> None:
        """Put on record how many records are missing."""
        with self._losing:
            lost, self._lost = self._lost, 0
        if lost:
            entry = records.begin(time.time(), time.monotonic(), records.LOST, "", {"records": lost})
            self._items.append((entry, None))

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
            if self._window_s and not self._closing:
                # Half the window for gathering; the other half is for hashing and the write.
                self._urgent.wait(self._window_s / 2)
            self._wake.clear()
            self._urgent.clear()
            closing = self._closing
            self._take()
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
        for _, settle in [*self._items, *self._waiting]:
            if settle is not None:
                settle(closed)
        with contextlib.suppress(OSError):
            self.store.close()

    def _take(self) -> None:
        """From the queue to what waits to be written. A record's blobs are in their queue before it is in this one."""
        if self._lost and self.has_room:
            self._tell_lost()
        items = self._items
        with self.store.lock:
            self._waiting += [items.popleft() for _ in range(len(items))]

    def _write(self, *, last: bool) -> None:
        """Write what waits. On failure nothing that waits to be sent outside is sent."""
        if self.failure is not None and time.monotonic() < self._next_try and not last:
            self._refuse_intents(self.failure)
            self._try_later()
            return
        while self._waiting:
            try:
                self._put_blobs()
                self._write_batch()
            except OSError as error:
                self._fail(error)
                break
            self._due.set()
            self.on_change()
            time.sleep(0)  # the event loop may have the interpreter
        if self._waiting:
            self._refuse_intents(self.failure or "")
            if last:
                _log.error("audit: %d records could not be written before the end", len(self._waiting))
            else:
                self._try_later()

    def _put_blobs(self) -> None:
        blobs = self._blobs
        while blobs:
            self.store.put_blob(blobs[0])
            blobs.popleft()

    def _write_batch(self) -> None:
        with self.store.lock:
            batch = self._waiting[:_BATCH]
            number = records.number
            self.store.write([number(begun, n) for n, (begun, _) in enumerate(batch, self.store.size)])
            del self._waiting[: len(batch)]
            self._unsynced += batch
            self.written += len(batch)

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
            self.on_change()
        for _, settle in written:
            if settle is not None:
                settle(None)
        try:
            self.store.tidy()
        except OSError as error:
            _log.warning("audit: files of %s could not be written: %s; they will be later", self.store.origin, reason_of(error))

    def _take_back(self, written: list[Waiting], error: OSError) -> None:
        """What was written is not on the medium and never will be as it stands: back to what waits, all but intents."""
        with self.store.lock:
            self.store.roll_back()
            back = [*written, *self._unsynced]
            self._waiting[:0] = back
            self.written -= sum(settle is None for _, settle in back)
            self._unsynced = []
            self._fail(error)
        self._refuse_intents(reason_of(error))
        self._wake.set()

    def _refuse_intents(self, reason: str) -> None:
        """An intent that could not be written is refused, not kept: what it announces will not happen."""
        with self.store.lock:
            refused = [settle for _, settle in self._waiting if settle is not None]
            self._waiting = [item for item in self._waiting if item[1] is None]
        for settle in refused:
            settle(unavailable(reason))

    def _fail(self, error: BaseException) -> None:
        reason = reason_of(error)
        self.gone = self.gone or isinstance(error, LogGone)
        if self.failure != reason:
            _log.error("audit: the log of %s cannot be written: %s; nothing leaves the cluster", self.store.origin, reason)
            self.failure = reason
            self.on_change()
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
            _log.warning("audit: the checkpoint could not be published: %s", reason_of(error))

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


def unavailable(reason: str) -> AuditUnavailable:
    """What whoever waits for a record is told when it cannot be written."""
    return AuditUnavailable(f"the audit log cannot be written: {reason}")


def reason_of(error: BaseException) -> str:
    """An error in a few words: what the system says of it, or its kind, for its text may quote anything."""
    return (error.strerror or type(error).__name__) if isinstance(error, OSError) else type(error).__name__
