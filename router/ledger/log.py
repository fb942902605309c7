"""The audit log of one router: the hot path hands things over, a thread of its own writes them.

Handing over costs an append to a list. Local requests reach the medium in batches, at most `window_s` later; a request that
is to leave the cluster waits for its own `egress.intent`, and is not sent when that cannot be written.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from router.decision import Choice, Decision, Facts
from router.ledger import records
from router.ledger.receipts import Receipt
from router.ledger.recorder import NO_SOURCES, Recorder, end_data
from router.ledger.retention import prune, read_holds
from router.ledger.store import LogStore
from router.placement.targets import View

_log = logging.getLogger("tidegate.audit")

_CHUNK = 32
"""Records encoded before the thread lets the event loop have the interpreter again."""
_RETRY_S = 0.25
_PUBLISH_S = 1.0
_COPY_S = 60.0
_PRUNE_S = 3600.0

Settle = Callable[[BaseException | None], None]
Item = tuple[Callable[..., Any], tuple[Any, ...], float, float, Settle | None]


class AuditUnavailable(Exception):
    """The log cannot be written, so nothing may leave the cluster."""


class AuditLog:
    """Append what happens to a `LogStore`, from a thread.

    Args:
        store: the log; it belongs to this object from now on.
        label_text: a label in names.
        window_s: the longest time a local record waits in memory, in seconds.
        capacity: records kept in memory while the disk is full; beyond it they are counted and lost.
        copies: files that a published checkpoint is appended to once a minute, best on another machine's disk.
        keep_days: entries older than this are removed unless a legal hold covers them; None keeps all.
    """

    def __init__(
        self,
        store: LogStore,
        label_text: Callable[[Any], str],
        window_s: float = 0.05,
        capacity: int = 50_000,
        copies: tuple[Path, ...] = (),
        keep_days: float | None = None,
    ) -> None:
        self._store = store
        self._label_text = label_text
        self._recorder = Recorder(store.put_blob, label_text)
        self._window_s = window_s
        self._capacity = capacity
        self._copies = copies
        self._items: deque[Item] = deque()
        self._waiting: list[tuple[float, float, str, str, Any, Settle | None]] = []
        self._wake = threading.Event()
        self._urgent = threading.Event()
        self._closing = False
        self._lost = 0
        self._next_try = 0.0
        self._publish_at = self._copy_at = self._prune_at = 0.0
        self._keep_days = keep_days
        self.failure: str | None = None
        """Why the log cannot be written now; None while it can."""
        self._thread = threading.Thread(target=self._run, name="tidegate-audit", daemon=True)
        data = {"origin": store.origin, "size": store.size, "recovered_bytes": store.recovered_bytes}
        self.event(records.OPEN, "", data)
        self._thread.start()

    @property
    def origin(self) -> str:
        """The log's own name, as its checkpoints carry it."""
        return self._store.origin

    @property
    def healthy(self) -> bool:
        """True while records reach the medium."""
        return self.failure is None

    def decided(
        self, facts: Facts, epoch: str, view: View, decision: Decision, now: float, sources: Mapping[str, str] = NO_SOURCES
    ) -> None:
        """A decision was made: everything it was given, and what it answered. Costs an append; never waits, never fails.

        Args:
            facts: as `decide` got them.
            epoch: the epoch of the policy that `decide` got.
            view: as `decide` got it.
            decision: what it answered.
            now: as `decide` got it.
            sources: which tags each source of the label contributed, as the receipt has them.
        """
        self._hand_over(self._recorder.decided, (facts, epoch, view, decision, now, sources))

    def ended(self, receipt: Receipt) -> None:
        """A request ended; its receipt will not change any more."""
        self._hand_over(_ended, (receipt,))

    def event(self, event: str, subject: str, data: Any) -> None:
        """Something else happened: `event` is one of `router.ledger.records`, `data` a mapping or a record's struct."""
        self._hand_over(_event, (event, subject, data))

    def policy(self, epoch: str, text: bytes) -> None:
        """From now on decisions follow this policy; `text` is `policy_text` of its configuration."""
        self._hand_over(self._policy, (epoch, text))

    async def intent(self, facts: Facts, choice: Choice, epoch: str, body_bytes: int, evidence: str) -> None:
        """Say durably that a request is about to leave the cluster. Its first byte may be sent when this returns.

        Args:
            facts: the request's facts.
            choice: where it goes.
            epoch: the policy epoch that allowed it.
            body_bytes: size of the body that will be sent.
            evidence: the target's evidence in names.

        Raises:
            AuditUnavailable: it could not be written; the request must not be sent.
        """
        target = choice.target
        data = records.IntentData(
            epoch=epoch,
            key=facts.key.id,
            tenant=facts.key.tenant,
            label=self._label_text(facts.label),
            target=target.id,
            incarnation=target.incarnation,
            zone=target.zone,
            evidence=evidence,
            model=choice.model,
            reason=choice.reason,
            body_bytes=body_bytes,
            cost_usd=choice.cost_usd,
        )
        await self.durably(records.INTENT, facts.request_id, data)

    async def durably(self, event: str, subject: str, data: Any) -> None:
        """Write an event, and everything before it; returns once it is on the medium.

        Raises:
            AuditUnavailable: it could not be written.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()

        def settle(error: BaseException | None) -> None:
            with contextlib.suppress(RuntimeError):  # the loop may be closed by now
                loop.call_soon_threadsafe(_settle, done, error)

        if self._closing or not self._thread.is_alive():
            raise AuditUnavailable("the audit log is closed")
        self._hand_over(_event, (event, subject, data), settle)
        self._urgent.set()
        await done

    def close(self, timeout_s: float = 10.0) -> None:
        """Write what is left and let go of the log. Blocks up to `timeout_s` seconds."""
        if not self._closing:
            self.event(records.CLOSE, "", {})
            self._closing = True
            self._wake.set()
            self._urgent.set()
        self._thread.join(timeout_s)

    def _hand_over(self, make: Callable[..., Any], arguments: tuple[Any, ...], settle: Settle | None = None) -> None:
        # A deque's append and popleft are one step each for the interpreter, so no lock is needed.
        self._items.append((make, arguments, time.time(), time.monotonic(), settle))
        if not self._wake.is_set():
            self._wake.set()

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
        for settle in (*(item[-1] for item in self._items), *(item[-1] for item in self._waiting)):
            if settle is not None:
                settle(closed)
        with contextlib.suppress(OSError):
            self._store.close()

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
        self._recorder.forget()
        if settle is not None:
            settle(_unavailable(error))

    def _write(self, *, last: bool) -> None:
        """One append for everything that waits. On failure nothing that waits to be sent outside is sent."""
        if self._lost and self._waiting:
            now = (time.time(), time.monotonic())
            self._waiting.append((*now, records.LOST, "", {"records": self._lost}, None))
        if not self._waiting or (self.failure is not None and time.monotonic() < self._next_try and not self._any_waits()):
            return
        first = self._store.size
        try:
            entries = []
            for n, (t, m, event, subject, data, _) in enumerate(self._waiting, start=first):
                entries.append(records.encode(n, t, m, event, subject, data))
                if n % _CHUNK == 0:
                    time.sleep(0)
            self._store.append(entries)
        except (OSError, ValueError) as error:
            self._fail(error)
            self._refuse_intents(error)
            if last:
                _log.error("audit: %d records could not be written before the end", len(self._waiting))
            return
        if self.failure is not None:
            _log.warning("audit: the log of %s is written again", self.origin)
            self.failure = None
        self._lost = 0
        written, self._waiting = self._waiting, []
        for item in written:
            if (settle := item[-1]) is not None:
                settle(None)

    def _any_waits(self) -> bool:
        return any(item[-1] is not None for item in self._waiting)

    def _refuse_intents(self, error: BaseException) -> None:
        """An intent that could not be written is refused, not kept: what it announces will not happen."""
        kept = []
        for item in self._waiting:
            settle = item[-1]
            if settle is None:
                if item[2] != records.LOST:
                    kept.append(item)
            else:
                settle(_unavailable(error))
        self._waiting = kept

    def _fail(self, error: BaseException) -> None:
        reason = _reason(error)
        if self.failure != reason:
            _log.error("audit: the log of %s cannot be written: %s; nothing leaves the cluster", self.origin, reason)
        self.failure = reason
        self._next_try = time.monotonic() + _RETRY_S
        self._wake.set()

    def _publish(self, *, now: bool) -> None:
        moment = time.monotonic()
        if not self._store.size or (moment < self._publish_at and not now):
            return
        self._publish_at = moment + _PUBLISH_S
        try:
            note = self._store.publish()
            if now or moment >= self._copy_at:
                self._copy_at = moment + _COPY_S
                for copy in self._copies:
                    with copy.open("ab") as file:
                        file.write(note + b"\n")
        except OSError as error:
            _log.warning("audit: the checkpoint could not be published: %s", _reason(error))

    def _prune(self) -> None:
        if self._keep_days is None or time.monotonic() < self._prune_at or not self.healthy:
            return
        self._prune_at = time.monotonic() + _PRUNE_S
        try:
            holds = read_holds(self._store.root.parent)
            removed = prune(self._store, self._append_now, self._keep_days, holds, time.time())
            if removed:
                _log.info("audit: %d entries of %s were removed under the retention rule", removed, self.origin)
        except (OSError, ValueError) as error:
            _log.error("audit: nothing could be removed under the retention rule: %s", error)

    def _append_now(self, event: str, data: dict[str, Any]) -> None:
        self._store.append([records.encode(self._store.size, time.time(), time.monotonic(), event, "", data)])

    def _policy(self, epoch: str, text: bytes) -> list[tuple[str, str, Any]]:
        return [(records.POLICY, epoch, {"epoch": epoch, "blob": self._store.put_blob(text)})]


def _ended(receipt: Receipt) -> list[tuple[str, str, Any]]:
    return [(records.END, receipt.request_id, end_data(receipt))]


def _event(event: str, subject: str, data: Any) -> list[tuple[str, str, Any]]:
    return [(event, subject, data)]


def _settle(done: asyncio.Future[None], error: BaseException | None) -> None:
    if not done.done():
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)


def _unavailable(error: BaseException) -> AuditUnavailable:
    return AuditUnavailable(f"the audit log cannot be written: {_reason(error)}")


def _reason(error: BaseException) -> str:
    return (error.strerror or type(error).__name__) if isinstance(error, OSError) else type(error).__name__
