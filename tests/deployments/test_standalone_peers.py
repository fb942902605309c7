"""Two router processes without Ray: what one sends, the other reckons with; what one is killed over, the other forgets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
from pathlib import Path

import httpx
import pytest

from deployments import standalone
from router.config import ConfigError
from tests.router.builders import digest
from tests.router.conftest import KEY, free_port
from tests.router.simulated_engine import SimulatedEngine

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = "import sys, pathlib; from deployments.standalone import run; run(pathlib.Path(sys.argv[1]), *map(int, sys.argv[2:]))"
LIMIT_S = 60


class Process:
    """A router process, by its two ports."""

    def __init__(self, process, port, admin):
        self.process, self.port, self.admin = process, port, admin

    async def inflight(self, client):
        told = (await client.get(f"http://127.0.0.1:{self.admin}/tidegate/v1/cluster")).json()
        return {target["target"]: target["inflight"] for target in told["targets"]}

    async def heard(self, client):
        with contextlib.suppress(httpx.ConnectError):
            text = (await client.get(f"http://127.0.0.1:{self.admin}/metrics")).text
            return float(re.search(r"^tidegate_peers_heard\S* (\S+)", text, re.M)[1])
        return -1

    async def chat(self, client, wish):
        body = {"model": "m", "messages": [{"role": "user", "content": wish}]}
        headers = {"authorization": f"Bearer {KEY}"}
        return await client.post(f"http://127.0.0.1:{self.port}/v1/chat/completions", json=body, headers=headers)


def write_config(folder, engines, peers, **changes):
    path = folder / "config.yaml"
    server = {"kind": "server", "vouched": True, "zone": "here", "models": {"m": "m"}}
    config = {
        "zones": {"here": {}},
        "listen": {"host": "127.0.0.1"},
        "targets": [{**server, "id": name, "url": f"http://127.0.0.1:{engine.port}"} for name, engine in engines.items()],
        "keys": [{"id": "client", "sha256": digest(KEY)}],
        "secret": {"env": "PEERS_TEST_SECRET"},
        "router": {"peers": peers},
        "audit": {"enabled": False},
        **changes,
    }
    path.write_text(json.dumps(config))
    return path


async def start(config, folder, name):
    port, admin = free_port(), free_port()
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PEERS_TEST_SECRET": "a secret of the test, 32 bytes and more",
        "TIDEGATE_HOME": str(folder / name),
    }
    argv = [sys.executable, "-c", PROGRAM, str(config), str(port), str(admin)]
    with (folder / f"{name}.log").open("wb") as log:
        return Process(await asyncio.create_subprocess_exec(*argv, env=env, stdout=log, stderr=log), port, admin)


async def until(condition):
    """Ask until it holds."""
    async with asyncio.timeout(LIMIT_S):
        while not await condition():
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def two_routers(folder):
    engines = {"a": SimulatedEngine(), "b": SimulatedEngine()}
    for engine in engines.values():
        await engine.start()
    config = write_config(folder, engines, [f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"])
    routers = []
    try:
        async with httpx.AsyncClient(timeout=LIMIT_S) as client:
            for name in ("one", "two"):
                (folder / name).mkdir()
                routers.append(await start(config, folder, name))
            for router in routers:
                await until(lambda router=router: _equals(router.heard(client), 1))
            yield engines, routers, client
    finally:
        for router in routers:
            with contextlib.suppress(ProcessLookupError):
                router.process.kill()
            await router.process.wait()
        for engine in engines.values():
            await engine.stop()


async def _equals(value, wanted):
    return await value == wanted


@pytest.mark.timeout(180)
async def test_what_one_process_sends_the_other_sees_places_around_and_sees_end(tmp_path):
    async with two_routers(tmp_path) as (engines, (one, two), client):
        waiting = asyncio.create_task(one.chat(client, "gated"))
        await until(lambda: _equals(two.inflight(client), {"a": 1, "b": 0}))
        response = await two.chat(client, "hello")
        assert response.headers["x-tidegate-target"] == "b", "the other place is free, and looks it"
        engines["a"].gate.release()
        assert (await waiting).status_code == 200
        await until(lambda: _equals(two.inflight(client), {"a": 0, "b": 0}))
        await until(lambda: _equals(one.inflight(client), {"a": 0, "b": 0}))


@pytest.mark.timeout(180)
async def test_the_requests_of_a_process_that_is_killed_are_forgotten_and_its_successor_is_heard(tmp_path):
    async with two_routers(tmp_path) as (_, (one, two), client):
        lost = asyncio.create_task(one.chat(client, "gated"))
        await until(lambda: _equals(two.inflight(client), {"a": 1, "b": 0}))
        one.process.send_signal(signal.SIGKILL)
        await one.process.wait()
        with pytest.raises(httpx.TransportError):
            await lost
        await until(lambda: _equals(two.inflight(client), {"a": 0, "b": 0}))
        next_one = await start(tmp_path / "config.yaml", tmp_path, "one")
        try:
            await until(lambda: _equals(two.heard(client), 1))
            await until(lambda: _equals(next_one.heard(client), 1))
        finally:
            next_one.process.kill()
            await next_one.process.wait()


@pytest.mark.parametrize(
    ("peers", "message"),
    [
        (["router-1:7001"], "numbers and no name"),
        (["10.0.0.1"], "no address with a port"),
        (["10.0.0.1:0"], "no address with a port"),
        (["fd00::1:7001"], "no address with a port"),
        (["127.0.0.1:7001", "127.0.0.1:7001"], "stands here twice"),
    ],
)
def test_peers_that_are_no_addresses_are_refused_with_what_to_write(tmp_path, peers, message):
    with pytest.raises(ConfigError, match=message):
        standalone.run(write_config(tmp_path, {"a": SimulatedEngine()}, peers))


def test_peers_without_a_secret_and_addresses_of_other_machines_are_refused(tmp_path, monkeypatch):
    engine = SimulatedEngine()
    engine.port = 9
    monkeypatch.setenv("TIDEGATE_HOME", str(tmp_path))
    monkeypatch.setenv("PEERS_TEST_SECRET", "s" * 32)
    with pytest.raises(ConfigError, match="same `secret`"):
        standalone.run(write_config(tmp_path, {"a": engine}, ["127.0.0.1:7001"], secret={}))
    with pytest.raises(ConfigError, match=r"none of 192\.0\.2\.1:7001"):
        standalone.run(write_config(tmp_path, {"a": engine}, ["192.0.2.1:7001"]))


async def _start(folder, engine, program):
    """A router process of a program of its own, which writes its log to `log`."""
    config = write_config(folder, {"a": engine}, [])
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PEERS_TEST_SECRET": "a secret of the test, 32 bytes and more",
        "TIDEGATE_HOME": str(folder),
    }
    port, admin = free_port(), free_port()
    with (folder / "log").open("wb") as log:
        argv = [sys.executable, "-c", program, str(config), str(port), str(admin)]
        return Process(await asyncio.create_subprocess_exec(*argv, env=env, stdout=log, stderr=log), port, admin)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_a_signal_to_end_lets_what_runs_end_first(number, tmp_path):
    engine = SimulatedEngine()
    await engine.start()
    router = await _start(tmp_path, engine, PROGRAM)
    process = router.process
    try:
        async with httpx.AsyncClient(timeout=LIMIT_S) as client:

            async def is_ready():
                with contextlib.suppress(httpx.TransportError):
                    return (await client.get(f"http://127.0.0.1:{router.port}/readyz")).status_code == 200
                return False

            await until(is_ready)
            running = asyncio.create_task(router.chat(client, "gated"))
            await until(lambda: _equals(_entered(engine), 1))
            process.send_signal(number)
            process.send_signal(number)
            engine.gate.release()
            assert (await running).status_code == 200
            assert await process.wait() == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        await engine.stop()


async def _entered(engine):
    return sum("completions" in request["line"] for request in engine.requests)


@pytest.mark.timeout(180)
async def test_a_router_of_which_a_part_has_ended_by_itself_says_so_and_ends(tmp_path):
    engine = SimulatedEngine()
    await engine.start()
    dying = (
        "import deployments.server_gauges as gauges\n"
        "async def fails(self, publish=None): raise KeyError('secret')\n"
        "gauges.ServerGauges.run = fails\n"
        "import sys; from tidegate.cli import main\n"
        "sys.argv = ['tidegate', 'router', '--config', sys.argv[1], '--port', sys.argv[2], '--admin-port', sys.argv[3]]\n"
        "main()\n"
    )
    process = (await _start(tmp_path, engine, f"import sys; sys.path.insert(0, {str(ROOT / 'scripts')!r})\n{dying}")).process
    try:
        async with asyncio.timeout(LIMIT_S):
            assert await process.wait() == 1
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await engine.stop()
    told = (tmp_path / "log").read_text()
    assert "a part of this router has ended (KeyError)" in told
    assert "Traceback" not in told
    assert "secret" not in told
