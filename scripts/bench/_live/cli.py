"""The command line of `scripts/bench/live`."""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import uvloop
from _datapath import procs, systems
from _datapath.peers import Missing
from _throughput import stack
from _throughput.cli import default_model
from rich.console import Console
from rich.table import Table

from .conversations import Seen, Shape, converse
from .engines import cache_counts, engines, forget

ROOT = stack.ROOT
ABOUT = """\
Several real vLLM engines behind one router after another, under the same conversations of several turns.

The engines stay up; before each router's turn their prefix caches are emptied. TTFT is what clients see, the hit rate
what the engines count. All routers meet plain vLLM servers, so tidegate goes by what it sent where (DEGRADED), not by
KV events: that is the comparison its peers can take part in. Two cores under two engines make noisy times; the hit
rate is what carries over.
"""
TIDEGATE = "tidegate"
PEERS = ("vllm-router/cache_aware", "vllm-router/round_robin")


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("live", description=ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="directory of the model (default: the one of the quickstart)")
    parser.add_argument("--engines", type=int, default=2)
    parser.add_argument("--sessions", type=int, default=8, help="conversations at once (default %(default)s)")
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2, help="turns of each router (default %(default)s)")
    parser.add_argument("--systems", default=",".join((TIDEGATE, *PEERS)), help="default %(default)s")
    parser.add_argument("--cpus", type=int, default=1, help="threads of each engine (default %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    return parser


@contextlib.contextmanager
def _router(name: str, urls: list[str], work: Path) -> Iterator[str]:
    if name == TIDEGATE:
        with stack.router(urls, work) as url:
            yield url
        return
    launch = systems.SYSTEMS[name](systems.Bench(ROOT, work, sys.executable, urls), stack.free_port())
    process = procs.start(launch.argv, work / f"live-{name.replace('/', '-')}.log", launch.env)
    try:
        end = time.monotonic() + launch.ready_s
        while not _has_workers(launch.url):
            if process.poll() is not None or time.monotonic() > end:
                raise stack.NotUp(f"{name} did not come up")
            time.sleep(0.25)
        yield launch.url
    finally:
        procs.stop(process, 5)


def _has_workers(url: str) -> bool:
    """Whether the router passes a request on already."""
    body = {"model": stack.MODEL, "prompt": "ready?", "max_tokens": 1}
    with contextlib.suppress(httpx.HTTPError):
        return httpx.post(f"{url}/v1/completions", json=body, timeout=30, trust_env=False).status_code == 200
    return False


def _figures(name: str, takes: list[tuple[Seen, float]]) -> dict[str, Any]:
    later = [second for seen, _ in takes for second in seen.later_turns]
    first = [second for seen, _ in takes for second in seen.first_turns]
    cuts = statistics.quantiles(later, n=10) if len(later) > 1 else [0.0] * 9
    return {
        "system": name,
        "ttft_p50_ms": round(statistics.median(later) * 1e3, 1) if later else None,
        "ttft_p90_ms": round(cuts[8] * 1e3, 1) if later else None,
        "first_turn_p50_ms": round(statistics.median(first) * 1e3, 1) if first else None,
        "hit_rate": round(statistics.mean(rate for _, rate in takes), 4),
        "tokens_s": round(sum(seen.tokens for seen, _ in takes) / sum(seen.seconds for seen, _ in takes), 1),
        "errors": sum(sum(seen.errors.values()) for seen, _ in takes),
    }


def _measure(console: Console, options: argparse.Namespace, urls: list[str], work: Path) -> dict[str, list[tuple[Seen, float]]]:
    shape = Shape(options.sessions, options.turns, houses=3, house_words=150, turn_words=40, tokens=24, pause_s=0.3)
    takes: dict[str, list[tuple[Seen, float]]] = {}
    for number in range(options.rounds):
        names = options.systems.split(",")
        for name in names if number % 2 == 0 else reversed(names):
            try:
                with _router(name, urls, work) as url:
                    forget(urls)
                    before = cache_counts(urls)
                    seen = uvloop.run(converse(url, stack.KEY, stack.MODEL, shape, number))
                    rate = cache_counts(urls).since(before)
            except (Missing, stack.NotUp) as error:
                console.print(f"[yellow]missing[/] {name}: {error}", highlight=False)
                continue
            takes.setdefault(name, []).append((seen, rate))
            console.print(f"round {number + 1}: {name}: {_figures(name, takes[name][-1:])}", highlight=False)
    return takes


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table("system", "TTFT p50 ms", "p90 ms", "first turns p50 ms", "hit rate", "tokens/s", "errors")
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    return table


def main(arguments: list[str] | None = None) -> int:
    """Run the bench. Exit status: 0 measured, 1 a request failed, 2 it could not run."""
    options, console = _options().parse_args(arguments), Console()
    work = ROOT / ".bench"
    work.mkdir(exist_ok=True)
    try:
        with engines(options.engines, default_model(options.model), options.sessions, work, options.cpus) as urls:
            takes = _measure(console, options, urls, work)
    except stack.NotUp as error:
        console.print(f"[red]cannot run[/]: {error}", highlight=False)
        return 2
    rows = [_figures(name, taken) for name, taken in takes.items()]
    console.print(_table(rows))
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 1 if any(row["errors"] for row in rows) else 0
