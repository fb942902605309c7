"""What receipt and log cost a router under load: CPU per request of its event loop and of its other threads, log on and off."""

from __future__ import annotations

import statistics
from pathlib import Path

from _datapath import bodies, load, procs

from _ledger_live.stack import Started, cpu_by_thread, running


def _microseconds(router: Started, pool: Path, connections: int, seconds: int) -> tuple[float, float, float]:
    """CPU microseconds per request of the event loop and of all other threads, and requests a second."""
    procs.wait_idle(router.pid)
    before = cpu_by_thread(router.pid)
    taken = load.run(router.url, pool, connections, seconds)
    procs.wait_idle(router.pid)
    after = cpu_by_thread(router.pid)
    if taken.faults or not taken.requests:
        raise RuntimeError(f"the load was not answered: {taken.faults or 'no request'}")
    used = {thread: cpu - before.get(thread, 0.0) for thread, cpu in after.items()}
    loop = used.pop(router.pid)
    return loop / taken.requests * 1e6, sum(used.values()) / taken.requests * 1e6, taken.rps


def live(work: Path, root: Path, rounds: int, seconds: int, case: str) -> None:
    """Load a router with the audit log on and one with it off in turn, and print what a request costs in each."""
    pool = bodies.write_pool(bodies.find(case), work)
    found: dict[str, list[tuple[float, float, float]]] = {"on": [], "off": []}
    with running(work, root, [{}, {"audit": {"enabled": False}}]) as (on, off):
        for router in (on, off):
            load.run(router.url, pool, 32, 1)
        for _ in range(rounds):
            found["on"].append(_microseconds(on, pool, 32, seconds))
            found["off"].append(_microseconds(off, pool, 32, seconds))
    print(f"simulated engines, {case}, 32 connections, {rounds} rounds of {seconds} s: medians of CPU per request")
    middle = {name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in found.items()}
    for name, (loop, others, rps) in middle.items():
        print(f"audit log {name:<4} event loop {loop:7.1f} us   other threads {others:6.1f} us   {rps:6.0f} requests/s")
    spent = [middle["on"][part] - middle["off"][part] for part in (0, 1)]
    print(f"the log costs     event loop {spent[0]:7.1f} us   other threads {spent[1]:6.1f} us   together {sum(spent):.1f} us")
