"""Streams of the other APIs: one without its last event is never whole, and each says so in its own API's form."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import openai
import pytest

from router.residency.restored_answer import RestoredEvents
from router.wire.events import EventStream
from router.wire.stream_ends import DONE, MESSAGES, RESPONSES, TRANSCRIPTIONS, StreamEnd
from tests.router.conftest import KEY, FrontDoor, open_front_door
from tests.router.simulated_engine import JSON_ANSWER, STREAM_HEAD, answer, chunk, event

RESPONSE = {
    "id": "resp_1",
    "object": "response",
    "created_at": 1,
    "model": "m",
    "status": "in_progress",
    "error": None,
    "output": [],
    "parallel_tool_calls": True,
    "tool_choice": "auto",
    "tools": [],
    "usage": None,
}
USAGE = {"input_tokens": 7, "output_tokens": 2, "total_tokens": 9}


def named(data: dict[str, Any]) -> bytes:
    return f"event: {data['type']}\ndata: {json.dumps(data)}\n\n".encode()


def response_event(kind: str, number: int, **changes: Any) -> bytes:
    return named({"type": kind, "sequence_number": number, "response": {**RESPONSE, **changes}})


def text_event(number: int, text: str = "hi") -> bytes:
    place = {"item_id": "msg_1", "output_index": 0, "content_index": 0, "logprobs": []}
    return named({"type": "response.output_text.delta", "sequence_number": number, "delta": text, **place})


BEGUN = [response_event("response.created", 0), response_event("response.in_progress", 1), text_event(2), text_event(3)]
COMPLETED = response_event("response.completed", 4, status="completed", usage=USAGE)
INCOMPLETE = response_event("response.incomplete", 4, status="incomplete", usage=USAGE)
BROKEN = {"code": "server_error", "message": "EngineCore is dead"}
FAILED = response_event("response.failed", 4, status="failed", error=BROKEN)
FLAT_ERROR = named({"type": "error", "sequence_number": 4, "param": None, **BROKEN})
UNFIT = response_event("response.failed", 4, status="failed", error={"code": "invalid_prompt", "message": "no"})

MESSAGE = {"id": "m", "type": "message", "role": "assistant", "content": [], "model": "m", "usage": {"input_tokens": 7}}
MESSAGE_BEGUN = [
    named({"type": "message_start", "message": MESSAGE}),
    named({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}),
    named({"type": "ping"}),
    named({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "hi"}}),
]
MESSAGE_STOP = named({"type": "message_stop"})
TRANSCRIBED = b'data: {"type": "transcript.text.done", "text": "hi"}\n\n'


@pytest.mark.parametrize("size", [1, 7, 10_000])
@pytest.mark.parametrize(
    ("end", "begun", "last", "whole"),
    [
        (MESSAGES, MESSAGE_BEGUN, MESSAGE_STOP, True),
        (MESSAGES, MESSAGE_BEGUN, MESSAGE_STOP[:-2], True),
        (MESSAGES, MESSAGE_BEGUN, b"", False),
        (MESSAGES, MESSAGE_BEGUN, named({"type": "error", "error": {"type": "invalid_request_error"}}), True),
        (MESSAGES, MESSAGE_BEGUN, named({"type": "x", "input": {"type": "message_stop"}}), False),
        (MESSAGES, MESSAGE_BEGUN, named({"type": "x", "text": '"type":"message_stop"'}), False),
        (RESPONSES, BEGUN, COMPLETED, True),
        (RESPONSES, BEGUN, COMPLETED + b"data: [DONE]\n\n", True),
        (RESPONSES, BEGUN, INCOMPLETE, True),
        (RESPONSES, BEGUN, UNFIT, True),
        (RESPONSES, BEGUN, b"", False),
        (TRANSCRIPTIONS, [event(0)], b"data: [DONE]\n\n", True),
        (TRANSCRIPTIONS, [event(0)], TRANSCRIBED, True),
        (TRANSCRIPTIONS, [event(0)], b"", False),
        (DONE, [event(0)], MESSAGE_STOP, False),
        (DONE, [event(0)], b'data: {"error": {"code": 400, "message": "too long"}}\n\n', True),
        (DONE, [event(0)], b'data: {"error": null}\n\n', False),
    ],
)
def test_a_stream_is_whole_only_with_what_its_api_ends_in(
    end: StreamEnd, begun: list[bytes], last: bytes, whole: bool, size: int
):
    stream = b"".join(begun) + last
    for events in (EventStream(True, end), RestoredEvents(True, {"[PERSON_1]": "Anna"}, end)):
        passed = b"".join(events.feed(stream[i : i + size]) for i in range(0, len(stream), size))
        assert events.cut_short is not whole
        assert not events.failed
        if type(events) is EventStream:
            assert passed + events.finish() == stream


@pytest.mark.parametrize(
    "failure", [FAILED, FLAT_ERROR, response_event("response.failed", 4, status="failed"), b"data: [DONE]\n\n" + COMPLETED]
)
def test_an_answer_that_failed_is_the_engines_death(failure):
    events = EventStream(True, RESPONSES)
    assert events.feed(b"".join(BEGUN)) + events.feed(failure) == b"".join(BEGUN)
    assert events.failed and not events.done and events.next_number == 4


def test_the_way_around_the_parser_ends_where_the_last_event_comes():
    events = EventStream(True, RESPONSES)
    events.feed(b"".join(BEGUN[:3]))
    shortcut = events.shortcut
    assert shortcut is not None
    assert shortcut(chunk(BEGUN[3])) == chunk(BEGUN[3]) and events.next_number == 4
    last = named({"type": "response.completed", "sequence_number": 4})
    assert shortcut(chunk(last)) is None and events.feed(last) == last and events.done


def plays(door: FrontDoor, *streams: list[bytes], name: str = "a") -> None:
    """The engine's next answers: streams of these events, each in a write of its own, properly ended."""
    left = list(streams)

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        events = left.pop(0) if len(left) > 1 else left[0]
        writer.write(STREAM_HEAD)
        for data in events:
            writer.write(chunk(data))
            await writer.drain()
            await asyncio.sleep(0)
        writer.write(b"0\r\n\r\n")
        return True

    door.engines[name]._hello = behave


def openai_of(door: FrontDoor) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{door.port}/v1", api_key=KEY, max_retries=0)


async def test_the_openai_sdk_raises_where_a_response_has_no_end(door):
    client, ask = openai_of(door), {"model": "m", "input": "hello", "stream": True}
    plays(door, [*BEGUN, COMPLETED])
    seen = [part.type async for part in await client.responses.create(**ask)]
    assert seen[0] == "response.created" and seen[-1] == "response.completed"
    for events in (BEGUN, [*BEGUN, FAILED], [*BEGUN, FLAT_ERROR], [*BEGUN, b"data: [DONE]\n\n"]):
        plays(door, events)
        parts = []
        with pytest.raises(openai.APIError, match="middle of the answer") as raised:
            async for part in await client.responses.create(**ask):
                parts.append(part.type)
        assert parts[-1] == "response.output_text.delta" and raised.value.code == "upstream_error"


async def test_the_error_of_a_response_is_an_event_of_its_api_and_counts_against_the_target(door):
    for events in (BEGUN, [*BEGUN, FAILED]):
        plays(door, events)
        response = await door.client.post("/v1/responses", json={"model": "m", "input": "hello", "stream": True})
        told, _, last = response.content.removesuffix(b"\n\n").rpartition(b"\n\n")
        assert told + b"\n\n" == b"".join(BEGUN)
        name, data = last.split(b"\n")
        error = json.loads(data.removeprefix(b"data: "))
        assert name == b"event: error" and error["type"] == "error" and error["sequence_number"] == 4
        assert error["code"] == error["error"]["code"] == "upstream_error" and "EngineCore" not in error["message"]
        receipt = door.receipt(response)
        assert (receipt["code"], receipt["attempts"][0]["ending"]) == ("upstream_error", "broken_after")
    plays(door, [*BEGUN, INCOMPLETE])
    response = await door.client.post("/v1/responses", json={"model": "m", "input": "hello", "stream": True})
    assert response.content == b"".join([*BEGUN, INCOMPLETE])
    receipt = door.receipt(response)
    assert (receipt["code"], receipt["prompt_tokens"], receipt["completion_tokens"]) == ("", 7, 2)


async def test_the_anthropic_sdk_raises_where_a_message_has_no_end(door):
    client = anthropic.AsyncAnthropic(base_url=f"http://127.0.0.1:{door.port}", api_key=KEY, max_retries=0)
    ask: dict[str, Any] = {"model": "m", "max_tokens": 4, "messages": [{"role": "user", "content": "hello"}]}
    plays(door, [*MESSAGE_BEGUN, MESSAGE_STOP])
    assert [part.type async for part in await client.messages.create(**ask, stream=True)][-1] == "message_stop"
    plays(door, MESSAGE_BEGUN)
    with pytest.raises(anthropic.APIStatusError, match="middle of the answer"):
        async with client.messages.stream(**ask) as stream:
            await stream.get_final_message()


@contextlib.asynccontextmanager
async def door_for(task: str) -> AsyncIterator[FrontDoor]:
    """A router over an engine whose model does only this; the engine is the router's, under the name `a`."""
    async with open_front_door({"a": "eu"}) as engines:
        url = f"http://127.0.0.1:{engines.engines['a'].port}"
        target = {"id": "t", "kind": "server", "vouched": True, "zone": "eu", "models": {"m": "m"}, "task": task, "url": url}
        async with open_front_door({"b": "eu"}, targets=[target]) as door:
            door.engines["a"] = engines.engines["a"]
            yield door


async def test_a_transcription_that_ends_without_its_last_event_says_so():
    form = {"data": {"model": "m", "stream": "true"}, "files": {"file": ("a.wav", b"RIFF")}}
    async with door_for("transcription") as door:
        plays(door, [event(0), b"data: [DONE]\n\n"])
        response = await door.client.post("/v1/audio/transcriptions", **form)
        assert response.content == event(0) + b"data: [DONE]\n\n" and door.receipt(response)["code"] == ""
        plays(door, [event(0)])
        response = await door.client.post("/v1/audio/transcriptions", **form)
        assert response.content.startswith(event(0)) and b"upstream_error" in response.content
        assert door.receipt(response)["code"] == "upstream_error"


ASKS = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hello"}]},
    "/v1/completions": {"prompt": "hello"},
    "/v1/responses": {"input": "hello"},
    "/v1/messages": {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4},
}


@pytest.mark.parametrize("path", ASKS)
@pytest.mark.parametrize("streamed", [True, False, None])
async def test_an_answer_of_the_other_kind_is_none(pair, path, streamed):
    """A client's parser would find nothing in it, and take that for an empty answer."""
    body = {"model": "m", **ASKS[path], "stream": streamed}
    whole = {"/v1/messages": [*MESSAGE_BEGUN, MESSAGE_STOP], "/v1/responses": [*BEGUN, COMPLETED]}
    as_events = whole.get(path, [event(0), b"data: [DONE]\n\n"])

    async def as_json(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(answer(JSON_ANSWER))
        return True

    for name in "ab":
        plays(pair, as_events, name=name)
    right = {name: engine._hello if streamed else as_json for name, engine in pair.engines.items()}
    wrong = {name: as_json if streamed else engine._hello for name, engine in pair.engines.items()}
    for name, engine in pair.engines.items():
        engine._hello = (wrong if name == "a" else right)[name]
    for _ in range(3):
        response = await pair.client.post(path, json=body)
        assert response.content == (b"".join(as_events) if streamed else JSON_ANSWER)
        if len(pair.receipt(response)["attempts"]) == 2:
            break
    assert [attempt["ending"] for attempt in pair.receipt(response)["attempts"]] == ["broken_before", "complete"]
    for name, engine in pair.engines.items():
        engine._hello = wrong[name]
    response = await pair.client.post(path, json=body)
    assert response.status_code in (502, 503) and response.json()["error"]["code"] in ("upstream_error", "overloaded")


async def test_what_has_no_streams_answers_json_whatever_stream_says():
    async with door_for("pooling") as door:
        response = await door.client.post("/v1/embeddings", json={"model": "m", "input": "x", "stream": True})
        assert response.content == JSON_ANSWER
