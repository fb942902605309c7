"""One request and its response on one upstream connection: what is passed on to the client, and how it ended."""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import Enum, auto
from typing import TYPE_CHECKING, Protocol

from router.wire.direct import DirectRequest
from router.wire.events import EventStream

if TYPE_CHECKING:
    from router.response_cache.answer import AnswerCopy
    from router.wire.upstream import Connection
    from router.wire.usage_search import UsageSearch

DEADLINE = "the request's deadline has passed"
CLOSED = "the target closed the connection"
BROKE = "the connection to the target broke"
ENGINE_FAILED = "the engine says that it failed"
MAX_OPENING_BYTES = 256 * 1024
"""What engines say before the first token repeats the request's instructions and tools, twice. More of it is not held back."""
OPENING_S = 10.0
"""Signs of life that come this long after the head are for the client to see: what waits between may take it for dead."""


class Ending(Enum):
    """How an exchange ended. `word` is its name in receipts; `target_failed`: held back or broken."""

    def __init__(self, _: int) -> None:
        # Here once, and not asked of each exchange: `name` and every member by its name are look-ups in Python code.
        self.word: str = self._name_.lower()
        self.complete = self._name_ == "COMPLETE"
        self.target_failed = self._name_ in ("HELD", "BROKEN_BEFORE", "BROKEN_AFTER")

    COMPLETE = auto()
    HELD = auto()
    """The response head was not forwarded; status and body are in the exchange."""
    BROKEN_BEFORE = auto()
    """The target failed before any byte went to the client."""
    BROKEN_AFTER = auto()
    """The target failed after bytes went to the client."""
    CLIENT_GONE = auto()


class ExchangeHandler(Protocol):
    """Decides what to do with a response, and hears how it ended."""

    def on_head(self, exchange: Exchange) -> bytes | None:
        """The head to write to the client, the body will follow; or None: hold the response back."""

    def on_first_body(self, exchange: Exchange) -> None:
        """The first byte of the body arrived; of a stream, the first event that brings something of the answer."""

    def finishes(self) -> bool:
        """Whether a response whose client has gone is read to its end, for the usage in it."""

    def on_end(self, exchange: Exchange, ending: Ending) -> None:
        """It is over; called exactly once."""


class _Nobody:
    """Stands where a client was that has gone: takes everything, and does nothing."""

    gone = True
    speaks_chunked = True

    @property
    def transport(self) -> _Nobody:
        """Itself."""
        return self

    def write(self, data: bytes) -> None:
        """Take bytes."""

    def begin(self, data: bytes) -> None:
        """Take the head."""

    def listen(self, listener: object) -> None:
        """There is nothing to hear any more."""


class Exchange:
    """One request and its response.

    Args:
        client: where the response goes.
        handler: decides about it.
        request: the bytes to send.
        now: the loop's time, in seconds, as are the limits below.
        first_byte_s: how long the first byte of the body may take.
        idle_s: how long a pause between two may be.
        deadline: when the whole request must be over, on the loop's clock.
        streamed: whether a stream of events was asked for; None: either answer will do.
    """

    __slots__ = (
        "body_bytes",
        "chunked",
        "client",
        "connection",
        "content_length",
        "copy",
        "deadline",
        "delayed",
        "ended",
        "events",
        "failure",
        "first_byte_deadline",
        "forwarding",
        "handler",
        "head",
        "headers",
        "held",
        "idle_s",
        "last_activity",
        "opened_at",
        "opening",
        "outbox",
        "request",
        "resend",
        "resent",
        "search",
        "sent",
        "status",
        "streamed",
        "tail",
        "whole",
    )

    def __init__(
        self,
        client: DirectRequest,
        handler: ExchangeHandler,
        request: bytes,
        now: float,
        first_byte_s: float,
        idle_s: float,
        deadline: float = math.inf,
        streamed: bool | None = None,
    ) -> None:
        self.client: DirectRequest | _Nobody = client
        self.handler = handler
        self.request = request
        self.connection: Connection | None = None
        self.resend: Callable[[Exchange], None] | None = None
        """Set while a kept-alive connection is used: one that closes before it answers costs the request nothing."""
        self.resent = False
        """That has happened."""
        self.ended = False
        self.sent = False
        """The request has gone to the target's connection."""
        self.whole = False
        """All of the response has been written; the handler hears of it on the loop's next turn."""
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.chunked = False
        self.content_length = -1
        self.forwarding = False
        self.delayed = False
        """The client once took it more slowly than it came: when it ended says nothing of the target."""
        self.events: EventStream | None = None
        self.outbox: list[bytes] = []
        self.copy: AnswerCopy | None = None
        """Set while the answer is copied for the response cache."""
        self.search: UsageSearch | None = None
        """Set while usage is searched for in a long JSON answer."""
        self.head = b""
        self.held = bytearray()
        self.tail = b""
        self.body_bytes = 0
        self.failure = ""
        self.opening = False
        """Set while a stream has brought nothing of its answer, though perhaps events that say it is coming."""
        self.opened_at = 0.0
        """When its head came, on the loop's clock."""
        self.last_activity = now
        self.first_byte_deadline = now + first_byte_s
        self.idle_s = idle_s
        self.deadline = deadline
        self.streamed = streamed

    def end(self, ending: Ending) -> None:
        """Settle the exchange; later endings change nothing, and what was written whole is complete."""
        if not self.ended:
            self.ended = True
            self.client.listen(None)
            self.handler.on_end(self, Ending.COMPLETE if self.whole else ending)

    def broken(self, why: str, *, now: float = math.inf) -> None:
        """The target failed; `why` is for the receipt and holds no content. A head that still waits was never sent.

        `now` is given where the connection itself broke: then the request may go out again, if it was a kept-alive one.
        """
        if self.ended:
            return
        if self.whole:
            self.end(Ending.COMPLETE)
            return
        resend, self.resend = self.resend, None
        if resend is not None and not self.status and now < min(self.first_byte_deadline, self.deadline):
            self.client.listen(None)
            if self.client.gone:
                self.end(Ending.CLIENT_GONE)
                return
            self.headers.clear()
            self.chunked = False
            self.content_length = -1
            self.connection = None
            self.sent, self.resent = False, True
            resend(self)
            return
        self.failure = self.failure or why
        self.end(Ending.BROKEN_AFTER if self.forwarding and not self.head else Ending.BROKEN_BEFORE)

    def client_gone(self) -> None:
        """The client left: cut the upstream at once, so that the engine stops generating; or read on, where that is asked for."""
        if not self.ended and self.sent and self.connection is not None and self.handler.finishes():
            self.client = _Nobody()
            self.connection.keep_to_itself()
        elif not self.ended:
            if self.connection is not None:
                self.connection.discard()
            self.end(Ending.CLIENT_GONE)

    def client_paused(self) -> None:
        """Stop reading from the target until the client has caught up."""
        if self.connection is not None:
            self.delayed = True
            self.connection.pause_reading()

    def client_resumed(self) -> None:
        """Read on."""
        if self.connection is not None:
            self.connection.resume_reading()

    def begin_answer(self) -> None:
        """A stream brings the first of its answer."""
        self.opening = False
        self.handler.on_first_body(self)

    @property
    def holds_opening(self) -> bool:
        """Whether nothing need go to the client yet. An engine that dies then costs the request nothing: another begins anew."""
        late = self.last_activity > self.opened_at + OPENING_S and self.body_bytes > 0
        return self.opening and bool(self.head) and not late and self.body_bytes <= MAX_OPENING_BYTES

    def write(self, data: bytes) -> None:
        """Pass bytes on to the client, after the head if that still waits."""
        if self.head:
            head, self.head = self.head, b""
            self.client.begin(head + data)
        else:
            self.client.transport.write(data)

    def write_events(self, complete: bool) -> None:
        """Pass whole events on in a chunk of their own, so that something can always be added after the last one."""
        assert self.events is not None
        data = b"".join(self.outbox)
        self.outbox.clear()
        if complete:
            data += self.events.finish()
        if self.copy is not None:
            self.copy.take(data)
        if self.client.speaks_chunked:
            data = b"%x\r\n%b\r\n" % (len(data), data) if data else b""
            if complete:
                data += b"0\r\n\r\n"
        if data or self.head:
            self.write(data)
