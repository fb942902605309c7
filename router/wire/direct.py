"""A request of a hot path, answered by the protocol itself: no ASGI, no task, no event between its bytes and the handler.

`DirectRequest` stands where uvicorn's `RequestResponseCycle` stands (its protocol knows both by the same few attributes), and
is also the way back to the client, as raw bytes.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import TYPE_CHECKING, Any, Protocol

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from router.wire.bodies import Bodies

if TYPE_CHECKING:
    from router.wire.http_server import RelayProtocol


class ClientListener(Protocol):
    """Who wants to know what the client's connection does while a response is under way."""

    def client_gone(self) -> None:
        """The connection was lost."""

    def client_paused(self) -> None:
        """The client reads too slowly: its write buffer is full."""

    def client_resumed(self) -> None:
        """The write buffer drained."""


class DirectHandler(Protocol):
    """Answers the requests of one path. Neither method may raise."""

    @property
    def max_body_bytes(self) -> int:
        """A longer body is not kept."""

    @property
    def bodies(self) -> Bodies:
        """Counts the bytes of large bodies over all requests."""

    def open(self, request: DirectRequest) -> None:
        """The head is whole. What can be refused without the body is refused here, by `request.answer`."""

    def run(self, request: DirectRequest) -> None:
        """The body is whole, or longer than it may be (`request.too_large`), or there are too many (`request.crowded`)."""


class _Unwatched:
    """Stands for the event that uvicorn sets when a request goes on: nobody waits here."""

    def set(self) -> None:
        """Nothing."""


class DirectRequest:
    """One request and its way back. The writing half is valid until `finish`, `answer` or `abort`.

    Attributes:
        method: as sent, e.g. `POST`.
        path: the decoded path, without the query.
        headers: names in lower case.
        limit: bytes of the body that are kept.
        crowded: True when the body was thrown away because the router holds too many bytes of others.
        context: what the handler keeps between `open` and `run`.
        key: the id of the key that sends it, once `open` has found it.
    """

    __slots__ = (
        "__weakref__",
        "_body",
        "_counted",
        "_counted_for",
        "_protocol",
        "_size",
        "context",
        "crowded",
        "disconnected",
        "handler",
        "headers",
        "keep_alive",
        "key",
        "limit",
        "method",
        "more_body",
        "opened",
        "path",
        "response_complete",
        "response_started",
        "speaks_chunked",
        "transport",
        "waiting_for_100_continue",
    )

    message_event = _Unwatched()

    def __init__(
        self,
        protocol: RelayProtocol,
        handler: DirectHandler,
        method: str,
        path: str,
        headers: list[tuple[bytes, bytes]],
        *,
        keep_alive: bool,
        speaks_chunked: bool,
        expects_100: bool,
    ) -> None:
        self._protocol = protocol
        self.handler = handler
        self.transport: asyncio.Transport = protocol.transport
        self.method = method
        self.path = path
        self.headers = headers
        self.context: Any = None
        self.key = ""
        self.keep_alive = keep_alive
        self.speaks_chunked = speaks_chunked
        """False for an HTTP/1.0 client, which cannot read chunked bodies."""
        self.waiting_for_100_continue = expects_100
        self.limit = handler.max_body_bytes
        self._body: bytes | bytearray = b""
        self._size = 0
        self._counted = 0
        self.crowded = False
        self.more_body = True
        self.opened = False
        self.disconnected = False
        self.response_started = False
        self.response_complete = False

    # -- the request, as the protocol brings it

    def open(self) -> None:
        """It is this request's turn: its head is whole, and every request before it on the connection is answered."""
        self.opened = True
        self.handler.open(self)
        if self.response_complete or self.disconnected:
            return
        if not self.more_body:
            self.handler.run(self)
        elif self.waiting_for_100_continue:
            self.waiting_for_100_continue = False
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def feed(self, piece: bytes) -> None:
        """A piece of the body. What is too much, or comes after the answer, is thrown away."""
        self._size += len(piece)
        if self.response_complete or self._size > self.limit:
            self._body = b""
            self.let_go()
        elif not self._body:
            self._body = piece
        else:
            self._keep(piece)

    def _keep(self, piece: bytes) -> None:
        """A further piece: from now on the body counts among all that the router holds."""
        if self._counted:
            more = len(piece)
        else:
            self._body, more, self._counted_for = bytearray(self._body), self._size, self.key
        if self.handler.bodies.take(self._counted_for, self._counted, more):
            self._counted += more
            self._body += piece
        else:
            self.crowded, self.limit, self._body = True, 0, b""
            self.let_go()

    def let_go(self) -> None:
        """Answered, or given up: the body counts no longer."""
        if self._counted:
            self.handler.bodies.give_back(self._counted_for, self._counted)
            self._counted = 0

    def complete(self) -> None:
        """The body is whole."""
        self.more_body = False
        if self.opened and not self.response_complete:
            self.handler.run(self)

    @property
    def too_large(self) -> bool:
        """True when the body was longer than the handler wants; it was thrown away."""
        return self._size > self.limit

    def take_body(self) -> bytes:
        """The body; it is not kept here any longer."""
        body, self._body = self._body, b""
        return bytes(body)

    @property
    def peer(self) -> str | None:
        """The address of the connection's other end, or of the client that a PROXY header named; None where there is none."""
        client = self._protocol.client
        return None if client is None else client[0]

    # -- the way back

    @property
    def gone(self) -> bool:
        """True once the client has disconnected."""
        return self.disconnected or self.transport.is_closing()

    def listen(self, listener: ClientListener | None) -> None:
        """Send the connection's events to `listener` (None: to nobody)."""
        self._protocol.listener = listener
        if listener is None:
            return
        if self.disconnected or self.transport.is_closing():
            self.disconnected = True
            listener.client_gone()
        elif self._protocol.flow.write_paused:
            listener.client_paused()  # the answer before still fills the buffer: of that the transport says nothing again

    def make_head(self, status: int, headers: bytes, *, close: bool = False) -> bytes:
        """The status line and a ready header block (lines ending in CRLF, without the final empty line), to be written next.

        It is returned, not written, so that head and first bytes of the body go out in one system call.
        """
        if close:
            self.keep_alive = False
        connection = b"" if self.keep_alive else b"connection: close\r\n"
        return b"".join((STATUS_LINE[status], headers, connection, b"\r\n"))

    def begin(self, data: bytes) -> None:
        """Write the head, and what of the body is there already: from now on the response cannot be taken back."""
        self.response_started = True
        self.transport.write(data)

    def answer(self, status: int, headers: bytes, body: bytes) -> None:
        """Write a whole response. `headers` are lines, without the length."""
        if self.gone:
            self.response_complete = True
            return
        head = self.make_head(status, headers + b"content-length: %d\r\n" % len(body))
        self.begin(head + body if self.method != "HEAD" else head)
        self.finish()

    def finish(self) -> None:
        """The last byte of the response has been written."""
        protocol = self._protocol
        protocol.listener = None
        self.response_complete = True
        if self._counted:
            self.let_go()
        if not self.keep_alive:
            self.transport.close()
        protocol.on_response_complete()

    def abort(self) -> None:
        """Break the connection, so that a cut answer cannot be taken for a whole one.

        To an HTTP/1.0 client the end of the connection can be the end of the answer: it gets a reset instead.
        """
        self._protocol.listener = None
        self.response_complete = True
        self.let_go()
        self.keep_alive = False
        if self.speaks_chunked:
            self.transport.close()
        else:
            raw = self.transport.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.transport.abort()
