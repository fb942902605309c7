"""When holding a request back is worth it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from router.placement.profile import LLAMA_8B_H100
from router.placement.targets import Load, Work
from router.placement.waiting import Bounds, counted_wait_s, make_ticket, seen_by, worth_waiting
from tests.router.builders import NOW, make_policy, make_target, make_view

TARGET = make_target(make_policy(), "a", "eu", slots=64)
BOUNDS = Bounds(0.1, 0.05, 0.05)


def work(ttft_s, prefill_s=0.1, limit_s=2.0, prompt=2000):
    return Work(prefill_s, ttft_s, 5.0, prompt, 0, 200, limit_s)


def busy(**more):
    return Load(profile=LLAMA_8B_H100, inflight=20, unstarted=10, **more)


def test_a_request_that_an_emptier_target_would_serve_in_time_waits():
    assert worth_waiting(TARGET, busy(), work(5.0), BOUNDS, NOW)


def test_an_idle_target_gets_whatever_comes():
    assert not worth_waiting(TARGET, Load(profile=LLAMA_8B_H100), work(50.0, 50.0), BOUNDS, NOW)
    stuck = Load(profile=LLAMA_8B_H100, foreign=500, foreign_waiting=400)
    assert not worth_waiting(TARGET, stuck, work(50.0), BOUNDS, NOW), "a gauge that is wrong is found out by going there"


def test_a_request_that_is_late_everywhere_is_only_kept_from_standing_behind_more_than_itself():
    hopeless = work(4.5, 3.0, prompt=200_000)
    assert not worth_waiting(TARGET, busy(), hopeless, BOUNDS, NOW)
    assert worth_waiting(TARGET, busy(), work(9.0, 3.0, prompt=200_000), BOUNDS, NOW)
    assert not worth_waiting(TARGET, busy(), work(0.15), Bounds(5.0, 0.05, 0.05), NOW), "a margin wider than the limit"
    assert not worth_waiting(TARGET, busy(), work(0.15), Bounds(0.1, 0.001, 0.002), NOW), "a pace no engine keeps"


def test_what_it_has_waited_does_not_make_a_request_hopeless():
    left = work(5.0, limit_s=0.1)
    assert not worth_waiting(TARGET, busy(), work(0.15, limit_s=0.1), BOUNDS, NOW)
    assert worth_waiting(TARGET, busy(), left, BOUNDS, NOW, waited_s=1.9)


@given(st.floats(0.0, 20.0), st.floats(0.0, 20.0), st.floats(0.01, 3.0))
def test_more_before_it_never_makes_going_more_attractive(wait, more, prefill):
    before = worth_waiting(TARGET, busy(), work(wait + prefill, prefill), BOUNDS, NOW)
    after = worth_waiting(TARGET, busy(), work(wait + more + prefill, prefill), BOUNDS, NOW)
    assert after or not before


def test_a_late_ticket_is_tried_as_if_it_had_just_come_and_leaves_room_for_those_yet_to_come():
    ticket = make_ticket("1", "t", work(5.0), 0.1, NOW, 30.0)
    assert ticket.deadline == pytest.approx(NOW + 2.0 - 0.1 - 0.1) and ticket.give_up == NOW + 30.0
    assert counted_wait_s(ticket, NOW + 1.0) == 1.0
    ticket.late = True
    assert counted_wait_s(ticket, NOW + 3.0) == counted_wait_s(ticket, NOW + 3.0, pile_s=1.8) == 0.0
    room_s = counted_wait_s(ticket, NOW + 3.0, pile_s=20.0)
    assert 0.1 * 1.8 < room_s < 0.9 * 1.8 and counted_wait_s(ticket, NOW + 9.0, pile_s=50.0) == room_s
    assert 0.0 < counted_wait_s(ticket, NOW + 3.0, pile_s=2.5) < room_s
    hopeless = make_ticket("2", "t", work(5.0, limit_s=0.05), 0.1, NOW, 30.0)
    hopeless.late = True
    assert counted_wait_s(hopeless, NOW + 3.0, pile_s=20.0) == 0.0


def test_a_late_ticket_goes_where_it_slows_others_less_than_one_in_time_may():
    ticket = make_ticket("1", "t", work(5.0), 0.1, NOW, 30.0)
    calm = make_view((TARGET, Load()))
    careful = replace(calm, crowd_share=1.0)
    assert seen_by(ticket, careful) is careful
    ticket.late = True
    assert 0.5 < seen_by(ticket, careful).crowd_share < 1.0
    assert seen_by(ticket, calm) is calm, "while nobody waits for others, it does not either"
