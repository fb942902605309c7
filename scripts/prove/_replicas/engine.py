"""An engine that counts what it is asked: every answer uses the same tokens, and a request can be held or streamed for ever."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time

TOKENS = 10
"""Tokens of one answer, by the engine's own count."""

_BODY = json.dumps(
    {
        "id": "c",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "x"}}],
        "usage": {"prompt_tokens": TOKENS - 1, "completion_tokens": 1, "total_tokens": TOKENS},
    }
).encode()
_ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(_BODY), _BODY)
_STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_EVENT = b'data: {"id":"c","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"x"}}]}\n\n'


class CountingEngine:
    """Listens on a port of its own.

    Args:
        hold_s: how long every answer takes, in seconds.
    """

    def __init__(self, hold_s: float = 0.0) -> None:
        self.hold_s = hold_s
        self.arrivals: list[float] = []
        """UNIX time of every request that came."""
        self.at_work = 0
        self.most_at_work = 0
        self.port = 0
        self._awaited: list[tuple[int, asyncio.Event]] = []
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    def stop(self) -> None:
        """Close the listener."""
        assert self._server is not None
        self._server.close()

    async def has_seen(self, count: int) -> None:
        """Wait until so many requests came."""
        seen = asyncio.Event()
        self._awaited.append((count, seen))
        if len(self.arrivals) < count:
            await seen.wait()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                body = await reader.readexactly(int(head.partition(b"content-length:")[2].split(b"\r\n")[0]))
                self.arrivals.append(time.time())
                for count, seen in self._awaited:
                    if len(self.arrivals) >= count:
                        seen.set()
                self.at_work += 1
                self.most_at_work = max(self.most_at_work, self.at_work)
                try:
                    await self._answer(json.loads(body), reader, writer)
                finally:
                    self.at_work -= 1
        writer.close()

    async def _answer(self, body: dict[str, object], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if body.get("stream"):
            writer.write(_STREAM)
            while not writer.is_closing() and not reader.at_eof():
                writer.write(b"%x\r\n%b\r\n" % (len(_EVENT), _EVENT))
                await writer.drain()
                await asyncio.sleep(0.05)
            raise ConnectionError
        if self.hold_s:
            await asyncio.sleep(self.hold_s)
        writer.write(_ANSWER)
        await writer.drain()
