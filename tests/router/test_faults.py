"""Small versions of `scripts/prove/dataplane`: mutated streams, the smuggling corpus, killed engines, leaving clients."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from pathlib import Path

import pytest

from router.placement.targets import Endpoint
from router.wire.upstream import Connection
from tests.router.conftest import KEY
from tests.router.simulated_engine import JSON_ANSWER, STREAM_HEAD, answer, chunk, event

sys.path.append(str(Path(__file__).resolve().parents[2] / "scripts" / "prove"))

from _dataplane import decoder, disconnects, endpoints, joins, kills, mutate, smuggle, streams


def request(wish: str, *, version: str = "1.1", extra: str = "", indent: int | None = None, **more: object) -> bytes:
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": wish}], **more}, indent=indent).encode()
    head = f"POST /v1/chat/completions HTTP/{version}\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n{extra}"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


async def test_no_mutated_response_reaches_a_client_as_a_success():
    tally, _ = await streams.run(600, seed=11)
    assert tally.violations == []
    assert {"typed", "broken", "success", "error event"} <= set(tally.outcomes), "every outcome came up"


async def test_the_smuggling_corpus_is_refused_once_and_nothing_extra_reaches_the_engine():
    result = await smuggle.run(apart=False, steps=(0,))
    assert result.violations == [] and result.refused > 70


async def test_requests_survive_killed_engines():
    count = await kills.run(300, 0.6, apart=False, workers=16)
    assert count.violations == [] and count.kills
    assert count.outcomes["stream whole"] and count.outcomes["json whole"]


async def test_streams_of_killed_engines_go_on_elsewhere_as_the_unbroken_answer():
    for seed in range(6):  # whether a kill meets a stream in its middle is chance: twice as many streams where none did
        result = await joins.run(40 << seed, 0.4, seed, apart=False, workers=12)
        assert result.violations == [] and result.kills
        if result.breaks["continued"]:
            break
    assert result.breaks["continued"] and result.outcomes["joined once"]


async def test_clients_that_leave_leave_nothing_behind():
    result = await disconnects.run(60, apart=False, at_once=20)
    assert result.violations == [] and result.seen_by_engine


async def test_a_client_that_leaves_cuts_the_engine_whatever_it_asked_for():
    result = await endpoints.run(2)
    assert result.violations == []
    assert {name.removesuffix(" streamed") for name in result.delays} == {*Endpoint, endpoints.FLOOR}
    assert all(len(found) == 2 for found in result.delays.values())


def test_the_oracle_itself_refuses_what_is_cut_or_ambiguous():
    rng = mutate.random.Random(0)
    for whole in (mutate.base_stream(rng), mutate.base_json(rng)):
        assert decoder.decode(whole).complete and decoder.second_opinion(whole) == decoder.decode(whole).body
        assert not any(decoder.decode(whole[:i]).complete for i in range(len(whole)))
    assert decoder.decode(answer(b"{}", extra=b"transfer-encoding: chunked\r\n")).wrong
    assert decoder.decode(answer(b"{}") + b"\r\n").rest == b"\r\n"


@pytest.mark.parametrize("wish", ["die-mid", "die-in-chunk", "cut-json"])
async def test_an_http_1_0_client_cannot_take_a_broken_answer_for_a_whole_one(door, wish):
    reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
    writer.write(request(wish, version="1.0", stream=wish != "cut-json"))
    try:
        seen = await reader.read(-1)
    except ConnectionResetError:
        return
    finally:
        writer.close()
    assert b"upstream_error" in seen and b"[DONE]" not in seen


async def test_a_head_may_be_split_at_any_byte_and_the_body_may_have_line_breaks(door):
    data = request("hello", indent=1)
    for cut in range(1, data.index(b"\r\n\r\n") + 6, 3):
        reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
        writer.write(data[:cut])
        await asyncio.sleep(0.001)
        writer.write(data[cut:])
        assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 200"), f"cut after {cut} bytes"
        writer.close()


async def test_an_offer_to_upgrade_is_ignored_and_the_connection_stays_usable(door):
    reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
    extra = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\n"
    for _ in range(2):
        writer.write(request("hello", extra=extra))
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        assert await reader.readexactly(len(JSON_ANSWER)) == JSON_ANSWER
    writer.close()


async def test_an_answer_that_cannot_have_a_body_must_not_announce_one(door):
    async def odd(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(STREAM_HEAD.replace(b"200 OK", b"204 No Content"))
        return True

    door.engines["a"]._hello = odd
    response = await door.chat("hello", stream=True)
    assert response.status_code in (502, 503) and response.json()["error"]["code"]


async def test_a_kept_alive_connection_that_breaks_in_the_head_leaves_no_header_behind(door):
    engine, cut = door.engines["a"], iter([True])

    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        if next(cut, False):
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-type: text/html\r\nx")
            return False
        writer.write(STREAM_HEAD + chunk(event(0) + b"data: [DONE]\n\n") + b"0\r\n\r\n")
        return True

    assert (await door.chat("hello")).status_code == 200
    engine._hello = once
    response = await door.chat("hello", stream=True)
    assert response.content == event(0) + b"data: [DONE]\n\n"
    assert "content-length" not in response.headers and response.headers["content-type"].startswith("text/event-stream")


async def test_a_full_buffer_pauses_the_next_upstream_too(door, monkeypatch):
    """A client that asks for 600 answers of 64 KiB at once and reads none. Those that fit into the kernel's buffers pass; the one
    that fills the router's own is whole when it does, so that it is the next one whose engine must not be read."""
    engine, asked, paused = door.engines["a"], 600, []
    whole = STREAM_HEAD + chunk(b"data: " + b"x" * 65_536 + b"\n\n") + chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
    pause = Connection.pause_reading

    async def at_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(whole)
        return True

    def watched(connection: Connection) -> None:
        pause(connection)
        paused.append(connection)

    engine._hello = at_once
    monkeypatch.setattr(Connection, "pause_reading", watched)
    plain = socket.socket()
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    plain.connect(("127.0.0.1", door.port))
    reader, writer = await asyncio.open_connection(sock=plain, limit=1 << 18)
    writer.write(request("hello", stream=True) * asked)
    async with asyncio.timeout(60):
        while len(engine.requests) < asked and not any(connection.paused and connection.exchange for connection in paused):
            await asyncio.sleep(0.01)
    assert 1 < len(engine.requests) < asked, "the kernel's buffers have room for less than these 38 MiB"
    async with asyncio.timeout(60):
        for _ in range(asked):
            await reader.readuntil(b"data: [DONE]\n\n")
    assert len(engine.requests) == asked
    writer.close()
