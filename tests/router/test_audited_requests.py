"""Requests through a real router with its audit log: what is recorded, and that nothing leaves without a record."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sys
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec.structs import replace

from router.compiled import compile_policy
from router.config import parse_config
from router.fixed_targets import fixed_targets
from router.identity.books import OwnBooks
from router.ledger import records
from router.ledger.checkpoint import Signer
from router.ledger.log import AuditLog
from router.ledger.opening import open_audit
from router.ledger.policies import policy_text
from router.ledger.reader import LogReader
from router.ledger.replay import Gap, Replayer, decide_again, differences
from router.ledger.store import LogStore
from router.ledger.verify import verify_log
from router.ledger.writer import LogWriter
from router.placement.targets import Address, Report
from router.policy_source import PolicySource
from router.process import RouterProcess
from router.residency.break_glass import sign
from tests.router.builders import digest
from tests.router.conftest import free_port
from tests.router.simulated_engine import SimulatedEngine

sys.path.append(str(Path(__file__).resolve().parents[2] / "scripts" / "prove"))

from _ledger.full import FullDisk

KEY, SPILL_KEY = "tg_inside", "tg_spill"
SIGNER = Signer(bytes(32))


class Audited:
    """A router with a local engine, a cloud target behind a pretended egress, and its log."""

    def __init__(
        self, router: RouterProcess, client: httpx.AsyncClient, inside: SimulatedEngine, outside: SimulatedEngine
    ) -> None:
        self.router = router
        self.client = client
        self.inside = inside
        self.outside = outside

    async def chat(self, key: str, model: str = "m", **headers: str) -> httpx.Response:
        body = {"model": model, "messages": [{"role": "user", "content": "json a-secret-sentence"}]}
        return await self.client.post("/v1/chat/completions", json=body, headers={"authorization": f"Bearer {key}", **headers})


@contextlib.asynccontextmanager
async def audited(root: Path, disk: FullDisk | None = None, with_log: bool = True, **changes: Any) -> AsyncIterator[Audited]:
    inside, outside = SimulatedEngine(), SimulatedEngine()
    await inside.start()
    await outside.start()
    port = free_port()
    config = parse_config(
        {
            "listen": {"host": "127.0.0.1", "port": port},
            "admin": {"port": free_port()},
            "zones": {"eu": {}, "cloud": {"external": True}},
            "targets": [
                {"id": "inside", "kind": "server", "vouched": True, "url": f"http://127.0.0.1:{inside.port}", "zone": "eu",
                 "models": {"m": "m"}},
                {"id": "outside", "kind": "cloud", "url": "https://cloud.invalid", "zone": "cloud", "models": {"big": "b"},
                 "price": changes.pop("price", {})},
            ],
            "keys": [
                {"id": "inside", "sha256": digest(KEY), "requests_per_minute": 5},
                {"id": "spill", "sha256": digest(SPILL_KEY), "residency": "any", "spill": True, "tenant": "t"},
            ],
            **changes,
        }
    )  # fmt: skip
    policy = compile_policy(config, root)
    log = AuditLog(LogWriter(LogStore(root / "log", SIGNER, disk=disk), window_s=0.01), policy.label_text) if with_log else None
    if log is not None:
        log.policy(policy.epoch, policy_text(config))
    router = RouterProcess(config, policy, b"s" * 32, {}, "router-audited", grace_s=2, audit=log)
    egress = Address("127.0.0.1", outside.port)
    router.state.fleet.update([Report(target) for target in fixed_targets(config, egress, "egress")])
    router.start()
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
            yield Audited(router, client, inside, outside)
    finally:
        await router.drain()
        await inside.stop()
        await outside.stop()


def read(root: Path) -> list[records.Record]:
    return list(LogReader(root / "log").records())


async def test_every_request_leaves_its_decision_and_its_end(tmp_path):
    async with audited(tmp_path) as door:
        assert (await door.chat(KEY)).status_code == 200
        assert (await door.chat(SPILL_KEY, "big")).status_code == 200
        assert (await door.chat(KEY, "big")).status_code in (403, 404)
        assert (await door.chat("tg_nobody")).status_code == 401
        for _ in range(5):
            last = await door.chat(KEY)
        assert last.status_code == 429
        refused_id = last.headers["x-request-id"]
    found = read(tmp_path)
    events = [record.e for record in found]
    assert verify_log(tmp_path / "log", [SIGNER.verifier]).problems == []
    assert events[0] == records.OPEN and events[-1] == records.CLOSE
    assert events.count(records.END) == events.count(records.DECIDE) >= 6
    assert events.count(records.INTENT) == 1
    refusal = [record for record in found if record.e == records.REFUSE][-1]
    assert refusal.id == refused_id
    assert records.read_data(refusal)["code"] == "rate_limited"
    assert records.read_data(next(r for r in found if r.e == records.TURNED_AWAY)) == {"invalid_api_key": 1}
    for file in (tmp_path / "log").rglob("*"):
        assert not file.is_file() or b"a-secret-sentence" not in file.read_bytes()


async def test_the_intent_comes_before_the_request_and_names_where_it_goes(tmp_path):
    async with audited(tmp_path) as door:
        answer = await door.chat(SPILL_KEY, "big")
    found = [record for record in read(tmp_path) if record.id == answer.headers["x-request-id"]]
    assert [record.e for record in found] == [records.DECIDE, records.INTENT, records.END]
    intent = records.read_data(found[1], records.IntentData)
    assert (intent.target, intent.zone, intent.key, intent.tenant) == ("outside", "cloud", "spill", "t")
    assert intent.label == "cloud+eu/cloud+eu/" and intent.evidence == "cloud/cloud/"


async def test_a_full_disk_keeps_everything_inside_and_local_requests_are_served(tmp_path):
    disk = FullDisk(random.Random(1))
    async with audited(tmp_path, disk) as door:
        assert (await door.chat(SPILL_KEY, "big")).status_code == 200
        disk.full = True
        refused = await door.chat(SPILL_KEY, "big")
        assert refused.status_code == 503 and refused.json()["error"]["code"] in ("overloaded", "residency_capacity")
        assert (await door.chat(KEY)).status_code == 200
        assert len(door.outside.requests) == 1
        disk.full = False
        await asyncio.sleep(0.2)
        assert (await door.chat(SPILL_KEY, "big")).status_code == 200
    found = read(tmp_path)
    assert sum(record.e == records.INTENT for record in found) == 2
    assert verify_log(tmp_path / "log", [SIGNER.verifier]).ok


async def test_local_requests_are_refused_too_where_the_configuration_says_so(tmp_path):
    disk = FullDisk(random.Random(1))
    async with audited(tmp_path, disk, audit={"when_unwritable": "refuse"}) as door:
        assert (await door.chat(KEY)).status_code == 200
        disk.full = True
        await door.chat(SPILL_KEY, "big")
        refused = await door.chat(KEY)
        assert refused.status_code == 503 and "audit log" in refused.json()["error"]["message"]
        disk.full = False


async def test_without_a_log_nothing_leaves(tmp_path):
    async with audited(tmp_path, with_log=False) as door:
        assert (await door.chat(SPILL_KEY, "big")).status_code == 503
        assert (await door.chat(KEY)).status_code == 200


async def test_live_decisions_come_out_again_from_the_log_alone(tmp_path):
    async with audited(tmp_path, keys=[{"id": "k", "sha256": digest(SPILL_KEY), "residency": "any", "spill": True}]) as door:
        for _ in range(6):
            await asyncio.gather(*(door.chat(SPILL_KEY, random.choice(["m", "big", "auto"])) for _ in range(20)))
    made = list(Replayer(LogReader(tmp_path / "log")).situations())
    assert len(made) >= 120
    for item in made:
        assert not isinstance(item, Gap), item
        assert differences(decide_again(item), item.data) == []


async def test_a_request_that_waited_has_both_of_its_decisions_in_the_log_and_its_wait(tmp_path):
    async with audited(tmp_path, slo={"ttft_ms": 400}) as door:
        state = door.router.state
        state.take_reports([Report(replace(target, slots=1)) for target in state.fleet.membership.targets])
        body = {"model": "m", "messages": [{"role": "user", "content": "gated"}]}
        headers = {"authorization": f"Bearer {KEY}"}
        asked = [asyncio.create_task(door.client.post("/v1/chat/completions", json=body, headers=headers)) for _ in range(2)]
        while not state.waiting.depth:
            await asyncio.sleep(0.005)
        door.inside.gate.release()
        door.inside.gate.release()
        answers = [await task for task in asked]
        waited = next(answer for answer in answers if "waited" in answer.headers["x-tidegate-reason"])
    found = [record for record in read(tmp_path) if record.id == waited.headers["x-request-id"]]
    assert [record.e for record in found] == [records.DECIDE, records.DECIDE, records.END]
    assert records.read_data(found[-1], records.EndData).waited_ms > 0
    for item in Replayer(LogReader(tmp_path / "log")).situations():
        assert not isinstance(item, Gap) and differences(decide_again(item), item.data) == []


async def test_a_log_that_cannot_be_opened_keeps_the_router_running_and_everything_inside(tmp_path):
    (tmp_path / "audit").write_text("a file where the directory should be")
    config = parse_config(
        {
            "zones": {"eu": {}},
            "targets": [{"id": "a", "kind": "server", "vouched": True, "url": "http://x", "zone": "eu", "models": {"m": "m"}}],
            "audit": {"dir": "audit"},
        }
    )
    log = open_audit(config, compile_policy(config, tmp_path), tmp_path)
    assert log is not None and not log.healthy
    log.event("note", "", {})
    log.close()
    off = parse_config({**config.model_dump(), "audit": {"enabled": False}})
    assert open_audit(off, compile_policy(off, tmp_path), tmp_path) is None


async def test_a_break_glass_relaxation_stands_in_the_log_and_on_every_receipt_it_touched(tmp_path):
    private = {name: bytes([i]) * 32 for i, name in enumerate(("alice", "bob"), start=1)}
    public = {
        name: Ed25519PrivateKey.from_private_bytes(key).public_key().public_bytes_raw().hex() for name, key in private.items()
    }
    now = datetime.now(UTC)
    times = {"begins": (now - timedelta(minutes=1)).isoformat(), "ends": (now + timedelta(hours=1)).isoformat()}
    fields = {"id": "inc-7", "key": "spill", "tags": ["any"], "reason": "eu is down", **times}
    line = json.dumps({**fields, "signatures": {name: sign(fields, key) for name, key in private.items()}})
    keys = [
        {"id": "inside", "sha256": digest(KEY)},
        {"id": "spill", "sha256": digest(SPILL_KEY), "residency": "eu", "spill": True},
    ]
    glass = {"file": "open", "approvers": public}
    async with audited(tmp_path, keys=keys, break_glass=glass) as door:
        assert (await door.chat(SPILL_KEY, "big")).json()["error"]["code"] == "residency_denied"
        (tmp_path / "open").write_text(line)
        source = PolicySource(door.router.state.config.model_dump(mode="json", exclude_none=True), tmp_path)
        assert door.router.take_policy(source) is not None
        answer = await door.chat(SPILL_KEY, "big")
        assert answer.status_code == 200 and len(door.outside.requests) == 1
        receipt = door.router.state.receipts.find(answer.headers["x-request-id"])
        assert receipt["label_sources"]["break_glass"] == "inc-7"
        untouched = await door.chat(KEY)
        assert "break_glass" not in door.router.state.receipts.find(untouched.headers["x-request-id"])["label_sources"]
        # Taken back: the next request is refused again.
        (tmp_path / "open").write_text("")
        assert door.router.take_policy(source) is not None
        assert (await door.chat(SPILL_KEY, "big")).json()["error"]["code"] == "residency_denied"
    found = read(tmp_path)
    [relax] = [record for record in found if record.e == records.RELAX]
    told = records.read_data(relax)
    assert (relax.id, told["key"], told["reason"], told["approved_by"]) == ("inc-7", "spill", "eu is down", ["alice", "bob"])
    for event in (records.DECIDE, records.END):
        data = [records.to_plain(r) for r in found if r.e == event and r.id == answer.headers["x-request-id"]]
        assert data and all(entry["sources"]["break_glass"] == "inc-7" for entry in data)


async def test_a_key_used_at_the_wrong_place_is_counted_by_its_name(tmp_path):
    keys = [{"id": "bound", "sha256": digest(KEY), "cidr": ["203.0.113.0/24"]}]
    async with audited(tmp_path, keys=keys) as door:
        for _ in range(3):
            assert (await door.chat(KEY)).status_code == 401
    counted = [records.read_data(record) for record in read(tmp_path) if record.e == records.TURNED_AWAY]
    assert sum(item["ip_not_authorized bound"] for item in counted) == 3


DEAR = {"prompt": 1000, "completion": 1000}
"""Half a dollar for the 500 tokens that are expected of an answer; an answer of the simulated engine costs 0.009."""


async def test_a_key_with_a_budget_of_its_own_for_spilling_stops_there_and_others_go_on(tmp_path):
    spilling = {"residency": "any", "spill": True, "spill_daily_usd": 0.52}
    keys = [
        {"id": "bounded", "sha256": digest(SPILL_KEY), **spilling},
        {"id": "other", "sha256": digest(KEY), **spilling, "spill_daily_usd": None},
    ]
    async with audited(tmp_path, keys=keys, price=DEAR) as door:
        state = door.router.state
        state.fleet.spending.source = OwnBooks()
        assert [(await door.chat(SPILL_KEY, "big")).status_code for _ in range(4)] == [200, 200, 503, 503]
        refused = await door.chat(SPILL_KEY, "big")
        told = state.receipts.find(refused.headers["x-request-id"])
        assert told is not None
        [reason] = [candidate["reason"] for candidate in told["candidates"] if candidate["target"] == "outside"]
        assert reason.startswith("budget: 0.5") and reason.endswith("0.502000 left to this router today"), "0.52 less twice 0.009"
        assert (await door.chat(KEY, "big")).status_code == 200
    assert [record.e for record in read(tmp_path)].count(records.INTENT) == 3


async def test_an_error_from_outside_costs_nothing_and_an_answer_that_breaks_what_was_set_aside(tmp_path):
    async with audited(tmp_path, price=DEAR, spill={"daily_budget_usd": 2.0}) as door:
        spending = door.router.state.fleet.spending
        spending.source = OwnBooks()
        for wish, status, left in (("bad", 400, 2.0), ("busy", 503, 2.0), ("die-mid", 200, 1.5)):
            body = {"model": "big", "stream": True, "messages": [{"role": "user", "content": wish}]}
            answer = await door.client.post("/v1/chat/completions", json=body, headers={"authorization": f"Bearer {SPILL_KEY}"})
            assert (answer.status_code, wish) == (status, wish)
            assert left - 0.02 < spending.left(time.time()) <= left, "half a dollar for the answer, a little for the prompt"


async def test_several_answers_are_set_aside_for_before_they_leave(tmp_path):
    async with audited(tmp_path, price=DEAR, spill={"daily_budget_usd": 2.0}) as door:
        door.router.state.fleet.spending.source = OwnBooks()
        body = {"model": "big", "n": 5, "messages": [{"role": "user", "content": "x"}]}
        headers = {"authorization": f"Bearer {SPILL_KEY}"}
        assert (await door.client.post("/v1/chat/completions", json=body, headers=headers)).status_code == 503
        assert not door.outside.requests
        assert (await door.client.post("/v1/chat/completions", json={**body, "n": 3}, headers=headers)).status_code == 200


async def test_without_a_store_nothing_is_spent_of_a_budget(tmp_path, caplog):
    async with audited(tmp_path, price=DEAR, spill={"daily_budget_usd": 1000}) as door:
        refused = await door.chat(SPILL_KEY, "big")
        assert refused.status_code == 503
        told = door.router.state.receipts.find(refused.headers["x-request-id"])
        assert any(candidate["reason"].endswith("0.000000 left to this router today") for candidate in told["candidates"])
    assert not door.outside.requests
    async with audited(tmp_path / "unbounded", price=DEAR) as door:
        assert (await door.chat(SPILL_KEY, "big")).status_code == 200


async def test_policies_that_come_while_an_intent_is_written_take_no_try_from_the_request(tmp_path):
    async with audited(tmp_path) as door:
        state = door.router.state
        assert state.audit is not None
        announce, left = state.audit.announce, 5
        state.retry_budget.withdraw = lambda _now: False  # nothing failed, so nothing is tried again

        def change_first(*args: Any) -> None:
            nonlocal left
            if left:
                left -= 1
                source = PolicySource(state.config.model_dump(mode="json", exclude_none=True), tmp_path)
                source.offer({"duties": [f"d{left}"]})
                assert door.router.take_policy(source)
            announce(*args)

        state.audit.announce = change_first
        answer = await door.chat(SPILL_KEY, "big")
        assert answer.status_code == 200 and left == 0 and len(door.outside.requests) == 1
        attempts = state.receipts.find(answer.headers["x-request-id"])["attempts"]
        assert [attempt["ending"] for attempt in attempts] == ["not_sent"] * 5 + ["complete"]
        assert sum(state.fleet.load_of(target.incarnation).inflight for target in state.fleet.membership.targets) == 0
