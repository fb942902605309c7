"""The public HTTP server: uvicorn's own httptools protocol, plus one seam for relaying raw bytes.

uvicorn does the framing, the limits and keep-alive. `RelayProtocol` adds an ASGI extension, `scope["extensions"]
["tidegate.client"]`, that lets a hot handler write a response's bytes straight to the client's transport, hear at once when
the client goes away, and stop an upstream that is faster than the client.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import socket
import struct
from collections.abc import Iterator
from typing import Any, Protocol

import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

EXTENSION = "tidegate.client"
MAX_HEADER_BYTES = 16 * 1024
MAX_HEADERS = 100
MAX_TARGET_BYTES = 4 * 1024
_WRITE_HIGH_WATER = 64 * 1024
_UPGRADE = re.compile(rb"\r\nupgrade:", re.IGNORECASE)
_LINE_ENDINGS = re.compile(rb"(?<!\r)\n|\r(?!\n)")


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
    """uvicorn's HTTP/1.1 protocol with the relay seam and stricter limits on the header block."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.listener: ClientListener | None = None
        self._header_bytes = 0
        self._in_headers = True
        self._before = b""
        """The last bytes of the unfinished header block: an empty line, or a line's end, may begin there."""
        self._refusal: bytes | None = None
        """A 400 that waits until the requests before it are answered. Whatever else arrives is thrown away."""

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
        """Feed the parser; refuse bare CR or LF in a header block, and header blocks over the limits."""
        if self._refusal is not None:
            return
        if self._in_headers:
            before = len(self._before)
            head = (self._before + data).partition(b"\r\n\r\n")[0]
            self._header_bytes += len(data)
            start = before - self._before.endswith(b"\r")
            if self._header_bytes - len(data) + len(head) > MAX_HEADER_BYTES + MAX_TARGET_BYTES or _LINE_ENDINGS.search(
                head.removesuffix(b"\r"), start
            ):
                self.send_400_response("The header block is malformed or too large.")
                return
            if len(head) > before and _UPGRADE.search(head):
                # An offer we ignore (Java's client makes it): the parser would take it for accepted and drop the body.
                data = _UPGRADE.sub(b"\r\nx-offer:", head)[before:] + data[len(head) - before :]
        if self.transport.is_closing():
            return
        super().data_received(data)
        self._before = (self._before + data)[-3:] if self._in_headers else b""

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._in_headers = True
        self._header_bytes = 0

    def on_headers_complete(self) -> None:
        """Check the block, let uvicorn start the ASGI task, and hand the request its way back."""
        self._in_headers = False
        if self._refused:
            return
        problem = _framing_problem(self.headers, self.url, self.parser.get_http_version())
        if problem is not None:
            self.send_400_response(problem)
            return
        super().on_headers_complete()
        extensions: dict[str, Any] = {EXTENSION: Client(self, self.cycle)}
        self.cycle.scope["extensions"] = extensions

    def on_body(self, body: bytes) -> None:
        """Drop the body of a request that was refused on its headers."""
        if self.cycle is not None and not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is whole."""
        self._in_headers = True
        self._header_bytes = 0
        if self.cycle is not None and not self._refused:
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """As uvicorn does; after the last answer that was due, the refusal of what came behind its request."""
        last = not self.pipeline
        super().on_response_complete()
        if last and self._refusal is not None and not self.transport.is_closing():
            self.transport.write(self._refusal)
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Refuse in OpenAI's envelope and close: after a framing error nothing on this connection can be trusted.

        Requests before the refused one are answered first: their answers are neither cut nor mixed up with the refusal.
        """
        if self._refused:
            return
        body = b'{"error":{"message":"%s","type":"invalid_request_error","param":null,"code":"invalid_request"}}'
        body %= msg.encode()
        head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
        refusal = STATUS_LINE[400] + head + body
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            self.transport.write(refusal)
            self.transport.close()
        elif self.pipeline or not cycle.more_body:
            if self.pipeline and cycle.more_body:
                self.pipeline.popleft()  # The refused request itself, which waited for its turn.
            self._refusal = refusal
        else:
            if not cycle.response_started:
                self.transport.write(refusal)
            self.transport.close()

    @property
    def _refused(self) -> bool:
        """True once nothing more on this connection counts."""
        return self._refusal is not None or self.transport.is_closing()

    def _unsupported_upgrade_warning(self) -> None:
        """CONNECT, or an upgrade we did not see in time: the parser has stopped, so the connection ends with this answer."""
        self.cycle.keep_alive = False
        if self.cycle.response_complete:
            self.transport.close()


def _framing_problem(headers: list[tuple[bytes, bytes]], target: bytes, version: str) -> str | None:
    """Why a header block is ambiguous (RFC 9112, sections 3.2, 6.1 and 6.3) or over a limit; None when it is fine."""
    if version not in ("1.1", "1.0"):
        return "Only HTTP/1.1 and HTTP/1.0 are spoken here."
    if len(headers) > MAX_HEADERS or len(target) > MAX_TARGET_BYTES:
        return "Too many headers, or the request target is too long."
    names = [name for name, _ in headers]
    if names.count(b"content-length") + names.count(b"transfer-encoding") > 1:
        return "The length of the body is ambiguous."
    if names.count(b"host") > 1:
        return "More than one Host header."
    for name, value in headers:
        if name == b"transfer-encoding" and (value.strip().lower() != b"chunked" or version == "1.0"):
            return "Only chunked is understood as a transfer encoding."
    return None


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
        raise OSError(error.errno, f"cannot listen on {host}:{port}: {error.strerror}") from None
    listener.setblocking(False)
    return listener


class _QuietServer(uvicorn.Server):
    """A uvicorn server that leaves signals to whoever runs the loop."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Nothing: the owner of the process decides."""
        yield


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
        log_level=logging.WARNING,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=max(1, round(grace_s)),
        backlog=4096,
    )
    return _QuietServer(config)
