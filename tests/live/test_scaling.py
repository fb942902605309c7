"""Real Ray Serve scales by what routers say: up while something waits, down when nothing does, whether all found room or not."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

import pytest

pytestmark = [pytest.mark.live, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def handle() -> Iterator:
    """Stand-ins for engines, of which there may be four and three find room."""
    import ray
    from ray import serve

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(num_cpus=3, object_store_memory=100 * 1024 * 1024, log_to_driver=False, include_dashboard=False)
    try:
        serve.start(proxy_location="Disabled")
        run_version(1)
        yield serve.get_deployment_handle("stand-in", "scaling")
        serve.shutdown()
    finally:
        ray.shutdown()


def run_version(version: int) -> None:
    """Deploy the stand-ins, scaled as engines are; another version replaces every one of them."""
    from ray import serve

    from deployments.demand import DemandBook
    from deployments.engine import engine_application
    from router.config import parse_config

    class StandIn:
        """An engine as far as scaling goes: it keeps what routers say."""

        def __init__(self, version: int) -> None:
            self._version = version
            self._book = DemandBook("any")

        async def take_demand(self, router: str, demand: bytes) -> None:
            self._book.take(router, demand, time.monotonic())

        async def record_autoscaling_stats(self) -> dict[str, float]:
            return self._book.stats(None, 0, time.monotonic())

        async def describe(self) -> int:
            return self._version

    config = parse_config(
        {
            "zones": {"eu": {}},
            "autoscaling": {"upscale_delay_s": 1, "downscale_delay_s": 2},
            "models": [{"id": "m", "source": "m", "replicas": [{"zone": "eu", "max_count": 4}]}],
        }
    )
    engine = engine_application(config, config.models[0], config.models[0].replicas[0])._bound_deployment
    scaling = engine._deployment_config.autoscaling_config
    options = {"name": "stand-in", "autoscaling_config": scaling, "ray_actor_options": {"num_cpus": 1}}
    target = serve.RunTarget(serve.deployment(StandIn).options(**options).bind(version), name="scaling", route_prefix=None)
    # Until all run would be for ever where one finds no room.
    serve.run_many([target], wait_for_applications_running=version == 1)


def say_until(handle, queued_s: float | None, reached: Callable[[list[int]], bool], seconds: float = 90.0) -> list[int]:
    """Be a router that has so much waiting (None: one that is silent) until those that run are as wanted: their versions."""
    from deployments.demand import Demand, encode_demand

    end = time.monotonic() + seconds
    running: list[int] = []
    while time.monotonic() < end:
        if queued_s is not None:
            told = handle.broadcast("take_demand", "router-1", encode_demand(Demand({}, queued_s, 2.0)))
            told.results(timeout_s=10, return_exceptions=True)
        answers = handle.broadcast("describe").results(timeout_s=10, return_exceptions=True)
        running = [answer for answer in answers if isinstance(answer, int)]
        if reached(running):
            break
        time.sleep(0.5)
    return running


def test_a_backlog_brings_engines_and_its_end_takes_them_away_though_one_never_found_room(handle):
    assert say_until(handle, 0.0, lambda running: len(running) == 1) == [1]
    three = say_until(handle, 10.0, lambda running: len(running) == 3)
    assert three == [1, 1, 1], "ten seconds of work wait, and one second each is bearable; there is no room for a fourth"
    assert say_until(handle, 0.0, lambda running: len(running) == 1) == [1]


def test_a_new_version_has_as_many_as_the_one_before(handle):
    assert say_until(handle, 2.5, lambda running: len(running) == 3) == [1, 1, 1]
    run_version(2)
    # Nothing scales while no router speaks, so what is there afterwards is what Serve kept.
    assert say_until(handle, None, lambda running: running == [2, 2, 2]) == [2, 2, 2]
