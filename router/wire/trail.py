"""What one answer has brought so far, token by token, over all the attempts that it takes."""

from __future__ import annotations

from array import array
from collections import deque
from typing import Any

import msgspec

_TAIL_CHARS = 32
_TAIL_EVENTS = 16
_TELLING_CHARS = 8
"""Text this long before the cut cannot stand in the next token by chance, unless the answer repeats itself."""


class Delta(msgspec.Struct):
    """What one event adds to a chat answer; all but `content` and `role` is what no other attempt can go on from."""

    content: str | None = None
    role: str | None = None
    reasoning: Any = None
    reasoning_content: Any = None
    tool_calls: Any = None
    function_call: Any = None
    refusal: Any = None


class StreamChoice(msgspec.Struct):
    """The choice of one event, of chat (`delta`) or completions (`text`), with the ids of its tokens where asked for."""

    index: int = 0
    delta: Delta | None = None
    text: str | None = None
    finish_reason: str | None = None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None


class _Chunk(msgspec.Struct):
    choices: list[StreamChoice]
    prompt_token_ids: list[int] | None = None


class Envelope(msgspec.Struct):
    """What all events of one stream have in common."""

    id: str
    created: int
    model: str


_decode_chunk = msgspec.json.Decoder(_Chunk).decode
_decode_envelope = msgspec.json.Decoder(Envelope).decode


class Trail:
    """What one answer has brought so far, over all its attempts.

    Attributes:
        prompt: the token ids of the prompt, empty while not known.
        answer: the token ids of the answer; `kept` of them have brought their text to the client.
        delivered: tokens of the current attempt.
        began: something was sent, if only the role.
        spoke: text was sent.
        finished: the event with a `finish_reason` was sent.
        opaque: something was sent that cannot be carried on.
        envelope: id, creation time and model name that the client was told.
    """

    __slots__ = (
        "answer",
        "began",
        "delivered",
        "envelope",
        "finished",
        "kept",
        "opaque",
        "prompt",
        "single",
        "spoke",
        "texts",
    )

    def __init__(self) -> None:
        self.prompt = array("I")
        self.answer = array("I")
        self.kept = 0
        self.delivered = 0
        self.began = False
        self.spoke = False
        self.finished = False
        self.opaque = False
        self.single = True
        self.texts: deque[bytes] = deque(maxlen=_TAIL_EVENTS)
        self.envelope: Envelope | None = None

    def take(self, data: bytes) -> StreamChoice | None:
        """Record one event's data, as an engine sent it; its only choice, or None where it has not exactly one."""
        try:
            chunk = _decode_chunk(data)
            if self.envelope is None:
                self.envelope = _decode_envelope(data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            self.opaque = True
            return None
        if len(chunk.choices) != 1 or chunk.choices[0].index != 0 or self.finished:
            self.opaque = True
            return None
        choice = chunk.choices[0]
        prompt = chunk.prompt_token_ids or choice.prompt_token_ids
        if prompt and not self.prompt:
            self.prompt = _ids(prompt)
        self._record(choice)
        return choice

    def _record(self, choice: StreamChoice) -> None:
        self.began = True
        delta = choice.delta
        if delta is not None and (
            delta.reasoning or delta.reasoning_content or delta.tool_calls or delta.function_call or delta.refusal
        ):
            self.opaque = True
        ids = choice.token_ids or ()
        text = (delta.content if delta is not None else choice.text) or ""
        self.delivered += len(ids)
        self.answer.extend(ids)
        if text:
            self.spoke = True
            self.kept = len(self.answer)
            self.single = len(ids) == 1
            self.texts.append(msgspec.json.encode(text)[1:-1])
            if not ids:
                self.opaque = True
        if choice.finish_reason is not None:
            self.finished = True
            self.kept = len(self.answer)

    def say(self, text: bytes, token: int) -> None:
        """One token whose text, as JSON spells it, goes to the client: most of every stream."""
        self.answer.append(token)
        self.texts.append(text)
        self.delivered += 1
        self.kept = len(self.answer)
        self.single = True

    @property
    def tail(self) -> str:
        """The last characters that were sent."""
        try:
            return str(msgspec.json.decode(b'"%b"' % b"".join(self.texts)))[-_TAIL_CHARS:]
        except (msgspec.DecodeError, UnicodeDecodeError):
            return ""

    @property
    def can_join(self) -> bool:
        """Whether the rest of the answer can be had exactly, as far as this stream tells."""
        if self.opaque or self.envelope is None:
            return not self.began and not self.opaque
        if not self.spoke:
            return True
        # Several tokens in the last event with text: the last of them may be half a character, of which no text came yet.
        # A decoder that starts there would begin with the whole prompt; `JoinedEvents` sees that by the text before it.
        return bool(self.prompt) and (self.single or len(self.tail) >= _TELLING_CHARS)

    def can_end(self, keep_usage: bool) -> bool:
        """Whether the end of a finished answer can be written here: usage has to be known where the client asked for it."""
        return self.finished and not self.opaque and self.envelope is not None and (bool(self.prompt) or not keep_usage)

    def rewind(self) -> None:
        """The current attempt is over: forget the tokens that brought no text, they are generated anew."""
        del self.answer[self.kept :]
        self.delivered = 0

    def usage(self) -> dict[str, int]:
        """The usage of the answer as the client has it."""
        prompt, completion = len(self.prompt), len(self.answer)
        return {"prompt_tokens": prompt, "total_tokens": prompt + completion, "completion_tokens": completion}


def _ids(values: list[int]) -> array[int]:
    try:
        return array("I", values)
    except (OverflowError, TypeError):
        return array("I")
