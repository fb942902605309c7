"""On real Ray: router replicas find each other and tell each other directly, without any configuration of it."""

from __future__ import annotations

import asyncio
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.live.test_policy_live import wait_until
from tests.live.test_two_zones import free_port
from tests.router.builders import digest
from tests.router.simulated_engine import SimulatedEngine

pytestmark = [pytest.mark.live, pytest.mark.timeout(600)]
KEY = "tg_peers-live"
TARGETS = ("a", "b")


class Engines(threading.Thread):
    """Simulated engines on a loop of their own."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.loop = asyncio.new_event_loop()
        self.start()
        self.by_name = asyncio.run_coroutine_threadsafe(self._open(), self.loop).result(30)

    async def _open(self) -> dict[str, SimulatedEngine]:
        engines = {name: SimulatedEngine() for name in TARGETS}
        for engine in engines.values():
            await engine.start()
        return engines

    def run(self) -> None:
        self.loop.run_forever()

    def release(self, name: str) -> None:
        self.loop.call_soon_threadsafe(self.by_name[name].gate.release)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str, Engines]]:
    import ray
    from ray import serve
    from ray.cluster_utils import Cluster
    from ray.serve.context import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["PYTHONPATH"] = os.pathsep.join((str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")))
    os.environ["TIDEGATE_HOME"] = str(tmp_path_factory.mktemp("home"))
    port, admin, engines = free_port(), free_port(), Engines()
    server = {"kind": "server", "vouched": True, "zone": "eu", "models": {"m": "m"}}
    args = {
        "listen": {"host": "127.0.0.1", "port": port},
        "admin": {"port": admin},
        "router": {"cpus": 0.1, "replicas": 2},
        "zones": {"eu": {}},
        "targets": [{**server, "id": name, "url": f"http://127.0.0.1:{engines.by_name[name].port}"} for name in TARGETS],
        "keys": [{"id": "client", "sha256": digest(KEY)}],
        "audit": {"enabled": False},
    }
    application = {"name": "tidegate", "import_path": "deployments.app:build", "args": args, "route_prefix": None}
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "labels": {"tidegate.io/zone": "eu"}})
    try:
        nodes.add_node(num_cpus=2, labels={"tidegate.io/zone": "eu"})
        ray.init(address=nodes.address, log_to_driver=False)
        serve.start(proxy_location="Disabled")
        _get_global_client().deploy_apps(ServeDeploySchema.parse_obj({"applications": [application]}))
        yield f"http://127.0.0.1:{port}", f"http://127.0.0.1:{admin}", engines
        serve.shutdown()
    finally:
        ray.shutdown()
        nodes.shutdown()


def figures(admin: str) -> tuple[float, float]:
    """How many routers one of them hears directly, and whether it tells in rounds. Each connection may meet another one."""
    text = httpx.get(f"{admin}/metrics", timeout=5).text
    heard, rounds = (re.search(rf"^tidegate_peers_{name}\{{\S* (\S+)", text, re.M) for name in ("heard", "told_in_rounds"))
    return float(heard[1]), float(rounds[1])


def books(admin: str) -> tuple[str, dict[str, Any]]:
    told = httpx.get(f"{admin}/tidegate/v1/cluster", timeout=5).json()
    return told["router"], {target["target"]: target["inflight"] for target in told["targets"]}


def all_books(admin: str) -> dict[str, dict[str, Any]]:
    """What each of the two routers reckons with."""
    found: dict[str, dict[str, Any]] = {}
    for _ in range(200):
        router, inflight = books(admin)
        found[router] = inflight
        if len(found) == 2:
            return found
    raise AssertionError("only one router answers")


def test_two_replicas_hear_each_other_and_reckon_with_each_others_requests(stack):
    base, admin, engines = stack
    wait_until(lambda: len(all_books(admin)) == 2)
    wait_until(lambda: all(figures(admin) == (1, 0) for _ in range(20)))

    def ask() -> None:
        body = {"model": "m", "messages": [{"role": "user", "content": "gated"}]}
        answers.append(httpx.post(f"{base}/v1/chat/completions", json=body, headers=headers, timeout=120).status_code)

    answers: list[int] = []
    headers = {"authorization": f"Bearer {KEY}"}
    clients = [threading.Thread(target=ask) for _ in range(6)]
    for number, client in enumerate(clients, 1):
        client.start()
        wait_until(lambda number=number: [sum(book.values()) for book in all_books(admin).values()] == [number] * 2)
    assert list(all_books(admin).values()) == [{"a": 3, "b": 3}] * 2, (
        "whoever comes next goes where fewer are, whoever sent those"
    )
    for _ in clients:
        for name in TARGETS:
            engines.release(name)
    for client in clients:
        client.join(120)
    assert answers == [200] * 6
    wait_until(lambda: list(all_books(admin).values()) == [{"a": 0, "b": 0}] * 2)
