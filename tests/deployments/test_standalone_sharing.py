"""A router without Ray whose port another process has open as well: the kernel deals clients out to both, so it is said."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from router.wire.listening import open_socket
from tests.deployments.outside import ROOT, free_port

PROGRAM = "import sys, pathlib; from deployments.standalone import run; run(pathlib.Path(sys.argv[1]))"


def said_when_started(folder: Path, port: int) -> str:
    """What a router at that port prints until it listens."""
    config = {
        "zones": {"here": {}},
        "listen": {"host": "127.0.0.1", "port": port},
        "admin": {"port": free_port()},
        "targets": [
            {"id": "a", "kind": "server", "vouched": True, "zone": "here", "url": "http://127.0.0.1:9", "models": {"m": "m"}}
        ],
        "audit": {"enabled": False},
    }
    (folder / "config.yaml").write_text(json.dumps(config))
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TIDEGATE_HOME": str(folder)}
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder / "config.yaml")], env=env, stderr=subprocess.PIPE
    ) as router:
        assert router.stderr is not None
        said = ""
        try:
            while "tidegate router: 1 targets" not in said and (line := router.stderr.readline()):
                said += line.decode()
        finally:
            router.kill()
    assert "tidegate router: 1 targets" in said
    return said


def test_a_router_names_who_else_has_its_port(tmp_path: Path) -> None:
    port = free_port()
    assert "shared" not in said_when_started(tmp_path, port)
    with open_socket("127.0.0.1", port):
        assert f"shared with the processes {os.getpid()}," in said_when_started(tmp_path, port)
