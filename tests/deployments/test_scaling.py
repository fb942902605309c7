"""How many engines: the rule, what routers tell engines, and what Serve's autoscaler is given."""

from __future__ import annotations

from types import SimpleNamespace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.serve.config import AutoscalingPolicy

from deployments.demand import FRESH_S, Demand, DemandBook, demand_on, encode_demand
from deployments.engine import engine_application
from deployments.scaling_policy import scale_by_wait, wanted_replicas
from router.config import ConfigError, parse_config
from router.placement.targets import Load, Signals
from tests.deployments.test_engine_application import CONFIG, bound

FEW = st.integers(1, 20)
SECONDS = st.floats(0.0, 200.0)


def test_a_backlog_of_more_than_half_the_limit_asks_for_more_and_calm_for_one_less():
    assert wanted_replicas(2, 1.9, 2.0, 0, 64) == 2
    assert wanted_replicas(2, 2.5, 2.0, 0, 64) == 3
    assert wanted_replicas(2, 100.0, 2.0, 0, 64) == 4, "at most twice as many at once"
    assert wanted_replicas(4, 0.0, 2.0, 10, 64) == 3
    assert wanted_replicas(4, 0.0, 2.0, 190, 64) == 4, "the others would be too full"
    assert wanted_replicas(2, 0.0, 2.0, 120, 64) == 3, "sequence slots run out although nothing waits for prefill"
    assert wanted_replicas(1, 0.0, 2.0, 0, 64) == 1 and wanted_replicas(0, 9.0, 2.0, 0, 64) == 0


@given(FEW, SECONDS, SECONDS, st.floats(0.0, 500.0), st.integers(0, 128))
def test_more_work_never_asks_for_fewer(running, backlog, more, sequences, slots):
    before = wanted_replicas(running, backlog, 2.0, sequences, slots)
    assert before <= wanted_replicas(running, backlog + more, 2.0, sequences, slots)
    assert before <= wanted_replicas(running, backlog, 2.0, sequences + more, slots)
    assert running - 1 <= before <= 2 * running


@given(FEW, SECONDS, st.floats(0.0, 500.0), st.integers(0, 128))
def test_one_less_does_not_at_once_ask_for_one_more(running, backlog, sequences, slots):
    wanted = wanted_replicas(running, backlog, 2.0, sequences, slots)
    if wanted < running:
        assert wanted_replicas(wanted, backlog, 2.0, sequences, slots) <= wanted


def context(said, running=2, target=2):
    return SimpleNamespace(aggregated_metrics=said, current_num_replicas=running, target_num_replicas=target)


def test_serve_runs_the_policy_that_it_pickled():
    policy = AutoscalingPolicy(policy_function="deployments.scaling_policy:scale_by_wait").get_policy()
    said = {
        "backlog_s": {"a": 1.0, "b": 1.0},
        "queued_s": {"a": 3.0, "b": 3.0},
        "limit_s": {"a": 2.0, "b": 2.0},
        "sequences": {"a": 3.0, "b": 5.0},
        "slots": {"a": 64.0, "b": 64.0},
    }
    assert policy(context(said)) == (4, {}), "2 s on the engines and 3 s in the routers, at 1 s each"
    assert policy(context(said, running=2, target=4)) == (4, {}), "what was ordered is still loading"
    calm = said | {name: {"a": 0.0, "b": 0.0} for name in ("backlog_s", "queued_s")}
    assert policy(context(calm, running=2, target=4)) == (1, {}), "nobody needs what was ordered, and it may never find room"
    steady = said | {"queued_s": {"a": 0.0, "b": 0.0}}
    assert policy(context(steady, running=2, target=4)) == (2, {}), "those that run are enough, though none too many"
    assert policy(context(calm, running=0, target=4)) == (4, {}), "all of them died: what they said no longer counts"
    assert policy(context({})) == policy(context(None)) == (2, {}), "nobody has said anything: nothing changes"
    half = {name: {"a": value["a"]} for name, value in said.items()}
    assert scale_by_wait(context(half)) == (4, {}), "an engine that is silent is taken to be like the other"


def test_an_engine_adds_up_what_fresh_routers_say():
    book = DemandBook("me-1")
    assert book.stats(None, 8, 0.0) == {}
    book.take("r1", encode_demand(Demand({"me-1": 0.5, "other": 9.0}, 1.0, 2.0)), 0.0)
    book.take("r2", encode_demand(Demand({"me-1": 0.25}, 0.5, 2.0)), 1.0)
    signals = Signals(0.0, running=3, waiting=4)
    assert book.stats(signals, 8, 2.0) == {"backlog_s": 0.75, "queued_s": 1.5, "limit_s": 2.0, "sequences": 7.0, "slots": 8.0}
    assert book.stats(signals, 8, 0.5 + FRESH_S)["backlog_s"] == 0.25, "the first router has fallen silent"
    assert book.stats(signals, 8, 2.0 + 2 * FRESH_S) == {}
    with pytest.raises(msgspec.MsgspecError):
        book.take("r1", b"\xc1", 0.0)


def test_a_router_tells_what_is_booked_and_what_waits():
    loads = {"a-1": Load(clear_at=103.0, queue_s=1.0), "b-1": Load(clear_at=90.0)}
    state = SimpleNamespace(
        fleet=SimpleNamespace(load_of=loads.__getitem__, presume_begun=lambda now: None),
        waiting=SimpleNamespace(waiting_s=lambda models: 7.0 if models == {"m"} else 0.0),
        policy=SimpleNamespace(slo=SimpleNamespace(ttft_s=2.0)),
    )
    assert demand_on(state, ["a-1", "b-1"], frozenset({"m"}), 100.0) == Demand({"a-1": 3.0, "b-1": 0.0}, 7.0, 2.0)


def test_engines_scale_only_where_the_configuration_says_so():
    plain = bound(engine_application(CONFIG, CONFIG.models[0], CONFIG.models[0].replicas[0]))
    assert plain.num_replicas == 2 and plain._deployment_config.autoscaling_config is None
    data = CONFIG.model_dump(mode="json", exclude_none=True)
    data["models"][0]["replicas"][0]["max_count"] = 5
    data["autoscaling"] = {"downscale_delay_s": 60}
    config = parse_config(data)
    options = bound(engine_application(config, config.models[0], config.models[0].replicas[0]))
    scaling = options._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas, scaling.downscale_delay_s) == (2, 5, 60)
    assert scaling.initial_replicas is None, "Serve would go back to it at every change under `args`"
    data["models"][0]["replicas"][0]["max_count"] = 1
    with pytest.raises(ConfigError, match="max_count"):
        parse_config(data)
