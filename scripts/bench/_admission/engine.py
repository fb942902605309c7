"""An engine that takes its time: prompts are computed one after the other, answers stream side by side. Speaks enough HTTP."""

from __future__ import annotations

import asyncio
import contextlib

from .load import WORD, WORDS_PER_S

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_DELTA = (
    b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m",'
    b'"choices":[{"index":0,"delta":{"content":"x"}}]}\n\n'
)
_END = b"data: [DONE]\n\n"


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class SlowEngine:
    """One engine on a port of its own.

    Args:
        answer_s: seconds from the first token to the last.
    """

    def __init__(self, answer_s: float) -> None:
        self._answer_s = answer_s
        self._prefill = asyncio.Lock()
        self._server: asyncio.Server | None = None
        self.port = 0

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=4096)
        self.port = self._server.sockets[0].getsockname()[1]

    def stop(self) -> None:
        """Close the port."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
                fields = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
                body = await reader.readexactly(int(fields["content-length"]))
                async with self._prefill:
                    await asyncio.sleep(body.count(WORD) / WORDS_PER_S)
                writer.write(HEAD + _chunk(_DELTA))
                await asyncio.sleep(self._answer_s)
                writer.write(_chunk(_DELTA) + _chunk(_END) + b"0\r\n\r\n")
                await writer.drain()
        writer.close()
