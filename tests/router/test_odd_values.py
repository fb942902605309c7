"""JSON that is sound, with values where no client would put them: the engine may refuse it, the router must not fall over it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from router.placement.targets import Endpoint
from router.residency.conversation import lineage_key, read_conversation
from tests.router.builders import digest
from tests.router.conftest import KEY, open_front_door
from tests.router.simulated_engine import SimulatedEngine
from tests.router.test_redacted_requests import IBAN, RESIDENCY, RULES, sent, without

HALF = '"\\ud800"'
HUGE = "9" * 40
ODD = (
    "[]", "{}", "true", "-1", "1e999", HUGE, HALF, "[[]]", "[null]", f"[{HALF}]", f"[{HUGE}]", '{"type":[]}', '{"type":{}}',
    '[{"role":[],"content":"y"}]', '[{"role":{},"type":[]}]', '[{"type":{},"content":[{"type":[]}]}]',
    '[{"type":[],"text":"x"}]', '[{"type":{},"url":"http://x/"}]', '[{"type":"tool_use","input":[{"type":[]}]}]',
    f'[{{"role":"assistant","tool_calls":[{{"name":{HALF},"x":{HUGE},"y":1e999}}]}}]',
    f'[{{"role":"user","content":[{{"type":"x","y":{HALF}}}]}}]',
)  # fmt: skip
FIELDS = (
    "messages",
    "prompt",
    "input",
    "system",
    "tools",
    "response_format",
    "user",
    "metadata",
    "max_tokens",
    "stop",
    "made_up",
)
RESTRICTED = {"tags": {"traced": {"process": ["eu", "us"], "requires_lineage": True}, "home": {"process": ["eu"]}}}


class Calm(SimulatedEngine):
    """Answers whatever it is asked."""

    @staticmethod
    def _wish(body: dict[str, Any]) -> str:
        return "hello"


@pytest.mark.parametrize("path", Endpoint)
async def test_no_value_makes_the_router_fail(path):
    keys = [{"id": "front", "sha256": digest(KEY), "residency": "traced", "cache": {"sampled": True}}]
    rules = {"rules": [{"if": ["financial"], "meet": "home"}]}
    engines = {"a": Calm(), "b": Calm()}
    odd: dict[str, Any] = {
        "engines": engines,
        "residency": RESTRICTED,
        "keys": keys,
        "classify": rules,
        "cache": {"zones": ["eu"]},
    }
    async with open_front_door({"a": "eu", "b": "us"}, **odd) as door:
        for field in FIELDS:
            for value in ODD:
                body = f'{{"model":"m","{field}":{value}}}'
                answer = await door.client.post(path, content=body.encode())
                assert answer.status_code < 500, (body, answer.text)
                if path == Endpoint.CHAT:
                    told = await door.client.post("/tidegate/v1/explain", content=body.encode())
                    assert told.status_code < 500, (body, told.text)


async def test_a_redacted_request_may_hold_half_a_character():
    keys = [{"id": "front", "sha256": digest(KEY), "residency": "any", "redact": {"then": "us"}}]
    odd: dict[str, Any] = {"engines": {"a": Calm(), "z": Calm()}, "classify": RULES, "residency": RESIDENCY, "keys": keys}
    async with open_front_door({"a": "us", "z": "elsewhere"}, **odd) as door:
        without(door, "z")
        body = f'{{"model":"m","messages":[{{"role":"user","content":"to {IBAN}"}}],"user":{HALF},"seed":{HUGE}}}'
        answer = await door.client.post(Endpoint.CHAT, content=body.encode())
        assert answer.status_code == 200, answer.text
        assert IBAN not in sent(door.engines["a"]) and HALF in sent(door.engines["a"]) and HUGE in sent(door.engines["a"])


def test_a_conversation_with_odd_messages_is_known_again():
    odd = [json.loads(value) for value in ODD]
    found = read_conversation(lineage_key(b"s" * 32), "t", Endpoint.CHAT, {"messages": odd})
    again = read_conversation(lineage_key(b"s" * 32), "t", Endpoint.CHAT, {"messages": [*odd, "more"]})
    assert again.prefixes[: len(odd)] == found.prefixes and len(set(again.prefixes)) == len(odd) + 1
    assert found.is_continued, "who said what cannot be told counts as an answer: it asks for a past"
