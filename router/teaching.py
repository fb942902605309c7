"""What feedback has taught one router is told to all, and kept over restarts: sums in the store, exchanged every second."""

from __future__ import annotations

import asyncio
import logging
import time

from router.complexity.learning import Learnt
from router.state import RouterState
from router.store.database import StoreError
from router.store.feedback import FeedbackTable, Lesson

PERIOD_S = 1.0
_BATCH = 1000

_log = logging.getLogger("tidegate.feedback")


class Teaching:
    """Exchanges what was learnt, beside the hot path; no request waits for it.

    Args:
        state: the router.
        table: the sums in the store.
    """

    def __init__(self, state: RouterState, table: FeedbackTable) -> None:
        self._state = state
        self._table = table
        self._heard: tuple[str, int] = ("", -1)
        """The setting and the version of the sums that this router goes by."""
        self._failing = False

    async def run(self) -> None:
        """Exchange for ever."""
        while True:
            try:
                await self.exchange()
            except Exception as error:  # nobody watches this task: it must not end
                if not self._failing:
                    _log.error("feedback: %s; what it has taught stays with this router", type(error).__name__)
                self._failing = True
            await asyncio.sleep(PERIOD_S)

    async def exchange(self) -> None:
        """Tell what is new here and hear what is new elsewhere; where the store cannot be reached, later."""
        learning = self._state.complexity.learning
        if learning is None:
            return
        if not learning.shared:  # another one than the last time
            learning.shared, self._heard = True, ("", -1)
        setting, version = self._heard
        told = list(learning.fresh)[:_BATCH]
        known = version if setting == learning.setting else -1
        try:
            version, sums = await asyncio.to_thread(
                self._table.exchange, learning.setting, [_lesson(one) for one in told], known, time.time()
            )
        except StoreError as error:
            if not self._failing:
                _log.error("feedback: %s; what it has taught stays with this router until the store is there", error)
            self._failing = True
            return
        self._failing = False
        if sums is not None:
            learning.hear(sums, len(told))
        self._heard = learning.setting, version

    async def close(self) -> None:
        """Tell what was learnt last."""
        learning = self._state.complexity.learning
        while learning is not None and learning.fresh:
            before = len(learning.fresh)
            await self.exchange()
            if len(learning.fresh) >= before:
                return


def _lesson(one: Learnt) -> Lesson:
    return Lesson(one.slot, one.tenant, one.context, one.tier, one.rating.weight, one.rating.weight * one.rating.score)
