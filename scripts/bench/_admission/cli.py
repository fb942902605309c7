"""The command line of `scripts/bench/admission`."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import socket
import statistics
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import uvloop
from rich.console import Console
from rich.table import Table

from router.compiled import compile_policy
from router.config import parse_config
from router.fixed_targets import fixed_targets
from router.placement.targets import Report
from router.process import RouterProcess

from .engine import SlowEngine
from .load import Kind, Reply, arrivals, send_all

ROOT = Path(__file__).resolve().parents[3]
ABOUT = """\
What the router does past saturation: an open-loop load over sockets against simulated engines, with and without its queue.

Load 1.0x is what the engines can prefill. A tenant `loud` sends four fifths of it, a tenant `quiet` one fifth; a quarter of the
prompts are seven times as long as the others. Goodput counts answers whose first byte came within the limit, per second;
`quiet kept` is the share of the quiet tenant's requests among its own that were. Nobody tries again when refused.
"""
LIMIT_S = 1.0
ANSWER_S = 0.3
SHORT_S, LONG_S = 0.01, 0.07
KINDS = (
    Kind("tg_loud", "loud", 0.6, SHORT_S),
    Kind("tg_loud", "loud", 0.2, LONG_S),
    Kind("tg_quiet", "quiet", 0.15, SHORT_S),
    Kind("tg_quiet", "quiet", 0.05, LONG_S),
)
MEAN_S = sum(kind.share * kind.prefill_s for kind in KINDS)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.asynccontextmanager
async def _router(engines: int, max_waiting: int) -> AsyncIterator[int]:
    """A router over so many engines: its port."""
    running = [SlowEngine(ANSWER_S) for _ in range(engines)]
    for engine in running:
        await engine.start()
    port = _free_port()
    config = parse_config(
        {
            "listen": {"host": "127.0.0.1", "port": port},
            "admin": {"port": _free_port()},
            "zones": {"here": {}},
            "targets": [
                {
                    "id": f"engine-{number}",
                    "kind": "server",
                    "vouched": True,
                    "url": f"http://127.0.0.1:{engine.port}",
                    "zone": "here",
                    "models": {"m": "m"},
                    "slots": 256,
                }
                for number, engine in enumerate(running)
            ],
            "keys": [
                {"id": tenant, "tenant": tenant, "sha256": hashlib.sha256(f"tg_{tenant}".encode()).hexdigest()}
                for tenant in ("loud", "quiet")
            ],
            "slo": {"ttft_ms": LIMIT_S * 1e3, "max_wait_ms": 10_000},
            "admission": {"max_waiting": max_waiting},
        }
    )
    router = RouterProcess(config, compile_policy(config, Path()), b"s" * 32, {}, "bench", grace_s=1)
    router.take_reports([Report(target) for target in fixed_targets(config, None, "")])
    router.start()
    try:
        await asyncio.sleep(0.3)
        yield port
    finally:
        await router.drain()
        for engine in running:
            engine.stop()


def summary(replies: Sequence[Reply], seconds: float) -> dict[str, Any]:
    """What a load came to."""
    answered = sorted(reply.first_s for reply in replies if reply.status == 200)
    met = [reply for reply in replies if 0 <= reply.first_s <= LIMIT_S]
    quiet = [reply for reply in replies if reply.kind.tenant == "quiet"]
    refused = [reply for reply in replies if reply.status == 503]
    return {
        "requests": len(replies),
        "goodput": len(met) / seconds,
        "met %": 100 * len(met) / max(1, len(replies)),
        "quiet kept %": 100 * sum(reply.kind.tenant == "quiet" for reply in met) / max(1, len(quiet)),
        "TTFT p50": answered[len(answered) // 2] if answered else -1.0,
        "p99": answered[int(0.99 * len(answered))] if answered else -1.0,
        "refused %": 100 * len(refused) / max(1, len(replies)),
        "Retry-After": statistics.median(reply.retry_s for reply in refused) if refused else 0,
        "errors": sum(reply.status not in (200, 503) for reply in replies),
    }


async def measure(options: argparse.Namespace, queue: int, load: float) -> dict[str, Any]:
    """One cell: a fresh router under one load."""
    rate = load * options.engines / MEAN_S
    async with _router(options.engines, queue) as port:
        await send_all(port, arrivals(KINDS, 0.5 * options.engines / MEAN_S, 2.0, options.seed + 1))
        replies = await send_all(port, arrivals(KINDS, rate, options.seconds, options.seed))
    return {"queue": "on" if queue else "off", "load": f"{load}x", **summary(replies, options.seconds)}


def main(arguments: list[str] | None = None) -> int:
    """Run the bench. Exit status 0 measured, whatever came of it."""
    parser = argparse.ArgumentParser("admission", description=ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=8.0, help="length of each load")
    parser.add_argument("--loads", default="0.8,1.1,1.5,3.0")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, default=ROOT / ".bench" / "admission.json")
    options = parser.parse_args(arguments)
    console = Console(width=130)
    cells = []
    for queue in (1000, 0):
        for load in map(float, options.loads.split(",")):
            cells.append(uvloop.run(measure(options, queue, load)))
            console.print({name: round(v, 2) if isinstance(v, float) else v for name, v in cells[-1].items()}, style="dim")
    table = Table(title=f"{options.engines} engines, limit {LIMIT_S} s to the first byte, {options.seconds:g} s each")
    for name in cells[0]:
        table.add_column(name, justify="right")
    for cell in cells:
        table.add_row(*(f"{value:.2f}" if isinstance(value, float) else str(value) for value in cell.values()))
    console.print(table)
    kept = [cell["goodput"] for cell in cells if cell["queue"] == "on"]
    console.print(
        f"goodput past saturation against {cells[0]['load']}: {min(kept[1:], default=0) / max(kept[0], 1e-9):.2f}x at worst"
    )
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(cells, indent=1), encoding="utf-8")
    return 0
