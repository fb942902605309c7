"""Answers of providers in the shapes of their public API references: text and a tool call, as a whole and as a stream."""

from __future__ import annotations

import json
from typing import Any

from deployments.egress.dialects.aws import write_frame

TEXT, NAME, ARGUMENTS = "It rains in Köln ☔.", "get_weather", {"city": "Köln", "days": 2}


def events(*values: Any, named: bool = False, ending: bytes = b"\n\n") -> bytes:
    out = b""
    for value in values:
        name = f"event: {value['type']}\n".encode() if named else b""
        out += name + b"data: " + json.dumps(value, ensure_ascii=False).encode() + ending
    return out


def pieces(text: str, count: int = 3) -> list[str]:
    size = -(-len(text) // count)
    return [text[i : i + size] for i in range(0, len(text), size)]


# ---- Anthropic

ANTHROPIC_USAGE = {"input_tokens": 10, "cache_read_input_tokens": 5, "cache_creation_input_tokens": 2, "inference_geo": "eu"}


def anthropic(geo: str | None = "eu") -> bytes:
    return json.dumps(
        {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": "claude-x",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "s"},
                {"type": "text", "text": TEXT},
                {"type": "tool_use", "id": "toolu_1", "name": NAME, "input": ARGUMENTS},
            ],
            "stop_reason": "tool_use",
            "stop_sequence": None,
            "usage": {**ANTHROPIC_USAGE, "inference_geo": geo, "output_tokens": 7},
        }
    ).encode()


def anthropic_stream(geo: str | None = "eu", error: str = "") -> bytes:
    start = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-x", "content": []}
    head: list[Any] = [
        {"type": "message_start", "message": {**start, "usage": {**ANTHROPIC_USAGE, "inference_geo": geo, "output_tokens": 1}}},
        {"type": "ping"},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        *({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": p}} for p in pieces(TEXT)),
        {"type": "content_block_stop", "index": 0},
    ]
    if error:
        return events(*head, {"type": "error", "error": {"type": error, "message": "SECRET PROMPT"}}, named=True)
    tail = [
        {
            "type": "content_block_start",
            "index": 1,
            "content_block": {"type": "tool_use", "id": "toolu_1", "name": NAME, "input": {}},
        },
        *(
            {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": p}}
            for p in pieces(json.dumps(ARGUMENTS))
        ),
        {"type": "content_block_stop", "index": 1},
        {"type": "message_delta", "delta": {"stop_reason": "tool_use", "stop_sequence": None}, "usage": {"output_tokens": 7}},
        {"type": "message_stop"},
    ]
    return events(*head, *tail, named=True)


# ---- Bedrock

BEDROCK_USAGE = {"inputTokens": 12, "outputTokens": 7, "totalTokens": 24, "cacheReadInputTokens": 5}


def bedrock() -> bytes:
    use = {"toolUse": {"toolUseId": "tooluse_1", "name": NAME, "input": ARGUMENTS}}
    message = {"role": "assistant", "content": [{"text": TEXT}, use]}
    return json.dumps({"output": {"message": message}, "stopReason": "tool_use", "usage": BEDROCK_USAGE}).encode()


def bedrock_stream(error: str = "") -> bytes:
    def frame(kind: str, value: Any) -> bytes:
        headers = {":event-type": kind, ":content-type": "application/json", ":message-type": "event"}
        return write_frame(headers, json.dumps(value).encode())

    out = frame("messageStart", {"role": "assistant"})
    for piece in pieces(TEXT):
        out += frame("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": piece}})
    out += frame("contentBlockStop", {"contentBlockIndex": 0})
    if error:
        return out + write_frame({":message-type": "exception", ":exception-type": error}, b'{"message":"SECRET PROMPT"}')
    use = {"toolUse": {"toolUseId": "tooluse_1", "name": NAME}}
    out += frame("contentBlockStart", {"contentBlockIndex": 1, "start": use})
    for piece in pieces(json.dumps(ARGUMENTS)):
        out += frame("contentBlockDelta", {"contentBlockIndex": 1, "delta": {"toolUse": {"input": piece}}})
    out += frame("contentBlockStop", {"contentBlockIndex": 1})
    return out + frame("messageStop", {"stopReason": "tool_use"}) + frame("metadata", {"usage": BEDROCK_USAGE, "metrics": {}})


# ---- Gemini and Vertex

GEMINI_USAGE = {"promptTokenCount": 17, "candidatesTokenCount": 4, "thoughtsTokenCount": 3, "cachedContentTokenCount": 5}


def gemini() -> bytes:
    parts = [
        {"text": "thinking aloud", "thought": True},
        {"text": TEXT},
        {"functionCall": {"name": NAME, "args": ARGUMENTS}, "thoughtSignature": "c2ln"},
    ]
    candidate = {"content": {"role": "model", "parts": parts}, "finishReason": "STOP", "index": 0}
    return json.dumps(
        {"candidates": [candidate], "usageMetadata": GEMINI_USAGE, "modelVersion": "gemini-x", "responseId": "r1"}
    ).encode()


def gemini_stream(error: str = "") -> bytes:
    def event(parts: list[Any], **more: Any) -> dict[str, Any]:
        candidate = {"content": {"role": "model", "parts": parts}, "index": 0, **more}
        return {
            "candidates": [candidate],
            "modelVersion": "gemini-x",
            "responseId": "r1",
            "usageMetadata": {"promptTokenCount": 17},
        }

    head = [event([{"text": piece}]) for piece in pieces(TEXT)]
    if error:
        return events(*head, {"error": {"code": 500, "status": error, "message": "SECRET PROMPT"}}, ending=b"\r\n\r\n")
    call = event([{"functionCall": {"name": NAME, "args": ARGUMENTS}, "thoughtSignature": "c2ln"}], finishReason="STOP")
    return events(*head, {**call, "usageMetadata": GEMINI_USAGE}, ending=b"\r\n\r\n")


# ---- OpenAI

OPENAI_USAGE = {"prompt_tokens": 17, "completion_tokens": 7, "total_tokens": 24, "prompt_tokens_details": {"cached_tokens": 5}}


def openai() -> bytes:
    call = {"id": "call_1", "type": "function", "function": {"name": NAME, "arguments": json.dumps(ARGUMENTS)}}
    message = {"role": "assistant", "content": TEXT, "tool_calls": [call], "refusal": None}
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls", "logprobs": None}
    head = {"id": "c1", "object": "chat.completion", "created": 1, "model": "gpt-x"}
    return json.dumps({**head, "choices": [choice], "usage": OPENAI_USAGE}).encode()


def openai_stream(error: str = "") -> bytes:
    def chunk(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
        return {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "gpt-x", "choices": [choice]}

    values = [chunk({"role": "assistant", "content": ""}), *(chunk({"content": piece}) for piece in pieces(TEXT))]
    function = {"name": NAME, "arguments": json.dumps(ARGUMENTS)}
    values.append(chunk({"tool_calls": [{"index": 0, "id": "call_1", "type": "function", "function": function}]}))
    values += [chunk({}, "tool_calls"), {**chunk({}), "choices": [], "usage": OPENAI_USAGE}]
    return events(*values) + b"data: [DONE]\n\n"
