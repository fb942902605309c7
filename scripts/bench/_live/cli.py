"""The command line of `scripts/bench/live`."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import uvloop
from _datapath.peers import Missing
from _throughput import stack
from _throughput.cli import default_model
from rich.console import Console
from rich.table import Table

from .conversations import Seen, Shape, converse
from .engines import LiveEngine, cache_counts, engine_arguments, engines, forget
from .systems import DEFAULT, PEERS, TIDEGATE, running

ROOT = stack.ROOT
ABOUT = """\
Several real vLLM engines behind one router after another, under the same conversations of several turns.

The engines stay up; before each router's turn their prefix caches are emptied. TTFT is what clients see, the hit rate
what the engines count. Rounds alternate the order of the routers, and a round that began is finished, so that all have
as many. tidegate meets plain vLLM servers and goes by their gauges and what it sent where (DEGRADED); kv_aware of
vllm-router gets the engines' KV events. Two cores under two engines make noisy times; the hit rate is what carries
over. What other processes of the machine took during a turn is told: a table with more than a few per cent of that is
worth little.

On a GPU, where vLLM's build for it is installed, the engines share one card, by default in equal parts:

  CUDA_VISIBLE_DEVICES=0 scripts/bench/live --engines 4 --sessions 64 --model DIR --load-format dummy \\
      --engine-args='--no-enforce-eager --max-model-len 8192'

With --load-format dummy, DIR needs config.json and the tokenizer, no weights: times are those of a model of that shape,
answers are noise. What cannot be compared there: engines on one card take each other's time.
"""
_BUSY = 0.1
"""Share of the machine that others may take before the table says that it is worth little."""


@dataclass(frozen=True)
class Take:
    """One router's turn: what clients saw, the engines' hit rate, and the share of the machine's CPU that others had."""

    seen: Seen
    hit_rate: float
    others: float


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("live", description=ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="directory of the model (default: the one of the quickstart)")
    parser.add_argument("--engines", type=int, default=2)
    parser.add_argument("--sessions", type=int, default=8, help="conversations at once (default %(default)s)")
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=16, help="tokens of each answer (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=4, help="turns of each router at most (default %(default)s)")
    parser.add_argument("--minutes", type=float, default=9.0, help="no round begins that would end later (default %(default)s)")
    parser.add_argument("--systems", default=",".join(DEFAULT), help=f"of {TIDEGATE}, {', '.join(PEERS)} (default %(default)s)")
    parser.add_argument("--cpus", type=int, default=1, help="threads of each engine (default %(default)s)")
    parser.add_argument("--engine-args", default="", metavar="ARGS", help="vLLM's own, as one text after `=`; the last word")
    parser.add_argument("--load-format", metavar="FORMAT", help="vLLM's; `dummy`: made-up weights")
    parser.add_argument(
        "--gpu-memory-utilization", type=float, metavar="SHARE", help="of the card, for each engine (default 0.9 / engines)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    return parser


class _Clock:
    """CPU seconds of the whole machine and of this process with all it started: what others took is the difference."""

    def __init__(self) -> None:
        self._started, self._all, self._own = time.monotonic(), _busy_s(), _own_s()

    def others(self) -> float:
        """The share of the machine that others had since."""
        wall = (time.monotonic() - self._started) * (psutil.cpu_count() or 1)
        return self._others_s() / wall if wall else 0.0

    def _others_s(self) -> float:
        return max(0.0, (_busy_s() - self._all) - (_own_s() - self._own))


def _busy_s() -> float:
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0))


def _own_s() -> float:
    """Of living processes: those that end within a turn (a router's) are stopped after it was measured."""
    total = 0.0
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        try:
            times = process.cpu_times()
            total += times.user + times.system
        except psutil.NoSuchProcess:
            continue
    return total


def _figures(name: str, takes: Sequence[Take]) -> dict[str, Any]:
    every = [second for take in takes for second in (*take.seen.first_turns, *take.seen.later_turns)]
    later = [second for take in takes for second in take.seen.later_turns]
    middles = [statistics.median(take.seen.later_turns) * 1e3 for take in takes if take.seen.later_turns]
    return {
        "system": name,
        "ttft_p50_ms": _quantile_ms(every, 0.5),
        "ttft_p90_ms": _quantile_ms(every, 0.9),
        "later_turns_p50_ms": _quantile_ms(later, 0.5),
        "later_turns_p50_ms_of_rounds": [round(min(middles), 1), round(max(middles), 1)] if middles else None,
        "hit_rate": round(statistics.mean(take.hit_rate for take in takes), 4),
        "tokens_s": round(sum(take.seen.tokens for take in takes) / max(1e-9, sum(take.seen.seconds for take in takes)), 1),
        "errors": sum(sum(take.seen.errors.values()) for take in takes),
        "rounds": len(takes),
        "others_cpu": round(max(take.others for take in takes), 3),
    }


def _quantile_ms(seconds: Sequence[float], share: float) -> float | None:
    ordered = sorted(seconds)
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1e3, 1) if ordered else None


def _take(name: str, up: list[LiveEngine], shape: Shape, number: int, work: Path) -> Take:
    urls = [engine.url for engine in up]
    with running(name, up, work) as url:
        forget(urls)
        before, clock = cache_counts(urls), _Clock()
        seen = uvloop.run(converse(url, stack.KEY, stack.MODEL, shape, number))
        return Take(seen, cache_counts(urls).since(before), clock.others())


def _measure(console: Console, options: argparse.Namespace, up: list[LiveEngine], work: Path) -> dict[str, list[Take]]:
    shape = Shape(options.sessions, options.turns, houses=3, house_words=150, turn_words=40, tokens=options.tokens, pause_s=0.3)
    takes: dict[str, list[Take]] = {name: [] for name in options.systems.split(",")}
    started, longest = time.monotonic(), 0.0
    for number in range(options.rounds):
        began = time.monotonic()
        if number and began - started + longest > 60 * options.minutes:
            break
        for name in list(takes) if number % 2 == 0 else list(reversed(takes)):
            try:
                takes[name].append(_take(name, up, shape, number, work))
            except (Missing, stack.NotUp, httpx.HTTPError) as error:
                console.print(f"[yellow]left out[/] {name}: {error}", highlight=False)
                del takes[name]
                continue
            console.print(f"round {number + 1}: {name}: {_figures(name, takes[name][-1:])}", highlight=False)
        longest = max(longest, time.monotonic() - began)
    return {name: taken for name, taken in takes.items() if taken}


def _table(rows: list[dict[str, Any]]) -> Table:
    columns = {
        "system": "system",
        "ttft_p50_ms": "TTFT p50 ms",
        "ttft_p90_ms": "p90 ms",
        "later_turns_p50_ms": "later turns p50 ms",
        "later_turns_p50_ms_of_rounds": "of rounds",
        "hit_rate": "hit rate",
        "tokens_s": "tokens/s",
        "errors": "errors",
        "rounds": "rounds",
    }
    table = Table(*columns.values())
    for row in rows:
        table.add_row(*("-".join(map(str, v)) if isinstance(v := row[name], list) else str(v) for name in columns))
    return table


def main(arguments: list[str] | None = None) -> int:
    """Run the bench. Exit status: 0 measured, 1 a request failed, 2 it could not run."""
    parser, console = _options(), Console()
    options = parser.parse_args(arguments)
    if unknown := set(options.systems.split(",")) - {TIDEGATE, *PEERS}:
        parser.error(f"--systems: unknown {', '.join(sorted(unknown))}; there are {TIDEGATE}, {', '.join(PEERS)}")
    try:
        more = engine_arguments(
            options.engines, options.engine_args, options.load_format, options.gpu_memory_utilization, stack.on_gpu()
        )
    except ValueError as error:
        parser.error(str(error))
    work = ROOT / ".bench"
    work.mkdir(exist_ok=True)
    try:
        with engines(options.engines, default_model(options.model), options.sessions, work, options.cpus, more) as up:
            takes = _measure(console, options, up, work)
    except stack.NotUp as error:
        console.print(f"[red]cannot run[/]: {error}", highlight=False)
        return 2
    rows = [_figures(name, taken) for name, taken in takes.items()]
    console.print(_table(rows))
    others = max((row["others_cpu"] for row in rows), default=0.0)
    if others > _BUSY:
        console.print(f"[yellow]Other processes took up to {100 * others:.0f} % of the machine: times are worth little.[/]")
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 1 if any(row["errors"] for row in rows) else 0
