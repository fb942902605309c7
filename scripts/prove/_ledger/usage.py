"""Usage against the engines' own counters, while clients leave at random moments."""

from __future__ import annotations

import asyncio
import json
import random
import re
import urllib.request
from pathlib import Path
from typing import Any

import msgspec

from _ledger.simulated import SimulatedEngine, chat_request, key, logged_router
from router.ledger import records
from router.ledger.checkpoint import Signer
from router.ledger.reader import LogReader
from router.ledger.records import EndData

_AT_ONCE = 40


class Sums(msgspec.Struct):
    """Tokens by the router's log and by the engines' counters."""

    requests: int = 0
    left: int = 0
    """Clients that went before they had the whole answer."""
    router: tuple[int, int] = (0, 0)
    """Prompt and answer tokens by the log."""
    engines: tuple[int, int] = (0, 0)
    charged: int = 0
    """Tokens that the key's limit was charged."""
    unknown: int = 0
    """Requests whose usage the log does not know although an engine worked on them."""
    problems: list[str] = []


def count_simulated(work: Path, requests: int, seed: int) -> Sums:
    """`requests` to simulated engines; a key under `when_client_leaves: finish`."""
    return asyncio.run(_count_simulated(work / "usage", requests, seed))


def count_vllm(work: Path, url: str, model: str, requests: int, seed: int) -> Sums:
    """The same with a vLLM server that runs already and has nothing else to do: its `/metrics` are the counters."""
    before = _vllm_counters(url)
    target = {"id": "vllm", "url": url, "models": {"m": model}}
    sums = asyncio.run(_drive(work / "usage-vllm", [target], requests, seed))
    sums.engines = (_vllm_counters(url)[0] - before[0], _vllm_counters(url)[1] - before[1])
    return _judged(sums)


async def _count_simulated(root: Path, requests: int, seed: int) -> Sums:
    engines = [SimulatedEngine(seed + number) for number in range(3)]
    for engine in engines:
        await engine.start()
    targets = [
        {"id": f"simulated-{number}", "url": f"http://127.0.0.1:{engine.port}", "models": {"m": "m"}}
        for number, engine in enumerate(engines)
    ]
    sums = await _drive(root, targets, requests, seed)
    sums.engines = (sum(e.prompt_tokens for e in engines), sum(e.completion_tokens for e in engines))
    for engine in engines:
        engine.stop()
        if engine.aborted:
            sums.problems.append(f"{engine.aborted} answers were cut although they should have been finished")
    return _judged(sums)


async def _drive(root: Path, targets: list[dict[str, Any]], requests: int, seed: int) -> Sums:
    sums, rng, signer, gate = Sums(requests), random.Random(seed), Signer(bytes(32)), asyncio.Semaphore(_AT_ONCE)
    data = {
        "zones": {"here": {}},
        "slo": {"ttft_ms": 10**8, "max_wait_ms": 10**9},
        "targets": [{"kind": "server", "vouched": True, "zone": "here", **target} for target in targets],
        "keys": [key("counted", tokens_per_minute=10**9, when_client_leaves="finish")],
    }
    async with logged_router(root, signer, data) as router:

        async def one(number: int) -> bool:
            async with gate:
                return await _ask(router.port, number, random.Random(seed * 1_000_000 + number))

        sums.left = sum(await asyncio.gather(*(one(number) for number in rng.sample(range(requests), requests))))
        state = router.process.state
        for _ in range(2400):
            if not any(load.inflight for load in state.fleet.view(0.0).loads):
                break
            await asyncio.sleep(0.05)
        limit = next(iter(state.policy.keys.values())).limits[0]
        used = state.limits.source._used  # type: ignore[attr-defined]
        sums.charged = sum(amount for (counted, _), amount in used.items() if counted == limit.counter)
    ends = [records.read_data(record, EndData) for record in LogReader(root).records() if record.e == records.END]
    known = [end for end in ends if end.prompt_tokens >= 0]
    sums.router = (sum(end.prompt_tokens for end in known), sum(max(0, end.completion_tokens) for end in known))
    sums.unknown = sum(end.prompt_tokens < 0 and end.code != "client_gone" for end in ends)
    return sums


async def _ask(port: int, number: int, rng: random.Random) -> bool:
    """One request; half of the clients leave at a random moment, some before they have said all. True for those that left."""
    stream = rng.random() < 0.6
    words = " ".join(rng.choice(["tide", "gate", "water"]) for _ in range(rng.randrange(1, 60)))
    body: dict[str, Any] = {"model": "m", "max_tokens": rng.randrange(1, 40), "messages": [{"role": "user", "content": words}]}
    if stream:
        body["stream"] = True
        if rng.random() < 0.5:
            body["stream_options"] = {"include_usage": True}
    data = chat_request("tg_counted", f"usage-{number}", body)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    leaves = rng.random() < 0.5
    try:
        writer.write(data if not leaves or rng.random() > 0.1 else data[: rng.randrange(len(data))])
        async with asyncio.timeout(rng.random() * 0.06 if leaves else 120):
            seen = b""
            while not (b"\r\n0\r\n\r\n" in seen or (b'"total_tokens"' in seen and not stream)):
                more = await reader.read(1 << 16)
                if not more:
                    raise RuntimeError(f"usage-{number}: the answer was cut: {seen[:700]!r}")
                seen += more
        return False
    except TimeoutError:
        if not leaves:
            raise
        return True
    finally:
        writer.transport.abort()


def _judged(sums: Sums) -> Sums:
    if sums.router != sums.engines:
        sums.problems.append(f"the log has {sums.router} tokens (prompt, answer), the engines counted {sums.engines}")
    if sums.charged != sum(sums.engines):
        sums.problems.append(f"the key was charged {sums.charged} tokens, the engines counted {sum(sums.engines)}")
    if sums.unknown:
        sums.problems.append(f"{sums.unknown} requests ended without usage")
    if not sums.left:
        sums.problems.append("nobody left")
    return sums


def _vllm_counters(url: str) -> tuple[int, int]:
    text = urllib.request.urlopen(url.rstrip("/") + "/metrics", timeout=10).read().decode()
    found = [re.findall(rf"^vllm:{name}_tokens_total\S* (\S+)$", text, re.MULTILINE) for name in ("prompt", "generation")]
    if not all(found):
        raise RuntimeError(f"{url}/metrics has no token counters: {json.dumps(text[:200])}")
    prompt, generation = (round(sum(map(float, values))) for values in found)
    return prompt, generation
