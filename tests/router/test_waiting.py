"""Requests that wait in the live router: they go when there is room, in their order, and every other end has its answer."""

from __future__ import annotations

import asyncio
import contextlib
import time

import httpx
import pytest

from router.fixed_targets import fixed_targets
from router.placement.targets import Report
from tests.router.builders import digest
from tests.router.conftest import KEY, OTHER_KEY, open_front_door
from tests.router.test_policy_reload import source_with

FULL = {"slots": 1, "slo": {"ttft_ms": 400, "max_wait_ms": 20_000}}
"""One request at a time, and a second one is expected to be late behind it: it waits in the router."""
TENANTS = [
    {"id": "front", "sha256": digest(KEY), "tenant": "one"},
    {"id": "other", "sha256": digest(OTHER_KEY), "tenant": "two"},
]
OTHER = {"authorization": f"Bearer {OTHER_KEY}"}


async def until(condition):
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.005)


async def start(door, wish="gated", **more):
    """Send a request and return once the router has seen it: its task."""
    state, engines = door.state, door.engines.values()

    def seen():
        return state.waiting.depth + sum(len(engine.requests) for engine in engines) + len(state.receipts._receipts)

    before = seen()
    task = asyncio.create_task(door.chat(wish, **more))
    await until(lambda: seen() > before)
    return task


async def occupied(door):
    """A request that keeps the engine's one slot until its gate is released."""
    task = await start(door)
    assert door.state.waiting.depth == 0, "an idle target has room for whatever comes"
    return task


def hold_what_is_full(door, monkeypatch):
    """Whatever the router learns of the engine's pace: one request at a time."""
    full = lambda view, decision, *_: view.loads[decision.chosen.index].inflight > 0  # noqa: E731
    monkeypatch.setattr(door.state.waiting, "_is_held", full)


def shown(door, name):
    return [line for line in door.state.metrics.render().decode().splitlines() if line.startswith(name)]


async def test_who_waits_goes_when_the_slot_is_free_and_the_receipt_says_what_it_waited_for():
    async with open_front_door({"a": "eu"}, **FULL) as door:
        engine = door.engines["a"]
        first = await occupied(door)
        second = await start(door)
        assert (door.state.waiting.depth, len(engine.requests)) == (1, 1)
        assert 'tidegate_waiting{class="normal",router="router-test"} 1.0' in shown(door, "tidegate_waiting{")
        engine.gate.release()
        assert (await first).status_code == 200
        await until(lambda: len(engine.requests) == 2)
        engine.gate.release()
        answer = await second
        receipt = door.receipt(answer)
        assert answer.status_code == 200 and receipt["waited_ms"] > 0 and "predicted" in receipt["held"]
        assert answer.headers["x-tidegate-reason"].endswith(f"waited {receipt['waited_ms']} ms")
        assert door.receipt(first.result())["waited_ms"] == 0
        assert (
            door.state.waiting.depth == 0
            and 'tidegate_waits_total{class="normal",outcome="sent",router="router-test"} 1.0' in shown(door, "tidegate_waits")
        )
        assert shown(door, 'tidegate_waited_seconds_count{class="normal",router="router-test"}')


async def test_an_unloaded_cluster_never_comes_to_the_queue(monkeypatch):
    async with open_front_door({"a": "eu", "b": "eu"}) as door:
        monkeypatch.setattr(type(door.state.waiting), "takes", lambda *_: pytest.fail("the queue was asked"))
        for _ in range(20):
            assert (await door.chat("hello")).status_code == 200


async def test_what_needs_no_prefill_passes_those_who_wait(monkeypatch):
    async with open_front_door({"a": "eu"}, **FULL) as door:
        hold_what_is_full(door, monkeypatch)
        first, second = await occupied(door), await start(door)
        assert (await door.client.post("/tokenize", json={"model": "m", "prompt": "hello"})).status_code == 200
        assert door.state.waiting.depth == 1 and len(door.engines["a"].requests) == 2
        door.engines["a"].gate.release()
        door.engines["a"].gate.release()
        assert [(await task).status_code for task in (first, second)] == [200, 200]


async def test_a_client_that_leaves_while_it_waits_leaves_the_queue_and_reaches_no_engine():
    async with open_front_door({"a": "eu"}, **FULL) as door:
        first = await occupied(door)
        second = await start(door, headers={"x-request-id": "req-who-left"})
        second.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await second
        await until(lambda: door.state.waiting.depth == 0)
        receipt = door.state.receipts.find("req-who-left")
        assert receipt["code"] == "client_gone" and receipt["attempts"] == [] and len(door.state.inflight) == 1
        door.engines["a"].gate.release()
        await first
        assert len(door.engines["a"].requests) == 1


async def test_patience_ends_in_overloaded_with_a_time_to_come_back_and_a_deadline_in_its_own_code():
    async with open_front_door({"a": "eu"}, slots=1, slo={"ttft_ms": 300, "max_wait_ms": 2800}) as door:
        first = await occupied(door)
        waiting = [await start(door), await start(door, headers={"x-request-timeout-ms": "2300"})]
        assert door.state.waiting.depth == 2
        refused, late = [await task for task in waiting]
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "overloaded")
        assert int(refused.headers["retry-after"]) >= 1 and door.receipt(refused)["waited_ms"] >= 2700
        assert (late.status_code, late.json()["error"]["code"]) == (504, "deadline_exceeded")
        assert door.receipt(late)["waited_ms"] >= 2200
        door.engines["a"].gate.release()
        assert (await first).status_code == 200 and len(door.engines["a"].requests) == 1


async def test_a_full_queue_refuses_the_last_in_order_and_a_higher_class_displaces_it():
    async with open_front_door({"a": "eu"}, **FULL, admission={"max_waiting": 1}) as door:
        first = await occupied(door)
        low = await start(door, headers={"x-tidegate-priority": "low"})
        refused = await door.chat("gated", headers={"x-tidegate-priority": "low"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "overloaded") and "retry-after" in refused.headers
        normal = await start(door)
        displaced = await low
        assert displaced.status_code == 503 and door.receipt(displaced)["code"] == "overloaded"
        door.engines["a"].gate.release()
        door.engines["a"].gate.release()
        assert ((await first).status_code, (await normal).status_code) == (200, 200)


async def test_without_a_queue_requests_wait_in_the_engine_as_before():
    async with open_front_door({"a": "eu"}, **FULL, admission={"max_waiting": 0}) as door:
        tasks = [await start(door) for _ in range(3)]
        assert len(door.engines["a"].requests) == 3 and door.state.waiting.depth == 0
        for _ in tasks:
            door.engines["a"].gate.release()
        assert [(await task).status_code for task in tasks] == [200] * 3


async def test_higher_classes_go_first_and_tenants_take_turns(monkeypatch):
    async with open_front_door({"a": "eu"}, **FULL, keys=TENANTS) as door:
        engine = door.engines["a"]
        hold_what_is_full(door, monkeypatch)
        tasks = [await occupied(door)]
        for number in range(4):
            tasks.append(await start(door, user=f"one-{number}"))
        for number in range(2):
            tasks.append(await start(door, user=f"two-{number}", headers=OTHER))
        tasks.append(await start(door, user="low", headers={"x-tidegate-priority": "low", **OTHER}))
        for _ in tasks:
            served = len(engine.requests)
            engine.gate.release()
            await until(lambda served=served: len(engine.requests) > served or served == len(tasks))
        await asyncio.gather(*tasks)
        order = [request["body"].get("user", "first") for request in engine.requests]
        assert order[:2] == ["first", "one-0"] and order.index("two-1") < order.index("one-2") and order[-1] == "low"


async def test_another_tenant_passes_who_waits_for_the_pace_of_others(monkeypatch):
    async with open_front_door({"a": "eu"}, keys=TENANTS, slo={"ttft_ms": 4000, "tpot_ms": 50}) as door:
        room, engine, learned = door.state.waiting, door.engines["a"], door.state.fleet.calibration
        running = [await start(door) for _ in range(4)]
        learned.crowd_share = 1e-6
        held = {"two"}
        monkeypatch.setattr(room, "_is_held", lambda view, decision, *_: decision.basis.facts.key.tenant in held)
        polite = await start(door, "hello", headers=OTHER)
        assert room.depth == 1
        learned.crowd_share = 0.0
        assert (await door.chat("hello")).status_code == 200, "its place is not kept from those who harm nobody"
        assert room.depth == 1
        held.clear()
        assert (await polite).status_code == 200
        for _ in running:
            engine.gate.release()
        assert {answer.status_code for answer in await asyncio.gather(*running)} == {200}


async def test_a_target_that_comes_up_gets_the_best_waiting_request_at_once():
    async with open_front_door({"a": "eu", "b": "eu"}, **FULL) as door:
        targets = fixed_targets(door.state.config, None, "")
        door.state.take_reports([Report(targets[0])])
        first, second = await occupied(door), await start(door)
        assert door.state.waiting.depth == 1
        door.state.take_reports([Report(target) for target in targets])
        assert door.state.waiting.depth == 0
        for engine in door.engines.values():
            engine.gate.release()
        assert {(await task).headers["x-tidegate-target"] for task in (first, second)} == {"a", "b"}


async def test_a_policy_that_takes_the_key_back_refuses_who_waits_and_sends_nothing():
    async with open_front_door({"a": "eu"}, **FULL, keys=TENANTS) as door:
        first = await occupied(door)
        second = await start(door, headers=OTHER)
        assert door.router.take_policy(source_with(door, {"keys": [TENANTS[0]]}))
        refused = await second
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "policy_revoked")
        assert door.state.waiting.depth == 0
        door.engines["a"].gate.release()
        assert (await first).status_code == 200 and len(door.engines["a"].requests) == 1


async def test_a_tighter_label_moves_who_waits_to_where_it_may_still_go(monkeypatch):
    async with open_front_door({"a": "eu", "b": "us"}, **FULL, keys=TENANTS) as door:
        hold_what_is_full(door, monkeypatch)
        tasks = [await occupied(door), await occupied(door)]
        held = await start(door, headers=OTHER)
        assert door.router.take_policy(source_with(door, {"keys": [TENANTS[0], {**TENANTS[1], "residency": "us"}]}))
        assert door.state.waiting.depth == 1, "both targets are full"
        door.engines["a"].gate.release()
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        assert door.state.waiting.depth == 1, "the free one is in a zone its label has lost"
        door.engines["b"].gate.release()
        await until(lambda: len(door.engines["b"].requests) == 2)
        door.engines["b"].gate.release()
        assert (await held).headers["x-tidegate-zone"] == "us"
        await asyncio.gather(*tasks)
        assert len(door.engines["a"].requests) == 1


async def test_a_retry_waits_for_room_as_well():
    async with open_front_door({"a": "eu", "b": "eu"}, **FULL) as door:
        tasks = {door.engines["a"]: None, door.engines["b"]: None}
        busy = await start(door)
        taken = next(engine for engine in tasks if engine.requests)
        failing = await start(door, "busy")
        await until(lambda: door.state.waiting.depth == 1)
        taken.gate.release()
        assert (await busy).status_code == 200
        answer = await failing
        assert answer.status_code == 503 and len(door.receipt(answer)["attempts"]) == 2


async def test_a_drain_answers_or_refuses_everybody_who_waits(monkeypatch):
    async with open_front_door({"a": "eu"}, **FULL) as door:
        hold_what_is_full(door, monkeypatch)
        first = await occupied(door)
        waiting = [await start(door), await start(door)]
        drained = asyncio.create_task(door.router.drain())
        await until(lambda: door.state.draining)
        door.engines["a"].gate.release()
        assert (await first).status_code == 200
        await until(lambda: len(door.engines["a"].requests) == 2)
        done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        refused = done.pop().result()
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1"), refused.text
        door.engines["a"].gate.release()
        assert sorted([(await task).status_code for task in waiting]) == [200, 503]
        await drained


async def test_the_cluster_page_tells_depth_classes_and_the_longest_wait():
    async with open_front_door({"a": "eu"}, **FULL) as door:
        first, second = await occupied(door), await start(door, headers={"x-tidegate-priority": "low"})
        admin = f"http://127.0.0.1:{door.state.config.admin.port}"
        async with httpx.AsyncClient(base_url=admin) as client:
            told = (await client.get("/tidegate/v1/cluster")).json()["waiting"]
        assert told["depth"] == 1 and told["by_class"] == {"high": 0, "normal": 0, "low": 1} and told["longest_s"] >= 0
        door.engines["a"].gate.release()
        door.engines["a"].gate.release()
        await asyncio.gather(first, second)


async def test_nothing_is_lost_or_sent_twice_under_a_storm_with_clients_that_leave():
    async with open_front_door({"a": "eu", "b": "eu"}, **FULL) as door:
        tasks = [asyncio.create_task(door.chat("hello", user=str(number))) for number in range(120)]
        for number, task in enumerate(tasks):
            if number % 7 == 0:
                await asyncio.sleep(0.001)
                task.cancel()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        codes = [answer.status_code for answer in answers if isinstance(answer, httpx.Response)]
        assert set(codes) <= {200} and len(codes) >= 100
        users = [request["body"]["user"] for engine in door.engines.values() for request in engine.requests]
        assert len(users) == len(set(users)), "a request was sent twice"
        await until(lambda: len(door.state.inflight) == 0)
        assert door.state.waiting.depth == 0 and all(load.inflight == 0 for load in door.state.fleet.view(time.time()).loads)


async def test_bounds_and_shares_change_with_the_policy_and_an_unknown_field_is_refused():
    async with open_front_door({"a": "eu"}, **FULL) as door:
        first, second = await occupied(door), await start(door)
        assert door.router.take_policy(source_with(door, {"admission": {"max_waiting": 0}}))
        third = await start(door)
        assert door.state.waiting.depth == 1 and len(door.engines["a"].requests) == 2, "who waits keeps waiting, nobody else does"
        for _ in range(3):
            door.engines["a"].gate.release()
        assert [(await task).status_code for task in (first, second, third)] == [200] * 3
        assert door.router.take_policy(source_with(door, {"admission": {"shares": {"one": 0}}})) is None
        assert "admission.shares.one" in door.state.policy_alert
