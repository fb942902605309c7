"""Classification on a request's real way: what stands in it decides where it may go, and is never repeated anywhere."""

from __future__ import annotations

import json

import pytest

from tests.router.conftest import KEY, open_front_door

CARD = "4111 1111 1111 1111"
RULES = {"rules": [{"if": ["financial"], "meet": "eu"}, {"if": ["secret"], "meet": "elsewhere"}]}
ZONES = {"a": "us", "b": "eu", "c": "elsewhere"}


async def test_a_card_number_keeps_a_request_in_its_zone_and_the_receipt_says_why():
    async with open_front_door(ZONES, classify=RULES) as door:
        zones = {(await door.chat(f"hello {i}")).headers["x-tidegate-zone"] for i in range(8)}
        assert "us" in zones, "without a finding the other zone is open"
        for i in range(8):
            answer = await door.chat(f"please charge {CARD}, order {i}")
            assert answer.status_code == 200 and answer.headers["x-tidegate-zone"] == "eu"
        receipt = door.receipt(answer)
        assert receipt["label_sources"]["classifier"] == "card" and receipt["label"].startswith("eu/")
        assert CARD not in json.dumps(receipt) and CARD.replace(" ", "") not in json.dumps(receipt)


async def test_what_no_running_zone_may_have_is_refused_without_a_byte_sent():
    async with open_front_door(ZONES, classify=RULES) as door:
        await door.engines["c"].stop()
        before = sum(len(engine.requests) for engine in door.engines.values())
        answer = await door.chat("-----BEGIN RSA PRIVATE KEY-----\n" + "MIIEpAIBAAKCAQEA7bq9" * 20)
        assert answer.status_code in (403, 503) and answer.json()["error"]["code"].startswith("residency_")
        assert sum(len(engine.requests) for engine in door.engines.values()) == before


UNREADABLE = (
    {"prompt": [72, 101, 108]},
    {"prompt": [72.0, 101.0, 108.0]},
    {"prompt": [[True, 101, 108.0]]},
    {"input": [[72.0], [101.0]]},
    {"prompt": "", "prompt_embeds": "AAAA"},
    {"prompt_embeds": ["AAAA"]},
    {"messages": [{"role": "user", "content": [{"type": "image_embeds", "image_embeds": "AAAA"}]}]},
    {"messages": [{"role": "user", "content": [{"type": "prompt_embeds", "data": "AAAA"}]}]},
    {"messages": [{"role": "user", "content": [{"video": "data:video/mp4;base64,AAAA", "uuid": "x"}]}]},
)


@pytest.mark.parametrize("fields", UNREADABLE)
async def test_what_no_text_is_cannot_be_read_however_it_is_spelt(fields):
    async with open_front_door({"a": "us", "b": "eu"}, classify={"rules": [{"if": ["pii"], "meet": "eu"}]}) as door:
        for engine in door.engines.values():
            engine._wish = lambda body: "hello"  # type: ignore[method-assign]
        for _ in range(4):
            answer = await door.client.post("/v1/completions", json={"model": "m", **fields})
            assert answer.headers["x-tidegate-zone"] == "eu"
        assert "unknown:media" in door.receipt(answer)["label_sources"]["classifier"]


@pytest.mark.parametrize("content", [[{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]])
async def test_a_picture_cannot_be_read_and_counts_as_the_worst(content):
    async with open_front_door({"a": "us", "b": "eu"}, classify={"rules": [{"if": ["pii"], "meet": "eu"}]}) as door:
        for _ in range(6):
            body = {"model": "m", "messages": [{"role": "user", "content": content}]}
            answer = await door.client.post("/v1/chat/completions", json=body)
            assert answer.headers["x-tidegate-zone"] == "eu"
        assert "unknown:media" in door.receipt(answer)["label_sources"]["classifier"]


async def test_explain_says_what_the_request_itself_would_meet():
    async with open_front_door(ZONES, classify=RULES) as door:
        body = {"model": "m", "messages": [{"role": "user", "content": f"my card is {CARD}"}]}
        headers = {"authorization": f"Bearer {KEY}"}
        explained = (await door.client.post("/tidegate/v1/explain", json=body, headers=headers)).json()
        assert explained["chosen"]["zone"] == "eu" and explained["label"]["sources"]["classifier"] == "card"
