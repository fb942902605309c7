"""The budgets for what leaves the cluster."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from pathlib import Path

from router.compiled import compile_policy
from router.config import parse_config
from router.identity.books import NoBooks
from router.identity.limit import spill_limit
from router.placement.spending import Spending
from router.placement.targets import Price
from tests.router.builders import digest, make_config
from tests.router.conftest import open_front_door


async def until(true: Callable[[], bool]) -> None:
    """Wait for what other threads bring about."""
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0.01)


MIDNIGHT = 20_000 * 86_400.0


def test_what_was_spent_is_forgotten_at_midnight_utc():
    spending, own, other = Spending(10.0), spill_limit(5.0, "k"), spill_limit(5.0, "j")
    last = MIDNIGHT - 1
    spending.set_aside(last, 4.0, own)
    assert (spending.left(last), spending.left(last, own), spending.left(last, other)) == (6.0, 1.0, 5.0)
    assert (spending.left(MIDNIGHT), spending.left(MIDNIGHT, own)) == (10.0, 5.0)


def test_what_was_set_aside_is_replaced_by_the_cost_and_kept_where_nobody_counted():
    spending, own = Spending(10.0), spill_limit(5.0, "k")
    one, _kept, three = (spending.set_aside(MIDNIGHT, 1.5, own) for _ in range(3))
    spending.settle(one, 0.25)
    spending.settle(three, 2.0)
    assert (spending.left(MIDNIGHT), spending.left(MIDNIGHT, own)) == (6.25, 1.25)
    late = spending.set_aside(MIDNIGHT + 86_399, 1.0)
    spending.settle(late, 3.0)
    assert spending.left(MIDNIGHT + 86_400) == 10.0, "it belongs to the day on which it was sent"


def test_a_cost_that_fits_by_the_float_takes_no_more_than_there_is():
    for usd in (0.1, 0.29, 1.1, 0.000_000_3, 123.456_789):
        spending = Spending(usd)
        spending.set_aside(MIDNIGHT, spending.left(MIDNIGHT))
        assert spending.left(MIDNIGHT) == 0.0


def test_without_a_budget_nothing_is_counted_and_without_books_there_is_nothing_left():
    spending = Spending(math.inf)
    assert spending.left(MIDNIGHT) == math.inf and not spending.set_aside(MIDNIGHT, 1.0).taken
    spending.source = NoBooks()
    assert spending.left(MIDNIGHT) == math.inf and spending.left(MIDNIGHT, spill_limit(1.0, "k")) == 0.0
    spending.adopt(3.0)
    assert spending.left(MIDNIGHT) == 0.0


def test_a_changed_budget_goes_on_from_what_was_spent():
    spending = Spending(10.0)
    spending.set_aside(MIDNIGHT, 4.0)
    spending.adopt(5.0)
    assert spending.left(MIDNIGHT) == 1.0
    spending.adopt(3.0)
    assert spending.left(MIDNIGHT) == -1.0


def test_a_key_has_a_budget_of_its_own_only_where_it_may_spill(tmp_path):
    keys = [
        {"id": "a", "sha256": digest("a"), "spill": True, "spill_daily_usd": 2.5},
        {"id": "b", "sha256": digest("b"), "spill": True},
        {"id": "c", "sha256": digest("c"), "spill_daily_usd": 2.5, "daily_usd": 1},
    ]
    config = make_config(keys=keys)
    grants = {grant.id: grant for grant in compile_policy(config, tmp_path).keys.values()}
    own = grants["a"].spill_limit
    assert own is not None and (own.counter, own.amount, own.strict) == ("spill:a|usd|day", 2_500_000, True)
    assert grants["a"].counted == (own,) and grants["b"].counted == ()
    [daily] = grants["c"].counted
    assert (daily.counter, daily.strict) == ("key:c|usd|day", False)


def test_status_says_what_is_left_and_over_whom_it_is_counted():
    spending = Spending(2.5)
    spending.set_aside(MIDNIGHT, 1.0)
    assert spending.describe(MIDNIGHT) == {"daily_usd": 2.5, "left_usd": 1.5, "counted": "by this router for itself"}
    spending.source = NoBooks()
    told = spending.describe(MIDNIGHT)
    assert told is not None and told["left_usd"] == 0.0 and "nothing is spent" in str(told["counted"])
    spending.adopt(math.inf)
    assert spending.describe(MIDNIGHT) is None


async def test_a_new_policys_prices_hold_at_once_for_what_is_set_aside_and_settled():
    async with open_front_door({"a": "eu"}) as door:
        assert door.state.prices.of("a", "m") == Price()
        data = door.state.config.model_dump(mode="json", exclude_none=True)
        data["targets"][0]["price"] = {"prompt": 3, "completion": 5}
        config = parse_config(data)
        door.state.adopt(config, compile_policy(config, Path()), time.time())
        assert door.state.prices.of("a", "m") == Price(3, 5)


async def test_routers_on_one_store_share_a_budget_and_a_restart_finds_it_spent(tmp_path):
    budget = {"spill": {"daily_budget_usd": 10.0}}
    now = time.time()
    async with (
        open_front_door({"a": "eu"}, store=tmp_path, **budget) as one,
        open_front_door({"a": "eu"}, store=tmp_path, **budget) as two,
    ):
        assert one.state.stored_keys is not None and spill_limit(10.0) in one.state.stored_keys.limits(), (
            "asked for before its use"
        )
        both = [door.state.fleet.spending for door in (one, two)]
        await until(lambda: both[0].left(now, wanted_usd=4.0) >= 4.0)
        both[0].settle(both[0].set_aside(now, 4.0), 3.5)
        await until(lambda: both[1].left(now, wanted_usd=6.0) >= 6.0)
        both[1].set_aside(now, 6.0)
        assert both[0].left(now) <= 0.5 and both[0].source.counted == "over all routers"
    async with open_front_door({"a": "eu"}, store=tmp_path, **budget) as again:
        spending = again.state.fleet.spending
        await until(lambda: spending.left(now, wanted_usd=0.5) == 0.5)
