"""The public HTTP server: uvicorn's own httptools protocol, plus one seam for relaying raw bytes.

uvicorn does the framing, the limits and keep-alive. `RelayProtocol` adds an ASGI extension, `scope["extensions"]
["tidegate.client"]`, that lets a hot handler write a response's bytes straight to the client's transport, hear at once when
the client goes away, and stop an upstream that is faster than the client.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct
from collections.abc import Iterator
from typing import Any, Protocol

import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from router.wire.client_head import MAX_HEADER_BYTES, BadHead, HeadCollector, framing_problem
from router.wire.errors import ApiError
from router.wire.patience import Patience, Verdict

EXTENSION = "tidegate.client"
_WRITE_HIGH_WATER = 64 * 1024


class ClientListener(Protocol):
    """Who wants to know what the client's connection does while a response is under way."""

    def client_gone(self) -> None:
        """The connection was lost."""

    def client_paused(self) -> None:
        """The client reads too slowly: its write buffer is full."""

    def client_resumed(self) -> None:
        """The write buffer drained."""


class Client:
    """One request's way back to its client, as raw bytes. Valid until `finish` or `abort`."""

    __slots__ = ("_cycle", "_protocol", "transport")

    def __init__(self, protocol: RelayProtocol, cycle: RequestResponseCycle) -> None:
        self._protocol = protocol
        self._cycle = cycle
        self.transport = protocol.transport

    @property
    def gone(self) -> bool:
        """True once the client has disconnected."""
        return self._cycle.disconnected or self.transport.is_closing()

    @property
    def started(self) -> bool:
        """True once a response head has been written."""
        return self._cycle.response_started

    @property
    def speaks_chunked(self) -> bool:
        """False for an HTTP/1.0 client, which cannot read chunked bodies."""
        return bool(self._cycle.scope["http_version"] != "1.0")

    def listen(self, listener: ClientListener | None) -> None:
        """Send the connection's events to `listener` (None: to nobody)."""
        self._protocol.listener = listener
        if listener is not None and self.gone:
            self._cycle.disconnected = True  # Else uvicorn would miss an answer, and log that.
            listener.client_gone()

    def make_head(self, status: int, headers: bytes, *, close: bool = False) -> bytes:
        """The status line and a ready header block (lines ending in CRLF, without the final empty line), to be written next.

        It is returned, not written, so that head and first bytes of the body go out in one system call.
        """
        cycle = self._cycle
        if close:
            cycle.keep_alive = False
        connection = b"" if cycle.keep_alive else b"connection: close\r\n"
        return b"".join((STATUS_LINE[status], headers, connection, b"\r\n"))

    def begin(self, data: bytes) -> None:
        """Write the head, and what of the body is there already: from now on the response cannot be taken back."""
        self._cycle.response_started = True
        self._cycle.waiting_for_100_continue = False
        self.transport.write(data)
        protocol = self._protocol
        if protocol.flow.write_paused and protocol.listener is not None:
            protocol.listener.client_paused()  # The buffer was full before: of that the transport says nothing again.

    def finish(self) -> None:
        """The last byte of the response has been written."""
        cycle = self._cycle
        self._protocol.listener = None
        cycle.response_complete = True
        cycle.message_event.set()
        if not cycle.keep_alive:
            self.transport.close()
        cycle.on_response()

    def abort(self) -> None:
        """Break the connection, so that a cut answer cannot be taken for a whole one.

        To an HTTP/1.0 client the end of the connection can be the end of the answer: it gets a reset instead.
        """
        self._protocol.listener = None
        self._cycle.response_complete = True
        self._cycle.keep_alive = False
        self._cycle.message_event.set()
        if self.speaks_chunked:
            self.transport.close()
        else:
            raw = self.transport.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.transport.abort()


class RelayProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 protocol with the relay seam, and stricter about what a client sends and how slowly."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.listener: ClientListener | None = None
        self._collector = HeadCollector()
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

    def connection_lost(self, exc: Exception | None) -> None:
        """As uvicorn does, and tell the listener at once."""
        listener, self.listener = self.listener, None
        super().connection_lost(exc)
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
        if self._refused:
            return
        if self._in_body or self._parser_in_head:  # the latter: a pipelined block that came with the body before it
            if self._unproductive > MAX_HEADER_BYTES:
                self.send_400_response("The header block, or the framing of the body, is too large.")
                return
            self._unproductive += len(data)
        else:
            self._unset_keepalive_if_required()
            self._patience.expect_head(self.loop.time())
            try:
                whole = self._collector.collect(data)
            except BadHead as error:
                self.send_400_response(str(error))
                return
            if whole is None:
                return
            data = whole
        super().data_received(data)

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._parser_in_head = True
        self._unproductive = 0
        self._patience.expect_head(self.loop.time())

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header; trailers after a chunked body are dropped, or they would pass for headers that nobody checked."""
        if self._parser_in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Check the block, let uvicorn start the ASGI task, and hand the request its way back."""
        self._parser_in_head = False
        self._in_body = True
        self._patience.expect_body(self.loop.time())
        if self._refused:
            return
        problem = framing_problem(self.parser.get_http_version(), self.headers, self.url)
        if problem is None and self.parser.should_upgrade():
            problem = "CONNECT is not understood here, and no other protocol either."
        if problem is not None:
            self.send_400_response(problem)
            return
        super().on_headers_complete()
        if self.expect_100_continue:  # whether the body follows a final answer is the client's choice: do not guess
            self.cycle.keep_alive = False
        extensions: dict[str, Any] = {EXTENSION: Client(self, self.cycle)}
        self.cycle.scope["extensions"] = extensions

    def on_body(self, body: bytes) -> None:
        """Drop the body of a request that was refused on its headers."""
        self._unproductive = 0
        self._patience.got_body(len(body))
        if self.cycle is not None and not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is whole."""
        self._in_body = False
        self._patience.settle()
        if self.cycle is not None and not self._refused:
            super().on_message_complete()

    def judge(self, now: float) -> None:
        """Called once a second: give up on a client that does not send, or does not read."""
        answering = self.cycle is not None and not self.cycle.response_complete
        unsent = self.transport.get_write_buffer_size()
        verdict = self._patience.judge(now, unsent, held_back=self.flow.read_paused, answering=answering)
        if verdict is Verdict.UNREAD or (verdict is Verdict.TOO_SLOW and self.transport.is_closing()):
            self.transport.abort()
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
        """As uvicorn does; after the last answer that was due, the refusal of what came behind its request."""
        last = not self.pipeline
        super().on_response_complete()
        if last and self._refusal is not None and not self.transport.is_closing():
            self.transport.write(self._refusal)
            self.transport.close()

    @property
    def _refused(self) -> bool:
        """True once nothing more on this connection counts."""
        return self._refusal is not None or self.transport.is_closing()

    def _refuse(self, status: int, message: str) -> None:
        """End the connection with an error. Requests before the refused one are whole and are answered first."""
        if self._refused:
            return
        body = ApiError(status, "invalid_request", message).body()
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
            if not cycle.response_started:
                self.transport.write(refusal)
            self.transport.close()


def open_socket(host: str, port: int) -> socket.socket:
    """A listening TCP socket that several router processes can share (`SO_REUSEPORT`).

    Raises:
        OSError: the address is taken by somebody who does not share it, or cannot be used.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind((host, port))
        listener.listen(4096)
    except OSError as error:
        listener.close()
        step = "end what holds it, or choose another port"
        raise OSError(error.errno, f"cannot listen on {host}:{port}: {error.strerror}; next step: {step}") from None
    listener.setblocking(False)
    return listener


class _QuietServer(uvicorn.Server):
    """A uvicorn server that leaves signals to whoever runs the loop, and waits for no client without an end."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Nothing: the owner of the process decides."""
        yield

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second: every tenth time, look for clients that take too long."""
        if counter % 10 == 0:
            now = asyncio.get_running_loop().time()
            for connection in list(self.server_state.connections):
                if isinstance(connection, RelayProtocol):
                    connection.judge(now)
        return await super().on_tick(counter)


def make_server(app: Any, *, grace_s: float = 30.0) -> uvicorn.Server:
    """A uvicorn server over `app` with the relay protocol; run it with `await server.serve(sockets=[...])`.

    Args:
        app: the ASGI application.
        grace_s: how long running responses may go on after `server.should_exit` is set.
    """
    config = uvicorn.Config(
        app,
        http=RelayProtocol,
        loop="none",
        ws="none",
        lifespan="off",
        log_config=None,
        log_level=logging.ERROR,  # it would warn of every request that is not HTTP, and those cost a client nothing
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=max(1, round(grace_s)),
        backlog=4096,
    )
    return _QuietServer(config)
