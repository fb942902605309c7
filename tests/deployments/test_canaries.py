"""Canaries in prompts, keys and headers are in nothing that the router and the egress write, however things fail.

Real processes, with faulthandler on and core dumps allowed by whoever started them. Everything they can write lies under one
directory, which is searched for every canary in several encodings; so are metrics, receipts and the audit log.
"""

from __future__ import annotations

import base64
import json
import secrets
import signal
import socket
import subprocess
import sys
import zlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio.to_thread
import httpx
import pytest

from tests.deployments.fake_provider import FakeProvider
from tests.deployments.outside import Outside, dump_core_if_you_can
from tests.deployments.processes import wait_until
from tests.router.builders import digest
from tests.router.simulated_engine import STREAM_HEAD, SimulatedEngine, answer, chunk

CHAT = "/v1/chat/completions"


class EchoingEngine(SimulatedEngine):
    """Fails in the ways that hurt: what it was sent stands in every error."""

    @staticmethod
    def _wish(body: dict[str, Any]) -> str:
        messages = body.get("messages")
        last = messages[-1] if isinstance(messages, list) and messages else None
        return str(last.get("content")) if isinstance(last, dict) else "hello"

    def _echo(self) -> bytes:
        return bytes(self.requests[-1]["raw"])

    async def _echo_500(self, reader: Any, writer: Any) -> bool:
        writer.write(
            answer(self._echo(), "500 Internal Server Error", b"x-error: " + self._echo()[:200].replace(b"\n", b" ") + b"\r\n")
        )
        return True

    async def _echo_400(self, reader: Any, writer: Any) -> bool:
        writer.write(answer(self._echo(), "400 Bad Request"))
        return True

    async def _echo_404(self, reader: Any, writer: Any) -> bool:
        writer.write(answer(self._echo(), "404 Not Found"))
        return True

    async def _echo_garbage(self, reader: Any, writer: Any) -> bool:
        writer.write(self._echo() + b"\r\n\r\n")
        return False

    async def _echo_head(self, reader: Any, writer: Any) -> bool:
        writer.write(b"HTTP/1.1 2OO " + self._echo() + b"\r\ncontent-length: x\r\n\r\n")
        return False

    async def _echo_events(self, reader: Any, writer: Any) -> bool:
        writer.write(STREAM_HEAD + chunk(b"data: " + self._echo()[:-3] + b"\n\n") + chunk(b"event: \xff\xfe\n\n") + b"0\r\n\r\n")
        return False

    async def _echo_json(self, reader: Any, writer: Any) -> bool:
        writer.write(answer(b'{"usage": ' + self._echo() + b"}}"))
        return True


class Canaries:
    """Words that stand nowhere else, each by where it was put."""

    def __init__(self) -> None:
        self.words: dict[str, str] = {}

    def __call__(self, place: str) -> str:
        return self.words.setdefault(place, f"zqCanary{secrets.token_hex(12)}")

    def in_bytes(self, data: bytes) -> list[str]:
        """The places whose canary stands in `data`, plain or encoded."""
        texts = [data, *_unpacked(data)]
        return [place for place, word in self.words.items() if any(form in text for form in _forms(word) for text in texts)]


def _forms(word: str) -> list[bytes]:
    plain = word.encode()
    shifted = [base64.b64encode(b"x" * shift + plain)[4 if shift else 0 : -4] for shift in range(3)]
    return [plain, plain.hex().encode(), plain.hex().upper().encode(), word.encode("utf-16-le"), *shifted]


def _unpacked(data: bytes) -> Iterator[bytes]:
    for wbits in (zlib.MAX_WBITS, zlib.MAX_WBITS | 32, -zlib.MAX_WBITS):
        try:
            yield zlib.decompressobj(wbits).decompress(data)
        except zlib.error:
            continue


def test_the_search_itself_finds_what_is_hidden():
    canaries = Canaries()
    word = canaries("here").encode()
    wrapped = [
        word,
        word.hex().encode(),
        zlib.compress(b"a" + word),
        base64.b64encode(b"ab" + word + b"c"),
        base64.b64encode(word),
    ]
    assert all(canaries.in_bytes(data) == ["here"] for data in wrapped)
    assert canaries.in_bytes(b"zqCanary") == []


def configuration(engine_port: int, provider: FakeProvider, canaries: Canaries) -> dict[str, Any]:
    server = {"kind": "server", "vouched": True, "models": {"m": "m"}, "zone": "eu", "tier": "small"}
    return {
        "zones": {"eu": {}, "cloud": {"external": True}},
        "residency": {"tags": {"private": {"process": ["eu"], "requires_lineage": True}}},
        "targets": [
            {"id": "a", "url": f"http://127.0.0.1:{engine_port}", "credential": {"env": "ENGINE_KEY"}, **server},
            {"id": "cloud", "kind": "cloud", "url": provider.url, "zone": "cloud", "models": {"big": "b"},
             "credential": {"env": "CLOUD_KEY"}, "dialect": "anthropic", "provider": {"geo": "eu"}},
        ],
        "keys": [
            {"id": "inside", "sha256": digest(canaries("key"))},
            {"id": "outside", "sha256": digest(canaries("spilling key")), "residency": "any", "spill": True,
             "redact": {"then": "any"}},
        ],
        "classify": {"rules": [{"if": ["phi", "secret"], "meet": "private"}]},
        "lineage": {"path": "lineage.sqlite"},
        "timeouts": {"first_byte_s": 1, "idle_s": 1, "connect_s": 1},
        "max_body_bytes": 65536,
    }  # fmt: skip


def body(canaries: Canaries, wish: str, **more: Any) -> dict[str, Any]:
    call = {
        "id": canaries("call id"),
        "type": "function",
        "function": {"name": "f", "arguments": json.dumps([canaries("arguments")])},
    }
    return {
        "model": "m",
        "messages": [
            {"role": "system", "content": canaries("system")},
            {"role": "user", "name": canaries("name"), "content": f"{canaries('user')} password: {canaries('password')}"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": canaries("call id"), "content": canaries("tool result")},
            {"role": "user", "content": wish},
        ],
        "metadata": {"note": canaries("metadata")},
        "user": canaries("user field"),
        "max_tokens": 5,
        **more,
    }


WISHES = [
    "hello",
    "stream",
    "die-before",
    "die-mid",
    "die-in-chunk",
    "hang",
    "stall",
    "garbage",
    "busy",
    "broken",
    "cut-json",
    "split-head",
    "two-answers",
    "no-length",
    "echo-500",
    "echo-400",
    "echo-404",
    "echo-garbage",
    "echo-head",
    "echo-events",
    "echo-json",
]


def provoke_engines(stack: Outside, canaries: Canaries, headers: dict[str, str]) -> set[int]:
    seen = set()
    with httpx.Client(base_url=stack.url, headers=headers, timeout=30) as client:
        for wish in WISHES:
            for stream in (False, True):
                try:
                    seen.add(client.post(CHAT, json=body(canaries, wish, stream=stream)).status_code)
                except httpx.HTTPError:
                    seen.add(0)
    return seen


def provoke_front_door(stack: Outside, canaries: Canaries, headers: dict[str, str]) -> set[int]:
    """Everything a client can do wrong, with a canary in each of its words."""
    word = canaries("bad input")
    whole = json.dumps(body(canaries, "hello")).encode()
    picture = {"type": "image_url", "image_url": {"url": f"https://{word}.example/{word}"}}
    odd: list[dict[str, Any]] = [
        *({field: word} for field in ("messages", "max_tokens", "stream", "model")),
        {"tools": [word]},
        {"messages": [{"role": word, "content": [{"type": word, word: word}]}]},
        {"messages": [{"role": "user", "content": [picture]}]},
    ]
    seen = set()
    with httpx.Client(base_url=stack.url, headers=headers, timeout=30) as client:
        bodies = [
            whole[:-7], b'{"%b": 1, "%b": 2}' % (word.encode(), word.encode()), b"[" * 200 + word.encode(), word.encode(),
            b"\xff" + whole, whole[:-1] + b', "temperature": NaN, "x": "%b"}' % word.encode(), whole + b" " * 70000,
            b"\x1f\x8b" + whole,
            *(json.dumps(body(canaries, "hello", **more)).encode() for more in odd),
        ]  # fmt: skip
        for path in (CHAT, "/v1/completions", "/v1/messages", "/v1/responses", "/v1/embeddings", "/tokenize"):
            seen.update(
                client.post(path, content=content, headers={"content-type": "application/json"}).status_code for content in bodies
            )
        for extra in (
            {"authorization": f"Bearer {canaries('wrong key')}"}, {"x-api-key": canaries("another key")},
            {"authorization": f"Basic {canaries('basic')}"}, {"x-tidegate-residency": canaries("tag")},
            {"x-tidegate-residency": canaries("bad tag") + " !"}, {"x-request-timeout-ms": canaries("timeout")},
            {"content-type": canaries("content type")}, {"content-length": "-" + canaries("length")},
            {"transfer-encoding": canaries("coding")}, {"x-request-id": canaries("bad id") + " !"},
        ):  # fmt: skip
            try:
                seen.add(client.post(CHAT, content=whole, headers={"content-type": "application/json", **extra}).status_code)
            except httpx.HTTPError:
                seen.add(0)
        seen.add(client.get(f"/v1/{canaries('path')}?q={canaries('query')}").status_code)
        seen.add(client.post("/v1/audio/transcriptions", files={"file": (canaries("file name"), whole)}).status_code)
    raw = b"POST %b HTTP/1.1\r\nhost: x\r\nauthorization: Bearer %b\r\nx-a: %b\r\n" % (
        CHAT.encode(), canaries("key").encode(), canaries("raw header").encode()
    )  # fmt: skip
    for rest in (
        b"content-length: 400\r\n\r\n" + whole[:200],
        b"bad header\r\n\r\n",
        b"a" * 40000,
        b"content-length: 5\r\n\r\n" + whole,
    ):
        with socket.create_connection(("127.0.0.1", stack.port), timeout=5) as connection:
            connection.sendall(raw + rest)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                pass
    return seen


def provoke_cloud(stack: Outside, provider: FakeProvider, canaries: Canaries, headers: dict[str, str]) -> set[int]:
    said = json.dumps({"error": {"type": "x", "message": canaries("system")}, "content": canaries("provider")}).encode()
    seen = set()
    with httpx.Client(base_url=stack.url, headers=headers, timeout=30) as client:
        for status, answered, cut in (
            *((status, said, 0) for status in (500, 400, 401, 429, 302, 200)), (200, said[:-4], 0), (200, said, 9),
            (200, b"data: " + said + b"\n\n", 0), (200, b"event: message_start\ndata: " + said[:-2] + b"\n\n", 0),
        ):  # fmt: skip
            provider.status, provider.body, provider.cut = status, answered, cut
            provider.headers = {"location": f"http://x/{canaries('provider')}"} if status == 302 else {}
            for stream in (False, True):
                harmless = [{"role": "user", "content": canaries("for the cloud")}]
                sent = body(canaries, "hello", model="big", stream=stream, messages=harmless)
                seen.add(client.post(CHAT, json=sent).status_code)
    return seen


def can_dump_core(folder: Path) -> bool:
    """Whether this machine leaves a core dump, with its memory, of a process that does not forbid it."""
    folder.mkdir()
    code = "import os, signal; word = 'zqControl' + str(1); os.kill(os.getpid(), signal.SIGABRT)"
    subprocess.run([sys.executable, "-c", code], cwd=folder, preexec_fn=dump_core_if_you_can, check=False)
    return any(b"zqControl1" in file.read_bytes() for file in folder.iterdir())


@pytest.fixture
async def engine() -> AsyncIterator[EchoingEngine]:
    made = EchoingEngine()
    await made.start()
    yield made
    await made.stop()


def search(stack: Outside, canaries: Canaries) -> tuple[dict[str, list[str]], int]:
    """Every file under the home with the canaries in it; and how many bytes were looked at."""
    found, size = {}, 0
    for file in stack.home.rglob("*"):
        if file.is_file():
            data = file.read_bytes()
            size += len(data)
            places = [*canaries.in_bytes(data), *canaries.in_bytes(file.name.encode())]
            if places:
                found[str(file.relative_to(stack.home))] = places
    return found, size


def exercise(home: Path, engine: EchoingEngine, canaries: Canaries) -> None:
    provider = FakeProvider()
    environment = {"ENGINE_KEY": canaries("engine's credential"), "CLOUD_KEY": canaries("cloud's credential")}
    stack = Outside(home, configuration(engine.port, provider, canaries), environment)
    try:
        stack.start()
        shared = {"x-note": canaries("header"), "cookie": f"session={canaries('cookie')}", "traceparent": canaries("trace")}
        inside = {"authorization": f"Bearer {canaries('key')}", **shared}
        outside = {"authorization": f"Bearer {canaries('spilling key')}", **shared}
        assert {200, 502, 503, 400} <= provoke_engines(stack, canaries, inside)
        assert {400, 401, 404, 413} <= provoke_front_door(stack, canaries, inside)
        seen = provoke_cloud(stack, provider, canaries, outside)
        assert len(provider.requests) >= 6 and seen & {502, 503}, seen
        cloud_saw = b"".join(body for _, _, body in provider.requests)
        assert canaries.in_bytes(cloud_saw) == ["for the cloud"], "and nothing of what must stay, nor any header or key"
        told = {path: httpx.get(stack.admin + path).content for path in ("/metrics", "/readyz", "/tidegate/v1/cluster")}
        answered = stack.chat(canaries("key"), "hello")
        receipt = "/tidegate/v1/receipts/" + answered.headers["x-request-id"]
        told[receipt] = httpx.get(stack.admin + receipt).content
        assert answered.status_code == 200 and b'"attempts"' in told[receipt]
        assert {path: canaries.in_bytes(data) for path, data in told.items() if canaries.in_bytes(data)} == {}
        crash(stack, engine, canaries, inside)
        stack.start_router()  # what it left is read by the next one
        assert stack.chat(canaries("key"), "hello").status_code == 200
    finally:
        stack.stop()
        provider.close()
    found, size = search(stack, canaries)
    assert found == {} and size > 20_000
    assert "Fatal Python error: Aborted" in (home / "router.out").read_text(), "the crash was reported, only without the request"


def crash(stack: Outside, engine: EchoingEngine, canaries: Canaries, headers: dict[str, str]) -> None:
    """Both processes die with a request in them."""
    before = len(engine.requests)
    with httpx.Client(base_url=stack.url, headers=headers, timeout=30) as client:
        sent = json.dumps(body(canaries, "hang")).encode()
        with socket.create_connection(("127.0.0.1", stack.port), timeout=5) as connection:
            head = "".join(f"{name}: {value}\r\n" for name, value in client.headers.items())
            connection.sendall(f"POST {CHAT} HTTP/1.1\r\nhost: x\r\n{head}content-length: {len(sent)}\r\n\r\n".encode() + sent)
            assert wait_until(lambda: len(engine.requests) > before, 20)
            stack.end(stack.router, signal.SIGABRT)
            stack.end(stack.egress, signal.SIGSEGV)


async def test_no_canary_is_in_anything_that_is_written_however_things_fail(tmp_path, engine):
    can_dump = can_dump_core(tmp_path / "control")
    home = tmp_path / "home"
    home.mkdir()
    canaries = Canaries()
    await anyio.to_thread.run_sync(exercise, home, engine, canaries)
    cores = [file.name for file in home.rglob("core*")]
    assert cores == [], f"this machine {'dumps' if can_dump else 'does not dump'} core"
