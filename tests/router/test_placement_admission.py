"""The admission queue: bounded, fair between tenants, in classes, late ones last, refusals with a time that is measured."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.placement.admission import LATE_EVERY_S, AdmissionQueue, Ticket


def ticket(name, tenant="t", arrived=0.0, cost=1.0, deadline=100.0, give_up=200.0, priority=1, group="", pool=""):
    return Ticket(name, tenant, arrived, cost, deadline, give_up, priority, group, pool)


def order(queue, now=0.0):
    return [one.id for one in queue.candidates(now)]


def test_classes_first_then_those_in_time_then_fair_shares():
    queue = AdmissionQueue()
    for one in (
        ticket("late", deadline=1.0),
        ticket("low", priority=2, tenant="x"),
        ticket("normal", tenant="y"),
        ticket("high, late", deadline=1.0, priority=0, tenant="y"),
    ):
        queue.offer(one, 0.0)
    assert order(queue, now=5.0) == ["high, late", "normal", "late", "low"]


def test_a_flood_of_one_tenant_does_not_hold_up_another():
    queue = AdmissionQueue()
    for i in range(50):
        queue.offer(ticket(f"flood{i}", "loud"), 0.0)
    queue.offer(ticket("quiet", "quiet"), 0.1)
    assert order(queue).index("quiet") <= 1


@settings(max_examples=25)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0.1, 3.0)), min_size=8, max_size=20))
def test_tenants_that_always_wait_get_equal_shares_of_the_work(offers):
    queue, served = AdmissionQueue(10_000), dict.fromkeys("abc", 0.0)
    for i, (_, cost) in enumerate(offers):
        for tenant in "abc":
            queue.offer(ticket(f"{tenant}{i}", tenant, cost=cost), 0.0)
    while min(sum(one.tenant == tenant for one in queue.candidates(0.0)) for tenant in "abc") > 0:
        one = next(queue.candidates(0.0))
        queue.take(one, 0.0)
        served[one.tenant] += one.cost_s
    assert max(served.values()) - min(served.values()) <= 2 * 3.0


def test_the_bound_takes_the_last_in_order_whoever_came_last():
    queue = AdmissionQueue(limit=2)
    queue.offer(ticket("first"), 0.0)
    queue.offer(ticket("second", arrived=1.0), 1.0)
    queue.offer(ticket("third", arrived=2.0), 2.0)
    assert [one.id for one in queue.overflow(2.0)] == ["third"] and len(queue) == 2
    queue.offer(ticket("urgent", priority=0), 3.0)
    assert [one.id for one in queue.overflow(3.0)] == ["second"]
    queue.withdraw("urgent", 3.5)
    queue.offer(ticket("fourth", arrived=4.0), 4.0)
    queue.offer(ticket("quiet", "another", arrived=5.0), 5.0)
    assert [one.id for one in queue.overflow(5.0)] == ["fourth"], "a tenant with nothing served goes before a flood"
    assert {one.id for one in queue} == {"first", "quiet"} and queue.overflow(5.0) == []


def test_memory_is_a_bound_as_well():
    queue = AdmissionQueue(size_limit=100)
    for name, size in (("a", 60), ("b", 30), ("c", 30)):
        queue.offer(Ticket(name, "t", 0.0, 1.0, 100.0, 200.0, size=size), 0.0)
    assert [one.id for one in queue.overflow(0.0)] == ["c"]
    queue.withdraw("a", 0.0)
    queue.offer(Ticket("d", "t", 0.0, 1.0, 100.0, 200.0, size=70), 0.0)
    assert queue.overflow(0.0) == []


def test_patience_ends_and_clients_leave():
    queue = AdmissionQueue()
    queue.offer(ticket("short", give_up=5.0), 0.0)
    queue.offer(ticket("long", give_up=50.0), 0.0)
    assert [one.id for one in queue.expire(6.0)] == ["short"]
    queue.hasten(9.0)
    queue.withdraw("long", 7.0)
    queue.withdraw("long", 7.0)
    assert len(queue) == 0 and queue.expire(99.0) == []


def test_retry_after_is_what_waits_over_the_rate_at_which_it_left():
    queue = AdmissionQueue()
    assert queue.retry_after("", 0.0) is None, "nothing was measured yet"
    for i in range(240):
        queue.offer(ticket(f"w{i}"), 0.0)
    for i in range(200):
        queue.take(next(queue.candidates(i * 0.25)), i * 0.25)
    assert queue.retry_after("", 50.0) == pytest.approx(41 / 4, rel=0.15)
    assert queue.retry_after("other models", 50.0) is None
    last = list(queue.candidates(50.0))[-1]
    assert queue.expected_wait(last, 50.0) == pytest.approx(39 / 4, rel=0.15)
    assert queue.expected_wait(next(queue.candidates(50.0)), 50.0) == 0.0
    assert queue.retry_after("", 400.0) == 120.0, "nothing has been sent for minutes"


def test_a_slow_engine_that_has_sent_nothing_yet_turns_nobody_away():
    queue = AdmissionQueue()
    for name in ("first", "second"):
        queue.offer(ticket(name), 0.0)
    first, second = queue.candidates(9.0)
    assert queue.expected_wait(first, 9.0) == 0.0 and queue.expected_wait(second, 9.0) <= 10.0


def test_what_was_measured_survives_a_pause_but_not_for_ever():
    queue = AdmissionQueue()
    for i in range(20):
        queue.offer(ticket(f"w{i}"), 0.0)
    for i in range(20):
        queue.take(next(queue.candidates(i * 0.5)), i * 0.5)
    queue.offer(ticket("next"), 20.0)
    assert queue.rate("", 20.0) == pytest.approx(2.0, rel=0.2)
    queue.withdraw("next", 20.0)
    queue.offer(ticket("much later"), 500.0)
    queue.withdraw("much later", 500.0)
    queue.offer(ticket("a day later"), 90_000.0)
    assert queue.rate("", 90_000.0) is None


def test_a_place_is_kept_from_other_tenants_and_lower_classes_but_not_within_one_tenant():
    queue, seen = AdmissionQueue(), {}
    for one in (
        ticket("long", "one", group="g"),
        ticket("short", "one", group="g"),
        ticket("theirs", "two", group="h"),
        ticket("low", "one", group="i", priority=2),
    ):
        queue.offer(one, 0.0)

    def attempt(one, barred):
        seen[one.id] = barred
        return 0b10

    queue.walk(0.0, attempt)
    assert seen == {"long": 0, "theirs": 0b10, "short": 0b10, "low": 0b10}, "both tenants wait for it: neither passes the other"
    assert queue.barred(1, "one") == queue.barred(2, "one") == 0b10 and queue.barred(0, "one") == 0
    queue.withdraw("theirs", 0.0)
    queue.walk(0.0, attempt)
    assert seen["short"] == 0 and queue.barred(1, "one") == 0 and queue.barred(1, "two") == 0b10


def test_who_waits_for_the_sake_of_others_keeps_its_place_from_lower_classes_only():
    queue, seen = AdmissionQueue(), {}
    for name, tenant, priority in (("polite", "one", 1), ("theirs", "two", 1), ("low", "one", 2)):
        queue.offer(ticket(name, tenant, group=name, priority=priority), 0.0)

    def attempt(one, barred):
        seen[one.id] = barred
        one.yields = one.id == "polite"
        return 0b10 if one.yields else 0b100

    queue.walk(0.0, attempt)
    assert seen == {"polite": 0, "theirs": 0, "low": 0b110}
    assert queue.barred(1, "three") == 0b100 and queue.barred(2, "three") == 0b110


def test_late_tickets_are_tried_now_and_then_and_hold_up_nobody_behind_them():
    queue, tried = AdmissionQueue(), []
    queue.offer(ticket("late", "one", deadline=1.0), 0.0)
    queue.offer(ticket("in time", "one"), 0.0)
    queue.offer(ticket("low", "one", priority=2), 0.0)

    def attempt(one, barred):
        tried.append((one.id, barred))
        return 0b100 if one.id == "late" else 0b1

    for now in (2.0, 2.001, 2.002, 2.0 + LATE_EVERY_S):
        queue.walk(now, attempt)
    everybody = [("in time", 0), ("late", 0), ("low", 0b101)]
    without = [("in time", 0), ("low", 0b101)]
    assert tried == [*everybody, *without, *without, *everybody], "what the late one waits for stays kept from lower classes"


def test_who_became_late_while_waiting_is_counted_once():
    queue = AdmissionQueue()
    queue.offer(ticket("soon", deadline=1.0), 0.0)
    queue.offer(ticket("later", deadline=3.0), 0.0)
    queue.offer(ticket("gone", deadline=0.5), 0.0)
    queue.withdraw("gone", 0.1)
    found = []
    for now in (0.9, 2.0, 2.1, 4.0):
        queue.walk(now, lambda one, barred: 1)
        found.append(queue.newly_late())
    assert found == [0, 1, 0, 1]


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["offer", "offer", "walk", "withdraw", "expire", "overflow", "move", "hasten"]),
        st.integers(0, 30),
        st.sampled_from("ab"),
        st.integers(0, 2),
        st.floats(0.0, 4.0),
    ),
    max_size=60,
)


@settings(max_examples=200, deadline=None)
@given(EVENTS)
def test_no_ticket_is_ever_lost_or_given_out_twice(events):
    queue, inside, gone, now = AdmissionQueue(limit=10), {}, [], 0.0
    for number, (what, pick, tenant, priority, seconds) in enumerate(events):
        now += seconds / 4
        name = list(inside)[pick % len(inside)] if inside else ""
        if what == "offer":
            one = ticket(f"t{number}", tenant, now, seconds, now + seconds, now + 3 * seconds, priority, f"g{pick % 3}", pick % 2)
            queue.offer(one, now)
            inside[one.id] = one
        elif what == "walk":
            places = pick

            def attempt(one, barred, now=now, places=places, gone=gone):
                if places >> (one.key[4] % 5) & 1:
                    return 1 << one.key[4] % 3
                queue.take(one, now)
                gone.append(one.id)
                return None

            queue.walk(now, attempt)
        elif what == "withdraw" and name:
            queue.withdraw(name, now)
            gone.append(name)
        elif what == "expire":
            over = queue.expire(now)
            assert all(one.give_up <= now for one in over)
            gone += [one.id for one in over]
            assert all(one.give_up > now for one in queue)
        elif what == "overflow":
            gone += [one.id for one in queue.overflow(now)]
            assert len(queue) <= 10
        elif what == "move" and name:
            queue.move(inside[name], f"g{pick % 4}")
        elif what == "hasten":
            queue.hasten(now + seconds)
        for id in gone:
            inside.pop(id, None)
        assert len(gone) == len(set(gone)) and {one.id for one in queue} == set(inside) == set(order(queue, now))
        assert order(queue, now) == [one.id for one in sorted(inside.values(), key=lambda one: one.key)]
        assert queue.late_s == pytest.approx(sum(one.cost_s for one in inside.values() if one.late), abs=1e-6)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0.1, 3.0), min_size=20, max_size=60), st.floats(0.5, 4.0), st.integers(1, 9))
def test_shares_of_tenants_stay_within_one_request_of_their_weights(costs, weight, flood):
    """Start-time fair queueing: while both wait, their work per weight differs by at most one largest request of each."""
    queue, served = AdmissionQueue(10_000, {"a": weight}), {"a": 0.0, "b": 0.0}
    for i, cost in enumerate(costs):
        for copy in range(flood):
            queue.offer(ticket(f"a{i}.{copy}", "a", cost=cost), 0.0)
        queue.offer(ticket(f"b{i}", "b", cost=cost), 0.0)
    while {one.tenant for one in queue} == {"a", "b"}:
        one = next(queue.candidates(0.0))
        queue.take(one, 0.0)
        served[one.tenant] += one.cost_s
        assert abs(served["a"] / weight - served["b"]) <= 3.0 / weight + 3.0 + 1e-6
