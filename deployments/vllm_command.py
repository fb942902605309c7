"""The command line and environment one vLLM server is started with.

Arguments and variables of the user's own go to vLLM as they are, once `deployments.vllm_options` has looked at them.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import router
from deployments.vllm_options import LOG_LEVEL, OUR_ENV, option, tells_all
from router.config import ConfigError, Model, home
from router.residency.guard import ENV_INCARNATION, ENV_KEY, ENV_PLACE, ENV_POLICY, Place

GUARD = "router.residency.engine_guard.EngineGuard"

_PLUGINS = Path(__file__).resolve().parent / "engine_plugin"
"""A path on which vLLM finds `router.residency.engine_log`, as it finds plugins that are installed."""
_ONLY_PLUGINS = "VLLM_PLUGINS"
_KEEP_ALIVE_S = "120"
"""vLLM closes an idle connection after 5 s, which is just when the router may be writing the next request into it."""
_QUEUED = "max-num-queued-reqs"
_MOST_QUEUED = 4096
"""Requests that an engine has unfinished at most: the last line, far behind the router's own queue."""
_CPU_DEFAULTS = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


def slots_of(args: Sequence[str]) -> int:
    """`--max-num-seqs`, or 0 when the user left it to vLLM."""
    text = option(args, "max-num-seqs") or ""
    return int(text) if text.isdigit() else 0


def resolve_source(source: str, base: Path | None = None) -> str:
    """The model as vLLM should be told: an absolute path when `source` is one here, else the id unchanged.

    Args:
        source: `source` of the configuration.
        base: where relative paths start; TIDEGATE_HOME by default.

    Raises:
        ConfigError: it looks like a path, but nothing is there.
    """
    base = base or home()
    path = Path(source).expanduser()
    path = path if path.is_absolute() else base / path
    if path.exists() and (path.is_dir() or path.is_file()):
        return str(path)
    spelled_as_path = source.startswith(("/", "./", "../", "~", ".tidegate/"))
    beside_something = "/" in source and path.parent.is_dir()
    if spelled_as_path or beside_something:
        raise ConfigError(
            f"source: there is no model at {path}. Put its directory there (`scripts/quickstart` prepares the default "
            f"model), or name a model id that vLLM can download."
        )
    return source


def build_argv(model: Model, source: str, host: str, port: int, kv_arguments: Sequence[str] = ()) -> list[str]:
    """The whole command line; ours come last, and the last one wins.

    Args:
        model: the configuration's model; `check_model` must have passed.
        source: what `resolve_source` returned.
        host: address to listen on.
        port: a free port.
        kv_arguments: `adapter_arguments` and `KvSockets.arguments`.
    """
    ours = ["--host", host, "--port", str(port), "--served-model-name", model.id, "--middleware", GUARD]
    ours += ["--disable-uvicorn-access-log", *kv_arguments]
    limit = [f"--{_QUEUED}", str(_MOST_QUEUED)] if _bounds_its_queue() else []
    return [sys.executable, "-m", _server_module(), "--model", source, *limit, *model.args, *ours]


def _vllm_folders() -> list[Path]:
    """Where vLLM is. It is located, not imported: importing it takes seconds and half a gigabyte."""
    spec = importlib.util.find_spec("vllm")
    return [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec else []


def _server_module() -> str:
    """vLLM's server program. The old module warns that it will go, and the new one is not in every version yet."""
    if any((folder / "entrypoints/launchers/api_server/entry.py").is_file() for folder in _vllm_folders()):
        return "vllm.entrypoints.launchers.api_server.entry"
    return "vllm.entrypoints.openai.api_server"


def _bounds_its_queue() -> bool:
    """Whether this vLLM has `--max-num-queued-reqs`: an option it does not know would end it."""
    files = (folder / "engine/arg_utils.py" for folder in _vllm_folders())
    return any(file.is_file() and f"--{_QUEUED}" in file.read_text() for file in files)


def build_env(
    model: Model,
    source: str,
    guard: Mapping[str, str],
    *,
    cpus: float,
    gpus: float,
    withhold: frozenset[str] = frozenset(),
    inherited: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """The environment of the server process.

    Args:
        model: the configuration's model; its `env` comes last, except for the guard's.
        source: what `resolve_source` returned.
        guard: `guard_env`.
        cpus: CPUs this engine was given; a CPU engine computes with that many threads.
        gpus: GPUs this engine was given; 0 means it computes on the CPU.
        withhold: names that must not reach the engine (the cluster secret, credentials of providers).
        inherited: the replica's own environment; `os.environ` by default.
    """
    env = dict(os.environ if inherited is None else inherited)
    for name in (*withhold, *OUR_ENV):
        env.pop(name, None)
    if tells_all(env.get(LOG_LEVEL, "INFO")):
        del env[LOG_LEVEL]
    env |= {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    env.setdefault("VLLM_HTTP_TIMEOUT_KEEP_ALIVE", _KEEP_ALIVE_S)
    env.setdefault("VLLM_MEDIA_URL_ALLOW_REDIRECTS", "0")  # an address that a client gives is asked, and no other
    if Path(source).is_absolute():
        env["HF_HUB_OFFLINE"] = "1"
    if gpus == 0:
        # Ray sets OMP_NUM_THREADS for the replica by its CPUs, which is right for the engine only when it is set anew.
        env["OMP_NUM_THREADS"] = str(max(1, round(cpus)))
        env |= {name: env.get(name, value) for name, value in _CPU_DEFAULTS.items()}
    env |= model.env
    package_root = str(Path(router.__file__).resolve().parent.parent)
    env["PYTHONPATH"] = os.pathsep.join(filter(None, (package_root, str(_PLUGINS), env.get("PYTHONPATH"))))
    if _ONLY_PLUGINS in env:
        env[_ONLY_PLUGINS] += ",tidegate"
    return env | guard


def guard_env(key: bytes, incarnation: str, place: Place, policy: Path) -> dict[str, str]:
    """What the guard inside the server process reads; `policy` is the file its own copy of the policy appears in."""
    return {ENV_KEY: key.hex(), ENV_INCARNATION: incarnation, ENV_PLACE: place.to_text(), ENV_POLICY: str(policy)}
