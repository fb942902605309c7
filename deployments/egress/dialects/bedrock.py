"""Amazon Bedrock's Converse and ConverseStream (Bedrock runtime API), signed with SigV4 or sent with a Bedrock API key."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import msgspec

from deployments.egress.dialects.answer import Answer, ChunkWriter, MadeCall, Usage
from deployments.egress.dialects.aws import BadFrame, Frame, FrameReader, read_key, sign
from deployments.egress.dialects.base import (
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
from router.config import ExternalTarget
from router.wire.errors import ApiError, invalid_request
from router.wire.json_body import encode_object

_FINISH = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "guardrail_intervened": "content_filter",
    "content_filtered": "content_filter",
}
_STATUS = {
    "ValidationException": 400,
    "AccessDeniedException": 403,
    "UnrecognizedClientException": 401,
    "ExpiredTokenException": 401,
    "InvalidSignatureException": 401,
    "ResourceNotFoundException": 404,
    "ThrottlingException": 429,
    "ServiceQuotaExceededException": 429,
    "ModelTimeoutException": 408,
    "ModelErrorException": 424,
    "ModelStreamErrorException": 424,
    "ModelNotReadyException": 503,
    "InternalServerException": 500,
    "ServiceUnavailableException": 503,
}
_BY_LOWER = {name.lower(): name for name in _STATUS}
_IMAGES = {"image/png": "png", "image/jpeg": "jpeg", "image/gif": "gif", "image/webp": "webp"}


class Bedrock:
    """The dialect."""

    def request(self, chat: Chat, spec: ExternalTarget) -> Outgoing:
        """See `Dialect`."""
        if chat.json_only:
            raise invalid_request("This target does not offer `response_format`.", param="response_format")
        body: dict[str, Any] = {"messages": [{"role": t.role, "content": [_part(p) for p in t.parts]} for t in chat.turns]}
        if chat.system:
            body["system"] = [{"text": chat.system}]
        limits: dict[str, Any] = {}
        if chat.max_tokens:
            limits["maxTokens"] = chat.max_tokens
        if chat.temperature is not None:
            limits["temperature"] = min(chat.temperature, 1.0)
        if chat.top_p is not None:
            limits["topP"] = chat.top_p
        if chat.stop:
            limits["stopSequences"] = list(chat.stop)
        if limits:
            body["inferenceConfig"] = limits
        # There is no "none" here; and a conversation in which tools were used must name them.
        used = any(isinstance(part, Call | Result) for turn in chat.turns for part in turn.parts)
        if chat.tools and (chat.choice != "none" or used):
            body["toolConfig"] = _tools(chat)
        path = f"/model/{quote(chat.model, safe='')}/converse{'-stream' if chat.stream else ''}"
        return Outgoing(path, encode_object(body))

    def sign(
        self, method: str, url: str, outgoing: Outgoing, credential: str, spec: ExternalTarget, now: float
    ) -> dict[str, str]:
        """See `Dialect`."""
        key = read_key(credential)
        if key is None:
            return {"authorization": f"Bearer {credential}"}
        headers = {"content-type": "application/json"}
        return sign(key, method, url, headers, outgoing.body, spec.provider.region or "", "bedrock", now)

    def answer(self, body: bytes, spec: ExternalTarget, created: int) -> bytes:
        """See `Dialect`."""
        value = parse(body)
        output = value.get("output")
        message = output.get("message") if isinstance(output, dict) else None
        content = message.get("content") if isinstance(message, dict) else None
        if not isinstance(content, list):
            raise no_answer()
        blocks = objects(content)
        calls = tuple(
            MadeCall(
                str(use.get("toolUseId", "")), str(use.get("name", "")), msgspec.json.encode(use.get("input") or {}).decode()
            )
            for use in (block.get("toolUse") for block in blocks)
            if isinstance(use, dict)
        )
        text = "".join(block["text"] for block in blocks if isinstance(block.get("text"), str))
        finish = _FINISH.get(str(value.get("stopReason")), "stop")
        return Answer(f"chatcmpl-{created}", "", text, calls, finish, _usage(value.get("usage"))).to_openai(created)

    def stream(self, writer: ChunkWriter, spec: ExternalTarget) -> BedrockStream:
        """See `Dialect`."""
        return BedrockStream(writer)

    def error(self, status: int, body: bytes, headers: Mapping[str, str]) -> ApiError:
        """See `Dialect`."""
        word = known_word(headers.get("x-amzn-errortype", "").partition(":")[0], frozenset(_STATUS))
        return failure(_STATUS.get(word, status), headers, word)


class BedrockStream:
    """Reads one binary event stream."""

    __slots__ = ("_finish", "_frames", "_stopped", "_usage", "_writer")

    def __init__(self, writer: ChunkWriter) -> None:
        self._frames = FrameReader()
        self._writer = writer
        self._finish = "stop"
        self._stopped = False
        self._usage = Usage()

    def feed(self, piece: bytes) -> bytes:
        """See `StreamReader`."""
        try:
            return b"".join(self._frame(frame) for frame in self._frames.feed(piece) if not self._writer.done)
        except (BadFrame, ApiError):
            return self._writer.fail(unreadable())

    def finish(self) -> bytes:
        """See `StreamReader`: the usage comes after the stop, so the answer ends with the stream."""
        if self._writer.done:
            return b""
        if self._stopped and not self._frames.pending:
            return self._writer.finish(self._finish, self._usage)
        return self._writer.fail(cut_short())

    def _frame(self, frame: Frame) -> bytes:
        if frame.headers.get(":message-type") != "event":
            word = frame.headers.get(":exception-type") or frame.headers.get(":error-code") or ""
            name = _BY_LOWER.get(word.lower(), "")
            return self._writer.fail(failure(_STATUS.get(name, 500), {}, name))
        kind = frame.headers.get(":event-type")
        value = parse(frame.payload)
        if kind == "messageStart":
            return self._writer.start()
        if kind == "contentBlockStart":
            start = value.get("start")
            use = start.get("toolUse") if isinstance(start, dict) else None
            return self._writer.call(str(use.get("toolUseId", "")), str(use.get("name", ""))) if isinstance(use, dict) else b""
        if kind == "contentBlockDelta":
            return self._delta(value.get("delta"))
        if kind == "messageStop":
            self._stopped = True
            self._finish = _FINISH.get(str(value.get("stopReason")), "stop")
        if kind == "metadata":
            self._usage = _usage(value.get("usage"))
            if self._stopped:
                return self._writer.finish(self._finish, self._usage)
        return b""

    def _delta(self, delta: Any) -> bytes:
        if not isinstance(delta, dict):
            return b""
        if isinstance(delta.get("text"), str):
            return self._writer.text(delta["text"])
        use = delta.get("toolUse")
        if isinstance(use, dict) and isinstance(use.get("input"), str):
            return self._writer.arguments(use["input"])
        return b""


def _part(part: Part) -> dict[str, Any]:
    if isinstance(part, Text):
        return {"text": part.text}
    if isinstance(part, Media):
        return _media(part)
    if isinstance(part, Call):
        return {"toolUse": {"toolUseId": part.id, "name": part.name, "input": part.arguments}}
    assert isinstance(part, Result)
    return {"toolResult": {"toolUseId": part.id, "content": [{"text": part.text}]}}


def _media(part: Media) -> dict[str, Any]:
    # Their JSON has bytes as standard base64 with padding.
    data = base64.b64encode(base64.b64decode(part.data)).decode()
    if part.mime in _IMAGES:
        return {"image": {"format": _IMAGES[part.mime], "source": {"bytes": data}}}
    if part.mime == "application/pdf":
        return {"document": {"format": "pdf", "name": "document", "source": {"bytes": data}}}
    raise invalid_request("This target does not take files of this type.", param="messages")


def _tools(chat: Chat) -> dict[str, Any]:
    specs = []
    for tool in chat.tools:
        described = {"description": tool.description} if tool.description else {}
        specs.append({"toolSpec": {"name": tool.name, **described, "inputSchema": {"json": tool.parameters}}})
    config: dict[str, Any] = {"tools": specs}
    if chat.choice.startswith("="):
        config["toolChoice"] = {"tool": {"name": chat.choice[1:]}}
    elif chat.choice == "required":
        config["toolChoice"] = {"any": {}}
    return config


def _usage(usage: Any) -> Usage:
    if not isinstance(usage, dict):
        return Usage()
    cached = count(usage.get("cacheReadInputTokens"))
    prompt = count(usage.get("inputTokens")) + cached + count(usage.get("cacheWriteInputTokens"))
    return Usage(prompt, count(usage.get("outputTokens")), cached)
