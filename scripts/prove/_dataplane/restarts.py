"""Routers that die: the other one takes over, and a thousand clients that come back at once are served or told when to."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from _dataplane import routers
from _dataplane.client import ask, request
from _dataplane.decoder import Decoded
from _dataplane.engines import EngineProcess, engine_processes
from _dataplane.numbered import token

GOAL_READY_S = 2.0
GOAL_SERVED_S = 5.0
PATIENCE_S = 60.0
TOKENS, TOKENS_AFTER = 40, 3
"""Of the streams that are to be hit by the kill, and of those that come after it."""
_DONE = b"data: [DONE]\n\n"
_SHED = {429, 503}


@dataclass
class Result:
    """What came of the clients."""

    outcomes: Counter[str] = field(default_factory=Counter)
    ready_s: float = 0.0
    """From the new process's start until it answered."""
    served_s: float = 0.0
    """From then until the last client had its answer."""
    violations: list[str] = field(default_factory=list)

    @property
    def missed(self) -> str:
        """What took longer than it should, on this machine as busy as it was."""
        goals = (f"ready within {GOAL_READY_S:.0f} s", self.ready_s <= GOAL_READY_S)
        more = (f"all served within {GOAL_SERVED_S:.0f} s", self.served_s <= GOAL_SERVED_S)
        return ", ".join(goal for goal, met in (goals, more) if not met) or "nothing"


class _Process:
    """A router process that may be killed."""

    def __init__(self, data: dict[str, Any], folder: Path) -> None:
        folder.mkdir()
        self.admin_port = data["admin"]["port"]
        self._child: subprocess.Popen[bytes] = routers.spawn(data, folder)

    async def ready(self) -> float:
        """Seconds until its own admin port answers; the public one may be shared with another router."""
        started = time.monotonic()
        async with asyncio.timeout(PATIENCE_S):
            while True:
                with contextlib.suppress(OSError):
                    if (await _get(self.admin_port, "/metrics")).status == 200:
                        return time.monotonic() - started
                await asyncio.sleep(0.01)

    async def ended(self, request_id: str) -> bool:
        """Whether it has a receipt of that request."""
        return (await _get(self.admin_port, f"/tidegate/v1/receipts/{request_id}")).status == 200

    def kill(self) -> None:
        """SIGKILL it."""
        os.kill(self._child.pid, signal.SIGKILL)
        self._child.wait()

    def stop(self) -> None:
        """End it, if it runs."""
        self._child.kill()
        self._child.wait()


@contextlib.contextmanager
def _processes(folder: Path) -> Iterator[list[_Process]]:
    """A list to put processes in, which end with it."""
    running: list[_Process] = []
    try:
        yield running
    finally:
        for process in running:
            process.stop()


async def _get(port: int, path: str) -> Decoded:
    return await ask(port, f"GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode())


async def _stream(port: int, request_id: str, tokens: int = TOKENS_AFTER) -> tuple[str, float]:
    """One numbered stream to its end: what came of it, and after how many seconds it may be asked again (-1: as one likes).

    What came is `whole`, `shed` (a typed refusal), `untouched` (the connection broke before any byte), `cut` (it broke later),
    or what is wrong.
    """
    body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": f"sse {tokens} 20"}]}
    try:
        got = await ask(port, request(body, routers.KEY, request_id))
    except OSError:
        return "untouched", -1.0
    if not got.status:
        return "untouched", -1.0
    if got.status in _SHED and b'"code"' in got.body and (after := got.header(b"retry-after")):
        return "shed", float(after)
    whole = b"".join(token(request_id, i) for i in range(tokens)) + _DONE
    if got.status == 200 and got.complete and got.body == whole:
        return "whole", -1.0
    if got.status == 200 and not got.complete and _DONE not in got.body and whole.startswith(got.body):
        return "cut", -1.0
    return f"wrong: {got.status} {got.body[-80:]!r}", -1.0


async def _at_work(engines: list[EngineProcess], streams: int) -> None:
    """Wait until the engines have begun nine in ten of them: the first may be whole by then."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            if sum(len(engine.events()) for engine in engines) >= 0.9 * streams:
                return
            await asyncio.sleep(0.02)


async def come_back(clients: int, seed: int = 1) -> Result:
    """Kill the only router under `clients` streams; all come back at once when its successor listens, until they are served."""
    result, rng = Result(), random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="tidegate-prove-") as name, engine_processes(4, Path(name)) as engines:
        folder = Path(name)
        config = routers.make_config({f"e{i}": (engine.port, "m") for i, engine in enumerate(engines)})
        with _processes(folder) as running:
            running.append(_Process(config, folder / "first"))
            await running[0].ready()
            streams = [asyncio.create_task(_stream(config["listen"]["port"], f"first-{i:06d}", TOKENS)) for i in range(clients)]
            await _at_work(engines, clients)
            running[0].kill()
            result.outcomes.update(f"{outcome} by the kill" for outcome, _ in await asyncio.gather(*streams))
            running.append(_Process(config, folder / "second"))
            result.ready_s = await running[1].ready()
            started = time.monotonic()

            async def client(number: int) -> None:
                for attempt in range(1000):
                    outcome, after = await _stream(config["listen"]["port"], f"back-{number:06d}-{attempt}")
                    result.outcomes[f"{outcome} afterwards"] += 1
                    if outcome == "whole":
                        return
                    if outcome not in ("shed", "untouched") or time.monotonic() - started > PATIENCE_S:
                        break
                    await asyncio.sleep(after if after >= 0 else rng.uniform(0.05, 0.5))
                result.violations.append(f"client {number} came back for nothing: {outcome}")

            await asyncio.gather(*(client(number) for number in range(clients)))
            result.served_s = time.monotonic() - started
    result.violations += [text for text in result.outcomes if text.startswith("wrong")]
    return result


async def take_over(streams: int, seed: int = 1) -> Result:
    """Two routers on one port, one killed under `streams` streams: only its own break, and the other serves who asks then."""
    result, rng = Result(), random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="tidegate-prove-") as name, engine_processes(2, Path(name)) as engines:
        folder = Path(name)
        config = routers.make_config({f"e{i}": (engine.port, "m") for i, engine in enumerate(engines)})
        port = config["listen"]["port"]
        with _processes(folder) as running:
            for which in ("first", "second"):
                running.append(_Process({**config, "admin": {**config["admin"], "port": routers.free_port()}}, folder / which))
            for process in running:
                await process.ready()
            names = [f"over-{i:06d}" for i in range(streams)]
            tasks = [asyncio.create_task(_stream(port, request_id, TOKENS)) for request_id in names]
            await _at_work(engines, streams)
            killed = rng.randrange(2)
            running[killed].kill()
            after = await asyncio.gather(*(_stream(port, f"then-{i:06d}") for i in range(streams)))
            outcomes = dict(zip(names, (outcome for outcome, _ in await asyncio.gather(*tasks)), strict=True))
            result.outcomes.update(f"{outcome} by the kill" for outcome in outcomes.values())
            result.outcomes.update(f"{outcome} afterwards" for outcome, _ in after)
            for request_id, outcome in outcomes.items():
                if outcome.startswith("wrong"):
                    result.violations.append(f"{request_id}: {outcome}")
                elif outcome in ("cut", "untouched") and await running[1 - killed].ended(request_id):
                    result.violations.append(f"{request_id}: {outcome} by the router that lives")
            result.violations += [f"asked after the kill: {what}" for what, _ in after if what not in ("whole", "shed")]
            running.append(_Process({**config, "admin": {**config["admin"], "port": routers.free_port()}}, folder / "third"))
            result.ready_s = await running[2].ready()
    return result
