"""What a key may use up: requests per minute and tokens per day, taken before the work and settled by what it really used.

One router's books: with several router replicas each of them grants the limit by itself.
"""

from __future__ import annotations

from router.policy import KeyGrant
from router.wire.errors import ApiError

_DAY_S = 86400
UNBOUNDED_ANSWER_TOKENS = 500
"""Reserved for an answer when the client set no bound; the engine's count replaces it."""


class _Account:
    __slots__ = ("allowance", "day", "refilled_at", "used_tokens")

    def __init__(self, allowance: float, now: float) -> None:
        self.allowance = allowance
        self.refilled_at = now
        self.day = -1
        self.used_tokens = 0


class Limits:
    """The accounts of all keys of one router. Times are UNIX seconds, given by the caller."""

    def __init__(self) -> None:
        self._accounts: dict[str, _Account] = {}

    def reserve(self, grant: KeyGrant, prompt_tokens: int, max_tokens: int, now: float) -> int:
        """Take one request, and the tokens it may use, from a key's limits.

        Args:
            grant: the key's grant.
            prompt_tokens: estimated length of the prompt.
            max_tokens: the client's bound on the answer, 0 for none.
            now: UNIX time in seconds.

        Returns:
            The tokens reserved; give them to `settle` when the request has ended.

        Raises:
            ApiError: 429 `rate_limited` or `budget_exceeded`, with the time after which it is worth trying again.
        """
        if not grant.requests_per_minute and not grant.daily_tokens:
            return 0
        account = self._accounts.get(grant.id)
        if account is None:
            account = self._accounts[grant.id] = _Account(float(grant.requests_per_minute), now)
        tokens = prompt_tokens + (max_tokens or UNBOUNDED_ANSWER_TOKENS) if grant.daily_tokens else 0
        self._check_tokens(account, grant, tokens, now)
        self._take_request(account, grant, now)
        account.used_tokens += tokens
        return tokens

    def settle(self, grant: KeyGrant, reserved: int, used: int | None) -> None:
        """Replace a reservation by what was used; None keeps the reservation, because nobody counted."""
        account = self._accounts.get(grant.id)
        if account is not None and reserved and used is not None:
            account.used_tokens = max(0, account.used_tokens + used - reserved)

    @staticmethod
    def _check_tokens(account: _Account, grant: KeyGrant, tokens: int, now: float) -> None:
        day = int(now // _DAY_S)
        if account.day != day:
            account.day, account.used_tokens = day, 0
        if grant.daily_tokens and account.used_tokens + tokens > grant.daily_tokens:
            message = f"This key's budget of {grant.daily_tokens} tokens a day is used up."
            raise ApiError(429, "budget_exceeded", message, retry_after_s=(day + 1) * _DAY_S - now)

    @staticmethod
    def _take_request(account: _Account, grant: KeyGrant, now: float) -> None:
        if not grant.requests_per_minute:
            return
        rate = grant.requests_per_minute / 60
        refilled = account.allowance + (now - account.refilled_at) * rate
        account.allowance = min(float(grant.requests_per_minute), refilled)
        account.refilled_at = now
        if account.allowance < 1:
            message = f"This key may send {grant.requests_per_minute} requests a minute."
            raise ApiError(429, "rate_limited", message, retry_after_s=(1 - account.allowance) / rate)
        account.allowance -= 1
