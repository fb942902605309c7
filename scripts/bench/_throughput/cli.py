"""The command line of `scripts/bench/throughput`."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvloop
from rich.console import Console

from router.config import home

from . import stack
from .client import Take, WrongAnswer, batch, prompts

ROOT = stack.ROOT
ABOUT = """\
Output tokens a second of one real vLLM, directly and through the router, so many requests at once.

Batches come in pairs, one of each kind right after the other and in turn first, so that whatever else the machine does
meets both. The ratio is the median over the pairs. Every request asks for the same number of tokens and must get them.
"""


def ratio(pairs: Sequence[tuple[Take, Take]]) -> dict[str, Any]:
    """What pairs of (direct, routed) come to: the median of their ratios, its range, and the median rates."""
    each = [routed.rate / direct.rate for direct, routed in pairs]
    return {
        "ratio": round(statistics.median(each), 4),
        "lowest": round(min(each), 4),
        "highest": round(max(each), 4),
        "direct_tokens_s": round(statistics.median(direct.rate for direct, _ in pairs), 1),
        "routed_tokens_s": round(statistics.median(routed.rate for _, routed in pairs), 1),
        "pairs": len(pairs),
    }


def default_model(given: Path | None) -> Path:
    """The model's directory: as given, of the tests, or the quickstart's."""
    if found := given or os.environ.get("TIDEGATE_TEST_MODEL"):
        return Path(found).resolve()
    from tidegate.models import prepare_default_model

    return Path(prepare_default_model(home()))


async def _pairs(console: Console, direct: str, routed: str, options: argparse.Namespace) -> list[tuple[Take, Take]]:
    async def take(url: str, seed: int) -> Take:
        texts = prompts(options.requests, options.words, seed)
        return await batch(url, stack.KEY, stack.MODEL, texts, options.concurrency, options.tokens)

    for number, url in enumerate((direct, routed)):  # both ways are warm before anything counts
        warm = prompts(options.concurrency, options.words, -1 - number)
        await batch(url, stack.KEY, stack.MODEL, warm, options.concurrency, min(16, options.tokens))
    pairs = []
    for number in range(options.pairs):
        taken = {url: await take(url, number) for url in ((direct, routed) if number % 2 == 0 else (routed, direct))}
        pairs.append((taken[direct], taken[routed]))
        console.print(
            f"pair {number + 1}: direct {taken[direct].rate:.1f} tokens/s, routed {taken[routed].rate:.1f} tokens/s, "
            f"ratio {taken[routed].rate / taken[direct].rate:.3f}",
            highlight=False,
        )
    return pairs


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("throughput", description=ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="directory of the model (default: the one of the quickstart)")
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--requests", type=int, default=48, help="requests of one batch (default %(default)s)")
    parser.add_argument("--tokens", type=int, default=64, help="output tokens of each (default %(default)s)")
    parser.add_argument("--words", type=int, default=40, help="words of each prompt (default %(default)s)")
    parser.add_argument("--pairs", type=int, default=6, help="pairs of batches (default %(default)s)")
    parser.add_argument("--cpus", type=int, default=os.cpu_count() or 1, help="threads of the engine (default: all cores)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there too")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the bench. Exit status: 0 measured, 1 a wrong answer, 2 it could not run."""
    options, console = _parser().parse_args(arguments), Console()
    work = ROOT / ".bench"
    work.mkdir(exist_ok=True)
    try:
        with contextlib.ExitStack() as up:
            direct = up.enter_context(stack.engine(default_model(options.model), options.concurrency, work, options.cpus))
            routed = up.enter_context(stack.router([direct], work))
            found = ratio(uvloop.run(_pairs(console, direct, routed, options)))
    except stack.NotUp as error:
        console.print(f"[red]cannot run[/]: {error}", highlight=False)
        return 2
    except WrongAnswer as error:
        console.print(f"[red]wrong[/]: {error}", highlight=False)
        return 1
    record = found | {"concurrency": options.concurrency, "tokens": options.tokens, "requests": options.requests}
    for path in filter(None, (work / "throughput.json", options.json)):
        path.write_text(json.dumps(record) + "\n")
    console.print(
        f"{options.concurrency} at once: {found['direct_tokens_s']} output tokens/s direct, {found['routed_tokens_s']} through "
        f"the router: {found['ratio']:.3f} x ({found['lowest']:.3f} to {found['highest']:.3f} over {found['pairs']} pairs)",
        highlight=False,
    )
    return 0
