"""One real vLLM without a guard, and one `tidegate router` process over it: both can be asked, so answers can be compared."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from deployments.vllm_command import build_argv
from deployments.vllm_process import EnginePlan, VllmProcess
from router.config import Model
from router.residency.guard import Place
from tests.live.conformance_cases import ENGINE_MODEL
from tests.router.builders import digest

KEY = "tg_conformance"
# Without the prefix cache the second of two equal requests is computed as the first one was.
ARGS = ["--enforce-eager", "--dtype", "bfloat16", "--max-model-len", "2048", "--max-num-seqs", "4", "--no-enable-prefix-caching"]
TOOLS = ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]


class Stack:
    """Addresses of the engine and of the router in front of it; `log` is where the router writes."""

    def __init__(self, engine: str, router: str, log: Path) -> None:
        self.engine = engine
        self.router = router
        self.log = log

    def client(self, base: str) -> httpx.Client:
        """A plain HTTP client of one of the two, with the router's key."""
        return httpx.Client(base_url=base, headers={"authorization": f"Bearer {KEY}"}, timeout=300, trust_env=False)


def free_port() -> int:
    """A port that is free at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def open_engine(model_dir: Path, logs: Path, args: tuple[str, ...] = (*ARGS, *TOOLS)) -> Iterator[str]:
    """A vLLM server on its leash, as an engine is started, but without the guard: anybody may ask it."""
    model = Model(id=ENGINE_MODEL, source=str(model_dir), args=list(args), replicas=[{"zone": "local"}])
    argv = build_argv(model, str(model_dir), "127.0.0.1", 0)
    guard = argv.index("--middleware")
    argv = argv[:guard] + argv[guard + 2 :]
    argv[argv.index("--port") + 1] = "{port}"
    loop = asyncio.new_event_loop()
    os.environ["TIDEGATE_LOG_DIR"], before = str(logs), os.environ.get("TIDEGATE_LOG_DIR")
    try:
        plan = EnginePlan(model, "127.0.0.1", "live-plain-1", b"k" * 32, Place(("local",), ("local",)), cpus=2)
        process = VllmProcess(plan, argv)
        loop.run_until_complete(process.start())
    finally:
        os.environ.pop("TIDEGATE_LOG_DIR")
        if before is not None:
            os.environ["TIDEGATE_LOG_DIR"] = before
    try:
        yield f"http://127.0.0.1:{process.port}"
    finally:
        loop.run_until_complete(process.stop())
        loop.close()


@contextlib.contextmanager
def open_router(engine: str, folder: Path) -> Iterator[Stack]:
    """A `tidegate router` process with `engine` as its only target, a server that somebody vouches for."""
    config, log = folder / "router.yaml", folder / "router.log"
    target = {"id": "plain", "kind": "server", "vouched": True, "url": engine, "zone": "local", "tier": "small"}
    target["models"] = {ENGINE_MODEL: ENGINE_MODEL, "house-model": ENGINE_MODEL}
    keys = [{"id": "conformance", "sha256": digest(KEY)}]
    config.write_text(json.dumps({"zones": {"local": {}}, "targets": [target], "keys": keys}), encoding="utf-8")
    port = free_port()
    command = [sys.executable, "-c", "from tidegate.cli import main; main()", "router", "--config", str(config)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--port", str(port), "--admin-port", str(free_port())], env=environment, stdout=output, stderr=output
        )
    base = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + 60
        while not _ready(base):
            assert process.poll() is None and time.monotonic() < end, log.read_text(encoding="utf-8")
            time.sleep(0.1)
        yield Stack(engine, base, log)
    finally:
        process.terminate()
        process.wait(60)


def _ready(base: str) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(f"{base}/readyz", timeout=5, trust_env=False).status_code == 200
    return False
