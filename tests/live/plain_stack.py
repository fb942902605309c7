"""One real vLLM without a guard, and one `tidegate router` process over it: both can be asked, so answers can be compared."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import httpx

from deployments.vllm_command import build_argv
from router.config import Model
from tests.live.conformance_cases import ENGINE_MODEL
from tests.live.starting import Parented
from tests.router.builders import digest

KEY = "tg_conformance"
# Without the prefix cache the second of two equal requests is computed as the first one was.
ARGS = ["--enforce-eager", "--dtype", "bfloat16", "--max-model-len", "2048", "--max-num-seqs", "4", "--no-enable-prefix-caching"]
# The same model as one that makes vectors, in float32: what is compared are all their digits.
POOLING = ("--runner", "pooling", "--convert", "embed", "--enforce-eager", "--dtype", "float32", "--max-model-len", "512")
TOOLS = ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]


class Server(Protocol):
    """What a router can stand in front of."""

    def wait(self) -> int:
        """The port it listens on, once it is up."""


class Stack:
    """Addresses of the engine and of the router in front of it; `log` is what the router writes, `server` the engine's parent."""

    def __init__(self, server: Any, engine: str, router: str, log: Path) -> None:
        self.server = server
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


def begin_engine(model_dir: Path, logs: Path, args: tuple[str, ...] = (*ARGS, *TOOLS)) -> Parented:
    """Start a vLLM server on its leash, as an engine is started, but without the guard: anybody may ask it."""
    model = Model(id=ENGINE_MODEL, source=str(model_dir), args=list(args), replicas=[{"zone": "local"}])
    argv = build_argv(model, str(model_dir), "127.0.0.1", 0)
    guard = argv.index("--middleware")
    argv = argv[:guard] + argv[guard + 2 :]
    argv[argv.index("--port") + 1] = "{port}"
    return Parented(model.model_dump(), argv, logs)


@contextlib.contextmanager
def open_router(
    server: Server,
    folder: Path,
    adapters: dict[str, str] | None = None,
    prefill: dict[str, object] | None = None,
    task: str = "generate",
) -> Iterator[Stack]:
    """A `tidegate router` process with `server`, its adapters and its other half as the only target, one that is vouched for."""
    engine = f"http://127.0.0.1:{server.wait()}"
    config, log = folder / "router.yaml", folder / "router.log"
    target = {"id": "plain", "kind": "server", "vouched": True, "url": engine, "zone": "local", "tier": "small"}
    named = {name: name for name in adapters or {}}
    target |= {"models": {ENGINE_MODEL: ENGINE_MODEL, "house-model": ENGINE_MODEL, **named}, "adapters": adapters or {}}
    target |= {"prefill": prefill} if prefill else {}
    target["task"] = task
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
        yield Stack(server, engine, base, log)
    finally:
        process.terminate()
        process.wait(60)


def _ready(base: str) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(f"{base}/readyz", timeout=5, trust_env=False).status_code == 200
    return False
