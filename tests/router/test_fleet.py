"""The books: what is booked is unbooked exactly once, gauges only add, failures pause a target."""

from __future__ import annotations

from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.placement.fleet import Fleet
from router.placement.peers import END, FIRST, SENT, Notice
from router.placement.targets import Report, Signals, Work
from tests.router.builders import NOW, make_policy, make_target
from tests.router.conftest import open_front_door

POLICY = make_policy()
A, B = make_target(POLICY, "a", "eu"), make_target(POLICY, "b", "us")


def make_fleet(*targets, budget=float("inf")):
    fleet = Fleet(budget)
    fleet.update([Report(target) for target in targets])
    return fleet


def load(fleet, index=0, now=NOW):
    return fleet.view(now).loads[index]


def test_a_request_is_counted_from_booking_to_end():
    fleet = make_fleet(A)
    booking = fleet.book(A, 100, NOW)
    assert (load(fleet).inflight, load(fleet).unstarted, load(fleet).unstarted_tokens) == (1, 1, 100)
    fleet.first_byte(booking, NOW + 0.5)
    assert (load(fleet).inflight, load(fleet).unstarted, load(fleet).unstarted_tokens) == (1, 0, 0)
    assert load(fleet).ttft_s == pytest.approx(0.5) and load(fleet).prefill_tps == pytest.approx(200)
    for _ in range(2):
        fleet.end(booking, NOW + 2, completed=True)
    assert load(fleet).inflight == 0 and load(fleet).service_s == pytest.approx(2)


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["book", "first", "end", "fail"])), max_size=60))
def test_the_books_never_go_below_zero_and_empty_out(steps):
    fleet = make_fleet(A, B)
    bookings = {}
    for number, step in steps:
        if step == "book" and number not in bookings:
            bookings[number] = fleet.book(A if number % 2 else B, 10 * number, NOW)
        elif number in bookings and step == "first":
            fleet.first_byte(bookings[number], NOW + 1)
        elif number in bookings:
            fleet.end(bookings[number], NOW + 2, completed=step == "end")
    for booking in bookings.values():
        fleet.end(booking, NOW + 3, completed=False)
    for one in fleet.view(NOW).loads:
        assert (one.inflight, one.unstarted, one.unstarted_tokens) == (0, 0, 0)


def test_gauges_add_what_others_put_there_and_never_take_our_own_away():
    fleet = make_fleet(A)
    for _ in range(3):
        fleet.book(A, 1, NOW)
    fleet.update([Report(A, Signals(NOW + 1, running=5, waiting=2))])
    assert load(fleet).foreign == 4
    fleet.update([Report(A, Signals(NOW + 2, running=0, waiting=0))])
    assert load(fleet).foreign == 0 and load(fleet).inflight == 3
    fleet.update([Report(A, Signals(NOW + 1.5, running=50))])
    assert load(fleet).foreign == 0, "an older reading changes nothing"


def test_a_late_gauge_that_still_counts_our_finished_requests_is_not_foreign_work():
    fleet = make_fleet(A)
    bookings = [fleet.book(A, 1, NOW) for _ in range(8)]
    for booking in bookings:
        fleet.end(booking, NOW + 1, completed=True)
    fleet.update([Report(A, Signals(NOW + 0.9, running=8))])
    assert load(fleet).foreign == 0


def test_failures_pause_a_target_longer_each_time_and_success_ends_it():
    fleet = make_fleet(A)
    fleet.failed(A.incarnation, NOW)
    assert load(fleet).down_until <= NOW, "once is chance"
    fleet.failed(A.incarnation, NOW)
    first = load(fleet).down_until - NOW
    fleet.failed(A.incarnation, NOW + first / 2)
    assert load(fleet).down_until - NOW == first, "what broke in the same crash does not make it worse"
    later = NOW + first
    fleet.failed(A.incarnation, later)
    assert load(fleet).down_until - later == pytest.approx(2 * first)
    for _ in range(20):
        later = load(fleet).down_until
        fleet.failed(A.incarnation, later)
    assert load(fleet).down_until - later <= 30
    fleet.end(fleet.book(A, 1, NOW), NOW, completed=True)
    assert load(fleet).down_until == 0 and load(fleet).failures == 0


def test_membership_changes_keep_the_books_of_those_who_stay():
    fleet = make_fleet(A, B)
    fleet.book(B, 10, NOW)
    gone = fleet.book(A, 10, NOW)
    version = fleet.membership.version
    fleet.update([Report(B)])
    assert fleet.membership.version == version + 1 and load(fleet).inflight == 1
    fleet.end(gone, NOW, completed=True)
    fleet.failed(A.incarnation, NOW)
    fleet.update([Report(B)])
    assert fleet.membership.version == version + 1


@pytest.mark.parametrize("begun_at", [0.5, 1.5, 2.5])
@pytest.mark.parametrize("peers", [False, True])
def test_what_a_target_had_under_way_before_it_left_is_not_in_the_books_it_gets_when_it_is_back(begun_at, peers):
    work = Work(prefill_s=0.1, ttft_s=0.1, tau_s=1.0, prompt_tokens=100, output_tokens=10)
    fleet = make_fleet(A, B)
    if peers:
        fleet.noticed(Notice(1, SENT, A.incarnation, work), NOW)
        first, end = (partial(fleet.noticed, Notice(1, event)) for event in (FIRST, END))
    else:
        booking = fleet.book(A, 100, NOW, work=work)
        first, end = partial(fleet.first_byte, booking), partial(fleet.end, booking, completed=True, output_tokens=10)
    for at in (0.5, 1.0, 1.5, 2.0, 2.5):
        if at == begun_at:
            first(NOW + at)
        if at == 1.0:
            fleet.update([Report(B)])
        if at == 2.0:
            fleet.update([Report(A), Report(B)])
            after = fleet.book(A, 100, NOW + 2.0, work=work)
    seen = load(fleet)
    assert (seen.inflight, seen.unstarted) == (1, 1)
    end(NOW + 3)
    assert load(fleet) == seen
    fleet.first_byte(after, NOW + 4)
    fleet.end(after, NOW + 5, completed=True, output_tokens=10)
    assert (load(fleet).inflight, load(fleet).unstarted, load(fleet).queue_s) == (0, 0, 0.0)


def test_the_budget_is_spent_by_booking_and_renewed_at_midnight_utc():
    fleet = make_fleet(A, budget=1.0)
    fleet.book(A, 1, NOW, cost_usd=0.75)
    assert fleet.view(NOW).spend_left_usd == pytest.approx(0.25)
    assert fleet.view(NOW + 86400).spend_left_usd == pytest.approx(1.0)


def test_saturation_is_remembered_per_label_and_models():
    fleet = make_fleet(A)
    label = POLICY.default_label
    fleet.set_saturated(label, ("m", "n"), True)
    assert fleet.view(NOW).spilling == {(label, ("m", "n"))}
    fleet.set_saturated(label, ("m",), False)
    assert fleet.view(NOW).spilling == {(label, ("m", "n"))}
    fleet.set_saturated(label, ("m", "n"), False)
    assert fleet.view(NOW).spilling == frozenset()


def test_who_no_longer_tells_its_gauges_is_not_held_to_the_last_ones():
    fleet = make_fleet(A)
    fleet.update([Report(A, Signals(NOW, running=5, waiting=2))])
    assert (load(fleet).foreign, load(fleet).foreign_waiting) == (7, 2)
    fleet.update([Report(A)])
    assert (load(fleet).signals, load(fleet).foreign, load(fleet).foreign_waiting) == (None, 0, 0)


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
    ],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_images_whose_cost_nobody_predicted_teach_nothing_of_how_fast_an_engine_is(part, stream):
    async with open_front_door({"a": "eu"}) as door:
        state = door.state
        wish = {"role": "user", "content": "stream" if stream else "hello"}
        for content, taught in (([part, {"type": "text", "text": "see"}], False), ([{"type": "text", "text": "see"}], True)):
            asked = {"model": "m", "messages": [{"role": "user", "content": content}, wish], "stream": stream}
            assert (await door.client.post("/v1/chat/completions", json=asked)).status_code == 200
            assert (state.fleet.view(NOW).loads[0].slowdown > 0.0) is taught


async def test_several_answers_at_once_teach_nothing_of_the_pace_or_of_lengths():
    async with open_front_door({"a": "eu"}) as door:
        view = door.state.fleet.view
        assert (await door.chat("hello", n=8)).status_code == 200
        assert view(NOW).loads[0].slowdown == 0.0 and not view(NOW).output_tokens
        assert (await door.chat("hello")).status_code == 200
        assert view(NOW).loads[0].slowdown > 0.0 and view(NOW).output_tokens


@pytest.mark.parametrize("path", ["/tokenize", "/detokenize", "/v1/messages/count_tokens"])
async def test_what_no_engine_computes_teaches_nothing_of_how_fast_one_is(path):
    body = {"model": "m", "prompt": "water " * 4000, "tokens": [1], "max_tokens": 5}
    body |= {"messages": [{"role": "user", "content": "water " * 4000}]} if "count" in path else {}
    async with open_front_door({"a": "eu"}) as door:
        state = door.state
        for _ in range(10):
            assert (await door.client.post(path, json=body)).status_code == 200
        load = state.fleet.view(NOW).loads[0]
        assert (load.slowdown, load.ttft_s, load.service_s, load.inflight, load.unstarted) == (0.0, 0.0, 0.0, 0, 0)
        assert load.breaker.paces == 0 and state.fleet.calibration.margin_s == 0.0
        asked = {"model": "m", "messages": [{"role": "user", "content": "water " * 4000}]}
        explained = (await door.client.post("/tidegate/v1/explain", json=asked)).json()
        assert explained["chosen"]["predicted_ttft_ms"] > 50, "nothing of it is in the engine's cache"
        await door.chat("hello")
        assert state.fleet.view(NOW).loads[0].service_s > 0.0
