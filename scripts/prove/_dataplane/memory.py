"""Idle connections and live streams in numbers, then churn: what they cost, and whether anything grows."""

from __future__ import annotations

import asyncio
import random
import resource
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from _dataplane import routers
from _dataplane.client import Connection, request
from _dataplane.engines import engine_processes


@dataclass
class Result:
    """What connections cost."""

    connections: int = 0
    live: int = 0
    rss_mib: dict[str, float] = field(default_factory=dict)
    slope_mib_per_h: float = 0.0
    churned: int = 0
    fds: tuple[int, int] = (0, 0)
    violations: list[str] = field(default_factory=list)


def _ask(request_id: str, wish: str) -> bytes:
    body = {"model": "m", "stream": wish.startswith("sse"), "messages": [{"role": "user", "content": wish}]}
    return request(body, routers.KEY, request_id)


async def _idle(port: int, count: int) -> list[Connection]:
    """Keep-alive connections, each of which has had one answer."""
    gate = asyncio.Semaphore(50)

    async def one(i: int) -> Connection:
        async with gate:
            connection = Connection(port)
            await connection.ask(_ask(f"idle-{i:08d}", "json 3"))
            return connection

    return await asyncio.gather(*(one(i) for i in range(count)))


async def _drain(reader: asyncio.StreamReader) -> None:
    while await reader.read(1 << 16):
        pass


async def _live(port: int, count: int, result: Result) -> list[tuple[asyncio.Task[None], asyncio.StreamWriter]]:
    """Streams that go on for hours, a token a second."""
    streams = []
    for i in range(count):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(_ask(f"live-{i:08d}", "sse 100000 1000"))
        head = await reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            result.violations.append(f"live stream {i} got {head[:40]!r}")
        streams.append((asyncio.create_task(_drain(reader)), writer))
    return streams


async def _churn(router: routers.Router, seconds: float, rng: random.Random, result: Result) -> list[tuple[float, float]]:
    """Short requests on new connections, some abandoned; returns (time, RSS) samples."""
    samples, started, number = [], time.monotonic(), 0
    while (now := time.monotonic() - started) < seconds:
        batch = []
        for _ in range(20):
            number += 1
            connection = Connection(router.port)
            ask = connection.ask(_ask(f"churn-{number:09d}", rng.choice(["json 5", "sse 5 1", "sse 50 20"])), limit_s=0.3)
            batch.append((connection, asyncio.ensure_future(ask)))
        await asyncio.gather(*(future for _, future in batch), return_exceptions=True)
        for connection, _ in batch:
            connection.close()
        samples.append((now, router.rss_mib()))
    result.churned = number
    return samples


def slope(samples: list[tuple[float, float]]) -> float:
    """Least squares, per hour."""
    if len(samples) < 2:
        return 0.0
    mean_x = sum(x for x, _ in samples) / len(samples)
    mean_y = sum(y for _, y in samples) / len(samples)
    over = sum((x - mean_x) * (y - mean_y) for x, y in samples)
    return 3600 * over / sum((x - mean_x) ** 2 for x, _ in samples)


async def run(connections: int, live: int, minutes: float, seed: int = 1) -> Result:
    """Open, measure, churn, measure the slope over the second half."""
    result = Result(connections, live)
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    need = connections + 2 * live + 300
    if need > soft:
        raise SystemExit(f"memory: {need} file descriptors are needed, `ulimit -n` is {soft}")
    with tempfile.TemporaryDirectory(prefix="tidegate-prove-") as folder, engine_processes(2, Path(folder)) as engines:
        config = routers.make_config({f"e{i}": (engine.port, "m") for i, engine in enumerate(engines)})
        async with routers.outside(config) as router:
            await _idle(router.port, 50)
            result.rss_mib["start"] = router.rss_mib()
            idle = await _idle(router.port, connections)
            result.rss_mib["idle"] = router.rss_mib()
            streams = await _live(router.port, live, result)
            await asyncio.sleep(2)
            result.rss_mib["live"] = router.rss_mib()
            before = router.fds()
            samples = await _churn(router, minutes * 60, random.Random(seed), result)
            await asyncio.sleep(6)
            result.rss_mib["churned"] = router.rss_mib()
            result.fds = (before, router.fds())
            result.slope_mib_per_h = slope([sample for sample in samples if sample[0] > minutes * 30])
            if result.fds[1] > before + 20:
                result.violations.append(f"fds grew from {before} to {result.fds[1]}")
            for task, writer in streams:
                task.cancel()
                writer.transport.abort()
            for connection in idle:
                connection.close()
            await asyncio.sleep(2)
            if left := await router.inflight():
                result.violations.append(f"{left} left in the books")
    return result
