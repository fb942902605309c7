"""One engine rank's events, whole and in order: gaps are found by sequence number and filled from the engine's replay buffer.

The replay socket is also the pulse. Once a second the engine is asked for everything from the next expected number on; its "that
is all" proves that nothing was missed up to then. A quiet engine sends no events, so silence alone would prove nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

import msgspec
import zmq
import zmq.asyncio

from cluster.kv.events import Batch, decode_batch

PULSE_S = 1.0
_END = (-1).to_bytes(8, "big", signed=True)
_HELD_BACK = 50_000
"""Messages kept while a gap before them is being filled."""


class Subscription:
    """Follows one publisher.

    Args:
        context: the ZeroMQ context.
        events: the publisher's address, `ipc://...`.
        replay: its replay address, or "" when it has none: then a gap stays a gap.
        apply: takes each batch, in order, once.
        lost: called when batches are gone for good; everything known so far may be wrong.
    """

    def __init__(
        self, context: zmq.asyncio.Context, events: str, replay: str, apply: Callable[[Batch], None], lost: Callable[[], None]
    ) -> None:
        self._context = context
        self._events = events
        self._replay = replay
        self._apply = apply
        self._lost = lost
        self._next = 0
        self._ahead: dict[int, bytes] = {}
        self._proved_at = -1.0
        self.unreadable = 0
        self.first_seen = -1
        """The first sequence number that could be had; above 0, the beginning is missing."""

    def proof_age(self) -> float:
        """Seconds since the engine confirmed that nothing is missing; -1: it never did."""
        return -1.0 if self._proved_at < 0 else time.monotonic() - self._proved_at

    async def run(self) -> None:
        """Follow until cancelled."""
        subscriber = self._context.socket(zmq.SUB)
        subscriber.setsockopt(zmq.RCVHWM, 100_000)
        subscriber.setsockopt(zmq.LINGER, 0)
        subscriber.setsockopt(zmq.SUBSCRIBE, b"")
        subscriber.connect(self._events)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._listen(subscriber))
                if self._replay:
                    tasks.create_task(self._keep_pulse())
        finally:
            subscriber.close()

    async def _listen(self, subscriber: zmq.asyncio.Socket) -> None:
        while True:
            frames = await subscriber.recv_multipart()
            if len(frames) >= 3:
                self.take(int.from_bytes(frames[-2], "big"), frames[-1])

    async def _keep_pulse(self) -> None:
        while True:
            # A new socket after each failure: an answer that comes late must not be taken for the next one's.
            socket = self._context.socket(zmq.DEALER)
            socket.setsockopt(zmq.LINGER, 0)
            socket.connect(self._replay)
            try:
                while await self._ask(socket):  # noqa: ASYNC110 - a pulse, not a wait for something
                    await asyncio.sleep(PULSE_S)
            finally:
                socket.close()

    async def _ask(self, socket: zmq.asyncio.Socket) -> bool:
        asked_at, start = time.monotonic(), self._next
        await socket.send_multipart([b"", start.to_bytes(8, "big")])
        with contextlib.suppress(TimeoutError):
            while True:
                frames = await asyncio.wait_for(socket.recv_multipart(), 2 * PULSE_S)
                number, payload = frames[-2], frames[-1]
                if number == _END:
                    self._close_gap()
                    self._proved_at = asked_at
                    return True
                self._fill(int.from_bytes(number, "big"), payload)
        return False

    def take(self, number: int, payload: bytes) -> None:
        """A message of the live stream."""
        if number == self._next and (self.first_seen >= 0 or number == 0 or not self._replay):
            self._advance(number, payload)
            self._drain_ahead()
        elif number > self._next or self.first_seen < 0:
            if not self._replay:
                self._skip_to(number)
                self._advance(number, payload)
            elif len(self._ahead) < _HELD_BACK:
                self._ahead[number] = payload

    def _fill(self, number: int, payload: bytes) -> None:
        """A message of a replay: they come in order, from the oldest that is left."""
        if number > self._next:
            self._skip_to(number)
        if number == self._next:
            self._advance(number, payload)

    def _close_gap(self) -> None:
        """The replay is over: what is held back follows it, or was missed for good."""
        if self.first_seen < 0:
            self.first_seen = 0
        self._drain_ahead()
        while self._ahead:
            number = min(self._ahead)
            if number > self._next:
                self._skip_to(number)
            self._drain_ahead()

    def _drain_ahead(self) -> None:
        while (payload := self._ahead.pop(self._next, None)) is not None:
            self._advance(self._next, payload)
        if self._ahead and min(self._ahead) < self._next:
            self._ahead = {number: payload for number, payload in self._ahead.items() if number > self._next}

    def _skip_to(self, number: int) -> None:
        if self.first_seen < 0 and self._next == 0:
            self.first_seen = number
        self._next = number
        self._lost()

    def _advance(self, number: int, payload: bytes) -> None:
        if self.first_seen < 0:
            self.first_seen = number
        self._next = number + 1
        try:
            batch = decode_batch(payload)
        except msgspec.MsgspecError:
            self.unreadable += 1
            self._lost()
            return
        self.unreadable += batch.unreadable
        self._apply(batch)
