"""The audit log of one router: the hot path makes records of what happens, a writer appends them.

A record costs its encoding and an append to a queue. Local requests reach the medium in batches, at most `window_s` later; a
request that is to leave the cluster waits for its own `egress.intent`, and is not sent when that cannot be written.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec

from router.decision import Choice, Decision, Facts
from router.ledger import records
from router.ledger.pipe import Opened
from router.ledger.receipts import Receipt
from router.ledger.recorder import NO_SOURCES, Recorder, end_data
from router.ledger.records import begin
from router.ledger.writer import FULL, Settle, Writer, unavailable
from router.placement.targets import View

_log = logging.getLogger("tidegate.audit")

Announced = Callable[[BaseException | None], None]


class AuditLog:
    """Make records of what happens, and have them appended to a log.

    Args:
        writer: appends them; it belongs to this object from now on. None: nothing is recorded, and nothing may be sent outside.
        label_text: a label in names.
    """

    def __init__(self, writer: Writer | None, label_text: Callable[[Any], str]) -> None:
        self._label_text = label_text
        self._refusals: Counter[str] = Counter()
        self._faulty = False
        self._policy: tuple[str, bytes] | None = None
        self._writer = writer
        if writer is None:
            return
        self._recorder = Recorder(writer.keep, label_text)
        self._losses = 0
        writer.each_second = self._count_refusals
        writer.start(self._opening)

    def _opening(self, opened: Opened) -> Iterator[bytes]:
        """What a log begins with that was opened, or opened again."""
        assert self._writer is not None
        yield begin(time.time(), time.monotonic(), records.OPEN, "", msgspec.structs.asdict(opened))
        if self._policy is not None:
            yield self._policy_record(self._writer, *self._policy)

    @staticmethod
    def _policy_record(writer: Writer, epoch: str, text: bytes) -> bytes:
        data = {"epoch": epoch, "blob": writer.keep(text)}
        return begin(time.time(), time.monotonic(), records.POLICY, epoch, data)

    @property
    def origin(self) -> str:
        """The log's own name, as its checkpoints carry it; empty without a log."""
        return "" if self._writer is None else self._writer.origin

    @property
    def failure(self) -> str | None:
        """Why the log cannot be written now; None while it can."""
        return "no log could be opened" if self._writer is None else self._writer.failure

    @property
    def healthy(self) -> bool:
        """True while records reach the medium."""
        return self.failure is None

    @property
    def losses(self) -> int:
        """How often records were lost since this router started; how many, the log says."""
        return 0 if self._writer is None else self._writer.losses

    def decided(
        self, facts: Facts, epoch: str, view: View, decision: Decision, now: float, sources: Mapping[str, str] = NO_SOURCES
    ) -> None:
        """A decision was made: everything it was given, and what it answered. Never waits, never fails.

        Args:
            facts: as `decide` got them.
            epoch: the epoch of the policy that `decide` got.
            view: as `decide` got it.
            decision: what it answered.
            now: as `decide` got it.
            sources: which tags each source of the label contributed, as the receipt has them.
        """
        writer = self._writer
        if writer is None:
            return
        if self._losses != writer.losses:  # records must not refer to what is not in the log
            self._losses = writer.losses
            self._recorder.forget()
        if writer.has_room:
            t, m = time.time(), time.monotonic()
            try:
                for event, subject, data in self._recorder.decided(facts, epoch, view, decision, now, sources):
                    writer.hand_over(begin(t, m, event, subject, data))
            except Exception as error:
                self._give_up(error)
        else:
            writer.lose(FULL)

    def ended(self, receipt: Receipt) -> None:
        """A request ended; its receipt will not change any more. Never waits, never fails."""
        self._append(records.END, receipt.request_id, end_data(receipt))

    def event(self, event: str, subject: str, data: Any) -> None:
        """Something else happened: `event` is one of `router.ledger.records`, `data` a mapping or a record's struct."""
        self._append(event, subject, data)

    def policy(self, epoch: str, text: bytes, label_text: Callable[[Any], str] | None = None) -> None:
        """From now on decisions follow this policy.

        Args:
            epoch: its epoch.
            text: `policy_text` of its configuration.
            label_text: a label in names under this policy; None: as before.
        """
        self._label_text = label_text or self._label_text
        if self._writer is not None:
            self._policy = (epoch, text)
            self._recorder.policy(epoch, self._label_text)
            self._writer.hand_over(self._policy_record(self._writer, epoch, text))

    def refused(self, request_id: str, key: str, tenant: str, endpoint: str, status: int, code: str) -> None:
        """A request of a known key was refused before any decision."""
        data = {"key": key, "tenant": tenant, "endpoint": endpoint, "status": status, "code": code}
        self.event(records.REFUSE, request_id, data)

    def turned_away(self, code: str) -> None:
        """Somebody without a valid key was refused. Only counted, once a second: strangers must not fill the disk."""
        self._refusals[code] += 1

    def announce(self, facts: Facts, choice: Choice, epoch: str, body_bytes: int, evidence: str, done: Announced) -> None:
        """Say durably that a request is about to leave the cluster; its first byte may be sent once `done(None)` is called.

        Args:
            facts: the request's facts.
            choice: where it goes.
            epoch: the policy epoch that allowed it.
            body_bytes: size of what will be sent.
            evidence: the target's evidence in names.
            done: called once, later, on the running event loop; with an `AuditUnavailable` when it could not be written: the
                request must not be sent then.
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
        self._announce(records.INTENT, facts.request_id, data, done)

    async def intent(self, facts: Facts, choice: Choice, epoch: str, body_bytes: int, evidence: str) -> None:
        """The same as `announce`, to be waited for.

        Raises:
            AuditUnavailable: it could not be written; the request must not be sent.
        """
        result: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.announce(facts, choice, epoch, body_bytes, evidence, functools.partial(_settle, result))
        await result

    async def durably(self, event: str, subject: str, data: Any) -> None:
        """Write an event, and everything before it; returns once it is on the medium.

        Raises:
            AuditUnavailable: it could not be written.
        """
        result: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._announce(event, subject, data, functools.partial(_settle, result))
        await result

    def _announce(self, event: str, subject: str, data: Any, done: Announced) -> None:
        loop = asyncio.get_running_loop()
        if self._writer is None or not self._writer.alive:
            reason = unavailable(self.failure or "it is closed")
            loop.call_soon(done, reason)
            return

        def settle(error: BaseException | None) -> None:
            with contextlib.suppress(RuntimeError):  # the loop may be closed by now
                loop.call_soon_threadsafe(done, error)

        self._append(event, subject, data, settle)

    def _append(self, event: str, subject: str, data: Any, settle: Settle | None = None) -> None:
        if self._writer is None:
            return
        try:
            begun = begin(time.time(), time.monotonic(), event, subject, data)
        except Exception as error:
            self._give_up(error, settle)
        else:
            self._writer.hand_over(begun, settle)

    def _give_up(self, error: Exception, settle: Settle | None = None) -> None:
        """A record could not be made: whoever caused that is served all the same, and the log says that one is missing."""
        assert self._writer is not None
        if not self._faulty:  # once: the records that follow have the same fault
            self._faulty = True
            _log.error("audit: a record could not be made: %s", type(error).__name__)
        self._writer.lose(error, settle)

    def close(self, timeout_s: float = 10.0) -> None:
        """Write what is left and let go of the log. Blocks up to `timeout_s` seconds."""
        if self._writer is None:
            return
        if self._writer.alive:
            self._count_refusals()
            self.event(records.CLOSE, "", {})
        self._writer.close(timeout_s)

    def _count_refusals(self) -> None:
        if self._refusals:
            counts, self._refusals = self._refusals, Counter()
            self.event(records.TURNED_AWAY, "", dict(counts))


def _settle(done: asyncio.Future[None], error: BaseException | None) -> None:
    if not done.done():
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)
