"""A supervised server, with a stand-in for vLLM: start, health, hang, stop, and nothing left behind."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import httpx
import msgspec
import pytest

from deployments import leash
from deployments.engine_errors import EngineStartError
from deployments.vllm_process import EnginePlan, VllmProcess, free_port, log_file
from router.config import ConfigError, Model
from router.residency.guard import GuardPolicy, Place

from .fake_server import share
from .processes import MARK, marked, wait_until

FAKE = [sys.executable, str(Path(__file__).with_name("fake_server.py")), "{port}"]
PARENT = str(Path(__file__).with_name("parent.py"))
MODEL = {"id": "fake", "source": "fake", "replicas": [{"zone": "local"}], "startup_timeout_s": 60}


@pytest.fixture
def mark(monkeypatch, tmp_path):
    name = uuid.uuid4().hex
    monkeypatch.setenv(MARK, name)
    monkeypatch.setenv("TIDEGATE_LOG_DIR", str(tmp_path / "logs"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    yield name
    for pid in marked(name):
        os.kill(pid, signal.SIGKILL)


def make(*mode: str, **changes) -> VllmProcess:
    plan = EnginePlan(Model(**{**MODEL, **changes}), "127.0.0.1", "one", b"k" * 32, Place(("local",), ("local",)), stop_grace_s=1)
    return VllmProcess(plan, [*FAKE, *mode])


async def test_up_described_and_stopped(mark):
    process = make(args=["--max-num-seqs=16"])
    await process.start()
    assert await process.is_healthy()
    assert (process.context_tokens, process.slots) == (2048, 16)
    process.take_policy(msgspec.json.encode(GuardPolicy("e", 1.0, {}, {})))
    signals = await process.read_signals()
    assert (signals.running, signals.waiting, signals.kv_usage) == (3, 2, 0.25)
    async with httpx.AsyncClient(trust_env=False) as stranger:
        assert (await stranger.get(f"http://127.0.0.1:{process.port}/health")).status_code == 403
    await process.stop()
    assert not process.alive and not await process.is_healthy()
    assert marked(mark) == []
    assert list(process.log_path.parent.iterdir()) == [process.log_path]
    assert process.log_path.stat().st_mode & 0o077 == 0


async def test_the_log_is_private_even_if_the_mask_is_open(mark):
    before = os.umask(0)
    try:
        process = make()
        await process.start()
        await process.stop()
    finally:
        os.umask(before)
    assert process.log_path.stat().st_mode & 0o077 == 0


async def test_a_hung_server_is_unhealthy_and_can_still_be_stopped(mark):
    process = make()
    await process.start()
    os.kill(process.pid, signal.SIGSTOP)
    assert process.alive
    assert not await process.is_healthy(0.5)
    await process.stop()
    assert marked(mark) == []


async def test_a_killed_server_is_noticed(mark):
    process = make()
    await process.start()
    os.kill(process.pid, signal.SIGKILL)
    assert await asyncio.to_thread(wait_until, lambda: not process.alive, 10)
    assert process.exit_code == -signal.SIGKILL
    assert not await process.is_healthy()
    await process.stop()


async def test_a_stubborn_server_and_its_runaway_children_are_killed(mark):
    process = make("stubborn")
    await process.start()
    assert len(marked(mark)) >= 4
    await process.stop()
    assert marked(mark) == []


async def test_a_wrong_argument_reads_as_such_and_leaves_nothing(mark):
    process = make("bad-argument")
    with pytest.raises(EngineStartError) as caught:
        await process.start()
    text = str(caught.value)
    assert "vLLM does not accept: --max-modle-len 2048" in text
    assert "exit code 1" in text and str(process.log_path) in text
    assert "usage:" not in text and "[--model MODEL]" not in text
    assert await asyncio.to_thread(wait_until, lambda: marked(mark) == [], 10)


async def test_a_server_that_never_answers_times_out(mark):
    process = make("silent", startup_timeout_s=1.5)
    with pytest.raises(EngineStartError, match=r"did not answer within .* `startup_timeout_s`"):
        await process.start()
    assert marked(mark) == []


async def test_what_another_user_answers_in_the_engines_place_is_refused(mark, monkeypatch):
    monkeypatch.setattr("deployments.port_owner.os.geteuid", lambda: os.getuid() + 1)
    with pytest.raises(EngineStartError, match=f"the user with the id {os.getuid()} took the port"):
        await make().start()
    assert marked(mark) == []


async def test_a_program_that_is_not_there(mark):
    plan = EnginePlan(Model(**MODEL), "127.0.0.1", "one", b"k" * 32, Place(("local",), ("local",)))
    process = VllmProcess(plan, ["/nowhere/python"])
    with pytest.raises(EngineStartError, match="cannot execute /nowhere/python"):
        await process.start()


@pytest.mark.parametrize("death", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("mode", [[], ["stubborn"]])
def test_a_parent_that_dies_leaves_nothing(mark, death, mode):
    options = json.dumps({"model": MODEL, "argv": [*FAKE, *mode]})
    parent = subprocess.Popen([sys.executable, PARENT, options], stdout=subprocess.PIPE)
    assert parent.stdout is not None and parent.stdout.readline()
    assert len(marked(mark)) >= 3
    parent.send_signal(death)
    parent.wait()
    assert wait_until(lambda: marked(mark) == [], 30), marked(mark)


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.parametrize("which", ["holder", "warden"])
def test_a_killed_leash_takes_the_server_and_its_orphans_with_it(mark, which):
    options = json.dumps({"model": MODEL, "argv": [*FAKE, "stubborn"]})
    parent = subprocess.Popen([sys.executable, PARENT, options], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    server = int(parent.stdout.readline().split()[0])
    leash_pid = parent_of(server) if which == "holder" else parent_of(parent_of(server))
    assert leash.__file__.encode() in Path(f"/proc/{leash_pid}/cmdline").read_bytes()
    os.kill(leash_pid, signal.SIGKILL)
    assert wait_until(lambda: marked(mark) in ([], [parent.pid]), 30)
    parent.kill()
    parent.wait()


async def end(death: str, process: VllmProcess) -> None:
    """End an engine of two processes in one of the ways engines end."""
    if death == "stopped":
        await process.stop()
        return
    holder = parent_of(process.pid)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    victims = {"killed": [process.pid], "all killed at once": [*map(int, children), process.pid], "holder killed": [holder]}
    for victim in victims[death]:
        os.kill(victim, signal.SIGKILL)
    await process.stop()


@pytest.mark.parametrize("death", ["stopped", "killed", "all killed at once", "holder killed"])
async def test_what_an_engine_had_in_shared_memory_goes_with_it_however_it_ends(mark, death):
    process = make("sharing")
    await process.start()
    path = Path(f"/dev/shm/tidegate-test-{process.pid}")
    assert path.read_bytes() == b"prompt"
    await end(death, process)
    assert marked(mark) == []
    assert not path.exists()


async def test_shared_memory_that_somebody_else_has_stays(mark):
    process = make("sharing")
    await process.start()
    path = Path(f"/dev/shm/tidegate-test-{process.pid}")
    with share(str(path)):
        await process.stop()
        assert path.exists()
    path.unlink()


def test_the_leash_does_not_become_a_child_that_ray_would_kill(mark):
    options = json.dumps({"model": MODEL, "argv": FAKE})
    parent = subprocess.Popen([sys.executable, PARENT, options], stdout=subprocess.PIPE)
    assert parent.stdout is not None and parent.stdout.readline()
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
    assert children == []
    parent.kill()
    parent.wait()
    assert wait_until(lambda: marked(mark) == [], 30)


def test_ports_come_from_the_range_when_one_is_given(monkeypatch):
    monkeypatch.setenv("TIDEGATE_ENGINE_PORTS", "30950-30959")
    assert 30950 <= free_port("127.0.0.1") <= 30959
    monkeypatch.setenv("TIDEGATE_ENGINE_PORTS", "many")
    with pytest.raises(ConfigError, match="is not a range"):
        free_port("127.0.0.1")


def test_log_names_are_safe_and_old_ones_go(monkeypatch, tmp_path):
    monkeypatch.setenv("TIDEGATE_LOG_DIR", str(tmp_path))
    path = log_file("org/model:a", "0123456789abcdef-cafe0001")
    assert path.parent == tmp_path and path.name == "org-model-a-cdefcafe0001.log"
    from deployments.vllm_process import prepare_log

    for i in range(60):
        (tmp_path / f"org-model-a-{i:012}.policy.json").touch()
        old = tmp_path / f"org-model-a-{i:012}.log"
        old.touch()
        os.utime(old, (time.time() - 100 + i,) * 2)
    (tmp_path / "somebody-elses.log").touch()
    prepare_log(path)
    assert len(list(tmp_path.glob("*.policy.json"))) == 50
    left = sorted(file.name for file in tmp_path.glob("*.log"))
    assert len(left) == 51 and "somebody-elses.log" in left and "org-model-a-000000000059.log" in left
