"""The admission queue: bounded, fair between tenants, in classes, late ones last, refusals with a time that is measured."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.placement.admission import AdmissionQueue, Ticket


def ticket(name, tenant="t", arrived=0.0, cost=1.0, deadline=100.0, give_up=200.0, priority=1):
    return Ticket(name, tenant, arrived, cost, deadline, give_up, priority)


def order(queue, now=0.0):
    return [one.id for one in queue.candidates(now)]


def test_classes_first_then_deadlines_and_the_late_behind_everybody():
    queue = AdmissionQueue()
    for one in (
        ticket("late", deadline=1.0, priority=0),
        ticket("low", priority=2, tenant="x"),
        ticket("high", priority=0, tenant="y"),
    ):
        assert queue.offer(one, 0.0) is None
    assert order(queue, now=5.0) == ["high", "low", "late"]


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


def test_the_queue_is_bounded_and_a_higher_class_displaces_the_lowest():
    queue = AdmissionQueue(limit=2)
    queue.offer(ticket("first"), 0.0)
    queue.offer(ticket("second", arrived=1.0), 1.0)
    refused = ticket("third", arrived=2.0)
    assert queue.offer(refused, 2.0) is refused and len(queue) == 2
    displaced = queue.offer(ticket("urgent", arrived=3.0, priority=0), 3.0)
    assert displaced.id == "second" and "urgent" in queue and len(queue) == 2


def test_patience_ends_and_clients_leave():
    queue = AdmissionQueue()
    queue.offer(ticket("short", give_up=5.0), 0.0)
    queue.offer(ticket("long", give_up=50.0), 0.0)
    assert queue.next_expiry() == 5.0
    assert [one.id for one in queue.expire(6.0)] == ["short"]
    queue.withdraw("long")
    queue.withdraw("long")
    assert len(queue) == 0 and queue.next_expiry() is None


def test_retry_after_is_the_queue_over_the_measured_drain_rate():
    queue = AdmissionQueue()
    assert queue.retry_after(0.0) == 1.0
    for i in range(200):
        queue.served(i * 0.25)
    for i in range(40):
        queue.offer(ticket(f"w{i}"), 50.0)
    assert queue.retry_after(50.0) == pytest.approx(41 / 4, rel=0.15)
    assert queue.retry_after(400.0) == 120.0, "nothing has been served for minutes"
