"""When routers tell each other: a long prefill at once, everything else in rounds, never two rounds at a time."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from msgspec.structs import replace

from deployments import news as telling
from router.placement.fleet import Fleet
from router.placement.peers import HURRY_S, News, read_news
from router.placement.targets import Report, Work
from tests.router.builders import NOW, make_policy, make_target

TARGET = make_target(make_policy(), "a", "eu")
LONG = Work(2 * HURRY_S, 0.6, 5.0, 2000, 0, 200, 2.0)
SHORT = replace(LONG, prefill_s=HURRY_S / 10)


def make_fleet():
    fleet = Fleet(float("inf"))
    fleet.update([Report(TARGET)])
    fleet.news = News("one")
    return fleet


@contextlib.asynccontextmanager
async def telling_of(fleet, broadcast):
    task = asyncio.create_task(telling.tell_peers(fleet, broadcast))
    try:
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def wait_for_hurry(fleet):
    """Until the teller waits for something to be urgent."""
    while not getattr(fleet.news.hurry, "__self__", None):
        await asyncio.sleep(0)


async def test_a_long_prefill_is_told_without_waiting_for_the_round(monkeypatch):
    monkeypatch.setattr(telling, "NEWS_PERIOD_S", 3600.0)
    fleet, told = make_fleet(), asyncio.Queue()

    async def broadcast(router, news):
        told.put_nowait((router, read_news(news)))

    async with telling_of(fleet, broadcast):
        await wait_for_hurry(fleet)
        fleet.book(TARGET, 200, NOW, work=SHORT)
        for _ in range(20):
            await asyncio.sleep(0)
        assert told.empty() and fleet.news.waiting
        fleet.book(TARGET, 2000, NOW, work=LONG)
        router, notices = await asyncio.wait_for(told.get(), 10)
        assert router == "one" and [notice.work for notice in notices] == [SHORT, LONG]


async def test_a_round_ends_before_the_next_begins_and_nothing_is_lost(monkeypatch):
    monkeypatch.setattr(telling, "NEWS_PERIOD_S", 0.01)
    fleet, told, under_way = make_fleet(), [], 0
    first_began, go_on, all_told = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def broadcast(router, news):
        nonlocal under_way
        under_way += 1
        assert under_way == 1
        told.extend(notice.event for notice in read_news(news))
        first_began.set()
        await go_on.wait()
        under_way -= 1
        if len(told) == 4:
            all_told.set()

    async with telling_of(fleet, broadcast) as task:
        await wait_for_hurry(fleet)
        booking = fleet.book(TARGET, 2000, NOW, work=LONG)
        await asyncio.wait_for(first_began.wait(), 10)
        fleet.book(TARGET, 2000, NOW, work=LONG)
        fleet.first_byte(booking, NOW + 1)
        fleet.end(booking, NOW + 2, completed=True)
        for _ in range(20):
            await asyncio.sleep(0)
        assert told == ["sent"]
        go_on.set()
        await asyncio.wait_for(all_told.wait(), 10)
        assert told == ["sent", "sent", "first", "end"] and not task.done()


async def test_without_other_routers_there_is_nobody_to_tell():
    fleet = Fleet(float("inf"))

    async def broadcast(router, news):
        pytest.fail("told nobody")

    await asyncio.wait_for(telling.tell_peers(fleet, broadcast), 10)
