"""A policy changes while requests run: forbidden streams end, the rest goes on, and a faulty policy changes nothing."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path

import pytest
import yaml

from router.config import ConfigError
from router.fixed_targets import fixed_targets
from router.placement.targets import Report
from router.policy_source import PolicySource, merge, read_policy_file
from tests.router.builders import digest, make_config
from tests.router.conftest import KEY, open_front_door

OPEN = {"id": "front", "sha256": digest(KEY)}


def args_of(door):
    return door.state.config.model_dump(mode="json", exclude_none=True)


async def read_until(response, text):
    got = b""
    async for chunk in response.aiter_raw():
        got += chunk
        if text in got:
            return got
    return got


def source_with(door, part):
    source = PolicySource(args_of(door), Path())
    source.offer(part)
    return source


def only(zone):
    return {"keys": [{**OPEN, "residency": zone}]}


async def test_a_forbidden_stream_ends_in_an_error_event_and_nothing_more_is_sent_there():
    async with open_front_door({"a": "eu"}) as door:
        body = {"model": "m", "messages": [{"role": "user", "content": "stall"}], "stream": True}
        async with door.client.stream("POST", "/v1/chat/completions", json=body) as response:
            stream = response.aiter_raw()
            got = await anext(stream)
            # The only place is `eu` and the key may only go elsewhere: such a policy is refused as a whole.
            assert door.router.take_policy(source_with(door, only("elsewhere"))) is None
            assert "keys[0].residency" in door.state.policy_alert
            assert door.router.take_policy(source_with(door, {"keys": [{"id": "other", "sha256": digest("another")}]}))
            async for chunk in stream:
                got += chunk
        events = [line for line in got.split(b"\n\n") if line.startswith(b"data: ")]
        assert json.loads(events[-1][6:])["error"]["code"] == "policy_revoked" and b"[DONE]" not in got
        receipt = door.receipt(response)
        assert (receipt["code"], receipt["attempts"][0]["failure"]) == ("policy_revoked", "policy_revoked")
        assert (await door.chat("hello")).status_code == 401
        assert len(door.engines["a"].requests) == 1 and len(door.state.inflight) == 0
        assert door.state.fleet.view(0.0).loads[0].inflight == 0
        for _ in range(100):
            if door.engines["a"].disconnects:
                break
            await asyncio.sleep(0.02)
        assert door.engines["a"].disconnects == 1


async def test_what_has_no_byte_yet_goes_to_a_place_that_is_still_allowed():
    async with open_front_door({"a": "eu", "b": "us"}) as door:
        waiting = asyncio.create_task(door.chat("hang", headers={"x-tidegate-residency": "local"}))
        while not (reached := next((name for name, engine in door.engines.items() if engine.requests), None)):
            await asyncio.sleep(0.01)
        other = "b" if reached == "a" else "a"
        zone = {"a": "eu", "b": "us"}[other]
        assert door.router.take_policy(source_with(door, only(zone)))
        while not door.engines[other].requests:
            await asyncio.sleep(0.01)
        waiting.cancel()
        assert len(door.engines[reached].requests) == 1
        view = door.state.fleet.view(0.0)
        assert all(load.down_until == 0.0 and load.failures == 0 for load in view.loads)


async def test_a_relaxed_policy_is_for_new_requests_only_and_a_stream_it_allows_goes_on():
    async with open_front_door({"a": "eu", "b": "us"}, keys=[{**OPEN, "residency": "eu"}]) as door:
        body = {"model": "m", "messages": [{"role": "user", "content": "stall"}], "stream": True}
        async with door.client.stream("POST", "/v1/chat/completions", json=body) as response:
            stream = response.aiter_raw()
            await anext(stream)
            [ticket] = door.state.inflight._tickets
            before = door.state.policy.place_of(ticket.label)
            assert door.router.take_policy(source_with(door, {"keys": [OPEN]}))
            assert door.state.policy.place_of(ticket.label) == before
            assert ticket.exchange is not None and not ticket.exchange.ended


async def test_a_faulty_policy_keeps_the_old_one_and_everybody_is_told(caplog):
    async with open_front_door({"a": "eu"}) as door:
        epoch = door.state.policy.epoch
        for faulty in ({"keys": "nonsense"}, {"listen": {"port": 1}}, [1], {"residency": {"default": "nowhere"}}):
            with caplog.at_level(logging.ERROR, "tidegate.router"):
                assert door.router.take_policy(source_with(door, faulty)) is None
        assert door.state.policy.epoch == epoch and (await door.chat("hello")).status_code == 200
        ready = (await door.client.get("/readyz")).json()
        assert ready["epoch"] == epoch and "refused" in ready["policy"]
        assert 'tidegate_policy_stale{router="router-test"} 1.0' in (await door.client.get("/metrics")).text
        assert len([record for record in caplog.records if "policy refused" in record.message]) == 4
        assert door.router.take_policy(source_with(door, None)) is None
        assert "policy" not in (await door.client.get("/readyz")).json()
        assert 'tidegate_policy_stale{router="router-test"} 0.0' in (await door.client.get("/metrics")).text


async def test_a_policy_that_changes_while_a_body_comes_is_the_one_that_counts():
    async with open_front_door({"a": "eu", "b": "us"}) as door:
        body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hello"}]}).encode()
        entered = asyncio.Event()

        async def slowly():
            yield body[:10]
            entered.set()
            await asyncio.sleep(0.2)
            yield body[10:]

        headers = {"content-type": "application/json", "content-length": str(len(body))}
        asking = asyncio.create_task(door.client.post("/v1/chat/completions", content=slowly(), headers=headers))
        await entered.wait()
        await asyncio.sleep(0.05)
        assert door.router.take_policy(source_with(door, only("us")))
        answer = await asking
        assert answer.status_code == 200 and door.receipt(answer)["attempts"][0]["zone"] == "us"


async def test_a_follow_up_stays_where_its_conversation_was():
    async with open_front_door({"a": "eu", "b": "us"}) as door:
        first = [{"role": "user", "content": "hello"}]
        told = await door.client.post(
            "/v1/chat/completions", json={"model": "m", "messages": first}, headers={"x-tidegate-residency": "us"}
        )
        assert told.status_code == 200
        for turn in range(4):
            first = [*first, {"role": "assistant", "content": "hi"}, {"role": "user", "content": f"hello {turn}"}]
            answer = await door.client.post("/v1/chat/completions", json={"model": "m", "messages": first})
            receipt = door.receipt(answer)
            assert receipt["attempts"][0]["zone"] == "us" and receipt["label_sources"]["conversation"] == "conversation"


async def test_a_remote_url_is_refused_before_anything_is_sent():
    async with open_front_door({"a": "eu"}, zones={"eu": {}, "outside": {"external": True}}) as door:
        part = {"type": "image_url", "image_url": {"url": "https://x.example/a.png"}}
        body = {"model": "m", "messages": [{"role": "user", "content": [part]}]}
        answer = await door.client.post("/v1/chat/completions", json=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "residency_denied")
        assert door.engines["a"].requests == []


def test_a_policy_file_is_whole_or_it_is_none(tmp_path):
    path = tmp_path / "policy.yaml"
    whole = "residency:\n  tags:\n    phi:\n      process: [eu]\n      require:\n      - baa\nslo: {ttft_ms: 7}\n...\n"
    path.write_text(whole)
    assert read_policy_file(path) == yaml.safe_load(whole)
    for end in range(len(whole)):
        path.write_text(whole[:end])
        with pytest.raises(ConfigError):
            read_policy_file(path)
    values = ("2026-02-30", "!!int x", "!!float x", "!!timestamp x", "{[a]: 1}", "[" * 3000)
    for wrong in ("a: 1\na: 2\n...\n", "a: [\n...\n", *(f"a: {value}\n...\n" for value in values)):
        path.write_text(wrong)
        with pytest.raises(ConfigError):
            read_policy_file(path)
    with pytest.raises(ConfigError):
        read_policy_file(tmp_path / "missing")


def test_layers_replace_whole_keys_and_only_those_that_need_no_restart(tmp_path):
    (tmp_path / "policy.yaml").write_text("slo: {ttft_ms: 7}\nspill: {enabled: false}\n...\n")
    base = make_config().model_dump(mode="json", exclude_none=True)
    source = PolicySource({**base, "policy_file": "policy.yaml"}, tmp_path)
    first = source.load()
    assert (first.config.slo.ttft_ms, first.policy.spill_enabled) == (7, False) and not source.changed()
    source.offer({"slo": {"ttft_ms": 9}})
    second = source.load()
    assert (second.config.slo.ttft_ms, second.policy.spill_enabled) == (9, False)
    assert second.policy.epoch != first.policy.epoch
    (tmp_path / "policy.yaml").write_text("slo: {ttft_ms: 8}\n...\n")
    assert source.changed()
    assert source.load().policy.spill_enabled and not source.changed()
    for part in ({"models": []}, {"residency": {"zone_label": "other"}}):
        with pytest.raises(ConfigError, match="cannot change while engines run"):
            merge(base, part, "here")


def test_break_glass_is_read_anew_and_a_bad_line_refuses_the_whole(tmp_path):
    base = make_config().model_dump(mode="json", exclude_none=True)
    approvers = {"a": "11" * 32, "b": "22" * 32}
    source = PolicySource({**base, "break_glass": {"file": "glass", "approvers": approvers}}, tmp_path)
    assert source.load().policy.keys
    (tmp_path / "glass").write_text('{"id": "x"}\n')
    assert source.changed()
    with pytest.raises(ConfigError, match="line 1"):
        source.load()


async def test_fixed_targets_that_a_policy_drops_are_gone_at_once():
    async with open_front_door({"a": "eu", "b": "us"}) as door:
        left = [target for target in args_of(door)["targets"] if target["id"] == "b"]
        assert door.router.take_policy(source_with(door, {"targets": left}))
        assert [target.id for target in door.state.fleet.membership.targets] == ["b"]
        door.state.fleet.update([Report(target) for target in fixed_targets(door.state.config, None, "")])
        assert (await door.chat("hello")).status_code == 200 and not door.engines["a"].requests


def test_whatever_stands_in_a_layer_it_is_used_or_refused(tmp_path, monkeypatch):
    base = make_config().model_dump(mode="json", exclude_none=True)
    source = PolicySource(base, tmp_path)
    key = {"id": "k", "sha256": "1" * 64}
    for odd in (
        {"keys": [{**key, "daily_usd": float("inf")}]},
        {"keys": [{**key, "expires": "\ud800"}]},
        {"keys": [{**key, "cidr": ["\ud800"]}]},
        {"slo": {"ttft_ms": float("inf")}},
        {"targets": [{"id": "s", "kind": "server", "vouched": True, "zone": "eu", "models": {"m": "m"}, "url": "https://[::1"}]},
        {
            "targets": [
                {"id": "s", "kind": "server", "vouched": True, "zone": "eu", "models": {"m": "m"}, "url": "http://x:99999"}
            ]
        },
    ):
        source.offer(odd)
        with pytest.raises(ConfigError):
            source.load()
    source.offer(None)
    monkeypatch.setattr("router.policy_source.compile_policy", lambda *_: 1 / 0)
    with pytest.raises(ConfigError, match="ZeroDivisionError at <lambda>"):
        source.load()
