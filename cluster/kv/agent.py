"""The agent's process: `python -m cluster.kv.agent`, one per engine, on the engine's node.

It reads what it needs as one line of JSON from its standard input (secrets belong neither into arguments nor into the
environment), answers with one line that names its port, and ends when that input ends: so it never outlives who started it.
Tokens and texts stay in its memory; it writes no file and logs no content.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from pathlib import Path

import msgspec
import zmq.asyncio

from cluster.kv.events import Batch
from cluster.kv.feed import Feed
from cluster.kv.subscription import Subscription
from cluster.kv.table import CacheTable
from cluster.kv.text_profile import TextOptions, read_profile
from cluster.kv.token_bytes import read_token_bytes
from router.crash import forbid_core_dumps
from router.placement.kv_messages import Hello
from router.residency.guard import Place


class AgentPlan(msgspec.Struct, frozen=True):
    """What one agent is told. `guard_key` and `chunk_key` are in hex; addresses are ZeroMQ's, one pair per rank."""

    events: tuple[str, ...]
    replays: tuple[str, ...]
    host: str
    incarnation: str
    place: str
    guard_key: str
    chunk_key: str
    model: str
    tokenizer: str
    options: TextOptions = TextOptions()


class AgentAnswer(msgspec.Struct, frozen=True):
    """The agent's one line of output. `problem` says why texts cannot be told exactly ("" when they can)."""

    port: int
    problem: str = ""


def find_files(source: str) -> Path:
    """The directory of a model: `source` itself, or where the Hugging Face cache has it. Nothing is downloaded."""
    if Path(source).is_dir():
        return Path(source)
    try:
        from huggingface_hub import try_to_load_from_cache

        for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
            found = try_to_load_from_cache(source, name)
            if isinstance(found, str):
                return Path(found).parent
    except Exception:  # not installed, or no id of a model: then there is nothing to read
        return Path(source)
    return Path(source)


async def serve(plan: AgentPlan) -> None:
    """Open the port, say so, and follow the engine until cancelled."""
    folder = find_files(plan.tokenizer)
    tokens = await asyncio.to_thread(read_token_bytes, folder / "tokenizer.json")
    profile = read_profile(find_files(plan.model), folder, plan.options, tokens)
    note = "several data-parallel ranks: which of them serves a request is the engine's choice" if len(plan.events) > 1 else ""
    table = CacheTable(bytes.fromhex(plan.chunk_key), () if tokens.problem else tokens.table, len(plan.events), note)
    context = zmq.asyncio.Context()
    ranks = [_follow(context, table, rank, plan) for rank in range(len(plan.events))]

    def proof_age() -> float:
        ages = [rank.proof_age() for rank in ranks]
        return -1.0 if min(ages) < 0 else max(ages)

    feed = Feed(
        bytes.fromhex(plan.guard_key),
        plan.incarnation,
        Place.from_text(plan.place),
        lambda: Hello(profile, table.beat(0.0).block_tokens),
        table.held,
        table.changes,
        lambda: table.beat(proof_age()),
    )
    server = await asyncio.start_server(feed.enter, plan.host, 0)
    answer = AgentAnswer(server.sockets[0].getsockname()[1], tokens.problem)
    sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
    sys.stdout.buffer.flush()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(feed.run(server))
        for rank in ranks:
            tasks.create_task(rank.run())


def _follow(context: zmq.asyncio.Context, table: CacheTable, rank: int, plan: AgentPlan) -> Subscription:
    def apply(batch: Batch) -> None:
        table.apply(rank, batch)

    return Subscription(context, plan.events[rank], plan.replays[rank], apply, lambda: table.lose(rank))


def _end_with_input() -> None:
    """End the process, whatever it is doing, when whoever holds the other end of its input is gone."""
    sys.stdin.buffer.read()
    os._exit(0)


def main() -> None:
    """Run one agent. It has every prompt of its engine in memory, as tokens and as text."""
    forbid_core_dumps()
    plan = msgspec.json.decode(sys.stdin.buffer.readline(), type=AgentPlan)
    threading.Thread(target=_end_with_input, daemon=True).start()
    asyncio.run(serve(plan))


if __name__ == "__main__":
    main()
