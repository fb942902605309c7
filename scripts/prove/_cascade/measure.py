"""What each way of choosing gets right at which cost: from every question asked of both models, and from the live router."""

from __future__ import annotations

import asyncio
import csv
import math
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from _cascade.questions import Question
from _cascade.stack import Stack
from router.complexity.cascade import token_logprobs
from router.complexity.compile import load_model
from router.complexity.features import read_features
from router.complexity.model import read_gains

_AT_ONCE = 16


class Asked(msgspec.Struct, frozen=True):
    """One question with both models' answers: right or not, what each cost in US dollars, and what a router may go by."""

    question: Question
    small: bool
    large: bool
    small_usd: float
    large_usd: float
    logprobs: tuple[float, ...]
    gain: float

    def confidence(self, tokens: int | None = None) -> float:
        """Mean log-probability of the small model's answer, or of its first tokens."""
        seen = self.logprobs[:tokens]
        return sum(seen) / len(seen) if seen else -100.0


class Outcome(msgspec.Struct, frozen=True):
    """Share of right answers, mean cost in US dollars, share that the large model answered, and seconds per question."""

    right: float
    usd: float
    large: float
    seconds: float = 0.0


async def ask_both(stack: Stack, questions: Sequence[Question], minutes: float) -> list[Asked]:
    """Every question by name to both models, as many as there is time for; the gains are nobody's yet (see `with_gains`)."""
    gate = asyncio.Semaphore(_AT_ONCE)
    ends = time.monotonic() + minutes * 60
    asked: list[Asked] = []

    async def one(question: Question) -> None:
        async with gate:
            if time.monotonic() > ends:
                return
            said, small, response = await stack.ask(question.text, "m-small", logprobs=True)
            better, large, _ = await stack.ask(question.text, "m-large")
        asked.append(
            Asked(
                question,
                question.is_right(said),
                question.is_right(better),
                cost(stack, small),
                cost(stack, large),
                token_logprobs(response.json()["choices"][0]),
                0.0,
            )
        )
        if len(asked) % 100 == 0:
            print(f"{len(asked)} of {len(questions)} questions asked", flush=True)

    await asyncio.gather(*map(one, questions))
    return asked


def with_gains(asked: Sequence[Asked], weights: Path) -> list[Asked]:
    """The same with the gain that the first head of a weights file expects of each prompt."""
    model = load_model(weights)
    return [msgspec.structs.replace(one, gain=read_gains(model, read_features(one.question.text), 0).gains[0]) for one in asked]


def write_outcomes(asked: Sequence[Asked], path: Path) -> None:
    """As the CSV that `scripts/train/complexity --csv` reads: the prompt, and both scores."""
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = [(one.question.text, int(one.small), int(one.large)) for one in asked]
        csv.writer(file).writerows([("prompt", "small", "large"), *rows])


def cost(stack: Stack, receipt: dict[str, Any]) -> float:
    """What a request cost, over all its steps."""
    if receipt["steps"]:
        return sum(step["cost_usd"] or 0.0 for step in receipt["steps"])
    price = stack.router.state.prices.of("", receipt["attempts"][-1]["model"])
    return (receipt["prompt_tokens"] * price.prompt + receipt["completion_tokens"] * price.completion) / 1e6


def cascaded(asked: Sequence[Asked], threshold: float, tokens: int | None = None) -> Outcome:
    """Small first; the large model where the mean log-probability (of the first `tokens`, or of all) is below the threshold."""
    up = [one.confidence(tokens) < threshold for one in asked]
    right = [one.large if beyond else one.small for one, beyond in zip(asked, up, strict=True)]
    usd = [one.small_usd + one.large_usd * beyond for one, beyond in zip(asked, up, strict=True)]
    return Outcome(_mean(right), _mean(usd), _mean(up))


def routed_at(asked: Sequence[Asked], scores: Sequence[float], usd: float) -> Outcome:
    """One model per question, the highest scores to the large one, as many as this mean cost pays for.

    The last question is split, so that the cost is met exactly; what the money does not pay for stays small.
    """
    order = sorted(range(len(asked)), key=lambda place: -scores[place])
    right = sum(one.small for one in asked) / 1.0
    spent, moved = sum(one.small_usd for one in asked), 0.0
    budget = usd * len(asked)
    for place in order:
        one = asked[place]
        more = one.large_usd - one.small_usd
        part = min(1.0, max(0.0, (budget - spent) / more)) if more > 0 else 1.0
        right += part * (one.large - one.small)
        spent += part * more
        moved += part
        if part < 1.0:
            break
    return Outcome(right / len(asked), spent / len(asked), moved / len(asked))


def best_threshold(asked: Sequence[Asked]) -> float:
    """The threshold with the largest lead over an even draw at the same cost, on questions that are not reported."""
    candidates = sorted({round(one.confidence(), 4) for one in asked})

    def lead(threshold: float) -> float:
        found = cascaded(asked, threshold)
        return found.right - evenly(asked, found.usd).right

    return max(candidates, key=lead)


def evenly(asked: Sequence[Asked], usd: float) -> Outcome:
    """What drawing lots gets at this cost, on average."""
    small, large = _mean([one.small for one in asked]), _mean([one.large for one in asked])
    cheap, dear = _mean([one.small_usd for one in asked]), _mean([one.large_usd for one in asked])
    share = min(1.0, max(0.0, (usd - cheap) / (dear - cheap)))
    return Outcome(small + share * (large - small), cheap + share * (dear - cheap), share)


def lead_interval(asked: Sequence[Asked], threshold: float, rounds: int = 2000, seed: int = 7) -> tuple[float, float]:
    """95 % bootstrap interval of what the cascade gets right beyond the prompt-only router at equal cost."""
    dice = random.Random(seed)
    leads = []
    for _ in range(rounds):
        drawn = dice.choices(asked, k=len(asked))
        found = cascaded(drawn, threshold)
        leads.append(found.right - routed_at(drawn, [one.gain for one in drawn], found.usd).right)
    leads.sort()
    return leads[math.floor(0.025 * rounds)], leads[math.ceil(0.975 * rounds) - 1]


def paired(asked: Sequence[Asked], threshold: float) -> tuple[int, int, float]:
    """Questions that only the cascade has right, those that only the prompt-only router has right at no less cost, and how
    likely so uneven a split is by chance (McNemar's exact test, two-sided: McNemar 1947).
    """
    budget = cascaded(asked, threshold).usd * len(asked)
    order = sorted(range(len(asked)), key=lambda place: -asked[place].gain)
    spent, dear = sum(one.small_usd for one in asked), set()
    for place in order:
        if spent >= budget:
            break
        dear.add(place)
        spent += asked[place].large_usd - asked[place].small_usd
    ours = theirs = 0
    for place, one in enumerate(asked):
        cascade = one.large if one.confidence() < threshold else one.small
        routed = one.large if place in dear else one.small
        ours += cascade and not routed
        theirs += routed and not cascade
    count = ours + theirs
    tail = sum(math.comb(count, place) for place in range(min(ours, theirs) + 1)) / 2**count
    return ours, theirs, min(1.0, 2 * tail)


async def live(stack: Stack, questions: Sequence[Question], complexity: dict[str, Any]) -> Outcome:
    """The same questions to `auto` under a configuration; every other one as a stream."""
    await stack.use(complexity)
    gate = asyncio.Semaphore(_AT_ONCE)

    async def one(place: int, question: Question) -> tuple[bool, float, bool, float]:
        async with gate:
            started = time.monotonic()
            said, receipt, response = await stack.ask(question.text, "auto", **({"stream": True} if place % 2 else {}))
            took = time.monotonic() - started
        return question.is_right(said), cost(stack, receipt), response.headers["x-tidegate-model"] == "m-large", took

    # One after the other: the share tracker of the prompt-only router goes by the order of the requests.
    found = await asyncio.gather(*(one(place, question) for place, question in enumerate(questions)))
    right, usd, large, took = zip(*found, strict=True)
    return Outcome(_mean(right), _mean(usd), _mean(large), _mean(took))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
