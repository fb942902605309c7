"""The Ray node that `up` starts, apart from any other Ray on this machine, and `serve run` on it."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from router.config import Config
from tidegate.home import Home, make_private, write_private

# Ray's object store holds nothing of ours (bytes never pass through Ray); its default is 30 % of the memory.
_OBJECT_STORE_BYTES = 128 * 1024 * 1024
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


def ensure_token(home: Home) -> None:
    """Make the token that every connection to this Ray must carry, once."""
    if not home.ray_token.exists():
        write_private(home.ray_token, secrets.token_hex(32))


def prepare_directory(home: Home) -> Path:
    """Make Ray's directory and drop the sessions of earlier runs, whose logs would pile up.

    Call it only while nothing of ours runs.
    """
    make_private(home.ray_directory.parent)
    directory = home.ray_directory
    directory.mkdir(exist_ok=True)
    for session in directory.glob("session_*"):
        if session.is_symlink():
            session.unlink()
        else:
            shutil.rmtree(session, ignore_errors=True)
    (directory / "ray_current_cluster").unlink(missing_ok=True)
    return directory


def start_command(config: Config, zone: str, directory: Path) -> list[str]:
    """The `ray start` that makes this machine the head node, in `zone`.

    Without a dashboard (`serve run` needs none), and on free ports instead of Ray's fixed ones: another Ray may hold
    those (one part of the dashboard listens all the same), and Ray's range for workers (10002 to 19999) may hold ours.
    """
    port, client_port, dashboard_port, agent_port = free_ports(4)
    return [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", f"--port={port}"),
        f"--ray-client-server-port={client_port}",
        "--include-dashboard=false",
        f"--dashboard-port={dashboard_port}",
        f"--dashboard-agent-listen-port={agent_port}",
        "--min-worker-port=0",
        "--max-worker-port=0",
        f"--labels={config.residency.zone_label}={zone}",
        f"--temp-dir={directory}",
        f"--num-cpus={cpus_to_declare(config)}",
        f"--object-store-memory={_OBJECT_STORE_BYTES}",
        "--disable-usage-stats",
    ]


def serve_command(config_file: Path) -> list[str]:
    """The `serve run` that hands the configuration to Serve and returns."""
    return [sys.executable, "-m", "ray.serve.scripts", "run", "--non-blocking", str(config_file)]


def cpus_to_declare(config: Config) -> int:
    """How many CPUs Ray is told this node has.

    At least what the configuration asks for: a replica that does not fit would wait for another node without an end,
    while on a small machine sharing the cores is only slower (`doctor` warns of it). One is left for the egress.
    """
    return max(os.cpu_count() or 1, math.ceil(cpus_asked(config)) + 1)


def cpus_asked(config: Config) -> float:
    """CPUs that the routers and engines of a configuration ask Ray for."""
    engines = sum(part.cpus * part.count for model in config.models for part in model.replicas)
    return config.router.replicas * config.router.cpus + engines


def read_address(directory: Path) -> str:
    """The address of the started node, `host:port`; empty when it did not start."""
    with contextlib.suppress(OSError):
        return (directory / "ray_current_cluster").read_text(encoding="utf-8").strip()
    return ""


def free_ports(count: int) -> list[int]:
    """Free TCP ports, all different, below the range that the kernel hands out to outgoing connections."""
    found: list[int] = []
    with contextlib.ExitStack() as stack:
        while len(found) < count:
            port = 20000 + secrets.randbelow(12000)
            probe = stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                probe.bind(("", port))
                found.append(port)
    return found


@dataclass(frozen=True)
class ServeState:
    """What Serve says of the application: its status, a line on what is still starting, and why it failed (if so)."""

    status: str
    waiting_for: str
    failure: str


class Watch:
    """Follows the application through a program of its own: the command line itself never imports Ray."""

    def __init__(self, environment: Mapping[str, str], log: Path) -> None:
        self._log = log
        log.unlink(missing_ok=True)
        self._process: subprocess.Popen[bytes] | None = None
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "deployments.watch"],
                stdout=output,
                stderr=subprocess.DEVNULL,
                stdin=subprocess.DEVNULL,
                env=dict(environment),
                start_new_session=True,
            )

    def latest(self) -> ServeState:
        """The latest state it saw; an empty one before the first."""
        with contextlib.suppress(OSError, ValueError, IndexError):
            complete = self._log.read_text(encoding="utf-8").rpartition("\n")[0]
            return read_state(json.loads(complete.splitlines()[-1]))
        return ServeState("", "", "")

    def close(self) -> None:
        """End the program."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


def read_state(applications: dict[str, Any]) -> ServeState:
    """Make sense of what `deployments.watch` printed: application -> status, message, deployments."""
    application: dict[str, Any] = next(iter(applications.values()), {})
    waiting, failure = [], ""
    for name, deployment in application.get("deployments", {}).items():
        message = deployment.get("message", "")
        # Serve tries again, but the same constructor with the same arguments fails the same way; only a port that
        # another process took in that moment is worth the wait.
        final = "DEPLOY_FAILED" in deployment.get("status", "")
        if final or ("failed to start" in message and "took the port" not in message):
            failure = failure or f"{name}: {reason_in(message)}"
        elif deployment.get("status") != "HEALTHY":
            counts = deployment.get("replicas", {})
            states = ", ".join(f"{count} {state.lower()}" for state, count in counts.items())
            waiting.append(f"{name} ({states or 'scheduling'})")
    status = application.get("status", "")
    if not failure and status in ("DEPLOY_FAILED", "UNHEALTHY"):
        failure = reason_in(application.get("message", "")) or f"Serve reports {status}"
    return ServeState(status, ", ".join(waiting), failure)


def reason_in(message: str) -> str:
    """The error at the end of a traceback: the last line that begins with an exception's name, and what follows it."""
    lines = _ANSI.sub("", message).strip().splitlines()
    for i in range(len(lines) - 1, -1, -1):
        if re.match(r"[A-Za-z_][\w.]*(Error|Exception|Exit|Failed|Refused|Timeout)\b: ?", lines[i]):
            return "\n".join(lines[i:])
    return "\n".join(lines[-15:])
