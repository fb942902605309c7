"""The response cache over real sockets: what a client, a receipt, the limits, the metrics and the audit log see of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from msgspec.structs import replace
from tidegate.report import add_up

from router.config import parse_config
from router.fixed_targets import fixed_targets
from router.ledger import records
from router.ledger.checkpoint import Signer
from router.ledger.cost import PriceList
from router.ledger.log import AuditLog
from router.ledger.policies import policy_text
from router.ledger.reader import LogReader
from router.ledger.replay import Gap, Replayer, decide_again, differences
from router.ledger.search import requests
from router.ledger.store import LogStore
from router.ledger.verify import verify_log
from router.ledger.writer import LogWriter
from router.placement.targets import Report
from tests.router.builders import digest
from tests.router.conftest import KEY, OTHER_KEY, FrontDoor, open_front_door
from tests.router.simulated_engine import JSON_ANSWER, STREAM_HEAD, USAGE_EVENT, answer, chunk, event, write_chunked
from tests.router.test_audited_requests import KEY as INSIDE_KEY
from tests.router.test_audited_requests import SPILL_KEY, audited
from tests.router.test_cascade import SURE, UNSURE, cascade
from tests.router.test_continuation import CHAT, TEXT, Answer, body_of, cut_first, running, stream
from tests.router.test_policy_reload import source_with

FRONT = {"id": "front", "sha256": digest(KEY), "cache": True}
OTHER = {"id": "other", "sha256": digest(OTHER_KEY)}
AS_OTHER = {"authorization": f"Bearer {OTHER_KEY}"}
EVENTS = b"".join(event(i) for i in range(5))


@contextlib.asynccontextmanager
async def cached(zones: dict[str, str] | None = None, /, **changes: Any) -> AsyncIterator[FrontDoor]:
    changes = {"cache": {"zones": ["eu"]}, "keys": [FRONT, OTHER], **changes}
    async with open_front_door(zones or {"a": "eu"}, **changes) as door:
        yield door


async def ask(door: FrontDoor, wish: str = "hello", **more: Any) -> httpx.Response:
    return await door.chat(wish, **{"temperature": 0, **more})


def asked(door: FrontDoor, name: str = "a") -> int:
    return len(door.engines[name].requests)


def was_hit(response: httpx.Response) -> bool:
    assert response.status_code == 200
    return response.headers["x-tidegate-cache"] == "hit"


async def test_the_second_time_the_cache_answers_and_the_engine_hears_nothing():
    async with cached() as door:
        first, second = await ask(door), await ask(door)
        assert (was_hit(first), was_hit(second), asked(door)) == (False, True, 1)
        assert first.content == second.content == JSON_ANSWER
        assert second.headers["content-type"] == "application/json" and int(second.headers["age"]) >= 0
        assert (second.headers["x-tidegate-target"], second.headers["x-tidegate-zone"]) == ("cache", "eu")
        assert second.headers["x-tidegate-model"] == "m" and "by a in eu" in second.headers["x-tidegate-reason"]
        receipt = door.receipt(second)
        assert (receipt["cache"], receipt["status"], receipt["prompt_tokens"], receipt["completion_tokens"]) == ("hit", 200, 7, 2)
        assert receipt["label"] == door.receipt(first)["label"] and receipt["label_sources"]
        assert [candidate["target"] for candidate in receipt["candidates"]] == ["a"]
        (attempt,) = receipt["attempts"]
        assert (attempt["target"], attempt["zone"], attempt["model"], attempt["ending"]) == ("cache", "eu", "m", "complete")
        assert door.receipt(first)["cache"] == "miss" and door.state.inflight.__len__() == 0


async def test_a_key_that_did_not_ask_for_it_gets_and_leaves_nothing():
    async with cached() as door:
        for _ in range(2):
            plain = await ask(door, headers=AS_OTHER)
            assert "x-tidegate-cache" not in plain.headers and "age" not in plain.headers
        assert not was_hit(await ask(door)) and was_hit(await ask(door))
        assert "x-tidegate-cache" not in (await ask(door, headers=AS_OTHER)).headers
        assert asked(door) == 4 and door.receipt(plain)["cache"] == ""


@pytest.mark.parametrize(
    "raw",
    [
        b'{"temperature":0,"messages":[{"content":"hello","role":"user"}],"model":"m"}',
        b' {"messages" : [ {"role":"user", "content":"h\\u0065llo"} ],\n"model":"m",\t"temperature":0}',
        b'{"model":"auto","messages":[{"role":"user","content":"hello"}],"temperature":0,"stream":false}',
        b'{"model":"small","messages":[{"role":"user","content":"hello"}],"temperature":0,"stream":null}',
    ],
)
async def test_the_same_json_is_the_same_question_however_it_is_written(raw):
    async with cached() as door:
        assert not was_hit(await ask(door))
        again = await door.client.post("/v1/chat/completions", content=raw, headers={"content-type": "application/json"})
        assert was_hit(again) and again.content == JSON_ANSWER and asked(door) == 1


@pytest.mark.parametrize(
    "more",
    [
        {"max_tokens": 5}, {"user": "u"}, {"seed": 1}, {"temperature": 0.0}, {"stop": ["x"]}, {"cache_salt": "mine"},
        {"metadata": {"a": "b"}}, {"n": 1}, {"unknown_to_us": None}, {"tools": []}, {"stream_options": {"include_usage": True}},
    ],
)  # fmt: skip
async def test_any_other_field_makes_another_question(more):
    async with cached() as door:
        assert not was_hit(await ask(door))
        assert not was_hit(await ask(door, **more)) and was_hit(await ask(door, **more)) and asked(door) == 2


async def test_only_a_deterministic_request_is_kept_unless_the_key_says_otherwise():
    async with cached(keys=[FRONT, {**OTHER, "cache": {"sampled": True}}]) as door:
        for body in ({}, {"temperature": 0.7}, {"temperature": None}, {"temperature": False}, {"seed": True}, {"seed": None}):
            for _ in range(2):
                assert "x-tidegate-cache" not in (await door.chat("hello", **body)).headers
        assert asked(door) == 12
        assert not was_hit(await door.chat("hello", seed=7, temperature=1)) and was_hit(
            await door.chat("hello", seed=7, temperature=1)
        )
        assert not was_hit(await door.chat("hello", headers=AS_OTHER)) and was_hit(await door.chat("hello", headers=AS_OTHER))


async def test_a_stream_is_answered_by_a_stream_with_the_usage_only_for_who_asks():
    async with cached() as door:
        first = await ask(door, "stream", stream=True)
        assert not was_hit(first) and first.content == EVENTS + b"data: [DONE]\n\n"
        silent = await ask(door, "stream", stream=True, stream_options={"include_usage": False})
        told = await ask(door, "stream", stream=True, stream_options={"include_usage": True})
        assert was_hit(silent) and silent.content == first.content
        assert was_hit(told) and told.content == EVENTS + USAGE_EVENT + b"data: [DONE]\n\n"
        assert told.headers["content-type"] == first.headers["content-type"]
        for response in (silent, told):
            receipt = door.receipt(response)
            assert (receipt["prompt_tokens"], receipt["completion_tokens"], receipt["cached_tokens"]) == (7, 5, 4)
        assert asked(door) == 1
        door.engines["a"]._stream = door.engines["a"]._hello
        assert not was_hit(await ask(door, "stream"))  # the whole answer was never seen: no stream stands for it


async def test_a_stream_that_brought_its_usage_serves_those_who_do_not_ask():
    async with cached() as door:
        told = await ask(door, "stream", stream=True, stream_options={"include_usage": True})
        silent = await ask(door, "stream", stream=True)
        assert USAGE_EVENT in told.content and was_hit(silent) and silent.content == EVENTS + b"data: [DONE]\n\n"


async def test_a_client_of_http_1_0_gets_a_stream_that_ends_with_the_connection():
    async with cached() as door:
        await ask(door, "stream", stream=True)
        body = json.dumps({"model": "m", "temperature": 0, "stream": True, "messages": [{"role": "user", "content": "stream"}]})
        reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
        head = f"POST /v1/chat/completions HTTP/1.0\r\nauthorization: Bearer {KEY}\r\ncontent-length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body.encode())
        received = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        head_of, _, rest = received.partition(b"\r\n\r\n")
        assert b"x-tidegate-cache: hit" in head_of and b"chunked" not in head_of
        assert rest == EVENTS + b"data: [DONE]\n\n"


async def test_one_connection_carries_hits_and_misses_in_turn():
    async with cached() as door:
        contents = [(await ask(door, wish, stream=wish == "stream")).content for wish in ["stream", "hello"] * 3]
        assert contents == [EVENTS + b"data: [DONE]\n\n", JSON_ANSWER] * 3 and asked(door) == 2


@pytest.mark.parametrize("wish", ["bad", "broken", "busy", "cut-json", "die-before", "garbage", "no-length"])
async def test_what_is_no_whole_and_successful_answer_is_not_kept(wish):
    async with cached() as door:
        for _ in range(2):
            with contextlib.suppress(httpx.RemoteProtocolError):
                failed = await ask(door, wish)
                assert failed.status_code >= 400 and failed.headers.get("x-tidegate-cache") != "hit"
        assert door.state.cache.measure() == (0, 0)


@pytest.mark.parametrize("wish", ["die-mid", "die-in-chunk"])
async def test_a_broken_stream_is_not_kept(wish):
    async with cached() as door:
        for _ in range(2):
            broken = await ask(door, wish, stream=True)
            assert b"[DONE]" not in broken.content
        assert door.state.cache.measure() == (0, 0)


def told_as(body: bytes, extra: bytes = b"", kind: bytes = b"application/json") -> Any:
    async def tell(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(answer(body, extra=extra).replace(b"application/json", kind))
        return True

    return tell


@pytest.mark.parametrize(
    ("body", "extra", "kind"),
    [
        (b'{"error":{"message":"no"}}', b"", b"application/json"),
        (b'{"choices":[{"finish_reason":"abort"}],"usage":{}}', b"", b"application/json"),
        (b'{"choices":[{"finish_reason":"error"}]}', b"", b"application/json"),
        (b"[1]", b"", b"application/json"),
        (b"not json", b"", b"application/json"),
        (JSON_ANSWER, b"cache-control: no-store\r\n", b"application/json"),
        (JSON_ANSWER, b"cache-control: max-age=3, private\r\n", b"application/json"),
        (JSON_ANSWER, b"", b"text/plain"),
    ],
)
async def test_an_answer_that_speaks_of_failure_or_forbids_it_is_not_kept(body, extra, kind):
    async with cached() as door:
        door.engines["a"]._hello = told_as(body, extra, kind)
        assert [was_hit(await ask(door)) for _ in range(2)] == [False, False]
        assert door.state.cache.measure() == (0, 0)


async def test_a_chunked_answer_is_kept_free_of_its_framing():
    async with cached() as door:

        async def tell(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
            await write_chunked(writer, JSON_ANSWER, 11)
            return True

        door.engines["a"]._hello = tell
        first, second = await ask(door), await ask(door)
        assert (was_hit(first), was_hit(second)) == (False, True) and first.content == second.content == JSON_ANSWER


async def test_the_client_can_forbid_reading_and_keeping():
    async with cached() as door:

        async def wish(value: str) -> str | None:
            return (await ask(door, headers={"cache-control": value})).headers.get("x-tidegate-cache")

        assert await wish("no-store") is None and asked(door) == 1
        assert await wish("no-cache") == "miss" and asked(door) == 2
        assert await wish("max-age=60") == "hit"
        assert await wish("No-Cache") == "miss" and await wish("x, no-store") is None and await wish("max-age=0") == "miss"
        assert await wish("max-age=banana") == "miss" and await wish("max-stale=9") == "hit"
        assert asked(door) == 6


async def test_tenants_share_nothing_and_keys_only_what_they_agreed_to():
    keys = [
        {**FRONT, "tenant": "t"},
        {**OTHER, "tenant": "t", "cache": True},
        {"id": "own", "sha256": digest("tg_own"), "tenant": "t", "cache": {"share": "key"}},
        {"id": "own2", "sha256": digest("tg_own2"), "tenant": "t", "cache": {"share": "key"}},
        {"id": "far", "sha256": digest("tg_far"), "tenant": "u", "cache": True},
    ]
    async with cached(keys=keys) as door:
        for secret, hit in [(KEY, False), (OTHER_KEY, True), ("tg_own", False), ("tg_own2", False), ("tg_far", False)] + [
            (secret, True) for secret in (KEY, OTHER_KEY, "tg_own", "tg_own2", "tg_far")
        ]:
            assert was_hit(await ask(door, headers={"authorization": f"Bearer {secret}"})) is hit
        assert asked(door) == 4


async def test_a_tighter_label_asks_again_and_a_place_that_may_not_store_gets_no_copy():
    tags = {"tags": {"tight": {"process": ["eu"]}, "no-copies": {"process": ["eu", "us"], "store": ["us"]}}}
    async with cached({"a": "eu", "b": "us"}, residency=tags) as door:
        assert not was_hit(await ask(door)) and was_hit(await ask(door))
        tight = {"x-tidegate-residency": "tight"}
        first = await ask(door, headers=tight)
        assert not was_hit(first) and first.headers["x-tidegate-target"] == "a"
        assert was_hit(await ask(door, headers=tight))
        only_us = {"x-tidegate-residency": "us"}
        for _ in range(2):  # `us` stores in us alone, the cache is in eu
            assert not was_hit(await ask(door, headers=only_us))


async def test_a_policy_change_empties_the_cache_and_an_answer_under_way_is_not_kept():
    async with cached() as door:
        engine = door.engines["a"]
        await ask(door)
        entered = asyncio.Event()

        async def slowly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
            entered.set()
            await engine.release.wait()
            writer.write(answer(JSON_ANSWER))
            return True

        engine._slow = slowly
        begun = asyncio.create_task(ask(door, "slow"))
        await entered.wait()
        assert len(door.state.cache) == 1
        assert door.router.take_policy(source_with(door, {"keys": [FRONT]}))
        assert len(door.state.cache) == 0
        engine.release.set()
        assert (await begun).status_code == 200 and door.state.cache.measure() == (0, 0)
        assert not was_hit(await ask(door)) and was_hit(await ask(door))


async def test_an_answer_made_where_the_label_no_longer_allows_is_not_given():
    """The evidence changes between keeping and asking: the machine that answered turns out to stand elsewhere."""
    async with cached() as door:
        assert not was_hit(await ask(door)) and was_hit(await ask(door))
        (target,) = fixed_targets(door.state.config, None, "")
        words = door.state.policy.vocabulary
        elsewhere = words.zone_mask(["elsewhere"])
        key = {"x-tidegate-residency": "eu"}
        assert not was_hit(await ask(door, headers=key)) and was_hit(await ask(door, headers=key))
        moved = replace(target, evidence=replace(target.evidence, process=elsewhere, store=elsewhere))
        door.state.fleet.update([Report(moved)])
        refused = await ask(door, headers=key)
        assert refused.status_code == 503 and refused.json()["error"]["code"] == "residency_capacity"
        door.state.fleet.update([Report(replace(target, evidence=replace(target.evidence, process=1)))])
        assert (await ask(door)).status_code == 503


async def test_it_answers_while_no_target_is_up_and_refuses_what_may_not_be():
    async with cached() as door:
        first = await ask(door)
        door.state.fleet.update([])
        again = await ask(door)
        assert was_hit(again) and again.content == first.content
        receipt = door.receipt(again)
        assert receipt["status"] == 200 and receipt["code"] == ""
        assert (await ask(door, "another")).status_code == 503
        assert (await ask(door, model="none")).status_code == 404
        assert (await ask(door, headers={"x-tidegate-residency": "elsewhere"})).status_code == 403


async def test_a_router_that_stands_elsewhere_or_nowhere_known_keeps_nothing(caplog):
    for zone, hit in (("eu", True), ("elsewhere", True), ("?", False)):
        async with cached() as door:
            door.state.stand_in(zone)
            assert [was_hit(await ask(door)) for _ in range(2)] == [False, hit]
            assert any("keeps nothing" in record.message for record in caplog.records) is not hit
    async with cached(keys=[{**FRONT, "residency": "eu"}]) as door:
        door.state.stand_in("elsewhere")
        assert [was_hit(await ask(door)) for _ in range(2)] == [False, False]


async def test_a_hit_is_a_request_but_neither_tokens_nor_money():
    limits = {"requests_per_minute": 4, "tokens_per_minute": 2000, "daily_usd": 0.25, "concurrent_requests": 1}
    async with cached(keys=[{**FRONT, **limits}]) as door:
        priced = door.state.config.model_dump(mode="json")
        priced["targets"][0]["price"] = {"prompt": 1000, "completion": 1000}
        door.state.prices = PriceList(parse_config(priced))  # each reserves over 0.1 USD; the first one settles 0.009
        left, responses = [], []
        for _ in range(4):
            answered = await ask(door, max_tokens=100)
            responses.append(answered)
            left.append(int(answered.headers["x-ratelimit-remaining-requests"]))
            tokens = int(answered.headers["x-ratelimit-remaining-tokens"])
        assert left == [3, 2, 1, 0] and asked(door) == 1
        # Of the first one 9 tokens are used; of a hit what was reserved is given back.
        assert tokens == 2000 - 9 - (100 + door.receipt(answered)["prompt_tokens_estimate"])
        receipts = [door.state.receipts._receipts[response.headers["x-request-id"]][0] for response in responses]
        assert [door.state.prices.cost(receipt) for receipt in receipts] == [0.009, 0, 0, 0]
        assert (await ask(door, max_tokens=100)).json()["error"]["code"] == "rate_limited"


async def test_metrics_and_the_admin_view_count_it():
    async with cached() as door:
        for _ in range(3):
            await ask(door)
        text = (await door.client.get("/metrics")).text
        assert 'tidegate_cache_lookups_total{result="hit",router="router-test"} 2.0' in text
        assert 'tidegate_cache_lookups_total{result="miss",router="router-test"} 1.0' in text
        assert 'tidegate_requests_total{model="m",router="router-test",status="200",target="cache",zone="eu"} 2.0' in text
        assert 'tidegate_cache_entries{router="router-test"} 1.0' in text and "tidegate_cache_bytes" in text
        admin = f"http://127.0.0.1:{door.state.config.admin.port}/tidegate/v1/cluster"
        view = (await door.client.get(admin)).json()["response_cache"]
        assert view["entries"] == 1 and view["zones"] == ["eu"]
    async with open_front_door({"a": "eu"}) as door:
        assert "tidegate_cache_entries" not in (await door.client.get("/metrics")).text


async def test_embeddings_are_kept_and_what_is_drawn_or_stored_elsewhere_is_not():
    async with cached() as door:
        pooling = replace(fixed_targets(door.state.config, None, "")[0], endpoints=frozenset({"/v1/embeddings"}))
        door.state.fleet.update([Report(pooling)])
        body = {"model": "m", "input": "text"}
        sites = tuple(replace(site, endpoints=pooling.endpoints) for site in door.state.policy.sites)
        door.state.policy = replace(door.state.policy, sites=sites)
        found = [await door.client.post("/v1/embeddings", json=body) for _ in range(2)]
        assert [was_hit(response) for response in found] == [False, True]
    zones = {"eu": {}, "outside": {"external": True}}
    async with cached(zones=zones, keys=[{**FRONT, "residency": "any"}]) as door:
        part = {"type": "image_url", "image_url": {"url": "https://x.example/a.png"}}
        for more in ({"kv_transfer_params": {}}, {"messages": [{"role": "user", "content": [part]}]}, {"top_p": 1e400}):
            raw = json.dumps({"model": "m", "temperature": 0, "messages": [{"role": "user", "content": "hello"}], **more})
            raw = raw.replace("Infinity", "1e400")
            for _ in range(2):
                response = await door.client.post("/v1/chat/completions", content=raw)
                assert "x-tidegate-cache" not in response.headers


async def test_the_audit_log_tells_of_every_hit_and_still_verifies_and_replays(tmp_path: Path):
    signer = Signer(bytes(32))
    async with cached() as door:
        writer = LogWriter(LogStore(tmp_path / "log", signer), window_s=0.01)
        door.state.audit = log = AuditLog(writer, door.state.policy.label_text)
        log.policy(door.state.policy.epoch, policy_text(door.state.config))
        first = await ask(door, "json a-secret-sentence")
        hits = [await ask(door, "json a-secret-sentence") for _ in range(3)]
        assert all(map(was_hit, hits))
    found = list(LogReader(tmp_path / "log").records())
    assert verify_log(tmp_path / "log", [signer.verifier]).problems == []
    told = [records.read_data(record) for record in found if record.e == records.CACHE_HIT]
    assert [record.id for record in found if record.e == records.CACHE_HIT] == [hit.headers["x-request-id"] for hit in hits]
    assert {data["answered"] for data in told} == {first.headers["x-request-id"]}
    assert {(data["target"], data["evidence"], data["store"], data["key"]) for data in told} == {
        ("a", "eu/eu/", "eu/eu/", "front")
    }
    handled = {item.id: item for item in requests([LogReader(tmp_path / "log")])}
    hit = handled[hits[0].headers["x-request-id"]]
    assert (hit.cache, hit.target, hit.status, hit.external, hit.complete) == ("hit", "cache", 200, False, True)
    assert handled[first.headers["x-request-id"]].cache == "miss"
    made = list(Replayer(LogReader(tmp_path / "log")).situations())
    assert len(made) == 4
    for item in made:
        assert not isinstance(item, Gap) and differences(decide_again(item), item.data) == []
    for file in (tmp_path / "log").rglob("*"):
        assert not file.is_file() or b"a-secret-sentence" not in file.read_bytes()


async def test_what_a_provider_answered_is_given_again_without_leaving(tmp_path: Path):
    keys = [
        {"id": "spill", "sha256": digest(SPILL_KEY), "residency": "any", "spill": True, "tenant": "t", "cache": True},
        {"id": "inside", "sha256": digest(INSIDE_KEY), "residency": "any", "tenant": "t", "cache": True},
    ]
    models = [{"id": "own", "source": "x", "replicas": [{"zone": "eu"}]}]
    async with audited(tmp_path, cache={"zones": ["eu"]}, keys=keys, models=models) as door:

        async def ask_outside(key: str) -> httpx.Response:
            body = {"model": "big", "temperature": 0, "messages": [{"role": "user", "content": "hello"}]}
            return await door.client.post("/v1/chat/completions", json=body, headers={"authorization": f"Bearer {key}"})

        first, second, other = await ask_outside(SPILL_KEY), await ask_outside(SPILL_KEY), await ask_outside(INSIDE_KEY)
        assert (was_hit(first), was_hit(second), len(door.outside.requests)) == (False, True, 1)
        # The other key of the tenant may not spill: what was computed outside is not for it either.
        assert other.status_code == 403 and "x-tidegate-cache" not in other.headers
    logs = [LogReader(tmp_path / "log")]
    handled = {item.id: item for item in requests(logs)}
    assert [handled[r.headers["x-request-id"]].external for r in (first, second)] == [True, False]
    assert sum(record.e == records.INTENT for record in logs[0].records()) == 1
    lines = {line.name: line for line in add_up(logs, "target")}
    assert (lines["cache"].requests, lines["cache"].cached, lines["cache"].usd, lines["cache"].prompt_tokens) == (1, 1, 0.0, 0)
    assert (lines["outside"].requests, lines["outside"].cached, lines["outside"].prompt_tokens) == (1, 0, 7)


async def test_nothing_is_given_while_the_log_cannot_be_written_where_the_configuration_says_so():
    async with cached(audit={"when_unwritable": "refuse"}) as door:
        await ask(door)
        door.state.audit = AuditLog(None, door.state.policy.label_text)
        refused = await ask(door)
        assert refused.status_code == 503 and "audit log" in refused.json()["error"]["message"]


async def test_an_answer_over_the_bound_passes_and_is_not_kept():
    async with cached(cache={"zones": ["eu"], "max_answer_kib": 1}) as door:
        large = json.dumps({"choices": [], "text": "x" * 2000}).encode()
        door.engines["a"]._hello = told_as(large)
        for _ in range(2):
            response = await ask(door)
            assert not was_hit(response) and response.content == large
        assert door.state.cache.measure() == (0, 0)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_large_answer_comes_out_as_it_went_in(stream):
    async with cached() as door:
        large = json.dumps({"choices": [], "text": "x" * 200_000}).encode()
        door.engines["a"]._hello = told_as(large)

        async def tell(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
            writer.write(STREAM_HEAD + b"".join(chunk(event(i)) for i in range(1500)) + chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")
            return True

        door.engines["a"]._stream = tell
        wish = {"wish": "stream", "stream": True} if stream else {}
        first, second, third = [await ask(door, **wish) for _ in range(3)]
        assert [was_hit(response) for response in (first, second, third)] == [False, True, True]
        assert first.content == second.content == third.content and len(first.content) > 100_000


async def test_a_client_that_leaves_in_the_middle_leaves_no_copy():
    async with cached() as door:
        body = {"model": "m", "temperature": 0, "stream": True, "messages": [{"role": "user", "content": "stall"}]}
        async with door.client.stream("POST", "/v1/chat/completions", json=body) as response:
            await anext(response.aiter_raw())
            assert door.state.cache.size > 0
        while door.state.cache.size:
            await asyncio.sleep(0.01)
        assert door.state.cache.measure() == (0, 0)


def scope_of(secret: str, tag: str) -> tuple[str, str, str]:
    """Whose answers a key gets, by the test's own table, and under which label."""
    tenant, owner = {"tg_a": ("t", ""), "tg_b": ("t", ""), "tg_c": ("t", "c"), "tg_d": ("u", ""), "tg_e": ("t", "")}[secret]
    return tenant, owner, {"": "eu+us", "wide": "eu+us", "eu": "eu", "tight": "eu"}[tag if secret != "tg_e" else "eu"]


async def test_random_requests_hit_exactly_when_their_scope_and_question_were_there_before():
    """Keys, tenants, labels, models, streams, parameters and spellings at random, beside a plain list of what was asked."""
    keys = [
        {"id": "a", "sha256": digest("tg_a"), "tenant": "t", "cache": True},
        {"id": "b", "sha256": digest("tg_b"), "tenant": "t", "cache": True},
        {"id": "c", "sha256": digest("tg_c"), "tenant": "t", "cache": {"share": "key"}},
        {"id": "d", "sha256": digest("tg_d"), "tenant": "u", "cache": True},
        {"id": "e", "sha256": digest("tg_e"), "tenant": "t", "cache": True, "residency": "eu"},
    ]
    tags = {"tags": {"wide": {"process": ["eu", "us"]}, "tight": {"process": ["eu"], "store": ["eu"]}}}
    zones = {"eu": {}, "us": {}}
    randomness, before, hits = random.Random(3), {}, 0
    async with cached({"a": "eu", "b": "us"}, keys=keys, residency=tags, zones=zones) as door:
        for _ in range(350):
            secret, tag = (
                randomness.choice(["tg_a", "tg_b", "tg_c", "tg_d", "tg_e"]),
                randomness.choice(["", "wide", "eu", "tight"]),
            )
            wish = randomness.choice(["stream", "hello"])
            shaping = {
                name: randomness.choice([1, 2]) for name in randomness.sample(["max_tokens", "n", "x"], randomness.randint(0, 1))
            }
            body = {"temperature": 0, "messages": [{"role": "user", "content": wish}], **shaping}
            body["model"] = randomness.choice(["m", "auto", "small"])
            if wish == "stream":
                body["stream"] = True
                if randomness.random() < 0.5:
                    body["stream_options"] = {"include_usage": randomness.random() < 0.5}
            items = list(body.items())
            randomness.shuffle(items)
            headers = {"authorization": f"Bearer {secret}", **({"x-tidegate-residency": tag} if tag else {})}
            raw = json.dumps(dict(items), indent=randomness.choice([None, 2]))
            response = await door.client.post("/v1/chat/completions", content=raw, headers=headers)
            question = (*scope_of(secret, tag), wish, tuple(sorted(shaping.items())))
            assert was_hit(response) is (question in before), (question, response.headers)
            wants_usage = body.get("stream_options", {}).get("include_usage", False)
            expected = JSON_ANSWER if wish == "hello" else EVENTS + (USAGE_EVENT if wants_usage else b"") + b"data: [DONE]\n\n"
            assert response.content == expected
            if was_hit(response):
                hits += 1
                told = door.receipt(response)["attempts"][0]["reason"]
                assert f"by {before[question]} in" in told and (question[2] != "eu" or " in eu" in told)
            else:
                before[question] = response.headers["x-tidegate-target"]
        assert hits > 150 and len(before) == sum(asked(door, name) for name in door.engines)


# A small model's stream that is cut for the large one's is not whole, and so not kept.
@pytest.mark.parametrize(
    ("says", "model", "stream"), [(SURE, "m-small", False), (SURE, "m-small", True), (UNSURE, "m-large", False)]
)
async def test_every_step_of_a_cascade_has_its_own_turn(says, model, stream):
    async with cascade(says * 30, cache={"zones": ["eu"]}, keys=[FRONT]) as (door, small, large):
        body = {
            "model": "auto",
            "temperature": 0,
            "stream": stream,
            "messages": [{"role": "user", "content": "What is 2 and 2?"}],
        }
        first, second = [await door.client.post("/v1/chat/completions", json=body) for _ in range(2)]
        assert (was_hit(first), was_hit(second)) == (False, True)
        assert first.content == second.content and b'"logprob"' not in second.content
        assert second.headers["x-tidegate-model"] == first.headers["x-tidegate-model"] == model
        assert (len(small.requests), len(large.requests)) == (1, int(model == "m-large"))
        receipt, again = door.receipt(first), door.receipt(second)
        assert (receipt["cache"], again["cache"], again["mode"]) == ("miss", "hit", "cascade")
        assert {attempt["target"] for attempt in again["attempts"]} == {"cache"} and again["prompt_tokens"] > 0
        assert [step["cost_usd"] for step in again["steps"]] == [0.0] * len(receipt["steps"])


async def test_a_step_that_was_kept_is_not_paid_for_and_one_that_was_not_is():
    async with cascade(UNSURE, cache={"zones": ["eu"]}, keys=[FRONT]) as (door, small, large):
        body = {"model": "auto", "temperature": 0, "messages": [{"role": "user", "content": "What is 2 and 2?"}]}
        large.status = "400 Bad Request"
        await door.client.post("/v1/chat/completions", json=body)
        large.status = "200 OK"
        mixed = await door.client.post("/v1/chat/completions", json=body)
        receipt = door.receipt(mixed)
        assert (receipt["cache"], receipt["prompt_tokens"], receipt["completion_tokens"]) == ("miss", 10, 2)
        assert [attempt["target"] for attempt in receipt["attempts"]] == ["cache", "large"]
        assert [step["cost_usd"] > 0 for step in receipt["steps"]] == [False, True] and len(small.requests) == 1


async def test_random_reloads_and_moves_never_let_an_answer_out_of_where_its_label_allows():
    """Policies tighten and relax, machines turn out to stand elsewhere: a hit was made under this very policy, in a place that
    the label allowed then and, as far as is known, allows now."""
    randomness, hits, moves = random.Random(11), 0, 0
    zones_of = {"any": {"eu", "us"}, "eu": {"eu"}}
    keys = [{"id": name, "sha256": digest(f"tg_{name}"), "residency": "any", "cache": True} for name in "ab"]
    async with cached({"one": "eu", "two": "us"}, keys=keys, zones={"eu": {}, "us": {}}, cache={"zones": ["eu"]}) as door:
        ceiling, stands, kept = {"a": "any", "b": "any"}, {"one": "eu", "two": "us"}, {}
        for step in range(400):
            event = randomness.random()
            if event < 0.05:
                ceiling = {name: randomness.choice(["any", "eu"]) for name in ceiling}
                part = [{**key, "residency": ceiling[key["id"]], "timeout_ms": 60_000 + step} for key in keys]
                assert door.router.take_policy(source_with(door, {"keys": part}))
                kept, stands = {}, {"one": "eu", "two": "us"}
                continue
            if event < 0.12:
                moves += 1
                stands = {name: randomness.choice(["eu", "us"]) for name in stands}
                words, moved = door.state.policy.vocabulary, []
                for target in fixed_targets(door.state.config, None, ""):
                    zone = words.zone_mask([stands[target.id]])
                    moved.append(Report(replace(target, evidence=replace(target.evidence, process=zone, store=zone))))
                door.state.fleet.update(moved)
                continue
            who, what = randomness.choice("ab"), randomness.randrange(4)
            response = await ask(door, headers={"authorization": f"Bearer tg_{who}"}, max_tokens=what + 1)
            allowed, question = zones_of[ceiling[who]], (ceiling[who], what)
            if response.status_code == 503:
                assert not set(stands.values()) & allowed
            elif was_hit(response):
                hits += 1
                maker, made_in = kept[question]
                assert f"by {maker} in" in response.headers["x-tidegate-reason"]
                assert made_in in allowed and stands[maker] in allowed
            else:
                maker = response.headers["x-tidegate-target"]
                assert stands[maker] in allowed
                kept[question] = (maker, stands[maker])
        assert hits > 80 and moves > 10


@pytest.mark.parametrize("path", [CHAT, TEXT])
async def test_a_stream_that_could_be_carried_on_is_kept_without_its_token_ids_and_a_joined_one_is_not(path):
    options = {"stream_options": {"include_usage": True}}
    async with running(cache={"zones": ["eu"]}, keys=[FRONT]) as (door, engines):
        responses = [await door.client.post(path, json=body_of(path, **more)) for more in ({}, {}, options)]
        assert [was_hit(response) for response in responses] == [False, True, True]
        first, again, told = (Answer(response.text) for response in responses)
        assert first.done and first.text and first.same_as(again) and responses[0].content == responses[1].content
        assert told.text == first.text and told.usage and not first.usage
        assert all(b"token_ids" not in response.content or b'"token_ids":null' in response.content for response in responses)
        direct = await door.client.post(path, json=body_of(path, **options), headers={"cache-control": "no-cache"})
        assert Answer(direct.text).same_as(told)
        size = sum(map(len, stream(path, {**body_of(path, "x y"), "return_token_ids": True}, "x" * 28)))
        cut_first(engines, size // 2)
        joined = await door.client.post(path, json=body_of(path, "x y"))
        assert Answer(joined.text).done and len(door.receipt(joined)["attempts"]) == 2
        assert not was_hit(await door.client.post(path, json=body_of(path, "x y")))
