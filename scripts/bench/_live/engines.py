"""Real vLLM engines with prefix caching, and what they say of it."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
from _throughput import stack

_COUNTER = re.compile(r"^(vllm:prefix_cache_(?:hits|queries)_total|vllm:prompt_tokens_total)\{[^}]*\} ([0-9.e+]+)$", re.MULTILINE)
_ALONE = 0.9
"""Share of a card's memory that vLLM takes when it is told nothing."""
_BLOCK = re.compile(r'^vllm:cache_config_info\{[^}]*\bblock_size="(\d+)"', re.MULTILINE)


@dataclass(frozen=True)
class CacheCounts:
    """Prompt tokens looked up in prefix caches, and those found there, over all engines."""

    queries: float
    hits: float

    def since(self, before: CacheCounts) -> float:
        """The share found since then; 0 where nothing was looked up."""
        asked = self.queries - before.queries
        return (self.hits - before.hits) / asked if asked else 0.0


@dataclass(frozen=True)
class LiveEngine:
    """One engine: its address, where it publishes KV events, and the tokens of its blocks (0: it does not say)."""

    url: str
    events: str
    block_tokens: int = 0


def engine_arguments(count: int, given: str, load_format: str | None, memory: float | None, gpu: bool) -> list[str]:
    """What vLLM is told beyond the bench's own arguments.

    Args:
        count: engines; on a GPU they share one card.
        given: arguments as a shell would split them; they count before all others.
        load_format: vLLM's `--load-format`; None: its own choice.
        memory: share of the card's memory for each; None: an equal part of what vLLM would take alone.
        gpu: whether they run on a GPU.

    Raises:
        ValueError: the shares do not fit on one card, there is no GPU to share, or a quotation in `given` does not end.
    """
    found = [] if load_format is None else ["--load-format", load_format]
    if memory is not None and not gpu:
        raise ValueError("--gpu-memory-utilization: no GPU is used here; name one in CUDA_VISIBLE_DEVICES")
    if gpu:
        share = _ALONE / count if memory is None else memory
        if not 0 < share * count <= 1:
            raise ValueError(f"--gpu-memory-utilization: {count} engines with {share:g} each do not fit on one card")
        found += ["--gpu-memory-utilization", f"{share:.3g}"]
    return [*found, *shlex.split(given)]


@contextlib.contextmanager
def engines(
    count: int, source: Path, slots: int, work: Path, cpus: int, arguments: Sequence[str] = ()
) -> Iterator[list[LiveEngine]]:
    """So many engines of one model, one after the other: each needs both cores to start, and on a shared card each measures what
    memory is free.

    They publish KV events, for the peers that go by them. That is a port with the tokens of every prompt, which nothing but a
    bench with made-up prompts may open.
    """
    with contextlib.ExitStack() as up:
        started = []
        for number in range(count):
            port = stack.free_port()
            settings = {"enable_kv_cache_events": True, "publisher": "zmq", "endpoint": f"tcp://*:{port}"}
            more = ["--kv-events-config", json.dumps(settings), *arguments]
            url = up.enter_context(stack.engine(source, slots, work, cpus, name=f"live-{number}", prefix_cache=True, more=more))
            page = httpx.get(f"{url}/metrics", timeout=30, trust_env=False).text
            found = _BLOCK.search(page)
            started.append(LiveEngine(url, f"tcp://127.0.0.1:{port}", int(found.group(1)) if found else 0))
        yield started


def forget(urls: list[str]) -> None:
    """Empty the prefix caches, so that each router begins with nothing.

    Raises:
        httpx.HTTPError: an engine cannot.
    """
    for url in urls:
        httpx.post(f"{url}/reset_prefix_cache", timeout=30, trust_env=False).raise_for_status()


def cache_counts(urls: list[str]) -> CacheCounts:
    """The engines' own counters."""
    sums = {"hits": 0.0, "queries": 0.0}
    for url in urls:
        for name, value in _COUNTER.findall(httpx.get(f"{url}/metrics", timeout=30, trust_env=False).text):
            for which in sums:
                if name.endswith(f"{which}_total"):
                    sums[which] += float(value)
    return CacheCounts(sums["queries"], sums["hits"])
