"""A router on a real port in front of simulated engines."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import deque
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from router.compiled import compile_policy
from router.config import parse_config
from router.fixed_targets import fixed_targets
from router.identity.stored import open_shared
from router.placement.targets import Report
from router.process import RouterProcess
from tests.router.builders import digest
from tests.router.simulated_engine import SimulatedEngine

KEY, OTHER_KEY = "tg_front-door", "tg_other"


_held: deque[socket.socket] = deque(maxlen=64)


def free_port() -> int:
    """A port for a router. Routers share theirs with whoever asks for the same, so of two tests that were given one port each
    would get half of the other's requests: this process stays bound to its latest ones, and nobody else is given them."""
    held = socket.socket()
    held.bind(("127.0.0.1", 0))
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # from now on a router may listen there
    if len(_held) == _held.maxlen:
        _held[0].close()
    _held.append(held)
    return int(held.getsockname()[1])


class FrontDoor:
    """A running router, its engines, and a client that holds a key."""

    def __init__(self, router: RouterProcess, engines: dict[str, SimulatedEngine], client: httpx.AsyncClient, port: int) -> None:
        self.router = router
        self.engines = engines
        self.client = client
        self.port = port
        self.state = router.state

    async def chat(self, wish: str, **more: Any) -> httpx.Response:
        headers = more.pop("headers", {})
        body = {"model": "m", "messages": [{"role": "user", "content": wish}], **more}
        return await self.client.post("/v1/chat/completions", json=body, headers=headers)

    def receipt(self, response: httpx.Response) -> dict[str, Any]:
        found = self.state.receipts.find(response.headers["x-request-id"])
        assert found is not None
        return found


def half_at(engine: SimulatedEngine, tokens: int) -> dict[str, Any]:
    return {"url": f"http://127.0.0.1:{engine.port}", "min_tokens": tokens}


@contextlib.asynccontextmanager
async def open_front_door(zones: dict[str, str], /, **changes: Any) -> AsyncIterator[FrontDoor]:
    """A router over one simulated engine per entry of `zones` (engine name -> zone).

    Among `changes`: `engines` instead of plain ones, `tiers` by engine (each then serves a model `m-NAME` of its own), `prices`,
    `slots`: how many sequences each engine has, `halves`: engines that compute the prompts of others, by the name of those, with
    `half_tokens`: from how many tokens on, and `store`: a directory with a store that other routers may share.
    """
    engines: dict[str, Any] = changes.pop("engines", None) or {name: SimulatedEngine() for name in zones}
    tiers, prices, slots = changes.pop("tiers", {}), changes.pop("prices", {}), changes.pop("slots", 0)
    store: Path | None = changes.pop("store", None)
    halves: dict[str, SimulatedEngine] = changes.pop("halves", {})
    half_tokens = changes.pop("half_tokens", 1)
    for engine in [*engines.values(), *halves.values()]:
        await engine.start()
    port, admin = free_port(), free_port()
    listen = {"host": "127.0.0.1", "port": port, **changes.pop("listen", {})}
    data = {
        "listen": listen,
        "admin": {"port": admin},
        "zones": {zone: {} for zone in {*zones.values(), "elsewhere"}},
        "targets": [
            {
                "id": name,
                "kind": "server",
                "vouched": True,
                "url": f"http://127.0.0.1:{engine.port}",
                "zone": zones[name],
                "tier": tiers.get(name, "small"),
                "models": {f"m-{name}": name} if name in tiers else {"m": "m"},
                "price": prices.get(name, {}),
                "slots": slots,
                "prefill": {"url": f"http://127.0.0.1:{halves[name].port}", "min_tokens": half_tokens}
                if name in halves
                else None,
            }
            for name, engine in engines.items()
        ],
        "keys": [{"id": "front", "sha256": digest(KEY)}, {"id": "other", "sha256": digest(OTHER_KEY)}],
        **changes,
    }
    config = parse_config(data)
    policy = compile_policy(config, Path())
    shared = None if store is None else open_shared(config, policy, store, f"r-{port}")
    router = RouterProcess(config, policy, b"s" * 32, {}, "router-test", grace_s=2, shared=shared)
    router.state.fleet.update([Report(target) for target in fixed_targets(config, None, "")])
    router.start()
    headers = {"authorization": f"Bearer {KEY}"}
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=20) as client:
            await _answers(client)
            yield FrontDoor(router, engines, client, port)
    finally:
        await router.drain()
        for engine in [*engines.values(), *halves.values()]:
            await engine.stop()


async def _answers(client: httpx.AsyncClient) -> None:
    async with asyncio.timeout(30):
        while True:
            with contextlib.suppress(httpx.ConnectError):
                await client.get("/healthz")
                return
            await asyncio.sleep(0.01)


@pytest.fixture
async def door() -> AsyncIterator[FrontDoor]:
    async with open_front_door({"a": "eu"}) as opened:
        yield opened


@pytest.fixture
async def pair() -> AsyncIterator[FrontDoor]:
    async with open_front_door({"a": "eu", "b": "us"}) as opened:
        yield opened
