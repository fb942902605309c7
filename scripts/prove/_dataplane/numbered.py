"""A simulated engine process with numbered tokens: `python -m _dataplane.numbered PORT LOG`.

A request's message says what it wants: `json N` or `sse N [MS]` (N tokens, a pause of MS milliseconds after each), `flood N`
(N blocks of 16 KiB as fast as they are taken), `hang`. Requests without messages say it as `wish<...>` anywhere in their body.
Every token carries the request's id, so that answers cannot be mistaken for each other. The log gets one line per event
(`start ID`, `gone ID TIME`), unbuffered, so that it survives SIGKILL.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
import time

import uvloop

_WISH = re.compile(rb"wish<([^>]*)>")
SSE = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"


def token(request_id: str, i: int) -> bytes:
    """One numbered token as an event."""
    return b'data: {"id":"%b","choices":[{"index":0,"delta":{"content":"%d "}}]}\n\n' % (request_id.encode(), i)


def chunk(data: bytes) -> bytes:
    """One chunk."""
    return b"%x\r\n%b\r\n" % (len(data), data)


class Engine(asyncio.Protocol):
    """One connection."""

    transport: asyncio.Transport

    def __init__(self, log: int) -> None:
        self._log = log
        self._buffer = b""
        self._task: asyncio.Task[None] | None = None
        self._current = ""
        self._can_write = asyncio.Event()
        self._can_write.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def connection_lost(self, exc: Exception | None) -> None:
        if self._task is not None and not self._task.done():
            self._note(f"gone {self._current} {time.monotonic()}")
            self._task.cancel()

    def pause_writing(self) -> None:
        self._can_write.clear()

    def resume_writing(self) -> None:
        self._can_write.set()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, body = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        size = int(fields[b"content-length"])
        if len(body) < size:
            return
        self._buffer = body[size:]
        self._current = fields[b"x-request-id"].decode()
        self._note(f"start {self._current}")
        marked = _WISH.search(body[:size])
        wish = marked[1].decode().split() if marked else json.loads(body[:size])["messages"][-1]["content"].split()
        self._task = asyncio.get_running_loop().create_task(self._answer(self._current, wish))

    def _note(self, line: str) -> None:
        os.write(self._log, line.encode() + b"\n")

    async def _answer(self, request_id: str, wish: list[str]) -> None:
        count = int(wish[1]) if len(wish) > 1 else 0
        pause = int(wish[2]) / 1000 if len(wish) > 2 else 0.0
        if wish[0] == "hang":
            await asyncio.sleep(3600)
        elif wish[0] == "json":
            await asyncio.sleep(pause * count)
            body = json.dumps({"id": request_id, "tokens": list(range(count)), "usage": {"total_tokens": count}}).encode()
            head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
            self.transport.write(head + body[:20])
            await asyncio.sleep(pause)
            self.transport.write(body[20:])
        elif wish[0] == "flood":
            self.transport.write(SSE)
            for _ in range(count):
                self.transport.write(chunk(b"data: " + b"x" * 16_376 + b"\n\n"))
                await self._can_write.wait()
                await asyncio.sleep(0)
            self.transport.write(chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")
        else:
            self.transport.write(SSE)
            for i in range(count):
                self.transport.write(chunk(token(request_id, i)))
                await self._can_write.wait()
                await asyncio.sleep(pause)
            self.transport.write(chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")


async def _serve(port: int, log: int) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Engine(log), "127.0.0.1", port, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1]), os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)))
