"""Two guarded vLLM engines and a router in this process, whose `complexity:` section can be changed while they run."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import msgspec

from deployments.vllm_process import EnginePlan, VllmProcess
from router.compiled import compile_policy
from router.config import Config, Model, parse_config
from router.placement.targets import Address, Kind, Report, Target
from router.policy import Policy
from router.process import RouterProcess
from router.residency.guard import Place, derive_target_key
from router.residency.guard_copy import copy_for_guards
from router.residency.label import Evidence

SECRET, KEY = b"cascade-" * 4, "tg_cascade"
PRICES = {"small": {"prompt": 0.1, "completion": 0.1}, "large": {"prompt": 1.0, "completion": 1.0}}
"""US dollars per million tokens: a larger model usually costs about ten times as much. Here both cost the same time."""
_ARGS = ["--enforce-eager", "--dtype", "float32", "--max-model-len", "1024", "--max-num-seqs", "16", "--block-size", "32"]
"""Of a CPU without instructions for bfloat16 that type is the slower one; small blocks let questions share the template's."""


class Stack:
    """The router, its two engines, and a client."""

    def __init__(self, router: RouterProcess, engines: dict[str, VllmProcess], models: list[dict[str, Any]], port: int) -> None:
        self.router = router
        self._engines = engines
        self._models = models
        self._port = port
        self.client = httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", headers={"authorization": f"Bearer {KEY}"}, timeout=300, trust_env=False
        )

    async def use(self, complexity: dict[str, Any]) -> None:
        """From now on the router goes by this `complexity:` section."""
        config, policy = _configured(self._models, self._port, complexity)
        self.router.state.adopt(config, policy, time.time())
        _tell_guards(self._engines, policy)
        await asyncio.sleep(0.5)

    async def ask(self, text: str, model: str, **more: Any) -> tuple[str, dict[str, Any], httpx.Response]:
        """The answer's text, its receipt and the response."""
        body = {"model": model, "temperature": 0, "max_tokens": 16, "messages": [{"role": "user", "content": text}], **more}
        response = await self.client.post("/v1/chat/completions", json=body)
        response.raise_for_status()
        said = _streamed(response.text) if more.get("stream") else response.json()["choices"][0]["message"]["content"]
        receipt = self.router.state.receipts.find(response.headers["x-request-id"])
        assert receipt is not None
        return said, receipt, response


@contextlib.asynccontextmanager
async def running(small: Path, large: Path) -> AsyncIterator[Stack]:
    """Both engines up, and the router in front of them."""
    sources = {"small": small, "large": large}
    models = [_model(tier, source) for tier, source in sources.items()]
    port = _free_port()
    config, policy = _configured(models, port, {})
    engines = {model["tier"]: _engine(Model.model_validate(model)) for model in models}
    await asyncio.gather(*(engine.start() for engine in engines.values()))
    router = RouterProcess(config, policy, SECRET, {}, "cascade")
    router.start()
    _tell_guards(engines, policy)
    reporting = asyncio.create_task(_report(router, engines))
    stack = Stack(router, engines, models, port)
    try:
        async with asyncio.timeout(60):
            while (await stack.client.get("/readyz")).status_code != 200:  # noqa: ASYNC110 - another process's state
                await asyncio.sleep(0.2)
        yield stack
    finally:
        reporting.cancel()
        await stack.client.aclose()
        await router.drain()
        await asyncio.gather(*(engine.stop() for engine in engines.values()))


def _model(tier: str, source: Path) -> dict[str, Any]:
    replica = {"zone": "local", "gpus": 0}
    return {"id": f"m-{tier}", "source": str(source), "tier": tier, "args": _ARGS, "replicas": [replica], "price": PRICES[tier]}


def _configured(models: list[dict[str, Any]], port: int, complexity: dict[str, Any]) -> tuple[Config, Policy]:
    config = parse_config(
        {
            "listen": {"host": "127.0.0.1", "port": port},
            "admin": {"port": _free_port()},
            "zones": {"local": {}},
            "models": models,
            "keys": [{"id": "k", "sha256": hashlib.sha256(KEY.encode()).hexdigest()}],
            "slo": {"ttft_ms": 300_000, "max_wait_ms": 600_000},  # a busy machine is no saturated cluster
            "complexity": complexity,
        }
    )
    return config, compile_policy(config, Path.cwd())


def _engine(model: Model) -> VllmProcess:
    incarnation = f"{model.id}-1"
    key = derive_target_key(SECRET, incarnation)
    return VllmProcess(EnginePlan(model, "127.0.0.1", incarnation, key, Place(("local",), ("local",)), cpus=1))


def _tell_guards(engines: dict[str, VllmProcess], policy: Policy) -> None:
    for engine in engines.values():
        engine.take_policy(msgspec.json.encode(copy_for_guards(policy, time.time())))


async def _report(router: RouterProcess, engines: dict[str, VllmProcess]) -> None:
    """What membership does in a cluster: both targets, with the evidence in the vocabulary of now."""
    while True:
        reports = []
        for tier, engine in engines.items():
            zones = router.state.policy.vocabulary.zone_mask(["local"])
            target = Target(
                id=f"m-{tier}@local/1",
                incarnation=f"m-{tier}-1",
                kind=Kind.REPLICA,
                zone="local",
                evidence=Evidence(zones, zones),
                address=Address("127.0.0.1", engine.port),
                models={f"m-{tier}": f"m-{tier}"},
                context_tokens=engine.context_tokens,
                slots=engine.slots,
            )
            reports.append(Report(target, await engine.read_signals(), 0))
        router.take_reports(reports)
        await asyncio.sleep(0.5)


def _streamed(events: str) -> str:
    found = [msgspec.json.decode(line[6:]) for line in events.splitlines() if line.startswith("data: {")]
    return "".join(choice["delta"].get("content") or "" for event in found for choice in event["choices"])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
