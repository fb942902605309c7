"""A simulated engine: an asyncio server that speaks just enough HTTP to misbehave on purpose.

The user's message says what it does: `hello`, `stream`, `die-before`, `die-mid`, `hang`, `garbage`, `busy`, `broken`, `cut-json`
(a long answer), `cut-short`, `gated` (until `gate` is released), `slow-stream`, `split-head`, `two-answers`, `no-length`. Every
request it got is kept in `requests`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from typing import Any

JSON_ANSWER = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "hi"}}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9},
    }
).encode()


def event(i: int) -> bytes:
    head = b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":'
    return head + b'{"content":"t%d "}}]}\n\n' % i


USAGE_EVENT = (
    b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[],"usage":{"prompt_tokens":7,'
    b'"total_tokens":12,"completion_tokens":5,"prompt_tokens_details":{"cached_tokens":4}}}\n\n'
)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def write_chunked(writer: asyncio.StreamWriter, body: bytes, size: int) -> None:
    """A JSON answer in chunks of so many bytes."""
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n")
    for start in range(0, len(body), size):
        writer.write(chunk(body[start : start + size]))
        await writer.drain()
    writer.write(b"0\r\n\r\n")


STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"


def answer(body: bytes, status: str = "200 OK", extra: bytes = b"") -> bytes:
    head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n".encode()
    return head + extra + b"\r\n" + body


LONG = 128 * 1024
"""More bytes of an answer than wait for its end."""


class SimulatedEngine:
    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.disconnects = 0
        self.sent = 0
        self.port = 0
        self.release = asyncio.Event()
        self.gate = asyncio.Semaphore(0)
        self.gauges: bytes | None = None
        """Its `/metrics`; None: it has none, as most servers."""
        self.hangs = False
        """Whether those who read them get no answer until `release`."""
        self.asked_gauges: list[dict[str, str]] = []
        """Path and headers of each time that they were read, kept apart from `requests`."""
        self._server: asyncio.Server | None = None

    async def start(self, port: int = 0, *, tls: ssl.SSLContext | None = None, uds: str | None = None) -> None:
        if uds is not None:
            self._server = await asyncio.start_unix_server(self._serve, uds)
            return
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port, ssl=tls)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        self.release.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                lines = head.decode("latin-1").split("\r\n")
                headers = dict(line.lower().split(": ", 1) for line in lines[1:] if ": " in line)
                if lines[0].startswith("GET "):
                    self.asked_gauges.append({"path": lines[0].split(" ")[1], **headers})
                    if self.hangs:
                        await self.release.wait()
                    writer.write(answer(b"{}", "404 Not Found") if self.gauges is None else answer(self.gauges))
                    continue
                raw = await reader.readexactly(int(headers["content-length"]))
                body = json.loads(raw) if headers["content-type"] == "application/json" else {}
                self.requests.append({"line": lines[0], "headers": headers, "body": body, "raw": raw})
                if not await self._behave(self._wish(body), reader, writer):
                    break
        writer.close()

    @staticmethod
    def _wish(body: dict[str, Any]) -> str:
        return str(body["messages"][-1]["content"]) if body.get("messages") else "hello"

    async def _behave(self, wish: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        handler = getattr(self, "_" + wish.replace("-", "_"), self._hello)
        return bool(await handler(reader, writer))

    async def _hello(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(answer(JSON_ANSWER))
        await writer.drain()
        return True

    async def _gated(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        await self.gate.acquire()
        return await self._hello(reader, writer)

    async def _stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(STREAM_HEAD)
        for i in range(5):
            writer.write(chunk(event(i)))
            await writer.drain()
            await asyncio.sleep(0.002)
        if (self.requests[-1]["body"].get("stream_options") or {}).get("include_usage"):
            writer.write(chunk(USAGE_EVENT))
        writer.write(chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")
        return True

    async def _die_before(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        return False

    async def _die_mid(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(STREAM_HEAD + chunk(event(0)))
        await writer.drain()
        await asyncio.sleep(0.02)
        writer.write(chunk(event(1)))
        await writer.drain()
        return False

    async def _die_in_chunk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(STREAM_HEAD + chunk(event(0)) + chunk(event(1))[:-20])
        await writer.drain()
        return False

    async def _hang(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        with contextlib.suppress(asyncio.TimeoutError):
            if await asyncio.wait_for(reader.read(1), 20) == b"":
                self.disconnects += 1
        return False

    async def _stall(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(STREAM_HEAD + chunk(event(0)))
        return await self._hang(reader, writer)

    async def _garbage(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(b"SSH-2.0-not-http\r\n\r\n")
        return False

    async def _busy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(answer(b'{"error":{"message":"queue full"}}', "503 Service Unavailable"))
        return True

    async def _broken(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(answer(b'{"error":{"message":"dead"}}', "500 Internal Server Error"))
        return True

    async def _bad(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(answer(b'{"error":{"message":"too long"}}', "400 Bad Request"))
        return True

    async def _cut_short(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(answer(JSON_ANSWER)[:-10])
        await writer.drain()
        return False

    async def _cut_json(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(answer(JSON_ANSWER + b" " * LONG)[:-LONG])
        await writer.drain()
        return False

    async def _split_head(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        for piece in [bytes([byte]) for byte in answer(JSON_ANSWER)]:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        return True

    async def _two_answers(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(answer(JSON_ANSWER) + answer(JSON_ANSWER))
        return True

    async def _no_length(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n" + JSON_ANSWER)
        return False

    async def _flood(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(STREAM_HEAD)
        block = chunk(b"data: " + b"x" * 16000 + b"\n\n")
        for _ in range(2000):
            writer.write(block)
            await writer.drain()
            self.sent += len(block)
        writer.write(chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")
        return True
