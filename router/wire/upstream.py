"""Connections to targets: a pool keyed by incarnation, and one exchange at a time on each connection.

Response bytes go from the target's socket to the client's transport as they came; an httptools parser beside them only
learns where the response ends. Nothing is allocated per chunk beyond what the parser itself hands over.
"""

from __future__ import annotations

import asyncio
import math
import select
from collections.abc import Callable
from enum import Enum, auto
from typing import Any, Protocol, cast

import httptools

from router.placement.targets import Address
from router.wire.events import EventStream, EventTooLarge
from router.wire.http_server import Client
from router.wire.tls import TlsContexts

MAX_RESPONSE_HEAD = 64 * 1024
MAX_HELD_BODY = 64 * 1024
MAX_TAIL = 4096
"""How much of a response's end is kept: the usage of a JSON answer stands there."""
_SMALL = 64
_FRAMING = (b"content-length", b"transfer-encoding")
_IDLE_LIFETIME_S = 4.0
"""Shorter than uvicorn's 5 s: vLLM closes idle connections then, and a connection closed while we write costs a retry."""
_SWEEP_S = 0.1
DEADLINE = "the request's deadline has passed"


class Ending(Enum):
    """How an exchange ended."""

    COMPLETE = auto()
    HELD = auto()
    """The response head was not forwarded; status and body are in the exchange."""
    BROKEN_BEFORE = auto()
    """The target failed before any byte went to the client."""
    BROKEN_AFTER = auto()
    """The target failed after bytes went to the client."""
    CLIENT_GONE = auto()


class HeadHandler(Protocol):
    """Decides what to do with a response head."""

    def on_head(self, exchange: Exchange) -> bytes | None:
        """The head to write to the client, the body will follow; or None: hold the response back."""

    def on_first_body(self, exchange: Exchange) -> None:
        """The first byte of the body arrived."""


class Exchange:
    """One request and its response on one upstream connection."""

    __slots__ = (
        "body_bytes",
        "chunked",
        "client",
        "connection",
        "content_length",
        "deadline",
        "done",
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
        "outbox",
        "reused",
        "status",
        "tail",
    )

    def __init__(
        self, client: Client, handler: HeadHandler, first_byte_s: float, idle_s: float, deadline: float = math.inf
    ) -> None:
        loop = asyncio.get_running_loop()
        self.client = client
        self.handler = handler
        self.done: asyncio.Future[Ending] = loop.create_future()
        self.connection: Connection | None = None
        self.reused = False
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.chunked = False
        self.content_length = -1
        self.forwarding = False
        self.events: EventStream | None = None
        self.outbox: list[bytes] = []
        self.head = b""
        self.held = bytearray()
        self.tail = b""
        self.body_bytes = 0
        self.failure = ""
        self.last_activity = loop.time()
        self.first_byte_deadline = self.last_activity + first_byte_s
        self.idle_s = idle_s
        self.deadline = deadline

    def reset(self) -> None:
        """Forget what a kept-alive connection brought before it broke: the request goes out again."""
        self.reused = False
        self.headers.clear()
        self.chunked = False
        self.content_length = -1
        self.failure = ""

    def end(self, ending: Ending) -> None:
        """Settle the exchange; later endings change nothing."""
        if not self.done.done():
            self.client.listen(None)
            self.done.set_result(ending)

    def client_gone(self) -> None:
        """The client left: cut the upstream at once, so that the engine stops generating."""
        if not self.done.done():
            if self.connection is not None:
                self.connection.discard()
            self.end(Ending.CLIENT_GONE)

    def client_paused(self) -> None:
        """Stop reading from the target until the client has caught up."""
        if self.connection is not None:
            self.connection.pause_reading()

    def client_resumed(self) -> None:
        """Read on."""
        self.last_activity = asyncio.get_running_loop().time()
        if self.connection is not None:
            self.connection.resume_reading()

    def write(self, data: bytes) -> None:
        """Pass bytes on to the client, after the head if that still waits."""
        if self.head:
            self.client.begin(self.head + data)
            self.head = b""
        else:
            self.client.transport.write(data)

    def write_events(self, complete: bool) -> None:
        """Pass whole events on in a chunk of their own, so that something can always be added after the last one."""
        assert self.events is not None
        data = b"".join(self.outbox)
        self.outbox.clear()
        if complete:
            data += self.events.finish()
        if self.client.speaks_chunked:
            data = b"%x\r\n%b\r\n" % (len(data), data) if data else b""
            if complete:
                data += b"0\r\n\r\n"
        if data or self.head:
            self.write(data)

    def broken(self, why: str) -> None:
        """The target failed; `why` is for the receipt and holds no content. A head that still waits was never sent."""
        self.failure = self.failure or why
        self.end(Ending.BROKEN_AFTER if self.forwarding and not self.head else Ending.BROKEN_BEFORE)


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
        self._poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)

    def start(self, exchange: Exchange, request: bytes) -> None:
        """Send one request; the exchange's future tells how it ended."""
        assert self._transport is not None
        self.exchange = exchange
        exchange.connection = self
        self._parser = httptools.HttpResponseParser(self)
        self._head.clear()
        self._in_head = True
        self._complete = False
        self._after_head = 0
        exchange.client.listen(exchange)
        if not exchange.done.done():
            self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        """Parse for the end of the message, and pass the body's bytes on as they are."""
        exchange = self.exchange
        if exchange is None or exchange.done.done():
            self.discard()
            return
        exchange.last_activity = self._pool.now()
        if self._in_head:
            self._head += data
        try:
            if self._in_head and not self._head.startswith(b"HTTP/1."[: len(self._head)]):
                raise httptools.HttpParserError("the parser would skip line ends")
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            large = isinstance(error.__context__, EventTooLarge)
            self._refuse(
                exchange, "the target sends an event without end" if large else "the target's response is not valid HTTP"
            )
            return
        if self._in_head:
            split = self._head.find(b"\r\n\r\n")
            if split < 0:
                if len(self._head) > MAX_RESPONSE_HEAD:
                    self._refuse(exchange, "the target's response head is too large")
                return
            data = bytes(self._head[split + 4 :])
            self._head.clear()
            self._in_head = False
        if exchange.done.done():
            return
        self._after_head += len(data)
        tail = data if exchange.chunked and _SMALL <= len(data) <= MAX_TAIL else (exchange.tail + data[-MAX_TAIL:])[-MAX_TAIL:]
        if self._complete and not self._ends_here(exchange, tail):
            self._refuse(exchange, "the target sent more than one response")
            return
        exchange.tail = tail
        if exchange.events is not None:
            exchange.write_events(self._complete)
        elif exchange.forwarding and (data or exchange.head) and (exchange.client.speaks_chunked or not exchange.chunked):
            exchange.write(data)
        if self._complete:
            self._finish(exchange)

    def _refuse(self, exchange: Exchange, why: str) -> None:
        """What the target sent cannot be passed on."""
        self.discard()
        exchange.broken(why)
        self.exchange = None

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
        if exchange is None or exchange.done.done():
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
        elif exchange.chunked and not exchange.client.speaks_chunked:
            exchange.write(body)

    def on_message_complete(self) -> None:
        """The response is whole."""
        self._complete = True

    def _finish(self, exchange: Exchange) -> None:
        self.exchange = None
        if exchange.forwarding:
            if exchange.head:
                exchange.write(b"")
            exchange.client.finish()
        exchange.end(Ending.COMPLETE if exchange.forwarding else Ending.HELD)
        if self._keep and self.usable:
            self.resume_reading()
            self._pool.release(self)
        else:
            self.discard()

    def eof_received(self) -> bool:
        """The target closed its side: close ours."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone; an exchange under way is broken."""
        self._pool.forget(self)
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.broken("the target closed the connection" if exc is None else "the connection to the target broke")

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

    @property
    def paused(self) -> bool:
        """True while flow control holds reading back."""
        return self._paused

    def discard(self) -> None:
        """Drop the connection now, with whatever is in flight."""
        self._pool.forget(self)
        if self._transport is not None:
            self._transport.abort()


class ConnectFailed(Exception):
    """No connection to the target could be made; the text holds no address."""


class Pool:
    """Idle and busy connections of one router, by target incarnation."""

    def __init__(self, connect_s: float, tls: TlsContexts) -> None:
        self._connect_s = connect_s
        self._tls = tls
        self._idle: dict[str, list[Connection]] = {}
        self._busy: set[Connection] = set()
        self._sweeper: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self.now: Callable[[], float] = self._loop.time
        self._sweep()

    async def send(self, incarnation: str, address: Address, request: bytes, exchange: Exchange) -> Ending:
        """Send `request` to a target and wait until its response ended.

        A connection that the target closed while it was idle costs nothing: the request goes out again on a new one.

        Raises:
            ConnectFailed: no connection within the limit.
        """
        connection = self._take_idle(incarnation)
        if connection is not None:
            exchange.reused = True
            self._busy.add(connection)
            connection.start(exchange, request)
            ending = await exchange.done
            late = self.now() > min(exchange.first_byte_deadline, exchange.deadline)
            if ending is not Ending.BROKEN_BEFORE or exchange.status or late:
                return ending
            exchange.reset()
            exchange.done = self._loop.create_future()
            if exchange.client.gone:
                return Ending.CLIENT_GONE
        connection = await self._connect(incarnation, address)
        self._busy.add(connection)
        connection.start(exchange, request)
        return await exchange.done

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
        try:
            async with asyncio.timeout(self._connect_s):
                if address.uds:
                    _, connection = await self._loop.create_unix_connection(factory, address.uds)
                else:
                    _, connection = await self._loop.create_connection(
                        factory, address.host, address.port, ssl=context, server_hostname=name
                    )
        except TimeoutError:
            raise ConnectFailed("connecting took too long") from None
        except OSError as error:
            raise ConnectFailed(f"connection failed ({type(error).__name__})") from None
        return connection

    def _sweep(self) -> None:
        """Enforce first-byte and idle limits, and drop old idle connections: one timer for all, none per chunk."""
        now = self.now()
        for connection in list(self._busy):
            exchange = connection.exchange
            if exchange is None:
                continue
            if now > exchange.deadline:
                exchange.broken(DEADLINE)
                connection.discard()
            elif exchange.body_bytes == 0 and now > exchange.first_byte_deadline:
                exchange.broken("no first byte within the limit")
                connection.discard()
            elif exchange.body_bytes and not connection.paused and now - exchange.last_activity > exchange.idle_s:
                exchange.broken("the target went silent in the middle of its response")
                connection.discard()
        oldest = now - _IDLE_LIFETIME_S
        for idle in self._idle.values():
            for connection in [c for c in idle if c.idle_since <= oldest]:
                connection.discard()
        self._idle = {key: idle for key, idle in self._idle.items() if idle}
        self._sweeper = self._loop.call_later(_SWEEP_S, self._sweep)
