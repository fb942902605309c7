"""Why an engine did not start, in words an operator can act on: the last lines of its log, where it is, what to do."""

from __future__ import annotations

import re
from pathlib import Path

_TAIL_BYTES = 64 * 1024
_TAIL_LINES = 15
_LINE_LENGTH = 300
_PREFIX = re.compile(r"^(\([A-Za-z_]+[^)]*pid=\d+\)\s*)+")
_NOISE = re.compile(r"^\s*(\^+|~+|[~^]+|usage: .*|\[.*\]|File \".*\", line \d+, in .*)\s*$")
_HOUSEKEEPING = re.compile(r"resource_tracker|warnings\.warn\(|DeprecationWarning|UserWarning")

_CAUSES: tuple[tuple[str, str], ...] = (
    (
        r"unrecognized arguments?: (?P<what>.+)",
        "vLLM does not accept: {what}. Correct `args` of this model; `python -m vllm.entrypoints.openai.api_server "
        "--help=all` lists what your version takes.",
    ),
    (
        r"error: (?P<what>(argument|ambiguous option|the following arguments|expected).+)",
        "vLLM does not accept its arguments: {what}. Correct `args` of this model.",
    ),
    (
        r"No available memory for the cache blocks|larger than the available KV cache memory"
        r"|KV cache is needed, which is larger than",
        "There is too little memory left for the KV cache. Lower `--max-model-len`, or give the cache more: "
        "`--gpu-memory-utilization` on a GPU, `VLLM_CPU_KVCACHE_SPACE` (GiB, in `env`) on a CPU.",
    ),
    (
        r"CUDA out of memory|torch\.OutOfMemoryError|CUDA error: out of memory|HIP out of memory"
        r"|is less than desired GPU memory utilization",
        "The GPU has not enough free memory. Look with `nvidia-smi` for what else uses it, lower "
        "`--gpu-memory-utilization` or `--max-model-len`, use a smaller or quantised model, or spread it with "
        "`--tensor-parallel-size`.",
    ),
    (
        r"DefaultCPUAllocator: can't allocate memory|Cannot allocate memory|\bMemoryError\b|can.t allocate \d+ bytes"
        r"|Available memory on node",
        "The machine has not enough memory. Lower `VLLM_CPU_KVCACHE_SPACE` (GiB, in `env`), run fewer engines on this "
        "machine, or use a smaller model.",
    ),
    (
        r"Insufficient space in /dev/shm|Error while creating shared memory segment",
        "/dev/shm is too small or full, and vLLM's processes share memory there: in a container, start it with --shm-size=2g "
        "or --ipc=host.",
    ),
    (
        r"No space left on device",
        "A disk of this machine, or /dev/shm, is full: `df -h` says which.",
    ),
    (
        r"[Aa]ddress already in use",
        "Another process took the port in the same moment. Serve tries again with another one; if it keeps happening, "
        "give a range of free ports in TIDEGATE_ENGINE_PORTS.",
    ),
    (
        r"No module named '?router|the guard has no valid",
        "The engine cannot load tidegate's guard, and without it no engine may run. Install tidegate in the "
        "environment that Ray uses on this node.",
    ),
    (
        r"No module named '?vllm",
        "vLLM is not installed in the Python environment that Ray uses on this node: `pip install 'tidegate[gpu]'` (or `[cpu]`).",
    ),
    (
        r"(LocalEntryNotFoundError|OfflineModeIsEnabled|RepositoryNotFoundError|is not a local folder|GatedRepoError)",
        "The model cannot be loaded: it is neither a directory here nor a model this node can download. Prepare it on "
        "this node and give its path as `source`.",
    ),
)


class EngineStartError(RuntimeError):
    """An engine did not come up. The text has the reason, the last lines of its log, the log's path and a next step."""


def explain_start_failure(model: str, log: Path, exit_code: int | None, waited_s: float) -> EngineStartError:
    """Build the error for an engine that exited, or did not answer in time.

    Args:
        model: the served model's id.
        log: the engine's log file.
        exit_code: how it ended (negative: killed by that signal); None when it still runs.
        waited_s: seconds since it was started.
    """
    text = _read_tail(log)
    if exit_code is None:
        what = f"did not answer within {waited_s:.0f} s"
    elif exit_code < 0:
        what = f"was killed by signal {-exit_code} after {waited_s:.0f} s"
    else:
        what = f"ended with exit code {exit_code} after {waited_s:.0f} s"
    lines = "\n".join(f"  | {line}" for line in meaningful_lines(text)) or "  | (the log is empty)"
    step = find_cause(text) or _fallback(exit_code)
    return EngineStartError(f"the engine of `{model}` {what}. {step}\nThe end of its log ({log}):\n{lines}")


def find_cause(text: str) -> str | None:
    """The next step for a failure that is known from experience, or None."""
    for pattern, advice in _CAUSES:
        found = re.search(pattern, text)
        if found:
            return advice.format(**{name: value.strip() for name, value in found.groupdict().items()})
    return None


def meaningful_lines(text: str, limit: int = _TAIL_LINES) -> list[str]:
    """The last lines that say something: no usage text, no traceback frames, no repeated or empty lines."""
    kept: list[str] = []
    for raw in text.splitlines():
        line = _PREFIX.sub("", raw).rstrip()
        if not line.strip() or _NOISE.match(line) or _HOUSEKEEPING.search(line) or _is_usage(line):
            continue
        if not kept or kept[-1] != line:
            kept.append(line[:_LINE_LENGTH])
    return kept[-limit:]


def _is_usage(line: str) -> bool:
    """argparse prints some 300 lines of usage before the one line that matters."""
    return line.startswith("usage:") or bool(re.match(r"^\s{8,}[\[{(|-]", line))


def _read_tail(log: Path) -> str:
    try:
        with log.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - _TAIL_BYTES))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""


def _fallback(exit_code: int | None) -> str:
    if exit_code is None:
        return "If it only needs longer, raise `startup_timeout_s` of this model."
    if exit_code == -9:
        return "Somebody sent SIGKILL; most often that is the kernel, out of memory (see `dmesg`)."
    return "The log says why."
