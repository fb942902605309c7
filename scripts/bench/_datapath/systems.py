"""The systems under test: how each is started in front of the mock engines, with its own defaults wherever it has any.

Departures from the defaults, the same for all: bound to the loopback address, and the peers' log level at `warn`, which
spares them a line per request (vllm-router 0.1.17 takes `warning` for INFO, but logs no line per request at INFO either).
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

from . import bodies
from .peers import Missing, ensure

HOST = "127.0.0.1"
LARGE = "mock-large"
"""What the large tier's model is called; the engines behind it are the same."""


@dataclass(frozen=True)
class Bench:
    """What every system may need to know."""

    root: Path
    """The checkout."""
    work: Path
    """Scratch space: configurations, logs, environments."""
    python: str
    """The Python that has tidegate's dependencies."""
    engines: list[str]
    """Base URLs of the mock engines."""
    install_s: float = 600
    """How long a peer may take to install."""


@dataclass(frozen=True)
class Launch:
    """How to start one system."""

    argv: list[str]
    port: int
    env: dict[str, str] = field(default_factory=dict)
    ready_s: float = 40.0

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://{HOST}:{self.port}"


def interpreter_of(python: str) -> str:
    """What an interpreter says of itself: version and compiler. Builds of one version can differ by a tenth and more.

    Raises:
        Missing: it cannot be started.
    """
    program = "import platform as p; print(p.python_implementation(), p.python_version(), f'({p.python_compiler()})')"
    try:
        done = subprocess.run([python, "-c", program], capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise Missing(f"{python} does not run: {error}") from None
    return f"{done.stdout.strip()} at {python}"


def haproxy(bench: Bench, port: int) -> Launch:
    """HAProxy with one thread: a C proxy that decides nothing, the floor."""
    program = shutil.which("haproxy") or next((p for p in ("/usr/sbin/haproxy",) if Path(p).exists()), None)
    if program is None:
        raise Missing("haproxy is not installed (apt-get install haproxy)")
    servers = [f"  server e{i} {url.removeprefix('http://')}" for i, url in enumerate(bench.engines)]
    lines = [
        "global",
        "  nbthread 1",
        "  maxconn 4096",
        "defaults",
        "  mode http",
        "  http-reuse always",
        *(f"  timeout {name} 60s" for name in ("connect", "client", "server")),
        "listen bench",
        f"  bind {HOST}:{port}",
        "  balance roundrobin",
        *servers,
        "",
    ]
    path = bench.work / f"haproxy-{port}.cfg"
    path.write_text("\n".join(lines))
    return Launch([program, "-f", str(path), "-db"], port)


def bare_relay(bench: Bench, port: int) -> Launch:
    """The floor of a router in Python: see `bare_relay`."""
    engines = [url.rpartition(":")[2] for url in bench.engines]
    return Launch([bench.python, str(Path(__file__).with_name("bare_relay.py")), "--port", str(port), *engines], port)


def tidegate(bench: Bench, port: int) -> Launch:
    """The router of this checkout as a plain process: key, label, complexity, decision, pass and receipt all on."""
    return _tidegate(bench, port, {})


def tidegate_continuing(bench: Bench, port: int) -> Launch:
    """The same, and able to carry broken streams on: it asks the engines for token ids, records them and takes them out again."""
    return _tidegate(bench, port, {"token_ids": True})


def _tidegate(bench: Bench, port: int, more: dict[str, bool]) -> Launch:
    """Every engine serves the named model, as behind the peers; every other one is the large tier's, too, for `auto`."""
    served = {"small": {bodies.MODEL: bodies.MODEL}, "large": {LARGE: bodies.MODEL, bodies.MODEL: bodies.MODEL}}
    targets = [
        {
            "id": f"engine-{i}",
            "kind": "server",
            "vouched": True,
            "url": url,
            "zone": "onprem",
            "models": served[tier],
            "tier": tier,
            **more,
        }
        for i, (url, tier) in enumerate(zip(bench.engines, itertools.cycle(served), strict=False))
    ]
    config = {
        "listen": {"host": HOST, "port": port},
        "admin": {"host": HOST, "port": port + 1},
        "zones": {"onprem": {}},
        "targets": targets,
        # A share has the shipped prior judge every request that leaves the choice to the router.
        "complexity": {"tiers": list(served), "share": 0.3},
        "keys": [{"id": "bench", "sha256": hashlib.sha256(bodies.KEY.encode()).hexdigest(), "residency": "onprem"}],
    }
    path = bench.work / f"tidegate-{port}.yaml"
    path.write_text(json.dumps(config, indent=1))  # JSON is YAML
    home = bench.work / "home"
    home.mkdir(exist_ok=True)
    env = {"TIDEGATE_HOME": str(home), "PYTHONPATH": str(bench.root)}
    program = "import sys, pathlib; from deployments.standalone import run; run(pathlib.Path(sys.argv[1]))"
    return Launch([bench.python, "-c", program, str(path)], port, env)


def _rust_peer(requirement: str, module: list[str], policy: str) -> Callable[[Bench, int], Launch]:
    def launch(bench: Bench, port: int) -> Launch:
        python = ensure(bench.work / "venv", requirement, bench.install_s)
        options = ["--host", HOST, "--port", str(port), "--policy", policy]
        options += ["--prometheus-port", str(port + 1), "--prometheus-host", HOST]
        level = "warning" if module[0].startswith("vllm") else "warn"
        return Launch([str(python), "-m", *module, *options, "--log-level", level, "--worker-urls", *bench.engines], port)

    launch.__doc__ = f"{requirement} with its policy {policy}."
    return launch


def litellm(bench: Bench, port: int) -> Launch:
    """The LiteLLM proxy, one worker, no database."""
    python = ensure(bench.work / "venv-litellm", "litellm[proxy]==1.104.4", bench.install_s)
    models = [
        {
            "model_name": bodies.MODEL,
            "litellm_params": {"model": "openai/mock", "api_base": url + "/v1", "api_key": "-"},
        }
        for url in bench.engines
    ]
    path = bench.work / "litellm.yaml"
    path.write_text(json.dumps({"model_list": models}))
    argv = [str(python.parent / "litellm"), "--config", str(path), "--host", HOST, "--port", str(port)]
    # It has no database to keep keys in; so it may start without a master key, and asks for none.
    env = {
        "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_TELEMETRY": "False",
        "LITELLM_LOG": "ERROR",
    }
    return Launch([*argv, "--num_workers", "1"], port, env, ready_s=150)


def _ray_serve(mode: str) -> Callable[[Bench, int], Launch]:
    def launch(bench: Bench, port: int) -> Launch:
        python = ensure(bench.work / "venv-ray", RAY, bench.install_s)
        script = Path(__file__).with_name("ray_serve.py")
        argv = [str(python), str(script), "--port", str(port), "--mode", mode, "--model", bodies.MODEL]
        return Launch(
            [*argv, "--engines", *bench.engines], port, {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}, 150
        )

    launch.__doc__ = f"Ray Serve with its default proxy, {mode}; all of Ray's processes count."
    return launch


RAY = "ray[serve]==2.60.0"
DIRECT = "direct"
"""The mock engine itself: the floor of latency. Its CPU time is the engine's own."""

SYSTEMS: dict[str, Callable[[Bench, int], Launch]] = {
    "haproxy": haproxy,
    "bare-relay": bare_relay,
    "tidegate": tidegate,
    "tidegate/continuation": tidegate_continuing,
    "vllm-router/round_robin": _rust_peer("vllm-router==0.1.17", ["vllm_router.launch_router"], "round_robin"),
    "vllm-router/cache_aware": _rust_peer("vllm-router==0.1.17", ["vllm_router.launch_router"], "cache_aware"),
    "sglang-router/cache_aware": _rust_peer("sglang-router==0.3.2", ["sglang_router.launch_router"], "cache_aware"),
    "smg/cache_aware": _rust_peer("smg==1.13.0", ["smg.launch_router"], "cache_aware"),
    "litellm": litellm,
    "ray-serve/handle": _ray_serve("handle"),
    "ray-serve/relay": _ray_serve("relay"),
}
SLOW = ("litellm", "ray-serve/handle", "ray-serve/relay")
"""Tens of times dearer than the others: they take fewer turns, at the usual number of targets, and with the main cases only."""
MANY_TARGETS = tuple(name for name in SYSTEMS if name not in (*SLOW, "tidegate/continuation", "bare-relay"))
"""Those started again for the larger numbers of targets. The slow ones hold hundreds of MiB a start, and Ray Serve's engines are
processes, each."""
QUICK_MANY = ("haproxy", "tidegate", "vllm-router/cache_aware")
"""The same in a quick run."""
QUICK = [name for name in SYSTEMS if name not in ("bare-relay", "vllm-router/round_robin", "ray-serve/relay")]


def measured(name: str, case: bodies.Case, many: Collection[str] = MANY_TARGETS) -> bool:
    """Whether a system takes part in a case; `many`: those that cases with a number of targets of their own are for."""
    if name in (*SLOW, "tidegate/continuation"):  # of the latter only streams differ, and a chunk is told from a JSON answer
        return case.name in ("json", "sse64")
    return case.targets is None or name in (*many, DIRECT)


def describe(program: list[str]) -> str:
    """The first line a program says of its version."""
    done = subprocess.run(program, capture_output=True, text=True, timeout=10, check=False, env=os.environ)
    return (done.stdout or done.stderr).strip().partition("\n")[0]
