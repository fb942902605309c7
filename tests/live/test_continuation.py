"""Two real vLLM engines, a wire that is cut between them and the router: the joined answer is the unbroken one, token by token.

float32 and no prefix cache, so that what is computed again is computed as it was: a token id that differs is then the join's.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.live.conformance_cases import ENGINE_MODEL
from tests.live.cut_model import cut_model
from tests.live.long import LONG
from tests.live.plain_stack import begin_engine
from tests.router.conftest import open_front_door
from tests.router.test_continuation import CHAT, TEXT, Answer

pytestmark = [
    pytest.mark.live,
    pytest.mark.timeout(1800),
    LONG,
]
ARGS = ("--enforce-eager", "--dtype", "float32", "--max-model-len", "1024", "--max-num-seqs", "4", "--no-enable-prefix-caching")
QUESTIONS = ("What is the capital of France? 🙂", "Schreibe über Köln: 日本語?", "1 2 3")


class Wire:
    """A TCP proxy that breaks the next answers after so many bytes."""

    def __init__(self, engine: str, cuts: list[int]) -> None:
        parts = urlsplit(engine)
        self._engine = (parts.hostname, parts.port)
        self._cuts = cuts
        self.port = 0

    async def start(self) -> asyncio.Server:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upward_reader, upward = await asyncio.open_connection(*self._engine)

        left: int | None = None

        async def up() -> None:
            nonlocal left
            while data := await reader.read(65536):
                if data.startswith(b"POST"):
                    left = self._cuts.pop(0) if self._cuts else None
                upward.write(data)

        task = asyncio.create_task(up())
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            while data := await upward_reader.read(65536):
                if left is not None and len(data) >= left:
                    writer.write(data[:left])
                    break
                left = None if left is None else left - len(data)
                writer.write(data)
                await writer.drain()
        task.cancel()
        upward.transport.abort()
        writer.close()


@pytest.fixture(scope="module")
def engines(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    folder = tmp_path_factory.mktemp("continuation")
    model = cut_model(model_dir, folder / "model")
    with contextlib.ExitStack() as stack:
        servers = [begin_engine(model, folder / name, ARGS) for name in ("a", "b")]
        for server in servers:
            stack.callback(server.kill)
        yield [f"http://127.0.0.1:{server.wait()}" for server in servers]


@contextlib.asynccontextmanager
async def running(engines: list[str]) -> AsyncIterator[tuple[Any, list[int]]]:
    cuts: list[int] = []
    wires = [Wire(engine, cuts) for engine in engines]
    servers = [await wire.start() for wire in wires]
    more = {"kind": "server", "vouched": True, "zone": "eu", "tier": "small", "models": {ENGINE_MODEL: ENGINE_MODEL}}
    more |= {"token_ids": True, "context_tokens": 1024}
    targets = [{"id": f"e{i}", "url": f"http://127.0.0.1:{wire.port}", **more} for i, wire in enumerate(wires)]
    async with open_front_door({}, zones={"eu": {}}, targets=targets) as door:
        door.state.fleet.failed = lambda *_: None
        door.state.retry_budget.withdraw = lambda now: True
        door.client.timeout = 120
        yield door, cuts
    for server in servers:
        server.close()


@pytest.mark.parametrize("path", [CHAT, TEXT])
async def test_a_stream_cut_anywhere_gives_the_same_greedy_answer(engines: list[str], path: str) -> None:
    joined, diverged = 0, []
    async with running(engines) as (door, cuts):
        for question in QUESTIONS:
            asked = {"messages": [{"role": "user", "content": question}]} if path == CHAT else {"prompt": question}
            body = {"model": ENGINE_MODEL, "stream": True, "temperature": 0, "max_tokens": 24, "ignore_eos": True, **asked}
            body["stream_options"] = {"include_usage": True}
            response = await door.client.post(path, content=json.dumps(body))
            whole, size = Answer(response.text), len(response.content) + 24 * 30
            assert whole.done and whole.usage[0]["completion_tokens"] == 24 and 'token_ids":[' not in whole.raw
            for position in range(700, size, 900):
                cuts[:] = [position]
                response = await door.client.post(path, content=json.dumps(body))
                answer = Answer(response.text)
                cuts.clear()
                if answer.error:
                    continue
                joined += len(door.receipt(response)["attempts"]) > 1
                assert (answer.done, answer.roles, answer.reasons, answer.usage) == (True, whole.roles, ["length"], whole.usage)
                if answer.text != whole.text:
                    diverged.append((question, position, answer.text, whole.text))
    assert joined >= 10 and not diverged, diverged
