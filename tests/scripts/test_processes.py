from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console
from tidegate import lifecycle, processes
from tidegate.home import RUN_ID, Home

# A parent with a child in a session of its own, an orphan that was forked off twice, and one that ignores SIGTERM.
TREE = """
import os, signal, subprocess, sys, time
if os.fork() == 0:
    if os.fork() == 0:
        os.setsid()
        time.sleep(300)
    os._exit(0)
os.wait()
subprocess.Popen(["sleep", "300"], start_new_session=True)
stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('on', flush=True); time.sleep(300)"
child = subprocess.Popen([sys.executable, "-c", stubborn], stdout=subprocess.PIPE)
child.stdout.readline()
# Its environment says nothing of us, as with processes that write their title over it: found through its parent.
subprocess.Popen(["sleep", "300"], env={})
print("up", flush=True)
time.sleep(300)
"""


@pytest.fixture
def run_id() -> Iterator[str]:
    run_id = f"test-{secrets.token_hex(6)}"
    yield run_id
    with contextlib.suppress(RuntimeError):
        processes.stop_all(run_id, grace_s=0)


def start_tree(run_id: str) -> subprocess.Popen[str]:
    tree = subprocess.Popen(
        [sys.executable, "-c", TREE],
        env={**os.environ, RUN_ID: run_id},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert tree.stdout is not None
    assert tree.stdout.readline() == "up\n"
    return tree


def test_stop_ends_children_orphans_and_the_stubborn_and_nobody_else(run_id: str) -> None:
    stranger = subprocess.Popen(["sleep", "300"], env={**os.environ, RUN_ID: f"other-{run_id}"})
    try:
        tree = start_tree(run_id)
        assert len(processes.find_ours(run_id)) == 5
        reported: list[int] = []
        assert processes.stop_all(run_id, grace_s=0.5, report=reported.append) == 5
        assert processes.find_ours(run_id) == []
        assert reported[0] == 5
        assert tree.wait(5) == -signal.SIGTERM
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_stop_also_works_after_the_starter_was_killed(run_id: str) -> None:
    tree = start_tree(run_id)
    tree.kill()
    tree.wait()
    time.sleep(0.1)
    assert len(processes.find_ours(run_id)) == 4
    processes.stop_all(run_id, grace_s=0.3)
    assert processes.find_ours(run_id) == []


def test_stopping_nothing_is_quick_and_says_zero() -> None:
    assert processes.stop_all(f"test-{secrets.token_hex(6)}") == 0


def test_the_caller_and_its_ancestors_are_never_found(run_id: str) -> None:
    code = f"from tidegate import processes; print(processes.stop_all({run_id!r}, grace_s=0))"
    env = {**os.environ, RUN_ID: run_id, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "0\n"


def test_the_run_file_survives_a_round_trip_and_rubbish_is_no_run(home: Home) -> None:
    assert processes.load_run(home) is None
    run = processes.Run(processes.new_run_id(home), "c.yaml", 8000, 8001, "10.0.0.1:6379")
    assert run.run_id.startswith(home.tag)
    processes.save_run(home, run)
    assert processes.load_run(home) == run
    for rubbish in ("", "{", "[]", '{"run_id": 1, "unknown": 2}'):
        home.run_file.write_text(rubbish)
        assert processes.load_run(home) is None


def test_down_ends_an_up_that_is_at_work_and_waits_for_it(tmp_path: Path) -> None:
    home = Home(tmp_path)
    (tmp_path / ".tidegate").mkdir()
    program = (
        "import fcntl, os, signal, sys, time\n"
        f"lock = open({str(tmp_path / '.tidegate' / 'up.lock')!r}, 'a+')\n"
        "fcntl.flock(lock, fcntl.LOCK_EX); lock.write(str(os.getpid())); lock.flush()\n"
        "def end(*_): time.sleep(1); sys.exit(130)\n"
        "signal.signal(signal.SIGTERM, end); print('held', flush=True)\n"
        "while True: time.sleep(0.1)\n"  # one long sleep would be slept to its end by a signal that comes just before it
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        assert lifecycle.down(home, Console(quiet=True)) == 1
        assert other.wait(1) == 130
    assert lifecycle.down(home, Console(quiet=True)) == 0
