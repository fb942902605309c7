"""Requests over four engines, one of them killed every few seconds: nothing is lost, cut unnoticed, doubled or answered twice."""

from __future__ import annotations

import asyncio
import json
import random
import re
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from _dataplane import routers
from _dataplane.client import Connection, request
from _dataplane.decoder import Decoded
from _dataplane.engines import engine_processes, keep_killing
from _dataplane.numbered import token

WORKERS = 48
_TYPED = {b"overloaded", b"upstream_error"}
_DONE = b"data: [DONE]\n\n"
_ERROR_EVENT = re.compile(rb'data: \{"error":\{.*"upstream_error".*\}\}\n\n\Z')


@dataclass
class Count:
    """What came of the requests."""

    outcomes: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    lost: int = 0
    truncated: int = 0
    doubled: int = 0
    kills: int = 0
    executions: Counter[str] = field(default_factory=Counter)
    took_s: float = 0.0


def judge(count: Count, request_id: str, n: int, streamed: bool, got: Decoded) -> None:
    """Book one answer; `got` is what the client decoded until the answer or the connection ended."""

    def wrong(what: str, why: str) -> None:
        setattr(count, what, getattr(count, what) + 1)
        count.violations.append(f"{request_id}: {why}; status {got.status}, {got.body[-120:]!r}")

    if got.wrong or got.rest:
        wrong("doubled", f"not one answer: {got.wrong or got.rest[:60]!r}")
    elif not got.status:
        wrong("lost", "the connection broke before any byte")
    elif got.header(b"x-request-id") != request_id.encode():
        wrong("doubled", "the answer of another request")
    elif got.status != 200:
        typed = got.complete and json.loads(got.body)["error"]["code"].encode() in _TYPED
        count.outcomes[f"typed {got.status}"] += 1
        if not typed or got.status not in (502, 503):
            wrong("lost", "an untyped failure")
    elif streamed:
        _judge_stream(count, wrong, request_id, n, got)
    elif got.complete:
        answer = json.loads(got.body)
        count.outcomes["json whole"] += 1
        if answer["id"] != request_id or answer["tokens"] != list(range(n)):
            wrong("doubled", "another answer")
    else:
        count.outcomes["json broken"] += 1


def _judge_stream(count: Count, wrong, request_id: str, n: int, got: Decoded) -> None:  # type: ignore[no-untyped-def]
    body, done = got.body, got.body.endswith(_DONE)
    error = _ERROR_EVENT.search(body)
    tokens = body[: error.start()] if error else body.removesuffix(_DONE)
    whole = b"".join(token(request_id, i) for i in range(n))
    if not whole.startswith(tokens):
        wrong("doubled", "tokens are missing, doubled or foreign")
    elif got.complete and done and tokens == whole:
        count.outcomes["stream whole"] += 1
    elif got.complete and error and _DONE not in body:
        count.outcomes["stream error event"] += 1
    elif not got.complete and not done:
        count.outcomes["stream broken"] += 1
    elif not got.complete and tokens == whole:
        count.outcomes["stream whole, its end broken"] += 1
    else:
        wrong("truncated", "cut, and nothing says so")


async def _worker(port: int, numbers: list[int], rng: random.Random, count: Count) -> None:
    connection = Connection(port)
    while numbers:
        number = numbers.pop()
        request_id, streamed, n = f"kill-{number:06d}", rng.random() < 0.6, rng.randint(3, 30)
        wish = f"{'sse' if streamed else 'json'} {n} {rng.choice([1, 3, 6])}"
        body = {"model": "m", "stream": streamed, "messages": [{"role": "user", "content": wish}]}
        try:
            got = await connection.ask(request(body, routers.KEY, request_id), limit_s=30)
        except TimeoutError:
            got = Decoded()
        judge(count, request_id, n, streamed, got)
    connection.close()


async def run(requests: int, period_s: float, seed: int = 1, *, apart: bool = True, workers: int = WORKERS) -> Count:
    """Send the requests while engines die."""
    count, rng = Count(), random.Random(seed)
    open_router = routers.outside if apart else routers.inside
    with tempfile.TemporaryDirectory(prefix="tidegate-prove-") as folder, engine_processes(4, Path(folder)) as engines:
        config = routers.make_config({f"e{i}": (engine.port, "m") for i, engine in enumerate(engines)})
        async with open_router(config) as router:
            killer = asyncio.create_task(keep_killing(engines, period_s, rng))
            started = time.monotonic()
            numbers = list(range(requests))
            await asyncio.gather(*(_worker(router.port, numbers, rng, count) for _ in range(workers)))
            count.took_s = time.monotonic() - started
            killer.cancel()
            if not await router.settles():
                count.violations.append("the books do not return to 0")
        count.kills = sum(engine.kills for engine in engines)
        starts = Counter(words[1] for engine in engines for words in engine.events() if words[0] == "start")
        count.executions = Counter(starts.values())
    return count
