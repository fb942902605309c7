"""What routers tell engines of the work that waits for them, and what engines tell Serve's autoscaler of it.

Only routers know how long a request would wait: they hold the queue and the predictions. Serve's autoscaler asks replicas.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec

from router.placement.targets import Signals

if TYPE_CHECKING:
    from router.state import RouterState  # engines keep a book as well, and need none of the router for it

FRESH_S = 5.0
"""What a router said longer ago than this does not count: it has gone, or hangs."""


class Demand(msgspec.Struct, frozen=True):
    """One router's word on one deployment: seconds of prefill booked on each engine, by incarnation, and waiting in the router
    for any of them; and the limit on the first token in seconds."""

    backlog_s: dict[str, float]
    queued_s: float
    limit_s: float


def demand_on(state: RouterState, incarnations: Iterable[str], models: frozenset[str], now: float) -> Demand:
    """What this router has for the engines of one deployment.

    Args:
        state: the router.
        incarnations: the deployment's engines.
        models: the models they serve.
        now: UNIX time in seconds.
    """
    state.fleet.presume_begun(now)
    backlog_s = {name: state.fleet.load_of(name).wait_s(now) for name in incarnations}
    return Demand(backlog_s, state.waiting.waiting_s(models), state.policy.slo.ttft_s)


def encode_demand(demand: Demand) -> bytes:
    """As it travels over a Ray handle."""
    return msgspec.msgpack.encode(demand)


class DemandBook:
    """What the routers last said, as one engine keeps it. Times are seconds of one clock."""

    def __init__(self, incarnation: str) -> None:
        self._incarnation = incarnation
        self._said: dict[str, tuple[float, Demand]] = {}

    def take(self, router: str, data: bytes, now: float) -> None:
        """A router's word.

        Raises:
            msgspec.MsgspecError: it is none.
        """
        self._said[router] = (now, msgspec.msgpack.decode(data, type=Demand))

    def stats(self, signals: Signals | None, slots: int, now: float) -> dict[str, float]:
        """For `record_autoscaling_stats`: empty while no router has spoken lately, so that nothing is scaled on silence."""
        self._said = {router: pair for router, pair in self._said.items() if now - pair[0] <= FRESH_S}
        demands = [demand for _, demand in self._said.values()]
        if not demands:
            return {}
        return {
            "backlog_s": sum(demand.backlog_s.get(self._incarnation, 0.0) for demand in demands),
            "queued_s": sum(demand.queued_s for demand in demands),
            "limit_s": min(demand.limit_s for demand in demands),
            "sequences": 0.0 if signals is None else float(signals.running + signals.waiting),
            "slots": float(slots),
        }
