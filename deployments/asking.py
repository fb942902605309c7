"""Asking all replicas of a deployment at once, where one that hangs keeps no answer of another back."""

from __future__ import annotations

import asyncio

from ray.serve.handle import DeploymentHandle


async def ask_all(handle: DeploymentHandle, method: str, *arguments: object, timeout_s: float) -> list[object]:
    """What every running replica answers, in no order; in place of an answer the exception that came instead of it.

    `DeploymentBroadcastResponse.results_async` throws away all answers when one of them is late, so this awaits Ray's own
    results one by one (no public call gives them; Ray is pinned to one minor version).

    Args:
        handle: of the deployment.
        method: the method to call.
        arguments: its arguments.
        timeout_s: who has not answered after so many seconds counts as `TimeoutError`.

    Raises:
        DeploymentUnavailableError: Serve says that the deployment cannot be asked.
        TimeoutError: Serve did not even say whom to ask.
    """
    async with asyncio.timeout(timeout_s) as limit:
        results = await handle.broadcast(method, *arguments)._fetch_replica_results_async()
    if not results:
        return []
    asked = [asyncio.ensure_future(result.get_async()) for result in results]
    left_s = max(0.0, (limit.when() or 0.0) - asyncio.get_running_loop().time())
    try:
        await asyncio.wait(asked, timeout=left_s)
        return [_outcome(one) for one in asked]
    finally:
        for one in asked:
            one.cancel()


def _outcome(asked: asyncio.Future[object]) -> object:
    if not asked.done():
        return TimeoutError("no answer in time")
    return asyncio.CancelledError() if asked.cancelled() else asked.exception() or asked.result()
