"""Real Ray Serve scales by what routers say: up while something waits, down when nothing does, and who leaves drains first."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

import pytest

pytestmark = [pytest.mark.live, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def handle() -> Iterator:
    import ray
    from ray import serve
    from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

    from deployments.demand import DemandBook

    class StandIn:
        """An engine as far as scaling goes: it keeps what routers say, and takes a while to drain."""

        def __init__(self) -> None:
            self._book = DemandBook("any")

        async def take_demand(self, router: str, demand: bytes) -> None:
            self._book.take(router, demand, time.monotonic())

        async def record_autoscaling_stats(self) -> dict[str, float]:
            return self._book.stats(None, 0, time.monotonic())

        async def describe(self) -> int:
            return os.getpid()

    scaling = AutoscalingConfig(
        min_replicas=1,
        max_replicas=3,
        upscale_delay_s=1.0,
        downscale_delay_s=2.0,
        metrics_interval_s=0.5,
        look_back_period_s=2.0,
        policy=AutoscalingPolicy(policy_function="deployments.scaling_policy:scale_by_wait"),
    )
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(num_cpus=4, object_store_memory=100 * 1024 * 1024, log_to_driver=False, include_dashboard=False)
    try:
        serve.start(proxy_location="Disabled")
        options = {"name": "stand-in", "autoscaling_config": scaling, "ray_actor_options": {"num_cpus": 0.1}}
        yield serve.run(serve.deployment(StandIn).options(**options).bind(), name="scaling", route_prefix=None)
        serve.shutdown()
    finally:
        ray.shutdown()


def say_until(handle, queued_s: float, reached: Callable[[int], bool], seconds: float = 90.0) -> int:
    """Be a router that has so much waiting, until there are as many replicas as that takes: how many."""
    from deployments.demand import Demand, encode_demand

    end = time.monotonic() + seconds
    count = 0
    while time.monotonic() < end:
        handle.broadcast("take_demand", "router-1", encode_demand(Demand({}, queued_s, 2.0))).results(timeout_s=10)
        count = len(handle.broadcast("describe").results(timeout_s=10))
        if reached(count):
            return count
        time.sleep(0.5)
    return count


def test_a_backlog_brings_engines_and_its_end_takes_them_away(handle):
    assert say_until(handle, 0.0, lambda count: count == 1) == 1
    assert say_until(handle, 10.0, lambda count: count == 3) == 3, "ten seconds of work wait, and one second each is bearable"
    assert say_until(handle, 0.0, lambda count: count == 1) == 1
