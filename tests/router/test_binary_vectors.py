"""`encoding_format: bytes`: vectors in binary, which only a header tells apart, arrive as the engine sent them and count."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.router.test_stream_ends import door_for


@pytest.mark.parametrize("count", [1, 2048])
async def test_vectors_in_binary_come_with_what_tells_them_apart(count):
    item = {"embed_dtype": "float32", "endianness": "native", "start": 0, "end": 4, "shape": [1]}
    usage = {"prompt_tokens": 3 * count, "total_tokens": 3 * count}
    data = [{"index": place, **item} for place in range(count)]
    metadata = json.dumps({"id": "embd-1", "created": 1, "model": "m", "data": data, "usage": usage})
    vectors = b'"usage": {"prompt_tokens": 1}' + b"\x00\x00\x80\x3f" * count

    async def binary(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = f"HTTP/1.1 200 OK\r\nmetadata: {metadata}\r\ncontent-type: application/octet-stream\r\n"
        writer.write(head.encode() + b"content-length: %d\r\n\r\n" % len(vectors) + vectors)
        return True

    async with door_for("pooling") as door:
        door.engines["a"]._hello = binary
        body: dict[str, Any] = {"model": "m", "input": ["x"] * count, "encoding_format": "bytes"}
        reader, writer = await asyncio.open_connection("127.0.0.1", door.port, limit=1 << 20)
        request = door.client.build_request("POST", "/v1/embeddings", json=body)
        lines = b"".join(b"%b: %b\r\n" % line for line in request.headers.raw)
        writer.write(b"POST /v1/embeddings HTTP/1.1\r\n" + lines + b"\r\n" + request.content)
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        assert head.startswith(b"HTTP/1.1 200") and b"\r\nmetadata: " + metadata.encode() + b"\r\n" in head
        assert await asyncio.wait_for(reader.readexactly(len(vectors)), 10) == vectors
        writer.close()
        request_id = head.partition(b"x-request-id: ")[2].partition(b"\r\n")[0].decode()
        receipt = door.state.receipts.find(request_id)
        assert (receipt["prompt_tokens"], receipt["code"]) == (3 * count, "")
