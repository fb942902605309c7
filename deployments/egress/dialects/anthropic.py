"""Anthropic's Messages API (https://docs.anthropic.com/en/api/messages), version 2023-06-01.

The place of inference is asked for with every request (`inference_geo`) and checked in every answer (`usage.inference_geo`): a
target without `provider.geo` sends none, and then nothing is checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from deployments.egress.dialects.answer import Answer, ChunkWriter, MadeCall, Usage
from deployments.egress.dialects.base import (
    EvidenceMismatch,
    Outgoing,
    count,
    cut_short,
    failure,
    known_word,
    no_answer,
    objects,
    parse,
    unreadable,
)
from deployments.egress.dialects.chat import Call, Chat, Media, Part, Result, Text
from deployments.egress.dialects.sse import BadStream, EventReader
from router.config import ExternalTarget
from router.wire.errors import ApiError, invalid_request
from router.wire.json_body import encode_object

VERSION = "2023-06-01"
DEFAULT_MAX_TOKENS = 4096
"""The API needs a bound; this one holds where the client gave none."""
_FINISH = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
_STATUS = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 403,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "timeout_error": 504,
    "api_error": 500,
    "overloaded_error": 529,
}


class Anthropic:
    """The dialect."""

    def request(self, chat: Chat, spec: ExternalTarget) -> Outgoing:
        """See `Dialect`."""
        body: dict[str, Any] = {
            "model": chat.model,
            "max_tokens": chat.max_tokens or DEFAULT_MAX_TOKENS,
            "messages": [{"role": turn.role, "content": [_part(part) for part in turn.parts]} for turn in chat.turns],
        }
        if chat.system:
            body["system"] = chat.system
        if chat.temperature is not None:
            body["temperature"] = min(chat.temperature, 1.0)
        if chat.top_p is not None:
            body["top_p"] = chat.top_p
        if chat.stop:
            body["stop_sequences"] = list(chat.stop)
        if chat.tools:
            body["tools"] = [
                {"name": tool.name, "description": tool.description, "input_schema": tool.parameters} for tool in chat.tools
            ]
            body["tool_choice"] = _choice(chat)
        if chat.schema is not None:
            body["output_config"] = {"format": {"type": "json_schema", "schema": chat.schema}}
        elif chat.json_only:
            raise invalid_request("This target needs a `json_schema`; `json_object` is not offered.", param="response_format")
        if chat.user:
            body["metadata"] = {"user_id": chat.user}
        if spec.provider.geo:
            body["inference_geo"] = spec.provider.geo
        if chat.stream:
            body["stream"] = True
        return Outgoing("/v1/messages", encode_object(body), {"anthropic-version": VERSION})

    def sign(
        self, method: str, url: str, outgoing: Outgoing, credential: str, spec: ExternalTarget, now: float
    ) -> dict[str, str]:
        """See `Dialect`."""
        return {"x-api-key": credential}

    def answer(self, body: bytes, spec: ExternalTarget, created: int) -> bytes:
        """See `Dialect`."""
        message = parse(body)
        usage = message.get("usage")
        check_geo(usage, spec)
        if message.get("type") != "message" or not isinstance(message.get("content"), list):
            raise no_answer()
        blocks = objects(message["content"])
        texts = [block["text"] for block in blocks if block.get("type") == "text" and isinstance(block.get("text"), str)]
        calls = tuple(
            MadeCall(str(block.get("id", "")), str(block.get("name", "")), msgspec.json.encode(block.get("input") or {}).decode())
            for block in blocks
            if block.get("type") == "tool_use"
        )
        answer = Answer(
            id=str(message.get("id", "")),
            model=str(message.get("model", "")),
            text="".join(texts),
            calls=calls,
            finish=_FINISH.get(str(message.get("stop_reason")), "stop"),
            usage=_usage(usage, {}),
        )
        return answer.to_openai(created)

    def stream(self, writer: ChunkWriter, spec: ExternalTarget) -> AnthropicStream:
        """See `Dialect`."""
        return AnthropicStream(writer, spec)

    def error(self, status: int, body: bytes, headers: Mapping[str, str]) -> ApiError:
        """See `Dialect`."""
        kind = ""
        try:
            inner = parse(body).get("error")
            kind = known_word(inner.get("type"), frozenset(_STATUS)) if isinstance(inner, dict) else ""
        except ApiError:
            pass
        return failure(_STATUS.get(kind, status), headers, kind)


class AnthropicStream:
    """Reads one stream of message events."""

    __slots__ = ("_events", "_finish", "_first", "_last", "_spec", "_tools", "_writer")

    def __init__(self, writer: ChunkWriter, spec: ExternalTarget) -> None:
        self._events = EventReader()
        self._writer = writer
        self._spec = spec
        self._first: dict[str, Any] = {}
        self._last: dict[str, Any] = {}
        self._finish = "stop"
        self._tools: set[int] = set()

    def feed(self, piece: bytes) -> bytes:
        """See `StreamReader`."""
        try:
            return b"".join(self._event(event) for event in self._events.feed(piece) if event and not self._writer.done)
        except BadStream:
            return self._writer.fail(unreadable())

    def finish(self) -> bytes:
        """See `StreamReader`."""
        return b"" if self._writer.done else self._writer.fail(cut_short())

    def _event(self, event: dict[str, Any]) -> bytes:
        kind = event.get("type")
        if kind == "message_start":
            return self._start(event.get("message"))
        if kind == "content_block_start":
            return self._block(event)
        if kind == "content_block_delta":
            return self._delta(event)
        if kind == "message_delta":
            usage = event.get("usage")
            self._last = usage if isinstance(usage, dict) else {}
            if self._last.get("inference_geo") is not None:
                check_geo(self._last, self._spec)
            delta = event.get("delta")
            reason = delta.get("stop_reason") if isinstance(delta, dict) else None
            self._finish = _FINISH.get(str(reason), self._finish)
            return b""
        if kind == "message_stop":
            return self._writer.finish(self._finish, _usage(self._first, self._last))
        if kind == "error":
            inner = event.get("error")
            word = known_word(inner.get("type"), frozenset(_STATUS)) if isinstance(inner, dict) else ""
            return self._writer.fail(failure(_STATUS.get(word, 500), {}, word))
        return b""

    def _start(self, message: Any) -> bytes:
        if not isinstance(message, dict):
            raise BadStream
        usage = message.get("usage")
        check_geo(usage, self._spec)
        self._first = usage if isinstance(usage, dict) else {}
        self._writer.id = str(message.get("id") or self._writer.id)
        self._writer.model = str(message.get("model") or self._writer.model)
        return self._writer.start()

    def _block(self, event: dict[str, Any]) -> bytes:
        block = event.get("content_block")
        if not isinstance(block, dict):
            return b""
        if block.get("type") == "tool_use":
            self._tools.add(count(event.get("index")))
            return self._writer.call(str(block.get("id", "")), str(block.get("name", "")))
        return self._writer.text(block["text"]) if block.get("type") == "text" and isinstance(block.get("text"), str) else b""

    def _delta(self, event: dict[str, Any]) -> bytes:
        delta = event.get("delta")
        if not isinstance(delta, dict):
            return b""
        if delta.get("type") == "text_delta" and isinstance(delta.get("text"), str):
            return self._writer.text(delta["text"])
        if delta.get("type") == "input_json_delta" and isinstance(delta.get("partial_json"), str):
            # Tools that run at the provider have blocks of their own: their input is none of a call's.
            return self._writer.arguments(delta["partial_json"]) if count(event.get("index")) in self._tools else b""
        return b""


def check_geo(usage: Any, spec: ExternalTarget) -> None:
    """Compare where the provider says that it worked with where it was asked to.

    Raises:
        EvidenceMismatch: they differ, or it does not say.
    """
    asked = spec.provider.geo
    if not asked:
        return
    said = usage.get("inference_geo") if isinstance(usage, dict) else None
    if said != asked:
        word = (
            said if isinstance(said, str) and len(said) <= 16 and said.replace("_", "").replace("-", "").isalnum() else "nothing"
        )
        raise EvidenceMismatch(f"asked for inference in `{asked}`, the provider says `{word}`")


def _part(part: Part) -> dict[str, Any]:
    if isinstance(part, Text):
        return {"type": "text", "text": part.text}
    if isinstance(part, Media):
        kind = "document" if part.mime == "application/pdf" else "image"
        return {"type": kind, "source": {"type": "base64", "media_type": part.mime, "data": part.data}}
    if isinstance(part, Call):
        return {"type": "tool_use", "id": part.id, "name": part.name, "input": part.arguments}
    assert isinstance(part, Result)
    return {"type": "tool_result", "tool_use_id": part.id, "content": part.text}


def _choice(chat: Chat) -> dict[str, Any]:
    if chat.choice.startswith("="):
        choice: dict[str, Any] = {"type": "tool", "name": chat.choice[1:]}
    else:
        choice = {"type": {"required": "any", "none": "none"}.get(chat.choice, "auto")}
    if not chat.parallel and chat.choice != "none":
        choice["disable_parallel_tool_use"] = True
    return choice


def _usage(first: Any, last: Mapping[str, Any]) -> Usage:
    """Anthropic counts cached and newly cached tokens beside `input_tokens`; OpenAI counts them in."""
    merged = {**(first if isinstance(first, dict) else {}), **{name: value for name, value in last.items() if value is not None}}
    cached = count(merged.get("cache_read_input_tokens"))
    prompt = count(merged.get("input_tokens")) + cached + count(merged.get("cache_creation_input_tokens"))
    return Usage(prompt, count(merged.get("output_tokens")), cached)
