"""Feedback through a real router: who may give it, what it teaches, and that no word of a prompt is kept."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from router.complexity.feedback import Rating
from router.complexity.learning import REPEAT_S, Learning, LearningSettings
from tests.router.builders import digest
from tests.router.conftest import KEY, OTHER_KEY, FrontDoor, open_front_door
from tests.router.talking_engine import TalkingEngine

PLAIN = (("fine", -0.1),)
PATH = "/tidegate/v1/feedback"
THIRD_KEY = "tg_third-key"


@contextlib.asynccontextmanager
async def learning(feedback: dict[str, Any] | None = None, **complexity: Any) -> AsyncIterator[FrontDoor]:
    engines = {"small": TalkingEngine(*PLAIN), "large": TalkingEngine(*PLAIN)}
    section = {"share": 0.0, "feedback": {"enabled": True, "explore": 0.0, **(feedback or {})}, **complexity}
    keys = [
        {"id": "front", "sha256": digest(KEY), "tenant": "clinic"},
        {"id": "other", "sha256": digest(OTHER_KEY), "tenant": "bank"},
        {"id": "third", "sha256": digest(THIRD_KEY), "tenant": "clinic"},
    ]
    tiers = {"small": "small", "large": "large"}
    zones = {"small": "eu", "large": "eu"}
    async with open_front_door(zones, engines=engines, tiers=tiers, complexity=section, keys=keys) as door:
        yield door


async def ask(door: FrontDoor, text: str = "What is new?") -> httpx.Response:
    return await door.chat(text, model="auto")


async def rate(door: FrontDoor, request_id: str, key: str = KEY, **said: Any) -> httpx.Response:
    return await door.client.post(PATH, json={"request_id": request_id, **said}, headers={"authorization": f"Bearer {key}"})


async def test_the_key_and_its_tenant_may_rate_and_nobody_else_learns_that_there_is_such_a_request():
    async with learning() as door:
        request_id = (await ask(door)).headers["x-request-id"]
        answer = await rate(door, request_id, score=0.5)
        assert answer.status_code == 200 and answer.json() == {"request_id": request_id, "score": 0.5, "learned": True}
        assert (await rate(door, request_id, THIRD_KEY, signal="accept")).json()["learned"]
        foreign, unknown = await rate(door, request_id, OTHER_KEY, score=0), await rate(door, "never-was-one", OTHER_KEY, score=0)
        assert foreign.status_code == unknown.status_code == 404
        assert foreign.json() == unknown.json() and foreign.json()["error"]["param"] == "request_id"
        assert (await rate(door, request_id, "tg_nobody", score=1)).status_code == 401


@pytest.mark.parametrize("said", [
    {}, {"score": 2}, {"score": "good"}, {"score": True}, {"score": 0.5, "signal": "copy"}, {"signal": "shrug"},
    {"score": 1, "comment": "the patient is"},
])  # fmt: skip
async def test_what_is_no_rating_is_refused_in_the_envelope(said):
    async with learning() as door:
        answer = await rate(door, (await ask(door)).headers["x-request-id"], **said)
        assert answer.status_code == 400 and answer.json()["error"]["code"] == "invalid_request"
        assert "patient" not in answer.text


async def test_keys_without_a_tenant_share_none():
    async with open_front_door({"a": "eu"}) as door:
        request_id = (await door.chat("hello")).headers["x-request-id"]
        assert (await rate(door, request_id, OTHER_KEY, score=1)).status_code == 404
        assert (await rate(door, request_id, score=1)).status_code == 200


async def test_not_json_and_too_much_are_refused():
    async with learning() as door:
        assert (await door.client.post(PATH, content=b"[1")).status_code == 400
        assert (await door.client.post(PATH, content=b" " * 100_000)).status_code == 413


async def test_bad_ratings_of_the_small_tier_and_good_ones_of_the_large_move_the_choice_of_this_tenant_only():
    async with learning(feedback={"explore": 0.5}) as door:
        book = door.state.complexity.learning
        dice = iter([0.1, 0.4] * 60)
        book._dice = lambda: next(dice, 0.9)
        for turn in range(120):
            response = await ask(door, f"What is new about number {turn}?")
            score = 1.0 if response.headers["x-tidegate-model"] == "m-large" else 0.0
            assert (await rate(door, response.headers["x-request-id"], score=score)).json()["learned"]
        assert (await ask(door, "What is new about it?")).headers["x-tidegate-model"] == "m-large"
        other = {"authorization": f"Bearer {OTHER_KEY}"}
        elsewhere = await door.chat("What is new about it?", model="auto", headers=other)
        assert elsewhere.headers["x-tidegate-model"] == "m-small"
        assert "number" not in repr(book.describe())


async def test_a_rating_counts_once():
    async with learning() as door:
        request_id = (await ask(door)).headers["x-request-id"]
        assert [(await rate(door, request_id, score=1)).json()["learned"] for _ in range(3)] == [True, False, False]


async def test_named_models_and_switched_off_learning_teach_nothing():
    async with learning() as door:
        named = await door.chat("hello", model="m-large")
        assert (await rate(door, named.headers["x-request-id"], score=1)).json()["learned"] is False
    async with learning(feedback={"enabled": False}) as door:
        assert door.state.stages is None and door.state.complexity.learning is None
        assert (await rate(door, (await ask(door)).headers["x-request-id"], score=1)).json()["learned"] is False


async def test_the_same_prompt_again_is_a_comment_on_the_answer_before():
    async with learning() as door:
        book = door.state.complexity.learning
        await ask(door, "What is new?")
        assert book.describe() == {}
        await ask(door, "What is new?")
        (arms,) = book.describe()["clinic"].values()
        assert arms[0] == {"weight": 0.3, "total": pytest.approx(0.06)}
        door.engines["small"].status = door.engines["large"].status = "400 Bad Request"
        await ask(door, "Something else")
        await ask(door, "Something else")
        assert list(book.describe()["clinic"].values()) == [arms], "an error says nothing about a model"


async def test_explain_draws_no_lots():
    async with learning(feedback={"explore": 0.5}) as door:
        door.state.complexity.learning._dice = lambda: pytest.fail("explain explored")
        body = {"model": "auto", "messages": [{"role": "user", "content": "What is new?"}]}
        assert (await door.client.post("/tidegate/v1/explain", json=body)).status_code == 200


def test_the_floor_of_exploration_holds_whatever_was_learnt():
    dice = iter([turn / 1000 for turn in range(1000)])
    book = Learning(LearningSettings(0.2), lambda: next(dice))
    for turn in range(200):
        book.rate("t", "c", 1, 2, Rating(f"r{turn}", 1.0, 1.0))
        book.rate("t", "c", 0, 2, Rating(f"s{turn}", 0.0, 1.0))
    drawn = [book.draw("t", "c", 0, 2) for _ in range(1000)]
    assert sum(one.tier == 0 for one in drawn) == 100
    assert all(one.propensity == pytest.approx(0.1 if one.tier == 0 else 0.9) for one in drawn)


def test_a_repeat_is_remembered_for_a_while_by_its_key_only():
    book = Learning(LearningSettings(0.0))
    body = {"messages": [{"role": "user", "content": "privy words"}]}
    assert book.repeats("a", "/v1/chat/completions", body, "one", 100.0) is None
    assert book.repeats("b", "/v1/chat/completions", body, "two", 101.0) is None
    assert book.repeats("a", "/v1/chat/completions", body, "three", 102.0) == "one"
    assert book.repeats("a", "/v1/chat/completions", body, "four", 103.0 + REPEAT_S) is None
    assert "privy" not in repr(vars(book))
