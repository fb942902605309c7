"""A simulated vLLM engine: it answers like one, in bytes that cost next to nothing, and computes nothing.

It stands in for the engines of `scripts/bench/datapath`, so that what is measured is the router in front and not a
model. One process serves any number of ports, each of them one "engine". `/v1/chat/completions` answers with one JSON
body, or, for a body with `"stream": true`, with 64 SSE chunks about a millisecond apart. The other paths are those
that routers ask a worker for before they send it anything.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import signal
from typing import Any

import httptools
import uvloop

CHUNKS = 64
"""`chat.completion.chunk` events of one stream, the usage event and `[DONE]` not counted."""
GAP_S = 0.001
CREATED = 1763771234
WORDS = [" tide", " gate", " water", " lets", " pass", " one", " way", " only"]
TOKENS = [WORDS[i % len(WORDS)] for i in range(CHUNKS - 2)]
CONTENT = "".join(TOKENS)
"""What both forms of the answer say."""

_ID = "chatcmpl-6f0c1e2d3b4a59687786a5b4c3d2e1f0"
_STREAM = re.compile(rb'"stream"\s*:\s*true')
_USAGE = re.compile(rb'"include_usage"\s*:\s*true')
_IDS = re.compile(rb'"return_token_ids"\s*:\s*true')
_PROMPT_IDS = [(i * 7919) % 128_000 for i in range(500)]


def _usage(completion: int = CHUNKS - 2) -> dict[str, Any]:
    return {
        "prompt_tokens": 500,
        "total_tokens": 500 + completion,
        "completion_tokens": completion,
        "prompt_tokens_details": None,
    }


def completion_json(model: str) -> bytes:
    """The body vLLM sends for a chat completion."""
    message = {
        "role": "assistant",
        "content": CONTENT,
        "refusal": None,
        "annotations": None,
        "audio": None,
        "function_call": None,
        "tool_calls": [],
        "reasoning_content": None,
    }
    choice = {
        "index": 0,
        "message": message,
        "logprobs": None,
        "finish_reason": "stop",
        "stop_reason": None,
        "token_ids": None,
    }
    answer = {
        "id": _ID,
        "object": "chat.completion",
        "created": CREATED,
        "model": model,
        "choices": [choice],
        "service_tier": None,
        "system_fingerprint": None,
        "usage": _usage(),
        "prompt_logprobs": None,
        "prompt_token_ids": None,
        "kv_transfer_params": None,
    }
    return json.dumps(answer, separators=(",", ":")).encode()


def stream_events(model: str, ids: bool = False) -> list[bytes]:
    """The events of one stream as vLLM writes them: the role, the tokens, the finish; without usage and `[DONE]`.

    Args:
        model: the name it answers to.
        ids: whether token ids were asked for.
    """

    def event(delta: dict[str, Any], **more: Any) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None, **more}
        head = {"id": _ID, "object": "chat.completion.chunk", "created": CREATED, "model": model, "choices": [choice]}
        return _sse(head | ({"prompt_token_ids": _PROMPT_IDS} if ids and "role" in delta else {}))

    events = [event({"role": "assistant", "content": ""})]
    events += [event({"content": token}, token_ids=[1000 + i] if ids else None) for i, token in enumerate(TOKENS)]
    events.append(event({"content": ""}, finish_reason="stop", stop_reason=None, token_ids=None))
    return events


def _sse(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data, separators=(",", ":")).encode() + b"\n\n"


def _framed(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def _response(body: bytes, content_type: str = "application/json", status: str = "200 OK") -> bytes:
    head = (
        f"HTTP/1.1 {status}\r\ndate: Fri, 21 Nov 2025 00:00:00 GMT\r\nserver: uvicorn\r\n"
        f"content-length: {len(body)}\r\ncontent-type: {content_type}\r\n\r\n"
    )
    return head.encode() + body


class Answers:
    """Every byte the engine can say, made once."""

    def __init__(self, model: str) -> None:
        """Prepare the answers of an engine that serves `model`."""
        self.model = model
        self.chat = _response(completion_json(model))
        self.stream_head = (
            b"HTTP/1.1 200 OK\r\ndate: Fri, 21 Nov 2025 00:00:00 GMT\r\nserver: uvicorn\r\n"
            b"content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        self.events = [_framed(event) for event in stream_events(model)]
        self.events_with_ids = [_framed(event) for event in stream_events(model, ids=True)]
        usage = {"id": _ID, "object": "chat.completion.chunk", "created": CREATED, "model": model, "choices": []}
        self.usage = _framed(_sse({**usage, "usage": _usage()}))
        self.done = _framed(b"data: [DONE]\n\n") + b"0\r\n\r\n"
        self.not_found = _response(b'{"detail":"Not Found"}', status="404 Not Found")
        self.fixed = self._fixed(model)

    @staticmethod
    def _fixed(model: str) -> dict[bytes, bytes]:
        card = {"id": model, "object": "model", "created": CREATED, "owned_by": "vllm", "root": model}
        card |= {"parent": None, "max_model_len": 131072, "permission": []}
        info = {"model_path": model, "tokenizer_path": model, "is_generation": True, "served_model_name": model}
        server = {**info, "dp_size": 1, "max_total_num_tokens": 1 << 20, "internal_states": [{}], "version": "0.32.0"}
        pages: dict[bytes, Any] = {
            b"/v1/models": {"object": "list", "data": [card]},
            b"/get_model_info": info,
            b"/model_info": info,
            b"/get_server_info": server,
            b"/server_info": server,
            b"/load": {"server_load": 0},
            b"/get_load": [{"dp_rank": 0, "num_reqs": 0, "num_waiting_reqs": 0, "num_tokens": 0}],
            b"/version": {"version": "0.32.0"},
        }
        fixed = {path: _response(json.dumps(page).encode()) for path, page in pages.items()}
        for path in (b"/health", b"/health_generate", b"/ping"):
            fixed[path] = _response(b"")
        return fixed

    def metrics(self, running: int) -> bytes:
        """The gauges of vLLM that routers read."""
        label = f'{{engine="0",model_name="{self.model}"}}'
        lines = [
            "# TYPE vllm:num_requests_running gauge",
            f"vllm:num_requests_running{label} {running:.1f}",
            "# TYPE vllm:num_requests_waiting gauge",
            f"vllm:num_requests_waiting{label} 0.0",
            "# TYPE vllm:kv_cache_usage_perc gauge",
            f"vllm:kv_cache_usage_perc{label} 0.0",
            "",
        ]
        return _response("\n".join(lines).encode(), "text/plain; version=0.0.4; charset=utf-8")


class Engine:
    """What the connections of one port share."""

    def __init__(self, answers: Answers) -> None:
        """An idle engine with these answers."""
        self.answers = answers
        self.running = 0
        self.loop = asyncio.get_running_loop()


class Connection(asyncio.Protocol):
    """One client connection: requests come one after the other, as keep-alive clients send them."""

    def __init__(self, engine: Engine) -> None:
        """A connection to `engine`."""
        self.engine = engine
        self.answers = engine.answers
        self.parser = httptools.HttpRequestParser(self)
        self.url = b""
        self.body: list[bytes] = []
        self.timer: asyncio.TimerHandle | None = None
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = transport  # type: ignore[assignment]

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop a stream whose reader has gone."""
        if self.timer is not None:
            self.timer.cancel()
            self._ended()

    def data_received(self, data: bytes) -> None:
        """Feed the parser; a client that does not speak HTTP is hung up on."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.close()

    def on_url(self, url: bytes) -> None:
        """Parser: a part of the request target."""
        self.url += url

    def on_body(self, body: bytes) -> None:
        """Parser: a part of the body."""
        self.body.append(body)

    def on_message_complete(self) -> None:
        """Parser: the request is whole; answer it."""
        url, body = self.url, b"".join(self.body)
        self.url = b""
        self.body.clear()
        if url != b"/v1/chat/completions":
            path = url.partition(b"?")[0]
            page = self.answers.metrics(self.engine.running) if path == b"/metrics" else self.answers.fixed.get(path)
            self.transport.write(page or self.answers.not_found)
        elif b'"stream"' in body and _STREAM.search(body):  # the plain search first: it is much the faster one
            answers = self.answers
            events = answers.events_with_ids if b"return_token_ids" in body and _IDS.search(body) else answers.events
            self._begin_stream(events, _USAGE.search(body) is not None)
        else:
            self.transport.write(self.answers.chat)

    def _begin_stream(self, events: list[bytes], usage: bool) -> None:
        self.engine.running += 1
        self.transport.write(self.answers.stream_head)
        self._send(events, 0, self.engine.loop.time(), usage)

    def _send(self, events: list[bytes], index: int, due: float, usage: bool) -> None:
        answers = self.answers
        self.transport.write(events[index])
        if index + 1 < CHUNKS:
            due += GAP_S
            self.timer = self.engine.loop.call_at(due, self._send, events, index + 1, due, usage)
            return
        if usage:
            self.transport.write(answers.usage)
        self.transport.write(answers.done)
        self._ended()

    def _ended(self) -> None:
        self.timer = None
        self.engine.running -= 1


async def serve(ports: list[int], model: str, host: str = "127.0.0.1") -> list[asyncio.Server]:
    """Open one engine per port on the running loop."""
    loop, answers = asyncio.get_running_loop(), Answers(model)
    servers = []
    for port in ports:
        engine = Engine(answers)
        servers.append(await loop.create_server(lambda engine=engine: Connection(engine), host, port, backlog=1024))
    return servers


async def _main(ports: list[int], model: str) -> None:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await serve(ports, model)
    print("ready", flush=True)
    await stop.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--first-port", type=int, required=True)
    parser.add_argument("--count", type=int, default=1, help="engines, on consecutive ports")
    parser.add_argument("--model", default="mock")
    options = parser.parse_args()
    uvloop.run(_main(list(range(options.first_port, options.first_port + options.count)), options.model))
