"""Clients that leave at random moments: the engine's connection is cut at once, and nothing of them stays behind."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import tempfile
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from _dataplane import routers
from _dataplane.client import ask, request
from _dataplane.engines import EngineProcess, engine_processes

GOAL_MS = 1000.0


@dataclass
class Result:
    """What came of the clients that left."""

    clients: int = 0
    seen_by_engine: int = 0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    worst_ms: float = 0.0
    fds: tuple[int, int] = (0, 0)
    violations: list[str] = field(default_factory=list)

    @property
    def missed(self) -> bool:
        """Whether engines worked on for longer than `GOAL_MS` for nobody, on this machine as busy as it was."""
        return self.p99_ms > GOAL_MS


async def _leave(port: int, number: int, rng: random.Random, left: dict[str, float]) -> None:
    """Ask, wait a random moment (perhaps read a little), leave by FIN or by RST."""
    request_id = f"leave-{number:05d}"
    wish = rng.choice(["sse 2000 50"] * 4 + ["hang", "hang", "json 2000 5", "flood 4000"])
    body = {"model": "m", "stream": wish[0] in "sf", "messages": [{"role": "user", "content": wish}]}
    data = request(body, routers.KEY, request_id)
    plain = socket.socket()
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    plain.connect(("127.0.0.1", port))
    reader, writer = await asyncio.open_connection(sock=plain, limit=1 << 16)
    whole = rng.random() > 0.1
    writer.write(data if whole else data[: rng.randrange(1, len(data))])
    end = time.monotonic() + rng.choice([0.0, 0.01, 0.1, 0.5]) + rng.random() * 0.2
    while (rest := end - time.monotonic()) > 0:
        if wish.startswith("flood"):  # It does not read: the router has stopped reading from the engine when it leaves.
            await asyncio.sleep(rest)
            break
        try:
            seen = await asyncio.wait_for(reader.read(4096), rest)
            if not seen:
                break
        except TimeoutError:
            break
    left[request_id] = time.monotonic()
    if rng.random() < 0.5:
        raw = writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def _rest(router: routers.Router) -> int:
    """Its open files once idle connections to the engines are gone, which it closes after 4 s."""
    before = -1
    while before != (now := router.fds()):
        before = now
        await asyncio.sleep(5)
    return now


async def _settled(router: routers.Router, before: int, tasks: set[asyncio.Task[Any]]) -> bool:
    """Whether nothing of the clients stays: in the books, open, or running in this process; waits for that."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(30):
            while True:
                books = await router.inflight()
                await asyncio.sleep(0.1)  # the connection of that question goes as well
                if not books and router.fds() <= before and not (router.inside and asyncio.all_tasks() - tasks):
                    return True
    return False


async def wait_until_noticed(engines: list[EngineProcess], left: Collection[str]) -> None:
    """Wait until every engine has noticed who left, as long as it takes within reason: their log is behind the router."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(20):
            while True:
                events = [words for engine in engines for words in engine.events()]
                begun = {words[1] for words in events if words[0] == "start"}
                if not (begun & set(left)) - {words[1] for words in events if words[0] == "gone"}:
                    return
                await asyncio.sleep(0.05)


def _delays(engines: list[EngineProcess], left: dict[str, float], result: Result) -> list[float]:
    started, gone = set(), {}
    for engine in engines:
        for words in engine.events():
            if words[0] == "start":
                if words[1] in started:
                    result.violations.append(f"{words[1]} reached an engine twice")
                started.add(words[1])
            else:
                gone[words[1]] = float(words[2])
    known = started & set(left)
    for request_id in sorted(known - set(gone)):
        result.violations.append(f"{request_id}: the engine never noticed")
    return sorted(gone[name] - left[name] for name in known & set(gone))


async def run(clients: int, seed: int = 1, *, apart: bool = True, at_once: int = 40) -> Result:
    """Let `clients` ask and leave, `at_once` at a time."""
    result, rng, left = Result(clients), random.Random(seed), {}
    gate = asyncio.Semaphore(at_once)
    open_router = routers.outside if apart else routers.inside
    with tempfile.TemporaryDirectory(prefix="tidegate-prove-") as folder, engine_processes(2, Path(folder)) as engines:
        config = routers.make_config({f"e{i}": (engine.port, "m") for i, engine in enumerate(engines)})
        async with open_router(config) as router:
            body = {"model": "m", "messages": [{"role": "user", "content": "json 3"}]}
            await ask(router.port, request(body, routers.KEY, "warm-up-request"))
            before = await _rest(router)

            async def one(number: int) -> None:
                async with gate:
                    await _leave(router.port, number, random.Random(rng.random()), left)

            tasks = asyncio.all_tasks()
            await asyncio.gather(*(one(i) for i in range(clients)))
            if not await _settled(router, before, tasks):
                more = len(asyncio.all_tasks() - tasks) if router.inside else 0
                books = f"{await router.inflight()} in the books, fds {before} -> {router.fds()}"
                result.violations.append(f"left over: {books}, {more} tasks")
            result.fds = (before, router.fds())
            await wait_until_noticed(engines, left)
        delays = _delays(engines, left, result)
    result.seen_by_engine = len(delays)
    if delays:
        result.p50_ms, result.p99_ms, result.worst_ms = (1000 * delays[int(len(delays) * q)] for q in (0.5, 0.99, 0.999))
    return result
