"""Simulated engines that keep their own counters, and a router before them, over sockets in this process."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import random
import re
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from router.fixed_targets import fixed_targets
from router.identity.books import OwnBooks
from router.ledger.checkpoint import Signer
from router.ledger.log import AuditLog
from router.ledger.policies import policy_text
from router.ledger.store import LogStore
from router.ledger.writer import LogWriter
from router.placement.targets import Address, Report
from router.policy_source import PolicySource
from router.process import RouterProcess

_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_GAP_S = 0.001


def free_port() -> int:
    """A port nobody uses just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def chat_request(key: str, request_id: str, body: dict[str, Any], *headers: str) -> bytes:
    """A whole chat request as bytes."""
    data = json.dumps(body).encode()
    lines = [f"host: x\r\nauthorization: Bearer {key}\r\nx-request-id: {request_id}\r\ncontent-length: {len(data)}", *headers]
    return b"POST /v1/chat/completions HTTP/1.1\r\n" + "\r\n".join(lines).encode() + b"\r\n\r\n" + data


class SimulatedEngine:
    """Computes nothing, but counts as vLLM does: prompt tokens when it begins, answer tokens as it makes them.

    The prompt has a token for every word, the answer `max_tokens` or fewer. When the router goes, it stops.

    Args:
        seed: of its random choices.
        fails: the share of requests that it answers with an error, or with nothing.
    """

    def __init__(self, seed: int, fails: float = 0.0) -> None:
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.requests = 0
        self.aborted = 0
        self.port = 0
        self._random = random.Random(seed)
        self._fails = fails
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    def stop(self) -> None:
        """Listen no more."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                found = _LENGTH.search(head)
                body = json.loads(await reader.readexactly(int(found[1]) if found else 0) or b"{}")
                self.requests += 1
                if self._random.random() < self._fails:
                    if self._random.random() < 0.5:
                        break
                    error = b'{"error":{"message":"simulated failure"}}'
                    writer.write(b"HTTP/1.1 500 Oops\r\ncontent-length: %d\r\n\r\n%b" % (len(error), error))
                    continue
                await self._answer(body, reader, writer)
        writer.close()

    async def _answer(self, body: dict[str, Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        prompt = sum(len(str(message["content"]).split()) for message in body["messages"])
        tokens = self._random.randrange(1, int(body.get("max_tokens", 8)) + 1)
        self.prompt_tokens += prompt
        usage = {"prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": prompt + tokens}
        if body.get("stream"):
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(tokens):
            await asyncio.sleep(_GAP_S)
            if writer.is_closing() or reader.at_eof():
                self.aborted += 1
                raise ConnectionResetError
            self.completion_tokens += 1
            if body.get("stream"):
                writer.write(_event({"choices": [{"index": 0, "delta": {"content": " word"}, "finish_reason": None}]}))
        if not body.get("stream"):
            message = {"role": "assistant", "content": " word" * tokens}
            data = json.dumps({"id": "c", "object": "chat.completion", "created": 1, "model": body["model"], "usage": usage,
                               "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}).encode()  # fmt: skip
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(data), data))
            return
        writer.write(_event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}))
        if (body.get("stream_options") or {}).get("include_usage"):
            writer.write(_event({"choices": [], "usage": usage}))
        writer.write(_chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")


def _event(data: dict[str, Any]) -> bytes:
    head = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return _chunk(b"data: " + json.dumps({**head, **data}).encode() + b"\n\n")


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class LoggedRouter:
    """A running router with an audit log; `source` takes other policies."""

    def __init__(self, process: RouterProcess, source: PolicySource, port: int) -> None:
        self.process = process
        self.source = source
        self.port = port


@contextlib.asynccontextmanager
async def logged_router(root: Path, signer: Signer, data: dict[str, Any], egress: int = 0) -> AsyncIterator[LoggedRouter]:
    """A router of this configuration, its log in `root`; `egress` is the port that stands for everything outside."""
    port = free_port()
    ports = {"listen": {"host": "127.0.0.1", "port": port}, "admin": {"host": "127.0.0.1", "port": free_port()}}
    source = PolicySource({**data, **ports}, root.parent)
    config, _, policy = source.load()
    log = AuditLog(LogWriter(LogStore(root, signer), window_s=0.1), policy.label_text)
    log.policy(policy.epoch, policy_text(config), policy.label_text)
    process = RouterProcess(config, policy, b"s" * 32, {}, "router-prove", grace_s=5, audit=log)
    process.state.fleet.spending.source = OwnBooks()  # there is no store here, and without one no budget would be spent
    process.take_reports([Report(t) for t in fixed_targets(config, Address("127.0.0.1", egress) if egress else None, "egress")])
    process.start()
    try:
        yield LoggedRouter(process, source, port)
    finally:
        await process.drain()


def key(name: str, **scopes: Any) -> dict[str, Any]:
    """The configuration of a key whose credential is `tg_` and its name."""
    return {"id": name, "sha256": hashlib.sha256(f"tg_{name}".encode()).hexdigest(), **scopes}
