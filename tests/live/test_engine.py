"""One real vLLM server: what a stranger gets, what a pass opens, and what is left when things die."""

import os
import signal
import time

import httpx
import msgspec
import psutil
import pytest

from deployments.engine_errors import EngineStartError
from router.residency.guard import PASS_HEADER, GuardKey, GuardPolicy, Pass, derive_target_key, issue_pass
from tests.deployments.processes import wait_until
from tests.live.guarded_engine import INCARNATION, KEY, PLACE, SECRET

pytestmark = pytest.mark.live
CHAT = "/v1/chat/completions"
QUESTION = {
    "model": "smol",
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "temperature": 0,
    "max_tokens": 16,
}


def a_pass(method: str, path: str, key: bytes = KEY, **changes) -> dict[str, str]:
    fields = {"request_id": "r", "incarnation": INCARNATION, "epoch": "e", "label_text": PLACE.to_text(), "key": "live"}
    permission = Pass(**{**fields, "expires": time.time() + 30, **changes})
    return {PASS_HEADER: issue_pass(key, permission, method, path)}


@pytest.fixture(scope="module")
def engine(ahead):
    """The one server of this module."""
    process = ahead.guarded.wait()
    process.take_policy(msgspec.json.encode(GuardPolicy("e", 1.0, {"live": GuardKey(PLACE.to_text())}, {})))
    process.loop = ahead.guarded.loop
    yield process
    ahead.guarded.stop()


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


def test_errors_in_vllms_log_are_named_without_their_text(engine, client):
    body = {"model": "smol", "max_tokens": 4, "messages": [{"role": "user", "content": "Hello"}], "stop_sequences": [""]}
    answer = client.post("/v1/messages", json=body, headers=a_pass("POST", "/v1/messages"))
    log = engine.log_path.read_text()
    assert answer.status_code >= 400 and "empty string" in answer.text
    assert "Error in create_messages: <VLLMValidationError> (VLLMValidationError at " in log and "empty string" not in log


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


def test_a_hung_core_is_noticed_though_the_server_is_well(engine):
    ask = engine.loop.run_until_complete
    core = next(
        child for child in psutil.Process(engine.pid).children(recursive=True) if "EngineCore" in "".join(child.cmdline())
    )
    assert ask(engine.answers(60.0)) is True
    core.suspend()
    try:
        assert ask(engine.is_healthy(5.0)), "vLLM itself notices by now: `stall_timeout_s` may be superfluous"
        assert ask(engine.answers(2.0)) is False
    finally:
        core.resume()
    assert ask(engine.answers(60.0)) is True


def test_a_wrong_argument_reads_as_such(ahead):
    with pytest.raises(EngineStartError, match="vLLM does not accept: --max-modle-len") as caught:
        ahead.misspelt.wait()
    assert len(str(caught.value).splitlines()) < 20


def test_a_killed_leash_leaves_nothing(engine):
    """Last, because it ends the server of this module. vLLM's engine core does not notice a dead parent by itself."""
    tree = psutil.Process(engine.pid).children(recursive=True)
    assert tree
    psutil.Process(engine.pid).parent().kill()
    assert psutil.wait_procs(tree, timeout=30)[1] == []
    assert not engine.loop.run_until_complete(engine.is_healthy())
