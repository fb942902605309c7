"""Connections to providers, each used again only after it brought exactly one answer to its last request.

httpx goes on with a connection whose provider, or a proxy before it, sent more than was asked for; what was sent too much is then
the answer to the next request, and that may be another tenant's.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable
from typing import Any

import httpcore
import httptools
import httpx

_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=100)
"""How much leaves at a time is for routers to say. With httpx's bound of 100 over all providers, long answers to one tenant kept
what others sent waiting here until it failed."""


def provider_transport(verify: ssl.SSLContext | bool) -> httpx.AsyncHTTPTransport:
    """The transport of a client that calls providers.

    Args:
        verify: as `httpx.AsyncClient` takes it.
    """
    transport = httpx.AsyncHTTPTransport(verify=verify, trust_env=False, limits=_LIMITS)
    pool = transport._pool
    pool._network_backend = _Backend(pool._network_backend)  # httpx has no other way in
    return transport


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
