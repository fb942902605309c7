"""Load on a URL: by `wrk`, or by the small client of this folder where there is no `wrk`."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from . import bodies

MARK = "datapath: "
NO_WRK = "wrk is not installed (apt-get install wrk): a slower client in Python loads instead, marked `python`"
_HERE = Path(__file__).resolve().parent


class LoadError(RuntimeError):
    """The load generator itself failed."""


@dataclass(frozen=True)
class Load:
    """What one run of the load generator counted. A request counts when its response is complete."""

    requests: int
    duration_s: float
    p50_ms: float
    p99_ms: float
    bytes: int
    status_errors: int
    socket_errors: int
    timeouts: int

    @property
    def rps(self) -> float:
        """Complete responses a second."""
        return self.requests / self.duration_s if self.duration_s else 0.0

    @property
    def faults(self) -> str:
        """What went wrong, in words; empty when nothing did."""
        named = {"answers that are not 2xx": self.status_errors, "socket errors": self.socket_errors}
        named["timeouts"] = self.timeouts
        return ", ".join(f"{count} {name}" for name, count in named.items() if count)


def parse(output: str) -> Load:
    """Read the line that `load.lua` (or the Python client) prints.

    Raises:
        LoadError: there is none.
    """
    for line in output.splitlines():
        if line.startswith(MARK):
            return Load(**json.loads(line.removeprefix(MARK)))
    raise LoadError("the load generator printed no result: " + " / ".join(output.strip().splitlines()[-3:]))


def generator() -> str:
    """Which load generator there is: `wrk` or `python`."""
    return "wrk" if shutil.which("wrk") else "python"


def command(url: str, pool: Path, connections: int, seconds: int) -> list[str]:
    """The command line of one run."""
    if generator() == "wrk":
        wrk = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s", "--latency"]
        return [*wrk, "-s", str(_HERE / "load.lua"), url + bodies.PATH, "--", str(pool), bodies.KEY]
    client = [sys.executable, str(_HERE / "client.py"), "--url", url + bodies.PATH, "--bodies", str(pool)]
    return [*client, "--key", bodies.KEY, "--connections", str(connections), "--seconds", str(seconds)]


def run(url: str, pool: Path, connections: int, seconds: int) -> Load:
    """Load `url` with the bodies of `pool`.

    Raises:
        LoadError: the generator did not come back with a result.
    """
    argv = command(url, pool, connections, seconds)
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=seconds + 60, check=False)
    except subprocess.TimeoutExpired:
        raise LoadError(f"{argv[0]} did not end within {seconds + 60} s") from None
    return parse(done.stdout + done.stderr)
