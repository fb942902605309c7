"""Server-sent events of a provider, taken apart (HTML Living Standard, 9.2)."""

from __future__ import annotations

import re
from typing import Any

import msgspec

_BOUNDARY = re.compile(rb"\r\n\r\n|\n\n|\r\r")
MAX_EVENT_BYTES = 4 * 1024 * 1024


class BadStream(Exception):
    """What came is no stream of events."""


class EventReader:
    """Events from pieces that are cut anywhere."""

    __slots__ = ("_pending",)

    def __init__(self) -> None:
        self._pending = b""

    def feed(self, piece: bytes) -> list[dict[str, Any] | None]:
        """The JSON objects of the events that are complete; None for `[DONE]`.

        Raises:
            BadStream: an event is too large, or its data are no JSON object.
        """
        data = self._pending + piece
        found, start = [], 0
        for boundary in _BOUNDARY.finditer(data):
            found += _read_event(data[start : boundary.start()])
            start = boundary.end()
        self._pending = data[start:]
        if len(self._pending) > MAX_EVENT_BYTES:
            raise BadStream
        return found

    def finish(self) -> list[dict[str, Any] | None]:
        """An event that the end of the stream completes."""
        rest, self._pending = self._pending, b""
        return _read_event(rest)


def _read_event(event: bytes) -> list[dict[str, Any] | None]:
    data = b"\n".join(line[5:].removeprefix(b" ") for line in event.splitlines() if line.startswith(b"data:"))
    if not data.strip():
        return []
    if data.strip() == b"[DONE]":
        return [None]
    try:
        value = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise BadStream from None
    if not isinstance(value, dict):
        raise BadStream
    return [value]
