"""Starting, killing and restarting simulated engine processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from _dataplane.routers import CHECKOUT


class EngineProcess:
    """One engine process on a port that stays its own over restarts."""

    def __init__(self, log: Path, port: int = 0, module: str = "_dataplane.numbered") -> None:
        self.log = log
        self._module = module
        self.port = port
        self.kills = 0
        self._child = self._spawn()
        assert self._child.stdout is not None
        self.port = int(self._child.stdout.readline())

    def _spawn(self) -> subprocess.Popen[bytes]:
        env = {**os.environ, "PYTHONPATH": str(CHECKOUT / "scripts" / "prove")}
        command = [sys.executable, "-m", self._module, str(self.port), str(self.log)]
        return subprocess.Popen(command, env=env, stdout=subprocess.PIPE)

    def kill(self) -> None:
        """SIGKILL it."""
        self.kills += 1
        self._child.kill()
        self._child.wait()

    def restart(self) -> None:
        """Start it again on its port; returns at once, it listens a moment later."""
        self._child = self._spawn()

    def stop(self) -> None:
        """End it for good."""
        self._child.kill()
        self._child.wait()

    def events(self) -> list[list[str]]:
        """The log's lines, in words."""
        with contextlib.suppress(FileNotFoundError):
            return [line.split() for line in self.log.read_text().splitlines()]
        return []


@contextlib.contextmanager
def engine_processes(count: int, folder: Path, module: str = "_dataplane.numbered") -> Iterator[list[EngineProcess]]:
    """Some engines, ended afterwards."""
    engines: list[EngineProcess] = []
    try:
        for i in range(count):
            engines.append(EngineProcess(folder / f"engine-{i}.log", module=module))
        yield engines
    finally:
        for engine in engines:
            engine.stop()


async def keep_killing(engines: list[EngineProcess], period_s: float, rng: random.Random) -> None:
    """Kill one of them every `period_s` seconds, and start it again a moment later; until cancelled."""
    while True:
        await asyncio.sleep(period_s)
        engine = rng.choice(engines)
        engine.kill()
        await asyncio.sleep(min(0.5, period_s / 4))
        engine.restart()
