"""Recordings: how large they may be, and what they count towards limits."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from router.identity.limits import UNBOUNDED_ANSWER_TOKENS
from tests.router.builders import digest
from tests.router.conftest import KEY, FrontDoor, open_front_door
from tests.router.simulated_engine import answer

PATH = "/v1/audio/transcriptions"
MIB = 1024 * 1024


@contextlib.asynccontextmanager
async def ears(says: bytes = b'{"text":"a"}', **changes: Any) -> AsyncIterator[FrontDoor]:
    """A router over an engine that hears, and says this."""

    async def hear(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(answer(says))
        return True

    async with open_front_door({"a": "eu"}) as engines:
        engine = engines.engines["a"]
        engine._hello = hear  # type: ignore[method-assign]
        url = f"http://127.0.0.1:{engine.port}"
        target = {"id": "t", "kind": "server", "vouched": True, "zone": "eu", "models": {"m": "m"}, "task": "transcription"}
        async with open_front_door({"b": "eu"}, targets=[{**target, "url": url}], **changes) as door:
            door.engines["a"] = engine
            yield door


async def send(door: FrontDoor, size: int, **fields: str) -> Any:
    return await door.client.post(PATH, data={"model": "m", **fields}, files={"file": ("a.mp3", b"x" * size)})


async def test_a_recording_may_be_as_large_as_vllm_takes_it_and_a_text_may_not():
    async with ears() as door:
        response = await send(door, 25 * MIB)
        assert response.status_code == 200 and len(door.engines["a"].requests[-1]["raw"]) > 25 * MIB
        response = await send(door, 26 * MIB)
        assert response.status_code == 413 and str(26 * MIB) in response.json()["error"]["message"]
        response = await door.client.post("/v1/chat/completions", content=b" " * 9 * MIB)
        assert response.status_code == 413 and str(8 * MIB) in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("changes", "most"),
    [({"max_audio_bytes": 4096}, 4096), ({"max_body_bytes": 4096}, 26 * MIB), ({"max_body_bytes": 30 * MIB}, 30 * MIB)],
)
async def test_its_own_limit_goes_before_the_one_of_all_bodies(changes, most):
    async with ears(**changes) as door:
        response = await send(door, most)
        assert response.status_code == 413 and f"larger than {most} bytes" in response.text
        assert (await send(door, 1024)).status_code == 200


@pytest.mark.parametrize(
    ("says", "size", "used"),
    [
        (b'{"text":"a \\"usage\\"","usage":{"type":"duration","seconds":42}}', 100_000, 4200),
        (b'{"text":"a","usage":{"type":"duration","seconds":-1}}', 160_000, 1002),
        (b'{"text":"a","usage":{"type":"duration","seconds":"42"}}', 160_000, 1002),
        (b'{"text":"a","usage":{"type":"tokens","input_tokens":14,"output_tokens":45,"total_tokens":59}}', 100_000, 59),
        (b'{"text":"a","duration":"42.0"}', 160_000, 1002),
        (b"1\n00:00:00,000 --> 00:00:01,000\na\n", 320_000, 2002),
    ],
)
async def test_what_it_counts_is_what_the_engine_says_or_what_its_size_tells(says, size, used):
    next_one = 1 + UNBOUNDED_ANSWER_TOKENS
    for left, status in ((next_one, 200), (next_one - 1, 429)):
        keys = [{"id": "front", "sha256": digest(KEY), "daily_tokens": used + left}]
        async with ears(says, keys=keys) as door:
            assert (await send(door, size)).content == says
            assert (await send(door, 10)).status_code == status


async def test_one_that_no_engine_answers_counts_nothing():
    keys = [{"id": "front", "sha256": digest(KEY), "daily_tokens": 1 + UNBOUNDED_ANSWER_TOKENS}]
    async with ears(keys=keys) as door:
        hear, door.engines["a"]._hello = door.engines["a"]._hello, door.engines["a"]._broken  # type: ignore[method-assign]
        assert (await send(door, 320_000)).status_code == 502
        door.engines["a"]._hello = hear  # type: ignore[method-assign]
        assert (await send(door, 10)).status_code == 200
