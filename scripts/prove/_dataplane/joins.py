"""Streams over four engines that are killed: what is carried on elsewhere is the unbroken answer, token by token.

The engines run a little language model in which every token depends on all before, so a token that is lost, doubled or spelled
otherwise changes the whole rest of the answer; the proof computes the unbroken answer itself.
"""

from __future__ import annotations

import asyncio
import json
import random
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from _dataplane import routers
from _dataplane.client import Connection, request
from _dataplane.decoder import Decoded
from _dataplane.engines import engine_processes, keep_killing
from _dataplane.little_model import CONTEXT, generate, prompt_of

WORKERS = 16
CHAT = "/v1/chat/completions"


@dataclass
class Joins:
    """What came of the streams; `breaks` are the router's own counts by what became of a broken stream."""

    outcomes: Counter[str] = field(default_factory=Counter)
    breaks: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    lost: int = 0
    truncated: int = 0
    doubled: int = 0
    kills: int = 0
    took_s: float = 0.0


def judge(joins: Joins, body: dict[str, Any], got: Decoded) -> None:
    """Book one answer."""
    name = body["messages"][0]["content"]

    def wrong(what: str, why: str) -> None:
        setattr(joins, what, getattr(joins, what) + 1)
        joins.violations.append(f"{name}: {why}; status {got.status}, {got.body[-160:]!r}")

    if not got.status or got.wrong or got.rest:
        wrong("lost", "no answer, or more than one")
    elif got.status != 200:
        joins.outcomes[f"typed {got.status}"] += 1
        if not got.complete or b'"code"' not in got.body:
            wrong("lost", "an untyped failure")
    else:
        _judge_stream(joins, wrong, body, got)


def _judge_stream(joins: Joins, wrong, body: dict[str, Any], got: Decoded) -> None:  # type: ignore[no-untyped-def]
    prompt = prompt_of(CHAT, body)
    events = list(generate(prompt, CONTEXT - len(prompt)))
    text, count = "".join(event[1] for event in events), sum(len(event[0]) for event in events)
    blocks = got.body.decode().split("\n\n")
    data = [block.removeprefix("data: ") for block in blocks if block.startswith("data: ")]
    chunks = [json.loads(item) for item in data if item != "[DONE]"]
    content = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks if c.get("choices"))
    usage = [c["usage"]["completion_tokens"] for c in chunks if "usage" in c]
    error, done = any("error" in c for c in chunks), data.count("[DONE]")
    if not text.startswith(content) or b'token_ids":[' in got.body or done > 1:
        wrong("doubled", "tokens are missing, doubled or foreign")
    elif not error and (done != 1 or content != text or usage != [count] or len({c["id"] for c in chunks}) != 1):
        wrong("truncated", f"not the unbroken answer: {done} ends, usage {usage} of {count}")
    elif error and done:
        wrong("truncated", "an error and an end")
    elif error:
        joins.outcomes["error event"] += 1
    else:
        joined = sum(block.startswith(": tidegate: continued") for block in blocks)
        joins.outcomes["whole" if not joined else "joined once" if joined == 1 else "joined again"] += 1


async def _worker(port: int, numbers: list[int], joins: Joins) -> None:
    connection = Connection(port)
    while numbers:
        number = numbers.pop()
        messages = [{"role": "user", "content": f"question {number}"}]
        body = {"model": "m", "stream": True, "temperature": 0, "messages": messages, "stream_options": {"include_usage": True}}
        try:
            got = await connection.ask(request(body, routers.KEY, f"join-{number:06d}"), limit_s=60)
        except TimeoutError:
            got = Decoded()
        judge(joins, body, got)
    connection.close()


async def run(streams: int, period_s: float, seed: int = 1, *, apart: bool = True, workers: int = WORKERS) -> Joins:
    """Send the streams while engines die."""
    joins, rng = Joins(), random.Random(seed)
    open_router = routers.outside if apart else routers.inside
    with (
        tempfile.TemporaryDirectory(prefix="tidegate-prove-") as folder,
        engine_processes(4, Path(folder), "_dataplane.little_model") as engines,
    ):
        config = routers.make_config({f"e{i}": (engine.port, "m") for i, engine in enumerate(engines)})
        for target in config["targets"]:
            target |= {"token_ids": True, "context_tokens": CONTEXT}
        async with open_router(config) as router:
            killer = asyncio.create_task(keep_killing(engines, period_s, rng))
            started = time.monotonic()
            numbers = list(range(streams))
            await asyncio.gather(*(_worker(router.port, numbers, joins) for _ in range(workers)))
            joins.took_s = time.monotonic() - started
            killer.cancel()
            if not await router.settles():
                joins.violations.append("the books do not return to 0")
            joins.breaks = await router.stream_breaks()
        joins.kills = sum(engine.kills for engine in engines)
    return joins
