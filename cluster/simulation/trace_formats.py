"""The formats that traces of requests are published in. Which one a file has is told by its first character.

| begins with | whose | a line or row |
|---|---|---|
| `[` | ours | `[time ms, prompt tokens, answer tokens, [start, count, ...]]`, the blocks of the prompt run-length coded |
| `{` | Mooncake, Dynamo, Qwen-Bailian | `timestamp`, `input_length`, `output_length`, and `hash_ids` of the prompt's blocks |
| anything else | Azure, BurstGPT, Vidur | a CSV with columns for time, prompt and answer tokens, named as in one of these |

Times of JSON objects are milliseconds where they are whole numbers and seconds where they are not; those of a CSV are seconds or
dates, or milliseconds in a column whose name says so (`timestamp_ms`). What got no answer (BurstGPT's failures have no tokens of
one) is left out.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from cluster.simulation.kv_cache import BLOCK_TOKENS

Row = tuple[float, int, int, tuple[int, ...]]
"""Seconds, prompt tokens, answer tokens, block ids."""

_Read = TypeVar("_Read")
_TIME = tuple(name + unit for name in ("timestamp", "arrivedat", "arrivaltime", "arrival", "time") for unit in ("", "s", "ms"))
_PROMPT = ("contexttokens", "requesttokens", "inputlength", "prompttokens", "inputtokens", "numprefilltokens")
_ANSWER = ("generatedtokens", "responsetokens", "outputlength", "completiontokens", "outputtokens", "numdecodetokens")
_BLOCK_SIZES = (16, 32, 64, 128, 256, 512)
_MOST_TOKENS = 10_000_000
"""Of one prompt or answer: what is longer is no request but a damaged file."""
_ENOUGH = 0.9
"""Share of the requests whose blocks must be of one size."""


class TraceError(ValueError):
    """A trace cannot be read; the text names the file and line."""


def parse_trace(path: Path, data: bytes) -> list[Row]:
    """The requests of a file, in its order.

    Args:
        path: names the file in errors.
        data: its content.

    Raises:
        TraceError: it has none of these formats, or a line is not as the first one promises.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = 1 + data.count(b"\n", 0, error.start)
        raise TraceError(f"{path}:{line}: this line is not UTF-8") from None
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise TraceError(f"{path}: there is nothing in it")
    first = lines[0][1].lstrip()[0]
    if first == "[":
        return list(_each(path, lines, _own_row, "[time ms, prompt tokens, answer tokens, [start, count, ...]]"))
    if first == "{":
        return _object_rows(path, lines)
    return _csv_rows(path, lines)


def _each(path: Path, lines: Iterable[tuple[int, str]], read: Callable[[str], _Read], form: str) -> Iterator[_Read]:
    for number, line in lines:
        try:
            yield read(line)
        except (ValueError, TypeError, LookupError, OverflowError, AttributeError, RecursionError, csv.Error):
            raise TraceError(f"{path}:{number}: not {form}") from None


def _own_row(line: str) -> Row:
    milliseconds, prompt, answer, runs = json.loads(line)
    if sum(runs[1::2]) > _MOST_TOKENS // BLOCK_TOKENS:
        raise ValueError(line)
    blocks = tuple(block for i in range(0, len(runs), 2) for block in range(runs[i], runs[i] + runs[i + 1]))
    return _seconds(milliseconds) / 1e3, _tokens(prompt), _tokens(answer), blocks


def _seconds(value: Any) -> float:
    seconds = float(value)
    if not math.isfinite(seconds):
        raise ValueError(value)
    return seconds


def _tokens(value: Any) -> int:
    tokens = int(value)
    if not 0 <= tokens <= _MOST_TOKENS:
        raise ValueError(value)
    return tokens


# -- JSON objects


def _object_rows(path: Path, lines: Sequence[tuple[int, str]]) -> list[Row]:
    form = '{"timestamp": ..., "input_length": ..., "output_length": ..., "hash_ids": [...]}'
    found = [row for row in _each(path, lines, _object_row, form) if row[1] and row[2]]
    unit = 1.0 if any(isinstance(time, float) for time, _, _, _ in found) else 1e-3
    size = _block_size(path, [(prompt, len(ids)) for _, prompt, _, ids in found if ids])
    names: dict[tuple[int, ...], int] = {}
    fresh = count(-1, -1)
    return [
        (time * unit, prompt, answer, _blocks(ids, size, names) if ids else _new_blocks(prompt, fresh))
        for time, prompt, answer, ids in found
    ]


def _object_row(line: str) -> tuple[float, int, int, list[int]]:
    row = json.loads(line)
    ids = [int(part) for part in row.get("hash_ids") or ()]
    time = row["timestamp"]
    return time if isinstance(time, int) else _seconds(time), _tokens(row["input_length"]), _tokens(row["output_length"]), ids


def _block_size(path: Path, seen: Sequence[tuple[int, int]]) -> int:
    """How many tokens one of `hash_ids` stands for, by prompts and their numbers of ids; a last block that is not full may have
    none."""
    fits = {size: sum(ids in (prompt // size, -(-prompt // size)) for prompt, ids in seen) for size in _BLOCK_SIZES}
    best = max(fits, key=lambda size: (fits[size], size))
    if fits[best] < _ENOUGH * len(seen):
        sizes = ", ".join(map(str, _BLOCK_SIZES))
        raise TraceError(f"{path}: the numbers of `hash_ids` fit no blocks of {sizes} tokens")
    return best


def _blocks(ids: Sequence[int], size: int, names: dict[tuple[int, ...], int]) -> tuple[int, ...]:
    """Our blocks of a prompt, each named by all up to its end: texts are shared from their beginning or not at all."""
    together = BLOCK_TOKENS // size
    blocks: list[int] = []
    before = -1
    for start in range(0, len(ids), together):
        before = names.setdefault((before, *ids[start : start + together]), len(names))
        blocks.append(before)
    return tuple(blocks)


def _new_blocks(prompt: int, fresh: Iterator[int]) -> tuple[int, ...]:
    """The blocks of a prompt that nothing is known of: nobody else has them."""
    return tuple(next(fresh) for _ in range(-(-prompt // BLOCK_TOKENS)))


# -- tables


def _csv_rows(path: Path, lines: Sequence[tuple[int, str]]) -> list[Row]:
    header = next(_each(path, lines[:1], _header, "the names of columns"))
    places = [next((header.index(name) for name in names if name in header), -1) for names in (_TIME, _PROMPT, _ANSWER)]
    if min(places) < 0:
        raise TraceError(
            f"{path}:{lines[0][0]}: neither JSON nor the names of columns for time, prompt and answer tokens, as in "
            "TIMESTAMP,ContextTokens,GeneratedTokens"
        )
    fresh = count(-1, -1)
    unit = 1e-3 if header[places[0]].endswith("ms") else 1.0

    def read(line: str) -> Row:
        cells = next(csv.reader([line]))
        time, prompt, answer = (cells[place].strip() for place in places)
        size = _tokens(float(prompt))
        return _time(time) * unit, size, _tokens(float(answer)), _new_blocks(size, fresh)

    return [
        row
        for row in _each(path, lines[1:], read, f"a row of {len(header)} columns as the first line names them")
        if all(row[1:3])
    ]


def _header(line: str) -> list[str]:
    return [name.strip().lower().replace(" ", "").replace("_", "") for name in next(csv.reader([line]))]


def _time(text: str) -> float:
    try:
        return _seconds(text)
    except ValueError:
        date = datetime.fromisoformat(text)
        return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
