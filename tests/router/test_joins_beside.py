"""Broken streams beside everything else: deadlines, leaving clients, limits, the response cache, the router's end."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.router.builders import digest
from tests.router.conftest import KEY
from tests.router.hostile_model import HostileModel, Manner
from tests.router.test_continuation import CHAT, Answer, ask, body_of, prompt_of, running


class Silent(HostileModel):
    """Answers the first request in its manner, and says nothing to those that carry it on until `release`."""

    def __init__(self, manners: list[Manner]) -> None:
        super().__init__(manners)
        self.release = asyncio.Event()
        self.asked = asyncio.Event()
        self.left = asyncio.Event()

    async def _answer(self, path: str, body: dict[str, Any], request_id: str, writer: asyncio.StreamWriter) -> bool:
        if path == CHAT:
            return await super()._answer(path, body, request_id, writer)
        self.asked.set()
        gone = asyncio.create_task(writer.wait_closed())
        go_on = asyncio.create_task(self.release.wait())
        await asyncio.wait({gone, go_on}, return_when=asyncio.FIRST_COMPLETED)
        if gone.done():
            self.left.set()
            go_on.cancel()
            return False
        gone.cancel()
        return await super()._answer(path, body, request_id, writer)


def silent() -> list[HostileModel]:
    manners = [Manner(end="abort", at=12)]
    return [Silent(manners) for _ in range(2)]


async def test_a_deadline_within_the_join_ends_the_stream_with_an_error():
    engines = silent()
    async with running(engines=engines) as (door, _):
        response = await door.client.post(CHAT, json=body_of(CHAT, "bb"), headers={"x-request-timeout-ms": "700"})
        answer, receipt = Answer(response.text), door.receipt(response)
        assert answer.text and answer.error and not answer.done
        assert receipt["code"] == "deadline_exceeded" and len(receipt["attempts"]) == 2
        assert receipt["completion_tokens"] == receipt["attempts"][0]["completion_tokens"] > 0


async def test_a_client_that_leaves_within_the_join_frees_the_second_engine_and_is_charged_for_what_it_has():
    engines = silent()
    async with running(engines=engines) as (door, _):
        request_id = "leaves-in-join"
        headers = {"x-request-id": request_id}
        async with door.client.stream("POST", CHAT, json=body_of(CHAT, "bb"), headers=headers) as response:
            async for line in response.aiter_lines():
                if line.startswith("data: "):
                    asking = [asyncio.create_task(engine.asked.wait()) for engine in engines]
                    await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
                    break
        async with asyncio.timeout(5):
            while (found := door.state.receipts.find(request_id)) is None:
                await asyncio.sleep(0.01)
        assert found["code"] == "client_gone" and found["prompt_tokens"] == len(prompt_of(CHAT, body_of(CHAT, "bb")))
        assert found["completion_tokens"] > 0 and found["attempts"][-1]["ending"] == "client_gone"


async def test_a_stream_that_is_carried_on_costs_what_the_whole_one_costs():
    settled: list[tuple[int, int]] = []
    manners: list[Manner] = []
    async with running(engines=[HostileModel(manners) for _ in range(3)]) as (door, _):
        settle = door.state.settle

        def note(reserved: Any, receipt: Any) -> None:
            settled.append((receipt.prompt_tokens, receipt.completion_tokens))
            settle(reserved, receipt)

        door.state.settle = note
        for planned in ([], [Manner(end="abort", at=3)], [Manner(end="error", at=1), Manner(end="abort", at=3)]):
            manners[:] = planned
            answer, receipt = await ask(door, CHAT, body_of(CHAT, "bb"))
            assert answer.done and len(receipt["attempts"]) == len(planned) + 1
    assert len(settled) == 3 and len(set(settled)) == 1 and min(settled[0]) > 0


async def test_a_broken_answer_is_never_one_to_keep_and_one_from_the_cache_needs_no_engine():
    keys = [{"id": "front", "sha256": digest(KEY), "cache": True}]
    manners: list[Manner] = []
    engines = [HostileModel(manners) for _ in range(2)]
    async with running(engines=engines, keys=keys, cache={"zones": ["eu"]}) as (door, _):
        body = body_of(CHAT, "bb")
        for planned in (
            [Manner(end="abort", at=4), Manner(end="error", at=4), Manner(refusal="500")],
            [Manner(end="abort", at=12)],
        ):
            manners[:] = planned
            await ask(door, CHAT, body)
            manners.clear()
        whole, receipt = await ask(door, CHAT, body)
        assert whole.done and receipt["cache"] == "miss", "neither the broken answer nor the joined one was kept"
        asked = sum(len(engine.requests) for engine in engines)
        again, receipt = await ask(door, CHAT, body)
        assert receipt["cache"] == "hit" and again.same_as(whole) and sum(len(engine.requests) for engine in engines) == asked


async def test_a_router_that_is_told_to_end_carries_its_streams_on_first():
    engines = silent()
    async with running(engines=engines) as (door, _):
        asking = asyncio.create_task(ask(door, CHAT, body_of(CHAT, "bb")))
        waits = [asyncio.create_task(engine.asked.wait()) for engine in engines]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        ending = asyncio.create_task(door.router.drain())
        await asyncio.sleep(0)
        for engine in engines:
            engine.release.set()
        answer, _ = await asking
        assert answer.done and not answer.error
        await ending
