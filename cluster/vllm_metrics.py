"""The few gauges of a vLLM `/metrics` page that placement needs, read without parsing the rest of it.

A page has several hundred lines and is read twice a second, so lines are found by name with `bytes.find` and nothing
else is looked at. Names that are missing leave their default: a metric that vLLM renames must not take an engine down.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from router.placement.targets import Signals

_RUNNING = b"vllm:num_requests_running"
_WAITING = b"vllm:num_requests_waiting"
_BY_REASON = b"vllm:num_requests_waiting_by_reason"
_DEFERRED = b'reason="deferred"'
_KV_USAGE = b"vllm:kv_cache_usage_perc"
_PREEMPTIONS = b"vllm:num_preemptions_total"
_ADAPTERS = b"vllm:lora_requests_info"
_STEPS = b"vllm:iteration_tokens_total_count"
_CACHE = b"vllm:cache_config_info"
_LABEL = re.compile(r'(\w+)="([^"]*)"')


def has_signals(page: bytes) -> bool:
    """Whether it is a page of vLLM's: another server's would read as one that is always idle."""
    return next(_values(page, _RUNNING), None) is not None


def parse_signals(page: bytes, sampled_at: float) -> Signals:
    """Read running, waiting (and how many of them not for room), KV cache usage, adapters, preemptions, and what cache there is.

    Several series of one name (data-parallel engines) are summed for requests; for the KV cache the fullest one counts,
    because that is the one that will make a request wait.

    Args:
        page: the body of `GET /metrics` in the Prometheus text format.
        sampled_at: UNIX time in seconds at which it was read.

    Returns:
        Signals with counts 0 and usage -1 where the page says nothing.
    """
    adapters, slots = _adapters(page)
    caches = [dict(_LABEL.findall(line.decode("utf-8", "replace"))) for _, line in _series(page, _CACHE)]
    return Signals(
        sampled_at=sampled_at,
        running=round(sum(_values(page, _RUNNING))),
        waiting=round(sum(_values(page, _WAITING))),
        kv_usage=max(_values(page, _KV_USAGE), default=-1.0),
        adapters=adapters,
        adapter_slots=slots,
        preemptions=round(sum(_values(page, _PREEMPTIONS))),
        deferred=round(sum(value for value, line in _series(page, _BY_REASON) if _DEFERRED in line)),
        keeps_prefixes=all(cache.get("enable_prefix_caching") != "False" for cache in caches),
        cache_tokens=sum(map(_cache_tokens, caches)),
    )


def steps_of(page: bytes) -> float:
    """How many steps that brought a token the engine has made so far; 0 where the page does not say."""
    return sum(_values(page, _STEPS))


def _adapters(page: bytes) -> tuple[tuple[str, ...], int]:
    """The LoRA adapters in use and how many can be at once.

    vLLM writes the names into labels, so each set of names is a series of its own that never goes away; its value is the time at
    which it was true, and only the latest one still is.
    """
    if _ADAPTERS not in page:
        return (), 0
    latest, labels = max(
        ((value, line) for value, line in _series(page, _ADAPTERS)), default=(0.0, b""), key=lambda found: found[0]
    )
    found = dict(_LABEL.findall(labels.decode("utf-8", "replace")))
    names = (*found.get("running_lora_adapters", "").split(","), *found.get("waiting_lora_adapters", "").split(","))
    slots = found.get("max_lora", "")
    return tuple(sorted({name for name in names if name})) if latest else (), int(slots) if slots.isdigit() else 0


def _cache_tokens(labels: Mapping[str, str]) -> int:
    """Older versions tell the number of blocks and their size only. What is kept outside of the GPU besides, they do not tell."""
    if labels.get("kv_offloading_size", "None") != "None":
        return 0
    numbers = (labels.get(name, "") for name in ("kv_cache_size_tokens", "num_gpu_blocks", "block_size"))
    tokens, blocks, size = (int(number) if number.isdecimal() and len(number) < 16 else 0 for number in numbers)
    return tokens or blocks * size


def _values(page: bytes, name: bytes) -> Iterator[float]:
    """The finite, non-negative values of every series called exactly `name`."""
    return (value for value, _ in _series(page, name))


def _series(page: bytes, name: bytes) -> Iterator[tuple[float, bytes]]:
    """The same with the lines they stand in."""
    position = page.find(name)
    while position >= 0:
        end = page.find(b"\n", position)
        line = page[position : end if end >= 0 else len(page)]
        starts_line = position == 0 or page[position - 1 : position] == b"\n"
        if starts_line and line[len(name) : len(name) + 1] in (b"{", b" ", b"\t"):
            value = _value(line)
            if 0 <= value < float("inf"):
                yield value, line
        position = page.find(name, position + len(line))


def _value(line: bytes) -> float:
    """The value of one sample line, -1 when it has none; a timestamp after it is ignored."""
    _, brace, rest = line.rpartition(b"}")
    fields = rest.split() if brace else line.split()[1:]
    try:
        return float(fields[0])
    except (IndexError, ValueError):
        return -1.0
