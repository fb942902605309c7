"""A raw client that keeps what it saw: bytes, then how the connection ended."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

from _dataplane.decoder import Decoded, decode

PATH = b"/v1/chat/completions"


def request(body: dict[str, Any], key: str, request_id: str, *, version: bytes = b"1.1", extra: bytes = b"") -> bytes:
    """A whole chat request as bytes."""
    data = json.dumps(body).encode()
    return (
        b"POST %b HTTP/%b\r\nhost: x\r\nauthorization: Bearer %b\r\nx-request-id: %b\r\n%bcontent-length: %d\r\n\r\n%b"
        % (PATH, version, key.encode(), request_id.encode(), extra, len(data), data)
    )  # fmt: skip


async def ask(port: int, data: bytes) -> Decoded:
    """One request on a connection of its own."""
    connection = Connection(port)
    try:
        return await connection.ask(data)
    finally:
        connection.close()


class Connection:
    """One client connection; kept alive while answers are clean."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self.closed = False
        """Whether the last answer ended with the end of the connection."""
        self.reset = False
        """Whether it ended with a reset."""

    async def ask(self, data: bytes, *, version_1_0: bool = False, limit_s: float = 20.0) -> Decoded:
        """Send one request; decode what came back, as far as it goes.

        Raises:
            TimeoutError: neither an end of the answer nor of the connection within the limit.
        """
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 20)
        assert self._reader is not None
        self._writer.write(data)
        seen = bytearray()
        self.closed = self.reset = False
        seen_decoded = Decoded()
        async with asyncio.timeout(limit_s):
            while not self.closed:
                try:
                    more = await self._reader.read(1 << 18)
                except ConnectionError:
                    more, self.reset = b"", True
                self.closed = not more
                seen += more
                ended = self.closed and not self.reset
                seen_decoded = decode(bytes(seen), closed=ended, close_delimited=version_1_0)
                if (seen_decoded.complete and not seen_decoded.until_close) or seen_decoded.wrong:
                    break
        if not seen_decoded.complete or seen_decoded.rest or self.closed or seen_decoded.header(b"connection") == b"close":
            self.close()
        return seen_decoded

    async def stray(self) -> bytes:
        """What arrives although nothing was asked (nothing should)."""
        if self._reader is None:
            return b""
        with contextlib.suppress(TimeoutError, ConnectionError):
            return await asyncio.wait_for(self._reader.read(1 << 16), 0.001)
        return b""

    def close(self) -> None:
        """Drop the connection."""
        if self._writer is not None:
            self._writer.transport.abort()
        self._reader = self._writer = None
