"""Two labelled Ray nodes, a real vLLM in each zone, a fake cloud: residency, spilling, the OpenAI SDK, and engines that die."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest

from router.config import home
from tests.live.fake_cloud import FakeCloud
from tests.router.builders import digest

pytestmark = [pytest.mark.live, pytest.mark.timeout(1500)]

PLAIN, SPILL, EU_ONLY = "tg_live-plain", "tg_live-spill", "tg_live-eu"
MODEL = "smollm2"
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
CANARY = "canary-93b1-patient-record"


def free_port() -> int:
    """A free port that the system gives to nobody who does not ask for it: Ray takes dozens before ours is listened on."""
    for port in random.sample(range(21000, 32000), 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("no free port")


class Deployment:
    """The running cluster as a client and an operator see it."""

    def __init__(self, port: int, admin_port: int, cloud: FakeCloud) -> None:
        self.base = f"http://127.0.0.1:{port}"
        self.admin = f"http://127.0.0.1:{admin_port}"
        self.cloud = cloud

    def openai(self, key: str = PLAIN, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.base}/v1", api_key=key, max_retries=0, timeout=120, **options)

    def chat(self, key: str, tag: str | None = None, tokens: int = 8, content: str = "Say hello.") -> httpx.Response:
        headers = {"authorization": f"Bearer {key}"} | ({"x-tidegate-residency": tag} if tag else {})
        body = {"model": MODEL, "max_tokens": tokens, "messages": [{"role": "user", "content": content}]}
        return httpx.post(f"{self.base}/v1/chat/completions", json=body, headers=headers, timeout=400)

    def targets(self, zone: str) -> list[dict[str, Any]]:
        cluster = httpx.get(f"{self.admin}/tidegate/v1/cluster", timeout=10).json()
        return [target for target in cluster["targets"] if target["zone"] == zone]

    def wait_for(self, zone: str, seconds: float = 400) -> dict[str, Any]:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with contextlib.suppress(httpx.HTTPError):
                if found := self.targets(zone):
                    return found[0]
            time.sleep(1)
        raise AssertionError(f"no target in {zone} within {seconds} s")


def configuration(port: int, admin_port: int, cloud: FakeCloud, model_dir: Path) -> dict[str, Any]:
    zone = {"gpus": 0, "cpus": 1}
    return {
        "listen": {"host": "127.0.0.1", "port": port},
        "admin": {"port": admin_port},
        "router": {"replicas": 2, "cpus": 0.1},
        "zones": {"eu": {}, "us": {}, "cloud": {"external": True}},
        "models": [
            {
                "id": MODEL,
                "source": str(model_dir),
                "stall_timeout_s": 20,
                "args": ["--max-model-len", "1024", "--max-num-seqs", "2", "--dtype", "bfloat16", "--enforce-eager"],
                "replicas": [{"zone": "eu", **zone}, {"zone": "us", **zone}],
            }
        ],
        "targets": [
            {
                "id": "provider",
                "kind": "cloud",
                "url": f"http://127.0.0.1:{cloud.port}",
                "zone": "cloud",
                "models": {MODEL: "big-1"},
            }
        ],
        "keys": [
            {"id": "plain", "sha256": digest(PLAIN)},
            {"id": "spill", "sha256": digest(SPILL), "residency": "any", "spill": True},
            {"id": "eu-only", "sha256": digest(EU_ONLY), "residency": "eu"},
        ],
        "slo": {"ttft_ms": 3000, "max_wait_ms": 20000},
    }


@pytest.fixture(scope="module")
def live(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    import ray
    from ray import serve
    from ray.cluster_utils import Cluster

    os.environ["TIDEGATE_LOG_DIR"] = str(tmp_path_factory.mktemp("engine-logs"))
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    cloud = FakeCloud()
    port, admin_port = free_port(), free_port()
    memory = 100 * 1024 * 1024
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "object_store_memory": memory})
    for zone in ("eu", "us"):
        cluster.add_node(num_cpus=2, object_store_memory=memory, labels={"tidegate.io/zone": zone})
    try:
        ray.init(address=cluster.address, log_to_driver=False)
        from deployments.app import build

        serve.start(proxy_location="Disabled")
        serve.run(build(configuration(port, admin_port, cloud, model_dir)), name="tidegate", route_prefix=None)
        deployment = Deployment(port, admin_port, cloud)
        deployment.wait_for("eu")
        deployment.wait_for("us")
        yield deployment
        serve.shutdown()
    finally:
        ray.shutdown()
        cluster.shutdown()
        cloud.close()


@pytest.mark.parametrize("strict", [False, True])
def test_the_openai_sdk_chats_streams_and_lists(live: Deployment, strict: bool):
    client = live.openai(_strict_response_validation=strict)
    answer = client.chat.completions.create(model="auto", messages=QUESTION, temperature=0, max_tokens=16)
    assert "Paris" in answer.choices[0].message.content
    parts = client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0, max_tokens=16, stream=True)
    streamed = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
    assert streamed == answer.choices[0].message.content
    assert MODEL in [model.id for model in client.models.list()]
    completion = client.completions.create(model=MODEL, prompt="Paris is the capital of", temperature=0, max_tokens=4)
    assert completion.usage.completion_tokens == 4


def test_the_openai_sdk_of_the_major_version_before_works_too(live: Deployment, openai_2: Path):
    script = (
        "import openai, sys\n"
        "assert openai.__version__.startswith('2.')\n"
        "client = openai.OpenAI(base_url=sys.argv[1], api_key=sys.argv[2])\n"
        "ask = dict(model='auto', messages=[{'role': 'user', 'content': 'What is the capital of France?'}], temperature=0)\n"
        "print(client.chat.completions.create(**ask, max_tokens=16).choices[0].message.content)\n"
        "parts = client.chat.completions.create(**ask, max_tokens=16, stream=True)\n"
        "print(''.join(part.choices[0].delta.content or '' for part in parts))\n"
        "print([m.id for m in client.models.list()])\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(openai_2)}
    done = subprocess.run(
        [sys.executable, "-c", script, f"{live.base}/v1", PLAIN], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Paris") == 2 and MODEL in done.stdout


def test_each_refusal_of_the_contract_reaches_the_sdk_as_its_own_exception(live: Deployment):
    ask: Any = {"model": MODEL, "messages": QUESTION, "max_tokens": 4}
    with pytest.raises(openai.AuthenticationError) as wrong_key:
        live.openai("nobody").chat.completions.create(**ask)
    assert wrong_key.value.code == "invalid_api_key"
    with pytest.raises(openai.NotFoundError) as unknown:
        live.openai().chat.completions.create(**{**ask, "model": "gpt-9"})
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError):
        live.openai().chat.completions.create(**ask, extra_headers={"x-tidegate-residency": "mars"})
    with pytest.raises(openai.PermissionDeniedError) as denied:
        live.openai(EU_ONLY).chat.completions.create(**ask, extra_headers={"x-tidegate-residency": "us"})
    assert denied.value.code == "residency_denied"
    with pytest.raises(openai.BadRequestError, match="max_model_len"):
        live.openai().chat.completions.create(**{**ask, "max_tokens": 5000})


def test_a_stranger_at_the_engines_own_address_is_refused_everywhere(live: Deployment):
    address = live.wait_for("eu")["address"]
    for method, path in [
        ("GET", "/v1/models"),
        ("GET", "/metrics"),
        ("POST", "/invocations"),
        ("POST", "/tokenize"),
        ("GET", "/health"),
    ]:
        answer = httpx.request(method, f"http://{address}{path}", json={"prompt": "x"} if method == "POST" else None)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "pass_refused"), path


def test_explain_cluster_and_receipts_agree_with_what_happened(live: Deployment):
    body = {"model": "auto", "messages": QUESTION}
    headers = {"authorization": f"Bearer {EU_ONLY}"}
    told = httpx.post(f"{live.admin}/tidegate/v1/explain", json=body, headers=headers).json()
    assert told["chosen"]["zone"] == "eu"
    assert any(c["zone"] == "us" and c["reason"].startswith("residency:") for c in told["candidates"])
    answer = live.chat(EU_ONLY)
    assert answer.headers["x-tidegate-zone"] == "eu"
    for _ in range(4):
        receipt = httpx.get(f"{live.admin}/tidegate/v1/receipts/{answer.headers['x-request-id']}").json()
        assert receipt["attempts"][-1]["zone"] == "eu"
        assert receipt["completion_tokens"] == answer.json()["usage"]["completion_tokens"]


def test_a_saturated_cluster_spills_for_those_who_may_and_for_nobody_else(live: Deployment):
    before = len(live.cloud.bodies)
    with concurrent.futures.ThreadPoolExecutor(48) as pool:
        kept = [pool.submit(live.chat, PLAIN, None, 64, CANARY) for _ in range(32)]
        time.sleep(2)
        sent = [pool.submit(live.chat, SPILL, None, 8, "may leave") for _ in range(8)]
        kept_answers = [future.result() for future in kept]
        sent_answers = [future.result() for future in sent]
    zones = Counter(answer.headers["x-tidegate-zone"] for answer in kept_answers)
    statuses = Counter(answer.status_code for answer in kept_answers)
    assert set(statuses) <= {200, 503} and statuses[200] >= 4, statuses
    assert zones["cloud"] == 0
    for refused in (answer for answer in kept_answers if answer.status_code == 503):
        assert refused.json()["error"]["code"] == "overloaded" and int(refused.headers["retry-after"]) >= 1
    spilled = [answer for answer in sent_answers if answer.headers["x-tidegate-zone"] == "cloud"]
    assert spilled, [answer.headers["x-tidegate-reason"] for answer in sent_answers]
    assert all(answer.headers["x-tidegate-reason"].startswith("spill:") for answer in spilled)
    assert len(live.cloud.bodies) - before == len(spilled)
    assert all(body["model"] == "big-1" for body in live.cloud.bodies)
    assert all("authorization" not in headers and "x-tidegate-pass" not in headers for headers in live.cloud.headers)
    assert CANARY.encode() not in live.cloud.raw


def engine_processes(port: int) -> list[psutil.Process]:
    """Every process of the vLLM server that listens on `port`."""
    found = [
        p for p in psutil.process_iter(["cmdline"]) if str(port) in (p.info["cmdline"] or []) and "--port" in p.info["cmdline"]
    ]
    return [*found, *(child for process in found for child in process.children(recursive=True))]


def test_requests_tagged_eu_stay_in_eu_while_its_engine_is_killed_and_replaced(live: Deployment):
    old = live.wait_for("eu")
    cloud_before = len(live.cloud.bodies)
    outcomes: Counter[str] = Counter()
    count, at_once = (200, 8) if os.environ.get("TIDEGATE_LONG_TESTS") == "1" else (60, 3)
    killed_at = count // 4

    def ask(number: int) -> None:
        if number == killed_at:
            for process in engine_processes(int(old["address"].rsplit(":", 1)[1])):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGKILL)
        answer = live.chat(SPILL, tag="eu", tokens=1, content=CANARY)
        if answer.status_code == 200:
            outcomes[answer.headers["x-tidegate-zone"]] += 1
        else:
            outcomes[answer.json()["error"]["code"]] += 1
            time.sleep(3)

    with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
        list(pool.map(ask, range(count)))
    print(f"while killed: {dict(outcomes)}")
    assert sum(outcomes.values()) == count
    assert set(outcomes) <= {"eu", "residency_capacity"}, outcomes
    # Most wait until the engine is back; only who would wait longer than `max_wait_ms` is refused, and asks again.
    assert outcomes["eu"] > killed_at, outcomes
    assert len(live.cloud.bodies) == cloud_before and CANARY.encode() not in live.cloud.raw
    deadline = time.monotonic() + 400
    while live.wait_for("eu")["incarnation"] == old["incarnation"]:
        assert time.monotonic() < deadline, "Serve did not replace the engine"
        time.sleep(2)
    assert live.chat(EU_ONLY).headers["x-tidegate-zone"] == "eu"


def test_an_engine_whose_core_hangs_is_avoided_and_replaced(live: Deployment):
    old = live.wait_for("us")
    live.wait_for("eu")
    processes = engine_processes(int(old["address"].rsplit(":", 1)[1]))
    next(process for process in processes if "EngineCore" in "".join(process.cmdline())).suspend()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        hanging = pool.submit(live.chat, PLAIN, "us", 4)
        deadline = time.monotonic() + 15
        while live.wait_for("us")["signals"]["silent_s"] < 3.0:
            assert time.monotonic() < deadline, "nobody noticed"
            time.sleep(0.5)
        zones = [live.chat(PLAIN, tokens=4).headers["x-tidegate-zone"] for _ in range(6)]
        assert zones == ["eu"] * 6
        deadline = time.monotonic() + 400
        while live.wait_for("us")["incarnation"] == old["incarnation"]:
            assert time.monotonic() < deadline, "Serve did not replace the engine"
            time.sleep(2)
        print(f"the request that went there: {hanging.result().status_code}")
    assert live.chat(PLAIN, tag="us").headers["x-tidegate-zone"] == "us"


def router_processes(port: int) -> list[psutil.Process]:
    """The router replicas: whoever listens on the public port."""
    listening = {c.pid for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN and c.laddr.port == port}
    return [psutil.Process(pid) for pid in listening if pid is not None]


def test_routers_that_are_killed_let_nothing_out_and_are_replaced(live: Deployment):
    live.wait_for("eu")
    port = int(live.base.rsplit(":", 1)[1])
    before = {process.pid for process in router_processes(port)}
    assert len(before) == 2
    cloud_before = len(live.cloud.bodies)
    outcomes: Counter[str] = Counter()

    def ask(number: int) -> None:
        if number == 10:
            for process in router_processes(port):
                process.send_signal(signal.SIGKILL)
        try:
            answer = live.chat(SPILL, tag="eu", tokens=4, content=CANARY)
        except httpx.HTTPError:
            outcomes["cut"] += 1
            time.sleep(1)
        else:
            served = answer.status_code == 200
            outcomes[answer.headers["x-tidegate-zone"] if served else answer.json()["error"]["code"]] += 1

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(ask, range(40)))
    print(f"while routers were killed: {dict(outcomes)}")
    assert outcomes["cut"] > 0 and set(outcomes) <= {"cut", "eu", "residency_capacity", "overloaded"}, outcomes
    deadline = time.monotonic() + 200
    while True:
        with contextlib.suppress(httpx.HTTPError):
            if live.chat(EU_ONLY, content=CANARY).status_code == 200:
                break
        assert time.monotonic() < deadline, "Serve did not replace the routers"
        time.sleep(1)
    assert not before & {process.pid for process in router_processes(port)}
    assert len(live.cloud.bodies) == cloud_before and CANARY.encode() not in live.cloud.raw


def test_no_log_of_ray_vllm_or_ours_has_a_word_of_a_request_or_a_key(live: Deployment):
    """After everything above, kills included; Ray's logs hold what every process of the cluster printed."""
    import ray

    assert live.chat(PLAIN, content=CANARY).status_code == 200
    session = Path(ray._private.worker._global_node.get_session_dir_path())
    places = [session / "logs", Path(os.environ["TIDEGATE_LOG_DIR"]), home() / ".tidegate" / "audit"]
    files = [path for place in places for path in place.rglob("*") if path.is_file()]
    secrets = [CANARY, PLAIN, SPILL, EU_ONLY]
    found = [(path, secret) for path in files for secret in secrets if secret.encode() in path.read_bytes()]
    assert len(files) > 20 and found == []
