"""On real Ray: a changed `user_config` reaches routers and guards while engines and streams run on, and cuts what it forbids;
another release replaces all of them."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.live.test_two_zones import free_port
from tests.router.builders import digest

pytestmark = [pytest.mark.live, pytest.mark.timeout(600)]
FIRST, SECOND = "tg_policy-first", "tg_policy-second"
KEYS = [{"id": "first", "sha256": digest(FIRST)}, {"id": "second", "sha256": digest(SECOND)}]


class Stream(threading.Thread):
    """A client that reads a stream to its end and notes when the last byte came."""

    def __init__(self, base: str, key: str) -> None:
        super().__init__(daemon=True)
        self.base, self.key = base, key
        self.got, self.last = b"", 0.0
        self.start()

    def run(self) -> None:
        body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "hello"}]}
        headers = {"authorization": f"Bearer {self.key}"}
        with (
            contextlib.suppress(httpx.HTTPError),
            httpx.stream("POST", f"{self.base}/v1/chat/completions", json=body, headers=headers, timeout=60) as response,
        ):
            for chunk in response.iter_raw():
                self.got += chunk
                self.last = time.monotonic()


def _short(base: str, key: str) -> bytes:
    stream = Stream(base, key)
    stream.join(2)
    return stream.got


def wait_until(true: Any, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(httpx.HTTPError):
            if true():
                return
        time.sleep(0.05)
    raise AssertionError("it did not come to that")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory):
    import ray
    from ray import serve
    from ray.cluster_utils import Cluster
    from ray.serve.context import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    os.environ["TIDEGATE_LOG_DIR"] = str(tmp_path_factory.mktemp("engine-logs"))
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["PYTHONPATH"] = os.pathsep.join((str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")))
    port, admin = free_port(), free_port()
    args = {
        "listen": {"host": "127.0.0.1", "port": port},
        "admin": {"port": admin},
        "router": {"cpus": 0.1},
        "zones": {"eu": {}, "us": {}},
        "models": [{"id": "m", "source": "m", "replicas": [{"zone": "eu", "gpus": 0, "cpus": 0.5}]}],
        "keys": KEYS,
    }

    def deploy(part: dict[str, Any] | None, release: str = "") -> None:
        application: dict[str, Any] = {"name": "tidegate", "import_path": "tests.live.policy_app:build", "args": args}
        application["route_prefix"] = None
        if release:
            application["runtime_env"] = {"env_vars": {"TIDEGATE_RELEASE": release}}
        if part is not None:
            application["deployments"] = [{"name": "router", "user_config": part}]
        _get_global_client().deploy_apps(ServeDeploySchema.parse_obj({"applications": [application]}))

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "labels": {"tidegate.io/zone": "eu"}})
    try:
        ray.init(address=nodes.address, log_to_driver=False)
        serve.start(proxy_location="Disabled")
        yield f"http://127.0.0.1:{port}", f"http://127.0.0.1:{admin}", deploy
        serve.shutdown()
    finally:
        ray.shutdown()
        nodes.shutdown()


def test_a_policy_changes_under_running_engines_and_streams(cluster):
    base, admin, deploy = cluster

    def targets() -> list[dict[str, Any]]:
        return httpx.get(f"{admin}/tidegate/v1/cluster", timeout=5).json()["targets"]

    def epoch() -> str:
        return httpx.get(f"{admin}/readyz", timeout=5).json()["epoch"]

    deploy(None)
    wait_until(targets)
    before, incarnation = epoch(), targets()[0]["incarnation"]
    first, second = Stream(base, FIRST), Stream(base, SECOND)
    wait_until(lambda: len(first.got) > 500 and len(second.got) > 500)

    started = time.monotonic()
    deploy({"keys": KEYS[1:]})
    first.join(60)
    print(f"deploy to last byte of the forbidden stream: {first.last - started:.2f} s")
    assert b"policy_revoked" in first.got and b"[DONE]" not in first.got
    assert epoch() != before
    length = len(second.got)
    wait_until(lambda: len(second.got) > length)
    assert [target["incarnation"] for target in targets()] == [incarnation]
    headers = {"authorization": f"Bearer {FIRST}"}
    assert httpx.post(f"{base}/v1/chat/completions", json={}, headers=headers, timeout=10).status_code == 401

    taken = epoch()
    deploy({"keys": "nonsense"})
    wait_until(lambda: "policy" in httpx.get(f"{admin}/readyz", timeout=5).json())
    assert epoch() == taken
    third = Stream(base, SECOND)
    wait_until(lambda: len(third.got) > 500)
    assert [target["incarnation"] for target in targets()] == [incarnation]

    deploy({"keys": KEYS})
    wait_until(lambda: epoch() == before)
    # A guard learns of a wider policy a moment after the router, and refuses in between.
    wait_until(lambda: len(_short(base, FIRST)) > 500)
    assert json.loads(httpx.get(f"{admin}/readyz", timeout=5).text).get("policy") is None
    assert [target["incarnation"] for target in targets()] == [incarnation]


def test_another_release_in_the_environment_replaces_engines_and_routers_and_no_request_is_lost(cluster):
    base, admin, deploy = cluster

    def who() -> set[str]:
        told = httpx.get(f"{admin}/tidegate/v1/cluster", timeout=5).json()
        return {told["router"], *(target["incarnation"] for target in told["targets"])}

    deploy({"keys": KEYS})
    wait_until(lambda: len(who()) == 2)
    before, ended, statuses = who(), threading.Event(), list[int]()

    def ask() -> None:
        body, headers = {"model": "m", "prompt": "hello"}, {"authorization": f"Bearer {FIRST}"}
        while not ended.is_set():
            answer = httpx.post(f"{base}/v1/completions", json=body, headers=headers, timeout=90)
            statuses.append(answer.status_code)

    client = threading.Thread(target=ask, daemon=True)
    client.start()
    wait_until(lambda: statuses)
    deploy({"keys": KEYS}, release="2")
    wait_until(lambda: len(who() - before) == 2 and who().isdisjoint(before))
    asked = len(statuses)
    wait_until(lambda: len(statuses) > asked)
    ended.set()
    client.join(90)
    assert set(statuses) == {200} and not client.is_alive()
