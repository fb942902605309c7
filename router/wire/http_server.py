"""The public HTTP server: uvicorn's own httptools protocol, plus one seam for requests it answers without ASGI.

uvicorn does the framing, the limits and keep-alive. `RelayProtocol` hands requests of the paths in `direct` to their
`DirectHandler` at once, in the call that brought their last byte; such a handler writes the response's bytes straight to the
client's transport, hears at once when the client goes away, and can stop an upstream that is faster than the client. Every
other path goes to the ASGI application, as uvicorn does it.
"""

from __future__ import annotations

import asyncio
import sys
import urllib.parse
from collections.abc import Mapping
from typing import Any, cast

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from router.identity.networks import Networks, packed
from router.wire.client_head import MAX_HEADER_BYTES, BadHead, HeadCollector, HeaderBlock, framing_problem
from router.wire.direct import ClientListener, DirectHandler, DirectRequest
from router.wire.errors import ApiError
from router.wire.keepalive import has_hung_up, has_vanished
from router.wire.known_head import KnownHead
from router.wire.patience import Patience, Verdict
from router.wire.proxy_header import BadProxyHeader, read_proxy_header
from router.wire.sources import Sources, TooManyConnections

LAST_CALL_S = 2.0
"""How long a kept connection stays open for one more request when the server ends. A client that is just sending one as the
connection is closed loses it, and may not dare to send it again."""
_WRITE_HIGH_WATER = 0
"""Whatever the kernel does not take at once stops the reading from the target: one read is all that ever waits."""


class RelayProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 protocol with the relay seam, and stricter about what a client sends and how slowly."""

    def __init__(
        self,
        *args: Any,
        direct: Mapping[bytes, DirectHandler],
        balancers: Networks | None = None,
        sources: Sources | None = None,
        most_requests: int = sys.maxsize,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._direct = direct
        self._balancers = balancers
        self._sources = sources
        self._source: bytes | None = None
        self._left = most_requests
        self._ending = False
        self._preface: bytes | None = None
        """What has come of the PROXY header that must come first; None where none is expected any more."""
        self.listener: ClientListener | None = None
        self._collector = HeadCollector()
        self._known = KnownHead()
        self._block: bytes | None = None
        """What begins with the header block that the parser is at."""
        self._in_body = False
        self._parser_in_head = False
        self._unproductive = 0
        """Bytes since the last piece of a body: framing and trailers."""
        self._patience = Patience(self.loop.time())
        self._refusal: bytes | None = None
        """An error that waits until the requests before it are answered. Whatever else arrives is thrown away."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Bound the write buffer, then as uvicorn does."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=_WRITE_HIGH_WATER)
        if self._balancers is not None and self.client is not None:
            peer = packed(self.client[0])
            if peer is not None and self._balancers.holds(peer):
                self._preface = b""
                return
        if self._sources is not None:
            self._count_source(self._sources)

    def _count_source(self, sources: Sources) -> None:
        try:
            self._source = None if self.client is None else sources.enter(self.client[0])
        except TooManyConnections:
            self._refuse(429, "Too many connections are open from this address; close some.", "rate_limited")

    def connection_lost(self, exc: Exception | None) -> None:
        """As uvicorn does, and tell the listener at once."""
        listener, self.listener = self.listener, None
        super().connection_lost(exc)
        for cycle in (self.cycle, *(waiting for waiting, _ in self.pipeline)):
            if isinstance(cycle, DirectRequest):
                cycle.let_go()
        if self._source is not None and self._sources is not None:
            self._sources.leave(self._source)
        if listener is not None:
            listener.client_gone()

    def pause_writing(self) -> None:
        """The client is slower than the upstream."""
        super().pause_writing()
        if self.listener is not None:
            self.listener.client_paused()

    def resume_writing(self) -> None:
        """The client has caught up."""
        super().resume_writing()
        if self.listener is not None:
            self.listener.client_resumed()

    def data_received(self, data: bytes) -> None:
        """Feed the parser with whole header blocks, and with bodies that make progress."""
        if self._refusal is not None or self.transport.is_closing():
            return
        if self._preface is not None:
            data = self._take_preface(data)
            if not data:
                return
        if self._in_body or self._parser_in_head:  # the latter: a pipelined block that came with the body before it
            if self._unproductive > MAX_HEADER_BYTES:
                self.send_400_response("The header block, or the framing of the body, is too large.")
                return
            self._unproductive += len(data)
        elif self._repeats(data):
            return
        else:
            try:
                whole = self._collector.collect(data)
            except BadHead as error:
                self.send_400_response(str(error))
                return
            if whole is None:
                self._patience.expect_head(self.loop.time())
                return
            data = self._block = whole
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")
        except httptools.HttpParserUpgrade:
            pass  # `on_headers_complete` has refused it
        self._block = None
        if self._parser_in_head:
            self._patience.expect_head(self.loop.time())

    def _repeats(self, data: bytes) -> bool:
        """Serve a request that is, but for its body, the one before it again; false where it has to be read."""
        known, handler, before = self._known, self._known.handler, self.cycle
        if handler is None or self._collector.waiting or (before is not None and not before.response_complete):
            return False
        found = known.match(data)
        if found is None:
            return False
        headers, body = found
        self._patience.settle()
        request = DirectRequest(
            self, handler, known.method, known.path, headers, keep_alive=True, speaks_chunked=True, expects_100=False
        )
        self.cycle = request  # type: ignore[assignment]
        request.feed(body)
        request.complete()
        request.open()
        return True

    def _take_preface(self, data: bytes) -> bytes:
        """Read the PROXY header, and return what follows it."""
        data = (self._preface or b"") + data
        self._patience.expect_head(self.loop.time())
        try:
            found = read_proxy_header(data)
        except BadProxyHeader:
            self.send_400_response("A connection from this proxy begins with a PROXY header.")
            return b""
        if found is None:
            self._preface = data
            return b""
        self._preface, self.client = None, found.client
        if self._sources is not None:
            self._count_source(self._sources)
        return b"" if self._refused else data[found.length :]

    def on_message_begin(self) -> None:
        """A request begins. What uvicorn prepares here is prepared once the path is known."""
        self.url = b""
        self.headers = HeaderBlock()
        self.expect_100_continue = False
        self._parser_in_head = True
        self._unproductive = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header; trailers after a chunked body are dropped, or they would pass for headers that nobody checked."""
        if self._parser_in_head:
            name = name.lower()
            if name == b"expect" and value.lower() == b"100-continue":
                self.expect_100_continue = True
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Check the block, then give the request to its handler, or let uvicorn start the ASGI task."""
        self._parser_in_head = False
        self._in_body = True
        self._patience.expect_body(self.loop.time())
        if self._refusal is not None or self.transport.is_closing():
            return
        version = self.parser.get_http_version()
        headers = cast(HeaderBlock, self.headers)
        headers.seal()
        problem = framing_problem(version, headers, self.url)
        if problem is None and self.parser.should_upgrade():
            problem = "CONNECT is not understood here, and no other protocol either."
        if problem is not None:
            self.send_400_response(problem)
            return
        path = self.url
        handler = self._direct.get(path)
        if handler is None:
            path = _path_of(self.url)
            handler = self._direct.get(path)
        if handler is None:
            self._start_asgi()
        else:
            self._start_direct(handler, path.decode("ascii"), headers, version != "1.0")

    def _start_asgi(self) -> None:
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.headers, self.scope["headers"], self.expect_100_continue = url, headers, headers, expects
        super().on_headers_complete()
        if expects or self._left <= 1:  # whether the body follows a final answer is the client's choice: do not guess
            self.cycle.keep_alive = False

    def _start_direct(self, handler: DirectHandler, path: str, headers: HeaderBlock, modern: bool) -> None:
        request = DirectRequest(
            self,
            handler,
            self.parser.get_method().decode("ascii"),
            path,
            headers,
            keep_alive=modern and self._left > 1 and not self.expect_100_continue and self.parser.should_keep_alive(),
            speaks_chunked=modern,
            expects_100=self.expect_100_continue,
        )
        if self._block is not None and modern and request.keep_alive:
            self._known.learn(self._block, headers, handler, request.method, path)
        self._block = None
        before: Any = self.cycle
        self.cycle = request  # type: ignore[assignment]
        if before is None or before.response_complete:
            request.open()
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((cast(Any, request), self.app))

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        """Start what waited in the pipeline. A direct request starts from the loop: a hundred answers in a row must not nest."""
        if isinstance(cycle, DirectRequest):
            self.loop.call_soon(cycle.open)
        else:
            super()._start_asgi_task(cycle, app)

    def on_body(self, body: bytes) -> None:
        """Drop the body of a request that was refused on its headers."""
        self._unproductive = 0
        self._patience.got_body(len(body))
        cycle: Any = self.cycle
        if cycle is None or self._refusal is not None or self.transport.is_closing():
            return
        if type(cycle) is DirectRequest:
            cycle.feed(body)
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is whole."""
        self._in_body = False
        self._patience.settle()
        cycle: Any = self.cycle
        if cycle is None or self._refusal is not None or self.transport.is_closing():
            return
        if type(cycle) is DirectRequest:
            cycle.complete()
        else:
            super().on_message_complete()

    def judge(self, now: float) -> None:
        """Called once a second: give up on a client that does not send, or does not read."""
        answering = self.cycle is not None and not self.cycle.response_complete
        unsent, held_back = self.transport.get_write_buffer_size(), self.flow.read_paused
        verdict = self._patience.judge(now, unsent, held_back=held_back, answering=answering)
        gone = answering and (has_vanished(self.transport) or (held_back and has_hung_up(self.transport)))
        if gone or verdict is Verdict.UNREAD or (verdict is Verdict.TOO_SLOW and self.transport.is_closing()):
            self.transport.abort()
        elif verdict is Verdict.IDLE:
            self.transport.close()
        elif verdict is Verdict.TOO_SLOW:
            started = answering and self.cycle.response_started
            if started or not (self._in_body or self._parser_in_head or self._collector.waiting):
                self.transport.close()  # nothing was asked, or the answer has begun
            else:
                self._refuse(408, "The request did not arrive in time.")

    def send_400_response(self, msg: str) -> None:
        """Refuse in OpenAI's envelope and close: after a framing error nothing on this connection can be trusted."""
        self._refuse(400, msg)

    def on_response_complete(self) -> None:
        """As uvicorn does, but without a timer per response (`judge` ends idle connections). After the last answer that was
        due comes the refusal of what stood behind its request."""
        self.server_state.total_requests += 1
        self._left -= 1
        if self._left == 1:
            self._known.handler = None  # the next request is read, and told that it is the last
            if self._ending:
                self._await_last_request()
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif self._refusal is not None:
            self.transport.write(self._refusal)
            self.transport.close()

    def shutdown(self) -> None:
        """The server ends: the next answer says that it is the last here, also to a request that is still to come."""
        cycle = self.cycle
        self._ending = True
        self._known.handler = None
        self._left = 1
        if cycle is None or cycle.response_complete:
            self._await_last_request()
        elif not cycle.response_started:
            cycle.keep_alive = False
        else:  # its head has promised that one more may follow
            self._left = 2

    def _await_last_request(self) -> None:
        self.loop.call_later(LAST_CALL_S, self._end_if_idle)

    def _end_if_idle(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()

    @property
    def _refused(self) -> bool:
        """True once nothing more on this connection counts. What every request passes has this written out."""
        return self._refusal is not None or self.transport.is_closing()

    def _refuse(self, status: int, message: str, code: str = "invalid_request") -> None:
        """End the connection with an error. Requests before the refused one are whole and are answered first."""
        if self._refused:
            return
        body = ApiError(status, code, message).body()
        head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
        refusal = STATUS_LINE[status] + head + body
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            self.transport.write(refusal)
            self.transport.close()
        elif self.pipeline or not cycle.more_body:
            if self.pipeline and cycle.more_body:
                self.pipeline.popleft()  # The refused request itself, which waited for its turn.
            self._refusal = refusal
        else:  # The request that runs is the refused one: it is given up.
            cycle.disconnected = True
            cycle.message_event.set()
            if self.listener is not None:
                self.listener.client_gone()
            if not cycle.response_started:
                self.transport.write(refusal)
            self.transport.close()


def _path_of(target: bytes) -> bytes:
    """The decoded path of a request target; empty when it is no URL."""
    try:
        path: bytes = httptools.parse_url(target).path or b""
    except httptools.HttpParserInvalidURLError:
        return b""
    return urllib.parse.unquote_to_bytes(path)
