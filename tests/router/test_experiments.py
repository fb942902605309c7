"""A/B and shadow experiments through a real router: who is in, what is recorded, and that a shadow changes nothing."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from router.complexity.experiment import fraction_of, unit_of
from router.config import ConfigError
from router.ledger import records
from tests.router.builders import digest, make_config
from tests.router.conftest import KEY, FrontDoor, open_front_door
from tests.router.talking_engine import TalkingEngine

AB = {"name": "more-large", "share": 0.5, "kind": "ab", "share_to_large": 1.0}
SHADOW = {"name": "look", "share": 1.0, "kind": "shadow", "share_to_large": 1.0}


class Events:
    """Stands where the audit log stands, and keeps what is said."""

    healthy = True
    losses = 0

    def __init__(self) -> None:
        self.said: list[tuple[str, str, Any]] = []
        self.ended_ids: list[str] = []
        self._more = asyncio.Event()

    def decided(self, *_: Any) -> None: ...

    def ended(self, receipt: Any) -> None:
        self.ended_ids.append(receipt.request_id)

    def event(self, event: str, subject: str, data: Any) -> None:
        self.said.append((event, subject, data))
        self._more.set()

    def turned_away(self, _code: str) -> None: ...

    def refused(self, *_: Any) -> None: ...

    def close(self, *_: Any) -> None: ...

    async def shadow(self, subject: str) -> dict[str, Any]:
        async with asyncio.timeout(10):
            while True:
                for event, said_of, data in self.said:
                    if event == records.SHADOW and said_of == subject:
                        return data
                self._more.clear()
                await self._more.wait()


@contextlib.asynccontextmanager
async def experiment(*trials: dict[str, Any], zones: dict[str, str] | None = None, **changes: Any) -> AsyncIterator[FrontDoor]:
    engines = {"small": TalkingEngine(("four", -0.1)), "large": TalkingEngine(("five", -0.2))}
    section = {"share": 0.0, "experiments": list(trials), **changes.pop("complexity", {})}
    tiers = {"small": "small", "large": "large"}
    zones = zones or {"small": "eu", "large": "eu"}
    async with open_front_door(zones, engines=engines, tiers=tiers, complexity=section, **changes) as door:
        door.state.audit = Events()
        yield door


async def test_a_share_is_answered_by_the_other_setting_and_a_conversation_stays_where_it_is():
    async with experiment(AB) as door:
        inside = 0
        for turn in range(40):
            text = f"What is {turn} + 1?"
            expected = fraction_of("more-large", unit_of({"messages": [{"role": "user", "content": text}]}, "front", "")) < 0.5
            first = await door.chat(text, model="auto")
            receipt = door.receipt(first)
            assert (first.headers["x-tidegate-model"] == "m-large") is expected
            assert receipt["trial"] == ("more-large" if expected else "")
            follow_up = [
                {"role": "user", "content": text},
                {"role": "assistant", "content": "x"},
                {"role": "user", "content": "?"},
            ]
            again = await door.client.post("/v1/chat/completions", json={"model": "auto", "messages": follow_up})
            assert again.headers["x-tidegate-model"] == first.headers["x-tidegate-model"]
            inside += expected
        assert 10 < inside < 30


async def test_an_experiment_may_have_a_cascade_of_its_own():
    trial = {"name": "careful", "share": 1.0, "kind": "ab", "cascade": {"enabled": True, "mean_logprob": -0.05}}
    async with experiment(trial) as door:
        response = await door.chat("2 + 2?", model="auto")
        assert response.headers["x-tidegate-model"] == "m-large"
        receipt = door.receipt(response)
        assert (receipt["trial"], receipt["mode"]) == ("careful", "cascade")
    off = {**trial, "cascade": {"enabled": False}}
    async with experiment(off, complexity={"cascade": {"enabled": True, "mean_logprob": -0.05}}) as door:
        assert door.receipt(await door.chat("2 + 2?", model="auto"))["mode"] == ""


async def test_a_pinning_rule_is_in_no_experiment():
    rules = [{"name": "short", "when": {}, "tier": "small"}]
    async with experiment({**AB, "share": 1.0}, complexity={"rules": rules}) as door:
        response = await door.chat("2 + 2?", model="auto")
        assert response.headers["x-tidegate-model"] == "m-small" and door.receipt(response)["trial"] == ""


@pytest.mark.parametrize("stream", [False, True])
async def test_a_shadow_is_asked_after_the_answer_and_changes_nothing(stream):
    async with experiment(SHADOW) as door:
        response = await door.chat("2 + 2?", model="auto", stream=stream)
        said = response.text if stream else response.json()["choices"][0]["message"]["content"]
        assert "four" in said and response.headers["x-tidegate-model"] == "m-small"
        assert "logprobs" not in door.engines["small"].requests[0]["body"]
        compared = await door.state.audit.shadow(response.headers["x-request-id"])
        assert compared | {"differs": True, "agrees": False, "tier": "large", "trial": "look"} == compared
        shadow = door.engines["large"].requests[0]["body"]
        assert shadow["logprobs"] is True and not shadow["stream"]
        assert "four" not in repr(door.state.audit.said) and "five" not in repr(door.state.audit.said)
        main = door.receipt(response)
        assert main["completion_tokens"] == 1 and main["trial"] == "" and len(main["attempts"]) == 1
        own = door.state.receipts.find(door.state.audit.ended_ids[-1])
        assert (own["mode"], own["trial"], own["attempts"][0]["target"]) == ("shadow", "look", "large")
        assert door.state.shadows_running == 0 and not len(door.state.inflight)


async def test_a_shadow_that_agrees_or_would_choose_the_same_says_so():
    async with experiment(SHADOW) as door:
        door.engines["large"].says = (("Four.", -0.1),)
        response = await door.chat("2 + 2?", model="auto")
        assert (await door.state.audit.shadow(response.headers["x-request-id"]))["agrees"] is True
    async with experiment({**SHADOW, "share_to_large": 0.0}) as door:
        response = await door.chat("2 + 2?", model="auto")
        assert (await door.state.audit.shadow(response.headers["x-request-id"]))["differs"] is False
        assert not door.engines["large"].requests


async def test_a_shadow_obeys_the_label():
    tags = {"inside": {"process": ["eu"], "store": ["eu"]}}
    keys = [{"id": "front", "sha256": digest(KEY), "residency": "inside"}]
    zones = {"small": "eu", "large": "us"}
    async with experiment(SHADOW, zones=zones, residency={"tags": tags, "default": "inside"}, keys=keys) as door:
        response = await door.chat("2 + 2?", model="auto")
        compared = await door.state.audit.shadow(response.headers["x-request-id"])
        assert not door.engines["large"].requests
        assert compared["large"] == 0, "what may have it is the small model, whatever tier was wished for"


async def test_a_slow_shadow_delays_nobody_and_takes_no_limit():
    keys = [{"id": "front", "sha256": digest(KEY), "concurrent_requests": 1, "tokens_per_minute": 60}]
    async with experiment(SHADOW, keys=keys) as door:
        gate = asyncio.Event()
        behave = door.engines["large"]._behave

        async def slowly(*arguments: Any) -> bool:
            await gate.wait()
            return await behave(*arguments)

        door.engines["large"]._behave = slowly
        for turn in range(3):
            response = await asyncio.wait_for(door.chat(f"{turn} + 2?", model="auto", max_tokens=4), 5)
            assert response.status_code == 200
        gate.set()
        await door.state.audit.shadow(response.headers["x-request-id"])


async def test_a_failed_answer_has_no_shadow():
    async with experiment(SHADOW) as door:
        door.engines["small"].status = "400 Bad Request"
        assert (await door.chat("2 + 2?", model="auto")).status_code == 400
        assert not door.engines["large"].requests and door.state.shadows_running == 0


@pytest.mark.parametrize("wrong", [
    {"name": "x", "share": 0.1}, {**AB, "max_loss": 0.1}, {**SHADOW, "cascade": {}}, {"name": "x", "share": 0.1, "cascade": {}},
])  # fmt: skip
def test_experiments_without_a_clear_setting_are_refused(wrong):
    with pytest.raises(ConfigError, match=r"experiment|shadow"):
        make_config(complexity={"experiments": [wrong]})


def test_two_experiments_of_one_name_are_refused():
    with pytest.raises(ConfigError, match="two experiments"):
        make_config(complexity={"experiments": [AB, AB]})
