"""The throughput bench counts what it was told, refuses what is short, and takes the median of pairs."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts" / "bench"))

from _datapath import mock_engine
from _throughput import client, stack
from _throughput.cli import ratio


@pytest.fixture
async def engine() -> AsyncIterator[str]:
    port = stack.free_port()
    servers = await mock_engine.serve([port], "mock")
    yield f"http://127.0.0.1:{port}"
    for server in servers:
        server.close()


async def test_tokens_are_those_of_the_engines_usage(engine: str):
    each = mock_engine.CHUNKS - 2
    taken = await client.batch(engine, "k", "mock", client.prompts(5, 10, 0), concurrency=2, tokens=each)
    assert taken.tokens == 5 * each
    assert taken.seconds > 3 * each * mock_engine.GAP_S * 0.9  # two at once: three turns
    assert taken.rate == taken.tokens / taken.seconds


async def test_an_answer_that_is_short_is_no_measurement(engine: str):
    with pytest.raises(client.WrongAnswer, match="62 tokens instead of 100"):
        await client.batch(engine, "k", "mock", ["x"], concurrency=1, tokens=100)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 503 Busy\r\ncontent-length: 4\r\n\r\nfull", "status 503: full"),
        (
            b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\ndata: "
            + json.dumps({"choices": [], "usage": {"completion_tokens": 9}}).encode()
            + b"\n\n",
            "did not end with",
        ),
    ],
)
async def test_refusals_and_cut_streams_are_no_measurement(answer: bytes, said: str):
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    port = stack.free_port()
    async with await asyncio.start_server(serve, "127.0.0.1", port):
        with pytest.raises(client.WrongAnswer, match=said):
            await client.batch(f"http://127.0.0.1:{port}", "k", "mock", ["x"], concurrency=1, tokens=9)


def test_the_ratio_is_the_median_over_the_pairs():
    def take(rate: float) -> client.Take:
        return client.Take(int(rate * 10), 10.0)

    found = ratio([(take(100), take(99)), (take(50), take(55)), (take(200), take(160))])
    assert (found["ratio"], found["lowest"], found["highest"], found["pairs"]) == (0.99, 0.8, 1.1, 3)
    assert (found["direct_tokens_s"], found["routed_tokens_s"]) == (100, 99)


def test_prompts_differ_from_each_other_and_from_batch_to_batch():
    texts = [text for seed in (0, 1, -1) for text in client.prompts(20, 30, seed)]
    assert len(set(texts)) == 60 and all(len(text.split()) == 31 for text in texts)
