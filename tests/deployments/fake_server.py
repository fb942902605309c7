"""A stand-in for a vLLM server: guarded like one, with the metrics and model list of one. Usage: PORT [MODE]

Modes: `stubborn` ignores SIGTERM and starts a child that ignores it too, in a session of its own; `bad-argument` ends
as vLLM does on an argument it does not know; `silent` never listens; `sharing` has a file under /dev/shm together with a child.
"""

import asyncio
import mmap
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import uvicorn

from router.residency.engine_guard import EngineGuard

METRICS = b"""# HELP vllm:num_requests_running Number of requests in model execution batches.
vllm:num_requests_running{engine="0",model_name="fake"} 3.0
vllm:num_requests_waiting{engine="0",model_name="fake"} 2.0
vllm:kv_cache_usage_perc{engine="0",model_name="fake"} 0.25
"""
SHARER = """import sys, time; from tests.deployments.fake_server import share
shared = share(sys.argv[1]); print(len(shared), flush=True); time.sleep(600)"""
BODIES = {"/health": b"", "/metrics": METRICS, "/v1/models": b'{"data":[{"id":"fake","max_model_len":2048}]}'}


async def application(scope, receive, send):
    if scope["type"] == "lifespan":
        while (message := await receive())["type"] != "lifespan.shutdown":
            await send({"type": message["type"] + ".complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    body = BODIES.get(scope["path"])
    await send({"type": "http.response.start", "status": 404 if body is None else 200, "headers": []})
    await send({"type": "http.response.body", "body": body or b""})


def share(path):
    with Path(path).open("r+b") as file:
        return mmap.mmap(file.fileno(), 0)


def main() -> None:
    port, mode = int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else ""
    if mode == "bad-argument":
        print("usage: api_server.py [-h]\n                     [--model MODEL]", file=sys.stderr)
        sys.exit("api_server.py: error: unrecognized arguments: --max-modle-len 2048")
    if mode == "silent":
        time.sleep(600)
    if mode == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child = subprocess.Popen(["sleep", "600"], start_new_session=True)
        grandchild = subprocess.Popen(["sh", "-c", "trap '' TERM; sleep 600 & wait"], start_new_session=True)
        print("children", child.pid, grandchild.pid, flush=True)
    if mode == "sharing":
        path = f"/dev/shm/tidegate-test-{os.getpid()}"
        Path(path).write_bytes(b"prompt")
        shared = share(path)
        child = subprocess.Popen([sys.executable, "-c", SHARER, path], start_new_session=True, stdout=subprocess.PIPE)
        print("child", child.pid, "shares", len(shared), child.stdout.readline(), flush=True)
    print("pid", os.getpid(), flush=True)
    config = uvicorn.Config(EngineGuard(application), host="127.0.0.1", port=port, log_level="warning")
    server = uvicorn.Server(config)
    if mode == "stubborn":
        asyncio.run(server._serve())
    else:
        server.run()


if __name__ == "__main__":
    main()
