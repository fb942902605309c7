"""Starts the agent beside an engine: which sockets the engine's KV events go through, and the process that reads them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

import router
from cluster.kv.agent import AgentAnswer, AgentPlan
from cluster.kv.text_profile import TextOptions
from deployments.vllm_options import option
from router.config import Model
from router.placement.chunks import derive_chunk_key
from router.residency.guard import Place

_ANSWER_S = 120.0
_AGAIN_S = (1.0, 5.0, 30.0)
_STOP_S = 5.0
_BUFFERED_STEPS = 10_000
_log = logging.getLogger("ray.serve")


class KvSockets(msgspec.Struct, frozen=True):
    """Where one engine publishes: addresses per data-parallel rank, what vLLM is told, and the folder to remove afterwards.

    `folder` is "" when the addresses are the user's own.
    """

    events: tuple[str, ...]
    replays: tuple[str, ...]
    arguments: tuple[str, ...]
    folder: str = ""


def make_sockets(model: Model) -> KvSockets | None:
    """Unix sockets for one engine's KV events, in a folder only this user can enter.

    Returns:
        None for an engine without a prefix cache to speak of: pooling models, or where the user has switched it off.
    """
    args = model.args
    if model.task != "generate" or _has(args, "no-enable-prefix-caching") or _has(args, "headless"):
        return None
    details = ("--enable-prompt-tokens-details",)
    ranks = int(option(args, "data-parallel-size", "-dp") or 1)
    given = option(args, "kv-events-config")
    if given is not None:
        settings = json.loads(given)
        if settings.get("publisher") == "null" or not settings.get("enable_kv_cache_events") or ranks > 1:
            return None
        return KvSockets((settings["endpoint"],), (settings.get("replay_endpoint") or "",), details)
    # vLLM finds a data-parallel rank's own address by a suffix, but for unix sockets only where "inproc" is in the path.
    folder = Path(tempfile.mkdtemp(prefix="tidegate-inproc-"))
    events, replays = f"ipc://{folder}/events", f"ipc://{folder}/replay"
    config = {
        "enable_kv_cache_events": True,
        "publisher": "zmq",
        "endpoint": events,
        "replay_endpoint": replays,
        "buffer_steps": _BUFFERED_STEPS,
    }
    suffixes = ["", *(f"_dp{rank}" for rank in range(1, ranks))]
    return KvSockets(
        tuple(events + suffix for suffix in suffixes),
        tuple(replays + suffix for suffix in suffixes),
        ("--kv-events-config", json.dumps(config), *details),
        str(folder),
    )


def remove_sockets(sockets: KvSockets | None) -> None:
    """Remove what `make_sockets` made."""
    if sockets is not None and sockets.folder:
        shutil.rmtree(sockets.folder, ignore_errors=True)


def plan_agent(
    model: Model,
    source: str,
    sockets: KvSockets,
    *,
    host: str,
    incarnation: str,
    place: Place,
    guard_key: bytes,
    chunk_key: bytes,
) -> AgentPlan:
    """Everything the agent of one engine is told.

    Args:
        model: the configuration's model.
        source: what `resolve_source` returned.
        sockets: `make_sockets`.
        host: address its port is opened on.
        incarnation: the engine's.
        place: where it stands.
        guard_key: the guard's key of this incarnation.
        chunk_key: `derive_chunk_key` of the model.
    """
    args = model.args
    options = TextOptions(
        chat_template=option(args, "chat-template") or "",
        chat_template_content_format=option(args, "chat-template-content-format") or "auto",
        default_chat_template_kwargs=_json_object(option(args, "default-chat-template-kwargs")),
        tokenizer_mode=option(args, "tokenizer-mode") or "auto",
        exclude_tools_when_tool_choice_none=_has(args, "exclude-tools-when-tool-choice-none"),
    )
    return AgentPlan(
        events=sockets.events,
        replays=sockets.replays,
        host=host,
        incarnation=incarnation,
        place=place.to_text(),
        guard_key=guard_key.hex(),
        chunk_key=chunk_key.hex(),
        model=source,
        tokenizer=option(args, "tokenizer") or source,
        options=options,
    )


def chunk_key_of(secret: bytes, model: Model) -> bytes:
    """The hash key of a model's prompt texts; routers derive the same one."""
    return derive_chunk_key(secret, model.id)


class KvAgent:
    """Keeps one agent running. An engine without its agent still serves; it is only known less well.

    Args:
        plan: `plan_agent`.
    """

    def __init__(self, plan: AgentPlan) -> None:
        self._plan = plan
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None
        self.port = 0
        """Where routers find it; 0 while it does not run."""

    @property
    def pid(self) -> int:
        """Its process id, 0 while it does not run."""
        return self._process.pid if self._process is not None and self._process.returncode is None else 0

    async def start(self) -> None:
        """Start it, and start it again whenever it ends."""
        await self._launch()
        self._keeper = asyncio.create_task(self._keep())

    async def stop(self) -> None:
        """End it. Does nothing when it does not run."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        await self._end()

    async def _keep(self) -> None:
        tries = 0
        while True:
            if self._process is not None:
                await self._process.wait()
            self.port = 0
            await asyncio.sleep(_AGAIN_S[min(tries, len(_AGAIN_S) - 1)])
            tries = 0 if await self._launch() else tries + 1

    async def _launch(self) -> bool:
        package_root = str(Path(router.__file__).resolve().parent.parent)
        # Nothing of the replica's environment is its business, least of all secrets.
        environment = {
            name: os.environ[name] for name in ("PATH", "HOME", "LANG", "HF_HOME", "HF_HUB_CACHE") if name in os.environ
        }
        environment |= {"PYTHONPATH": os.pathsep.join([package_root, *filter(None, sys.path)]), "HF_HUB_OFFLINE": "1"}
        environment |= {"TOKENIZERS_PARALLELISM": "false"}
        try:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "cluster.kv.agent"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # a traceback could quote what it was working on
                env=environment,
            )
            assert self._process.stdin is not None and self._process.stdout is not None
            self._process.stdin.write(msgspec.json.encode(self._plan) + b"\n")
            await self._process.stdin.drain()
            line = await asyncio.wait_for(self._process.stdout.readline(), _ANSWER_S)
            answer = msgspec.json.decode(line, type=AgentAnswer)
        except (OSError, TimeoutError, msgspec.MsgspecError) as error:
            _log.warning("tidegate: the KV agent of %s does not start (%s)", self._plan.incarnation, type(error).__name__)
            await self._end()
            return False
        if answer.problem:
            _log.warning("tidegate: the cache of %s cannot be told exactly: %s", self._plan.incarnation, answer.problem)
        self.port = answer.port
        return True

    async def _end(self) -> None:
        process, self._process, self.port = self._process, None, 0
        if process is None or process.returncode is not None:
            return
        assert process.stdin is not None
        process.stdin.close()  # it ends with its input
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), _STOP_S)
            return
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _has(args: Sequence[str], name: str) -> bool:
    return any(argument.replace("_", "-") == f"--{name}" for argument in args)


def _json_object(text: str | None) -> dict[str, Any]:
    try:
        found = json.loads(text) if text else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
