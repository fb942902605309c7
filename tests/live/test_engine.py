"""One real vLLM server: what a stranger gets, what a pass opens, and what is left when things die."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import httpx
import msgspec
import psutil
import pytest

from deployments.engine_errors import EngineStartError
from deployments.vllm_process import EnginePlan, VllmProcess
from router.config import Model
from router.residency.guard import PASS_HEADER, GuardKey, GuardPolicy, Pass, Place, derive_target_key, issue_pass
from tests.deployments.processes import MARK, marked, wait_until

pytestmark = pytest.mark.live
ARGS = ["--enforce-eager", "--dtype", "bfloat16", "--max-model-len", "2048", "--max-num-seqs", "16"]
INCARNATION = "live-engine-1"
SECRET = b"s" * 32
KEY = derive_target_key(SECRET, INCARNATION)
PLACE = Place(("local",), ("local",))
CHAT = "/v1/chat/completions"
QUESTION = {
    "model": "smol",
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "temperature": 0,
    "max_tokens": 16,
}


def a_model(model_dir: Path, *args: str) -> Model:
    return Model(id="smol", source=str(model_dir), args=[*ARGS, *args], replicas=[{"zone": "local"}])


def a_plan(model: Model, incarnation: str = INCARNATION) -> EnginePlan:
    return EnginePlan(model, "127.0.0.1", incarnation, derive_target_key(SECRET, incarnation), PLACE, cpus=2)


def a_pass(method: str, path: str, key: bytes = KEY, **changes) -> dict[str, str]:
    fields = {"request_id": "r", "incarnation": INCARNATION, "epoch": "e", "label_text": PLACE.to_text(), "key": "live"}
    permission = Pass(**{**fields, "expires": time.time() + 30, **changes})
    return {PASS_HEADER: issue_pass(key, permission, method, path)}


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("logs")
    before = os.environ.get("TIDEGATE_LOG_DIR")
    os.environ["TIDEGATE_LOG_DIR"] = str(folder)
    yield folder
    os.environ.pop("TIDEGATE_LOG_DIR")
    if before is not None:
        os.environ["TIDEGATE_LOG_DIR"] = before


@pytest.fixture(scope="module")
def engine(model_dir, logs):
    """The one server of this module. Its supervisor has a loop and thread of its own, as it has inside Serve."""
    loop = asyncio.new_event_loop()
    process = VllmProcess(a_plan(a_model(model_dir)))
    loop.run_until_complete(process.start())
    process.take_policy(msgspec.json.encode(GuardPolicy("e", 1.0, {"live": GuardKey(PLACE.to_text())}, {})))
    process.loop = loop
    yield process
    loop.run_until_complete(process.stop())
    loop.close()


@pytest.fixture(scope="module")
def client(engine):
    with httpx.Client(base_url=f"http://127.0.0.1:{engine.port}", timeout=120, trust_env=False) as client:
        yield client


def test_it_states_its_limits(engine):
    assert (engine.context_tokens, engine.slots) == (2048, 16)


def test_a_stranger_opens_no_door_at_all(engine, client):
    schema = client.get("/openapi.json", headers=a_pass("GET", "/openapi.json"))
    assert schema.status_code == 200
    doors = {(method.upper(), path) for path, methods in schema.json()["paths"].items() for method in methods}
    assert {("GET", "/v1/models"), ("POST", "/invocations"), ("POST", "/tokenize"), ("GET", "/health")} <= doors
    doors |= {("GET", "/metrics"), ("GET", "/docs"), ("GET", "/nowhere"), ("OPTIONS", CHAT), ("GET", "/ping")}
    for method, path in sorted(doors):
        headers = {"origin": "http://evil", "access-control-request-method": "POST"}
        answer = client.request(method, path, headers=headers)
        assert answer.status_code == 403, (method, path)
        assert answer.json()["error"]["code"] == "pass_refused"


def test_a_pass_opens_its_own_door_only(client):
    assert client.get("/v1/models", headers=a_pass("GET", "/v1/models")).status_code == 200
    assert client.get("/metrics", headers=a_pass("GET", "/v1/models")).status_code == 403
    assert client.post("/v1/models", headers=a_pass("GET", "/v1/models")).status_code == 403
    assert client.post("/invocations", json=QUESTION, headers=a_pass("POST", CHAT)).status_code == 403
    assert client.post("/v1//chat/completions", json=QUESTION, headers=a_pass("POST", CHAT)).status_code == 403


@pytest.mark.parametrize(
    "headers",
    [
        a_pass("POST", CHAT, key=b"f" * 32),
        a_pass("POST", CHAT, expires=time.time() - 1),
        a_pass("POST", CHAT, expires=time.time() + 1e6),
        a_pass("POST", CHAT, incarnation="live-engine-2"),
        a_pass("POST", CHAT, key=derive_target_key(SECRET, "live-engine-2"), incarnation="live-engine-2"),
        a_pass("POST", CHAT, label_text="elsewhere/elsewhere/"),
        {PASS_HEADER: "1|r|x"},
        {"authorization": "Bearer anything"},
    ],
    ids=["forged", "expired", "too long", "other incarnation", "other engine", "label", "malformed", "none"],
)
def test_a_pass_that_is_not_right_is_refused(client, headers):
    answer = client.post(CHAT, json=QUESTION, headers=headers)
    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "pass_refused"


def test_a_pass_gets_an_answer_and_the_log_has_neither(engine, client):
    answer = client.post(CHAT, json=QUESTION, headers=a_pass("POST", CHAT))
    assert answer.status_code == 200, answer.text
    assert "Paris" in answer.json()["choices"][0]["message"]["content"]
    log = engine.log_path.read_text()
    assert "France" not in log and "Paris" not in log and CHAT + " HTTP" not in log
    assert KEY.hex() not in log


def test_its_gauges_show_what_it_works_on(engine, client):
    body = {**QUESTION, "max_tokens": 200, "ignore_eos": True, "stream": True}
    with client.stream("POST", CHAT, json=body, headers=a_pass("POST", CHAT)) as answer:
        lines = answer.iter_lines()
        for _ in range(20):
            next(lines)
        busy = engine.loop.run_until_complete(engine.read_signals())
    assert busy.running == 1
    assert engine.loop.run_until_complete(engine.drain(60))


def test_a_hung_server_is_unhealthy(engine):
    os.kill(engine.pid, signal.SIGSTOP)
    try:
        assert not engine.loop.run_until_complete(engine.is_healthy(2.0))
    finally:
        os.kill(engine.pid, signal.SIGCONT)
    assert wait_until(lambda: engine.loop.run_until_complete(engine.is_healthy(5.0)), 60)


async def test_a_wrong_argument_reads_as_such(model_dir, logs):
    process = VllmProcess(a_plan(a_model(model_dir, "--max-modle-len", "2048"), "live-wrong-1"))
    with pytest.raises(EngineStartError, match="vLLM does not accept: --max-modle-len") as caught:
        await process.start()
    assert len(str(caught.value).splitlines()) < 20


def test_a_killed_leash_leaves_nothing(engine):
    """Late, because it ends the server of this module. vLLM's engine core does not notice a dead parent by itself."""
    tree = psutil.Process(engine.pid).children(recursive=True)
    assert tree
    psutil.Process(engine.pid).parent().kill()
    assert psutil.wait_procs(tree, timeout=30)[1] == []
    assert not engine.loop.run_until_complete(engine.is_healthy())


def test_a_killed_parent_leaves_nothing(model_dir, logs, engine):
    """Last, because it needs a second server; the first one is gone by now."""
    mark = uuid.uuid4().hex
    script = Path(__file__).parent.parent / "deployments" / "parent.py"
    options = json.dumps({"model": a_model(model_dir).model_dump()})
    env = {**os.environ, MARK: mark, "PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen([sys.executable, str(script), options], stdout=subprocess.PIPE, env=env)
    assert parent.stdout is not None and parent.stdout.readline()
    assert len(marked(mark)) >= 4  # parent, leash, API server, engine core
    parent.kill()
    parent.wait()
    assert wait_until(lambda: marked(mark) == [], 60), marked(mark)
