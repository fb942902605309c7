"""Connections to targets: a pool keyed by incarnation, and one exchange at a time on each connection.

Response bytes go from the target's socket to the client's transport as they came; an httptools parser beside them learns
where the response ends. In the middle of a stream even that is left out: a read that is nothing but whole chunks of whole
events goes out as it is, and the parser, which stands between two chunks before and after, never sees it.
"""

from __future__ import annotations

import asyncio
import functools
import select
import socket
from collections.abc import Callable
from typing import Any, cast

import httptools

from router.placement.targets import Address
from router.wire.events import EventTooLarge, is_plain_events
from router.wire.exchange import BROKE, CLOSED, DEADLINE, Ending, Exchange
from router.wire.tls import TlsContexts

MAX_RESPONSE_HEAD = 64 * 1024
MAX_HELD_BODY = 64 * 1024
MAX_TAIL = 4096
"""How much of a response's end is kept: the usage of a JSON answer stands there."""
NOT_HTTP = "the target's response is not valid HTTP"
_SMALL = 64
_FRAMING = (b"content-length", b"transfer-encoding")
_IDLE_LIFETIME_S = 4.0
"""Shorter than uvicorn's 5 s: vLLM closes idle connections then, and a connection closed while we write costs a retry."""
_SWEEP_S = 0.1
_RECEIVE_BUFFER = 32 * 1024
"""With the client's high-water mark it makes the 64 kB that a stream may have waiting here."""


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
        self._pass_on: Callable[[bytes], None] | None = None
        """Writes to the client, while whole chunks of events may pass as they are: nothing of the stream waits here."""
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
        self._pass_on = None
        exchange.client.listen(exchange)
        if not exchange.ended:
            exchange.sent = True
            self._transport.write(exchange.request)

    def data_received(self, data: bytes) -> None:
        """Pass the body's bytes on."""
        if self._pass_on is not None:
            if is_plain_events(data):
                self._active = True
                self._pass_on(data)
                return
            self._pass_on = None
        exchange = self.exchange
        if exchange is None or exchange.ended:
            self.discard()
            return
        exchange.last_activity = self._pool.now()
        body = self._parse(exchange, data)
        if body is None or exchange.ended or self.exchange is not exchange:
            return
        self._after_head += len(body)
        tail = body if exchange.chunked and _SMALL <= len(body) <= MAX_TAIL else (exchange.tail + body[-MAX_TAIL:])[-MAX_TAIL:]
        if self._complete and not self._ends_here(exchange, tail):
            self._refuse(exchange, "the target sent more than one response")
            return
        exchange.tail = tail
        if exchange.events is not None:
            if self._complete and exchange.events.cut_short:
                if any(exchange.outbox):
                    exchange.write_events(complete=False)
                self._refuse(exchange, "the stream ended without [DONE]")
                return
            exchange.write_events(self._complete)
            aligned = self._between_chunks and data.endswith(b"\r\n") and not self._complete
            unseen = exchange.events.empty and exchange.copy is None
            if aligned and unseen and exchange.client.speaks_chunked and not exchange.head:
                self._pass_on = exchange.client.transport.write
        elif exchange.forwarding and (body or exchange.head) and (exchange.client.speaks_chunked or not exchange.chunked):
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
        split = head.find(b"\r\n\r\n")
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
        """What the target sent cannot be passed on."""
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
        head = exchange.handler.on_head(exchange)
        exchange.forwarding = head is not None
        exchange.head = head or b""

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
        if exchange.body_bytes == 0:
            exchange.handler.on_first_body(exchange)
        exchange.body_bytes += len(body)
        if exchange.events is not None:
            exchange.outbox.append(exchange.events.feed(body))
        elif not exchange.forwarding:
            if len(exchange.held) + len(body) <= MAX_HELD_BODY:
                exchange.held += body
        else:
            if exchange.copy is not None:
                exchange.copy.take(body)
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
            self.resume_reading()
            self._pool.release(self)
        else:
            self.discard()
        if exchange.forwarding and exchange.head:
            exchange.write(b"")
        exchange.end(Ending.COMPLETE if exchange.forwarding else Ending.HELD)

    def eof_received(self) -> bool:
        """The target closed its side: close ours."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone; an exchange under way is broken."""
        self._pool.forget(self)
        self._pass_on = None
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.broken(CLOSED if exc is None else BROKE, now=self._pool.now())

    def keep_to_itself(self) -> None:
        """The client is gone, and the response is read for its usage only."""
        self._pass_on = None
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


class Pool:
    """Idle and busy connections of one router, by target incarnation.

    Args:
        connect_s: how long connecting may take, in seconds.
        tls: the contexts for targets over TLS.
    """

    def __init__(self, connect_s: float, tls: TlsContexts) -> None:
        self._connect_s = connect_s
        self._tls = tls
        self._idle: dict[str, list[Connection]] = {}
        self._busy: set[Connection] = set()
        self._connecting: set[asyncio.Task[None]] = set()
        self._sweeper: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self.now: Callable[[], float] = self._loop.time
        self._sweep()

    def send(self, incarnation: str, address: Address, exchange: Exchange) -> None:
        """Send the exchange's request to a target; the exchange tells its handler how it ended.

        A connection that the target closed while it was idle costs nothing: the request goes out again on a new one.
        """
        connection = self._take_idle(incarnation)
        if connection is None:
            self._connect_for(exchange, incarnation, address)
            return
        exchange.resend = functools.partial(self._connect_for, incarnation=incarnation, address=address)
        self._busy.add(connection)
        connection.start(exchange)

    def _connect_for(self, exchange: Exchange, incarnation: str, address: Address) -> None:
        task = self._loop.create_task(self._connect_and_start(exchange, incarnation, address))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect_and_start(self, exchange: Exchange, incarnation: str, address: Address) -> None:
        try:
            connection = await self._connect(incarnation, address)
        except TimeoutError:
            exchange.broken("connecting took too long")
        except OSError as error:
            exchange.broken(f"connection failed ({type(error).__name__})")
        else:
            self._busy.add(connection)
            connection.start(exchange)

    def release(self, connection: Connection) -> None:
        """Keep a connection for the next exchange with the same incarnation."""
        self._busy.discard(connection)
        connection.idle_since = self.now()
        self._idle.setdefault(connection.incarnation, []).append(connection)

    def forget(self, connection: Connection) -> None:
        """A connection is gone."""
        self._busy.discard(connection)
        idle = self._idle.get(connection.incarnation)
        if idle and connection in idle:
            idle.remove(connection)

    def close(self) -> None:
        """Drop every connection."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in [*self._busy, *(c for idle in self._idle.values() for c in idle)]:
            connection.discard()
        self._idle.clear()

    def _take_idle(self, incarnation: str) -> Connection | None:
        idle = self._idle.get(incarnation)
        oldest = self.now() - _IDLE_LIFETIME_S
        while idle:
            connection = idle.pop()
            if connection.usable and connection.idle_since > oldest and connection.silent:
                return connection
            connection.discard()
        return None

    async def _connect(self, incarnation: str, address: Address) -> Connection:
        def factory() -> Connection:
            return Connection(self, incarnation)

        context = self._tls.of(address.tls_files) if address.tls else None
        name = (address.tls_files.server_name if address.tls_files else "") or address.host if context else None
        async with asyncio.timeout(self._connect_s):
            if address.uds:
                _, connection = await self._loop.create_unix_connection(factory, address.uds)
            else:
                _, connection = await self._loop.create_connection(
                    factory, address.host, address.port, ssl=context, server_hostname=name
                )
        return connection

    def _sweep(self) -> None:
        """Enforce first-byte and idle limits, and drop old idle connections: one timer for all, none per chunk."""
        now = self.now()
        for connection in list(self._busy):
            exchange = connection.exchange
            if exchange is None:
                continue
            connection.note_activity(now)
            if now > exchange.deadline:
                connection.give_up(DEADLINE)
            elif exchange.body_bytes == 0 and now > exchange.first_byte_deadline:
                connection.give_up("no first byte within the limit")
            elif exchange.body_bytes and not connection.paused and now - exchange.last_activity > exchange.idle_s:
                connection.give_up("the target went silent in the middle of its response")
        oldest = now - _IDLE_LIFETIME_S
        for idle in self._idle.values():
            for connection in [c for c in idle if c.idle_since <= oldest]:
                connection.discard()
        self._idle = {key: idle for key, idle in self._idle.items() if idle}
        self._sweeper = self._loop.call_later(_SWEEP_S, self._sweep)
