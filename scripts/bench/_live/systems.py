"""The routers under test in front of real engines, each as its makers start it."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
from _datapath import procs
from _datapath.peers import ensure
from _throughput import stack

from .engines import LiveEngine

TIDEGATE = "tidegate"
VLLM_ROUTER = "vllm-router==0.1.17"
_BLOCK = 128
"""Tokens of a KV block of vLLM on a CPU where nothing else is said."""
_READY_S = 240.0
"""Ray Serve's prefix-aware router imports vLLM, in every process that has it."""

Command = Callable[[list[LiveEngine], int, Path], list[str]]


def _vllm_router(policy: str, *more: str) -> Command:
    def command(engines: list[LiveEngine], port: int, work: Path) -> list[str]:
        python = ensure(work / "venv", VLLM_ROUTER, 600)
        listening = ["--host", "127.0.0.1", "--port", str(port), "--prometheus-host", "127.0.0.1"]
        listening += ["--prometheus-port", str(stack.free_port()), "--policy", policy, "--log-level", "warning", *more]
        if policy == "kv_aware":
            listening += ["--kv-event-block-size", str(engines[0].block_tokens or _BLOCK), "--kv-event-model", stack.MODEL]
            for engine in engines:
                listening += ["--kv-event-source", f"{engine.url}={engine.events}"]
        return [str(python), "-m", "vllm_router.launch_router", *listening, "--worker-urls", *(e.url for e in engines)]

    return command


def _ray_serve(router: str) -> Command:
    def command(engines: list[LiveEngine], port: int, work: Path) -> list[str]:
        script = Path(__file__).with_name("ray_router.py")
        return [sys.executable, str(script), "--port", str(port), "--router", router, "--engines", *(e.url for e in engines)]

    return command


PEERS: dict[str, Command] = {
    "vllm-router/cache_aware": _vllm_router("cache_aware"),
    "vllm-router/kv_aware": _vllm_router("kv_aware"),
    "vllm-router/round_robin": _vllm_router("round_robin"),
    "ray-serve/prefix_aware": _ray_serve("prefix_aware"),
    "ray-serve/pow2": _ray_serve("pow2"),
}
DEFAULT = (TIDEGATE, "vllm-router/cache_aware", "vllm-router/kv_aware", "ray-serve/prefix_aware")


@contextlib.contextmanager
def running(name: str, engines: list[LiveEngine], work: Path) -> Iterator[str]:
    """A router in front of the engines; its address.

    Raises:
        Missing: it cannot be installed.
        NotUp: it does not pass a request on; the text has the end of its log.
    """
    if name == TIDEGATE:
        with stack.router([engine.url for engine in engines], work) as url:
            yield url
        return
    port, log = stack.free_port(), work / f"live-{name.replace('/', '-')}.log"
    env = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    process = procs.start(PEERS[name](engines, port, work), log, env)
    url = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + _READY_S
        while not _passes_on(url):
            if process.poll() is not None or time.monotonic() > end:
                lines = log.read_text(errors="replace").strip().splitlines()[-3:]
                raise stack.NotUp(f"{name} did not come up: {' | '.join(lines)[:400]}")
            time.sleep(0.25)
        yield url
    finally:
        procs.stop(process, 15)


def _passes_on(url: str) -> bool:
    """Whether the router passes a request on already."""
    body = {"model": stack.MODEL, "prompt": "ready?", "max_tokens": 1}
    with contextlib.suppress(httpx.HTTPError):
        return httpx.post(f"{url}/v1/completions", json=body, timeout=60, trust_env=False).status_code == 200
    return False
