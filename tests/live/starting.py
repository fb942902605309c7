"""Servers that start while something else happens. Most of a start is one core importing, so two at once cost hardly more."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from deployments.vllm_process import VllmProcess
from tests.deployments.processes import MARK

PARENT = Path(__file__).parent.parent / "deployments" / "parent.py"


class Starting:
    """A server whose supervisor has a loop of its own, as it has inside Serve; `start` runs in a thread.

    `process` may be used once `wait` has returned.
    """

    def __init__(self, process: VllmProcess) -> None:
        self.process = process
        self.loop = asyncio.new_event_loop()
        self._pool = ThreadPoolExecutor(1)
        self._started = self._pool.submit(self.loop.run_until_complete, process.start())

    def wait(self) -> VllmProcess:
        """The server, up.

        Raises:
            EngineStartError: it did not come up.
        """
        self._started.result()
        return self.process

    def stop(self) -> None:
        """End it, started or not; once is enough."""
        if self.loop.is_closed():
            return
        with contextlib.suppress(Exception):
            self._started.result()
        self.loop.run_until_complete(self.process.stop())
        self.loop.close()
        self._pool.shutdown()


class Parented:
    """A server with a parent process of its own, which can be killed; `mark` is in the environment of all that comes of it."""

    def __init__(self, model: dict[str, Any], argv: Sequence[str], logs: Path) -> None:
        self.mark = uuid.uuid4().hex
        environment = {**os.environ, MARK: self.mark, "PYTHONPATH": os.pathsep.join(sys.path), "TIDEGATE_LOG_DIR": str(logs)}
        options = json.dumps({"model": model, "argv": list(argv)})
        self.parent = subprocess.Popen([sys.executable, str(PARENT), options], stdout=subprocess.PIPE, env=environment)

    def wait(self) -> int:
        """The port it listens on, once it is up."""
        assert self.parent.stdout is not None
        said = self.parent.stdout.readline().split()
        assert said, "the server did not come up"
        return int(said[2])

    def kill(self) -> None:
        """Kill the parent; the server is to go with it."""
        self.parent.kill()
        self.parent.wait()


def install(folder: Path, *requirements: str, python: Path | str | None = None) -> str:
    """Install packages into `folder`, or into the environment of `python`; what went wrong, or an empty text."""
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    where = ["--python", str(python)] if python else ["--python", sys.executable, "--target", str(folder)]
    if uv:
        command = [uv, "pip", "install", *where]
    elif python:
        command = [sys.executable, "-m", "pip", "--python", str(python), "install"]
    else:
        command = [sys.executable, "-m", "pip", "install", "--target", str(folder)]
    # As scripts/quickstart does: pip's settings for a mirror or proxy hold for uv too.
    environment = {"UV_SYSTEM_CERTS": "true", **os.environ}
    if environment.get("PIP_CERT"):
        environment.setdefault("SSL_CERT_FILE", environment["PIP_CERT"])
    done = subprocess.run([*command, "-q", *requirements], capture_output=True, text=True, env=environment)
    return (done.stderr.strip().splitlines() or ["no message"])[-1] if done.returncode else ""
