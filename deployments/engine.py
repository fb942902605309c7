"""The Engine deployment: a Serve replica that keeps one vLLM server, guarded and described."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import secrets
import time
from typing import Any

import httpx
import msgspec
import ray
from msgspec.structs import replace
from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

from cluster.labels import place_of, why_unknown, zone_of
from cluster.reports import ReplicaFacts, encode_report
from deployments.demand import DemandBook
from deployments.kv_agent import chunk_key_of
from deployments.pulse import Pulse
from deployments.secret import cluster_secret
from deployments.vllm_options import check_model
from deployments.vllm_process import EnginePlan, VllmProcess
from router.config import Config, Model, Replicas, Secret
from router.crash import forbid_core_dumps
from router.placement.targets import Signals
from router.residency.guard import derive_target_key

HEALTH_PERIOD_S = 2.0
HEALTH_TIMEOUT_S = 10.0
HEALTH_ANSWER_S = 5.0
SIGNALS_PERIOD_S = 0.5
DRAIN_S = 30.0
STOP_S = 20.0
CONSTRUCTOR_TRIES = 2
_log = logging.getLogger("ray.serve")


class EngineSettings(msgspec.Struct, frozen=True):
    """Everything one engine needs of the configuration, and nothing more.

    Serve restarts a replica when its arguments change; a changed key or SLO must not restart an engine that takes
    minutes to load.
    """

    model: Model
    replicas: Replicas
    zones: tuple[str, ...]
    zone_label: str
    secret: Secret
    withhold: frozenset[str]


class Engine:
    """One replica: a vLLM server on this node, entered by the router directly, on the server's own socket."""

    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings
        self._signals: Signals | None = None
        self._watches: list[asyncio.Task[None]] = []
        self._pulse: Pulse | None = None
        self._process: VllmProcess | None = None
        context = ray.get_runtime_context()
        actor = context.get_actor_id() or secrets.token_hex(16)
        # The actor id alone would do for Serve, which never restarts an actor; the nonce holds even if that changes.
        self._incarnation = f"{actor}-{secrets.token_hex(4)}"
        self._demand = DemandBook(self._incarnation)
        labels = context.get_node_labels()
        self._zone = zone_of(labels, settings.zone_label, settings.zones)
        self._warning = why_unknown(labels, settings.zone_label, settings.zones)
        self._place = place_of(self._zone, settings.replicas.zone, settings.replicas.duties)
        # Serve names an actor's id in full; a few digits of its unique part are enough for people.
        self._id = f"{settings.model.id}@{self._zone}/{actor[:6]}"
        self._host = ray.util.get_node_ip_address()

    async def start(self) -> None:
        """Start the server and wait for it.

        Raises:
            ConfigError: see `VllmProcess`.
            EngineStartError: it did not come up; the text says why.
        """
        if self._warning:
            _log.warning("tidegate: %s: %s", self._id, self._warning)
        forbid_core_dumps()
        settings = self._settings
        secret = await asyncio.to_thread(cluster_secret, settings.secret)
        plan = EnginePlan(
            model=settings.model,
            host=self._host,
            incarnation=self._incarnation,
            key=derive_target_key(secret, self._incarnation),
            place=self._place,
            cpus=settings.replicas.cpus,
            gpus=settings.replicas.gpus,
            visible_gpus=os.environ.get("CUDA_VISIBLE_DEVICES") if settings.replicas.gpus else "",
            withhold=settings.withhold,
            chunk_key=chunk_key_of(secret, settings.model),
        )
        self._process = VllmProcess(plan)
        _log.info("tidegate: %s starts; its log is %s", self._id, self._process.log_path)
        await self._process.start()
        self._pulse = Pulse(self._process.answers)
        await self._refresh()
        self._watches = [asyncio.create_task(self._keep_signals()), asyncio.create_task(self._pulse.keep())]
        _log.info("tidegate: %s is up on %s:%d", self._id, self._host, self._process.port)

    async def check_health(self) -> None:
        """Called by Serve; three failures in a row make it replace this replica.

        Raises:
            RuntimeError: the server has ended, or hangs, or its core does.
        """
        process, limit_s = self._process, self._settings.model.stall_timeout_s
        if process is None:
            return
        if limit_s and self._silent_s >= limit_s:
            raise RuntimeError(f"the engine {self._id}: {_core_is_silent(self._silent_s)}; its log: {process.log_path}")
        if await process.is_healthy(HEALTH_ANSWER_S):
            return
        state = "does not answer" if process.alive else f"has ended with exit code {process.exit_code}"
        raise RuntimeError(f"the engine {self._id} {state}; its log: {process.log_path}")

    async def describe(self) -> bytes | None:
        """What this replica is and how loaded it was at the last reading (`cluster.reports.decode_report` reads it).

        None once the server has ended: Serve needs three failed health checks to see that, the router should not.
        """
        process = self._process
        if process is None or not process.alive:
            return None
        return encode_report(
            ReplicaFacts(
                id=self._id,
                incarnation=self._incarnation,
                zone=self._zone,
                place=self._place,
                host=self._host,
                port=process.port,
                model=self._settings.model.id,
                task=self._settings.model.task,
                context_tokens=process.context_tokens,
                slots=process.slots,
                signals=self._signals,
                kv_port=process.kv_port,
                policy=process.guard_policy,
                adapters=self._settings.model.names[1:],
                said_at=time.time(),
            )
        )

    async def take_policy(self, copy: bytes) -> bytes:
        """Give this engine's guard a policy (`GuardPolicy` as JSON); answers with the epoch it has then."""
        process = self._process
        if process is None:
            return b""
        return (await asyncio.to_thread(process.take_policy, copy)).encode()

    async def take_demand(self, router: str, demand: bytes) -> None:
        """A router says what waits for this deployment."""
        self._demand.take(router, demand, time.monotonic())

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Called by Serve where the deployment scales; `deployments.scaling_policy` reads it."""
        slots = self._process.slots if self._process is not None else 0
        return self._demand.stats(self._signals, slots, time.monotonic())

    async def status(self) -> dict[str, Any]:
        """For people: ids, zone, process, log and what is wrong, if anything."""
        process = self._process
        return {
            "id": self._id,
            "incarnation": self._incarnation,
            "model": self._settings.model.id,
            "zone": self._zone,
            "warning": self._warning or (_core_is_silent(self._silent_s) if self._silent_s else None),
            "host": self._host,
            "port": process.port if process else 0,
            "pid": process.pid if process else 0,
            "alive": bool(process and process.alive),
            "log": str(process.log_path) if process else "",
        }

    async def close(self) -> None:
        """Let running requests finish (up to `DRAIN_S` seconds), then stop the server."""
        for watch in self._watches:
            watch.cancel()
        if self._process is not None:
            await self._process.drain(DRAIN_S)
            await self._process.stop()

    async def _keep_signals(self) -> None:
        """Read in the background, so that `describe` answers at once however busy the server is."""
        while True:
            await asyncio.sleep(SIGNALS_PERIOD_S)
            await self._refresh()

    async def _refresh(self) -> None:
        assert self._process is not None
        # The last reading stays, with its age: old signals are for the router to judge.
        with contextlib.suppress(httpx.HTTPError):
            self._signals = replace(await self._process.read_signals(), silent_s=self._silent_s)

    @property
    def _silent_s(self) -> float:
        return self._pulse.silent_s if self._pulse is not None else 0.0


def _core_is_silent(seconds: float) -> str:
    return f"its core has not answered for {seconds:.0f} s, though its server does"


class EngineReplica(Engine):
    """`Engine` in the shape Serve wants: an async constructor, and a destructor that it awaits on shutdown."""

    async def __init__(self, settings: EngineSettings) -> None:  # type: ignore[misc]
        super().__init__(settings)
        await self.start()

    async def __del__(self) -> None:
        await self.close()


def engine_name(model: Model, replicas: Replicas) -> str:
    """The deployment's name: `engine-<model>-<zone>` in characters Serve takes."""
    return "engine-" + re.sub(r"[^A-Za-z0-9]+", "-", f"{model.id}-{replicas.zone}").strip("-")


def engine_settings(config: Config, model: Model, replicas: Replicas) -> EngineSettings:
    """The part of a configuration that engines of `model` in one zone depend on."""
    sources = [config.secret.env, *(target.credential.env for target in config.targets if target.credential)]
    return EngineSettings(
        model=model.model_copy(update={"replicas": [replicas], "profile": None}),
        replicas=replicas,
        zones=tuple(sorted(config.zones)),
        zone_label=config.residency.zone_label,
        secret=config.secret,
        withhold=frozenset(name for name in sources if name),
    )


def _numbers(config: Config, replicas: Replicas) -> dict[str, Any]:
    """A fixed number of engines, or bounds and the policy that Serve scales them by."""
    if replicas.max_count is None or replicas.max_count == replicas.count:
        return {"num_replicas": replicas.count}
    # No `initial_replicas`: Serve goes back to them at every change under `args`, however loaded the engines are.
    scaling = AutoscalingConfig(
        min_replicas=replicas.count,
        max_replicas=replicas.max_count,
        upscale_delay_s=config.autoscaling.upscale_delay_s,
        downscale_delay_s=config.autoscaling.downscale_delay_s,
        metrics_interval_s=1.0,
        look_back_period_s=5.0,
        policy=AutoscalingPolicy(policy_function="deployments.scaling_policy:scale_by_wait"),
    )
    return {"autoscaling_config": scaling}


def engine_application(config: Config, model: Model, replicas: Replicas, **deps: Any) -> serve.Application:
    """The engines of one model in one zone as a Serve application node.

    The label selector is hard: there is no `fallback_strategy`, so an engine never starts in another zone.

    Args:
        config: the whole configuration.
        model: the model to serve.
        replicas: how many, where, and with what.
        deps: further keyword arguments of `serve.deployment().options`, such as a `ray_actor_options` overlay.

    Raises:
        ConfigError: an argument that is not the user's to give.
    """
    check_model(model)
    actor: dict[str, Any] = {
        "num_cpus": replicas.cpus,
        "num_gpus": replicas.gpus,
        "label_selector": {config.residency.zone_label: replicas.zone},
        **deps.pop("ray_actor_options", {}),
    }
    options: dict[str, Any] = {
        "name": engine_name(model, replicas),
        **_numbers(config, replicas),
        "ray_actor_options": actor,
        "health_check_period_s": HEALTH_PERIOD_S,
        "health_check_timeout_s": HEALTH_TIMEOUT_S,
        "graceful_shutdown_wait_loop_s": 1.0,
        "graceful_shutdown_timeout_s": DRAIN_S + STOP_S,
        "max_constructor_retry_count": CONSTRUCTOR_TRIES,
        "max_ongoing_requests": 100,
        "logging_config": {"enable_access_log": False},  # one line per `describe` would bury what matters
        **deps,
    }
    return serve.deployment(EngineReplica).options(**options).bind(engine_settings(config, model, replicas))
