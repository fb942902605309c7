"""An answer in OpenAI's shape, whole or as a stream, written from what a provider's translator understood."""

from __future__ import annotations

from typing import Any

import msgspec

from router.wire.errors import ApiError


class Usage(msgspec.Struct, frozen=True):
    """Tokens. `prompt` counts cached ones too, as OpenAI does."""

    prompt: int = 0
    completion: int = 0
    cached: int = 0

    def to_openai(self) -> dict[str, Any]:
        """The object `usage`."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        }


class MadeCall(msgspec.Struct, frozen=True):
    """A call of a tool; `arguments` is JSON."""

    id: str
    name: str
    arguments: str


class Answer(msgspec.Struct, frozen=True):
    """A whole answer. `finish` is one of stop, length, tool_calls, content_filter."""

    id: str
    model: str
    text: str
    calls: tuple[MadeCall, ...]
    finish: str
    usage: Usage
    refusal: str | None = None

    def to_openai(self, created: int) -> bytes:
        """A `chat.completion`."""
        message: dict[str, Any] = {
            "role": "assistant",
            "content": self.text or (None if self.calls else ""),
            "refusal": self.refusal,
        }
        if self.calls:
            message["tool_calls"] = [
                {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in self.calls
            ]
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": self.finish}
        return msgspec.json.encode(
            {
                "id": self.id,
                "object": "chat.completion",
                "created": created,
                "model": self.model,
                "choices": [choice],
                "usage": self.usage.to_openai(),
            }
        )


class ChunkWriter:
    """Writes a stream of `chat.completion.chunk` events.

    Args:
        created: UNIX time in seconds.
        model: the model's name, until the provider gives its own.
        wants_usage: whether the client asked for the usage.
    """

    __slots__ = ("_calls", "_created", "_started", "_wants_usage", "done", "failure", "id", "model")

    def __init__(self, created: int, model: str, wants_usage: bool) -> None:
        self.id = f"chatcmpl-{created}"
        self.model = model
        self._created = created
        self._wants_usage = wants_usage
        self._started = False
        self._calls = 0
        self.done = False
        """Whether the answer has ended, well or badly."""
        self.failure: ApiError | None = None

    def start(self) -> bytes:
        """The first chunk; later calls give nothing."""
        if self._started:
            return b""
        self._started = True
        return self._chunk({"role": "assistant", "content": ""})

    def text(self, text: str) -> bytes:
        """A piece of text."""
        return self.start() + self._chunk({"content": text}) if text else b""

    def call(self, call_id: str, name: str, arguments: str = "") -> bytes:
        """A new call of a tool; pieces of its arguments follow with `arguments`."""
        function = {"name": name, "arguments": arguments}
        made = {"index": self._calls, "id": call_id, "type": "function", "function": function}
        self._calls += 1
        return self.start() + self._chunk({"tool_calls": [made]})

    def arguments(self, piece: str) -> bytes:
        """A piece of the latest call's arguments."""
        if not piece or not self._calls:
            return b""
        return self._chunk({"tool_calls": [{"index": self._calls - 1, "function": {"arguments": piece}}]})

    @property
    def calls(self) -> int:
        """How many calls have been begun."""
        return self._calls

    def finish(self, reason: str, usage: Usage) -> bytes:
        """The last chunk, the usage if it was asked for, and the end."""
        self.done = True
        out = self.start() + self._chunk({}, reason)
        if self._wants_usage:
            out += self._event({**self._head(), "choices": [], "usage": usage.to_openai()})
        return out + b"data: [DONE]\n\n"

    def fail(self, error: ApiError) -> bytes:
        """An error in the middle of the stream, after which nothing follows: no `[DONE]`, so nobody takes it for the end."""
        self.done = True
        self.failure = error
        return error.event()

    def _head(self) -> dict[str, Any]:
        return {"id": self.id, "object": "chat.completion.chunk", "created": self._created, "model": self.model}

    def _chunk(self, delta: dict[str, Any], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return self._event({**self._head(), "choices": [choice]})

    @staticmethod
    def _event(value: dict[str, Any]) -> bytes:
        return b"data: " + msgspec.json.encode(value) + b"\n\n"
