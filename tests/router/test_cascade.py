"""The cascade through a real router: what the client gets, what it costs, and that no step leaves the label."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from router.config.complexity import Complexity
from tests.router.builders import digest
from tests.router.conftest import KEY, FrontDoor, open_front_door
from tests.router.simulated_engine import answer
from tests.router.talking_engine import TalkingEngine

SURE = (("Pa", -0.01), ("ris", -0.02))
UNSURE = (("Ly", -1.5), ("on", -2.0))
LARGE = (("It is ", -0.1), ("Paris.", -0.1))
ASK = {"model": "auto", "messages": [{"role": "user", "content": "What is the capital of France?"}]}
PRICES = {"small": {"prompt": 1.0, "completion": 2.0}, "large": {"prompt": 10.0, "completion": 20.0}}


@contextlib.asynccontextmanager
async def cascade(
    small: tuple[tuple[str, float], ...], large: tuple[tuple[str, float], ...] = LARGE, /, zones: dict[str, str] | None = None,
    cascade: dict[str, Any] | None = None, **changes: Any,
) -> AsyncIterator[tuple[FrontDoor, TalkingEngine, TalkingEngine]]:  # fmt: skip
    engines = {"small": TalkingEngine(*small), "large": TalkingEngine(*large)}
    zones = zones or {"small": "eu", "large": "eu"}
    tiers = {"small": "small", "large": "large"}
    complexity = {"cascade": {"enabled": True, **(cascade or {})}}
    more = {"complexity": complexity, **changes}
    async with open_front_door(zones, engines=engines, tiers=tiers, prices=PRICES, **more) as door:
        yield door, engines["small"], engines["large"]


async def ask(door: FrontDoor, path: str = "/v1/chat/completions", **more: Any) -> httpx.Response:
    return await door.client.post(path, json={**ASK, **more})


def text_of(events: str) -> str:
    found = [json.loads(line[6:]) for line in events.splitlines() if line.startswith("data: {")]
    return "".join(choice["delta"].get("content") or "" for event in found for choice in event["choices"])


async def test_a_sure_answer_is_the_clients_without_what_only_the_check_asked_for():
    async with cascade(SURE) as (door, small, large):
        response = await ask(door)
        assert response.json()["choices"][0]["message"]["content"] == "Paris"
        assert response.json()["choices"][0]["logprobs"] is None
        assert small.requests[0]["body"]["logprobs"] is True and not large.requests
        assert response.headers["x-tidegate-model"] == "m-small"
        assert "cascade: the small model's answer stands" in response.headers["x-tidegate-reason"]
        receipt = door.receipt(response)
        assert receipt["mode"] == "cascade" and [step["name"] for step in receipt["steps"]] == ["first"]
        assert receipt["steps"][0]["confidence"] == pytest.approx(0.985, abs=0.001)
        assert (receipt["prompt_tokens"], receipt["completion_tokens"], receipt["status"]) == (10, 2, 200)


async def test_a_doubtful_answer_is_replaced_and_both_are_paid_for():
    async with cascade(UNSURE) as (door, _, large):
        response = await ask(door)
        assert response.json()["choices"][0]["message"]["content"] == "It is Paris."
        assert response.headers["x-tidegate-model"] == "m-large"
        assert "asked `large`: unsure: mean log-probability -1.75" in response.headers["x-tidegate-reason"]
        assert "logprobs" not in large.requests[0]["body"]
        receipt = door.receipt(response)
        assert [attempt["target"] for attempt in receipt["attempts"]] == ["small", "large"]
        assert (receipt["prompt_tokens"], receipt["completion_tokens"]) == (20, 4)
        assert [step["cost_usd"] for step in receipt["steps"]] == pytest.approx([14e-6, 140e-6])
        assert all(step["ended"] >= step["started"] for step in receipt["steps"])


async def test_what_the_client_asked_for_itself_is_left_in():
    async with cascade(SURE) as (door, _, _):
        response = await ask(door, logprobs=True)
        assert response.json()["choices"][0]["logprobs"]["content"][0]["logprob"] == -0.01
        streamed = await ask(door, logprobs=True, stream=True)
        assert '"logprob": -0.01' in streamed.text or '"logprob":-0.01' in streamed.text


@pytest.mark.parametrize(("says", "why"), [
    ((("I'm sorry, I can't help with that.", -0.1),), "declined"),
    ((("  ", -0.1),), "no answer"),
])  # fmt: skip
async def test_refusals_and_empty_answers_escalate(says, why):
    async with cascade(says) as (door, _, _):
        response = await ask(door)
        assert why in response.headers["x-tidegate-reason"] and response.headers["x-tidegate-model"] == "m-large"


async def test_an_answer_that_is_not_the_json_asked_for_escalates():
    async with cascade((("Sure! {", -0.1),), (('{"a": 1}', -0.1),)) as (door, _, _):
        response = await ask(door, response_format={"type": "json_object"})
        assert response.json()["choices"][0]["message"]["content"] == '{"a": 1}'


async def test_a_cut_off_answer_escalates():
    async with cascade(SURE) as (door, small, _):
        small.finish = "length"
        assert "did not come to an end" in (await ask(door)).headers["x-tidegate-reason"]


async def test_completions_have_their_own_shape():
    async with cascade(SURE) as (door, small, _):
        body = {"model": "auto", "prompt": "The capital of France is"}
        response = await door.client.post("/v1/completions", json=body)
        assert response.json()["choices"][0] == {"index": 0, "finish_reason": "stop", "logprobs": None, "text": "Paris"}
        assert small.requests[0]["body"]["logprobs"] == 1


async def test_a_sure_stream_passes_whole_and_stripped():
    async with cascade(SURE * 30) as (door, _, large):
        response = await ask(door, stream=True)
        assert text_of(response.text) == "Paris" * 30 and response.text.endswith("data: [DONE]\n\n")
        assert '"logprob"' not in response.text and '"usage"' not in response.text and not large.requests
        assert door.receipt(response)["completion_tokens"] == 60


async def test_a_doubtful_stream_is_never_seen_by_the_client():
    async with cascade(UNSURE * 30, cascade={"hold_tokens": 8}) as (door, small, _):
        small.pause_after = 20
        response = await ask(door, stream=True)
        assert text_of(response.text) == "It is Paris." and response.text.endswith("data: [DONE]\n\n")
        assert response.headers["x-tidegate-model"] == "m-large"
        await asyncio.wait_for(small.reached_pause.wait(), 5)
        await asyncio.wait_for(small.cut.wait(), 5)  # else the small engine goes on generating for nobody
        receipt = door.receipt(response)
        assert [attempt["ending"] for attempt in receipt["attempts"]] == ["client_gone", "complete"] and receipt["status"] == 200
        first = receipt["steps"][0]
        assert first["estimated"] and 8 <= first["completion_tokens"] <= 20 and first["cost_usd"] > 0


async def test_the_hold_is_bounded_in_tokens_and_in_time():
    for bound in ({"hold_tokens": 4, "hold_ms": 60_000}, {"hold_tokens": 4096, "hold_ms": 50}):
        async with cascade(SURE * 10, cascade=bound) as (door, small, _):
            small.pause_after = 6
            async with door.client.stream("POST", "/v1/chat/completions", json={**ASK, "stream": True}) as response:
                pieces = response.aiter_text()
                first = await asyncio.wait_for(anext(pieces), 5)
                assert "Pa" in first and not small.release.is_set()
                small.release.set()
                rest = "".join([piece async for piece in pieces])
            assert text_of(first + rest) == "Paris" * 10


async def test_where_no_larger_model_answers_the_small_answer_stands():
    for stream in (False, True):
        async with cascade(UNSURE) as (door, _, large):
            large.status = "503 Service Unavailable"
            response = await ask(door, stream=stream)
            said = text_of(response.text) if stream else response.json()["choices"][0]["message"]["content"]
            assert (response.status_code, said) == (200, "Lyon")
            assert "no larger model answered" in response.headers["x-tidegate-reason"]
            assert len(door.receipt(response)["steps"]) == 2


async def test_no_step_leaves_the_label():
    tags = {"inside": {"process": ["eu"], "store": ["eu"]}}
    keys = [{"id": "front", "sha256": digest(KEY), "residency": "inside"}]
    zones = {"small": "eu", "large": "us"}
    async with cascade(UNSURE, zones=zones, residency={"tags": tags, "default": "inside"}, keys=keys) as (door, _, large):
        for stream in (False, True):
            response = await ask(door, stream=stream)
            assert response.status_code == 200 and response.headers["x-tidegate-zone"] == "eu"
        assert not large.requests


async def test_a_key_without_larger_models_has_no_cascade():
    keys = [{"id": "front", "sha256": digest(KEY), "models": ["m-small"]}]
    async with cascade(UNSURE, keys=keys) as (door, small, large):
        response = await ask(door)
        assert response.headers["x-tidegate-model"] == "m-small" and "logprobs" not in small.requests[0]["body"]
        assert door.receipt(response)["mode"] == "" and not large.requests


async def test_named_models_tiers_and_several_answers_are_not_touched():
    async with cascade(UNSURE) as (door, small, _):
        for more in ({"model": "m-small"}, {"n": 2}, {"model": "large"}):
            response = await ask(door, **more)
            assert door.receipt(response)["mode"] == ""
        assert all("logprobs" not in request["body"] for request in small.requests)


async def test_limits_count_every_step_and_can_forbid_the_second():
    keys = [{"id": "front", "sha256": digest(KEY), "tokens_per_minute": 55}]
    async with cascade(UNSURE, keys=keys) as (door, _, _):
        first = await ask(door, max_tokens=16)
        assert first.headers["x-tidegate-model"] == "m-large"
        second = await ask(door, max_tokens=16)
        assert second.headers["x-tidegate-model"] == "m-small" and "leave no room" in second.headers["x-tidegate-reason"]


async def test_samples_that_the_limits_forbid_take_nothing_from_them():
    keys = [{"id": "front", "sha256": digest(KEY), "tokens_per_minute": 55}]
    async with cascade(SURE, keys=keys, cascade={"agreement": 0.6, "samples": 3}) as (door, small, _):
        left = [int((await ask(door, max_tokens=16)).headers["x-ratelimit-remaining-tokens"]) for _ in range(2)]
        assert len(small.requests) == 2  # room for a second sample, but not for a third: neither was asked
        assert left[0] - left[1] == 12  # what the first request used


async def test_samples_that_call_a_tool_with_other_arguments_disagree():
    async with cascade(SURE, cascade={"agreement": 0.6, "samples": 3}) as (door, small, _):
        given = iter(
            ['{"city": "Paris", "days": 1}', '{"city": "Lyon"}', '{"city": "Nice"}'] + ['{"a": 1, "b": 2}', '{"b":2,"a":1}'] * 2
        )
        whole = small.whole

        def calling(body):
            found = whole(body)
            call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": next(given)}}
            found["choices"][0]["message"] = {"role": "assistant", "content": None, "tool_calls": [call]}
            return found

        small.whole = calling
        assert "1 of 3 samples agree" in (await ask(door)).headers["x-tidegate-reason"]
        assert "3 of 3 samples agree" in (await ask(door)).headers["x-tidegate-reason"]


async def test_a_client_that_leaves_stops_every_engine():
    async with cascade(UNSURE * 30) as (door, small, _):
        small.pause_after = 3
        task = asyncio.create_task(ask(door, stream=True))
        await asyncio.wait_for(small.reached_pause.wait(), 5)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await asyncio.wait_for(small.cut.wait(), 5)
        assert not len(door.state.inflight)


async def test_samples_that_disagree_escalate_and_samples_that_agree_do_not():
    async with cascade(SURE, cascade={"agreement": 0.6, "samples": 3}) as (door, small, large):
        response = await ask(door)
        assert "3 of 3 samples agree" in response.headers["x-tidegate-reason"] and len(small.requests) == 3
        assert [request["body"].get("temperature") for request in small.requests] == [None, 0.8, 0.8] and not large.requests
        assert door.receipt(response)["completion_tokens"] == 6
        answers = iter([(("Paris", -0.1),), (("Lyon", -0.1),), (("Nice", -0.1),)])
        whole = small.whole

        def another(body):
            small.says = next(answers)
            return whole(body)

        small.whole = another
        response = await ask(door)
        assert response.headers["x-tidegate-model"] == "m-large"
        assert "1 of 3 samples agree" in response.headers["x-tidegate-reason"]


async def test_a_policy_without_cascade_takes_effect_at_once():
    async with cascade(UNSURE) as (door, _, _):
        assert door.state.stages is not None
        off = door.state.config.model_copy(update={"complexity": Complexity()})
        door.state.adopt(off, door.state.policy, 0.0)
        assert door.state.stages is None
        response = await ask(door)
        assert response.headers["x-tidegate-model"] == "m-small" and door.receipt(response)["mode"] == ""


async def test_an_answer_with_half_a_character_in_it_passes_as_it_came():
    class Broken(TalkingEngine):
        async def _behave(self, wish: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
            writer.write(answer(b'{"choices": [{"index": 0, "message": {"content": "\xff"}}]}'))
            await writer.drain()
            return True

    async with cascade(SURE) as (door, small, _):
        small._behave = functools.partial(Broken._behave, small)
        response = await ask(door)
        assert response.status_code == 200 and response.content.endswith(b'"\xff"}}]}')
