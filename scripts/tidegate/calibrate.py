"""Measure a running engine: cold prefills of many lengths, decode steps of many batches, its KV cache and what a hit there saves.

Everything goes through the engine's own OpenAI endpoint and `/metrics`. Prompts are random token ids, so their length is exact
and no two share a prefix by accident. The engine must have nothing else to do meanwhile; its counters tell whether it had.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

import httpx

from tidegate.fit_profile import Fit, FitError, Limits, Observation, Step, fit, prefill_steps

_FIRST_ID, _LAST_ID = 200, 20_000
"""Token ids that prompts are drawn from: in every vocabulary in use, and past the control tokens that most begin with."""
_DEFAULT_STEP_TOKENS, _DEFAULT_SLOTS = 2048, 256
"""vLLM's own, assumed where neither a measurement nor the user says otherwise."""
_SLOW_S = 6.0
"""Once one measurement takes so long, no longer prompt and no larger batch follows."""
_WINDOW = 32
"""Tokens of each answer over which a decode pace is taken."""
_LONGEST = 16_384
_FOREIGN = 0.02
_ANSWER_S = 600.0
Clock = Callable[[], float]


class CalibrationError(RuntimeError):
    """The engine cannot be measured; the text says why and what to do."""


@dataclass(frozen=True)
class Plan:
    """What to measure. `step_tokens`, `slots` and `kv_tokens` are taken as given unless 0; `most` bounds the batch."""

    url: str
    name: str
    model: str = ""
    api_key: str = ""
    step_tokens: int = 0
    slots: int = 0
    kv_tokens: int = 0
    most: int = 64
    repeats: int = 5


@dataclass
class Calibration:
    """What was found, and how."""

    model: str
    fit: Fit | None = None
    notes: list[str] = field(default_factory=list)
    block_tokens: int = 0
    kv_blocks: int = 0
    hit_tokens: int = 0
    cold_s: float = 0.0
    warm_s: float = 0.0
    """The longest prompt that was sent twice: tokens found in the cache the second time, and the first token of both."""
    prefills: list[tuple[int, float]] = field(default_factory=list)
    decodes: list[tuple[int, int, float]] = field(default_factory=list)
    """Batch, context of each sequence, seconds of a step."""

    def as_dict(self) -> dict[str, Any]:
        """As plain data."""
        data = {name: value for name, value in asdict(self).items() if name != "fit"}
        fit = self.fit
        return data if fit is None else data | {"request_s": fit.request_s, "error": fit.error, "worst": fit.worst}


async def calibrate(plan: Plan, tell: Callable[[str], None] = lambda text: None, clock: Clock = time.perf_counter) -> Calibration:
    """Measure an engine and fit its profile.

    Args:
        plan: which engine, and what is known of it.
        tell: hears what is being done.
        clock: seconds; what times are taken with.

    Raises:
        CalibrationError: the engine does not answer, is busy, or does not give what is needed.
    """
    headers = {"authorization": f"Bearer {plan.api_key}"} if plan.api_key else {}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=plan.most + 4)
    try:
        async with httpx.AsyncClient(
            base_url=plan.url.rstrip("/"), headers=headers, timeout=_ANSWER_S, trust_env=False, limits=limits
        ) as http:
            return await _Session(http, plan, tell, clock).run()
    except httpx.InvalidURL as error:
        raise CalibrationError(f"{plan.url}: {error}") from None
    except httpx.HTTPError as error:
        raise CalibrationError(f"{plan.url} does not answer: {type(error).__name__}: {error}") from None
    except FitError as error:
        raise CalibrationError(f"what {plan.url} gave does not determine a profile: {error}") from None


class _Session:
    """One calibration under way."""

    def __init__(self, http: httpx.AsyncClient, plan: Plan, tell: Callable[[str], None], clock: Clock) -> None:
        self._http, self._plan, self._tell, self._clock = http, plan, tell, clock
        self._random = random.Random(20261122)
        self._model = plan.model
        self._context = 0
        self._sent = 0
        self._seen: list[Observation] = []
        self._notes: list[str] = []

    async def run(self) -> Calibration:
        """All measurements, in order, and the fit."""
        await self._meet()
        page = await self._metrics()
        if _sum(page, "vllm:num_requests_running") + _sum(page, "vllm:num_requests_waiting"):
            raise CalibrationError(f"{self._plan.url} is serving others; measure an engine that has nothing else to do")
        blocks, block_tokens = _kv_blocks(page)
        kv_tokens = self._plan.kv_tokens or blocks * block_tokens
        if not kv_tokens:
            raise CalibrationError(
                f"{self._plan.url}/metrics says nothing of its KV cache (vllm:cache_config_info): give --kv-tokens"
            )
        longest = min(self._context - 96, _LONGEST, kv_tokens // 2)
        if longest < 64:
            raise CalibrationError(f"a context of {self._context} tokens is too short to measure anything")
        for _ in range(3):
            await self._first_token(self._prompt(min(256, longest)))
        before, self._sent = _sum(await self._metrics(), "vllm:prompt_tokens_total"), 0
        found = Calibration(self._model, None, self._notes, block_tokens, blocks)
        prefills, longest = await self._prefill(longest)
        found.prefills = prefills
        step_tokens = self._plan.step_tokens or await self._find_step_tokens(longest)
        self._seen += (Observation(seconds, prefill_steps(length, 0, step_tokens), 1) for length, seconds in prefills)
        await self._warm(longest, step_tokens, found)
        slots = await self._decode(kv_tokens, step_tokens, found)
        await self._check_alone(before)
        found.fit = fit(self._seen, Limits(self._plan.name, kv_tokens, step_tokens, slots))
        return found

    # -- asking

    async def _get(self, path: str) -> httpx.Response:
        answer = await self._http.get(path)
        if answer.status_code in (401, 403):
            raise CalibrationError(
                f"{self._plan.url}{path} answered {answer.status_code}: give --api-key-env, and for an engine behind tidegate's "
                f"guard start one without it (`python -m vllm.entrypoints.openai.api_server` with the same arguments)"
            )
        if answer.status_code != 200:
            raise CalibrationError(f"{self._plan.url}{path} answered {answer.status_code}: this is no OpenAI-compatible engine")
        return answer

    async def _meet(self) -> None:
        """Which model, and how long its context is."""
        try:
            listed = (await self._get("/v1/models")).json()["data"]
            names = [str(model["id"]) for model in listed]
        except (ValueError, KeyError, TypeError):
            raise CalibrationError(f"{self._plan.url}/v1/models answered something else than a list of models") from None
        if not names:
            raise CalibrationError(f"{self._plan.url} serves no model")
        self._model = self._model or names[0]
        if self._model not in names:
            raise CalibrationError(f"{self._plan.url} does not serve {self._model}; it serves {', '.join(names)}")
        self._context = int(next(m for m in listed if m["id"] == self._model).get("max_model_len") or 4096)

    async def _metrics(self) -> str:
        return (await self._get("/metrics")).text

    def _prompt(self, length: int) -> list[int]:
        return [self._random.randint(_FIRST_ID, _LAST_ID) for _ in range(length)]

    async def _stream(self, prompt: Sequence[int], tokens: int, going: asyncio.Event | None = None) -> list[tuple[float, int]]:
        """The times at which an answer's tokens came, each with how many there were by then; the first pair is the sending.

        `going` is set once a few have come.
        """
        body = {
            "model": self._model,
            "prompt": list(prompt),
            "max_tokens": tokens,
            "min_tokens": tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        }
        self._sent += len(prompt)
        seen = [(self._clock(), 0)]
        async with self._http.stream("POST", "/v1/completions", json=body) as answer:
            if answer.status_code != 200:
                text = (await answer.aread()).decode(errors="replace")[:200]
                raise CalibrationError(f"{self._plan.url}/v1/completions answered {answer.status_code}: {text}")
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    event = json.loads(line[6:])
                    if event.get("choices"):
                        counted = (event.get("usage") or {}).get("completion_tokens")
                        seen.append((self._clock(), counted or seen[-1][1] + 1))
                        if going is not None and len(seen) > 6:
                            going.set()
        if len(seen) < 2:
            raise CalibrationError(f"{self._plan.url}/v1/completions ended without a token")
        return seen

    async def _first_token(self, prompt: Sequence[int]) -> float:
        seen = await self._stream(prompt, 1)
        return seen[1][0] - seen[0][0]

    # -- measuring

    async def _prefill(self, longest: int) -> tuple[list[tuple[int, float]], int]:
        """First tokens of cold prompts, of growing length; and the longest that did not take too long."""
        found: list[tuple[int, float]] = []
        lengths = sorted({min(longest, int(base * 2**power)) for power in range(11) for base in (16, 24)})
        for length in lengths:
            times: list[float] = []
            while len(times) < self._plan.repeats and (len(times) < 3 or sum(times) < _SLOW_S):
                times.append(await self._first_token(self._prompt(length)))
            found.append((length, statistics.median(times)))
            self._tell(f"prefill of {length} tokens: {1e3 * found[-1][1]:.1f} ms")
            if found[-1][1] > _SLOW_S:
                break
        return found, found[-1][0]

    async def _find_step_tokens(self, longest: int) -> int:
        """The budget of a step, by how many steps of a running answer a long prompt slows down."""
        room = min(longest, self._context - 1)
        going, tokens = asyncio.Event(), min(self._context - 32, 96 + room // 64)
        answer = asyncio.create_task(self._stream(self._prompt(16), tokens, going))
        ready = asyncio.create_task(going.wait())
        await asyncio.wait((answer, ready), return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        asked = await self._stream(self._prompt(room), 1)
        seen = await answer
        gaps = [(later[0] - earlier[0], later[0]) for earlier, later in pairwise(seen[1:])]
        outside = [gap for gap, at in gaps if at < asked[0][0] or at > asked[1][0]]
        if len(outside) < 4:
            return self._assume_step_tokens(room, "the running answer ended too early to tell")
        usual = statistics.median(outside)
        inside = [gap for gap, at in gaps if asked[0][0] <= at <= asked[1][0] + 0.5 * usual]
        # A hiccup of the machine is longer than a step, but no match for a chunk of a long prompt.
        slowed = sum(gap > max(2 * usual, 0.1 * max(inside)) for gap in inside)
        if slowed < 2:
            return self._assume_step_tokens(room, f"a prompt of {room} tokens fits one step")
        fitting = [2**power for power in range(6, 18) if -(-room // (2**power - 1)) == slowed]
        found = fitting[0] if fitting else -(-room // slowed) + 1
        self._notes.append(f"step_tokens: a prompt of {room} tokens took {slowed} steps, so {found}")
        return found

    def _assume_step_tokens(self, room: int, why: str) -> int:
        found = max(_DEFAULT_STEP_TOKENS, 1 << (room - 1).bit_length())
        self._notes.append(f"step_tokens: not measured ({why}); {found} is assumed, --step-tokens says otherwise")
        return found

    async def _warm(self, longest: int, step_tokens: int, found: Calibration) -> None:
        """The same prompt twice: what a hit saves."""
        # Only whole blocks are cached, and the last token is always computed.
        least = min(2 * max(16, found.block_tokens) + 1, self._context - 2)
        for length in sorted({max(least, longest // 4), max(least, longest // 2), max(least, longest)}):
            prompt = self._prompt(length)
            cold = await self._first_token(prompt)
            before = _sum(await self._metrics(), "vllm:prefix_cache_hits_total")
            times = [await self._first_token(prompt) for _ in range(3)]
            hits = _sum(await self._metrics(), "vllm:prefix_cache_hits_total") - before
            cached = min(length - 1, int(hits / len(times)))
            if cached <= 0:
                self._notes.append("prefix cache: no hit; it is off, or counted nowhere. Plans assume one.")
                return
            warm = statistics.median(times)
            self._seen.append(Observation(warm, prefill_steps(length - cached, cached, step_tokens), 1))
            found.hit_tokens, found.cold_s, found.warm_s = cached, cold, warm
            self._tell(f"{cached} of {length} tokens cached: {1e3 * cold:.1f} -> {1e3 * warm:.1f} ms")

    async def _decode(self, kv_tokens: int, step_tokens: int, found: Calibration) -> int:
        """Paces of growing batches with short and long contexts; how many sequences run at once, as far as that was met."""
        met = largest = 0
        half = max(64, min(2048, self._context // 2))
        for context in (32, half):
            batch = 1
            while batch <= min(self._plan.most, self._plan.slots or self._plan.most, met or self._plan.most):
                tokens = _WINDOW + 16 + 2 * -(-batch * context // step_tokens)
                if batch * (context + tokens) > 0.8 * kv_tokens or context + tokens >= self._context:
                    break
                answers = await asyncio.gather(*(self._stream(self._prompt(context), tokens) for _ in range(batch)))
                running = _running_together(answers)
                if running < batch:
                    met = met or running
                    break
                largest = max(largest, batch)
                pace = _pace(answers)
                if pace is not None:
                    seconds, at = pace
                    self._seen.append(Observation(seconds, (Step(batch, context=batch * (context + at)),)))
                    found.decodes.append((batch, int(context + at), seconds))
                    self._tell(f"{batch} answers at once, context {context}: {1e3 * seconds:.2f} ms a step")
                if max(answer[-1][0] for answer in answers) - answers[0][0][0] > 4 * _SLOW_S:
                    break
                batch *= 2
        if not (self._plan.slots or met):
            self._notes.append(
                f"slots: {_DEFAULT_SLOTS} are assumed, as a batch of {largest} did not fill them; --slots says otherwise"
            )
        return self._plan.slots or met or _DEFAULT_SLOTS

    async def _check_alone(self, before: float) -> None:
        """Whether what the engine counted is what was sent."""
        counted = _sum(await self._metrics(), "vllm:prompt_tokens_total") - before
        if counted <= 0:
            self._notes.append("the engine does not count prompt tokens: whether others used it meanwhile is not known")
        elif counted > self._sent * (1 + _FOREIGN):
            others = counted - self._sent
            raise CalibrationError(f"others sent {others:.0f} prompt tokens to {self._plan.url} meanwhile: measure it alone")


def _running_together(answers: Sequence[Sequence[tuple[float, int]]]) -> int:
    """How many had begun before any had ended."""
    ended = min(answer[-1][0] for answer in answers)
    return sum(answer[1][0] < ended for answer in answers)


def _pace(answers: Sequence[Sequence[tuple[float, int]]]) -> tuple[float, float] | None:
    """Seconds of a step while all answers were running (the median over short stretches), and an answer's mean tokens then."""
    start, end = max(answer[1][0] for answer in answers), min(answer[-1][0] for answer in answers)
    paces, counts = [], []
    for answer in answers:
        within = [(at, count) for at, count in answer[1:] if start <= at <= end]
        for first in range(0, len(within) - 4, 4):
            (since, before), (until, after) = within[first], within[min(first + 8, len(within) - 1)]
            if after > before:
                paces.append((until - since) / (after - before))
                counts.append(0.5 * (before + after - 1))
    return (statistics.median(paces), statistics.fmean(counts)) if len(paces) >= 2 else None


def _sum(page: str, name: str) -> float:
    """All series of one metric added up; 0 where there are none."""
    return sum(float(value) for value in re.findall(rf"^{re.escape(name)}(?:\{{[^}}]*\}})? ([0-9.eE+-]+)", page, re.MULTILINE))


def _kv_blocks(page: str) -> tuple[int, int]:
    """How many blocks the KV cache has, and how many tokens a block holds; 0 where the engine does not tell."""
    found = re.search(r"^vllm:cache_config_info\{([^}]*)\}", page, re.MULTILINE)
    labels = dict(re.findall(r'(\w+)="([^"]*)"', found.group(1))) if found else {}
    counts = (labels.get("num_gpu_blocks", ""), labels.get("block_size", ""))
    return (int(counts[0]), int(counts[1])) if all(count.isdigit() for count in counts) else (0, 0)
