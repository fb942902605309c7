"""Conversations of several turns, streamed, each turn with the whole history: what prefix caches and routers are made for."""

from __future__ import annotations

import asyncio
import json
import random
import time
from dataclasses import dataclass, field

import httpx

_STOCK = [
    "the",
    "tide",
    "gate",
    "lets",
    "one",
    "boat",
    "pass",
    "before",
    "sea",
    "turns",
    "and",
    "every",
    "harbour",
    "light",
    "is",
    "lit",
    "again",
    "while",
    "gulls",
    "follow",
    "nets",
    "along",
    "a",
    "grey",
    "wall",
    "where",
    "old",
    "ropes",
    "dry",
    "in",
    "wind",
    "under",
    "quiet",
    "bells",
    "of",
    "morning",
]


@dataclass(frozen=True)
class Shape:
    """A load: so many conversations at once, of so many turns.

    `house_words` is the length of the system prompt, of which there are `houses`; `turn_words` that of a user's turn.
    """

    sessions: int
    turns: int
    houses: int
    house_words: int
    turn_words: int
    tokens: int
    pause_s: float


@dataclass
class Seen:
    """What the clients saw: seconds to the first token of each turn (first turns apart), tokens, and errors by kind."""

    first_turns: list[float] = field(default_factory=list)
    later_turns: list[float] = field(default_factory=list)
    tokens: int = 0
    seconds: float = 0.0
    errors: dict[str, int] = field(default_factory=dict)

    def failed(self, what: str) -> None:
        """Count an error."""
        self.errors[what] = self.errors.get(what, 0) + 1


def words(count: int, seed: str) -> str:
    """So many words; the same for the same seed."""
    draw = random.Random(seed)
    return " ".join(draw.choice(_STOCK) for _ in range(count))


async def converse(url: str, key: str, model: str, shape: Shape, seed: int) -> Seen:
    """Hold all conversations of a load at once.

    Args:
        url: the router.
        key: its API key.
        model: the model's id.
        shape: the load.
        seed: names the texts: another seed shares no prefix with this one.
    """
    seen = Seen()
    limits = httpx.Limits(max_connections=shape.sessions, max_keepalive_connections=shape.sessions)
    headers = {"authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=300, trust_env=False, limits=limits) as http:
        started = time.perf_counter()
        await asyncio.gather(*(_session(http, model, shape, seed, number, seen) for number in range(shape.sessions)))
        seen.seconds = time.perf_counter() - started
    return seen


async def _session(http: httpx.AsyncClient, model: str, shape: Shape, seed: int, number: int, seen: Seen) -> None:
    house = f"House {seed}-{number % shape.houses}. {words(shape.house_words, f'{seed}/{number % shape.houses}')}"
    messages = [{"role": "system", "content": house}]
    draw = random.Random(f"{seed}:{number}")
    for turn in range(shape.turns):
        await asyncio.sleep(draw.uniform(0.0, 2.0 * shape.pause_s))
        messages.append({"role": "user", "content": words(shape.turn_words, f"{seed}/{number}/{turn}")})
        body = {
            "model": model,
            "messages": messages,
            "max_tokens": shape.tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        text = await _turn(http, body, turn, seen)
        if text is None:
            return
        messages.append({"role": "assistant", "content": text})


async def _turn(http: httpx.AsyncClient, body: dict[str, object], turn: int, seen: Seen) -> str | None:
    """One turn; its answer's text, or None when it failed."""
    started, first, parts, ended = time.perf_counter(), 0.0, [], False
    try:
        async with http.stream("POST", "/v1/chat/completions", json=body) as answer:
            if answer.status_code != 200:
                await answer.aread()
                seen.failed(f"status {answer.status_code}")
                return None
            async for line in answer.aiter_lines():
                if line == "data: [DONE]":
                    ended = True
                elif line.startswith("data: {"):
                    event = json.loads(line[6:])
                    for choice in event.get("choices") or ():
                        if text := (choice.get("delta") or {}).get("content"):
                            first = first or time.perf_counter()
                            parts.append(text)
                    seen.tokens += (event.get("usage") or {}).get("completion_tokens", 0)
    except httpx.HTTPError as error:
        seen.failed(type(error).__name__)
        return None
    if not ended or not first:
        seen.failed("a stream without its end")
        return None
    (seen.later_turns if turn else seen.first_turns).append(first - started)
    return "".join(parts)
