"""What receipt and log cost a router under load: CPU per request of its event loop, of its other threads, and of the process
that writes its log, log on and off."""

from __future__ import annotations

import statistics
from pathlib import Path

from _datapath import bodies, load, procs

from _ledger_live.stack import Started, cpu_by_thread, running

PARTS = ("event loop", "other threads", "log process")


def _cpu(router: Started) -> dict[str, dict[int, float]]:
    """CPU seconds so far, by part and thread."""
    threads = cpu_by_thread(router.pid)
    loop = {router.pid: threads.pop(router.pid)}
    writers = {
        thread: cpu for child in procs.tree(router.pid) if child != router.pid for thread, cpu in cpu_by_thread(child).items()
    }
    return dict(zip(PARTS, (loop, threads, writers), strict=True))


def _microseconds(router: Started, pool: Path, connections: int, seconds: int) -> list[float]:
    """CPU microseconds per request of each of `PARTS`, and requests a second."""
    procs.wait_idle(router.pid)
    before = _cpu(router)
    taken = load.run(router.url, pool, connections, seconds)
    procs.wait_idle(router.pid)
    after = _cpu(router)
    if taken.faults or not taken.requests:
        raise RuntimeError(f"the load was not answered: {taken.faults or 'no request'}")
    used = [sum(cpu - before[part].get(thread, 0.0) for thread, cpu in after[part].items()) for part in PARTS]
    return [*(cpu / taken.requests * 1e6 for cpu in used), taken.rps]


def live(work: Path, root: Path, rounds: int, seconds: int, case: str) -> None:
    """Load a router with the audit log on and one with it off in turn, and print what a request costs in each."""
    pool = bodies.write_pool(bodies.find(case), work)
    found: dict[str, list[list[float]]] = {"on": [], "off": []}
    with running(work, root, [{}, {"audit": {"enabled": False}}]) as (on, off):
        for router in (on, off):
            load.run(router.url, pool, 32, 1)
        for _ in range(rounds):
            found["on"].append(_microseconds(on, pool, 32, seconds))
            found["off"].append(_microseconds(off, pool, 32, seconds))
    print(f"simulated engines, {case}, 32 connections, {rounds} rounds of {seconds} s: medians of CPU us per request")
    middle = {name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in found.items()}
    middle["its cost"] = [on - off for on, off in zip(middle["on"], middle["off"], strict=True)]
    print(f"{'audit log':<12}" + "".join(f"{part:>15}" for part in (*PARTS, "together")) + f"{'requests/s':>12}")
    for name, (*parts, rps) in middle.items():
        print(f"{name:<12}" + "".join(f"{part:15.1f}" for part in (*parts, sum(parts))) + f"{rps:12.0f}")
