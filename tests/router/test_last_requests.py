"""What a router that ends does with connections that clients keep: nobody's request falls into one that is just being closed."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Sequence
from typing import Any

import pytest

from router.wire import http_server
from tests.router.conftest import FrontDoor, open_front_door
from tests.router.simulated_engine import STREAM_HEAD, SimulatedEngine, chunk, event
from tests.router.test_client_limits import HEALTH, Client, connect
from tests.router.test_hostile_clients import BODY, head


async def end(door: FrontDoor, watches: Sequence[asyncio.Future[Any]] = ()) -> asyncio.Task[None]:
    """Begin to drain the router, and wait until nobody can connect any more."""
    drain = asyncio.create_task(door.router.drain(watches))
    with contextlib.suppress(ConnectionError):
        async with asyncio.timeout(10):
            while True:
                (await connect(door.port)).writer.close()
                await asyncio.sleep(0.01)
    return drain


async def kept(door: FrontDoor) -> Client:
    """A connection on which a request has been answered, and nothing is asked now."""
    client = await connect(door.port)
    answer, _ = await client.ask(head() + BODY)
    assert answer.startswith(b"HTTP/1.1 200") and b"connection: close" not in answer.lower()
    return client


@pytest.mark.parametrize("asked", [head() + BODY, HEALTH], ids=["direct", "asgi"])
async def test_a_request_on_a_kept_connection_is_answered_before_it_is_closed(door, monkeypatch, asked):
    monkeypatch.setattr(http_server, "LAST_CALL_S", 60.0)
    client = await kept(door)
    drain = await end(door)
    answer, _ = await client.ask(asked)
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"connection: close" in answer.lower() or asked is HEALTH  # uvicorn closes without a word
    assert await client.ended()
    await drain


class InTwoParts(SimulatedEngine):
    """Its streams go on once `gate` is released."""

    async def _stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(STREAM_HEAD + chunk(event(0)))
        await self.gate.acquire()
        writer.write(chunk(event(1)) + chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")
        return True


async def test_one_more_request_may_follow_an_answer_that_had_promised_it(monkeypatch):
    monkeypatch.setattr(http_server, "LAST_CALL_S", 60.0)
    body = json.dumps({"model": "m", "stream": True, "messages": [{"role": "user", "content": "stream"}]}).encode()
    async with open_front_door({"a": "eu"}, engines={"a": InTwoParts()}) as door:
        client = await connect(door.port)
        client.writer.write(head(length=len(body)) + body)
        assert b"connection: close" not in (await client.reader.readuntil(b"\r\n\r\n")).lower()
        drain = await end(door)
        door.engines["a"].gate.release()
        await client.reader.readuntil(b"\r\n0\r\n\r\n")
        answer, _ = await client.ask(head() + BODY)
        assert answer.startswith(b"HTTP/1.1 200") and b"connection: close" in answer.lower()
        assert await client.ended()
        await drain


async def test_a_connection_without_another_request_is_closed_after_a_moment(door, monkeypatch):
    monkeypatch.setattr(http_server, "LAST_CALL_S", 0.05)
    client = await kept(door)
    drain = await end(door)
    assert await client.ended()
    await drain


async def test_who_watches_for_a_router_goes_on_until_its_last_answer():
    """Else a key revoked meanwhile would keep its stream, and who waits would never hear of an engine that has come up."""
    async with open_front_door({"a": "eu"}, engines={"a": InTwoParts()}) as door:
        asked = asyncio.create_task(door.chat("stream", stream=True))
        while not door.engines["a"].requests:
            await asyncio.sleep(0.001)
        watch = asyncio.create_task(asyncio.Event().wait())
        drain = await end(door, [watch])
        assert not watch.done() and not asked.done()
        door.engines["a"].gate.release()
        assert (await asked).content.endswith(b"data: [DONE]\n\n")
        await drain
        assert watch.cancelled()
