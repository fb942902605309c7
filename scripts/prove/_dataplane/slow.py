"""Clients that read a byte at a time or not at all: they cost the router a bounded buffer, and nobody else time."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from _dataplane import routers
from _dataplane.client import Connection, request
from _dataplane.engines import engine_processes

LIMIT_KIB = 128
"""What a client that does not read may cost: one read of 46 kB in the write buffer, its objects, the heap around them."""


@dataclass
class Result:
    """What slow clients cost."""

    clients: int = 0
    rss_mib: tuple[float, float] = (0.0, 0.0)
    per_client_kib: float = 0.0
    unloaded_ms: tuple[float, float] = (0.0, 0.0)
    loaded_ms: tuple[float, float] = (0.0, 0.0)
    violations: list[str] = field(default_factory=list)


def _connect(port: int) -> socket.socket:
    """A client with a small receive buffer, so that bytes wait in the router and not in the kernel."""
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.connect(("127.0.0.1", port))
    raw.setblocking(False)
    return raw


def _ask(number: int, wish: str) -> bytes:
    body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": wish}]}
    return request(body, routers.KEY, f"slow-{number:06d}")


async def _read_bytewise(clients: list[socket.socket]) -> None:
    while True:
        for raw in clients:
            with contextlib.suppress(BlockingIOError):
                raw.recv(1)
        await asyncio.sleep(0.5)


async def _latency(router: routers.Router, count: int, tag: str) -> tuple[float, float]:
    """p50 and p99 of short JSON requests, in ms."""
    taken = []
    connection = Connection(router.port)
    body = {"model": "m", "messages": [{"role": "user", "content": "json 3"}]}
    for i in range(count):
        started = time.monotonic()
        got = await connection.ask(request(body, routers.KEY, f"{tag}-{i:06d}"))
        assert got.status == 200
        taken.append(time.monotonic() - started)
        await asyncio.sleep(0.003)
    connection.close()
    taken.sort()
    return 1000 * taken[count // 2], 1000 * taken[int(count * 0.99)]


async def run(clients: int, *, probes: int = 400) -> Result:
    """Open the slow clients, a third of which pipeline a second stream, and measure beside them."""
    result = Result(clients)
    loop = asyncio.get_running_loop()
    with tempfile.TemporaryDirectory(prefix="tidegate-prove-") as folder, engine_processes(2, Path(folder)) as engines:
        config = routers.make_config({f"e{i}": (engine.port, "m") for i, engine in enumerate(engines)})
        async with routers.outside(config) as router:
            await _latency(router, 50, "warm-up")
            result.unloaded_ms = await _latency(router, probes, "unloaded")
            before = router.rss_mib()
            slow = [_connect(router.port) for _ in range(clients)]
            for i, raw in enumerate(slow):
                # 100 KiB, then 16 MiB behind it on the same connection: the buffer is already full when the second begins.
                data = _ask(i, "flood 6") + _ask(10**5 + i, "flood 1000") if i % 3 == 0 else _ask(i, "flood 1000")
                await loop.sock_sendall(raw, data)
            reader = asyncio.create_task(_read_bytewise(slow[::2]))
            await asyncio.sleep(3)
            result.loaded_ms = await _latency(router, probes, "beside")
            result.rss_mib = (before, router.rss_mib())
            reader.cancel()
            for raw in slow:
                raw.close()
            await asyncio.sleep(1)
            if left := await router.inflight():
                result.violations.append(f"{left} left in the books")
    result.per_client_kib = 1024 * (result.rss_mib[1] - result.rss_mib[0]) / clients
    if result.per_client_kib > LIMIT_KIB:
        result.violations.append(f"{result.per_client_kib:.0f} KiB per slow client, {LIMIT_KIB} at most")
    return result
