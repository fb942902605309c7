"""Connections to providers, each used again only after it brought exactly one answer to its last request.

httpx goes on with a connection whose provider, or a proxy before it, sent more than was asked for; what was sent too much is then
the answer to the next request, and that may be another tenant's.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Iterable
from typing import Any

import httpcore
import httptools
import httpx

_IN_A_POOL = 32
"""Requests in one pool of httpcore's. Whenever one begins or ends there, it looks at all connections for each of them: with 600
streams in one pool the loop did nothing else for seconds."""
_KEPT_POOLS = 4
"""Pools that keep their idle connections, for as long as httpx does. Later ones are used in a rush only."""


def provider_transport(verify: ssl.SSLContext | bool) -> httpx.AsyncBaseTransport:
    """The transport of a client that calls providers. How much leaves at a time is for routers to say: here is no bound.

    Args:
        verify: as `httpx.AsyncClient` takes it.
    """
    return _Pools(httpx.create_ssl_context(verify=verify, trust_env=False))


class _Pool:
    """Some connections, and how many requests are on them."""

    def __init__(self, context: ssl.SSLContext, kept: int) -> None:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=kept)
        self.transport = httpx.AsyncHTTPTransport(verify=context, trust_env=False, limits=limits)
        inner = self.transport._pool
        inner._network_backend = _Backend(inner._network_backend)  # httpx has no other way in
        self.busy = 0


class _Pools(httpx.AsyncBaseTransport):
    """As many pools as the requests at this moment fill, the first ones first, so that their connections are used again."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context
        self._pools: list[_Pool] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        pool = self._take()
        try:
            answer = await pool.transport.handle_async_request(request)
        except BaseException:
            pool.busy -= 1
            raise
        stream = answer.stream
        assert isinstance(stream, httpx.AsyncByteStream)
        return httpx.Response(
            answer.status_code, headers=answer.headers, stream=_CountedStream(stream, pool), extensions=answer.extensions
        )

    def _take(self) -> _Pool:
        for pool in self._pools:
            if pool.busy < _IN_A_POOL:
                break
        else:
            pool = _Pool(self._context, _IN_A_POOL if len(self._pools) < _KEPT_POOLS else 0)
            self._pools.append(pool)
        pool.busy += 1
        return pool

    async def aclose(self) -> None:
        for pool in self._pools:
            await pool.transport.aclose()


class _CountedStream(httpx.AsyncByteStream):
    """An answer's body; its request is off the pool when it is closed."""

    def __init__(self, inner: httpx.AsyncByteStream, pool: _Pool) -> None:
        self._inner = inner
        self._pool: _Pool | None = pool

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for piece in self._inner:
            yield piece

    async def aclose(self) -> None:
        if self._pool is not None:
            self._pool.busy -= 1
            self._pool = None
        await self._inner.aclose()


class _Backend(httpcore.AsyncNetworkBackend):
    """Connects as the one inside does, and counts the answers."""

    def __init__(self, inner: httpcore.AsyncNetworkBackend) -> None:
        self._inner = inner

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 (httpcore names it)
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        return OneAnswerStream(await self._inner.connect_tcp(host, port, timeout, local_address, socket_options))

    async def sleep(self, seconds: float) -> None:
        await self._inner.sleep(seconds)


class OneAnswerStream(httpcore.AsyncNetworkStream):
    """A connection that looks closed to httpx once more than one answer came for a request.

    Args:
        inner: the connection.
    """

    def __init__(self, inner: httpcore.AsyncNetworkStream) -> None:
        self._inner = inner
        self._parser = httptools.HttpResponseParser(self)
        self._answered = self._spoilt = False

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        data = await self._inner.read(max_bytes, timeout)
        if data and not self._spoilt:
            try:
                self._parser.feed_data(data)
            except (httptools.HttpParserError, httptools.HttpParserUpgrade):
                self._spoilt = True
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        self._answered = False
        await self._inner.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> httpcore.AsyncNetworkStream:
        return OneAnswerStream(await self._inner.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        # What is readable while nothing was asked is an end, so httpx lets go of such a connection.
        return True if info == "is_readable" and self._spoilt else self._inner.get_extra_info(info)

    def on_message_begin(self) -> None:
        """An answer begins."""
        self._spoilt = self._spoilt or self._answered

    def on_message_complete(self) -> None:
        """An answer, or an interim one, is whole."""
        self._answered = self._parser.get_status_code() >= 200
