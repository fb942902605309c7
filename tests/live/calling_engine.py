"""A simulated engine that does what it is told: it calls the tools it is given, and fills the schemas it is asked to fill.

The small models that run here cannot, so what client libraries make of whole tool calls could not be seen with them.
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
from collections.abc import Iterator
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response, StreamingResponse

from tests.live.conformance_cases import ENGINE_MODEL

_NUMBER, _QUOTED = re.compile(r"-?\d+"), re.compile(r"'([^']+)'")
_USAGE = {"prompt_tokens": 12, "completion_tokens": 5, "total_tokens": 17}
_PIECE = 3
"""Characters of an answer or of a call's arguments in one event: a character is never cut, a JSON value is."""


def fill(schema: dict[str, Any], text: str) -> Any:
    """A value of that schema, with the first number or quoted name of `text` where one fits."""
    if options := schema.get("enum") or schema.get("anyOf"):
        return options[0] if "enum" in schema else fill(options[0], text)
    kind = schema.get("type")
    if kind == "object" or "properties" in schema:
        return {name: fill(part, text) for name, part in schema.get("properties", {}).items()}
    if kind in ("integer", "number"):
        found = _NUMBER.search(text)
        return int(found[0]) if found else 1
    if kind == "array":
        return [fill(schema.get("items", {}), text)]
    quoted = _QUOTED.search(text)
    return {"boolean": True, "null": None}.get(str(kind), quoted[1] if quoted else "words")


def _text_of(message: dict[str, Any]) -> str:
    content = message.get("content") or ""
    return content if isinstance(content, str) else " ".join(part.get("text", "") for part in content)


def answer(body: dict[str, Any]) -> tuple[str, list[tuple[str, str]]]:
    """The text of an answer and its calls, each a name and arguments."""
    messages, tools, choice = body["messages"], body.get("tools") or [], body.get("tool_choice", "auto")
    text = _text_of(next(message for message in reversed(messages) if message["role"] == "user"))
    wanted = choice["function"]["name"] if isinstance(choice, dict) else None
    if tools and choice != "none" and messages[-1]["role"] != "tool":
        tool = next(tool["function"] for tool in tools if wanted in (None, tool["function"]["name"]))
        return "", [(tool["name"], json.dumps(fill(tool.get("parameters", {}), text), ensure_ascii=False))]
    form = body.get("response_format") or {}
    if form.get("type") == "json_schema":
        return json.dumps(fill(form["json_schema"]["schema"], text), ensure_ascii=False), []
    return "It is sunny. Hello 🙂.", []


def _whole(body: dict[str, Any]) -> dict[str, Any]:
    text, calls = answer(body)
    message: dict[str, Any] = {"role": "assistant", "content": text or None}
    if calls:
        message["tool_calls"] = [
            {"id": f"call_{i}", "type": "function", "function": {"name": name, "arguments": arguments}}
            for i, (name, arguments) in enumerate(calls)
        ]
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls" if calls else "stop"}
    frame = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": body["model"]}
    return {**frame, "choices": [choice], "usage": _USAGE}


def _deltas(body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    text, calls = answer(body)
    yield {"role": "assistant", "content": ""}
    for at in range(0, len(text), _PIECE):
        yield {"content": text[at : at + _PIECE]}
    for i, (name, arguments) in enumerate(calls):
        yield {"tool_calls": [{"index": i, "id": f"call_{i}", "type": "function", "function": {"name": name, "arguments": ""}}]}
        for at in range(0, len(arguments), _PIECE):
            yield {"tool_calls": [{"index": i, "function": {"arguments": arguments[at : at + _PIECE]}}]}


def _events(body: dict[str, Any]) -> Iterator[str]:
    frame = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": body["model"]}
    for delta in _deltas(body):
        yield _event({**frame, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
    reason = "tool_calls" if answer(body)[1] else "stop"
    yield _event({**frame, "choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
    if (body.get("stream_options") or {}).get("include_usage"):
        yield _event({**frame, "choices": [], "usage": _USAGE})
    yield "data: [DONE]\n\n"


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"


def application() -> FastAPI:
    """The engine's one endpoint."""
    app = FastAPI()

    @app.post("/v1/chat/completions")
    def chat(body: dict[str, Any]) -> Response:
        if body.get("stream"):
            return StreamingResponse(_events({**body, "model": ENGINE_MODEL}), media_type="text/event-stream")
        return JSONResponse(_whole({**body, "model": ENGINE_MODEL}))

    return app


class CallingEngine:
    """Runs in a thread; `wait` gives its port."""

    def __init__(self) -> None:
        self._server = uvicorn.Server(uvicorn.Config(application(), host="127.0.0.1", port=0, log_level="error"))
        self._thread = threading.Thread(target=self._server.run, daemon=True)

    def wait(self) -> int:
        """The port it listens on, once it does."""
        self._thread.start()
        end = time.monotonic() + 30
        while not self._server.started:
            assert time.monotonic() < end, "it does not come up"
            time.sleep(0.01)
        return int(self._server.servers[0].sockets[0].getsockname()[1])

    def stop(self) -> None:
        """End it."""
        self._server.should_exit = True
        with contextlib.suppress(RuntimeError):
            self._thread.join(30)
