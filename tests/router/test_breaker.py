"""The circuit breaker: opens for three causes, lets one probe through, recovers, and never takes the last allowed target."""

from __future__ import annotations

import asyncio
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from router.decide import decide
from router.decision import Verdict
from router.fixed_targets import fixed_targets
from router.placement import breaker as breakers
from router.placement.breaker import CLOSED, FAILURES_IN_A_ROW, MAX_OPEN_S, Breaker, Cause, State, hold, state_of
from router.placement.fleet import Fleet
from router.placement.targets import Kind, Load, Report
from tests.router.builders import NOW, SPILL_KEY, make_facts, make_policy, make_target, make_view

POLICY = make_policy()
A, B, C, D = (make_target(POLICY, name, "eu") for name in "abcd")
ABROAD = make_target(POLICY, "us", "us")
CLOUD = make_target(POLICY, "provider", "cloud", kind=Kind.CLOUD, models={"tiny": "t-1"})
OPEN = breakers.opened(CLOSED, Cause.FAILURES_IN_A_ROW, NOW)
PROBED = replace(breakers.opened(CLOSED, Cause.FAILURE_SHARE, NOW - 60), probing=True)


def make_fleet(*targets):
    fleet = Fleet(float("inf"))
    fleet.update([Report(target) for target in targets])
    return fleet


def breaker(fleet, index=0):
    return fleet.view(NOW).loads[index].breaker


def run(fleet, target, now, *, ok=True, ttft=0.05, tokens=100, seconds=1.0, whole=False):
    booking = fleet.book(target, tokens, now, whole=whole)
    if ok:
        fleet.first_byte(booking, now + ttft)
    fleet.end(booking, now + seconds, completed=ok)
    if not ok:
        fleet.failed(target.incarnation, now + seconds, True, now)
    return booking


def test_failures_in_a_row_open_it_and_a_success_between_them_starts_the_count_anew():
    fleet = make_fleet(A, B)
    for _ in range(FAILURES_IN_A_ROW - 1):
        run(fleet, A, NOW, ok=False)
    run(fleet, A, NOW)
    assert breaker(fleet).cause is None
    for _ in range(FAILURES_IN_A_ROW):
        run(fleet, A, NOW + 100, ok=False)
    assert breaker(fleet).cause is Cause.FAILURES_IN_A_ROW
    assert fleet.view(NOW).loads[0].down_until == 0, "it was reached: nothing pauses it but its breaker"


def test_a_share_of_failures_opens_it_though_none_follow_in_a_row_and_old_ones_fade():
    for gap, expected in ((0.05, Cause.FAILURE_SHARE), (30.0, None)):
        fleet = make_fleet(A, B)
        for i in range(60):
            run(fleet, A, NOW + i * gap, ok=i % 3 == 0, seconds=0.01)
        assert breaker(fleet).cause is expected


def test_a_target_whose_first_tokens_are_outliers_among_its_peers_is_held_and_a_slow_cluster_is_not():
    for pace_of_a, pace_of_others, expected in ((4.0, 0.3, Cause.SLOW), (4.0, 3.0, None), (0.1, 0.005, None)):
        fleet = make_fleet(A, B, C)
        for i in range(40):
            for target in (A, B, C):
                run(fleet, target, NOW + 5 * i, ttft=pace_of_a if target is A else pace_of_others, seconds=4.5)
            if breaker(fleet).cause is not None:
                break
        assert breaker(fleet).cause is expected
        assert breaker(fleet, 1).cause is None and breaker(fleet, 2).cause is None


def test_long_prompts_are_not_slowness_and_a_queue_is_not_either():
    fleet = make_fleet(A, B)
    for i in range(40):
        run(fleet, A, NOW + 9 * i, ttft=4.0, tokens=16_000, seconds=5)
        run(fleet, B, NOW + 9 * i, ttft=0.2, tokens=100)
    assert breaker(fleet).cause is None
    small = replace(A, slots=1)
    fleet = make_fleet(small, B)
    foreign = fleet.book(small, 1, NOW)
    for i in range(40):
        run(fleet, small, NOW + 9 * i, ttft=4.0, seconds=5)
        run(fleet, B, NOW + 9 * i, ttft=0.1)
    assert breaker(fleet).cause is None and not foreign.ended


def test_slowness_is_over_when_the_probe_is_as_fast_as_the_others():
    fleet = make_fleet(A, B)
    for i in range(40):
        if breaker(fleet).cause is None:
            run(fleet, A, NOW + 5 * i, ttft=4.0, seconds=4.5)
        run(fleet, B, NOW + 5 * i, ttft=0.3)
    opened = breaker(fleet)
    assert opened.cause is Cause.SLOW
    run(fleet, A, opened.until, ttft=3.0, seconds=4)
    again = breaker(fleet)
    assert again.cause is Cause.SLOW and again.until > opened.until + 3
    run(fleet, A, again.until, ttft=0.3)
    assert breaker(fleet).cause is None


def test_an_answer_in_one_piece_is_no_late_first_token_and_ends_a_slowness_that_streams_began():
    fleet = make_fleet(A, B)
    for i in range(40):
        run(fleet, A, NOW + 5 * i, ttft=4.0, seconds=4.0, whole=True)
        run(fleet, B, NOW + 5 * i, ttft=0.3)
    assert breaker(fleet).cause is None
    for i in range(40, 80):
        if breaker(fleet).cause is None:
            run(fleet, A, NOW + 5 * i, ttft=4.0, seconds=4.5)
        run(fleet, B, NOW + 5 * i, ttft=0.3)
    opened = breaker(fleet)
    assert opened.cause is Cause.SLOW
    run(fleet, A, opened.until - 1, ttft=0.3, seconds=0.3, whole=True)
    assert breaker(fleet).cause is Cause.SLOW, "it began before"
    run(fleet, A, opened.until, ttft=4.0, seconds=4.0, whole=True)
    assert breaker(fleet).cause is None, "where all answers come in one piece, nobody else would end it"


async def test_only_answers_that_come_in_one_piece_are_booked_as_such(pair):
    for path, body, whole in (
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hello"}]}, True),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hello"}], "stream": True}, False),
    ):
        booked = []
        book = pair.state.fleet.book
        pair.state.fleet.book = lambda *given, book=book, booked=booked: booked.append(book(*given)) or booked[-1]
        await pair.client.post(path, json={"model": "m", **body})
        pair.state.fleet.book = book
        assert {booking.whole for booking in booked} == {whole}, path


async def test_embeddings_teach_how_fast_their_engine_is(pair):
    """Their first byte says that the prefill is over, though they come in one piece: there is nothing else to them."""
    pooling = [replace(t, endpoints=frozenset({"/v1/embeddings"})) for t in fixed_targets(pair.state.config, None, "")]
    pair.state.fleet.update([Report(target) for target in pooling])
    sites = tuple(replace(site, endpoints=pooling[0].endpoints) for site in pair.state.policy.sites)
    pair.state.policy = replace(pair.state.policy, sites=sites)
    for _ in range(4):
        answer = await pair.client.post("/v1/embeddings", json={"model": "m", "input": "a text " * 40})
        assert answer.status_code == 200
    loads = [pair.state.fleet.load_of(target.incarnation) for target in pooling]
    assert all(load.slowdown for load in loads) and any(load.ttft_s for load in loads)


def test_half_open_lets_one_probe_through_and_its_end_decides():
    fleet = make_fleet(A, B)
    for _ in range(FAILURES_IN_A_ROW):
        run(fleet, A, NOW, ok=False)
    until = breaker(fleet).until
    assert hold(breaker(fleet), until - 0.01).state is State.OPEN
    assert hold(breaker(fleet), until) is None
    probe = fleet.book(A, 1, until)
    assert probe.probe and hold(breaker(fleet), until).state is State.HALF_OPEN
    assert not fleet.book(A, 1, until).probe, "there is one probe at a time"
    fleet.end(probe, until, completed=False)
    assert hold(breaker(fleet), until) is None, "a probe whose client left proves nothing: the next one may go"
    second = fleet.book(A, 1, until)
    fleet.end(second, until + 1, completed=False)
    fleet.failed(A.incarnation, until + 1, True, until)
    assert breaker(fleet).until - (until + 1) == pytest.approx(2 * breakers.BASE_OPEN_S)
    run(fleet, A, breaker(fleet).until)
    assert breaker(fleet).cause is None


def test_a_crash_with_many_streams_opens_once_and_stragglers_do_not_end_the_probe():
    fleet = make_fleet(A, B)
    flying = [fleet.book(A, 1, NOW) for _ in range(30)]
    for booking in flying:
        fleet.end(booking, NOW + 1, completed=False)
        fleet.failed(A.incarnation, NOW + 1, True, booking.started_at)
    once = breaker(fleet)
    assert once.trips == 1
    probe = fleet.book(A, 1, once.until)
    fleet.failed(A.incarnation, once.until + 0.1, True, NOW)
    assert breaker(fleet).probing and state_of(breaker(fleet), once.until + 0.1) is State.HALF_OPEN
    fleet.end(probe, once.until + 1, completed=True)
    assert breaker(fleet).cause is None


def test_at_most_half_of_a_pool_is_held():
    fleet = make_fleet(A, B, C, D, CLOUD)
    for target in (A, B, C, D, CLOUD):
        for _ in range(20):
            run(fleet, target, NOW, ok=False)
    held = [one.breaker.cause is not None for one in fleet.view(NOW).loads]
    assert held == [True, True, False, False, False], "and the cloud target has no peer at all"


STEPS = st.lists(
    st.tuples(st.integers(0, 3), st.sampled_from(["book", "first", "good", "gone", "fail"]), st.floats(0, 8)), max_size=120
)


@given(STEPS)
def test_whatever_happens_it_is_bounded_has_one_probe_and_half_of_the_pool_is_free(steps):
    targets = (A, B, C, D)
    fleet, now, flying = make_fleet(*targets), NOW, {0: [], 1: [], 2: [], 3: []}
    for index, step, pause in steps:
        now += pause
        if step == "book":
            if hold(breaker(fleet, index), now) is None:
                flying[index].append(fleet.book(targets[index], 10, now))
        elif flying[index]:
            booking = flying[index].pop(0)
            if step == "first":
                fleet.first_byte(booking, now)
                flying[index].append(booking)
            else:
                fleet.end(booking, now, completed=step == "good")
                if step == "fail":
                    fleet.failed(targets[index].incarnation, now, True, booking.started_at)
        loads = fleet.view(now).loads
        for i, load in enumerate(loads):
            one = load.breaker
            probes = sum(booking.probe for booking in flying[i])
            assert probes <= 1 and (one.cause is None or one.probing == bool(probes))
            assert one.until - now <= MAX_OPEN_S and one.bad >= 0 and one.good >= 0
        assert sum(load.breaker.cause is not None for load in loads) <= 2
    for index in flying:
        for booking in flying[index]:
            fleet.end(booking, now, completed=False)
        now += MAX_OPEN_S + 1
        assert hold(breaker(fleet, index), now) is None, "an opening ends by itself"
        peers = [i for i in range(4) if i != index]
        for i in peers:
            run(fleet, targets[i], now, ttft=0.1)
        for _ in range(2):
            run(fleet, targets[index], now, ttft=0.1)
        assert breaker(fleet, index).cause is None, "and good answers close it"


BREAKERS = st.sampled_from([CLOSED, OPEN, PROBED, Breaker(cause=Cause.SLOW, until=NOW - 1)])


@given(st.lists(BREAKERS, min_size=5, max_size=5), st.sets(st.integers(0, 4)), st.booleans())
def test_it_widens_nothing_and_never_takes_the_last_allowed_target(states, excluded, spills):
    targets = (A, B, ABROAD, make_target(POLICY, "other", "eu", "big"), CLOUD)
    facts = make_facts(POLICY, SPILL_KEY if spills else "tg_test-key", label=POLICY.tags["any" if spills else "eu"])
    facts = replace(facts, excluded=frozenset(targets[i].incarnation for i in excluded))
    plain = decide(facts, POLICY, make_view(*((target, Load()) for target in targets)), NOW)
    view = make_view(*((target, Load(breaker=state)) for target, state in zip(targets, states, strict=True)))
    found = decide(facts, POLICY, view, NOW)
    may = {c.target for c in plain.candidates if c.verdict is not Verdict.SCREENED}
    assert (found.chosen is None) == (plain.chosen is None)
    assert {c.target for c in found.candidates} == {c.target for c in plain.candidates}
    if found.chosen is None:
        assert found.refusal == plain.refusal
        return
    assert found.chosen.target.id in may, "only what is allowed without any breaker"
    kept = {targets[i].id for i, state in enumerate(states) if hold(state, NOW) is None} & may
    assert not kept or found.chosen.target.id in kept, "a held target only where nothing else is left"
    for c in found.candidates:
        if c.target in may and c.target not in kept and c.target != found.chosen.target.id:
            assert c.verdict is Verdict.SCREENED and c.reason.startswith("health: breaker")
        if c.target not in may:
            assert c.verdict is Verdict.SCREENED and not c.reason.startswith("health: breaker")


def test_the_least_bad_one_serves_where_all_are_held_and_the_reason_says_so():
    later = replace(OPEN, until=NOW + 20)
    facts = make_facts(POLICY)
    view = make_view((A, Load(breaker=later)), (B, Load(breaker=OPEN)), (C, Load(down_until=NOW + 5)))
    decision = decide(facts, POLICY, view, NOW)
    assert decision.chosen.target.id == "b" and "last allowed target in spite of health: breaker" in decision.chosen.reason
    again = decide(replace(facts, excluded=frozenset({B.incarnation})), POLICY, view, NOW)
    assert again.chosen.target.id == "a"
    both = decide(replace(facts, excluded=frozenset({A.incarnation, B.incarnation})), POLICY, view, NOW)
    assert both.chosen is None and both.refusal.status == 503, "each is tried once; where nothing answers, nothing is tried"


async def test_a_target_that_keeps_failing_is_left_alone_and_found_again(pair):
    bad = pair.engines["a"]
    bad._hello = bad._broken
    for _ in range(40):
        response = await pair.chat("hello")
        assert response.status_code == 200
    assert len(bad.requests) < 15
    metrics = (await pair.client.get("/metrics")).text
    assert 'tidegate_breaker_state{router="router-test",target="a",zone="eu"} 2.0' in metrics
    assert 'tidegate_breaker_state{router="router-test",target="b",zone="us"} 0.0' in metrics
    alone = await pair.chat("hello", headers={"x-tidegate-residency": "eu"})
    assert alone.status_code == 502, "its label allows nothing else: it is asked, and its failure is told"
    del bad._hello
    alone = await pair.chat("hello", headers={"x-tidegate-residency": "eu"})
    assert alone.status_code == 200 and alone.headers["x-tidegate-target"] == "a"
    assert "in spite of health" in alone.headers["x-tidegate-reason"]
    for _ in range(100):  # its pause ends by the clock; how long this test was kept from running is nobody's promise
        if 'tidegate_breaker_state{router="router-test",target="a",zone="eu"} 1.0' in (await pair.client.get("/metrics")).text:
            break
        await asyncio.sleep(0.1)
    else:
        pytest.fail("the breaker never half-opened")
    # At once: one after the other they might all suit the one that never paused.
    answers = await asyncio.gather(*(pair.chat("hello") for _ in range(12)))
    assert "a" in {answer.headers["x-tidegate-target"] for answer in answers}
    assert 'tidegate_breaker_state{router="router-test",target="a",zone="eu"} 0.0' in (await pair.client.get("/metrics")).text


async def test_a_request_that_no_engine_can_take_takes_no_target_away(pair):
    for _ in range(6):
        assert (await pair.chat("broken")).status_code == 502
    loads = pair.state.fleet.view(time.time()).loads
    assert all(state_of(load.breaker, time.time()) is State.CLOSED and load.breaker.bad == 0 for load in loads)
    assert len(pair.engines["a"].requests) >= 2 and len(pair.engines["b"].requests) >= 2
    assert (await pair.chat("hello")).status_code == 200


BEGUN = b'data: {"object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"word"},"finish_reason":null}]}\n\n'
SAYS_IT_FAILED = b'data: {"error":{"message":"list index out of range","type":"InternalServerError","param":null,"code":500}}\n\n'


def failing(events: bytes):
    """What an engine does that answers with these events and then ends the stream."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(events), events))
        return True

    return answer


@pytest.mark.parametrize("begun", [b"", BEGUN])
async def test_nor_does_one_under_which_every_engine_says_in_its_stream_that_it_failed(pair, begun):
    for name in "ab":
        pair.engines[name]._stream = failing(begun + SAYS_IT_FAILED)
    for _ in range(6):
        assert "[DONE]" not in (await pair.chat("stream", stream=True)).text
    loads = pair.state.fleet.view(time.time()).loads
    assert all(state_of(load.breaker, time.time()) is State.CLOSED and load.breaker.bad == 0 for load in loads)
    assert len(pair.engines["a"].requests) >= 2 and len(pair.engines["b"].requests) >= 2


async def test_an_engine_that_alone_says_in_its_streams_that_it_failed_is_left_alone(pair):
    bad = pair.engines["a"]
    bad._stream = failing(SAYS_IT_FAILED)
    for _ in range(40):
        assert "[DONE]" in (await pair.chat("stream", stream=True)).text
    assert len(bad.requests) < 15
    assert any(state_of(load.breaker, time.time()) is State.OPEN for load in pair.state.fleet.view(time.time()).loads)
