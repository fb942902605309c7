"""What a limit is."""

from __future__ import annotations

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
    """`scope` is `key:ID` or `tenant:ID`; `amount` in requests, tokens, or millionths of a US dollar."""

    scope: str
    kind: Kind
    period: Period
    amount: int

    @property
    def counter(self) -> str:
        """What is counted, whatever the amount is by now: a limit that is changed goes on from what was used."""
        return _counter(self)


@lru_cache(maxsize=1 << 16)
def _counter(limit: Limit) -> str:
    return f"{limit.scope}|{limit.kind}|{limit.period}"
