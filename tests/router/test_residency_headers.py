"""However a client writes its residency header, it tightens or the request is refused: never neither."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.router.conftest import KEY, open_front_door

ZONES = {"a": "us", "b": "eu"}
BODY = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hello"}]}).encode()
TAG = b"x-tidegate-residency: eu\r\n"


def request(*lines, target=b"/v1/chat/completions", version=b"1.1", body=BODY, framing=None):
    framing = framing or b"content-length: %d\r\n" % len(body)
    head = b"POST %b HTTP/%b\r\nhost: x\r\nauthorization: Bearer %b\r\n" % (target, version, KEY.encode())
    return head + b"content-type: application/json\r\n" + b"".join(lines) + framing + b"\r\n" + body


async def exchange(door, data, answers=1):
    """Status and zone of each answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
    writer.write(data)
    found = []
    for _ in range(answers):
        head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)).decode("latin-1").lower()
        headers = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
        if "content-length" in headers:
            await reader.readexactly(int(headers["content-length"]))
        found.append((int(head.split()[1]), headers.get("x-tidegate-zone", "none")))
    writer.close()
    return found


CHUNKED = b'%x;note="x-tidegate-residency: us"\r\n%b\r\n0;a=b\r\nx-tidegate-residency: us\r\n\r\n' % (len(BODY), BODY)
TIGHTENS = {
    "plain": request(TAG),
    "case": request(b"X-TideGate-RESIDENCY: eu\r\n"),
    "white space": request(b"x-tidegate-residency: \t eu , local \t\r\n"),
    "twice": request(b"x-tidegate-residency: local\r\n", TAG),
    "absolute form": request(TAG, target=b"http://elsewhere/v1/chat/completions?x=1"),
    "escaped path": request(TAG, target=b"/v1/%63hat/completions"),
    "http/1.0": request(TAG, version=b"1.0"),
    "chunks with extensions, and a trailer": request(TAG, body=CHUNKED, framing=b"transfer-encoding: chunked\r\n"),
    "named in connection": request(TAG, b"connection: x-tidegate-residency\r\n"),
}
REFUSED = {
    "empty": request(b"x-tidegate-residency:\r\n"),
    "a comma": request(b"x-tidegate-residency: eu,\r\n"),
    "unknown": request(b"x-tidegate-residency: EU\r\n"),
    "look-alike": request("x-tidegate-residency: \u0435u\r\n".encode()),
    "zero-width": request("x-tidegate-residency: eu\u200b\r\n".encode()),
    "parameters": request(b"x-tidegate-residency: eu;q=0.1\r\n"),
    "folded": request(b"x-tidegate-residency: local,\r\n eu\r\n"),
    "space before the colon": request(b"x-tidegate-residency : eu\r\n"),
    "nul": request(b"x-tidegate-residency: eu\x00\r\n"),
    "bare line feed": request(b"x-a: b\nx-tidegate-residency: eu\r\n"),
    "compressed body": request(TAG, b"content-encoding: gzip\r\n"),
    "the key twice in the body": request(TAG, body=BODY[:-1] + b',"model":"m"}'),
    "both ways of framing": request(TAG, framing=b"transfer-encoding: chunked\r\ncontent-length: 5\r\n"),
}


@pytest.mark.parametrize("data", TIGHTENS.values(), ids=TIGHTENS)
async def test_it_tightens(data):
    async with open_front_door(ZONES) as door:
        for _ in range(4):
            assert await exchange(door, data) == [(200, "eu")]
        assert door.engines["a"].requests == []


@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED)
async def test_it_is_refused(data):
    async with open_front_door(ZONES) as door:
        [(status, zone)] = await exchange(door, data)
        assert status in (400, 415) and zone == "none"
        assert door.engines["a"].requests == door.engines["b"].requests == []


async def test_pipelined_requests_keep_their_own():
    async with open_front_door(ZONES) as door:
        us = request(b"x-tidegate-residency: us\r\n")
        asked = (request(TAG), us, request(TAG), us)
        assert await exchange(door, b"".join(asked), answers=4) == [(200, "eu"), (200, "us"), (200, "eu"), (200, "us")]
