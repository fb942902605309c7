"""Routers that tell each other over real sockets: soon, only of what happened, and nobody else gets a word in."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import time

import pytest

from router.decide import decide
from router.peer_link import PeerLink
from router.peer_seal import Letter, Seals, write_letter
from router.placement import peers
from router.placement.fleet import Fleet
from router.placement.peers import END, SENT, News, Notice
from router.placement.targets import Kind, Report, Work
from router.residency.resolve import resolve_label
from tests.router.builders import NOW, SPILL_KEY, grant_of, make_facts, make_policy, make_target

SECRET = b"s" * 32
POLICY = make_policy()
TARGETS = [make_target(POLICY, name, "eu") for name in ("a", "b")]
WORK = Work(0.5, 0.6, 5.0, 2000, 0, 200, 2.0)
LOCALHOST = "127.0.0.1"


class Router:
    """A fleet with a link."""

    def __init__(self, name: str, secret: bytes = SECRET) -> None:
        self.fleet = Fleet(float("inf"))
        self.fleet.update([Report(target) for target in TARGETS])
        self.fleet.news = News(name)
        self.heard: asyncio.Queue[tuple[str, list[Notice]]] = asyncio.Queue()
        hear = self.fleet.hear

        def listening(router, notices, now, rolls=()):
            self.heard.put_nowait((router, list(notices)))
            return hear(router, notices, now, rolls)

        self.fleet.hear = listening
        self.link = PeerLink(self.fleet, secret)
        self.link.listen((LOCALHOST, 0))

    async def hears(self, event):
        """Until a notice of such an event comes; who told, and it."""
        while True:
            router, notices = await asyncio.wait_for(self.heard.get(), 10)
            for notice in notices:
                if notice.event == event:
                    return router, notice

    def waiting(self):
        return [(load.inflight, load.unstarted) for load in self.fleet.view(time.time()).loads]

    def inflight(self):
        return [load.inflight for load in self.fleet.view(time.time()).loads]


@contextlib.asynccontextmanager
async def acquainted(*names):
    """Routers that have heard of each other."""
    routers = [Router(name) for name in names]
    try:
        for router in routers:
            router.link.always_tell({other.link.place for other in routers} - {router.link.place})
        async with asyncio.timeout(10):
            while not all(router.link.hears(name, time.time()) for router in routers for name in names):
                for router in routers:
                    router.link.say_alive(time.time())
                await asyncio.sleep(0.005)
        yield routers
    finally:
        for router in routers:
            router.link.close()


async def test_what_one_sends_the_others_book_and_drop_again():
    async with acquainted("one", "two", "three") as (one, two, three):
        booking = one.fleet.book(TARGETS[1], 2000, time.time(), work=WORK)
        for other in (two, three):
            router, notice = await other.hears(SENT)
            assert (router, notice.incarnation, notice.work) == ("one", TARGETS[1].incarnation, WORK)
            assert other.inflight() == one.inflight() == [0, 1]
        one.fleet.first_byte(booking, time.time())
        one.fleet.end(booking, time.time(), completed=True)
        for other in (two, three):
            await other.hears(END)
            assert other.inflight() == one.inflight() == [0, 0]


async def test_what_happens_together_goes_together_and_nothing_goes_while_nothing_happens(monkeypatch):
    monkeypatch.setattr("router.peer_link.BATCH_S", 0.05)
    async with acquainted("one", "two") as (one, two):
        sent = []
        monkeypatch.setattr(one.link, "_send", lambda letter, send=one.link._send: (sent.append(letter), send(letter)))
        first = one.fleet.book(TARGETS[0], 2000, time.time(), work=WORK)
        await two.hears(SENT)
        assert len(sent) == 1, "the first does not wait"
        later = [one.fleet.book(TARGETS[0], 2000, time.time(), work=WORK) for _ in range(4)]
        await asyncio.sleep(0)
        assert len(sent) == 1
        for booking in (first, *later):
            one.fleet.end(booking, time.time(), completed=False)
        await two.hears(END)
        assert len(sent) == 2 and two.inflight() == [0, 0]
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(sent) == 2


async def test_thousands_at_once_all_arrive_or_are_made_up_for():
    async with acquainted("one", "two") as (one, two):
        bookings = [one.fleet.book(TARGETS[i % 2], 10, time.time(), work=WORK) for i in range(3000)]
        await two.hears(SENT)
        for booking in bookings[:-2]:
            one.fleet.end(booking, time.time(), completed=False)
        async with asyncio.timeout(20):
            while two.inflight() != [1, 1]:
                one.link.say_alive(time.time())
                await asyncio.sleep(0.005)
        assert one.inflight() == [1, 1]


async def test_where_every_third_datagram_is_lost_the_books_still_come_to_agree():
    async with acquainted("one", "two") as (one, two):
        dice, chance = random.Random(7), 1 / 3
        send = one.link._send
        one.link._send = lambda letter: None if dice.random() < chance else send(letter)
        running = []
        for _ in range(300):
            running.append(one.fleet.book(TARGETS[dice.randrange(2)], 2000, time.time(), work=WORK))
            picked = dice.choice(running)
            one.fleet.first_byte(picked, time.time())
            if dice.random() < 0.9:
                running.remove(picked)
                one.fleet.end(picked, time.time(), completed=True)
            await asyncio.sleep(0)
        async with asyncio.timeout(20):
            while two.waiting() != one.waiting():
                one.link.say_alive(time.time())
                await asyncio.sleep(0.005)
        assert sum(count for count, _ in one.waiting()) == len(running)


async def test_a_router_that_starts_again_is_heard_again_and_what_its_earlier_life_left_is_forgotten():
    async with acquainted("one", "two") as (one, two):
        one.fleet.book(TARGETS[0], 2000, time.time(), work=WORK)
        await two.hears(SENT)
        place = one.link.place
        one.link.close()
        reborn = Router("reborn")
        reborn.link.close()
        reborn.link = PeerLink(reborn.fleet, SECRET)
        reborn.link.listen(place)
        reborn.link.always_tell([two.link.place])
        try:
            async with asyncio.timeout(10):
                while not (reborn.link.hears("two", time.time()) and two.link.hears("reborn", time.time())):
                    reborn.link.say_alive(time.time())
                    await asyncio.sleep(0.005)
            reborn.fleet.book(TARGETS[1], 2000, time.time(), work=WORK)
            assert (await two.hears(SENT))[0] == "reborn" and two.inflight() == [1, 1]
            two.link.say_alive(time.time() + peers.SILENT_S + 0.5)
            assert two.inflight()[0] == 0
        finally:
            reborn.link.close()


def forgeries(two):
    """What somebody without the cluster's secret could send to `two`, who may have listened before."""
    stranger = Seals(b"x" * 32)
    work = [Notice(i, SENT, TARGETS[0].incarnation, WORK) for i in range(1, 20)]
    yield b""
    yield b"\0" * 2000
    yield write_letter(Letter("one", work))
    yield stranger.close(write_letter(Letter("one", work, [two.link._seals.session])))
    yield two.link._seals.close(write_letter(Letter("one", work, [two.link._seals.session])))


async def sent_from(place, datagrams, to):
    """Send from an address and wait until all of it was refused."""
    known = to.link.refused
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as outside:
        outside.bind(place)
        for datagram in datagrams:
            outside.sendto(datagram, to.link.place)
        async with asyncio.timeout(10):
            while to.link.refused < known + len(datagrams):
                await asyncio.sleep(0.005)


@pytest.mark.parametrize("poses", [False, True], ids=["from elsewhere", "from a router's own address"])
async def test_nobody_without_the_secret_moves_the_books(poses):
    async with acquainted("one", "two") as (one, two):
        if poses:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
                free.bind((LOCALHOST, 0))
                place = free.getsockname()
            two.link.always_tell([one.link.place, place])
        await sent_from(place if poses else (LOCALHOST, 0), list(forgeries(two)), two)
        assert two.inflight() == [0, 0] and two.link.hears("one", time.time())
        one.fleet.book(TARGETS[0], 2000, time.time(), work=WORK)
        await two.hears(SENT)
        assert two.inflight() == [1, 0], "those who hold it are still heard"


async def test_a_recorded_datagram_that_is_sent_again_books_nothing():
    async with acquainted("one", "two") as (one, two):
        recorded = []
        close = one.link._seals.close

        def recording(letter):
            recorded.append(close(letter))
            return recorded[-1]

        one.link._seals.close = recording
        booking = one.fleet.book(TARGETS[0], 2000, time.time(), work=WORK)
        await two.hears(SENT)
        one.fleet.end(booking, time.time(), completed=False)
        await two.hears(END)
        place = one.link.place
        one.link.close()
        await sent_from(place, recorded, two)
        assert two.inflight() == [0, 0]


@pytest.mark.parametrize("load", [0, 1, 400])
def test_whatever_peers_tell_a_request_stays_where_its_label_lets_it(load):
    """`phi` may be served at one of three places; the others stand idle, and the key may spill."""
    policy = make_policy()
    kept = make_target(policy, "a", "eu", "big", duties=["baa"])
    others = make_target(policy, "b", "us", "big"), make_target(policy, "c", "cloud", "big", Kind.CLOUD)
    fleet = Fleet(float("inf"))
    fleet.update([Report(target) for target in (kept, *others)])
    fleet.hear("peer", [Notice(i, SENT, kept.incarnation, WORK) for i in range(load)], NOW)
    label = resolve_label(grant_of(policy, SPILL_KEY), ["phi"], policy)
    decision = decide(make_facts(policy, SPILL_KEY, label=label, model="big"), policy, fleet.view(NOW), NOW)
    if load == 400:
        assert decision.chosen is None and decision.refusal.code == "residency_capacity"
    else:
        assert decision.chosen.target is kept


async def test_a_link_without_a_socket_keeps_the_news_for_rounds_only():
    fleet = Fleet(float("inf"))
    fleet.news = News("one")
    fleet.update([Report(target) for target in TARGETS])
    link = PeerLink(fleet, SECRET)
    link.always_tell([(LOCALHOST, 9)])
    fleet.book(TARGETS[0], 2000, time.time(), work=WORK)
    link.say_alive(time.time())
    assert link.place is None and link.later is None and not fleet.news.take()
    link.close()


async def test_an_address_is_told_while_it_is_announced_and_only_in_numbers():
    one, now = Router("one"), time.time()
    try:
        one.link.announce("two", ("10.0.0.2", 7001), now)
        one.link.announce("three", ("host.example", 7001), now)
        one.link.announce("four", None, now)
        one.link.announce("one", one.link.place, now)
        assert one.link._places == {("10.0.0.2", 7001)}
        one.link.announce("two", ("127.0.0.1", 9), now + 3)
        assert one.link._places == {("127.0.0.1", 9)}
        one.link.say_alive(now + 3 + peers.SILENT_S)
        assert one.link._places
        one.link.say_alive(now + 4 + peers.SILENT_S)
        assert not one.link._places
    finally:
        one.link.close()


def test_a_router_that_has_nobody_to_tell_has_no_link():
    with pytest.raises(ValueError, match="no link"):
        PeerLink(Fleet(float("inf")), SECRET)
