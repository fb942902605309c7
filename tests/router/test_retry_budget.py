"""Retries stay a share of requests, whatever fails."""

from router.wire.retry_budget import MINIMUM_PER_S, SHARE, RetryBudget


def test_a_fifth_of_the_requests_may_be_retried_once_the_start_is_used_up():
    budget = RetryBudget(0.0)
    granted = 0
    for _ in range(1000):
        budget.deposit()
        granted += budget.withdraw(0.0)
    assert abs(granted - (1000 * SHARE + MINIMUM_PER_S)) <= 1


def test_a_quiet_router_still_retries_a_few_a_second_and_saves_up_only_so_much():
    budget = RetryBudget(0.0)
    assert [budget.withdraw(0.0) for _ in range(4)] == [True, True, True, False]
    assert [budget.withdraw(1.0) for _ in range(4)] == [True, True, True, False]
    assert sum(budget.withdraw(1e6) for _ in range(1000)) == 100
