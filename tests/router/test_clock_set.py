"""The clock is set while requests run: no target seems busy, paused or silent for longer than it is, and nobody waits longer."""

from __future__ import annotations

import asyncio
import time

import pytest

from router.placement.admission import AdmissionQueue
from router.placement.admission import Ticket as Waiting
from router.placement.gauges import with_signals
from router.placement.peers import END, SENT, SILENT_S, Notice, Peers
from router.placement.targets import Load, Signals
from tests.router.conftest import open_front_door

HOUR_S, YEAR_S = 3600.0, 365 * 86400.0


class Clock:
    """`time.time`, and how far it is set ahead."""

    def __init__(self) -> None:
        self._real = time.time
        self.ahead = 0.0

    def __call__(self) -> float:
        return self._real() + self.ahead


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(time, "time", clock)
    return clock


@pytest.mark.parametrize("ahead", [-HOUR_S, -YEAR_S, HOUR_S, YEAR_S])
async def test_requests_are_served_after_the_clock_was_set(clock, ahead):
    async with open_front_door({"a": "eu", "b": "eu"}, slo={"ttft_ms": 1000, "max_wait_ms": 1500}) as door:
        door.state.recheck(time.time())
        running = [asyncio.create_task(door.chat("stall", stream=True)) for _ in range(4)]
        assert [(await door.chat("hello")).status_code for _ in range(4)] == [200] * 4
        clock.ahead = ahead
        door.state.recheck(time.time())
        assert [(await door.chat("hello")).status_code for _ in range(4)] == [200] * 4
        for request in running:
            request.cancel()
        await asyncio.gather(*running, return_exceptions=True)


@pytest.mark.parametrize("ahead", [-HOUR_S, HOUR_S])
async def test_a_pause_and_a_breaker_end_when_they_would_have(clock, ahead):
    async with open_front_door({"a": "eu", "b": "eu"}) as door:
        fleet, now = door.state.fleet, time.time()
        door.state.recheck(now)
        for _ in range(3):
            fleet.failed(fleet.membership.targets[0].incarnation, now)
        before = fleet.view(now).loads[0]
        assert before.down_until > now and before.breaker.until > now
        clock.ahead = ahead
        door.state.recheck(time.time())
        after = fleet.view(time.time()).loads[0]
        assert after.down_until - before.down_until == pytest.approx(ahead, abs=1)
        assert after.breaker.until - before.breaker.until == pytest.approx(ahead, abs=1)


@pytest.mark.parametrize("ahead", [-HOUR_S, HOUR_S])
def test_who_waits_is_given_up_when_it_would_have_been(ahead):
    queue = AdmissionQueue()
    queue.offer(Waiting("r", "t", 1000.0, 0.1, 1001.0, 1003.0), 1000.0)
    queue.clock_set(ahead)
    assert queue.expire(1002.0 + ahead) == []
    assert [ticket.id for ticket in queue.expire(1003.0 + ahead)] == ["r"]


@pytest.mark.parametrize("ahead", [-HOUR_S, HOUR_S])
def test_a_peer_is_silent_when_it_has_said_nothing_and_not_because_a_clock_was_set(ahead):
    peers = Peers()
    peers.hear("r2", [Notice(1, SENT)], 1000.0)
    peers.clock_set(ahead)
    assert peers.silent(1000.0 + ahead + SILENT_S) == []
    assert [notice.event for _, notice in peers.silent(1001.0 + ahead + SILENT_S)] == [END]


def test_gauges_of_an_engine_whose_clock_was_set_back_are_taken_and_overtaken_ones_are_not():
    def signals(at: float, running: int) -> Signals:
        return Signals(sampled_at=at, running=running, waiting=0, kv_usage=0.1)

    load = with_signals(Load(), signals(10_000.0, 3), 0)
    assert with_signals(load, signals(9_999.0, 5), 0).foreign == 3
    assert with_signals(load, signals(10_000.0 - HOUR_S, 5), 0).foreign == 5


def test_an_engines_clock_that_went_back_says_nothing_of_who_waits_there():
    load = with_signals(Load(), Signals(sampled_at=1e6, running=4, waiting=9), 0)
    assert with_signals(load, Signals(sampled_at=1e6 + 30.0, running=4, waiting=9), 0).foreign_weight < load.foreign_weight
    back = with_signals(load, Signals(sampled_at=1.0, running=4, waiting=9), 0)
    assert (back.foreign_weight, back.foreign_waiting) == (load.foreign_weight, 9)
