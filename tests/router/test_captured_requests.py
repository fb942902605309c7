"""Payload capture through a real router: who is captured, where it may lie, and that nothing of it lies there in the clear."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.compiled import compile_policy
from router.config import ConfigError, parse_config
from router.fixed_targets import fixed_targets
from router.ledger import records
from router.ledger.capture import CaptureError, Sealed, Vault
from router.ledger.capturing import Capture, Place, body_of, open_capture, read_kek, subject_of
from router.ledger.checkpoint import Signer
from router.ledger.log import AuditLog
from router.ledger.policies import policy_text
from router.ledger.reader import LogReader
from router.ledger.retention import Hold, write_holds
from router.ledger.store import LogStore
from router.ledger.verify import verify_log
from router.ledger.writer import LogWriter
from router.placement.targets import Report
from router.policy import Policy
from router.process import RouterProcess
from tests.router.builders import digest, grant_of, make_config, make_policy
from tests.router.conftest import free_port
from tests.router.simulated_engine import JSON_ANSWER, SimulatedEngine, event

CAPTURED, TENANTS, OTHER = "tg_captured", "tg_tenants", "tg_other"
PROMPT = "a-sentence-that-must-not-lie-about"
SIGNER = Signer(bytes(32))
DAY = 86400.0


class Door:
    """A router with capture, and what it left on disk."""

    def __init__(self, client: httpx.AsyncClient, root: Path, process: RouterProcess) -> None:
        self.client = client
        self.root = root
        self.process = process

    async def chat(self, key: str, wish: str = PROMPT, /, headers: dict[str, str] | None = None, **more: Any) -> httpx.Response:
        body = {"model": "m", "messages": [{"role": "user", "content": wish}], **more}
        named = {"authorization": f"Bearer {key}", **(headers or {})}
        return await self.client.post("/v1/chat/completions", json=body, headers=named)

    def outcome(self, response: httpx.Response) -> str:
        found = self.process.state.receipts.find(response.headers["x-request-id"])
        assert found is not None
        return str(found["capture"])


@contextlib.asynccontextmanager
async def capturing(root: Path, **changes: Any) -> AsyncIterator[Door]:
    engine = SimulatedEngine()
    await engine.start()
    port = free_port()
    data: dict[str, Any] = {
        "listen": {"host": "127.0.0.1", "port": port},
        "admin": {"port": free_port()},
        "zones": {"eu": {}, "us": {}},
        "residency": {"tags": {"eu-only": {"process": ["eu"]}, "kept-in-eu": {"process": ["eu", "us"], "store": ["eu"]}}},
        "targets": [
            {"id": "a", "kind": "server", "vouched": True, "url": f"http://127.0.0.1:{engine.port}", "zone": "eu",
             "models": {"m": "m"}},
        ],
        "keys": [
            {"id": "captured", "sha256": digest(CAPTURED), "capture": True},
            {"id": "of-tenant", "sha256": digest(TENANTS), "tenant": "clinic"},
            {"id": "other", "sha256": digest(OTHER)},
        ],
        "audit": {"dir": "audit"},
        "capture": {"zone": "eu", "tenants": ["clinic"], "dir": "vault", "kek": {"file": "kek"}},
    }  # fmt: skip
    config = parse_config({**data, **changes})
    policy = compile_policy(config, root)
    log = AuditLog(LogWriter(LogStore(root / "audit" / "router-0", SIGNER), window_s=0.01), policy.label_text)
    log.policy(policy.epoch, policy_text(config))
    capture = open_capture(config, root, log)
    process = RouterProcess(config, policy, b"s" * 32, {}, "router-capture", grace_s=2, audit=log, capture=capture)
    process.state.fleet.update([Report(target) for target in fixed_targets(config, None, "")])
    process.start()
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
            yield Door(client, root, process)
    finally:
        await process.drain()
        await engine.stop()


def sealed(root: Path) -> dict[str, dict[str, Any]]:
    """What the log says was captured: request id -> part -> its seal."""
    found: dict[str, dict[str, Any]] = {}
    for record in LogReader(root / "audit" / "router-0").records():
        if record.e == records.SEAL:
            found[record.id] = {item["part"]: item for item in records.read_data(record)["parts"]}
    return found


def vault_of(root: Path) -> Vault:
    return Vault(root / "vault", bytes.fromhex((root / "kek").read_text().strip()))


def opened(root: Path, request_id: str, part: str) -> bytes:
    return vault_of(root).open(seal_of(sealed(root)[request_id][part]), request_id, part)


def seal_of(item: dict[str, Any]) -> Sealed:
    return Sealed(item["key_id"], item["commitment"], item["size"])


def everything_on_disk(root: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file())


async def test_those_who_opted_in_are_kept_whole_and_nobody_else(tmp_path):
    async with capturing(tmp_path) as door:
        answers = {key: await door.chat(key, user="patient-17") for key in (CAPTURED, TENANTS, OTHER)}
        assert {key: door.outcome(answer) for key, answer in answers.items()} == {CAPTURED: "kept", TENANTS: "kept", OTHER: ""}
        sent = {key: answer.request.content for key, answer in answers.items()}
        metrics = (await door.client.get("/metrics")).text
        assert 'tidegate_captures_total{outcome="kept",router="router-capture"} 2.0' in metrics
    assert len(sealed(tmp_path)) == 2
    for key in (CAPTURED, TENANTS):
        request_id = answers[key].headers["x-request-id"]
        assert opened(tmp_path, request_id, "request") == sent[key]
        assert opened(tmp_path, request_id, "response") == JSON_ANSWER
        assert not sealed(tmp_path)[request_id]["response"]["cut"]
    assert verify_log(tmp_path / "audit" / "router-0", [SIGNER.verifier]).problems == []


async def test_a_stream_is_kept_as_the_client_got_it(tmp_path):
    async with capturing(tmp_path) as door:
        answer = await door.chat(CAPTURED, "stream", stream=True)
        assert answer.status_code == 200
    assert opened(tmp_path, answer.headers["x-request-id"], "response") == answer.content
    assert answer.content.startswith(event(0)) and answer.content.endswith(b"data: [DONE]\n\n")


async def test_an_answer_that_is_an_error_of_ours_is_kept_too_but_nothing_that_was_refused_before_a_decision(tmp_path):
    async with capturing(tmp_path) as door:
        unknown = await door.chat(CAPTURED, model="no-such-model")
        assert unknown.status_code == 404
        broken = await door.chat(CAPTURED, "die-before")
        assert broken.status_code == 503
    assert opened(tmp_path, broken.headers["x-request-id"], "response") == broken.content
    assert unknown.headers["x-request-id"] not in sealed(tmp_path)


async def test_no_plaintext_is_on_disk_and_after_shredding_nothing_can_be_read(tmp_path):
    async with capturing(tmp_path) as door:
        answers = [await door.chat(CAPTURED, f"{PROMPT}-{number}", user="patient-17") for number in range(5)]
        other = await door.chat(CAPTURED, user="patient-18")
        assert all(answer.status_code == 200 for answer in (*answers, other))
    disk = everything_on_disk(tmp_path)
    for secret in (PROMPT.encode(), b"patient-17", b"patient-18", JSON_ANSWER, b'"role"', gzip.compress(PROMPT.encode())[10:30]):
        assert secret not in disk
    seals = sealed(tmp_path)
    backup = {path: path.read_bytes() for path in (tmp_path / "vault" / "payloads").rglob("*") if path.is_file()}
    assert len(backup) == 12
    vault = vault_of(tmp_path)
    assert len(vault.shred("default", "patient-17")) == 1
    for path, data in backup.items():
        path.write_bytes(data)
    for answer in answers:
        request_id = answer.headers["x-request-id"]
        for part in ("request", "response"):
            with pytest.raises(CaptureError, match="shredded"):
                vault.open(seal_of(seals[request_id][part]), request_id, part)
    assert opened(tmp_path, other.headers["x-request-id"], "response") == JSON_ANSWER


@pytest.mark.parametrize(
    ("tag", "zone", "outcome"),
    [
        ("eu-only", "eu", "kept"),
        ("eu-only", "us", "residency"),
        ("kept-in-eu", "eu", "kept"),
        ("kept-in-eu", "us", "residency"),
    ],
)
async def test_what_the_label_does_not_let_the_place_store_is_not_kept(tmp_path, tag, zone, outcome):
    capture = {"zone": zone, "dir": "vault", "kek": {"file": "kek"}}
    async with capturing(tmp_path, capture=capture) as door:
        answer = await door.chat(CAPTURED, headers={"x-tidegate-residency": tag})
        assert (answer.status_code, door.outcome(answer)) == (200, outcome)
    assert (tmp_path / "vault" / "payloads").is_dir() == (outcome == "kept")


async def test_what_stands_in_a_request_can_forbid_that_it_is_kept(tmp_path):
    """The one target is allowed either way, so only the capture makes the scan necessary."""
    classify = {"rules": [{"if": ["iban"], "meet": "eu-only"}]}
    capture = {"zone": "us", "dir": "vault", "kek": {"file": "kek"}}
    async with capturing(tmp_path, classify=classify, capture=capture) as door:
        plain = await door.chat(CAPTURED)
        found = await door.chat(CAPTURED, "pay to DE89 3704 0044 0532 0130 00")
        assert (door.outcome(plain), door.outcome(found)) == ("kept", "residency")
        assert plain.status_code == found.status_code == 200
    assert list(sealed(tmp_path)) == [plain.headers["x-request-id"]]


def test_a_duty_the_place_does_not_carry_keeps_payloads_out():
    policy = make_policy()
    phi = policy.tags["phi"]
    assert not Place("eu", ()).may_store(policy, phi)
    assert Place("eu", ("baa",)).may_store(policy, phi)
    assert not Place("us", ("baa",)).may_store(policy, phi)
    assert not Place("gone", ("baa",)).may_store(policy, phi)
    assert not Place("eu", ("baa", "gone")).may_store(policy, phi)


async def test_payloads_are_cut_at_the_bound_and_the_log_says_so(tmp_path):
    capture = {"zone": "eu", "dir": "vault", "kek": {"file": "kek"}, "max_kib": 1}
    async with capturing(tmp_path, capture=capture) as door:
        answer = await door.chat(CAPTURED, "x" * 5000)
        stream = await door.chat(CAPTURED, "stream", stream=True, stream_options={"include_usage": True})
        assert answer.status_code == stream.status_code == 200
    request_id = answer.headers["x-request-id"]
    assert opened(tmp_path, request_id, "request") == answer.request.content[:1024]
    assert sealed(tmp_path)[request_id]["request"]["cut"] and not sealed(tmp_path)[request_id]["response"]["cut"]
    part = sealed(tmp_path)[stream.headers["x-request-id"]]["response"]
    assert part["cut"] and stream.content.startswith(opened(tmp_path, stream.headers["x-request-id"], "response"))


async def test_a_full_disk_or_queue_loses_payloads_and_no_request(tmp_path, monkeypatch):
    async with capturing(tmp_path) as door:
        capture = door.process.state.capture
        assert capture is not None
        failed = asyncio.Event()
        loop, fail = asyncio.get_running_loop(), capture._fail

        def told(reason: str) -> None:
            fail(reason)
            loop.call_soon_threadsafe(failed.set)

        monkeypatch.setattr(capture, "_fail", told)
        monkeypatch.setattr("router.ledger.capture.os.open", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
        assert (await door.chat(CAPTURED)).status_code == 200
        await asyncio.wait_for(failed.wait(), 10)
        assert capture.counts["failed"] == 1
        monkeypatch.setattr(capture, "_queue_bytes", 10)
        answer = await door.chat(CAPTURED)
        assert (answer.status_code, door.outcome(answer)) == (200, "full")


async def test_a_redacted_request_is_not_kept(tmp_path):
    """Its answer has the values in it again, and the label it goes under is that of a text without them."""
    keys = [{"id": "captured", "sha256": digest(CAPTURED), "capture": True, "residency": "any", "redact": {"then": "any"}}]
    classify = {"rules": [{"if": ["iban"], "meet": "us"}]}  # where nothing runs, so only the redacted form finds a place
    async with capturing(tmp_path, keys=keys, classify=classify) as door:
        answer = await door.chat(CAPTURED, "pay to DE89 3704 0044 0532 0130 00")
        assert (answer.status_code, door.outcome(answer)) == (200, "redacted")
    assert not sealed(tmp_path)


def test_retention_removes_old_payloads_and_their_keys_and_a_hold_keeps_them(tmp_path):
    vault = Vault(tmp_path / "vault", bytes(32))
    now = 1_800_000_000.0
    ages = (100, 50, 1)
    seals = {age: vault.seal("t", "me", f"req-{age}", "request", b"x", now - age * DAY) for age in ages}
    held = Hold("case", "", now - 101 * DAY, now - 99 * DAY)
    assert vault.prune(now - 30 * DAY, lambda moment: held.since <= moment < held.until) == 1
    assert [vault.times(seals[age].key_id) != [] for age in ages] == [True, False, True]
    assert vault.open(seals[100], "req-100", "request") == b"x"
    assert set(vault.key_ids("t", "me")) == {seals[100].key_id, seals[1].key_id}, "a key nothing is under is destroyed"
    assert vault.prune(now - 30 * DAY, lambda _: False) == 1
    assert vault.key_ids("t", "me") == (seals[1].key_id,)


def test_a_capture_prunes_by_itself_and_not_when_the_holds_cannot_be_read_or_the_clock_was_set_ahead(tmp_path):
    vault, policy = Vault(tmp_path / "vault", bytes(32)), make_policy()
    holds = tmp_path / "audit"
    write_holds(holds, [])
    (holds / "holds.json").write_text("{")
    old = vault.seal("t", "me", "req-1", "request", b"x", 1_700_000_000.0)

    def prune(clock_set_ahead_s: float = 0.0) -> None:
        log = AuditLog(LogWriter(LogStore(holds / "router-0", SIGNER)), policy.label_text)
        capture = Capture(vault, Place("eu", ()), frozenset(), 10, 10, log, 30, holds)
        wall, monotonic = capture._clocks
        capture._clocks = wall - clock_set_ahead_s, monotonic
        capture._prune()
        log.close()

    prune()
    assert vault.times(old.key_id)
    write_holds(holds, [])
    prune(clock_set_ahead_s=7200.0)
    assert vault.times(old.key_id), "a key that is destroyed because of a wrong clock does not come back"
    prune()
    assert not vault.times(old.key_id)
    assert [records.read_data(r)["payloads"] for r in LogReader(holds / "router-0").records() if r.e == records.PRUNE] == [1]
    report = verify_log(holds / "router-0", [SIGNER.verifier])
    assert report.ok and not report.pruned, report.problems


@pytest.mark.parametrize(
    ("headers", "body", "subject"),
    [
        ([(b"x-tidegate-subject", b" me ")], {"user": "you"}, "me"),
        ([], {"safety_identifier": "s", "user": "you"}, "s"),
        ([], {"user": "you"}, "you"),
        ([], {"metadata": {"user_id": "them"}}, "them"),
        ([], {"user": 7, "metadata": "x"}, "key:plain"),
        ([], {"user": "half \ud800"}, "half ?"),
        ([(b"x-tidegate-subject", b"")], {}, "key:plain"),
    ],
)
def test_the_subject_is_whom_the_client_names(headers, body, subject):
    assert subject_of(grant_of(make_policy()), body, headers) == subject


async def test_a_subject_with_half_a_character_is_kept_like_any_other(tmp_path):
    async with capturing(tmp_path) as door:
        body = b'{"model":"m","user":"\\ud800","messages":[{"role":"user","content":"hello"}]}'
        headers = {"authorization": f"Bearer {CAPTURED}"}
        response = await door.client.post("/v1/chat/completions", content=body, headers=headers)
        assert door.outcome(response) == "kept"
    assert opened(tmp_path, response.headers["x-request-id"], "request") == body


async def test_what_the_response_cache_answers_is_captured_like_any_answer(tmp_path):
    keys = [{"id": "captured", "sha256": digest(CAPTURED), "capture": True, "cache": True}]
    async with capturing(tmp_path, cache={"zones": ["eu"]}, keys=keys) as door:
        asked = [await door.chat(CAPTURED, temperature=0) for _ in range(2)]
        streamed = [await door.chat(CAPTURED, "stream", temperature=0, stream=True) for _ in range(2)]
        assert [response.headers["x-tidegate-cache"] for response in asked + streamed] == ["miss", "hit"] * 2
    for response in asked + streamed:
        assert opened(tmp_path, response.headers["x-request-id"], "response") == response.content


@given(st.lists(st.binary(min_size=1, max_size=20), max_size=6), st.integers(0, 400))
def test_a_body_is_taken_out_of_its_chunks_however_little_of_it_is_there(pieces, cut):
    body = b"".join(pieces)
    framed = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nx: y\r\n\r\n"
    assert body_of(head + framed) == body
    assert body.startswith(body_of((head + framed)[:cut]))
    assert body_of(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n" + framed) == framed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"capture": {"zone": "nowhere"}}, "capture.zone: unknown zone `nowhere`"),
        ({"capture": {"zone": "eu", "duties": ["x"]}}, "capture.duties: unknown duty `x`"),
        ({"capture": {"zone": "eu"}, "audit": {"enabled": False}}, "payloads are found through the audit log"),
        ({"keys": [{"id": "k", "sha256": digest("k"), "capture": True}]}, "there is no `capture` block"),
        ({"capture": {"zone": "eu", "kek": {"env": "A", "file": "b"}}}, "exactly one of `env` and `file`"),
    ],
)
def test_a_capture_that_could_not_work_is_refused_at_load(changes, message):
    with pytest.raises(ConfigError) as error:
        make_config(**changes)
    assert message in str(error.value)


@pytest.mark.parametrize("content", ["short", "zz" * 32, "é"])
def test_a_wrong_key_encryption_key_is_said_so_and_not_shown(tmp_path, content):
    options = make_config(capture={"zone": "eu", "kek": {"file": "kek"}}).capture
    assert options is not None
    (tmp_path / "kek").write_text(content)
    with pytest.raises(ConfigError) as error:
        read_kek(options.kek, tmp_path, make=True)
    assert "capture.kek" in str(error.value) and content not in str(error.value)


def test_the_policy_knows_nothing_of_capture_unless_it_is_asked():
    policy: Policy = make_policy()
    assert not grant_of(policy).capture
    assert open_capture(make_config(), Path("/nonexistent"), None) is None
