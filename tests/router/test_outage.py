"""While an engine is being replaced its requests wait, as they would for a busy one; what cannot come up is refused at once."""

from __future__ import annotations

import asyncio

import pytest
from msgspec.structs import replace

from router.decide import decide
from router.outage import may_come_up
from router.placement.admission import DOWN_RETRY_S, AdmissionQueue, Ticket
from router.placement.drain import Drain
from router.placement.targets import Address, Kind, Load, Report, Target
from router.residency.label import Evidence
from tests.router.builders import NOW, make_facts, make_policy, make_target, make_view
from tests.router.conftest import open_front_door
from tests.router.test_waiting import until

MODELS = [{"id": "r", "source": "x/r", "replicas": [{"zone": "eu"}]}]


def replica(door, name: str, zone: str = "eu") -> Target:
    """A replica that Serve would report, at the port of a simulated engine."""
    mask = door.state.policy.vocabulary.zone_mask([zone])
    address = Address("127.0.0.1", door.engines["a"].port)
    return Target(name, f"{name}-1", Kind.REPLICA, zone, Evidence(mask, mask, 0), address, {"r": "r"})


async def test_requests_wait_while_serve_replaces_the_only_engine_and_go_when_it_is_back():
    async with open_front_door({"a": "eu"}, models=MODELS) as door:
        asked = [asyncio.create_task(door.chat("hello", model="r")) for _ in range(12)]
        await until(lambda: door.state.waiting.depth == 12)
        door.state.take_reports([Report(replica(door, "new"))])
        answers = await asyncio.gather(*asked)
        assert {answer.status_code for answer in answers} == {200}
        receipt = door.receipt(answers[0])
        assert receipt["waited_ms"] > 0 and receipt["held"] == "No allowed target is up at the moment."
        assert {attempt["zone"] for answer in answers for attempt in door.receipt(answer)["attempts"]} == {"eu"}


async def test_an_engine_of_another_zone_is_no_help_and_patience_ends_with_the_code_of_residency():
    async with open_front_door({"a": "eu"}, models=MODELS, slo={"max_wait_ms": 300}) as door:
        door.state.take_reports([Report(replica(door, "stray", "elsewhere"))])
        answer = await door.chat("hello", model="r", headers={"x-tidegate-residency": "eu"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "residency_capacity")
        assert float(answer.headers["retry-after"]) >= DOWN_RETRY_S
        assert door.engines["a"].requests == [] and door.receipt(answer)["waited_ms"] >= 250


async def test_what_no_place_of_the_configuration_could_serve_is_refused_at_once():
    async with open_front_door({"a": "eu"}, models=MODELS) as door:
        denied = await door.chat("hello", model="r", headers={"x-tidegate-residency": "elsewhere"})
        assert denied.status_code == 403
        door.state.take_reports([])
        gone = await door.chat("hello", model="m")
        assert gone.status_code == 503, "nobody brings back a server that we did not start"
        assert door.state.waiting.depth == 0 and door.receipt(denied)["waited_ms"] == door.receipt(gone)["waited_ms"] == 0


async def test_without_a_queue_an_outage_is_refused_at_once():
    async with open_front_door({"a": "eu"}, models=MODELS, admission={"max_waiting": 0}) as door:
        answer = await door.chat("hello", model="r")
        assert answer.status_code == 503 and "retry-after" in answer.headers and door.receipt(answer)["waited_ms"] == 0


async def test_a_client_with_a_deadline_waits_no_longer_than_that():
    async with open_front_door({"a": "eu"}, models=MODELS) as door:
        answer = await door.chat("hello", model="r", headers={"x-request-timeout-ms": "300"})
        assert answer.status_code == 504 and answer.json()["error"]["code"] == "deadline_exceeded"


@pytest.mark.parametrize(
    ("load", "changes", "helps"),
    [
        (Load(down_until=NOW + 2), {}, True),
        (Load(inflight=900, clear_at=NOW + 900), {}, True),
        (Load(), {"excluded": frozenset({"s-1"})}, False),
        (Load(), {"prompt_bytes": 10**9}, False),
    ],
)
def test_a_server_that_is_paused_or_full_is_worth_waiting_for_and_one_that_failed_or_is_too_small_is_not(load, changes, helps):
    targets = [{"id": "s", "kind": "server", "vouched": True, "url": "http://10.0.0.7:1", "zone": "eu", "models": {"m": "m"}}]
    policy = make_policy(models=[], residency={}, targets=targets)
    server = make_target(policy, "s", "eu", "m", Kind.SERVER, context_tokens=4096)
    facts = make_facts(policy, model="m", **changes)
    assert may_come_up(facts, policy, make_view((server, load)), NOW) is helps


def test_an_engine_too_small_for_the_prompt_is_not_waited_for_even_if_serve_replaces_it():
    policy = make_policy()
    target = make_target(policy, "e", "eu", context_tokens=100)
    assert not may_come_up(make_facts(policy, prompt_bytes=10**6), policy, make_view((target, Load())), NOW)
    assert may_come_up(make_facts(policy), policy, make_view(), NOW)


def test_a_long_prompt_is_not_refused_for_its_own_work_and_a_wrong_prediction_can_be_found_out():
    """An engine that seemed a thousand times slower than it is would never be asked again."""
    policy = make_policy(slo={"max_wait_ms": 5000})
    target = make_target(policy, "e", "eu")
    facts = make_facts(policy, prompt_tokens=4000)
    idle = make_view((target, Load(slowdown=1000.0)))
    assert decide(facts, policy, idle, NOW).chosen is not None
    assert decide(replace(facts, timeout_s=3.0), policy, idle, NOW).refusal.status == 503
    behind = make_view((target, Load(slowdown=1000.0, inflight=1, clear_at=NOW + 30)))
    assert decide(facts, policy, behind, NOW).refusal.status == 503


def test_an_outage_says_nothing_of_how_fast_a_queue_drains():
    drain = Drain()
    for second in range(10):
        drain.waits(NOW + second)
        drain.waits(NOW + second)
        drain.served(NOW + second + 0.5)
        drain.leaves(NOW + second + 0.5)
    before = drain.rate(NOW + 10)
    drain.stalls(NOW + 10, True)
    assert drain.rate(NOW + 70) == before
    drain.stalls(NOW + 70, False)
    assert drain.rate(NOW + 90) < before


def test_those_who_wait_for_an_engine_to_come_back_are_not_refused_for_each_other():
    queue = AdmissionQueue()
    for number in range(50):
        queue.offer(Ticket(str(number), "t", NOW, 0.1, NOW + 1, NOW + 20), NOW)
        queue.walk(NOW + 0.1 * number, lambda ticket, barred: 0)
    last = Ticket("last", "t", NOW + 6, 0.1, NOW + 7, NOW + 26)
    queue.offer(last, NOW + 6)
    assert queue.expected_wait(last, NOW + 6) == 0.0
    assert queue.retry_after(last.pool, NOW + 6) == DOWN_RETRY_S
