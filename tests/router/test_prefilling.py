"""Pairs: one engine computes the prompt, the other takes it over and answers; what fails in the first costs no request."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from pathlib import Path

import pytest

from router import prefilling
from router.compiled import compile_policy
from router.config import ConfigError, parse_config
from tests.router.conftest import open_front_door
from tests.router.simulated_engine import JSON_ANSWER, SimulatedEngine, answer

KEPT = {
    "do_remote_prefill": True,
    "remote_engine_id": "e",
    "remote_block_ids": [[1, 2]],
    "remote_host": "10.0.0.1",
    "remote_port": 5600,
}


class SimulatedHalf(SimulatedEngine):
    """Computes prompts as `mood` says."""

    def __init__(self, mood: str = "well") -> None:
        super().__init__()
        self.mood = mood

    async def _behave(self, wish, reader, writer):
        if self.mood == "well":
            writer.write(answer(json.dumps({**json.loads(JSON_ANSWER), "kv_transfer_params": KEPT}).encode()))
            return True
        return await super()._behave(self.mood, reader, writer)


def pair_of(half, **changes):
    return open_front_door({"a": "eu"}, halves={"a": half}, **changes)


async def until(true, seconds=30.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        await asyncio.sleep(0.005)


@pytest.mark.parametrize("stream", [False, True])
async def test_the_prompt_goes_to_one_half_and_the_answer_comes_from_the_other(stream):
    async with pair_of(half := SimulatedHalf()) as door:
        asked = {"stream": stream, "max_completion_tokens": 50, "min_tokens": 3, "temperature": 0.5}
        response = await door.chat("stream" if stream else "hello", **asked)
        assert response.status_code == 200
        first, second = half.requests[0]["body"], door.engines["a"].requests[0]["body"]
        assert first["kv_transfer_params"]["do_remote_decode"] and first["max_tokens"] == 1 and not first["stream"]
        assert not {"stream_options", "max_completion_tokens", "min_tokens"} & set(first) and first["temperature"] == 0.5
        assert second["kv_transfer_params"] == KEPT
        assert {name: second[name] for name in asked} == asked and second["messages"] == first["messages"]
        assert half.requests[0]["headers"]["x-request-id"] == response.headers["x-request-id"]
        assert "computed by the other half" in response.headers["x-tidegate-reason"]
        (attempt,) = door.receipt(response)["attempts"]
        assert attempt["reason"] == response.headers["x-tidegate-reason"] and attempt["ending"] == "complete"
        assert b'tidegate_prefills_total{outcome="taken_over",router="router-test",target="a"} 1.0' in door.state.metrics.render()


async def test_what_is_short_or_cannot_be_handed_over_is_computed_where_it_is_answered():
    async with pair_of(half := SimulatedHalf(), half_tokens=40) as door:
        assert (await door.chat("hello")).status_code == 200
        long = "hello " * 100
        for more in ({"n": 2}, {"echo": True}, {"prompt_logprobs": 1}, {"use_beam_search": True}):
            assert (await door.chat(long, **more)).status_code == 200
        for prompt in ([long, long], [[1] * 100], [None] * 100):
            body = {"model": "m", "prompt": prompt}
            assert (await door.client.post("/v1/completions", json=body)).status_code in (200, 400)
        assert half.requests == []
        assert (await door.client.post("/v1/completions", json={"model": "m", "prompt": long})).status_code == 200
        assert (await door.client.post("/v1/completions", json={"model": "m", "prompt": [1] * 400})).status_code == 200
        assert (await door.chat(long, n=1)).status_code == 200
        assert len(half.requests) == 3


@pytest.mark.parametrize("mood", ["die-before", "broken", "busy", "garbage", "hello", "cut-json", "no-length"])
async def test_a_half_that_fails_costs_nothing_but_its_time_and_is_left_alone(mood):
    async with pair_of(half := SimulatedHalf(mood)) as door:
        response = await door.chat("hello")
        assert response.status_code == 200
        assert "the half for prompts failed" in response.headers["x-tidegate-reason"]
        assert "kv_transfer_params" not in door.engines["a"].requests[0]["body"]
        asked = len(half.requests)
        assert (await door.chat("hello")).status_code == 200 and len(half.requests) == asked
        half.mood = "well"
        door.state.resting_halves.clear()
        response = await door.chat("hello")
        assert "computed by the other half" in response.headers["x-tidegate-reason"]


async def test_a_half_that_is_down_or_silent_costs_nothing_but_its_time():
    async with pair_of(half := SimulatedHalf("hang"), timeouts={"first_byte_s": 0.3}) as door:
        response = await door.chat("hello")
        assert response.status_code == 200 and "failed" in response.headers["x-tidegate-reason"]
        await half.stop()
        door.state.resting_halves.clear()
        response = await door.chat("hello")
        assert response.status_code == 200 and "failed" in response.headers["x-tidegate-reason"]


async def test_a_client_that_leaves_takes_the_prompt_with_it():
    async with pair_of(half := SimulatedHalf("hang")) as door:
        waiting = asyncio.create_task(door.chat("hello", headers={"x-request-id": "leaves-early"}))
        await until(lambda: half.requests)
        waiting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await waiting
        await until(lambda: half.disconnects and "leaves-early" in door.state.receipts)
        assert door.state.receipts.find("leaves-early")["code"] == "client_gone"
        assert door.engines["a"].requests == [] and len(door.state.inflight) == 0
        assert door.state.fleet.membership.targets and not door.state.resting_halves


async def test_a_deadline_counts_for_both_halves_together():
    async with pair_of(SimulatedHalf("hang")) as door:
        response = await door.chat("hello", headers={"x-request-timeout-ms": "300"})
        assert response.status_code == 504


async def test_a_policy_that_tightens_meanwhile_keeps_the_request_from_the_other_half():
    async with pair_of(half := SimulatedHalf("hang")) as door:
        waiting = asyncio.create_task(door.chat("hello"))
        await until(lambda: half.requests)
        state = door.state
        data = state.config.model_dump(exclude_unset=True)
        data["keys"] = [key for key in data["keys"] if key["id"] != "front"]
        config = parse_config(data)
        assert state.adopt(config, compile_policy(config, Path()), time.time()) == 1
        response = await waiting
        assert response.status_code == 403 and response.json()["error"]["code"] == "policy_revoked"
        await until(lambda: half.disconnects)
        assert door.engines["a"].requests == []


@pytest.mark.parametrize("name", ["kv_transfer_params", "ec_transfer_params"])
async def test_no_client_says_where_keys_and_values_come_from(name):
    async with open_front_door({"a": "eu"}) as door:
        for path, body in (
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hello"}]}),
            ("/v1/completions", {"prompt": "hello"}),
            ("/v1/responses", {"input": "hello"}),
            ("/v1/messages", {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 5}),
        ):
            for value in (KEPT, {}, "x"):
                response = await door.client.post(path, json={"model": "m", **body, name: value})
                assert response.status_code == 400 and response.json()["error"]["param"] == name, path
            assert (await door.client.post(path, json={"model": "m", **body, name: None})).status_code == 200
        assert all(request["body"].get(name) is None for request in door.engines["a"].requests)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "cloud", "vouched": False}, "prefill"),
        ({"task": "pooling"}, "prefill"),
        ({"prefill": {"url": "http://x/?a=b"}}, "base URL"),
        ({"prefill": {"url": "http://x", "tls": {}}}, "tls"),
        ({"prefill": {"url": "http://x", "min_tokens": 0}}, "min_tokens"),
        ({"prefill": {}}, "url"),
    ],
)
def test_a_pair_that_cannot_be_is_refused_by_name(change, said):
    target = {"id": "a", "kind": "server", "vouched": True, "url": "http://y", "zone": "eu", "models": {"m": "m"}}
    target |= {"prefill": {"url": "http://x"}, **change}
    with pytest.raises(ConfigError, match=said):
        parse_config({"zones": {"eu": {}}, "targets": [target]})


def test_an_answer_that_says_nothing_useful_is_no_hand_over():
    class Answer:
        status, held = 200, bytearray()

    for text in (
        b"",
        b"[]",
        b"{}",
        b'{"kv_transfer_params":null}',
        b'{"kv_transfer_params":{}}',
        b'{"kv_transfer_params":[1]}',
        b"\xff",
        b'{"kv_transfer_params":{"a":"\xff"}}',
        b'{"kv_transfer_params":{"a":' + b"[" * 3000,
    ):
        Answer.held = bytearray(text)
        assert prefilling.read_kept(Answer) is None
