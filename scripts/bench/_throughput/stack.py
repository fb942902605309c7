"""One real vLLM on the CPU or GPU, and a router process over it that decides in full."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
from _datapath import procs

from deployments.vllm_command import build_argv, build_env
from router.config import Model

ROOT = Path(__file__).resolve().parents[3]
KEY = "tg-throughput-0123456789abcdef"
MODEL = "bench"


class NotUp(RuntimeError):
    """A server did not come up; the text has the end of its log."""


def free_port() -> int:
    """A port that is free at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def engine(
    source: Path,
    slots: int,
    work: Path,
    cpus: int,
    *,
    name: str = "engine",
    prefix_cache: bool = False,
    more: Sequence[str] = (),
) -> Iterator[str]:
    """vLLM without the guard, so that it may be asked directly too; its prefix cache, if any, can be emptied from outside."""
    port = free_port()
    argv, env = engine_command(source, slots, cpus, port, prefix_cache=prefix_cache, more=more)
    with _running(name, argv, env, work, f"http://127.0.0.1:{port}", "/health", 600) as url:
        yield url


def on_gpu() -> bool:
    """Whether engines are started on a GPU: where `CUDA_VISIBLE_DEVICES` names one."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "") != ""


def engine_command(
    source: Path, slots: int, cpus: int, port: int, *, prefix_cache: bool, more: Sequence[str]
) -> tuple[list[str], dict[str, str]]:
    """Command line and environment of an engine.

    Args:
        source: directory of the model.
        slots: sequences at once.
        cpus: threads, where it computes on the CPU.
        port: where it listens.
        prefix_cache: whether it has one.
        more: vLLM's arguments after ours; of two that say the same thing the later one counts.
    """
    args = ["--enforce-eager", "--dtype", "bfloat16", "--max-model-len", "2048", "--max-num-seqs", str(slots)]
    args.append("--enable-prefix-caching" if prefix_cache else "--no-enable-prefix-caching")
    model = Model(id=MODEL, source=str(source), args=[*args, *more], replicas=[{"zone": "local"}])
    argv = build_argv(model, str(source), "127.0.0.1", port)
    guard = argv.index("--middleware")
    env = build_env(model, str(source), {}, cpus=cpus, gpus=1.0 if on_gpu() else 0.0)
    if prefix_cache:
        env["VLLM_SERVER_DEV_MODE"] = "1"  # it has /reset_prefix_cache
    return argv[:guard] + argv[guard + 2 :], env


@contextlib.contextmanager
def router(urls: list[str], work: Path) -> Iterator[str]:
    """`tidegate router` with these engines as its targets."""
    port = free_port()
    server = {"kind": "server", "vouched": True, "zone": "local", "tier": "small", "models": {MODEL: MODEL}}
    config = {
        "listen": {"host": "127.0.0.1", "port": port},
        "admin": {"host": "127.0.0.1", "port": free_port()},
        "zones": {"local": {}},
        "targets": [{**server, "id": f"engine-{number}", "url": url} for number, url in enumerate(urls)],
        "keys": [{"id": "bench", "sha256": hashlib.sha256(KEY.encode()).hexdigest()}],
        # Nothing is to be turned away: the engine's own queue is what both ways share.
        "slo": {"ttft_ms": 1e9, "max_wait_ms": 1e9},
    }
    path = work / "throughput.yaml"
    path.write_text(json.dumps(config))
    program = "import sys, pathlib; from deployments.standalone import run; run(pathlib.Path(sys.argv[1]))"
    env = {"PYTHONPATH": str(ROOT), "TIDEGATE_HOME": str(work)}
    with _running(
        "router", [sys.executable, "-c", program, str(path)], env, work, f"http://127.0.0.1:{port}", "/readyz", 60
    ) as url:
        yield url


@contextlib.contextmanager
def _running(name: str, argv: list[str], env: dict[str, str], work: Path, url: str, path: str, limit_s: float) -> Iterator[str]:
    log = work / f"throughput-{name}.log"
    process = procs.start(argv, log, env)
    try:
        end = time.monotonic() + limit_s
        while not _answers(url + path):
            if process.poll() is not None or time.monotonic() > end:
                lines = log.read_text(errors="replace").strip().splitlines()[-5:]
                raise NotUp(f"the {name} did not come up: " + "\n".join(lines))
            time.sleep(0.25)
        yield url
    finally:
        procs.stop(process, 10)


def _answers(url: str) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(url, timeout=5, trust_env=False).status_code == 200
    return False
