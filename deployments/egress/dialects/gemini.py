"""Google's `generateContent` (Gemini API and Vertex AI), with server-sent events for streams.

A newer model signs its function calls and wants the signature back (`thoughtSignature`). OpenAI's shape has no place for it, so
it travels inside the call's id, which clients send back unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import msgspec

from deployments.egress.dialects.answer import Answer, ChunkWriter, MadeCall, Usage
from deployments.egress.dialects.base import Outgoing, count, cut_short, failure, known_word, no_answer, parse, unreadable
from deployments.egress.dialects.chat import Call, Chat, Media, Part, Result, Text
from deployments.egress.dialects.sse import BadStream, EventReader
from router.config import ExternalTarget
from router.wire.errors import ApiError
from router.wire.json_body import encode_object

_SIGNED = "~sig~"
_FINISH = {
    "STOP": "stop",
    "MAX_TOKENS": "length",
    "SAFETY": "content_filter",
    "RECITATION": "content_filter",
    "LANGUAGE": "content_filter",
    "BLOCKLIST": "content_filter",
    "PROHIBITED_CONTENT": "content_filter",
    "SPII": "content_filter",
    "IMAGE_SAFETY": "content_filter",
}
_BROKEN = frozenset(
    {"MALFORMED_FUNCTION_CALL", "UNEXPECTED_TOOL_CALL", "OTHER", "TOO_MANY_TOOL_CALLS", "MISSING_THOUGHT_SIGNATURE"}
)
_STATUS = {
    "INVALID_ARGUMENT": 400,
    "FAILED_PRECONDITION": 400,
    "OUT_OF_RANGE": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "RESOURCE_EXHAUSTED": 429,
    "INTERNAL": 500,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}


class Gemini:
    """The dialect of the Gemini API, which knows an API key."""

    def request(self, chat: Chat, spec: ExternalTarget) -> Outgoing:
        """See `Dialect`."""
        body: dict[str, Any] = {
            "contents": [
                {"role": "model" if turn.role == "assistant" else "user", "parts": [_part(part) for part in turn.parts]}
                for turn in chat.turns
            ]
        }
        if chat.system:
            body["systemInstruction"] = {"parts": [{"text": chat.system}]}
        settings = _settings(chat)
        if settings:
            body["generationConfig"] = settings
        if chat.tools:
            body["tools"] = [
                {"functionDeclarations": [_declared(tool.name, tool.description, tool.parameters) for tool in chat.tools]}
            ]
            body["toolConfig"] = {"functionCallingConfig": _choice(chat)}
        verb = "streamGenerateContent?alt=sse" if chat.stream else "generateContent"
        return Outgoing(f"{self.models_path(spec)}/{quote(chat.model, safe='')}:{verb}", encode_object(body))

    def models_path(self, spec: ExternalTarget) -> str:
        """Where models stand."""
        return "/v1beta/models"

    def sign(
        self, method: str, url: str, outgoing: Outgoing, credential: str, spec: ExternalTarget, now: float
    ) -> dict[str, str]:
        """See `Dialect`."""
        return {"x-goog-api-key": credential}

    def answer(self, body: bytes, spec: ExternalTarget, created: int) -> bytes:
        """See `Dialect`."""
        value = parse(body)
        texts: list[str] = []
        calls: list[MadeCall] = []
        finish = "stop"
        candidate = _candidate(value)
        if candidate is None:
            if not _is_blocked(value):
                raise no_answer()
            finish = "content_filter"
        else:
            reason = str(candidate.get("finishReason", "STOP"))
            if reason in _BROKEN:
                raise ApiError(502, "upstream_error", f"The provider could not finish the answer ({reason}).")
            for part in _parts(candidate):
                if isinstance(part.get("text"), str):
                    texts.append(part["text"])
                call = _made_call(part, created, len(calls))
                if call is not None:
                    calls.append(call)
            finish = _FINISH.get(reason, "stop")
        finish = "tool_calls" if calls and finish == "stop" else finish
        identity, model = str(value.get("responseId") or f"chatcmpl-{created}"), str(value.get("modelVersion") or "")
        return Answer(identity, model, "".join(texts), tuple(calls), finish, _usage(value.get("usageMetadata"))).to_openai(
            created
        )

    def stream(self, writer: ChunkWriter, spec: ExternalTarget) -> GeminiStream:
        """See `Dialect`."""
        return GeminiStream(writer)

    def error(self, status: int, body: bytes, headers: Mapping[str, str]) -> ApiError:
        """See `Dialect`."""
        return _failure(body, status, headers)


class Vertex(Gemini):
    """The same on Vertex AI: paths with project and region, and an access token."""

    def models_path(self, spec: ExternalTarget) -> str:
        """Where models stand."""
        project, region = quote(spec.provider.project or "", safe=""), quote(spec.provider.region or "", safe="")
        return f"/v1/projects/{project}/locations/{region}/publishers/google/models"

    def sign(
        self, method: str, url: str, outgoing: Outgoing, credential: str, spec: ExternalTarget, now: float
    ) -> dict[str, str]:
        """See `Dialect`."""
        return {"authorization": f"Bearer {credential}"}


class GeminiStream:
    """Reads one stream; each event is a part of an answer in the shape of a whole one."""

    __slots__ = ("_events", "_finish", "_usage", "_writer")

    def __init__(self, writer: ChunkWriter) -> None:
        self._events = EventReader()
        self._writer = writer
        self._finish = ""
        self._usage = Usage()

    def feed(self, piece: bytes) -> bytes:
        """See `StreamReader`."""
        try:
            return self._write(self._events.feed(piece))
        except BadStream:
            return self._writer.fail(unreadable())

    def finish(self) -> bytes:
        """See `StreamReader`: the stream has no end of its own, the last event names the reason."""
        try:
            out = self._write(self._events.finish())
        except BadStream:
            out = self._writer.fail(unreadable())
        if self._writer.done:
            return out
        if not self._finish:
            return out + self._writer.fail(cut_short())
        reason = "tool_calls" if self._writer.calls and self._finish == "stop" else self._finish
        return out + self._writer.finish(reason, self._usage)

    def _write(self, events: list[dict[str, Any] | None]) -> bytes:
        return b"".join(self._event(event) for event in events if event and not self._writer.done)

    def _event(self, value: dict[str, Any]) -> bytes:
        if "error" in value:
            return self._writer.fail(_failure(msgspec.json.encode(value), 500, {}))
        self._writer.id = str(value.get("responseId") or self._writer.id)
        self._writer.model = str(value.get("modelVersion") or self._writer.model)
        if isinstance(value.get("usageMetadata"), dict):
            self._usage = _usage(value["usageMetadata"])
        candidate = _candidate(value)
        if candidate is None:
            if _is_blocked(value):
                self._finish = "content_filter"
            return b""
        out = self._writer.start()
        for part in _parts(candidate):
            if isinstance(part.get("text"), str):
                out += self._writer.text(part["text"])
            call = _made_call(part, 0, self._writer.calls)
            if call is not None:
                out += self._writer.call(call.id, call.name, call.arguments)
        reason = candidate.get("finishReason")
        if isinstance(reason, str):
            if reason in _BROKEN:
                return out + self._writer.fail(ApiError(502, "upstream_error", "The provider could not finish the answer."))
            self._finish = _FINISH.get(reason, "stop")
        return out


def _candidate(value: dict[str, Any]) -> dict[str, Any] | None:
    candidates = value.get("candidates")
    first = candidates[0] if isinstance(candidates, list) and candidates else None
    return first if isinstance(first, dict) else None


def _parts(candidate: dict[str, Any]) -> list[dict[str, Any]]:
    """The parts that are for the reader: thoughts are none."""
    content = candidate.get("content")
    parts = content.get("parts") if isinstance(content, dict) else None
    return [part for part in parts if isinstance(part, dict) and not part.get("thought")] if isinstance(parts, list) else []


def _made_call(part: dict[str, Any], created: int, number: int) -> MadeCall | None:
    made = part.get("functionCall")
    if not isinstance(made, dict):
        return None
    identity = str(made.get("id") or f"call_{created}_{number}")
    if isinstance(part.get("thoughtSignature"), str):
        identity += _SIGNED + part["thoughtSignature"]
    return MadeCall(identity, str(made.get("name", "")), msgspec.json.encode(made.get("args") or {}).decode())


def _is_blocked(value: dict[str, Any]) -> bool:
    feedback = value.get("promptFeedback")
    return isinstance(feedback, dict) and bool(feedback.get("blockReason"))


def _part(part: Part) -> dict[str, Any]:
    if isinstance(part, Text):
        return {"text": part.text}
    if isinstance(part, Media):
        return {"inlineData": {"mimeType": part.mime, "data": part.data}}
    if isinstance(part, Call):
        _, _, signature = part.id.partition(_SIGNED)
        signed = {"thoughtSignature": signature} if signature else {}
        return {"functionCall": {"name": part.name, "args": part.arguments}, **signed}
    assert isinstance(part, Result)
    return {"functionResponse": {"name": part.name, "response": _response(part.text)}}


def _response(text: str) -> dict[str, Any]:
    """What a tool said, as the object that is wanted."""
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        value = None
    return value if isinstance(value, dict) else {"result": text}


def _settings(chat: Chat) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    if chat.max_tokens:
        settings["maxOutputTokens"] = chat.max_tokens
    if chat.temperature is not None:
        settings["temperature"] = chat.temperature
    if chat.top_p is not None:
        settings["topP"] = chat.top_p
    if chat.stop:
        settings["stopSequences"] = list(chat.stop)
    if chat.seed is not None:
        settings["seed"] = chat.seed
    if chat.json_only:
        settings["responseMimeType"] = "application/json"
    if chat.schema is not None:
        settings["responseJsonSchema"] = chat.schema
    return settings


def _declared(name: str, description: str, parameters: dict[str, Any]) -> dict[str, Any]:
    described = {"description": description} if description else {}
    return {"name": name, **described, "parametersJsonSchema": parameters}


def _choice(chat: Chat) -> dict[str, Any]:
    if chat.choice.startswith("="):
        return {"mode": "ANY", "allowedFunctionNames": [chat.choice[1:]]}
    return {"mode": {"required": "ANY", "none": "NONE"}.get(chat.choice, "AUTO")}


def _failure(body: bytes, status: int, headers: Mapping[str, str]) -> ApiError:
    try:
        inner = parse(body.strip().removeprefix(b"[").removesuffix(b"]")).get("error")
    except ApiError:
        inner = None
    word = known_word(inner.get("status"), frozenset(_STATUS)) if isinstance(inner, dict) else ""
    return failure(_STATUS.get(word, status), headers, word)


def _usage(usage: Any) -> Usage:
    if not isinstance(usage, dict):
        return Usage()
    answered = count(usage.get("candidatesTokenCount")) + count(usage.get("thoughtsTokenCount"))
    prompt = count(usage.get("promptTokenCount")) + count(usage.get("toolUsePromptTokenCount"))
    return Usage(prompt, answered, count(usage.get("cachedContentTokenCount")))
