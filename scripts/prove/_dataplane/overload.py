"""Ten times what the engines can do, for a while: what is served in time, how soon the rest is told, and how soon it is over."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from bench._admission.engine import SlowEngine
from bench._admission.load import Kind, Reply, arrivals, send_all

from _dataplane import routers

LIMIT_S = 1.0
"""To the first byte: `slo.ttft_ms`."""
PREFILL_S, ANSWER_S = 0.05, 0.3
CAPACITY = 1 / PREFILL_S
"""Requests a second that one engine can begin."""
GOODPUT, REFUSED_MS, MIB, RECOVERY_S = 0.9, 10.0, 64.0, 5.0
_KIND = Kind(routers.KEY, "prove", 1.0, PREFILL_S)


@dataclass
class Result:
    """What came of the load, per second and in ms."""

    requests: int = 0
    before: float = 0.0
    """Answers a second that began within the limit, at 0.9 of what the engine can do."""
    during: float = 0.0
    """The same at ten times of it."""
    refused: int = 0
    refused_ms: tuple[float, float] = (0.0, 0.0)
    """Of those refused without waiting first, how soon: median and 99th percentile."""
    gave_up: int = 0
    """Those refused after they had waited."""
    gave_up_s: float = 0.0
    """How long, at the median."""
    late: int = 0
    """Answers that began after the limit."""
    recovery_s: float = 0.0
    """From the end of the overload to the last request, at half load, that was refused or late."""
    rss_mib: tuple[float, float] = (0.0, 0.0)
    """Before, and the most while it lasted."""
    violations: list[str] = field(default_factory=list)

    @property
    def missed(self) -> list[str]:
        """Which goals were missed, on this machine as busy as it was."""
        goals = {
            f"goodput {GOODPUT} of the peak": self.during >= GOODPUT * self.before,
            f"refusals within {REFUSED_MS:.0f} ms (p99)": self.refused_ms[1] <= REFUSED_MS,
            f"{MIB:.0f} MiB": self.rss_mib[1] - self.rss_mib[0] <= MIB,
            f"over within {RECOVERY_S:.0f} s": self.recovery_s <= RECOVERY_S,
        }
        return [goal for goal, met in goals.items() if not met]


def _in_time(reply: Reply) -> bool:
    return 0 <= reply.first_s <= LIMIT_S


async def _watch(router: routers.Router, result: Result) -> None:
    while True:
        result.rss_mib = result.rss_mib[0], max(result.rss_mib[1], router.rss_mib())
        await asyncio.sleep(0.1)


def _book(result: Result, replies: Sequence[Reply], seconds: float) -> None:
    told = sorted(reply.told_s for reply in replies if reply.status == 503)
    refusals, waited = [s for s in told if s < LIMIT_S / 2], [s for s in told if s >= LIMIT_S / 2]
    result.requests, result.refused, result.gave_up = len(replies), len(refusals), len(waited)
    result.gave_up_s = waited[len(waited) // 2] if waited else 0.0
    result.during = sum(map(_in_time, replies)) / seconds
    result.late = sum(reply.first_s > LIMIT_S for reply in replies)
    if refusals:
        result.refused_ms = 1000 * refusals[len(refusals) // 2], 1000 * refusals[int(len(refusals) * 0.99)]
    if lost := sum(reply.status not in (200, 503) or (reply.status == 503 and not reply.retry_s) for reply in replies):
        result.violations.append(f"{lost} requests got neither a whole answer nor a typed refusal with Retry-After")


async def run(seconds: float, times: float = 10.0, seed: int = 1, patience_s: float = 30.0) -> Result:
    """One engine, a router, and `times` what it can do for so many seconds; nobody tries again."""
    result, engine = Result(), SlowEngine(ANSWER_S)
    await engine.start()
    config = routers.make_config({"e0": (engine.port, "m")}, slo={"ttft_ms": LIMIT_S * 1000, "max_wait_ms": patience_s * 1000})
    config["targets"][0]["slots"] = 256
    try:
        async with routers.outside(config) as router:
            await send_all(router.port, arrivals([_KIND], 0.5 * CAPACITY, 3.0, seed + 1))
            calm = await send_all(router.port, arrivals([_KIND], 0.9 * CAPACITY, seconds, seed + 2))
            result.before = sum(map(_in_time, calm)) / seconds
            result.rss_mib = router.rss_mib(), 0.0
            watching = asyncio.create_task(_watch(router, result))
            storm = asyncio.create_task(send_all(router.port, arrivals([_KIND], times * CAPACITY, seconds, seed)))
            await asyncio.sleep(seconds)
            plan = arrivals([_KIND], 0.5 * CAPACITY, 4 * RECOVERY_S, seed + 3)
            after = await send_all(router.port, plan)
            _book(result, await storm, seconds)
            watching.cancel()
            result.recovery_s = max((at for (at, _), reply in zip(plan, after, strict=True) if not _in_time(reply)), default=0.0)
            if not await router.settles():
                result.violations.append(f"{await router.inflight()} left in the books")
    finally:
        engine.stop()
    return result
