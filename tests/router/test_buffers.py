"""How many bytes of one answer wait in the router while its client does not read: the buffers themselves, not memory around them.

An event is passed on whole, so one larger than the bound waits until it is (up to `MAX_EVENT_BYTES`); the events here are 16 kB.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop

from router.wire.upstream import Connection
from tests.router.conftest import KEY, FrontDoor, open_front_door
from tests.router.simulated_engine import SimulatedEngine

BOUND = 64 * 1024
"""Per stream, in the router's own buffers."""
OFFERED = 8 * 1024 * 1024
Run = Callable[[Coroutine[Any, Any, Any]], Any]


class Watch:
    """The largest sum of what one exchange had waiting, and what it was made of, after every read from the engine."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.largest = 0
        self.reads = 0
        self.paused = asyncio.Event()
        read = Connection.data_received

        def watched(connection: Connection, data: bytes) -> None:
            exchange = connection.exchange
            read(connection, data)
            if exchange is not None:
                self._look(connection, exchange)

        monkeypatch.setattr(Connection, "data_received", watched)

    def _look(self, connection: Connection, exchange: Any) -> None:
        self.reads += 1
        events = 0 if exchange.events is None else len(exchange.events._pending)
        outbox = sum(len(data) for data in exchange.outbox)
        waiting = exchange.client.transport.get_write_buffer_size() + len(exchange.held) + events + outbox
        self.largest = max(self.largest, waiting)
        if connection.paused:
            self.paused.set()


async def _large(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """A JSON answer of `OFFERED` bytes."""
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % OFFERED)
    for _ in range(OFFERED // 16384):
        writer.write(b" " * 16384)
        await writer.drain()
    return True


def _ask(path: str, *, stream: bool, version: str) -> bytes:
    words: dict[str, Any] = (
        {"prompt": "flood"} if path == "/v1/completions" else {"messages": [{"role": "user", "content": "flood"}]}
    )
    body = json.dumps({"model": "m", "stream": stream, **words}).encode()
    head = f"POST {path} HTTP/{version}\r\nhost: x\r\nauthorization: Bearer {KEY}\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def _stalled(door: FrontDoor, watch: Watch, data: bytes) -> socket.socket:
    """A client that asked and does not read, once the router has stopped reading for it."""
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(raw, ("127.0.0.1", door.port))
    await loop.sock_sendall(raw, data)
    await asyncio.wait_for(watch.paused.wait(), 20)
    return raw


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("version", ["1.1", "1.0"])
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_what_waits_for_a_client_that_does_not_read_is_bounded(run: Run, version: str, stream: bool, monkeypatch):
    async def measure() -> tuple[Watch, int]:
        engine = SimulatedEngine()
        if not stream:
            engine._flood = _large  # type: ignore[method-assign]
        watch = Watch(monkeypatch)
        async with open_front_door({"a": "eu"}, engines={"a": engine}) as door:
            raw = await _stalled(door, watch, _ask("/v1/chat/completions", stream=stream, version=version))
            loop, got = asyncio.get_running_loop(), 0
            while got < OFFERED // 4:  # now it reads, in little pieces: the buffer fills again and again
                got += len(await loop.sock_recv(raw, 3000))
            raw.close()
            return watch, got

    watch, _ = run(measure())
    assert watch.reads > 20
    assert 0 < watch.largest <= BOUND


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_a_second_answer_behind_a_full_buffer_adds_nothing(run: Run, monkeypatch):
    """The transport says nothing of a buffer that was full before: the second answer has to ask."""

    async def measure() -> Watch:
        watch = Watch(monkeypatch)
        engine = SimulatedEngine()
        async with open_front_door({"a": "eu"}, engines={"a": engine}) as door:
            data = _ask("/v1/chat/completions", stream=True, version="1.1")
            raw = await _stalled(door, watch, data + data)
            loop, got = asyncio.get_running_loop(), 0
            while len(engine.requests) < 2:
                got += len(await loop.sock_recv(raw, 65536))
            for _ in range(200):
                got += len(await loop.sock_recv(raw, 1000))
            raw.close()
            return watch

    watch = run(measure())
    assert 0 < watch.largest <= BOUND
