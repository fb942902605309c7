"""Streamed chats, so many at once, counted by the usage that the engine itself reports."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass

import httpx

_STOCK = "the tide gate lets one boat pass before the sea turns and every harbour light is lit again"


@dataclass(frozen=True)
class Take:
    """One batch of requests against one address."""

    tokens: int
    seconds: float

    @property
    def rate(self) -> float:
        """Output tokens a second."""
        return self.tokens / self.seconds


class WrongAnswer(RuntimeError):
    """A request of the batch did not end as it should; then the batch measured nothing."""


def prompts(count: int, words: int, seed: int) -> list[str]:
    """Different texts of about that many tokens, so that no prefix cache helps one side."""
    stock = _STOCK.split()
    return [" ".join([f"{seed}-{i}:", *(stock[(i * 7 + seed + j * j) % len(stock)] for j in range(words))]) for i in range(count)]


async def batch(url: str, key: str, model: str, texts: list[str], concurrency: int, tokens: int) -> Take:
    """Ask for every text, `concurrency` at once, `tokens` tokens each, streamed.

    Raises:
        WrongAnswer: a status other than 200, a stream without its end, or another number of tokens.
    """
    gate = asyncio.Semaphore(concurrency)
    limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
    headers = {"authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=600, trust_env=False, limits=limits) as http:

        async def one(text: str) -> int:
            async with gate:
                return await _ask(http, _body(model, text, tokens), tokens)

        started = time.perf_counter()
        counted = await asyncio.gather(*map(one, texts))
        return Take(sum(counted), time.perf_counter() - started)


def _body(model: str, text: str, tokens: int) -> dict[str, object]:
    return {
        "model": model,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": tokens,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def _ask(http: httpx.AsyncClient, body: dict[str, object], tokens: int) -> int:
    usage, ended = 0, False
    async with http.stream("POST", "/v1/chat/completions", json=body) as answer:
        if answer.status_code != 200:
            raise WrongAnswer(f"status {answer.status_code}: {(await answer.aread())[:200].decode(errors='replace')}")
        async for line in answer.aiter_lines():
            ended = ended or line == "data: [DONE]"
            if '"usage"' in line and line.startswith("data: {"):
                usage = ((json.loads(line[6:]).get("usage")) or {}).get("completion_tokens", usage)
    if not ended or usage != tokens:
        raise WrongAnswer(f"{usage} tokens instead of {tokens}" if ended else "the stream did not end with [DONE]")
    return usage
