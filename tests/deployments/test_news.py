"""How routers under Serve tell each other: where they listen, and the news itself in rounds while somebody hears no datagrams."""

from __future__ import annotations

import asyncio
import contextlib
import time

import msgspec
import pytest
from msgspec.structs import replace

from deployments import news as telling
from deployments.news import Announcement, hear_announcement
from router.peer_link import PeerLink
from router.peer_seal import read_letter
from router.placement.fleet import Fleet
from router.placement.peers import END, FIRST, HURRY_S, SENT, News
from router.placement.targets import Report, Work
from tests.router.builders import make_policy, make_target

TARGET = make_target(make_policy(), "a", "eu")
LONG = Work(2 * HURRY_S, 0.6, 5.0, 2000, 0, 200, 2.0)
SHORT = replace(LONG, prefill_s=HURRY_S / 10)
SECRET = b"s" * 32


class Router:
    """A fleet with a link, and what it broadcasts."""

    def __init__(self, name, listens=False):
        self.fleet = Fleet(float("inf"))
        self.fleet.update([Report(TARGET)])
        self.fleet.news = News(name)
        self.link = PeerLink(self.fleet, SECRET)
        if listens:
            self.link.listen(("127.0.0.1", 0))
        self.told = asyncio.Queue()

    def book(self, work):
        return self.fleet.book(TARGET, 2000, time.time(), work=work)

    async def broadcast(self, announcement):
        self.told.put_nowait(letter_in(announcement))
        return False

    def inflight(self):
        return self.fleet.load_of(TARGET.incarnation).inflight


def letter_in(announcement):
    return read_letter(msgspec.msgpack.decode(announcement, type=Announcement).letter)


@contextlib.asynccontextmanager
async def telling_of(router, broadcast):
    task = asyncio.create_task(telling.tell_in_rounds(router.link, broadcast))
    try:
        await asyncio.sleep(0)  # from its first step on there are rounds
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        router.link.close()


async def test_a_long_prefill_is_told_without_waiting_for_the_round(monkeypatch):
    monkeypatch.setattr(telling, "NEWS_PERIOD_S", 3600.0)
    router = Router("one")
    async with telling_of(router, router.broadcast):
        router.book(SHORT)
        while not router.link.later:
            await asyncio.sleep(0)
        for _ in range(20):
            await asyncio.sleep(0)
        assert router.told.empty()
        router.book(LONG)
        letter = await asyncio.wait_for(router.told.get(), 10)
        assert letter.router == "one" and [notice.work for notice in letter.notices] == [SHORT, LONG]


async def test_short_ones_are_told_when_they_add_up(monkeypatch):
    monkeypatch.setattr(telling, "NEWS_PERIOD_S", 3600.0)
    router = Router("one")
    async with telling_of(router, router.broadcast):
        for _ in range(12):
            router.book(SHORT)
        letter = await asyncio.wait_for(router.told.get(), 10)
        assert len(letter.notices) == 12


async def test_a_round_ends_before_the_next_begins_and_nothing_is_lost(monkeypatch):
    monkeypatch.setattr(telling, "NEWS_PERIOD_S", 0.01)
    router, told, under_way = Router("one"), [], 0
    first_began, go_on, all_told = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def broadcast(announcement):
        nonlocal under_way
        under_way += 1
        assert under_way == 1
        told.extend(notice.event for notice in letter_in(announcement).notices)
        if told:
            first_began.set()
            await go_on.wait()
        under_way -= 1
        if len(told) == 4:
            all_told.set()
        return False

    async with telling_of(router, broadcast) as task:
        booking = router.book(LONG)
        await asyncio.wait_for(first_began.wait(), 10)
        router.book(LONG)
        router.fleet.first_byte(booking, time.time())
        router.fleet.end(booking, time.time(), completed=True)
        for _ in range(20):
            await asyncio.sleep(0)
        assert told == [SENT]
        go_on.set()
        await asyncio.wait_for(all_told.wait(), 10)
        assert told == [SENT, SENT, FIRST, END] and not task.done()


async def test_while_everybody_hears_datagrams_only_addresses_are_announced_and_rounds_come_back_when_somebody_does_not(
    monkeypatch,
):
    monkeypatch.setattr(telling, "NEWS_PERIOD_S", 0.01)
    monkeypatch.setattr(telling, "ALIVE_PERIOD_S", 0.02)
    router, reached, told = Router("one", listens=True), True, asyncio.Queue()

    async def broadcast(announcement):
        told.put_nowait(msgspec.msgpack.decode(announcement, type=Announcement))
        return reached

    async with telling_of(router, broadcast):
        await asyncio.wait_for(told.get(), 10)
        booking = router.book(LONG)
        for _ in range(3):
            announced = await asyncio.wait_for(told.get(), 10)
            assert (announced.host, announced.port) == router.link.place
            assert not read_letter(announced.letter).notices and router.link.later is None
        reached = False
        while router.link.later is None:
            await asyncio.wait_for(told.get(), 10)
        router.fleet.end(booking, time.time(), completed=True)
        notices = []
        while not notices:
            notices = read_letter((await asyncio.wait_for(told.get(), 10)).letter).notices
        assert [notice.event for notice in notices] == [END]


async def test_what_cannot_be_heard_directly_is_booked_from_the_announcement_and_else_ignored():
    one, two = Router("one", listens=True), Router("two", listens=True)
    announcements = asyncio.Queue()

    async def broadcast(announcement):
        announcements.put_nowait(announcement)
        return hear_announcement(two.link, two.fleet, announcement, time.time())

    try:
        async with telling_of(one, broadcast):
            one.book(LONG)
            while two.inflight() == 0:
                await asyncio.wait_for(announcements.get(), 10)
            assert not two.link.hears("one", time.time()) and two.link._places == {one.link.place}
            one.link.announce("two", two.link.place, time.time())
            async with asyncio.timeout(10):
                while not two.link.hears("one", time.time()):
                    for link in (one.link, two.link):
                        link.say_alive(time.time())
                    await asyncio.sleep(0.005)
                one.book(LONG)
                while two.inflight() < 2:
                    await asyncio.sleep(0.001)
                while one.link.later is not None:
                    await announcements.get()
            assert two.inflight() == one.inflight() == 2, "what came both ways is booked once"
            assert hear_announcement(one.link, one.fleet, await announcements.get(), time.time()), "its own voice it knows"
    finally:
        two.link.close()


async def test_ends_that_were_lost_when_datagrams_stopped_are_made_up_for_by_the_next_announcement():
    one, two = Router("one"), Router("two")
    booking = one.book(LONG)
    two.fleet.hear("one", one.fleet.news.take(), time.time())
    one.fleet.end(booking, time.time(), completed=False)
    one.fleet.news.take()
    assert two.inflight() == 1
    done = asyncio.Event()

    async def broadcast(announcement):
        hear_announcement(two.link, two.fleet, announcement, time.time())
        done.set()
        return False

    async with telling_of(one, broadcast):
        await asyncio.wait_for(done.wait(), 10)
    assert two.inflight() == 0
    two.link.close()


async def test_an_announcement_that_is_none_is_refused():
    router = Router("one")
    for data in (b"", b"\x93", msgspec.msgpack.encode(["host", 1, b"no letter"]), msgspec.msgpack.encode({"host": 1})):
        with pytest.raises(msgspec.MsgspecError):
            hear_announcement(router.link, router.fleet, data, time.time())
    router.link.close()


async def test_the_log_says_once_that_datagrams_do_not_get_through(monkeypatch, caplog):
    monkeypatch.setattr(telling, "ALIVE_PERIOD_S", 0.01)
    monkeypatch.setattr(telling, "NEWS_PERIOD_S", 0.01)
    monkeypatch.setattr(telling, "COMPLAIN_S", 0.05)
    router, answers, told = Router("one"), [True], asyncio.Queue()

    async def broadcast(announcement):
        told.put_nowait(announcement)
        return answers[0]

    def complaints():
        return [record for record in caplog.records if "UDP" in record.getMessage()]

    async with telling_of(router, broadcast):
        for _ in range(10):
            await asyncio.wait_for(told.get(), 10)
        assert not complaints()
        for count in (1, 2):
            answers[0] = False
            while len(complaints()) < count:
                await asyncio.wait_for(told.get(), 10)
            for _ in range(10):
                await asyncio.wait_for(told.get(), 10)
            assert len(complaints()) == count
            answers[0] = True
            while router.link.later is not None:
                await asyncio.wait_for(told.get(), 10)
