"""Routers of this checkout in front of simulated engines, each with its own departures from the usual configuration."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from _datapath import bodies, procs, systems


class Started:
    """A router that runs: where it answers, and its process."""

    def __init__(self, url: str, process: subprocess.Popen[bytes]) -> None:
        self.url = url
        self.pid = process.pid


def free_ports(count: int) -> int:
    """The first of so many neighbouring ports that are free."""
    for first in range(31500, 60000, 97):
        with contextlib.ExitStack() as stack:
            try:
                for port in range(first, first + count):
                    stack.enter_context(socket.socket()).bind((systems.HOST, port))
            except OSError:
                continue
            return first
    raise RuntimeError("no free ports")


@contextlib.contextmanager
def running(work: Path, root: Path, variants: list[dict[str, Any]], engines: int = 4) -> Iterator[list[Started]]:
    """Simulated engines and, before them, one router for every variant of the configuration, all answering.

    Args:
        work: where files may be put.
        root: the checkout.
        variants: top-level settings that replace those of the usual configuration, one mapping for each router.
        engines: how many engines each router has.
    """
    first = free_ports(engines + 2 * len(variants))
    with contextlib.ExitStack() as stack:
        mock = [sys.executable, str(root / "scripts/bench/_datapath/mock_engine.py"), "--first-port", str(first)]
        work.mkdir(parents=True, exist_ok=True)
        stack.callback(procs.stop, procs.start([*mock, "--count", str(engines)], work / "engines.log"))
        urls = [f"http://{systems.HOST}:{first + number}" for number in range(engines)]
        started = []
        for number, variant in enumerate(variants):
            home = work / f"router-{number}"
            home.mkdir(parents=True)
            port = first + engines + 2 * number
            launch = systems.tidegate(systems.Bench(root, home, sys.executable, urls), port)
            config = Path(launch.argv[-1])
            config.write_text(json.dumps({**json.loads(config.read_text()), **variant}))
            process = procs.start(launch.argv, home / "log", {**launch.env, "PYTHONPATH": os.pathsep.join([str(root)])})
            stack.callback(procs.stop, process)
            started.append(Started(launch.url, process))
        for number, router in enumerate(started):
            _wait(router, work / f"router-{number}" / "log")
        yield started


def _wait(router: Started, log: Path) -> None:
    body = bodies.body(bodies.find("json-20"), 0)
    headers = {"authorization": f"Bearer {bodies.KEY}", "content-type": "application/json"}
    end = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(urllib.request.Request(router.url + bodies.PATH, body, headers), timeout=5).read()
            return
        except (urllib.error.URLError, OSError) as error:
            if time.monotonic() > end:
                raise RuntimeError(f"the router does not answer: {error}\n{log.read_text(errors='replace')[-2000:]}") from None
        time.sleep(0.2)


def cpu_by_thread(pid: int) -> dict[int, float]:
    """CPU seconds of each thread of a process, from the scheduler's own count in nanoseconds."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            found[int(task.name)] = int((task / "schedstat").read_text().split()[0]) / 1e9
    return found
