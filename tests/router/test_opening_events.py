"""What engines say before the first token is held back, so that one that dies then costs the request nothing."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from router.wire import exchange
from router.wire.events import is_opening
from router.wire.exchange import MAX_OPENING_BYTES
from tests.router.conftest import FrontDoor, open_front_door
from tests.router.simulated_engine import STREAM_HEAD, chunk

CHAT, TEXT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"
TOOLS = [{"type": "function", "function": {"name": "f"}}]
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"model": "m", "stream": True, "messages": [{"role": "user", "content": "a"}], "tools": TOOLS},
    TEXT: {"model": "m", "stream": True, "prompt": "a", "stop": ["x"]},
    RESPONSES: {"model": "m", "stream": True, "input": "a"},
    MESSAGES: {"model": "m", "stream": True, "max_tokens": 5, "messages": [{"role": "user", "content": "a"}]},
}


def typed(**fields: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (fields["type"].encode(), json.dumps(fields).encode())


def said(delta: dict[str, Any], **fields: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None, **fields}
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    return b"data: %b\n\n" % json.dumps(chunk).encode()


ROLE = said({"role": "assistant", "content": ""})
RESPONSE: dict[str, Any] = {"id": "resp_1", "object": "response", "output": [], "usage": None}
OPENINGS = {
    CHAT: [ROLE],
    TEXT: [b": keep-alive\n\n"],
    RESPONSES: [
        typed(type=f"response.{name}", sequence_number=i, response=RESPONSE) for i, name in enumerate(("created", "in_progress"))
    ],
    MESSAGES: [typed(type="message_start", message={"id": "m", "content": [], "usage": {"input_tokens": 3}}), typed(type="ping")],
}
CONTENTS = {
    CHAT: [said({"content": "Hi"}), b"data: [DONE]\n\n"],
    TEXT: [b'data: {"choices":[{"index":0,"text":"Hi"}]}\n\n', b"data: [DONE]\n\n"],
    RESPONSES: [
        typed(type="response.output_text.delta", sequence_number=2, delta="Hi"),
        typed(type="response.completed", sequence_number=3, response=RESPONSE),
    ],
    MESSAGES: [typed(type="content_block_delta", delta={"type": "text_delta", "text": "Hi"}), typed(type="message_stop")],
}

Behaviour = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[bool]]


def saying(
    events: list[bytes], *, then: Callable[[], Awaitable[object]] | None = None, more: list[bytes] | None = None
) -> Behaviour:
    """The head, these events each in a write of its own, what is to be awaited, and more; without it the connection breaks."""

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        for data in [STREAM_HEAD, *map(chunk, events)]:
            writer.write(data)
            await writer.drain()
            await asyncio.sleep(0)
        if then is not None:
            await then()
        if more is None:
            return False
        writer.write(b"".join(map(chunk, more)) + b"0\r\n\r\n")
        return True

    return behave


def give(door: FrontDoor, **behaviours: Behaviour) -> None:
    for name, behaviour in behaviours.items():
        door.engines[name]._behave = lambda _wish, *ends, behaviour=behaviour: behaviour(*ends)


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("count", [0, 1, 2])
async def test_an_engine_that_dies_before_the_first_token_costs_the_request_nothing(pair, path, count):
    opening, whole = OPENINGS[path], OPENINGS[path] + CONTENTS[path]
    give(pair, a=saying(opening[:count]), b=saying(opening, more=CONTENTS[path]))
    for _ in range(3):
        response = await pair.client.post(path, json=BODIES[path])
        assert response.status_code == 200 and response.content == b"".join(whole)
        receipt = pair.receipt(response)
        assert receipt["code"] == "" and receipt["attempts"][-1]["ending"] == "complete"
        assert response.headers["x-tidegate-target"] == "b"
        if pair.engines["a"].requests:
            break
    assert [(attempt["target"], attempt["ending"]) for attempt in receipt["attempts"]] == [
        ("a", "broken_before"),
        ("b", "complete"),
    ]
    assert not receipt["attempts"][0]["first_byte"] and receipt["attempts"][1]["first_byte"]


@pytest.mark.parametrize("path", BODIES)
async def test_one_that_dies_behind_its_first_token_ends_in_an_error(pair, path):
    begun = OPENINGS[path] + CONTENTS[path][:1]
    give(pair, a=saying(begun), b=saying(begun))
    response = await pair.client.post(path, json=BODIES[path])
    assert response.content.startswith(b"".join(begun)) and b"upstream_error" in response.content
    assert b"[DONE]" not in response.content and len(pair.receipt(response)["attempts"]) == 1


async def test_without_another_engine_the_client_is_told_by_the_status(door):
    give(door, a=saying(OPENINGS[RESPONSES]))
    response = await door.client.post(RESPONSES, json=BODIES[RESPONSES])
    assert response.status_code == 503 and response.headers["retry-after"]
    assert response.json()["error"]["code"] == "overloaded"


async def test_what_was_held_comes_at_once_with_the_first_token(door):
    first, rest = CONTENTS[RESPONSES]
    seen = asyncio.Event()
    give(door, a=saying([*OPENINGS[RESPONSES], first], then=seen.wait, more=[rest]))
    content = b""
    async with door.client.stream("POST", RESPONSES, json=BODIES[RESPONSES]) as response:
        async for piece in response.aiter_bytes():
            content += piece
            if content == b"".join([*OPENINGS[RESPONSES], first]):
                seen.set()
    assert content == b"".join([*OPENINGS[RESPONSES], *CONTENTS[RESPONSES]])


async def test_more_than_may_be_held_is_passed_on(door):
    large = {**RESPONSE, "instructions": "x" * MAX_OPENING_BYTES}
    opening = typed(type="response.created", sequence_number=0, response=large)
    seen = asyncio.Event()
    give(door, a=saying([opening], then=seen.wait, more=CONTENTS[RESPONSES]))
    content = b""
    async with door.client.stream("POST", RESPONSES, json=BODIES[RESPONSES]) as response:
        async for piece in response.aiter_bytes():
            content += piece
            if content == opening:
                assert not door.state.receipts.find(response.headers["x-request-id"])
                seen.set()
    assert content == b"".join([opening, *CONTENTS[RESPONSES]])
    assert door.receipt(response)["attempts"][0]["first_byte"]


async def test_late_signs_of_life_reach_the_client(door, monkeypatch):
    monkeypatch.setattr(exchange, "OPENING_S", -1.0)
    seen = asyncio.Event()
    give(door, a=saying([ROLE], then=seen.wait, more=[b": still here\n\n", *CONTENTS[CHAT]]))
    content = b""
    async with door.client.stream("POST", CHAT, json=BODIES[CHAT]) as response:
        async for piece in response.aiter_bytes():
            content += piece
            if content == ROLE:
                seen.set()
    assert content == b"".join([ROLE, b": still here\n\n", *CONTENTS[CHAT]])


async def test_events_before_the_first_token_are_no_first_byte_in_time():
    async with open_front_door({"a": "eu", "b": "eu"}, timeouts={"first_byte_s": 0.3, "idle_s": 20}) as door:
        gone = asyncio.Event()

        async def closed() -> None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(gone.wait(), 10)

        give(door, a=saying(OPENINGS[RESPONSES], then=closed), b=saying(OPENINGS[RESPONSES], more=CONTENTS[RESPONSES]))
        for _ in range(3):
            response = await door.client.post(RESPONSES, json=BODIES[RESPONSES])
            assert response.content == b"".join([*OPENINGS[RESPONSES], *CONTENTS[RESPONSES]])
            if door.engines["a"].requests:
                break
        gone.set()
        assert door.receipt(response)["attempts"][0]["failure"] == "no first byte within the limit"


@pytest.mark.parametrize(
    ("event", "opening"),
    [
        (b"", True),
        (b": ping\n\n", True),
        (b"event: ping\n\n", True),
        (b": ping\r\n\r\n" + ROLE.replace(b"\n", b"\r\n"), True),
        (ROLE, True),
        (said({"role": "assistant", "content": None, "tool_calls": []}, token_ids=None), True),
        (said({"role": "assistant", "content": ""}, finish_reason="stop"), False),
        (said({"role": "assistant", "content": ""}, token_ids=[7]), False),
        (said({"role": "assistant", "content": "", "reasoning_content": "a"}), False),
        (said({"role": "assistant", "tool_calls": [{"index": 0}]}), False),
        (said({"content": ""}), False),
        (ROLE + said({"content": "a"}), False),
        (b'data: {"choices":[]}\n\n', False),
        (b'data: {"choices":[1]}\n\n', False),
        (b'data: {"choices":[{"index":0,"text":""}]}\n\n', False),
        (b'data: {"error":{"message":"a"}}\n\n', False),
        (b"data: [DONE]\n\n", False),
        (b"data: {\n\n", False),
        (typed(type="response.queued"), True),
        (typed(type="response.output_item.added"), False),
        (typed(type="response.failed"), False),
        (typed(type="error"), False),
        (b'data: {"type":[]}\n\n', False),
    ],
)
def test_only_what_brings_nothing_of_the_answer_is_an_opening(event, opening):
    assert is_opening(event) is opening
