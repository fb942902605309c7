"""A redacted request on its real way: the values stay here, and the client never notices."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from router import handler
from router.placement.targets import Report
from router.residency.declassify import Declassified, declassify
from tests.router.builders import digest
from tests.router.conftest import KEY, FrontDoor, open_front_door
from tests.router.simulated_engine import SimulatedEngine

IBAN = "DE89370400440532013000"
RULES = {"rules": [{"if": ["financial"], "meet": "nowhere"}]}
RESIDENCY = {"tags": {"nowhere": {"process": ["elsewhere"]}}}
KEYS = [{"id": "front", "sha256": digest(KEY), "residency": "any", "redact": {"then": "us"}}]


def sent(engine: SimulatedEngine) -> str:
    return b"".join(request["raw"] for request in engine.requests).decode()


def without(door: FrontDoor, name: str) -> None:
    """The one place that may have the request as it is does not run."""
    targets = door.state.fleet.membership.targets
    door.state.fleet.update([Report(target) for target in targets if target.id != name])


def echo(engine: SimulatedEngine) -> None:
    """Make the engine say what it was told: whole, or in pieces of three characters, each an event."""

    async def answer(reader: Any, writer: Any) -> bool:
        body = engine.requests[-1]["body"]
        text = body["messages"][-1]["content"]
        if not body.get("stream"):
            payload = json.dumps({"choices": [{"index": 0, "message": {"role": "assistant", "content": text}}]}).encode()
            writer.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(payload) + payload
            )
            return True
        deltas = [text[i : i + 3] for i in range(0, len(text), 3)]
        chunks = [{"choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}]} for piece in deltas]
        chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        events = [b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks] + [b"data: [DONE]\n\n"]
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        for event in events:
            writer.write(b"%x\r\n%b\r\n" % (len(event), event))
        writer.write(b"0\r\n\r\n")
        return True

    engine._hello = answer  # type: ignore[method-assign]


async def test_the_values_stay_and_the_answer_has_them():
    async with open_front_door({"a": "us", "z": "elsewhere"}, classify=RULES, residency=RESIDENCY, keys=KEYS) as door:
        without(door, "z")
        echo(door.engines["a"])
        answer = await door.chat(f"transfer to {IBAN} now")
        assert answer.status_code == 200
        assert answer.json()["choices"][0]["message"]["content"] == f"transfer to {IBAN} now"
        assert IBAN not in sent(door.engines["a"]) and "<IBAN_1>" in sent(door.engines["a"])
        receipt = door.receipt(answer)
        assert receipt["label"].startswith("us/") and receipt["label_sources"]["redaction"] == "redact-v1: 1 values"
        assert IBAN not in json.dumps(receipt) and receipt["attempts"][0]["first_byte"]


@pytest.mark.parametrize("redactable", [True, False])
async def test_time_that_passes_while_it_is_redacted_revokes_nothing(monkeypatch, redactable):
    keys = [{**KEYS[0], "residency": "us"}]
    async with open_front_door({"a": "us", "z": "elsewhere"}, classify=RULES, residency=RESIDENCY, keys=keys) as door:

        async def declassify_slowly(*asked: Any) -> Declassified | None:
            door.state.recheck(time.time())
            return await declassify(*asked) if redactable else None

        monkeypatch.setattr(handler, "declassify", declassify_slowly)
        answer = await door.chat(f"transfer to {IBAN} now")
        if redactable:
            assert answer.status_code == 200 and "<IBAN_1>" in sent(door.engines["a"])
        else:
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "residency_denied")
            assert door.engines["a"].requests == []


async def test_a_stream_is_restored_though_every_placeholder_is_cut():
    async with open_front_door({"a": "us", "z": "elsewhere"}, classify=RULES, residency=RESIDENCY, keys=KEYS) as door:
        without(door, "z")
        echo(door.engines["a"])
        answer = await door.chat(f"transfer to {IBAN} now", stream=True)
        events = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
        assert events[-1] == "[DONE]"
        deltas = [json.loads(event)["choices"][0]["delta"] for event in events[:-1]]
        assert "".join(delta.get("content", "") for delta in deltas) == f"transfer to {IBAN} now"
        assert IBAN not in sent(door.engines["a"]) and door.receipt(answer)["attempts"][0]["first_byte"]


async def test_without_leave_or_against_the_requests_own_tag_nothing_is_sent():
    plain = [{"id": "front", "sha256": digest(KEY), "residency": "any"}]
    async with open_front_door({"a": "us", "z": "elsewhere"}, classify=RULES, residency=RESIDENCY, keys=plain) as door:
        without(door, "z")
        answer = await door.chat(f"transfer to {IBAN}")
        assert answer.status_code in (403, 503) and door.engines["a"].requests == []
    async with open_front_door({"a": "us", "z": "elsewhere"}, classify=RULES, residency=RESIDENCY, keys=KEYS) as door:
        without(door, "z")
        answer = await door.chat(f"transfer to {IBAN}", headers={"x-tidegate-residency": "elsewhere"})
        assert answer.status_code in (403, 503) and door.engines["a"].requests == []


async def test_what_needs_no_redaction_goes_as_it_came():
    async with open_front_door({"a": "us", "z": "elsewhere"}, classify=RULES, residency=RESIDENCY, keys=KEYS) as door:
        without(door, "z")
        echo(door.engines["a"])
        answer = await door.chat("hello there")
        assert "redaction" not in door.receipt(answer)["label_sources"]
