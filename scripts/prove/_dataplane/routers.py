"""The router under test: as a process of its own through `deployments.standalone`, or inside this process."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from _dataplane.client import ask
from router.compiled import compile_policy
from router.config import parse_config
from router.fixed_targets import fixed_targets
from router.placement.targets import Report, Target
from router.process import RouterProcess

KEY = "tg_prove"
CHECKOUT = Path(__file__).resolve().parents[3]


def free_port() -> int:
    """A port nobody uses just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def make_config(engines: dict[str, tuple[int, str]], **changes: Any) -> dict[str, Any]:
    """A configuration over fixed targets. `engines`: target id -> (port, model)."""
    return {
        "listen": {"host": "127.0.0.1", "port": free_port()},
        "admin": {"host": "127.0.0.1", "port": free_port()},
        "zones": {"here": {}},
        "targets": [
            {
                "id": name,
                "kind": "server",
                "vouched": True,
                "metrics": False,  # these engines speak of requests only, some of them brokenly
                "url": f"http://127.0.0.1:{port}",
                "zone": "here",
                "tier": "small",
                "models": {model: model},
            }
            for name, (port, model) in engines.items()
        ],
        "keys": [{"id": "prove", "sha256": hashlib.sha256(KEY.encode()).hexdigest()}],
        **changes,
    }


@dataclass
class Router:
    """A running router."""

    port: int
    admin_port: int
    pid: int
    inside: RouterProcess | None = None
    targets: tuple[Target, ...] = ()

    def rss_mib(self) -> float:
        """Resident memory, with the process that writes its audit log."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in (self.pid, *children))
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    def fds(self) -> int:
        """Open file descriptors."""
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    async def inflight(self) -> float:
        """Requests in the router's books, by its own metrics."""
        answer = await ask(self.port, b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        lines = answer.body.decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("tidegate_target_inflight{"))

    async def settles(self, limit_s: float = 20.0) -> bool:
        """Whether its books come to nothing in flight; waits for that, and no longer."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                while await self.inflight():
                    pass  # each look waits for an answer
                return True
        return False

    async def stream_breaks(self) -> Counter[str]:
        """Streams that broke under the router, by what became of them, by its own metrics."""
        answer = await ask(self.port, b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        found: Counter[str] = Counter()
        for outcome, number in re.findall(r'tidegate_stream_breaks_total\{outcome="(\w+)".*\} (\S+)', answer.body.decode()):
            found[outcome] += round(float(number))
        return found

    def renew(self, index: int, serial: int) -> None:
        """Report target `index` as a new incarnation, so that what its past did to its standing is forgotten."""
        assert self.inside is not None
        fresh = replace_target(self.targets[index], f"{self.targets[index].id}#{serial}")
        self.targets = (*self.targets[:index], fresh, *self.targets[index + 1 :])
        self.inside.state.fleet.update([Report(target) for target in self.targets])


def replace_target(target: Target, incarnation: str) -> Target:
    """The same target under another incarnation."""
    return replace(target, incarnation=incarnation)


@contextlib.asynccontextmanager
async def inside(data: dict[str, Any]) -> AsyncIterator[Router]:
    """A router in this process, for proofs that need its books."""
    config = parse_config(data)
    process = RouterProcess(config, compile_policy(config, Path()), b"s" * 32, {}, "router-prove", grace_s=1)
    targets = tuple(fixed_targets(config, None, ""))
    process.state.fleet.update([Report(target) for target in targets])
    process.start()
    router = Router(config.listen.port, config.admin.port, os.getpid(), process, targets)
    try:
        await _wait(router)
        yield router
    finally:
        await process.drain()


@contextlib.asynccontextmanager
async def outside(data: dict[str, Any]) -> AsyncIterator[Router]:
    """A router process of its own, as `tidegate router` runs it."""
    with tempfile.TemporaryDirectory(prefix="tidegate-prove-") as folder:
        child = spawn(data, Path(folder))
        router = Router(data["listen"]["port"], data["admin"]["port"], child.pid)
        try:
            await _wait(router)
            yield router
            if child.poll() is not None:
                raise RuntimeError(f"the router died with {child.returncode}")
        finally:
            text = (Path(folder) / "log").read_text(errors="replace")
            if text.strip():
                print(f"  the router's log: {text[-1500:]}", file=sys.stderr)
            child.send_signal(signal.SIGTERM)
            try:
                child.wait(5)
            except subprocess.TimeoutExpired:
                child.kill()


def spawn(data: dict[str, Any], folder: Path) -> subprocess.Popen[bytes]:
    """Start a router process that has `folder` for its home; returns at once."""
    path = folder / "config.yaml"
    path.write_text(json.dumps({"applications": [{"name": "tidegate", "import_path": "deployments.app:build", "args": data}]}))
    code = f"from pathlib import Path; from deployments.standalone import run; run(Path({str(path)!r}))"
    env = {**os.environ, "PYTHONPATH": f"{CHECKOUT}{os.pathsep}{CHECKOUT / 'scripts'}", "TIDEGATE_HOME": str(folder)}
    with (folder / "log").open("wb") as log:
        return subprocess.Popen([sys.executable, "-c", code], env=env, cwd=folder, stdout=log, stderr=log)


async def _wait(router: Router) -> None:
    for _ in range(600):
        with contextlib.suppress(OSError):
            answer = await ask(router.port, b"GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
            if answer.status == 200:
                return
        await asyncio.sleep(0.05)
    raise RuntimeError("the router did not become ready in 30 s")
