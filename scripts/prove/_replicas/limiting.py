"""How far several replicas together go over a limit, while some of them are killed and started again."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import random
import secrets
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from _dataplane.client import Connection, request
from _dataplane.routers import KEY

from _replicas.engine import TOKENS, CountingEngine
from _replicas.processes import CLUSTER_ENV, Replicas, Setting, several_routers

_QUIET_S = 2.0
"""A limit counts as reached once nobody got through for so long."""
_LONGEST_S = 240.0
_TOKEN_USD = 0.001


@dataclass
class Overshoot:
    """What was let through under one limit."""

    limit: int
    used: int
    answers: Counter[int] = field(default_factory=Counter)
    restarts: int = 0
    took_s: float = 0.0
    arrivals: list[float] = field(default_factory=list)
    """When what was let through came to the engine, in UNIX seconds."""

    @property
    def refused(self) -> int:
        """Requests for which there was nothing left."""
        return self.answers[429] + self.answers[503]

    @property
    def share(self) -> float:
        """How far over the limit, as a share of it; below 0 when it was not reached."""
        return self.used / self.limit - 1


async def measure_tokens(setting: Setting, limit: int, *, restarts: bool) -> Overshoot:
    """A daily token budget, used up by many clients at all replicas; by the engine's own count."""
    return await _use_up(setting, {"keys": _keys({"daily_tokens": limit})}, limit, TOKENS, restarts=restarts)


async def measure_requests(setting: Setting, limit: int, *, restarts: bool) -> Overshoot:
    """Requests in one minute of the clock; waits for the next one when the present one is half over."""
    into = time.time() % 60
    if into > 20:
        await asyncio.sleep(60.05 - into)
    changes = {"keys": _keys({"requests_per_minute": limit})}
    found = await _use_up(setting, changes, limit, 1, restarts=restarts)
    minutes = Counter(int(moment // 60) for moment in found.arrivals)
    found.used = max(minutes.values())
    return found


async def measure_spilling(setting: Setting, requests: int, *, of_a_key: bool, restarts: bool) -> Overshoot:
    """A budget for what leaves the cluster, of all keys together or of one, by the tokens that the cloud counted."""
    usd = requests * TOKENS * _TOKEN_USD
    price = {"prompt": _TOKEN_USD * 1e6, "completion": _TOKEN_USD * 1e6}
    cloud = {
        "id": "cloud",
        "kind": "cloud",
        "url": "https://cloud.invalid",
        "zone": "cloud",
        "models": {"m": "m"},
        "price": price,
    }
    changes: dict[str, Any] = {
        "zones": {"here": {}, "cloud": {"external": True}},
        "targets": [cloud],
        "secret": {"env": CLUSTER_ENV},
        "keys": _keys({"spill": True, "residency": "any", **({"spill_daily_usd": usd} if of_a_key else {})}),
        "spill": {} if of_a_key else {"daily_budget_usd": usd},
    }
    return await _use_up(setting, changes, requests * TOKENS, TOKENS, restarts=restarts)


async def measure_concurrent(setting: Setting, limit: int) -> Overshoot:
    """Requests at work at once, by what the engine saw."""
    engine = CountingEngine(hold_s=0.1)
    await engine.start()
    found, started = Overshoot(limit, 0), time.monotonic()
    try:
        async with several_routers(setting, engine.port, keys=_keys({"concurrent_requests": limit})) as routers:
            until = time.monotonic() + 5
            users = (
                _ask_until(port, lambda: time.monotonic() > until, found) for port in _spread(routers.ports, setting.clients)
            )
            await asyncio.gather(*users)
    finally:
        engine.stop()
    found.used, found.took_s = engine.most_at_work, time.monotonic() - started
    return found


async def _use_up(setting: Setting, changes: Mapping[str, Any], limit: int, unit: int, *, restarts: bool) -> Overshoot:
    engine = CountingEngine()
    await engine.start()
    found = Overshoot(limit, 0)
    outside = {"egress": {"url": f"http://127.0.0.1:{engine.port}"}}  # all that is outside: it looks at no pass
    try:
        async with several_routers(setting, engine.port, **changes, **outside) as routers:
            started = last = time.monotonic()
            seen = 0

            def is_over() -> bool:
                nonlocal last, seen
                now = time.monotonic()
                if len(engine.arrivals) > seen:
                    seen, last = len(engine.arrivals), now
                return now - max(last, busy_until[0]) > _QUIET_S or now - started > _LONGEST_S

            busy_until = [started]
            work = [_ask_until(port, is_over, found) for port in _spread(routers.ports, setting.clients)]
            if restarts:
                work.append(_restart_some(routers, engine, limit // unit, found, busy_until))
            await asyncio.gather(*work)
            if restarts:  # nobody is left who remembers anything but the store
                await asyncio.gather(*(routers.restart(index, signal.SIGKILL) for index in range(setting.replicas)))
                found.restarts += setting.replicas
                until = time.monotonic() + _QUIET_S
                await asyncio.gather(*(_ask_until(port, lambda: time.monotonic() > until, found) for port in routers.ports))
            found.took_s = time.monotonic() - started
    finally:
        engine.stop()
    found.arrivals = engine.arrivals
    found.used = len(engine.arrivals) * unit
    return found


async def _restart_some(
    routers: Replicas, engine: CountingEngine, requests: int, found: Overshoot, busy_until: list[float]
) -> None:
    """Kill one replica, and end another in order, when a third and two thirds of the limit are used up."""
    for index, (share, number) in enumerate(((1 / 3, signal.SIGKILL), (2 / 3, signal.SIGTERM))):
        await engine.has_seen(round(share * requests))
        busy_until[0] = float("inf")
        await routers.restart(index, number)
        busy_until[0] = time.monotonic()
        found.restarts += 1


async def _ask_until(port: int, is_over: Callable[[], bool], found: Overshoot) -> None:
    """Ask without pause until it is over; a replica that is being started again is asked again."""
    rng, numbers = random.Random(port), itertools.count()
    connection = Connection(port)
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "max_tokens": TOKENS}
    while not is_over():
        data = request(body, KEY, f"r-{id(connection)}-{next(numbers):08d}")
        try:
            answer = await connection.ask(data)
        except (OSError, TimeoutError):
            connection.close()
            connection = Connection(port)
            await asyncio.sleep(0.05)
            continue
        found.answers[answer.status] += 1
        if answer.status != 200:
            await asyncio.sleep(0.02 + 0.02 * rng.random())
    with contextlib.suppress(OSError):
        connection.close()


def _spread(ports: list[int], clients: int) -> list[int]:
    """Where each client goes: the first replica gets as many as all others together, for load is never even."""
    return [ports[0] if number % 2 else ports[1 + number // 2 % (len(ports) - 1)] for number in range(clients)]


def _keys(allowance: Mapping[str, object]) -> list[dict[str, object]]:
    # A name of its own: in a store that outlives the routers another proof's key is used up.
    return [{"id": f"prove-{secrets.token_hex(4)}", "sha256": hashlib.sha256(KEY.encode()).hexdigest(), **allowance}]
