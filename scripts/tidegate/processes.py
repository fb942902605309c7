"""Which processes are ours, and how to end them all.

Everything `up` starts inherits `TIDEGATE_RUN_ID`, and so do the children and orphans of that. `/proc/*/environ` tells
who carries it. A process that overwrote its environment with a title is found through its parent or process group.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from tidegate.home import RUN_ID, Home, write_private


@dataclass(frozen=True)
class Run:
    """What `up` started, as `.tidegate/run.json` holds it. Ports are TCP ports on this machine."""

    run_id: str
    config: str
    port: int
    admin_port: int
    ray_address: str = ""


@dataclass(frozen=True)
class Process:
    """One entry of `/proc`."""

    pid: int
    parent: int
    group: int
    started: int
    """In clock ticks since boot: with the pid, the identity of a process."""
    run_id: str


def new_run_id(home: Home) -> str:
    """A fresh run id; its first part is the home's tag, so that runs are found even when `run.json` is lost."""
    return f"{home.tag}-{secrets.token_hex(4)}"


def save_run(home: Home, run: Run) -> None:
    """Write `run.json`."""
    write_private(home.run_file, json.dumps(asdict(run), indent=1) + "\n")


def load_run(home: Home) -> Run | None:
    """Read `run.json`; None when there is none or it cannot be understood."""
    try:
        return Run(**json.loads(home.run_file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def find_ours(prefix: str) -> list[Process]:
    """All live processes whose run id begins with `prefix`, their descendants, and the rest of their process groups.

    The caller and its ancestors are never among them.
    """
    table = _read_table()
    protected = _ancestors(table, os.getpid())
    protected_groups = {table[pid].group for pid in protected if pid in table}
    ours = {pid for pid, process in table.items() if process.run_id.startswith(prefix)} - protected
    while True:
        groups = {table[pid].group for pid in ours} - protected_groups
        more = {pid for pid, process in table.items() if process.parent in ours or process.group in groups}
        more -= protected | ours
        if not more:
            return [table[pid] for pid in sorted(ours)]
        ours |= more


def stop_all(prefix: str, grace_s: float = 5.0, report: Callable[[int], None] = lambda left: None) -> int:
    """End every process of ours: SIGTERM, `grace_s` seconds of patience, then SIGKILL until none is left.

    Args:
        prefix: what the run id begins with.
        grace_s: seconds between SIGTERM and SIGKILL.
        report: called about five times a second with how many are left.

    Returns:
        How many processes were ended.

    Raises:
        RuntimeError: some could not be ended (uninterruptible); the text lists them.
    """
    seen: dict[tuple[int, int], Process] = {}
    terminated: set[tuple[int, int]] = set()
    started = time.monotonic()
    while True:
        seen.update({(process.pid, process.started): process for process in find_ours(prefix)})
        # Also those found earlier: what told us that they are ours (a parent, a group) may be gone by now.
        alive = {identity: process for identity, process in seen.items() if _is_alive(process)}
        if not alive:
            return len(seen)
        elapsed = time.monotonic() - started
        for identity, process in alive.items():
            if elapsed >= grace_s:
                _signal(process, signal.SIGKILL)
            elif identity not in terminated:
                terminated.add(identity)
                _signal(process, signal.SIGTERM)
        report(len(alive))
        if elapsed > grace_s + 30:
            raise RuntimeError(f"could not end the processes {', '.join(str(process.pid) for process in alive.values())}")
        time.sleep(0.2)


def describe(pid: int) -> str:
    """A short name of a process, for people."""
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        return " ".join(word.decode(errors="replace") for word in words if word)[:80]
    return "?"


def _is_alive(process: Process) -> bool:
    current = _read_process(process.pid)
    return current is not None and current.started == process.started


def _signal(process: Process, number: signal.Signals) -> None:
    # Through a pidfd the signal cannot hit a stranger that got the number of a process that has just ended.
    try:
        handle = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    except OSError:  # a kernel before 5.3
        handle = -1
    try:
        if not _is_alive(process):
            return
        with contextlib.suppress(ProcessLookupError):
            if handle < 0:
                os.kill(process.pid, number)
            else:
                signal.pidfd_send_signal(handle, number)
    finally:
        if handle >= 0:
            os.close(handle)


def _ancestors(table: dict[int, Process], pid: int) -> set[int]:
    found = {pid}
    while (process := table.get(pid)) is not None and process.parent not in found:
        pid = process.parent
        found.add(pid)
    return found


def _read_table() -> dict[int, Process]:
    pids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return {pid: process for pid in pids if (process := _read_process(pid)) is not None}


def _read_process(pid: int) -> Process | None:
    """One process; None when it is gone or only a zombie is left of it."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()  # the name before it may hold spaces and parentheses
    if fields[0] in "ZX":
        return None
    return Process(pid, int(fields[1]), int(fields[2]), int(fields[19]), _run_id_of(pid))


def _run_id_of(pid: int) -> str:
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:  # of another user, or gone
        return ""
    start = f"{RUN_ID}=".encode()
    values = (item[len(start) :] for item in environment.split(b"\0") if item.startswith(start))
    return next(values, b"").decode(errors="replace")
