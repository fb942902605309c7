"""A client that does not read teaches nothing of the engine: else one key could make it look slow to all others."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

import pytest

from router.placement.predict import GENERIC
from router.wire.upstream import Connection
from tests.router.conftest import KEY, FrontDoor, open_front_door
from tests.router.simulated_engine import JSON_ANSWER, STREAM_HEAD, USAGE_EVENT, SimulatedEngine, answer, chunk

TOKENS = 256
_EVENT = b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"%b"}}]}\n\n' % (b"x" * 32768)


class LongWinded(SimulatedEngine):
    """Its answers are larger than what the sockets on their way hold."""

    async def _long_stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(STREAM_HEAD + chunk(_EVENT) * TOKENS)
        usage = USAGE_EVENT.replace(b'"completion_tokens":5', b'"completion_tokens":%d' % TOKENS)
        writer.write(chunk(usage) + chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")
        return True

    async def _long_whole(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        body = json.loads(JSON_ANSWER)
        body["choices"][0]["message"]["content"] = "x" * len(_EVENT) * TOKENS
        body["usage"]["completion_tokens"] = TOKENS
        writer.write(answer(json.dumps(body).encode()))
        return True


def learned(door: FrontDoor) -> tuple[float, ...]:
    """What the ends of answers have taught."""
    load = door.state.fleet.load_of(door.state.fleet.membership.targets[0].incarnation)
    calibration = door.state.fleet.calibration
    return load.pace_slowdown, load.service_s, calibration.pace_share, calibration.crowd_share


async def ask(door: FrontDoor, wish: str, read: asyncio.Event) -> bytes:
    """An answer of which nothing is read before `read` is set."""
    body: dict[str, Any] = {"model": "m", "stream": "stream" in wish, "messages": [{"role": "user", "content": wish}]}
    raw = json.dumps(body).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n"
    head += b"authorization: Bearer %b\r\ncontent-length: %d\r\n\r\n" % (KEY.encode(), len(raw))
    plain = socket.socket()
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    plain.setblocking(False)
    await asyncio.get_running_loop().sock_connect(plain, ("127.0.0.1", door.port))
    reader, writer = await asyncio.open_connection(sock=plain, limit=4096)
    try:
        writer.write(head + raw)
        await read.wait()
        said = await reader.read()
    finally:
        writer.close()
    while len(door.state.inflight):
        await asyncio.sleep(0.001)
    return said


@pytest.mark.parametrize("wish", ["long-stream", "long-whole"])
async def test_an_answer_that_its_client_leaves_waiting_teaches_no_pace(wish, monkeypatch):
    paused, read = asyncio.Event(), asyncio.Event()
    pause = Connection.pause_reading

    def pause_reading(connection: Connection) -> None:
        pause(connection)
        paused.set()

    monkeypatch.setattr(Connection, "pause_reading", pause_reading)
    async with asyncio.timeout(60), open_front_door({"a": "eu"}, engines={"a": LongWinded()}) as door:
        door.state.fleet.adopt(lambda target: target, 0.0, {"m": GENERIC})
        assert (await door.chat("hello")).status_code == 200
        before = learned(door)
        assert before[1] > 0.0, "an answer that is read at once does teach"
        asked = asyncio.create_task(ask(door, wish, read))
        await paused.wait()
        read.set()
        said = await asked
        assert said.startswith(b"HTTP/1.1 200") and len(said) > TOKENS * len(_EVENT)
        assert learned(door) == before
        assert (await door.chat("hello")).status_code == 200
        assert learned(door) != before, "the next one that is read does"
