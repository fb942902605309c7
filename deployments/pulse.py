"""For how long an engine's core has not answered, asked beside its work."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

PERIOD_S = 1.0
_LONGEST_S = 60.0
"""After so long an unanswered question is asked again: its connection may be what is lost."""
_NOTICED_S = 1.0
"""Silence below that is a step's length."""


class Pulse:
    """Asks again and again; a question that is not answered yet is silence since it was asked.

    Args:
        ask: asks the core, for no longer than so many seconds: whether it answered, or None where that cannot be told.
        clock: seconds, monotonic.
    """

    def __init__(self, ask: Callable[[float], Awaitable[bool | None]], clock: Callable[[], float] = time.monotonic) -> None:
        self._ask = ask
        self._clock = clock
        self._asked_at: float | None = None

    @property
    def silent_s(self) -> float:
        """Seconds since the first question that was not answered; 0 where all were, or nobody can tell."""
        if self._asked_at is None:
            return 0.0
        silent_s = self._clock() - self._asked_at
        return round(silent_s, 1) if silent_s >= _NOTICED_S else 0.0

    async def keep(self) -> None:
        """Ask until cancelled."""
        while True:
            await self.feel()
            await asyncio.sleep(PERIOD_S)

    async def feel(self) -> None:
        """Ask once."""
        if self._asked_at is None:
            self._asked_at = self._clock()
        if await self._ask(_LONGEST_S) is not False:
            self._asked_at = None
