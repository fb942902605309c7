"""A router and an egress as processes of their own, over engines and providers on loopback, in a home of their own."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import yaml

ROOT = Path(__file__).resolve().parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def dump_core_if_you_can() -> None:
    """Before `exec`: nothing but the process itself keeps it from leaving a core dump."""
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))


class Outside:
    """Everything that is written lies under `home`: the state, the temporary files, the outputs, core dumps.

    Args:
        home: an empty directory.
        config: the configuration, without ports, egress and secret.
        environment: more of it, for both processes.
    """

    def __init__(self, home: Path, config: dict[str, Any], environment: dict[str, str]) -> None:
        self.home, self.port, self.admin_port, self.egress_port = home, free_port(), free_port(), free_port()
        self.url, self.admin = f"http://127.0.0.1:{self.port}", f"http://127.0.0.1:{self.admin_port}"
        (home / "tmp").mkdir()
        (home / "secret").write_text("s3cret-" * 8)
        whole = {
            "listen": {"host": "127.0.0.1", "port": self.port},
            "admin": {"host": "127.0.0.1", "port": self.admin_port},
            "egress": {"url": f"http://127.0.0.1:{self.egress_port}"},
            "secret": {"file": "secret"},
            "policy_file": "policy.yaml",
            **config,
        }
        self.set_policy({})
        self.config = home / "config.yaml"
        self.config.write_text(yaml.safe_dump(whole))
        path = os.pathsep.join([str(ROOT), str(ROOT / "scripts")])
        own = {"TIDEGATE_HOME": str(home), "TMPDIR": str(home / "tmp"), "HOME": str(home), "PYTHONPATH": path}
        self._environment = {**os.environ, **own, "PYTHONFAULTHANDLER": "1", **environment}
        self.router = self.egress = self._nothing()
        self._client = httpx.Client(timeout=30, limits=httpx.Limits(max_keepalive_connections=0))

    def start(self) -> None:
        self.start_egress()
        self.start_router()

    def start_router(self) -> None:
        self.router = self._start("router", "-c", "from tidegate.cli import main; main()", "router", "--config", str(self.config))
        self._wait(self.url + "/healthz", self.router)

    def start_egress(self) -> None:
        arguments = ("-m", "deployments.egress", "--config", str(self.config), "--port", str(self.egress_port))
        self.egress = self._start("egress", *arguments)
        self._wait(f"http://127.0.0.1:{self.egress_port}/healthz", self.egress)

    def set_policy(self, part: dict[str, Any]) -> None:
        """Put a policy file into force; `epoch` says when it is."""
        fresh = self.home / "policy.new"
        fresh.write_text(yaml.safe_dump(part) + "...\n")
        fresh.replace(self.home / "policy.yaml")

    def epoch(self) -> str:
        return str(httpx.get(self.admin + "/readyz").json()["epoch"])

    def tidegate(self, *arguments: str) -> str:
        """What a command says, run as an operator of this home would."""
        command = [sys.executable, "-c", "from tidegate.cli import main; main()", *arguments]
        done = subprocess.run(command, env=self._environment, cwd=self.home, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def chat(self, key: str, content: str, **more: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {key}", **more.pop("headers", {})}
        messages = [*more.pop("history", []), {"role": "user", "content": content}]
        body = {"model": "m", "messages": messages, **more}
        return self._client.post(self.url + "/v1/chat/completions", json=body, headers=headers)

    def stop(self) -> None:
        for process in (self.router, self.egress):
            if process.poll() is None:
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(20)
            if process.poll() is None:
                process.kill()
                process.wait()

    def end(self, process: subprocess.Popen[bytes], number: signal.Signals) -> None:
        """End one of the two with a signal."""
        process.send_signal(number)
        process.wait(30)

    def _nothing(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen([sys.executable, "-c", ""])
        process.wait()
        return process

    def _start(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.home / f"{name}.out").open("ab") as out:
            return subprocess.Popen(
                [sys.executable, *arguments],
                cwd=self.home,
                env=self._environment,
                stdout=out,
                stderr=out,
                preexec_fn=dump_core_if_you_can,
            )

    def _wait(self, url: str, process: subprocess.Popen[bytes], seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and process.poll() is None:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(url, timeout=5).status_code == 200:
                    return
            time.sleep(0.05)
        said = "".join(file.read_text(errors="replace")[-2000:] for file in self.home.glob("*.out"))
        raise AssertionError(f"{url} does not answer: {said}")
