"""Clients that send a byte now and then, or nothing, to hold connections: all are cut, and nobody else is refused meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from _dataplane import routers
from _dataplane.client import Connection, request
from _dataplane.engines import engine_processes

PATIENCE_S = 120.0
"""The router's own limits are 10 s for a head and 10 s plus a second per KiB for a body; this one ends the proof."""
PAUSE_S = 2.0
"""Between two bytes of a crawler."""
_BODY = {"model": "m", "messages": [{"role": "user", "content": "json 3"}]}


@dataclass
class Result:
    """What became of the crawlers, by how far they had come, and of the requests beside them."""

    crawlers: int = 0
    cut: Counter[str] = field(default_factory=Counter)
    longest_s: float = 0.0
    served: int = 0
    beside_ms: tuple[float, float] = (0.0, 0.0)
    violations: list[str] = field(default_factory=list)


def _pieces(number: int) -> tuple[str, bytes, int]:
    """What a crawler has in mind, the bytes of it, and how many of them it sends at once."""
    data = request(_BODY, routers.KEY, f"crawl-{number:06d}")
    kind = ("nothing", "head", "body")[number % 3]
    return kind, data, {"nothing": 0, "head": 20, "body": data.index(b"\r\n\r\n") + 4}[kind]


async def _crawl(port: int, number: int, result: Result, all_in: asyncio.Barrier) -> None:
    """Send slowly until the router hangs up."""
    kind, data, at = _pieces(number)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data[:at])
    await all_in.wait()
    started, said = time.monotonic(), b""
    try:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                with contextlib.suppress(TimeoutError):
                    more = await asyncio.wait_for(reader.read(65536), PAUSE_S)
                    if not more:
                        break
                    said += more
                if writer.is_closing():  # reset, with nobody reading at that moment
                    break
                if kind != "nothing" and at < len(data) - 1:
                    writer.write(data[at : at + 1])
                    at += 1
    except ConnectionError:
        pass
    except TimeoutError:
        result.violations.append(f"crawler {number} ({kind}) was not cut")
        return
    finally:
        writer.transport.abort()
    if said and not said.startswith(b"HTTP/1.1 408 "):
        result.violations.append(f"crawler {number} ({kind}) was told {said[:40]!r}")
    result.cut[f"{kind} {'408' if said else 'closed'}"] += 1
    result.longest_s = max(result.longest_s, time.monotonic() - started)


async def _serve_beside(port: int, result: Result, taken: list[float]) -> None:
    """Ordinary requests, each on a connection of its own, one after the other until cancelled."""
    while True:
        started = time.monotonic()
        connection = Connection(port)
        try:
            got = await connection.ask(request(_BODY, routers.KEY, f"beside-{result.served:06d}"))
        except (TimeoutError, OSError) as error:
            result.violations.append(f"a request beside the crawlers: {type(error).__name__}")
        else:
            if got.status != 200 or not got.complete:
                result.violations.append(f"a request beside the crawlers got {got.status}: {got.body[:80]!r}")
            taken.append(time.monotonic() - started)
            result.served += 1
        finally:
            connection.close()
        await asyncio.sleep(0.01)


async def run(crawlers: int, *, apart: bool = True) -> Result:
    """Open the crawlers' connections, then ask beside them until the last is cut."""
    result, taken = Result(crawlers), list[float]()
    open_router = routers.outside if apart else routers.inside
    with tempfile.TemporaryDirectory(prefix="tidegate-prove-") as folder, engine_processes(2, Path(folder)) as engines:
        config = routers.make_config({f"e{i}": (engine.port, "m") for i, engine in enumerate(engines)})
        async with open_router(config) as router:
            all_in = asyncio.Barrier(crawlers)
            beside = asyncio.create_task(_serve_beside(router.port, result, taken))
            await asyncio.gather(*(_crawl(router.port, number, result, all_in) for number in range(crawlers)))
            beside.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await beside
            if not await router.settles():
                result.violations.append(f"{await router.inflight()} left in the books")
        if leaked := [words for engine in engines for words in engine.events() if words[1].startswith("crawl")]:
            result.violations.append(f"{len(leaked)} half requests reached an engine")
    taken.sort()
    if taken:
        result.beside_ms = 1000 * taken[len(taken) // 2], 1000 * taken[int(len(taken) * 0.99)]
    return result
