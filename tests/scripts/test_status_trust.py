"""The line of `tidegate status` that says how far a replica is believed."""

import io

import pytest
from rich.console import Console
from tidegate.render import print_cluster

from router.explain import missing_engines
from tests.router.builders import make_config, make_policy, make_target


def shown(**target) -> str:
    stream = io.StringIO()
    basics = {"target": "m@eu/1", "kind": "replica", "zone": "eu", "models": ["m"], "up": True, "inflight": 0}
    print_cluster(Console(file=stream, width=200), {"zones": {}, "ready": True, "targets": [{**basics, **target}]})
    return stream.getvalue()


def test_a_healthy_replica_reads_exact():
    text = shown(trust="EXACT", trust_reason="", placed_by="its KV-cache events", cache={"blocks": 512})
    assert "trust: EXACT (placed by its KV-cache events; 512 blocks known)" in text


def test_a_doubt_comes_with_its_reason_and_its_fallback():
    text = shown(trust="DEGRADED", trust_reason="KV-cache events are cut", placed_by="its gauges")
    assert "trust: DEGRADED (KV-cache events are cut; placed by its gauges)" in text


def test_what_is_wrong_with_its_gpus_stands_under_a_target_and_nothing_where_nothing_is():
    assert "health: 1 broken GPU" in shown(health="1 broken GPU (memory errors or a critical XID)", trust="EXACT")
    assert "health" not in shown(health="", trust="EXACT")


def test_who_waits_in_the_router_has_a_line_of_its_own():
    stream = io.StringIO()
    waiting = {"depth": 3, "by_class": {"high": 0, "normal": 1, "low": 2}, "longest_s": 1.25, "drain_per_s": 4.0}
    print_cluster(Console(file=stream, width=200), {"zones": {}, "ready": True, "targets": [], "waiting": waiting})
    assert "waiting: 3 (1 normal, 2 low), the longest for 1.25 s, 4.0 leave a second" in stream.getvalue()
    assert "waiting:" not in shown()


def test_what_is_left_of_the_budget_for_spilling_has_a_line_of_its_own():
    stream = io.StringIO()
    budget = {"daily_usd": 25.0, "left_usd": 3.25, "counted": "over all routers"}
    print_cluster(Console(file=stream, width=200), {"zones": {}, "ready": True, "targets": [], "spill_budget": budget})
    assert "spill budget: 25.0 USD a day, 3.25 left to this router; counted over all routers" in stream.getvalue()
    assert "spill budget" not in shown()


def test_requests_that_wait_for_other_than_room_and_preemptions_are_told_where_there_are_any():
    calm = {"running": 2, "waiting": 3, "kv_usage": 0.5, "deferred": 0, "preemptions": 0}
    assert "running 2, waiting 3, KV cache 50%, no signals" in shown(signals=calm)
    text = shown(signals={**calm, "deferred": 1, "preemptions": 4, "silent_s": 31.0})
    assert "waiting 3 (1 of them not for room), KV cache 50%, its core silent for 31 s, 4 preempted so far" in text


@pytest.mark.parametrize("target", [{}, {"trust": "BLIND"}, {"trust": "[red]x[/]", "trust_reason": "[b]"}])
def test_missing_fields_and_markup_do_no_harm(target):
    assert "trust: " in shown(**target)


def test_engines_that_nobody_reports_are_named():
    policy = make_policy()
    assert missing_engines(make_config(), [make_target(policy, "one", "eu"), make_target(policy, "two", "us", "big")]) == [
        {"model": "tiny", "zone": "us", "wanted": 1, "up": 0},
        {"model": "big", "zone": "eu", "wanted": 1, "up": 0},
    ]
    missing = [{"model": "tiny", "zone": "us", "wanted": 2, "up": 1}]
    stream = io.StringIO()
    print_cluster(Console(file=stream, width=200), {"targets": [], "missing": missing})
    assert "tiny in us: 1 of 2 engines" in stream.getvalue()
