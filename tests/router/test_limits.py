"""Limits are taken before the work, settled by real usage, and say when to come back."""

from __future__ import annotations

import re
import time

import pytest

from router.compiled import limits_of
from router.identity.books import OwnBooks, Reservation, window_of
from router.identity.limit import Kind, Limit, Period
from router.identity.limits import LimitReached, Limits
from tests.router.builders import NOW, digest, make_config, make_policy
from tests.router.conftest import KEY, OTHER_KEY, open_front_door

MIDNIGHT = (NOW // 86400 + 1) * 86400


def limit(kind: Kind, period: Period, amount: int, scope: str = "key:k") -> Limit:
    return Limit(scope, kind, period, amount)


def test_requests_per_minute_hold_in_every_minute_and_over_many():
    limits, six = Limits(), (limit(Kind.REQUESTS, Period.MINUTE, 6),)
    passed: list[float] = []
    for step in range(4 * 600):
        now = NOW + 17 + step / 10
        try:
            limits.reserve(six, 1, 1, now)
            passed.append(now)
        except LimitReached:
            pass
    for minute in range(6):
        assert sum(NOW + 60 * minute <= at < NOW + 60 * (minute + 1) for at in passed) <= 6
    assert 20 <= len(passed) <= 26, "four minutes at six a minute: the turn of a minute gives nobody a second burst"


def test_a_limit_reached_says_when_to_come_back_and_then_there_is_room():
    limits, six = Limits(), (limit(Kind.REQUESTS, Period.MINUTE, 6),)
    for _ in range(6):
        limits.reserve(six, 1, 1, NOW)
    with pytest.raises(LimitReached) as refusal:
        limits.reserve(six, 1, 1, NOW + 5)
    assert (refusal.value.status, refusal.value.code) == (429, "rate_limited")
    assert refusal.value.retry_after_s == pytest.approx(10)
    limits.reserve(six, 1, 1, NOW + 60 + 10.01)


def test_daily_tokens_are_reserved_and_then_settled():
    limits, daily = Limits(), (limit(Kind.TOKENS, Period.DAY, 1000),)
    first = limits.reserve(daily, 300, 600, NOW)
    with pytest.raises(LimitReached) as refusal:
        limits.reserve(daily, 50, 60, NOW)
    assert refusal.value.code == "budget_exceeded"
    assert refusal.value.retry_after_s == pytest.approx(MIDNIGHT - NOW)
    limits.settle(first, 320)
    second = limits.reserve(daily, 50, 60, NOW)
    limits.settle(second, None)
    with pytest.raises(LimitReached):
        limits.reserve(daily, 300, 300, NOW)
    limits.reserve(daily, 400, 600, MIDNIGHT)


def test_money_is_set_aside_and_settled_to_the_millionth():
    limits, daily = Limits(), (limit(Kind.USD, Period.DAY, 1_000_000),)
    reserved = limits.reserve(daily, 1, 1, NOW, cost_usd=0.9)
    with pytest.raises(LimitReached, match="1 USD a day"):
        limits.reserve(daily, 1, 1, NOW, cost_usd=0.2)
    limits.settle(reserved, 10, 0.000_001)
    limits.reserve(daily, 1, 1, NOW, cost_usd=0.999_999)
    with pytest.raises(LimitReached):
        limits.reserve(daily, 1, 1, NOW, cost_usd=0.0)


def test_concurrent_requests_are_free_again_when_they_end():
    limits, two = Limits(), (limit(Kind.CONCURRENT, Period.NOW, 2),)
    first, _ = limits.reserve(two, 1, 1, NOW), limits.reserve(two, 1, 1, NOW)
    with pytest.raises(LimitReached, match="2 requests at work"):
        limits.reserve(two, 1, 1, NOW + 9999)
    limits.settle(first, None)
    limits.reserve(two, 1, 1, NOW)


def test_a_refused_request_takes_nothing_and_keys_do_not_share_but_tenants_do():
    limits = Limits()
    both = (limit(Kind.REQUESTS, Period.MINUTE, 2), limit(Kind.TOKENS, Period.DAY, 100, "tenant:t"))
    with pytest.raises(LimitReached, match=r"tenant's budget of 100 tokens a day"):
        limits.reserve(both, 90, 20, NOW)
    limits.reserve(both, 50, 20, NOW)
    limits.reserve((limit(Kind.REQUESTS, Period.MINUTE, 2, "key:other"), both[1]), 1, 9, NOW)
    with pytest.raises(LimitReached, match="tenant"):
        limits.reserve((both[1],), 20, 10, NOW)
    assert limits.reserve((), 10**9, 10**9, NOW) == Reservation()


def test_headers_are_openais():
    both = (limit(Kind.REQUESTS, Period.MINUTE, 60), limit(Kind.TOKENS, Period.MINUTE, 10_000))
    limits = Limits()
    reserved = limits.reserve(both, 100, 100, NOW + 20)
    assert reserved.headers.decode().split("\r\n")[:-1] == [
        "x-ratelimit-limit-requests: 60",
        "x-ratelimit-remaining-requests: 59",
        "x-ratelimit-reset-requests: 40s",
        "x-ratelimit-limit-tokens: 10000",
        "x-ratelimit-remaining-tokens: 9800",
        "x-ratelimit-reset-tokens: 40s",
    ]
    with pytest.raises(LimitReached) as refusal:
        limits.reserve(both, 9801, 1, NOW + 20)
    assert dict(refusal.value.headers())[b"x-ratelimit-remaining-tokens"] == b"9800"


def test_windows_are_minutes_days_and_months_of_utc():
    assert window_of(Period.DAY, MIDNIGHT - 1).end == MIDNIGHT
    january = window_of(Period.MONTH, 1_798_761_599.0)  # 2026-12-31T23:59:59Z
    assert january.end == 1_798_761_600.0
    assert window_of(Period.MONTH, january.end).index == january.index + 1
    assert window_of(Period.MINUTE, NOW + 30).weight == 0.5


def test_a_limit_that_is_changed_goes_on_from_what_was_used():
    """A new policy brings another amount: the day's budget does not begin anew with it, and what was at work still ends."""
    limits, day = Limits(), [limit(Kind.USD, Period.DAY, usd * 1_000_000) for usd in (100, 50, 120)]
    limits.settle(limits.reserve((day[0],), 1, 1, NOW, cost_usd=90.0), 1, 90.0)
    running = limits.reserve((day[0],), 1, 1, NOW, cost_usd=10.0)
    for changed in day:
        with pytest.raises(LimitReached):
            limits.reserve((changed,), 1, 1, NOW, cost_usd=21.0)
    limits.settle(running, 1, 5.0)
    limits.reserve((day[2],), 1, 1, NOW, cost_usd=25.0)
    with pytest.raises(LimitReached):
        limits.reserve((day[2],), 1, 1, NOW, cost_usd=0.01)


def test_old_windows_are_forgotten():
    books, requests = OwnBooks(), limit(Kind.REQUESTS, Period.MINUTE, 5)
    for index in range(100_500):
        books.take(requests, index, 1)
    assert len(books._used) < 1000


def test_the_configuration_sets_limits_for_keys_and_tenants():
    keys = [{"id": "a", "sha256": digest(KEY), "tenant": "t", "requests_per_minute": 5, "daily_usd": 1.5}]
    config = make_config(keys=keys, tenants={"t": {"monthly_tokens": 7, "concurrent_requests": 2}})
    grant = next(iter(make_policy(keys=keys, tenants={"t": {"monthly_tokens": 7, "concurrent_requests": 2}}).keys.values()))
    assert grant.limits == limits_of("key:a", config.keys[0]) + limits_of("tenant:t", config.tenants["t"])
    assert set(grant.limits) == {
        limit(Kind.REQUESTS, Period.MINUTE, 5, "key:a"),
        limit(Kind.USD, Period.DAY, 1_500_000, "key:a"),
        limit(Kind.TOKENS, Period.MONTH, 7, "tenant:t"),
        limit(Kind.CONCURRENT, Period.NOW, 2, "tenant:t"),
    }


async def test_limits_over_the_wire():
    keys = [
        {"id": "rated", "sha256": digest(KEY), "requests_per_minute": 2},
        {"id": "budgeted", "sha256": digest(OTHER_KEY), "daily_tokens": 520},
    ]
    async with open_front_door({"a": "eu"}, keys=keys) as door:
        answers = [await door.chat("hello") for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers] == ["1", "0", "0"]
        limited = await door.chat("hello")
        assert limited.json()["error"]["code"] == "rate_limited" and int(limited.headers["retry-after"]) >= 1
        other = {"authorization": f"Bearer {OTHER_KEY}"}
        # Each answer uses 9 tokens by the engine's count, so two reservations of 502 fit one after the other, not three.
        codes = [(await door.chat("hello", headers=other)).status_code for _ in range(3)]
        assert codes == [200, 200, 200]
        daily = Limit("key:budgeted", Kind.TOKENS, Period.DAY, 520)

        door.state.limits.source.take(daily, window_of(Period.DAY, time.time()).index, 100)
        spent = await door.chat("hello", headers=other)
        assert (spent.status_code, spent.json()["error"]["code"]) == (429, "budget_exceeded")


@pytest.mark.parametrize(
    ("path", "body", "answers"),
    [
        ("chat/completions", {"messages": [{"role": "user", "content": "hello"}]}, 1),
        ("chat/completions", {"messages": [{"role": "user", "content": "hello"}], "n": 3}, 3),
        ("completions", {"prompt": ["a", "b"], "n": 2, "best_of": 3}, 6),
        ("completions", {"prompt": [1, 2, 3], "n": None}, 1),
    ],
)
async def test_room_is_taken_for_every_answer_that_is_asked_for(path, body, answers):
    keys = [{"id": "k", "sha256": digest(KEY), "daily_tokens": 1000 * answers}]
    async with open_front_door({"a": "eu"}, keys=keys) as door:
        ask = {"model": "m", "max_tokens": 900, **body}
        refused = await door.client.post(f"/v1/{path}", json={**ask, "max_tokens": 1001})
        assert refused.json()["error"]["code"] == "budget_exceeded"
        assert (await door.client.post(f"/v1/{path}", json=ask)).status_code == 200


RATE_HEADERS = [f"x-ratelimit-{name}-{kind}" for kind in ("requests", "tokens") for name in ("limit", "remaining", "reset")]


@pytest.mark.parametrize("stream", [False, True])
async def test_answers_and_refusals_carry_openais_headers_streamed_or_not(stream):
    keys = [{"id": "rated", "sha256": digest(KEY), "requests_per_minute": 2, "tokens_per_minute": 5000, "tenant": "t"}]
    async with open_front_door({"a": "eu"}, keys=keys, tenants={"t": {"daily_tokens": 1500}}) as door:
        answers = [await door.chat("stream" if stream else "hello", stream=stream, max_tokens=90) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        assert all(name in answer.headers for answer in answers for name in RATE_HEADERS)
        for answer, left in zip(answers, ("1", "0", "0"), strict=True):
            found = answer.headers
            assert (found["x-ratelimit-limit-requests"], found["x-ratelimit-remaining-requests"]) == ("2", left)
            # The tightest of all limits of a kind counts, whosever it is: here the tenant's day.
            assert found["x-ratelimit-limit-tokens"] == "1500"
            assert int(found["x-ratelimit-remaining-tokens"]) <= 1500
            assert re.fullmatch(r"(\d+h)?(\d+m)?\d+(\.\d+)?s|\d+ms", found["x-ratelimit-reset-requests"])
        assert ("text/event-stream" in answers[0].headers["content-type"]) is stream
        assert int(answers[2].headers["retry-after"]) >= 1


async def test_a_key_without_limits_gets_no_such_headers(door):
    answer = await door.chat("hello")
    assert not [name for name in answer.headers if name.startswith("x-ratelimit")]


DECOYS = [
    ("/v1/completions", {"prompt": "x", "max_tokens": 900, "max_completion_tokens": 1}),
    ("/v1/messages", {"messages": [], "max_tokens": 900, "max_completion_tokens": 1}),
    ("/v1/responses", {"input": "x", "max_output_tokens": 900, "max_tokens": 1}),
    ("/v1/responses", {"input": "x" * 1700, "max_tokens": 1}),
    ("/v1/chat/completions", {"messages": [], "max_tokens": 900, "max_completion_tokens": 1}),
    ("/v1/chat/completions", {"messages": [], "max_tokens": 900.0}),
    ("/v1/chat/completions", {"messages": [], "max_tokens": " 900 "}),
    ("/v1/chat/completions", {"messages": [], "max_tokens": 10**400}),
    ("/v1/chat/completions", {"messages": [], "max_tokens": 9, "n": "100"}),
    ("/v1/chat/completions", {"messages": [], "max_tokens": 9, "n": 100}),
    ("/v1/completions", {"prompt": "x", "max_tokens": 9, "best_of": 100.0}),
    ("/v1/completions", {"prompt": ["x"] * 100, "max_tokens": 9}),
    ("/v1/completions", {"prompt": [[1]] * 100, "max_tokens": 9}),
    ("/v1/chat/completions", {"messages": [], "n": 2}),
]


@pytest.mark.parametrize(("path", "body"), DECOYS)
async def test_what_is_reserved_is_what_an_engine_may_make_of_the_request(path, body):
    keys = [{"id": "budgeted", "sha256": digest(KEY), "daily_tokens": 900}]
    async with open_front_door({"a": "eu"}, keys=keys) as door:
        answer = await door.client.post(path, json={"model": "m", **body})
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "budget_exceeded")
        assert door.engines["a"].requests == []
