"""The egress lets out only what a pass and its own policy allow, rebuilt from allow-listed fields, under its own credential."""

from __future__ import annotations

import asyncio
import gzip
import json
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from deployments.egress.server import EgressServer
from deployments.egress.stored import StoreReader
from router.compiled import compile_policy
from router.policy_source import Loaded, without_spill
from router.residency import engine_guard
from router.residency.guard import (
    NONE_STORED,
    PASS_HEADER,
    PASS_LIFETIME_S,
    STORED,
    GuardKey,
    Pass,
    StoredCeilings,
    derive_target_key,
    issue_pass,
)
from router.store.database import Database
from router.store.keys import KeyTable, StoredKey
from tests.router.builders import make_config
from tests.router.certificates import Authority
from tests.router.simulated_engine import SimulatedEngine

SECRET = b"s" * 32
INCARNATION = "provider@egress-1"
ANSWER = b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 7\r\n\r\n"%b"'
BODY = {
    "model": "t-1",
    "messages": [{"role": "user", "content": "hi"}],
    "metadata": {"patient": "x"},
    "cache_salt": "y",
    "stream": False,
}


class Provider(httpx.AsyncBaseTransport):
    """Stands in for the provider behind the egress's HTTP client."""

    def __init__(self) -> None:
        self.requests: list[httpx.Request] = []
        self.answer = httpx.Response(200, json={"ok": True}, headers={"set-cookie": "a=b", "x-provider": "1"})

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        return self.answer


class Setup:
    def __init__(self, **changes: Any) -> None:
        config = make_config(**changes)
        self.provider = Provider()
        client = httpx.AsyncClient(transport=self.provider, follow_redirects=False, trust_env=False)
        self.egress = EgressServer(config, compile_policy(config, Path()), SECRET, "egress-1", {"provider": "sk-cloud"}, client)

    async def post(
        self, token: str | None, path: str = "/v1/chat/completions", target: str = "provider", body: Any = BODY
    ) -> httpx.Response:
        headers = {"x-tidegate-target": target, "authorization": "Bearer tg_client", "cookie": "c=d"}
        if token is not None:
            headers[PASS_HEADER] = token
        transport = httpx.ASGITransport(app=self.egress.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://egress") as client:
            return await client.post(path, content=json.dumps(body), headers=headers)


def issue(label: str = "cloud+eu+us/cloud+eu+us/", **changes: Any) -> str:
    secret, path = changes.pop("secret", SECRET), changes.pop("path", "/v1/chat/completions")
    permission = Pass("r1", INCARNATION, "e1", label, time.time() + PASS_LIFETIME_S, changes.pop("key", "spiller"))
    return issue_pass(derive_target_key(secret, INCARNATION), permission, "POST", path)


async def test_what_leaves_is_rebuilt_and_carries_only_the_egresss_own_credential():
    setup = Setup()
    answer = await setup.post(issue())
    assert answer.status_code == 200 and answer.json() == {"ok": True}
    assert "set-cookie" not in answer.headers and "x-provider" not in answer.headers
    [sent] = setup.provider.requests
    assert str(sent.url) == "https://cloud.invalid/v1/chat/completions"
    assert json.loads(sent.content) == {"model": "t-1", "messages": BODY["messages"], "stream": False}
    assert sent.headers["authorization"] == "Bearer sk-cloud"
    assert not {"cookie", PASS_HEADER, "x-tidegate-target"} & set(sent.headers)


@pytest.mark.parametrize(
    "request_",
    [
        {"token": None},
        {"token": "nonsense"},
        {"token": issue("eu+us/eu+us/")},
        {"token": issue("cloud/eu/")},
        {"token": issue("cloud/cloud/baa")},
        {"token": issue("cloud/cloud/fedramp")},
        {"token": issue(secret=b"x" * 32)},
        {"token": issue(), "path": "/v1/embeddings"},
        {"token": issue(), "target": "other"},
    ],
)
async def test_nothing_leaves_without_a_fitting_pass(request_):
    setup = Setup()
    answer = await setup.post(**request_)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "pass_refused")
    assert setup.provider.requests == []


async def test_a_fault_of_its_own_is_logged_without_its_text(monkeypatch, caplog):
    def fail(*_: object) -> None:
        raise RuntimeError("the patient's name")

    setup = Setup()
    monkeypatch.setattr("deployments.egress.server.parse_object", fail)
    answer = await setup.post(issue())
    assert answer.status_code == 500 and "patient" not in answer.text
    assert "RuntimeError at" in caplog.text and "patient" not in caplog.text


async def test_the_egresss_own_policy_has_the_last_word():
    expired = [
        {"id": "provider", "kind": "cloud", "url": "https://x", "zone": "cloud", "models": {"tiny": "t"}, "expires": "2020-01-01"}
    ]
    setup = Setup(targets=expired)
    answer = await setup.post(issue())
    assert answer.status_code == 403 and setup.provider.requests == []


async def test_a_policy_that_comes_with_the_body_has_the_last_word_too():
    setup = Setup()
    tighter = make_config(spill={"enabled": False}, targets=[])
    body = json.dumps(BODY).encode()

    async def slowly():
        yield body[:10]
        setup.egress.adopt(tighter, compile_policy(tighter, Path()), time.time())
        yield body[10:]

    headers = {"x-tidegate-target": "provider", PASS_HEADER: issue(), "content-length": str(len(body))}
    transport = httpx.ASGITransport(app=setup.egress.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://egress") as client:
        answer = await client.post("/v1/chat/completions", content=slowly(), headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "pass_refused")
    assert setup.provider.requests == []


async def test_a_redirect_and_an_unreachable_provider_are_typed_errors():
    setup = Setup()
    setup.provider.answer = httpx.Response(302, headers={"location": "https://elsewhere.invalid"})
    answer = await setup.post(issue())
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_error")

    async def unreachable(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("https://cloud.invalid?secret")

    setup.provider.handle_async_request = unreachable
    answer = await setup.post(issue())
    assert answer.status_code == 502 and "secret" not in answer.text


@pytest.mark.parametrize("status", [200, 400])
async def test_a_compressed_answer_is_not_unpacked(status):
    setup = Setup()
    bomb = gzip.compress(b'{"error": "' + b"0" * 50_000_000 + b'"}')
    setup.provider.answer = httpx.Response(status, stream=httpx.ByteStream(bomb), headers={"content-encoding": "gzip"})
    answer = await setup.post(issue())
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_error")
    assert setup.provider.requests[0].headers["accept-encoding"] == "identity"


@pytest.mark.parametrize("said", ["nan", "inf", "-1", "soon"])
async def test_whatever_a_provider_says_of_when_to_come_back_it_stays_a_rate_limit(said):
    setup = Setup()
    setup.provider.answer = httpx.Response(429, headers={"retry-after": said})
    answer = await setup.post(issue())
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "rate_limited")
    assert 1 <= int(answer.headers["retry-after"]) <= 3600


@pytest.mark.parametrize("status", [204, 206])
async def test_an_answer_that_is_none_is_no_success(status):
    setup = Setup()
    setup.provider.answer = httpx.Response(status)
    answer = await setup.post(issue())
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_error")


def calling(port: int) -> EgressServer:
    """An egress whose provider listens on a port of this machine."""
    target = {"id": "provider", "kind": "cloud", "url": f"http://127.0.0.1:{port}", "zone": "cloud", "models": {"tiny": "t"}}
    config = make_config(targets=[{**target, "expires": "2099-12-31"}])
    return EgressServer(config, compile_policy(config, Path()), SECRET, "egress-1", {"provider": "sk-cloud"})


async def test_one_answer_more_does_not_wait_for_a_hundred_others():
    arrived = asyncio.Barrier(130)

    async def provide(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await arrived.wait()
        writer.write(ANSWER % b"again")
        writer.close()

    server, setup = await asyncio.start_server(provide, "127.0.0.1", 0, backlog=200), Setup()
    setup.egress = calling(server.sockets[0].getsockname()[1])
    async with server, asyncio.timeout(60):
        answers = await asyncio.gather(*(setup.post(issue()) for _ in range(130)))
    assert {answer.text for answer in answers} == {'"again"'}


@pytest.mark.parametrize("more", [b"", ANSWER % b"other", b"HTTP/1.1", b"x"])
@pytest.mark.parametrize("interim", [b"", b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n"])
async def test_what_a_provider_sends_too_much_is_nobodys_answer(more, interim):
    connections = []

    async def provide(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        first = len(connections) == 1
        while head := await reader.readuntil(b"\r\n\r\n"):
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            asked = json.loads(await reader.readexactly(length))["messages"][0]["content"]
            writer.write(interim + ANSWER % asked.encode() + (more if first else b""))

    server, setup = await asyncio.start_server(provide, "127.0.0.1", 0), Setup()
    setup.egress = calling(server.sockets[0].getsockname()[1])
    async with server:
        for own in ("first", "secnd", "third"):
            answer = await setup.post(issue(), body={"model": "t", "messages": [{"role": "user", "content": own}]})
            assert answer.json() == own
        assert len(connections) == (2 if more else 1)
        for writer in connections:
            writer.close()


@pytest.mark.parametrize("api_version", [None, "2025-01-01"])
@pytest.mark.parametrize(
    "change",
    [
        {"tools": [{"type": "function", "function": {"name": "f"}}, {"type": "web_search"}]},
        {"tools": [{"type": "mcp", "server_url": "https://evil.example"}]},
        {"tools": ["web_search"]},
        {"tools": [{"function": {"name": "f"}}]},
        {"messages": [{"role": "user", "content": ["x", {"type": "file", "file": {"file_id": "file-other"}}]}]},
    ],
)
async def test_a_provider_uses_no_tool_and_no_file_of_its_own(change, api_version):
    target = {"id": "provider", "kind": "cloud", "url": "https://x.invalid", "zone": "cloud", "models": {"tiny": "t"}}
    if api_version is not None:
        target |= {
            "url": "https://x.openai.azure.com",
            "dialect": "azure",
            "provider": {"api_version": api_version, "sku": "Standard"},
        }
    setup = Setup(targets=[{**target, "expires": "2099-12-31"}])
    answer = await setup.post(issue(), body={**BODY, **change})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, next(iter(change)))
    assert setup.provider.requests == []


async def test_what_a_client_runs_or_sends_itself_leaves_as_it_is():
    setup = Setup()
    part = {"type": "file", "file": {"file_data": "data:application/pdf;base64,AA==", "filename": "a.pdf"}}
    tools = [{"type": "function", "function": {"name": "f"}}, {"type": "custom", "custom": {"name": "g"}}]
    body = {"model": "t-1", "messages": [{"role": "user", "content": [part, "x"]}], "tools": tools}
    assert (await setup.post(issue(), body=body)).status_code == 200
    assert json.loads(setup.provider.requests[0].content) == body


async def test_duplicate_keys_never_leave():
    setup = Setup()
    transport = httpx.ASGITransport(app=setup.egress.app)
    headers = {"x-tidegate-target": "provider", PASS_HEADER: issue()}
    async with httpx.AsyncClient(transport=transport, base_url="http://egress") as client:
        answer = await client.post("/v1/chat/completions", content=b'{"model":"a","model":"b"}', headers=headers)
    assert answer.status_code == 400 and setup.provider.requests == []


def test_no_credential_shows_in_its_representation():
    assert "sk-cloud" not in repr(Setup().egress)


async def test_a_provider_behind_mutual_tls_gets_the_egresss_certificate_and_one_with_another_name_gets_nothing(tmp_path):
    authority = Authority(tmp_path)
    certificate, key = authority.issue("egress.internal")
    engine = SimulatedEngine()
    await engine.start(tls=authority.server_context("provider.internal", ask_clients=True))
    seen = {}
    for name in ("provider.internal", "somebody.else"):
        files = {"ca_file": str(authority.path), "cert_file": str(certificate), "key_file": str(key), "server_name": name}
        cloud = {"id": "provider", "kind": "cloud", "zone": "cloud", "models": {"tiny": "t-1"}, "tls": files}
        setup = Setup(targets=[{**cloud, "url": f"https://127.0.0.1:{engine.port}"}])
        seen[name] = (await setup.post(issue())).status_code, len(engine.requests)
    await engine.stop()
    assert seen == {"provider.internal": (200, 1), "somebody.else": (502, 1)}


def stored(name: str, mac: int, **scopes: Any) -> StoredKey:
    text = json.dumps({"id": name, "sha256": "0" * 64, "spill": True, **scopes})
    return StoredKey(bytes([mac]) * 32, name, "default", text.encode(), time.time())


def test_an_egress_outside_ray_reads_the_ceilings_of_stored_keys_and_nothing_of_the_keys(tmp_path):
    config = make_config()
    policy = compile_policy(config, Path())
    reader = StoreReader(tmp_path)
    assert reader.read(config, policy) is NONE_STORED and not list(tmp_path.iterdir())
    path = tmp_path / config.store.path
    path.parent.mkdir()
    table = KeyTable(Database(f"sqlite:///{path}"))
    table.add(stored("a", 1, residency="any"))
    table.add(stored("b", 2, residency="us"))
    table.add(stored("strange", 3, residency="gone"))
    known = reader.read(config, policy)
    assert set(known.keys) == {STORED + "a", STORED + "b"} and reader.read(config, policy) is known
    assert known.find(STORED + "b").ceiling == "us/us/"
    table.revoke("a", time.time())
    assert set(reader.read(config, policy).keys) == {STORED + "b"}
    path.unlink()
    path.mkdir()
    reader.close()
    assert set(reader.read(config, policy).keys) == {STORED + "b"}, "what was known stays while the store is away"
    narrower = make_config(duties=["baa", "x"])
    assert reader.read(narrower, compile_policy(narrower, Path())) is NONE_STORED, "but not under another policy"


async def test_with_spilling_switched_off_nothing_leaves_whoever_signed_for_it():
    setup = Setup()
    loaded = without_spill(Loaded(setup.egress.config, "", setup.egress.policy))
    setup.egress.adopt(loaded.config, loaded.policy, 1.0)
    assert (await setup.post(issue())).status_code == 403 and setup.provider.requests == []


async def test_a_stored_key_leaves_only_as_far_as_the_egress_knows_its_ceiling(monkeypatch):
    setup = Setup()
    monkeypatch.setattr(engine_guard, "WAIT_S", 0.05)
    ceilings = [GuardKey("cloud+eu+us/cloud+eu+us/"), GuardKey("eu/eu/")]
    setup.egress.learn(StoredCeilings(ceilings, {STORED + "far": 0, STORED + "near": 1}, "d"))
    assert (await setup.post(issue(key=STORED + "far"))).status_code == 200
    for key in ("near", "unknown"):
        assert (await setup.post(issue(key=STORED + key))).status_code == 403
    assert (await setup.post(issue(key="far"))).status_code == 403, "a key of the store is none of the configuration"
    assert len(setup.provider.requests) == 1
    waiting = asyncio.create_task(setup.post(issue(key=STORED + "new")))
    monkeypatch.setattr(engine_guard, "WAIT_S", 20)
    setup.egress.learn(StoredCeilings(ceilings, {STORED + "new": 0}, "e"))
    assert (await waiting).status_code == 200
