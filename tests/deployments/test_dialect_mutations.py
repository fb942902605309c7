"""Answers with one or more values replaced by something else: read, or refused with a typed error, and nothing in between."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from deployments.egress.dialects.answer import ChunkWriter
from deployments.egress.dialects.aws import FrameReader, write_frame
from deployments.egress.dialects.base import EvidenceMismatch
from deployments.egress.dialects.table import TRANSLATED
from router.wire.errors import ApiError
from tests.deployments.test_dialects import STREAM, WHOLE, target_of
from tests.router.builders import make_config

JUNK: tuple[Any, ...] = (None, 1, -1, 1.5, True, "", "x", [], [1], {}, {"a": 1}, [None], "\ud800", 10**30, [[]], {"type": "text"})
ROUNDS = 400


def mutate(value: Any, r: random.Random) -> Any:
    """`value` with one node, chosen evenly by depth, replaced or taken out."""
    if isinstance(value, dict) and value and r.random() < 0.8:
        key = r.choice(list(value))
        if r.random() < 0.15:
            return {name: item for name, item in value.items() if name != key}
        return {**value, key: mutate(value[key], r)}
    if isinstance(value, list) and value and r.random() < 0.8:
        i = r.randrange(len(value))
        return [*value[:i], mutate(value[i], r), *value[i + 1 :]]
    return r.choice(JUNK)


@pytest.mark.parametrize("dialect", sorted(TRANSLATED))
def test_a_mutated_answer(dialect: str):
    r = random.Random(dialect)
    spec = make_config(targets=[target_of(dialect)]).targets[0]
    whole = json.loads(WHOLE[dialect]())
    read = 0
    for _ in range(ROUNDS):
        mutated = whole
        for _ in range(r.randint(1, 3)):
            mutated = mutate(mutated, r)
        try:
            answer = TRANSLATED[dialect].answer(json.dumps(mutated).encode(), spec, 1)
        except (ApiError, EvidenceMismatch):
            continue
        read += 1
        assert json.loads(answer)["object"] == "chat.completion"
    assert read > ROUNDS // 20


@pytest.mark.parametrize("dialect", sorted(TRANSLATED))
def test_a_mutated_stream(dialect: str):
    r = random.Random(dialect)
    spec = make_config(targets=[target_of(dialect)]).targets[0]
    stream = STREAM[dialect]()
    for _ in range(ROUNDS):
        writer = ChunkWriter(1, "m", True)
        reader = TRANSLATED[dialect].stream(writer, spec)
        try:
            out = reader.feed(mutate_stream(dialect, stream, r)) + reader.finish()
        except EvidenceMismatch:
            continue
        assert out.count(b"[DONE]") <= 1
        assert out.endswith(b"data: [DONE]\n\n") != (writer.failure is not None)


def mutate_stream(dialect: str, stream: bytes, r: random.Random) -> bytes:
    if dialect == "bedrock":
        frames = FrameReader().feed(stream)
        i = r.randrange(len(frames))
        payload = json.dumps(mutate(json.loads(frames[i].payload), r)).encode()
        out = [write_frame(f.headers, payload if n == i else f.payload) for n, f in enumerate(frames)]
    else:
        ending = b"\r\n\r\n" if b"\r\n\r\n" in stream else b"\n\n"
        events = stream.split(ending)[:-1]
        i = r.randrange(len(events))
        head, _, data = events[i].partition(b"data: ")
        events[i] = head + b"data: " + json.dumps(mutate(json.loads(data), r)).encode()
        out = [event + ending for event in events]
    if r.random() < 0.2:
        out.pop(r.randrange(len(out)))
    if r.random() < 0.1:
        r.shuffle(out)
    return b"".join(out)


@pytest.mark.parametrize("dialect", sorted(TRANSLATED))
def test_endless_nesting(dialect: str):
    spec = make_config(targets=[target_of(dialect)]).targets[0]
    deep = b'{"content":' + b"[" * 200_000
    with pytest.raises(ApiError):
        TRANSLATED[dialect].answer(deep, spec, 1)
    with pytest.raises(ApiError):
        TRANSLATED[dialect].answer(deep + b"]" * 200_000 + b"}", spec, 1)
    writer = ChunkWriter(1, "m", True)
    reader = TRANSLATED[dialect].stream(writer, spec)
    payload = deep + b"]" * 200_000 + b"}"
    frame = write_frame({":event-type": "contentBlockDelta", ":message-type": "event"}, payload)
    reader.feed(frame if dialect == "bedrock" else b"data: " + payload + b"\n\n")
    assert writer.failure is not None
