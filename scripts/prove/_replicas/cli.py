"""`scripts/prove/replicas`: revocation and limits over several router processes on one store, one line of figures for each."""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time

from _replicas.engine import TOKENS
from _replicas.limiting import Overshoot, measure_concurrent, measure_requests, measure_spilling, measure_tokens
from _replicas.processes import Setting
from _replicas.revoking import Revocations, measure_revocation

MOST_OVERSHOOT = 0.02
LONGEST_REVOCATION_S = 1.0


def main(arguments: list[str] | None = None) -> int:
    """Run the proofs; 0 when no limit was overshot by more than 2 % and every revocation held within a second."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replicas", type=int, default=4, help="router processes (default 4)")
    parser.add_argument("--clients", type=int, default=16, help="clients that ask without pause (default 16)")
    parser.add_argument("--requests", type=int, default=3000, help="what the limits allow (default 3000)")
    parser.add_argument("--rounds", type=int, default=10, help="keys revoked (default 10)")
    parser.add_argument("--store", help="an empty database, postgresql://user@host/name (default: SQLite in a file)")
    args = parser.parse_args(arguments)
    setting, started = Setting(args.replicas, args.clients, args.store), time.monotonic()
    revoked = asyncio.run(measure_revocation(setting, args.rounds))
    _print_revocations(revoked, args.replicas)
    found = [
        _print_limit("requests per minute", asyncio.run(measure_requests(setting, args.requests, restarts=False))),
        _print_limit("the same, replicas killed", asyncio.run(measure_requests(setting, args.requests, restarts=True))),
        _print_limit("tokens per day", asyncio.run(measure_tokens(setting, args.requests * TOKENS, restarts=False))),
        _print_limit("the same, replicas killed", asyncio.run(measure_tokens(setting, args.requests * TOKENS, restarts=True))),
        _print_limit("concurrent requests", asyncio.run(measure_concurrent(setting, args.clients // 2))),
        _print_limit("tokens spilled by a key", _spill(setting, args.requests, of_a_key=True)),
        _print_limit("by all keys, replicas killed", _spill(setting, args.requests, of_a_key=False)),
    ]
    worst, slowest = max(found), max(revoked.last_taken_s, default=0.0)
    print(f"took {time.monotonic() - started:.0f} s")
    print(f"overshoot={worst * 100:.2f}% revoked_within={slowest:.2f}s")
    return 0 if worst <= MOST_OVERSHOOT and slowest <= LONGEST_REVOCATION_S and not revoked.problems else 1


def _spill(setting: Setting, requests: int, *, of_a_key: bool) -> Overshoot:
    return asyncio.run(measure_spilling(setting, requests, of_a_key=of_a_key, restarts=not of_a_key))


def _print_revocations(found: Revocations, replicas: int) -> None:
    median, most = statistics.median(found.last_taken_s), max(found.last_taken_s)
    line = f"last request taken {median:.2f} s after `keys revoke` returned (median), {most:.2f} s at most"
    if found.streams_cut_s:
        line += f"; {len(found.streams_cut_s)} streams at work were cut within {max(found.streams_cut_s):.2f} s"
    print(f"revocation  {len(found.last_taken_s)} keys at {replicas} replicas: {line}", flush=True)
    for problem in found.problems[:10]:
        print(f"    {problem}")


def _print_limit(name: str, found: Overshoot) -> float:
    over = max(0.0, found.share)
    line = f"{found.used} of {found.limit}, {over * 100:.2f} % over"
    if found.restarts:
        line += f", {found.restarts} restarts"
    print(
        f"limit       {name}: {line} ({found.answers[200]} answered, {found.refused} refused, {found.took_s:.0f} s)",
        flush=True,
    )
    return over
