"""Limits are taken before the work, settled by real usage, and say when to come back."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from router.identity.limits import Limits
from router.wire.errors import ApiError
from tests.router.builders import NOW, digest, grant_of, make_policy
from tests.router.conftest import KEY, OTHER_KEY, open_front_door

GRANT = grant_of(make_policy())
MIDNIGHT = (NOW // 86400 + 1) * 86400


def test_requests_per_minute_refill_steadily():
    limits, grant = Limits(), replace(GRANT, requests_per_minute=6)
    for _ in range(6):
        limits.reserve(grant, 1, 1, NOW)
    with pytest.raises(ApiError) as refusal:
        limits.reserve(grant, 1, 1, NOW + 5)
    assert (refusal.value.status, refusal.value.code) == (429, "rate_limited")
    assert refusal.value.retry_after_s == pytest.approx(5)
    limits.reserve(grant, 1, 1, NOW + 10.01)


def test_daily_tokens_are_reserved_and_then_settled():
    limits, grant = Limits(), replace(GRANT, daily_tokens=1000)
    first = limits.reserve(grant, 300, 600, NOW)
    with pytest.raises(ApiError) as refusal:
        limits.reserve(grant, 50, 60, NOW)
    assert refusal.value.code == "budget_exceeded"
    assert refusal.value.retry_after_s == pytest.approx(MIDNIGHT - NOW)
    limits.settle(grant, first, 320)
    second = limits.reserve(grant, 50, 60, NOW)
    limits.settle(grant, second, None)
    with pytest.raises(ApiError):
        limits.reserve(grant, 300, 300, NOW)
    limits.reserve(grant, 400, 600, MIDNIGHT)


def test_a_refused_request_takes_nothing_and_keys_do_not_share():
    limits, grant = Limits(), replace(GRANT, daily_tokens=100, requests_per_minute=1)
    with pytest.raises(ApiError, match="tokens a day"):
        limits.reserve(grant, 90, 20, NOW)
    limits.reserve(grant, 50, 20, NOW)
    limits.reserve(replace(grant, id="other"), 50, 20, NOW)
    assert limits.reserve(GRANT, 10**9, 10**9, NOW) == 0


async def test_limits_over_the_wire():
    keys = [
        {"id": "rated", "sha256": digest(KEY), "requests_per_minute": 2},
        {"id": "budgeted", "sha256": digest(OTHER_KEY), "daily_tokens": 520},
    ]
    async with open_front_door({"a": "eu"}, keys=keys) as door:
        assert [(await door.chat("hello")).status_code for _ in range(3)] == [200, 200, 429]
        limited = await door.chat("hello")
        assert limited.json()["error"]["code"] == "rate_limited" and int(limited.headers["retry-after"]) >= 1
        other = {"authorization": f"Bearer {OTHER_KEY}"}
        # Each answer uses 9 tokens by the engine's count, so two reservations of 502 fit one after the other, not three.
        codes = [(await door.chat("hello", headers=other)).status_code for _ in range(3)]
        assert codes == [200, 200, 200]
        door.state.limits._accounts["budgeted"].used_tokens = 100
        spent = await door.chat("hello", headers=other)
        assert (spent.status_code, spent.json()["error"]["code"]) == (429, "budget_exceeded")
