"""Routers that tell each other of their requests: books that agree, losses that are made up for, and peers that fall silent."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from router.placement.fleet import Fleet
from router.placement.peers import END, FIRST, SENT, SILENT_S, News, Notice, Open
from router.placement.profile import LLAMA_8B_H100
from router.placement.targets import Report, Signals, Work
from tests.router.builders import NOW, make_policy, make_target

TARGETS = [make_target(make_policy(), name, "eu") for name in ("a", "b")]
WORK = Work(0.5, 0.6, 5.0, 2000, 0, 200, 2.0)
IDLE = [(0, 0, 0, 0.0)] * 2


def two():
    pair = []
    for name in ("one", "two"):
        fleet = Fleet(float("inf"), {"tiny": LLAMA_8B_H100})
        fleet.update([Report(target) for target in TARGETS])
        fleet.news = News(name)
        pair.append(fleet)
    return pair


def tell(speaker, listener, now, *, lost=False, roll=False):
    notices = speaker.news.take()
    listener.hear(speaker.news.router, [] if lost else notices, now, speaker.news.roll() if roll else ())


def counts(fleet):
    return [(load.inflight, load.unstarted, load.kv_tokens, round(load.queue_s, 6)) for load in fleet.view(NOW).loads]


def test_a_peers_request_is_booked_until_it_ends_and_is_not_told_on():
    ours, theirs = two()
    booking = theirs.book(TARGETS[0], 2000, NOW, work=WORK, model="tiny")
    tell(theirs, ours, NOW + 0.1)
    assert counts(ours)[0][:2] == (1, 1) and ours.load_of("a-1").wait_s(NOW + 0.1) > 0 and not ours.news.take()
    theirs.first_byte(booking, NOW + 0.6)
    tell(theirs, ours, NOW + 0.7)
    assert counts(ours)[0][:2] == (1, 0)
    theirs.end(booking, NOW + 1.0, completed=True, output_tokens=10)
    tell(theirs, ours, NOW + 1.1)
    assert counts(ours) == counts(theirs) == IDLE
    assert ours.load_of("a-1").service_s == 0.0, "what a peer's request took is the peer's to learn from"


def test_the_same_number_of_two_peers_is_two_requests():
    ours, _ = two()
    for router in ("two", "three"):
        ours.hear(router, [Notice(1, SENT, TARGETS[0].incarnation, WORK)], NOW)
    assert counts(ours)[0][0] == 2
    ours.hear("three", [Notice(1, END)], NOW + 1)
    assert counts(ours)[0][0] == 1


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
    assert counts(ours) == IDLE


def test_news_of_targets_that_are_gone_and_out_of_order_change_nothing():
    ours, theirs = two()
    booking = theirs.book(TARGETS[0], 2000, NOW, work=WORK)
    theirs.end(booking, NOW + 1, completed=False)
    notices = theirs.news.take()
    ours.hear("two", [*notices[::-1], notices[1], Notice(7, SENT, "gone", WORK), Notice(9, END)], NOW)
    assert counts(ours)[0][0] in (0, 1)
    ours.hear("two", [], NOW + 1, theirs.news.roll())
    assert counts(ours) == IDLE


def test_a_first_token_and_an_end_that_were_lost_are_made_up_for_by_the_roll_and_what_runs_is_left_alone():
    ours, theirs = two()
    bookings = [theirs.book(TARGETS[i % 2], 2000, NOW, work=WORK) for i in range(500)]
    tell(theirs, ours, NOW)
    for booking in bookings[::3]:
        theirs.end(booking, NOW + 1, completed=False)
    for booking in bookings[1::3]:
        theirs.first_byte(booking, NOW + 1)
    tell(theirs, ours, NOW + 1, lost=True)
    assert counts(ours) != counts(theirs)
    rolls = theirs.news.roll()
    assert len(rolls) > 1, "it comes in parts, and each part counts alone and in any order"
    random.Random(4).shuffle(rolls)
    for roll in rolls:
        ours.hear("two", [], NOW + 2, [roll])
    assert counts(ours) == counts(theirs)
    ours.hear("two", [], NOW + 2, rolls)
    assert counts(ours) == counts(theirs), "the same again changes nothing"


def test_a_roll_says_nothing_of_requests_that_came_after_it():
    ours, theirs = two()
    early = theirs.news.roll()
    theirs.book(TARGETS[0], 2000, NOW, work=WORK)
    tell(theirs, ours, NOW)
    ours.hear("two", [], NOW, early)
    assert counts(ours)[0][0] == 1


MOVES = st.tuples(st.integers(0, 1), st.sampled_from(["book", "first", "end", "tell", "lose"]), st.integers(0, 9))


@given(st.lists(MOVES, max_size=60))
def test_when_everything_has_ended_and_been_told_or_lost_both_books_are_empty(events):
    pair, running = two(), ([], [])
    for step, (who, what, pick) in enumerate(events):
        now, fleet, mine = NOW + step / 100, pair[who], running[who]
        if what == "book":
            mine.append(fleet.book(TARGETS[pick % 2], 100 * pick + 1, now, work=WORK))
        elif what in ("tell", "lose"):
            tell(fleet, pair[1 - who], now, lost=what == "lose", roll=pick > 5)
        elif mine:
            booking = mine[pick % len(mine)]
            if what == "first":
                fleet.first_byte(booking, now)
            else:
                fleet.end(mine.pop(pick % len(mine)), now, completed=bool(pick % 2))
    for who in (0, 1):
        for booking in running[who]:
            pair[who].end(booking, NOW + 10, completed=True)
        tell(pair[who], pair[1 - who], NOW + 10, roll=True)
    assert counts(pair[0]) == counts(pair[1]) == IDLE


ODD = st.builds(
    Notice,
    id=st.integers(-2, 5),
    event=st.sampled_from([SENT, FIRST, END, "", "later"]),
    incarnation=st.sampled_from(["", "gone", *(target.incarnation for target in TARGETS)]),
    work=st.sampled_from([None, WORK]),
)
ODD_ROLL = st.builds(
    Open,
    since=st.integers(-2, 6),
    until=st.integers(-2, 6),
    unstarted=st.lists(st.integers(-2, 6)),
    started=st.lists(st.integers(-2, 6)),
)


@given(
    st.lists(st.tuples(st.sampled_from(["two", "three"]), st.lists(ODD, max_size=6), st.lists(ODD_ROLL, max_size=2)), max_size=12)
)
def test_whatever_a_router_of_another_version_tells_books_stay_sound_and_are_empty_once_it_is_silent(letters):
    ours, _ = two()
    for step, (router, notices, rolls) in enumerate(letters):
        ours.hear(router, notices, NOW + step, rolls)
        for load in ours.view(NOW).loads:
            assert load.inflight >= load.unstarted >= 0 and load.unstarted_tokens >= 0 and load.kv_tokens >= 0
    ours.forget_silent_peers(NOW + len(letters) + 2 * SILENT_S)
    assert counts(ours) == IDLE


def test_there_is_one_call_for_all_that_is_told_together():
    ours, _ = two()
    woken = []
    ours.news.wake = lambda: woken.append(1)
    bookings = [ours.book(TARGETS[0], 2000, NOW, work=WORK) for _ in range(3)]
    ours.first_byte(bookings[0], NOW)
    assert len(woken) == 1 and len(ours.news.take()) == 4
    ours.end(bookings[0], NOW, completed=True)
    assert len(woken) == 2
