"""An open-loop load: requests come when they come, whatever became of those before."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

WORD = b"word "
WORDS_PER_S = 4e4
"""How many words of a prompt the engines read in a second."""


@dataclass(frozen=True)
class Kind:
    """A kind of request: a key, its share of all requests, seconds of prefill, and its class."""

    key: str
    tenant: str
    share: float
    prefill_s: float
    priority: str = "normal"


@dataclass(frozen=True)
class Reply:
    """What became of one request; `first_s` is the time to the first byte of an answer, -1 without one, `told_s` to any head."""

    kind: Kind
    status: int
    first_s: float
    retry_s: int
    told_s: float = -1.0


def arrivals(kinds: Sequence[Kind], rate: float, seconds: float, seed: int) -> list[tuple[float, Kind]]:
    """Poisson arrivals: (second, kind)."""
    dice = random.Random(seed)
    now, found = 0.0, []
    while True:
        now += dice.expovariate(rate)
        if now >= seconds:
            return found
        found.append((now, dice.choices(kinds, [kind.share for kind in kinds])[0]))


async def send_all(port: int, plan: Sequence[tuple[float, Kind]]) -> list[Reply]:
    """Send every request at its time and wait for all answers."""
    began = time.perf_counter()

    async def one(at: float, kind: Kind) -> Reply:
        await asyncio.sleep(max(0.0, began + at - time.perf_counter()))
        return await _ask(port, kind)

    return list(await asyncio.gather(*(one(at, kind) for at, kind in plan)))


async def _ask(port: int, kind: Kind) -> Reply:
    words = b"%d " % random.getrandbits(64) + WORD * round(kind.prefill_s * WORDS_PER_S)  # no two prompts begin alike
    body = b'{"model":"m","stream":true,"max_tokens":16,"messages":[{"role":"user","content":"%b"}]}' % words
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer {kind.key}\r\n"
        f"content-type: application/json\r\nx-tidegate-priority: {kind.priority}\r\n"
        f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    started = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(head.encode() + body)
        answer = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        told_s = time.perf_counter() - started
        status = int(answer.split(" ", 2)[1])
        fields = dict(line.split(": ", 1) for line in answer.split("\r\n")[1:] if ": " in line)
        whole = await reader.read()
        if status == 200 and b"[DONE]" not in whole:
            status = 599
        return Reply(kind, status, told_s if status == 200 else -1.0, int(fields.get("retry-after", 0)), told_s)
    except (ConnectionError, asyncio.IncompleteReadError):
        return Reply(kind, 599, -1.0, 0)
    finally:
        writer.close()
