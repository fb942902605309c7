"""Metrics an operator alerts on: the audit log, the store, engines that are missing; and which router says so."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from msgspec.structs import replace

from router.operation_metrics import OperationCollector
from router.placement.targets import Report
from tests.router.conftest import open_front_door

ROOT = Path(__file__).resolve().parent.parent.parent


def figures(state: Any, shared: Any) -> dict[tuple[str, ...], float]:
    samples = [sample for metric in OperationCollector(state, shared).collect() for sample in metric.samples]
    return {(sample.name.removeprefix("tidegate_"), *sample.labels.values()): sample.value for sample in samples}


@pytest.mark.parametrize("well", [True, False])
async def test_the_audit_log_and_the_store_say_whether_they_work(door, well):
    door.state.audit = SimpleNamespace(healthy=well, losses=0 if well else 3)
    said = figures(door.state, SimpleNamespace(failing=not well))
    door.state.audit = None
    assert said["audit_unwritable",] == said["store_unreachable",] == (0 if well else 1)
    assert said["audit_losses_total",] == (0 if well else 3)
    assert figures(door.state, None)["store_unreachable",] == 1, "it could not be opened"


async def test_engines_that_nobody_reports_and_evidence_that_ends():
    model = {"id": "big", "source": "x", "replicas": [{"zone": "eu", "count": 2, "gpus": 0}]}
    async with open_front_door({"a": "eu"}, models=[model]) as door:
        said = figures(door.state, None)
        assert said["engines_missing", "big", "eu"] == 2
        assert not any(name[0].startswith("evidence") for name in said)
        (target,) = door.state.fleet.membership.targets
        door.state.take_reports([Report(replace(target, evidence=replace(target.evidence, expires=2e9)))])
        assert figures(door.state, None)["evidence_expires_timestamp_seconds", "a", "eu"] == 2e9


async def test_a_scrape_names_the_router_and_leaves_the_next_one_to_another(door):
    assert (await door.chat("hello")).status_code == 200
    reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
    writer.write(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n")
    async with asyncio.timeout(10):
        assert b"tidegate_requests_total" in await reader.read(), "read to its end: the router closes"
    writer.close()
    page = await door.client.get("/metrics")
    samples = [line for line in page.text.splitlines() if not line.startswith("#")]
    assert samples and all('router="router-test"' in line for line in samples)


async def test_every_alert_goes_by_metrics_and_codes_that_exist(door):
    door.state.audit = SimpleNamespace(healthy=True, losses=0)
    page = door.state.metrics.render().decode()
    door.state.audit = None
    endings = {"histogram": ("_bucket", "_count", "_sum")}
    families = re.findall(r"^# TYPE (\w+) (\w+)$", page, re.M)
    made = {f"{name}{ending}" for name, kind in families for ending in endings.get(kind, ("",))}
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shipped = yaml.safe_load((ROOT / "deployments" / "prometheus_alerts.yaml").read_text(encoding="utf-8"))
    for rule in shipped["groups"][0]["rules"]:
        named = set(re.findall(r"tidegate_\w+", rule["expr"]))
        assert named and named <= made, rule["alert"]
        assert any(f"`{name.removesuffix('_bucket')}`" in readme for name in named) or rule["alert"] == "TidegateDown"
        for codes in re.findall(r'code=~"([\w|]+)"', rule["expr"]):
            assert all(f"`{code}` " in readme for code in codes.split("|"))
