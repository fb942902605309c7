"""Engines that spell their streams oddly and die in every way: no token is lost or doubled, and nothing broken looks whole."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
from collections import Counter
from typing import Any

import httpx
import pytest

from router.wire.events import EventStream
from router.wire.joined_events import JoinedEvents, TrackedEvents
from router.wire.stream_ends import DONE
from router.wire.trail import Trail
from tests.router.hostile_model import ENDS, PIECES, REFUSALS, SPELLINGS, HostileModel, Manner, spell
from tests.router.simulated_engine import STREAM_HEAD, chunk
from tests.router.test_continuation import CHAT, TEXT, body_of, running

EXACT = ("plain", "no space", "pings", "spaced", "lines")
"""Spellings of which the tokens are read, so that a stream can be carried on."""


@contextlib.asynccontextmanager
async def hostile(count: int = 3):
    """A router over engines that follow one list of manners."""
    manners: list[Manner] = []
    async with running(engines=[HostileModel(manners) for _ in range(count)]) as (door, _):
        yield door, manners


class Read:
    """A stream as a reader of the standard (HTML, 9.2.6) has it."""

    def __init__(self, raw: str) -> None:
        self.raw = raw
        events = re.split("\n\n+", raw.replace("\r\n", "\n").replace("\r", "\n"))
        lines = [[line[5:].removeprefix(" ") for line in event.split("\n") if line.startswith("data:")] for event in events]
        data = ["\n".join(found) for found in lines if found]
        self.done = data[-1:] == ["[DONE]"]
        self.dones = data.count("[DONE]")
        self.chunks = [json.loads(text) for text in data if text != "[DONE]"]
        self.error = any(chunk.get("error") for chunk in self.chunks)
        choices = [choice for chunk in self.chunks for choice in chunk.get("choices", ())]
        self.text = "".join(choice["delta"].get("content") or "" if "delta" in choice else choice["text"] for choice in choices)
        self.roles = sum("role" in choice.get("delta", {}) for choice in choices)
        self.reasons = [choice["finish_reason"] for choice in choices if choice["finish_reason"]]
        self.ids = {(chunk["id"], chunk["created"], chunk["object"]) for chunk in self.chunks if "choices" in chunk}
        self.usage = [chunk["usage"] for chunk in self.chunks if chunk.get("usage")]

    def same_as(self, other: Read) -> bool:
        mine = (self.text, self.roles, self.reasons, self.usage, self.done, self.dones)
        return mine == (other.text, other.roles, other.reasons, other.usage, other.done, other.dones)


async def ask(door: Any, path: str, body: dict[str, Any]) -> tuple[Read, dict[str, Any]]:
    response = await door.client.post(path, json=body)
    assert response.status_code == 200, response.text
    return Read(response.text), door.receipt(response)


async def test_an_engine_that_says_it_failed_is_one_that_broke():
    async with hostile() as (door, manners):
        for path in (CHAT, TEXT):
            for at in (0, 1, 3):
                for pieces in ("events", "all"):
                    whole, _ = await ask(door, path, body_of(path))
                    manners[:] = [Manner(end="error", at=at, pieces=pieces)]
                    answer, receipt = await ask(door, path, body_of(path))
                    assert answer.same_as(whole) and not answer.error, f"{path} at {at} in {pieces}: {answer.raw}"
                    assert [attempt["ending"] for attempt in receipt["attempts"]][-1] == "complete"
                    assert len(receipt["attempts"]) == 2 and receipt["code"] == ""


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("status", "headers"),
    [
        ("200 OK", "content-type: text/html"),
        ("200 OK", "Content-Type: Text/HTML; charset=utf-8"),
        ("200 OK", "content-type: application/json\r\ncontent-encoding: gzip"),
        ("302 Found", "content-type: application/json\r\nlocation: http://127.0.0.1:9/"),
        ("308 Permanent Redirect", "location: /v2"),
    ],
)
async def test_sign_in_pages_redirects_and_compressed_answers_are_no_answers(pair, stream, status, headers):
    first, second = pair.engines.values()

    async def odd(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(f"HTTP/1.1 {status}\r\n{headers}\r\ncontent-length: 9\r\n\r\n<html/>\r\n".encode())
        return True

    first._stream = first._hello = odd
    for _ in range(3):
        response = await pair.chat("stream" if stream else "hello", stream=stream)
        assert response.status_code == 200 and (b"t4" in response.content or b'"hi"' in response.content)
        if first.requests:
            break
    assert [attempt["target"] for attempt in pair.receipt(response)["attempts"]] == ["a", "b"]
    second._stream = second._hello = odd
    response = await pair.chat("stream" if stream else "hello", stream=stream)
    assert response.status_code in (502, 503) and "html" not in response.text and "location" not in response.headers


async def test_an_error_that_cannot_be_made_good_ends_the_stream_without_done():
    tools = [{"type": "function", "function": {"name": "f"}}]
    async with hostile() as (door, manners):
        manners[:] = [Manner(end="error", at=4)]
        answer, receipt = await ask(door, CHAT, body_of(CHAT, tools=tools))
        assert answer.text and answer.error and not answer.dones and "EngineCore" not in answer.raw
        assert receipt["code"] == "upstream_error" and receipt["attempts"][0]["ending"] == "broken_after"
        # Nothing had been sent: it is asked elsewhere, whatever the request is.
        manners[:] = [Manner(end="error", at=0)]
        answer, receipt = await ask(door, CHAT, body_of(CHAT, tools=tools))
        assert answer.text and answer.done and not answer.error and len(receipt["attempts"]) == 2


@pytest.mark.parametrize("at", [0, 2, 3])
async def test_the_dialect_of_messages_ends_in_its_own_error(pair, at):
    names = (b"message_start", b"ping", b"content_block_delta", b"message_stop")
    events = [b'event: %b\ndata: {"type":"%b"}\n\n' % (name, name) for name in names]
    failure = b'event: error\ndata: {"type":"error","error":{"type":"internal_error","message":"EngineCore is dead"}}\n\n'
    seen = asyncio.Event()

    def answers(name: str):
        async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
            first, rest = (events[:at], [failure]) if name == "a" else (events, [])
            writer.write(STREAM_HEAD + b"".join(map(chunk, first)))
            await writer.drain()
            if at == 3 and rest:
                await seen.wait()
            writer.write(b"".join(map(chunk, rest)) + b"0\r\n\r\n")
            return True

        return behave

    for name, engine in pair.engines.items():
        engine._hello = answers(name)
    body = {"model": "m", "max_tokens": 5, "stream": True, "messages": [{"role": "user", "content": "hello"}]}
    content = b""
    async with pair.client.stream("POST", "/v1/messages", json=body) as response:
        async for piece in response.aiter_bytes():
            content += piece
            seen.set()
    ended = [attempt["ending"] for attempt in pair.receipt(response)["attempts"]]
    assert b"EngineCore" not in content
    if at == 3:
        assert ended == ["broken_after"] and content.startswith(b"".join(events[:at]))
        assert content.count(b"event: error") == 1 and b"message_stop" not in content
    else:
        assert ended == ["broken_before", "complete"] and content == b"".join(events)


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        ({"message": "a", "code": 503}, True),
        ({"message": "a", "code": "500"}, True),
        ({"message": "a", "type": "server_error", "code": None}, True),
        ({"message": "a", "type": "overloaded_error"}, True),
        ({"message": "a", "type": "rate_limit_error", "code": 429}, True),
        ({"message": "a"}, True),
        ("Request failed during generation", True),
        ({"message": "a", "type": "BadRequestError", "code": 400}, False),
        ({"message": "a", "type": "invalid_request_error", "code": "context_length_exceeded"}, False),
        ({}, False),
        (None, False),
    ],
)
def test_only_an_error_that_is_the_engines_is_its_death(error, fault):
    before = b'data: {"choices":[{"index":0,"delta":{"content":"\\"error\\""}}]}\n\n'
    event = b"event: error\ndata: %b\n\n" % json.dumps({"type": "error", "error": error}).encode()
    after = b"data: [DONE]\n\n"
    whole = before + event + after
    for size in (1, 7, len(whole)):
        events = EventStream(False, DONE)
        passed = b"".join(events.feed(whole[i : i + size]) for i in range(0, len(whole), size))
        assert passed == (before if fault else whole)
        assert events.failed is fault and events.done is not fault


def manners_of(dice: random.Random) -> list[Manner]:
    first = Manner(dice.choice(SPELLINGS), dice.choice(PIECES), dice.choice(ENDS), dice.randrange(-1, 45), "", dice.random())
    more = []
    for _ in range(dice.choice((0, 1, 1, 2))):
        refusal = dice.choice(REFUSALS) if dice.random() < 0.4 else ""
        end = dice.choice(ENDS)
        more.append(Manner(dice.choice(EXACT), dice.choice(PIECES), end, dice.randrange(-1, 20), refusal, dice.random()))
    return [first, *more]


async def post(door: Any, path: str, body: dict[str, Any]) -> tuple[httpx.Response, str, bool]:
    """The response, what came of its body, and whether the connection was cut under it."""
    pieces: list[bytes] = []
    async with door.client.stream("POST", path, json=body) as response:
        try:
            async for piece in response.aiter_bytes():
                pieces.append(piece)
        except httpx.RemoteProtocolError:
            return response, b"".join(pieces).decode(), True
    return response, b"".join(pieces).decode(), False


@pytest.mark.parametrize("seed", range(40 if os.environ.get("TIDEGATE_LONG_TESTS") else 4))
async def test_whatever_engines_do_a_stream_is_whole_or_says_that_it_is_not(seed):
    dice = random.Random(seed)
    outcomes: Counter[str] = Counter()
    async with hostile(4) as (door, manners):
        for path in (CHAT, TEXT):
            for options in ({}, {"stream_options": {"include_usage": True}}):
                body = body_of(path, dice.choice(("bb", "hello", "x y")), **options)
                manners.clear()
                whole, _ = await ask(door, path, body)
                for _ in range(25):
                    manners[:] = planned = manners_of(dice)
                    response, raw, cut = await post(door, path, body)
                    if cut:  # garbage behind `[DONE]`: no event can say that any more
                        lines = raw.replace("\r\n", "\n").replace("\r", "\n")
                        assert lines.endswith("[DONE]\n\n"), f"{planned}: {raw}"
                        outcomes["cut"] += 1
                        continue
                    if response.status_code != 200:
                        assert json.loads(raw)["error"] and "text/event-stream" not in response.headers["content-type"]
                        outcomes["refused"] += 1
                        continue
                    if not response.headers["content-type"].startswith("text/event-stream"):
                        outcomes["foreign"] += 1
                        continue
                    answer, receipt = Read(raw), door.receipt(response)
                    told = f"{planned}: {answer.raw}"
                    outcomes["whole" if answer.done else "error"] += 1
                    if not answer.done:
                        assert answer.error and not answer.dones and whole.text.startswith(answer.text), told
                        assert receipt["code"] == "upstream_error", told
                        continue
                    assert not answer.error and answer.same_as(whole), told
                    assert len(answer.ids) == 1 and not re.search(r'token_ids":\s*\[', answer.raw), told
                    assert receipt["code"] == "" and receipt["attempts"][-1]["ending"] in ("complete", "broken_after"), told
                    if whole.usage:
                        assert receipt["completion_tokens"] == whole.usage[0]["completion_tokens"], told
                        assert receipt["prompt_tokens"] == whole.usage[0]["prompt_tokens"], told
    assert outcomes["whole"] > 40, outcomes


UNREADABLE = (b'{"choices":"\xff"}', b"{", b'{"choices":' + b"[" * 5000, b'{"choices":[]}', b"7")


def an_event(content: bytes, token: int) -> bytes:
    head = b'data: {"id":"x","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{"content":"'
    return head + content + b'"},"logprobs":null,"finish_reason":null,"token_ids":[%d]}]}\n\n' % token


@pytest.mark.parametrize("bad", UNREADABLE)
def test_what_comes_in_one_read_with_an_unreadable_event_passes_and_is_recorded_alike(bad):
    trail = Trail()
    tracked = TrackedEvents(False, trail)
    first, last = an_event(b"a", 5), b"data: " + bad + b"\n\n"
    assert tracked.feed(first + last) == first.replace(b"[5]", b"null") + last
    assert list(trail.answer) == [5] and trail.opaque and not trail.can_join


@pytest.mark.parametrize("bad", [*UNREADABLE, an_event(b"\xff", 7)[6:-2]])
@pytest.mark.parametrize("again", [True, False])
def test_a_stream_is_not_carried_on_behind_an_unreadable_event_of_the_second_engine(bad, again):
    trail = Trail()
    TrackedEvents(False, trail).feed(an_event(b"a", 5))
    joined = JoinedEvents(False, trail, chat=True, again=again, note="n")
    with pytest.raises(ValueError):
        joined.feed(an_event(b"b", 6) + b"data: " + bad + b"\n\ndata: [DONE]\n\n")
    assert not trail.can_join and not joined.done, "an error event may follow"


def test_half_characters_in_a_trail_are_no_text_to_know_the_next_by():
    trail = Trail()
    tracked = TrackedEvents(False, trail)
    for token, content in enumerate((b"a", b"b", b"\xc3", b"d")):
        tracked.feed(an_event(content, token))
    assert trail.tail == "" and list(trail.answer) == [0, 1, 2, 3]


def test_token_ids_in_data_of_several_lines_are_nobodys_to_see():
    trail = Trail()
    event = spell(an_event(b"a", 5), "lines").replace(b"data: {", b": a note\ndata: {", 1)
    passed = TrackedEvents(False, trail).feed(event)
    assert list(trail.answer) == [5] and passed.startswith(b": a note\n") and passed.endswith(b"}\n\n")
    [choice] = Read(passed.decode()).chunks[0]["choices"]
    assert choice["token_ids"] is None and choice["delta"] == {"content": "a"}
