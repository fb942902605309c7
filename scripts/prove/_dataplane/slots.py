"""Clients of a real vLLM that leave: when its slot is free again, by its own gauges, with a router between and without."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from _dataplane import routers
from _dataplane.client import ask

ROUTED, DIRECT = "through the router", "without it"
GOAL_MS = 100.0
LIMIT_S = 60.0
"""For a request to begin or to end at all: what takes longer is a fault, not a delay."""
LOOK_S = 0.01
"""Between two looks at the gauges. A look costs vLLM 15 ms, on the loop that also has to notice who left."""
_GAUGES = re.compile(rb"^vllm:num_requests_(?:running|waiting)\{[^}]*\} (\S+)", re.MULTILINE)
_ASK = {"messages": [{"role": "user", "content": "Tell me a long story."}]}
_KINDS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {**_ASK, "max_tokens": 1500, "ignore_eos": True},
    "/v1/completions": {"prompt": "Once upon a time", "max_tokens": 1500, "ignore_eos": True},
    "/v1/responses": {"input": "Tell me a long story.", "max_output_tokens": 1500, "ignore_eos": True},
    "/v1/messages": {**_ASK, "max_tokens": 1500},
}


@dataclass
class Result:
    """By way, with a router between and without, and by kind: seconds from a client's leaving until vLLM had nothing to do."""

    delays: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)

    def over_all_ms(self, way: str) -> tuple[float, float, int]:
        """The median and the 99th percentile over all kinds, in ms, and of how many."""
        every = sorted(delay for delays in self.delays.get(way, {}).values() for delay in delays)
        if not every:
            return float("inf"), float("inf"), 0
        return 1000 * every[len(every) // 2], 1000 * every[int(len(every) * 0.99)], len(every)

    @property
    def verdict(self) -> str:
        """What this run says of the goal. The delay has vLLM's own part in it, which the way without a router shows."""
        if self.over_all_ms(ROUTED)[1] <= GOAL_MS:
            return f"{GOAL_MS:.0f} ms met"
        return f"{GOAL_MS:.0f} ms missed" + ("" if self.missed else ", and so they are without the router")

    @property
    def missed(self) -> bool:
        """Whether the router is what missed the goal."""
        return self.over_all_ms(ROUTED)[1] > GOAL_MS >= self.over_all_ms(DIRECT)[1]


class Engine:
    """A running vLLM that nobody else uses, and its gauges."""

    def __init__(self, port: int) -> None:
        self.port = port

    async def busy(self) -> float:
        """How many requests it works on, or has waiting."""
        answer = await ask(self.port, b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        found = _GAUGES.findall(answer.body)
        if not found:
            raise RuntimeError(f"port {self.port} has no gauges of vLLM's at /metrics")
        return sum(map(float, found))

    async def becomes(self, busy: bool) -> float:
        """When it was first seen to have something (or nothing) to do.

        Raises:
            TimeoutError: it did not come to that.
        """
        async with asyncio.timeout(LIMIT_S):
            while True:
                if bool(await self.busy()) is busy:
                    return time.monotonic()
                await asyncio.sleep(LOOK_S)


async def _leave(engine: Engine, port: int, head: bytes, body: bytes) -> float:
    """Ask, leave as soon as vLLM is at work on it, and wait until it is not; the seconds that took."""
    await engine.becomes(busy=False)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(b"%bcontent-length: %d\r\n\r\n%b" % (head, len(body), body))
        await engine.becomes(busy=True)
        if b'"stream": true' in body:
            async with asyncio.timeout(LIMIT_S):
                await reader.readuntil(b"data: ")  # the answer has begun
    finally:
        writer.transport.abort()
    left = time.monotonic()
    return await engine.becomes(busy=False) - left


async def run(engine_port: int, ways: Mapping[str, int], model: str, each: int, key: str = routers.KEY) -> Result:
    """Let `each` clients leave each kind of request, one at a time, each way in turn.

    Args:
        engine_port: of a vLLM on this machine, idle.
        ways: the port to ask, by name: of a router with that vLLM as its only target (`ROUTED`), of vLLM itself (`DIRECT`).
        model: what both call the model.
        each: how many of each kind, streamed and not.
        key: opens the router.
    """
    result, engine = Result({way: defaultdict(list) for way in ways}), Engine(engine_port)
    for path, fields in _KINDS.items():
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-type: application/json\r\n".encode()
        for stream in (False, True):
            kind = path + " streamed" * stream
            body = json.dumps({"model": model, "temperature": 0, "stream": stream, **fields}).encode()
            for _ in range(each):
                for way, port in ways.items():
                    try:
                        result.delays[way][kind].append(await _leave(engine, port, head, body))
                    except (TimeoutError, asyncio.IncompleteReadError) as error:
                        result.violations.append(f"{kind}, {way}: {type(error).__name__}")
    return result
