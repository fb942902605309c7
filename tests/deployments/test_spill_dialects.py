"""Every dialect through a real router and a real egress: what may leave leaves in the provider's own shape, and nothing else.

Not while engines die, the router or the egress is killed, the cluster is saturated, or the policy changes.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio.to_thread
import httpx
import openai
import pytest

from tests.deployments import provider_fixtures as shapes
from tests.deployments.fake_provider import FakeProvider
from tests.deployments.outside import Outside
from tests.deployments.processes import wait_until
from tests.deployments.test_dialects import CREDENTIAL, MODEL, PROVIDER, STREAM, TOOL, WHOLE
from tests.router.builders import digest
from tests.router.simulated_engine import SimulatedEngine

DIALECTS = sorted(PROVIDER)
SPILL, KEPT, TAGGED = "tg_may-leave", "tg_stays", "tag: local"
CANARY, FREE = "zqCanary-restricted-7c1f", "zqFree-may-leave-0b52"
AUTH = {
    "openai": ("authorization", "Bearer sk-openai"),
    "azure": ("api-key", "sk-azure"),
    "anthropic": ("x-api-key", "sk-anthropic"),
    "bedrock": ("authorization", "AWS4-HMAC-SHA256 Credential=AKID/"),
    "gemini": ("x-goog-api-key", "sk-gemini"),
    "vertex": ("authorization", "Bearer sk-vertex"),
}


class MortalEngine(SimulatedEngine):
    """One that can be killed, with the connections it has."""

    def __init__(self) -> None:
        super().__init__()
        self._writers: list[asyncio.StreamWriter] = []

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        await super()._serve(reader, writer)

    async def kill(self) -> None:
        await self.stop()
        for writer in self._writers:
            writer.transport.abort()


def answer_in(dialect: str) -> Callable[[str, bytes], tuple[str, bytes]]:
    def made(path: str, body: bytes) -> tuple[str, bytes]:
        if "stream" not in path.lower() and not json.loads(body).get("stream"):
            return "application/json", WHOLE[dialect]()
        return "application/vnd.amazon.eventstream" if dialect == "bedrock" else "text/event-stream", STREAM[dialect]()

    return made


class Zones:
    """One engine inside that serves every model, and one provider per dialect outside."""

    def __init__(self, home: Path, engine_port: int) -> None:
        self.providers = {dialect: FakeProvider() for dialect in DIALECTS}
        for dialect, provider in self.providers.items():
            provider.answer = answer_in(dialect)
        self.keys = [
            {"id": "may-leave", "sha256": digest(SPILL), "residency": "any", "spill": True},
            {"id": "stays", "sha256": digest(KEPT)},
        ]
        inside = {
            "id": "inside",
            "kind": "server",
            "vouched": True,
            "url": f"http://127.0.0.1:{engine_port}",
            "zone": "eu",
            "slots": 1,
        }
        config = {
            "zones": {"eu": {}, "cloud": {"external": True}},
            "targets": [{**inside, "models": {f"m-{d}": "m" for d in DIALECTS}}, *map(self._cloud, DIALECTS)],
            "keys": self.keys,
            "slo": {"ttft_ms": 1, "max_wait_ms": 60000},  # one at a time is saturation
            "timeouts": {"first_byte_s": 1, "idle_s": 1, "connect_s": 1},
        }
        environment = {f"KEY_{d.upper()}": CREDENTIAL.get(d, f"sk-{d}") for d in DIALECTS}
        self.stack = Outside(home, config, environment)

    def _cloud(self, dialect: str) -> dict[str, Any]:
        return {
            "id": dialect,
            "kind": "cloud",
            "url": self.providers[dialect].url,
            "zone": "cloud",
            "models": {name: MODEL.get(dialect, "m-1") for name in (f"m-{dialect}", f"only-{dialect}")},
            "dialect": dialect,
            "provider": PROVIDER[dialect],
            "credential": {"env": f"KEY_{dialect.upper()}"},
        }

    def ask(self, dialect: str, key: str, wish: str = "hello", **more: Any) -> str:
        """The zone that answered, or the code of the refusal."""
        headers = {}
        if key == TAGGED:
            key, headers = SPILL, {"x-tidegate-residency": "local"}
        said = FREE if key == SPILL and not headers else CANARY
        history = [{"role": "system", "content": said}]
        try:
            sent = {"model": f"m-{dialect}", "history": history, "headers": headers, "user": said, **more}
            answer = self.stack.chat(key, wish, **sent)
            if answer.status_code == 200:
                return str(answer.headers["x-tidegate-zone"])
            return str(answer.json()["error"]["code"])
        except httpx.HTTPError:
            return "no answer"

    def left(self) -> dict[str, int]:
        return {dialect: len(provider.requests) for dialect, provider in self.providers.items()}

    def check_nothing_restricted_left(self) -> None:
        for dialect, provider in self.providers.items():
            for path, headers, body in provider.requests:
                sent = " ".join([path, *headers, *headers.values()]).encode() + body
                assert CANARY.encode() not in sent and SPILL.encode() not in sent and KEPT.encode() not in sent, dialect
                assert "x-tidegate-pass" not in headers

    def close(self) -> None:
        self.stack.stop()
        for provider in self.providers.values():
            provider.close()


def check_shapes(zones: Zones) -> None:
    """Whole and streamed answers with a tool call, read by OpenAI's own client; each provider saw its own credential."""
    client = openai.OpenAI(base_url=f"{zones.stack.url}/v1", api_key=SPILL, max_retries=0, _strict_response_validation=True)
    for dialect in DIALECTS:
        ask: Any = {"model": f"only-{dialect}", "messages": [{"role": "user", "content": FREE}], "tools": [TOOL]}
        whole = client.chat.completions.create(**ask)
        assert (whole.choices[0].message.content, whole.choices[0].finish_reason) == (shapes.TEXT, "tool_calls"), dialect
        [call] = whole.choices[0].message.tool_calls or []
        assert (call.function.name, json.loads(call.function.arguments)) == (shapes.NAME, shapes.ARGUMENTS)
        assert whole.usage.prompt_tokens == 17 and whole.usage.completion_tokens == 7, dialect
        parts = list(client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
        deltas = [part.choices[0].delta for part in parts if part.choices]
        assert "".join(delta.content or "" for delta in deltas) == shapes.TEXT, dialect
        called = [piece.function for delta in deltas for piece in delta.tool_calls or []]
        assert json.loads("".join(function.arguments or "" for function in called)) == shapes.ARGUMENTS
        assert parts[-1].usage.total_tokens == 24, dialect
        for path, headers, body in zones.providers[dialect].requests:
            name, value = AUTH[dialect]
            assert headers[name].startswith(value) and FREE.encode() in body, (dialect, path)


def ask_everywhere(zones: Zones, rounds: int, wish: str = "hello") -> Counter[tuple[str, str]]:
    """Requests of all three kinds for every dialect, eight at a time; counts kind and outcome."""
    jobs = [(dialect, key) for _ in range(rounds) for dialect in DIALECTS for key in (SPILL, KEPT, TAGGED)]

    def ask(place: int) -> str:
        streamed = place % 2 == 0
        return zones.ask(
            *jobs[place], ("stream" if streamed else "hello") if wish in ("hello", "stream") else wish, stream=streamed
        )

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(ask, range(len(jobs))))
    zones.check_nothing_restricted_left()
    return Counter((key, outcome) for (_, key), outcome in zip(jobs, outcomes, strict=True))


def exercise(zones: Zones, engine: MortalEngine, loop: asyncio.AbstractEventLoop) -> None:
    stack = zones.stack
    stack.start()
    check_shapes(zones)

    saturated = ask_everywhere(zones, 4, "stream")
    assert saturated[SPILL, "cloud"] > 0 and saturated[SPILL, "cloud"] + saturated[SPILL, "eu"] == 24, saturated
    assert saturated[KEPT, "eu"] == saturated[TAGGED, "eu"] == 24, saturated

    for wish in ("hang", "die-before", "die-mid", "broken"):
        failed = ask_everywhere(zones, 1, wish)
        assert failed[SPILL, "cloud"] > 0 and not failed[KEPT, "cloud"] and not failed[TAGGED, "cloud"], (wish, failed)

    asyncio.run_coroutine_threadsafe(engine.kill(), loop).result(10)
    dead = ask_everywhere(zones, 1)
    assert dead[SPILL, "cloud"] > 0 and not {outcome for _, outcome in dead} & {"eu"}, dead
    assert not dead[KEPT, "cloud"] and not dead[TAGGED, "cloud"], dead
    asyncio.run_coroutine_threadsafe(engine.start(engine.port), loop).result(10)
    assert wait_until(lambda: zones.ask("openai", KEPT) == "eu", 60), "the breaker lets it be tried again"

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        before = len(engine.requests)
        asking = pool.submit(ask_everywhere, zones, 6, "stream")
        assert wait_until(lambda: len(engine.requests) > before, 20)
        stack.end(stack.router, signal.SIGKILL)
        killed = asking.result()
    stack.start_router()
    again = ask_everywhere(zones, 4, "stream")
    assert killed[KEPT, "no answer"] and again[SPILL, "cloud"] and again[KEPT, "eu"], (killed, again)
    assert not (killed + again)[KEPT, "cloud"] and not (killed + again)[TAGGED, "cloud"], (killed, again)

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        asking, epoch = pool.submit(ask_everywhere, zones, 6), stack.epoch()
        stack.set_policy({"keys": [{**zones.keys[0], "residency": "local"}, zones.keys[1]]})
        assert wait_until(lambda: stack.epoch() != epoch, 20)
        asking.result()
    before_tight = zones.left()
    tight = ask_everywhere(zones, 1)
    assert tight[SPILL, "eu"] == 6 and zones.left() == before_tight, tight

    stack.set_policy({})
    assert wait_until(lambda: zones.ask("openai", SPILL, model="only-openai") == "cloud", 20)
    epoch = stack.epoch()
    assert stack.tidegate("spill", "off", "--config", str(stack.config)).strip() == "spill: off"
    assert wait_until(lambda: stack.epoch() != epoch, 20)
    shut = zones.left()
    assert ask_everywhere(zones, 1)[SPILL, "cloud"] == 0
    assert zones.ask("openai", SPILL, model="only-openai") == "residency_denied" and zones.left() == shut
    stack.tidegate("spill", "on", "--config", str(stack.config))
    assert wait_until(lambda: zones.ask("openai", SPILL, model="only-openai") == "cloud", 20)
    for event in ("spill.off", "spill.on"):
        [said] = stack.tidegate("audit", "search", "--event", event).splitlines()
        assert json.loads(said)["event"] == event
    stack.end(stack.egress, signal.SIGKILL)
    gone = ask_everywhere(zones, 1)
    assert gone[SPILL, "cloud"] == 0 and gone[KEPT, "eu"] == gone[TAGGED, "eu"] == 6, gone
    stack.start_egress()
    assert wait_until(lambda: zones.ask("bedrock", SPILL, model="only-bedrock") == "cloud", 60)


async def test_nothing_restricted_reaches_any_provider_whatever_dies_or_changes(tmp_path):
    engine = MortalEngine()
    await engine.start()
    zones = Zones(tmp_path, engine.port)
    try:
        await anyio.to_thread.run_sync(exercise, zones, engine, asyncio.get_running_loop())
    finally:
        await anyio.to_thread.run_sync(zones.close)
        await engine.stop()


@pytest.mark.parametrize("dialect", DIALECTS)
def test_each_fake_answers_a_stream_only_to_who_asks_for_one(dialect):
    kind, body = answer_in(dialect)("/x", b"{}")
    assert kind == "application/json" and json.loads(body)
