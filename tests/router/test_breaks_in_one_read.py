"""Engines that break within one read: what came before the break in the same bytes is neither lost nor doubled."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from router.wire.events import ENGINE_DEAD
from tests.router.conftest import open_front_door
from tests.router.simulated_engine import STREAM_HEAD, chunk
from tests.router.test_continuation import CHAT, CONTEXT, TEXT, LittleModel, ask, body_of, stream

_ERROR = b'data: {"error":{"message":"EngineCore is dead.","type":"InternalServerError","param":null,"code":500}}\n\n'


BREAKS = {
    "garbage": b"zz\r\nnot a chunk",
    "a chunk too long": b"5\r\ndata: more than five\r\n",
    "an error event": chunk(_ERROR),
    "an error event and the end": chunk(_ERROR) + chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n",
    "an error event and the end in one chunk": chunk(_ERROR + b"data: [DONE]\n\n") + b"0\r\n\r\n",
    "the end without [DONE]": b"0\r\n\r\n",
    "half an event": chunk(b"data: {"),
    "half an event, and the end": chunk(b"data: {") + b"0\r\n\r\n",
    "nothing more": b"",
    "another response": b"0\r\n\r\nHTTP/1.1 200 OK\r\n",
}


class Bursting(LittleModel):
    """Sends so many events of the first answer it is asked for in reads of a few events each, and then breaks."""

    events = 5
    per_write = 100
    tail = b""

    async def _answer(self, path: str, body: dict[str, Any], request_id: str, writer: asyncio.StreamWriter) -> bool:
        if not self.tail:
            return await super()._answer(path, body, request_id, writer)
        tail, Bursting.tail = Bursting.tail, b""
        frames = [chunk(event) for event in stream(path, body, request_id)][: Bursting.events]
        bursts = [b"".join(frames[at : at + self.per_write]) for at in range(0, len(frames), self.per_write)]
        bursts[0] = STREAM_HEAD + bursts[0]
        bursts[-1] += tail
        for burst in bursts:
            writer.write(burst)
            await writer.drain()
            await asyncio.sleep(0.003)
        writer.close()
        return False


@contextlib.asynccontextmanager
async def bursting():
    engines = [Bursting() for _ in range(2)]
    for engine in engines:
        await engine.start()
    targets = [
        {"id": f"e{i}", "kind": "server", "vouched": True, "url": f"http://127.0.0.1:{engine.port}", "zone": "eu"}
        | {"tier": "small", "models": {"m": "m"}, "token_ids": True, "context_tokens": CONTEXT}
        for i, engine in enumerate(engines)
    ]
    async with open_front_door({}, zones={"eu": {}}, targets=targets) as door:
        door.state.fleet.failed = lambda *_: None
        door.state.retry_budget.withdraw = lambda now: True
        yield door
    for engine in engines:
        await engine.stop()


@pytest.mark.parametrize("tail", BREAKS.values(), ids=BREAKS)
@pytest.mark.parametrize("per_write", [100, 3, 1])
@pytest.mark.parametrize("path", [CHAT, TEXT])
async def test_what_came_with_the_break_is_neither_lost_nor_doubled(path, per_write, tail, monkeypatch):
    monkeypatch.setattr(Bursting, "per_write", per_write)
    joined = 0
    async with bursting() as door:
        body = body_of(path, "bb", stream_options={"include_usage": True})
        whole, _ = await ask(door, path, body)
        for events in range(1, 12):
            Bursting.events, Bursting.tail = events, tail or b"1"  # half a chunk's size: then the connection closes
            answer, receipt = await ask(door, path, body)
            assert not Bursting.tail
            if answer.error:
                assert not answer.done and whole.text.startswith(answer.text), f"after {events} events"
                continue
            joined += 1
            assert answer.same_as(whole), f"after {events} events: {answer.text!r} is not {whole.text!r}"
            assert receipt["completion_tokens"] == whole.usage[0]["completion_tokens"]
    assert joined >= 8


@pytest.mark.parametrize(("said", "at_once"), [(ENGINE_DEAD, True), (b"list index out of range", False)])
async def test_who_failed_in_the_middle_is_to_blame_once_another_has_come_to_the_end(said, at_once, monkeypatch):
    monkeypatch.setattr(Bursting, "per_write", 1)
    async with bursting() as door:
        blamed, ended = [], []

        def note(*failure: object) -> None:
            blamed.append((failure[0], len(ended)))

        def end(*booking: object, **how: object) -> None:
            ended.append(booking)
            end_as_always(*booking, **how)

        end_as_always, door.state.fleet.end, door.state.fleet.failed = door.state.fleet.end, end, note
        Bursting.events, Bursting.tail = 6, chunk(_ERROR.replace(b"EngineCore is dead", said))
        answer, receipt = await ask(door, CHAT, body_of(CHAT, "bb"))
        assert answer.done and [attempt["ending"] for attempt in receipt["attempts"]] == ["broken_after", "complete"]
        assert blamed == [(receipt["attempts"][0]["incarnation"], 1 if at_once else 2)]


async def test_what_is_wrong_with_the_request_is_for_the_client_to_see_and_nobody_else_is_asked():
    wrong = b'data: {"error":{"message":"the grammar ends here","type":"BadRequestError","param":null,"code":400}}\n\n'
    async with bursting() as door:
        Bursting.events, Bursting.tail = 3, chunk(wrong) + chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
        answer, receipt = await ask(door, CHAT, body_of(CHAT, "bb"))
        assert wrong.decode().strip() in answer.raw and not answer.notes
        assert len(receipt["attempts"]) == 1
