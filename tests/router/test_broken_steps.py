"""Engines that die under a cascade, a vote or a shadowed request: of what the client has not seen, nothing is lost yet."""

from __future__ import annotations

import asyncio
import functools
import json
from typing import Any

import pytest

from tests.router.conftest import open_front_door
from tests.router.simulated_engine import LONG as LONG_BODY
from tests.router.simulated_engine import STREAM_HEAD, answer, chunk
from tests.router.talking_engine import TalkingEngine
from tests.router.test_cascade import LARGE, PRICES, SURE, ask, text_of
from tests.router.test_experiments import SHADOW
from tests.router.test_voting import MAY

SHADOWED = {"share": 0.0, "experiments": [SHADOW]}
LONG = tuple((f"w{i} ", -0.01) for i in range(60))


class Breaking(TalkingEngine):
    """Says so many tokens of a stream, or half of an answer, and is gone."""

    breaks_after = 1

    async def _behave(self, wish: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        body = self.requests[-1]["body"]
        if not body.get("stream"):
            writer.write(answer(json.dumps(self.whole(body)).encode() + b" " * LONG_BODY)[:-LONG_BODY])
        else:
            writer.write(STREAM_HEAD)
            for said in self.says[: self.breaks_after]:
                choice = {"index": 0, "delta": {"content": said[0]}, "finish_reason": None}
                choice["logprobs"] = self.logprobs(body, (said,))
                writer.write(chunk(b"data: " + json.dumps({"id": "x", "choices": [choice]}).encode() + b"\n\n"))
        await writer.drain()
        return False


def breaking(small: TalkingEngine, large: TalkingEngine, **changes: Any):
    engines = {"small": small, "large": large}
    more = {"complexity": {"cascade": {"enabled": True}}, **changes}
    tiers = {"small": "small", "large": "large"}
    return open_front_door({"small": "eu", "large": "eu"}, engines=engines, tiers=tiers, prices=PRICES, **more)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_small_answer_that_breaks_unseen_is_asked_of_the_larger_model(stream):
    async with breaking(Breaking(*SURE), TalkingEngine(*LARGE)) as door:
        response = await ask(door, stream=stream)
        said = text_of(response.text) if stream else response.json()["choices"][0]["message"]["content"]
        assert (response.status_code, said) == (200, "It is Paris.") and "error" not in response.text
        assert "the small model broke off" in response.headers["x-tidegate-reason"]
        receipt = door.receipt(response)
        assert [step["name"] for step in receipt["steps"]] == ["first", "larger"] and receipt["code"] == ""


async def test_where_the_larger_model_breaks_too_the_client_gets_an_error_and_no_broken_connection():
    async with breaking(Breaking(*SURE), Breaking(*LARGE)) as door:
        response = await ask(door)
        assert response.status_code == 502 and response.json()["error"]["code"] == "upstream_error"
        receipt = door.receipt(response)
        assert receipt["code"] == "upstream_error" and len(receipt["steps"]) == 2
        streamed = await ask(door, stream=True)
        assert streamed.status_code == 200 and '"upstream_error"' in streamed.text and "[DONE]" not in streamed.text


async def test_a_stream_that_breaks_once_it_is_passed_on_ends_in_an_error():
    small = Breaking(*LONG)
    small.breaks_after = 50
    async with breaking(small, TalkingEngine(*LARGE)) as door:
        response = await ask(door, stream=True)
        events = [line for line in response.text.split("\n\n") if line]
        assert '"upstream_error"' in events[-1] and "[DONE]" not in response.text and response.text.count("w49 ") == 1
        assert door.receipt(response)["code"] == "upstream_error"


async def test_where_every_voter_breaks_the_client_gets_an_error_and_no_broken_connection():
    async with breaking(Breaking(*SURE), Breaking(*LARGE), complexity={}, keys=[MAY]) as door:
        response = await door.chat("2 + 2?", model="auto", headers={"x-tidegate-mode": "vote"})
        assert response.status_code == 502 and response.json()["error"]["code"] == "upstream_error"
        assert door.receipt(response)["code"] == "upstream_error"
        # One of them refuses, the other breaks: what the first says is an answer, if not a good one.
        door.engines["large"].status = "400 Bad Request"
        door.engines["large"]._behave = functools.partial(TalkingEngine._behave, door.engines["large"])
        response = await door.chat("2 + 2?", model="auto", headers={"x-tidegate-mode": "vote"})
        assert response.status_code == 400


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_breaks_has_no_shadow(stream):
    async with breaking(Breaking(*SURE), TalkingEngine(*LARGE), complexity=SHADOWED) as door:
        response = await ask(door, stream=stream)
        assert response.status_code == (200 if stream else 502) and '"upstream_error"' in response.text
        assert (await door.chat("hello", model="m-large")).status_code == 200, "a turn of the loop, and one more"
        assert len(door.engines["large"].requests) == 1 and door.state.shadows_running == 0
