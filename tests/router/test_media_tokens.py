"""What a picture counts in tokens is learned from its engine's counts, so that long prefills are expected as such."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from msgspec.structs import replace

from router.media_tokens import MediaTokens
from tests.router.builders import make_facts, make_policy
from tests.router.conftest import open_front_door
from tests.router.talking_engine import TalkingEngine

CHAT = "/v1/chat/completions"
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}


def ask(pictures: int, **more: Any) -> dict[str, Any]:
    content = [{"type": "text", "text": "What do they show?"}, *[PICTURE] * pictures]
    return {"model": "m", "messages": [{"role": "user", "content": content}], **more}


@pytest.mark.parametrize("stream", [False, True])
async def test_tokens_of_pictures_are_expected_after_the_first_answer_counted_them(stream):
    engine = TalkingEngine(("Lungs", -0.1), (".", -0.1))
    async with open_front_door({"a": "eu"}, engines={"a": engine}) as door:
        engine.prompt_tokens = 3004
        first = await door.client.post(CHAT, json=ask(2, stream=stream))
        second = await door.client.post(CHAT, json=ask(1, stream=stream))
        text = await door.client.post(CHAT, json=ask(0, stream=stream))
        asked = await door.client.post("/tidegate/v1/explain", json=ask(40))
        plain = await door.client.post("/tidegate/v1/explain", json=ask(0))
        estimates = [door.receipt(answer)["prompt_tokens_estimate"] for answer in (first, second, text)]
    assert estimates == [5, 1505, 5]
    assert asked.json()["chosen"]["predicted_ttft_ms"] > 5 * plain.json()["chosen"]["predicted_ttft_ms"]


async def test_a_prefill_of_pictures_is_in_the_books_for_what_it_should_take():
    engine = TalkingEngine(("Lungs", -0.1))
    async with open_front_door({"a": "eu"}, engines={"a": engine}) as door:
        engine.prompt_tokens = 8000
        await door.client.post(CHAT, json=ask(1))
        engine.pause_after = 0
        asked = asyncio.create_task(door.client.post(CHAT, json=ask(1, stream=True)))
        await engine.reached_pause.wait()
        target = door.state.fleet.membership.targets[0]
        booked = door.state.fleet.load_of(target.incarnation).unstarted_tokens
        engine.release.set()
        await asked
    assert booked > 7000


def test_the_mean_follows_what_is_sent_and_stays_within_bounds():
    policy, media = make_policy(), MediaTokens()
    facts = make_facts(policy, prompt_tokens=11, prompt_bytes=40)
    other, theirs = replace(facts, model="auto"), replace(facts, key=replace(facts.key, tenant="another"))
    for _ in range(20):
        media.learn(facts, 2, 10 + 2 * 1000)
    assert media.counted_in(facts, ask(3)).prompt_tokens == 11 + 3000
    assert media.counted_in(other, ask(3)) is other, "models differ in what they make of a picture"
    assert media.counted_in(theirs, ask(3)) is theirs, "nobody's pictures are expected to be like another tenant's"
    for _ in range(60):
        media.learn(facts, 1, 10 + 200)
    assert 200 < media.counted_in(facts, ask(1)).prompt_tokens < 300
    for _ in range(100):
        media.learn(facts, 1, 0)
        media.learn(other, 1, 10**12)
    assert media.counted_in(facts, ask(1)).prompt_tokens < 15, (
        "a text that counts less than it seems to is no picture below nothing"
    )
    assert media.counted_in(other, ask(1)).prompt_tokens <= 11 + 100_000


def test_what_is_kept_is_bounded_in_the_number_of_tenants():
    facts, media = make_facts(make_policy()), MediaTokens()
    for number in range(10_000):
        media.learn(replace(facts, key=replace(facts.key, tenant=f"t{number}")), 1, 1000)
    assert len(media._means) <= 4096
