"""Which datagrams between routers are believed: none that was forged, changed, repeated, or recorded of an earlier life."""

from __future__ import annotations

import math
import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from router import peer_link, peer_seal
from router.peer_seal import MOST_BYTES, Letter, Seals, Unbelievable, read_letter, write_letter, write_letters
from router.placement.peers import END, SENT, News, Notice
from router.placement.targets import Work

SECRET = b"s" * 32
WORK = Work(0.5, 0.6, 5.0, 2000, 0, 200, 2.0)
NOTICE = Notice(1, SENT, "a-1", WORK)

numbers = st.integers(0, 2**40)
seconds = st.floats(0, 1e6)
works = st.builds(
    Work,
    prefill_s=seconds,
    ttft_s=seconds,
    tau_s=st.floats(1e-3, 1e6),
    prompt_tokens=numbers,
    cached_tokens=numbers,
    output_tokens=numbers,
    limit_s=seconds,
)
notices = st.builds(Notice, id=numbers, event=st.just(SENT), incarnation=st.text(max_size=60), work=works)


def say(text: str = "one", *sessions: bytes) -> bytes:
    return write_letter(Letter(text, [NOTICE], sessions))


def acquainted():
    """Two that have heard each other."""
    one, two = Seals(SECRET), Seals(SECRET)
    one.open(two.close(say("two", one.session)))
    two.open(one.close(say("one", two.session)))
    return one, two


@given(st.lists(notices, max_size=120))
def test_news_come_back_as_they_were_told_in_letters_that_fit_a_packet(told):
    letters = list(write_letters("one", told))
    assert [notice for letter in letters for notice in read_letter(letter).notices] == told
    assert all(len(letter) <= MOST_BYTES for letter in letters) and (len(letters) <= 1 or len(letters) <= len(told))


def test_rolls_and_names_fit_a_packet_after_a_billion_requests_and_with_as_many_routers_as_there_may_be():
    news = News("r" * 16)
    news._last = 10**9
    ids = [news.sent("a-1", WORK) for _ in range(500)]
    for id in ids[::2]:
        news.first(id)
    for roll in news.roll():
        assert len(write_letter(Letter(news.router, rolls=[roll]))) <= MOST_BYTES
    assert len(write_letter(Letter(news.router, sessions=[Seals(SECRET).session for _ in range(63)]))) <= MOST_BYTES
    assert len(write_letter(Letter(news.router, asked=news.router, wanted=ids[: peer_link._MOST_WANTED]))) <= MOST_BYTES


@pytest.mark.parametrize(
    "work",
    [
        replace(WORK, prefill_s=math.nan),
        replace(WORK, prefill_s=math.inf),
        replace(WORK, tau_s=math.nan),
        replace(WORK, prefill_s=-1.0),
        replace(WORK, tau_s=0.0),
        replace(WORK, prompt_tokens=-5),
        replace(WORK, output_tokens=-1),
    ],
)
def test_work_in_numbers_that_would_spoil_the_books_is_not_read(work):
    with pytest.raises(msgspec.MsgspecError):
        read_letter(write_letter(Letter("one", [replace(NOTICE, work=work)])))


def test_what_another_secret_sealed_or_somebody_changed_is_refused():
    one, two = acquainted()
    stranger = Seals(b"t" * 32)
    with pytest.raises(Unbelievable):
        two.open(stranger.close(say("one", two.session)))
    sealed = one.close(say())
    for place in range(len(sealed)):
        with pytest.raises(Unbelievable):
            two.open(sealed[:place] + bytes([sealed[place] ^ 1]) + sealed[place + 1 :])
    for part in (b"", sealed[:5], sealed[:20], sealed[:-1], sealed + b"\0"):
        with pytest.raises(Unbelievable):
            two.open(part)
    session, letter = two.open(sealed)
    assert session.believed and letter.notices == [NOTICE], "none of that spoilt the original"


def test_nothing_of_a_letter_can_be_read_on_the_way():
    sealed = Seals(SECRET).close(write_letter(Letter("one", [replace(NOTICE, incarnation="engine-of-the-clinic")])))
    assert b"clinic" not in sealed and b"one" not in sealed


def test_our_own_datagram_thrown_back_at_us_is_refused():
    one, _ = acquainted()
    with pytest.raises(Unbelievable):
        one.open(one.close(say("two", one.session)))


def test_what_comes_in_another_order_is_read_once_each_and_what_comes_much_too_late_never():
    one, two = acquainted()
    sealed = [one.close(say()) for _ in range(peer_seal._WINDOW)]
    order = list(range(len(sealed)))
    random.Random(1).shuffle(order)
    for i in order:
        assert two.open(sealed[i])[1].notices == [NOTICE]
    for datagram in sealed:
        with pytest.raises(Unbelievable):
            two.open(datagram)
    late = one.close(say())
    for _ in range(peer_seal._WINDOW):
        two.open(one.close(say()))
    with pytest.raises(Unbelievable):
        two.open(late)


@given(st.lists(st.integers(0, 200), max_size=150))
def test_no_datagram_is_ever_read_twice(order):
    one, two = acquainted()
    sealed = [one.close(say()) for _ in range(201)]
    read, newest = set(), -1
    for i in order:
        try:
            two.open(sealed[i])
        except Unbelievable:
            assert i in read or newest - i >= peer_seal._WINDOW
            continue
        assert i not in read
        read.add(i)
        newest = max(newest, i)


def test_a_session_is_believed_only_after_it_has_named_ours():
    one, two = Seals(SECRET), Seals(SECRET)
    session, _ = two.open(one.close(say("one")))
    assert not session.believed
    session, _ = two.open(one.close(say("one", b"another's...")))
    assert not session.believed
    session, _ = two.open(one.close(say("one", two.session)))
    assert session.believed
    session, _ = two.open(one.close(write_letter(Letter("one", [Notice(1, END)]))))
    assert session.believed, "once is enough"


def test_what_was_recorded_of_an_earlier_life_is_believed_by_nobody():
    one, two = acquainted()
    recorded = [one.close(say("one", two.session)) for _ in range(3)]
    reborn = Seals(SECRET)
    for datagram in recorded:
        session, _ = reborn.open(datagram)
        assert not session.believed
    two.open(recorded[2])
    with pytest.raises(Unbelievable):
        two.open(recorded[2])


def test_sessions_that_were_never_believed_are_forgotten_before_memory_grows(monkeypatch):
    monkeypatch.setattr(peer_seal, "_MOST_SESSIONS", 8)
    one, two = acquainted()
    kept = one.close(say("one", two.session))
    two.open(kept)
    for _ in range(50):
        two.open(Seals(SECRET).close(say("other")))
    assert len(two._sessions) <= 8
    with pytest.raises(Unbelievable):
        two.open(kept)
