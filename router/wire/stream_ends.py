"""How a whole stream of each API ends: one that ends in another way was cut short, whatever its framing says."""

from __future__ import annotations

import re
from functools import cache

import msgspec

_NUMBER = re.compile(rb'"sequence_number"\s*:\s*(\d{1,15})\b')


class StreamEnd(msgspec.Struct, frozen=True):
    """What a whole stream ends in.

    Attributes:
        by_done: whether `[DONE]` ends it.
        types: the types of JSON events that end it.
        failure: the type of event that carries an answer which failed, "" where there is none.
    """

    by_done: bool
    types: frozenset[str] = frozenset()
    failure: str = ""

    @property
    def pattern(self) -> re.Pattern[bytes] | None:
        """Stands in the bytes of each event of such a type, and perhaps in others; None without types."""
        return _pattern_of(self.types) if self.types else None


DONE = StreamEnd(True)
"""Chat and completions."""
MESSAGES = StreamEnd(False, frozenset({"message_stop", "error"}))
RESPONSES = StreamEnd(
    False, frozenset({"response.completed", "response.incomplete", "response.failed", "error"}), "response.failed"
)
TRANSCRIPTIONS = StreamEnd(True, frozenset({"transcript.text.done"}))
"""vLLM ends in `[DONE]`, OpenAI in an event."""


@cache
def _pattern_of(types: frozenset[str]) -> re.Pattern[bytes]:
    return re.compile(rb'"type"\s*:\s*"(?:%b)"' % b"|".join(re.escape(name.encode()) for name in sorted(types)))


def next_number(events: bytes) -> int:
    """The `sequence_number` that follows the last one in these events; 0 where none stands in them."""
    found = _NUMBER.findall(events)
    return int(found[-1]) + 1 if found else 0
