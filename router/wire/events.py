"""Server-sent events as they pass (HTML Living Standard, 9.2): whole events only, and the usage taken from the last one.

Usage is asked of every stream, so that every receipt has it; a client that did not ask never sees that event. An engine that
breaks under a stream says so in an event and ends the stream like a whole one: that event is its death, and not passed on. Text
is not looked at: an event is read only if it has a `"usage"` or an `"error"` key or may be the last, and a quote inside a JSON
string is always escaped.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from router.wire.json_body import is_one_of
from router.wire.stream_ends import StreamEnd, next_number

MAX_EVENT_BYTES = 16 * 1024 * 1024
"""An event larger than this is not held back for: the stream counts as broken. The last one of `/v1/responses` has all of the
answer, with twenty log-probabilities a token 1.5 kB of each."""
_SEAM = 3
"""Bytes of an ending, less one."""
_BOUNDARY = re.compile(rb"\r\n\r\n|\n\n|\r\r")
_LINE_FEEDS = re.compile(rb"\n\n")
"""The same where there are no carriage returns, in a tenth of the time."""
_ENDINGS = (b"\n\n", b"\r\n\r\n", b"\r\r")
_DONE = re.compile(rb"(?:\A|[\r\n])(data: ?\[DONE\])[ \t]*(?:[\r\n]|\Z)")
_THE_REQUESTS = re.compile("invalid|bad_?request|not_?found|validation|unprocessable|content_?filter", re.IGNORECASE)
"""In the type of an error without a status: it is the request's, and any engine would say the same."""
ENGINE_DEAD = b"EngineCore encountered an issue"
"""In an error of vLLM's whose engine core has ended: what serves HTTP follows it."""
_EMPTY_LIST = re.compile(rb"\[\s*\]")
_OPENING_TYPES = frozenset({"response.created", "response.queued", "response.in_progress", "message_start", "ping"})
_EMPTY: tuple[Any, ...] = (None, "", [])
_CHUNK_OF_EVENTS_END = b"\n\n\r\n"
_CHUNK_SIZES = {b"%x" % size: size for size in range(1, 4096)}
"""Sizes as servers write them; any other spelling, and a larger chunk, goes to the parser."""


def chunk_at(data: bytes, start: int) -> tuple[int, int]:
    """Where the data of the HTTP chunk at `start` begins, and where the chunk would end, by its size; twice 0 where no usual one
    begins. Whether it really ends there, in a CRLF, is for the caller to look at.
    """
    line = data.find(b"\r\n", start, start + 6)
    size = _CHUNK_SIZES.get(data[start:line])
    return (0, 0) if size is None else (line + 2, line + 4 + size)


def plain_events(data: bytes) -> bytes | None:
    """`data`, where it is nothing but whole HTTP chunks (RFC 9112, section 7.1), each of whole events, and neither usage nor
    `[DONE]` nor an error stands in any of them. Then it may pass as it is; None only means that it must be looked at.
    """
    find = data.find  # `in` would first try whether what it looks for is a number, which takes as long as the search
    if data[-4:] != _CHUNK_OF_EVENTS_END or find(b'"usage"') >= 0 or find(b"[DONE]") >= 0 or find(b'"error"') >= 0:
        return None
    start, end = 0, len(data)
    while start < end:
        _, start = chunk_at(data, start)
        if data[start - 4 : start] != _CHUNK_OF_EVENTS_END:
            return None
    return data if start == end else None


def is_opening(events: bytes) -> bool:
    """Whether nothing of an answer stands in these whole events: they only say that one is coming, as engines do before the first
    token, and of chat who speaks. Whoever has seen none of them misses nothing when another engine begins anew.
    """
    return all(_is_opening(data) for event in _events_in(events) if (data := data_of(event)) is not None)


def _is_opening(data: bytes) -> bool:
    parts = _read(data)
    if parts is None:
        return False
    if parts.type:
        return is_one_of(_value(parts.type), _OPENING_TYPES)
    choices = _value(parts.choices)
    return isinstance(choices, list) and bool(choices) and all(_is_role(choice) for choice in choices)


def _is_role(choice: Any) -> bool:
    """Whether a choice of a chat chunk has a role and nothing else."""
    delta = choice.get("delta") if isinstance(choice, dict) else None
    if not isinstance(delta, dict) or not delta.get("role"):
        return False
    others = [value for name, value in choice.items() if name not in ("index", "delta")]
    return all(value in _EMPTY for value in [*others, *(value for name, value in delta.items() if name != "role")])


class EventTooLarge(Exception):
    """The upstream sends an event that never ends."""


class EventStream:
    """One stream of events on its way through.

    Args:
        keep_usage: whether the client asked for the usage event, and so gets it.
        end: what a whole stream of this kind ends in; None: it may end anyhow.
    """

    __slots__ = (
        "_due",
        "_keep_usage",
        "_last_event",
        "_latest",
        "_pending",
        "_started_with",
        "died",
        "done",
        "failed",
        "refused",
        "usage",
    )

    def __init__(self, keep_usage: bool, end: StreamEnd | None = None) -> None:
        self._keep_usage = keep_usage
        self._due = end
        self._last_event = None if end is None else end.pattern
        """Finds what may be an event that ends the stream."""
        self._latest = b""
        """What passed last, where such events are looked for."""
        self._pending = bytearray()
        self._started_with: dict[str, Any] = {}
        """What Anthropic's `message_start` counts: its later events may leave the prompt out."""
        self.usage = b""
        """The latest event that carried usage; of typed ones, in which all of the answer may stand, only that."""
        self.done = False
        """True once what ends the stream has passed."""
        self.failed = False
        """True once the engine has said that it cannot go on; nothing passes from there on."""
        self.died = False
        """True once it has said that it will answer nobody any more."""
        self.refused = False
        """True once it has said what is wrong with the request: no answer, and nothing is missing where the stream ends then."""

    @property
    def empty(self) -> bool:
        """True while no part of an event waits for its rest."""
        return not self._pending

    @property
    def shortcut(self) -> Callable[[bytes], bytes | None] | None:
        """What reads of whole chunks may go through from here on, in place of a parser and `feed`, if anything.

        It takes a read that begins between two chunks and answers what goes to the client for it, framing and all; None where
        it has to go the long way after all. Then, and after the long way, ask for it anew.
        """
        if not self.empty:
            return None
        return plain_events if self._last_event is None else self._plain_events

    def _plain_events(self, data: bytes) -> bytes | None:
        """As `plain_events`, where no event of them ends the stream."""
        if self._last_event is None or self._last_event.search(data):
            return None
        passed = plain_events(data)
        if passed is not None:
            self._latest = data
        return passed

    @property
    def cut_short(self) -> bool:
        """True when a stream that ends here lacks the end that was due: it is not whole, whatever its framing says."""
        return self._due is not None and not (self.done or self.refused or self._ends_in(bytes(self._pending)))

    @property
    def next_number(self) -> int:
        """The `sequence_number` of the next event, in streams whose events are numbered."""
        return next_number(self._latest)

    def feed(self, piece: bytes) -> bytes:
        """The whole events in what has come so far; what follows the last one waits for its rest.

        Raises:
            EventTooLarge: more than `MAX_EVENT_BYTES` without an end.
        """
        if self._pending:
            seam = self._pending[-_SEAM:] + piece  # in what waits longer no event ends
            self._pending += piece
            if not any(ending in seam for ending in _ENDINGS):
                piece = b""
            else:
                piece, self._pending = bytes(self._pending), bytearray()
        if piece and not piece.endswith(_ENDINGS):
            cut = max(piece.rfind(ending) + len(ending) if ending in piece else 0 for ending in _ENDINGS)
            self._pending += piece[cut:]
            piece = piece[:cut]
        if len(self._pending) > MAX_EVENT_BYTES:
            raise EventTooLarge
        if self.failed:
            return b""
        if piece.find(b'"error"') >= 0:
            piece = self._until_error(piece)
        if piece.find(b'"usage"') >= 0:
            piece = self._take_usage(piece)
        if self._last_event is not None:
            piece = self._until_end(piece)
        elif b"[DONE]" in piece and _DONE.search(piece):
            self.done = True
        return piece

    def finish(self) -> bytes:
        """What is left when the stream has ended: an event without its final empty line."""
        rest, self._pending = self._pending, bytearray()
        return bytes(rest)

    def _until_end(self, piece: bytes) -> bytes:
        """Look for the event that ends a stream of typed events. `[DONE]` before it is a failure: clients stop reading."""
        found = None if self.done or b"[DONE]" not in piece else _DONE.search(piece)
        told = piece if found is None else piece[: found.start(1)]
        self.done = self.done or self._ends_in(piece if self._due is not None and self._due.by_done else told)
        if not self.done and found is not None:
            self.failed, piece = True, told
        self._latest = piece or self._latest
        return piece

    def _ends_in(self, piece: bytes) -> bool:
        """Whether what ends the stream stands in these events, the last of which may lack its empty line."""
        if self._due is None or (self._due.by_done and b"[DONE]" in piece and _DONE.search(piece)):
            return self._due is not None
        if self._last_event is None or not self._last_event.search(piece):
            return False
        found = (_read(data_of(event)) for event in _events_in(piece))
        return any(parts is not None and is_one_of(_value(parts.type), self._due.types) for parts in found)

    def _until_error(self, piece: bytes) -> bytes:
        """What comes before the event in which the engine says that it has failed, all where there is none."""
        start = 0
        for event in _events_in(piece):
            if b'"error"' in event and self._is_failure(event):
                self.failed, self.died = True, ENGINE_DEAD in event
                return piece[:start]
            start += len(event)
        return piece

    def _is_failure(self, event: bytes) -> bool:
        """Whether an event says that the engine has failed."""
        data = data_of(event)
        parts = _read(data)
        if parts is None:
            return False
        kind = _value(parts.type)
        if self._due is not None and self._due.failure and kind == self._due.failure:
            answer = _read(parts.response)
            error = None if answer is None else _value(answer.error)
            return error is None or _is_engine_error(error)
        # OpenAI's /v1/responses has the fields of an error beside its type, everybody else within `error`.
        error = _value(data) if kind == "error" and not parts.error else _value(parts.error)
        failed = _is_engine_error(error)
        self.refused = self.refused or (bool(error) and not failed)
        return failed

    def _take_usage(self, piece: bytes) -> bytes:
        kept = []
        for event in _events_in(piece):
            if b'"usage"' in event and self._is_usage_only(event) and not self._keep_usage:
                continue
            kept.append(event)
        return b"".join(kept)

    def _is_usage_only(self, event: bytes) -> bool:
        """Remember the event if it has usage; true when it has nothing else (`"choices": []`)."""
        data = data_of(event)
        parts = _read(data)
        if data is None or parts is None:
            return False
        places = (parts, _read(parts.message), _read(parts.response))
        usage = next((found for place in places if place is not None and (found := _usage_of(place)) is not None), None)
        if usage is None:
            return False
        if _value(parts.type) == "message_start":
            self._started_with = usage
        elif self._started_with and "input_tokens" not in usage:
            usage = {**self._started_with, **usage}
        self.usage = msgspec.json.encode({"usage": usage}) if parts.type else data
        return _EMPTY_LIST.fullmatch(parts.choices) is not None


def data_of(event: bytes) -> bytes | None:
    """The data of an event, its lines joined; None for a comment or another field."""
    if event.startswith(b"data:") and b"\n" not in event and b"\r" not in event:
        return event[5:].strip()
    lines = [line[5:].strip() for line in event.splitlines() if line.startswith(b"data:")]
    return b"\n".join(lines) if lines else None


class _Parts(msgspec.Struct):
    """What of an event, or of an object in it, is looked at, undecoded. The rest, which can be megabytes, is only passed over."""

    type: msgspec.Raw = msgspec.Raw()
    error: msgspec.Raw = msgspec.Raw()
    usage: msgspec.Raw = msgspec.Raw()
    message: msgspec.Raw = msgspec.Raw()
    response: msgspec.Raw = msgspec.Raw()
    choices: msgspec.Raw = msgspec.Raw()


_decode_parts = msgspec.json.Decoder(_Parts).decode


def _events_in(piece: bytes) -> Iterator[bytes]:
    """The events in some bytes, each with its ending, which only the last one may lack."""
    ending = _LINE_FEEDS if piece.find(b"\r") < 0 else _BOUNDARY
    start = 0
    for boundary in ending.finditer(piece):
        yield piece[start : boundary.end()]
        start = boundary.end()
    if start < len(piece):
        yield piece[start:]


def _read(data: bytes | msgspec.Raw | None) -> _Parts | None:
    """The parts of an object; None where it is none."""
    if not data:
        return None
    try:
        return _decode_parts(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _value(data: bytes | msgspec.Raw | None) -> Any:
    """What is written there; None also where nothing is."""
    if not data:
        return None
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _is_engine_error(error: Any) -> bool:
    """Whether an error is not the request's own (vLLM: code 500): somebody else may be able to answer."""
    if not isinstance(error, dict):
        return bool(error)
    code = str(error.get("code"))
    if code.isdecimal():
        return not 400 <= int(code[:4]) < 500 or code in ("401", "403", "429")
    return bool(error) and _THE_REQUESTS.search(f"{error.get('type')} {code}") is None


def _usage_of(parts: _Parts) -> dict[str, Any] | None:
    usage = _value(parts.usage)
    return usage if isinstance(usage, dict) else None
