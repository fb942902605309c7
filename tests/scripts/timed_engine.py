"""A simulated engine with known constants, behind a real socket, in a time of its own.

It batches continuously, prefills in chunks, caches prefixes and counts like vLLM. Time passes by what its profile says of each
step, and stands still until whoever measures has looked at its clock for every token that was sent: a loaded machine changes
nothing in what is measured. `noise` makes steps longer, as machines do.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

from router.placement.profile import EngineProfile

BLOCK = 16


@dataclass
class Running:
    """One request in the engine."""

    prompt: list[int]
    wanted: int
    writer: asyncio.StreamWriter
    cached: int = 0
    computed: int = 0
    generated: int = 0
    ended: asyncio.Event = field(default_factory=asyncio.Event)


class TimedEngine:
    """The engine. `clock` is what a measurement has to take its times with.

    Args:
        profile: what its steps cost, and its limits.
        request_s: what a request costs besides.
        noise: standard deviation of the logarithm of a step's time.
        hiccups: share of the steps that take five times as long.
        caching: whether prefixes are cached.
        foreign: prompt tokens of somebody else that it counts with every request.
    """

    def __init__(
        self,
        profile: EngineProfile,
        request_s: float = 0.0,
        noise: float = 0.0,
        hiccups: float = 0.0,
        caching: bool = True,
        foreign: int = 0,
    ) -> None:
        self.profile, self.request_s = profile, request_s
        self.noise, self.hiccups, self.caching, self.foreign = noise, hiccups, caching, foreign
        self.url = ""
        self.context = 6000
        self.busy = 0
        self._random = random.Random(7)
        self._time = 0.0
        self._looked = self._received = self._sent = 0
        self._looks = asyncio.Event()
        self._work = asyncio.Event()
        self._waiting: list[Running] = []
        self._running: list[Running] = []
        self._blocks: set[int] = set()
        self.hits = self.prompt_tokens = 0

    def clock(self) -> float:
        """The engine's own time."""
        self._looked += 1
        self._looks.set()
        return self._time

    async def run(self) -> None:
        """Step for ever."""
        while True:
            await self._work.wait()
            if not (self._waiting or self._running):
                self._work.clear()
                continue
            await self._step()

    async def _step(self) -> None:
        profile = self.profile
        while self._waiting and len(self._running) < profile.slots:
            self._running.append(self._waiting.pop(0))
        decoding = [one for one in self._running if one.computed == len(one.prompt)]
        budget = profile.step_tokens - len(decoding)
        chunks: list[tuple[Running, int]] = []
        for one in self._running:
            left = len(one.prompt) - one.computed
            if left and budget > 0:
                chunks.append((one, min(left, budget)))
                budget -= chunks[-1][1]
        attention = sum(chunk * (one.computed + 0.5 * chunk) for one, chunk in chunks)
        context = sum(len(one.prompt) + one.generated for one in decoding)
        seconds = profile.step_s(len(decoding) + sum(chunk for _, chunk in chunks), context, attention)
        seconds *= self._random.lognormvariate(0, self.noise) if self.noise else 1.0
        self._time += seconds * (5.0 if self._random.random() < self.hiccups else 1.0)
        done = []
        for one, chunk in chunks:
            one.computed += chunk
            if one.computed == len(one.prompt):
                self._keep(one.prompt)
                done.append(one)
        for one in (*decoding, *done):
            self._emit(one)
        self._running = [one for one in self._running if one.generated < one.wanted]
        await self._until_looked_at()

    def _emit(self, one: Running) -> None:
        one.generated += 1
        event = {"choices": [{"index": 0, "text": "x"}], "usage": {"completion_tokens": one.generated}}
        one.writer.write(b"data: " + json.dumps(event).encode() + b"\n\n")
        self._sent += 1
        if one.generated == one.wanted:
            one.writer.write(b"data: [DONE]\n\n")
            one.ended.set()

    async def _until_looked_at(self) -> None:
        """Each token has been seen: looks at the clock that were not for the sending of a request."""
        while self._looked - self._received < self._sent:
            self._looks.clear()
            await asyncio.wait_for(self._looks.wait(), 30)

    def _keep(self, prompt: list[int]) -> None:
        if self.caching:
            self._blocks.update(_chain(prompt))

    def _cached(self, prompt: list[int]) -> int:
        held = sum(1 for _ in takewhile(self._blocks.__contains__, _chain(prompt)))
        # The last token is always computed.
        return min(held, (len(prompt) - 1) // BLOCK) * BLOCK

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection: one request."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        method, path, _ = head.split(" ", 2)
        if method == "POST":
            length = next(int(line.split(":")[1]) for line in head.split("\r\n") if line.lower().startswith("content-length"))
            await self._answer(json.loads(await reader.readexactly(length)), writer)
        else:
            page = self.models() if path == "/v1/models" else self.metrics()
            writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(page) + page)
        await writer.drain()
        writer.close()

    async def _answer(self, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        self._received += 1
        writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: text/event-stream\r\n\r\n")
        one = Running(body["prompt"], body["max_tokens"], writer)
        one.computed = self._cached(one.prompt)
        self.hits += one.computed
        self.prompt_tokens += len(one.prompt) + self.foreign
        self._time += 0.0 if self._running else self.request_s
        self._waiting.append(one)
        self._work.set()
        await one.ended.wait()

    def models(self) -> bytes:
        """The page of models."""
        return json.dumps({"data": [{"id": "m", "max_model_len": self.context}]}).encode()

    def metrics(self) -> bytes:
        """What vLLM's page says of these."""
        labels = f'{{block_size="{BLOCK}",num_gpu_blocks="{self.profile.kv_tokens // BLOCK}",engine="0"}}'
        return (
            f"vllm:cache_config_info{labels} 1.0\n"
            f'vllm:prefix_cache_hits_total{{engine="0"}} {self.hits}.0\n'
            f'vllm:prompt_tokens_total{{engine="0"}} {float(self.prompt_tokens)}\n'
            f'vllm:num_requests_running{{engine="0"}} {float(self.busy)}\n'
        ).encode()


def _chain(prompt: list[int]) -> Iterator[int]:
    """Each full block named by itself and all before it."""
    name = 0
    for end in range(BLOCK, len(prompt) + 1, BLOCK):
        name = hash((name, *prompt[end - BLOCK : end]))
        yield name


@asynccontextmanager
async def timed(engine: TimedEngine) -> AsyncIterator[TimedEngine]:
    """The engine behind a port of its own, running."""
    server = await asyncio.start_server(engine.serve, "127.0.0.1", 0, limit=2**24)
    engine.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    stepping = asyncio.create_task(engine.run())
    try:
        yield engine
    finally:
        stepping.cancel()
        server.close()
