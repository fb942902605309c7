"""Several `tidegate router` processes over one store, in a home of their own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from _dataplane.client import ask
from _dataplane.routers import CHECKOUT, free_port, make_config

CLUSTER_ENV = "TIDEGATE_PROVE_SECRET"
"""The environment variable in which routers find a secret, where their configuration names it."""
_CODE = """
import sys, pathlib
from deployments.standalone import run
run(pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
"""


@dataclass(frozen=True)
class Setting:
    """How many routers share a store, how many clients ask them, and where the store is: a URL, or a file in their home."""

    replicas: int = 4
    clients: int = 16
    store: str | None = None


@dataclass
class Replica:
    """One router process; `port` stays the same when it is started again."""

    port: int
    admin_port: int
    process: subprocess.Popen[bytes]


@dataclass
class Replicas:
    """The routers of one proof."""

    home: Path
    config: Path
    members: list[Replica] = field(default_factory=list)

    @property
    def ports(self) -> list[int]:
        """Where clients find them."""
        return [member.port for member in self.members]

    async def restart(self, index: int, number: signal.Signals) -> None:
        """End one with a signal, and start it again."""
        member = self.members[index]
        member.process.send_signal(number)
        await asyncio.to_thread(member.process.wait, 60)
        member.process = self.spawn(member.port, member.admin_port)
        await _ready(member)

    def spawn(self, port: int, admin_port: int) -> subprocess.Popen[bytes]:
        """Start a router on these ports."""
        path = f"{CHECKOUT}{os.pathsep}{CHECKOUT / 'scripts'}"
        env = {**os.environ, "PYTHONPATH": path, "TIDEGATE_HOME": str(self.home), CLUSTER_ENV: "s" * 64}
        command = [sys.executable, "-c", _CODE, str(self.config), str(port), str(admin_port)]
        with (self.home / f"log-{port}").open("ab") as log:
            return subprocess.Popen(command, env=env, cwd=self.home, stdout=log, stderr=log)


@contextlib.asynccontextmanager
async def several_routers(setting: Setting, engine_port: int, **changes: Any) -> AsyncIterator[Replicas]:
    """Router processes over one engine and one store; `changes` go into their configuration."""
    with tempfile.TemporaryDirectory(prefix="tidegate-replicas-") as folder:
        home = Path(folder)
        store = {"store": {"url": setting.store}} if setting.store else {}
        data = make_config({"engine": (engine_port, "m")}, **changes, **store)
        routers = Replicas(home, home / "serve_config.yaml")
        routers.config.write_text(
            json.dumps({"applications": [{"name": "tidegate", "import_path": "deployments.app:build", "args": data}]})
        )
        try:
            for _ in range(setting.replicas):
                port, admin_port = free_port(), free_port()
                routers.members.append(Replica(port, admin_port, routers.spawn(port, admin_port)))
            for member in routers.members:
                await _ready(member)
            yield routers
        finally:
            for member in routers.members:
                member.process.send_signal(signal.SIGTERM)
            for member in routers.members:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    await asyncio.to_thread(member.process.wait, 10)
                member.process.kill()


async def _ready(member: Replica) -> None:
    async with asyncio.timeout(120):
        while True:
            if member.process.poll() is not None:
                raise RuntimeError(f"a router ended with {member.process.returncode}")
            with contextlib.suppress(OSError):
                answer = await ask(member.port, b"GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
                if answer.status == 200:
                    return
            await asyncio.sleep(0.05)
