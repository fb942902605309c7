"""Two real vLLM engines: a conversation's next turn goes to the engine that holds it, and elsewhere when that one is overloaded.

The overload comes from others, past the router, so nothing but the engine's own gauges can tell of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.deployments.test_standalone_peers import Process, start, until, write_config
from tests.live.conformance_cases import ENGINE_MODEL
from tests.live.plain_stack import begin_engine
from tests.router.conftest import KEY

pytestmark = [
    pytest.mark.live,
    pytest.mark.timeout(600),
]
SLOTS, OTHERS = 4, 16
ARGS = ("--enforce-eager", "--dtype", "bfloat16", "--max-model-len", "2048", "--max-num-seqs", str(SLOTS), "--block-size", "32")
SUBJECTS = ("tides", "bells", "ropes", "gulls")
HITS = re.compile(r"^vllm:prefix_cache_hits_total\{[^}]*\} (\S+)", re.MULTILINE)


@pytest.fixture(scope="module")
def engines(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    folder = tmp_path_factory.mktemp("placed")
    with contextlib.ExitStack() as stack:
        servers = {name: begin_engine(model_dir, folder / name, ARGS) for name in ("a", "b")}
        for server in servers.values():
            stack.callback(server.kill)
        yield {name: f"http://127.0.0.1:{server.wait()}" for name, server in servers.items()}


class Conversation:
    """What was said on one subject; each has a beginning that no other shares."""

    def __init__(self, subject: str) -> None:
        story = " ".join(f"Shelf {number} has a book of {subject}, volume {number}." for number in range(30))
        self.messages = [{"role": "system", "content": f"On {subject}. {story}"}]

    async def turn(self, client: httpx.AsyncClient, router: Process, question: str) -> str:
        """Ask; the target that answered."""
        self.messages.append({"role": "user", "content": question})
        body = {"model": ENGINE_MODEL, "messages": self.messages, "max_tokens": 8, "temperature": 0}
        url = f"http://127.0.0.1:{router.port}/v1/chat/completions"
        answer = await client.post(url, json=body, headers={"authorization": f"Bearer {KEY}"})
        assert answer.status_code == 200, answer.text
        self.messages.append(answer.json()["choices"][0]["message"])
        return str(answer.headers["x-tidegate-target"])


async def hits(client: httpx.AsyncClient, engine: str) -> float:
    found = HITS.search((await client.get(f"{engine}/metrics")).text)
    assert found is not None
    return float(found[1])


async def targets_of(client: httpx.AsyncClient, router: Process) -> dict[str, dict[str, Any]]:
    with contextlib.suppress(httpx.ConnectError):
        told = (await client.get(f"http://127.0.0.1:{router.admin}/tidegate/v1/cluster")).json()
        return {target["target"]: target for target in told["targets"]}
    return {}


@contextlib.asynccontextmanager
async def routed(engines: dict[str, str], folder: Path) -> AsyncIterator[tuple[httpx.AsyncClient, Process]]:
    server = {"kind": "server", "vouched": True, "zone": "here", "slots": SLOTS, "models": {ENGINE_MODEL: ENGINE_MODEL}}
    targets = [{"id": name, "url": url, **server} for name, url in engines.items()]
    slo = {"ttft_ms": 300_000, "max_wait_ms": 600_000}  # a busy test machine is no saturated cluster
    config = write_config(folder, {}, [], targets=targets, slo=slo)
    (folder / "router").mkdir()
    router = await start(config, folder, "router")

    async def has_gauges() -> bool:
        return {target["trust"] for target in (await targets_of(client, router)).values()} == {"DEGRADED"}

    try:
        async with httpx.AsyncClient(timeout=300, trust_env=False) as client:
            await until(has_gauges)
            yield client, router
    finally:
        router.process.terminate()
        await router.process.wait()


@contextlib.asynccontextmanager
async def overloaded(client: httpx.AsyncClient, engine: str) -> AsyncIterator[None]:
    """An engine with more long answers asked of it than it has slots, by somebody who knows of no router."""

    async def one(number: int) -> None:
        prompt = f"Tell of number {number} for ever:"
        body = {"model": ENGINE_MODEL, "prompt": prompt, "max_tokens": 1500, "ignore_eos": True, "stream": True}
        async with client.stream("POST", f"{engine}/v1/completions", json=body) as answer:
            async for _ in answer.aiter_bytes():
                pass

    asking = [asyncio.create_task(one(number)) for number in range(OTHERS)]
    try:
        yield
    finally:
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)


async def test_the_next_turn_goes_where_the_conversation_is_held_and_away_when_that_is_overloaded(engines, tmp_path):
    async with routed(engines, tmp_path) as (client, router):
        conversations = [Conversation(subject) for subject in SUBJECTS]
        first = await asyncio.gather(*(one.turn(client, router, "Which shelf has volume 7?") for one in conversations))
        assert set(first) == set(engines), "nothing held anything yet, so the load was shared"

        before = {name: await hits(client, url) for name, url in engines.items()}
        second = [await one.turn(client, router, "And volume 9?") for one in conversations]
        assert second == first
        for name, url in engines.items():
            # All but the last block of what was said before, of at least 300 tokens each.
            assert await hits(client, url) - before[name] >= 256 * first.count(name)

        holder, *_ = first
        async with overloaded(client, engines[holder]):

            async def shows() -> bool:
                signals = (await targets_of(client, router))[holder]["signals"]
                return signals["waiting"] >= OTHERS - SLOTS - 2

            await until(shows)
            moved = await conversations[0].turn(client, router, "And volume 11?")
            assert moved in engines and moved != holder
