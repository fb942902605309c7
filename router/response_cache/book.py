"""The kept answers of one router: the least recently used go first, none outlives its time, and all of it fits a bound."""

from __future__ import annotations

import heapq
import time
from collections import OrderedDict
from collections.abc import Callable

import msgspec

from router.config.cache import Cache
from router.residency.cache_gate import Provenance
from router.residency.label import Label
from router.response_cache.answer import Answer, AnswerCopy
from router.response_cache.ask import Question

ENTRY_BYTES = 1536
"""What an entry costs beside its answer: key, provenance, places in the tables. Measured: 1,504 where nothing is shared."""
_COPIED_SHARE = 4
"""A quarter of the memory is for answers that are just being copied."""


class EntryKey(msgspec.Struct, frozen=True, gc=False):
    """The scope of an answer and the question: all of it must be the same."""

    epoch: str
    tenant: str
    owner: str
    label: Label
    model: str
    question: Question


class Entry(msgspec.Struct, frozen=True, gc=False):
    """A kept answer, the request it answered first, and when, in seconds of the monotonic clock."""

    answer: Answer
    origin: Provenance
    request_id: str
    kept: float
    expires: float


class ResponseCache:
    """Answers by scope and question.

    Args:
        max_bytes: bound on everything that is held.
        max_entries: bound on the number of answers.
        max_answer_bytes: a larger answer is not kept.
        clock: seconds; the monotonic clock, so that a jump of the other one makes nothing younger.
    """

    def __init__(
        self, max_bytes: int, max_entries: int, max_answer_bytes: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._for_copies = max_bytes // _COPIED_SHARE
        self._for_entries = max_bytes - self._for_copies
        self._max_entries = max_entries
        self._max_answer_bytes = max_answer_bytes
        self._clock = clock
        self._entries: OrderedDict[EntryKey, Entry] = OrderedDict()
        self._ends: list[tuple[float, int, EntryKey]] = []
        self._count = 0
        self._held = 0
        self._copied = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def size(self) -> int:
        """Bytes held, those of answers that are being copied included."""
        return self._held + self._copied

    def measure(self) -> tuple[int, int]:
        """Entries and bytes."""
        return len(self._entries), self.size

    def find(self, key: EntryKey, max_age_s: float) -> tuple[Entry, float] | None:
        """The answer to a question in a scope and its age in seconds, where there is one that is young enough."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        now = self._clock()
        if now >= entry.expires:
            self._drop(key)
            return None
        age = now - entry.kept
        if age >= max_age_s:
            return None
        self._entries.move_to_end(key)
        return entry, age

    def keep(self, key: EntryKey, answer: Answer, origin: Provenance, request_id: str, ttl_s: float) -> bool:
        """Keep an answer in the place of the one before; the least recently used make room for it.

        Returns:
            Whether it was kept; one that is too large is not.
        """
        size = answer.size + ENTRY_BYTES
        if answer.size > self._max_answer_bytes or size > self._for_entries:
            return False
        self.sweep()
        self._drop(key)
        while self._entries and (len(self._entries) >= self._max_entries or self._held + size > self._for_entries):
            self._drop(next(iter(self._entries)))
        now = self._clock()
        self._entries[key] = Entry(answer, origin, request_id, now, now + ttl_s)
        self._held += size
        self._count += 1
        heapq.heappush(self._ends, (now + ttl_s, self._count, key))
        if len(self._ends) > 2 * len(self._entries) + 64:  # most of it is of entries that went before their time
            self._ends = [(entry.expires, place, key) for place, (key, entry) in enumerate(self._entries.items())]
            heapq.heapify(self._ends)
            self._count = len(self._ends)
        return True

    def copy(self) -> AnswerCopy:
        """For the bytes of an answer on its way."""
        return AnswerCopy(self._claim, self._release, self._max_answer_bytes)

    def sweep(self) -> None:
        """Forget what has outlived its time."""
        now = self._clock()
        while self._ends and self._ends[0][0] <= now:
            key = heapq.heappop(self._ends)[2]
            entry = self._entries.get(key)
            if entry is not None and entry.expires <= now:
                self._drop(key)

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self._ends.clear()
        self._held = 0

    def _drop(self, key: EntryKey) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._held -= entry.answer.size + ENTRY_BYTES

    def _claim(self, size: int) -> bool:
        if self._copied + size > self._for_copies:
            return False
        self._copied += size
        return True

    def _release(self, size: int) -> None:
        self._copied -= size


def open_cache(options: Cache) -> ResponseCache:
    """An empty cache of the configured size."""
    return ResponseCache(int(options.max_mib * 2**20), options.max_entries, int(options.max_answer_kib * 1024))
