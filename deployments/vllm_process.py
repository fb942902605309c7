"""One vLLM server and everything its replica needs of it: start, health, signals, stop. Knows nothing of Ray."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import secrets
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import msgspec

from cluster.gpu import read_gpus, with_gpus
from cluster.gpu_faults import GpuFaults
from cluster.vllm_metrics import parse_signals
from deployments import leash
from deployments.adapters import adapter_arguments
from deployments.engine_errors import EngineStartError, explain_start_failure
from deployments.kv_agent import KvAgent, make_sockets, plan_agent, remove_sockets
from deployments.port_owner import check_listener
from deployments.vllm_command import build_argv, build_env, guard_env, resolve_source, slots_of
from deployments.vllm_options import check_model
from router.config import ConfigError, Model, home
from router.placement.targets import Signals
from router.residency.engine_pulse import ANSWERS, DEAD, PULSE_PATH
from router.residency.guard import PASS_HEADER, GuardPolicy, Pass, Place, issue_pass
from router.secret_file import make_private_directory

_POLL_S = 0.25
_OWN_PASS_S = 30.0
_LOGS_KEPT = 50
_IDLE_READINGS = 3
_LOOK_S = 10.0


class EnginePlan(msgspec.Struct, frozen=True):
    """What to start and as whom. `key` is the guard's key of this incarnation; it never leaves the node.

    `host` is the address the server listens on, `visible_gpus` its `CUDA_VISIBLE_DEVICES` (None: all), `withhold` names
    of environment variables that it must not inherit. With a `chunk_key` an agent beside it tells routers what its KV cache
    holds, in hashes under that key.
    """

    model: Model
    host: str
    incarnation: str
    key: bytes
    place: Place
    cpus: float = 1.0
    gpus: float = 0.0
    visible_gpus: str | None = ""
    withhold: frozenset[str] = frozenset()
    stop_grace_s: float = 8.0
    chunk_key: bytes = b""


class VllmProcess:
    """Supervises one server process on a leash.

    Raises:
        ConfigError: an argument or variable that is not the user's to give, or a `source` that is not there.
    """

    def __init__(self, plan: EnginePlan, argv: list[str] | None = None) -> None:
        """
        Args:
            plan: what to start.
            argv: another program in place of vLLM, for tests; `{port}` in it becomes the port.
        """
        check_model(plan.model)
        self._plan = plan
        self._argv = argv
        self._source = plan.model.source if argv else resolve_source(plan.model.source)
        self._adapters = [] if argv else adapter_arguments(plan.model, self._source)
        self._control = -1
        self._status: asyncio.Task[None] | None = None
        self._exited = asyncio.Event()
        self._looked = asyncio.Event()
        self._started_at = 0.0
        self._client: httpx.AsyncClient | None = None
        self._sockets = make_sockets(plan.model) if plan.chunk_key and argv is None else None
        self.agent: KvAgent | None = None
        self.port = 0
        self.pid = 0
        self.exit_code: int | None = None
        self.context_tokens = 0
        self.slots = slots_of(plan.model.args)
        self.log_path = log_file(plan.model.id, plan.incarnation)
        self.guard_policy = ""
        """The epoch of the policy its guard has; empty while it has none."""
        self._policy_issued = 0.0
        self._gpu_faults = GpuFaults()

    @property
    def kv_port(self) -> int:
        """Where the agent listens; 0 without one."""
        return self.agent.port if self.agent is not None else 0

    @property
    def alive(self) -> bool:
        """Whether the process runs (it may still be starting, or hang)."""
        return self.pid > 0 and self.exit_code is None and not self._exited.is_set()

    @property
    def policy_path(self) -> Path:
        """Where the guard inside the server reads its own copy of the policy."""
        return self.log_path.with_suffix(".policy.json")

    def take_policy(self, copy: bytes) -> str:
        """Write a policy for the guard, whole or not at all; one that was issued before the one it has is not taken.

        Args:
            copy: a `GuardPolicy` as JSON.

        Returns:
            What the guard has then (`GuardPolicy.stamp`).

        Raises:
            msgspec.MsgspecError: it is none.
            OSError: it cannot be written.
        """
        policy = msgspec.json.decode(copy, type=GuardPolicy)
        if policy.issued >= self._policy_issued:
            make_private_directory(self.policy_path.parent)
            fresh = self.policy_path.with_suffix(".new")
            fresh.touch(mode=0o600)
            fresh.write_bytes(copy)
            fresh.replace(self.policy_path)
            self.guard_policy, self._policy_issued = policy.stamp, policy.issued
        return self.guard_policy

    async def start(self) -> None:
        """Start the server and wait until it answers `/health`.

        Raises:
            EngineStartError: it exited, or did not answer within the model's `startup_timeout_s`. Nothing is left
                running.
        """
        self._started_at = time.monotonic()
        try:
            await self._launch()
            await self._wait_until_up()
            await self._have_shared_memory_remembered()
            self.context_tokens = await self._read_context_tokens()
            await self._start_agent()
        except BaseException:
            await self.stop()
            raise

    async def is_healthy(self, timeout_s: float = 5.0) -> bool:
        """True when the process runs and answers `/health` within `timeout_s` seconds; one that hangs does not."""
        return self.alive and await self._status_of("/health", timeout_s) == 200

    async def answers(self, timeout_s: float) -> bool | None:
        """Whether its core answers within `timeout_s` seconds: `/health` does not say. None: it cannot be asked."""
        try:
            status = (await self._get(PULSE_PATH, timeout_s)).status_code
        except httpx.ReadTimeout:
            return False
        except httpx.HTTPError:
            return None  # its server is gone or busy: that is what `is_healthy` is for
        return status == ANSWERS if status in (ANSWERS, DEAD) else None

    async def read_signals(self, timeout_s: float = 5.0) -> Signals:
        """Its own gauges and those of its GPUs.

        Raises:
            httpx.HTTPError: it did not answer within `timeout_s` seconds, or not with 200.
        """
        response = await self._get("/metrics", timeout_s)
        response.raise_for_status()
        signals = parse_signals(response.content, time.time())
        visible = self._plan.visible_gpus
        if visible == "":
            return signals
        return await asyncio.to_thread(self._with_gpus, signals, visible)

    def _with_gpus(self, signals: Signals, visible: str | None) -> Signals:
        readings = read_gpus(visible)
        return with_gpus(signals, readings, self._gpu_faults.count(readings))

    async def drain(self, timeout_s: float) -> bool:
        """Wait until it works on nothing; True when that happened within `timeout_s` seconds.

        Requests reach the engine on its own socket, so Serve's draining does not see them.
        """
        deadline = time.monotonic() + timeout_s
        idle = 0
        while self.alive and time.monotonic() < deadline:
            try:
                signals = await self.read_signals(2.0)
            except httpx.HTTPError:
                return False  # dead or hung: there is nothing to wait for
            idle = idle + 1 if signals.running + signals.waiting == 0 else 0
            # One quiet reading may be older than the request that just came in.
            if idle >= _IDLE_READINGS:
                return True
            await asyncio.sleep(0.5)
        return not self.alive

    async def stop(self) -> None:
        """End it and every process it started: SIGTERM, a grace, SIGKILL. Does nothing when it does not run."""
        if self.agent is not None:
            await self.agent.stop()
            self.agent = None
        if self._control >= 0:
            os.close(self._control)
            self._control = -1
        if self._status is not None:
            # It ends with the pipe, so when nothing is left of the leash either; a wait that takes too long cancels it.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._status, self._plan.stop_grace_s + 12)
            self._status = None
        if self._client is not None:
            await self._client.aclose()
            self._client = None
        remove_sockets(self._sockets)
        with contextlib.suppress(OSError):
            self.policy_path.unlink(missing_ok=True)

    async def _start_agent(self) -> None:
        """After the server is up: the replay buffer still has everything from the beginning."""
        plan = self._plan
        if self._sockets is None:
            return
        self.agent = KvAgent(
            plan_agent(
                plan.model,
                self._source,
                self._sockets,
                host=plan.host,
                incarnation=plan.incarnation,
                place=plan.place,
                guard_key=plan.key,
                chunk_key=plan.chunk_key,
            )
        )
        await self.agent.start()

    async def _launch(self) -> None:
        self.port = free_port(self._plan.host)
        prepare_log(self.log_path)
        plan = self._plan
        if self._argv is None:
            kv_arguments = self._sockets.arguments if self._sockets is not None else ()
            argv = build_argv(plan.model, self._source, plan.host, self.port, [*self._adapters, *kv_arguments])
        else:
            argv = [part.replace("{port}", str(self.port)) for part in self._argv]
        env = build_env(
            plan.model,
            self._source,
            guard_env(plan.key, plan.incarnation, plan.place, self.policy_path),
            cpus=plan.cpus,
            gpus=plan.gpus,
            withhold=plan.withhold,
        )
        self._client = httpx.AsyncClient(base_url=f"http://{_bracketed(plan.host)}:{self.port}", trust_env=False)
        control, self._control = os.pipe()
        status, status_writer = os.pipe()
        try:
            await asyncio.to_thread(self._spawn_leash, argv, env, control, status_writer)
        finally:
            os.close(control)
            os.close(status_writer)
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(status, "rb", 0))
        self._read_pid(await reader.readline())
        self._status = asyncio.create_task(self._follow(reader))

    def _spawn_leash(self, argv: list[str], env: dict[str, str], control: int, status: int) -> None:
        program = [sys.executable, "-I", "-S", str(leash.__file__), "--control", str(control), "--status", str(status)]
        options = ["--log", str(self.log_path), "--grace", str(self._plan.stop_grace_s)]
        subprocess.run(
            [*program, *options, "--", *argv], env=env, pass_fds=(control, status), stdin=subprocess.DEVNULL, check=True
        )

    def _read_pid(self, line: bytes) -> None:
        if not line:
            raise EngineStartError(f"the engine of `{self._plan.model.id}` could not be started: its leash is gone")
        self.pid = json.loads(line)["pid"]

    async def _have_shared_memory_remembered(self) -> None:
        """Tell the leash that the engine is up: before there are requests, it looks at what has to be removed after them."""
        with contextlib.suppress(OSError, TimeoutError):  # the leash is gone, and the engine with it, or cannot look
            os.write(self._control, b"up")
            await asyncio.wait_for(self._looked.wait(), _LOOK_S)

    async def _follow(self, reader: asyncio.StreamReader) -> None:
        """Note the exit code; the end of the pipe without one means that the leash itself was killed."""
        async for line in reader:
            self._looked.set()
            if "exit" in (told := json.loads(line)):
                self.exit_code = told["exit"]
                self._exited.set()
        if self.exit_code is None:
            self.exit_code = -9
        self._exited.set()
        self._looked.set()

    async def _wait_until_up(self) -> None:
        limit = self._plan.model.startup_timeout_s
        while True:
            if not self.alive:
                raise self._failure(self.exit_code)
            if await self._status_of("/health", 5.0) == 200:
                await asyncio.to_thread(check_listener, self._plan.model.id, self._plan.host, self.port)
                return
            if time.monotonic() - self._started_at > limit:
                raise self._failure(None)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._exited.wait(), _POLL_S)

    def _failure(self, exit_code: int | None) -> EngineStartError:
        waited = time.monotonic() - self._started_at
        return explain_start_failure(self._plan.model.id, self.log_path, exit_code, waited)

    async def _read_context_tokens(self) -> int:
        """`max_model_len` as the server itself states it; 0 when it does not."""
        try:
            response = await self._get("/v1/models", 10.0)
            length = response.json()["data"][0]["max_model_len"]
        except (httpx.HTTPError, ValueError, LookupError, TypeError):
            return 0
        return length if isinstance(length, int) else 0

    async def _status_of(self, path: str, timeout_s: float) -> int:
        try:
            return (await self._get(path, timeout_s)).status_code
        except httpx.HTTPError:
            return 0

    async def _get(self, path: str, timeout_s: float) -> httpx.Response:
        if self._client is None:
            raise httpx.ConnectError("the engine is not running")
        plan = self._plan
        permission = Pass(f"own-{secrets.token_hex(4)}", plan.incarnation, "own", plan.place.to_text(), time.time() + _OWN_PASS_S)
        headers = {PASS_HEADER: issue_pass(plan.key, permission, "GET", path)}
        try:
            async with asyncio.timeout(timeout_s):
                return await self._client.get(path, headers=headers, timeout=timeout_s)
        except TimeoutError as error:
            raise httpx.ReadTimeout("the engine did not answer in time") from error


def free_port(host: str) -> int:
    """A port that is free at this moment: any, or one of the range `TIDEGATE_ENGINE_PORTS` (`31000-31999`).

    Raises:
        ConfigError: the range is malformed, or none of it is free.
    """
    wanted = os.environ.get("TIDEGATE_ENGINE_PORTS", "")
    if not wanted:
        return _try_port(host, 0) or 0
    found = re.fullmatch(r"(\d{1,5})-(\d{1,5})", wanted)
    ports = list(range(int(found[1]), min(int(found[2]), 65535) + 1)) if found else []
    if not ports:
        raise ConfigError(f"TIDEGATE_ENGINE_PORTS: `{wanted}` is not a range such as 31000-31999")
    random.shuffle(ports)  # engines that start together should not all try the same one
    for port in ports:
        if _try_port(host, port):
            return port
    raise ConfigError(f"TIDEGATE_ENGINE_PORTS: no port of {wanted} is free on {host}")


def _try_port(host: str, port: int) -> int | None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((host, port))
        except OSError:
            return None
        return int(probe.getsockname()[1])


def log_file(model_id: str, incarnation: str) -> Path:
    """Where an engine's output goes: `TIDEGATE_LOG_DIR`, or `.tidegate/logs` in TIDEGATE_HOME."""
    configured = os.environ.get("TIDEGATE_LOG_DIR")
    folder = Path(configured) if configured else home() / ".tidegate" / "logs"
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", model_id)
    short = re.sub(r"[^A-Za-z0-9]+", "", incarnation)[-12:]
    return folder / f"{slug}-{short:0>12}.log"


def prepare_log(path: Path) -> None:
    """Make the folder, and remove all but the newest logs of the same model, and policies: every restart writes new ones."""
    make_private_directory(path.parent)
    with contextlib.suppress(OSError):
        logs = list(path.parent.glob(path.name[:-16] + "?" * 12 + ".log"))
        logs.sort(key=lambda file: file.stat().st_mtime)
        for old in logs[:-_LOGS_KEPT]:
            old.unlink(missing_ok=True)
            old.with_suffix(".policy.json").unlink(missing_ok=True)  # of an engine whose replica was killed


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
