"""Traces: requests with arrival times, lengths and the blocks of their prompts; read from files, or made up from a seed."""

from __future__ import annotations

import gzip
import random
import zlib
from collections import Counter
from itertools import pairwise
from pathlib import Path

from cluster.simulation.engine import SimulatedRequest
from cluster.simulation.kv_cache import BLOCK_TOKENS
from cluster.simulation.trace_formats import Row, TraceError, parse_trace

__all__ = ["Row", "TraceError", "link_turns", "make_documents_trace", "make_tools_trace", "read_trace"]

_MOST_TURNS = 40
"""A block that more requests than this share is a common instruction, not a conversation."""


def read_trace(path: Path, seed: int = 0) -> list[Row]:
    """Read a trace of any format that `cluster.simulation.trace_formats` knows, gzip or plain, in order of arrival.

    Time begins with the first request. Times that several requests share are a clock's coarse ticks: each is spread uniformly
    over the time to the next tick.

    Args:
        path: the file.
        seed: of the spreading.

    Raises:
        TraceError: it has none of the formats, or a line is malformed.
        OSError: the file cannot be read.
    """
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error):
            raise TraceError(f"{path}: it is gzip, and damaged") from None
    rows = parse_trace(path, data)
    begin = min((row[0] for row in rows), default=0.0)
    rows = sorted([(row[0] - begin, *row[1:]) for row in rows], key=lambda row: row[0])
    return _spread(rows, random.Random(seed))


def _spread(rows: list[Row], source: random.Random) -> list[Row]:
    times = sorted({row[0] for row in rows})
    if len(times) * 2 > len(rows) or len(times) < 2:
        return rows
    tick = min(later - earlier for earlier, later in pairwise(times))
    spread = [(time + source.random() * tick, prompt, answer, blocks) for time, prompt, answer, blocks in rows]
    return sorted(spread, key=lambda row: row[0])


def link_turns(rows: list[Row]) -> list[SimulatedRequest]:
    """Requests in order of arrival; one whose prompt begins with all full blocks of an earlier one is a later turn of it.

    Prefixes that many requests share (a system prompt) make no conversation: the block a parent ends with is its own and its
    later turns' alone, and the latest such request counts.
    """
    users = Counter(block for _, _, _, blocks in rows for block in blocks)
    requests = [SimulatedRequest(i, time, prompt, answer, blocks) for i, (time, prompt, answer, blocks) in enumerate(rows)]
    ends: dict[int, SimulatedRequest] = {}
    for request in requests:
        for block in reversed(request.blocks):
            parent = ends.get(block)
            if parent is not None:
                request.gap = request.arrival - parent.arrival
                parent.children.append(request)
                break
        if request.blocks and users[request.blocks[-1]] <= _MOST_TURNS:
            ends[request.blocks[-1]] = request
    return requests


def make_tools_trace(count: int = 23_608, seed: int = 1) -> list[Row]:
    """A made-up trace of agents with tools: few long shared instructions, short answers, mostly one or two turns.

    The marginals (8.6 k prompt tokens, 184 answer tokens, three fifths of the prompt reusable) are those published for the
    toolagent trace of Mooncake (FAST'25); the rest is invented, so a result on it is weaker evidence than one on a real trace.
    """
    source = random.Random(seed)
    tools = [tuple(range(i * 1000, i * 1000 + source.choice((4, 6, 8, 10, 14, 20)))) for i in range(60)]
    weights = [1 / (rank + 1) ** 1.1 for rank in range(len(tools))]
    rows: list[Row] = []
    fresh = 1_000_000
    clock = 0.0
    open_turns: list[tuple[float, tuple[int, ...], int]] = []
    while len(rows) < count:
        clock += source.expovariate(6.5)
        due = [turn for turn in open_turns if turn[0] <= clock]
        if due:
            turn = due[0]
            open_turns.remove(turn)
            prefix, tokens = turn[1], turn[2]
        else:
            prefix = source.choices(tools, weights)[0]
            tokens = len(prefix) * BLOCK_TOKENS
        extra = int(source.lognormvariate(7.6, 1.0))
        prompt = min(100_000, tokens + extra)
        new = prompt // BLOCK_TOKENS + 1 - len(prefix)
        blocks = prefix + tuple(range(fresh, fresh + new))
        fresh += new
        answer = max(1, int(source.lognormvariate(4.6, 1.1)))
        rows.append((clock, prompt, answer, blocks))
        if source.random() < 0.22:
            open_turns.append((clock + source.expovariate(1 / 30), blocks[: prompt // BLOCK_TOKENS], prompt + answer))
    return rows


def make_documents_trace(count: int = 8_000, seed: int = 2) -> list[Row]:
    """A made-up trace of questions on long documents: several turns each, minutes apart, most of the prompt reusable.

    Conversations begin before the first request that is kept and go on after the last, so that the rate is steady.
    """
    source = random.Random(seed)
    rows: list[Row] = []
    fresh = 0
    span, turns_mean = 3600.0, 3.7
    rate = count / span / turns_mean
    start = -span / 3
    while start < span:
        start += source.expovariate(rate)
        tokens = int(min(60_000, source.lognormvariate(9.1, 0.7)))
        clock = start
        prefix: tuple[int, ...] = ()
        for _ in range(1 + min(12, int(source.expovariate(1 / 3.2)))):
            tokens += int(source.lognormvariate(5.6, 0.8))
            new = tokens // BLOCK_TOKENS + 1 - len(prefix)
            blocks = (*prefix, *range(fresh, fresh + new))
            fresh += new
            answer = max(1, int(source.lognormvariate(4.9, 0.8)))
            rows.append((clock, tokens, answer, blocks))
            prefix = blocks[: tokens // BLOCK_TOKENS]
            tokens += answer
            clock += 10 + source.expovariate(1 / 200)
    return sorted(row for row in rows if 0 <= row[0] < span)[:count]
