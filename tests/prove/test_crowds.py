"""Small versions of `scripts/prove/dataplane crawlers takeover comeback overload`: crowds, and routers that die under them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "scripts" / "prove"))

from _dataplane import crawlers, overload, restarts


async def test_crawling_clients_are_cut_and_nobody_beside_them_is_refused(monkeypatch: pytest.MonkeyPatch):
    for name in ("HEAD_S", "BODY_S"):
        monkeypatch.setattr(f"router.wire.patience.{name}", 1.0)
    monkeypatch.setattr(crawlers, "PAUSE_S", 0.2)
    result = await crawlers.run(90, apart=False)
    assert result.violations == [] and result.served
    assert result.cut == {"nothing closed": 30, "head 408": 30, "body 408": 30}


async def test_a_killed_router_takes_its_own_streams_with_it_and_the_other_serves_who_asks_then():
    for seed in range(6):  # which router a connection comes to is the kernel's choice
        result = await restarts.take_over(12, seed)
        assert result.violations == []
        if result.outcomes["cut by the kill"] and result.outcomes["whole by the kill"]:
            break
    assert result.outcomes["cut by the kill"] and result.outcomes["whole by the kill"]
    assert result.outcomes["whole afterwards"] == 12


async def test_clients_of_a_killed_router_come_back_at_once_and_are_all_served():
    result = await restarts.come_back(60)
    assert result.violations == [] and result.outcomes["whole afterwards"] == 60
    assert result.outcomes["cut by the kill"] + result.outcomes["untouched by the kill"] >= 50


async def test_in_an_overload_everybody_is_answered_or_told_when_to_come_back(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(overload, "RECOVERY_S", 1.0)
    result = await overload.run(2.0, times=15, patience_s=2.0)
    assert result.violations == [] and result.requests > 400
    assert result.during > 0 and result.refused + result.gave_up > 0
