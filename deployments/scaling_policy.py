"""How many engines a deployment should have, by predicted wait and backlog: Ray Serve's controller calls `scale_by_wait`.

Serve pickles this module by value, so it imports nothing of ours. What it reads is what every engine says of itself in
`record_autoscaling_stats` (`deployments.demand`); connections, which Serve would count itself, never pass through Serve here.
"""

from __future__ import annotations

import math
from typing import Any

GROW_FROM = 0.5
"""Share of the limit on the first token that the average predicted wait may take before there are more engines."""
SHRINK_BELOW = 0.2
"""With one engine less, the wait must stay below this share."""
FULL, ROOMY = 0.85, 0.6
"""Share of an engine's sequence slots in use from which there are more engines, and below which one less will do."""


def wanted_replicas(running: int, backlog_s: float, limit_s: float, sequences: float, slots: float) -> int:
    """How many engines keep the predicted wait within bounds.

    Args:
        running: how many there are.
        backlog_s: prefill seconds that wait for them, in their own queues and in the routers'.
        limit_s: the limit on the first token.
        sequences: sequences they work on or have waiting.
        slots: how many one of them works on at once; 0: unknown.

    Returns:
        At most twice as many as there are, and at most one less: a backlog is a bad measure of more than that.
    """
    if running < 1 or limit_s <= 0:
        return running
    by_wait = math.ceil(backlog_s / (GROW_FROM * limit_s))
    by_slots = math.ceil(sequences / (FULL * slots)) if slots > 0 else 0
    wanted = max(by_wait, by_slots)
    if wanted > running:
        return min(wanted, 2 * running)
    less = running - 1
    if less < 1:
        return running
    calm = backlog_s <= SHRINK_BELOW * limit_s * less and (slots <= 0 or sequences <= ROOMY * slots * less)
    return less if calm else running


def scale_by_wait(context: Any) -> tuple[int, dict[str, Any]]:
    """Serve's policy: the number of replicas wanted; Serve keeps its own bounds and delays.

    Args:
        context: `ray.serve.config.AutoscalingContext`.
    """
    said = context.aggregated_metrics or {}

    def values(name: str) -> list[float]:
        return list(said.get(name, {}).values())

    backlogs, limits = values("backlog_s"), values("limit_s")
    running, ordered = context.current_num_replicas, context.target_num_replicas
    if not running or not backlogs or not limits:
        return ordered, {}
    # What waits in the routers waits for all engines of the deployment: each of them was told the whole.
    backlog_s = sum(backlogs) * running / len(backlogs) + max(values("queued_s"), default=0.0)
    sequences = sum(values("sequences")) * running / len(backlogs)
    wanted = wanted_replicas(running, backlog_s, max(limits), sequences, max(values("slots"), default=0.0))
    # While a new engine loads (minutes) the backlog has an answer on its way already. An engine for which no machine has
    # room stays on its way for ever, so the order is taken back once those that run are enough.
    return (ordered if running < min(wanted, ordered) else wanted), {}
