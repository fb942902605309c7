"""Routers that tell each other of their requests: books that agree, and peers that fall silent."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from router.placement.fleet import Fleet
from router.placement.peers import HURRY_S, SILENT_S, News, read_news
from router.placement.profile import LLAMA_8B_H100
from router.placement.targets import Report, Signals, Work
from tests.router.builders import NOW, make_policy, make_target

TARGETS = [make_target(make_policy(), name, "eu") for name in ("a", "b")]
WORK = Work(0.5, 0.6, 5.0, 2000, 0, 200, 2.0)


def two():
    pair = []
    for name in ("one", "two"):
        fleet = Fleet(float("inf"), {"tiny": LLAMA_8B_H100})
        fleet.update([Report(target) for target in TARGETS])
        fleet.news = News(name)
        pair.append(fleet)
    return pair


def tell(speaker, listener, now):
    listener.hear(speaker.news.router, read_news(speaker.news.take()), now)


def counts(fleet):
    return [(load.inflight, load.unstarted, load.kv_tokens, round(load.queue_s, 6)) for load in fleet.view(NOW).loads]


def test_a_peers_request_is_booked_until_it_ends_and_is_not_told_on():
    ours, theirs = two()
    booking = theirs.book(TARGETS[0], 2000, NOW, work=WORK, model="tiny")
    tell(theirs, ours, NOW + 0.1)
    assert counts(ours)[0][:2] == (1, 1) and ours.load_of("a-1").wait_s(NOW + 0.1) > 0 and not ours.news.waiting
    theirs.first_byte(booking, NOW + 0.6)
    tell(theirs, ours, NOW + 0.7)
    assert counts(ours)[0][:2] == (1, 0)
    theirs.end(booking, NOW + 1.0, completed=True, output_tokens=10)
    tell(theirs, ours, NOW + 1.1)
    assert counts(ours) == counts(theirs) == [(0, 0, 0, 0.0)] * 2
    assert ours.load_of("a-1").service_s == 0.0, "what a peer's request took is the peer's to learn from"


def test_gauges_that_show_a_peers_request_do_not_count_it_again():
    ours, theirs = two()
    theirs.book(TARGETS[0], 2000, NOW, work=WORK)
    ours.update([Report(TARGETS[0], Signals(NOW + 0.05, running=1)), Report(TARGETS[1])])
    assert ours.load_of("a-1").foreign == 1
    tell(theirs, ours, NOW + 0.1)
    ours.update([Report(TARGETS[0], Signals(NOW + 0.5, running=1)), Report(TARGETS[1])])
    assert (ours.load_of("a-1").inflight, ours.load_of("a-1").foreign) == (1, 0)


def test_a_peer_that_falls_silent_takes_its_requests_with_it():
    ours, theirs = two()
    for target in (TARGETS[0], TARGETS[0], TARGETS[1]):
        theirs.book(target, 2000, NOW, work=WORK)
    tell(theirs, ours, NOW)
    ours.forget_silent_peers(NOW + SILENT_S)
    assert sum(load[0] for load in counts(ours)) == 3
    tell(theirs, ours, NOW + SILENT_S)  # nothing new, but it lives
    ours.forget_silent_peers(NOW + SILENT_S + 1)
    assert sum(load[0] for load in counts(ours)) == 3
    ours.forget_silent_peers(NOW + 3 * SILENT_S)
    assert counts(ours) == [(0, 0, 0, 0.0)] * 2


def test_news_of_targets_that_are_gone_and_out_of_order_change_nothing():
    ours, theirs = two()
    booking = theirs.book(TARGETS[0], 2000, NOW, work=WORK)
    theirs.end(booking, NOW + 1, completed=False)
    notices = read_news(theirs.news.take())
    ours.hear("two", [*notices[::-1], notices[1]], NOW)
    assert counts(ours)[0][0] in (0, 1)
    ours.forget_silent_peers(NOW + 3 * SILENT_S)
    assert counts(ours) == [(0, 0, 0, 0.0)] * 2
    with pytest.raises(msgspec.MsgspecError):
        read_news(b'{"id": 1}')


@given(st.lists(st.tuples(st.integers(0, 1), st.sampled_from(["book", "first", "end", "tell"]), st.integers(0, 9)), max_size=60))
def test_when_everything_has_ended_and_been_told_both_books_are_empty(events):
    pair, running = two(), ([], [])
    for step, (who, what, pick) in enumerate(events):
        now, fleet, mine = NOW + step / 100, pair[who], running[who]
        if what == "book":
            mine.append(fleet.book(TARGETS[pick % 2], 100 * pick + 1, now, work=WORK))
        elif what == "tell":
            tell(fleet, pair[1 - who], now)
        elif mine:
            booking = mine[pick % len(mine)]
            if what == "first":
                fleet.first_byte(booking, now)
            else:
                fleet.end(mine.pop(pick % len(mine)), now, completed=bool(pick % 2))
    for who in (0, 1):
        for booking in running[who]:
            pair[who].end(booking, NOW + 10, completed=True)
        tell(pair[who], pair[1 - who], NOW + 10)
    assert counts(pair[0]) == counts(pair[1]) == [(0, 0, 0, 0.0)] * 2


def test_a_long_prefill_is_told_in_a_hurry_and_short_ones_when_they_add_up():
    ours, _ = two()
    hurried = []
    ours.news.hurry = lambda: hurried.append(len(read_news(ours.news.take())))
    ours.book(TARGETS[0], 2000, NOW, work=replace(WORK, prefill_s=HURRY_S))
    assert hurried == [1]
    for _ in range(5):
        ours.book(TARGETS[0], 200, NOW, work=replace(WORK, prefill_s=HURRY_S / 4))
    assert hurried == [1, 4] and len(read_news(ours.news.take())) == 1
    for _ in range(3):
        ours.book(TARGETS[0], 200, NOW, work=replace(WORK, prefill_s=HURRY_S / 4))
    assert hurried == [1, 4], "what was told counts no more"
