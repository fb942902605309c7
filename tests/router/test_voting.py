"""Votes through a real router: who may ask, what wins, what it costs, and that no voter is outside the label."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from router.config import ConfigError
from tests.router.builders import digest, make_config
from tests.router.conftest import KEY, OTHER_KEY, FrontDoor, open_front_door
from tests.router.talking_engine import TalkingEngine

ASK = {"model": "auto", "messages": [{"role": "user", "content": "2 + 2?"}]}
MAY = {"id": "front", "sha256": digest(KEY), "vote": True}
MAY_NOT = {"id": "other", "sha256": digest(OTHER_KEY)}


@contextlib.asynccontextmanager
async def voting(*says: str, zones: dict[str, str] | None = None, **changes: Any) -> AsyncIterator[FrontDoor]:
    names = ("small", "medium", "large")
    engines = {name: TalkingEngine((said, -0.1)) for name, said in zip(names, says, strict=True)}
    more = {"complexity": {"tiers": list(names)}, "keys": [MAY, MAY_NOT], **changes}
    zones = zones or dict.fromkeys(names, "eu")
    async with open_front_door(zones, engines=engines, tiers={name: name for name in names}, **more) as door:
        yield door


async def ask(door: FrontDoor, mode: str = "vote", key: str = KEY, **more: Any) -> httpx.Response:
    headers = {"x-tidegate-mode": mode, "authorization": f"Bearer {key}"}
    return await door.client.post("/v1/chat/completions", json={**ASK, **more}, headers=headers)


def said(response: httpx.Response) -> str:
    return response.json()["choices"][0]["message"]["content"]


async def test_most_votes_win_and_all_are_paid_for():
    async with voting("4", "The answer is: 4", "5") as door:
        response = await ask(door)
        assert said(response) in ("4", "The answer is: 4") and "2 of 3 models agree" in response.headers["x-tidegate-reason"]
        assert response.headers["x-tidegate-model"] == "m-medium"
        receipt = door.receipt(response)
        assert receipt["mode"] == "vote" and [step["verdict"] for step in receipt["steps"]].count("won") == 1
        assert (receipt["prompt_tokens"], receipt["completion_tokens"], len(receipt["attempts"])) == (30, 3, 3)


async def test_where_nobody_agrees_the_best_model_answers():
    async with voting("4", "5", "6") as door:
        response = await ask(door)
        assert said(response) == "6" and "no two models agree" in response.headers["x-tidegate-reason"]


async def test_a_voter_that_fails_has_no_vote():
    async with voting("4", "4", "5") as door:
        door.engines["large"].status = "500 Internal Server Error"
        response = await ask(door)
        assert said(response) == "4" and "2 of 3" in response.headers["x-tidegate-reason"]


async def test_where_all_fail_the_client_gets_an_error():
    async with voting("4", "4", "5") as door:
        for engine in door.engines.values():
            engine.status = "500 Internal Server Error"
        response = await ask(door)
        assert response.status_code == 502 and response.json()["error"]["code"] == "upstream_error"
        assert door.receipt(response)["status"] == 502


async def test_no_voter_is_outside_the_label():
    tags = {"inside": {"process": ["eu"], "store": ["eu"]}}
    zones = {"small": "eu", "medium": "eu", "large": "us"}
    keys = [{**MAY, "residency": "inside"}]
    async with voting("4", "4", "5", zones=zones, residency={"tags": tags, "default": "inside"}, keys=keys) as door:
        assert said(await ask(door)) == "4" and not door.engines["large"].requests


@pytest.mark.parametrize(("more", "status"), [
    ({"mode": "shout"}, 400), ({"key": OTHER_KEY}, 403), ({"stream": True}, 400), ({"n": 2}, 400), ({"model": "m-small"}, 400),
])  # fmt: skip
async def test_what_cannot_be_voted_on_is_refused(more, status):
    async with voting("4", "4", "5") as door:
        response = await ask(door, **more)
        assert response.status_code == status and response.json()["error"]["code"] == "invalid_request"
        assert not any(engine.requests for engine in door.engines.values()) and not len(door.state.inflight)


@pytest.mark.parametrize(("mode", "status"), [("vote", 403), ("shout", 400)])
async def test_a_mode_is_refused_also_where_no_key_may_have_a_vote(mode, status):
    async with voting("4", "4", "5", keys=[MAY_NOT]) as door:
        response = await ask(door, mode, OTHER_KEY)
        assert (response.status_code, response.json()["error"]["param"]) == (status, "x-tidegate-mode")
        assert not any(engine.requests for engine in door.engines.values()) and not len(door.state.inflight)


async def test_a_key_with_one_model_cannot_have_a_vote_and_limits_hold():
    async with voting("4", "4", "5", keys=[{**MAY, "models": ["m-small"]}]) as door:
        assert (await ask(door)).status_code == 404
    async with voting("4", "4", "5", keys=[{**MAY, "tokens_per_minute": 60}]) as door:
        response = await ask(door, max_tokens=20)
        assert response.status_code == 429 and not any(engine.requests for engine in door.engines.values())
        plain = await door.client.post("/v1/chat/completions", json={**ASK, "max_tokens": 20})
        assert plain.status_code == 200, "what the refused vote had reserved is given back"


async def test_the_configured_voters_vote():
    complexity = {"tiers": ["small", "medium", "large"], "vote": {"models": ["m-small", "m-medium"]}}
    async with voting("4", "4", "5", complexity=complexity) as door:
        assert "2 of 2 models agree" in (await ask(door)).headers["x-tidegate-reason"] and not door.engines["large"].requests


def test_a_voter_that_nobody_serves_is_refused_when_the_configuration_is_read():
    with pytest.raises(ConfigError, match="unknown model `m-smal`"):
        make_config(complexity={"vote": {"models": ["m-smal"]}})
