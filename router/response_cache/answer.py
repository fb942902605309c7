"""An answer on its way through the router, copied, and whether it is whole: what is not stands for nothing."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import msgspec

from router.placement.targets import Endpoint
from router.wire.events import EventStream
from router.wire.usage_search import usage_in

_UNFINISHED = frozenset({"abort", "error"})
"""What vLLM gives as `finish_reason` of an answer that it did not bring to its end."""
_DONE = re.compile(rb"data: ?\[DONE\][ \t]*(?:\r\n\r\n|\n\n|\r\r)\Z")
_BOUNDARY = re.compile(rb"\r\n\r\n|\n\n|\r\r")
_EVENTS, _JSON = b"text/event-stream", b"application/json"


class Answer(msgspec.Struct, frozen=True, gc=False):
    """A whole answer.

    `body` is what the client gets, of a counted stream without the usage event and `[DONE]`: those are `usage_event` (empty where
    the engine sends none) and `done`. `usage` is a stream's latest event with counts.
    """

    content_type: bytes
    body: bytes
    usage: bytes = b""
    usage_event: bytes = b""
    done: bytes = b""

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.content_type) + len(self.body) + len(self.usage) + len(self.usage_event) + len(self.done)

    @property
    def counts(self) -> bytes:
        """Where the tokens of the answer are counted."""
        return self.usage or usage_in(self.body)

    def parts(self, *, keeps_usage: bool) -> tuple[bytes, ...]:
        """What goes to the client, with the usage event only where it is kept."""
        return tuple(part for part in (self.body, self.usage_event if keeps_usage else b"", self.done) if part)


class AnswerCopy:
    """Takes a copy of the bytes that pass, as long as `claim` allows it.

    Args:
        claim: asks for so many bytes more, and says whether they may be had.
        release: gives back what was claimed.
        limit: the longest answer that is kept, in bytes.
    """

    __slots__ = ("_bytes", "_claim", "_limit", "_release", "overrun")

    def __init__(self, claim: Callable[[int], bool], release: Callable[[int], None], limit: int) -> None:
        self._claim = claim
        self._release = release
        self._limit = limit
        self._bytes = bytearray()
        self.overrun = False
        """True once there was more than could be kept: this answer will not be."""

    def take(self, data: bytes) -> None:
        """The next bytes of the body, free of framing."""
        if self.overrun:
            return
        if len(self._bytes) + len(data) > self._limit or not self._claim(len(data)):
            self.overrun = True
            self.close()
        else:
            self._bytes += data

    def close(self) -> bytes:
        """All that was taken; nothing is held from now on."""
        taken = bytes(self._bytes)
        self._release(len(taken))
        self._bytes = bytearray()
        return taken


def whole_answer(path: str, content_type: bytes, body: bytes, usage: bytes, *, streamed: bool) -> Answer | None:
    """A copied body as an answer, or None when it is not a whole and successful one of the kind that was asked for.

    Args:
        path: the endpoint.
        content_type: of the answer.
        body: all bytes of it, free of framing.
        usage: the stream's latest event with usage, as JSON.
        streamed: whether a stream was asked for.
    """
    kind = content_type.partition(b";")[0].strip().lower()
    if kind != (_EVENTS if streamed else _JSON):
        return None
    if not streamed:
        return Answer(content_type, body) if _is_success(_read(body)) else None
    filtered = EventStream(path not in (Endpoint.CHAT, Endpoint.COMPLETIONS))
    text = filtered.feed(body)
    done = _DONE.search(text)
    told = text[: done.start()] if done is not None else text
    events = _events(told)
    if not filtered.empty or not all(map(_is_success, events)):
        return None
    if path == Endpoint.MESSAGES:
        return Answer(content_type, body, usage) if events and events[-1].get("type") == "message_stop" else None
    if done is None:
        return None
    counts = _read(usage)
    event = b"data: %b\n\n" % usage if isinstance(counts, dict) and counts.get("choices") == [] else b""
    return Answer(content_type, told, usage, event, done[0])


def _events(text: bytes) -> list[Any]:
    """The data of every event; None for what is no JSON. Comments and events without data are left out."""
    found = []
    for event in _BOUNDARY.split(text):
        lines = [line[5:].strip() for line in event.splitlines() if line.startswith(b"data:")]
        if lines:
            found.append(_read(b"\n".join(lines)))
    return found


def _read(data: bytes) -> Any:
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _is_success(part: Any) -> bool:
    """Whether a JSON answer, or an event of a stream, speaks of no failure."""
    if not isinstance(part, dict) or part.get("error") is not None or part.get("type") == "error":
        return False
    choices = part.get("choices")
    if not isinstance(choices, list):
        return True
    return all(isinstance(choice, dict) and choice.get("finish_reason") not in _UNFINISHED for choice in choices)
