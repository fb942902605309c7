"""The events of an answer that may come from more than one attempt: recorded as they pass, and joined into one stream.

`TrackedEvents` passes the first attempt's events and keeps a `Trail` of their tokens; `JoinedEvents` rewrites those of a further
attempt as if they came from the first. Which answers can be carried on at all, and with which request, is said in
`router.wire.continuation`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import msgspec

from router.wire.events import EventStream, chunk_at, data_of
from router.wire.stream_ends import DONE
from router.wire.trail import Delta, Envelope, StreamChoice, Trail

_TOKEN_IDS = re.compile(rb'"((?:prompt_)?token_ids)"\s*:\s*\[[0-9,\s]*\]')
_NEVER = b"\0"
_AFTER_TOKEN = b"]}]}\n\n"
_NO_TOKEN = b"null}]}\n\n"
_ONE_TOKEN = re.compile(
    rb'(data: \{"id":"[^"\\]*","object":"[^"\\]*","created":\d+,"model":"[^"\\]*","choices":\[\{"index":0,'
    rb'(?:"delta":\{"content"|"text"):")[^"\\]+'
    rb'("\}?,"logprobs":null,"finish_reason":null,(?:"stop_reason":null,"prompt_token_ids":null,)?"token_ids":\[)\d+\]\}\]\}\n\n'
)
_NO_CHOICES = re.compile(rb'"choices"\s*:\s*\[\s*\]')


def ending_of(trail: Trail, chat: bool, keep_usage: bool) -> bytes:
    """The end of a stream whose last content was sent: usage, if the client asked for it, and `[DONE]`."""
    usage = _event(_usage_chunk(trail, chat, trail.usage())) if keep_usage and trail.envelope is not None else b""
    return usage + b"data: [DONE]\n\n"


class TrackedEvents(EventStream):
    """The first attempt's stream: recorded in a trail, and rid of the token ids that the client did not ask for."""

    __slots__ = ("_between", "_prefix", "trail")

    def __init__(self, keep_usage: bool, trail: Trail) -> None:
        super().__init__(keep_usage, DONE)
        self.trail = trail
        # What stands before and after the text of an event, learnt from the stream; never the beginning of one until then.
        self._prefix = self._between = _NEVER

    @property
    def empty(self) -> bool:
        """Never: every event has to be looked at."""
        return False

    @property
    def shortcut(self) -> Callable[[bytes], bytes | None] | None:
        """See `EventStream`: once the usual event is known, chunks of one such event each."""
        return None if self._pending or self._prefix is _NEVER else self._pass_chunks

    def _pass_chunks(self, data: bytes) -> bytes | None:
        found = []
        start, end = 0, len(data)
        while start < end:
            begin, start = chunk_at(data, start)
            if data[start - 2 : start] != b"\r\n" or (token := self._read_token(data, begin, start - 2)) is None:
                return None
            found.append(token)
        say = self.trail.say
        for text, token_id, _ in found:  # only now: what goes the long way is recorded there
            say(text, token_id)
        return b"".join([b"%x\r\n%b%b\r\n" % (len(head) + len(_NO_TOKEN), head, _NO_TOKEN) for _, _, head in found])

    def feed(self, piece: bytes) -> bytes:
        """As the base class, without token ids."""
        if self.failed:
            return b""
        if not self._pending and (short := self._pass_token(piece)) is not None:
            return short
        whole = super().feed(piece)
        if not whole:
            return whole
        if b"\r" in whole:
            self.trail.opaque = True
            return _TOKEN_IDS.sub(rb'"\1":null', whole)
        return b"".join([self._pass(event) for event in whole.split(b"\n\n") if event])

    def _pass_token(self, event: bytes) -> bytes | None:
        """An event with one token, text without quotes and nothing else, as nearly all of a stream are; None for any other."""
        found = self._read_token(event, 0, len(event))
        if found is None:
            return None
        text, token_id, head = found
        self.trail.say(text, token_id)
        return head + _NO_TOKEN

    def _read_token(self, data: bytes, start: int, stop: int) -> tuple[bytes, int, bytes] | None:
        """The text and the token id of such an event, `data[start:stop]`, and what of it stands before the id.

        Without quotes in it the text is all of the string, so nothing but the two learnt parts surrounds text and token.
        """
        begin = start + len(self._prefix)
        end = data.find(self._between, begin, stop)
        after = end + len(self._between)
        token = data[after : stop - 6]
        if end <= begin or not token.isdigit() or len(token) > 9 or data[stop - 6 : stop] != _AFTER_TOKEN:
            return None
        text = data[begin:end]
        if b'"' in text or not data.startswith(self._prefix, start):
            return None
        return text, int(token), data[start : after - 1]

    def _learn(self, event: bytes) -> None:
        """Remember what surrounds the text of an event that was parsed and found to hold one token of plain text."""
        found = _ONE_TOKEN.fullmatch(event + b"\n\n")
        if found is not None:
            self._prefix, self._between = found[1], found[2]

    def _pass(self, event: bytes) -> bytes:
        if (short := self._pass_token(event + b"\n\n")) is not None:
            return short
        data = data_of(event)
        if data is None or data == b"[DONE]" or (b'"usage"' in data and _NO_CHOICES.search(data)):
            return event + b"\n\n"
        choice = self.trail.take(data)
        if self.trail.opaque or self.trail.finished:
            self._prefix = _NEVER
        elif choice is not None and choice.token_ids is not None:
            self._learn(event)
        if choice is not None and _is_only_ids(choice):
            return b""  # The engine sends it for its ids alone.
        return _TOKEN_IDS.sub(rb'"\1":null', _in_one_line(event, data)) + b"\n\n"


class JoinedEvents(EventStream):
    """The stream of a further attempt, rewritten into the stream that the client has been reading.

    Args:
        keep_usage: whether the client asked for the usage event.
        trail: what it has so far.
        chat: whether it reads chat chunks; the further attempt answers with text chunks, unless `again`.
        again: whether the further attempt has the client's own request, because no text had been sent.
        note: a comment for the reader of the raw stream, without line breaks: which target goes on.
    """

    __slots__ = ("_again", "_asked_usage", "_chat", "_note", "_watch", "trail")

    def __init__(self, keep_usage: bool, trail: Trail, *, chat: bool, again: bool, note: str) -> None:
        super().__init__(False, DONE)
        self.trail = trail
        self._asked_usage = keep_usage
        self._chat = chat
        self._again = again
        self._note = b": %b\n\n" % note.encode("ascii", "replace")
        self._watch = "" if again or trail.single else trail.tail

    @property
    def empty(self) -> bool:
        """Never: every event has to be rewritten."""
        return False

    def feed(self, piece: bytes) -> bytes:
        """The rewritten events.

        Raises:
            ValueError: the stream does not follow on what was sent.
        """
        whole = super().feed(piece)
        if b"\r" in whole:
            whole = whole.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        try:
            return b"".join([self._rewrite(event) for event in whole.split(b"\n\n") if event])
        except (ValueError, RecursionError):
            # The trail may have what the client has not: nothing goes on from there.
            self.trail.opaque, self.done = True, False
            raise

    def _rewrite(self, event: bytes) -> bytes:
        data = data_of(event)
        if data is None:
            return b""
        if data == b"[DONE]":
            return self._end()
        first = not self.trail.began
        choice = self.trail.take(data)
        if choice is None:
            if b'"error"' not in data:
                raise ValueError("not an event of one plain choice")
            return event + b"\n\n"  # What is wrong with the request is for the client to see.
        note, self._note = self._note, b""
        text = (choice.delta.content if choice.delta is not None else choice.text) or ""
        if self._watch and text:
            if self._watch in text:
                raise ValueError("the continuation begins with what was sent")
            self._watch = ""
        is_role = choice.delta is not None and choice.delta.role is not None and not text and choice.finish_reason is None
        if (is_role and not first) or _is_only_ids(choice):
            return note
        return note + _event(self._own(choice, data))

    def _own(self, choice: StreamChoice, data: bytes) -> dict[str, Any]:
        envelope = self.trail.envelope
        assert envelope is not None
        if self._again or not self._chat:
            chunk: dict[str, Any] = msgspec.json.decode(data)
            chunk |= {"id": envelope.id, "created": envelope.created, "model": envelope.model}
            for part in (chunk, *chunk["choices"]):
                part.update({name: None for name in ("token_ids", "prompt_token_ids") if name in part})
            return chunk
        own: dict[str, Any] = {
            "index": 0,
            "delta": {"content": choice.text or ""},
            "logprobs": None,
            "finish_reason": choice.finish_reason,
        }
        if choice.finish_reason is not None:
            own["stop_reason"] = msgspec.json.decode(data)["choices"][0].get("stop_reason")
        own["token_ids"] = None
        return _chunk(envelope, chat=True, choices=[own])

    def _end(self) -> bytes:
        if not self._asked_usage or self.trail.envelope is None:
            return b"data: [DONE]\n\n"
        usage: dict[str, Any] = self.trail.usage()
        details = msgspec.json.decode(self.usage)["usage"].get("prompt_tokens_details") if self.usage else None
        if isinstance(details, dict) and isinstance(details.get("cached_tokens"), int):
            # The part of the answer that was the prompt this time is no prompt of the client's.
            usage["prompt_tokens_details"] = {"cached_tokens": min(details["cached_tokens"], usage["prompt_tokens"])}
        return _event(_usage_chunk(self.trail, self._chat, usage)) + b"data: [DONE]\n\n"


def _is_only_ids(choice: StreamChoice) -> bool:
    """True for an empty delta without an end, which vLLM sends only where ids were asked for."""
    delta = choice.delta
    return choice.finish_reason is None and delta is not None and delta == Delta()


def _usage_chunk(trail: Trail, chat: bool, usage: dict[str, Any]) -> dict[str, Any]:
    assert trail.envelope is not None
    return _chunk(trail.envelope, chat=chat, choices=[]) | {"usage": usage}


def _chunk(envelope: Envelope, *, chat: bool, choices: list[Any]) -> dict[str, Any]:
    kind = "chat.completion.chunk" if chat else "text_completion"
    return {"id": envelope.id, "object": kind, "created": envelope.created, "model": envelope.model, "choices": choices}


def _event(chunk: dict[str, Any]) -> bytes:
    return b"data: %b\n\n" % msgspec.json.encode(chunk)


def _in_one_line(event: bytes, data: bytes) -> bytes:
    """The event with its data, JSON, in one line, so that no array in it has another `data:` inside."""
    if b"\ndata:" not in event:
        return event
    others = [line for line in event.split(b"\n") if not line.startswith(b"data:")]
    return b"\n".join([*others, b"data: " + data.replace(b"\n", b" ")])
