"""Latency of a router whose store has stopped answering, beside the same router's while it answers: SQLite and PostgreSQL."""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import os
import shutil
import signal
import sqlite3
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from _datapath import bodies, load, procs

from _ledger_live.stack import Started, running

_CONNECTIONS = 4
_LIMITS = {"requests_per_minute": 100_000_000, "tokens_per_minute": 10**12}
"""Never reached; but the store is asked for them all the time."""
_BINARIES = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)

Stop = Callable[[], AbstractContextManager[None]]


@contextlib.contextmanager
def _postgresql() -> Iterator[tuple[str, Stop]]:
    """A PostgreSQL server of our own: its URL, and what stops all its processes for a while."""
    assert _BINARIES is not None
    root = Path(tempfile.mkdtemp(prefix="tidegate-pg-", dir="/tmp"))  # the server's user must be able to enter it
    owner, as_user = getpass.getuser(), []
    if os.geteuid() == 0:  # the server refuses to run as root
        owner, as_user = "postgres", ["runuser", "-u", "postgres", "--"]
        shutil.chown(root, owner)
    data = root / "data"
    subprocess.run([*as_user, _BINARIES / "initdb", "-D", data, "-A", "trust", "-U", owner], check=True, capture_output=True)
    options = f"-c listen_addresses='' -c unix_socket_directories={root}"
    control = [*as_user, _BINARIES / "pg_ctl", "-D", data, "-o", options, "-l", root / "log", "-w"]
    subprocess.run([*control, "start"], check=True, capture_output=True)

    @contextlib.contextmanager
    def stopped() -> Iterator[None]:
        server = procs.tree(int((data / "postmaster.pid").read_text().split()[0]))
        _signal(server, signal.SIGSTOP)
        try:
            yield
        finally:
            _signal(server, signal.SIGCONT)

    try:
        yield f"postgresql://{owner}@/postgres?host={root}", stopped
    finally:
        subprocess.run([*as_user, _BINARIES / "pg_ctl", "-D", data, "-m", "immediate", "stop"], check=True, capture_output=True)
        shutil.rmtree(root, ignore_errors=True)


def _signal(processes: list[int], number: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)


def _locked(path: Path) -> Stop:
    """What keeps everybody else from writing to an SQLite file for a while."""

    @contextlib.contextmanager
    def stopped() -> Iterator[None]:
        connection = sqlite3.connect(path, timeout=30, isolation_level=None)
        try:
            connection.execute("BEGIN EXCLUSIVE")
            yield
            connection.execute("ROLLBACK")
        finally:
            connection.close()

    return stopped


def store_stopped(work: Path, root: Path, rounds: int, seconds: int, case: str) -> None:
    """Load a router with its store running and stopped in turn, for each kind of store, and print the ratios."""
    pool = bodies.write_pool(bodies.find(case), work)
    digest = hashlib.sha256(bodies.KEY.encode()).hexdigest()
    keys = [{"id": "bench", "sha256": digest, "residency": "onprem", **_LIMITS}]
    print(f"simulated engines, {case}, {_CONNECTIONS} connections, {rounds} rounds of {seconds} s: medians, running -> stopped")
    with running(work / "sqlite", root, [{"keys": keys}]) as (router,):
        store = work / "sqlite" / "router-0" / "home" / ".tidegate" / "store.db"
        _compare("SQLite, locked", router, pool, _locked(store), rounds, seconds)
    if _BINARIES is None:
        print("PostgreSQL: its server is not installed, so nothing was measured")
        return
    with _postgresql() as (url, stop), running(work / "pg", root, [{"keys": keys, "store": {"url": url}}]) as (router,):
        _compare("PostgreSQL, SIGSTOP", router, pool, stop, rounds, seconds)


def _compare(name: str, router: Started, pool: Path, stop: Stop, rounds: int, seconds: int) -> None:
    load.run(router.url, pool, _CONNECTIONS, 1)
    taken: dict[bool, list[load.Load]] = {False: [], True: []}
    for _ in range(rounds):
        taken[False].append(load.run(router.url, pool, _CONNECTIONS, seconds))
        with stop():
            taken[True].append(load.run(router.url, pool, _CONNECTIONS, seconds))
    faults = [run.faults for runs in taken.values() for run in runs if run.faults]
    if faults:
        raise RuntimeError(f"{name}: the load was not answered: {faults[0]}")
    for quantile in ("p50_ms", "p99_ms"):
        running_, stopped = (statistics.median(getattr(run, quantile) for run in taken[state]) for state in (False, True))
        print(f"{name:<20} {quantile[:3]} {running_:7.2f} -> {stopped:7.2f} ms   ratio {stopped / running_:.2f}")
    print(f"{name:<20} {sum(run.requests for run in taken[True])} requests answered while the store was stopped")
