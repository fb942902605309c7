"""Clients that leave a request under way, of every kind: how soon the engine's connection is cut, endpoint by endpoint."""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from _dataplane import disconnects, routers
from _dataplane.engines import EngineProcess, engine_processes

FLOOR = "an engine asked directly"
GOAL_MS = 100.0
QUIET_MS = 50.0
"""A p99 of the floor above this says that the machine, not the router, would be judged."""
_CHAT = {"messages": [{"role": "user", "content": "%"}]}
_GENERATE: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": _CHAT,
    "/v1/completions": {"prompt": "%"},
    "/v1/responses": {"input": "%"},
    "/v1/messages": {**_CHAT, "max_tokens": 9},
}
_OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "/v1/messages/count_tokens": ("m", _CHAT),
    "/tokenize": ("m", {"prompt": "%"}),
    "/detokenize": ("m", {"tokens": [1, 2], "user": "%"}),
    "/v1/embeddings": ("p", {"input": "%"}),
    "/v1/rerank": ("p", {"query": "%", "documents": ["a"]}),
    "/v1/score": ("p", {"text_1": "%", "text_2": "b"}),
}
_FORM = b'--xx\r\ncontent-disposition: form-data; name="%b"\r\n\r\n%b\r\n'


@dataclass
class Result:
    """How long engines worked on for nobody, in seconds and in order, by the kind of request."""

    delays: dict[str, list[float]] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)

    def p50_ms(self, case: str) -> float:
        """The median of one kind."""
        return 1000 * self.delays[case][len(self.delays[case]) // 2]

    def p99_ms(self, case: str) -> float:
        """The 99th percentile of one kind."""
        return 1000 * self.delays[case][int(len(self.delays[case]) * 0.99)]

    @property
    def worst(self) -> str:
        """The kind with the highest p99."""
        return max((case for case in self.delays if case != FLOOR), key=self.p99_ms)

    @property
    def quiet(self) -> bool:
        """Whether this run can tell."""
        return self.p99_ms(FLOOR) <= QUIET_MS

    @property
    def missed(self) -> bool:
        """Whether the goal was missed, as far as this run can tell."""
        return self.quiet and self.p99_ms(self.worst) > GOAL_MS

    @property
    def verdict(self) -> str:
        """What this run says of the goal."""
        missed = self.p99_ms(self.worst) > GOAL_MS
        text = f"{GOAL_MS:.0f} ms {'missed' if missed else 'met'}: p99 {self.p99_ms(self.worst):.1f} ms at worst ({self.worst})"
        return text if self.quiet or not missed else f"{text}; the machine was too busy to judge"


def cases() -> dict[str, tuple[str, bytes, bytes]]:
    """Every kind of request: its path, its content type, its body."""
    found: dict[str, tuple[str, bytes, bytes]] = {}
    for path, body in _GENERATE.items():
        for stream, wish in ((False, "hang"), (True, "sse 5000 10")):
            text = json.dumps({"model": "m", "stream": stream, **body}).replace("%", f"wish<{wish}>")
            found[f"{path}{' streamed' * stream}"] = path, b"application/json", text.encode()
    for path, (model, body) in _OTHERS.items():
        text = json.dumps({"model": model, **body}).replace("%", "wish<hang>")
        found[path] = path, b"application/json", text.encode()
    path = "/v1/audio/transcriptions"
    for wish, more in ((b"hang", b""), (b"sse 5000 10", _FORM % (b"stream", b"true"))):
        form = _FORM % (b"model", b"t") + more + _FORM % (b'file"; filename="a.wav', b"wish<%b>" % wish) + b"--xx--\r\n"
        found[path + " streamed" * bool(more)] = path, b"multipart/form-data; boundary=xx", form
    return found


async def _leave(port: int, request_id: str, case: tuple[str, bytes, bytes], engine: EngineProcess) -> float:
    """Ask, wait until the engine is at work, leave; returns when."""
    path, kind, body = case
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {routers.KEY}\r\nx-request-id: {request_id}\r\n".encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"%bcontent-type: %b\r\ncontent-length: %d\r\n\r\n%b" % (head, kind, len(body), body))
    try:
        async with asyncio.timeout(20):
            while ["start", request_id] not in engine.events():
                if reader.at_eof():
                    break
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(reader.read(65536), 0.01)
        return time.monotonic()
    finally:
        writer.transport.abort()


async def run(each: int) -> Result:
    """Let `each` clients leave each kind of request, one after the other, so that nothing but the cut is timed."""
    result, left = Result(), defaultdict[str, dict[str, float]](dict)
    with tempfile.TemporaryDirectory(prefix="tidegate-prove-") as folder, engine_processes(1, Path(folder)) as engines:
        engine = engines[0]
        config = routers.make_config({model: (engine.port, model) for model in "mpt"})
        for target, task in zip(config["targets"], ("generate", "pooling", "transcription"), strict=True):
            target["task"] = task
        async with routers.outside(config) as router:
            kinds = cases()
            ports = {FLOOR: engine.port, **dict.fromkeys(kinds, router.port)}
            for at, (name, port) in enumerate(ports.items()):
                case = kinds.get(name, kinds["/v1/chat/completions"])
                for number in range(each):
                    request_id = f"leave-{at:02d}-{number:05d}"
                    try:
                        left[name][request_id] = await _leave(port, request_id, case, engine)
                    except TimeoutError:
                        result.violations.append(f"{name}: {request_id} did not reach the engine")
                        break
            if not await router.settles():
                result.violations.append(f"{await router.inflight()} left in the books")
            await disconnects.wait_until_noticed(engines, {name for asked in left.values() for name in asked})
        gone = {words[1]: float(words[2]) for words in engine.events() if words[0] == "gone"}
    for name, asked in left.items():
        if missing := set(asked) - set(gone):
            result.violations.append(f"{name}: the engine never noticed {len(missing)} that left")
        result.delays[name] = sorted(gone[request] - asked[request] for request in asked if request in gone) or [float("inf")]
    return result
