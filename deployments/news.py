"""When a router tells the others of its requests: in rounds, and between them when it has given somebody a long prefill."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable

from router.placement.fleet import Fleet

NEWS_PERIOD_S = 0.1
ALIVE_PERIOD_S = 1.0
_REST = 4.0
"""Times as long as a round took, nothing is told after it: under a flood of long prompts telling is no more than a fifth."""


async def tell_peers(fleet: Fleet, broadcast: Callable[[str, bytes], Awaitable[None]]) -> None:
    """Tell the other routers of requests sent, begun and ended, for ever; without news, that this one lives.

    Rounds follow each other, they never overlap: an end must not overtake what it ends.

    Args:
        fleet: whose news to tell; without any it ends.
        broadcast: brings a router's name and news to all others.
    """
    news, told_at, rest_s = fleet.news, 0.0, 0.0
    if news is None:
        return
    hurried = asyncio.Event()
    news.hurry = hurried.set
    while True:
        await asyncio.sleep(rest_s)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(NEWS_PERIOD_S - rest_s):
                await hurried.wait()
        hurried.clear()
        now, rest_s = time.time(), 0.0
        fleet.forget_silent_peers(now)
        if news.waiting or now - told_at >= ALIVE_PERIOD_S:
            told_at = now
            await broadcast(news.router, news.take())
            rest_s = min(NEWS_PERIOD_S, max(0.0, _REST * (time.time() - now)))
