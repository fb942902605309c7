"""Broken streams that go on elsewhere: the joined answer is the unbroken one, or the stream ends in an error."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from router.placement.targets import Kind, Report
from router.residency.guard import PASS_HEADER, check_pass
from router.wire.continuation import MAX_PROMPT_BYTES, answer_limit, is_continuable, same_weights
from router.wire.joined_events import TrackedEvents
from router.wire.trail import Trail
from tests.router.builders import make_policy, make_target
from tests.router.conftest import open_front_door

sys.path.append(str(Path(__file__).resolve().parents[2] / "scripts" / "prove"))

from _dataplane.little_model import CONTEXT, LittleModel, prompt_of, stream

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
MESSAGES = [{"role": "user", "content": "hello"}]


def body_of(path: str, question: str = "hello", **more: Any) -> dict[str, Any]:
    asked = {"messages": [{"role": "user", "content": question}]} if path == CHAT else {"prompt": question, "max_tokens": 60}
    return {"model": "m", "stream": True, "temperature": 0, **asked, **more}


@contextlib.asynccontextmanager
async def running(count: int = 2, **changes: Any):
    """A router over some little models, whose patience is not what is tested here."""
    engines = changes.pop("engines", None) or [LittleModel() for _ in range(count)]
    for engine in engines:
        await engine.start()
    where = changes.pop("where", ["eu"] * len(engines))
    more = changes.pop("target", {"token_ids": True, "context_tokens": CONTEXT})
    targets = [
        {"id": f"e{i}", "kind": "server", "vouched": True, "url": f"http://127.0.0.1:{engine.port}", "zone": where[i]}
        | {"tier": "small", "models": {"m": "m"}, **more}
        for i, engine in enumerate(engines)
    ]
    async with open_front_door({}, zones={zone: {} for zone in where}, targets=targets, **changes) as door:
        door.state.fleet.failed = lambda *_: None
        door.state.retry_budget.withdraw = lambda now: True
        yield door, engines
    for engine in engines:
        await engine.stop()


class Answer:
    """A stream as a client reads it."""

    def __init__(self, raw: str) -> None:
        self.raw = raw
        lines = [block for block in raw.split("\n\n") if block]
        self.notes = [line for line in lines if line.startswith(":")]
        data = [line.removeprefix("data: ") for line in lines if not line.startswith(":")]
        self.done = data[-1:] == ["[DONE]"] and data.count("[DONE]") == 1
        self.chunks = [json.loads(line) for line in data if line != "[DONE]"]
        self.error = any("error" in chunk for chunk in self.chunks)
        choices = [choice for chunk in self.chunks for choice in chunk.get("choices", ())]
        texts = [choice["delta"].get("content", "") if "delta" in choice else choice["text"] for choice in choices]
        self.text = "".join(texts)
        self.roles = sum("role" in choice.get("delta", {}) for choice in choices)
        self.reasons = [choice["finish_reason"] for choice in choices if choice["finish_reason"]]
        self.frames = {(c["id"], c["created"], c["model"], c["object"]) for c in self.chunks if "choices" in c}
        self.usage = [chunk["usage"] for chunk in self.chunks if "usage" in chunk]

    def same_as(self, other: Answer) -> bool:
        return (self.text, self.roles, self.reasons, self.usage, self.done) == (
            other.text,
            other.roles,
            other.reasons,
            other.usage,
            other.done,
        )


async def ask(door: Any, path: str, body: dict[str, Any]) -> tuple[Answer, dict[str, Any]]:
    response = await door.client.post(path, json=body)
    assert response.status_code == 200, response.text
    return Answer(response.text), door.receipt(response)


def cut_first(engines: list[LittleModel], *positions: int) -> list[int]:
    """Break the next attempts after so many bytes, whichever engine they reach."""
    left = list(positions)
    for engine in engines:
        engine.cut = lambda path, body: left.pop(0) if left else None
    return left


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize("usage", [True, False])
async def test_cut_anywhere_the_joined_answer_is_the_unbroken_one(path, usage):
    options = {"stream_options": {"include_usage": True}} if usage else {}
    joined = 0
    async with running() as (door, engines):
        for question in ("hello", "x y", "bb"):
            body = body_of(path, question, **options)
            whole, _ = await ask(door, path, body)
            size = sum(map(len, stream(path, {**body, "return_token_ids": True, **options}, "x" * 28)))
            assert whole.done and len(whole.text) > 10 and bool(whole.usage) == usage
            for position in (*range(5, size, 97 if question == "bb" else 331), *range(size - 300, size, 19)):
                cut_first(engines, position)
                # Each body is another: one under which engines go on dying is refused.
                answer, receipt = await ask(door, path, {**body, "user": str(position)})
                if answer.error:
                    assert not answer.done and whole.text.startswith(answer.text), f"{question} at {position}"
                    continue
                joined += 1
                assert answer.same_as(whole), f"{question} cut at {position}: {answer.text!r} is not {whole.text!r}"
                assert len(answer.frames) == 1 and re.findall(r"token_ids\":\[", answer.raw) == []
                assert receipt["status"] == 200 and len(receipt["attempts"]) in (1, 2)
                if usage:
                    assert receipt["completion_tokens"] == whole.usage[0]["completion_tokens"]
    assert joined > 100, "cuts after several tokens in one event may end in an error, others may not"


async def test_a_second_and_a_third_break_are_carried_on_too():
    async with running(4) as (door, engines):
        body = body_of(CHAT, "bb", stream_options={"include_usage": True})
        whole, _ = await ask(door, CHAT, body)
        cut_first(engines, 2600, 1800, 900)
        answer, receipt = await ask(door, CHAT, body)
        assert answer.same_as(whole) and len(answer.notes) == 3
        assert [attempt["ending"] for attempt in receipt["attempts"]] == ["broken_after"] * 3 + ["complete"]
        assert len({attempt["target"] for attempt in receipt["attempts"]}) == 4
        counts = [attempt["completion_tokens"] for attempt in receipt["attempts"]]
        assert all(count > 0 for count in counts) and sum(counts) >= receipt["completion_tokens"] > counts[-1]
        metrics = (await door.client.get("/metrics")).text
        assert sum(map(float, re.findall(r'tidegate_stream_breaks_total\{outcome="continued".*\} (.*)', metrics))) == 3


async def test_the_rest_is_asked_for_by_tokens_with_what_is_left_of_the_limits():
    async with running() as (door, engines):
        body = body_of(CHAT, "bb", max_completion_tokens=50, min_tokens=40, top_p=0.5, user="u")
        whole, _ = await ask(door, CHAT, body)
        assert whole.reasons == ["length"]
        cut_first(engines, 2500)
        answer, _ = await ask(door, CHAT, body)
        assert answer.same_as(whole)
        [(_, sent)] = [request for engine in engines for request in engine.requests if request[0] == TEXT]
        prompt = prompt_of(CHAT, body)
        produced = len(sent["prompt"]) - len(prompt)
        assert sent["prompt"][: len(prompt)] == prompt and produced > 3
        assert sent["max_tokens"] == 50 - produced and sent["min_tokens"] == 40 - produced
        assert (sent["temperature"], sent["top_p"], sent["user"]) == (0, 0.5, "u") and "messages" not in sent


async def test_nothing_leaks_into_an_unbroken_stream_and_no_ids_are_asked_where_they_serve_nothing():
    async with running() as (door, engines):
        for path in (CHAT, TEXT):
            body = body_of(path, "x y")
            answer, _ = await ask(door, path, body)
            request = engines[0].requests[-1] if engines[0].requests else engines[1].requests[-1]
            assert 'token_ids":[' not in answer.raw and answer.notes == []
            direct = Answer("".join(event.decode() for event in stream(path, body, "direct")))
            for one, other in zip(answer.chunks, direct.chunks, strict=True):
                assert one | {"id": 0, "created": 0} == other | {"id": 0, "created": 0}, "as without the router"
            assert request[1]["return_token_ids"] is True
        tools = [{"type": "function", "function": {"name": "f"}}]
        await ask(door, CHAT, body_of(CHAT, "x y", tools=tools))
        assert sum("return_token_ids" in sent for engine in engines for _, sent in engine.requests) == 2


@pytest.mark.parametrize(
    ("changes", "target"),
    [
        ({"stop": ["x"]}, {}),
        ({"n": 2}, {}),
        ({"seed": 3, "temperature": 1}, {}),
        ({"presence_penalty": 0.5}, {}),
        ({"guided_json": {}}, {}),
        ({}, {"token_ids": False}),
        ({}, {"context_tokens": 0}),
    ],
)
async def test_what_cannot_be_exact_ends_in_an_error_event_and_is_asked_of_nobody_else(changes, target):
    async with running(target={"token_ids": True, "context_tokens": CONTEXT, **target}) as (door, engines):
        cut_first(engines, 2000)
        answer, receipt = await ask(door, CHAT, body_of(CHAT, "bb", **changes))
        assert answer.error and not answer.done and answer.text
        assert len(receipt["attempts"]) == 1 and receipt["code"] == "upstream_error"


async def test_a_key_and_the_configuration_can_opt_out():
    async with running(continuation=False) as (door, engines):
        cut_first(engines, 2000)
        assert (await ask(door, CHAT, body_of(CHAT, "bb")))[0].error
        assert all("return_token_ids" not in sent for engine in engines for _, sent in engine.requests)


async def test_a_client_that_leaves_is_charged_for_what_it_was_sent():
    async with running() as (door, engines):
        for engine in engines:
            engine._pause_s = 0.01
        request_id = "leaves-early-1"
        async with door.client.stream("POST", CHAT, json=body_of(CHAT, "bb"), headers={"x-request-id": request_id}) as response:
            seen = 0
            async for line in response.aiter_lines():
                seen += line.startswith("data: ")
                if seen == 12:
                    break
        for _ in range(100):
            await asyncio.sleep(0.01)
            if found := door.state.receipts.find(request_id):
                break
        assert found["code"] == "client_gone" and found["prompt_tokens"] == len(prompt_of(CHAT, body_of(CHAT, "bb")))
        assert 11 <= found["completion_tokens"] <= 60


async def test_a_stream_without_its_done_is_carried_on_or_ended_with_an_error_and_spacing_does_not_matter(door):
    engine = door.engines["a"]

    def answers(*events: bytes):
        async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
            body = b"".join(events)
            head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
            writer.write(head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
            return True

        return behave

    text = b'data: {"choices":[{"index":0,"delta":{"content":"say data: [DONE] twice"}}]}\n\n'
    for end in (b"data:[DONE]\n\n", b"data: [DONE]\n\n", b"data: [DONE]", b"data: [DONE]\r\n\r\n"):
        engine._hello = answers(text, end)
        response = await door.chat("hello", stream=True)
        assert response.content == text + end and door.receipt(response)["code"] == ""
    for end in (b"", b"data: [DON", b": [DONE]\n\n"):
        engine._hello = answers(text, end)
        response = await door.chat("hello", stream=True)
        assert response.content.startswith(text) and b'"upstream_error"' in response.content
        assert door.receipt(response)["code"] == "upstream_error"


def test_which_requests_can_be_carried_on():
    good = {"model": "m", "stream": True, "messages": MESSAGES}
    assert is_continuable(CHAT, good, 5)
    assert is_continuable(CHAT, {**good, "n": 1, "stop": None, "tools": [], "frequency_penalty": 0.0, "logprobs": False}, 5)
    assert is_continuable(CHAT, {**good, "seed": 1, "temperature": 0}, 5)
    assert is_continuable(TEXT, {"model": "m", "stream": True, "prompt": [1, 2]}, 5)
    parts = [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "data:"}}]
    for changes in (
        {"stream": False},
        {"n": True},
        {"n": 2},
        {"tools": [{}]},
        {"response_format": {"type": "json_object"}},
        {"some_new_field": 1},
        {"return_token_ids": True},
        {"stream_options": {"continuous_usage_stats": True}},
        {"messages": [{"role": "user", "content": parts}]},
        {"messages": "hello"},
        {"echo": True},
    ):
        assert not is_continuable(CHAT, {**good, **changes}, 5), changes
    assert not is_continuable(CHAT, good, MAX_PROMPT_BYTES + 1)
    assert not is_continuable("/v1/responses", good, 5)
    assert not is_continuable(TEXT, {"model": "m", "stream": True, "prompt": ["a", "b"]}, 5)


def test_limits_are_those_of_the_whole_answer():
    trail = Trail()
    trail.prompt.extend(range(10))
    trail.answer.extend(range(4))
    assert answer_limit(TEXT, {}, trail, 0) == 12, "16 by default"
    assert answer_limit(CHAT, {}, trail, 100) == 86 and answer_limit(CHAT, {}, trail, 0) is None
    assert answer_limit(CHAT, {"max_tokens": 50}, trail, 0) == 46
    assert answer_limit(CHAT, {"max_tokens": 50, "max_completion_tokens": 20}, trail, 30) == 16
    assert answer_limit(TEXT, {"max_tokens": None}, trail, 0) is None


def test_only_the_same_weights_take_over():
    policy = make_policy()
    one = make_target(policy, "a", "eu", token_ids=True)
    assert same_weights(one, make_target(policy, "b", "us", token_ids=True), "tiny")
    assert not same_weights(one, make_target(policy, "b", "us"), "tiny")
    assert not same_weights(one, make_target(policy, "b", "us", "big", token_ids=True), "tiny")
    assert not same_weights(one, make_target(policy, "b", "us", token_ids=True, models={"tiny": "tiny-awq"}), "tiny")
    assert not same_weights(one, make_target(policy, "b", "us", token_ids=True, kind=Kind.SERVER), "tiny")


def test_reasoning_tool_calls_and_foreign_streams_leave_a_trail_that_leads_nowhere():
    for delta in ({"reasoning": "hm"}, {"tool_calls": [{}]}, {"reasoning_content": "hm"}):
        trail = Trail()
        trail.take(json.dumps({"id": "i", "created": 1, "model": "m", "choices": [{"index": 0, "delta": delta}]}).encode())
        assert not trail.can_join
    for data in (b"garbage", b'{"error":{}}', b'{"choices":[{"index":0},{"index":1}]}'):
        trail = Trail()
        trail.take(data)
        assert not trail.can_join
    events, trail = TrackedEvents(False, trail := Trail()), trail
    assert events.feed(b'data: {"token_ids":[1,2]}\r\n\r\n') == b'data: {"token_ids":null}\r\n\r\n'
    assert not trail.can_join


def test_a_text_that_spells_the_field_is_left_alone():
    content = json.dumps(
        {"id": "i", "created": 1, "model": "m", "choices": [{"index": 0, "delta": {"content": '"token_ids":[1]'}}]}
    )
    event = f"data: {content}\n\n".encode()
    assert TrackedEvents(False, Trail()).feed(event) == event


def test_the_short_way_for_one_token_passes_and_records_what_the_long_way_does():
    body = body_of(CHAT, "bb", return_token_ids=True)
    events = list(stream(CHAT, body, "x" * 28))
    short, long = Trail(), Trail()

    class Slow(TrackedEvents):
        def _learn(self, event: bytes) -> None:
            pass

    fast, slow = TrackedEvents(True, short), Slow(True, long)
    for size in (1, 2, 5):
        for i in range(0, len(events), size):
            piece = b"".join(events[i : i + size])
            assert fast.feed(piece) == slow.feed(piece)
            for name in ("answer", "kept", "delivered", "spoke", "finished", "opaque", "tail"):
                assert getattr(short, name) == getattr(long, name), name
        fast.trail = short = Trail()
        slow.trail = long = Trail()
        fast._prefix = b"\0"


def framed(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


@pytest.mark.parametrize("seed", range(20))
def test_whole_chunks_may_take_the_shortcut_and_come_to_the_same(seed):
    dice = random.Random(seed)
    events = [event for _ in range(3) for event in stream(CHAT, body_of(CHAT, "bb", return_token_ids=True), "x" * 28)][:-2]
    events = [event for event in events if b"[DONE]" not in event and b'"finish_reason":"' not in event]
    odd = (
        b": a comment\n\n",
        events[3].replace(b"x", b'\\"'),
        events[3].replace(b"[", b"[7,", 2),
        b"data: {}\r\n\r\n",
        b"data: 5",
    )
    fast, slow = TrackedEvents(True, Trail()), TrackedEvents(True, Trail())
    taken = 0
    for number, event in enumerate(events):
        group = [event] + [dice.choice(odd)] * (number > 5 and dice.random() < 0.05)
        chunks = group if dice.random() < 0.8 else [b"".join(group)]
        data = b"".join(map(framed, chunks))
        way = fast.shortcut
        passed = way(data) if way is not None else None
        expected = b"".join(map(slow.feed, chunks))
        if passed is None:
            assert b"".join(map(fast.feed, chunks)) == expected
        else:
            taken += 1
            size, _, body = passed.partition(b"\r\n")
            assert body == expected + b"\r\n" and int(size, 16) == len(expected) and len(chunks) == 1
        for name in ("answer", "kept", "delivered", "spoke", "finished", "opaque", "tail"):
            assert getattr(fast.trail, name) == getattr(slow.trail, name), name
    assert taken > 3


def test_a_shortcut_takes_all_of_a_read_or_nothing():
    events = list(stream(CHAT, body_of(CHAT, "bb", return_token_ids=True), "x" * 28))
    tracked = TrackedEvents(True, Trail())
    assert tracked.shortcut is None, "nothing is known yet"
    for event in events[:4]:
        tracked.feed(event)
    way, before = tracked.shortcut, len(tracked.trail.answer)
    assert way is not None
    usual = framed(events[5])
    for bad in (
        usual[:-1],
        usual[:-2] + b"xx",
        usual + b"5",
        b"0\r\n\r\n",
        usual[1:],
        framed(events[5] + events[3]),
        b"g" + usual,
    ):
        assert way(usual + bad) is None and way(bad) is None, bad
    assert len(tracked.trail.answer) == before
    both = way(usual + framed(events[3]))
    assert both is not None and both.count(b'"token_ids":null') == 2 and len(tracked.trail.answer) == before + 2
    tracked.feed(b"data: half")
    assert tracked.shortcut is None


async def test_no_continuation_leaves_the_zones_of_the_label_and_each_attempt_has_a_pass_of_its_own():
    async with running(where=["eu", "us"]) as (door, engines):
        targets = [replace(target, kind=Kind.REPLICA) for target in door.state.fleet.membership.targets]
        door.state.fleet.update([Report(target) for target in targets])
        for tag, joined in (("eu", False), ("us", False), ("local", True)):
            for engine in engines:
                engine.requests.clear(), engine.heads.clear()
            cut_first(engines, 2500)
            headers = {"x-tidegate-residency": tag}
            response = await door.client.post(CHAT, json=body_of(CHAT, "bb"), headers=headers)
            answer, asked = Answer(response.text), [len(engine.requests) for engine in engines]
            assert (answer.done, answer.error) == (joined, not joined)
            assert asked == {"eu": [1, 0], "us": [0, 1], "local": [1, 1]}[tag]
            for target, engine in zip(targets, engines, strict=True):
                for (path, _), head in zip(engine.requests, engine.heads, strict=True):
                    key, place = door.state.target_key(target.incarnation), door.state.policy.place_of(target.evidence)
                    check_pass(key, head[PASS_HEADER], "POST", path, target.incarnation, place, time.time())
