"""Decisions recorded by a running router, over sockets, and made again from its log alone.

Keys of every kind, labels, refusals, engines that fail, spilling over to a simulated provider, replicas that come and go, and
policies that replace each other while requests are at work.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from _ledger.replayed import Agreement, make_again
from _ledger.simulated import LoggedRouter, SimulatedEngine, chat_request, key, logged_router
from router.fixed_targets import fixed_targets
from router.ledger import records
from router.ledger.checkpoint import Signer
from router.ledger.reader import LogReader
from router.ledger.records import DecideData
from router.ledger.shapes import FACTS
from router.ledger.verify import verify_log
from router.placement.targets import Address, Report, Signals

_CLIENTS = 24
_KEYS = ("plain", "spiller", "narrow", "medical", "limited")
_POLICIES: tuple[dict[str, Any], ...] = (
    {},
    {"slo": {"ttft_ms": 40.0}},
    {"complexity": {"large_above_tokens": 50}},
    {"residency": {"tags": {"phi": {"process": ["eu"]}, "home": {"process": ["us"]}}}},
    {"slo": {"ttft_ms": 1e6}},
)


class Recorded(Agreement):
    """What was recorded, beside how much of it was made again."""

    def __init__(self) -> None:
        super().__init__()
        self.kinds: Counter[str] = Counter()


def record_and_replay(work: Path, decisions: int, seed: int) -> Recorded:
    """Let a router make at least `decisions` decisions under live traffic, and make each again."""
    root, result, signer = work / "live", Recorded(), Signer(seed.to_bytes(32, "big"))
    asyncio.run(_serve(root, signer, decisions, seed))
    result.problems += verify_log(root, [signer.verifier]).problems[:3]
    make_again(root, result)
    _count(root, result)
    if result.decisions < decisions:
        result.problems.append(f"{result.decisions} decisions were recorded, not {decisions}")
    lacking = [kind for kind in ("epochs", "refused", "another try", "spilled", "labels", "keys") if result.kinds[kind] < 3]
    result.problems += [f"the traffic had too little of this: {kind}" for kind in lacking]
    return result


def _count(root: Path, result: Recorded) -> None:
    seen: dict[str, set[str]] = {"epochs": set(), "labels": set(), "keys": set()}
    for record in LogReader(root).records():
        if record.e == records.DECIDE:
            data = records.read_data(record, DecideData)
            seen["epochs"].add(data.epoch)
            seen["labels"].add(data.label)
            seen["keys"].add(data.grant)
            result.kinds["refused"] += data.code != ""
            result.kinds["spilled"] += data.kind == "cloud"
            result.kinds["another try"] += b"@" in bytes(data.facts[FACTS.index("excluded")])
    result.kinds.update({kind: len(values) for kind, values in seen.items()})


def _config(engines: list[SimulatedEngine]) -> dict[str, Any]:
    zones = ("eu", "eu", "us")
    local = [
        {"id": f"local-{number}", "kind": "server", "vouched": True, "url": f"http://127.0.0.1:{engine.port}", "zone": zone,
         "models": {"tiny": "tiny"} if number else {"tiny": "tiny", "big": "big"}, "tier": "small", "slots": 4}
        for number, (engine, zone) in enumerate(zip(engines, zones, strict=True))
    ]  # fmt: skip
    cloud = {"id": "provider", "kind": "cloud", "url": "https://cloud.invalid", "zone": "cloud"}
    cloud |= {"models": {"tiny": "t", "big": "b"}, "price": {"prompt": 1, "completion": 2}}
    return {
        "zones": {"eu": {}, "us": {}, "cloud": {"external": True}},
        "residency": {"tags": {"phi": {"process": ["eu"]}}},
        "targets": [*local, cloud],
        "spill": {"daily_budget_usd": 1000.0},
        "keys": [
            key("plain"),
            key("spiller", residency="any", spill=True, tenant="b"),
            key("narrow", residency="eu", models=["tiny"], tenant="c"),
            key("medical", residency="phi", tenant="c", timeout_ms=3000),
            key("limited", requests_per_minute=100, tenant="d"),
        ],
    }


async def _serve(root: Path, signer: Signer, decisions: int, seed: int) -> None:
    engines = [SimulatedEngine(seed + number, fails=0.05) for number in range(4)]
    for engine in engines:
        await engine.start()
    try:
        async with logged_router(root, signer, _config(engines[:3]), engines[3].port) as router:
            changing = asyncio.create_task(_change(router, engines[3].port, random.Random(seed)))
            share = -(-decisions // _CLIENTS)
            await asyncio.gather(
                *(_ask_often(router.port, number, share, random.Random(seed + number)) for number in range(_CLIENTS))
            )
            changing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await changing
    finally:
        for engine in engines:
            engine.stop()


async def _change(router: LoggedRouter, egress: int, rng: random.Random) -> None:
    """Other policies, replicas that start anew or are away for a while, and fresh signals, for ever."""
    number = 0
    while True:
        await asyncio.sleep(0.3)
        number += 1
        if number % 3 == 0:
            router.source.offer(_POLICIES[(number // 3) % len(_POLICIES)])
            if router.process.take_policy(router.source) is None and router.process.state.policy_alert:
                raise RuntimeError(f"a policy of the proof was refused: {router.process.state.policy_alert}")
        targets = fixed_targets(router.process.state.config, Address("127.0.0.1", egress), "egress")
        reports = []
        for target in targets:
            if rng.random() < 0.1 and target.kind != "cloud" and len(reports) > 1:
                continue
            signals = Signals(time.time(), rng.randrange(6), rng.randrange(3), rng.random()) if rng.random() < 0.7 else None
            reports.append(Report(replace(target, incarnation=f"{target.id}@{number // 20}"), signals))
        router.process.take_reports(reports)


async def _ask_often(port: int, client: int, requests: int, rng: random.Random) -> None:
    """So many requests, one after the other, until that many have been answered."""
    reader = writer = None
    decided = 0
    for number in range(20 * requests):
        if decided >= requests:
            break
        if writer is None or reader is None:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(_request(client, number, rng))
        status, closes = await _read_answer(reader)
        decided += status == 200  # much of what is refused never comes to a decision
        if closes:
            writer.close()
            reader = writer = None
    if writer is not None:
        writer.close()


def _request(client: int, number: int, rng: random.Random) -> bytes:
    words = " ".join(rng.choice(["tide", "gate", "water"]) for _ in range(rng.randrange(1, 200)))
    model = rng.choice(["tiny", "tiny", "tiny", "big", "small", "auto", "no-such-model"])
    body: dict[str, Any] = {"model": model, "max_tokens": rng.randrange(1, 8), "messages": [{"role": "user", "content": words}]}
    if rng.random() < 0.4:
        body["stream"] = True
    headers = [f"x-tidegate-residency: {rng.choice(['eu', 'us', 'phi', 'eu,us'])}"] if rng.random() < 0.3 else []
    if rng.random() < 0.1:
        headers.append(f"x-request-timeout-ms: {rng.randrange(5, 2000)}")
    name = rng.choice(_KEYS) if rng.random() > 0.01 else "unknown"
    return chat_request(f"tg_{name}", f"live-{client}-{number}", body, *headers)


async def _read_answer(reader: asyncio.StreamReader) -> tuple[int, bool]:
    """Status of an answer, and whether the connection ends with it."""
    async with asyncio.timeout(60):
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        status = int(head.split(b" ", 2)[1])
        with contextlib.suppress(asyncio.IncompleteReadError):
            if b"content-length:" in head:
                await reader.readexactly(int(head.split(b"content-length:")[1].split(b"\r\n")[0]))
                return status, b"connection: close" in head
            while (size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16)) > 0:
                await reader.readexactly(size + 2)
            await reader.readexactly(2)
            return status, b"connection: close" in head
        return status, True
