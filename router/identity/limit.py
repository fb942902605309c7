"""What a limit is."""

from __future__ import annotations

import math
from enum import StrEnum
from functools import lru_cache

import msgspec

MICRO_USD = 1e6
"""Money is counted in whole millionths of a US dollar."""


class Kind(StrEnum):
    """What is counted."""

    REQUESTS = "requests"
    TOKENS = "tokens"
    USD = "usd"
    CONCURRENT = "concurrent"


class Period(StrEnum):
    """Over what time."""

    MINUTE = "minute"
    DAY = "day"
    MONTH = "month"
    NOW = "now"


class Limit(msgspec.Struct, frozen=True, gc=False):
    """`scope` is `key:ID`, `tenant:ID`, or that of a budget for spilling; `amount` in requests, tokens, or millionths of a US
    dollar. A `strict` one is rather left unused than exceeded, also while the store is away and where routers vanish."""

    scope: str
    kind: Kind
    period: Period
    amount: int
    strict: bool = False

    @property
    def counter(self) -> str:
        """What is counted, whatever the amount is by now: a limit that is changed goes on from what was used."""
        return _counter(self)


def spill_limit(daily_usd: float, key: str = "") -> Limit | None:
    """The budget of a UTC day for what leaves the cluster; None for an infinite one.

    Args:
        daily_usd: in US dollars.
        key: the id of the key whose own it is; "" for that of all keys together.
    """
    if math.isinf(daily_usd):
        return None
    return Limit(f"spill:{key}" if key else "spill", Kind.USD, Period.DAY, in_micro_usd(daily_usd), strict=True)


def in_micro_usd(usd: float) -> int:
    """Money in whole millionths, rounded up: not by one more for what is wrong in the last places of a float."""
    return math.ceil(usd * MICRO_USD - 1e-3)


@lru_cache(maxsize=1 << 16)
def _counter(limit: Limit) -> str:
    return f"{limit.scope}|{limit.kind}|{limit.period}"
