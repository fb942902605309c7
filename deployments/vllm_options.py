"""Which of vLLM's options and environment variables a configuration may give.

Those that residency rests on are tidegate's own to set. Refused, too, is what would write prompts or answers to a log or a disk,
open a port without a guard, or carry what was computed of a prompt to another machine, whose zone nobody has looked at.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from router.config import ConfigError, Model
from router.residency.guard import ENV_INCARNATION, ENV_KEY, ENV_PLACE, ENV_POLICY

LOG_LEVEL = "VLLM_LOGGING_LEVEL"
_ONE_NODE = "an engine's zone is that of its own node, so all its workers stand there"
_ELSEWHERE = "what was computed of a prompt could leave the engine past every label"
_SHORT = {
    "-n": "nnodes",
    "-r": "node-rank",
    "-dpn": "data-parallel-rank",
    "-dpr": "data-parallel-start-rank",
    "-dpl": "data-parallel-size-local",
    "-dpa": "data-parallel-address",
    "-dpp": "data-parallel-rpc-port",
    "-dph": "data-parallel-hybrid-lb",
    "-dpe": "data-parallel-external-lb",
    "-dpm": "data-parallel-multi-port-external-lb",
}
"""Short names of options that spread an engine over several nodes."""
_TELLS_ALL = "whole requests are logged there; `INFO` is vLLM's own"
_OURS = {
    "host": "the engine listens on its node's address",
    "port": "every engine gets a free port of its own",
    "uds": "the engine listens on its node's address",
    "model": "`source` names it",
    "served-model-name": "`id` names it",
    "middleware": "the guard must be the outermost one",
    "api-key": "the guard asks for a pass instead",
    "root-path": "passes are issued for plain paths",
    "config": "arguments in a file could not be checked; write them in `args`",
    "grpc": "it would open a port without a guard",
    "grpc-port": "it would open a port without a guard",
    "headless": "it would have no address to serve on",
    "ssl-keyfile": "the router speaks plain HTTP to its engines",
    "ssl-certfile": "the router speaks plain HTTP to its engines",
    "ssl-ca-certs": "the router speaks plain HTTP to its engines",
    "ssl-cert-reqs": "the router speaks plain HTTP to its engines",
    "ssl-ciphers": "the router speaks plain HTTP to its engines",
    "enable-ssl-refresh": "the router speaks plain HTTP to its engines",
    "enable-log-requests": "prompts do not belong into a log",
    "enable-log-outputs": "answers do not belong into a log",
    "log-error-stack": "its errors quote the requests that they refuse",
    "log-config-file": "it could switch logs of requests on",
    "logging-config": "it could switch logs of requests on",
    "tool-server": "what the model hands to its tools would leave the engine past every label",
    **dict.fromkeys((*_SHORT.values(), "data-parallel-supervisor-port", "master-addr", "master-port"), _ONE_NODE),
}
_WHOLE = frozenset({"data-parallel-size"})
"""Options of the user's own that are the beginning of one above."""
_REFUSED_VALUES = {
    "distributed-executor-backend": ("ray", _ONE_NODE),
    "data-parallel-backend": ("ray", _ONE_NODE),
    "kv-offloading-backend": ("lmcache", _ELSEWHERE),
    "uvicorn-log-level": ("trace", "it logs every request's head, and the pass in it"),
}
_LOCAL_CONNECTORS = {
    "kv-transfer-config": frozenset({"OffloadingConnector", "SimpleCPUOffloadConnector"}),
    "ec-transfer-config": frozenset({"ECCPUConnector"}),
}
"""Those that keep what was computed in the memory of the engine's own node."""
OUR_ENV = {
    ENV_KEY: "the guard's own",
    ENV_INCARNATION: "the guard's own",
    ENV_PLACE: "the guard's own",
    ENV_POLICY: "the guard's own",
    "VLLM_API_KEY": "the guard asks for a pass instead",
    "VLLM_USE_RUST_FRONTEND": "that front end loads no guard",
    "VLLM_DEBUG_LOG_API_SERVER_RESPONSE": "answers do not belong into a log",
    "VLLM_LOGGING_CONFIG_PATH": "it could switch logs of requests on",
    "VLLM_MEDIA_CACHE": "what is fetched for a request would stay on the disk",
    "VLLM_V1_USE_OUTLINES_CACHE": "what requests allow as answers would stay on the disk",
    "VLLM_DP_SIZE": _ONE_NODE,
    "VLLM_DP_RANK": _ONE_NODE,
    "VLLM_DP_MASTER_IP": _ONE_NODE,
}


def check_model(model: Model) -> None:
    """Refuse arguments and environment variables that tidegate itself has to set, before anything starts.

    Raises:
        ConfigError: names the model, the argument, and why it is not the user's to give.
    """
    where = f"models: `{model.id}`"
    if model.args and not model.args[0].startswith("-"):
        raise ConfigError(f"{where}: args: `{model.args[0]}` is no option; the model itself goes into `source`")
    for place, argument in enumerate(model.args):
        _check_argument(argument, model.args[place + 1 : place + 2], f"{where}: args: `{argument}`")
    _check_kv_events(model.args, where)
    for name in _LOCAL_CONNECTORS:
        _check_connector(model.args, name, where)
    for name, value in model.env.items():
        if name in OUR_ENV:
            raise ConfigError(f"{where}: env: `{name}` cannot be set here: {OUR_ENV[name]}")
        if name == LOG_LEVEL and tells_all(value):
            raise ConfigError(f"{where}: env: `{name}` cannot be `{value}`: {_TELLS_ALL}")


def _check_argument(argument: str, following: Sequence[str], where: str) -> None:
    """Refuse one of `args`, given as `--name=value`, or as `--name` with the value `following` it."""
    name, equals, value = argument.partition("=")
    if not equals:
        value = "".join(following)
    if name == "-dpb":
        _check_value("data-parallel-backend", value, where)
    if not argument.startswith("--"):
        short = next((short for short in _SHORT if name == short or (len(short) == 2 and name[:2] == short)), None)
        if short is None or (name != short and not name[2:].isdigit()):
            return
        raise ConfigError(f"{where} cannot be given (`--{_SHORT[short]}`): {_ONE_NODE}. Remove it.")
    name = name[2:].split(".", 1)[0].replace("_", "-")
    _check_value(name, value, where)
    name = name.removeprefix("no-")
    for ours, reason in _OURS.items():
        # argparse takes any unambiguous beginning of an option for the option, so a beginning collides as well.
        if name == ours or (name and ours.startswith(name) and name not in _WHOLE):
            raise ConfigError(f"{where} cannot be given (`--{ours}` is set by tidegate): {reason}. Remove it.")


def _check_value(name: str, value: str, where: str) -> None:
    """Refuse a value of an option that may have others; a beginning counts as the option here, too."""
    for option_name, (refused, reason) in _REFUSED_VALUES.items():
        if name and option_name.startswith(name) and value.lower() == refused:
            raise ConfigError(f"{where}: `--{option_name}` cannot be `{value}`: {reason}")
    if len(name) > 2 and "log-level".startswith(name) and tells_all(value):
        raise ConfigError(f"{where}: `--log-level` cannot be `{value}`: {_TELLS_ALL}")


def tells_all(level: str) -> bool:
    """Whether vLLM logs whole requests at a level: it does at `DEBUG` and below."""
    return level.strip().upper() not in {"INFO", "WARNING", "WARN", "ERROR", "CRITICAL", "FATAL"}


def _whole_object(args: Sequence[str], name: str, where: str) -> dict[str, Any] | None:
    """The value of an option that takes a JSON object; None where it is not given.

    Raises:
        ConfigError: it is given in another form: vLLM takes a beginning for the option, and single fields after a dot.
    """
    for argument in args:
        given, dot, _ = argument.partition("=")[0].replace("_", "-").partition(".")
        # Read by its full name alone, it would go unchecked.
        if len(given) > 2 and f"--{name}".startswith(given) and (dot or given != f"--{name}"):
            raise ConfigError(f"{where}: args: give `--{name}` in full and as one JSON object")
    text = option(args, name)
    if text is None:
        return None
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ConfigError(f"{where}: args: `--{name}` is not a JSON object")
    return found


def _check_connector(args: Sequence[str], name: str, where: str) -> None:
    """What was computed of prompts may be kept on the engine's own node, in memory, and go nowhere else."""
    settings = _whole_object(args, name, where)
    if settings is None:
        return
    kind = name.partition("-")[0]
    connector, extra = settings.get(f"{kind}_connector"), settings.get(f"{kind}_connector_extra_config") or {}
    own_code = settings.get(f"{kind}_connector_module_path") is not None
    kept_here = isinstance(extra, dict) and extra.get("spec_name", "CPUOffloadingSpec") == "CPUOffloadingSpec"
    if connector is not None and (connector not in _LOCAL_CONNECTORS[name] or own_code or not kept_here):
        fine = ", ".join(sorted(_LOCAL_CONNECTORS[name]))
        raise ConfigError(
            f"{where}: args: `--{name}` can have {fine} only (with CPU memory behind it): by others {_ELSEWHERE}. A server "
            f"that you run and vouch for can have them (`targets`, `kind: server`)"
        )


def _check_kv_events(args: Sequence[str], where: str) -> None:
    """KV events carry the token ids of every prompt, so they may be published on a unix socket only."""
    settings = _whole_object(args, "kv-events-config", where)
    if settings is None:
        return
    endpoints = [settings.get("endpoint"), settings.get("replay_endpoint") or "ipc://"]
    if settings.get("publisher") == "null" or settings.get("enable_kv_cache_events") is False:
        return
    if not all(isinstance(endpoint, str) and endpoint.startswith("ipc://") for endpoint in endpoints):
        raise ConfigError(
            f"{where}: args: `--kv-events-config` publishes every prompt's tokens: its `endpoint` must be a unix "
            f"socket (`ipc:///path`)"
        )


def option(args: Sequence[str], name: str, *short: str) -> str | None:
    """The last value of `--name VALUE` or `--name=VALUE` in vLLM arguments (`_` counts as `-`), or None."""
    value = None
    for i, argument in enumerate(args):
        key, equals, inline = argument.partition("=")
        if (key.startswith("--") and key[2:].replace("_", "-") == name) or key in short:
            value = inline if equals else args[i + 1] if i + 1 < len(args) else None
    return value
