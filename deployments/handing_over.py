"""When a router that is replaced may stop listening: once another one listens at the same place, or none is to come."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from ray import serve
from ray.serve.schema import ApplicationStatus

LIMIT_S = 20.0
"""A router that starts on an idle machine listens after some 5 s, on a busy one later; it may also be placed on another node."""
PERIOD_S = 0.2


async def await_successor(
    others: Callable[[], Awaitable[list[str]]], expected: Callable[[], Awaitable[bool]], node: str, limit_s: float = LIMIT_S
) -> None:
    """Return once another router listens on this node, no other is expected, or the time is over.

    Serve stops an old replica and starts its successor at the same moment, so where there is one router its port would be
    refused for as long as a process takes to start.

    Args:
        others: the nodes of all other routers that listen.
        expected: whether any router is to come.
        node: this router's own.
        limit_s: longest time, in seconds.
    """
    try:
        async with asyncio.timeout(limit_s):
            while True:
                if not await expected() or node in await others():
                    return
                await asyncio.sleep(PERIOD_S)
    except TimeoutError:
        return


async def is_kept(application: str) -> bool:
    """Whether Serve still wants this application: False where it is being deleted, or Serve itself ends or cannot be asked."""
    try:
        found = (await asyncio.to_thread(serve.status)).applications.get(application)
    except Exception:  # whatever Ray raises while its parts go away
        return False
    return found is not None and found.status is not ApplicationStatus.DELETING
