"""A connection to a target (`router.wire.pool` keeps them): one exchange at a time.

Response bytes go from the target's socket to the client's transport as they came; an httptools parser beside them learns
where the response ends. In the middle of a stream even that is left out: a read of nothing but whole chunks of usual
events takes a shortcut (`EventStream.shortcut`), and the parser, which stands between two chunks before and after, never sees it.
"""

from __future__ import annotations

import asyncio
import select
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import httptools

from router.wire.events import EventTooLarge, is_opening
from router.wire.exchange import BROKE, CLOSED, ENGINE_FAILED, Ending, Exchange
from router.wire.heads import is_event_stream
from router.wire.keepalive import watch_target
from router.wire.usage_search import UsageSearch

if TYPE_CHECKING:
    from router.wire.pool import Pool

MAX_RESPONSE_HEAD = 512 * 1024
"""vLLM describes each vector of a binary answer in a header, in some 120 bytes: with less than this, a client's long list of
texts would look like a fault of the target."""
MAX_HELD_BODY = 64 * 1024
MAX_TAIL = 4096
"""How much of a response's end is kept: of a short JSON answer that is all, and of a longer one usage is searched for."""
NOT_HTTP = "the target's response is not valid HTTP"
NO_STREAM = "the target's response is no stream, which was asked for"
UNASKED_STREAM = "the target's response is a stream, which nobody asked for"
_SMALL = 64
_FRAMING = (b"content-length", b"transfer-encoding")
_RECEIVE_BUFFER = 24 * 1024
"""Linux doubles it, and one read of as much may wait for a slow client: measured, 46 kB. With two thirds of it a client slow to
read 2 MB could take 50 times as long: the window closes before large segments."""


class Connection(asyncio.Protocol):
    """One connection to one target incarnation."""

    def __init__(self, pool: Pool, incarnation: str) -> None:
        self._pool = pool
        self.incarnation = incarnation
        self.exchange: Exchange | None = None
        self.idle_since = 0.0
        self._transport: asyncio.Transport | None = None
        self._poll = select.poll()
        self._parser: Any = None
        self._head = bytearray()
        self._in_head = True
        self._complete = False
        self._keep = True
        self._paused = False
        self._after_head = 0
        self._between_chunks = False
        """The parser stands between two chunks."""
        self._shortcut: Callable[[bytes], bytes | None] | None = None
        """Set while whole chunks of events need no parser (`EventStream.shortcut`): nothing of the stream waits here."""
        self._write: Callable[[bytes], None]
        """Writes to the client then."""
        self._active = False
        """Something passed since the sweep last looked."""

    @property
    def usable(self) -> bool:
        """True while a new exchange may start on this connection."""
        return self._transport is not None and not self._transport.is_closing()

    @property
    def silent(self) -> bool:
        """True while nothing waits to be read. Between two exchanges that is bytes nobody asked for, or the end."""
        return not self._poll.poll(0)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connected."""
        # uvloop's transports have the interface but not the base class.
        self._transport = cast(asyncio.Transport, transport)
        raw = transport.get_extra_info("socket")
        # While a client is slow, the next read is as large as what the kernel has kept for us.
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        watch_target(raw)
        self._poll.register(raw.fileno(), select.POLLIN)

    def start(self, exchange: Exchange) -> None:
        """Send one request; the exchange tells its handler how it ended."""
        assert self._transport is not None
        self.exchange = exchange
        exchange.connection = self
        if self._parser is None or not self._complete:  # after a whole response it stands at the beginning of the next
            self._parser = httptools.HttpResponseParser(self)
        self._head.clear()
        self._in_head = True
        self._complete = False
        self._after_head = 0
        self._between_chunks = False
        self._shortcut = None
        exchange.client.listen(exchange)
        if not exchange.ended:
            exchange.sent = True
            self._transport.write(exchange.request)

    def data_received(self, data: bytes) -> None:
        """Pass the body's bytes on."""
        if self._shortcut is not None:
            passed = self._shortcut(data)
            if passed is not None:
                self._active = True
                self._write(passed)
                return
            self._shortcut = None
        exchange = self.exchange
        if exchange is None or exchange.ended:
            self.discard()
            return
        exchange.last_activity = self._pool.now()
        body = self._parse(exchange, data)
        if body is None or exchange.ended or self.exchange is not exchange:
            return
        size = len(body)
        self._after_head += size
        if size <= MAX_TAIL and (not exchange.tail or (exchange.chunked and size >= _SMALL)):
            tail = body
        else:
            tail = (exchange.tail + body[-MAX_TAIL:])[-MAX_TAIL:]
        if self._complete and not self._ends_here(exchange, tail):
            self._refuse(exchange, "the target sent more than one response")
            return
        exchange.tail = tail
        if self._complete and exchange.search is not None:
            exchange.tail = exchange.search.text
        if exchange.events is not None:
            if exchange.events.failed:
                self._refuse(exchange, ENGINE_FAILED)
                return
            if self._complete and exchange.events.cut_short:
                if any(exchange.outbox):
                    exchange.write_events(complete=False)
                self._refuse(exchange, "the stream ended without its last event")
                return
            if exchange.opening and self._complete:
                exchange.begin_answer()
            elif exchange.opening and exchange.holds_opening:
                return
            exchange.write_events(self._complete)
            aligned = self._between_chunks and data.endswith(b"\r\n") and not self._complete and not exchange.opening
            if aligned and exchange.copy is None and exchange.client.speaks_chunked and not exchange.head:
                self._shortcut, self._write = exchange.events.shortcut, exchange.client.transport.write
        elif exchange.forwarding and (body or exchange.head) and (exchange.client.speaks_chunked or not exchange.chunked):
            if exchange.head and not self._complete and 0 <= exchange.content_length <= MAX_HELD_BODY:
                exchange.head += body  # until it is whole: should the target die first, another is asked
            else:
                exchange.write(body)
        if self._complete:
            self._finish(exchange)

    def _parse(self, exchange: Exchange, data: bytes) -> bytes | None:
        """What of `data` comes after the head, once the parser has taken it; None while the head is not whole, and after a
        refusal."""
        if not self._in_head:
            return data if self._feed(exchange, data) else None
        head: bytes | bytearray = data  # a whole head in one read, as nearly always, is not copied
        if self._head:
            self._head += data
            head = self._head
        if not head.startswith(b"HTTP/1."[: len(head)]):  # the parser would skip line ends
            self._refuse(exchange, NOT_HTTP)
            return None
        if not self._feed(exchange, data):
            return None
        split = head.find(b"\r\n\r\n", max(0, len(head) - len(data) - 3))
        if split < 0:
            if len(head) > MAX_RESPONSE_HEAD:
                self._refuse(exchange, "the target's response head is too large")
            elif head is data:
                self._head += data
            return None
        body = bytes(head[split + 4 :])
        self._head.clear()
        self._in_head = False
        return body

    def _feed(self, exchange: Exchange, data: bytes) -> bool:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            large = isinstance(error.__context__, EventTooLarge)
            why = "the target sends an event without end" if large else NOT_HTTP
            self._refuse(exchange, why)
            return False
        return True

    def _refuse(self, exchange: Exchange, why: str) -> None:
        """What the target sent cannot be passed on; whole events that came with it can, and whoever carries on counts on that."""
        if exchange.forwarding and not exchange.head and any(exchange.outbox):
            exchange.write_events(complete=False)
        self.exchange = None
        self.discard()
        exchange.broken(why, now=self._pool.now())

    def _ends_here(self, exchange: Exchange, tail: bytes) -> bool:
        """True when the whole response ends with the last byte that came: the parser also swallows line ends after it."""
        if exchange.status in (204, 304):
            return self._after_head == 0
        if exchange.chunked:
            return tail.endswith(b"\r\n\r\n") and tail[-5] not in b"\r\n"
        return self._after_head == exchange.content_length

    def on_message_begin(self) -> None:
        """A response begins; after the end of another it is a protocol error."""
        if self._complete and self.exchange is not None:
            self._refuse(self.exchange, "the target sent more than one response")

    def on_header(self, name: bytes, value: bytes) -> None:
        """A response header."""
        exchange = self.exchange
        if exchange is None or self._complete:
            return
        lower = name.lower()
        if lower in _FRAMING and (exchange.status or exchange.chunked or exchange.content_length >= 0):
            self._refuse(exchange, "the target's response has more than one length")
            return
        if exchange.status:
            return  # A trailer: it travels inside the chunked coding.
        exchange.headers.append((lower, value))
        if lower == b"content-length":
            exchange.content_length = int(value) if value.isdigit() else -1
        elif lower == b"transfer-encoding":
            exchange.chunked = value.strip().lower() == b"chunked"
            if not exchange.chunked:
                self._refuse(exchange, "the target's response has an unknown transfer encoding")
        elif lower == b"content-encoding":
            if value.strip().lower() not in (b"", b"identity"):
                self._refuse(exchange, "the target's response is compressed, which nobody asked for")
        elif lower == b"content-type" and value[:9].lower() == b"text/html" and self._parser.get_status_code() == 200:
            self._refuse(exchange, "the target's response is a web page")

    def on_headers_complete(self) -> None:
        """The head is whole: ask the handler what to do with it."""
        exchange = self.exchange
        if exchange is None or exchange.ended:
            return
        exchange.status = self._parser.get_status_code()
        self._keep = self._parser.should_keep_alive()
        version = self._parser.get_http_version()
        bodiless = version == "1.0" or exchange.status in (204, 304)
        if exchange.status < 200 or version not in ("1.0", "1.1") or (exchange.chunked and bodiless):
            self._refuse(exchange, "the target's response is not one that was asked for")
            return
        if not exchange.chunked and exchange.content_length < 0 and exchange.status not in (204, 304):
            self._refuse(exchange, "the target's response does not say where it ends")
            return
        if (
            exchange.status == 200
            and exchange.streamed is not None
            and is_event_stream(exchange.headers) is not exchange.streamed
        ):
            self._refuse(exchange, NO_STREAM if exchange.streamed else UNASKED_STREAM)
            return
        head = exchange.handler.on_head(exchange)
        exchange.forwarding = head is not None
        exchange.head = head or b""
        exchange.opening, exchange.opened_at = bool(head) and is_event_stream(exchange.headers), exchange.last_activity
        if head is not None and exchange.events is None and (exchange.chunked or exchange.content_length > MAX_TAIL):
            exchange.search = UsageSearch()

    def on_chunk_header(self) -> None:
        """A chunk begins."""
        self._between_chunks = False

    def on_chunk_complete(self) -> None:
        """A chunk has ended."""
        self._between_chunks = True

    def on_body(self, body: bytes) -> None:
        """A piece of the body, free of framing."""
        exchange = self.exchange
        if exchange is None:
            return
        if exchange.body_bytes == 0 and not exchange.opening:
            exchange.handler.on_first_body(exchange)
        exchange.body_bytes += len(body)
        if exchange.events is not None:
            passed = exchange.events.feed(body)
            exchange.outbox.append(passed)
            if exchange.opening and passed and not is_opening(passed):
                exchange.begin_answer()
        elif not exchange.forwarding:
            if len(exchange.held) + len(body) <= MAX_HELD_BODY:
                exchange.held += body
        else:
            if exchange.copy is not None:
                exchange.copy.take(body)
            if exchange.search is not None:
                exchange.search.take(body)
            if exchange.chunked and not exchange.client.speaks_chunked:
                exchange.write(body)

    def on_message_complete(self) -> None:
        """The response is whole."""
        self._complete = True

    def _finish(self, exchange: Exchange) -> None:
        """The response is whole. The connection is free before anybody hears of it: the next request may follow at once."""
        self.exchange = None
        exchange.connection = None
        if self._keep and self.usable:
            if self._paused:
                self.resume_reading()
            self._pool.release(self, exchange.last_activity)
        else:
            self.discard()
        if exchange.forwarding:
            if exchange.head:
                exchange.write(b"")
            # The loop sends what was written before its next turn begins: the accounts of a request delay no answer.
            exchange.whole = True
            self._pool.soon(exchange.end, Ending.COMPLETE)
        else:
            exchange.end(Ending.HELD)

    def eof_received(self) -> bool:
        """The target closed its side: close ours."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone; an exchange under way is broken."""
        self._pool.forget(self)
        self._shortcut = None
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.broken(CLOSED if exc is None else BROKE, now=self._pool.now())

    def keep_to_itself(self) -> None:
        """The client is gone, and the response is read for its usage only."""
        self._shortcut = None
        self.resume_reading()

    def pause_reading(self) -> None:
        """Flow control: the client is slower than the target."""
        if self._transport is not None and not self._paused and not self._transport.is_closing():
            self._paused = True
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Flow control: read on."""
        if self._transport is not None and self._paused and not self._transport.is_closing():
            self._paused = False
            self._transport.resume_reading()
            if self.exchange is not None:
                self.exchange.last_activity = self._pool.now()

    @property
    def paused(self) -> bool:
        """True while flow control holds reading back."""
        return self._paused

    def note_activity(self, now: float) -> None:
        """What passed as it is left no time behind: the sweep's is near enough."""
        if self._active:
            self._active = False
            if self.exchange is not None:
                self.exchange.last_activity = now

    def give_up(self, why: str) -> None:
        """Wait no longer for the response."""
        exchange, self.exchange = self.exchange, None
        self.discard()
        if exchange is not None:
            exchange.broken(why)

    def discard(self) -> None:
        """Drop the connection now, with whatever is in flight."""
        self._pool.forget(self)
        if self._transport is not None:
            self._transport.abort()
