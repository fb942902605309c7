"""The leash: a small program between a Serve replica and its engine, so that the engine never outlives the replica.

    python -I -S leash.py --control FD --status FD --log PATH --grace SECONDS -- COMMAND...

It starts COMMAND in a session of its own with both outputs appended to a log file, and holds the reading end of a pipe
whose writing end only the replica has. However the replica dies (SIGKILL and a kernel's OOM killer included), that pipe
reports its end; then, or on SIGTERM, the leash ends the whole process group: SIGTERM, a grace, SIGKILL. It is a child
subreaper, so a process that left the group comes back to it as an orphan and is killed too.

The leash detaches itself first: Ray SIGKILLs the direct children of a worker that exits, and a leash that is killed
could not do its work. So it reports over a second pipe, one JSON object a line: `{"pid": ...}` once the engine runs,
then `{"exit": ...}` (negative: killed by that signal). It needs the standard library only, so it starts at once.

Engines of several processes tell each other of requests through files under /dev/shm, which outlive them: with the token ids
of prompts in them, until the machine restarts. So what the engine had there is removed after it, unless somebody else has it
mapped. Most ends leave somebody who still has it and can be looked at. One that takes all at once does not, so the replica
writes into the pipe once the engine is up, and what there is then is remembered: `{"shared": ...}` says how many files.

It is two processes, a holder and a warden above it, because vLLM's engine core does not notice that its parent is gone:
should somebody kill the holder, the orphans come to the warden, which kills them; should somebody kill the warden, the
holder is told by the kernel and ends everything.
"""

import argparse
import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_POLL_S = 0.05
_KILL_S = 10.0
_CANNOT_EXECUTE = 127
_SHARED = "/dev/shm/"


def main() -> int:
    """Run the command line above.

    Returns:
        0 in the process that was called (it leaves at once), the engine's exit code in the holder.
    """
    options = _parse(sys.argv[1:])
    _forbid_core_dumps()
    for fd in (options.control, options.status):
        os.set_inheritable(fd, False)
    if os.fork() > 0:
        return 0
    os.setsid()
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    warden = os.getpid()
    holder = os.fork()
    if holder > 0:
        return _stand_guard(holder)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    wakeup = _listen_for_signals()
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != warden:
        return _CANNOT_EXECUTE
    return _hold(options, wakeup)


def _stand_guard(holder: int) -> int:
    """The warden: wait for the holder, pass signals on to it, and kill whatever it leaves."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: os.kill(holder, signal.SIGTERM))
    _detach_standard_streams()
    os.waitpid(holder, 0)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    shared = _shared_by(_descendants(os.getpid()))
    _kill_all()
    _remove_unused(shared)
    return 0


def _hold(options: argparse.Namespace, wakeup: int) -> int:
    engine = _start(options.command, options.log)
    _detach_standard_streams()
    _report(options.status, pid=engine)
    shared: set[str] = set()
    code = _wait(engine, options, wakeup, shared)
    shared |= _shared_by(_descendants(os.getpid()))
    if code is None:
        code = _end(engine, options.grace)
    _signal_group(engine, signal.SIGKILL)
    _kill_all()
    _remove_unused(shared)
    _report(options.status, exit=code)
    return code if code >= 0 else 128 - code


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="leash", allow_abbrev=False)
    parser.add_argument("--control", type=int, required=True)
    parser.add_argument("--status", type=int, required=True)
    parser.add_argument("--log", required=True)
    parser.add_argument("--grace", type=float, default=5.0)
    parser.add_argument("command", nargs="+")
    return parser.parse_args(arguments)


def _forbid_core_dumps() -> None:
    """What an engine has in memory are prompts. `router.crash` says more; this program has no packages to import it from."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError), Path("/proc/self/coredump_filter").open("w") as file:
        file.write("0")


def _prctl(option: int, value: int) -> None:
    """Linux only; elsewhere the control pipe alone has to do."""
    prctl = getattr(ctypes.CDLL(None, use_errno=True), "prctl", None)
    if prctl is not None:
        prctl(option, value, 0, 0, 0)


def _listen_for_signals() -> int:
    """Turn signals into bytes on a pipe that `select` can wait on."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    return reader


def _start(command: list[str], log: str) -> int:
    """Fork and execute the engine; the child dies with the leash should somebody kill even that."""
    leash = os.getpid()
    child = os.fork()
    if child > 0:
        return child
    try:
        os.setsid()
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != leash:
            os._exit(_CANNOT_EXECUTE)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.execvp(command[0], command)
    except OSError as error:
        os.write(2, f"leash: cannot execute {command[0]}: {error.strerror}\n".encode())
    finally:
        os._exit(_CANNOT_EXECUTE)


def _detach_standard_streams() -> None:
    """The replica's own streams may be pipes that somebody waits on; the leash says nothing on them."""
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)


def _report(status: int, **values: int) -> None:
    with contextlib.suppress(OSError):  # nobody listens any more when the replica is gone
        os.write(status, json.dumps(values).encode() + b"\n")


def _wait(engine: int, options: argparse.Namespace, wakeup: int, shared: set[str]) -> int | None:
    """The engine's exit code once it exits, or None when it has to be ended; fills `shared` when told that the engine is up."""
    while True:
        code = _reap(engine)
        if code is not None:
            return code
        ready, _, _ = select.select([options.control, wakeup], [], [])
        if options.control in ready:
            if not os.read(options.control, 4096):
                return None
            shared |= _shared_by(_descendants(os.getpid()))
            _report(options.status, shared=len(shared))
        if wakeup in ready and set(os.read(wakeup, 4096)) - {signal.SIGCHLD}:
            return None


def _reap(engine: int) -> int | None:
    """Collect every child that has exited; the engine's code when it is among them."""
    code = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return code
        if pid == 0:
            return code
        if pid == engine:
            code = os.waitstatus_to_exitcode(status)


def _end(engine: int, grace: float) -> int:
    _signal_group(engine, signal.SIGTERM)
    code = _reap_until(engine, time.monotonic() + grace)
    if code is None:
        _signal_group(engine, signal.SIGKILL)
        code = _reap_until(engine, time.monotonic() + _KILL_S)
    return -signal.SIGKILL if code is None else code


def _reap_until(engine: int, deadline: float) -> int | None:
    while (code := _reap(engine)) is None and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    return code


def _signal_group(group: int, number: int) -> None:
    with contextlib.suppress(OSError):  # nobody is left in it
        os.killpg(group, number)


def _kill_all() -> None:
    """SIGKILL every descendant, until there is none."""
    deadline = time.monotonic() + _KILL_S
    empty = 0
    while time.monotonic() < deadline:
        left = _descendants(os.getpid())
        # One empty reading is not enough: /proc is not read in one moment, and an orphan may be on its way to us.
        empty = 0 if left else empty + 1
        if empty > 1:
            return
        for pid in left:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        _reap(0)
        time.sleep(_POLL_S)


def _descendants(ancestor: int) -> list[int]:
    """Every process below `ancestor`, from /proc.

    Zombies count: one that has threads left still has its children, and they would be overlooked with it.
    """
    children: dict[int, list[int]] = {}
    try:
        names = os.listdir("/proc")  # noqa: PTH208 - pathlib would be half of this program's start
    except OSError:
        return []
    for name in names:
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:  # noqa: PTH123
                    # The command name may hold spaces and brackets, so read from behind its last bracket.
                    parent = int(file.read().rpartition(b")")[2].split()[1])
            except (OSError, ValueError, IndexError):
                continue
            children.setdefault(parent, []).append(int(name))
    found, queue = [], [ancestor]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found


def _shared_by(pids: Iterable[int]) -> set[str]:
    """The files under /dev/shm that one of these processes has mapped."""
    found = set()
    for pid in pids:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/maps", errors="replace") as maps:  # noqa: PTH123
            found |= {line.split(maxsplit=5)[-1].rstrip("\n") for line in maps if _SHARED in line}
    return {path for path in found if path.startswith(_SHARED) and not path.endswith(" (deleted)")}


def _remove_unused(paths: set[str]) -> None:
    """Remove those of these files that no process has mapped (any more)."""
    if left := {path for path in paths if os.path.exists(path)}:  # noqa: PTH110
        for path in left - _shared_by(int(name) for name in os.listdir("/proc") if name.isdigit()):  # noqa: PTH208
            with contextlib.suppress(OSError):
                os.unlink(path)  # noqa: PTH108


if __name__ == "__main__":
    # The one that stays leaves by _exit as well: there is nothing to flush, and no replica to surprise.
    os._exit(main())
